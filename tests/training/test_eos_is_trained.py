"""Pitfall P12: a model that is never shown where a story ends writes on for ever."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import DataCollatorForLanguageModeling, TrainingArguments, default_data_collator

from lm_trials.tokens.blocks import TrainingBlocks, tiny_store
from lm_trials.training.trainer import StoryTrainer

pytestmark = pytest.mark.end_to_end

BOS, EOS = 1, 2
STORIES = [[BOS, *np.random.default_rng(number).integers(3, 20, size=9).tolist(), EOS] for number in range(40)]


def test_the_library_collator_masks_real_ends_where_pad_is_eos():
    """Reproduced, so that a change upstream is seen.  A pad token of its own is what keeps the ends."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.eos_token_id == EOS
    examples = [{"input_ids": story} for story in STORIES[:2]]
    tokenizer.pad_token = tokenizer.eos_token
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(examples)["labels"]
    assert (labels == EOS).sum() == 0
    tokenizer.pad_token = tokenizer.unk_token
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(examples)["labels"]
    assert (labels == EOS).sum() == 2


def test_every_end_is_a_label_of_the_training_blocks():
    store = tiny_store(STORIES)
    data = TrainingBlocks(store, 11, len(STORIES), data_seed=0)
    labels = default_data_collator([data[index] for index in range(len(data))])["labels"]
    assert (labels == EOS).sum() == len(STORIES)
    assert (labels == -100).sum() == 0
    # The neighbour: a store without EOS has none to learn, and ends stories by the BOS of the next.
    without = TrainingBlocks(tiny_store([story[:-1] for story in STORIES]), 10, len(STORIES), data_seed=0)
    assert all(EOS not in without[index]["labels"] for index in range(len(without)))


def probability_of_eos(model):
    """Mean probability of EOS after the last token of each story."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor(STORIES)[:, :-1], use_cache=False).logits[:, -1]
    return float(logits.softmax(-1)[:, EOS].mean())


def trained(stories, folder):
    """The probability of EOS before and after 60 updates on `stories`; the weights are the same at the start."""
    data = TrainingBlocks(tiny_store(stories), len(stories[0]), 960, data_seed=0)
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        train_sampling_strategy="sequential",
    )
    model = tiny_model("llama", vocab_size=24, dropout=0.0)
    before = probability_of_eos(model)
    StoryTrainer(model=model, args=args, train_dataset=data, eval_block_size=16).train()
    return before, probability_of_eos(model)


def test_training_raises_the_probability_of_the_end(tmp_path):
    before, after = trained(STORIES, tmp_path)
    assert after > 4 * before
    same, unlearned = trained([story[:-1] for story in STORIES], tmp_path)
    assert same == before
    assert unlearned < before / 2
