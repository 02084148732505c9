"""Download and unpack the TinyStories archive: resumed, checked against its SHA-256, never outside its folder."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path

from lm_trials.console import UsageError, progress
from lm_trials.files import MadeMeanwhileError, finished_folder
from lm_trials.hub_errors import network_errors
from lm_trials.stories.hub import TIMEOUT
from lm_trials.stories.shards import CHUNK, check_archive_end, first_line, natural_key

REPOSITORY = "roneneldan/TinyStories"
ARCHIVE = "TinyStories_all_data.tar.gz"
FOLDER = "TinyStories_all_data"


def download_archive(data_cache_dir: Path, endpoint: str | None = None) -> Path:
    """Fetch the archive of JSON shards (1.6 GB) from the Hub and return its file.

    An interrupted download is resumed, also by another process, which huggingface_hub 2.4 does not do.  The archive
    gets its name only when its SHA-256 is the one that the Hub states; a file that differs is removed.

    Raises:
        UsageError: without a network, with a full disk, or for a file that is not the one the Hub states.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    partial = None
    try:
        url = hf_hub_url(REPOSITORY, ARCHIVE, repo_type="dataset", endpoint=endpoint)
        stated = get_hf_file_metadata(url, token=False, timeout=TIMEOUT, endpoint=endpoint)
        sha256 = stated.etag or ""
        if len(sha256) != 64:
            raise UsageError(
                f"the server states no SHA-256 for {ARCHIVE} ({sha256!r}); download it from the Hub itself"
            )
        # The name contains the checksum, so that the beginning of one version is never continued with another.
        partial = data_cache_dir / f".{ARCHIVE}.{sha256[:12]}.partial"
        data_cache_dir.mkdir(parents=True, exist_ok=True)
        _fetch(stated.location, partial, stated.size)
    except network_errors() as error:  # of offline mode and a full disk too
        there = f"; {partial.stat().st_size:,} bytes are here" if partial and partial.is_file() else ""
        raise UsageError(
            f"{ARCHIVE} cannot be downloaded from {REPOSITORY} ({first_line(error)}){there}; run the same command "
            "again to resume, or copy the archive into the data folder yourself"
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
        # A server that ignores the range sends the whole file: appending it would be a corrupt archive that only the
        # checksum finds.
        if response.status_code != 206:
            have = 0
        with partial.open("ab") as file:
            file.truncate(have)
            missing = None if size is None else size - have
            for chunk in progress(response.iter_raw(CHUNK), f"downloading {ARCHIVE}", "B", missing, size=len):
                file.write(chunk)
    found = partial.stat().st_size
    if size is not None and found < size:
        raise ConnectionError(f"the connection ended after {found:,} of {size:,} bytes")


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
            f"{file.name} has SHA-256 {found[:12]}..., but the Hub states {stated[:12]}...; the file was removed, run "
            "the same command again"
        )


def unpack_archive(archive: Path, folder: Path) -> list[Path]:
    """Unpack the shards into `folder` and return them; all of them or none.

    Raises:
        UsageError: for a broken archive, or one with a member that would be written outside the folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; remove it to unpack the archive there")
    with suppress(MadeMeanwhileError), finished_folder(folder) as unfinished:
        try:
            with tarfile.open(archive) as tar:
                for member in progress(tar, f"unpacking {archive.name}", "files"):
                    # "data" refuses absolute paths, links and members outside, and drops special files' rights.
                    tar.extract(member, unfinished, filter="data")
                check_archive_end(tar, archive)
        except tarfile.FilterError as error:
            raise UsageError(
                f"{archive} is not safe to unpack ({first_line(error)}); remove it and download it from the Hub itself"
            ) from None
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UsageError(
                f"{archive} is truncated or broken ({first_line(error)}); remove it and run the same command again"
            ) from None
        if not unpacked_shards(unfinished):
            raise UsageError(f"{archive} has no data*.json shard; remove it and download {ARCHIVE}")
    return unpacked_shards(folder)


def unpacked_shards(folder: Path) -> list[Path]:
    """Return the shards of an unpacked archive, in natural order; none if it is not unpacked."""
    return sorted(folder.rglob("data*.json"), key=lambda shard: natural_key(shard.name))


def local_archive(data_cache_dir: Path) -> Path | None:
    """Return the archive in the data folder, if there is one."""
    archive = data_cache_dir / ARCHIVE
    return archive if archive.is_file() and archive.stat().st_size else None
