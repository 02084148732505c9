"""Treatments: what a protocol does to a batch of records, by arrays instead of record by record.

Lists of features are few and repeat, so each distinct list gets a code; relabelling, adding and counting act on the
table of codes, and a corpus of millions is treated in the time of some array operations.

Shape suffixes: N = records given, M = records kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.protocols import Chance, Condition, Protocol
from lm_trials.stories.draws import draw_uniform, record_keys
from lm_trials.stories.records import FEATURES

Labels = tuple[str, ...]


class CodedLists:
    """N lists of labels as codes into a table of the distinct lists.

    >>> lists = CodedLists.of([["Twist"], [], ["Twist"]])
    >>> lists.codes_N.tolist(), lists.table
    ([0, 1, 0], [('Twist',), ()])
    """

    def __init__(self, codes_N: np.ndarray, table: list[Labels]) -> None:
        self.codes_N = codes_N
        self.table = table

    @classmethod
    def of(cls, lists: Iterable[Sequence[str]]) -> CodedLists:
        """Code lists as they come."""
        places: dict[Labels, int] = {}
        codes = [places.setdefault(tuple(labels), len(places)) for labels in lists]
        return cls(np.array(codes, dtype=np.int32), list(places))

    def has(self, value: str) -> np.ndarray:
        """Say of each record, (N,), whether its list holds `value`."""
        return np.array([value in labels for labels in self.table] or [False])[self.codes_N]

    def take(self, rows: np.ndarray) -> CodedLists:
        """Keep some records."""
        return CodedLists(self.codes_N[rows], self.table)

    def changed(self, rows_N: np.ndarray, change: Any) -> CodedLists:
        """Apply `change(labels) -> labels` to the lists of the records that `rows_N` marks."""
        places = {labels: code for code, labels in enumerate(self.table)}
        table = list(self.table)
        new_code = np.arange(len(table), dtype=np.int32)
        for code in np.unique(self.codes_N[rows_N]):
            labels = change(self.table[code])
            if labels not in places:
                places[labels] = len(table)
                table.append(labels)
            new_code[code] = places[labels]
        codes_N = np.where(rows_N, new_code[self.codes_N], self.codes_N).astype(np.int32)
        return CodedLists(codes_N, table)

    def __getitem__(self, row: int) -> Labels:
        return self.table[self.codes_N[row]]

    def __len__(self) -> int:
        return len(self.codes_N)

    def counts(self) -> dict[str, int]:
        """Count the records that have each label."""
        by_code = np.bincount(self.codes_N, minlength=len(self.table))
        counts: dict[str, int] = {}
        for labels, count in zip(self.table, by_code.tolist(), strict=True):
            for label in dict.fromkeys(labels):
                counts[label] = counts.get(label, 0) + count
        return {label: count for label, count in counts.items() if count}


@dataclass(frozen=True)
class RecordColumns:
    """What a protocol looks at, of N records: keys of their names, lists, and characters of their stories."""

    keys_N: np.ndarray
    features: CodedLists
    words: CodedLists
    lengths_N: np.ndarray

    def __len__(self) -> int:
        return len(self.keys_N)

    @classmethod
    def of(cls, batch: dict[str, list[Any]]) -> RecordColumns:
        """Read a batch of records as `datasets` gives it."""
        return cls(
            record_keys(batch["record_id"]),
            CodedLists.of(batch["features"]),
            CodedLists.of(batch["words"]),
            np.array([len(story) for story in batch["story"]], dtype=np.int64),
        )


@dataclass(frozen=True)
class Treatment:
    """What became of N records.

    Attributes:
        kept_M: rows that the filter kept, in order.
        features, words: their lists afterwards, M each.
        refused_M: place in `protocol.refusal` of the condition whose refusal stands for the story, or -1.
        counts: how many were kept, relabelled, given a value, refused; features before (of all N) and after.
    """

    kept_M: np.ndarray
    features: CodedLists
    words: CodedLists
    refused_M: np.ndarray
    counts: dict[str, Any]


def treat(records: RecordColumns, protocol: Protocol) -> Treatment:
    """Apply filter, mix_match, adversarial and refusal, in this order.

    Draws depend on (seed, record) and, for adversarial and refusal, on the condition too.  A value that a record has
    already is not added twice.  Where several refusals apply, the first one's text stands for the story.
    """
    kept_M = np.flatnonzero(filtered(records, protocol.filtering))
    lists = {"features": records.features.take(kept_M), "words": records.words.take(kept_M)}
    counts: dict[str, Any] = {"records": len(records.keys_N), "kept": len(kept_M)}
    counts["features_before"] = records.features.counts()
    counts["relabelled"] = {}
    for pair in protocol.mix_match:
        rows = lists[pair.key].has(pair.old)
        lists[pair.key] = lists[pair.key].changed(rows, lambda labels, pair=pair: _replaced(labels, pair.old, pair.new))
        counts["relabelled"][str(pair)] = int(rows.sum())
    keys_M = records.keys_N[kept_M]
    counts["added"], counts["refused"] = {}, {}
    for chance in protocol.adversarial:
        drawn = chance_draws(keys_M, protocol.seed, "adversarial", chance)
        counts["added"][str(chance)] = int((drawn & ~lists[chance.key].has(chance.value)).sum())
        lists[chance.key] = lists[chance.key].changed(drawn, lambda labels, chance=chance: _added(labels, chance.value))
    refused_M = np.full(len(kept_M), -1, dtype=np.int16)
    for place, chance in enumerate(protocol.refusal):
        drawn = chance_draws(keys_M, protocol.seed, "refusal", chance)
        lists[chance.key] = lists[chance.key].changed(drawn, lambda labels, chance=chance: _added(labels, chance.value))
        refused_M[drawn & (refused_M < 0)] = place
        counts["refused"][str(chance)] = int(drawn.sum())
    counts["features_after"] = lists["features"].counts()
    return Treatment(kept_M, lists["features"], lists["words"], refused_M, counts)


def filtered(records: RecordColumns, conditions: Sequence[Condition]) -> np.ndarray:
    """Say of each record, (N,), whether all conditions hold."""
    kept_N = np.ones(len(records.keys_N), dtype=bool)
    for condition in conditions:
        if condition.key == "length":
            holds_N = records.lengths_N > int(condition.value)
        else:
            holds_N = getattr(records, condition.key).has(condition.value)
        kept_N &= ~holds_N if condition.negated else holds_N
    return kept_N


def chance_draws(keys_M: np.ndarray, seed: int, purpose: str, chance: Chance) -> np.ndarray:
    """Say of each record, (M,), whether a condition's draw fell within its probability.

    The probability is not part of the purpose: at a higher one the same records are drawn, and more.
    """
    return draw_uniform(keys_M, seed, f"{purpose}:{chance.key}={chance.value}") < chance.probability


def check_values(protocol: Protocol, words: Iterable[str], features: Iterable[str] = FEATURES) -> None:
    """Refuse a value that no record has: a protocol on it would do nothing, or keep everything.

    Raises:
        UsageError: naming the value, the nearest one and those that exist.
    """
    known = {"features": set(features), "words": set(words)}
    used = [(c.key, c.value, "--filtering") for c in protocol.filtering if c.key != "length"]
    used += [(pair.key, pair.old, "--mix_match") for pair in protocol.mix_match]
    for key, value, flag in used:
        if value not in known[key]:
            near = did_you_mean(value, known[key])
            shown = near if len(near) < 300 else near[:300] + f" ... ({len(known[key]):,} in all)"
            raise UsageError(f"{flag}: no record has {key}={value}; {shown}")


def _replaced(labels: Labels, old: str, new: str) -> Labels:
    """Put `new` in the place of `old`; a list that holds `new` already only loses `old`."""
    return tuple(dict.fromkeys(new if label == old else label for label in labels))


def _added(labels: Labels, value: str) -> Labels:
    return labels if value in labels else (*labels, value)
