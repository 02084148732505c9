"""Instruction stores: the tokens of every record's instruction lines, made once and shared by all protocols.

The store also has what else protocols read of a record, as numbers: its key, the code of its feature list, the length
of its story.  A set is then arithmetic on arrays.  Lines may be joined as tokens because no token crosses a newline or
the space after a label: `splits_cleanly`.

Shape suffixes: N = records, L = the lines of `BODIES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, Value

from lm_trials.files import MadeMeanwhileError, finished_folder, write_json
from lm_trials.protocols.columns import LabelTable
from lm_trials.protocols.instructions import chosen_sentence, line_bodies, line_orders, sentence_draws
from lm_trials.protocols.protocols import VERSION
from lm_trials.stories.arrow_files import ArrowFile, save_splits
from lm_trials.stories.corpora import MANIFEST, open_records
from lm_trials.stories.draws import record_keys
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.stores import ENCODE_BATCH, RowViews, Watch, encoded_ahead, num_ids_of, store_schema
from lm_trials.tokens.tokenizers import Encoder, continuation, splits_cleanly, tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# The lines whose text depends on the record alone; protocols change the features line.
BODIES = ("Words", "Summary", "Sentence")


def composes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens of texts are those of their lines and stories, joined.

    True for SentencePiece and tokenizers of `train_vocab`; False for GPT-2's, which has other ids for the first word of
    a text.
    """
    clean = splits_cleanly(tokenizer)
    if not (clean.after_newline and clean.before_space and clean.space_starts):
        return False
    return len(continuation(tokenizer)(["\n"])[0]) == 1  # lines are found again by their newline


def instruction_schema(num_ids: int) -> Features:
    """Return the columns: numbers of a record, and the ids of its Words, Summary and Sentence lines, joined.

    A body is a space, the text and a newline, without the label.  A line that the record does not have has 0 tokens.
    """
    columns = {"key": "uint64", "order": "int8", "features": "int32", "story_chars": "int32"}
    columns |= {f"{line}_{unit}": "int32" for line in BODIES for unit in ("tokens", "bytes")}
    values = {name: Value(dtype) for name, dtype in columns.items()}
    return Features({**values, "input_ids": store_schema(num_ids)["input_ids"]})


def instruction_folder(corpus: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Path:
    """Return the folder of a corpus's instruction store for this tokenizer and the seed of the protocols."""
    return corpus / f"instructions-{tokenizer_hash(tokenizer)}-s{seed}-v{VERSION}"


def make_instructions(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, seed: int, watch: Watch = lambda batches, total, name: batches
) -> Path:
    """Tokenize the instruction lines of a corpus; return the store's folder, an existing one as it is.

    Raises:
        UsageError: for a corpus without records.
    """
    folder = instruction_folder(corpus, tokenizer, seed)
    if (folder / MANIFEST).is_file():
        return folder
    records = open_records(corpus)
    schema = instruction_schema(num_ids_of(tokenizer))
    encode, table = continuation(tokenizer), LabelTable()
    with suppress(MadeMeanwhileError), finished_folder(folder) as unfinished:
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
    """Yield the batches of a split; the lines of the next ones are encoded in threads."""
    (newline,) = encode(["\n"])[0]
    arrow = schema.arrow_schema
    for columns, ids in encoded_ahead(_line_texts(records, seed, table), encode):
        flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=schema["input_ids"].feature.dtype)
        bytes_NL = np.stack([columns[f"{line}_bytes"] for line in BODIES], axis=1)
        # A body ends with its only newline, so newlines separate the bodies.
        tokens_NL = np.zeros_like(bytes_NL)
        tokens_NL[bytes_NL > 0] = np.diff(np.flatnonzero(flat == newline) + 1, prepend=0)
        columns |= {f"{line}_tokens": tokens_NL[:, place] for place, line in enumerate(BODIES)}
        offsets = np.concatenate([[0], np.cumsum(tokens_NL.sum(axis=1))]).astype(np.int32)
        columns["input_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
        yield pa.RecordBatch.from_arrays([pa.array(columns[f.name]).cast(f.type) for f in arrow], schema=arrow)


def _line_texts(records: Dataset, seed: int, table: LabelTable) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the numbers of each batch of records, by column, and the bodies of each record, joined."""
    columns = ["record_id", "words", "features", "summary", "story"]
    for batch in records.with_format("arrow").select_columns(columns).iter(ENCODE_BATCH):
        rows = batch.to_pydict()
        keys_N = record_keys(rows["record_id"])
        numbers: dict[str, Any] = {
            "key": keys_N,
            "order": line_orders(keys_N, seed),
            "features": np.array([table[tuple(labels)] for labels in rows["features"]], dtype=np.int32),
            "story_chars": pa.compute.utf8_length(batch["story"]).combine_chunks(),
        }
        draws = sentence_draws(keys_N, seed).tolist()
        bodies = []
        for words, summary, story, draw in zip(rows["words"], rows["summary"], rows["story"], draws, strict=True):
            found = line_bodies(words, "", summary, chosen_sentence(story, draw))
            bodies.append([f" {found[line]}\n" if line in found else "" for line in BODIES])
        for line, texts in zip(BODIES, zip(*bodies, strict=True), strict=True):
            numbers[f"{line}_bytes"] = np.array([len(text.encode()) for text in texts], dtype=np.int32)
        yield numbers, ["".join(found) for found in bodies]


class InstructionStore:
    """The instruction lines of one split, memory-mapped.

    Attributes:
        keys_N, orders_N, features_N, story_chars_N: numbers of each record.
        tokens_NL, bytes_NL: tokens and UTF-8 bytes of each body.
        feature_lists: the list of each code of `features_N`.
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
