"""Arrangements: what the flags of the order mean for the data of a run: ranks and kept rows of each part, by phase."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_trials.console import UsageError
from lm_trials.data.datasets import DataSet
from lm_trials.metrics.tables import open_metrics
from lm_trials.pairs.examples import ExampleStore
from lm_trials.tokens.mixtures import Mix, parse_weights
from lm_trials.tokens.phases import Arrangement, Phase, ranks
from lm_trials.training.order_flags import OWN_METRIC, DataOrdering, PhaseOrder


class Table(NamedTuple):
    """The metrics that order or filter a data set.

    Attributes:
        record_ids: of its training split.
        values: of each of these records, by metric; nan where a metric is not defined.
        described: what determines each metric, with a hash of its values, for `run.json`.
    """

    record_ids: pa.ChunkedArray | None
    values: Mapping[str, np.ndarray]
    described: Mapping[str, Any]


class Part(NamedTuple):
    """A part of a run's data.

    Attributes:
        record_ids: of its N documents.
        values: (N,) values by metric.
    """

    name: str
    record_ids: pa.ChunkedArray
    values: Mapping[str, np.ndarray]


def open_table(flags: DataOrdering, dataset: DataSet) -> Table:
    """Read the metrics that the flags name for the training split of a data set.

    Raises:
        UsageError: naming the flag, for a metric that does not exist.
    """
    flag_of: dict[str, str] = {}
    for phase in flags.phases:
        for name in phase.metrics:
            flag = "order_schedule" if flags.order_schedule else "order_by" if name == phase.order_by else "keep"
            flag_of.setdefault(name, flag)
    return read_table(flag_of, dataset)


def read_table(flag_of: Mapping[str, str], dataset: DataSet) -> Table:
    """Read metrics of the training split of a data set, each named by a flag; those that need no table are left out.

    Raises:
        UsageError: naming the flag, for a metric that does not exist.
    """
    record_ids: pa.ChunkedArray | None = None
    values: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for name, flag in flag_of.items():
        if name == OWN_METRIC:
            continue
        try:
            found = open_metrics(dataset, "train", [name], f"--{flag}")
        except UsageError as error:
            where = "" if str(error).startswith(f"--{flag}") else f"--{flag} {name}: "
            raise UsageError(f"{where}{error} (the metric {OWN_METRIC} needs no table)") from None
        record_ids, values[name] = found.table["record_id"], found.values(name)
        content = hashlib.sha256(values[name].tobytes()).hexdigest()[:16]
        described[name] = {**found.described[name], "values": content}
    return Table(record_ids, values, described)


def part_of(name: str, record_ids: pa.ChunkedArray, lengths_N: np.ndarray, table: Table) -> Part:
    """Return a part with the metrics of its documents, in their order."""
    values: dict[str, np.ndarray] = dict(table.values)
    # A table has a row for each document, and for the examples of a fine-tuning that are too long to train on.
    if table.record_ids is not None and not table.record_ids.equals(record_ids):
        rows_N = pc.index_in(record_ids, value_set=table.record_ids.combine_chunks()).to_numpy()
        values = {metric: values_R[rows_N] for metric, values_R in values.items()}
    return Part(name, record_ids, {OWN_METRIC: np.asarray(lengths_N, dtype=np.float64), **values})


def example_part(name: str, store: ExampleStore, table: Table) -> Part:
    """Return the training examples of a fine-tuning as a part."""
    lengths_N, _ = store.lengths(completion_only=False)
    return part_of(name, store.record_ids(), lengths_N, table)


def arrange(
    flags: DataOrdering, parts: Sequence[Part], weights: Sequence[float], mix: Mix | None = None
) -> tuple[Phase, ...]:
    """Return the phases of a run's order; none where all records are read in the random order.

    Args:
        weights: shares of the parts in a phase without shares of its own.
        mix: how several parts are mixed.

    Raises:
        UsageError: for a filter that keeps no record of a part; for shares that do not fit the parts.
    """

    @cache
    def ranked(place: int, metric: str, descending: bool) -> np.ndarray:
        return ranks(parts[place].values[metric], parts[place].record_ids, descending)

    def arrangement(place: int, phase: PhaseOrder, where: str) -> Arrangement:
        buffer = 1 if phase.order == "file" else getattr(flags, "shuffle_buffer_size", None)
        rank_N = ranked(place, phase.order_by, phase.order == "descending") if phase.order_by else None
        return Arrangement(buffer, _kept(phase, parts[place], where), rank_N, phase.order_window)

    phases = []
    for number, phase in enumerate(flags.phases, start=1):
        where = f"--order_schedule: phase {number}: " if flags.order_schedule else "--"
        shares = _shares(phase, parts, where) or list(weights)
        places = tuple(place for place, share in enumerate(shares) if share)
        mixed = None
        if mix is not None and len(places) > 1:
            mixed = Mix(tuple(shares[place] for place in places), mix.unit, mix.stop_when)
        arrangements = tuple(
            arrangement(place, phase, where) if place in places else Arrangement() for place in range(len(parts))
        )
        ends = {"updates": None, "passes": None, phase.unit: phase.span[1]}
        phases.append(Phase(arrangements, places, mixed, ends["updates"], ends["passes"]))
    return tuple(phases)


def _shares(phase: PhaseOrder, parts: Sequence[Part], where: str) -> list[float] | None:
    if phase.data_mix is None:
        return None
    if len(parts) == 1:
        raise UsageError(f"{where}data_mix: {parts[0].name} is one data set; remove it, or name several as a+b")
    try:
        return parse_weights(phase.data_mix, len(parts), some_zero=True)
    except UsageError as error:
        raise UsageError(where + str(error)) from None


def _kept(phase: PhaseOrder, part: Part, where: str) -> np.ndarray | None:
    """Return the (K,) rows that meet all conditions; None without conditions."""
    if not phase.keep:
        return None
    kept_N = np.ones(len(part.record_ids), dtype=bool)
    for condition in phase.conditions():
        kept_N &= condition.met(part.values[condition.metric])
    if not kept_N.any():
        limits = []
        for name in dict.fromkeys(condition.metric for condition in phase.conditions()):
            known = part.values[name][~np.isnan(part.values[name])]
            limits.append(f"{name} is " + (f"{known.min():g} to {known.max():g}" if len(known) else "not defined"))
        raise UsageError(
            f"{where}keep {phase.keep} keeps none of the {len(kept_N):,} records of {part.name}; {', '.join(limits)}"
        )
    return np.flatnonzero(kept_N)
