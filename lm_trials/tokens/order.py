"""Order: which document comes when.  One algorithm for memory-mapped, cached and streamed data.

Each pass sends its documents through a buffer of stated size, seeded by (data seed, pass): the buffer fills, then
each new document takes the place of a random one, which goes out; at the end the rest goes out shuffled.  A buffer
as large as the corpus is a full shuffle.  `datasets`' own buffer is not used because its content is lost when a
stream is resumed; this one is resumed by replaying it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
DRAWS = 4096


def random_bits(data_seed: int, pass_index: int, part: int = 0, restart: int = 0) -> np.random.Philox:
    """Return the random bits of one pass, of which only `random_raw` is used; each part of a mixture has its own.

    NumPy promises that `SeedSequence` and the raw bits of a bit generator stay the same in every version and on every
    machine; `Generator.integers` and `permutation` carry no such promise, and an order must not change with a NumPy.
    """
    words = [data_seed, pass_index, part, restart] if part or restart else [data_seed, pass_index]
    return np.random.Philox(np.random.SeedSequence(words))


def shuffled(
    items: Iterable[Item], data_seed: int, pass_index: int, buffer_size: int, part: int = 0, restart: int = 0
) -> Iterator[Item]:
    """Yield each item once, in the order of (data_seed, pass_index) through a buffer of `buffer_size` items.

    A buffer of 1 keeps the order of the source.  `part` and `restart` are of a mixture: which of its parts, and how
    often that has begun anew within the pass.

    >>> list(shuffled("abcdef", data_seed=0, pass_index=0, buffer_size=1))
    ['a', 'b', 'c', 'd', 'e', 'f']
    >>> sorted(shuffled("abcdef", data_seed=0, pass_index=0, buffer_size=3))
    ['a', 'b', 'c', 'd', 'e', 'f']
    """
    if buffer_size < 1:
        raise ValueError(f"a buffer of {buffer_size} documents holds nothing; give at least 1")
    bits = random_bits(data_seed, pass_index, part, restart)
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
    for place in np.argsort(bits.random_raw(len(buffer)), kind="stable").tolist():
        yield buffer[place]


def document_order(
    num_documents: int,
    data_seed: int,
    pass_index: int,
    buffer_size: int | None = None,
    part: int = 0,
    restart: int = 0,
) -> np.ndarray:
    """Return the (num_documents,) order of one pass; no buffer size means a full shuffle.

    >>> document_order(5, data_seed=1, pass_index=0, buffer_size=1)
    array([0, 1, 2, 3, 4])
    >>> sorted(document_order(5, data_seed=1, pass_index=0).tolist())
    [0, 1, 2, 3, 4]
    """
    size = max(num_documents, 1) if buffer_size is None else buffer_size
    stream = shuffled(range(num_documents), data_seed, pass_index, size, part, restart)
    return np.fromiter(stream, dtype=np.int64, count=num_documents)
