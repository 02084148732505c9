"""Corpora: records prepared once, split and counted, in `data/<corpus>/records`, with a manifest beside them."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict

from lm_trials.console import UsageError, did_you_mean, note
from lm_trials.files import file_sums, finished_folder, plain_name, write_json
from lm_trials.stories.arrow_files import ArrowFile, load_splits, save_splits
from lm_trials.stories.pieces import read_pieces, resumable_folder, split_batches
from lm_trials.stories.records import RECORD_SCHEMA, SPLITS, Record, split_of
from lm_trials.stories.shards import first_line
from lm_trials.stories.sources import Source

SplitBy = Literal["hash", "shard", "source"]
Watch = Callable[[Iterable[Any]], Iterable[Any]]
MANIFEST = "manifest.json"


def write_corpus(
    records: Iterable[tuple[int, Record]],
    folder: Path,
    origin: dict[str, Any],
    split_by: SplitBy = "hash",
    splits_needed: Collection[str] = ("train",),
) -> dict[str, Any]:
    """Write records, given with the index of their shard, as a `DatasetDict` of three splits; return the manifest.

    With `split_by="hash"` a story's split follows from its content, so that no story is in two splits.  With
    `"shard"`, as in llama2.c, shard 0 is the test split and 1% of the rest, by hash, is validation; the manifest
    counts the stories of the other splits that are in shard 0 too.  With `"source"`, the number given with a record is
    that of its split in `SPLITS`.  Records without a story are counted and left out.

    Raises:
        UsageError: if `folder` already exists, or the records leave one of `splits_needed` empty.
    """
    check_free(folder, "--corpus")
    advice = "shard 0 is the test split, so give more shards" if split_by == "shard" else "give more stories"
    tally = Tally()
    with finished_folder(folder) as unfinished:
        with ExitStack() as files:
            writers = {s: files.enter_context(ArrowFile(unfinished / f"{s}.arrow", RECORD_SCHEMA)) for s in SPLITS}
            for shard, record in records:
                if not record["story"]:
                    tally.blank += 1
                    continue
                split = split_of(record["record_id"])
                if split_by == "shard":
                    split = "test" if shard == 0 else "validation" if split == "validation" else "train"
                elif split_by == "source":
                    split = SPLITS[shard]
                tally.add(split, [record["record_id"]], record["features"])
                writers[split].write(record)
        described = {"corpus": folder.name, "split_by": split_by, "origin": origin}
        return _finish(unfinished, described, tally, splits_needed, advice)


def check_free(folder: Path, named_by: str = "name") -> None:
    """Raise a UsageError if a folder exists and is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} already exists; remove it, or give another {named_by}")


def _finish(
    unfinished: Path,
    described: dict[str, Any],
    tally: Tally,
    splits_needed: Collection[str] = ("train",),
    advice: str = "give more stories",
) -> dict[str, Any]:
    """Turn the Arrow files in `unfinished` into a corpus and return its manifest."""
    manifest = {**described, **tally.summary()}
    counts, reference = manifest["stories"], described["origin"].get("reference", described["corpus"])
    total = sum(counts.values())
    if 0 < manifest["duplicates"] == total - 1:
        raise UsageError(f"{reference}: all {total:,} stories are equal; check the file and which column has the text")
    for split in splits_needed:
        if not counts[split]:
            following = advice if split == "train" else "give more stories"
            raise UsageError(f"{reference}: {total:,} stories leave the {split} split empty; {following}")
    save_splits(unfinished, unfinished / "records")
    manifest["files"] = file_sums(unfinished)
    write_json(unfinished / MANIFEST, manifest)
    return manifest


class Tally:
    """Counts the stories, features and duplicates of a corpus, at 8 bytes a story."""

    def __init__(self) -> None:
        self.identifiers: dict[str, array[int]] = {split: array("Q") for split in SPLITS}
        self.features: Counter[str] = Counter()
        self.blank = 0

    def add(self, split: str, record_ids: Iterable[str], features: Iterable[str]) -> None:
        """Count stories of a split, and their features."""
        # 8 bytes a story: 40 MB for the 4,967,871 of the archive.
        self.identifiers[split].extend(int(name[:16], 16) for name in record_ids)
        self.features.update(features)

    def summary(self) -> dict[str, Any]:
        """Return the manifest's counts, and a hash of all names, which identifies the content."""
        arrays = {split: np.frombuffer(names, dtype=np.uint64) for split, names in self.identifiers.items()}
        everything = np.concatenate(list(arrays.values()))
        in_test = np.isin(np.concatenate([arrays["train"], arrays["validation"]]), arrays["test"])
        return {
            "stories": {split: len(names) for split, names in arrays.items()},
            # By 64-bit prefixes of the names: two of five million stories share one with a probability below 1e-6.
            "duplicates": len(everything) - len(np.unique(everything)),
            "also_in_test": int(in_test.sum()),
            "also_in_validation": int(np.isin(arrays["train"], arrays["validation"]).sum()),
            "blank": self.blank,
            "content": hashlib.sha256(b"|".join(names.tobytes() for names in arrays.values())).hexdigest()[:16],
            "features": dict(sorted(self.features.items())),
        }


def ingest(
    source: Source, folder: Path, split_by: SplitBy = "hash", watch: Watch = iter, num_proc: int = 1
) -> dict[str, Any]:
    """Read a whole source into the corpus `folder`; `watch` may wrap the count of records with a progress bar.

    A source with splits of its own keeps them (`split_by: source` in the manifest).  The parts that are read are kept
    in a hidden folder, so that the same call resumes after an interruption.  The corpus is the same, byte for byte,
    for any number of processes and interruptions.

    Raises:
        UsageError: as `Source.records_of`; for `split_by="shard"` with a source that has splits of its own.
    """
    check_free(folder, "--corpus")
    source.check_splits()
    if split_by == "shard":
        if source.has_own_splits():
            raise UsageError(f"--split_by shard: {source.reference} has splits of its own; remove the flag")
        if source.validation_split_percentage is not None:
            raise UsageError("--validation_split_percentage with --split_by shard: remove one of them")
        return write_corpus(watch(source.records_by_shard()), folder, source.origin(), split_by)
    origin = source.origin()
    split_as = "source" if source.has_own_splits() else "hash"
    with resumable_folder(folder, origin["fingerprint"]) as work:
        check_free(folder, "--corpus")  # another process may have made it while this one waited
        pieces = read_pieces(source, work, watch, num_proc)
        with finished_folder(folder) as unfinished:
            tally = Tally()
            tally.blank = sum(piece.blank for piece in pieces)
            for split in SPLITS:
                with ArrowFile(unfinished / f"{split}.arrow", RECORD_SCHEMA) as file:
                    for batch in split_batches(pieces, split):
                        tally.add(split, batch["record_id"].to_pylist(), batch["features"].flatten().to_pylist())
                        file.write_batch(batch)
            if not any(map(len, tally.identifiers.values())):
                raise source.no_story()
            return _finish(unfinished, {"corpus": folder.name, "split_by": split_as, "origin": origin}, tally)


def in_two_splits(manifest: dict[str, Any]) -> str | None:
    """Describe how many stories the splits share, or return None if they share none.

    >>> print(in_two_splits({"also_in_test": 2, "also_in_validation": 0}))
    2 stories of other splits are in the test split too
    >>> in_two_splits({"also_in_test": 0})
    """
    shared = [
        f"{count:,} stories of {others} are in the {split} split too"
        for split, others in (("test", "other splits"), ("validation", "the train split"))
        if (count := manifest.get(f"also_in_{split}", 0))
    ]
    return ", ".join(shared) or None


def open_records(folder: Path, split: str | None = None) -> Dataset | DatasetDict:
    """Open the records of a corpus, memory-mapped; of one split, or of all.

    Raises:
        UsageError: for a folder without records, or a split that does not exist.
    """
    records = folder / "records"
    if not records.is_dir():
        raise UsageError(f"{folder} holds no records; make them with lm-trials prepare ingest or generate")
    splits = load_splits(records)
    if split is None:
        return splits
    if split not in splits:
        raise UsageError(f"--dataset_split {split}: {did_you_mean(split, splits)}")
    return splits[split]


def read_manifest(folder: Path, *needed: str) -> dict[str, Any]:
    """Read the manifest of a corpus, token store or data set.

    Raises:
        UsageError: if the manifest is missing or truncated, or lacks one of the `needed` fields.
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
    """Whether `folder` is a prepared corpus."""
    return (folder / MANIFEST).is_file() and (folder / "records").is_dir()


def prepare_source(source: Source, name: str, data_cache_dir: Path, watch: Watch = iter) -> Path:
    """Read a source, which the user called `name`, into a corpus in `data_cache_dir`, once; return its folder.

    The folder's name contains the source's fingerprint, so a source that has changed, or is read with other options,
    becomes another corpus.  Without a network a Hub data set is the newest corpus of that name and those options.

    Raises:
        UsageError: as `ingest`.
    """
    folder = _corpus_folder(source, name, data_cache_dir)
    if is_corpus(folder):
        return folder
    try:
        manifest = ingest(source, folder, watch=watch, num_proc=source.num_proc)
    except UsageError:
        if is_corpus(folder):  # another process was faster
            return folder
        raise
    if shared := in_two_splits(manifest):
        note(f"note: {name}: {shared}")
    total = sum(manifest["stories"].values())
    if manifest["blank"] > len(source.shards):  # a text file may end with a separator
        note(f"note: {name}: {manifest['blank']:,} records without a story were left out")
    if 2 * manifest["duplicates"] >= total:
        note(f"note: {name}: {manifest['duplicates']:,} of {total:,} stories repeat an earlier one")
    return folder


def _corpus_folder(source: Source, dataset_name: str, data_cache_dir: Path) -> Path:
    if source.kind == "hub" and source.revision is None and data_cache_dir.is_dir():
        read_as, found = source.fingerprint(with_revision=False), []
        for folder in filter(is_corpus, data_cache_dir.iterdir()):
            if read_manifest(folder, "origin")["origin"].get("read_as") == read_as:
                found.append((folder.joinpath(MANIFEST).stat().st_mtime_ns, folder))
        if found:
            return max(found)[1]
    stem = Path(dataset_name).name.split(".")[0]
    part = source.dataset_config_name if source.kind == "hub" else Path(source.reference).name.split(".")[0]
    if part and part not in (stem, "records"):
        stem += f"-{part}"
    return data_cache_dir / f"{plain_name(stem)}-{source.fingerprint()[:8]}"
