"""`SftRunArguments`: trl's `SFTConfig` with this project's defaults.  Loads torch and trl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from trl import SFTConfig

from lm_trials.console import UsageError
from lm_trials.evaluation.example_losses import KINDS, loss_estimates
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.tuning_flags import CommonSftArguments

# What trl would do to the data is done before it gets them, so that it is counted; these flags would have no effect.
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "dataset_text_field": ("text", "name the column text, prompt and completion, or messages"),
    "dataset_kwargs": (None, "remove it"),
    "shuffle_dataset": (False, "the order is made by --data_seed"),
    "truncation_mode": ("keep_start", "--overlong says what becomes of long examples"),
    "eval_packing": (None, "evaluation never packs"),
    "pad_token": (None, "the tokenizer's own is used, or one that it has to spare"),
    # Where it is in a chat template, no flag changes it; and the adapter would not learn its row of the embeddings.
    "eos_token": (None, "the base's own is used; give a base whose tokenizer has it"),
    "dataset_num_proc": (None, "texts are tokenised by threads, as many as RAYON_NUM_THREADS says"),
    "remove_unused_columns": (False, "the rows have the columns that are used"),
    "label_names": (None, "labels are made of the completions"),
    "length_column_name": ("length", "rows are not grouped by length"),
    "do_predict": (False, "eval_checkpoint.py evaluates on other data"),
    "eval_on_start": (False, "the first evaluation is that of --eval_steps"),
    "trust_remote_code": (False, "no code of a model's is run here"),
}


@dataclass
class SftRunArguments(RunArguments, SFTConfig):
    """`trl.SFTConfig`, name by name, with `TrainingArguments`' own defaults where trl's suit GPUs alone.

    `bf16` and `gradient_checkpointing` are off unless asked for: on a CPU the first is ten times slower.
    """

    declared: ClassVar[type] = CommonSftArguments
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of an example, or of a packed row. Default: the model's positions, at most 1024."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Without effect: no column is unused."})

    def __post_init__(self) -> None:
        for name, (value, instead) in WITHOUT_EFFECT.items():
            if getattr(self, name) not in (value, None):
                raise UsageError(f"--{name} {getattr(self, name)} has no effect here; {instead}")
        if self.assistant_only_loss:  # of a conversation the completions are what the assistant says: one flag for both
            if self.completion_only_loss is False:
                raise UsageError("--assistant_only_loss True and --completion_only_loss False: give one of them")
            self.assistant_only_loss, self.completion_only_loss = False, True
        if self.packing_strategy == "wrapped":
            raise UsageError(
                "--packing_strategy wrapped lets an example see the one before it in the row; give bfd or bfd_split"
            )
        super().__post_init__()
        if self.activation_offloading and self.device.type == "cpu":
            raise UsageError(
                "--activation_offloading True moves activations from a GPU to the CPU, and this run has none; leave it "
                "away"
            )

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return what `--metric_for_best_model` may name: what an evaluation gives, of both losses."""
        metrics = loss_estimates(np.ones((1, 6)))[KINDS[0]]
        return [*metrics, *(f"{kind}_{metric}" for kind in KINDS for metric in metrics)], False
