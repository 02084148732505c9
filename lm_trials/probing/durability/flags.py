"""The flags of the durability probe; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects

PROBE = "durability"


@dataclass
class DurabilityArguments:
    """What is measured of each run."""

    metric: list[str] = option(
        ["flesch_kincaid_grade"],
        filled=True,
        distinct=True,
        help="Metrics of the stories, as of `prepare metadata`; the slope of the loss over each is measured.",
    )
    all_checkpoints: bool = option(
        False, help="Measure all checkpoints of the runs, and how far each is from the first and the previous one."
    )
    control_model: list[str] = option(
        [], help="Controls: runs as the first one with another --data_seed, which show what any other order changes."
    )
    margin: float | None = option(
        None,
        above=0,
        help="Largest difference of losses from the first run that counts as none, in nats per token; tested with the "
        "90 %% interval over stories.",
    )


ARGUMENTS = (SubjectArguments, TextArguments, DurabilityArguments)


def check_arguments(subject: SubjectArguments, args: DurabilityArguments) -> None:
    """Check the flags before anything is loaded.

    Raises:
        UsageError: for the first flag that is wrong.

    >>> check_arguments(SubjectArguments(["runs/a"]), DurabilityArguments(margin=0.01))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --margin 0.01 compares runs, but one is given; name more, or remove the flag
    """
    check_subjects(replace(subject, model_name_or_path=[*subject.model_name_or_path, *args.control_model]), PROBE)
    for flag in ("load_in_8bit", "load_in_4bit"):
        if getattr(subject, flag):
            raise UsageError(f"--{flag}: the distance of quantized weights is rounding; remove the flag")
    if args.margin is not None and len(subject.model_name_or_path + args.control_model) < 2:
        raise UsageError(f"--margin {args.margin:g} compares runs, but one is given; name more, or remove the flag")
