"""Throughput: tokens per second, model FLOPs utilization (MFU) and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from lm_trials.models.shapes import count_parameters, text_config

# Dense bf16 peak in FLOP/s, without sparsity, from the data sheets.  MFU is logged for these devices only.
PEAK_BF16 = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
PEAK_BF16 |= {"A10G": 70e12, "RTX 4090": 165e12, "RTX 3090": 71e12}

WINDOW = "window_"
"""Before the names of the metrics of `--window_metrics` in a log."""


def peak_flops(device: torch.device) -> float:
    """Return the dense bf16 peak of one device in FLOP/s; 0 where it is unknown, as for CPUs."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name), 0.0)


def flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Return the FLOPs per trained token: 6N + 12LDT (Chowdhery et al. 2022, appendix B).

    N counts the parameters without embeddings but with the output matrix, tied or not.  L layers of width D attend to
    T = `block_size` positions; as in that paper, the causal mask is not discounted.
    """
    config: Any = text_config(model)
    output = model.get_output_embeddings()
    multiplying = count_parameters(model).without_embeddings + (0 if output is None else output.weight.numel())
    return 6 * multiplying + 12 * config.num_hidden_layers * config.hidden_size * block_size


class Clock(TrainerCallback):
    """Measures a rate per second of training; call `restart` after an evaluation.

    Args:
        count: returns the current count, which a resumed run does not start at 0.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self.count = count
        self.restart()

    def restart(self) -> None:
        """Start a new measurement."""
        self.mark = (time.perf_counter(), self.count())

    def per_second(self) -> float:
        """Return the rate since the last start, and restart."""
        then, count_then = self.mark
        self.restart()
        return (self.mark[1] - count_then) / max(self.mark[0] - then, 1e-9)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restart, after Trainer has loaded its state."""
        self.restart()


class RunProgress(ProgressCallback):
    """A progress bar with loss, learning rate and speed, and lines for each evaluation.

    Args:
        lines: formats an evaluation's metrics.
    """

    def __init__(self, lines: Callable[[dict[str, float]], list[str]]) -> None:
        super().__init__()
        self.lines = lines

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the latest values beside the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs or "loss" not in logs:
            return
        shown = [f"loss {logs['loss']:.3f}", f"lr {logs.get('learning_rate', 0.0):.1e}"]
        shown.append(f"{logs['tokens_per_second']:,.0f} tok/s")
        if "tokens_seen" in logs:
            shown.append(f"{tqdm.format_sizeof(logs['tokens_seen'])} tokens")
        if "mfu" in logs:
            shown.append(f"MFU {logs['mfu']:.1%}")
        windows = {name.removeprefix(WINDOW): logs[name] for name in logs if name.startswith(WINDOW)}
        shown += [f"{name} {value:.3g}" for name, value in windows.items()]
        self.training_bar.set_postfix_str("  ".join(shown))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Write an evaluation's lines above the bar."""
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None and metrics:
            for line in self.lines(metrics):
                self.training_bar.write(f"step {state.global_step:>6}  {line}")
