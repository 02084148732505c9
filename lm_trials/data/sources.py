"""Sources: where stories come from, each read as a stream of records, never a whole corpus in memory.

A source is a file, a folder of shards, the TinyStories archive, a data set saved with `save_to_disk`, or a data set
on the Hub.  What it is follows from its name; what it holds is checked record by record, and an error names the
file and the record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.data.records import SPLITS, Record, record_from_row, split_of
from lm_trials.data.shards import (
    KINDS,
    Row,
    file_shards,
    first_line,
    kind_of,
    natural_key,
    numbered,
    reading,
    shard_names,
    suffix_of,
)


@dataclass(frozen=True)
class Source:
    """A corpus as it lies on disk or on the Hub.

    Attributes:
        reference: the path or Hub name as the user gave it.
        shards: the files, in order; empty for a saved data set or the Hub.
        kind: `files`, `saved` or `hub`.
        text_column: the column that holds the story; None means `story`, else `text`.
        text_separator: what stands between two stories of a text file.
        dataset_config_name: as in `datasets.load_dataset`, or a part of a folder.
        dataset_split: a split of a Hub or saved data set; of files, which have none, the split by hash of the record.
            None means the whole source (of the Hub, `train`).
        streaming: whether a Hub data set is streamed or downloaded first.
    """

    reference: str
    shards: tuple[Path, ...] = ()
    kind: str = "files"
    text_column: str | None = None
    text_separator: str = "<|endoftext|>"
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    streaming: bool = True

    def records(self) -> Iterator[Record]:
        """Yield every record that has a story, in the order of the source.

        Raises:
            UsageError: for a broken file or record (named), or a source without any story.
        """
        return (record for _, record in self._named_records() if record["story"])

    def records_by_shard(self) -> Iterator[tuple[int, Record]]:
        """Yield every record, blank ones too, with the number of its shard, which the seeds' shard split goes by.

        Shards count from 0 in the natural order of their names, whatever the order inside an archive.

        Raises:
            UsageError: as `records`.
        """
        paths = self.shards or (None,)
        names = [name for path in paths for name in (shard_names(path) if path else [self.reference])]
        numbers = {name: number for number, name in enumerate(names)}
        return ((numbers[name], record) for name, record in self._named_records())

    def _named_records(self) -> Iterator[tuple[str, Record]]:
        found = False
        wanted = self.dataset_split if self._has_no_splits() else None
        for name, column, rows in self._rows_by_shard():
            for place, row in rows:
                try:
                    record = record_from_row(row, column)
                except UsageError as error:
                    raise UsageError(f"{name}: {place}: {error}") from None
                if wanted is None or split_of(record["record_id"]) == wanted:
                    found = found or bool(record["story"])
                    yield name, record
        if not found:
            of_split = f" in its {wanted} split" if wanted else ""
            raise UsageError(f"{self.reference} holds no story{of_split}; give a source with at least one")

    def _has_no_splits(self) -> bool:
        """Whether a split of this source can only be one by hash."""
        saved_alone = self.kind == "saved" and not (Path(self.reference) / "dataset_dict.json").exists()
        return self.kind == "files" or saved_alone

    def _rows_by_shard(self) -> Iterator[tuple[str, str | None, Iterator[Row]]]:
        if self.kind != "files":
            rows = saved_rows(self) if self.kind == "saved" else hub_rows(self)
            yield self.reference, self.text_column, numbered(rows)
        for path in self.shards:
            column = None if kind_of(path) == "text" else self.text_column
            for name, rows in file_shards(path, self.text_separator):
                yield name, column, rows

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with the content of the source and with how it is read."""
        digest = hashlib.sha256()
        options = (self.text_column, self.text_separator, self.dataset_config_name, self.dataset_split)
        digest.update(repr(options).encode())
        if self.kind == "hub":
            digest.update(self.reference.encode())
            return digest.hexdigest()[:16]
        folder = Path(self.reference)
        for file in self.shards or sorted(path for path in folder.rglob("*") if path.is_file()):
            with reading(str(file)), file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


def open_source(reference: str, **options: Any) -> Source:
    """Find out what `reference` is; see `Source` for the options.

    Raises:
        UsageError: for a path that does not exist, an empty file, a folder without data, a file of another kind, a
            split that files cannot have.
    """
    if not reference:
        raise UsageError("the source has no name; give a file, a folder of shards or a Hub data set")
    path = Path(reference).expanduser()
    if path.is_dir():
        source = _open_folder(path, options)
    elif path.is_file():
        kind_of(path)
        if path.stat().st_size == 0:
            raise UsageError(f"{reference} is empty; give a file with at least one story")
        source = Source(str(path), shards=(path,), **options)
    else:
        # A Hub name is `name` or `owner/name`; anything else was meant as a path.
        looks_like_path = reference.startswith((".", "/", "~")) or reference.count("/") > 1 or suffix_of(path) in KINDS
        if looks_like_path:
            raise UsageError(f"{reference} does not exist; give a file, a folder of shards or a Hub data set")
        source = Source(reference, kind="hub", **options)
    if source._has_no_splits() and source.dataset_split not in (None, *SPLITS):
        raise UsageError(f"--dataset_split {source.dataset_split}: {did_you_mean(source.dataset_split, SPLITS)}")
    return source


def _open_folder(path: Path, options: dict[str, Any]) -> Source:
    if config := options.get("dataset_config_name"):
        inner = next((p for p in (path / config, *sorted(path.glob(f"{config}.*"))) if p.exists()), None)
        if inner is None:
            parts = ", ".join(sorted(p.stem for p in path.iterdir() if not p.name.startswith("."))) or "none"
            raise UsageError(f"{path} has no part {config!r}; --dataset_config_name can be: {parts}")
        return open_source(str(inner), **{**options, "dataset_config_name": None})
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Source(str(path), kind="saved", **options)
    if (path / "records" / "dataset_dict.json").exists():  # a corpus of this project, whose manifest is JSON too
        return Source(str(path / "records"), kind="saved", **options)
    by_kind: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir(), key=lambda file: natural_key(file.name)):
        if file.is_file() and not file.name.startswith(".") and (kind := KINDS.get(suffix_of(file))):
            by_kind.setdefault(kind, []).append(file)
    if not by_kind:
        raise UsageError(f"{path} holds no {', '.join(KINDS)} file and no saved data set; give a folder that does")
    if len(by_kind) > 1:
        examples = ", ".join(f"{kind}: {files[0].name}" for kind, files in by_kind.items())
        raise UsageError(f"{path} holds files of several kinds ({examples}); name one file or one kind's folder")
    (shards,) = by_kind.values()
    return Source(str(path), shards=tuple(shards), **options)


def saved_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set saved with `save_to_disk`, of one split or of all."""
    import pyarrow
    from datasets import Dataset, load_from_disk

    with reading(source.reference):
        try:
            loaded = load_from_disk(source.reference)
        except (pyarrow.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{source.reference} is no whole saved data set ({first_line(error)}); write it again"
            ) from None
        if isinstance(loaded, Dataset):
            yield from loaded
            return
        split = source.dataset_split
        if split is not None and split not in loaded:
            valid = ", ".join(loaded)
            raise UsageError(f"{source.reference} has no split {split!r}; --dataset_split can be: {valid}")
        for name in [split] if split else list(loaded):
            yield from loaded[name]


def hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hub data set; one line says so where it cannot be had."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield from load_dataset(
            source.reference,
            source.dataset_config_name,
            split=source.dataset_split or "train",
            streaming=source.streaming,
        )
    # What is raised for a wrong name, split, or network has no common base; the bases of HfHubHTTPError are the HTTP
    # client's own error and OSError.
    except (ValueError, RuntimeError, DatasetsError, *HfHubHTTPError.__bases__) as error:
        raise UsageError(
            f"{source.reference} is no path here and cannot be had from the Hub ({first_line(error)}); "
            "check the name, the split and the network, or give a path"
        ) from None
