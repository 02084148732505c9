"""Sources: where stories come from, each read as a stream of records, never a whole corpus in memory.

A source is a file, a folder of shards, the TinyStories archive, a data set saved with `save_to_disk`, or a data set
on the Hub.  Records are checked one by one, and an error names the file and the record.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets.data_files import FILES_TO_IGNORE

from lm_trials.console import UsageError, did_you_mean
from lm_trials.stories.hub import hub_revision, load_hub, load_saved, reading_hub, saved_split_names
from lm_trials.stories.records import SPLITS, Record, Split, record_from_row, split_of, validation_from
from lm_trials.stories.shards import (
    NO_DATA,
    Row,
    by_paragraphs,
    file_hashes,
    file_shards,
    formats_by_suffix,
    kind_of,
    natural_key,
    numbered,
    reading,
    shard_names,
    suffix_of,
    tell,
    tell_left_out,
)
from lm_trials.stories.splits import check_own_splits, file_splits, named_splits, own_names, split_for


@dataclass(frozen=True)
class SourcePart:
    """A part of a source that can be read without the others.

    Attributes:
        split: the source's own split that the part belongs to, if any.
        name: of that split in a saved or Hub data set; None for a file, or a data set saved without splits.
        path: the file, if it is one.
        rows: a range of the rows of a saved or downloaded data set; None for all.
    """

    split: Split | None = None
    name: str | None = None
    path: Path | None = None
    rows: range | None = None


@dataclass(frozen=True)
class Source:
    """A corpus as it lies on disk or on the Hub.

    Attributes:
        reference: the path or Hub name as the user gave it.
        shards: the files, in order; empty for a saved data set or the Hub.
        kind: `files`, `saved` or `hub`.
        text_column: the column of the story; None means `story`, else `text`.
        text_separator: between two stories of a text file.
        dataset_config_name: as in `datasets.load_dataset`, or a part of a folder.
        dataset_split: one of the source's own splits, else a split by hash; None for all (of the Hub, `train`).
        streaming: whether a Hub data set is streamed or downloaded first.
        validation_split_percentage: how much of the train split, or of all, is validation by hash; see `records_of`.
        revision: the commit of a Hub data set; None without a network.
        num_proc: processes that download a Hub data set.
    """

    reference: str
    shards: tuple[Path, ...] = ()
    kind: str = "files"
    text_column: str | None = None
    text_separator: str = "<|endoftext|>"
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    streaming: bool = True
    validation_split_percentage: float | None = None
    revision: str | None = None
    num_proc: int = 1

    def records(self) -> Iterator[Record]:
        """Yield every record that has a story, in the order of the source.

        Raises:
            UsageError: for a broken file or record (named), or a source without any story.
        """
        empty = True
        for _, _, record in self._read(self._parts_to_read()):
            if record["story"]:
                empty = False
                yield record
        if empty:
            raise self.no_story()

    def records_by_shard(self) -> Iterator[tuple[int, Record]]:
        """Yield every record, blank ones too, with the number of its shard, for `--split_by shard`.

        Shards count from 0 in the natural order of their names, whatever the order inside an archive.
        """
        paths = self.shards or (None,)
        names = [name for path in paths for name in (shard_names(path) if path else [self.reference])]
        numbers = {name: number for number, name in enumerate(names)}
        return ((numbers.get(name, 0), record) for _, name, record in self._read(self._parts_to_read()))

    def records_of(self, split: Split, validation_split_percentage: float | None = None) -> Iterator[Record]:
        """Yield the records of one split that have a story: those of the ingested corpus, in the same order.

        A source with splits of its own keeps them.  Without a validation split, that percentage of its train split
        becomes one, by hash of the story, so that a story and its repetitions are in one split.  A source without
        splits is split 98, 1 and 1% by hash, or 99 - N, N and 1% for a percentage N (default: the source's own).

        Raises:
            UsageError: as `records`; if the train split has no story; without a validation split and a percentage, or
                with both.
        """
        source = self
        if validation_split_percentage is not None:
            source = replace(self, validation_split_percentage=validation_split_percentage)
        source.check_splits()
        return source._of_split(split)

    def _of_split(self, split: Split) -> Iterator[Record]:
        empty = True
        for found, record in self.split_records(self.parts_of(split)):
            if found == split and record["story"]:
                empty = False
                yield record
        if empty and split == "train":
            raise UsageError(f"{self.reference} leaves the train split empty; give more stories")

    def split_records(self, parts: Iterable[SourcePart]) -> Iterator[tuple[Split, Record]]:
        """Yield every record of some parts, blank ones too, with its split."""
        percent, own = self.validation_split_percentage, self.has_own_splits()
        for part, _, record in self._read(parts):
            yield split_for(part.split if own else None, record["record_id"], percent), record

    def parts_of(self, only: Split | None = None) -> list[SourcePart]:
        """Return the parts of a corpus, in their order, or those that have records of one split."""
        if not self.has_own_splits():
            return self._parts_to_read()
        wanted = set(SPLITS) if only is None else {only}
        if only == "validation" and self.validation_split_percentage is not None:
            wanted = {"train"}
        return [part for part in self.parts() if part.split in wanted]

    def pieces(self, num_rows: int) -> list[SourcePart]:
        """Return the parts of a corpus; saved and downloaded data sets are cut into ranges of `num_rows` rows."""
        pieces = []
        for part in self.parts_of():
            if part.path is not None or (self.kind == "hub" and self.streaming):
                pieces.append(part)
                continue
            total = len(self._rows_of(part))
            starts = range(0, total, num_rows)
            pieces += [replace(part, rows=range(start, min(start + num_rows, total))) for start in starts]
        return pieces

    def check_splits(self) -> None:
        """Raise a UsageError as `records_of`, before anything is read."""
        if self.validation_split_percentage is not None:
            validation_from(self.validation_split_percentage)
        if self.has_own_splits():
            check_own_splits(self.reference, self.own_splits, self.validation_split_percentage)
            if left_out := [name for name, split in self.own_splits.items() if split is None]:
                self._tell(f"splits that are not read: {', '.join(left_out)}")

    def has_own_splits(self) -> bool:
        """Whether the source is read in splits of its own; one named by `dataset_split` has no further splits."""
        return self.dataset_split is None and bool(self.own_splits)

    @cached_property
    def own_splits(self) -> dict[str, Split | None]:
        """The source's own splits by name, with the split of a corpus that each becomes; None is left out.

        Raises:
            UsageError: for a folder in which only some files are named after a split, or without a network.
        """
        if self.kind == "files":
            return {split: split for split in SPLITS if split in self._file_splits}
        names = saved_split_names(Path(self.reference)) if self.kind == "saved" else list(self._loaded)
        found = named_splits(names)
        return {name: found.get(name) for name in names}

    @cached_property
    def _named_after(self) -> list[Split | None]:
        """The split that each file of a folder is named after; None for a single file."""
        if self.shards == (Path(self.reference),):
            return [None]
        found = file_splits(self._file_names)
        for name, splits in zip(self._file_names, found, strict=True):
            if len(splits) > 1:
                raise UsageError(f"{self.reference}: {name} is named after {' and '.join(splits)}; rename it")
        return [splits[0] if splits else None for splits in found]

    @property
    def _file_names(self) -> list[str]:
        """The files' names, relative to the folder."""
        return [path.relative_to(self.reference).as_posix() for path in self.shards]

    @property
    def _file_splits(self) -> list[Split | None]:
        """The split of each file: all files of the folder have one, or none."""
        splits = self._named_after
        if None in splits and any(splits):
            named = next(name for name, split in zip(self._file_names, splits, strict=True) if split)
            unnamed = next(name for name, split in zip(self._file_names, splits, strict=True) if not split)
            raise UsageError(
                f"{self.reference} has files named after a split ({named}) and others ({unnamed}); rename them, or "
                "put them into separate folders"
            )
        return splits

    @cached_property
    def _loaded(self) -> Any:
        """A saved or Hub data set as `datasets` loads it: all its splits, or one."""
        if self.kind == "saved":
            return load_saved(Path(self.reference))
        options = self.dataset_config_name, self.dataset_split, self.streaming, self.revision, self.num_proc
        return load_hub(self.reference, *options)

    def parts(self) -> list[SourcePart]:
        """Return the parts of the source in its order, of all its splits."""
        if self.kind == "files":
            return [SourcePart(split, path=path) for path, split in zip(self.shards, self._named_after, strict=True)]
        if self.kind == "hub" and self.dataset_split is not None:
            return [SourcePart()]
        named = [SourcePart(split, name=name) for name, split in self.own_splits.items()]
        return named if self.kind == "hub" else named or [SourcePart()]

    def _parts_to_read(self) -> list[SourcePart]:
        """The parts of `dataset_split`, or all; of the Hub, the train split."""
        parts, wanted = self.parts(), self.dataset_split
        if self.kind == "hub":
            if wanted is not None:
                return parts
            wanted = "train"
        if wanted is None or not self.own_splits:
            return parts
        names = own_names(wanted, self.own_splits, self.reference)
        return [part for part in parts if (part.name or part.split) in names]

    def _read(self, parts: Iterable[SourcePart]) -> Iterator[tuple[SourcePart, str, Record]]:
        """Yield the records of some parts, each with its part and the name of its shard."""
        wanted = self._hash_split()
        for part in parts:
            for name, column, rows in self.rows(part):
                for place, row in rows:
                    try:
                        record = record_from_row(row, column, self._tell)
                    except UsageError as error:
                        raise UsageError(f"{name}: {place}: {error}") from None
                    if wanted is None or split_of(record["record_id"]) == wanted:
                        yield part, name, record

    def _tell(self, what: str) -> None:
        tell(f"note: {self.reference}: {what}")

    def _hash_split(self) -> str | None:
        """The split by hash that `dataset_split` names, for a source without splits of its own."""
        return None if self.dataset_split is None or self.kind == "hub" or self.own_splits else self.dataset_split

    def no_story(self) -> UsageError:
        """Return the error for a source without a story."""
        of_split = f" in its {self._hash_split()} split" if self._hash_split() else ""
        return UsageError(f"{self.reference} holds no story{of_split}; give a source with at least one")

    def rows(self, part: SourcePart) -> Iterator[tuple[str, str | None, Iterator[Row]]]:
        """Yield the shards of a part: name, column of the story, rows."""
        if part.path is not None:
            kind, inside = kind_of(part.path), set[Split]()
            for name, rows in file_shards(part.path, self.text_separator):
                if kind == "archive":
                    inside.update(*file_splits([name.removeprefix(f"{part.path}:")]))
                if len(inside) > 1:
                    named = " and ".join(sorted(inside))
                    raise UsageError(f"{part.path} has files named after {named}; unpack it and give the folder")
                if kind == "text":
                    yield name, None, self._told_if_one(rows)
                else:
                    yield name, self.text_column, rows
            return
        rows, first = self._rows_of(part), 1
        if part.rows is not None:
            rows, first = rows.select(part.rows), part.rows.start + 1
        name = self.reference if part.name is None else f"{self.reference}: {part.name}"
        yield name, self.text_column, numbered(self._guarded(rows), first)

    def _told_if_one(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Say once that a text without a separator is one story."""
        number = 0
        for row in rows:
            number += 1
            yield row
        if number == 1:
            self._tell(
                f"a text without {self.text_separator!r} is one story; to make each paragraph a story: "
                f"{by_paragraphs(Path(self.reference))}"
            )

    def _rows_of(self, part: SourcePart) -> Any:
        return self._loaded if part.name is None else self._loaded[part.name]

    def _guarded(self, rows: Iterable[Any]) -> Iterator[Any]:
        with reading_hub(self.reference) if self.kind == "hub" else reading(self.reference):
            yield from rows

    def fingerprint(self, with_revision: bool = True) -> str:
        """Return 16 digits of a hash of the content (for the Hub: name and revision) and of the options that matter."""
        digest = hashlib.sha256()
        options = (self.text_column, self.text_separator, self.dataset_config_name, self.dataset_split)
        digest.update(repr(options).encode())
        if self.validation_split_percentage is not None:
            digest.update(f"validation {self.validation_split_percentage:g}".encode())
        if self.kind == "hub":
            digest.update(self.reference.encode())
            digest.update((self.revision or "").encode() if with_revision else b"")
            return digest.hexdigest()[:16]
        if any(self._named_after):
            digest.update(repr(self._named_after).encode())
        for sha256 in self._file_sums:
            digest.update(sha256)
        return digest.hexdigest()[:16]

    @cached_property
    def _file_sums(self) -> list[bytes]:
        return file_hashes(self.shards or sorted(path for path in Path(self.reference).rglob("*") if path.is_file()))

    def file_names(self) -> list[str]:
        """Return 16 digits of the SHA-256 of each file, which identify it however it is read."""
        return [] if self.kind == "hub" else [sha256.hex()[:16] for sha256 in self._file_sums]

    def origin(self) -> dict[str, Any]:
        """Return the source's entry in the manifest of a corpus."""
        described: dict[str, Any] = {"reference": self.reference, "fingerprint": self.fingerprint()}
        if self.kind == "hub":
            described |= {"revision": self.revision, "read_as": self.fingerprint(with_revision=False)}
        for name in ("dataset_config_name", "dataset_split", "validation_split_percentage"):
            if (value := getattr(self, name)) is not None:
                described[name] = value
        if self.kind == "files":
            described["files"] = self.file_names()
        if self.has_own_splits() and (left_out := [name for name, split in self.own_splits.items() if split is None]):
            described["left_out"] = left_out
        return described


def open_source(reference: str, **options: Any) -> Source:
    """Find out what `reference` is; see `Source` for the options.

    Raises:
        UsageError: for a path that does not exist, an empty file, a folder without data, another file format, or a
            split that does not exist.
    """
    if not reference:
        raise UsageError("the name of the source is empty; give a file, a folder of shards or a Hub data set")
    if (percent := options.get("validation_split_percentage")) is not None:
        validation_from(percent)  # raises for a share that is not one
    if separator := options.get("text_separator"):
        # A shell gives '\n' as two characters; texts are read with line ends as newlines.
        options["text_separator"] = separator.replace(r"\n", "\n").replace(r"\r", "\r").replace("\r\n", "\n")
    path = Path(reference)
    if path.is_dir():
        source = _open_folder(path, options)
    elif path.is_file():
        kind_of(path)
        if path.stat().st_size == 0:
            raise UsageError(f"{reference} is empty; give a file with at least one story")
        source = Source(str(path), shards=(path,), **options)
    else:
        # A Hub name is `name` or `owner/name`; anything else was meant as a path, and so was a name in a local folder.
        if path.exists():
            raise UsageError(f"{reference} is neither a file nor a folder; write what it gives into a file")
        is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", reference) and suffix_of(path) not in formats_by_suffix()
        if not is_name or ("/" in reference and path.parent.is_dir()):
            raise UsageError(f"{reference} does not exist; give a file, a folder of shards or a Hub data set")
        source = Source(reference, kind="hub", **{"revision": hub_revision(reference), **options})
    if source.kind != "hub" and source.dataset_split is not None:
        if source.own_splits:
            own_names(source.dataset_split, source.own_splits, source.reference)
        elif source.dataset_split not in SPLITS:
            raise UsageError(f"--dataset_split {source.dataset_split}: {did_you_mean(source.dataset_split, SPLITS)}")
    return source


def _open_folder(path: Path, options: dict[str, Any]) -> Source:
    if config := options.get("dataset_config_name"):
        there = [file for file in sorted(path.iterdir()) if not NO_DATA.fullmatch(file.name)]
        found = [file for file in there if file.name == config]
        found = found or [file for file in there if file.name.startswith(f"{config}.")]
        if len(found) != 1:
            names = [file.name for file in found]
            parts = ", ".join(names or sorted(file.stem for file in there)) or "none"
            problem = "more than one such part" if names else "no such part"
            raise UsageError(f"--dataset_config_name {config}: {path} has {problem}; valid: {parts}")
        return open_source(str(found[0]), **{**options, "dataset_config_name": None})
    # `records` is a corpus of this project, whose manifest is JSON too.
    for saved in (path / "dataset_dict.json", path / "state.json", path / "records" / "dataset_dict.json"):
        if saved.exists():
            return Source(str(saved.parent), kind="saved", **options)
    if len(configs := _card_configs(path / "README.md")) > 1:
        raise UsageError(
            f"{path}: its README.md names several configurations; give the folder of one, or name one with lm-trials "
            f"train or evaluate --dataset_config_name: {', '.join(configs)}"
        )
    by_kind: dict[str, list[Path]] = {}
    left_out = []
    for name, file in sorted(_files_below(path), key=lambda named: natural_key(named[0])):
        kind = formats_by_suffix().get(suffix_of(file))
        if kind and file.is_file() and file.stat().st_size:
            by_kind.setdefault(kind, []).append(file)
        else:
            left_out.append(f"{name} (empty)" if kind and file.is_file() else name)
    if not by_kind:
        raise UsageError(
            f"{path} has no {', '.join(formats_by_suffix())} file and is not a saved data set"
            f"{f' (it has {left_out[0]})' if left_out else ''}; give another folder"
        )
    tell_left_out(path, left_out)
    if len(by_kind) > 1:
        examples = ", ".join(f"{kind}: {files[0].relative_to(path)}" for kind, files in by_kind.items())
        raise UsageError(f"{path} has files of several formats ({examples}); name one file, or a folder of one format")
    (shards,) = by_kind.values()
    return Source(str(path), shards=tuple(shards), **options)


def _card_configs(readme: Path) -> list[str]:
    """Return the configurations that the card of a data set from the Hub names."""
    lines = readme.read_text(encoding="utf-8", errors="replace").splitlines() if readme.is_file() else []
    head = itertools.takewhile(lambda line: line.rstrip() != "---", lines[1:] if lines[:1] == ["---"] else [])
    return sorted({line.split(":", 1)[1].strip() for line in head if re.match(r"\s*-?\s*config_name:", line)})


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what `datasets` looks at in a folder: relative names and paths of files, and links to folders.

    Hidden files and folders are left out; of a prepared data set or a tokenizer, only the name is yielded.
    """

    def stop(error: OSError) -> None:
        raise error

    with reading(str(folder)):
        for place, folders, files in os.walk(folder, onerror=stop):
            here = Path(place)
            if here != folder and not {"manifest.json", "tokenizer.json"}.isdisjoint(files):
                folders.clear()
                yield here.relative_to(folder).as_posix(), here
                continue
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
                if name not in FILES_TO_IGNORE and not NO_DATA.fullmatch(name):
                    yield (here / name).relative_to(folder).as_posix(), here / name
