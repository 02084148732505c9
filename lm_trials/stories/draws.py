"""Draws: random numbers that depend only on a seed, a purpose and a record.

There is no generator with a state, so the draw of a record is the same streamed, cached, sharded or shuffled, for any
number of workers.  Integers are hashed in batches; one `random.Random` per record would take 6.6 microseconds.

Shape suffixes: N = records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def record_keys(record_ids: Iterable[str]) -> np.ndarray:
    """Return the first 64 bits of each record's name, as (N,) unsigned integers.

    >>> record_keys(["00000000000000ff" + "0" * 16])
    array([255], dtype=uint64)
    """
    return np.array([int(name[:16], 16) for name in record_ids], dtype=np.uint64)


def draw_integers(keys_N: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Return (N,) unsigned 64-bit integers, one a record, independent between purposes and seeds.

    The mixing is splitmix64's finalizer (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), applied twice to
    the record's key and a 64-bit hash of seed and purpose.

    >>> keys = record_keys(["0123456789abcdef" + "0" * 16])
    >>> draw_integers(keys, seed=0, purpose="order") == draw_integers(keys, seed=1, purpose="order")
    array([False])
    """
    salt = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        mixed_N = _mix(keys_N.astype(np.uint64) ^ np.uint64(int.from_bytes(salt, "big")))
        return _mix(mixed_N + np.uint64(0x9E3779B97F4A7C15))


def draw_uniform(keys_N: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Return (N,) floats in [0, 1) with 53 random bits, drawn as by `draw_integers`."""
    return (draw_integers(keys_N, seed, purpose) >> np.uint64(11)) * 2.0**-53


def _mix(values_N: np.ndarray) -> np.ndarray:
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))
