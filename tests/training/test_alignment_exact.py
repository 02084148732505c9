"""Alignments end with the same bits however often killed, and `lm-trials order` names what each update read."""

import json
import random

import pytest
from killed_runs import Processes, Training, align_and_keep, kill_and_go_on, outcome, stopped_after
from refusals import error_line
from safetensors.torch import load_file, save_file

import align_lora
from lm_trials.training.checkpoints import SUMS, seal
from lm_trials.training.data_order import open_order

SAVED = ("--max_steps", "6", "--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "4")
# Completions are sampled for four updates at once: a checkpoint after the second or third is amid them.
ARMS = {
    "dpo": ("--lora_dropout", "0.1", "--disable_dropout", "False", "--gradient_accumulation_steps", "2"),
    "grpo": (
        *("--gradient_accumulation_steps", "2", "--steps_per_generation", "4", "--num_iterations", "2"),
        *("--beta", "0.05", "--eval_strategy", "steps", "--eval_steps", "3", "--use_adaptive_entropy", "True"),
    ),
}


def test_resumed_anywhere_it_ends_with_the_same_bits(align_flags, tmp_path):
    """Within a logging interval too, whose margins are sums over both parts."""
    argv, folder = align_flags("dpo", "run", *SAVED, *ARMS["dpo"]), tmp_path / "run"
    align_lora.main(argv)
    straight = outcome(folder)
    assert {"rewards/margins", "num_tokens"} <= {key for row in straight[1] for key in row}
    stopped_after(folder, 3)
    align_lora.main(argv)
    assert outcome(folder) == straight


def test_resumed_amid_sampled_completions_it_ends_with_the_same_bits(align_flags, tmp_path):
    """Its neighbour, with other completions in the checkpoint, ends with other weights."""
    argv, folder = align_flags("grpo", "run", *SAVED, *ARMS["grpo"]), tmp_path / "run"
    align_lora.main(argv)
    straight = outcome(folder)
    assert {"reward", "kl", "entropy", "eval_reward"} <= {key for row in straight[1] for key in row}
    stopped_after(folder, 3)
    align_lora.main(argv)
    assert outcome(folder) == straight
    stopped_after(folder, 3)
    checkpoint = folder / "checkpoint-3"
    file = checkpoint / "generations_0.safetensors"
    tensors = {name: -tensor if "advantages" in name else tensor for name, tensor in load_file(file).items()}
    assert {name.partition(".")[0] for name in tensors} == {"0", "1", "2", "3"}
    save_file(tensors, file)
    facts = json.loads((checkpoint / SUMS).read_text())
    (checkpoint / SUMS).unlink()
    facts.pop("files")
    seal(checkpoint, checkpoint.with_name("sealed"), facts)
    checkpoint.with_name("sealed").rename(checkpoint)
    align_lora.main(argv)
    assert outcome(folder)[0] != straight[0]


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("method", list(ARMS))
def test_a_killed_alignment_ends_as_one_that_was_not(align_flags, tmp_path, method):
    argv, folder = align_flags(method, "run", *SAVED, *ARMS[method]), tmp_path / "run"
    Training(argv, folder, function="align").finish()
    straight = outcome(folder)
    for step in (2, 3):
        delay = random.Random(step).uniform(0, 0.05)
        assert kill_and_go_on(argv, folder, delay, after=folder / f"checkpoint-{step}", function="align")
        assert outcome(folder) == straight


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("method", list(ARMS))
def test_two_processes_killed_end_as_two_that_were_not(align_flags, tmp_path, capsys, method):
    """Each samples for itself: one process cannot resume what two have sampled."""
    more = ("--use_cpu", "True", "--per_device_train_batch_size", "2")
    argv, folder = align_flags(method, "run", *SAVED, *ARMS[method], *more), tmp_path / "run"
    Training(argv, folder, 2, "align").finish()
    straight = outcome(folder)
    assert kill_and_go_on(argv, folder, 0.02, world_size=2, after=folder / "checkpoint-3", function="align")
    assert outcome(folder) == straight
    stopped_after(folder, 3)
    if method == "grpo":
        one = [*argv, "--per_device_train_batch_size", "4"]
        line = error_line(capsys, align_lora.main, *one)
        assert "was written by 2 processes, each of which samples completions, and 1 resume; start as many" in line


@pytest.mark.slow  # 20 s
def test_two_processes_read_the_same_pairs(align_flags, tmp_path):
    seen = {}
    for name, size, batch in (("one", 1, "4"), ("two", 2, "2")):
        argv = align_flags("dpo", name, "--use_cpu", "True", "--per_device_train_batch_size", batch)
        Processes("align_and_keep", [argv, str(tmp_path / name)], tmp_path / f"{name}.log", size).finish()
        ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(size)]
        seen[name] = [sorted(row for batch in batches for row in batch) for batches in zip(*ranks, strict=True)]
    assert seen["one"] == seen["two"]


def test_the_order_is_what_each_update_read(align_flags, tmp_path):
    """Of dpo both sides of its pairs; of grpo the prompts that it and the others of their completions answer."""
    more = ("--gradient_accumulation_steps", "2", "--data_seed", "3")
    align_and_keep(align_flags("dpo", "dpo", *more, "--max_steps", "3"), str(tmp_path / "dpo"))
    batches = json.loads((tmp_path / "dpo-0.json").read_text())
    order = open_order(tmp_path / "dpo")
    for step in (1, 2, 3):
        read = [row for batch in batches[2 * step - 2 : 2 * step] for row in batch]
        parts = order.parts_of(step)
        assert sorted(read) == sorted(list(part.ids) for part in parts)
        assert [part.corpus for part in parts] == ["chosen", "rejected"] * 8
    grpo = ("--steps_per_generation", "4", "--max_steps", "3")
    align_and_keep(align_flags("grpo", "grpo", *more, *grpo), str(tmp_path / "grpo"))
    sampled = json.loads((tmp_path / "grpo-0.json").read_text())
    order = open_order(tmp_path / "grpo")
    found = [[list(part.ids) for part in order.parts_of(step)] for step in (1, 2, 3)]
    assert [[ids for ids in prompts for _ in range(4)] for prompts in (found[0], found[2])] == sampled
    assert found[1] == found[0] != found[2]
