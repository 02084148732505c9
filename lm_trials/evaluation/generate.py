"""Let a model write stories at the terminal, or talk to it.

lm-trials generate --model_name_or_path runs/demo --num_samples 3
lm-trials generate --model runs/demo --prompt "One day, a cat" --temperature 0
lm-trials generate --model runs/teller --mode instruct --prompt "Write a story about a robot."
lm-trials generate --model runs/chat --mode chat

Without --mode a model is asked as it was trained: its run.json tells; others complete. One story is shown as it is
written. --mode chat without --prompt is a conversation: an empty line or Ctrl-D ends it, /new starts anew.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_trials.console import UsageError, note, script
from lm_trials.evaluation.sampling import Mode, Sampling
from lm_trials.flags import option, parse_arguments
from lm_trials.shared_flags import Device, Quantization, TokenSampling

if TYPE_CHECKING:  # torch takes seconds to import
    from lm_trials.evaluation.storytellers import Storyteller


@dataclass
class GenerationArguments(TokenSampling, Quantization, Device):
    """What is written, and how."""

    model_name_or_path: str = option(
        "", aliases=["--model", "--model_dir"], required="RUN_OR_CHECKPOINT", help="Run, checkpoint or Hub model."
    )
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    mode: Mode | None = option(
        None, help="How it is asked. Default: as run.json says that it was trained, else completion."
    )
    prompt: str = option("", help="Beginning of the story, or what is asked for; empty: the model begins, or a chat.")
    num_samples: int = option(1, least=1, help="Stories to write.")
    max_new_tokens: int | None = option(
        None, least=1, help="Most tokens written. Default: what the model's positions leave."
    )
    seed: int = option(0, least=0, help="Seed of the sampling.")


@script
def main(argv: list[str] | None = None) -> list[str]:
    """Write stories and print them; returns their texts, the beginning included, of a chat the answers."""
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
        raise UsageError(f"--mode instruct asks {teller.name} for something; give --prompt, or --mode completion")
    return _write(teller, sampling, args)


def _write(teller: Storyteller, sampling: Sampling, args: GenerationArguments) -> list[str]:
    """Write the stories: one as it comes, several in a batch.  Story number n draws from the seed and n alone."""
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
    stories = [teller.tokenizer.decode(start + ids) for ids in written]
    for number, story in enumerate(stories if streamer is None else [], start=1):
        show_number(number)
        text = FoldedText(sys.stdout, width())
        text.write(story)
        text.end()
    return stories


def _talk(teller: Storyteller, sampling: Sampling, args: GenerationArguments) -> list[str]:
    from lm_trials.evaluation.conversation import Conversation, converse, typed_lines

    if args.num_samples > 1:
        raise UsageError(f"--num_samples {args.num_samples}: a conversation has one answer a turn; give --prompt too")
    note(f"a conversation with {teller.name}; an empty line or Ctrl-D ends it, /new starts anew")
    return converse(Conversation(teller, sampling, args.max_new_tokens, sys.stdout), typed_lines())


def width() -> int:
    """Return how wide stories are shown: what reads well, or the terminal where that is narrower."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)


def show_number(number: int) -> None:
    """Print what stands above a story."""
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(f"\nstory {number}", style="bold"))


if __name__ == "__main__":
    main()
