"""Throughput: how fast a run goes, its bar at the terminal, and what its device could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ProgressCallback

# Dense bf16 peak, FLOP/s, from the makers' data sheets (without sparsity).  A device not listed gets no MFU.
PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float:
    """Return the dense bf16 peak of one device in FLOP/s; 0 where it is not known (a CPU among them)."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name), 0.0)


def flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Return the floating-point operations of one trained token: 6N + 12LDT (Chowdhery et al. 2022, appendix B).

    N counts the parameters that multiply: all without embeddings, and the output matrix, tied or not.  L layers of
    width D attend to T = `block_size` places; causal masking is not discounted, as in that paper.
    """
    config = model.config
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    multiplying = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    output = model.get_output_embeddings()
    if output is not None and id(output.weight) in embeddings:
        multiplying += output.weight.numel()
    return 6 * multiplying + 12 * config.num_hidden_layers * config.hidden_size * block_size


class Clock(TrainerCallback):
    """Measures how often something is counted in a second of training; `restart` it after an evaluation.

    Args:
        count: how many there have been so far, which for a resumed run is not 0 at its beginning.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self.count = count
        self.restart()

    def restart(self) -> None:
        """Measure from here."""
        self.mark = (time.perf_counter(), self.count())

    def per_second(self) -> float:
        """Return the rate since the last mark, and restart."""
        then, count_then = self.mark
        self.restart()
        return (self.mark[1] - count_then) / max(self.mark[0] - then, 1e-9)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restart, after Trainer has loaded its state."""
        self.restart()


class RunProgress(ProgressCallback):
    """One bar for the run: loss, learning rate and speed beside it, lines for each evaluation.

    Args:
        lines: what is written of an evaluation's metrics.
    """

    def __init__(self, lines: Callable[[dict[str, float]], list[str]]) -> None:
        super().__init__()
        self.lines = lines

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the latest numbers beside the bar."""
        if not state.is_world_process_zero or self.training_bar is None or "loss" not in (logs or {}):
            return
        shown = [f"loss {logs['loss']:.3f}", f"lr {logs.get('learning_rate', 0.0):.1e}"]
        shown.append(f"{logs['tokens_per_second']:,.0f} tok/s")
        if "tokens_seen" in logs:
            shown.append(f"{_short(logs['tokens_seen'])} tokens")
        if "mfu" in logs:
            shown.append(f"MFU {logs['mfu']:.1%}")
        self.training_bar.set_postfix_str("  ".join(shown))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Write the lines of an evaluation above the bar."""
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None and metrics:
            for line in self.lines(metrics):
                self.training_bar.write(f"step {state.global_step:>6}  {line}")


def _short(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return f"{count:.0f}"
