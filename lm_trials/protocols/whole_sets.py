"""Whole sets: sets whose texts are tokenized whole, stored text by text.

For tokenizers whose tokens cannot be joined from parts (GPT-2's byte-level BPE has other ids for the first word of a
text than after "Story:"), and for protocols that change the story.  Slower and larger than composed sets.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from lm_trials.protocols.columns import RecordColumns, TransformedColumns
from lm_trials.protocols.instructions import render_columns
from lm_trials.protocols.protocols import Protocol
from lm_trials.tokens.stores import TokenStore, document_marks, encoded_batch, num_ids_of, store_schema
from lm_trials.tokens.tokenizers import batch_encoder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase


class WholeTexts:
    """The rows of a set whose texts are tokenized whole: a token store's, the prompt's length, and the features."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, protocol: Protocol, append_eos: bool) -> None:
        self.protocol = protocol
        self.described = {"whole": True}  # for the manifest
        store = store_schema(num_ids_of(tokenizer))
        self.schema = Features({**store, "prompt_tokens": Value("int32"), "features": List(Value("string"))})
        self._store, self._encode = store.arrow_schema, batch_encoder(tokenizer)
        self._bos, self._eos = document_marks(tokenizer, append_eos)

    def rows(self, columns: RecordColumns, transformed: TransformedColumns, *_: Any) -> tuple[pa.RecordBatch, int]:
        """Return rows of the records that a protocol kept of a chunk, and how many lack a sentence line to show."""
        texts = render_columns(columns, transformed, self.protocol)
        names, written = (pa.chunked_array([pa.array(texts[key], pa.string())]) for key in ("record_id", "text"))
        tokens = encoded_batch(names, written, self._encode(texts["text"]), self._bos, self._eos, self._store)
        prompt_tokens = [len(self._bos) + len(ids) for ids in self._encode(texts["prompt"])]
        more, arrow = (prompt_tokens, texts["features"]), self.schema.arrow_schema
        added = [pa.array(values, field.type) for values, field in zip(more, list(arrow)[-2:], strict=True)]
        shown = "Sentence" in self.protocol.instruction_subset
        without = sum(shown and not re.search(r"^Sentence: ", prompt, re.MULTILINE) for prompt in texts["prompt"])
        return pa.RecordBatch.from_arrays([*tokens.columns, *added], schema=arrow), without


class WholeSetStore(TokenStore):
    """A token store of whole texts, with the place where each story begins."""

    def features(self, document: int) -> tuple[str, ...]:
        """Return the features of a document's instruction."""
        return tuple(self.dataset.data.column("features")[document].as_py())

    def prompt(self, document: int) -> np.ndarray:
        """Return the ids up to and with "Story:"."""
        return self.tokens(document)[: self._prompt_tokens(document)].astype(np.int64)

    def continuation(self, document: int) -> np.ndarray:
        """Return the ids that follow the prompt."""
        return self.tokens(document)[self._prompt_tokens(document) :].astype(np.int64)

    def _prompt_tokens(self, document: int) -> int:
        return self.dataset.data.column("prompt_tokens")[document].as_py()
