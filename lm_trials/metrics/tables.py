"""Tables of metrics: one row for each text of a data set, in its order.

    data/<name>/metrics-<hash>/metrics.parquet   split, record_id, and a column for each metric
    data/<name>/metrics-<hash>/manifest.json     content of the data set, rows, and what determines each metric

The hash is of the content and of what determines the metrics, so the same command makes the same table once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from lm_trials.console import UsageError, command_line, did_you_mean
from lm_trials.data.datasets import DataSet
from lm_trials.files import MadeMeanwhileError, damaged, file_sums, finished_folder, write_file, write_json
from lm_trials.metrics.texts import FEATURE, Measures
from lm_trials.stories.corpora import MANIFEST, read_manifest
from lm_trials.stories.pieces import Ticks, resumable_folder, writing
from lm_trials.stories.records import SPLITS, Record, Split
from lm_trials.stories.workers import run_tasks

TABLE = "metrics.parquet"
# Rows of a piece, the part that is measured again after an interruption, and between two reports of a worker.
PIECE_ROWS, REPORT_ROWS = 2000, 250
Watch = Callable[[Iterable[Any]], Iterable[Any]]
Place = tuple[Split, int, int]


class Scorer(Protocol):
    """A model that texts are scored under (`model_losses.ModelLosses`)."""

    def described(self) -> dict[str, dict[str, Any]]:
        """Return what determines each of its metrics."""

    def measure(self, records: Iterable[Record]) -> Iterator[dict[str, float]]:
        """Yield the metrics of each record."""


@dataclass(frozen=True)
class MetricTable:
    """The metrics of one split.

    Attributes:
        table: `record_id`, and an int or float64 column for each metric; NaN where a text has no value.
        described: what determines each metric, as plain JSON.
    """

    table: pa.Table
    described: dict[str, dict[str, Any]]

    def values(self, name: str) -> np.ndarray:
        """Return a metric as float64 (N,)."""
        return self.table[name].to_numpy().astype(np.float64)


def open_metrics(
    dataset: DataSet, split: Split = "train", names: Sequence[str] | None = None, named_by: str = "metric"
) -> MetricTable:
    """Return the metrics of a split, in the order of the data set: row i is its text i.

    Args:
        dataset: of a source, what is prepared of it.
        names: the metrics to read; default: all.
        named_by: what the user named them with, for messages, such as `--order_by`.

    Raises:
        UsageError: for a data set without metrics, an unknown metric, one that two tables define differently, a
            damaged table.
    """
    dataset = dataset.as_prepared()
    texts = dataset.texts()
    tables = [
        (folder, read_manifest(folder, "content", "metrics")) for folder in sorted(texts.folder.glob("metrics-*"))
    ]
    tables = [(folder, about) for folder, about in tables if about["content"] == texts.content]
    make = command_line("prepare metadata", dataset_name=texts.folder.name, data_cache_dir=texts.folder.parent)
    if not tables:
        raise UsageError(f"--dataset_name {dataset.label} has no metrics; make them with: {make}")
    holders: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, about in tables:
        for name in about["metrics"]:
            holders.setdefault(name, []).append((folder, about))
    names = list(holders if names is None else dict.fromkeys(names))
    described: dict[str, dict[str, Any]] = {}
    for name in names:
        if name not in holders:
            raise UsageError(f"{named_by} {name}: {dataset.label} has no such metric; {did_you_mean(name, holders)}")
        first, about = holders[name][0]
        described[name] = about["metrics"][name]
        for folder, other in holders[name][1:]:
            if other["metrics"][name] != described[name]:
                raise UsageError(
                    f"{named_by} {name}: it is {json.dumps(described[name])} in {first} and "
                    f"{json.dumps(other['metrics'][name])} in {folder.name}; remove one of these folders"
                )
    columns: dict[str, pa.ChunkedArray] = {}
    for folder, about in tables:
        wanted = [name for name in names if holders[name][0][0] == folder]
        if not wanted:
            continue
        if faults := damaged(folder, about["files"]):
            raise UsageError(f"{folder} is damaged: {faults[0]}; remove it and make it again with: {make}")
        rows = pq.read_table(folder / TABLE, columns=["record_id", *wanted])
        start = sum(about["rows"][before] for before in SPLITS[: SPLITS.index(split)])
        rows = rows.slice(start, about["rows"][split])
        columns |= {name: rows[name] for name in rows.column_names}
    return MetricTable(pa.table({name: columns[name] for name in ("record_id", *names)}), described)


def make_metrics(
    dataset: DataSet, measures: Measures, scorer: Scorer | None = None, num_workers: int = 1, watch: Watch = iter
) -> Path:
    """Measure the texts of a prepared data set once; return the folder of the table.

    The files are the same for any number of worker processes; an interrupted call resumes.  Metrics that no text has a
    value for are left out.

    Args:
        watch: wraps one item for each text that is measured with a progress bar, and one for each that is scored.

    Raises:
        UsageError: for a metric of the user's that fails; names the record.
    """
    texts = dataset.texts()
    described = measures.described() | (scorer.described() if scorer else {})
    identity = json.dumps([texts.content, described], sort_keys=True)
    folder = texts.folder / f"metrics-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    places: list[Place] = [
        (split, start, min(start + PIECE_ROWS, texts.num_rows[split]))
        for split in SPLITS
        for start in range(0, texts.num_rows[split], PIECE_ROWS)
    ]
    if (folder / MANIFEST).is_file():
        return folder
    if scorer:
        dataset.select()  # refuses pairs, before they are measured
    with resumable_folder(folder, folder.name) as work:
        missing = [number for number in range(len(places)) if not _piece(work, number).is_file()]
        total = sum(places[number][2] - places[number][1] for number in missing)
        task = partial(_measure_piece, dataset, measures, places, work)
        for _ in watch(Ticks((None for count in run_tasks(task, missing, num_workers) for _ in range(count)), total)):
            pass
        if scorer:
            for _ in watch(_scored(dataset, scorer, places, work)):
                pass
        with suppress(MadeMeanwhileError), finished_folder(folder) as unfinished:
            kinds = ("texts", "losses") if scorer else ("texts",)
            pieces = [(split, [_piece(work, n, kind) for kind in kinds]) for n, (split, _, _) in enumerate(places)]
            rows, kept = _join(pieces, unfinished / TABLE)
            about = {"content": texts.content, "rows": rows, "metrics": {name: described[name] for name in kept}}
            write_json(unfinished / MANIFEST, {**about, "files": file_sums(unfinished)})
    return folder


def _piece(work: Path, number: int, kind: str = "texts") -> Path:
    return work / f"{number}.{kind}.parquet"


def _measure_piece(
    dataset: DataSet, measures: Measures, places: Sequence[Place], work: Path, number: int
) -> Iterator[int]:
    """Write the metrics of one piece; yields the number of rows read since the last yield."""
    split, start, stop = places[number]
    rows = dataset.texts().read(split, start, stop)
    tables, read = [], 0
    while batch := list(islice(rows, REPORT_ROWS)):
        tables.append(pa.table({"record_id": [text.record_id for text in batch], **measures.measure(batch)}))
        read += len(batch)
        yield len(batch)
    _write(work, number, "texts", pa.concat_tables(tables) if tables else pa.table({"record_id": []}))
    yield stop - start - read  # those that a protocol filtered out


def _scored(dataset: DataSet, scorer: Scorer, places: Sequence[Place], work: Path) -> Ticks:
    """Return an iterator that scores the pieces one after another, and has one item for each text."""
    counts = [pq.read_metadata(_piece(work, number)).num_rows for number in range(len(places))]

    def ticks() -> Iterator[None]:
        for split in SPLITS:
            records = dataset.select(split).read()
            for number in (number for number, place in enumerate(places) if place[0] == split):
                of_piece = islice(records, counts[number])
                if _piece(work, number, "losses").is_file():
                    for _ in of_piece:
                        yield
                    continue
                found = []
                # Batches do not cross pieces: after an interruption they are the same, and so are the last digits.
                for scores in scorer.measure(of_piece):
                    found.append(scores)
                    yield
                _write(work, number, "losses", pa.Table.from_pylist(found))

    return Ticks(ticks(), sum(counts))


def _write(work: Path, number: int, kind: str, table: pa.Table) -> None:
    with writing(work):
        write_file(_piece(work, number, kind), partial(pq.write_table, table), synced=True)


def _join(pieces: Sequence[tuple[Split, Sequence[Path]]], path: Path) -> tuple[dict[Split, int], list[str]]:
    """Write the pieces as one table; return the rows of each split and the metrics that some text has a value for."""

    def tables() -> Iterator[tuple[Split, pa.Table]]:
        for split, files in pieces:
            first, *others = map(pq.read_table, files)
            for other in others:
                for name in other.column_names:
                    first = first.append_column(name, other[name])
            if first.num_rows:
                yield split, first

    rows: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    names: dict[str, bool] = {}
    for split, table in tables():
        rows[split] += table.num_rows
        for name in table.column_names[1:]:
            values = table[name].to_numpy()
            known = values.any() if name.startswith(FEATURE) else not np.isnan(values).all()
            names[name] = names.get(name, False) or bool(known)
    labelled = any(known for name, known in names.items() if name.startswith(FEATURE))
    kept = [name for name, known in names.items() if known or (labelled and name.startswith(FEATURE))]
    writer: pq.ParquetWriter | None = None
    for split, table in tables():
        table = table.select(["record_id", *kept]).add_column(0, "split", pa.array([split] * table.num_rows))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
    return rows, kept


def write_table(folder: Path, path: Path) -> pa.Table:
    """Write a table as CSV, `batch_metrics.csv` of llama2_prebias: `id` is the place of a text, an empty cell no value.

    Returns the table.
    """
    table = pq.read_table(folder / TABLE)
    table = table.add_column(0, "id", pa.array(np.arange(table.num_rows)))
    cells = table
    for place, name in enumerate(table.column_names):
        if pa.types.is_floating(table[name].type):
            cells = cells.set_column(place, name, pc.if_else(pc.is_nan(table[name]), None, table[name]))
    options = csv.WriteOptions(quoting_style="none", quoting_header="none")
    write_file(path, lambda place: csv.write_csv(cells, place, options))
    return table
