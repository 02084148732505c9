"""Checksums of a folder: what its files were when it was written, and which of them are no longer so."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


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
