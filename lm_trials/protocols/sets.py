"""Sets: what a protocol makes of a corpus, stored as what it changed.

A set holds, for each record that the filter kept, the record's row, the code of its features as the arm says them,
and which refusal stands for its story.  Tokens are put together when they are read, from the token store (stories),
the instruction store (lines) and some dozens of ids of labels and features: the same ids, one for one, as rendering
the text and tokenising it.  All sets of a corpus are made in one pass over arrays.

Shape suffixes: N = records of a chunk, M = those of them that were kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from lm_trials.console import UsageError, did_you_mean, progress
from lm_trials.files import finished_folder
from lm_trials.protocols.composition import Line, Pieces
from lm_trials.protocols.instruction_stores import (
    BODIES,
    FeatureTable,
    InstructionStore,
    check_matches,
    composes,
    make_instructions,
)
from lm_trials.protocols.protocols import Protocol
from lm_trials.protocols.transforms import CodedLists, RecordColumns, Treatment, check_values, filtered, treat
from lm_trials.protocols.whole_sets import write_whole_split
from lm_trials.stories.corpora import MANIFEST, load_splits, open_records, read_manifest, save_splits
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.stores import TokenStore, make_store, store_schema
from lm_trials.tokens.tokenizers import tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

CHUNK = 50_000
SENTENCE = BODIES.index("Sentence")
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


def set_schema(vocab_size: int) -> Features:
    """Return the columns of a set: rows into the corpus's stores, and what the protocol changed of each."""
    return Features(
        {
            "row": Value("int64"),
            "features": Value("int32"),
            "refused": Value("int16"),
            "length": Value("int32"),
            "num_bytes": Value("int32"),
            # The ids of the Words line where the protocol changed it, else none.
            "words": store_schema(vocab_size)["input_ids"],
        }
    )


def set_folder(name: str, data_cache_dir: Path, tokenizer: PreTrainedTokenizerBase, append_eos: bool) -> Path:
    """Return where the tokens of a set lie for this tokenizer."""
    return data_cache_dir / name / f"tokens-{tokenizer_hash(tokenizer)}{'-eos' if append_eos else ''}"


def is_set(folder: Path) -> bool:
    """Say whether `folder` holds a set that a protocol made."""
    return (folder / MANIFEST).is_file() and "protocol" in read_manifest(folder)


def prepared_set(name: str, data_cache_dir: Path) -> Path:
    """Return the folder of a prepared set.

    Raises:
        UsageError: for a name that is none; the message names the nearest and all there are.
    """
    folder = data_cache_dir / name
    if not is_set(folder):
        known = [path.name for path in data_cache_dir.iterdir() if is_set(path)] if data_cache_dir.is_dir() else []
        near = did_you_mean(name, known) if known else f"{data_cache_dir} has none; prepare_tinystories.py makes them"
        raise UsageError(f"{name} is no prepared set; {near}")
    return folder


def set_progress(chunks: Iterable[Any], total: int, name: str) -> Iterator[Any]:
    """Show how far the stores and sets are; for `make_sets`."""

    def counted(item: Any) -> int:
        return len(item[1]) if isinstance(item, tuple) else getattr(item, "num_rows", 1)

    return progress(chunks, name, "stories" if total > len(SPLITS) else "splits", total, size=counted)


def make_sets(
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    protocols: Mapping[str, Protocol],
    data_cache_dir: Path,
    append_eos: bool = False,
    watch: Watch = lambda batches, total, name: batches,
) -> dict[str, dict[str, Any]]:
    """Make a set for each named protocol, all in one pass over the corpus; return their manifests by name.

    Sets that are there already, made by the same protocol from the same corpus, stay as they are.

    Raises:
        UsageError: for a value that no record has, a protocol that leaves no training story, protocols of different
            seeds, or a name that another protocol has taken.
    """
    (seed,) = {protocol.seed for protocol in protocols.values()}
    origin = describe_origin(corpus)
    for name, protocol in protocols.items():
        check_free(data_cache_dir / name, protocol, origin)
    folders = {name: set_folder(name, data_cache_dir, tokenizer, append_eos) for name in protocols}
    missing = {name: protocols[name] for name, folder in folders.items() if not (folder / MANIFEST).is_file()}
    if missing and not composes(tokenizer):
        _make_whole_sets(missing, folders, corpus, tokenizer, origin, append_eos, watch)
    elif missing:
        story_folder = make_store(corpus, tokenizer, append_eos, watch)
        line_folder = make_instructions(corpus, tokenizer, seed, watch)
        check_protocols(missing.values(), corpus, read_manifest(line_folder)["features"])
        with ExitStack() as stack:
            writers = []
            for name, protocol in missing.items():
                unfinished = stack.enter_context(finished_folder(folders[name]))
                writers.append(SetWriter(name, protocol, unfinished, Pieces(tokenizer, protocol, append_eos)))
            stories, lines, described = load_splits(story_folder), load_splits(line_folder), read_manifest(line_folder)
            for split in SPLITS:
                stores = TokenStore(stories[split], {}), InstructionStore(lines[split], described)
                _write_split(split, corpus, *stores, writers, watch)
            for w in writers:
                lists = {"features": [list(labels) for labels in w.table.lists]}
                finish_set(w.name, w.protocol, w.folder, w.counts, lists, origin, tokenizer, append_eos)
    manifests = {}
    for name, folder in folders.items():
        manifests[name] = read_manifest(folder)
        described = {key: manifests[name][key] for key in ("protocol", "corpus", "counts")}
        if not (folder.parent / MANIFEST).is_file():
            unfinished = folder.parent / f".{MANIFEST}.unfinished"
            unfinished.write_text(json.dumps(described, indent=2) + "\n")
            unfinished.replace(folder.parent / MANIFEST)
    return manifests


def _make_whole_sets(
    protocols: Mapping[str, Protocol],
    folders: Mapping[str, Path],
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    origin: dict[str, str],
    append_eos: bool,
    watch: Watch,
) -> None:
    """Make sets text by text, for a tokenizer whose tokens cannot be put together from parts."""
    features = {label for split in open_records(corpus).values() for labels in split["features"] for label in labels}
    check_protocols(protocols.values(), corpus, [sorted(features)])
    for name, protocol in protocols.items():
        with finished_folder(folders[name]) as unfinished:
            counts: dict[str, Any] = {}
            for split in watch(SPLITS, len(SPLITS), name):
                counts[split] = {"documents": 0, "tokens": 0}
                path = unfinished / f"{split}.arrow"
                for more in write_whole_split(path, corpus, split, tokenizer, protocol, append_eos):
                    _add_counts(counts[split], more)
            finish_set(name, protocol, unfinished, counts, {"whole": True}, origin, tokenizer, append_eos)


def check_sets(corpus: Path, protocols: Mapping[str, Protocol], data_cache_dir: Path) -> None:
    """Check all that can be known of sets before anything is tokenised or written.

    Raises:
        UsageError: for a corpus that is not there, a name that something else has, a value that no record has, or a
            filter that leaves no training story.
    """
    records = open_records(corpus)
    origin = describe_origin(corpus)
    for name, protocol in protocols.items():
        check_free(data_cache_dir / name, protocol, origin)
    lists = CodedLists.of(label for split in records.values() for label in split["features"])
    check_protocols(protocols.values(), corpus, [list(labels) for labels in lists.table])
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
    return (
        f"{name}: --filtering {conditions} leaves none of {total:,} training stories; give conditions that some story "
        "meets"
    )


def describe_origin(corpus: Path) -> dict[str, str]:
    """Return what a set's manifest holds of its corpus; two that are equal hold the same records."""
    return {"name": corpus.name, "content": read_manifest(corpus, "content")["content"]}


def check_free(folder: Path, protocol: Protocol, origin: dict[str, str]) -> None:
    """Check that a set's name is not taken by something else.

    Raises:
        UsageError: naming the first difference.
    """
    if not folder.exists():
        return
    # A process that was killed may have left tokens whose set has no manifest yet; they say themselves what they are.
    places = [folder, *(place for place in sorted(folder.glob("tokens-*")))]
    described = [read_manifest(place) for place in places if is_set(place)]
    if not described:
        if all(".unfinished-" in place.name for place in folder.iterdir()):
            return
        raise UsageError(f"{folder} holds something else than a set; give another --dataset_name")
    found, wanted = described[0], protocol.as_dict()
    differences = {key: (found["protocol"].get(key), value) for key, value in wanted.items()}
    differences["corpus"] = (found["corpus"], origin)
    for key, (there, here) in differences.items():
        if there != here:
            raise UsageError(
                f"{folder.name} was prepared with {key}={_shown(there)}, not {_shown(here)}; give another "
                f"--dataset_name, or remove {folder}"
            )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def check_protocols(protocols: Iterable[Protocol], corpus: Path, feature_lists: list[list[str]]) -> None:
    """Check that the values that protocols look for are in the corpus; `treatments.check_values` says it."""
    features = {label for labels in feature_lists for label in labels}
    for protocol in protocols:
        words: set[str] = set()
        if protocol.uses("words"):
            for split in open_records(corpus).values():
                words.update(pa.compute.unique(pa.compute.list_flatten(split.data.column("words"))).to_pylist())
        check_values(protocol, words, features)


def _write_split(
    split: str,
    corpus: Path,
    stories: TokenStore,
    instructions: InstructionStore,
    writers: list[SetWriter],
    watch: Watch,
) -> None:
    check_matches(stories, instructions)
    records = open_records(corpus, split) if any(writer.protocol.uses("words") for writer in writers) else None
    for writer in writers:
        writer.start(split)
    chunks = _chunks(instructions, records)
    for start, columns in watch(chunks, len(instructions), f"{len(writers)} sets, {split}"):
        for writer in writers:
            writer.write(start, columns, stories, instructions)
    for writer in writers:
        writer.close()


def _chunks(instructions: InstructionStore, records: Dataset | None) -> Iterator[tuple[int, RecordColumns]]:
    for start in range(0, len(instructions), CHUNK):
        part = slice(start, min(start + CHUNK, len(instructions)))
        count = part.stop - part.start
        words = CodedLists(np.zeros(count, dtype=np.int32), [()])
        if records is not None:
            words = CodedLists.of(records.data.column("words").slice(start, count).to_pylist())
        yield (
            start,
            RecordColumns(
                instructions.keys_N[part],
                CodedLists(instructions.features_N[part], instructions.feature_lists),
                words,
                instructions.story_chars_N[part],
            ),
        )


@dataclass
class SetWriter:
    """Writes one set, split by split, chunk by chunk."""

    name: str
    protocol: Protocol
    folder: Path
    pieces: Pieces

    def __post_init__(self) -> None:
        self.table = FeatureTable()
        self.schema = set_schema(self.pieces.vocab_size)
        self.counts: dict[str, Any] = {}

    def start(self, split: str) -> None:
        """Open the file of a split."""
        self.split = split
        self.counts[split] = {"documents": 0, "tokens": 0}
        self.file = pa.OSFile(str(self.folder / f"{split}.arrow"), "wb")
        self.stream = pa.ipc.new_stream(self.file, self.schema.arrow_schema)

    def write(self, start: int, columns: RecordColumns, stories: TokenStore, instructions: InstructionStore) -> None:
        """Treat a chunk of records that begins at row `start`, and write what became of it."""
        treated = treat(columns, self.protocol)
        rows_M = treated.kept_M + start
        codes = np.array([self.table.code(labels) for labels in treated.features.table], dtype=np.int32)
        features_M = codes[treated.features.codes_N]
        words = self._changed_words(columns, treated)
        lengths_M, bytes_M = self.pieces.measure(
            rows_M, stories, instructions, features_M, self.table.lists, treated.refused_M, words
        )
        rows = [line.ids if line else [] for line in words]
        offsets = np.cumsum([0, *map(len, rows)]) if rows else np.zeros(len(rows_M) + 1)
        flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=self.schema["words"].feature.dtype)
        ids = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(flat))
        arrays = [rows_M, features_M, treated.refused_M, lengths_M, bytes_M, ids]
        arrow = self.schema.arrow_schema
        batch = [pa.array(values).cast(field.type) for values, field in zip(arrays, arrow, strict=True)]
        self.stream.write_batch(pa.RecordBatch.from_arrays(batch, schema=arrow))
        counts = self.counts[self.split]
        _add_counts(counts, treated.counts)
        shown = "Sentence" in self.protocol.instruction_subset
        without = int((instructions.tokens_NL[rows_M, SENTENCE] == 0).sum()) if shown else 0
        _add_counts(counts, {"without_sentence": without})
        counts["documents"] += len(rows_M)
        counts["tokens"] += int(lengths_M.sum())

    def _changed_words(self, columns: RecordColumns, treated: Treatment) -> list[Line | None]:
        """Return each kept record's Words line where the protocol changed its words, else None; [] if it cannot."""
        if not self.protocol.changes("words"):
            return []
        before, after = columns.words.take(treated.kept_M), treated.words
        lines: list[Line | None] = [None] * len(after)
        changed = [row for row in range(len(after)) if after[row] != before[row]]
        for row, line in zip(changed, self.pieces.encode_words([after[row] for row in changed]), strict=True):
            lines[row] = line
        return lines

    def close(self) -> None:
        """Close the file of a split."""
        self.stream.close()
        self.file.close()


def finish_set(
    name: str,
    protocol: Protocol,
    folder: Path,
    counts: dict[str, Any],
    more: dict[str, Any],
    origin: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    append_eos: bool,
) -> None:
    """Save a set's splits and write its manifest, after the check that something is left to train on.

    Raises:
        UsageError: if the protocol leaves no training story.
    """
    if not counts["train"]["documents"]:
        raise UsageError(_nothing_left(name, protocol, counts["train"]["records"]))
    save_splits(folder, folder)
    manifest = {
        "protocol": protocol.as_dict(),
        "corpus": origin,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "append_eos": append_eos,
        **more,
        "counts": counts,
        "documents": {split: count["documents"] for split, count in counts.items()},
        "tokens": {split: count["tokens"] for split, count in counts.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _add_counts(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add counts to counts, also those one level down.

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
