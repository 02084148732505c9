"""The flags of `probes/feature_probe.py`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects
from lm_trials.stories.features import FEATURES, canonical_feature

PROBE = "feature_probe"
POOLINGS = ("last_10", "mean")
NORMED = "normed"
SCORED_SPLITS = ("validation", "test", "validation+test")


@dataclass
class FeatureProbeArguments:
    """What is read from the hidden states, and how."""

    features: list[str] = option([], distinct=True, help="Features to be read. Default: all six.")
    pooling: list[str] = option(
        list(POOLINGS),
        one_of=POOLINGS,
        distinct=True,
        filled=True,
        help="last_10: mean of the last 10 positions; mean: of the whole story.",
    )
    layers: list[str] = option(
        [],
        distinct=True,
        help="Hidden-state layers, 0 the embeddings, and normed, after the final norm. Default: all of them.",
    )
    all_checkpoints: bool = option(False, help="Read every checkpoint of each run: the curve over training.")
    num_train_stories: int = option(
        2000, least=2, help="Stories of the train split that the probes are fitted on, at most."
    )
    validation_split_percentage: float = option(
        20.0,
        above=0,
        most=50,
        help="Share of the stories that is held out, by hash, where the data set has no splits of its own.",
    )
    labels: Literal["auto", "records", "detectors"] = option(
        "auto", help="Who says which features a story has; auto: the records where they name any, else the detectors."
    )
    l2: list[float] = option(
        [1.0, 10.0, 100.0],
        above=0,
        distinct=True,
        filled=True,
        help="Weights of the L2 penalty; the best on a part of the training stories is taken.",
    )
    num_shuffles: int = option(
        10,
        least=2,
        why="a spread needs two",
        help="Fittings on shuffled labels, for each layer: the control of chance.",
    )
    long_stories: Literal["leave_out", "cut"] = option(
        "leave_out", help="Stories longer than a model reads: cut, the end that a label speaks of may be gone."
    )

    @property
    def chosen(self) -> list[str]:
        """The features to be read, in the project's spelling.

        Raises:
            UsageError: for a feature that TinyStories does not have.
        """
        return [canonical_feature(feature) for feature in self.features] or list(FEATURES)


ARGUMENTS = (SubjectArguments, TextArguments, FeatureProbeArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: FeatureProbeArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/a"]), TextArguments(), FeatureProbeArguments(layers=["first"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --layers first is no layer; give numbers from 0, the embeddings, or normed
    """
    check_subjects(subjects, PROBE)
    if texts.dataset_split not in (None, *SCORED_SPLITS):
        raise UsageError(
            f"--dataset_split {texts.dataset_split}: the probes are fitted on train and scored on one of "
            f"{', '.join(SCORED_SPLITS)}; give one of these"
        )
    for layer in args.layers:
        if layer != NORMED and not layer.removeprefix("-").isdigit():
            raise UsageError(f"--layers {layer} is no layer; give numbers from 0, the embeddings, or {NORMED}")
    if len(set(args.chosen)) < len(args.chosen):
        raise UsageError(f"--features {' '.join(args.features)}: one feature is given twice; give each once")
