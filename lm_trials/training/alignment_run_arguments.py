"""trl's `DPOConfig` and `GRPOConfig` with this project's defaults.  Loads torch and trl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import DPOConfig, GRPOConfig

from lm_trials.console import UsageError
from lm_trials.training.alignment_flags import CommonDpoArguments, CommonGrpoArguments
from lm_trials.training.run_arguments import RunArguments, refuse_without_effect

# (default, advice) of flags without effect: trl gets tokenized and ordered examples, and remote code is never run.
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "remove_unused_columns": (False, "remove it"),
    "label_names": (None, "remove it"),
    "length_column_name": ("length", "rows are not grouped by length"),
    "do_predict": (False, "use lm-trials evaluate"),
    "eval_on_start": (False, "--eval_steps sets the first evaluation"),
    "trust_remote_code": (False, "remote code is never run"),
    "label_smoothing_factor": (0.0, "a label is smoothed by --label_smoothing with --loss_type robust or exo_pair"),
}
OF_DPO: dict[str, tuple[Any, str]] = {
    **WITHOUT_EFFECT,
    "truncation_mode": ("keep_start", "use --overlong"),
    "padding_free": (False, "trl has switched it off"),
    "pad_token": (None, "the tokenizer's own or a spare token is used"),
    "dataset_num_proc": (None, "RAYON_NUM_THREADS sets the threads that tokenize"),
    # It would write into the cache of the library `datasets`; of an adapter's training the memory is the same.
    "precompute_ref_log_probs": (False, "the reference needs no memory beside the adapter"),
    "precompute_ref_batch_size": (None, "reference log probabilities are not precomputed"),
}
OF_GRPO: dict[str, tuple[Any, str]] = {
    **WITHOUT_EFFECT,
    "shuffle_dataset": (False, "--data_seed sets the data order"),
    "chat_template_kwargs": (None, "prompts have the tokens of --prompt_layout"),
    "log_multimodal": (True, "there are no images"),
    "max_tool_calling_iterations": (None, "there are no tools"),
    # What they sample does not follow from the random state that a checkpoint has.
    "use_vllm": (False, "a resumed run could not repeat its samples"),
    "use_transformers_continuous_batching": (False, "a resumed run could not repeat its samples"),
    "use_transformers_paged": (False, "a resumed run could not repeat its samples"),
    "log_completions_hub_repo": (None, "--log_completions writes them into the run's folder"),
}


@dataclass
class DpoRunArguments(RunArguments, DPOConfig):  # type: ignore[misc]  # RunArguments narrows lr_scheduler_kwargs
    """`trl.DPOConfig` with `TrainingArguments`' defaults: bf16 (slow on CPUs) and gradient_checkpointing are off."""

    declared: ClassVar[type] = CommonDpoArguments
    packing: ClassVar[bool] = False
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Maximum tokens of a prompt with one side. Default: the model's, at most 1024."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "No effect: no column is unused."})

    def __post_init__(self) -> None:
        refuse_without_effect(self, OF_DPO)
        super().__post_init__()

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return the names for `--metric_for_best_model`."""
        return ("loss", "rewards/accuracies", "rewards/margins"), False


@dataclass
class GrpoRunArguments(RunArguments, GRPOConfig):  # type: ignore[misc]
    """`trl.GRPOConfig` with `TrainingArguments`' defaults, and one completion of each held-out prompt."""

    declared: ClassVar[type] = CommonGrpoArguments
    packing: ClassVar[bool] = False
    padding_free: ClassVar[bool] = False
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    max_completion_length: int | None = field(
        default=None,
        metadata={"help": "Maximum tokens of a completion. Default: what the longest prompt leaves, at most 256."},
    )
    num_generations_eval: int | None = field(
        default=1, metadata={"help": "Completions sampled for each validation prompt."}
    )
    shuffle_dataset: bool | None = field(default=False, metadata={"help": "No effect: --data_seed sets the order."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "No effect: rewards may read each column."})

    def __post_init__(self) -> None:
        refuse_without_effect(self, OF_GRPO)
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "reward"
        try:
            super().__post_init__()
        except ValueError as error:
            if "must be divisible by num_generations" not in str(error):
                raise
            raise UsageError(
                f"--num_generations {self.num_generations} does not divide the {self.generation_batch_size} "
                "completions that are sampled together (--per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x {self.world_size} processes x --steps_per_generation "
                f"{self.steps_per_generation}); change one of them"
            ) from None

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return the names for `--metric_for_best_model`."""
        return ("reward",), False
