"""Protocol sets: the result of a protocol on a corpus.

Where the tokenizer allows it and the protocol changes only labels, a set stores only the changes (`composition`).  Its
tokens are joined when they are read, from the token store (stories), the instruction store (lines) and the ids of
labels and features: the same ids as those of the rendered text.  Other sets store the tokens of their texts
(`whole_sets`).  All sets of a call are made in one pass over the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, DatasetDict

from lm_trials.console import UsageError, progress
from lm_trials.files import MadeMeanwhileError, finished_folder, write_json
from lm_trials.protocols.columns import CodedLists, RecordColumns, check_values, filtered, transform_columns
from lm_trials.protocols.composition import ComposedTexts, Pieces
from lm_trials.protocols.instruction_stores import InstructionStore, composes, make_instructions
from lm_trials.protocols.protocols import Protocol
from lm_trials.protocols.whole_sets import WholeTexts
from lm_trials.stories.arrow_files import ArrowFile, load_splits, save_splits
from lm_trials.stories.corpora import MANIFEST, open_records, read_manifest
from lm_trials.stories.records import RECORD_SCHEMA, SPLITS
from lm_trials.tokens.stores import TokenStore, Watch, make_store
from lm_trials.tokens.tokenizers import tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# Records of a chunk: of arrays (some 50 bytes a story), and of texts, which take a few kB each.
CHUNK, TEXT_CHUNK = 50_000, 1000
Stores = tuple[TokenStore, InstructionStore]


def set_folder(name: str, data_cache_dir: Path, tokenizer: PreTrainedTokenizerBase, append_eos: bool) -> Path:
    """Return the folder of a set's tokens for this tokenizer."""
    return data_cache_dir / name / f"tokens-{tokenizer_hash(tokenizer)}{'-eos' if append_eos else ''}"


def is_set(folder: Path) -> bool:
    """Return whether `folder` is a protocol set."""
    return (folder / MANIFEST).is_file() and "protocol" in read_manifest(folder)


def set_progress(chunks: Iterable[Any], total: int, name: str) -> Iterator[Any]:
    """Show the progress of stores and sets; for `make_sets`."""
    return progress(chunks, name, "stories", total, size=len)


def make_sets(
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    protocols: Mapping[str, Protocol],
    data_cache_dir: Path,
    append_eos: bool = False,
    watch: Watch = lambda batches, total, name: batches,
) -> dict[str, dict[str, Any]]:
    """Make a set for each named protocol, all in one pass over the corpus; return their manifests by name.

    The protocols have one seed.  Existing sets of the same protocol and corpus stay as they are.

    Raises:
        UsageError: for a value that no record has, a protocol that leaves no training story, or a name that another
            protocol has taken.
    """
    (seed,) = {protocol.seed for protocol in protocols.values()}
    records, origin = _checked(corpus, protocols, data_cache_dir)
    folders = {name: set_folder(name, data_cache_dir, tokenizer, append_eos) for name in protocols}
    missing = {name: protocols[name] for name, folder in folders.items() if not (folder / MANIFEST).is_file()}
    composed = {name for name in missing if not missing[name].changes_story and composes(tokenizer)}
    stores: dict[str, Stores] = {}
    if composed:
        stories = load_splits(make_store(corpus, tokenizer, append_eos, watch))
        line_folder = make_instructions(corpus, tokenizer, seed, watch)
        # Opening each once instead of once per split makes a pure filter of 20,000 stories 0.13 s instead of 0.20 s.
        lines, described = load_splits(line_folder), read_manifest(line_folder)
        for split in SPLITS:
            stores[split] = TokenStore(stories[split], {}), InstructionStore(lines[split], described)
    with ExitStack() as stack:
        sets = []
        for name, protocol in sorted(missing.items()):  # in one order, so that two processes never wait for each other
            texts = (
                ComposedTexts(Pieces(tokenizer, protocol, append_eos))
                if name in composed
                else WholeTexts(tokenizer, protocol, append_eos)
            )
            with suppress(MadeMeanwhileError):
                sets.append(UnfinishedSet(name, protocol, stack.enter_context(finished_folder(folders[name])), texts))
        for split in SPLITS if sets else ():
            _write_split(split, records[split], stores.get(split, ()), sets, watch)
        for unfinished in sets:
            unfinished.finish(origin, tokenizer, append_eos)
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        if not (folder.parent / MANIFEST).is_file():
            described = {key: manifests[name][key] for key in ("protocol", "corpus", "counts")}
            write_json(folder.parent / MANIFEST, described)
    return manifests


def check_sets(corpus: Path, protocols: Mapping[str, Protocol], data_cache_dir: Path) -> None:
    """Check sets before anything is tokenized or written.

    Raises:
        UsageError: for a missing corpus, a name that is taken, a value that no record has, or a filter that leaves no
            training story.
    """
    records, _ = _checked(corpus, protocols, data_cache_dir)
    train = records["train"].select_columns(["record_id", "features", "words", "story"])
    left = dict.fromkeys(protocols, True)
    for batch in train.iter(CHUNK):
        columns = RecordColumns.of(batch)
        left = {name: empty and not filtered(columns, protocols[name].filtering).any() for name, empty in left.items()}
        if not any(left.values()):
            return
    for name in (name for name, empty in left.items() if empty):
        raise UsageError(_nothing_left(name, protocols[name], len(train)))


def _nothing_left(name: str, protocol: Protocol, total: int) -> str:
    conditions = _shown([str(condition) for condition in protocol.filtering])
    return f"--filtering {conditions} leaves none of {total:,} training stories for {name}; give other conditions"


def describe_origin(corpus: Path) -> dict[str, str]:
    """Return the name and content of a corpus for the manifest of a set."""
    return {"name": corpus.name, "content": read_manifest(corpus, "content")["content"]}


def check_free(folder: Path, protocol: Protocol, origin: dict[str, str]) -> None:
    """Raise a UsageError for a name that another set has, with the first difference."""
    if not folder.exists():
        return
    # A killed process may have left tokens whose set has no manifest yet; they have a manifest of their own.
    described = [read_manifest(place) for place in (folder, *sorted(folder.glob("tokens-*"))) if is_set(place)]
    if not described:
        if all(".unfinished-" in place.name for place in folder.iterdir()):
            return
        raise UsageError(f"{folder} exists and is not a protocol set; give another name, or remove it")
    found = described[0]["protocol"] | {"corpus": described[0]["corpus"]}
    wanted = protocol.as_dict() | {"corpus": origin}
    for key in dict.fromkeys([*wanted, *found]):  # only protocols with transforms have the key "transforms"
        there, here = found.get(key, []), wanted.get(key, [])
        if there != here:
            raise UsageError(
                f"{folder.name} was prepared with {key}={_shown(there)}, not {_shown(here)}; give another "
                f"name, or remove {folder}"
            )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _checked(
    corpus: Path, protocols: Mapping[str, Protocol], data_cache_dir: Path
) -> tuple[DatasetDict, dict[str, str]]:
    """Return a corpus's records and origin, after checks of the sets' names and the values that protocols look for."""
    records, origin = open_records(corpus), describe_origin(corpus)

    def values(key: str) -> set[str]:
        lists = (pa.compute.list_flatten(split.data.column(key)) for split in records.values())
        return {value for flat in lists for value in pa.compute.unique(flat).to_pylist()}

    features = values("features")
    words = values("words") if any(protocol.uses("words") for protocol in protocols.values()) else set()
    for name, protocol in protocols.items():
        check_free(data_cache_dir / name, protocol, origin)
        check_values(protocol, words, features)
    return records, origin


@dataclass
class UnfinishedSet:
    """A set that is being written, with its counts by split."""

    name: str
    protocol: Protocol
    folder: Path
    texts: ComposedTexts | WholeTexts
    counts: dict[str, Any] = field(default_factory=dict)

    def finish(self, origin: dict[str, str], tokenizer: PreTrainedTokenizerBase, append_eos: bool) -> None:
        """Save the splits and write the manifest; no training story is a UsageError."""
        if not self.counts["train"]["documents"]:
            raise UsageError(_nothing_left(self.name, self.protocol, self.counts["train"]["records"]))
        save_splits(self.folder, self.folder)
        manifest = {
            "protocol": self.protocol.as_dict(),
            "corpus": origin,
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "append_eos": append_eos,
            **self.texts.described,
            "counts": self.counts,
            "documents": {split: count["documents"] for split, count in self.counts.items()},
            "tokens": {split: count["tokens"] for split, count in self.counts.items()},
        }
        write_json(self.folder / MANIFEST, manifest)


def _write_split(
    split: str, records: Dataset, stores: Stores | tuple[()], sets: list[UnfinishedSet], watch: Watch
) -> None:
    if stores and len(stores[0]) != len(stores[1]):  # one was made before the corpus changed
        raise UsageError(
            f"--corpus: the token store has {len(stores[0]):,} stories and the instruction store {len(stores[1]):,}; "
            "remove the corpus's tokens-* and instructions-* folders and make the set again"
        )
    with ExitStack() as stack:
        files = [stack.enter_context(ArrowFile(each.folder / f"{split}.arrow", each.texts.schema)) for each in sets]
        for each in sets:
            each.counts[split] = {"documents": 0, "tokens": 0}
        chunks = _chunks(records, stores[1] if stores else None, sets)
        for columns in watch(chunks, len(records), f"{len(sets)} sets, {split}"):
            for each, file in zip(sets, files, strict=True):
                transformed = transform_columns(columns, each.protocol)
                rows, without_sentence = each.texts.rows(columns, transformed, *stores)
                file.write_batch(rows)
                counts = transformed.counts | {"without_sentence": without_sentence, "documents": rows.num_rows}
                counts["tokens"] = int(rows.column("length").to_numpy().sum(dtype=np.int64))
                _add_counts(each.counts[split], counts)


def _chunks(records: Dataset, lines: InstructionStore | None, sets: list[UnfinishedSet]) -> Iterator[RecordColumns]:
    """Yield the records of a split, with the fields that the sets need."""
    whole = any(each.protocol.transforms or isinstance(each.texts, WholeTexts) for each in sets)
    names = list(RECORD_SCHEMA) if whole else ["words"] if any(each.protocol.uses("words") for each in sets) else []
    size, read = TEXT_CHUNK if whole else CHUNK, records.select_columns(names)
    for start in range(0, len(records), size):
        part = slice(start, min(start + size, len(records)))
        batch = read[part] if names else {}
        if lines is None:
            yield RecordColumns.of(batch, start)
            continue
        features = CodedLists(lines.features_N[part], lines.feature_lists)
        words = CodedLists.of(batch.get("words", [()] * (part.stop - start)))
        yield RecordColumns(lines.keys_N[part], features, words, lines.story_chars_N[part], batch, start)


def _add_counts(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add counts to counts, nested ones too.

    >>> counts = {"kept": 1}
    >>> _add_counts(counts, {"kept": 2, "refused": {"Twist": 3}})
    >>> counts
    {'kept': 3, 'refused': {'Twist': 3}}
    """
    for key, value in more.items():
        if isinstance(value, Mapping):
            _add_counts(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
