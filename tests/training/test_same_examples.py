"""Process count, accumulation and workers are no variables: the same examples in each update, the same losses."""

import json

import numpy as np
import pytest
from killed_runs import Processes

STEPS = 5
STREAMED = ("--streaming", "True", "--shuffle_buffer_size", "50")
# 391 stories make 4,411 blocks of 32: the fourth update of these begins the second pass.
LARGE, HALF = ("--per_device_train_batch_size", "1200"), ("--per_device_train_batch_size", "600")
ACCUMULATED = (*HALF, "--gradient_accumulation_steps", "2")
WORKERS = ("--dataloader_num_workers", "2")
TWO = ("--use_cpu", "True", *HALF)


@pytest.fixture
def trajectory(train_flags, tmp_path):
    """Return the losses of a run's updates, and the blocks of each update in an order of their own."""

    def run(name, *more, world_size=1):
        argv = train_flags(name, "--max_steps", str(STEPS), "--shuffle_buffer_size", "50", *more)
        folder = tmp_path / name
        Processes("train_and_keep", [argv, str(folder)], tmp_path / f"{name}.log", world_size).finish()
        state = json.loads((folder / "trainer_state.json").read_text())
        losses = [row["loss"] for row in state["log_history"] if "loss" in row]
        batches = [np.load(f"{folder}-{rank}.npy") for rank in range(world_size)]  # (batches, B, T) of each process
        updates = [np.concatenate([rank.reshape(STEPS, -1, 32)[step] for rank in batches]) for step in range(STEPS)]
        return losses, [sorted(map(tuple, blocks.tolist())) for blocks in updates]

    return run


@pytest.mark.slow  # 15 s; test_train_gpt2 has two processes in the default suite
def test_the_same_examples_in_each_update_and_the_same_losses(trajectory):
    losses, examples = trajectory("one", *LARGE)
    others = {
        "accumulation": trajectory("accumulation", *ACCUMULATED),
        "stream, workers": trajectory("stream", *STREAMED, *LARGE, *WORKERS),
        "two processes": trajectory("two", *TWO, world_size=2),
        "two processes, stream": trajectory("two-stream", *TWO, *STREAMED, world_size=2),
    }
    for name, (found, blocks) in others.items():
        assert blocks == examples, name
        assert found == pytest.approx(losses, abs=1e-5), name
    neighbour, blocks = trajectory("neighbour", *LARGE, "--data_seed", "3")
    assert blocks != examples
    assert neighbour != pytest.approx(losses, abs=1e-5)
