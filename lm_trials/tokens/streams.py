"""Streams: documents tokenized as they are read, in the blocks and order that a token store of them would give."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from lm_trials.console import UsageError
from lm_trials.tokens.blocks import Piece, RunBlocks
from lm_trials.tokens.mixtures import mixture_pass
from lm_trials.tokens.order import shuffled
from lm_trials.tokens.stores import ENCODE_BATCH, TokenStore, store_schema
from lm_trials.tokens.tokenizers import batch_encoder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

# 10,000 is the buffer that Hugging Face's examples use for streams; its effect on the loss was not measured.
STREAM_BUFFER = 10_000  # documents; a stream has no known length; some 8 MB for stories of 200 tokens


@dataclass(frozen=True, slots=True)
class StreamedDocument:
    """One document of a stream: its part of a mixture, its place there, its record, its (n,) ids, its UTF-8 bytes."""

    part: int
    place: int
    record_id: str
    ids: np.ndarray
    num_bytes: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class RecordStream:
    """The documents of one split of a source, tokenized in its order.

    Attributes:
        name: for messages.
        pairs: starts the stream of (record id, story); must be picklable for data loader workers.
        marks: ids before and after each document (`tokens.stores.document_marks`).
    """

    name: str
    pairs: Callable[[], Iterator[tuple[str, str]]]
    tokenizer: PreTrainedTokenizerBase
    marks: tuple[list[int], list[int]]

    def documents(self, part: int = 0) -> Iterator[StreamedDocument]:
        """Yield the documents, as part `part` of a mixture."""
        opening, closing = (np.array(mark, dtype=np.int32) for mark in self.marks)
        numbers, pairs, encode = itertools.count(), self.pairs(), batch_encoder(self.tokenizer)
        while batch := list(itertools.islice(pairs, ENCODE_BATCH)):
            encoded = encode([story for _, story in batch])
            for (name, story), ids in zip(batch, encoded, strict=True):
                tokens = np.concatenate([opening, np.array(ids, dtype=np.int32), closing])
                # int32 because ids above 65,535 exist (GPT-2 fits uint16, Llama 3 does not); the stream is never
                # stored.
                yield StreamedDocument(part, next(numbers), name, tokens, len(story.encode()))


def stored(stream: RecordStream, count: int | None) -> TokenStore:
    """Keep the first `count` documents of a stream in memory, or all; for evaluation.

    Raises:
        UsageError: for a stream without documents.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("record_id", "length", "num_bytes", "input_ids")}
    for document in itertools.islice(stream.documents(), count):
        row = (document.record_id, len(document), document.num_bytes, document.ids)
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
    if not columns["length"]:
        raise UsageError(f"{stream.name} has no story; give more stories")
    return TokenStore(Dataset.from_dict(columns, features=store_schema(1 << 31)), manifest={})


class StreamBlocks(RunBlocks):
    """The blocks of a run over `RecordStream`s, read in sequence: an earlier block restarts the streams.

    Trainer, data loader workers and processes each ask for their blocks in rising order, so each reads the streams
    once; blocks of other processes are tokenized, for the boundaries, and dropped.  A resumed run replays the stream up
    to its first block, so the content of the buffer is never lost.  No `buffer_size` is `STREAM_BUFFER`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._restart()

    def _restart(self) -> None:
        self._next = 0
        self._blocks = self._all_blocks()

    def __getstate__(self) -> dict[str, Any]:
        """Drop the open stream: a data loader worker that is not forked reads its own."""
        return {**self.__dict__, "_blocks": None, "_next": -1}

    def pieces(self, index: int) -> tuple[int, list[Piece]]:
        """Return the pass of block `index` of the run, and its pieces."""
        # Replaying costs 1.38 to 1.64 s for each million tokens (0.93 s of it tokenizing). A stored buffer would need
        # a format that can disagree with the code; reading ahead in a thread gained nothing.
        if index < self._next or self._next < 0:
            self._restart()
        pass_index, spans = next(itertools.islice(self._blocks, index - self._next, None))
        self._next = index + 1
        return pass_index, [
            Piece(doc.part, doc.place, doc.record_id, skipped, doc.ids[skipped : skipped + length])
            for doc, skipped, length in spans
        ]

    def _all_blocks(self) -> Iterator[tuple[int, list[tuple[StreamedDocument, int, int]]]]:
        for pass_index in itertools.count():
            empty = True
            for spans in windows(self._documents(pass_index), self.block_size):
                empty = False
                yield pass_index, spans
            if empty:
                names = ", ".join(stream.name for stream in self.parts)
                raise UsageError(
                    f"--block_size {self.block_size} is more than the tokens of a pass over {names}; lower it or give "
                    "more stories"
                )

    def _documents(self, pass_index: int) -> Iterator[StreamedDocument]:
        def part(place: int, restart: int) -> Iterator[StreamedDocument]:
            documents = self.parts[place].documents(place)
            return shuffled(documents, self.data_seed, pass_index, self.buffer_size or STREAM_BUFFER, place, restart)

        return mixture_pass(part, self.mix, len) if self.mix else part(0, 0)


def windows(
    documents: Iterable[StreamedDocument], block_size: int
) -> Iterator[list[tuple[StreamedDocument, int, int]]]:
    """Yield the blocks of a pass, each as spans (document, tokens of it before, its tokens here); drop the remainder.

    >>> docs = [StreamedDocument(0, n, "", np.zeros(length)) for n, length in enumerate((3, 1, 4))]
    >>> [[(doc.place, skipped, length) for doc, skipped, length in block] for block in windows(docs, block_size=2)]
    [[(0, 0, 2)], [(0, 2, 1), (1, 0, 1)], [(2, 0, 2)], [(2, 2, 2)]]
    """
    spans: list[tuple[StreamedDocument, int, int]] = []
    room = block_size
    for document in documents:
        skipped = 0
        while skipped < len(document):
            length = min(room, len(document) - skipped)
            spans.append((document, skipped, length))
            skipped += length
            room -= length
            if not room:
                yield spans
                spans, room = [], block_size
