"""Phases: the order is NumPy's, within windows and with the stated ties; filters keep the right records; schedules."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
from lm_trials.tokens.mixtures import Mix
from lm_trials.tokens.order import document_order
from lm_trials.tokens.phases import Arrangement, Passes, Phase, ranks

# Few values and ids, so that most are tied.
VALUES = st.lists(st.tuples(st.sampled_from([1.0, 2.0, -0.0, 0.0, float("nan")]), st.sampled_from("abc")), max_size=30)


def numpys(rows, values, ids, descending):
    """Rows sorted by NumPy alone: by value, then id, then row, and nan last."""
    keys = -values if descending else values
    return [rows[n] for n in np.lexsort((rows, ids[rows], keys[rows]))]


@settings(deadline=None)
@given(VALUES, st.booleans(), st.integers(2, 12), st.integers(0, 5), st.data())
def test_the_order_is_numpys_within_windows_of_the_kept(documents, descending, window, seed, data):
    values, ids = np.array([v for v, _ in documents]), np.array([i for _, i in documents], dtype="U1")
    rank = ranks(values, pa.array(ids.tolist(), pa.string()), descending)
    kept = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    for some in (None, kept):
        rows = np.arange(len(ids)) if some is None else kept
        found = Arrangement(kept_K=some, rank_N=rank).order(len(ids), seed, 0)
        assert found.tolist() == numpys(rows, values, ids, descending)
        seeded = rows[document_order(len(rows), seed, 3)]
        expected = [
            n for at in range(0, len(rows), window) for n in numpys(seeded[at : at + window], values, ids, descending)
        ]
        assert Arrangement(None, some, rank, window).order(len(ids), seed, 3).tolist() == expected


def test_descending_is_no_reversal_and_a_window_is_another_order():
    values, ids = np.array([1.0, 2.0, 1.0, np.nan]), pa.array(["b", "c", "a", "d"])
    up, down = (
        Arrangement(rank_N=ranks(values, ids, descending)).order(4, 0, 0).tolist() for descending in (False, True)
    )
    assert (up, down) == ([2, 0, 1, 3], [1, 2, 0, 3])
    many = np.arange(50.0)
    rank = ranks(many, pa.array([f"{n:02}" for n in range(50)]))
    assert Arrangement(rank_N=rank).order(50, 0, 0).tolist() == list(range(50))
    assert Arrangement(rank_N=rank, window=10).order(50, 0, 0).tolist() != list(range(50))


def records(blocks, count):
    """The pass and the documents of each block, as (part, document)."""
    found = [blocks.pieces(n) for n in range(count)]
    return [(number, [(piece.part, piece.document) for piece in pieces]) for number, pieces in found]


STORE = tiny_store([[n, n] for n in range(40)])


def test_one_phase_of_all_documents_is_the_run_without_a_schedule():
    plain, phased = (TrainingBlocks(STORE, 4, 90, 3, phases=phases) for phases in ((), (Phase(),)))
    assert records(plain, 90) == records(phased, 90)
    assert records(plain, 90) != records(TrainingBlocks(STORE, 4, 90, 3, phases=(Phase(last_update=1), Phase())), 90)


def test_a_phase_by_updates_begins_a_pass_of_its_own():
    rank = ranks(np.arange(40.0)[::-1].copy(), STORE.record_ids())
    first = Phase((Arrangement(kept_K=np.arange(8), rank_N=rank),), last_update=3)
    blocks = TrainingBlocks(STORE, 4, 40, 0, phases=(first, Phase()), blocks_per_update=2)
    found = records(blocks, 40)
    easy = [[(0, 7), (0, 6)], [(0, 5), (0, 4)], [(0, 3), (0, 2)], [(0, 1), (0, 0)]]
    assert found[:6] == [(0, each) for each in easy] + [(1, each) for each in easy[:2]]
    assert [number for number, _ in found[6:]] == [2] * 20 + [3] * 14
    assert sorted(piece for _, pieces in found[6:26] for piece in pieces) == [(0, n) for n in range(40)]
    # Whatever the first phase read, the second is the same: not so, if its seeds counted the passes before it.
    other = TrainingBlocks(STORE, 4, 40, 0, phases=(Phase(last_update=3), Phase()), blocks_per_update=2)
    assert [pieces for _, pieces in records(other, 40)[6:]] == [pieces for _, pieces in found[6:]]
    assert [pieces for _, pieces in records(other, 40)[:6]] != [pieces for _, pieces in found[:6]]


def test_a_phase_by_passes_leaves_the_other_passes_as_they_are():
    rank = ranks(np.arange(40.0), STORE.record_ids())
    sorted_then = TrainingBlocks(STORE, 4, 60, 0, phases=(Phase((Arrangement(rank_N=rank),), last_pass=1), Phase()))
    plain = TrainingBlocks(STORE, 4, 60, 0)
    assert records(sorted_then, 60)[20:] == records(plain, 60)[20:]
    assert records(sorted_then, 20) == [(0, [(0, 2 * n), (0, 2 * n + 1)]) for n in range(20)] != records(plain, 20)
    assert (sorted_then.passes.blocks_in(2), sorted_then.passes.blocks_in(1.5)) == (40, 30)


def test_any_access_gives_the_same_blocks():
    phases = (Phase((Arrangement(kept_K=np.arange(9)),), last_update=4), Phase())
    straight = records(TrainingBlocks(STORE, 4, 60, 1, phases=phases, blocks_per_update=2), 60)
    blocks = TrainingBlocks(STORE, 4, 60, 1, phases=phases, blocks_per_update=2)
    for n in (59, 3, 8, 7, 30, 0):
        assert records_of(blocks, n) == straight[n]
    assert straight[7] != straight[8]


def records_of(blocks, n):
    number, pieces = blocks.pieces(n)
    return number, [(piece.part, piece.document) for piece in pieces]


def test_a_schedule_injects_one_part_of_a_mixture():
    """Each part is filtered and sorted by itself; a phase may leave a part out."""
    stores = [tiny_store([[n, n] for n in range(20)]), tiny_store([[100 + n, n] for n in range(10)])]
    own = (Arrangement(), Arrangement(kept_K=np.arange(4), rank_N=ranks(np.arange(10.0), stores[1].record_ids(), True)))
    phases = (
        Phase(own, (0,), last_update=3),
        Phase(own, (0, 1), Mix((0.5, 0.5), "documents", "first_exhausted"), last_update=5),
        Phase(own, (0,)),
    )
    mix = Mix((0.5, 0.5), "documents")
    blocks = TrainingBlocks(stores, 4, 24, 0, None, True, mix, phases, 2)
    shares = np.stack([blocks[n]["part_tokens"] for n in range(24)])
    assert shares[:6].tolist() == shares[10:].tolist()[:6] == [[4, 0]] * 6
    assert shares[6:10].tolist() == [[2, 2]] * 4
    injected = [piece.document for n in range(6, 10) for piece in blocks.pieces(n)[1] if piece.part == 1]
    assert injected == [3, 2, 1, 0]
    # The control without an injection reads the same documents of the other part, before, during and after it.
    never = TrainingBlocks(
        stores, 4, 24, 0, None, True, mix, (phases[0], Phase(own, (0,), last_update=5), phases[2]), 2
    )
    first = [piece.document for n in range(6, 10) for piece in blocks.pieces(n)[1] if piece.part == 0]
    assert first == [piece.document for n in range(6, 8) for piece in never.pieces(n)[1]]
    assert records(blocks, 24)[:6] == records(never, 24)[:6]
    assert [each for _, each in records(blocks, 24)[10:]] == [each for _, each in records(never, 24)[10:]]


def test_a_phase_that_fills_no_block_is_refused():
    phases = (Phase(last_update=1), Phase((Arrangement(kept_K=np.array([3])),)))
    with pytest.raises(UsageError, match="more than the 2 tokens of a pass of phase 2 of --order_schedule"):
        TrainingBlocks(STORE, 4, 1, 0, phases=phases)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=4), st.integers(1, 3))
def test_passes_are_those_of_a_simulation(spans, per_update):
    """Block by block: a pass ends with its documents or with its phase."""
    ends = np.cumsum([updates for updates, _ in spans])
    phases = [Phase(last_update=int(end)) for end in ends]
    passes = Passes(phases, per_update, lambda phase, number: spans[phase][1])
    expected, number, place, before = [], -1, 0, None
    for block in range(int(ends[-1]) * per_update):
        phase = int(np.searchsorted(ends, block // per_update, side="right"))
        place += 1
        if phase != before or place == spans[phase][1]:
            number, place, before = number + 1, 0, phase
        expected.append((number, place))
    assert [passes.locate(block) for block in range(len(expected))] == expected
    assert sum(read for _, read in passes.read(len(expected))) == len(expected)
