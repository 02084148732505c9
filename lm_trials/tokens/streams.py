"""Streams: documents tokenised as they come, in the blocks and the order that a token store of them would give."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from lm_trials.console import UsageError
from lm_trials.tokens.blocks import Piece, RunBlocks
from lm_trials.tokens.mixtures import Mix, in_order
from lm_trials.tokens.order import shuffled
from lm_trials.tokens.stores import ENCODE_BATCH, TokenStore, store_schema
from lm_trials.tokens.tokenizers import batch_encoder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

STREAM_BUFFER = 10_000


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
    """The documents of one split of a source, tokenised in its order.

    Attributes:
        name: for messages.
        pairs: starts the stream of (record id, story); a data loader's workers may want to pickle it.
        tokenizer: turns stories into ids.
        marks: ids before and after each document (`tokens.stores.document_marks`).
    """

    name: str
    pairs: Callable[[], Iterator[tuple[str, str]]]
    tokenizer: PreTrainedTokenizerBase
    marks: tuple[list[int], list[int]]

    def documents(self, part: int = 0) -> Iterator[StreamedDocument]:
        """Yield the documents, as those of part `part` of a mixture.

        Raises:
            UsageError: for a source that is broken, or has no story.
        """
        opening, closing = (np.array(mark, dtype=np.int32) for mark in self.marks)
        numbers, pairs, encode = itertools.count(), self.pairs(), batch_encoder(self.tokenizer)
        while batch := list(itertools.islice(pairs, ENCODE_BATCH)):
            encoded = encode([story for _, story in batch])
            for (name, story), ids in zip(batch, encoded, strict=True):
                tokens = np.concatenate([opening, np.array(ids, dtype=np.int32), closing])
                yield StreamedDocument(part, next(numbers), name, tokens, len(story.encode()))


def stored(stream: RecordStream, count: int | None) -> TokenStore:
    """Hold the first `count` documents of a stream in memory, or all; for evaluation.

    Raises:
        UsageError: if there is none.
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
    """The blocks of a run over streams, read from the front: asking for an earlier block begins anew.

    Trainer, its data loaders' workers and every process of several ask in rising order, each for its own blocks, so
    each reads the streams once; what it is not asked for it tokenises, for the boundaries, and lets go.  A resumed run
    asks first for the block that comes next, and the stream is replayed up to it: nothing of a buffer can be lost.

    Args:
        streams: the parts, in order.
        buffer_size: documents of the shuffle buffer of each part.
        kwargs: as `RunBlocks`.
    """

    def __init__(
        self,
        streams: Sequence[RecordStream],
        block_size: int,
        num_blocks: int,
        data_seed: int,
        buffer_size: int = STREAM_BUFFER,
        attention_across_documents: bool = True,
        mix: Mix | None = None,
    ) -> None:
        super().__init__(block_size, num_blocks, data_seed, buffer_size, attention_across_documents, mix)
        self.streams = streams
        self._restart()

    def _restart(self) -> None:
        self._next = 0
        self._blocks = self._all_blocks()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open stream behind: a data loader's worker that is not forked reads its own."""
        return {**self.__dict__, "_blocks": None, "_next": -1}

    def pieces(self, index: int) -> tuple[int, list[Piece]]:
        """Return the pass that block `index` of the run is of, and what it holds."""
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
                names = ", ".join(stream.name for stream in self.streams)
                raise UsageError(
                    f"a pass over {names} does not fill one block of {self.block_size}; lower --block_size or give "
                    "more stories"
                )

    def _documents(self, pass_index: int) -> Iterator[StreamedDocument]:
        def part(place: int, restart: int) -> Iterator[StreamedDocument]:
            documents = self.streams[place].documents(place)
            return shuffled(documents, self.data_seed, pass_index, self.buffer_size, place, restart)

        return in_order([part] * len(self.streams), self.mix, len)


def windows(
    documents: Iterable[StreamedDocument], block_size: int
) -> Iterator[list[tuple[StreamedDocument, int, int]]]:
    """Yield the blocks of a pass, each as (document, tokens of it before, its tokens here); the remainder is dropped.

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
