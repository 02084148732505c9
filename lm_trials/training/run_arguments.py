"""`RunArguments`: `TrainingArguments` with this project's defaults.  Loads torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lm_trials.console import UsageError, did_you_mean

POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
OPTIONAL_REPORTERS = ("wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab")


@dataclass
class RunArguments(TrainingArguments):
    """`transformers.TrainingArguments`, name by name, with five defaults changed.

    TensorBoard is on; log lines come every 10 updates; the Trainer reads the data in the order given, because
    `TrainingBlocks` has shuffled them already; `ddp_find_unused_parameters` is off, since every parameter of a causal
    model is used; and a machine without an accelerator trains on its CPU without `--use_cpu`.
    """

    # As TrainingArguments writes it: HfArgumentParser wants None first.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "tensorboard, wandb, trackio, none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Updates between log lines, or their share below 1."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Fixed: the order is made by --data_seed and --shuffle_buffer_size."}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in DistributedDataParallel."})

    def __post_init__(self) -> None:
        if self.train_sampling_strategy != "sequential":
            raise UsageError(
                f"--train_sampling_strategy {self.train_sampling_strategy} would reorder a fixed order; "
                "leave it away and use --data_seed and --shuffle_buffer_size"
            )
        if self.ignore_data_skip:
            raise UsageError("--ignore_data_skip True would begin the data anew after a resume; leave it away")
        if self.max_steps == 0 or self.max_steps < -1:
            raise UsageError(f"--max_steps {self.max_steps} is no number of updates; give at least 1, or -1 for epochs")
        self.use_cpu = self.use_cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        # `--output_dir` has no default until the run has a name; see `lm_trials.training.plan.name_run`.
        self.has_output_dir = self.output_dir is not None
        if not self.has_output_dir:
            self.output_dir = "runs"
        if not self.do_train and not self.do_eval:
            self.do_train = True
        if self.data_seed is None:
            self.data_seed = self.seed
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)} is no number to train with; give at least 1")
        for name in ("seed", "data_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise UsageError(f"--{name} {getattr(self, name)} is no seed; give 0 to {2**32 - 1}")
        if not self.learning_rate >= 0:
            raise UsageError(f"--learning_rate {self.learning_rate:g} is no rate; give 0 or more")
        super().__post_init__()
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise UsageError(f"--report_to {name}: {did_you_mean(name, [*INTEGRATION_TO_CALLBACK, 'all', 'none'])}")
            if name in OPTIONAL_REPORTERS and find_spec(name) is None:
                raise UsageError(f"--report_to {name}: {name} is not installed; pip install {name}, or leave it away")
