"""Let a model write stories at the terminal.

python -m lm_trials.evaluation.generate --model_name_or_path runs/demo --num_samples 3
python -m lm_trials.evaluation.generate --model_name_or_path runs/demo --prompt "One day, a cat" --temperature 0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_trials.arguments import option, parse_arguments
from lm_trials.console import UsageError, script


@dataclass
class GenerationArguments:
    """What is written, and how."""

    model_name_or_path: str = option("", aliases=["--model", "--model_dir"], help="Run, checkpoint or Hub model.")
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    prompt: str = option("", help="Beginning of the story; empty: the model begins.")
    num_samples: int = option(1, help="Stories to write.")
    max_new_tokens: int | None = option(None, help="Most tokens written. Default: what the model's positions leave.")
    temperature: float = option(0.7, help="Sampling temperature; 0 takes the likeliest token each time.")
    top_k: int = option(0, help="Sample among this many tokens; 0 is all.")
    top_p: float = option(1.0, help="Sample among the likeliest tokens of this summed probability.")
    seed: int = option(0, help="Seed of the sampling.")


@script
def main(argv: list[str] | None = None) -> list[str]:
    """Write stories and print them; returns their texts, prompt included."""
    (args,) = parse_arguments(
        argv, (GenerationArguments,), __doc__ or "", prog="python -m lm_trials.evaluation.generate"
    )
    if not args.model_name_or_path:
        raise UsageError("no model is named; give --model_name_or_path RUN_OR_CHECKPOINT")
    if args.num_samples < 1 or args.temperature < 0 or not 0 < args.top_p <= 1 or args.top_k < 0:
        raise UsageError("--num_samples from 1, --temperature from 0, --top_k from 0, --top_p above 0 and at most 1")
    from lm_trials.data.tokenizers import batch_encoder
    from lm_trials.data.tokens import opening_of
    from lm_trials.evaluation.generation import write_stories
    from lm_trials.models.reference import (
        load_model,
        load_tokenizer_of,
        positions_of,
        read_run,
        resolve_model,
        separator_of,
    )

    reference = resolve_model(args.model_name_or_path)
    tokenizer = load_tokenizer_of(reference, args.tokenizer_name)
    model = load_model(reference)
    bos = opening_of(tokenizer, separator_of(read_run(Path(reference.path))))
    prompt = bos + (batch_encoder(tokenizer)([args.prompt])[0] if args.prompt else [])
    room = args.max_new_tokens or max((positions_of(model) or 1024) - len(prompt), 1)
    written = write_stories(
        model,
        tokenizer,
        [prompt] * args.num_samples,
        max_new_tokens=room,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    stories = [tokenizer.decode(prompt[len(bos) :] + ids) for ids in written]
    show_stories(stories)
    return stories


def show_stories(stories: list[str]) -> None:
    """Print stories, each under its number, folded to a width that reads well."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, width=100)
    for number, story in enumerate(stories, start=1):
        console.print(Text(f"\nstory {number}", style="bold"))
        console.print(Padding(Text(story), (0, 0, 0, 2)))


if __name__ == "__main__":
    main()
