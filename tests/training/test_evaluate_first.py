"""An evaluation before training leaves several processes training together."""

import pytest
import torch
from killed_runs import Processes

pytestmark = pytest.mark.end_to_end


def furthest_apart(kind, folder):
    """Return the largest difference of a weight between two processes that trained after an evaluation."""
    Processes("evaluate_then_train", [kind, str(folder)], folder / "log", world_size=2).finish()
    first, second = (torch.load(folder / f"weights-{kind}-{rank}.pt") for rank in range(2))
    return float((first - second).abs().max())


@pytest.mark.parametrize(("kind", "together"), [("ours", True), ("stock", False)])
def test_processes_that_evaluate_first_train_together(tmp_path, kind, together):
    """Stock Trainer's do not: `evaluate` prepares the model, and `train` then leaves it unwrapped."""
    assert (furthest_apart(kind, tmp_path) == 0.0) == together
