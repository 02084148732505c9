"""Flags of `lm-trials align`, and the common flags of trl's `DPOConfig` and `GRPOConfig` for `--help`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lm_trials.flags import SUPPRESS, option
from lm_trials.shared_flags import FeatureJudge
from lm_trials.training.flags import RATE, CommonTrainingArguments


@dataclass
class MethodArguments(FeatureJudge):
    """The method."""

    flag_group: ClassVar[str] = "method"

    method: str = option(
        "",
        required="dpo, or grpo",
        one_of=("dpo", "grpo"),
        needs={"grpo": "reward_funcs"},
        not_with={"dpo": ("reward_funcs", "judge_corpus"), "grpo": "ref_model_name_or_path"},
        help="dpo: learn from preferences (columns prompt, chosen, rejected); grpo: learn from rewards of sampled "
        "completions (column prompt).",
    )
    ref_model_name_or_path: str | None = option(
        None, filled=True, help="Reference model of dpo. Default: the model before this training."
    )
    reward_funcs: list[str] = option(
        [],
        distinct=True,
        help="Rewards of grpo: words, features, feature:NAME, length:N, ends, or FILE.py:NAME, a function of yours.",
    )


@dataclass
class CommonMethodArguments(CommonTrainingArguments):
    """Common flags of both methods."""

    flag_group: ClassVar[str] = "training"

    beta: float = option(
        None, least=0, help="Weight of the reference model: of rewards in dpo (0.1), of the KL term in grpo (0)."
    )
    per_device_train_batch_size: int = option(8, least=1, help="Pairs (grpo: completions) in a batch of each process.")
    per_device_eval_batch_size: int = option(8, least=1, help="Texts in a batch of each process in evaluation.")
    learning_rate: float = option(1e-5, **RATE, help="Peak learning rate of AdamW.")


@dataclass
class CommonDpoArguments(CommonMethodArguments):
    """Common flags of trl.DPOConfig."""

    max_length: int = option(
        None, least=3, help="dpo: most tokens of a prompt with one side. Default: the model's positions, at most 1024."
    )
    label_smoothing: float = option(0.0, least=0, below=0.5, help=SUPPRESS)


@dataclass
class CommonGrpoArguments(CommonMethodArguments):
    """Common flags of trl.GRPOConfig."""

    num_generations: int = option(8, least=2, help="grpo: completions sampled for each prompt.")
    max_completion_length: int = option(
        None, least=1, help="grpo: most tokens of a completion. Default: what the longest prompt leaves, at most 256."
    )
    temperature: float = option(1.0, above=0, help="grpo: sampling temperature.")
    top_p: float = option(1.0, above=0, most=1, help="grpo: sample among the likeliest tokens of this probability.")
    top_k: int = option(0, least=0, help="grpo: sample among the K likeliest tokens; 0: all.")
    reward_weights: list[float] = option(None, help="grpo: weight of each reward. Default: 1 each.")
    num_iterations: int = option(1, least=1, help="grpo: passes over the same completions.")
    steps_per_generation: int = option(
        None, least=1, help="grpo: batches sampled together. Default: --gradient_accumulation_steps."
    )
    num_generations_eval: int = option(1, least=1, help="grpo: completions of each validation prompt.")
    min_p: float = option(None, least=0, most=1, help=SUPPRESS)
    repetition_penalty: float = option(1.0, above=0, help=SUPPRESS)


@dataclass
class CommonAlignmentArguments(CommonDpoArguments, CommonGrpoArguments):
    """Common flags of trl.DPOConfig and trl.GRPOConfig; `--help_all` shows all of one method."""
