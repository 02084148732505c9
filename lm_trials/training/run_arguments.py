"""`RunArguments`: `TrainingArguments` with this project's defaults.  Loads torch."""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.utils import is_liger_kernel_available

from lm_trials.console import UsageError, did_you_mean
from lm_trials.evaluation.summary import STATISTICS
from lm_trials.flags import check_flags
from lm_trials.training.flags import CommonTrainingArguments

OPTIONAL_REPORTERS = ("wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab")
FROM_FILES = ("accelerator_config", "fsdp_config")  # flags that name a JSON file or hold its content
# What accelerate would do to the batches: each changes how many examples an update has, or in which order they come.
BATCHING = ("split_batches", "dispatch_batches", "even_batches", "gradient_accumulation_kwargs")
FROM_THE_TRAINER = {"optimizer", "num_warmup_steps", "num_training_steps"}  # what a schedule is given besides


@dataclass
class RunArguments(TrainingArguments):
    """`transformers.TrainingArguments`, name by name, with five defaults changed.

    TensorBoard is on; log lines come every 10 updates; the Trainer reads the data in the order given, because
    `TrainingBlocks` has shuffled them already; `ddp_find_unused_parameters` is off, since every parameter of a causal
    model is used; and a machine without an accelerator trains on its CPU without `--use_cpu`.
    """

    declared: ClassVar[type] = CommonTrainingArguments  # whose bounds apply
    # As TrainingArguments writes it: HfArgumentParser wants None first.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "tensorboard, wandb, trackio, none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Updates between log lines, or their share below 1."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Fixed: the order is made by --data_seed."}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in DistributedDataParallel."})

    def __post_init__(self) -> None:
        if self.train_sampling_strategy != "sequential":
            raise UsageError(
                f"--train_sampling_strategy {self.train_sampling_strategy} would reorder a fixed order; remove it "
                "and use --data_seed (in train_gpt2.py --shuffle_buffer_size too)"
            )
        if self.ignore_data_skip:
            raise UsageError("--ignore_data_skip True would begin the data anew after a resume; remove it")
        self.use_cpu = self.use_cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        # `--output_dir` has no default until the run has a name; see `lm_trials.training.plan.name_run`.
        self.has_output_dir = self.output_dir is not None
        if not self.has_output_dir:
            self.output_dir = "runs"
        if not self.do_train and not self.do_eval:
            self.do_train = True
        if self.data_seed is None:
            self.data_seed = self.seed
        check_flags(self, declared=self.declared)
        check_json(self, self._VALID_DICT_FIELDS)
        check_batches(self)
        check_machine(self)
        check_metric(self, self.metrics_of_the_best())
        super().__post_init__()
        check_accelerator(self)
        check_optimizer(self)
        check_schedule(self)
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise UsageError(f"--report_to {name}: {did_you_mean(name, [*INTEGRATION_TO_CALLBACK, 'all', 'none'])}")
            if name in OPTIONAL_REPORTERS and find_spec(name) is None:
                raise UsageError(f"--report_to {name}: {name} is not installed; pip install {name}, or remove it")

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return what `--metric_for_best_model` may name, and whether something may stand before it."""
        return tuple(STATISTICS), True


def check_json(arguments: TrainingArguments, names: Sequence[str]) -> None:
    """Refuse text that should be a JSON object, or the name of a file with one, and is none."""
    for name in names:
        value = getattr(arguments, name)
        if not isinstance(value, str) or (name == "deepspeed" and not value.startswith("{")):
            continue
        text, files = value, name in FROM_FILES
        try:
            if files and not value.startswith("{"):
                text = Path(value).read_text(encoding="utf-8")
            if not isinstance(json.loads(text), dict):
                raise ValueError("it is no object")
        except OSError as error:
            raise UsageError(f"--{name} {value:.60} cannot be read ({error.strerror}); give a JSON file") from None
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
            or_file = ", or a file with that" if files else ""
            raise UsageError(
                f"--{name} {value:.60} is no JSON ({str(error).splitlines()[0]}); give '{{\"name\": value}}'{or_file}"
            ) from None


def check_batches(arguments: TrainingArguments) -> None:
    """Refuse what would change the batches while the run is under way, or what workers have without workers."""
    if arguments.auto_find_batch_size:
        raise UsageError(
            "--auto_find_batch_size True halves the batch where memory runs out, and so changes the experiment; lower "
            "--per_device_train_batch_size and raise --gradient_accumulation_steps, which sees the same examples"
        )
    if arguments.dataloader_persistent_workers and not arguments.dataloader_num_workers:
        raise UsageError(
            "--dataloader_persistent_workers True: there are no workers; give --dataloader_num_workers 1 or more, or "
            "remove it"
        )


def check_machine(arguments: TrainingArguments) -> None:
    """Refuse what this machine, or what is installed on it, cannot do."""
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise UsageError("--use_liger_kernel True: it is not installed; pip install liger-kernel, or remove it")
    if arguments.deepspeed and find_spec("deepspeed") is None:
        raise UsageError("--deepspeed: it is not installed; pip install deepspeed, or remove it")
    if not arguments.use_cpu:
        return
    for name in ("fsdp", "deepspeed"):
        if getattr(arguments, name):
            raise UsageError(f"--{name} shards a model over GPUs, and this run has none; remove it")
    if arguments.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        raise UsageError(
            "--fp16 True (or accelerate's mixed_precision fp16): a CPU would compute float32 without a word; leave it "
            "away, or use a machine with a GPU"
        )


def check_metric(arguments: TrainingArguments, valid: tuple[Sequence[str], bool]) -> None:
    """Refuse a metric for the best model that no evaluation gives; less is better for all but accuracy, in place."""
    metric = arguments.metric_for_best_model
    if metric is None:
        return
    (names, may_be_longer), name = valid, metric.removeprefix("eval_")
    if name not in names and not (may_be_longer and name.endswith(tuple(f"_{known}" for known in names))):
        raise UsageError(f"--metric_for_best_model {metric}: {did_you_mean(name, names)}")
    if arguments.greater_is_better is None:  # Trainer would take the greatest perplexity for the best
        arguments.greater_is_better = name.endswith("accuracy")


def check_accelerator(arguments: TrainingArguments) -> None:
    """Refuse settings of accelerate that change how many examples an update has."""
    given = arguments.accelerator_config
    for name in BATCHING:
        if getattr(given, name) != getattr(type(given)(), name):
            raise UsageError(
                f"--accelerator_config: {name} {getattr(given, name)} would change what an update has seen; leave it "
                "out and use --per_device_train_batch_size and --gradient_accumulation_steps"
            )


def check_optimizer(arguments: TrainingArguments) -> None:
    """Refuse an optimizer whose package is missing; which that is, transformers knows."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        if re.search(r"need to pass a `?model", str(error)):  # all before was right; the model comes later
            return
        raise UsageError(f"--optim {arguments.optim.value}: {str(error).splitlines()[0]}") from None


def check_schedule(arguments: TrainingArguments) -> None:
    """Refuse keys of `--lr_scheduler_kwargs` that the schedule does not have, and values that it does not take."""
    given, kind = arguments.lr_scheduler_kwargs or {}, arguments.lr_scheduler_type
    takes = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
    known = [name for name in takes if name not in FROM_THE_TRAINER and name != "last_epoch"]
    if kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        known = []  # get_scheduler leaves out what it is given
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    if unknown := [] if free else [name for name in given if name not in known]:
        nearest = did_you_mean(unknown[0], known) if known else "it takes none"
        raise UsageError(f"--lr_scheduler_kwargs {unknown[0]} of --lr_scheduler_type {kind.value}: {nearest}")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_scheduler(kind, optimizer, 1, 10, dict(given))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--lr_scheduler_type {kind.value} with --lr_scheduler_kwargs {json.dumps(given)}: "
            f"{str(error).splitlines()[0]}; mend them"
        ) from None
