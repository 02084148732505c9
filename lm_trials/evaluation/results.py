"""Results of an evaluation on disk: JSON and CSV under beyond-scale's file names, and a row for each story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm_trials.evaluation.losses import StoryLoss
from lm_trials.files import locked, naming, unlock, write_csv, write_json

STORY_TABLE = "per_story.parquet"
ROWS_AT_ONCE = 4096  # of one write, so that memory does not grow with the corpus
STORY_COLUMNS = {"record_id": pa.string(), "nats": pa.float64()}
STORY_COLUMNS |= dict.fromkeys(("tokens", "correct", "num_bytes"), pa.int32())
STORY_SCHEMA = pa.schema(STORY_COLUMNS | {"slices": pa.list_(pa.string())})


def story_table(feature: str = "") -> str:
    """Return the name of the table of stories, or of their sentences that show a feature.

    >>> story_table(), story_table("Twist")
    ('per_story.parquet', 'per_story-sentences-Twist.parquet')
    """
    return STORY_TABLE.replace(".", f"-sentences-{feature}.") if feature else STORY_TABLE


@dataclass
class EvaluationResult:
    """The results of one model on one data set.

    Attributes:
        metrics: `eval_loss`, `eval_accuracy`, ... with their intervals.
        rows: the table, a row for each slice and metric.
        settings: what the results depend on besides the flags.
    """

    model: str
    dataset: str
    folder: Path
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


class StoryTable:
    """The loss of each story in a Parquet file, written in pieces, so that every mean can be traced to its records.

    A context manager: on an error no file is left, nor a folder that was made for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._made: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._lock: IO[str] | None = None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> StoryTable:
        return self

    def add(self, story: StoryLoss) -> None:
        """Add one story."""
        document = story.document
        slices = [group for group in document.groups if group != "all"]
        values = (document.record_id, story.nats, story.tokens, story.correct, document.num_bytes, slices)
        self._rows.append(dict(zip(STORY_SCHEMA.names, values, strict=True)))
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            folder = self.path.parent
            self._made = [place for place in (folder, *folder.parents) if not place.exists()]
            # Another evaluation of the same model and data may be writing: this one waits and replaces its table.
            self._lock = locked(self.path.with_name(f".{self.path.name}.lock"), f"writes {self.path}")
            with naming(self.path):
                self._writer = pq.ParquetWriter(self._unfinished, STORY_SCHEMA)
        with naming(self.path):
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=STORY_SCHEMA))
        self._rows.clear()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                self._flush()
            if self._writer is not None:
                with naming(self.path):
                    self._writer.close()
            if kind is None:
                self._unfinished.replace(self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)
            if self._lock is not None:
                unlock(self._lock)
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
