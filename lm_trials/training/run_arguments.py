"""`RunArguments`: `TrainingArguments` with this project's defaults.  Loads torch."""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import ParallelMode
from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available

from lm_trials.console import UsageError, did_you_mean
from lm_trials.evaluation.summary import STATISTICS
from lm_trials.flags import check_flags
from lm_trials.training.flags import CommonTrainingArguments

OPTIONAL_REPORTERS = ("wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab")
FROM_FILES = ("accelerator_config", "fsdp_config")  # flags with a JSON object or the path of a JSON file
# Settings of accelerate that change how many examples an update has, or their order.
BATCHING = ("split_batches", "dispatch_batches", "even_batches", "gradient_accumulation_kwargs")
# Arguments of a schedule that are no keys of --lr_scheduler_kwargs.
NOT_KEYS = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


@dataclass
class RunArguments(TrainingArguments):
    """`transformers.TrainingArguments` with six defaults changed.

    TensorBoard is on; logs come every 10 updates; data is read in sequence, because `TrainingBlocks` has shuffled it; a
    loss that is nan is not hidden; `ddp_find_unused_parameters` is off, because a causal model uses every parameter;
    without an accelerator the run uses the CPU without `--use_cpu`.
    """

    declared: ClassVar[type] = CommonTrainingArguments  # the options whose bounds apply
    if TYPE_CHECKING:  # as `__post_init__` and `plan.name_run` set them
        output_dir: str = ""
        data_seed: int = 0
        report_to: list[str] = []
        optim: Any = None
        eval_strategy: Any = None
        lr_scheduler_type: Any = None
        lr_scheduler_kwargs: dict[str, Any] | None = None
    else:  # as TrainingArguments declares it: HfArgumentParser wants None first
        report_to: None | str | list[str] = field(  # noqa: RUF036
            default="tensorboard", metadata={"help": "tensorboard, wandb, trackio, none."}
        )
    logging_steps: float = field(default=10, metadata={"help": "Updates between log lines, or their share below 1."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the mean of earlier losses for one that is nan, as if nothing was wrong."}
    )
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Only sequential; --data_seed sets the data order."}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See DistributedDataParallel."})

    def __post_init__(self) -> None:
        if self.train_sampling_strategy != "sequential":
            raise UsageError(
                f"--train_sampling_strategy {self.train_sampling_strategy} would shuffle the shuffled data again; "
                "remove it and use --data_seed (in lm-trials train --shuffle_buffer_size too)"
            )
        if self.ignore_data_skip:
            raise UsageError("--ignore_data_skip True would repeat data after a resume; remove it")
        if self.auto_find_batch_size:
            raise UsageError(
                "--auto_find_batch_size True changes batch and experiment when memory runs out; remove it, "
                "lower --per_device_train_batch_size and raise --gradient_accumulation_steps, which keeps the examples"
            )
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise UsageError(
                "--dataloader_persistent_workers True: there are no workers; give --dataloader_num_workers 1 or more"
            )
        accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
        # DeepSpeed's own variable: it shards over CPU processes too, and accelerate's `use_cpu` would make that DDP.
        self.use_cpu = self.use_cpu or not (accelerated or os.environ.get("DS_ACCELERATOR") == "cpu")
        self.dataloader_pin_memory = self.dataloader_pin_memory and not torch.backends.mps.is_available()
        self.has_output_dir = self.output_dir is not None  # else plan.name_run derives it from the run's name
        self.output_dir = self.output_dir if self.has_output_dir else "runs"
        self.do_train = self.do_train or not self.do_eval
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        check_flags(self, declared=self.declared)
        check_json(self, self._VALID_DICT_FIELDS)
        check_machine(self)
        check_metric(self)
        super().__post_init__()
        check_accelerator(self)
        check_optimizer(self)
        check_schedule(self)
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise UsageError(f"--report_to {name}: {did_you_mean(name, [*INTEGRATION_TO_CALLBACK, 'all', 'none'])}")
            if name in OPTIONAL_REPORTERS and find_spec(name) is None:
                raise UsageError(f"--report_to {name}: not installed; pip install {name}, or remove it")

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return the names for `--metric_for_best_model`, and whether a data set's name may precede them."""
        return tuple(STATISTICS), True


def refuse_without_effect(arguments: Any, flags: Mapping[str, tuple[Any, str]]) -> None:
    """Refuse the first flag that is not at its default, where it would have no effect; `flags`: (default, advice)."""
    for name, (value, instead) in flags.items():
        if getattr(arguments, name) not in (value, None):
            raise UsageError(f"--{name} {getattr(arguments, name)} has no effect here; {instead}")


def check_json(arguments: RunArguments, names: Sequence[str]) -> None:
    """Refuse text that is neither a JSON object nor, where allowed, the path of a file with one."""
    for name in names:
        value = getattr(arguments, name)
        if not isinstance(value, str) or (name == "deepspeed" and not value.startswith("{")):
            continue
        text, files = value, name in FROM_FILES
        try:
            if files and not value.startswith("{"):
                text = Path(value).read_text(encoding="utf-8")
            if not isinstance(json.loads(text), dict):
                raise ValueError("not an object")
        except OSError as error:
            raise UsageError(f"--{name} {value:.60} cannot be read ({error.strerror}); give a JSON file") from None
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError included
            or_file = ", or a file with that" if files else ""
            raise UsageError(
                f"--{name} {value:.60} is not valid JSON ({str(error).splitlines()[0]}); "
                f"give '{{\"name\": value}}'{or_file}"
            ) from None


def check_machine(arguments: RunArguments) -> None:
    """Refuse what this machine or its installed packages do not support."""
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise UsageError("--use_liger_kernel True: not installed; pip install liger-kernel, or remove it")
    if arguments.deepspeed and find_spec("deepspeed") is None:
        raise UsageError("--deepspeed: not installed; pip install 'lm_trials[sharded]', or remove it")
    if not arguments.use_cpu:
        if arguments.bf16 and not is_torch_bf16_gpu_available():
            raise UsageError(
                "--bf16 True: this GPU does not compute in bfloat16 (Apple's do from macOS 14 on); remove it"
            )
        return
    if getattr(arguments, "activation_offloading", False):  # trl's
        raise UsageError(
            "--activation_offloading True moves activations from a GPU to the CPU, and there is no GPU; remove it"
        )
    for name in ("fsdp", "deepspeed"):
        if getattr(arguments, name):
            raise UsageError(f"--{name} shards a model over GPUs, and this run has none; remove it")
    if arguments.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        raise UsageError(
            "--fp16 True (or accelerate's mixed_precision fp16): on a CPU it silently computes in float32; remove it, "
            "or use a GPU"
        )


def check_metric(arguments: RunArguments) -> None:
    """Refuse a metric for the best model that no evaluation computes, and set `greater_is_better`, in place."""
    metric = arguments.metric_for_best_model
    if metric is None:
        return
    (names, may_be_longer), name = arguments.metrics_of_the_best(), metric.removeprefix("eval_")
    if name not in names and not (may_be_longer and name.endswith(tuple(f"_{known}" for known in names))):
        raise UsageError(f"--metric_for_best_model {metric}: {did_you_mean(name, names)}")
    if arguments.greater_is_better is None:  # Trainer's default keeps the greatest perplexity
        arguments.greater_is_better = name.endswith("accuracy") or name.startswith("reward")


def check_accelerator(arguments: RunArguments) -> None:
    """Refuse settings of accelerate that change how many examples an update has, and shards of one process."""
    if arguments.fsdp and arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        raise UsageError(
            "--fsdp shards a model over the GPUs of several processes, and this run is one; remove it, or use "
            "accelerate launch"
        )
    given: Any = arguments.accelerator_config
    for name in BATCHING:
        if getattr(given, name) != getattr(type(given)(), name):
            raise UsageError(
                f"--accelerator_config: {name} {getattr(given, name)} would change the examples of an update; remove "
                "it and use --per_device_train_batch_size and --gradient_accumulation_steps"
            )


def check_optimizer(arguments: RunArguments) -> None:
    """Refuse an optimizer whose package is missing or whose arguments are wrong, as far as transformers checks them."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        if re.search(r"need to pass a `?model", str(error)):  # LOMO: the last check, and the model is built later
            return
        raise UsageError(
            f"--optim {arguments.optim.value}: {str(error).splitlines()[0]}; give another, or correct --optim_args"
        ) from None


def check_schedule(arguments: RunArguments) -> None:
    """Refuse unknown keys and wrong values in `--lr_scheduler_kwargs`."""
    given, kind = arguments.lr_scheduler_kwargs or {}, arguments.lr_scheduler_type
    schedules: dict[Any, Any] = TYPE_TO_SCHEDULER_FUNCTION
    takes = inspect.signature(schedules[kind]).parameters
    known = [name for name in takes if name not in NOT_KEYS]
    if kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        known = []  # get_scheduler ignores the keys of these two
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    if unknown := [] if free else [name for name in given if name not in known]:
        nearest = did_you_mean(unknown[0], known) if known else "it takes no keys; remove it"
        raise UsageError(f"--lr_scheduler_kwargs {unknown[0]} of --lr_scheduler_type {kind.value}: {nearest}")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = max(arguments.max_steps, 0) or 10  # by epochs: not known yet
            warmup = arguments.get_warmup_steps(steps) if arguments.max_steps > 0 else 1
            scheduler = get_scheduler(kind, optimizer, warmup, steps, dict(given))
            for curve in getattr(scheduler, "lr_lambdas", []):
                curve(steps)  # polynomial divides by its steps after the warm-up, at the last update
    except ZeroDivisionError:
        raise UsageError(
            f"--lr_scheduler_type {kind.value} with --warmup_steps {arguments.warmup_steps:g} has no updates after the "
            "warm-up; lower it"
        ) from None
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--lr_scheduler_type {kind.value} with --lr_scheduler_kwargs {json.dumps(given)}: "
            f"{str(error).splitlines()[0]}; correct them"
        ) from None
