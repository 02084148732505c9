"""Sources: where stories come from, each read as a stream of records, never a whole corpus in memory.

A source is a file, a folder of shards, the TinyStories archive, a data set saved with `save_to_disk`, or a data set
on the Hub.  What it is follows from its name and first bytes; what it holds is checked record by record, and an
error names the file and the record.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lm_trials.console import UsageError
from lm_trials.data.records import Record, make_record, record_from_row

CHUNK = 1 << 20
# No record of a published shard is longer than some thousand characters; a "record" that has not ended after this
# many is broken JSON, and reading on to the end of the shard would take quadratic time.
LONGEST_RECORD = 64 << 20
SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".csv": "csv",
    ".parquet": "parquet",
    ".tar": "archive",
}
INSTRUCT_FIELDS = ("Features:", "Words:", "Summary:", "Random sentence:", "Story:")


@dataclass(frozen=True)
class Source:
    """A corpus as it lies on disk or on the Hub.

    Attributes:
        reference: the path or Hub name as the user gave it.
        shards: the files, in order; empty for a saved data set or the Hub.
        kind: `files`, `saved` or `hub`.
        text_column: the column that holds the story; None means `story`, else `text`.
        text_separator: what stands between two stories of a text file.
        dataset_config_name, dataset_split: as in `datasets.load_dataset`; no split means the whole source.
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
        """Yield every record, in the order of the source."""
        return (record for _, record in self.records_by_shard())

    def records_by_shard(self) -> Iterator[tuple[int, Record]]:
        """Yield every record with the index of its shard, which the seeds' shard split goes by.

        Raises:
            UsageError: for a broken file or record (named), or a source without any story.
        """
        shards = enumerate(self.shards) if self.shards else [(0, None)]
        found = 0
        for index, shard in shards:
            place = str(shard or self.reference)
            with _named_errors(place):
                for number, record in enumerate(self._records_of(shard)):
                    if isinstance(record, UsageError):
                        raise UsageError(f"{place}: record {number}: {record}")
                    if record["story"]:
                        found += 1
                        yield index, record
        if not found:
            raise UsageError(f"{self.reference} holds no story; give a file with at least one")

    def _records_of(self, shard: Path | None) -> Iterator[Record | UsageError]:
        if shard is not None and _kind_of(shard) == "text":
            return text_records(shard, self.text_separator)
        rows = saved_rows(self) if self.kind == "saved" else hub_rows(self) if shard is None else file_rows(shard)
        return (_checked(row, self.text_column) for row in rows)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with the content of the source."""
        if self.kind == "hub":
            name = f"{self.reference}:{self.dataset_config_name}:{self.dataset_split}"
            return hashlib.sha256(name.encode()).hexdigest()[:16]
        folder = Path(self.reference)
        files = self.shards or sorted(path for path in folder.rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]


def open_source(reference: str, **options: Any) -> Source:
    """Find out what `reference` is; see `Source` for the options.

    Raises:
        UsageError: for a path that does not exist, an empty file, a folder without data, a file of another kind.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return _open_folder(path, reference, options)
    if path.is_file():
        _kind_of(path)
        if path.stat().st_size == 0:
            raise UsageError(f"{reference} is empty; give a file with at least one story")
        return Source(reference, shards=(path,), **options)
    # A Hub name is `name` or `owner/name`; anything else was meant as a path.
    looks_like_path = reference.startswith((".", "/", "~")) or reference.count("/") > 1 or path.suffix in SUFFIXES
    if looks_like_path:
        raise UsageError(f"{reference} does not exist; give a file, a folder of shards or a Hub data set")
    return Source(reference, kind="hub", **options)


def _open_folder(path: Path, reference: str, options: dict[str, Any]) -> Source:
    if config := options.get("dataset_config_name"):
        inner = next((p for p in (path / config, *sorted(path.glob(f"{config}.*"))) if p.exists()), None)
        if inner is None:
            parts = ", ".join(sorted(p.stem for p in path.iterdir() if not p.name.startswith("."))) or "none"
            raise UsageError(f"{reference} has no part {config!r}; --dataset_config_name can be: {parts}")
        return open_source(str(inner), **{**options, "dataset_config_name": None})
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Source(reference, kind="saved", **options)
    by_kind: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and (kind := SUFFIXES.get(_suffix(file))):
            by_kind.setdefault(kind, []).append(file)
    if not by_kind:
        raise UsageError(
            f"{reference} holds no {', '.join(SUFFIXES)} file and no saved data set; give a folder that does"
        )
    if len(by_kind) > 1:
        raise UsageError(
            f"{reference} holds files of several kinds ({', '.join(by_kind)}); name one file or one kind's folder"
        )
    (shards,) = by_kind.values()
    return Source(reference, shards=tuple(shards), **options)


def _suffix(path: Path) -> str:
    """Return the suffix that tells the kind: `a.jsonl.gz` is JSON lines, `a.tar.gz` an archive."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return ".tar" if path.suffix == ".tgz" else suffixes[-1] if suffixes else ""


def _kind_of(path: Path) -> str:
    kind = SUFFIXES.get(_suffix(path))
    if kind is None:
        raise UsageError(f"{path} has the suffix {path.suffix!r}; valid: {', '.join(SUFFIXES)}, also with .gz")
    return kind


def file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file; JSON, JSON lines, CSV, Parquet, or a tar archive of JSON shards."""
    kind = _kind_of(path)
    if kind == "parquet":
        return _parquet_rows(path)
    if kind == "archive":
        return _archive_rows(path)
    if kind == "csv":
        return _csv_rows(path)
    with _open_binary(path) as stream:
        first = stream.read(CHUNK).lstrip()[:1]
    return _json_list(path) if kind == "json" and first == b"[" else _json_lines(path)


def _json_list(path: Path) -> Iterator[Any]:
    with _open_text(path) as stream:
        yield from json_items(stream, str(path))


def json_items(stream: IO[str], name: str) -> Iterator[Any]:
    """Yield the items of one JSON list as they are read; a shard of TinyStories holds 100,000.

    Raises:
        UsageError: for a list that ends in the middle of an item.
    """
    decoder = json.JSONDecoder()
    buffer, at, number = stream.read(CHUNK).lstrip().removeprefix("["), 0, 0
    while True:
        while at < len(buffer) and (buffer[at].isspace() or buffer[at] == ","):
            at += 1
        if buffer.startswith("]", at):
            return
        try:
            item, at = decoder.raw_decode(buffer, at)
        except json.JSONDecodeError as error:
            more = stream.read(CHUNK) if len(buffer) - at < LONGEST_RECORD else ""
            if not more:
                raise UsageError(
                    f"{name}: record {number} is cut off or broken ({error.msg}); fetch or write the file again"
                ) from None
            buffer, at = buffer[at:] + more, 0
            continue
        yield item
        number += 1


def _json_lines(path: Path) -> Iterator[Any]:
    with _open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UsageError(f"{path}: line {number} is no JSON ({error.msg}); mend or remove it") from None


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with _open_text(path) as stream:
        yield from csv.DictReader(stream)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _archive_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of each JSON shard inside a tar archive, without unpacking it."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".json"):
                stream = archive.extractfile(member)
                yield from json_items(_decoded(stream), f"{path}:{member.name}")


def _decoded(stream: IO[bytes]) -> IO[str]:
    import io

    return io.TextIOWrapper(stream, encoding="utf-8")


def text_records(path: Path, separator: str) -> Iterator[Record | UsageError]:
    """Yield the stories of a text file, in plain or in TinyStories-Instruct form (told by its first story)."""
    with _open_text(path) as stream:
        stories = _separated(stream, separator)
        first = next(stories, "")
        record = instruct_record if _is_instruct(first) else make_record
        for story in itertools.chain([first], stories):
            try:
                yield record(story)
            except UsageError as error:
                yield error


def _separated(stream: IO[str], separator: str) -> Iterator[str]:
    buffer = ""
    while chunk := stream.read(CHUNK):
        *whole, buffer = (buffer + chunk).split(separator)
        yield from whole
    yield buffer


def _is_instruct(text: str) -> bool:
    lines = text.strip().splitlines()
    return bool(lines) and lines[0].startswith(INSTRUCT_FIELDS) and any(line.startswith("Story:") for line in lines)


def instruct_record(text: str) -> Record:
    """Read one story of TinyStories-Instruct: fields in any order, the story last.

    >>> record = instruct_record("Features: Dialogue\\nWords: quit, oak\\nStory: \\n\\nOne day.")
    >>> record["words"], record["features"], record["story"]
    (['quit', 'oak'], ['Dialogue'], 'One day.')
    """
    head, _, story = ("\n" + text.strip()).partition("\nStory:")
    fields: dict[str, str] = {}
    name = ""
    for line in head.splitlines():
        if field := next((field for field in INSTRUCT_FIELDS if line.startswith(field)), None):
            name, line = field, line[len(field) :]
        fields[name] = f"{fields[name]}\n{line}" if name in fields else line.strip()
    return make_record(
        story,
        words=[word.strip() for word in fields.get("Words:", "").split(",") if word.strip()],
        features=[part.strip() for part in fields.get("Features:", "").split(",") if part.strip()],
        summary=fields.get("Summary:", "").strip(),
    )


def saved_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set saved with `save_to_disk`, of one split or of all."""
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(source.reference)
    if isinstance(loaded, Dataset):
        yield from loaded
        return
    split = source.dataset_split
    if split is not None and split not in loaded:
        raise UsageError(f"{source.reference} has no split {split!r}; --dataset_split can be: {', '.join(loaded)}")
    for name in [split] if split else list(loaded):
        yield from loaded[name]


def hub_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hub data set; one line says so where it cannot be had."""
    from datasets import load_dataset

    try:
        yield from load_dataset(
            source.reference,
            source.dataset_config_name,
            split=source.dataset_split or "train",
            streaming=source.streaming,
        )
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        raise UsageError(
            f"{source.reference} is no path here and cannot be had from the Hub ({str(error).splitlines()[0]}); "
            "check the name, the split and the network, or give a path"
        ) from None


def _checked(row: Any, text_column: str | None) -> Record | UsageError:
    if not isinstance(row, dict):
        return UsageError(f"{row!r:.60} is no object with a story; give records as objects")
    try:
        return record_from_row(row, text_column)
    except UsageError as error:
        return error


def _open_binary(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")  # type: ignore[return-value]
    return path.open(encoding="utf-8", newline="")


@contextmanager
def _named_errors(place: str) -> Iterator[None]:
    """Turn what a broken file raises into one line that names it."""
    import pyarrow

    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{place} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it, for example with iconv"
        ) from None
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, pyarrow.ArrowInvalid, csv.Error) as error:
        raise UsageError(
            f"{place} is cut off or broken ({str(error).splitlines()[0]}); fetch or write it again"
        ) from None
