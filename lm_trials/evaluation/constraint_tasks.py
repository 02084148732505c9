"""Constraint tasks: prompts that ask for a story with given words and features, and their coverage in training data.

A model cannot use words that its training data lacks.  Scores are split by how often the words of a prompt occur in
that data, so that missing words are not taken for ignored prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_trials.console import UsageError, did_you_mean, progress
from lm_trials.data.datasets import open_prepared
from lm_trials.evaluation.inflections import StoryWords, forms_of, words_of
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.files import readable
from lm_trials.flags import read_yaml
from lm_trials.pairs.layouts import Message
from lm_trials.pairs.pairs import PairSet
from lm_trials.stories.records import record_id

COLUMNS = ("words", "features")


@dataclass(frozen=True)
class Task:
    """A prompt with its constraints.

    Attributes:
        record_id: of the record; for prompts of a file, of the prompt's text.
        prompt: an instruction, or a beginning to complete.
        words, features: that the story must have; none for prompts of a file.
        story: the record's own; empty without one.
        before: the messages before the prompt in a conversation, such as a system message.
    """

    record_id: str
    prompt: str
    words: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    story: str = ""
    before: tuple[Message, ...] = ()


def pair_tasks(name: str, data_cache_dir: Path, split: str, count: int) -> list[Task]:
    """Return the first `count` prompts of a split of a data set of pairs.

    Raises:
        UsageError: for another data set, a split without prompts, or pairs without words and features.
    """
    pairs = open_asked(name, data_cache_dir)
    rows = _split(pairs, split)
    if missing := [column for column in COLUMNS if column not in rows.column_names]:
        raise UsageError(
            f"--dataset_name {name} has no column {' and '.join(missing)}; make it with lm-trials prepare "
            "instruct, or give --prompts FILE to score length and end alone"
        )
    return [_task(pairs, row) for row in rows.select(range(min(count, len(rows))))]


def open_asked(name: str, data_cache_dir: Path) -> PairSet:
    """Open a prepared data set of prompts with stories.

    Raises:
        UsageError: for a name that is none.
    """
    return open_prepared(name, data_cache_dir, "dataset_name", "make it with lm-trials prepare instruct").pairs()


def split_rows(name: str, data_cache_dir: Path, split: str, count: int) -> list[dict[str, Any]]:
    """Return the first `count` rows of a split of a data set of pairs, with all their columns.

    Raises:
        UsageError: for another data set, or a split without prompts.
    """
    pairs = open_asked(name, data_cache_dir)
    if pairs.kind != "pairs":
        raise UsageError(f"--dataset_name {name} has {pairs.kind}; give a data set of prompts and completions")
    rows = _split(pairs, split)
    return list(rows.select(range(min(count, len(rows)))))


def _split(pairs: PairSet, split: str) -> Any:
    if split not in pairs.splits:
        raise UsageError(f"--dataset_split {split}: {did_you_mean(split, pairs.splits)}")
    if not len(pairs.splits[split]):
        raise UsageError(f"--dataset_name {pairs.name}: its {split} split has no prompt; prepare more stories")
    return pairs.splits[split]


def _task(pairs: PairSet, row: dict[str, Any]) -> Task:
    words, features = tuple(row["words"] or ()), tuple(row["features"] or ())
    if pairs.kind == "pairs":
        return Task(row["record_id"], row["prompt"], words, features, row["completion"])
    if pairs.kind != "conversations":
        raise UsageError(
            f"--dataset_name {pairs.name} has {pairs.kind} without prompts; give a data set of pairs or conversations"
        )
    roles = [message["role"] for message in row["messages"]]
    if "assistant" not in roles[1:]:
        raise UsageError(f"--dataset_name {pairs.name}: a conversation has no answer; give each an assistant's message")
    answer = roles.index("assistant", 1)
    *before, asked = row["messages"][:answer]
    return Task(row["record_id"], asked["content"], words, features, row["messages"][answer]["content"], tuple(before))


def file_tasks(path: Path) -> list[Task]:
    """Return the prompts of a file: a YAML list of texts, or the lines of any other file.

    Raises:
        UsageError: for a file that cannot be read, or has no prompt.
    """
    if path.suffix in (".yaml", ".yml"):
        try:
            texts = read_yaml(path)
        except UsageError as error:
            raise UsageError(f"--prompts {path}: {error}") from None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"--prompts {path} is not a list of texts; write each after a dash, `- One day, ...`")
    else:
        with readable(f"--prompts {path}", "give a text or YAML file"):
            texts = path.read_text(encoding="utf-8").splitlines()
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"--prompts {path} has no prompt; write one per line")
    return [Task(record_id(text), text) for text in texts]


def task_prompts(teller: Storyteller, tasks: Sequence[Task]) -> list[list[int]]:
    """Return the prompt ids of each task."""
    if teller.mode != "chat":
        return teller.prompts([task.prompt for task in tasks])
    return [teller.conversation([*task.before, {"role": "user", "content": task.prompt}]) for task in tasks]


GROUPS = ("unseen", "rare", "common")
# Words without a subject, and words that ask for a story.
FUNCTION = """
a about above after again against all also always am an and another any anybody anyone anything are around as at
away back be because been before behind being below beside between both but by can cannot could d did do does
doing done don down during each either else enough even ever every everyone everything few for from get go got had
has have having he her here hers herself him himself his how i if in inside instead into is it its itself just let
like ll m made make many may maybe me might mine more most much must my myself near neither never next no nobody
none nor not nothing now of off often on once one only onto or other our ours out outside over own please quite re
really s said same say she should since so some somebody someone something sometimes soon still such t take than
that the their theirs them themselves then there these they thing things this those through to together too
toward under until up upon us use used very was way we well went were what when where which while who whom whose
why will with without would yet you your yours yourself yourselves
write tell story stories short simple words word possible using following least contain contains include should
verb noun adjective feature features summary sentence time day
"""
FUNCTION_WORDS = frozenset(FUNCTION.split())


@dataclass(frozen=True)
class WordCounts:
    """How often each word form occurs in a data set's train split, and the total of all words.

    >>> counts = WordCounts("tiny", Counter({"took": 3, "take": 1, "ice": 2, "cream": 1}), total=10)
    >>> counts.count("take"), counts.count("ice-cream"), counts.count("robot"), counts.per_million(4)
    (4, 1, 0, 400000.0)
    >>> counts.count("taking"), counts.count("taking", inflected=True)
    (0, 4)
    """

    name: str
    counts: Counter[str]
    total: int

    def count(self, word: str, inflected: bool = False) -> int:
        """Return how often a word occurs in any form; of several parts, the count of the rarest, an upper bound.

        Args:
            inflected: whether the word may itself be an inflected form, as in a running text.
        """

        def counted(part: str) -> int:
            bases = self._bases.get(part, []) if inflected else []
            return sum(self.counts[form] for form in frozenset().union(*map(forms_of, [part, *bases])))

        return min(map(counted, words_of(word)), default=0)

    @cached_property
    def _bases(self) -> dict[str, list[str]]:
        """The words of the data set that each form may belong to."""
        found: dict[str, list[str]] = {}
        for word in self.counts:
            for form in forms_of(word):
                found.setdefault(form, []).append(word)
        return found

    def per_million(self, count: int) -> float:
        """Return a count per million words."""
        return 1e6 * count / self.total if self.total else 0.0


def content_words(text: str) -> list[str]:
    """Return the distinct words of a text without function words and numbers, in order.

    >>> content_words("Write a story about a robot walking his dog.")
    ['robot', 'walking', 'dog']
    """
    return list(dict.fromkeys(w for w in words_of(text) if len(w) > 1 and w.isalpha() and w not in FUNCTION_WORDS))


def count_words(texts: Iterable[Sequence[str]]) -> tuple[Counter[str], int]:
    """Count the words of batches of texts, split as by `inflections.words_of`.

    >>> count_words([["The cat.", "A cat's hat"]])[0]["cat"]
    2
    """
    counts: Counter[str] = Counter()
    for batch in texts:
        lowered = pc.utf8_lower(pa.array(batch, type=pa.string()))
        words = pc.split_pattern_regex(lowered, pattern=r"[^\pL\pM\pN]+").flatten()
        for entry in words.value_counts():
            counts[entry["values"].as_py()] += entry["counts"].as_py()
    del counts[""]
    return counts, sum(counts.values())


def training_words(name: str, data_cache_dir: Path) -> WordCounts:
    """Count the words of a prepared data set's train split; of pairs, those of the completions.

    Raises:
        UsageError: for a name that is not a prepared corpus, set or data set of pairs.
    """
    texts, total = open_prepared(name, data_cache_dir, "coverage").train_texts()
    batches = progress(texts, f"counting the words of {name}", "stories", total, size=len)
    return WordCounts(name, *count_words(batches))


def task_words(task: Task) -> list[str]:
    """Return the required words if the prompt contains them, else the content words of the prompt.

    >>> task_words(Task("a", "Write a story of a robot and a dog.", ("take",)))
    ['robot', 'dog']
    """
    if task.words and names_words(task):
        return sorted(set(task.words))
    return content_words(task.prompt)


def names_words(task: Task) -> bool:
    """Return whether a task's prompt contains all required words; a prompt made from a summary need not."""
    return StoryWords(task.prompt).share_used(task.words) == 1


@dataclass(frozen=True)
class Coverage:
    """How often the words of tasks occur in the training set `name`.

    Attributes:
        rows: of word, prompts, count, per_million; the rarest first.
        rarest: the count of each task's rarest word, by record id; tasks without words are left out.
        median: of those counts above 0.
    """

    name: str
    rows: list[dict[str, Any]]
    rarest: dict[str, int]
    median: float

    @property
    def unseen(self) -> list[str]:
        """The words with count 0."""
        return [row["word"] for row in self.rows if not row["count"]]

    def group(self, task: Task) -> str | None:
        """Return whether a task's rarest word is unseen, rare (up to the median) or common; None without words."""
        count = self.rarest.get(task.record_id)
        if count is None:
            return None
        return "unseen" if not count else "rare" if count <= self.median else "common"

    def groups_of(self, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
        """Return the (P,) membership of each group that has tasks."""
        groups = [self.group(task) for task in tasks]
        found = {name: np.array([group == name for group in groups]) for name in GROUPS}
        return {name: has_P for name, has_P in found.items() if has_P.any()}


def coverage_of(tasks: Sequence[Task], counts: WordCounts) -> Coverage:
    """Count the words of tasks in a training set.

    >>> tasks = [Task("a", "A cat.", ("cat",)), Task("b", "A robot.", ("robot",)), Task("c", "A dog.", ("dog",))]
    >>> coverage = coverage_of(tasks, WordCounts("tiny", Counter(cat=9, dog=2), 1000))
    >>> coverage.unseen, coverage.median, [coverage.group(task) for task in tasks]
    (['robot'], 5.5, ['common', 'unseen', 'rare'])
    """
    words = {task.record_id: task_words(task) for task in tasks}
    prompts = Counter(word for of in words.values() for word in of)
    required = {word for task in tasks for word in task.words}
    count = {word: counts.count(word, inflected=word not in required) for word in prompts}
    rows = [
        {"word": word, "prompts": prompts[word], "count": count[word], "per_million": counts.per_million(count[word])}
        for word in sorted(prompts, key=lambda word: (count[word], word))
    ]
    rarest = {name: min(count[word] for word in of) for name, of in words.items() if of}
    seen = [number for number in rarest.values() if number]
    return Coverage(counts.name, rows, rarest, float(np.median(seen)) if seen else 0.0)
