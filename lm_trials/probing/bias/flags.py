"""Flags of the bias probe; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, check_subjects

PROBE = "bias"


@dataclass
class BiasArguments:
    """Which pairing is looked for, and how much is read and written."""

    pairing: str | None = option(
        None,
        help="JSON file of groups, verbs, pairs, unrelated and openings (docs/probes.md has an example). Default: the "
        "activities of the generated stories.",
    )
    num_stories: int = option(512, least=64, help="Stories that are sampled for each group.")
    max_new_tokens: int = option(48, least=1, help="New tokens of a story: enough for the sentence with the attribute.")
    num_contexts: int = option(
        64,
        least=10,
        why="an interval needs ten",
        help="Contexts that the probabilities and the hidden states are read in.",
    )
    num_controls: int = option(
        3, least=2, why="a spread needs two", help="Controls: models with random weights, and shuffles of the labels."
    )
    per_device_eval_batch_size: int = option(64, least=1, help="Batch size in texts; does not change results.")


ARGUMENTS = (SubjectArguments, BiasArguments)


def check_arguments(subjects: SubjectArguments, args: BiasArguments) -> None:
    """Check the models and the output folder before anything is loaded; a UsageError for the first that is wrong."""
    check_subjects(subjects, PROBE)
