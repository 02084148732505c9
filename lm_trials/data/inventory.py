"""The cache: what lies prepared in a data folder, and whether it still is what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
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
    """One prepared thing of a data folder.

    Attributes:
        name: its folder's.
        kind: `corpus`, `set` (of a protocol), `pairs`, or `damaged`, if its manifest cannot be read.
        stories: by split; of a set, those that its protocol keeps; of pairs, the rows.
        num_bytes: on disk, token stores included.
        content: hash of the stories of a corpus, or of the corpus that a set was made of.
        source: where a corpus came from; the corpus of a set.
        revision: of a Hub data set.
        stores: names of the folders that hold its tokens.
    """

    name: str
    kind: str
    stories: dict[str, int]
    num_bytes: int
    content: str
    source: str
    revision: str | None
    stores: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "stores": list(self.stores)}


def cached(data_cache_dir: Path) -> list[Cached]:
    """Return what is prepared in a data folder, by name; a folder that is not there holds nothing."""
    return [_described(folder) for folder in _prepared(data_cache_dir)]


def unfinished(data_cache_dir: Path) -> list[str]:
    """Return the names of the corpora whose reading was stopped and can go on."""
    folders = data_cache_dir.glob(".*.reading") if data_cache_dir.is_dir() else ()
    return sorted(folder.name.removeprefix(".").removesuffix(".reading") for folder in folders)


def _prepared(data_cache_dir: Path) -> list[Path]:
    if not data_cache_dir.is_dir():
        return []
    return sorted(
        folder for folder in data_cache_dir.iterdir() if not folder.name.startswith(".") and _is_prepared(folder)
    )


def _is_prepared(folder: Path) -> bool:
    """Whether a folder is a corpus or a set, whole or not."""
    return (folder / MANIFEST).is_file() or (folder / "records").is_dir()


def _described(folder: Path) -> Cached:
    stores = tuple(sorted(store.name for store in folder.glob("tokens-*") if store.is_dir()))
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        manifest = read_manifest(folder)
        if "protocol" in manifest:
            corpus = manifest["corpus"]
            counts = [read_manifest(folder / store, "documents")["documents"] for store in stores[:1]]
            kept = counts[0] if counts else {}
            return Cached(folder.name, "set", kept, num_bytes, corpus["content"], corpus["name"], None, stores)
        if is_pairs(folder):
            source = manifest.get("source") or {}
            place = str(source.get("reference", source.get("corpus", ""))) if isinstance(source, dict) else str(source)
            return Cached(folder.name, "pairs", manifest["rows"], num_bytes, manifest["content"], place, None, stores)
        origin = manifest["origin"]
        stories, content = manifest["stories"], manifest["content"]
        source, revision = str(origin.get("reference", "")), origin.get("revision")
        return Cached(folder.name, "corpus", stories, num_bytes, content, source, revision, stores)
    except (UsageError, KeyError, TypeError, AttributeError):
        return Cached(folder.name, "damaged", {}, num_bytes, "", "", None, stores)


def check_cached_names(names: Iterable[str], data_cache_dir: Path) -> list[Path]:
    """Return the folders of some prepared things, or of all for no names.

    Raises:
        UsageError: for a name that is none; if there is nothing at all.
    """
    there = {folder.name: folder for folder in _prepared(data_cache_dir)}
    if not there:
        raise UsageError(
            f"{data_cache_dir} holds nothing prepared; make something with cache_datasets.py --dataset_name NAME, or "
            "name the folder with --data_cache_dir"
        )
    for name in names:
        if name not in there:
            raise UsageError(f"{name} is not prepared in {data_cache_dir}; {did_you_mean(name, there)}")
    return [there[name] for name in dict.fromkeys(names)] or list(there.values())


def faults_of(folder: Path, watch: Callable[[Iterator[Any]], Iterable[Any]] = iter) -> Iterator[str]:
    """Yield one text for each thing about a corpus or set that is not as it was written; nothing for a whole one.

    Files are compared with the SHA-256 sums of the manifest, then the stories' names with its content and counts.  A
    corpus that was made before there were sums has its stories' names computed anew.

    Args:
        watch: wraps the batches of records with a progress bar.
    """
    try:
        manifest = read_manifest(folder)
        if is_pairs(folder):
            yield from _pairs_faults(folder, manifest)
            return
        faults = _set_faults(folder, manifest) if "protocol" in manifest else _corpus_faults(folder, manifest, watch)
        yield from faults
        for store in sorted(folder.glob("tokens-*")):
            yield from _store_faults(store)
    except UsageError as error:
        yield str(error)
    except (KeyError, TypeError, AttributeError) as error:
        yield f"{folder / MANIFEST} lacks what a manifest says ({error!r})"


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
            yield f"records/{split}: the story {changed} is not the one that it is named after"
            return
    found = tally.summary()
    for key in ("stories", "content"):
        if found[key] != manifest[key]:
            yield f"{MANIFEST} says {key} {manifest[key]}, and the records have {found[key]}"


def _pairs_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    faults = damaged(folder, manifest["files"])
    yield from faults
    if not faults:
        found = {split: len(rows) for split, rows in load_splits(folder / PAIRS).items()}
        if found != manifest["rows"]:
            yield f"{MANIFEST} says rows {manifest['rows']}, and there are {found}"


def _batches(folder: Path) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    for split, records in open_records(folder).items():
        for batch in records.select_columns(["record_id", "story"]).iter(VERIFY_BATCH):
            yield split, batch


def _set_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    name, content = manifest["corpus"]["name"], manifest["corpus"]["content"]
    corpus = folder.parent / name
    if not (corpus / MANIFEST).is_file():
        yield f"{name}, the corpus it was made of, is missing"
    elif (found := read_manifest(corpus, "content")["content"]) != content:
        yield f"{name}, the corpus it was made of, has content {found} now instead of {content}"


def _store_faults(store: Path) -> Iterator[str]:
    """Name what is wrong with a token store: its files where it has sums, else whether it opens, and its counts."""
    manifest = read_manifest(store, "documents")
    faults = damaged(store, manifest.get("files", {}))
    yield from (f"{store.name}/{fault}" for fault in faults)
    if not faults:
        found = {split: len(rows) for split, rows in load_splits(store).items()}
        if "protocol" not in manifest and found != manifest["documents"]:
            yield f"{store.name}: {MANIFEST} says documents {manifest['documents']}, and there are {found}"
