"""The flags of `probes/attention.py`, and what it measures of a head; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects

SHARE = "share of attention"


@dataclass(frozen=True)
class Statistic:
    """One number of a head: what sentences call it, its unit, and whether the head with most or least is looked for."""

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
LEAST_STORIES = 8
"""Halves of fewer would show a difference of nothing in 12 % of data sets (3) or 24 % (2) by their intervals."""


@dataclass
class AttentionArguments:
    """Which maps are drawn, and what is asked of the heads."""

    text: str | None = option(None, filled=True, help="The text of the maps. Default: the first story.")
    map_tokens: int = option(32, least=2, help="Tokens of it that the maps show, from the start.")
    layer: int | None = option(
        None, needs="head", help="Draw one head large: its layer, 0 to L-1, negative from the end."
    )
    head: int | None = option(None, needs="layer", help="Draw one head large: which of that layer, from 0.")
    statistic: Literal["previous", "first", "self", "distance", "entropy", "relative_entropy", "induction"] = option(
        "previous", needs={"induction": "induction_sequences"}, help="What the finding is about; all are in the tables."
    )
    all_checkpoints: bool = option(False, help="Read every checkpoint of the named runs, then their final models.")
    num_untrained: int = option(
        5, least=2, why="a spread needs two", help="Control: models of the same shape with random weights."
    )
    induction_sequences: int = option(
        50,
        least=LEAST_STORIES,
        unless=0,
        why="each half needs an interval",
        help="Sequences of random tokens, each twice in a row; 0: no induction score.",
    )
    induction_tokens: int = option(25, least=2, help="Tokens of such a sequence, at most what half the window holds.")


ARGUMENTS = (SubjectArguments, TextArguments, AttentionArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: AttentionArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/demo"]), TextArguments(max_eval_samples=7), AttentionArguments())
    Traceback (most recent call last):
    lm_trials.console.UsageError: --max_eval_samples 7: a head is chosen on one half of the stories and reported on \
the other; give at least 8
    """
    check_subjects(subjects, "attention")
    if texts.max_eval_samples is not None and texts.max_eval_samples < LEAST_STORIES:
        raise UsageError(
            f"--max_eval_samples {texts.max_eval_samples}: a head is chosen on one half of the stories and reported "
            f"on the other; give at least {LEAST_STORIES}"
        )
