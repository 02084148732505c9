"""Columns: a batch of records as arrays, and the result of a protocol on them.

Lists of features are few and repeat, so each distinct list has a code; relabelling, adding and counting are array
operations on the codes.  Only named transforms act record by record.

Shape suffixes: N = records given, M = records kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.protocols import Chance, Condition, Protocol
from lm_trials.protocols.transforms import TransformStep
from lm_trials.stories.draws import draw_integers, draw_uniform, record_keys
from lm_trials.stories.features import FEATURES, canonical_feature

Labels = tuple[str, ...]
Row = dict[str, Any]  # a record's fields


class LabelTable(dict[Labels, int]):
    """The code of each distinct list of labels; looking up a new list adds it.

    >>> table = LabelTable()
    >>> [table[labels] for labels in (("Twist",), (), ("Twist",))], list(table)
    ([0, 1, 0], [('Twist',), ()])
    """

    def __missing__(self, labels: Labels) -> int:
        code = self[labels] = len(self)
        return code


class CodedLists:
    """N lists of labels as codes into a table of the distinct lists.

    >>> CodedLists.of([["Twist"], [], ["Twist"]]).counts()
    {'Twist': 2}
    """

    def __init__(self, codes_N: np.ndarray, table: list[Labels]) -> None:
        self.codes_N = codes_N
        self.table = table

    @classmethod
    def of(cls, lists: Iterable[Sequence[str]]) -> CodedLists:
        """Encode lists."""
        table = LabelTable()
        codes = [table[tuple(labels)] for labels in lists]
        return cls(np.array(codes, dtype=np.int32), list(table))

    def has(self, value: str) -> np.ndarray:
        """Return for each record, (N,), whether its list has `value`."""
        return np.array([value in labels for labels in self.table] or [False])[self.codes_N]

    def take(self, rows: np.ndarray) -> CodedLists:
        """Keep some records."""
        return CodedLists(self.codes_N[rows], self.table)

    def changed(self, rows_N: np.ndarray, change: Callable[..., Labels], *values: str) -> CodedLists:
        """Apply `change(labels, *values) -> labels` to the lists of the records that `rows_N` marks."""
        table = LabelTable(zip(self.table, range(len(self.table)), strict=True))
        new_code = np.arange(len(table), dtype=np.int32)
        for code in np.unique(self.codes_N[rows_N]):
            new_code[code] = table[change(self.table[code], *values)]
        codes_N = np.where(rows_N, new_code[self.codes_N], self.codes_N).astype(np.int32)
        return CodedLists(codes_N, list(table))

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
    """N records as a protocol reads them.

    Attributes:
        keys_N: keys of the record ids, for draws.
        features, words: the records' lists.
        lengths_N: characters of the stories.
        batch: the fields of the records; only named transforms and texts need them.
        start: row of the first record in its split.
    """

    keys_N: np.ndarray
    features: CodedLists
    words: CodedLists
    lengths_N: np.ndarray
    batch: Mapping[str, list[Any]] = field(default_factory=dict)
    start: int = 0

    def __len__(self) -> int:
        return len(self.keys_N)

    @classmethod
    def of(cls, batch: Mapping[str, list[Any]], start: int = 0) -> RecordColumns:
        """Read a batch of records as `datasets` returns it."""
        return cls(
            record_keys(batch["record_id"]),
            CodedLists.of(batch["features"]),
            CodedLists.of(batch["words"]),
            np.array([len(story) for story in batch["story"]], dtype=np.int64),
            batch,
            start,
        )

    def row(self, number: int) -> Row:
        """Return the fields of one record."""
        return {name: values[number] for name, values in self.batch.items()}


@dataclass(frozen=True)
class TransformedColumns:
    """The result of a protocol on N records.

    Attributes:
        kept_M: rows that the filter kept, in order.
        features, words: their lists afterwards.
        refused_M: place in `protocol.refusal` of the refusal that replaces the story, or -1.
        records: the M records after the named transforms; None for a protocol without any.
        counts: records kept, relabelled, given a value, refused, and changed by each named transform; features before
            (of all N) and after.
    """

    kept_M: np.ndarray
    features: CodedLists
    words: CodedLists
    refused_M: np.ndarray
    records: list[Row] | None
    counts: dict[str, Any]


def transform_columns(columns: RecordColumns, protocol: Protocol) -> TransformedColumns:
    """Apply filter, mix_match, adversarial, refusal and the named transforms, in this order.

    Draws depend on (seed, record) and, for adversarial and refusal, on the condition.  No value is added twice.  Of
    several refusals the first replaces the story.  Named transforms act on the original story, never on the refusal.
    """
    kept_M = np.flatnonzero(filtered(columns, protocol.filtering))
    lists = {"features": columns.features.take(kept_M), "words": columns.words.take(kept_M)}
    counts: dict[str, Any] = {"records": len(columns), "kept": len(kept_M)}
    counts["features_before"] = columns.features.counts()
    counts["relabelled"] = {}
    for pair in protocol.mix_match:
        rows = lists[pair.key].has(pair.old)
        lists[pair.key] = lists[pair.key].changed(rows, _replaced, pair.old, pair.new)
        counts["relabelled"][str(pair)] = int(rows.sum())
    keys_M = columns.keys_N[kept_M]
    counts["added"], counts["refused"] = {}, {}
    for chance in protocol.adversarial:
        drawn = chance_draws(keys_M, protocol.seed, "adversarial", chance)
        counts["added"][str(chance)] = int((drawn & ~lists[chance.key].has(chance.value)).sum())
        lists[chance.key] = lists[chance.key].changed(drawn, _added, chance.value)
    refused_M = np.full(len(kept_M), -1, dtype=np.int16)
    for place, chance in enumerate(protocol.refusal):
        drawn = chance_draws(keys_M, protocol.seed, "refusal", chance)
        lists[chance.key] = lists[chance.key].changed(drawn, _added, chance.value)
        refused_M[drawn & (refused_M < 0)] = place
        counts["refused"][str(chance)] = int(drawn.sum())
    records = None
    if protocol.transforms:
        records, counts["transformed"] = _transformed(columns, kept_M, lists, protocol)
        lists = {key: CodedLists.of([record[key] for record in records]) for key in lists}
    counts["features_after"] = lists["features"].counts()
    return TransformedColumns(kept_M, lists["features"], lists["words"], refused_M, records, counts)


def _transformed(
    columns: RecordColumns, kept_M: np.ndarray, lists: Mapping[str, CodedLists], protocol: Protocol
) -> tuple[list[Row], dict[str, int]]:
    """Apply the named transforms to the kept records with their current lists; count what each changed."""
    records = [
        columns.row(number) | {key: [*found[place]] for key, found in lists.items()}
        for place, number in enumerate(kept_M.tolist())
    ]
    counts: dict[str, int] = {}
    keys_M, names = columns.keys_N[kept_M], [step.name for step in protocol.transforms]
    for number, step in enumerate(protocol.transforms):
        # The argument is not in the purpose, so that drop_labels:0.2 drops what drop_labels:0.1 drops, and more.
        purpose = f"transform:{step.name}:{names[:number].count(step.name)}"
        draws = draw_integers(keys_M, protocol.seed, purpose).tolist()
        after = [_changed(step, record, draw) for record, draw in zip(records, draws, strict=True)]
        counts[str(step)] = sum(new != old for new, old in zip(after, records, strict=True))
        records = after
    return records, counts


def _changed(step: TransformStep, record: Row, draw: int) -> Row:
    """Return one record after one step, whose function may change its argument in place."""
    given = record | {"words": [*record["words"]], "features": [*record["features"]]}
    after: Any = step.transform.function(given, draw, *step.arguments)
    if not isinstance(after, dict) or after.keys() != record.keys():
        raise UsageError(f"--transform {step} does not return a record; return a dict with the fields of its argument")
    if not after["story"].strip():
        raise UsageError(f"--transform {step} leaves no text of story {record['record_id']}; keep some text")
    after["features"] = [canonical_feature(feature) for feature in after["features"]]
    story_may_change = step.transform.changes == "story"
    labels = ("words", "features")
    kept = ["record_id"] if story_may_change else [field for field in record if field not in labels]
    if changed := [field for field in kept if after[field] != record[field]]:
        raise UsageError(
            f"--transform {step} changes the field {changed[0]} of a record, which a transform of kind "
            f"{step.transform.changes!r} must not; correct the entry in TRANSFORMS or the function"
        )
    # Evaluation strips texts, and the texts it evaluates must be those trained on.
    return after | {"story": after["story"].strip()} if story_may_change else after


def filtered(columns: RecordColumns, conditions: Sequence[Condition]) -> np.ndarray:
    """Return for each record, (N,), whether all conditions hold."""
    kept_N = np.ones(len(columns), dtype=bool)
    for condition in conditions:
        if condition.key == "length":
            holds_N = columns.lengths_N > int(condition.value)
        else:
            holds_N = getattr(columns, condition.key).has(condition.value)
        kept_N &= ~holds_N if condition.negated else holds_N
    return kept_N


def chance_draws(keys_M: np.ndarray, seed: int, purpose: str, chance: Chance) -> np.ndarray:
    """Return for each record, (M,), whether it is drawn; a higher probability draws the same records and more."""
    return draw_uniform(keys_M, seed, f"{purpose}:{chance.key}={chance.value}") < chance.probability


def check_values(protocol: Protocol, words: Iterable[str], features: Iterable[str] = FEATURES) -> None:
    """Raise a UsageError for a value that a protocol looks for and no record has, with the nearest that exist."""
    known = {"features": set(features), "words": set(words)}
    used: list[tuple[str, str, str]] = [
        (c.key, c.value, "--filtering") for c in protocol.filtering if c.key != "length"
    ]
    used += [(pair.key, pair.old, "--mix_match") for pair in protocol.mix_match]
    for key, value, flag in used:
        if value not in known[key]:
            near = did_you_mean(value, known[key])
            shown = near if len(near) < 300 else near[:300] + f" ... ({len(known[key]):,} in all)"
            raise UsageError(f"{flag}: no record has {key}={value}; {shown}")


def _replaced(labels: Labels, old: str, new: str) -> Labels:
    """Replace `old` by `new`; from a list that has both, remove `old`."""
    return tuple(dict.fromkeys(new if label == old else label for label in labels))


def _added(labels: Labels, value: str) -> Labels:
    return labels if value in labels else (*labels, value)
