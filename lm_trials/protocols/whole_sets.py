"""Whole sets: sets of tokenizers whose tokens cannot be put together from parts, stored text by text.

GPT-2's byte-level BPE has other ids for a story's first word at the start of a text than after "Story:", so its texts
are rendered and tokenised whole.  Slower and larger, with the same interface and the same counts.

Shape suffixes: M = records of a batch that were kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import Protocol
from lm_trials.protocols.transforms import RecordColumns, treat
from lm_trials.stories.corpora import load_splits, open_records
from lm_trials.tokens.stores import TokenStore, document_marks, encoded_batch, store_schema
from lm_trials.tokens.tokenizers import batch_encoder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

BATCH = 1000


def whole_schema(vocab_size: int) -> Features:
    """Return the columns: a token store's, where the story begins, and the features asked for."""
    more = {"prompt_tokens": Value("int32"), "features": List(Value("string"))}
    return Features({**store_schema(vocab_size), **more})


def write_whole_split(
    path: Path, corpus: Path, split: str, tokenizer: PreTrainedTokenizerBase, protocol: Protocol, append_eos: bool
) -> list[dict[str, Any]]:
    """Render and tokenise one split into an Arrow file; return the counts of each batch, for adding up."""
    schema = whole_schema(max(tokenizer.get_vocab().values()) + 1)
    encode, (bos, eos) = batch_encoder(tokenizer), document_marks(tokenizer, append_eos)
    records, counts = open_records(corpus, split), []
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema.arrow_schema) as stream:
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            texts = apply_protocol(batch, protocol)
            prompts = [
                text.removesuffix(f" {story}") for text, story in zip(texts["text"], texts["story"], strict=True)
            ]
            tokens = encoded_batch(
                pa.chunked_array([pa.array(texts["record_id"], pa.string())]),
                pa.chunked_array([pa.array(texts["text"], pa.string())]),
                encode(texts["text"]), bos, eos, store_schema(max(tokenizer.get_vocab().values()) + 1).arrow_schema,
            )  # fmt: skip
            prompt_tokens = pa.array([len(bos) + len(ids) for ids in encode(prompts)], pa.int32())
            columns = [*tokens.columns, prompt_tokens, pa.array(texts["features"], pa.list_(pa.string()))]
            arrow = schema.arrow_schema
            columns = [column.cast(field.type) for column, field in zip(columns, arrow, strict=True)]
            stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=arrow))
            without = sum(not re.search(r"^Sentence: ", prompt, re.MULTILINE) for prompt in prompts)
            counts.append(
                treat(RecordColumns.of(batch), protocol).counts
                | {
                    "documents": len(prompts),
                    "tokens": int(pa.compute.sum(tokens.column("length")).as_py() or 0),
                    "without_sentence": without if "Sentence" in protocol.instruction_subset else 0,
                }
            )
    return counts


class WholeSetStore(TokenStore):
    """A token store of whole texts that knows where each story begins."""

    @classmethod
    def of(cls, folder: Path, split: str, manifest: dict[str, Any]) -> WholeSetStore:
        """Open one split of a set's folder."""
        return cls(load_splits(folder)[split], manifest)

    def features(self, document: int) -> tuple[str, ...]:
        """Return the features that a document's instruction asks for."""
        return tuple(self.dataset.data.column("features")[document].as_py())

    def prompt(self, document: int) -> np.ndarray:
        """Return the ids up to and with "Story:"."""
        return self.tokens(document)[: self._prompt_tokens(document)].astype(np.int64)

    def continuation(self, document: int) -> np.ndarray:
        """Return the ids that follow the prompt."""
        return self.tokens(document)[self._prompt_tokens(document) :].astype(np.int64)

    def _prompt_tokens(self, document: int) -> int:
        return self.dataset.data.column("prompt_tokens")[document].as_py()
