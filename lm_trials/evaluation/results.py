"""Results of an evaluation on disk: JSON and CSV under the seed's file names, and a row for each story."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm_trials.evaluation.losses import StoryLoss

STORY_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("nats", pa.float64()),
        ("tokens", pa.int32()),
        ("correct", pa.int32()),
        ("num_bytes", pa.int32()),
        ("slices", pa.list_(pa.string())),
    ]
)


@dataclass
class EvaluationResult:
    """What one model scored on one data set.

    Attributes:
        model, dataset: their names.
        folder: where the results lie.
        metrics: `eval_loss`, `eval_accuracy`, ... with their intervals.
        rows: the table, a row for each slice and metric.
        settings: what the numbers depend on beside the flags.
    """

    model: str
    dataset: str
    folder: Path
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


class StoryTable:
    """The loss of each story in a Parquet file, written as it comes, so that any mean can be traced to its records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []

    def add(self, story: StoryLoss) -> None:
        """Add one story."""
        document = story.document
        self._rows.append(
            {
                "record_id": document.record_id,
                "nats": story.nats,
                "tokens": story.tokens,
                "correct": story.correct,
                "num_bytes": document.num_bytes,
                "slices": [group for group in document.groups if group != "all"],
            }
        )
        if len(self._rows) == 4096:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self.path, STORY_SCHEMA)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=STORY_SCHEMA))
        self._rows.clear()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()


def write_results(result: EvaluationResult, arguments: Mapping[str, Any]) -> None:
    """Write `eval_results.json`, `all_results.json`, `eval_results.csv` and `data_args.json`."""
    result.folder.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps(result.metrics, indent=2) + "\n"
    (result.folder / "eval_results.json").write_text(metrics)
    (result.folder / "all_results.json").write_text(metrics)
    (result.folder / "data_args.json").write_text(json.dumps({**arguments, **result.settings}, indent=2) + "\n")
    write_csv(result.folder / "eval_results.csv", result.rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(_columns(rows)))
        writer.writeheader()
        writer.writerows(rows)


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row)
