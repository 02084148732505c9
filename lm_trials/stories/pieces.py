"""Pieces: a source is read part by part into Arrow files, so that an interrupted command resumes after the last one.

Each piece is a folder with its counts and an Arrow file for each split, written atomically: a folder that is named by
its number is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa

from lm_trials.console import UsageError, note
from lm_trials.files import locked
from lm_trials.stories.arrow_files import WRITE_BATCH, ArrowFile
from lm_trials.stories.records import RECORD_SCHEMA, SPLITS, Split
from lm_trials.stories.sources import Source, SourcePart
from lm_trials.stories.workers import StoppedError, run_tasks

# Rows of a saved or downloaded data set that are read again, at most, when a process is killed: some seconds of work.
PIECE_ROWS = 50_000
COUNTS = "counts.json"
REPORT_ROWS = 100  # between two reports of a worker


@dataclass(frozen=True)
class Piece:
    """One part of a source as it was read: its Arrow files by split, and the number of records and of blank ones."""

    files: dict[Split, Path]
    num_rows: int
    blank: int


class Ticks:
    """One item for each record that is read, with the total where it is known; for a progress bar."""

    def __init__(self, ticks: Iterator[Any], total: int | None) -> None:
        self.ticks = ticks
        self.total = total

    def __iter__(self) -> Iterator[Any]:
        return self.ticks

    def __length_hint__(self) -> int:
        return self.total or 0


def read_pieces(
    source: Source, work: Path, watch: Callable[[Iterable[Any]], Iterable[Any]] = iter, num_proc: int = 1
) -> list[Piece]:
    """Read the parts that are missing in the folder `work`, and return all pieces in the order of the source.

    Args:
        watch: wraps one item for each record, of this call or an earlier one, with a progress bar.

    Raises:
        UsageError: for a broken file or record (named), a full disk, or fewer than one process.
    """
    if num_proc < 1:
        raise UsageError(f"--num_proc {num_proc} is too few; give at least 1")
    parts = source.pieces(PIECE_ROWS)
    there = {number: piece for number in range(len(parts)) if (piece := _finished(work, number))}
    missing = [number for number in range(len(parts)) if number not in there]
    if there:
        note(f"resuming after {len(there)} of {len(parts)} parts of {source.reference}")
    lengths = [len(part.rows) for part in parts if part.rows is not None]
    total = sum(lengths) if len(lengths) == len(parts) else None
    # `replace` gives other processes a source without the data that is already loaded: each loads its own.
    task = partial(_read_piece, source if num_proc == 1 else replace(source), parts, work)

    def ticks() -> Iterator[None]:
        for piece in there.values():
            yield from repeat(None, piece.num_rows)
        for num_rows in run_tasks(task, missing, num_proc):
            yield from repeat(None, num_rows)

    for _ in watch(Ticks(ticks(), total)):
        pass
    return [piece for number in range(len(parts)) if (piece := _finished(work, number))]


def _read_piece(source: Source, parts: Sequence[SourcePart], work: Path, number: int) -> Iterator[int]:
    """Write one piece; yields the number of records read since the last yield."""
    unfinished = work / f"{number}.{os.getpid()}.unfinished"
    counts = {"num_rows": 0, "blank": 0}
    with writing(work):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
    with ExitStack() as files:
        with writing(work):
            writers = {s: files.enter_context(ArrowFile(unfinished / f"{s}.arrow", RECORD_SCHEMA)) for s in SPLITS}
        for split, record in source.split_records([parts[number]]):
            counts["num_rows"] += 1
            if record["story"]:
                with writing(work):
                    writers[split].write(record)
            else:
                counts["blank"] += 1
            if counts["num_rows"] % REPORT_ROWS == 0:
                yield REPORT_ROWS
        with writing(work):
            files.close()
    with writing(work):
        sizes = {split: (unfinished / f"{split}.arrow").stat().st_size for split in SPLITS}
        (unfinished / COUNTS).write_text(json.dumps({**counts, "bytes": sizes}))
        if _finished(work, number) is None:  # else a process left over from an interrupted command was faster
            shutil.rmtree(work / str(number), ignore_errors=True)
            unfinished.rename(work / str(number))
    yield counts["num_rows"] % REPORT_ROWS


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written to, into one line."""
    try:
        yield
    except OSError as error:
        raise StoppedError(
            f"{folder.parent} cannot be written to ({error.strerror or error}); free some space and run the same "
            "command again, it resumes where it stopped"
        ) from None


def _finished(work: Path, number: int) -> Piece | None:
    """Return a piece if it is complete; a crash of the machine can leave a renamed folder with empty files."""
    folder = work / str(number)
    try:
        counts = json.loads((folder / COUNTS).read_text())
        files = {split: folder / f"{split}.arrow" for split in SPLITS}
        if {split: file.stat().st_size for split, file in files.items()} != counts["bytes"]:
            return None
        return Piece(files, counts["num_rows"], counts["blank"])
    except (OSError, ValueError, KeyError):
        return None


def split_batches(pieces: Iterable[Piece], split: Split) -> Iterator[pa.RecordBatch]:
    """Yield the records of one split in batches of `WRITE_BATCH` rows, the last one shorter, piece after piece."""

    def one_batch(table: pa.Table) -> pa.RecordBatch:
        (batch,) = table.combine_chunks().to_batches()
        return batch

    held: list[pa.RecordBatch] = []
    num_held = 0
    for piece in pieces:
        with pa.memory_map(str(piece.files[split])) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                held.append(batch)
                num_held += batch.num_rows
                while num_held >= WRITE_BATCH:
                    table = pa.Table.from_batches(held)
                    yield one_batch(table.slice(0, WRITE_BATCH))
                    held = table.slice(WRITE_BATCH).to_batches()
                    num_held -= WRITE_BATCH
    if num_held:
        yield one_batch(pa.Table.from_batches(held))


@contextmanager
def resumable_folder(folder: Path, key: str) -> Iterator[Path]:
    """Give a hidden folder beside `folder` for its pieces; the same `key` gets the same folder again.

    It stays when the process is killed or stopped, and is removed at the end, or after an error that the same command
    would meet again.  One process at a time has it; others wait.

    Raises:
        UsageError: if the place cannot be written to.
    """
    outer = folder.with_name(f".{folder.name}.reading")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        lock = locked(outer / "lock", f"prepares data in {outer.parent}")
        work = outer / key
        for left in outer.iterdir():
            if left.is_dir() and left != work:  # of the source before it changed
                shutil.rmtree(left)
        for left in work.glob("*.unfinished"):
            shutil.rmtree(left, ignore_errors=True)
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder.parent} cannot be written to ({error.strerror}); name another folder") from None
    with lock:
        try:
            yield work
        except StoppedError:
            for left in work.glob("*.unfinished"):  # it may have filled the disk
                shutil.rmtree(left, ignore_errors=True)
            raise
        except UsageError:
            shutil.rmtree(outer, ignore_errors=True)
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()
            raise
        shutil.rmtree(outer)
