"""The plan of a run: how many updates of how many tokens, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from lm_trials.console import UsageError
from lm_trials.data.blocks import blocks_per_pass
from lm_trials.data.tokens import TokenStore


@dataclass(frozen=True)
class Plan:
    """What a run will do, fixed before it starts.

    Attributes:
        num_steps: updates of the weights.
        blocks_per_step: blocks of one update, over all processes and accumulation.
        block_size: tokens of a block.
        blocks_per_pass: whole blocks of one pass over the training split.
        remainder: tokens at the end of each pass that fill no block.
    """

    num_steps: int
    blocks_per_step: int
    block_size: int
    blocks_per_pass: int
    remainder: int

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
    def passes(self) -> float:
        """Passes over the training split."""
        return self.num_blocks / self.blocks_per_pass


def plan_run(arguments: TrainingArguments, store: TokenStore, block_size: int) -> Plan:
    """Work out the plan and put it into `arguments` as `max_steps`, in place.

    `--num_train_epochs` becomes whole updates, so that no update is smaller than the others; an `epoch` strategy
    becomes the number of updates of one pass, because the Trainer sees all passes as one long data set.

    Raises:
        UsageError: if the epochs asked for do not make one update.
    """
    per_pass = blocks_per_pass(store, block_size)
    per_step = (
        arguments.per_device_train_batch_size
        * max(arguments.n_gpu, 1)
        * arguments.gradient_accumulation_steps
        * arguments.world_size
    )
    steps = arguments.max_steps
    if steps <= 0:
        steps = int(arguments.num_train_epochs * per_pass / per_step)
        if not steps:
            raise UsageError(
                f"--num_train_epochs {arguments.num_train_epochs:g} over {per_pass} blocks makes no update of "
                f"{per_step} blocks; lower --per_device_train_batch_size or give --max_steps"
            )
        arguments.max_steps = steps
    arguments.num_train_epochs = 1.0
    for name in ("eval", "save", "logging"):
        if getattr(arguments, f"{name}_strategy") == "epoch":
            setattr(arguments, f"{name}_strategy", type(arguments.eval_strategy)("steps"))
            setattr(arguments, f"{name}_steps", max(per_pass // per_step, 1))
    return Plan(steps, per_step, block_size, per_pass, store.num_tokens % block_size)


def name_run(arguments: TrainingArguments, model_name: str, dataset_name: str) -> None:
    """Give the run a name, and a folder of that name where no `--output_dir` was given, in place.

    `arguments.has_output_dir` says which; see `RunArguments`.
    """
    if not arguments.run_name:
        data = Path(dataset_name).name.split(".")[0]
        arguments.run_name = f"{model_name}-{data}-s{arguments.seed}"
        if arguments.data_seed not in (None, arguments.seed):
            arguments.run_name += f"-d{arguments.data_seed}"
    if not arguments.has_output_dir:
        arguments.output_dir = str(Path("runs") / arguments.run_name)
