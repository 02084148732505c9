"""Composition: the tokens of a protocol's texts, joined from those of their parts.

Of each document a set stores the record's row, the code of its features, the refusal that replaces its story, and the
ids of its Words line where the protocol changed it.

Shape suffixes: M = records of a set, L = the lines of `BODIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Features, Value

from lm_trials.protocols.columns import LabelTable, RecordColumns, TransformedColumns
from lm_trials.protocols.instruction_stores import BODIES, InstructionStore
from lm_trials.protocols.instructions import ORDERS, feature_names, line_bodies, refusal_story
from lm_trials.protocols.protocols import LINES, Protocol
from lm_trials.tokens.stores import TokenStore, document_marks, num_ids_of, store_schema
from lm_trials.tokens.tokenizers import batch_encoder, continuation

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase


class Line(NamedTuple):
    """The ids of one line after its label, and its length in UTF-8 bytes."""

    ids: list[int]
    num_bytes: int


class Pieces:
    """The parts of a text that do not depend on the record: labels, feature lists, refusals.

    Attributes:
        first, next: ids of each label at the start of the text, and after a newline.
        refusals: ids of each refusal text, after "Story:".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, protocol: Protocol, append_eos: bool) -> None:
        self.protocol = protocol
        self.num_ids = num_ids_of(tokenizer)
        self.bos, self.eos = document_marks(tokenizer, append_eos)
        self._continue = continuation(tokenizer)
        labels = [f"{line}:" for line in (*LINES, "Story")]
        names = (*LINES, "Story")
        self.first = dict(zip(names, batch_encoder(tokenizer)(labels), strict=True))
        self.next = dict(zip(names, self._continue(labels), strict=True))
        texts = [refusal_story(protocol, place) for place in range(len(protocol.refusal))]
        self.refusals = self._continue([f" {text}" for text in texts])
        self.refusal_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        self._label_tokens, self._label_bytes = self._label_tables()
        self._feature_ids: dict[tuple[str, ...], list[int]] = {}

    def encode_words(self, lists: Sequence[Sequence[str]]) -> list[Line]:
        """Encode the text after "Words:" for lists of words; an empty list has no line."""
        bodies = [line_bodies(words, "", "", "").get("Words") for words in lists]
        texts = ["" if body is None else f" {body}\n" for body in bodies]
        return [Line(ids, len(text.encode())) for ids, text in zip(self._continue(texts), texts, strict=True)]

    def feature_ids(self, labels: tuple[str, ...]) -> list[int]:
        """Return the ids after "Features:"."""
        if labels not in self._feature_ids:
            (self._feature_ids[labels],) = self._continue([self._feature_text(labels)])
        return self._feature_ids[labels]

    def _feature_text(self, labels: tuple[str, ...]) -> str:
        return f" {feature_names(labels, self.protocol.feature_style)}\n"

    def shown(self, order: int, present: Sequence[bool]) -> list[str]:
        """Return the lines shown, in order, given which of `BODIES` the record has."""
        there = {"Features", *(line for line, has in zip(BODIES, present, strict=True) if has)}
        return [line for line in ORDERS[order] if line in there and line in self.protocol.instruction_subset]

    def _label_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and bytes of all labels of a text, by [order, bits of the bodies that the record has]."""
        tokens = np.zeros((len(ORDERS), 8), dtype=np.int64)
        num_bytes = np.zeros_like(tokens)
        for order in range(len(ORDERS)):
            for bits in range(8):
                lines = [*self.shown(order, [bool(bits >> place & 1) for place in range(3)]), "Story"]
                tokens[order, bits] = len(self.first[lines[0]]) + sum(len(self.next[line]) for line in lines[1:])
                num_bytes[order, bits] = sum(len(line) + 1 for line in lines)
        return tokens, num_bytes

    def measure(
        self,
        rows_M: np.ndarray,
        stories: TokenStore,
        instructions: InstructionStore,
        features_M: np.ndarray,
        feature_lists: Sequence[tuple[str, ...]],
        refused_M: np.ndarray,
        words: Sequence[Line | None],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and UTF-8 bytes, (M,) each, of the texts that `SetStore` joins."""
        tokens_ML, bytes_ML = instructions.tokens_NL[rows_M].astype(np.int64), instructions.bytes_NL[rows_M]
        bytes_ML = bytes_ML.astype(np.int64)
        for row, line in enumerate(words):
            if line is not None:
                tokens_ML[row, 0], bytes_ML[row, 0] = len(line.ids), line.num_bytes
        shown_L = np.array([line in self.protocol.instruction_subset for line in BODIES])
        tokens_ML, bytes_ML = tokens_ML * shown_L, bytes_ML * shown_L
        bits_M = ((tokens_ML > 0) << np.arange(3)).sum(axis=1)
        orders_M = instructions.orders_N[rows_M]
        marks = len(self.bos) + len(self.eos)
        lengths_M = marks + self._label_tokens[orders_M, bits_M] + tokens_ML.sum(axis=1)
        num_bytes_M = 1 + self._label_bytes[orders_M, bits_M] + bytes_ML.sum(axis=1)
        if "Features" in self.protocol.instruction_subset:
            sizes = [(len(self.feature_ids(labels)), len(self._feature_text(labels))) for labels in feature_lists]
            by_code = np.array(sizes, dtype=np.int64).reshape(-1, 2)
            lengths_M += by_code[features_M, 0]
            num_bytes_M += by_code[features_M, 1]
        story_tokens_M = stories.lengths_N[rows_M].astype(np.int64) - marks
        story_bytes_M = stories.num_bytes_N[rows_M].astype(np.int64)
        if self.refusals:
            refusal_tokens = np.array([len(ids) for ids in self.refusals])
            story_tokens_M = np.where(refused_M < 0, story_tokens_M, refusal_tokens[refused_M])
            story_bytes_M = np.where(refused_M < 0, story_bytes_M, self.refusal_bytes[refused_M])
        return lengths_M + story_tokens_M, num_bytes_M + story_bytes_M


class ComposedTexts:
    """The rows of a set whose tokens are joined when they are read."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        numbers = {"row": "int64", "features": "int32", "refused": "int16", "length": "int32", "num_bytes": "int32"}
        # The ids of the Words line where the protocol changed it, empty where not, null where it removed the line.
        words = store_schema(pieces.num_ids)["input_ids"]
        self.schema = Features({**{name: Value(dtype) for name, dtype in numbers.items()}, "words": words})
        self._table = LabelTable()

    @property
    def described(self) -> dict[str, Any]:
        """The lists of features of the codes, for the manifest."""
        return {"features": [list(labels) for labels in self._table]}

    def rows(
        self,
        columns: RecordColumns,
        transformed: TransformedColumns,
        stories: TokenStore,
        instructions: InstructionStore,
    ) -> tuple[pa.RecordBatch, int]:
        """Return rows of the records that a protocol kept of a chunk, and how many lack a sentence line to show."""
        rows_M = transformed.kept_M + columns.start
        codes = np.array([self._table[labels] for labels in transformed.features.table], dtype=np.int32)
        features_M = codes[transformed.features.codes_N]
        words = self._changed_words(columns, transformed)
        lengths_M, bytes_M = self.pieces.measure(
            rows_M, stories, instructions, features_M, list(self._table), transformed.refused_M, words
        )
        arrow = self.schema.arrow_schema
        ids = [line.ids or None if line else [] for line in words] if words else [[]] * len(rows_M)
        numbers = (rows_M, features_M, transformed.refused_M, lengths_M, bytes_M)
        batch = [pa.array(values).cast(field.type) for values, field in zip(numbers, arrow, strict=False)]
        batch.append(pa.array(ids, arrow.field("words").type))
        shown = "Sentence" in self.pieces.protocol.instruction_subset
        without = (instructions.tokens_NL[rows_M, BODIES.index("Sentence")] == 0).sum() if shown else 0
        return pa.RecordBatch.from_arrays(batch, schema=arrow), int(without)

    def _changed_words(self, columns: RecordColumns, transformed: TransformedColumns) -> list[Line | None]:
        """Return each kept record's Words line where the protocol changed its words, else None; [] if it never does."""
        if not self.pieces.protocol.changes("words"):
            return []
        before, after = columns.words.take(transformed.kept_M), transformed.words
        lines: list[Line | None] = [None] * len(after)
        changed = [row for row in range(len(after)) if after[row] != before[row]]
        for row, line in zip(changed, self.pieces.encode_words([after[row] for row in changed]), strict=True):
            lines[row] = line
        return lines
