"""Phases: which documents a run reads when, and in which order: sorted by a metric, filtered, by a schedule.

Sorting needs all documents, so a stream has one phase, in its seeded order.

Shape suffixes: N = documents of a store, K = those that are kept.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lm_trials.tokens.mixtures import Mix
from lm_trials.tokens.order import document_order


def ranks(values_N: np.ndarray, record_ids: pa.Array, descending: bool = False) -> np.ndarray:
    """Return the (N,) place of each document in the order of its value.

    Equal values are in the order of record ids, equal ids as stored, in both directions; nan comes last.

    >>> ranks(np.array([2.0, 1.0, 2.0, np.nan]), pa.array(["b", "c", "a", "d"]), descending=True)
    array([1, 2, 0, 3])
    """
    # Arrow reads the ids from the memory map: 1 million take 2.1 s, and NumPy, with a copy of them, 6.4 s.
    table = pa.table({"value": values_N, "record_id": record_ids})
    keys = [("value", "descending" if descending else "ascending"), ("record_id", "ascending")]
    rank_N = np.empty(len(values_N), dtype=np.int64)
    rank_N[pc.sort_indices(table, sort_keys=keys).to_numpy()] = np.arange(len(values_N))
    return rank_N


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The documents of a store that a pass reads, and their order.

    Attributes:
        buffer_size: documents of the shuffle buffer; None: a full shuffle, 1: as stored.
        kept_K: rows of the documents to read; None: all.
        rank_N: places to sort by (`ranks`); None: the seeded order.
        window: sort this many documents of the seeded order at a time; None: all.
    """

    buffer_size: int | None = None
    kept_K: np.ndarray | None = None
    rank_N: np.ndarray | None = None
    window: int | None = None

    def order(self, count: int, data_seed: int, pass_index: int, *of: int) -> np.ndarray:
        """Return the (K,) rows that one pass over `count` documents reads; the other arguments are seeds.

        >>> by_value = ranks(np.array([3.0, 1.0, 2.0]), pa.array(["a", "b", "c"]))
        >>> Arrangement(kept_K=np.array([0, 2]), rank_N=by_value).order(3, data_seed=0, pass_index=0)
        array([2, 0])
        """
        size = self.size(count)
        order_K = document_order(size, data_seed, pass_index, self.buffer_size, *of)
        if self.kept_K is not None:
            order_K = self.kept_K[order_K]
        if self.rank_N is None:
            return order_K
        windows_K = np.arange(size) // (self.window or max(size, 1))
        return order_K[np.lexsort((self.rank_N[order_K], windows_K))]

    def size(self, count: int) -> int:
        """Return how many of `count` documents are kept."""
        return count if self.kept_K is None else len(self.kept_K)


@dataclass(frozen=True, eq=False)
class Phase:
    """A section of a run.

    Attributes:
        arrangements: of each part of the data.
        places: parts that it reads.
        mix: how they are mixed; None for one.
        last_update, last_pass: where it ends, counted from 1 over the whole run; None: not.
    """

    arrangements: tuple[Arrangement, ...] = (Arrangement(),)
    places: tuple[int, ...] = (0,)
    mix: Mix | None = None
    last_update: int | None = None
    last_pass: int | None = None


class PassSeed(NamedTuple):
    """The phase of a pass, and the seeds of its order beside the data seed: its number, and perhaps the phase."""

    phase: int
    number: int
    of: tuple[int, ...] = ()


class Passes:
    """The passes of a run and their first blocks, found as far as they are asked for.

    A phase that ends after an update cuts its last pass short, and the next phase begins a pass.  The last goes on.

    Args:
        length: returns the blocks of a pass, by its phase and number.

    >>> passes = Passes((Phase(last_update=5), Phase()), blocks_per_update=2, length=lambda phase, number: 8)
    >>> [passes.locate(block) for block in (7, 8, 9, 10, 18)]
    [(0, 7), (1, 0), (1, 1), (2, 0), (3, 0)]
    >>> [seed.phase for seed in passes.seeds]
    [0, 0, 1, 1, 1]
    """

    def __init__(self, phases: Sequence[Phase], blocks_per_update: int, length: Callable[[int, int], int]) -> None:
        self.phases, self.blocks_per_update, self._length = phases, blocks_per_update, length
        self.seeds = [PassSeed(0, 0)]
        self._first = [0]

    def locate(self, block: int) -> tuple[int, int]:
        """Return the pass of a block of the run, and its place in the pass."""
        while self._first[-1] <= block:
            self._add()
        pass_index = bisect.bisect_right(self._first, block) - 1
        return pass_index, block - self._first[pass_index]

    def blocks_in(self, passes: float) -> float:
        """Return the blocks of the first passes, the last perhaps in part."""
        whole = int(passes)
        while len(self._first) <= whole + 1:
            self._add()
        return self._first[whole] + (passes - whole) * (self._first[whole + 1] - self._first[whole])

    def read(self, count: int) -> Iterator[tuple[PassSeed, int]]:
        """Yield each pass of the first `count` blocks, and how many of them it has."""
        last, _ = self.locate(count - 1)
        for pass_index in range(last + 1):
            yield self.seeds[pass_index], min(self._first[pass_index + 1], count) - self._first[pass_index]

    def _add(self) -> None:
        """Find where the pass after the last known one begins."""
        pass_index, seed = len(self.seeds) - 1, self.seeds[-1]
        phase, end = self.phases[seed.phase], self._first[-1] + max(self._length(seed.phase, pass_index), 1)
        following = seed._replace(number=seed.number + 1)
        if seed.phase + 1 < len(self.phases):  # the last phase goes on
            last_block = (phase.last_update or math.inf) * self.blocks_per_update
            if phase.last_pass == pass_index + 1:  # the next pass has the order that it has without a schedule
                following = following._replace(phase=seed.phase + 1)
            elif end >= last_block:
                end = int(last_block)
                # Not the number of passes so far, which depends on the documents of the phases before.
                following = PassSeed(seed.phase + 1, 0, (seed.phase + 1,))
        self._first.append(end)
        self.seeds.append(following)
