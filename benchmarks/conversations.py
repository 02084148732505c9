"""How fast conversations become examples of a fine-tuning, held against transformers applied to each by itself.

python benchmarks/conversations.py --num_stories 2000 --turns 1
python benchmarks/conversations.py --turns 3 --chat_template_path template.jinja

The baseline calls `apply_chat_template` for the whole conversation and for its beginning before and after each
answer, which is all that is needed to find the answers' tokens; it writes nothing.  `make_examples` reads the rows
from disk, finds the same tokens, and writes the memory-mapped examples.  Repetitions are interleaved.  A template that
marks its answers itself, as the project's does, may begin them earlier (with BOS); then the ids alone are compared.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # read once, when the library is first used

from pretokenize import measure, ratio

from lm_trials.console import UsageError, script
from lm_trials.pairs.examples import ExampleStore, make_examples
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE
from lm_trials.pairs.pairs import open_pairs, write_pairs
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.tokens.tokenizers import train_tokenizer


def one_at_a_time(tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation and the mask of its answers."""

    def ids(some: list[dict[str, str]], add_generation_prompt: bool = False) -> list[int]:
        how = {"add_generation_prompt": add_generation_prompt, "sanitize_control_tokens": True}
        return tokenizer.apply_chat_template(some, **how)["input_ids"]

    whole = ids(messages)
    mask = [0] * len(whole)
    for number in range(1, len(messages), 2):
        start, end = len(ids(messages[:number], True)), len(ids(messages[: number + 1]))
        mask[start:end] = [1] * (end - start)
    return whole, mask


@script
def main(argv: list[str] | None = None) -> float:
    """Run the benchmark; returns the throughput of `make_examples` over the baseline's, median of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_stories", type=int, default=2000, help="Conversations, each about a generated story.")
    parser.add_argument("--turns", type=int, default=1, help="Questions and answers of a conversation.")
    parser.add_argument("--vocab_size", type=int, default=4096, help="Tokens of the tokenizer, trained here.")
    parser.add_argument("--chat_template_path", help="A file; default: the project's template.")
    parser.add_argument("--repetitions", type=int, default=3, help="How often to measure.")
    args = parser.parse_args(argv)
    if min(args.num_stories, args.turns, args.repetitions) < 1:
        raise UsageError("--num_stories, --turns and --repetitions must be at least 1")

    stories = [row["story"] for row in generate_stories(args.num_stories, seed=0)]
    tokenizer = train_tokenizer(stories, args.vocab_size)
    path = args.chat_template_path
    tokenizer.chat_template = Path(path).read_text() if path else STORY_CHAT_TEMPLATE
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "They liked to play."}
    conversations = [
        [
            {"role": "user", "content": "Tell a story."},
            {"role": "assistant", "content": story},
            *[question, answer] * (args.turns - 1),
        ]
        for story in stories
    ]
    with tempfile.TemporaryDirectory() as folder:
        place, found = Path(folder), {}
        rows = (
            ("train", {"record_id": str(number), "messages": messages, "num_prompt": 0})
            for number, messages in enumerate(conversations)
        )
        write_pairs(rows, place / "chat", "conversations", {})

        def baseline() -> None:
            found["one at a time"] = [one_at_a_time(tokenizer, messages) for messages in conversations]

        def ours() -> None:
            if "make_examples" in found:
                shutil.rmtree(found["make_examples"])
            pairs = open_pairs("chat", place)
            found["make_examples"] = make_examples(pairs, place / "chat", tokenizer, "chat", 10**6, "drop")

        seconds = measure({"one at a time": baseline, "make_examples": ours}, args.repetitions)
        store = ExampleStore(found["make_examples"], "train")
        plain = "{%- generation" not in tokenizer.chat_template
        same = [
            store.input_ids(n).tolist() == ids and (not plain or store.completion_mask(n).tolist() == mask)
            for n, (ids, mask) in enumerate(found["one at a time"])
        ]
    tokens = sum(len(ids) for ids, _ in found["one at a time"])
    print(f"{args.num_stories:,} conversations of {tokens / args.num_stories:.0f} tokens, {os.cpu_count()} cores, "
          f"n={args.repetitions}; {sum(same):,} with the same ids{' and masks' * plain}")  # fmt: skip
    for name, times in seconds.items():
        print(f"{name:<14} {args.num_stories / statistics.median(times):8,.0f} conversations/s")
    print(f"make_examples / one at a time: {ratio(seconds['one at a time'], seconds['make_examples'])}")
    return statistics.median(a / b for a, b in zip(seconds["one at a time"], seconds["make_examples"], strict=True))


if __name__ == "__main__":
    main()
