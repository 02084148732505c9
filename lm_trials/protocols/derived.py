"""Derived corpora: the stories of a corpus, filtered, transformed, cut to equal length, or with their words drawn anew.

They make arms that differ in one variable: two corpora with documents of one length, or a corpus and one with the same
words without their order.  A record depends on the corpus, the options and the seed alone.
"""

from __future__ import annotations

import hashlib
import random
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.protocols.columns import RecordColumns, filtered, transform_columns
from lm_trials.protocols.protocols import Condition, Protocol
from lm_trials.protocols.transforms import TransformStep
from lm_trials.stories.corpora import check_free, open_records, read_manifest, write_corpus
from lm_trials.stories.draws import draw_integers, record_keys
from lm_trials.stories.records import SPLITS, Record, make_record

WORD = re.compile(r"\S+")  # punctuation belongs to its word
READ_BATCH = 1000
Watch = Callable[[Iterable[Any]], Iterable[Any]]


class Unigrams:
    """The words of stories with their frequencies.

    >>> Unigrams(["a cat", "a dog"]).resampled("One day,\\nhe ran.", draw=1)
    'a dog\\ndog a'
    """

    def __init__(self, stories: Iterable[str]) -> None:
        counts = Counter(word for story in stories for word in WORD.findall(story))
        self.words = sorted(counts)
        self.ends = list(accumulate(counts[word] for word in self.words))

    def resampled(self, story: str, draw: int) -> str:
        """Replace each word of a story by one drawn with its frequency; blanks and line breaks stay."""
        number = random.Random(draw).random
        return WORD.sub(lambda _: self.words[bisect(self.ends, number() * self.ends[-1])], story)


def cut(story: str, num_words: int) -> list[str]:
    """Cut a story after every `num_words` words; the rest is dropped.

    >>> cut("One day,\\na cat ran away.", 2)
    ['One day,', 'a cat', 'ran away.']
    >>> cut("One day,\\na cat ran away.", 4)
    ['One day,\\na cat']
    """
    ends = [(word.start(), word.end()) for word in WORD.finditer(story)]
    firsts = range(0, len(ends) - num_words + 1, num_words)
    return [story[ends[first][0] : ends[first + num_words - 1][1]] for first in firsts]


def derive_corpus(
    corpus: Path,
    folder: Path,
    conditions: Sequence[Condition] = (),
    num_words: int | None = None,
    resample: bool = False,
    seed: int = 0,
    watch: Watch = iter,
    transforms: Sequence[TransformStep] = (),
) -> dict[str, Any]:
    """Write the corpus `folder` of the stories of another for which all `conditions` hold; return its manifest.

    A story stays in its split.  The order is random, and the first document of each story comes before all others, so
    that the first N documents are of N stories.  Documents that are not whole stories have no labels.

    Args:
        num_words: cut each story into documents of so many words (`cut`); None for whole stories.
        resample: replace each word by one drawn from the unigram distribution of the corpus's train split.
        transforms: change each story first.  It keeps its record id and its place, so that corpora which differ in the
            transforms alone have the same stories in the same order.

    Raises:
        UsageError: if `folder` exists, or no train story is left.
    """
    check_free(folder, "--dataset_name")
    splits = open_records(corpus)
    protocol = Protocol(filtering=tuple(conditions), transforms=tuple(transforms), seed=seed)
    unigrams = Unigrams(_column(splits["train"], "story")) if resample else None

    def documents(split: str, first: bool) -> Iterator[Record]:
        records = splits[split]
        keys_N = record_keys(_column(records, "record_id"))
        records = records.select(np.argsort(draw_integers(keys_N, seed, "order"), kind="stable"))
        for batch in records.iter(READ_BATCH):
            columns = RecordColumns.of(batch)
            found: Iterable[Any] = map(columns.row, np.flatnonzero(filtered(columns, conditions)).tolist())
            if transforms:
                found = transform_columns(columns, protocol).records or ()
            for record in found:
                yield from _documents(record, num_words, first)

    def written() -> Iterator[tuple[int, Record]]:
        for place, split in enumerate(SPLITS):
            for first in (True, False):
                for record in documents(split, first):
                    yield place, record if unigrams is None else _resampled(record, unigrams, seed)

    options: dict[str, Any] = {
        "content": read_manifest(corpus, "content")["content"],
        "filtering": list(map(str, conditions)),
        "words_per_story": num_words,
        "resample_words": resample,
        "seed": seed,
    }
    if transforms:  # the fingerprints of corpora without any stay as they are
        options["transforms"] = [f"{step} v{step.transform.version}" for step in transforms]
    fingerprint = hashlib.sha256(repr(options).encode()).hexdigest()[:16]
    origin = {"reference": f"prepare derive --corpus {corpus.name}", "fingerprint": fingerprint, **options}
    return write_corpus(watch(written()), folder, origin, "source")


def _column(records: Any, name: str) -> Iterator[str]:
    return (value for batch in records.select_columns([name]).iter(READ_BATCH) for value in batch[name])


def _documents(record: Any, num_words: int | None, first: bool) -> Iterator[Record]:
    """Yield the first document of a story, or all others."""
    if num_words is None:
        yield from [record] if first else []
        return
    pieces = cut(record["story"], num_words)
    yield from (make_record(piece, source=record["source"]) for piece in (pieces[:1] if first else pieces[1:]))


def _resampled(record: Record, unigrams: Unigrams, seed: int) -> Record:
    (draw,) = draw_integers(record_keys([record["record_id"]]), seed, "resample_words").tolist()
    return make_record(unigrams.resampled(record["story"], draw), source=record["source"])
