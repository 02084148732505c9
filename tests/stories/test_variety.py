import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.variety import describe_variety, longest_overlaps

small_stories = st.lists(st.lists(st.sampled_from("abc"), max_size=12).map(" ".join), min_size=1, max_size=6)


def overlap_by_trial(train: list[str], story: str) -> int:
    """The definition, word by word."""
    words, longest = story.split(), 0
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            if any(f" {' '.join(words[start:end])} " in f" {other} " for other in train):
                longest = max(longest, end - start)
    return longest


@settings(deadline=None, max_examples=200)
@given(train=small_stories, held_out=small_stories)
def test_overlaps_are_exact(train, held_out):
    assert longest_overlaps(train, held_out) == [overlap_by_trial(train, story) for story in held_out]


def test_overlaps_end_with_the_story():
    assert longest_overlaps(["a b", "c d"], ["a b c d"]) == [2]
    assert longest_overlaps(["a b c d"], ["a b c d"]) == [4]


def test_generated_stories_are_varied():
    train = [record["story"] for record in generate_stories(2000, seed=0)]
    held_out = [record["story"] for record in generate_stories(100, seed=1)]
    report = describe_variety(train, held_out)
    assert report["distinct_stories_share"] == 1.0
    assert report["distinct_sentences_share"] > 0.5
    assert report["overlap_max"] < report["held_out_words_median"] / 2
    assert report["held_out_seen_whole"] == 0


def test_a_list_of_known_stories_is_not():
    """The control of the test above."""
    train = [record["story"] for record in generate_stories(200, seed=0)] * 3
    report = describe_variety(train, train[:20])
    assert report["distinct_stories_share"] == pytest.approx(1 / 3)
    assert report["held_out_seen_whole"] == 20


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="1 training and 0 held-out stories; give at least one of each"):
        describe_variety(["a"], [])
