"""Shards: one file of a source, or of an archive, read as a stream of rows, each with its place in the file.

No file is ever completely in memory, compressed or not.  Exceptions for a broken file become one line that names the
file and, where it is known, the line or record.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import itertools
import json
import lzma
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from lm_trials.console import UsageError, command_line, note

# 1 MiB, some hundred stories. Not tuned.
CHUNK = 1 << 20
# Records of the published shards have some thousand characters; one that has not ended after this many is broken or
# has another separator, and reading on would put the whole file into memory.
LONGEST_RECORD = 64 << 20
INSTRUCT_FIELDS = ("Features:", "Words:", "Summary:", "Random sentence:", "Story:")

# Files beside data of which nobody expects that they are read.
NO_DATA = re.compile(
    r"\..*|(readme|licen[cs]e|notice|citation|_success|(md5|sha\d+|check)sums?)(\.(md|txt|rst|cff))?|.*\.(md5|sha\d+)",
    re.IGNORECASE,
)

Row = tuple[str, Any]
"""The place of a row, such as `line 3` or `record 3` (from 1), and its content."""

tell = cache(note)  # once, though a source is opened and read several times


def tell_left_out(place: Path, names: Sequence[str]) -> None:
    """Name the files of a folder or an archive that are not read."""
    if names:
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        tell(f"note: {place}: not read: {', '.join(names[:5])}{more}")


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffixes: of file names, without that of a compression.
        read: yields the rows of a file, given its path and `--text_separator`; None for an archive of JSON files.
        streams: whether a compressed file can be read without unpacking it first.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, str], Iterator[Row]] | None
    streams: bool = True


def formats_by_suffix() -> dict[str, str]:
    """Return the name of the format of each suffix, also of formats that were added."""
    return {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}


def suffix_of(path: Path) -> str:
    """Return the suffix that determines the format, in lower case; that of a compression is ignored.

    >>> [suffix_of(Path(name)) for name in ("a.jsonl", "a.JSONL.gz", "v1.2/b.tgz", "c.zst", "d")]
    ['.jsonl', '.jsonl', '.tar', '', '']
    """
    suffixes = [suffix for suffix in map(str.lower, path.suffixes) if suffix not in OPENERS]
    return ".tar" if suffixes[-1:] == [".tgz"] else suffixes[-1] if suffixes else ""


def kind_of(path: Path) -> str:
    """Return the name of a file's format, a key of `FORMATS`; raise a UsageError for a suffix of no format."""
    known = formats_by_suffix()
    kind = known.get(suffix_of(path))
    if kind is None:
        raise UsageError(
            f"{path} has the suffix {path.suffix!r}; valid: {', '.join(known)}, also with {', '.join(OPENERS)}"
        )
    compression = path.suffix.lower()
    # tarfile itself decompresses archives.
    streams = FORMATS[kind].streams and not (kind == "archive" and compression in ARROW)
    if compression in OPENERS and not streams:
        raise UsageError(f"{path}: a {suffix_of(path)} file with {compression} cannot be streamed; decompress it first")
    return kind


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts data2 before data10.

    >>> sorted(["data10.json", "data2.json", "data.json"], key=natural_key)
    ['data2.json', 'data10.json', 'data.json']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def file_shards(path: Path, text_separator: str) -> Iterator[tuple[str, Iterator[Row]]]:
    """Yield each shard of a file with its name: the file itself, or every JSON file in an archive.

    Read each shard before asking for the next one.
    """
    read = FORMATS[kind_of(path)].read
    with reading(str(path)), path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UsageError(f"{path} is a pointer of Git LFS instead of the file; fetch it with git lfs pull")
    if read is None:
        yield from _archive_shards(path)
    else:
        yield str(path), _guarded(str(path), read(path, text_separator))


def shard_names(path: Path) -> list[str]:
    """Return the names of a file's shards in natural order, from the headers of an archive."""
    if FORMATS[kind_of(path)].read is not None:
        return [str(path)]
    with reading(str(path)):
        return sorted((name for name, _ in _archive_members(path)), key=natural_key)


def _guarded(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    place = ""
    with reading(name, lambda: place):
        for row in rows:
            place = row[0]
            yield row


@contextmanager
def reading(name: str, after: Callable[[], str] = str) -> Iterator[None]:
    """Turn exceptions for a broken file into one line that names the file and the last complete record.

    >>> with reading("stories.csv"):  # doctest: +ELLIPSIS
    ...     raise EOFError("Compressed file ended early")
    Traceback (most recent call last):
    lm_trials.console.UsageError: stories.csv is truncated or broken (Compressed file ended early); download or ...
    """
    import pyarrow

    broken = EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, csv.Error, pyarrow.ArrowException
    try:
        yield
    except UnicodeDecodeError as error:
        line = _undecodable_line(Path(name))
        raise UsageError(
            f"{name} is not UTF-8{f': line {line}' if line else ''} (byte 0x{error.object[error.start]:02x}); "
            "convert it, for example with iconv"
        ) from None
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{name} cannot be read ({error.strerror}); check the path and its permissions") from None
    except broken as error:
        place = f" after {after()}" if after() else ""
        problem = f"truncated or broken{place} ({first_line(error)})"
        raise UsageError(f"{name} is {problem}; download or write it again") from None
    except RecursionError:
        raise UsageError(f"{name} nests lists or objects too deeply for a file of records; correct it") from None


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, else its name.

    >>> first_line(OSError("no such host\\n(retried)")), first_line(EOFError())
    ('no such host', 'EOFError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _undecodable_line(path: Path) -> int | None:
    """Find the line of a file that is not UTF-8; decoding runs ahead of the records, so their place is too early."""
    if not path.is_file():
        return None
    with open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, decompressed by its suffix, one of `OPENERS`."""
    return OPENERS.get(path.suffix.lower(), open)(path, "rb")


def _open_arrow(path: Path, mode: str) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression=ARROW[path.suffix.lower()]))


ARROW = {".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
"""Compressions of which pyarrow has the decoder, and Python has none."""

OPENERS: dict[str, Callable[[Path, str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    **dict.fromkeys(ARROW, _open_arrow),
}
"""How a compressed file is opened, by its suffix; the compressions are those of `datasets`."""


def _decoded(stream: IO[bytes], newline: str | None = "\n") -> IO[str]:
    """Decode a stream, without the byte order mark that Windows writes before UTF-8."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _json_rows(path: Path, text_separator: str) -> Iterator[Row]:
    with open_binary(path) as stream:
        yield from json_rows(stream, str(path))


def json_rows(stream: IO[bytes], name: str) -> Iterator[Row]:
    """Yield the rows of a JSON file, one list (100,000 stories in a shard of the archive) or one object per line.

    Raises:
        UsageError: for a line or an item that is not valid JSON, or a list that does not end.
    """
    start = stream.peek(1024)  # type: ignore[attr-defined]  # files, gzip files and members of an archive have it
    is_list = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    with _decoded(stream) as text:
        yield from _json_list(text, name) if is_list else _json_lines(text, name)


def _json_list(stream: IO[str], name: str) -> Iterator[Row]:
    buffer, at, number = stream.read(CHUNK).lstrip().removeprefix("["), 0, 1
    while True:
        while at < len(buffer) and (buffer[at].isspace() or buffer[at] == ","):
            at += 1
        if buffer.startswith("]", at):
            rest = itertools.chain([buffer[at + 1 :]], iter(lambda: stream.read(CHUNK), ""))
            if any(chunk.strip() for chunk in rest):
                raise UsageError(f"{name}: text follows the list, after record {number - 1}; write one list")
            return
        try:
            item, at = DECODER.raw_decode(buffer, at)
        except json.JSONDecodeError as error:
            more = stream.read(CHUNK) if len(buffer) - at < LONGEST_RECORD else ""
            if not more:
                raise UsageError(
                    f"{name}: record {number} is truncated or broken ({error.msg}); download or write the file again"
                ) from None
            buffer, at = buffer[at:] + more, 0
            continue
        except UsageError as error:
            raise UsageError(f"{name}: record {number}: {error}") from None
        yield f"record {number}", item
        number += 1


def _json_lines(stream: IO[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield f"line {number}", DECODER.decode(line)
            except ValueError as error:
                raise UsageError(
                    f"{name}: line {number} is not valid JSON ({first_line(error)}); write one object per line, or "
                    "one list"
                ) from None


def _check_columns(names: Iterable[str], place: str = "") -> None:
    """Raise a UsageError for a column that is given twice, of which readers silently take the last."""
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UsageError(f"{place}column {twice[0]!r} is given twice; rename one of them")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        _check_columns(name for name, _ in pairs)
    return row


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _csv_rows(path: Path, text_separator: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default, 131,072 characters, is shorter than some texts
    with open_binary(path) as stream, _decoded(stream, newline="") as text:
        # Without `strict`, a quotation mark that is never closed puts the rest of the file into one field.
        reader = csv.DictReader(text, strict=True)
        columns = reader.fieldnames or ()
        _check_columns(columns, f"{path}: line 1: ")
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(
                    f"{path}: line {reader.line_num} has {'more' if None in row else 'fewer'} fields than the header's "
                    f"{len(columns)}; write the file again, with quotation marks doubled"
                )
            yield f"line {reader.line_num}", row


def _parquet_rows(path: Path, text_separator: str) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, f"{path}: ")
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
        yield from numbered(rows)


def file_hashes(files: Iterable[Path]) -> list[bytes]:
    """Return the SHA-256 of each file's bytes; raise a UsageError for one that cannot be read."""
    found = []
    for file in files:
        with reading(str(file)), file.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").digest())
    return found


def numbered(rows: Iterator[Any], first: int = 1) -> Iterator[Row]:
    """Give each row its place, `record N`, counted from `first`."""
    return ((f"record {number}", row) for number, row in enumerate(rows, start=first))


def _archive_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the JSON files of a tar archive in its order, without unpacking the archive."""
    left_out = []
    with tarfile.open(path) as archive:
        for member in archive:
            # macOS puts the hidden `._data00.json` beside data00.json
            if member.isdir() or NO_DATA.fullmatch(Path(member.name).name):
                continue
            if not member.isfile() or Path(member.name).suffix not in FORMATS["json"].suffixes:
                left_out.append(member.name)
                continue
            stream = archive.extractfile(member)
            assert stream is not None, "a regular file has content"
            yield f"{path}:{member.name}", stream
        check_archive_end(archive, path)
    tell_left_out(path, left_out)


def check_archive_end(archive: tarfile.TarFile, path: Path) -> None:
    """Check the end of an archive whose members are all read; raise EOFError or tarfile.ReadError if it is broken.

    `tarfile` takes an archive that is truncated between two members, or continues with other bytes, for complete.
    """
    stream = archive.fileobj
    assert stream is not None, "the archive is open"
    if path.suffix.lower() == ".tar":
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end mark is missing")
        return
    while stream.read(CHUNK):  # up to the checksum of gzip; seeking back would decompress from the beginning again
        pass


def _archive_shards(path: Path) -> Iterator[tuple[str, Iterator[Row]]]:
    with reading(str(path)):
        empty = True
        for name, stream in _archive_members(path):
            empty = False
            yield name, _guarded(name, json_rows(stream, name))
        if empty:
            raise UsageError(f"{path} has no .json shard; give the archive of JSON shards, or unpack it first")


def _text_rows(path: Path, separator: str) -> Iterator[Row]:
    """Yield the stories of a text file, in plain or in TinyStories-Instruct form, as its first story has it.

    Line ends become `\\n`, as in Python's text files, so that a story has one name on every system.
    """
    is_instruct = None
    with open_binary(path) as stream, _decoded(stream, newline=None) as text:
        for place, story in numbered(_separated(text, separator, path)):
            if is_instruct is None and story.strip():
                is_instruct = _is_instruct(story)
            yield place, instruct_row(story) if is_instruct else {"story": story}


def _separated(stream: IO[str], separator: str, path: Path) -> Iterator[str]:
    if not separator:
        raise UsageError(r"--text_separator '' separates nothing; use for example '<|endoftext|>' or '\n\n'")
    parts, unfinished = [""], 0
    while chunk := stream.read(CHUNK):
        # A separator may begin in the previous chunk, whose end is searched again.
        tail = parts[-1][1 - len(separator) :] if len(separator) > 1 else ""
        parts[-1] = parts[-1][: len(parts[-1]) - len(tail)]
        first, *others = (tail + chunk).split(separator)
        parts.append(first)
        unfinished += len(chunk)
        if others:
            yield "".join(parts)
            yield from others[:-1]
            parts, unfinished = [others[-1]], len(others[-1])
        if unfinished > LONGEST_RECORD:
            raise UsageError(
                f"{path} has no {separator!r} within {LONGEST_RECORD:,} characters; name the text between its stories, "
                f"for paragraphs: {by_paragraphs(path)}"
            )
    yield "".join(parts)


def by_paragraphs(path: Path) -> str:
    """Return the command that makes a corpus of a text's paragraphs."""
    return command_line("prepare ingest", source=path, corpus=f"{path.stem}-paragraphs", text_separator=r"\n\n")


def _is_instruct(text: str) -> bool:
    lines = text.strip().splitlines()
    return bool(lines) and lines[0].startswith(INSTRUCT_FIELDS) and any(line.startswith("Story:") for line in lines)


def instruct_row(text: str) -> dict[str, Any]:
    """Read one story of TinyStories-Instruct: fields in any order, the story last.

    `Random sentence:` repeats a sentence of the story; it ends the field before it and is left out.

    >>> row = instruct_row("Features: Dialogue\\nRandom sentence: Hi.\\nWords: quit, oak\\nStory: \\n\\nOne day.")
    >>> row["words"], row["features"], row["story"].strip()
    ('quit, oak', 'Dialogue', 'One day.')
    """
    head, _, story = ("\n" + text.strip()).partition("\nStory:")
    fields: dict[str, list[str]] = {}
    lines = fields.setdefault("", [])
    for line in head.split("\n"):
        if field := next((field for field in INSTRUCT_FIELDS if line.startswith(field)), None):
            lines = fields.setdefault(field, [])
            line = line.removeprefix(field)
        lines.append(line)
    value = {field: "\n".join(lines).strip() for field, lines in fields.items()}
    return {
        "story": story,
        "words": value.get("Words:", ""),
        "features": value.get("Features:", ""),
        "summary": value.get("Summary:", ""),
    }


FORMATS: dict[str, Format] = {
    "json": Format((".json", ".jsonl", ".ndjson"), _json_rows),
    "text": Format((".txt",), _text_rows),
    "csv": Format((".csv",), _csv_rows),
    "parquet": Format((".parquet",), _parquet_rows, streams=False),
    "archive": Format((".tar",), None),
}
"""The file formats; docs/extending.md shows how to add one."""
