"""trl's `DPOConfig` and `GRPOConfig` with this project's defaults.  Loads torch and trl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from trl import DPOConfig, GRPOConfig

from lm_trials.console import UsageError, did_you_mean
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
    # A checkpoint has no reference model, and an evaluation compares with the first one.
    "sync_ref_model": (False, "the reference model does not change"),
    "ref_model_mixup_alpha": (0.6, "the reference model does not change"),
    "ref_model_sync_steps": (512, "the reference model does not change"),
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
    **{each.name: (each.default, "vLLM is not used") for each in fields(GRPOConfig) if each.name.startswith("vllm_")},
}
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # losses that read --label_smoothing
# Words that trl checks at the first update.
WORDS_OF_DPO: dict[str, tuple[str, ...]] = {
    "loss_type": (
        *("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "sft"),
        *("sigmoid_norm", *SMOOTHED),
    ),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
}
WORDS_OF_GRPO: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


def check_words(arguments: Any, words: Mapping[str, Sequence[str]]) -> None:
    """Refuse a word, or one of a list, that a flag does not know (UsageError)."""
    for name, known in words.items():
        value = getattr(arguments, name)
        for each in value if isinstance(value, list) else [value]:
            if each not in known:
                raise UsageError(f"--{name} {each}: {did_you_mean(each, known)}")


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
        check_words(self, WORDS_OF_DPO)
        if self.label_smoothing and not {*SMOOTHED}.intersection(self.loss_type):
            raise UsageError(
                f"--label_smoothing {self.label_smoothing:g} has no effect with --loss_type "
                f"{' '.join(self.loss_type)}; give one of {', '.join(SMOOTHED)}, or remove it"
            )

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
        # trl wants them to divide an evaluation's batch, and they are sampled here in batches of any size.
        eval_generations, self.num_generations_eval = self.num_generations_eval, 1
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
        self.num_generations_eval = eval_generations
        check_words(self, WORDS_OF_GRPO)

    def metrics_of_the_best(self) -> tuple[Sequence[str], bool]:
        """Return the names for `--metric_for_best_model`."""
        return ("reward",), False
