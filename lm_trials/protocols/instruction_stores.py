"""Instruction stores: the tokens of every record's instruction lines, made once and shared by all protocols.

A protocol's set needs the same few lines of the same records again and again, in an order that is drawn per record
and the same in every protocol.  They are tokenised here once; beside them stands what else protocols ask of a
record, as numbers: its key, its feature list's code, the length of its story.  A set is then arithmetic on arrays.

Lines may be joined as tokens because no token crosses a newline, or the space after a label: `splits_cleanly`.

Shape suffixes: N = records.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, Value

from lm_trials.console import UsageError
from lm_trials.files import finished_folder
from lm_trials.protocols.instructions import chosen_sentence, line_bodies, line_orders, sentence_draws
from lm_trials.protocols.protocols import VERSION
from lm_trials.stories.corpora import MANIFEST, load_splits, open_records, read_manifest, save_splits
from lm_trials.stories.draws import record_keys
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.stores import RowViews, TokenStore, store_schema
from lm_trials.tokens.tokenizers import continuation, splits_cleanly, tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# The lines whose text belongs to the record; the features' line is the protocol's.
BODIES = ("Words", "Summary", "Sentence")
BATCH = 1000
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


def composes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether texts of instructions and stories can be put together from the tokens of their parts.

    True for SentencePiece's kind and for tokenizers of `train_vocab`; False for GPT-2's, which has other ids for a
    story's first word at the start of a text.
    """
    clean = splits_cleanly(tokenizer)
    if not (clean.after_newline and clean.before_space and clean.space_starts):
        return False
    return len(continuation(tokenizer)(["\n"])[0]) == 1  # lines are found again by their newline


def instruction_schema(vocab_size: int) -> Features:
    """Return the columns: numbers of a record, and the ids of its Words, Summary and Sentence lines, one after another.

    A body is what follows a label: a space, the text, a newline.  A line that the record does not have has 0 tokens.
    """
    numbers = {
        "key": Value("uint64"),
        "order": Value("int8"),
        "features": Value("int32"),
        "story_chars": Value("int32"),
    }
    for line in BODIES:
        numbers |= {f"{line}_tokens": Value("int32"), f"{line}_bytes": Value("int32")}
    return Features({**numbers, "input_ids": store_schema(vocab_size)["input_ids"]})


def instruction_folder(corpus: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Path:
    """Return where the instruction store of a corpus lies for this tokenizer and the protocols' seed."""
    return corpus / f"instructions-{tokenizer_hash(tokenizer)}-s{seed}-v{VERSION}"


def make_instructions(
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    watch: Watch = lambda batches, total, name: batches,
) -> Path:
    """Tokenise the instruction lines of a corpus and return the store's folder; one that is there is returned as it is.

    Raises:
        UsageError: for a corpus without records.
    """
    folder = instruction_folder(corpus, tokenizer, seed)
    if (folder / MANIFEST).is_file():
        return folder
    records = open_records(corpus)
    schema = instruction_schema(max(tokenizer.get_vocab().values()) + 1)
    encode, table = continuation(tokenizer), FeatureTable()
    (newline,) = encode(["\n"])[0]
    without_sentence: dict[str, int] = {}
    with finished_folder(folder) as unfinished:
        for split in SPLITS:
            without_sentence[split] = 0
            path = str(unfinished / f"{split}.arrow")
            with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema.arrow_schema) as stream:
                columns = _encoded(records[split], seed, encode, newline, table, schema)
                for batch in watch(columns, len(records[split]), split):
                    without_sentence[split] += int(
                        pa.compute.sum(pa.compute.equal(batch["Sentence_tokens"], 0)).as_py()
                    )
                    stream.write_batch(batch)
        save_splits(unfinished, unfinished)
        manifest = {
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "seed": seed,
            "version": VERSION,
            "features": [list(labels) for labels in table.lists],
            "without_sentence": without_sentence,
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


class FeatureTable:
    """Gives each distinct list of features a code, over all batches and splits."""

    def __init__(self) -> None:
        self.lists: list[tuple[str, ...]] = []
        self._codes: dict[tuple[str, ...], int] = {}

    def code(self, labels: Sequence[str]) -> int:
        """Return the code of a list, a new one for a new list.

        >>> table = FeatureTable()
        >>> [table.code(labels) for labels in (["Twist"], [], ["Twist"])]
        [0, 1, 0]
        """
        key = tuple(labels)
        if key not in self._codes:
            self._codes[key] = len(self.lists)
            self.lists.append(key)
        return self._codes[key]


def record_lines(batch: dict[str, list[Any]], keys_N: np.ndarray, seed: int) -> Iterator[dict[str, str]]:
    """Yield what stands after the labels of each record's lines, the features' left empty."""
    rows = zip(batch["words"], batch["summary"], batch["story"], sentence_draws(keys_N, seed).tolist(), strict=True)
    for words, summary, story, draw in rows:
        yield line_bodies(words, "", summary, chosen_sentence(story, draw))


def _encoded(
    records: Dataset,
    seed: int,
    encode: Callable[[list[str]], list[list[int]]],
    newline: int,
    table: FeatureTable,
    schema: Features,
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a split; one is encoded in a thread while the lines of the next are put together."""
    columns = ["record_id", "words", "features", "summary", "story"]
    before: tuple[pa.Table, dict[str, list[Any]], list[list[str]], Future[list[list[int]]]] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        for batch in records.with_format("arrow").select_columns(columns).iter(BATCH):
            rows = batch.to_pydict()
            lines = record_lines(rows, record_keys(rows["record_id"]), seed)
            bodies = [[f" {found[line]}\n" if line in found else "" for line in BODIES] for found in lines]
            ids = thread.submit(encode, ["".join(found) for found in bodies])
            if before:
                yield _columns(*before, seed, newline, table, schema)
            before = batch, rows, bodies, ids
        if before:
            yield _columns(*before, seed, newline, table, schema)


def _columns(
    batch: pa.Table,
    rows: dict[str, list[Any]],
    bodies: list[list[str]],
    ids: Future[list[list[int]]],
    seed: int,
    newline: int,
    table: FeatureTable,
    schema: Features,
) -> pa.RecordBatch:
    keys_N = record_keys(rows["record_id"])
    count = len(keys_N)
    num_bytes = np.array([[len(body.encode()) for body in found] for found in bodies], dtype=np.int32)
    present = num_bytes > 0
    flat = np.fromiter(itertools.chain.from_iterable(ids.result()), dtype=schema["input_ids"].feature.dtype)
    # A body ends with the only newline in it, so the newlines cut the stream of all bodies.
    ends = np.flatnonzero(flat == newline) + 1
    num_tokens = np.zeros((count, len(BODIES)), dtype=np.int32)
    num_tokens[present] = np.diff(ends, prepend=0)
    offsets = np.concatenate([[0], np.cumsum(num_tokens.sum(axis=1))]).astype(np.int32)
    columns: dict[str, Any] = {
        "key": keys_N,
        "order": line_orders(keys_N, seed),
        "features": np.array([table.code(labels) for labels in rows["features"]], dtype=np.int32),
        "story_chars": pa.compute.utf8_length(batch["story"]).combine_chunks(),
    }
    for place, line in enumerate(BODIES):
        columns |= {f"{line}_tokens": num_tokens[:, place], f"{line}_bytes": num_bytes[:, place]}
    columns["input_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
    arrow = schema.arrow_schema
    return pa.RecordBatch.from_arrays([pa.array(columns[f.name]).cast(f.type) for f in arrow], schema=arrow)


class InstructionStore:
    """The instruction lines of one split, memory-mapped.

    Attributes:
        keys_N, orders_N, features_N, story_chars_N: numbers of each record.
        tokens_NL, bytes_NL: tokens and UTF-8 bytes of each body, L = Words, Summary, Sentence.
        feature_lists: what the codes of `features_N` mean.
    """

    def __init__(self, lines: Dataset, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        table = lines.data.table
        self.keys_N = table.column("key").to_numpy()
        self.orders_N = table.column("order").to_numpy()
        self.features_N = table.column("features").to_numpy()
        self.story_chars_N = table.column("story_chars").to_numpy()
        self.tokens_NL = np.stack([table.column(f"{line}_tokens").to_numpy() for line in BODIES], axis=1)
        self.bytes_NL = np.stack([table.column(f"{line}_bytes").to_numpy() for line in BODIES], axis=1)
        self.feature_lists = [tuple(labels) for labels in self.manifest["features"]]
        self._ids = RowViews(table.column("input_ids"))

    @classmethod
    def open(cls, folder: Path, split: str) -> InstructionStore:
        """Open one split of a store's folder."""
        return cls(load_splits(folder)[split], read_manifest(folder))

    def __len__(self) -> int:
        return len(self.keys_N)

    def bodies(self, record: int) -> dict[str, np.ndarray]:
        """Return the ids of each body that a record has."""
        parts = np.split(self._ids[record], np.cumsum(self.tokens_NL[record])[:-1])
        return {line: ids for line, ids in zip(BODIES, parts, strict=True) if len(ids)}


def check_matches(stories: TokenStore, instructions: InstructionStore) -> None:
    """Check that two stores hold the same records.

    Raises:
        UsageError: if they do not; one was made before the corpus changed.
    """
    if len(stories) != len(instructions):
        raise UsageError(
            f"the token store has {len(stories):,} stories and the instruction store {len(instructions):,}; remove the "
            "corpus's tokens-* and instructions-* folders and make the set again"
        )
