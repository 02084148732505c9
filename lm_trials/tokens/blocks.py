"""Blocks: fixed-length windows over documents in a given order.

A block is a view: nothing is packed beforehand, and one pass over the whole stream defines all blocks, so they are
the same for any worker count or batch size.  Packing inside a batched, multi-process `map`, as the common recipe
does, makes another training set for each batch size and drops a remainder per batch; here there is
one remainder a pass, at its end, and it is counted.

Shape suffixes: T = tokens of a block, P = parts of a mixture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lm_trials.console import UsageError
from lm_trials.tokens.mixtures import Mix, in_order
from lm_trials.tokens.order import document_order
from lm_trials.tokens.stores import TokenStore


@dataclass(frozen=True)
class Piece:
    """What one block holds of one document.

    Attributes:
        part: part of a mixture that the document is of, else 0.
        document: its place in that part, as stored.
        skipped: tokens of the document before these; BOS counts.
        ids_T: these tokens.
    """

    part: int
    document: int
    record_id: str
    skipped: int
    ids_T: np.ndarray


class Blocks:
    """All blocks of one pass over `store`, whose documents come in `order` (default: as stored).

    >>> store = tiny_store([[5, 6, 7], [8], [9, 9, 9]])
    >>> blocks = Blocks(store, block_size=4, order=np.array([1, 0, 2]))
    >>> len(blocks), blocks.remainder
    (1, 3)
    >>> [(piece.document, piece.skipped, piece.ids_T.tolist()) for piece in blocks[0]]
    [(1, 0, [8]), (0, 0, [5, 6, 7])]
    """

    def __init__(self, store: TokenStore | JoinedStores, block_size: int, order: np.ndarray | None = None) -> None:
        self.store = store
        self.block_size = block_size
        self.order = np.arange(len(store)) if order is None else order
        self._ends = np.cumsum(store.lengths_N[self.order], dtype=np.int64)
        self.num_tokens = int(self._ends[-1]) if len(self._ends) else 0
        self.remainder = self.num_tokens % block_size

    def __len__(self) -> int:
        return self.num_tokens // self.block_size

    def __getitem__(self, index: int) -> list[Piece]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        at = index * self.block_size
        return [self._piece(*span) for span in self.spans(at, at + self.block_size)]

    def _piece(self, document: int, skipped: int, length: int) -> Piece:
        part, place = self.store.locate(document) if isinstance(self.store, JoinedStores) else (0, document)
        ids_T = self.store.tokens(document)[skipped : skipped + length]
        return Piece(part, place, self.store.record_id(document), skipped, ids_T)

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield what tokens `start` to `stop` of the stream are: (document, tokens of it before, its tokens here).

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


class RunBlocks(ABC):
    """The blocks of a whole run, pass after pass, as one map-style data set for the Trainer.

    Each pass orders the documents anew by (data_seed, pass) and packs them.  One long data set, read in sequence, keeps
    the Trainer's own resuming exact (it skips batches by their number; of an `IterableDataset` it would replay the
    first pass) and leaves no partial batch at the end of a pass.

    Attributes:
        block_size: tokens of a block.
        num_blocks: blocks of the whole run.
        data_seed: seed of the order.
        buffer_size: documents of the shuffle buffer; None is a full shuffle, 1 keeps the order of the source.
        attention_across_documents: False adds `position_ids` that start anew with each document, which is how
            transformers tells documents apart when there is neither an attention mask nor a cache.
        mix: how several parts are put together; None for one.
        num_parts: how many there are.
    """

    def __init__(
        self,
        block_size: int,
        num_blocks: int,
        data_seed: int,
        buffer_size: int | None,
        attention_across_documents: bool,
        mix: Mix | None,
    ) -> None:
        if block_size < 2:
            raise UsageError(
                f"--block_size {block_size}: a block needs 2 tokens at least, one to see and one to predict"
            )
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.data_seed = data_seed
        self.buffer_size = buffer_size
        self.attention_across_documents = attention_across_documents
        self.mix = mix
        self.num_parts = len(mix.weights) if mix else 1

    def __len__(self) -> int:
        return self.num_blocks

    @abstractmethod
    def pieces(self, index: int) -> tuple[int, list[Piece]]:
        """Return the pass that block `index` of the run is of, and what it holds."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return a block as Trainer wants it; of a mixture with the tokens of each part, `part_tokens` (P,)."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        _, pieces = self.pieces(index)
        ids_T = np.concatenate([piece.ids_T for piece in pieces]).astype(np.int64)
        example = {"input_ids": ids_T, "labels": ids_T}
        if not self.attention_across_documents:
            example["position_ids"] = np.concatenate([np.arange(len(piece.ids_T)) for piece in pieces])
        if self.mix is not None:
            parts = [piece.part for piece in pieces]
            lengths = [len(piece.ids_T) for piece in pieces]
            example["part_tokens"] = np.bincount(parts, lengths, minlength=self.num_parts).astype(np.int64)
        return example


class TrainingBlocks(RunBlocks):
    """The blocks of a run over one token store or, with a `mix`, several; any block can be had at any time.

    Raises:
        UsageError: if a pass does not fill one block.
    """

    def __init__(
        self,
        stores: TokenStore | Iterable[TokenStore],
        block_size: int,
        num_blocks: int,
        data_seed: int,
        buffer_size: int | None = None,
        attention_across_documents: bool = True,
        mix: Mix | None = None,
    ) -> None:
        super().__init__(block_size, num_blocks, data_seed, buffer_size, attention_across_documents, mix)
        self.store = joined(stores)
        self._pass_index = -1
        self._pass: Blocks | None = None
        self._first = [0]  # first block of the run of each pass known so far, and of the next
        blocks = self.pass_blocks(0)
        self.blocks_per_pass, self.remainder = len(blocks), blocks.remainder
        if not len(blocks):
            raise UsageError(
                f"{blocks.num_tokens:,} tokens do not fill one block of {block_size}; "
                "lower --block_size or give more stories"
            )

    def pass_blocks(self, pass_index: int) -> Blocks:
        """Return the blocks of one pass; the last one asked for is kept."""
        if self._pass is None or pass_index != self._pass_index:
            self._pass, self._pass_index = Blocks(self.store, self.block_size, self._order(pass_index)), pass_index
        return self._pass

    def _order(self, pass_index: int) -> np.ndarray:
        counts = self.store.counts if isinstance(self.store, JoinedStores) else [len(self.store)]
        firsts = np.cumsum([0, *counts]).tolist()

        def part(place: int, restart: int) -> np.ndarray:
            order = document_order(counts[place], self.data_seed, pass_index, self.buffer_size, place, restart)
            return order + firsts[place]

        if self.mix is None:
            return part(0, 0)
        lengths = self.store.lengths_N.tolist()
        parts = [lambda place, restart: part(place, restart).tolist()] * len(counts)
        return np.fromiter(in_order(parts, self.mix, lengths.__getitem__), dtype=np.int64)

    def locate(self, index: int) -> tuple[int, int]:
        """Return the pass of block `index` of the run, and its place in the pass.

        Passes over one store are of one length; of a mixture each may be of another, and those before must be ordered.
        """
        if self.mix is None:
            return divmod(index, self.blocks_per_pass)
        while self._first[-1] <= index:
            self._first.append(self._first[-1] + max(len(self.pass_blocks(len(self._first) - 1)), 1))
        pass_index = int(np.searchsorted(self._first, index, side="right")) - 1
        return pass_index, index - self._first[pass_index]

    def pieces(self, index: int) -> tuple[int, list[Piece]]:
        """Return the pass that block `index` of the run is of, and what it holds."""
        pass_index, place = self.locate(index)
        return pass_index, self.pass_blocks(pass_index)[place]


class JoinedStores:
    """Several stores behind the interface of one: documents are numbered on from store to store, or as `order` says.

    >>> stores = [tiny_store([[1], [2, 2]]), tiny_store([[3, 3, 3]])]
    >>> JoinedStores(stores).lengths_N, JoinedStores(stores, order=np.array([2, 0])).tokens(0)
    (array([1, 2, 3], dtype=int32), array([3, 3, 3], dtype=uint16))
    """

    def __init__(self, stores: list[TokenStore], order: np.ndarray | None = None) -> None:
        self.stores = stores
        self.counts = [len(store) for store in stores]
        self._firsts = np.cumsum([0, *self.counts])
        self._order = np.arange(self._firsts[-1]) if order is None else order
        self.lengths_N = np.concatenate([store.lengths_N for store in stores])[self._order]
        self.num_bytes_N = np.concatenate([store.num_bytes_N for store in stores])[self._order]
        self.num_tokens = int(self.lengths_N.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self._order)

    def locate(self, document: int) -> tuple[int, int]:
        """Return the store that a document is in, and its number there."""
        number = int(self._order[document])
        part = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return part, number - int(self._firsts[part])

    def tokens(self, document: int) -> np.ndarray:
        """Return the (length,) ids of one document."""
        part, place = self.locate(document)
        return self.stores[part].tokens(place)

    def record_id(self, document: int) -> str:
        """Return the name of the record that a document holds."""
        part, place = self.locate(document)
        return self.stores[part].record_id(place)


def joined(stores: TokenStore | Iterable[TokenStore]) -> TokenStore | JoinedStores:
    """Return one store as it is, several as one."""
    several = list(stores) if isinstance(stores, (list, tuple)) else [stores]
    return several[0] if len(several) == 1 else JoinedStores(several)


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
