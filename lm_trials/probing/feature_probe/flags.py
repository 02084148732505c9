"""The flags of the feature probe; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects
from lm_trials.stories.features import FEATURES, canonical_feature

PROBE = "feature_probe"
POOLINGS = ("last_10", "mean")
WHOLE, BEFORE_MARKER = READS = ("whole", "before_marker")
NORMED = "normed"
SCORED_SPLITS = ("validation", "test", "validation+test")


@dataclass
class FeatureProbeArguments:
    """What is decoded from the hidden states, and how."""

    features: list[str] = option([], distinct=True, help="Features to decode. Default: all six.")
    read: list[str] = option(
        [WHOLE],
        one_of=READS,
        distinct=True,
        filled=True,
        help="whole: the story; before_marker: up to the sentence that shows the feature, and other stories up to a "
        "sentence end at the same length and place.",
    )
    pooling: list[str] = option(
        list(POOLINGS),
        one_of=POOLINGS,
        distinct=True,
        filled=True,
        help="last_10: mean over the last 10 positions that are read; mean: over all.",
    )
    layers: list[str] = option(
        [],
        distinct=True,
        help="Hidden states: 0 (embeddings) to L, -1 the last; normed: after the final norm. Default: all.",
    )
    all_checkpoints: bool = option(False, help="Probe every checkpoint of each run: the curve over training.")
    num_train_stories: int = option(2000, least=2, help="Maximum number of train stories to fit the probes on.")
    validation_split_percentage: float = option(
        20.0, above=0, most=50, help="Percentage of stories held out, by hash, where the data set has no splits."
    )
    labels: Literal["auto", "records", "detectors"] = option(
        "auto", help="Source of the labels. auto: the records if any names a feature, else the detectors."
    )
    l2: list[float] = option(
        [1.0, 10.0, 100.0],
        above=0,
        distinct=True,
        filled=True,
        help="Weights of the L2 penalty; the best on a quarter of the training stories is used.",
    )
    num_shuffles: int = option(
        10, least=2, why="a spread needs two", help="Control: fits on shuffled labels for each layer."
    )
    long_stories: Literal["leave_out", "cut"] = option(
        "leave_out", help="What to do with stories longer than the window; cut may remove the sentence of a feature."
    )

    @property
    def chosen(self) -> list[str]:
        """The features to decode, in the project's spelling.

        Raises:
            UsageError: for a feature that TinyStories does not have.
        """
        return [canonical_feature(feature) for feature in self.features] or list(FEATURES)


ARGUMENTS = (SubjectArguments, TextArguments, FeatureProbeArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: FeatureProbeArguments) -> None:
    """Refuse invalid values before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/a"]), TextArguments(), FeatureProbeArguments(layers=["first"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --layers first is not a layer; give numbers from 0 (embeddings), or normed
    """
    check_subjects(subjects, PROBE)
    if texts.dataset_split not in (None, *SCORED_SPLITS):
        raise UsageError(
            f"--dataset_split {texts.dataset_split}: the probes are fitted on train; to score them give one of "
            f"{', '.join(SCORED_SPLITS)}"
        )
    for layer in args.layers:
        if not re.fullmatch(rf"{NORMED}|-?\d{{1,9}}", layer):
            raise UsageError(f"--layers {layer} is not a layer; give numbers from 0 (embeddings), or {NORMED}")
    if BEFORE_MARKER in args.read and args.long_stories == "cut":
        raise UsageError(f"--long_stories cut: --read {BEFORE_MARKER} needs whole stories; remove one of the two")
    if len(set(args.chosen)) < len(args.chosen):
        raise UsageError(f"--features {' '.join(args.features)}: a feature is given twice; give each once")
