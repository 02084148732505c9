"""The flags of the attention probe, and the statistics of a head; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects

SHARE = "share of attention"


@dataclass(frozen=True)
class Statistic:
    """One number of a head: its name, its unit, and whether the head with the most or the least is selected."""

    words: str
    unit: str
    most: bool = True


STATISTICS = {
    "previous": Statistic("previous-token mass", SHARE),
    "first": Statistic("first-token mass", SHARE),
    "self": Statistic("self mass", SHARE),
    "distance": Statistic("mean distance", "tokens"),
    "entropy": Statistic("entropy", "nats", most=False),
    "relative_entropy": Statistic("relative entropy", "share of log(tokens seen)", most=False),
    "induction": Statistic("induction score", SHARE),
}
OF_STORIES = [name for name in STATISTICS if name != "induction"]
LEAST_STORIES = 20
"""A head is selected on one half and reported on the other, and fewer than 10 stories have no interval."""


@dataclass
class AttentionArguments:
    """Which maps are drawn, and which statistics are measured."""

    text: str | None = option(None, filled=True, help="Text of the maps. Default: the first story.")
    map_tokens: int = option(32, least=2, help="Tokens of the text that the maps show, from the start.")
    layer: int | None = option(None, needs="head", help="Also draw one head large: its layer, from 0; -1 is the last.")
    head: int | None = option(None, needs="layer", help="Also draw one head large: its number in the layer, from 0.")
    statistic: Literal["previous", "first", "self", "distance", "entropy", "relative_entropy", "induction"] = option(
        "previous", needs={"induction": "induction_sequences"}, help="Statistic of the finding; all are in the tables."
    )
    all_checkpoints: bool = option(False, help="Measure every checkpoint of the runs, then the final models.")
    num_untrained: int = option(
        5, least=2, why="a spread needs two", help="Control: number of models with random weights."
    )
    induction_sequences: int = option(
        50,
        least=LEAST_STORIES,
        unless=0,
        why="each half needs an interval",
        help="Repeated sequences of random tokens; 0: no induction score.",
    )
    induction_tokens: int = option(25, least=2, help="Tokens of such a sequence, at most half of the window.")


ARGUMENTS = (SubjectArguments, TextArguments, AttentionArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: AttentionArguments) -> None:
    """Refuse invalid values before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/demo"]), TextArguments(max_eval_samples=19), AttentionArguments())
    Traceback (most recent call last):
    lm_trials.console.UsageError: --max_eval_samples 19: a head is selected on one half of the stories and reported \
on the other; give at least 20
    """
    check_subjects(subjects, "attention")
    if texts.max_eval_samples is not None and texts.max_eval_samples < LEAST_STORIES:
        raise UsageError(
            f"--max_eval_samples {texts.max_eval_samples}: a head is selected on one half of the stories and reported "
            f"on the other; give at least {LEAST_STORIES}"
        )
