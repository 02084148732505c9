"""The flags of `probes/weights.py`; no torch."""

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
    """Which part of the change is looked at and taken back."""

    directions: list[int] = option(
        [1, 2, 4, 8, 16, 32],
        least=1,
        help="How many of the largest singular directions of each matrix's change are removed.",
    )
    top: int = option(
        4, least=1, help="Directions that the share of the change and the overlap of two changes are told for."
    )
    prune: Literal["neurons", "heads", "no"] = option("neurons", help="What is pruned in the second model.")
    prune_shares: list[float] = option(
        [0.0025, 0.005, 0.01, 0.02, 0.05, 0.1],
        above=0,
        most=1,
        help="Shares of all MLP neurons, or of all heads, that are pruned.",
    )
    random_draws: int = option(
        5, least=2, help="How often as many units are pruned at random: the spread of that control."
    )
    ranking_samples: int = option(
        128,
        least=1,
        help="Stories that rank what is pruned: of the train split of a prepared set, else every other story.",
    )
    control_dataset_name: str | None = option(
        None, help="A set without the deleted feature: what taking back costs there, and what pruning is to spare."
    )
    num_generations: int = option(
        0,
        least=0,
        needs="feature",
        not_with="weights_only",
        help="Stories that each model writes for prompts of the set, scored; 0: none.",
    )
    max_new_tokens: int = option(250, least=1, help="Most tokens of such a story.")
    feature: str | None = option(
        None, one_of=FEATURES, help="The deleted feature, which these stories are searched for, as Twist."
    )
    draws: int = option(8, least=2, help="Random matrices of each shape that effective ranks are compared with.")
    weights_only: bool = option(False, help="Compare the weights alone: no data is read and no model is run.")


ARGUMENTS = (SubjectArguments, TextArguments, WeightsArguments)


def check_arguments(subject: SubjectArguments, text: TextArguments, args: WeightsArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["a", "b"], load_in_8bit=True), TextArguments(), WeightsArguments())
    Traceback (most recent call last):
    lm_trials.console.UsageError: --load_in_8bit: quantized weights are codes, ... leave the flag away
    """
    check_subjects(subject, PROBE, least=2)
    for flag in ("load_in_8bit", "load_in_4bit"):
        if getattr(subject, flag):
            raise UsageError(
                f"--{flag}: quantized weights are codes, whose differences are rounding; an adapter is read beside its "
                "unquantized base, so leave the flag away"
            )
