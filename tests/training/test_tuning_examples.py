"""What a model is given: examples that do not see one another however they are packed, and EOS that is trained."""

import itertools
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, DataCollatorForLanguageModeling
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TrlCollator

import sft_lora
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.pairs.examples import with_labels
from lm_trials.pairs.layouts import instruct_examples
from lm_trials.training.tuning_examples import choose_padding, note_few_examples

EXAMPLES = ([2, 30, 31, 1, 40, 41, 2], [2, 50, 51, 52, 53, 1, 60, 61, 62, 2], [2, 70, 1, 80, 2])


@pytest.fixture(scope="module")
def model(tiny_base):
    return load_model(resolve_model(str(tiny_base)))


def rows(examples=EXAMPLES):
    return Dataset.from_dict({"input_ids": [list(e) for e in examples], "labels": [[-100, *e[1:]] for e in examples]})


def packed_batch(examples, strategy="bfd", length=32):
    packed = pack_dataset(rows(examples), length, strategy)
    return TrlCollator(pad_token_id=0, padding_free=True)([packed[n] for n in range(len(packed))])


def joined_batch(examples):
    return TrlCollator(pad_token_id=0, padding_free=True)([rows(examples)[n] for n in range(len(examples))])


@torch.no_grad()
def losses_by_example(model, batch):
    """Return the summed loss of each example of a joined batch, in the order of the batch."""
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    logits = model(**inputs, use_cache=False).logits[0]
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    found = []
    for first, end in itertools.pairwise([*starts, logits.shape[0]]):
        targets = batch["input_ids"][0, first + 1 : end]
        found.append(float(nn.functional.cross_entropy(logits[first : end - 1], targets, reduction="sum")))
    return found


@torch.no_grad()
def alone(model, ids):
    ids = torch.tensor(ids)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return float(nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))


@pytest.mark.parametrize("made", [packed_batch, joined_batch])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_one_another(model, made, attention):
    model.set_attn_implementation(attention)
    batch = made(EXAMPLES)
    assert batch["input_ids"].shape[0] == 1
    assert "attention_mask" not in batch  # with one, positions would keep nothing apart
    expected = sorted(alone(model, example) for example in EXAMPLES)
    assert sorted(losses_by_example(model, batch)) == pytest.approx(expected, abs=1e-4)
    model.set_attn_implementation("sdpa")


def test_changing_one_example_moves_no_other(model):
    batch = joined_batch(EXAMPLES)
    changed = joined_batch([[2, *range(90, 95), 2], *EXAMPLES[1:]])
    before, after = losses_by_example(model, batch), losses_by_example(model, changed)
    assert after[1:] == pytest.approx(before[1:], abs=1e-4)
    assert after[0] != pytest.approx(before[0], abs=1e-2)


def test_the_control_leaks(model):
    """Without positions of their own, or wrapped, as --packing_strategy wrapped would have it, they see each other."""
    batch = joined_batch(EXAMPLES)
    leaking = {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}
    with torch.no_grad():
        logits = model(input_ids=leaking["input_ids"], position_ids=leaking["position_ids"], use_cache=False).logits
        clean = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    assert (logits[0, 7:] - clean[0, 7:]).abs().max() > 1e-3
    wrapped = pack_dataset(rows(), 8, "wrapped")
    assert any(2 in row[1:-1] for row in wrapped["input_ids"])  # an example begins within a row


def test_joined_batches_train_as_padded_ones(tune_flags, tmp_path):
    found = {}
    for name, more in {"padded": (), "joined": ("--padding_free", "True"), "seed": ("--data_seed", "3")}.items():
        sft_lora.main(tune_flags(name, "--per_device_train_batch_size", "20", *more))
        rows = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        found[name] = [row["loss"] for row in rows if "loss" in row]
    assert found["joined"] == pytest.approx(found["padded"], abs=1e-5)
    assert found["seed"] != pytest.approx(found["padded"], abs=1e-5)


def test_packed_rows_hold_every_example_once(tune_flags, tmp_path):
    """Of one pass: as many tokens in the loss as the examples have."""
    metrics = sft_lora.main(tune_flags("run", "--packing", "True", "--max_steps", "-1", "--num_train_epochs", "1"))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    counts, tokens = run["outcome"]["data"]["counts"], run["logistics"]["num_tokens"]
    assert run["outcome"]["packing"] is True
    assert counts["tokens"] - 4 * 64 < tokens <= counts["tokens"]  # what fills no update of four rows
    assert metrics["eval_loss"] > 0


def test_labels_are_made_as_they_are_read():
    batch = {"input_ids": [[2, 5, 1, 6, 2]], "of_completion": [[0, 0, 1, 1, 1]]}
    assert with_labels(batch, completion_only=True)["labels"] == [[-100, -100, 1, 6, 2]]
    assert with_labels(batch, completion_only=False)["labels"] == [[-100, 5, 1, 6, 2]]


@pytest.fixture(scope="module")
def gpt2_like(tiny_base):
    """A tokenizer as GPT-2's: one special token for everything, nothing to spare."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.bos_token = tokenizer.unk_token = tokenizer.eos_token
    return tokenizer


def test_eos_is_trained_where_it_pads_too(gpt2_like, model):
    """Pitfall P12: by place, not by id.  The collator that goes by id trains no EOS at all."""
    choose_padding(gpt2_like, model)
    assert gpt2_like.pad_token_id == gpt2_like.eos_token_id
    examples = instruct_examples(gpt2_like, ["Write.", "Write about cats."], ["The cat sat.", "Cats."])
    batch = with_labels(
        {"input_ids": [e.input_ids for e in examples], "of_completion": [e.completion_mask for e in examples]}, True
    )
    features = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    labels = TrlCollator(pad_token_id=gpt2_like.pad_token_id)(features)["labels"]
    eos = gpt2_like.eos_token_id
    assert [row[row != -100].tolist()[-1] for row in labels] == [eos, eos]
    by_id = DataCollatorForLanguageModeling(gpt2_like, mlm=False)([{"input_ids": f["input_ids"]} for f in features])
    assert eos not in by_id["labels"]


def test_a_pad_token_of_its_own_where_there_is_one_to_spare(tiny_base, model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    size = len(tokenizer)
    tokenizer.pad_token = None
    choose_padding(tokenizer, model)
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.pad_token_id == model.config.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert len(tokenizer) == size  # no row of the embeddings is added, and no parameter


def test_a_model_learns_to_stop(tune_flags, tmp_path):
    """The probability of EOS after a completion rises; before training it is next to nothing."""
    from lm_trials.pairs.layouts import instruct_prompts

    def stopping(folder):
        model, tokenizer = load_model(resolve_model(str(folder))), AutoTokenizer.from_pretrained(folder)
        (prompt,) = instruct_prompts(tokenizer, ["Write about 3 cats. 10"])
        (example,) = instruct_examples(tokenizer, ["Write about 3 cats. 10"], ["The cat sat. The cat sat."])
        assert example.input_ids[: len(prompt)] == prompt
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids[:-1]])).logits[0, -1]
        return float(logits.softmax(-1)[tokenizer.eos_token_id])

    argv = tune_flags("run", "--full_finetune", "True", "--max_steps", "60", "--per_device_train_batch_size", "16")
    base = argv[argv.index("--model_name_or_path") + 1]
    sft_lora.main(argv)
    before, after = stopping(base), stopping(tmp_path / "run")
    assert after > 10 * before
    assert after > 0.1
    assert np.isfinite(before)


def test_few_validation_examples_are_noted_with_a_larger_share(capsys):
    note_few_examples({"train": 58, "validation": 1, "test": 1}, None)
    said = capsys.readouterr().err
    assert said == (
        "note: 1 of 60 examples is held out for validation; for about 12, give --validation_split_percentage 20\n"
    )
    note_few_examples({"train": 980, "validation": 10, "test": 10}, None)
    assert "for about 20, give --validation_split_percentage 2\n" in capsys.readouterr().err
    note_few_examples({"train": 1960, "validation": 20, "test": 20}, None)  # enough
    note_few_examples({"train": 48, "validation": 12, "test": 0}, 20)  # as advised
    assert capsys.readouterr().err == ""
