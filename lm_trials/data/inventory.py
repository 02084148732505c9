"""The inventory of a data folder: what is prepared there, and whether it is unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import damaged
from lm_trials.pairs.pairs import FOLDER as PAIRS
from lm_trials.pairs.pairs import is_pairs
from lm_trials.stories.arrow_files import load_splits
from lm_trials.stories.corpora import MANIFEST, Tally, open_records, read_manifest
from lm_trials.stories.records import record_id

VERIFY_BATCH = 1000


@dataclass(frozen=True)
class Cached:
    """A prepared corpus, protocol set or data set of pairs.

    Attributes:
        kind: `corpus`, `set`, `pairs`, or `damaged` if its manifest cannot be read.
        stories: by split; of a set, those that its protocol keeps; of pairs, the rows.
        num_bytes: on disk, including token stores.
        content: hash of a corpus's stories, or of the corpus of a set.
        source: of a corpus; of a set, its corpus.
        revision: of a Hub data set.
        stores: the folders of its tokens.
    """

    name: str
    kind: str
    stories: dict[str, int]
    num_bytes: int
    content: str
    source: str
    revision: str | None
    stores: list[str]


def cached(data_cache_dir: Path) -> list[Cached]:
    """Return what is prepared in a data folder, by name; [] for a folder that does not exist."""
    return [_described(folder) for folder in _prepared(data_cache_dir)]


def unfinished(data_cache_dir: Path) -> list[str]:
    """Return the names of the corpora whose reading was interrupted and can be resumed."""
    folders = data_cache_dir.glob(".*.reading") if data_cache_dir.is_dir() else ()
    return sorted(folder.name.removeprefix(".").removesuffix(".reading") for folder in folders)


def _prepared(data_cache_dir: Path) -> list[Path]:
    """Return the folders of corpora and sets, complete or not."""
    folders = data_cache_dir.iterdir() if data_cache_dir.is_dir() else ()
    return sorted(
        folder
        for folder in folders
        if not folder.name.startswith(".") and ((folder / MANIFEST).is_file() or (folder / "records").is_dir())
    )


def _described(folder: Path) -> Cached:
    stores = sorted(store.name for store in folder.glob("tokens-*") if store.is_dir())
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def found(kind: str, stories: dict[str, int], content: str, source: Any, revision: str | None = None) -> Cached:
        return Cached(folder.name, kind, stories, num_bytes, content, str(source), revision, stores)

    try:
        manifest = read_manifest(folder)
        if "protocol" in manifest:
            kept = read_manifest(folder / stores[0], "documents")["documents"] if stores else {}
            return found("set", kept, manifest["corpus"]["content"], manifest["corpus"]["name"])
        if is_pairs(folder):
            source = manifest.get("source") or {}
            place = source.get("reference", source.get("corpus", "")) if isinstance(source, dict) else source
            return found("pairs", manifest["rows"], manifest["content"], place)
        origin = manifest["origin"]
        reference, revision = origin.get("reference", ""), origin.get("revision")
        return found("corpus", manifest["stories"], manifest["content"], reference, revision)
    except (UsageError, KeyError, TypeError, AttributeError):
        return found("damaged", {}, "", "")


def check_cached_names(names: Iterable[str], data_cache_dir: Path) -> list[Path]:
    """Return the folders of the named corpora and sets, or of all without names.

    Raises:
        UsageError: for a name that is not prepared, or a folder where nothing is.
    """
    there = {folder.name: folder for folder in _prepared(data_cache_dir)}
    if not there:
        raise UsageError(
            f"--data_cache_dir {data_cache_dir}: nothing is prepared there; prepare a data set with lm-trials cache "
            "--dataset_name NAME, or give another folder"
        )
    for name in names:
        if name not in there:
            raise UsageError(f"{name} is not prepared in {data_cache_dir}; {did_you_mean(name, there)}")
    return [there[name] for name in dict.fromkeys(names)] or list(there.values())


def faults_of(folder: Path, watch: Callable[[Iterator[Any]], Iterable[Any]] = iter) -> Iterator[str]:
    """Yield one text for each fault of a corpus or set; nothing if it is as it was written.

    Files are compared with the checksums of the manifest, then the record ids with its content and counts.  A corpus
    without checksums, as made by early versions, has its record ids computed again.

    Args:
        watch: wraps the batches of records with a progress bar.
    """
    try:
        manifest = read_manifest(folder)
        for table in sorted(folder.glob("metrics-*")):
            yield from (f"{table.name}/{fault}" for fault in damaged(table, read_manifest(table, "files")["files"]))
        if is_pairs(folder):
            yield from _split_faults(folder, folder / PAIRS, manifest["files"], "rows", manifest["rows"])
            return
        faults = _set_faults(folder, manifest) if "protocol" in manifest else _corpus_faults(folder, manifest, watch)
        yield from faults
        for store in sorted(folder.glob("tokens-*")):
            about = read_manifest(store, "documents")
            counts = None if "protocol" in about else about["documents"]
            faults = _split_faults(store, store, about.get("files", {}), "documents", counts)
            yield from (f"{store.name}/{fault}" for fault in faults)
    except UsageError as error:
        yield str(error)
    except (KeyError, TypeError, AttributeError) as error:
        yield f"{folder / MANIFEST} is incomplete ({error!r})"


def _corpus_faults(
    folder: Path, manifest: dict[str, Any], watch: Callable[[Iterator[Any]], Iterable[Any]]
) -> Iterator[str]:
    sums = manifest.get("files")
    if sums is not None and (faults := damaged(folder, sums)):
        yield from faults
        return
    tally = Tally()
    for split, batch in watch(_batches(folder)):
        tally.add(split, batch["record_id"], ())
        if sums is not None:
            continue
        names = zip(batch["record_id"], batch["story"], strict=True)
        if changed := next((name for name, story in names if record_id(story) != name), None):
            yield f"records/{split}: the text of {changed} has another hash than its record id"
            return
    found = tally.summary()
    for key in ("stories", "content"):
        if found[key] != manifest[key]:
            yield f"{MANIFEST} has {key} {manifest[key]}, and the records have {found[key]}"


def _batches(folder: Path) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    for split, records in open_records(folder).items():
        for batch in records.select_columns(["record_id", "story"]).iter(VERIFY_BATCH):
            yield split, batch


def _set_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    name, content = manifest["corpus"]["name"], manifest["corpus"]["content"]
    corpus = folder.parent / name
    if not (corpus / MANIFEST).is_file():
        yield f"its corpus {name} is missing"
    elif (found := read_manifest(corpus, "content")["content"]) != content:
        yield f"its corpus {name} has content {found} instead of {content}"


def _split_faults(
    folder: Path, splits: Path, sums: Mapping[str, Any], key: str, counts: dict[str, int] | None
) -> Iterator[str]:
    """Yield the damaged files of a folder; without any, whether its splits open and have the manifest's counts."""
    faults = damaged(folder, sums)
    yield from faults
    if not faults:
        found = {split: len(rows) for split, rows in load_splits(splits).items()}
        if counts is not None and found != counts:
            yield f"{MANIFEST} has {key} {counts}, and there are {found}"
