"""Inputs: the metrics of the records that a run read between two checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_trials.console import UsageError, note, progress
from lm_trials.data.datasets import DataSet
from lm_trials.metrics.tables import open_metrics
from lm_trials.metrics.texts import SENTIMENT, Measures, text_metrics
from lm_trials.training.data_order import DataOrder

Records = dict[str, list[str]]
"""The ids of records by the part of the data that they are in, each once."""


def records_read(order: DataOrder, first: int, last: int, most: int, seed: int) -> Records:
    """Return the records of updates `first` to `last`; of more than `most`, those of as many random updates as needed.

    A record that is read in several updates or blocks counts once.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in order.names}
    for update in np.random.default_rng([seed, first]).permutation(np.arange(first, last + 1)).tolist():
        for part in order.parts_of(update):
            found[part.corpus].setdefault(part.record_id)
        if sum(map(len, found.values())) >= most:
            break
    return {name: list(ids) for name, ids in found.items()}


def read_inputs(
    order: DataOrder, updates: Sequence[int], names: Sequence[str], most: int, seed: int
) -> dict[str, list[np.ndarray]]:
    """Return by metric the (N,) values of the records read up to each of the `updates`, since the one before or 0.

    The values are those of `lm-trials prepare metadata` where the data set has them, else measured here.
    """
    spans = zip([0, *updates], updates, strict=False)
    windows = [
        records_read(order, since + 1, update, most, seed)
        for since, update in progress(spans, "reading the data order", "windows", len(updates))
    ]
    tables = {}
    for name, member in zip(order.names, order.members, strict=True):
        wanted = list(dict.fromkeys(record for window in windows for record in window[name]))
        tables[name] = pa.array(wanted, pa.string()), record_metrics(member, wanted, names)

    def values(window: Records, metric: str) -> np.ndarray:
        columns = []
        for name, (known, metrics) in tables.items():
            rows_N = pc.index_in(pa.array(window[name], pa.string()), value_set=known).to_numpy()
            columns.append(metrics[metric][rows_N])
        return np.concatenate(columns)

    return {metric: [values(window, metric) for window in windows] for metric in names}


def record_metrics(dataset: DataSet, wanted: Sequence[str], names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the metrics of training records by their ids, each (N,) float64; NaN for a record that is not there."""
    measures = measures_of(names)
    own = measures.described()
    try:
        table = open_metrics(dataset, "train", list(names))
        if all(table.described[name] == own[name] for name in names):
            values = {name: table.values(name) for name in names}
            return _chosen(table.table["record_id"].combine_chunks(), values, wanted)
    except UsageError as error:
        note(f"note: {error}. The metrics of the records are measured here")
    texts, there = dataset.as_prepared().texts(), set(wanted)
    read = [text for text in texts.read("train", 0, texts.num_rows["train"]) if text.record_id in there]
    measured = text_metrics([text.text for text in read], [text.prompt for text in read], measures)
    return _chosen(pa.array([text.record_id for text in read], pa.string()), measured, wanted)


def measures_of(names: Collection[str]) -> Measures:
    """Return how metrics are measured; sentiment takes most of the time and is left out where nobody asks for it."""
    return Measures(sentiment=not set(SENTIMENT).isdisjoint(names))


def _chosen(ids: pa.Array, values: dict[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    rows_N = pc.fill_null(pc.index_in(pa.array(wanted, pa.string()), value_set=ids), -1).to_numpy()
    return {
        name: np.where(rows_N >= 0, column.astype(np.float64)[rows_N], np.nan)
        if len(column)
        else np.full(len(rows_N), np.nan)
        for name, column in values.items()
    }
