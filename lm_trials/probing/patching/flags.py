"""The flags of the patching probe and their checks; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects
from lm_trials.stories.features import FEATURES

COMPONENTS = ("embeddings", "residual", "attention", "mlp", "heads")
TEXT_POSITIONS = ("all", "prompt", "story")
PROMPT_POSITIONS = ("all", "last", "each", "different")


@dataclass
class PatchingArguments:
    """What is swapped, and what is measured."""

    components: list[str] = option(
        list(COMPONENTS),
        one_of=COMPONENTS,
        filled=True,
        help="Components to swap, one at a time. residual: the hidden state after a block; attention, mlp: the output "
        "that a block adds; heads: each head by itself.",
    )
    layers: list[int] = option([], help="Blocks, from 0; -1 is the last. Default: all.")
    heads: list[int] = option([], help="Heads, from 0. Default: all.")
    positions: str | None = option(
        None,
        help="Tokens to swap. Stories: all, prompt (the instruction lines) or story. Prompts: all, last, each (one at "
        "a time) or different (where the two prompts differ). Or indices, as 3,5,-1. Default: all for stories, last "
        "for prompts.",
    )
    direction: Literal["forward", "backward", "both"] = option(
        "both", help="forward: from the first model (or --prompt) into the second (or --other_prompt)."
    )
    feature: str | None = option(
        None,
        one_of=FEATURES,
        not_with=("prompt", "pairs"),
        why="it is measured on stories",
        help="Stories only: also measure the sentence that shows this feature.",
    )
    num_generations: int = option(
        0,
        least=0,
        needs="feature",
        not_with=("prompt", "pairs"),
        why="stories are searched for that feature",
        help="Prompts to continue with each component swapped, to measure how often the feature is written.",
    )
    max_new_tokens: int = option(200, least=1, help="Longest continuation, in tokens.")
    temperature: float = option(1.0, least=0, help="Sampling temperature of continuations; 0 is greedy.")
    prompt: str | None = option(None, help="A prompt whose next token is measured, instead of stories.")
    other_prompt: str | None = option(
        None, needs=("prompt", "pairs"), help="With one model: the second prompt, with as many tokens."
    )
    answer: str | None = option(
        None, needs=("prompt", "pairs"), help="Next token of --prompt, with its space, as ' Paris'. One token."
    )
    other_answer: str | None = option(
        None,
        needs=("prompt", "pairs"),
        help="Next token of --other_prompt; the log-probability difference is measured.",
    )
    pairs: str | None = option(
        None,
        not_with=("prompt", "other_prompt", "answer", "other_answer"),
        why="the file has them",
        help="CSV or JSONL file of prompt pairs, with columns prompt, other_prompt, answer, other_answer. With a "
        "column story, prompts are instructions as in fine-tuning, and the answer follows this beginning of a story.",
    )

    @property
    def by_prompts(self) -> bool:
        """Whether prompts are measured, not stories."""
        return self.prompt is not None or self.pairs is not None

    @property
    def where(self) -> str:
        """Which tokens are swapped."""
        return self.positions or ("last" if self.by_prompts else "all")

    @property
    def numbers(self) -> list[int] | None:
        """The positions given as indices; None where they are named."""
        if self.where in (*TEXT_POSITIONS, *PROMPT_POSITIONS):
            return None
        return [int(word) for word in self.where.split(",")]


ARGUMENTS = (SubjectArguments, TextArguments, PatchingArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: PatchingArguments) -> None:
    """Refuse invalid combinations of flags before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/base"]), TextArguments(), PatchingArguments())
    Traceback (most recent call last):
    lm_trials.console.UsageError: --model_name_or_path names one model and there is no --prompt: there is nothing to \
swap; name a second model, or give --prompt, --other_prompt and --answer
    """
    check_subjects(subjects, "patching", most=2)
    several = len(subjects.model_name_or_path) == 2
    if args.heads and "heads" not in args.components:
        raise UsageError("--heads needs the component heads; add heads to --components")
    named = PROMPT_POSITIONS if args.by_prompts else TEXT_POSITIONS
    if args.where not in named:
        try:
            numbers = args.numbers
        except ValueError:
            numbers = None
        if numbers is None or len(set(numbers)) < len(numbers):
            of = "prompts" if args.by_prompts else "stories"
            raise UsageError(
                f"--positions {args.where} is not valid for {of}; give {', '.join(named)}, or indices as 3,5,-1"
            )
    if args.prompt is not None:
        check_pair(vars(args), several, "--")
    if args.by_prompts:
        return
    if not several:
        raise UsageError(
            "--model_name_or_path names one model and there is no --prompt: there is nothing to swap; name a second "
            "model, or give --prompt, --other_prompt and --answer"
        )
    if args.num_generations and args.where != "all":
        raise UsageError(
            f"--num_generations and --positions {args.where} cannot be combined, as generation swaps every position; "
            "remove one of them"
        )


def check_pair(pair: dict[str, str | None], several: bool, before: str) -> None:
    """Refuse a pair of prompts that leaves nothing to swap or to measure.

    Args:
        pair: with prompt, other_prompt, answer, other_answer.
        several: whether two models are compared on one prompt.
        before: what precedes each name in an error: "--", or the file and the number of the pair.

    Raises:
        UsageError: for the first problem.
    """
    answer, other = pair.get("answer"), pair.get("other_prompt")
    if not pair.get("prompt"):
        raise UsageError(f"{before}prompt is empty; give the text before the answer")
    if not answer:
        raise UsageError(
            f"{before}answer is missing, so there is nothing to measure; give the next token of the prompt"
        )
    if several and other not in (None, "", pair["prompt"]):
        raise UsageError(
            f"{before}other_prompt {other!r} with two models would change two things at once; name one model, or give "
            "one prompt"
        )
    if not several and not other:
        raise UsageError(
            f"{before}other_prompt is missing and there is one model, so there is nothing to swap; give it, or name a "
            "second model"
        )
    if not several and other == pair["prompt"]:
        raise UsageError(f"{before}other_prompt equals {before}prompt, so there is nothing to swap; change one of them")
    if pair.get("other_answer") == answer:
        raise UsageError(f"{before}other_answer equals {before}answer ({answer!r}); change one of them")
