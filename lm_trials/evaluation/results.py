"""Results of an evaluation on disk: JSON and CSV under the seed's file names, and a row for each story."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm_trials.evaluation.losses import StoryLoss

STORY_TABLE = "per_story.parquet"
ROWS_AT_ONCE = 4096
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
    """The loss of each story in a Parquet file, written as it comes, so that any mean can be traced to its records.

    Inside a `with`: the file has its name only when all went well, and a folder made for nothing is removed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._made: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> StoryTable:
        return self

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
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            folder = self.path.parent
            self._made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._unfinished, STORY_SCHEMA)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=STORY_SCHEMA))
        self._rows.clear()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._unfinished.replace(self.path)
            return
        self._unfinished.unlink(missing_ok=True)
        for place in self._made:  # innermost first
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def write_results(result: EvaluationResult, arguments: Mapping[str, Any]) -> None:
    """Write `eval_results.json`, `all_results.json`, `eval_results.csv` and `data_args.json`."""
    result.folder.mkdir(parents=True, exist_ok=True)
    write_json(result.folder / "eval_results.json", result.metrics)
    write_json(result.folder / "all_results.json", result.metrics)
    write_json(result.folder / "data_args.json", {**arguments, **result.settings})
    write_csv(result.folder / "eval_results.csv", result.rows)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, whole or not at all; what is not finite (an interval that does not exist) is null."""
    _write_whole(path, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return a value of JSON with null for what is not finite, at any depth.

    >>> _finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV file, whole or not at all; a row without a column of another leaves it empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(_columns(rows)))
    writer.writeheader()
    writer.writerows(rows)
    _write_whole(path, text.getvalue())


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", newline="")
    unfinished.replace(path)


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row)
