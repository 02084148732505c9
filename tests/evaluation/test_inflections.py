"""The forms of words, and whether a story uses a word."""

import json

import numpy as np
import pytest

from lm_trials.evaluation.inflections import StoryWords, forms_of


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("take", "took taken taking takes"),
        ("go", "went gone goes going"),
        ("be", "was were is are been being"),
        ("mouse", "mice"),
        ("wife", "wives"),
        ("child", "children"),
        ("stop", "stopped stopping stops"),
        ("hope", "hoped hoping hopes"),
        ("cry", "cried crying cries"),
        ("tie", "tied tying"),
        ("visit", "visited visiting"),
        ("panic", "panicked panicking"),
        ("play", "played playing"),
        ("see", "saw seen seeing"),
        ("quit", "quitting"),
        ("big", "bigger biggest"),
        ("happy", "happier happiest"),
        ("good", "better best"),
        ("box", "boxes boxed"),
        ("potato", "potatoes"),
    ],
)
def test_all_forms_are_known(word, forms):
    assert set(forms.split()) <= forms_of(word)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("hop", "hoped"),
        ("hope", "hopped"),
        ("scar", "scared"),
        ("see", "seed"),
        ("corn", "corner"),
        ("din", "dinner"),
        ("car", "card"),
        ("even", "evening"),
        ("happy", "happily"),
        ("farm", "farmer"),
        ("take", "token"),
    ],
)
def test_another_word_is_no_form(word, other):
    assert other not in forms_of(word)


def test_words_are_found_whatever_their_case_and_marks():
    story = StoryWords("The MICE’s ice-cream was eaten; “Took it!” she said.")
    assert [story.uses(word) for word in ("mouse", "Eat", "ice cream", "take")] == [True] * 4
    assert [story.uses(word) for word in ("ice skate", "cream ice", "ma", "cat")] == [False] * 4
    assert story.share_used(["eat", "Eat", "cat"]) == 0.5  # a word asked for twice counts once
    assert story.share_used([]) is None


def test_real_stories_use_the_words_that_they_were_asked_for(shared_data):
    """Published records; their neighbours are the same stories with another record's words."""
    lines = (shared_data / "tinystories_alldata_fixture/archive_records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    own = [StoryWords(record["story"]).share_used(record["words"]) for record in records]
    others = [
        StoryWords(record["story"]).share_used(other["words"])
        for record, other in zip(records, records[1:] + records[:1], strict=True)
    ]
    assert np.mean(own) == 1
    assert np.mean(others) < 0.3
