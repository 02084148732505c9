"""Generate stories, or chat with a model, at the terminal.

    lm-trials generate --model runs/demo --num_samples 3
    lm-trials generate --model runs/demo --prompt "One day" --temperature 0
    lm-trials generate --model runs/teller --mode instruct \\
        --prompt "Write a story."
    lm-trials generate --model runs/chat --mode chat

The default --mode is that of the model's training, from its run.json, else
completion. One story is shown while it is generated. --mode chat without
--prompt is a conversation: an empty line or Ctrl-D ends it, /new restarts it.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_trials.console import UsageError, note, script
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.flags import SEED, option, parse_arguments
from lm_trials.shared_flags import Device, Quantization, TokenSampling

if TYPE_CHECKING:  # torch takes seconds to import
    from lm_trials.evaluation.storytellers import Storyteller


@dataclass
class GenerationArguments(TokenSampling, Quantization, Device):
    """What is generated, and how."""

    model_name_or_path: str = option(
        "", aliases=["--model", "--model_dir"], required="RUN_OR_CHECKPOINT", help="Run, checkpoint or Hub model."
    )
    tokenizer_name: str | None = option(None, help="Tokenizer to use instead of the model's own.")
    mode: Mode | None = option(None, help="How the model is prompted. Default: as it was trained, else completion.")
    prompt: str = option("", help="Beginning of the story, or an instruction. With --mode chat, empty: a conversation.")
    num_samples: int = option(1, least=1, help="Stories to generate.")
    max_new_tokens: int | None = option(None, least=1, help="Maximum new tokens. Default: up to the model's positions.")
    seed: int = option(0, **SEED, help="Seed of sampling.")


@script
def main(argv: list[str] | None = None) -> list[str]:
    """Generate stories and print them; returns their texts with the prompt's beginning, of a chat the answers."""
    (args,) = parse_arguments(argv, (GenerationArguments,), __doc__ or "", prog="lm-trials generate")
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    from lm_trials.evaluation.storytellers import open_storyteller

    teller = open_storyteller(
        args.model_name_or_path,
        args.mode,
        args.tokenizer_name,
        load_in_8bit=args.load_in_8bit,
        load_in_4bit=args.load_in_4bit,
        use_cpu=args.use_cpu,
    )
    if teller.mode == "chat" and not args.prompt:
        return _talk(teller, sampling, args)
    if teller.mode == "instruct" and not args.prompt:
        raise UsageError(f"--mode instruct: {teller.name} needs an instruction; give --prompt, or --mode completion")
    return _write(teller, sampling, args)


def _write(teller: Storyteller, sampling: Sampling, args: GenerationArguments) -> list[str]:
    """Generate one story token by token, or several in a batch; story n's draws depend on the seed and n alone."""
    from lm_trials.evaluation.streamers import FoldedText, StoryStreamer

    (prompt,) = teller.prompts([args.prompt])
    room = teller.room([prompt], args.max_new_tokens)
    start = teller.story_start(prompt)
    keys = [f"story {number}" for number in range(args.num_samples)]
    streamer = None
    if args.num_samples == 1:
        show_number(1)
        streamer = StoryStreamer(teller.tokenizer, start, teller.ends, FoldedText(sys.stdout, width()))
    try:
        written = teller.write([prompt] * args.num_samples, keys, room, sampling, streamer=streamer)
    except KeyboardInterrupt:
        if streamer is None:
            raise
        streamer.end()
        note("(stopped)")
        raise SystemExit(130) from None
    stories = [str(teller.tokenizer.decode(start + ids)) for ids in written]
    for number, story in enumerate(stories if streamer is None else [], start=1):
        show_number(number)
        text = FoldedText(sys.stdout, width())
        text.write(story)
        text.end()
    return stories


def _talk(teller: Storyteller, sampling: Sampling, args: GenerationArguments) -> list[str]:
    from lm_trials.evaluation.conversation import Conversation, converse, typed_lines

    if args.num_samples > 1:
        raise UsageError(f"--num_samples {args.num_samples}: a conversation has one answer per turn; give --prompt too")
    note(f"conversation with {teller.name}: an empty line or Ctrl-D ends it, /new starts a new one")
    return converse(Conversation(teller, sampling, args.max_new_tokens, sys.stdout), typed_lines())


def width() -> int:
    """Return the width of stories: at most 100 columns, less on a narrower terminal."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)


def show_number(number: int) -> None:
    """Print the heading of a story."""
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(f"\nstory {number}", style="bold"))


if __name__ == "__main__":
    main()
