"""The plan of a run: how many updates of how many tokens, where it goes, and whether that place is free."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from lm_trials.console import UsageError
from lm_trials.data.blocks import blocks_per_pass
from lm_trials.data.tokens import TokenStore
from lm_trials.models.reference import RUN_FILE


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


def claim_output_dir(arguments: TrainingArguments, overwrite: bool) -> str | None:
    """Return the checkpoint to resume from, if any, after checking that `--output_dir` is free for this run.

    Raises:
        UsageError: for a folder that holds another run, a file in its place, or nothing to resume from.
    """
    folder = Path(arguments.output_dir)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "is a file" if there.is_file() else "cannot be written to"
        raise UsageError(f"--output_dir {folder}: {there} {kind}; name another folder")
    resume = arguments.resume_from_checkpoint
    if resume and str(resume).lower() != "false":
        if str(resume).lower() == "true":
            last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
            if last is None:
                raise UsageError(f"--resume_from_checkpoint True: {folder} holds no checkpoint; leave the flag away")
            return last
        if not (Path(resume) / "trainer_state.json").is_file():
            raise UsageError(f"--resume_from_checkpoint {resume} is no checkpoint folder; name a checkpoint-N folder")
        return str(resume)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not overwrite:
        raise UsageError(
            f"--output_dir {folder} is not empty{' and holds a run' if (folder / RUN_FILE).exists() else ''}; "
            "name another, resume it with --resume_from_checkpoint True, or remove it with --overwrite_output_dir"
        )
    if not (folder / RUN_FILE).exists() and get_last_checkpoint(str(folder)) is None:
        raise UsageError(f"--overwrite_output_dir: {folder} holds no run of ours, so it stays; name another folder")
    return None


def clear_output_dir(arguments: TrainingArguments) -> None:
    """Make an empty folder for the run; one that `--overwrite_output_dir` gives up goes, now that all is in order.

    Raises:
        UsageError: where it cannot be made.
    """
    folder = Path(arguments.output_dir)
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be made ({error.strerror}); name another folder") from None
