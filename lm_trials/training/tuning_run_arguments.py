"""`SftRunArguments`: trl's `SFTConfig` with this project's defaults.  Loads torch and trl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from trl import SFTConfig

from lm_trials.console import UsageError
from lm_trials.evaluation.example_losses import KINDS, loss_estimates
from lm_trials.training.run_arguments import RunArguments, refuse_without_effect
from lm_trials.training.tuning_flags import CommonSftArguments

# (default, advice) of flags without effect: trl gets tokenized, labelled and ordered examples.
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "dataset_text_field": ("text", "name the column text, prompt and completion, or messages"),
    "dataset_kwargs": (None, "remove it"),
    "shuffle_dataset": (False, "--data_seed sets the data order"),
    "truncation_mode": ("keep_start", "use --overlong"),
    "eval_packing": (None, "evaluation never packs"),
    "pad_token": (None, "the tokenizer's own or a spare token is used"),
    # A chat template would keep its own, and an adapter does not train the embeddings of a new one.
    "eos_token": (None, "the base's own is used; give a base whose tokenizer has it"),
    "dataset_num_proc": (None, "RAYON_NUM_THREADS sets the threads that tokenize"),
    "remove_unused_columns": (False, "remove it"),
    "label_names": (None, "labels follow from the completions"),
    "length_column_name": ("length", "rows are not grouped by length"),
    "do_predict": (False, "use lm-trials evaluate"),
    "eval_on_start": (False, "--eval_steps sets the first evaluation"),
    "trust_remote_code": (False, "remote code is never run"),
}


@dataclass
class SftRunArguments(RunArguments, SFTConfig):  # type: ignore[misc]  # RunArguments narrows lr_scheduler_kwargs
    """`trl.SFTConfig` with `TrainingArguments`' defaults: bf16 (slow on CPUs) and gradient_checkpointing are off."""

    declared: ClassVar[type] = CommonSftArguments
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Maximum tokens of an example or packed row. Default: the model's, at most 1024."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "No effect: no column is unused."})

    def __post_init__(self) -> None:
        refuse_without_effect(self, WITHOUT_EFFECT)
        if self.assistant_only_loss:  # a conversation's completions are the assistant's turns
            if self.completion_only_loss is False:
                raise UsageError("--assistant_only_loss True and --completion_only_loss False: remove one of them")
            self.assistant_only_loss, self.completion_only_loss = False, True
        if self.packing_strategy == "wrapped":
            raise UsageError(
                "--packing_strategy wrapped lets examples attend to earlier ones in their row; give bfd or bfd_split"
            )
        super().__post_init__()

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return the names for `--metric_for_best_model`: the metrics of both losses."""
        metrics = loss_estimates(np.ones((1, 6)))[KINDS[0]]
        return [*metrics, *(f"{kind}_{metric}" for kind in KINDS for metric in metrics)], False
