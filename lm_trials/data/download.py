"""Download and unpack the TinyStories archive: resumed, checked against its SHA-256, never outside its folder."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

from lm_trials.console import UsageError, progress
from lm_trials.data.corpora import finished_folder

REPOSITORY = "roneneldan/TinyStories"
ARCHIVE = "TinyStories_all_data.tar.gz"
FOLDER = "TinyStories_all_data"


def download_archive(data_cache_dir: Path, endpoint: str | None = None) -> Path:
    """Fetch the archive of JSON shards (1.6 GB) from the Hub and return its file.

    `huggingface_hub` goes on where an interrupted download stopped; the SHA-256 that the Hub states is then
    compared with the file's, and a file that differs is removed.

    Raises:
        UsageError: without a network, with a full disk, or for a file that is not the one the Hub states.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        url = hf_hub_url(REPOSITORY, ARCHIVE, repo_type="dataset", endpoint=endpoint)
        stated = get_hf_file_metadata(url).etag
        file = hf_hub_download(
            REPOSITORY, ARCHIVE, repo_type="dataset", local_dir=data_cache_dir, endpoint=endpoint, token=False
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{ARCHIVE} cannot be fetched from {REPOSITORY} ({first}); run the same command again to go on where it "
            "stopped, or put the archive into the data folder yourself"
        ) from None
    check_sha256(Path(file), stated)
    return Path(file)


def check_sha256(file: Path, stated: str | None) -> None:
    """Compare a file with the SHA-256 that the Hub states for large files; remove one that differs.

    Raises:
        UsageError: if it differs, or the Hub stated none.
    """
    if stated is None or len(stated) != 64:
        raise UsageError(f"the server states no SHA-256 for {file.name} ({stated!r}); fetch it from the Hub itself")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != stated:
        file.unlink()
        raise UsageError(f"{file.name} has SHA-256 {found[:12]}..., the Hub states {stated[:12]}...; fetch it again")


def unpack_archive(archive: Path, folder: Path) -> list[Path]:
    """Unpack the shards into `folder` and return them; all of them or none.

    Raises:
        UsageError: for a broken archive, or one with a member that would be written outside the folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; remove it to unpack again")
    with finished_folder(folder) as unfinished:
        try:
            with tarfile.open(archive) as tar:
                for member in progress(tar, f"unpacking {archive.name}", "files"):
                    # "data" refuses absolute paths, links and members outside, and drops special files' rights.
                    tar.extract(member, unfinished, filter="data")
        except tarfile.FilterError as error:
            raise UsageError(f"{archive} is not safe to unpack ({error}); fetch it from the Hub itself") from None
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UsageError(f"{archive} is cut off or broken ({error}); fetch it again") from None
        if not any(unfinished.rglob("data*.json")):
            raise UsageError(f"{archive} holds no data*.json shard; fetch {ARCHIVE}")
    return sorted(folder.rglob("data*.json"))


def local_archive(data_cache_dir: Path) -> Path | None:
    """Return an archive that already lies in the data folder."""
    archive = data_cache_dir / ARCHIVE
    return archive if archive.is_file() and os.path.getsize(archive) else None
