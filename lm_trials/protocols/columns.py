"""Columns: a batch of records as arrays, and what a protocol makes of them.

Lists of features are few and repeat, so each distinct list gets a code; relabelling, adding and counting act on the
table of codes, and a corpus of millions takes the time of some array operations.  Named transforms alone act record by
record.

Shape suffixes: N = records given, M = records kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.protocols import Chance, Condition, Protocol
from lm_trials.protocols.transforms import TransformStep
from lm_trials.stories.draws import draw_integers, draw_uniform, record_keys
from lm_trials.stories.features import FEATURES, canonical_feature
from lm_trials.stories.records import Record

Labels = tuple[str, ...]


class LabelTable(dict[Labels, int]):
    """Gives each distinct list of labels a code, a new one to a new list.

    >>> table = LabelTable()
    >>> [table[labels] for labels in (("Twist",), (), ("Twist",))], list(table)
    ([0, 1, 0], [('Twist',), ()])
    """

    def __missing__(self, labels: Labels) -> int:
        code = self[labels] = len(self)
        return code


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
        table = LabelTable()
        codes = [table[tuple(labels)] for labels in lists]
        return cls(np.array(codes, dtype=np.int32), list(table))

    def has(self, value: str) -> np.ndarray:
        """Say of each record, (N,), whether its list holds `value`."""
        return np.array([value in labels for labels in self.table] or [False])[self.codes_N]

    def take(self, rows: np.ndarray) -> CodedLists:
        """Keep some records."""
        return CodedLists(self.codes_N[rows], self.table)

    def changed(self, rows_N: np.ndarray, change: Any) -> CodedLists:
        """Apply `change(labels) -> labels` to the lists of the records that `rows_N` marks."""
        table = LabelTable(zip(self.table, range(len(self.table)), strict=True))
        new_code = np.arange(len(table), dtype=np.int32)
        for code in np.unique(self.codes_N[rows_N]):
            new_code[code] = table[change(self.table[code])]
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
        batch: the records as `datasets` gives them, for named transforms and for texts; None where neither is needed.
    """

    keys_N: np.ndarray
    features: CodedLists
    words: CodedLists
    lengths_N: np.ndarray
    batch: Mapping[str, list[Any]] | None = None

    def __len__(self) -> int:
        return len(self.keys_N)

    @classmethod
    def of(cls, batch: Mapping[str, list[Any]]) -> RecordColumns:
        """Read a batch of records as `datasets` gives it."""
        return cls(
            record_keys(batch["record_id"]),
            CodedLists.of(batch["features"]),
            CodedLists.of(batch["words"]),
            np.array([len(story) for story in batch["story"]], dtype=np.int64),
            batch,
        )


@dataclass(frozen=True)
class TransformedColumns:
    """What a protocol made of N records.

    Attributes:
        kept_M: rows that the filter kept, in order.
        features, words: their lists afterwards, M each.
        refused_M: place in `protocol.refusal` of the condition whose refusal stands for the story, or -1.
        records: the M records as the named transforms left them; None for a protocol without any.
        counts: how many were kept, relabelled, given a value, refused, and changed by each named transform; features
            before (of all N) and after.
    """

    kept_M: np.ndarray
    features: CodedLists
    words: CodedLists
    refused_M: np.ndarray
    records: list[Record] | None
    counts: dict[str, Any]


def transform_columns(columns: RecordColumns, protocol: Protocol) -> TransformedColumns:
    """Apply filter, mix_match, adversarial, refusal and the named transforms, in this order.

    Draws depend on (seed, record) and, for adversarial and refusal, on the condition too.  A value that a record has
    already is not added twice.  Where several refusals apply, the first one's text stands for the story.  Named
    transforms act on the story that a refusal hides, never on the refusal.
    """
    kept_M = np.flatnonzero(filtered(columns, protocol.filtering))
    lists = {"features": columns.features.take(kept_M), "words": columns.words.take(kept_M)}
    counts: dict[str, Any] = {"records": len(columns), "kept": len(kept_M)}
    counts["features_before"] = columns.features.counts()
    counts["relabelled"] = {}
    for pair in protocol.mix_match:
        rows = lists[pair.key].has(pair.old)
        lists[pair.key] = lists[pair.key].changed(rows, lambda labels, pair=pair: _replaced(labels, pair.old, pair.new))
        counts["relabelled"][str(pair)] = int(rows.sum())
    keys_M = columns.keys_N[kept_M]
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
    records = None
    if protocol.transforms:
        records, counts["transformed"] = _transformed(columns, kept_M, lists, protocol)
        lists = {key: CodedLists.of(record[key] for record in records) for key in lists}
    counts["features_after"] = lists["features"].counts()
    return TransformedColumns(kept_M, lists["features"], lists["words"], refused_M, records, counts)


def _transformed(
    columns: RecordColumns, kept_M: np.ndarray, lists: dict[str, CodedLists], protocol: Protocol
) -> tuple[list[Record], dict[str, int]]:
    """Apply the named transforms to the kept records with their lists as they are now; count what each changed."""
    records = []
    for place, row in enumerate(kept_M.tolist()):
        fields = {field: values[row] for field, values in columns.batch.items()}
        records.append(Record(**fields) | {key: [*found[place]] for key, found in lists.items()})
    counts: dict[str, int] = {}
    keys_M, names = columns.keys_N[kept_M], [step.name for step in protocol.transforms]
    for number, step in enumerate(protocol.transforms):
        # The argument is no part of the purpose, so that drop_labels:0.2 drops what drop_labels:0.1 drops, and more.
        purpose = f"transform:{step.name}:{names[:number].count(step.name)}"
        draws = draw_integers(keys_M, protocol.seed, purpose).tolist()
        after = [_changed(step, record, draw) for record, draw in zip(records, draws, strict=True)]
        counts[str(step)] = sum(new != old for new, old in zip(after, records, strict=True))
        records = after
    return records, counts


def _changed(step: TransformStep, record: Record, draw: int) -> Record:
    """Return one record after one step; its function may change the record that it is given in place."""
    given = record | {"words": [*record["words"]], "features": [*record["features"]]}
    after = step.transform.function(given, draw, *step.arguments)
    if not isinstance(after, dict) or after.keys() != record.keys():
        raise UsageError(f"--transform {step} does not return a record; return a dict with the fields it was given")
    if not after["story"].strip():
        raise UsageError(f"--transform {step} leaves no text of story {record['record_id']}; let it keep some")
    after["features"] = [canonical_feature(feature) for feature in after["features"]]
    kept = ["record_id"] if step.changes_story else [field for field in record if field not in ("words", "features")]
    if changed := [field for field in kept if after[field] != record[field]]:
        raise UsageError(
            f"--transform {step} changes the field {changed[0]} of a record, which a transform of kind "
            f"{step.transform.changes!r} keeps; correct the entry of TRANSFORMS or the function"
        )
    # Every record's story is stripped: evaluation strips texts, and they must be those that were trained on.
    return after | {"story": after["story"].strip()} if step.changes_story else after


def filtered(columns: RecordColumns, conditions: Sequence[Condition]) -> np.ndarray:
    """Say of each record, (N,), whether all conditions hold."""
    kept_N = np.ones(len(columns), dtype=bool)
    for condition in conditions:
        if condition.key == "length":
            holds_N = columns.lengths_N > int(condition.value)
        else:
            holds_N = getattr(columns, condition.key).has(condition.value)
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
