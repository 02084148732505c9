"""Files: folders and tables written atomically, JSON and CSV, checksums of a folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from lm_trials.console import UsageError, note

SEALS = ("finished.json", "sums.json")  # of a run and of a checkpoint: their `files` are `file_sums`

ENTRY = {"sha256", "bytes"}  # of a file in them
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def write_file(path: Path, content: str | bytes | Callable[[Path], Any], synced: bool = False) -> Path:
    """Write a file atomically, its folder too where it is missing; returns its path.

    Args:
        content: a text (UTF-8, line ends as they are), bytes, or what writes to the path that it is given.
        synced: wait until the file is on the disk, so that it survives a machine that stops.

    Raises:
        OSError: where it cannot be written; a file that was there before stays as it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "tables" / "words.txt"
    >>> write_file(path, "one day").read_bytes(), write_file(path, lambda place: place.write_text("a cat")).read_text()
    (b'one day', 'a cat')
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{os.getpid()}.unfinished"  # another process may write the same file
    try:
        with naming(path):
            if callable(content):
                content(unfinished)
            else:
                unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
            if synced:
                to_disk(unfinished)
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if synced:
        to_disk(path.parent)
    return path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name `path`: not a temporary file, nor none, as for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = str(path)
        raise


def check_writable(flag: str, place: str | Path) -> None:
    """Refuse a folder that cannot be made or written to, before hours are spent on its content; nothing stays there.

    Args:
        flag: how the message names the place, for example `--output_dir`.

    Raises:
        UsageError: for a file in the way, a name that is too long, a folder without permission, a read-only disk.

    >>> import tempfile
    >>> check_writable("--output_dir", Path(tempfile.mkdtemp()) / "runs" / "new")
    """
    there = Path(place)
    try:
        there = next(parent for parent in (there, *there.absolute().parents) if parent.exists() or parent.is_symlink())
        Path(tempfile.mkdtemp(dir=there)).rmdir()
    except OSError as error:
        where = "" if there == Path(place) else f"{there}: "
        raise UsageError(
            f"{flag} {place} cannot be written to ({where}{error.strerror}); give another folder"
        ) from None


def name_fault(name: str) -> str | None:
    """Return why a name cannot be that of a folder or file inside another; None if it can.

    >>> name_fault("stories 2"), name_fault("../x"), name_fault("-x")
    (None, "contains '/'", "starts with '-'")
    """
    wrong = next((letter for letter in name if letter in "/\\+" or not letter.isprintable()), None)
    if not name.strip():
        return "is empty"
    if wrong:
        return f"contains {wrong!r}" + (", which joins data sets" if wrong == "+" else "")
    if name[0] in ".- " or name[-1] in ". ":
        return f"starts with {name[0]!r}" if name[0] in ".- " else f"ends with {name[-1]!r}"
    if len(name.encode()) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    return "is a device's name on Windows" if DEVICE.fullmatch(name) else None


def plain_name(text: str, most: int = 100) -> str:
    """Return a text as part of a folder's name, of at most `most` bytes; a name that is plain already stays as it is.

    >>> plain_name("a+b"), plain_name("../configs/small"), plain_name("...")
    ('a+b', 'configs-small', 'unnamed')
    """
    letters = ("-" if letter in "/\\" or not letter.isprintable() else letter for letter in text)
    return "".join(letters).lstrip(".- ").encode()[:most].decode(errors="ignore").rstrip(". ") or "unnamed"


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Mapping[str, Any], synced: bool = False) -> None:
    """Write values as JSON, atomically; what is not finite (an interval that does not exist) is null."""
    write_file(path, json.dumps(finite(values), indent=2, allow_nan=False) + "\n", synced)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV file, atomically; what a row lacks, or what is not finite, is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(finite(row) for row in rows)
    write_file(path, text.getvalue())


def finite(value: Any) -> Any:
    """Return a value of JSON with None for what is not finite, at any depth.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def readable(named: str, advice: str) -> Iterator[None]:
    """Turn what is raised for a file that is not there, or is no UTF-8, JSON or CSV, into one line.

    Args:
        named: the flag and the file.

    >>> with readable("--query words.txt", "give a file"):
    ...     raise FileNotFoundError(2, "No such file or directory")
    Traceback (most recent call last):
    lm_trials.console.UsageError: --query words.txt cannot be read (No such file or directory); give a file
    """
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{named} cannot be read ({reason}); {advice}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: for a file that is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}); restore it") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}, not an object; restore it")
    return content


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted names.

    >>> flat({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def locked(path: Path, doing: str = "") -> IO[str]:
    """Lock a file, which is made where it is missing, and write this process and host into it; `unlock` removes it.

    A lock ends with its process, however that ends: a file that a killed process left behind locks nothing.

    Args:
        doing: what the other process does, for a line that is shown while this one waits for it.

    Raises:
        BlockingIOError: with the other process and its host, where another has the lock and `doing` is empty.
        OSError: where the file cannot be written.
    """
    import fcntl

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            if not doing:
                file.close()
                raise BlockingIOError(owner) from None
            note(f"waiting for {owner}, which {doing} ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):  # the process that had the lock has removed the file
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        file.close()


def unlock(file: IO[str]) -> None:
    """Remove a file that is locked by this process, and unlock it."""
    Path(file.name).unlink(missing_ok=True)
    file.close()


class MadeMeanwhileError(UsageError):
    """A folder that another process has made."""


@contextmanager
def finished_folder(folder: Path, advice: str = "name another folder") -> Iterator[Path]:
    """Give a folder to fill that becomes `folder` only when all went well; nothing half-written stays.

    One process at a time fills it; others wait, and those that need its content use it:
    `with suppress(MadeMeanwhileError), finished_folder(folder) as unfinished:`.  What a killed process of this machine
    left behind is removed; parents made for a folder that came to nothing too.  `advice` is for a place that cannot be
    written to.

    Raises:
        MadeMeanwhileError: where the folder has content.
        UsageError: where the place cannot be written to.
    """
    mark = f".{folder.name}.unfinished-{socket.gethostname()}-"
    unfinished = folder.with_name(f"{mark}{os.getpid()}")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        lock = locked(folder.with_name(f".{folder.name}.unfinished-lock"), f"makes {folder}")
    except OSError as error:
        raise UsageError(f"{folder.parent} cannot be written to ({error.strerror}); {advice}") from None
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise MadeMeanwhileError(f"{folder} appeared meanwhile; run the same command again")
        for left in folder.parent.glob(f"{mark}*"):
            if left == unfinished or not _is_running(left.name.removeprefix(mark)):
                shutil.rmtree(left)
        unfinished.mkdir()
        yield unfinished
        try:
            unfinished.rename(folder)  # over an empty folder, too
        except OSError:
            raise MadeMeanwhileError(f"{folder} appeared meanwhile; run the same command again") from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        unlock(lock)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    unlock(lock)


def _is_running(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it runs, for somebody else
        return True
    return True


def file_sums(folder: Path, skip: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the SHA-256 and the size in bytes of each file under `folder`, by its relative path, sorted.

    Args:
        skip: relative paths, with `/` whatever the system, that are left out: of files, or of folders with all in them.

    Raises:
        OSError: for a file that cannot be read.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> written = [(folder / name).write_bytes(b"one day") for name in ("b.txt", "a.txt")]
    >>> {name: entry["bytes"] for name, entry in file_sums(folder, skip=["b.txt"]).items()}
    {'a.txt': 7}
    """
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(place.as_posix() in skip for place in (name, *name.parents)):
            found[name.as_posix()] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    return dict(sorted(found.items()))


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 over those of a model's weight files, by which a run knows what it started from."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(bytes.fromhex(_sha256(file)))
    return digest.hexdigest()


def damaged(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one text for each file that is missing, too short or too long, or changed since `file_sums`; [] is whole.

    Files that were not there then say nothing about those that were, and are not looked at.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> written = [(folder / name).write_bytes(b"one day") for name in ("a.txt", "b.txt", "c.txt", "d.txt")]
    >>> sums = file_sums(folder)
    >>> (folder / "a.txt").unlink()
    >>> written = (folder / "b.txt").write_bytes(b"one"), (folder / "c.txt").write_bytes(b"two day")
    >>> print("\\n".join(damaged(folder, sums)))
    a.txt is missing
    b.txt has 3 bytes instead of the 7 that were written
    c.txt has other content than when it was written (sha256)
    """
    faults = (_fault(folder / name, name, entry) for name, entry in sorted(expected.items()))
    return [fault for fault in faults if fault]


def check_sums(folder: Path, pattern: str) -> None:
    """Compare the matching files of a run or checkpoint with the sums that were written with them, if there are any.

    Raises:
        UsageError: for a file that is missing or changed.
    """
    for seal in (folder / name for name in SEALS if (folder / name).is_file()):
        sums = sealed_sums(seal)
        if found := damaged(folder, {name: sums[name] for name in sums if fnmatch(name, pattern)}):
            raise UsageError(
                f"{folder} is damaged: {found[0]}; restore the file, or remove {seal.name} if you changed it on purpose"
            )


def sealed_sums(seal: Path) -> dict[str, dict[str, Any]]:
    """Return the `file_sums` of a `finished.json` or `sums.json`; a UsageError where they cannot be read."""
    sums = read_object(seal).get("files", {})
    if not (isinstance(sums, dict) and all(isinstance(entry, dict) and {*entry} == ENTRY for entry in sums.values())):
        raise UsageError(f"{seal} is damaged: its checksums cannot be read; restore the file, or remove it")
    return sums


def _fault(path: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    try:
        num_bytes = path.stat().st_size
        if num_bytes != entry["bytes"]:
            return f"{name} has {num_bytes:,} bytes instead of the {entry['bytes']:,} that were written"
        changed = _sha256(path) != entry["sha256"]
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return f"{name} has other content than when it was written (sha256)" if changed else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
