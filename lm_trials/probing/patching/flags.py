"""The flags of the patching probe, and what is refused before anything is loaded; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects
from lm_trials.stories.features import FEATURES

COMPONENTS = {
    "embeddings": "what the first block reads",
    "residual": "the whole hidden state after a block",
    "attention": "what a block's attention adds",
    "mlp": "what a block's MLP adds",
    "heads": "what one head reads out",
}
TEXT_POSITIONS = ("all", "prompt", "story")
PROMPT_POSITIONS = ("all", "last", "each")


@dataclass
class PatchingArguments:
    """What is swapped, and what is measured then."""

    components: list[str] = option(
        list(COMPONENTS),
        one_of=COMPONENTS,
        filled=True,
        help="Which parts are swapped, each by itself: embeddings, residual (the whole hidden state after a block), "
        "attention and mlp (what a block's adds), heads (each head).",
    )
    layers: list[int] = option([], help="Blocks, from 0; -1 is the last. Default: all.")
    heads: list[int] = option([], help="Heads, from 0. Default: all.")
    positions: str | None = option(
        None,
        help="Tokens that are swapped: all; of stories also prompt (the instruction lines) or story; of prompts also "
        "last, or each by itself; or numbers as 3,5,-1, swapped together. Default: all, of prompts last.",
    )
    direction: Literal["forward", "backward", "both"] = option(
        "both", help="forward: from the first model (or --prompt) into the second (--other_prompt); backward; both."
    )
    feature: str | None = option(
        None,
        one_of=FEATURES,
        not_with=("prompt", "pairs"),
        why="it is of stories",
        help="Of stories: measure the sentence that shows this feature by itself, and the feature score.",
    )
    num_generations: int = option(
        0,
        least=0,
        needs="feature",
        not_with=("prompt", "pairs"),
        why="stories are searched for that feature",
        help="Of stories: prompts of the set that are continued with each part swapped, for the feature score.",
    )
    max_new_tokens: int = option(200, least=1, help="Longest continuation, in tokens.")
    temperature: float = option(1.0, least=0, help="Of the sampling of continuations; 0 is greedy.")
    prompt: str | None = option(None, help="A prompt, whose next token is measured, instead of stories.")
    other_prompt: str | None = option(
        None, needs=("prompt", "pairs"), help="The prompt beside it, of one model; as many tokens long."
    )
    answer: str | None = option(
        None, needs=("prompt", "pairs"), help="Next token of --prompt, with its space: ' Paris'. One token."
    )
    other_answer: str | None = option(
        None, needs=("prompt", "pairs"), help="Next token of --other_prompt; the measure is then their difference."
    )
    pairs: str | None = option(
        None,
        not_with=("prompt", "other_prompt", "answer", "other_answer"),
        why="the file has them",
        help="CSV or JSONL of many pairs: columns prompt, other_prompt, answer, other_answer, as the flags.",
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
        """The positions that are given by number; None where they are named."""
        if self.where in (*TEXT_POSITIONS, *PROMPT_POSITIONS):
            return None
        return [int(word) for word in self.where.split(",")]


ARGUMENTS = (SubjectArguments, TextArguments, PatchingArguments)


def check_arguments(subjects: SubjectArguments, texts: TextArguments, args: PatchingArguments) -> None:
    """Refuse what means nothing, before anything is loaded.

    Raises:
        UsageError: for the first of it.

    >>> check_arguments(SubjectArguments(["runs/base"]), TextArguments(), PatchingArguments())
    Traceback (most recent call last):
    lm_trials.console.UsageError: one model and no prompts: there is nothing to swap; name a second model, or give \
--prompt, --other_prompt and --answer
    """
    check_subjects(subjects, "patching", most=2)
    several = len(subjects.model_name_or_path) == 2
    if args.heads and "heads" not in args.components:
        raise UsageError("--heads is of the component heads; add heads to --components")
    _check_positions(args)
    if args.prompt is not None:
        check_pair(vars(args), several, "--")
    if args.by_prompts:
        return
    if not several:
        raise UsageError(
            "one model and no prompts: there is nothing to swap; name a second model, or give --prompt, --other_prompt "
            "and --answer"
        )
    if args.num_generations and args.where != "all":
        raise UsageError(
            f"--num_generations and --positions {args.where}: a text that is being written is swapped whole; "
            "remove one of them"
        )


def _check_positions(args: PatchingArguments) -> None:
    named = PROMPT_POSITIONS if args.by_prompts else TEXT_POSITIONS
    of = "prompts" if args.by_prompts else "stories"
    if args.where in named:
        return
    try:
        numbers = args.numbers
    except ValueError:
        numbers = None
    if numbers is None or len(set(numbers)) < len(numbers):
        raise UsageError(f"--positions {args.where}: of {of} there are {', '.join(named)}, or numbers as 3,5,-1")


def check_pair(pair: dict[str, str | None], several: bool, before: str) -> None:
    """Refuse a pair of prompts that leaves nothing to swap or to measure.

    Args:
        pair: with prompt, other_prompt, answer, other_answer.
        several: whether two models are set side by side, on one prompt.
        before: what the names stand after in an error.

    Raises:
        UsageError: for the first of it.
    """
    if not pair.get("prompt"):
        raise UsageError(f"{before}prompt is empty; give the text before the answer")
    if not pair.get("answer"):
        raise UsageError(f"{before}prompt without {before}answer: there is nothing to measure; give its next token")
    other = pair.get("other_prompt")
    if several and other not in (None, "", pair["prompt"]):
        raise UsageError(
            f"two models and {before}other_prompt {other!r}: two things would differ at once; name one model, or one "
            "prompt"
        )
    if not several and not other:
        raise UsageError(
            f"one model and no {before}other_prompt: there is nothing to swap; give it, or name a second model"
        )
    if not several and other == pair["prompt"]:
        raise UsageError(f"{before}other_prompt is {before}prompt, and the model is one; give two that differ")
    if pair.get("other_answer") == pair["answer"]:
        raise UsageError(f"{before}other_answer is {before}answer ({pair['answer']!r}); give two that differ")
