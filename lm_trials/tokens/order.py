"""Order: one algorithm for memory-mapped, cached and streamed data.

Each pass sends its documents through a buffer of given size, seeded by (data seed, pass): the buffer fills, then each
new document replaces a random one, which is yielded; at the end the rest is shuffled.  A buffer as large as the corpus
is a full shuffle.  `datasets` loses the content of its buffer when a stream is resumed; this one is replayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
DRAWS = 4096  # random numbers drawn at once; one NumPy call per document would dominate. Changing it changes orders


def random_bits(data_seed: int, pass_index: int, *of: int) -> np.random.Philox:
    """Return the random bits of one pass, for `random_raw`.

    `of` are further seeds: a mixture's part, how often it has restarted within the pass, and a schedule's phase.

    NumPy guarantees the same `SeedSequence` and raw bits in every version.  It does not for `Generator.integers` and
    `permutation`, and an order must not change with NumPy's version.
    """
    words = [data_seed, pass_index, *of] if any(of) else [data_seed, pass_index]
    return np.random.Philox(np.random.SeedSequence(words))


def shuffled(items: Iterable[Item], data_seed: int, pass_index: int, buffer_size: int, *of: int) -> Iterator[Item]:
    """Yield each item once, in the order of (data_seed, pass_index, `of`) through a buffer of `buffer_size` items.

    A buffer of 1 keeps the order of the source.

    >>> list(shuffled("abcdef", data_seed=0, pass_index=0, buffer_size=1))
    ['a', 'b', 'c', 'd', 'e', 'f']
    """
    if buffer_size < 1:
        raise ValueError(f"a buffer of {buffer_size} documents is empty; give at least 1")
    bits = random_bits(data_seed, pass_index, *of)
    buffer: list[Item] = []
    places: list[int] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        if not places:
            # 32 random bits scaled to the buffer: biased by buffer_size / 2**32 at most.
            places = ((bits.random_raw(DRAWS) >> np.uint64(32)) * np.uint64(buffer_size) >> np.uint64(32)).tolist()
        place = places.pop()
        yield buffer[place]
        buffer[place] = item
    # argsort of raw bits instead of `permutation`, whose results NumPy may change; stable, so that a tie of two of 5
    # million draws (chance 1e-6) has one order too.
    for place in np.argsort(bits.random_raw(len(buffer)), kind="stable").tolist():
        yield buffer[place]


def document_order(
    num_documents: int, data_seed: int, pass_index: int, buffer_size: int | None = None, *of: int
) -> np.ndarray:
    """Return the (num_documents,) order of one pass; no buffer size means a full shuffle.

    >>> document_order(5, data_seed=1, pass_index=0, buffer_size=1)
    array([0, 1, 2, 3, 4])
    """
    size = max(num_documents, 1) if buffer_size is None else buffer_size
    stream = shuffled(range(num_documents), data_seed, pass_index, size, *of)
    return np.fromiter(stream, dtype=np.int64, count=num_documents)
