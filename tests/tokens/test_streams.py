"""Streams: the blocks of a token store, in its order, in every pass; and what the stack's own streams do instead."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lm_trials.console import UsageError
from lm_trials.tokens.blocks import JoinedStores, TrainingBlocks, tiny_store
from lm_trials.tokens.mixtures import Mix
from lm_trials.tokens.streams import RecordStream, StreamBlocks, StreamedDocument, stored


class Ready(RecordStream):
    """A stream of documents that are tokens already."""

    def __init__(self, documents, name="tales"):
        super().__init__(name, iter, None, ([], []))
        object.__setattr__(self, "ready", documents)

    def documents(self, part=0):
        for place, ids in enumerate(self.ready):
            yield StreamedDocument(part, place, f"{place:032x}", np.array(ids), len(ids))


def corpus(seed, count, longest=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 300, size=rng.integers(1, longest)).tolist() for _ in range(count)]


def everything(blocks):
    """Return all that a block is: ids, positions, tokens of each part, and what it holds of which document."""
    found = []
    for index in range(len(blocks)):
        pass_index, pieces = blocks.pieces(index)
        found.append((pass_index, [(p.part, p.document, p.record_id, p.skipped, p.ids_T.tolist()) for p in pieces]))
    return found, [{name: row.tolist() for name, row in blocks[index].items()} for index in range(len(blocks))]


MIXES = [
    Mix((0.5, 0.5)),
    Mix((0.3, 0.7), stop_when="all_exhausted"),
    Mix((0.3, 0.7), unit="documents"),
    Mix((0.9, 0.1), unit="documents", stop_when="all_exhausted"),
]


@pytest.mark.end_to_end
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 90), st.integers(2, 40), st.booleans())
def test_a_stream_gives_the_blocks_of_the_store_in_every_pass(seed, buffer_size, block_size, attention):
    documents = corpus(seed, 60)
    more = (block_size, 3 * sum(map(len, documents)) // block_size, seed, buffer_size, attention)
    stream = everything(StreamBlocks([Ready(documents)], *more))
    assert stream == everything(TrainingBlocks(tiny_store(documents), *more))
    assert {pass_index for pass_index, _ in stream[0]} >= {0, 1, 2}


@pytest.mark.end_to_end
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MIXES), st.integers(0, 9), st.integers(1, 90), st.integers(2, 40))
def test_a_mixture_of_streams_gives_the_blocks_of_the_mixture_of_stores(mix, seed, buffer_size, block_size):
    parts = [corpus(seed, 40), corpus(seed + 1, 25, longest=40)]
    more = (block_size, 1500 // block_size, seed, buffer_size, True, mix)
    streamed = everything(StreamBlocks([Ready(part) for part in parts], *more))
    assert streamed == everything(TrainingBlocks([tiny_store(part) for part in parts], *more))
    other = (block_size, 1500 // block_size, seed + 1, buffer_size, True, mix)
    if buffer_size > 1:
        assert everything(StreamBlocks([Ready(part) for part in parts], *other)) != streamed


@pytest.mark.parametrize("mix", [None, MIXES[0]])
def test_no_record_is_seen_twice_or_never_within_a_pass(mix):
    """Tokens count: a document may lie in two blocks, and only the remainder of the pass is in none."""
    parts = [corpus(0, 50)] if mix is None else [corpus(0, 50), corpus(1, 50)]
    blocks = StreamBlocks([Ready(part) for part in parts], 16, 200, 3, 20, True, mix)
    by_pass = {}
    for index in range(200):
        pass_index, pieces = blocks.pieces(index)
        seen = by_pass.setdefault(pass_index, Counter())
        seen.update((p.part, p.document, p.skipped + n) for p in pieces for n in range(len(p.ids_T)))
    assert len(by_pass) > 2
    for pass_index in list(by_pass)[:-1]:
        assert set(by_pass[pass_index].values()) == {1}
        if mix is None:
            missing = sum(map(len, parts[0])) - len(by_pass[pass_index])
            assert missing == sum(map(len, parts[0])) % 16


def test_blocks_may_be_asked_for_in_any_order():
    documents = corpus(0, 60)
    blocks = StreamBlocks([Ready(documents)], 16, 60, 0, 10)
    straight = [blocks[n]["input_ids"].tolist() for n in range(60)]
    assert [blocks[n]["input_ids"].tolist() for n in (7, 8, 40, 3, 59, 0)] == [
        straight[n] for n in (7, 8, 40, 3, 59, 0)
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than this machine's cores
@pytest.mark.parametrize(
    ("workers", "context"),
    [(0, None), (1, "fork"), (2, "fork"), (4, "fork"), pytest.param(2, "spawn", marks=pytest.mark.end_to_end)],
)
def test_workers_change_no_block(workers, context, tiny_data):
    blocks = StreamBlocks([tiny_stream(tiny_data)], 64, 24, 1, 50)
    expected = [blocks[n]["input_ids"].tolist() for n in range(24)]
    blocks[20]  # an open stream cannot be pickled, and is left behind
    batches = DataLoader(blocks, 3, num_workers=workers, multiprocessing_context=context)
    assert [row.tolist() for batch in batches for row in batch["input_ids"]] == expected


def tiny_stream(tiny_data, marks=([1], [])):
    from lm_trials.data.documents import corpus_pairs
    from lm_trials.tokens.tokenizers import load_tokenizer

    pairs = partial(corpus_pairs, tiny_data / "tiny", "train")
    return RecordStream("tiny, train", pairs, load_tokenizer(tiny_data / "tok400"), marks)


def test_documents_are_tokenised_as_the_store_has_them(tiny_data):
    from lm_trials.tokens.stores import TokenStore, store_folder
    from lm_trials.tokens.tokenizers import load_tokenizer

    stream = tiny_stream(tiny_data)
    store = TokenStore.open(store_folder(tiny_data / "tiny", load_tokenizer(tiny_data / "tok400"), False), "train")
    found = list(stream.documents())
    assert [d.ids.tolist() for d in found] == [store.tokens(n).tolist() for n in range(len(store))]
    assert [d.num_bytes for d in found] == store.num_bytes_N.tolist()
    held = stored(stream, 7)
    assert [held.record_id(n) for n in range(7)] == [store.record_id(n) for n in range(7)]
    assert len(held) == 7
    assert next(tiny_stream(tiny_data, ([], [2])).documents()).ids.tolist() == [*found[0].ids[1:].tolist(), 2]


def test_a_stream_smaller_than_a_block_is_refused_and_not_read_for_ever():
    with pytest.raises(UsageError, match="--block_size 9 is more than the tokens of a pass over tales"):
        StreamBlocks([Ready([[1, 2], [3]])], 9, 4, 0)[0]


def test_a_part_of_a_mixture_is_told_from_the_others():
    joined = JoinedStores([tiny_store([[1, 2], [3]]), tiny_store([[4]])])
    assert [joined.locate(n) for n in range(3)] == [(0, 0), (0, 1), (1, 0)]


# What the stack does instead, reproduced on what is installed.


def test_the_librarys_own_buffer_loses_records_when_it_is_resumed(recwarn):
    """Pitfall P5, and why no `datasets` stream with a buffer is used here."""
    rows = Dataset.from_dict({"n": list(range(200))}).to_iterable_dataset(num_shards=2)
    stream = rows.shuffle(seed=0, buffer_size=20)
    straight = [row["n"] for row in stream]
    first, state = [], None
    for row in stream:
        first.append(row["n"])
        if len(first) == 50:
            state = stream.state_dict()
            break
    again = rows.shuffle(seed=0, buffer_size=20)
    again.load_state_dict(state)
    found = first + [row["n"] for row in again]
    assert found != straight
    assert set(range(200)) - set(found) or len(found) != len(set(found))


def test_ours_resumes_by_replaying_and_loses_none():
    documents = [[n, n] for n in range(200)]
    blocks = StreamBlocks([Ready(documents)], 4, 250, 0, 20)
    straight = [blocks[n]["input_ids"].tolist() for n in range(250)]
    for at in (1, 50, 100, 130, 249):
        resumed = StreamBlocks([Ready(documents)], 4, 250, 0, 20)
        assert [resumed[n]["input_ids"].tolist() for n in range(at, 250)] == straight[at:]


def test_a_stream_without_documents_cannot_be_evaluated():
    assert len(stored(Ready([[1, 2]]), None)) == 1
    with pytest.raises(UsageError, match="tales has no story"):
        stored(Ready([]), None)
