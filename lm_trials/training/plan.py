"""The plan of a run: how many updates of how many tokens, and where it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from lm_trials.console import UsageError
from lm_trials.training.flags import DataArguments
from lm_trials.training.stores import RunStores


@dataclass(frozen=True)
class Plan:
    """What a run will do, fixed before it starts.

    Attributes:
        num_steps: updates of the weights.
        blocks_per_step: blocks of one update, over all processes and accumulation.
        block_size: tokens of a block.
        blocks_per_pass: whole blocks of the first pass over the training split; None of a stream, whose end is not
            known.
        remainder: tokens at its end that fill no block.
    """

    num_steps: int
    blocks_per_step: int
    block_size: int
    blocks_per_pass: int | None
    remainder: int | None

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update."""
        return self.blocks_per_step * self.block_size

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole run."""
        return self.num_steps * self.blocks_per_step

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.num_blocks * self.block_size

    @property
    def passes(self) -> float | None:
        """Passes over the training split, as long as the first; None of a stream."""
        return self.num_blocks / self.blocks_per_pass if self.blocks_per_pass else None


def plan_run(arguments: TrainingArguments, data_args: DataArguments, stores: RunStores) -> Plan:
    """Work out the plan and put it into `arguments` as `max_steps`, in place.

    `--num_train_epochs` becomes whole updates, so that no update is smaller than the others; an `epoch` strategy
    becomes the number of updates of one pass, because the Trainer sees all passes as one long data set.
    `--max_train_tokens` becomes the fewest updates that reach it.

    Raises:
        UsageError: if the epochs asked for do not make one update, for two lengths at once, for a stream without one.
    """
    per_pass = remainder = None
    if not stores.streamed:
        first = stores.blocks(data_args, 1, arguments.data_seed)
        per_pass, remainder = first.blocks_per_pass, first.remainder
    per_step = (
        arguments.per_device_train_batch_size
        * max(arguments.n_gpu, 1)
        * arguments.gradient_accumulation_steps
        * arguments.world_size
    )
    steps = _num_steps(arguments, data_args, per_pass, per_step)
    arguments.max_steps = steps
    arguments.num_train_epochs = 1.0
    for name in ("eval", "save", "logging"):
        if getattr(arguments, f"{name}_strategy") == "epoch":
            if per_pass is None:
                raise UsageError(f"--{name}_strategy epoch: a stream's end is not known; give steps and --{name}_steps")
            setattr(arguments, f"{name}_strategy", type(arguments.eval_strategy)("steps"))
            setattr(arguments, f"{name}_steps", max(per_pass // per_step, 1))
    return Plan(steps, per_step, data_args.block_size, per_pass, remainder)


def _num_steps(arguments: TrainingArguments, data_args: DataArguments, per_pass: int | None, per_step: int) -> int:
    steps, tokens = arguments.max_steps, data_args.max_train_tokens
    if tokens is not None:
        if steps > 0:
            raise UsageError(f"--max_train_tokens {tokens} and --max_steps {steps} say two lengths; give one")
        return math.ceil(tokens / (per_step * data_args.block_size))
    if steps > 0:
        return steps
    if per_pass is None:
        raise UsageError(
            f"--streaming {data_args.streaming}: how long a stream is, is not known; give --max_steps or "
            "--max_train_tokens"
        )
    steps = int(arguments.num_train_epochs * per_pass / per_step)
    if not steps:
        raise UsageError(
            f"--num_train_epochs {arguments.num_train_epochs:g} over {per_pass} blocks makes no update of "
            f"{per_step} blocks; lower --per_device_train_batch_size or give --max_steps"
        )
    return steps


def check_best(arguments: TrainingArguments, data_args: DataArguments) -> None:
    """Refuse dense evaluations where the best model is kept: most of them save none that could be kept.

    Raises:
        UsageError: for both together.
    """
    if arguments.load_best_model_at_end and data_args.dense_eval_steps:
        raise UsageError(
            f"--load_best_model_at_end True and --dense_eval_steps {data_args.dense_eval_steps}: the best would be "
            "sought among models that are not saved; remove one of them"
        )


def name_run(arguments: TrainingArguments, model_name: str, data_args: DataArguments) -> None:
    """Give the run a name, and a folder of that name where no `--output_dir` was given, in place.

    `arguments.has_output_dir` says which; see `RunArguments`.
    """
    if not arguments.run_name:
        data = Path(data_args.dataset_name).name.split(".")[0]
        if data_args.dataset_config_name:
            data += f"-{data_args.dataset_config_name}"
        arguments.run_name = f"{model_name}-{data}-s{arguments.seed}"
        if arguments.data_seed not in (None, arguments.seed):
            arguments.run_name += f"-d{arguments.data_seed}"
    if not arguments.has_output_dir:
        arguments.output_dir = str(Path("runs") / arguments.run_name)
