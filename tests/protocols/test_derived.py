"""Corpora derived of others, by the command that makes them."""

import re
from collections import Counter

import pytest

import prepare_tinystories
from lm_trials.stories.corpora import open_records, read_manifest
from lm_trials.stories.records import record_id
from lm_trials.tokens import tokenizers


@pytest.fixture(scope="module")
def derive(tiny_data):
    """Derive a corpus of `tiny` and return its splits."""

    def derived(name, *flags, corpus="tiny"):
        prepare_tinystories.main(
            ["derive", "--corpus", corpus, "--dataset_name", name, *flags, "--data_cache_dir", str(tiny_data)]
        )
        assert read_manifest(tiny_data / name)["split_by"] == "source"
        return {split: rows[:] for split, rows in open_records(tiny_data / name).items()}

    return derived


@pytest.fixture(scope="module")
def tiny(tiny_data):
    return {split: rows[:] for split, rows in open_records(tiny_data / "tiny").items()}


def test_stories_are_cut_to_documents_of_equal_length_within_their_split(derive, tiny):
    cut = derive("cut", "--words_per_story", "40")
    for split, rows in tiny.items():
        words = {" ".join(story.split()): len(story.split()) for story in rows["story"]}
        pieces = [" ".join(piece.split()) for piece in cut[split]["story"]]
        assert {len(piece.split()) for piece in pieces} == {40}
        assert len(pieces) == sum(number // 40 for number in words.values())
        assert all(any(piece in story for story in words) for piece in pieces)
    assert cut["train"]["record_id"] == [record_id(story) for story in cut["train"]["story"]]
    assert cut["train"]["features"] == [[]] * len(cut["train"]["story"])  # of a part, the story's labels may be wrong


def test_the_first_documents_are_of_as_many_stories_in_random_order(derive, tiny):
    stories = [" ".join(story.split()) for story in tiny["train"]["story"]]
    long = [story for story in stories if len(story.split()) >= 30]
    firsts = [" ".join(piece.split()) for piece in derive("order", "--words_per_story", "30")["train"]["story"]]
    starts = [" ".join(story.split()[:30]) for story in long]
    assert sorted(firsts[: len(long)]) == sorted(starts)
    assert firsts[: len(long)] != starts


def test_resampled_stories_keep_the_words_frequencies_and_lose_their_order(derive, tiny):
    again, other = (derive(f"words-{seed}", "--resample_words", "True", "--seed", str(seed)) for seed in (0, 1))
    blanks = lambda stories: sorted(re.sub(r"\S+", "x", story) for story in stories)  # noqa: E731
    assert blanks(again["train"]["story"]) == blanks(tiny["train"]["story"])
    assert set(again["train"]["story"]).isdisjoint(tiny["train"]["story"])
    assert set(again["train"]["story"]).isdisjoint(other["train"]["story"])

    drawn, there = (Counter(" ".join(rows["train"]["story"]).split()) for rows in (again, tiny))
    assert set(drawn) <= set(there)
    total = sum(there.values())
    for word, count in there.most_common(20):  # four standard deviations of a binomial
        assert abs(drawn[word] - count) < 4 * (count * (1 - count / total)) ** 0.5
    held_out = set(" ".join(tiny["validation"]["story"]).split()) - set(there)
    assert held_out.isdisjoint(" ".join(again["validation"]["story"]).split())


def test_transformed_corpora_have_the_same_stories_in_the_same_order(derive, tiny):
    plain, cut, dropped = (derive(f"t{number}", *flags) for number, flags in enumerate((
        (), ("--transform", "truncate_story:2"), ("--transform", "truncate_story:2", "drop_labels:1.0")
    )))  # fmt: skip
    for split, rows in plain.items():
        for field in ("record_id", "words", "features"):
            assert cut[split][field] == rows[field]
        pairs = list(zip(cut[split]["story"], rows["story"], strict=True))
        assert all(story.startswith(start) for start, story in pairs)
        assert any(start != story for start, story in pairs)
        assert dropped[split]["story"] == cut[split]["story"]
        assert not any(dropped[split]["features"])
    assert any(map(len, tiny["train"]["features"]))


def test_what_a_story_becomes_depends_on_no_other_story(derive, tiny):
    flags = ("--resample_words", "True", "--seed", "2")
    everything, some = derive("every", *flags), derive("some", *flags, "--filtering", "features=Twist,words!=dog")
    assert 0 < len(some["train"]["story"]) < len(everything["train"]["story"])
    assert set(some["train"]["story"]) < set(everything["train"]["story"])
    whole = derive("whole", "--filtering", "features=Twist,words!=dog")["train"]
    rows = zip(*(tiny["train"][name] for name in ("record_id", "features", "words")), strict=True)
    wanted = {name for name, features, words in rows if "Twist" in features and "dog" not in words}
    assert set(whole["record_id"]) == wanted
    assert len(some["train"]["story"]) == len(wanted)
    assert all("Twist" in features for features in whole["features"])


def test_a_tokenizer_of_several_corpora_reads_equally_much_of_each(derive, tiny_data, monkeypatch):
    derive("twists", "--filtering", "features=Twist")
    derive("words", "--resample_words", "True")
    sources = {"twists": "Twist", "words": None}
    known = {name: set(open_records(tiny_data / name)["train"]["story"]) for name in sources}
    read = []

    def train_tokenizer(texts, vocab_size):
        read.extend(texts)
        return range(vocab_size)

    monkeypatch.setattr(tokenizers, "train_tokenizer", train_tokenizer)
    with pytest.raises(AttributeError, match="save_pretrained"):
        prepare_tinystories.main(
            ["train_vocab", "--corpus", "twists+words", "--vocab_size", "500", "--data_cache_dir", str(tiny_data)]
        )
    letters = {name: sum(len(text) for text in read if text in texts) for name, texts in known.items()}
    assert sum(letters.values()) == sum(map(len, read))
    assert abs(letters["twists"] - letters["words"]) <= 2 * max(map(len, read))
    assert letters["twists"] > 0.9 * sum(map(len, known["twists"]))  # the smaller one ends
    assert letters["words"] < 0.9 * sum(map(len, known["words"]))
