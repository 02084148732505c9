"""The flags of `probes/weights.py`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError, did_you_mean
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects, check_texts
from lm_trials.stories.records import FEATURES

PROBE = "weights"


@dataclass
class WeightsArguments:
    """Which part of the change is looked at and taken back."""

    directions: list[int] = option(
        [1, 2, 4, 8, 16, 32], help="How many of the largest singular directions of each matrix's change are removed."
    )
    top: int = option(4, help="Directions that the share of the change and the overlap of two changes are told for.")
    prune: Literal["neurons", "heads", "no"] = option("neurons", help="What is pruned in the second model.")
    prune_shares: list[float] = option(
        [0.0025, 0.005, 0.01, 0.02, 0.05, 0.1], help="Shares of all MLP neurons, or of all heads, that are pruned."
    )
    random_draws: int = option(5, help="How often as many units are pruned at random: the spread of that control.")
    ranking_samples: int = option(
        128, help="Stories that rank what is pruned: of the train split of a prepared set, else every other story."
    )
    control_dataset_name: str | None = option(
        None, help="A set without the deleted feature: what taking back costs there, and what pruning is to spare."
    )
    num_generations: int = option(0, help="Stories that each model writes for prompts of the set, scored; 0: none.")
    max_new_tokens: int = option(250, help="Most tokens of such a story.")
    feature: str | None = option(None, help="The deleted feature, which these stories are searched for, as Twist.")
    draws: int = option(8, help="Random matrices of each shape that effective ranks are compared with.")
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
    check_texts(text)
    for flag in ("load_in_8bit", "load_in_4bit"):
        if getattr(subject, flag):
            raise UsageError(
                f"--{flag}: quantized weights are codes, whose differences are rounding; an adapter is read beside its "
                "unquantized base, so leave the flag away"
            )
    if wrong := [count for count in args.directions if count < 1]:
        raise UsageError(f"--directions {wrong[0]} removes nothing; give at least 1")
    if wrong := [share for share in args.prune_shares if not 0 < share <= 1]:
        raise UsageError(f"--prune_shares {wrong[0]:g} is no share; give above 0 to 1")
    for flag, least in (
        ("top", 1),
        ("ranking_samples", 1),
        ("draws", 2),
        ("random_draws", 2),
        ("num_generations", 0),
        ("max_new_tokens", 1),
    ):
        if getattr(args, flag) < least:
            raise UsageError(f"--{flag} {getattr(args, flag)} is too few; give at least {least}")
    if args.feature is not None and args.feature not in FEATURES:
        raise UsageError(f"--feature {args.feature}: {did_you_mean(args.feature, FEATURES)}")
    if args.num_generations and args.feature is None:
        raise UsageError(
            f"--num_generations {args.num_generations}: which feature is searched for is not said; give --feature Twist"
        )
    if args.num_generations and args.weights_only:
        raise UsageError("--weights_only runs no model, so nothing is generated; drop it or --num_generations")
