"""The losses of trl's Trainers as they are used here, against plain torch; their references, and their evaluations."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from refusals import usage_error
from tiny_models import tiny_model, tiny_tokenizer

from lm_trials.evaluation.held_out import HeldOut
from lm_trials.models.adapters import LoraSpec, add_lora
from lm_trials.pairs.examples import Preference, Prompt
from lm_trials.rewards.functions import open_rewards
from lm_trials.training.alignment import evaluation_line
from lm_trials.training.alignment_run_arguments import DpoRunArguments, GrpoRunArguments
from lm_trials.training.alignment_trainer import PreferenceTuner, RewardTuner

# trl 1.16 reads an attribute that transformers 5.23 has renamed; `train` silences it.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")
PAIRS = [([2, 9, 8, 7, 1], [11, 12, 2], [13, 14, 15, 2]), ([2, 30, 1], [31, 32, 33, 34, 2], [35])]
VOCABULARY, BETA = 330, 0.3


class Store(list):
    """A split of tokenized rows in memory."""

    @property
    def rows(self):
        return Dataset.from_list([row._asdict() for row in self])

    def tokens(self, number):
        return self[number]

    def record_id(self, number):
        return str(number)


def moved(model, seed):
    """Let an adapter change what its model predicts, without a training."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            weight.data.normal_(std=0.1)
    return model


def adapted(moved_first=False):
    model = add_lora(tiny_model("llama", vocab_size=VOCABULARY, dropout=0.0), LoraSpec(r=2), seed=0)
    return moved(model, 5) if moved_first else model


def settings(folder, **more):
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        **more,
    }


@pytest.fixture
def dpo(tmp_path):
    def made(initial=False, **more):
        store = Store(Preference(*map(list, pair)) for pair in PAIRS)
        return PreferenceTuner(
            model=adapted(moved_first=initial),
            args=DpoRunArguments(**settings(tmp_path / "run", beta=BETA, **more)),
            train_dataset=store.rows,
            processing_class=tiny_tokenizer(),
            eval_store=store,
            max_eval_samples=None,
            initial_adapter=initial,
        )

    return made


@torch.no_grad()
def nats(model, prompt, answer):
    logits_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0, :-1].double()
    of_answer = torch.log_softmax(logits_TV, -1)[range(len(prompt) - 1, len(prompt) - 1 + len(answer)), answer]
    return -of_answer.sum()


def independent(model, reference, swapped=False):
    """Rafailov et al. 2023, equation 7."""
    losses = []
    for prompt, *sides in PAIRS:
        chosen, rejected = reversed(sides) if swapped else sides
        by_model = nats(model, prompt, rejected) - nats(model, prompt, chosen)
        with reference():
            by_reference = nats(model, prompt, rejected) - nats(model, prompt, chosen)
        losses.append(-torch.nn.functional.logsigmoid(BETA * (by_model - by_reference)))
    return float(torch.stack(losses).mean())


def test_the_loss_of_a_batch_and_of_the_evaluation_is_that_of_the_paper(dpo):
    trainer = dpo()
    model = moved(trainer.model, 3)
    assert set(model.peft_config) == {"default"}
    batch = trainer.data_collator(list(trainer.train_dataset))
    model.train()
    loss = trainer.compute_loss(model, batch).item()
    wanted = independent(model, model.disable_adapter)
    assert loss == pytest.approx(wanted, abs=1e-5)
    assert loss != pytest.approx(independent(model, model.disable_adapter, swapped=True), abs=1e-3)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(wanted, abs=1e-5)
    margins = [
        BETA * float(nats(model, prompt, rejected) - nats(model, prompt, chosen)) for prompt, chosen, rejected in PAIRS
    ]
    with model.disable_adapter():
        margins = [
            margin - BETA * float(nats(model, prompt, rejected) - nats(model, prompt, chosen))
            for margin, (prompt, chosen, rejected) in zip(margins, PAIRS, strict=True)
        ]
    assert metrics["eval_rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert metrics["eval_rewards/accuracies"] == np.mean(np.array(margins) > 0)
    assert metrics["eval_samples"] == 2


def test_the_reference_of_an_initial_adapter_is_its_frozen_copy(dpo, tmp_path):
    """The loss is then log 2 before the first update; a new adapter's reference is the base, and takes no memory."""
    trainer = dpo(initial=True)
    model = trainer.model
    batch = trainer.data_collator(list(trainer.train_dataset))
    model.train()
    assert trainer.compute_loss(model, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert independent(model, model.disable_adapter) != pytest.approx(math.log(2), abs=1e-3)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert not any(".ref." in name for name in trained)
    moved(model, 8)
    trainer.state.global_step = 1
    assert trainer.evaluate()["eval_loss"] != pytest.approx(math.log(2), abs=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists()
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()


ROWS = [
    {"prompt": "One day, a", "words": ["cat"], "prompt_ids": [2, 40, 41, 42, 1]},
    {"prompt": "a mat", "words": ["dog", "fox"], "prompt_ids": [2, 43, 1]},
]


def scored(completions, completion_ids, words, **columns):
    return [
        len(ids) + 3 * len(of) + text.count("a")
        for ids, of, text in zip(completion_ids, words, completions, strict=True)
    ]


@pytest.fixture
def grpo(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def scored(completions, completion_ids, words, **columns):\n"
        "    rows = zip(completion_ids, words, completions)\n"
        "    return [len(ids) + 3 * len(of) + text.count('a') for ids, of, text in rows]\n"
        "def broken(completions, **columns):\n"
        "    return [float('nan')] * len(completions)\n"
        "def silent(completions, **columns):\n"
        "    return [None] * len(completions)\n"
    )

    def made(reward="scored", **more):
        given = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "beta": BETA}
        return RewardTuner(
            model=adapted(),
            args=GrpoRunArguments(**settings(tmp_path / "run", **given, **more)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tiny_tokenizer(),
            eval_store=Store(Prompt(row["prompt_ids"]) for row in ROWS),
            eval_rows=Dataset.from_list(ROWS),
            max_eval_samples=None,
            held_out=HeldOut(),
            ends=[*range(1, 60)],  # so that some completions end early
            initial_adapter=False,
            reward_funcs=open_rewards([f"{tmp_path / 'mine.py'}:{reward}"]),
        )

    return made


def token_logps(model, row, answer):
    logits_TV = model(input_ids=torch.tensor([row + answer])).logits[0, :-1].double()
    return torch.log_softmax(logits_TV, -1)[range(len(row) - 1, len(row) - 1 + len(answer)), answer]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_advantages_and_loss_are_those_of_the_paper(grpo, loss_type):
    """Shao et al. 2024, equation 3, with trl's KL term times the ratio; `dapo` is the mean over the batch's tokens."""
    trainer = grpo(loss_type=loss_type)
    model = moved(trainer.model, 3)
    model.train()
    found = trainer._generate_and_score_completions([ROWS[0], ROWS[0], ROWS[1], ROWS[1]])
    answers = [
        ids[mask == 1].tolist() for ids, mask in zip(found["completion_ids"], found["completion_mask"], strict=True)
    ]
    prompts = [ids[mask == 1].tolist() for ids, mask in zip(found["prompt_ids"], found["prompt_mask"], strict=True)]
    assert prompts == [row["prompt_ids"] for row in ROWS for _ in range(2)]  # and no mark or template of trl's own
    texts = trainer.processing_class.batch_decode(answers, skip_special_tokens=True)
    rewards = np.array(scored(texts, answers, [row["words"] for row in ROWS for _ in range(2)]), dtype=float)
    groups = rewards.reshape(2, 2)
    wanted = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    assert found["advantages"].tolist() == pytest.approx(wanted.ravel().tolist(), abs=1e-5)

    # The completions of an earlier update, so that some ratios are clipped.
    torch.manual_seed(0)
    apart = 0.4 * torch.randn(found["completion_ids"].shape)
    advantages = torch.tensor([1.0, -1.0, 0.7, -0.7])
    own = [token_logps(model, *row) for row in zip(prompts, answers, strict=True)]
    old = torch.zeros_like(apart)
    for place, logps in enumerate(own):
        old[place, : len(logps)] = logps.detach().float() + apart[place, : len(logps)]
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, {**found, "advantages": advantages, "old_per_token_logps": old}).item()
    losses, clipped = [], 0
    for place, logps in enumerate(own):
        ratio = torch.exp(logps - old[place, : len(logps)])
        with model.disable_adapter():
            less = token_logps(model, prompts[place], answers[place]) - logps
        kl = (torch.exp(less) - less - 1) * ratio
        surrogate = torch.min(ratio * advantages[place], ratio.clamp(0.8, 1.2) * advantages[place])
        losses.append(BETA * kl - surrogate)
        clipped += int(((ratio - 1).abs() > 0.2).sum())
    each = torch.stack([of.mean() for of in losses]).mean() if loss_type == "grpo" else torch.cat(losses).mean()
    assert clipped > 0
    assert len({*map(len, losses)}) > 1
    assert loss == pytest.approx(each.item(), abs=1e-5)
    other = trainer.compute_loss(model, {**found, "advantages": -advantages, "old_per_token_logps": old}).item()
    assert other != pytest.approx(loss, abs=1e-3)


def test_an_evaluation_depends_on_no_batch_and_leaves_the_random_state(grpo):
    found = {}
    for size in (1, 4):
        trainer = grpo(per_device_eval_batch_size=size, num_generations_eval=2)
        moved(trainer.model, 3)
        trainer.model.train()
        before = torch.get_rng_state()
        metrics = trainer.evaluate()
        assert torch.equal(torch.get_rng_state(), before)
        assert trainer.model.training
        found[size] = {name: value for name, value in metrics.items() if "runtime" not in name}
        _, texts_PS, ids_PS = trainer.completions()
        wanted = [
            np.mean(scored(texts, ids, [row["words"]] * 2))
            for row, texts, ids in zip(ROWS, texts_PS, ids_PS, strict=True)
        ]
        assert metrics["eval_reward"] == metrics["eval_rewards/scored/mean"] == pytest.approx(np.mean(wanted))
        assert ids_PS[0][0] != ids_PS[0][1]
        assert json.dumps(metrics)
    assert str(found[1]) == str(found[4])
    assert "eval_reward_lower" in found[1]


def test_a_reward_that_is_no_number_is_named_with_its_update(grpo):
    trainer = grpo("broken")
    trainer.model.train()
    trainer.state.global_step = 6
    line = usage_error(trainer._generate_and_score_completions, [ROWS[0]] * 4)
    assert line.startswith("update 7: --reward_funcs ")
    assert "mine.py:broken returns nan, for the prompt 'One day, a'" in line
    assert usage_error(trainer.evaluate).startswith("evaluation after update 6: --reward_funcs ")


def test_prompts_without_any_reward_have_no_sum(grpo):
    """In trl, too: their completions are in no mean, and their advantage is 0."""
    trainer = grpo("silent")
    metrics = trainer.evaluate()
    assert "eval_reward" not in metrics
    assert metrics["eval_samples"] == 2
    assert "reward" not in evaluation_line(metrics)
    trainer.model.train()
    found = trainer._generate_and_score_completions([ROWS[0]] * 4)
    assert found["advantages"].tolist() == [0] * 4
    assert math.isnan(trainer._metrics["train"]["reward"][0])
