"""How often the words of prompts occur in training, and what follows from it for the scores."""

import re
from collections import Counter

import numpy as np
import pytest
from datasets import Features, List, Value

from lm_trials.console import UsageError
from lm_trials.evaluation.constraint_tasks import (
    Task,
    WordCounts,
    content_words,
    count_words,
    coverage_of,
    pair_tasks,
    training_words,
)
from lm_trials.pairs.pairs import write_pairs
from lm_trials.stories.corpora import open_records


def test_words_are_counted_as_python_takes_them_apart(tiny_data):
    counted = training_words("tiny", tiny_data)
    stories = open_records(tiny_data / "tiny", "train")["story"]
    expected = Counter(word for story in stories for word in re.findall(r"[^\W_]+", story.lower()))
    assert counted.counts == expected
    assert counted.total == sum(expected.values())
    held_out = Counter(re.findall(r"[^\W_]+", " ".join(open_records(tiny_data / "tiny", "test")["story"]).lower()))
    assert counted.counts != expected + held_out
    assert counted.count("say") == expected["said"] + expected["say"] + expected["says"] + expected["saying"] > 0


def test_marks_of_any_kind_part_words():
    counts, total = count_words([["Zoë’s “ice-cream”… 3 cats_dogs", ""], ["ZOË"]])
    assert counts == Counter({"zoë": 2, "s": 1, "ice": 1, "cream": 1, "3": 1, "cats": 1, "dogs": 1})
    assert total == 8


def pairs(folder, kind="pairs"):
    more = Features({"words": List(Value("string")), "features": List(Value("string"))})
    rows = []
    for place, (asked, told) in enumerate([("a robot", "The cat took it."), ("a dog", "A cat."), ("a fox", "robot")]):
        row = {"record_id": f"{place:032x}", "words": [], "features": []}
        if kind == "pairs":
            row |= {"prompt": asked, "completion": told}
        else:
            said = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
            row |= {"messages": said, "num_prompt": 0}
        rows.append((("train", "train", "test")[place], row))
    write_pairs(rows, folder, kind, {"source": "test"}, more)


@pytest.mark.parametrize("kind", ["pairs", "conversations"])
def test_of_pairs_only_train_answers_count(kind, tmp_path):
    pairs(tmp_path / "made", kind)
    counted = training_words("made", tmp_path)
    assert counted.counts == Counter(["the", "cat", "took", "it", "a", "cat"])


def test_what_is_no_prepared_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--coverage nowhere is not prepared in"):
        training_words("nowhere", tmp_path)


def test_the_sources_robots_are_what_a_summary_is_about():
    assert content_words("Write a story about a robot walking his dog and finding love.") == [
        "robot", "walking", "dog", "finding", "love",
    ]  # fmt: skip


def test_tasks_are_grouped_by_their_rarest_word():
    counts = WordCounts("set", Counter(cat=100, took=5, walk=7, dog=1), total=1_000_000)
    tasks = [
        Task("a", 'Use "take" and "cat".', ("take", "cat")),
        Task("b", 'Use "robot" and "cat".', ("robot", "cat")),
        Task("c", "Write of a cat.", ("robot",)),  # not in its prompt, which a summary made
        Task("d", "Write of walking dogs."),
        Task("e", "Write it."),
    ]
    coverage = coverage_of(tasks, counts)
    assert coverage.rarest == {"a": 5, "b": 0, "c": 100, "d": 1}
    assert coverage.median == 5
    assert [coverage.group(task) for task in tasks] == ["rare", "unseen", "common", "rare", None]
    assert coverage.unseen == ["robot"]
    assert [row["word"] for row in coverage.rows] == ["robot", "dogs", "take", "walking", "cat"]
    assert {row["word"]: row["prompts"] for row in coverage.rows}["cat"] == 3
    assert {row["word"]: row["per_million"] for row in coverage.rows}["take"] == 5
    groups = coverage.groups_of(tasks[:2])
    assert list(groups) == ["unseen", "rare"]
    assert np.array_equal(groups["unseen"], [False, True])


def test_a_split_that_the_pairs_do_not_have_is_named(tmp_path):
    pairs(tmp_path / "asked")
    assert [task.prompt for task in pair_tasks("asked", tmp_path, "test", 5)] == ["a fox"]
    with pytest.raises(UsageError, match=r"--dataset_split trian: did you mean train\? valid: "):
        pair_tasks("asked", tmp_path, "trian", 5)
