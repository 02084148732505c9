"""The flags of the weights probe; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects
from lm_trials.stories.features import FEATURES

PROBE = "weights"


@dataclass
class WeightsArguments:
    """Which parts of the change are measured and undone."""

    directions: list[int] = option(
        [1, 2, 4, 8, 16, 32],
        least=1,
        help="How many of the largest singular directions of each matrix's change to remove, each in turn.",
    )
    top: int = option(4, least=1, help="Directions counted in the reported share of a change and overlap of changes.")
    prune: Literal["neurons", "heads", "no"] = option("neurons", help="Units to prune in the second model.")
    prune_shares: list[float] = option(
        [0.0025, 0.005, 0.01, 0.02, 0.05, 0.1], above=0, most=1, help="Shares of all MLP neurons or heads to prune."
    )
    random_draws: int = option(5, least=2, help="Random prunings of as many units, the control.")
    ranking_samples: int = option(
        128, least=1, help="Stories that rank the units: the train split of a prepared set, else every other story."
    )
    control_dataset_name: str | None = option(
        None, help="A set without the deleted feature, on which undoing and pruning should cost nothing."
    )
    num_generations: int = option(
        0,
        least=0,
        needs="feature",
        not_with="weights_only",
        help="Stories that each model generates from the set's prompts; 0: none.",
    )
    max_new_tokens: int = option(250, least=1, help="Longest generated story, in tokens.")
    feature: str | None = option(None, one_of=FEATURES, help="The deleted feature to detect in them, as Twist.")
    draws: int = option(8, least=2, help="Random matrices per shape, the control of effective ranks.")
    weights_only: bool = option(False, help="Compare the weights only: no data is read and no model is run.")


ARGUMENTS = (SubjectArguments, TextArguments, WeightsArguments)


def check_arguments(subject: SubjectArguments) -> None:
    """Check the flags before anything is loaded.

    Raises:
        UsageError: for the first flag that is wrong.

    >>> check_arguments(SubjectArguments(["a", "b"], load_in_8bit=True))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --load_in_8bit: the difference of quantized weights is rounding; remove the flag ...
    """
    check_subjects(subject, PROBE, least=2)
    for flag in ("load_in_8bit", "load_in_4bit"):
        if getattr(subject, flag):
            raise UsageError(
                f"--{flag}: the difference of quantized weights is rounding; remove the flag (an adapter is compared "
                "with its unquantized base)"
            )
