"""Blocks: fixed-length windows over a token store in a given document order.

A block is a view: nothing is packed beforehand, and one pass over the whole stream defines all blocks, so they are
the same for any worker count or batch size.  Packing inside a batched, multi-process `map`, as the common recipe
does, makes another training set for each batch size and drops a remainder per batch (pitfall P13); here there is
one remainder a pass, at its end, and it is counted.

Shape suffixes: T = tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm_trials.console import UsageError
from lm_trials.data.order import document_order
from lm_trials.data.tokens import TokenStore


@dataclass(frozen=True)
class Block:
    """One block: its ids, the document of each id, and each id's place since its document began in this block."""

    input_ids_T: np.ndarray
    documents_T: np.ndarray
    position_ids_T: np.ndarray


class Blocks:
    """All blocks of one pass over `store`, whose documents come in `order` (default: as stored).

    >>> store = tiny_store([[5, 6, 7], [8], [9, 9, 9]])
    >>> blocks = Blocks(store, block_size=4, order=np.array([1, 0, 2]))
    >>> len(blocks), blocks.remainder
    (1, 3)
    >>> blocks[0].input_ids_T, blocks[0].documents_T, blocks[0].position_ids_T
    (array([8, 5, 6, 7]), array([1, 0, 0, 0]), array([0, 0, 1, 2]))
    """

    def __init__(self, store: TokenStore, block_size: int, order: np.ndarray | None = None) -> None:
        self.store = store
        self.block_size = block_size
        self.order = np.arange(len(store)) if order is None else order
        self._ends = np.cumsum(store.lengths_N[self.order], dtype=np.int64)
        self.remainder = store.num_tokens % block_size

    def __len__(self) -> int:
        return self.store.num_tokens // self.block_size

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        at = index * self.block_size
        return self.window(at, at + self.block_size)

    def window(self, start: int, stop: int) -> Block:
        """Return tokens `start` to `stop` of the pass's stream."""
        ids, documents, positions = [], [], []
        for document, skipped, length in self.spans(start, stop):
            ids.append(self.store.tokens(document)[skipped : skipped + length])
            documents.append(np.full(length, document))
            positions.append(np.arange(length))
        return Block(np.concatenate(ids).astype(np.int64), np.concatenate(documents), np.concatenate(positions))

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


class TrainingBlocks:
    """The blocks of a whole run, pass after pass, as one map-style data set for the Trainer.

    Each pass orders the documents anew by (data_seed, pass) and packs them; block i of the run is block
    `i % blocks_per_pass` of pass `i // blocks_per_pass`.  One long data set, read in sequence, keeps the Trainer's
    own resuming exact (it skips batches by their number) and leaves no partial batch at the end of a pass.

    Args:
        store: the tokens.
        block_size: tokens of a block.
        num_blocks: blocks of the whole run.
        data_seed: seed of the order.
        buffer_size: documents of the shuffle buffer; None is a full shuffle, 1 keeps the order of the store.
        attention_across_documents: False adds `position_ids` that start anew with each document, which is how
            transformers tells documents apart when there is neither an attention mask nor a cache.

    Raises:
        UsageError: if the store does not fill one block.
    """

    def __init__(
        self,
        store: TokenStore,
        block_size: int,
        num_blocks: int,
        data_seed: int,
        buffer_size: int | None = None,
        attention_across_documents: bool = True,
    ) -> None:
        self.store = store
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.data_seed = data_seed
        self.buffer_size = buffer_size
        self.attention_across_documents = attention_across_documents
        self.blocks_per_pass = blocks_per_pass(store, block_size)
        self._pass_index = -1
        self._pass: Blocks | None = None

    def __len__(self) -> int:
        return self.num_blocks

    def pass_blocks(self, pass_index: int) -> Blocks:
        """Return the blocks of one pass; the last one asked for is kept."""
        if self._pass is None or pass_index != self._pass_index:
            order = document_order(len(self.store), self.data_seed, pass_index, self.buffer_size)
            self._pass, self._pass_index = Blocks(self.store, self.block_size, order), pass_index
        return self._pass

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        pass_index, place = divmod(index, self.blocks_per_pass)
        block = self.pass_blocks(pass_index)[place]
        example = {"input_ids": block.input_ids_T, "labels": block.input_ids_T}
        if not self.attention_across_documents:
            example["position_ids"] = block.position_ids_T
        return example


def blocks_per_pass(store: TokenStore, block_size: int) -> int:
    """Return how many whole blocks one pass holds.

    Raises:
        UsageError: if there is none.
    """
    if block_size < 2:
        raise UsageError(f"--block_size {block_size}: a block needs 2 tokens at least, one to see and one to predict")
    count = store.num_tokens // block_size
    if not count:
        raise UsageError(
            f"{store.num_tokens:,} tokens do not fill one block of {block_size}; "
            "lower --block_size or give more stories"
        )
    return count


def tiny_store(documents: list[list[int]]) -> TokenStore:
    """Build a store in memory, for examples and tests.

    >>> tiny_store([[1, 2], [3]]).tokens(1)
    array([3], dtype=uint16)
    """
    from datasets import Dataset

    from lm_trials.data.tokens import store_schema

    rows = [
        {"record_id": f"{number:032x}", "length": len(ids), "num_bytes": len(ids), "input_ids": ids}
        for number, ids in enumerate(documents)
    ]
    return TokenStore(Dataset.from_list(rows, features=store_schema(1 << 16)), manifest={})
