"""Flags of the saturation probe; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lm_trials.evaluation.flags import SLICES
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects

PROBE = "saturation"
SHARE = "share of words"
UNITS = {
    "words": "words",
    "sentences": "sentences",
    "sentence_length": "words per sentence",
    "flesch_kincaid_grade": "grade",
    "gunning_fog": "grade",
    "vocabulary_diversity": SHARE,
    "flagged_words": SHARE,
    "bleu_score": "BLEU (0 to 1)",
    "sentiment_score": "polarity (-1 to 1)",
    "subjectivity_score": "subjectivity (0 to 1)",
}
"""The metrics of a text that need no model, with their units."""


@dataclass
class SaturationArguments:
    """What is measured at each checkpoint, and when a metric counts as settled."""

    metrics: list[str] = option(list(UNITS), one_of=UNITS, filled=True, distinct=True, help="Metrics of the texts.")
    num_samples: int = option(
        64, least=64, why="fewer differ by chance", help="Texts that each checkpoint writes, from the same prompts."
    )
    max_new_tokens: int = option(256, least=1, help="Maximum tokens of a text, lowered to the model's positions.")
    temperature: float = option(1.0, least=0, help="Sampling temperature; 1 is the model's own distribution.")
    window_records: int = option(
        2000, least=10, help="Records read of those between two checkpoints; of more, those of random updates."
    )
    by: list[str] = option([], one_of=SLICES, help="Also report losses by features, by source, or both.")
    # The noise of 64 texts was 0.09 to 0.15 of the change of readability metrics, 0.25 of that of vocabulary diversity.
    delta: float = option(
        0.2,
        above=0,
        below=1,
        help="A metric is settled within this share of its change from the first checkpoint to the last, but never "
        "within less than the noise of the samples.",
    )
    horizon: int | None = option(
        None, least=1, help="Update of the checkpoint that is the end. Default: the planned end of each run."
    )


ARGUMENTS = (SubjectArguments, TextArguments, SaturationArguments)


def check_arguments(subject_args: SubjectArguments, text_args: TextArguments, args: SaturationArguments) -> None:
    """Check the flags before anything is loaded.

    Raises:
        UsageError: for a run given twice, or a folder that cannot be written to.

    >>> check_arguments(SubjectArguments(["runs/a", "runs/a"]), TextArguments(), SaturationArguments())
    Traceback (most recent call last):
    lm_trials.console.UsageError: --model_name_or_path runs/a runs/a: the same model twice; name each once
    """
    check_subjects(subject_args, PROBE)
