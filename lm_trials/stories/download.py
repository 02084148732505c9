"""Download and unpack the TinyStories archive: resumed, checked against its SHA-256, never outside its folder."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, progress
from lm_trials.files import finished_folder
from lm_trials.stories.shards import check_archive_end, first_line, natural_key

REPOSITORY = "roneneldan/TinyStories"
ARCHIVE = "TinyStories_all_data.tar.gz"
FOLDER = "TinyStories_all_data"
CHUNK = 1 << 20
# A server that says nothing for so long has gone; the client of huggingface_hub would wait for ever.
TIMEOUT = 30.0  # seconds


def download_archive(data_cache_dir: Path, endpoint: str | None = None) -> Path:
    """Fetch the archive of JSON shards (1.6 GB) from the Hub and return its file.

    An interrupted download goes on where it stopped; huggingface_hub 2.4 begins anew with each process.  The archive
    gets its name only when its SHA-256 is the one that the Hub states; a file that differs is removed.

    Raises:
        UsageError: without a network, with a full disk, or for a file that is not the one the Hub states.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    partial = None
    # The bases of HfHubHTTPError are the HTTP client's own error and OSError: a cut connection, a full disk.
    try:
        url = hf_hub_url(REPOSITORY, ARCHIVE, repo_type="dataset", endpoint=endpoint)
        stated = get_hf_file_metadata(url, token=False, timeout=TIMEOUT, endpoint=endpoint)
        sha256 = stated.etag or ""
        if len(sha256) != 64:
            raise UsageError(f"the server states no SHA-256 for {ARCHIVE} ({sha256!r}); fetch it from the Hub itself")
        # The name holds the checksum, so that the beginning of one version is never continued with another.
        partial = data_cache_dir / f".{ARCHIVE}.{sha256[:12]}.partial"
        data_cache_dir.mkdir(parents=True, exist_ok=True)
        _fetch(stated.location, partial, stated.size)
    except (OfflineModeIsEnabled, *HfHubHTTPError.__bases__) as error:
        there = f"; {partial.stat().st_size:,} bytes are here" if partial and partial.is_file() else ""
        raise UsageError(
            f"{ARCHIVE} cannot be fetched from {REPOSITORY} ({first_line(error)}){there}; run the same command again "
            "to go on where it stopped, or put the archive into the data folder yourself"
        ) from None
    check_sha256(partial, sha256)
    return partial.rename(data_cache_dir / ARCHIVE)


def _fetch(url: str, partial: Path, size: int | None) -> None:
    """Append what is missing to `partial`; a server that does not know byte ranges sends all of it again."""
    from huggingface_hub import get_session

    have = partial.stat().st_size if partial.exists() else 0
    if size is not None and have == size:
        return
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        with partial.open("ab") as file:
            file.truncate(have)
            for chunk in _watched(response.iter_raw(CHUNK), None if size is None else size - have):
                file.write(chunk)
    found = partial.stat().st_size
    if size is not None and found < size:
        raise ConnectionError(f"the connection ended after {found:,} of {size:,} bytes")


def _watched(chunks: Iterator[bytes], num_bytes: int | None) -> Iterator[Any]:
    return progress(chunks, f"fetching {ARCHIVE}", "B", num_bytes, size=len)


def check_sha256(file: Path, stated: str) -> None:
    """Compare a file with the SHA-256 that the Hub states for large files; remove one that differs.

    Raises:
        UsageError: if it differs.
    """
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != stated:
        file.unlink()
        raise UsageError(
            f"{file.name} has SHA-256 {found[:12]}..., the Hub states {stated[:12]}...; it is removed, fetch it again"
        )


def unpack_archive(archive: Path, folder: Path) -> list[Path]:
    """Unpack the shards into `folder` and return them; all of them or none.

    Raises:
        UsageError: for a broken archive, or one with a member that would be written outside the folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; remove it to unpack the archive there")
    with finished_folder(folder) as unfinished:
        try:
            with tarfile.open(archive) as tar:
                for member in progress(tar, f"unpacking {archive.name}", "files"):
                    # "data" refuses absolute paths, links and members outside, and drops special files' rights.
                    tar.extract(member, unfinished, filter="data")
                check_archive_end(tar, archive)
        except tarfile.FilterError as error:
            raise UsageError(
                f"{archive} is not safe to unpack ({first_line(error)}); remove it and fetch it from the Hub itself"
            ) from None
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UsageError(
                f"{archive} is cut off or broken ({first_line(error)}); remove it and fetch it again"
            ) from None
        if not unpacked_shards(unfinished):
            raise UsageError(f"{archive} holds no data*.json shard; remove it and fetch {ARCHIVE}")
    return unpacked_shards(folder)


def unpacked_shards(folder: Path) -> list[Path]:
    """Return the shards that an unpacked archive holds, in natural order; none where it is not unpacked."""
    return sorted(folder.rglob("data*.json"), key=lambda shard: natural_key(shard.name))


def local_archive(data_cache_dir: Path) -> Path | None:
    """Return an archive that already lies in the data folder."""
    archive = data_cache_dir / ARCHIVE
    return archive if archive.is_file() and os.path.getsize(archive) else None
