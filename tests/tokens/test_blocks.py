"""Blocks: each token once, whatever the order, the batch size and the workers; and the recipe that does not do this."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lm_trials.console import UsageError
from lm_trials.tokens.blocks import Blocks, TrainingBlocks, tiny_store
from lm_trials.tokens.order import document_order, shuffled

DOCUMENTS = st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, st.integers(2, 9), st.integers(0, 5))
def test_every_token_is_in_one_block_or_in_the_counted_remainder(documents, block_size, seed):
    order = document_order(len(documents), data_seed=seed, pass_index=0)
    stream = [token for document in order for token in documents[document]]
    blocks = Blocks(tiny_store(documents), block_size, order)
    packed = [token for n in range(len(blocks)) for token in tokens_of(blocks, n)]
    assert packed == stream[: len(packed)]
    assert len(packed) + blocks.remainder == len(stream)
    assert blocks.remainder < block_size


def tokens_of(blocks, index):
    return [token for piece in blocks[index] for token in piece.ids_T.tolist()]


def test_positions_begin_anew_with_each_document():
    store = tiny_store([[5, 6, 7], [8, 9]])
    block = TrainingBlocks(store, 5, 1, data_seed=0, buffer_size=1, attention_across_documents=False)[0]
    assert block["position_ids"].tolist() == [0, 1, 2, 0, 1]
    assert [(piece.document, piece.skipped, len(piece.ids_T)) for piece in Blocks(store, 4)[0]] == [
        (0, 0, 3),
        (1, 0, 1),
    ]


@pytest.mark.end_to_end
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_and_workers_change_no_block(workers, batch_size):
    documents = [[n, n + 1, n + 2] for n in range(20)]
    blocks = TrainingBlocks(tiny_store(documents), block_size=4, num_blocks=40, data_seed=3)
    expected = [blocks[n]["input_ids"].tolist() for n in range(40)]
    found = [
        row.tolist() for batch in DataLoader(blocks, batch_size, num_workers=workers) for row in batch["input_ids"]
    ]
    assert found == expected
    other = TrainingBlocks(tiny_store(documents), block_size=4, num_blocks=40, data_seed=4)
    assert [other[n]["input_ids"].tolist() for n in range(40)] != expected


def test_passes_have_orders_of_their_own():
    blocks = TrainingBlocks(tiny_store([[n, n] for n in range(50)]), block_size=4, num_blocks=50, data_seed=0)
    first, second = (np.concatenate([blocks[p * 25 + n]["input_ids"] for n in range(25)]) for p in range(2))
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()


def test_documents_kept_apart_carry_positions_and_others_do_not():
    store = tiny_store([[1, 2], [3, 4]])
    assert "position_ids" not in TrainingBlocks(store, 4, 1, 0)[0]
    assert "position_ids" in TrainingBlocks(store, 4, 1, 0, attention_across_documents=False)[0]


def test_a_store_smaller_than_a_block_is_refused():
    with pytest.raises(UsageError, match="--block_size 4 is more than the 3 tokens"):
        TrainingBlocks(tiny_store([[1, 2, 3]]), 4, 1, 0)


def group_texts(documents, block_size, batch_size):
    """The common recipe: pack each batch of a batched map by itself and drop what is left of it."""
    blocks = []
    for at in range(0, len(documents), batch_size):
        stream = [token for document in documents[at : at + batch_size] for token in document]
        blocks += [stream[n : n + block_size] for n in range(0, len(stream) // block_size * block_size, block_size)]
    return blocks


def test_packing_inside_batches_would_change_the_training_set():
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 300, size=generator.integers(3, 20)).tolist() for _ in range(60)]
    by_batch = {size: group_texts(documents, 8, size) for size in (5, 7, 60)}
    assert by_batch[5] != by_batch[7]
    assert len(by_batch[5]) < len(by_batch[60])  # remainders dropped batch by batch
    blocks = Blocks(tiny_store(documents), 8)
    assert [tokens_of(blocks, n) for n in range(len(blocks))] == by_batch[60]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 9), st.integers(0, 3))
def test_an_order_is_a_permutation_and_a_stream_has_the_same(count, buffer_size, seed, pass_index):
    order = document_order(count, seed, pass_index, buffer_size).tolist()
    assert sorted(order) == list(range(count))
    assert list(shuffled(iter(range(count)), seed, pass_index, buffer_size)) == order


def test_a_buffer_of_one_keeps_the_order_and_seeds_and_passes_differ():
    assert document_order(30, 0, 0, buffer_size=1).tolist() == list(range(30))
    orders = {tuple(document_order(30, seed, p).tolist()) for seed in range(3) for p in range(3)}
    assert len(orders) == 9
