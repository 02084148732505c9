"""The plan of a run: updates, tokens, its name and its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError
from lm_trials.files import plain_name
from lm_trials.tokens.blocks import TrainingBlocks
from lm_trials.tokens.phases import Passes
from lm_trials.training.flags import DataArguments
from lm_trials.training.order_flags import DataOrdering, check_covers
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.stores import RunStores
from lm_trials.training.tuning_flags import PairArguments


@dataclass(frozen=True)
class Plan:
    """The length of a run, fixed before it starts; a fine-tuning's blocks are examples or packed rows.

    Attributes:
        num_steps: updates of the weights.
        blocks_per_step: blocks of one update, over all processes and accumulation.
        block_size: tokens of a block; of a fine-tuning the maximum.
        blocks_per_pass: complete blocks of the first pass over the training split; None for a stream, whose length is
            unknown, and with `--order_schedule`, whose passes differ.
        num_tokens: tokens of the whole run.
        remainder: tokens at the end of the first pass that fill no block.
        num_completion_tokens: of a fine-tuning, tokens in the loss.
    """

    num_steps: int
    blocks_per_step: int
    block_size: int
    blocks_per_pass: int | None
    num_tokens: int
    remainder: int = 0
    num_completion_tokens: int = 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update."""
        return self.blocks_per_step * self.block_size

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole run."""
        return self.num_steps * self.blocks_per_step

    @property
    def passes(self) -> float | None:
        """Passes over the training split; None if unknown, see `blocks_per_pass`."""
        return self.num_blocks / self.blocks_per_pass if self.blocks_per_pass else None


def plan_run(arguments: RunArguments, data_args: DataArguments, stores: RunStores) -> Plan:
    """Return the plan of a pretraining, and put its length into `arguments`, in place; see `settle_length`.

    Raises:
        UsageError: for two lengths, none for a stream, or epochs that do not make one update.
    """
    assert data_args.block_size is not None  # choose_initial sets it
    per_pass, remainder, size = None, 0, data_args.block_size
    per_step = blocks_per_update(arguments)
    first = stores.blocks(data_args, 1, arguments.data_seed, per_step)
    if isinstance(first, TrainingBlocks):
        per_pass, remainder = first.blocks_per_pass, first.remainder
    if data_args.max_train_tokens is not None:
        if arguments.max_steps > 0:
            raise UsageError(
                f"--max_train_tokens {data_args.max_train_tokens} and --max_steps {arguments.max_steps} both set the "
                "length of the run; remove one of them"
            )
        arguments.max_steps = math.ceil(data_args.max_train_tokens / (per_step * size))
    if data_args.order_schedule and isinstance(first, TrainingBlocks):
        settle_schedule(arguments, data_args, first.passes)
    steps = settle_length(arguments, per_pass)
    per_pass = None if data_args.order_schedule else per_pass
    return Plan(steps, per_step, size, per_pass, steps * per_step * size, remainder)


def blocks_per_update(arguments: RunArguments) -> int:
    """Return the blocks of one update, over all processes, GPUs and accumulation."""
    accumulated = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return accumulated * max(arguments.n_gpu, 1) * arguments.world_size


def settle_length(arguments: RunArguments, blocks_per_pass: int | None) -> int:
    """Put the length of a run into `arguments` as `max_steps`, in place, and return it.

    `--num_train_epochs` becomes complete updates, so that none is smaller.  An `epoch` strategy becomes the updates of
    one pass, because Trainer reads all passes as one data set.

    Raises:
        UsageError: for a stream without --max_steps, or epochs that do not make one update.
    """
    per_step, steps = blocks_per_update(arguments), arguments.max_steps
    if steps <= 0 and blocks_per_pass is None:
        raise UsageError("--streaming: the length of a stream is unknown; give --max_steps or --max_train_tokens")
    if steps <= 0 and blocks_per_pass is not None:
        # Trainer's epochs end in a smaller update, and accelerate repeats examples to fill the last batch of several
        # processes. Complete updates avoid both; losses of 1 x 8, 2 x 4 and accumulation agree within 1e-6.
        steps = int(arguments.num_train_epochs * blocks_per_pass / per_step)
    if not steps:
        raise UsageError(
            f"--num_train_epochs {arguments.num_train_epochs:g} over {blocks_per_pass} blocks or examples makes no "
            f"update of {per_step}; lower --per_device_train_batch_size or give --max_steps"
        )
    # One long data set for all passes makes skipping exact on resume: 20 of 20 killed runs had the same bits.
    arguments.max_steps, arguments.num_train_epochs = steps, 1.0
    for name in ("eval", "save", "logging"):
        if getattr(arguments, f"{name}_strategy") == "epoch":
            if blocks_per_pass is None:
                raise UsageError(
                    f"--{name}_strategy epoch: the length of a stream is unknown; give steps and --{name}_steps"
                )
            setattr(arguments, f"{name}_strategy", type(arguments.eval_strategy)("steps"))
            setattr(arguments, f"{name}_steps", max(blocks_per_pass // per_step, 1))
    return steps


def settle_schedule(arguments: RunArguments, flags: DataOrdering, passes: Passes) -> None:
    """Put the length of a run by passes of a schedule into `arguments` as `max_steps`, in place, and check both.

    Raises:
        UsageError: for a schedule by updates without --max_steps, or one that does not end with the run.
    """
    phases, per_step = flags.phases, blocks_per_update(arguments)
    by_updates = phases[0].unit == "updates"
    if arguments.max_steps <= 0:
        if by_updates:
            raise UsageError(
                "--order_schedule or --inject counts updates; give their number with --max_steps, or count passes"
            )
        arguments.max_steps = int(passes.blocks_in(arguments.num_train_epochs) / per_step)
    last_block = max(arguments.max_steps * per_step - 1, 0)
    check_covers(phases, arguments.max_steps if by_updates else passes.locate(last_block)[0] + 1)


def check_best(arguments: RunArguments, data_args: DataArguments) -> None:
    """Refuse dense evaluations with `--load_best_model_at_end` (UsageError): most of their models are not saved."""
    if arguments.load_best_model_at_end and data_args.dense_eval_steps:
        raise UsageError(
            f"--load_best_model_at_end True and --dense_eval_steps {data_args.dense_eval_steps}: most of the evaluated "
            "models are not saved; remove one of them"
        )


def name_run(arguments: RunArguments, model_name: str, data_args: DataArguments | PairArguments) -> None:
    """Set the default `--run_name` and `--output_dir`, in place."""
    if not arguments.run_name:
        data = Path(data_args.dataset_name).name.split(".")[0]
        if data_args.dataset_config_name:
            data += f"-{data_args.dataset_config_name}"
        arguments.run_name = f"{plain_name(model_name)}-{plain_name(data)}-s{arguments.seed}"
        if arguments.data_seed != arguments.seed:
            arguments.run_name += f"-d{arguments.data_seed}"
    if not arguments.has_output_dir:
        arguments.output_dir = str(Path("runs") / arguments.run_name)
