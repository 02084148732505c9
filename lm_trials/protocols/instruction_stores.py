"""Instruction stores: the tokens of every record's instruction lines, made once and shared by all protocols.

The sets of a corpus need the same lines of the same records, in an order that is drawn per record and the same in every
protocol.  They are tokenised here once, with what else protocols read of a record, as numbers: its key, the code of its
feature list, the length of its story.  A set is then arithmetic on arrays.

Lines may be joined as tokens because no token crosses a newline, or the space after a label: `splits_cleanly`.

Shape suffixes: N = records.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, Value

from lm_trials.console import UsageError
from lm_trials.files import finished_folder, write_json
from lm_trials.protocols.columns import LabelTable
from lm_trials.protocols.instructions import chosen_sentence, line_bodies, line_orders, sentence_draws
from lm_trials.protocols.protocols import VERSION
from lm_trials.stories.arrow_files import ArrowFile
from lm_trials.stories.corpora import MANIFEST, open_records, save_splits
from lm_trials.stories.draws import record_keys
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.stores import RowViews, TokenStore, store_schema
from lm_trials.tokens.tokenizers import Encoder, continuation, splits_cleanly, tokenizer_hash

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
    encode, table = continuation(tokenizer), LabelTable()
    with finished_folder(folder) as unfinished:
        for split in SPLITS:
            with ArrowFile(unfinished / f"{split}.arrow", schema) as file:
                batches = _encoded(records[split], seed, encode, table, schema)
                for batch in watch(batches, len(records[split]), split):
                    file.write_batch(batch)
        save_splits(unfinished, unfinished)
        manifest = {
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "seed": seed,
            "version": VERSION,
            "features": [list(labels) for labels in table],
        }
        write_json(unfinished / MANIFEST, manifest)
    return folder


def _encoded(
    records: Dataset, seed: int, encode: Encoder, table: LabelTable, schema: Features
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a split; one is encoded in a thread while the lines of the next are put together."""
    (newline,) = encode(["\n"])[0]
    columns = ["record_id", "words", "features", "summary", "story"]
    waiting: tuple[dict[str, Any], np.ndarray, Future[list[list[int]]]] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        for batch in records.with_format("arrow").select_columns(columns).iter(BATCH):
            rows = batch.to_pydict()
            keys_N = record_keys(rows["record_id"])
            numbers = {
                "key": keys_N,
                "order": line_orders(keys_N, seed),
                "features": np.array([table[tuple(labels)] for labels in rows["features"]], dtype=np.int32),
                "story_chars": pa.compute.utf8_length(batch["story"]).combine_chunks(),
            }
            bodies = list(_line_texts(rows, keys_N, seed))
            bytes_NL = np.array([[len(body.encode()) for body in found] for found in bodies], dtype=np.int32)
            ids = thread.submit(encode, ["".join(found) for found in bodies])
            if waiting:
                yield _columns(*waiting, newline, schema)
            waiting = numbers, bytes_NL, ids
        if waiting:
            yield _columns(*waiting, newline, schema)


def _line_texts(rows: dict[str, list[Any]], keys_N: np.ndarray, seed: int) -> Iterator[list[str]]:
    """Yield the text after the label of each of `BODIES`, with its newline; empty where a record has no such line."""
    draws = sentence_draws(keys_N, seed).tolist()
    for words, summary, story, draw in zip(rows["words"], rows["summary"], rows["story"], draws, strict=True):
        found = line_bodies(words, "", summary, chosen_sentence(story, draw))
        yield [f" {found[line]}\n" if line in found else "" for line in BODIES]


def _columns(
    numbers: dict[str, Any], bytes_NL: np.ndarray, ids: Future[list[list[int]]], newline: int, schema: Features
) -> pa.RecordBatch:
    flat = np.fromiter(itertools.chain.from_iterable(ids.result()), dtype=schema["input_ids"].feature.dtype)
    # A body ends with the only newline in it, so the newlines cut the stream of all bodies.
    tokens_NL = np.zeros_like(bytes_NL)
    tokens_NL[bytes_NL > 0] = np.diff(np.flatnonzero(flat == newline) + 1, prepend=0)
    columns = dict(numbers)
    for place, line in enumerate(BODIES):
        columns |= {f"{line}_tokens": tokens_NL[:, place], f"{line}_bytes": bytes_NL[:, place]}
    offsets = np.concatenate([[0], np.cumsum(tokens_NL.sum(axis=1))]).astype(np.int32)
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
        table = lines.data.table
        self.keys_N, self.orders_N, self.features_N, self.story_chars_N = (
            table.column(name).to_numpy() for name in ("key", "order", "features", "story_chars")
        )
        self.tokens_NL, self.bytes_NL = (
            np.stack([table.column(f"{line}_{unit}").to_numpy() for line in BODIES], axis=1)
            for unit in ("tokens", "bytes")
        )
        self.feature_lists = [tuple(labels) for labels in manifest["features"]]
        self._ids = RowViews(table.column("input_ids"))

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
