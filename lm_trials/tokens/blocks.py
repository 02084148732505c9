"""Blocks: fixed-length windows over documents in a given order.

A block is a view: nothing is packed in advance, and one pass over the whole stream defines all blocks, so they are the
same for any worker count or batch size.  The usual packing in a batched `map` gives another training set for each batch
size and drops a remainder per batch; here each pass has one remainder, at its end, and it is counted.

Shape suffixes: T = tokens of a block, P = parts of a mixture.
"""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_trials.console import UsageError
from lm_trials.tokens.mixtures import Mix, mixture_pass
from lm_trials.tokens.phases import Arrangement, Passes, PassSeed, Phase
from lm_trials.tokens.stores import DocumentStore, TokenStore


@dataclass(frozen=True)
class Piece:
    """The tokens of one document in one block.

    Attributes:
        part: the document's part of a mixture, else 0.
        document: its place in that part, as stored.
        skipped: tokens of the document before these; BOS counts.
    """

    part: int
    document: int
    record_id: str
    skipped: int
    ids_T: np.ndarray


class Blocks:
    """All blocks of one pass over `store`, with its documents in `order` (default: as stored).

    >>> store = tiny_store([[5, 6, 7], [8], [9, 9, 9]])
    >>> blocks = Blocks(store, block_size=4, order=np.array([1, 0, 2]))
    >>> len(blocks), blocks.remainder
    (1, 3)
    >>> [(piece.document, piece.skipped, piece.ids_T.tolist()) for piece in blocks[0]]
    [(1, 0, [8]), (0, 0, [5, 6, 7])]
    """

    def __init__(self, store: DocumentStore, block_size: int, order: np.ndarray | None = None) -> None:
        self.store = store if isinstance(store, JoinedStores) else JoinedStores([store])
        self.block_size = block_size
        self.order = np.arange(len(store)) if order is None else order
        self._ends = np.cumsum(store.lengths_N[self.order], dtype=np.int64)
        self.num_tokens = int(self._ends[-1]) if len(self._ends) else 0
        # Dropped, at most block_size - 1 tokens a pass: padding them would need a mask in every batch, for under 0.1
        # % of the tokens of the demo's corpus.
        self.remainder = self.num_tokens % block_size

    def __len__(self) -> int:
        return self.num_tokens // self.block_size

    def __getitem__(self, index: int) -> list[Piece]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        at = index * self.block_size
        return [self._piece(*span) for span in self.spans(at, at + self.block_size)]

    def _piece(self, document: int, skipped: int, length: int) -> Piece:
        part, place = self.store.locate(document)
        store = self.store.stores[part]
        return Piece(part, place, store.record_id(place), skipped, store.tokens(place)[skipped : skipped + length])

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (document, tokens of it before, its tokens here) for tokens `start` to `stop` of the stream.

        >>> blocks = Blocks(tiny_store([[5, 6, 7], [8]]), block_size=2)
        >>> list(blocks.spans(2, 4))
        [(0, 2, 1), (1, 0, 1)]
        """
        place = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            document, end = int(self.order[place]), int(self._ends[place])
            length = min(end, stop) - start
            yield document, start - (end - int(self.store.lengths_N[document])), length
            start += length
            place += 1


@dataclass(eq=False, repr=False)
class RunBlocks(ABC):
    """The blocks of a whole run, pass after pass, as one map-style data set for the Trainer.

    Each pass orders the documents by (data_seed, pass) and packs them.  With one long data set read in sequence,
    resuming is exact (Trainer skips batches by number; of an `IterableDataset` it would replay the first pass) and no
    pass ends in a partial batch.

    Attributes:
        parts: what has the documents: one store or stream, or those of a mixture.
        block_size: tokens of a block.
        num_blocks: blocks of the whole run.
        data_seed: seed of the order.
        buffer_size: documents of the shuffle buffer; 1 keeps the order of the source.
        attention_across_documents: False adds `position_ids` that restart with each document, by which transformers
            separates documents when there is neither an attention mask nor a cache.
        mix: how several parts are mixed; None for one.
    """

    parts: Any
    block_size: int
    num_blocks: int
    data_seed: int
    buffer_size: int | None = None
    attention_across_documents: bool = True
    mix: Mix | None = None

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise UsageError(f"--block_size {self.block_size} is too small to predict a token; give at least 2")

    def __len__(self) -> int:
        return self.num_blocks

    @abstractmethod
    def pieces(self, index: int) -> tuple[int, list[Piece]]:
        """Return the pass of block `index` of the run, and its pieces."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return a block for Trainer; of a mixture with the tokens of each part, `part_tokens` (P,)."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        _, pieces = self.pieces(index)
        ids_T = np.concatenate([piece.ids_T for piece in pieces]).astype(np.int64)
        example = {"input_ids": ids_T, "labels": ids_T}
        if not self.attention_across_documents:
            # Positions and not a 4-D mask, which would be block_size squared for each block.
            example["position_ids"] = np.concatenate([np.arange(len(piece.ids_T)) for piece in pieces])
        if self.mix is not None:
            parts = [piece.part for piece in pieces]
            lengths = [len(piece.ids_T) for piece in pieces]
            example["part_tokens"] = np.bincount(parts, lengths, minlength=len(self.mix.weights)).astype(np.int64)
        return example


@dataclass(eq=False, repr=False)
class TrainingBlocks(RunBlocks):
    """The blocks of a run over one store or, with a `mix`, several; no `buffer_size` is a full shuffle.

    Attributes:
        phases: which documents are read when, and in which order; none: all, in the seeded order.
        blocks_per_update: blocks of one update, in which phases count.

    Raises:
        UsageError: if a pass does not fill one block.
    """

    phases: tuple[Phase, ...] = ()
    blocks_per_update: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store = JoinedStores(self.parts if isinstance(self.parts, (list, tuple)) else [self.parts])
        places = range(len(self.store.stores))
        if not self.phases:
            self.phases = (Phase((Arrangement(self.buffer_size),) * len(places), tuple(places), self.mix),)
        self._pass_index = -1
        self._pass: Blocks | None = None
        self.passes = Passes(self.phases, self.blocks_per_update, self._length)
        blocks = self.pass_blocks(0)
        self.blocks_per_pass, self.remainder = len(blocks), blocks.remainder
        orders = (self._order(PassSeed(number, 0)) for number in range(1, len(self.phases)))
        for number, each in enumerate([blocks, *(Blocks(self.store, self.block_size, order) for order in orders)], 1):
            if not len(each):
                where = f" of phase {number} of --order_schedule" if len(self.phases) > 1 else ""
                raise UsageError(
                    f"--block_size {self.block_size} is more than the {each.num_tokens:,} tokens of a pass{where}; "
                    "lower it or prepare more stories"
                )

    def pass_blocks(self, pass_index: int) -> Blocks:
        """Return the blocks of one pass; those of the latest call are cached."""
        # Only the current pass is kept: an order of 5 million documents is 40 MB, and its ends as much.
        if self._pass is None or pass_index != self._pass_index:
            order = self._order(self.passes.seeds[pass_index])
            self._pass, self._pass_index = Blocks(self.store, self.block_size, order), pass_index
        return self._pass

    def _length(self, number: int, pass_index: int) -> int:
        """Return the blocks of a pass in a phase; those of one store have equally many in every pass of a phase."""
        phase = self.phases[number]
        if phase.mix is not None:
            return len(self.pass_blocks(pass_index))  # mixtures must be ordered to know it
        (place,) = phase.places
        kept_K = phase.arrangements[place].kept_K
        lengths_N = self.store.stores[place].lengths_N
        return int((lengths_N if kept_K is None else lengths_N[kept_K]).sum(dtype=np.int64)) // self.block_size

    def _order(self, seed: PassSeed) -> np.ndarray:
        phase = self.phases[seed.phase]

        def part(place: int, restart: int) -> np.ndarray:
            count = len(self.store.stores[place])
            of = (place, restart, *seed.of)
            return phase.arrangements[place].order(count, self.data_seed, seed.number, *of) + self.store.firsts[place]

        if phase.mix is None:
            return part(phase.places[0], 0)
        lengths = self.store.lengths_N.tolist()
        parts = phase.places
        order = mixture_pass(lambda at, restart: part(parts[at], restart).tolist(), phase.mix, lengths.__getitem__)
        return np.fromiter(order, dtype=np.int64)

    def pieces(self, index: int) -> tuple[int, list[Piece]]:
        """Return the pass of block `index` of the run, and its pieces."""
        pass_index, place = self.passes.locate(index)
        return pass_index, self.pass_blocks(pass_index)[place]


class JoinedStores:
    """Several stores behind the interface of one: documents are numbered from store to store, or by `order`.

    >>> stores = [tiny_store([[1], [2, 2]]), tiny_store([[3, 3, 3]])]
    >>> JoinedStores(stores).lengths_N, JoinedStores(stores, order=np.array([2, 0])).tokens(0)
    (array([1, 2, 3], dtype=int32), array([3, 3, 3], dtype=uint16))
    """

    def __init__(self, stores: Sequence[DocumentStore], order: np.ndarray | None = None) -> None:
        self.stores = stores
        self.firsts = list(itertools.accumulate(map(len, stores), initial=0))
        self._order = np.arange(self.firsts[-1]) if order is None else order
        self.lengths_N = np.concatenate([store.lengths_N for store in stores])[self._order]
        self.num_bytes_N = np.concatenate([store.num_bytes_N for store in stores])[self._order]
        self.num_tokens = int(self.lengths_N.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self._order)

    def locate(self, document: int) -> tuple[int, int]:
        """Return the place of a document's store, and the document's number there."""
        number = int(self._order[document])
        # Called once for each piece of each block.
        part = bisect.bisect_right(self.firsts, number) - 1  # searchsorted took 14 of a block's 49 microseconds
        return part, number - self.firsts[part]

    def tokens(self, document: int) -> np.ndarray:
        """Return the (length,) ids of one document."""
        part, place = self.locate(document)
        return self.stores[part].tokens(place)

    def record_id(self, document: int) -> str:
        """Return the id of a document's record."""
        part, place = self.locate(document)
        return self.stores[part].record_id(place)


def tiny_store(documents: list[list[int]]) -> TokenStore:
    """Build a store in memory, for examples and tests.

    >>> tiny_store([[1, 2], [3]]).tokens(1)
    array([3], dtype=uint16)
    """
    from datasets import Dataset

    from lm_trials.tokens.stores import store_schema

    rows = [
        {"record_id": f"{number:032x}", "length": len(ids), "num_bytes": len(ids), "input_ids": ids}
        for number, ids in enumerate(documents)
    ]
    return TokenStore(Dataset.from_list(rows, features=store_schema(1 << 16)), manifest={})
