"""Corpora: records prepared once, split and counted, in `data/<corpus>/records`, with a manifest beside them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, load_from_disk

from lm_trials.console import UsageError, did_you_mean, note
from lm_trials.data.records import RECORD_SCHEMA, SPLITS, Record, Split, count_duplicates, split_of
from lm_trials.data.shards import first_line
from lm_trials.data.sources import Source, open_source

SplitBy = Literal["hash", "shard"]
SplitRecord = tuple[Split, Record]
MANIFEST = "manifest.json"
WRITE_BATCH = 1000
# A split is copied in a blink below this; a bar for each would be noise.
QUIET_ROWS = 200_000


def write_corpus(
    records: Iterable[tuple[int, Record]],
    folder: Path,
    origin: dict[str, Any],
    split_by: SplitBy = "hash",
    splits_needed: Collection[str] = ("train",),
) -> dict[str, Any]:
    """Write records, given with the index of their shard, as a `DatasetDict` of three splits; return the manifest.

    With `split_by="hash"` a story's split follows from its content, so that no story is in two splits.  With
    `"shard"`, as the seeds do it, shard 0 is the test split and 1 per cent of the rest, by hash, is validation; the
    manifest then counts the stories of the other splits that shard 0 holds too.  Records without a story are
    counted and left out.

    Raises:
        UsageError: if `folder` already holds a corpus, or the records leave one of `splits_needed` empty.
    """
    empty_train = "shard 0 is the test split, so give more shards" if split_by == "shard" else "give more stories"
    placed = ((_shard_split(shard, record) if split_by == "shard" else split_of(record["record_id"]), record)
              for shard, record in records)  # fmt: skip
    return write_splits(placed, folder, origin, split_by, splits_needed, empty_train)


def _shard_split(shard: int, record: Record) -> Split:
    by_hash = split_of(record["record_id"])
    return "test" if shard == 0 else "validation" if by_hash == "validation" else "train"


def write_splits(
    records: Iterable[SplitRecord],
    folder: Path,
    origin: dict[str, Any],
    split_by: str,
    splits_needed: Collection[str] = ("train",),
    empty_train: str = "give more stories",
) -> dict[str, Any]:
    """Write records, each given with its split, as a `DatasetDict` of three splits; return the manifest.

    Raises:
        UsageError: as `write_corpus`; `empty_train` is what to do about a train split without a story.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} already holds a corpus; give another --corpus or remove that folder")
    tally = _Tally()
    with finished_folder(folder) as unfinished:
        with ExitStack() as files:
            writers = {s: files.enter_context(ArrowFile(unfinished / f"{s}.arrow", RECORD_SCHEMA)) for s in SPLITS}
            for split, record in records:
                if not record["story"]:
                    tally.blank += 1
                    continue
                tally.add(split, record)
                writers[split].write(record)
        manifest = {"corpus": folder.name, "split_by": split_by, "origin": origin, **tally.summary()}
        for split in splits_needed:
            if not manifest["stories"][split]:
                total = sum(manifest["stories"].values())
                advice = empty_train if split == "train" else "give more stories"
                raise UsageError(f"{total:,} stories leave the {split} split empty; {advice}")
        save_splits(unfinished, unfinished / "records")
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def save_splits(folder: Path, destination: Path) -> None:
    """Turn the raw Arrow file of each split into a folder that `datasets.load_from_disk` reads."""
    files = {split: folder / f"{split}.arrow" for split in SPLITS}
    splits = DatasetDict({split: Dataset.from_file(str(file)) for split, file in files.items()})
    quiet = sum(map(len, splits.values())) < QUIET_ROWS and datasets.is_progress_bar_enabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        # An empty split would be saved as no file at all, and datasets 5.2 cannot load that again.
        splits.save_to_disk(destination, num_shards={split: None if len(splits[split]) else 1 for split in SPLITS})
    finally:
        if quiet:
            datasets.enable_progress_bars()
    for file in files.values():
        file.unlink()


class _Tally:
    """Counts what goes into a corpus: stories, features and duplicates, at 8 bytes a story."""

    def __init__(self) -> None:
        self.identifiers = {split: array("Q") for split in SPLITS}
        self.features: Counter[str] = Counter()
        self.blank = 0

    def add(self, split: str, record: Record) -> None:
        self.identifiers[split].append(int(record["record_id"][:16], 16))
        self.features.update(record["features"])

    def summary(self) -> dict[str, Any]:
        arrays = {split: np.frombuffer(names, dtype=np.uint64) for split, names in self.identifiers.items()}
        everything = np.concatenate(list(arrays.values()))
        in_test = np.isin(np.concatenate([arrays["train"], arrays["validation"]]), arrays["test"])
        return {
            "stories": {split: len(names) for split, names in arrays.items()},
            "duplicates": count_duplicates(everything),
            "also_in_test": int(in_test.sum()),
            "also_in_validation": int(np.isin(arrays["train"], arrays["validation"]).sum()),
            "blank": self.blank,
            "content": hashlib.sha256(b"|".join(names.tobytes() for names in arrays.values())).hexdigest()[:16],
            "features": dict(sorted(self.features.items())),
        }


class ArrowFile:
    """An Arrow stream file written in batches of rows, so that memory does not grow with the rows."""

    def __init__(self, path: Path, schema: Features) -> None:
        self.schema = schema.arrow_schema
        self.rows: list[Any] = []
        self.file = pa.OSFile(str(path), "wb")
        self.stream = pa.ipc.new_stream(self.file, self.schema)

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.rows = []  # of a file that will be thrown away
        self.close()

    def write(self, row: Any) -> None:
        """Add one row, a dict of the schema's fields."""
        self.rows.append(row)
        if len(self.rows) == WRITE_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the rows gathered so far."""
        if self.rows:
            self.stream.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        self.stream.close()
        self.file.close()


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `folder` only when all went well; nothing half-written stays.

    What a killed process of this machine left behind is removed; parents made for a folder that came to nothing too.

    Raises:
        UsageError: where the place cannot be written to, or another process was faster.
    """
    mark = f".{folder.name}.unfinished-{socket.gethostname()}-"
    unfinished = folder.with_name(f"{mark}{os.getpid()}")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        for left in folder.parent.glob(f"{mark}*"):
            if left == unfinished or not _is_running(left.name.removeprefix(mark)):
                shutil.rmtree(left)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{folder.parent} cannot be written to ({error.strerror}); name another folder") from None
    try:
        yield unfinished
        try:
            unfinished.rename(folder)  # over an empty folder, too; anything else was refused before
        except OSError as error:
            raise UsageError(f"{folder} appeared meanwhile ({error.strerror}); run the same command again") from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def _is_running(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it runs, for somebody else
        return True
    return True


def ingest(
    source: Source,
    folder: Path,
    split_by: SplitBy = "hash",
    watch: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> dict[str, Any]:
    """Read a whole source into the corpus `folder`; `watch` may wrap the stream with a progress bar.

    A source with splits of its own keeps them, and the manifest says `split_by: source`.

    Raises:
        UsageError: as `Source.records_of`; for shards as splits of a source that has its own.
    """
    source.check_splits()
    if split_by == "shard":
        if source.has_own_splits():
            raise UsageError(f"--split_by shard: {source.reference} has splits of its own; leave it away")
        if source.validation_split_percentage is not None:
            raise UsageError(
                "--validation_split_percentage and --split_by shard: shards say what is validation; drop one"
            )
        return write_corpus(watch(source.records_by_shard()), folder, source.origin(), split_by)
    manner = "source" if source.has_own_splits() else "hash"
    return write_splits(watch(source.split_records()), folder, source.origin(), manner)


def in_two_splits(manifest: dict[str, Any]) -> str | None:
    """Say how many stories the train split shares with the others, or None where it shares none.

    >>> print(in_two_splits({"also_in_test": 2, "also_in_validation": 0}))
    2 stories of other splits are in the test split too, 0 of the train split in the validation split
    >>> in_two_splits({"also_in_test": 0})
    """
    in_test, in_validation = manifest.get("also_in_test", 0), manifest.get("also_in_validation", 0)
    if not in_test and not in_validation:
        return None
    return (
        f"{in_test:,} stories of other splits are in the test split too, {in_validation:,} of the train split in the "
        "validation split"
    )


def open_records(folder: Path, split: str | None = None) -> Dataset | DatasetDict:
    """Open the records of a corpus, memory-mapped; of one split, or of all.

    Raises:
        UsageError: for a folder without records, or a split there is not.
    """
    records = folder / "records"
    if not records.is_dir():
        raise UsageError(f"{folder} holds no records; make them with prepare_tinystories.py ingest or generate")
    splits = load_splits(records)
    if split is None:
        return splits
    if split not in splits:
        raise UsageError(f"--dataset_split {split}: {did_you_mean(split, splits)}")
    return splits[split]


def load_splits(folder: Path) -> DatasetDict:
    """Load what `save_splits` wrote, memory-mapped.

    Raises:
        UsageError: if a file of it is missing, cut off or changed.
    """
    try:
        return load_from_disk(str(folder))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} is damaged ({first_line(error)}); remove {folder} and run the command that made it again"
        ) from None


def read_manifest(folder: Path, *needed: str) -> dict[str, Any]:
    """Read what a corpus or token store says of itself, the `needed` fields at least.

    Raises:
        UsageError: if its manifest is missing, cut off, or lacks one of them.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in needed if key not in manifest]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return manifest
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read ({first_line(error)}); remove {folder} and run the command that made it again"
        ) from None


def is_corpus(folder: Path) -> bool:
    """Say whether `folder` holds a prepared corpus."""
    return (folder / MANIFEST).is_file() and (folder / "records").is_dir()


def resolve_corpus(
    dataset_name: str,
    data_cache_dir: Path,
    watch: Callable[[Iterator[Any]], Iterator[Any]] = iter,
    validation_split_percentage: float | None = None,
    num_proc: int = 1,
    **source_options: Any,
) -> Path:
    """Return the corpus folder of `--dataset_name`: a prepared name first, then a path, then the Hub.

    A path or Hub data set is read into `data_cache_dir` under a name of its own, once; where the source has changed
    since, or is read with other options, it gets a new name, because the name holds its fingerprint.  Without a
    network a Hub data set is the newest one prepared from that name with the same options.

    Args:
        validation_split_percentage: see `Source.records_of`; a prepared corpus has its splits.
        num_proc: processes that read.

    Raises:
        UsageError: if it is none of them; the message lists what is prepared.
    """
    prepared = next((f for f in (data_cache_dir / dataset_name, Path(dataset_name)) if is_corpus(f)), None)
    if prepared is not None:
        if validation_split_percentage is not None:
            raise UsageError(
                f"--validation_split_percentage {validation_split_percentage:g}: {dataset_name} is prepared and has "
                "its splits; leave it away"
            )
        return prepared
    known = [p.name for p in data_cache_dir.iterdir() if is_corpus(p)] if data_cache_dir.is_dir() else []
    try:
        source = open_source(dataset_name, validation_split_percentage=validation_split_percentage, **source_options)
        folder = corpus_folder(source, dataset_name, data_cache_dir)
        if not is_corpus(folder):
            manifest = ingest(source, folder, watch=watch)
            if shared := in_two_splits(manifest):
                note(f"note: {folder.name}: {shared}")
    except UsageError as error:
        raise UsageError(f"{error}; prepared in {data_cache_dir}: {', '.join(sorted(known)) or 'nothing'}") from None
    return folder


def corpus_folder(source: Source, dataset_name: str, data_cache_dir: Path) -> Path:
    """Return where the corpus of a source lies, or will lie, under `data_cache_dir`."""
    if source.kind == "hub" and source.revision is None and data_cache_dir.is_dir():
        read_as, found = source.fingerprint(with_revision=False), []
        for folder in filter(is_corpus, data_cache_dir.iterdir()):
            if read_manifest(folder, "origin")["origin"].get("read_as") == read_as:
                found.append((folder.joinpath(MANIFEST).stat().st_mtime_ns, folder))
        if found:
            return max(found)[1]
    stem = Path(dataset_name).name.split(".")[0]
    return data_cache_dir / f"{stem}-{source.fingerprint()[:8]}"
