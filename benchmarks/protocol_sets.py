"""How long the ten deletion and recovery sets take, held against tokenising their texts from scratch.

python benchmarks/protocol_sets.py --num_stories 100000
python benchmarks/protocol_sets.py --num_stories 20000 --memory 20000,200000

In one run, on one corpus, with one tokenizer: the ten sets by `make_sets`, given the corpus's token store and nothing
else; a pure filter, a set that changes no text, by itself once the instruction lines are there; and the ten from
scratch, each set's texts rendered into a corpus and tokenised by this project's own `make_store`, of which only
the second part is counted.  `--memory` measures the peak of making the ten sets in processes of their own, each
over a corpus of so many stories.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # read once, when the library is first used

from lm_trials.console import UsageError, note, script
from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import deletion_recovery_protocols
from lm_trials.protocols.sets import make_sets
from lm_trials.stories.corpora import open_records, write_corpus
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import SPLITS, make_record, record_from_row
from lm_trials.tokens.stores import make_store
from lm_trials.tokens.tokenizers import load_tokenizer, train_tokenizer

TEN = dict(list(deletion_recovery_protocols("Twist", "Foreshadowing").items())[:10])
ALL_STORIES = 4_967_871  # of the TinyStories archive


def seconds_of(run, *args, **kwargs) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run(*args, **kwargs)
    return time.perf_counter() - start


def from_scratch(corpus: Path, tokenizer, folder: Path) -> dict[str, float]:
    """Return the seconds of tokenising each set's rendered texts; rendering itself is not counted."""
    seconds = {}
    for name, protocol in TEN.items():
        records = open_records(corpus)
        texts = (
            (0, make_record(text))
            for split in SPLITS
            for start in range(0, len(records[split]), 1000)
            for text in apply_protocol(records[split][start : start + 1000], protocol)["text"]
        )
        write_corpus(texts, folder / name, {})
        seconds[name] = seconds_of(make_store, folder / name, tokenizer)
        note(f"{name}: {seconds[name]:.1f} s from scratch")
    return seconds


def peak_of(count: int) -> str:
    """Make the ten sets of `count` stories in a process of its own; return its line."""
    command = [sys.executable, __file__, "--num_stories", str(count), "--only_peak"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_stories", type=int, default=100_000, help="Generated stories.")
    parser.add_argument("--vocab_size", type=int, default=4096, help="Tokens of the tokenizer, trained here.")
    parser.add_argument("--memory", help="Numbers of stories whose peak memory is compared, as 20000,200000.")
    parser.add_argument("--only_peak", action="store_true", help="Print the peak memory of the ten sets alone.")
    args = parser.parse_args(argv)
    if args.num_stories < 1000:
        raise UsageError(f"--num_stories {args.num_stories}: too few to be in all sets; give at least 1000")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        corpus = place / "corpus"
        records = (record_from_row(row) for row in generate_stories(args.num_stories, seed=0))
        write_corpus(((0, record) for record in records), corpus, {})
        head = open_records(corpus, "train")[: min(20_000, args.num_stories) // 2]["story"]
        train_tokenizer(head, args.vocab_size).save_pretrained(place / "tokenizer")
        tokenizer = load_tokenizer(place / "tokenizer")
        plain = seconds_of(make_store, corpus, tokenizer)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ten = seconds_of(make_sets, corpus, tokenizer, TEN, place / "sets")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if args.only_peak:
            print(f"{args.num_stories:,} stories: peak {peak:,.0f} MB, {peak - before:,.0f} MB above tokenising them")
            return {}
        pure = {"pure": TEN["filter-Twist"]}
        one = seconds_of(make_sets, corpus, tokenizer, pure, place / "pure")
        scratch = from_scratch(corpus, tokenizer, place / "scratch")
    total = sum(scratch.values())
    rate = args.num_stories / ten
    print(
        f"{args.num_stories:,} stories, vocabulary {args.vocab_size:,}, {os.cpu_count()} cores; "
        f"their tokens alone {plain:.1f} s"
    )
    print(f"ten sets           {ten:7.2f} s, {total:7.1f} s from scratch: ratio {ten / total:.3f} (bar 0.15)")
    print(f"a pure filter      {one:7.2f} s, {scratch['filter-Twist']:7.1f} s from scratch: ratio "
          f"{one / scratch['filter-Twist']:.3f} (bar 0.05)")  # fmt: skip
    print(
        f"{rate:,.0f} stories/s through all ten; {ALL_STORIES:,} stories would take "
        f"{ALL_STORIES / rate / 60:.1f} minutes"
    )
    for count in (args.memory or "").split(","):
        if count:
            print(peak_of(int(count)))
    return {"ten": ten / total, "filter": one / scratch["filter-Twist"]}


if __name__ == "__main__":
    main()
