"""Pitfall P9: documents packed into one window must not see one another where they are said not to.

The leak tests change document 1 and look at the losses of document 2.  Of transformers' eight ways to pass
position ids, cache and mask, only the one that this project uses keeps them apart; three of the others are reproduced
here, and when upstream mends one its test says so.
"""

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_model

from lm_trials.evaluation.losses import Document, packed_windows, story_losses, token_losses

SECOND = np.array([1, 40, 41, 42, 43, 44])
FIRST = {"a": np.array([1, 20, 21, 22, 23]), "b": np.array([1, 30, 31, 32, 33])}
LAST = np.array([1, 50, 51])
ATTENTION = ("eager", "sdpa")

each_model = pytest.mark.parametrize("kind", KINDS)
each_attention = pytest.mark.parametrize("attention", ATTENTION)


def stories(first):
    return [Document(name, ids, len(ids)) for name, ids in (("1", FIRST[first]), ("2", SECOND), ("3", LAST))]


def nats_of_second(model, first, layout, across, block_size):
    return list(story_losses(model, stories(first), block_size, layout, 2, attention_across_documents=across))[1].nats


@each_model
@each_attention
@pytest.mark.parametrize("block_size", [64, 8, 3])
def test_apart_a_story_is_unmoved_by_its_neighbour_and_across_it_is_not(kind, attention, block_size):
    """Windows of 8 and 3 begin in the middle of a story too; with 3, a batch holds windows of several lengths."""
    model = tiny_model(kind, attention=attention)
    a, b = (nats_of_second(model, first, "packed", False, block_size) for first in FIRST)
    assert a == pytest.approx(b, abs=1e-5)
    a, b = (nats_of_second(model, first, "packed", True, block_size) for first in FIRST)
    # At 3 the second story begins as the last input of a window with the first: its first prediction alone can move.
    assert abs(a - b) > 1e-3


@each_model
@each_attention
def test_per_story_has_no_neighbour(kind, attention):
    model = tiny_model(kind, attention=attention)
    assert nats_of_second(model, "a", "per_story", True, 64) == pytest.approx(
        nats_of_second(model, "b", "per_story", True, 64), abs=1e-5
    )


@each_model
@each_attention
def test_padding_beside_a_shorter_window_moves_nothing(kind, attention):
    """Padded position ids are zeros, each of which looks like a document of its own: nobody asks what it predicts."""
    model = tiny_model(kind, attention=attention)
    short, long = (
        next(packed_windows(enumerate(documents), 64, attention_across_documents=False))
        for documents in (stories("a")[1:], stories("a") * 2)
    )
    assert len(short.input_ids_T) < len(long.input_ids_T)
    (alone, _), (beside, _) = token_losses(model, [short])[0], token_losses(model, [short, long])[0]
    assert beside == pytest.approx(alone, abs=1e-5)


def second_logits(model, first, **options):
    """Logits on document 2, packed after document 1 in a plain call of transformers' model."""
    ids = torch.tensor(np.concatenate([FIRST[first], SECOND]))[None]
    positions = torch.cat([torch.arange(len(FIRST[first])), torch.arange(len(SECOND))])[None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, **options).logits[0, len(FIRST[first]) :]


def leak(model, **options):
    mask = options.pop("ones", False)
    if mask:
        options["attention_mask"] = torch.ones(1, len(FIRST["a"]) + len(SECOND), dtype=torch.long)
    return float((second_logits(model, "a", **options) - second_logits(model, "b", **options)).abs().max())


@each_model
@each_attention
@pytest.mark.parametrize(
    "options",
    [{"use_cache": True}, {"use_cache": False, "ones": True}, {"use_cache": True, "ones": True}, {}],
    ids=["cache", "mask of ones", "cache and mask", "transformers' defaults"],
)
def test_transformers_leaks_with_a_cache_or_a_mask_whatever_the_positions_say(kind, attention, options):
    model = tiny_model(kind, attention=attention)
    assert leak(model, **options) > 1e-3
    assert leak(model, use_cache=False) < 1e-5
