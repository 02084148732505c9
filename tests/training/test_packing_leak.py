"""Pitfall P9 on the way that training takes: blocks of the store, the collator, the Trainer's own forward."""

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_model
from transformers import TrainingArguments, default_data_collator

from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
from lm_trials.training.trainer import StoryTrainer

SECOND = [1, 40, 41, 42, 43, 44, 45]
FIRST = {"a": [1, 20, 21, 22, 23], "b": [1, 30, 31, 32, 33]}
BLOCK = len(SECOND) + len(FIRST["a"])


def blocks(first, across):
    """One block of two documents in the order of the store."""
    store = tiny_store([FIRST[first], SECOND])
    return TrainingBlocks(store, BLOCK, 2, data_seed=0, buffer_size=1, attention_across_documents=across)


def trainer_of(model, data, folder):
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", max_steps=1
    )
    return StoryTrainer(model=model, args=args, train_dataset=data, eval_block_size=BLOCK)


def outputs_on_second(kind, attention, first, across, folder):
    """Logits and gradient on document 2 as the Trainer's `compute_loss` makes them in training."""
    model = tiny_model(kind, attention=attention, dropout=0.0)
    data = blocks(first, across)
    trainer = trainer_of(model, data, folder)
    batch = trainer._prepare_inputs(default_data_collator([data[0], data[1]]))
    # Only predictions inside document 2 count, so that the gradient is document 2's alone.
    batch["labels"][:, : len(FIRST[first]) + 1] = -100
    model.train()
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    inner = model.transformer.h[0].mlp.c_fc if kind == "gpt2" else model.model.layers[0].mlp.up_proj
    return outputs.logits[:, len(FIRST[first]) :].detach(), inner.weight.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_learned_from_a_story_depends_on_its_neighbour_only_where_attention_crosses(kind, attention, tmp_path):
    for across in (False, True):
        (logits_a, gradient_a), (logits_b, gradient_b) = (
            outputs_on_second(kind, attention, first, across, tmp_path) for first in FIRST
        )
        moved = [float((a - b).abs().max()) for a, b in ((logits_a, logits_b), (gradient_a, gradient_b))]
        assert min(moved) > 1e-3 if across else max(moved) < 1e-5, (across, moved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_turns_the_cache_off_without_which_documents_leak(kind, tmp_path):
    """The guard rests on two defaults: the Trainer sets `config.use_cache` to False, the collator makes no mask."""
    model = tiny_model(kind)
    assert model.config.use_cache
    data = blocks("a", False)
    trainer_of(model, data, tmp_path)
    batch = default_data_collator([data[0]])
    assert not model.config.use_cache
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["position_ids"].tolist() == [[*range(5), *range(7)]]
    assert set(default_data_collator([blocks("a", True)[0]])) == {"input_ids", "labels"}


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_cache_on_the_same_blocks_leak(kind):
    """The control, and why the test above exists."""
    model = tiny_model(kind)
    batches = [default_data_collator([blocks(first, False)[0]]) for first in FIRST]
    with torch.no_grad():
        for use_cache in (True, False):
            a, b = (model(**batch, use_cache=use_cache).logits[0, len(FIRST["a"]) :].numpy() for batch in batches)
            assert (np.abs(a - b).max() > 1e-3) == use_cache
