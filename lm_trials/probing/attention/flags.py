"""The flags of `probes/attention.py`, and what it measures of a head; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects, check_texts

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


@dataclass
class AttentionArguments:
    """Which maps are drawn, and what is asked of the heads."""

    text: str | None = option(None, help="The text of the maps. Default: the first story.")
    map_tokens: int = option(32, help="Tokens of it that the maps show, from the start.")
    layer: int | None = option(None, help="Draw one head large: its layer, 0 to L-1, negative from the end.")
    head: int | None = option(None, help="Draw one head large: which of that layer, from 0.")
    statistic: Literal["previous", "first", "self", "distance", "entropy", "relative_entropy", "induction"] = option(
        "previous", help="What the finding is about; all are in the tables."
    )
    all_checkpoints: bool = option(False, help="Read every checkpoint of the named runs, then their final models.")
    num_untrained: int = option(5, help="Control: models of the same shape with random weights.")
    induction_sequences: int = option(
        50, help="Sequences of random tokens, each twice in a row; 0: no induction score."
    )
    induction_tokens: int = option(25, help="Tokens of such a sequence, at most what half the window holds.")


LEAST_STORIES = 8
"""Halves of fewer would show a difference of nothing in 12 % of data sets (3) or 24 % (2) by their intervals."""
ARGUMENTS = (SubjectArguments, TextArguments, AttentionArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: AttentionArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/demo"]), TextArguments(), AttentionArguments(text=" "))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --text is empty; give some words, or leave it away for the first story
    """
    check_subjects(subjects, "attention")
    check_texts(texts)
    if args.text is not None and not args.text.strip():
        raise UsageError("--text is empty; give some words, or leave it away for the first story")
    if args.map_tokens < 2:
        raise UsageError(f"--map_tokens {args.map_tokens} shows nothing to read from; give at least 2")
    if (args.layer is None) != (args.head is None):
        given, lacking = ("layer", "head") if args.head is None else ("head", "layer")
        raise UsageError(f"--{given} {getattr(args, given)} names no one head; give --{lacking} too")
    if args.num_untrained < 2:
        raise UsageError(f"--num_untrained {args.num_untrained} tells no spread of the control; give at least 2")
    if args.induction_sequences != 0 and args.induction_sequences < LEAST_STORIES:
        raise UsageError(
            f"--induction_sequences {args.induction_sequences} have no two halves with an interval; "
            f"give at least {LEAST_STORIES}, or 0 for no induction score"
        )
    if args.induction_tokens < 2:
        raise UsageError(f"--induction_tokens {args.induction_tokens} repeat nothing to be continued; give at least 2")
    if args.statistic == "induction" and not args.induction_sequences:
        raise UsageError(
            f"--statistic induction needs sequences; give --induction_sequences of at least {LEAST_STORIES}"
        )
    if texts.max_eval_samples is not None and texts.max_eval_samples < LEAST_STORIES:
        raise UsageError(
            f"--max_eval_samples {texts.max_eval_samples}: a head is chosen on one half of the stories and reported "
            f"on the other; give at least {LEAST_STORIES}"
        )
