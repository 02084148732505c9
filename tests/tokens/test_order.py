"""Order: a seeded permutation, the same for a stream and an index, pinned, and without a preference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.tokens.order import DRAWS, document_order, shuffled


@settings(deadline=None)
@given(st.integers(0, 80), st.integers(1, 90), st.integers(0, 2**40), st.integers(0, 3))
def test_an_order_is_a_permutation_and_a_stream_has_the_same(count, buffer_size, seed, pass_index):
    order = document_order(count, seed, pass_index, buffer_size).tolist()
    assert sorted(order) == list(range(count))
    assert list(shuffled(iter(range(count)), seed, pass_index, buffer_size)) == order


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 30))
def test_any_buffer_that_holds_everything_is_the_same_full_shuffle(count, seed, more):
    assert document_order(count, seed, 0, count + more).tolist() == document_order(count, seed, 0).tolist()


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 20), st.integers(0, 9))
def test_a_document_comes_at_most_a_buffer_early(count, buffer_size, seed):
    order = document_order(count, seed, 0, buffer_size)
    assert (order - np.arange(count) < buffer_size).all()


def test_seeds_passes_and_buffers_differ_and_repeat():
    orders = {
        (seed, p, size): tuple(document_order(40, seed, p, size))
        for seed in range(3)
        for p in range(3)
        for size in (5, 40)
    }
    assert len(set(orders.values())) == len(orders)
    assert orders == {key: tuple(document_order(40, *key)) for key in orders}
    assert document_order(30, 0, 0, buffer_size=1).tolist() == list(range(30))


# The order of a run that someone published; a change here changes every training, silently.
PINNED = {
    (12, 0, 0, None): [0, 8, 9, 3, 7, 5, 1, 11, 2, 10, 6, 4],
    (12, 1, 2, None): [7, 1, 3, 0, 4, 8, 9, 2, 6, 5, 10, 11],
    (12, 0, 0, 4): [1, 3, 4, 5, 0, 7, 6, 8, 10, 2, 9, 11],
}


@pytest.mark.parametrize("key", PINNED, ids=str)
def test_an_order_never_changes(key):
    assert document_order(*key).tolist() == PINNED[key]


def test_a_long_order_never_changes():
    """Longer than one draw of random numbers."""
    order = document_order(3 * DRAWS, 5, 1, 1000)
    assert order[[0, 1, DRAWS, 2 * DRAWS, -1]].tolist() == [733, 841, 1050, 6556, 10547]


def test_the_draws_are_refilled_and_not_repeated():
    order = document_order(4 * DRAWS, 0, 0, 2)
    late = np.flatnonzero(order < np.arange(len(order)))  # documents that were held back
    halves = [set((late % DRAWS)[(late >= at) & (late < at + DRAWS)].tolist()) for at in (0, DRAWS)]
    assert halves[0] != halves[1]


def chi_square(counts):
    expected = counts.mean()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("place", [0, 7, 15])
@pytest.mark.parametrize("buffer_size", [None, 16])
def test_every_document_is_equally_likely_at_every_place(place, buffer_size):
    counts = np.bincount([document_order(16, seed, 0, buffer_size)[place] for seed in range(3200)], minlength=16)
    # 99.9 per cent of chi-square with 15 degrees of freedom lies below 37.7.
    assert chi_square(counts) < 37.7


def test_a_small_buffer_is_not_uniform():
    """The control of the test above: only the buffer's documents can come first."""
    counts = np.bincount([document_order(16, seed, 0, 4)[0] for seed in range(3200)], minlength=16)
    assert chi_square(counts) > 1000
    assert (counts[4:] == 0).all()
    # 99.9 per cent of chi-square with 3 degrees of freedom lies below 16.3.
    assert chi_square(counts[:4]) < 16.3


def test_neighbouring_seeds_and_passes_are_unrelated():
    orders = np.array([document_order(200, seed, p) for seed in range(10) for p in range(10)])
    correlations = np.corrcoef(orders)[np.triu_indices(100, 1)]
    # One standard error is 1 / sqrt(199) = 0.071; of 4,950 pairs the furthest is about 3.7 of them away.
    assert abs(correlations).max() < 5 * 0.071


def test_an_empty_buffer_is_refused():
    with pytest.raises(ValueError, match="a buffer of -1 documents is empty; give at least 1"):
        document_order(3, 0, 0, buffer_size=-1)
