"""How fast `make_store` tokenises, held against the `tokenizers` library itself on the same text and threads.

python benchmarks/pretokenize.py --num_stories 40000 --repetitions 5
python benchmarks/pretokenize.py --source stories.jsonl --vocab_size 4096

The baseline calls `encode_batch_fast` on the stories as Python strings, in batches of the same size.  It never asks
for the ids, so it converts and writes nothing; the second line asks for `.ids`, without which it is of no use.
`make_store` reads records from disk, encodes, and writes the memory-mapped store.  Repetitions are interleaved, so
that other work on the machine meets all of them.  Threads are those of `RAYON_NUM_THREADS`, by default all cores.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # read once, when the library is first used

from lm_trials.console import UsageError, script
from lm_trials.stories.corpora import open_records, write_corpus
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import SPLITS, record_from_row
from lm_trials.stories.sources import open_source
from lm_trials.tokens.stores import ENCODE_BATCH, make_store, store_folder
from lm_trials.tokens.tokenizers import train_tokenizer


def measure(ways: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each way, interleaved, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(baseline: list[float], ours: list[float]) -> str:
    """Describe the throughput of `ours` over the baseline's, paired by repetition, and best over best.

    >>> ratio([1.0, 2.0, 3.0], [2.0, 2.0, 4.0])
    '0.75 median (0.50 to 1.00), 0.50 best over best'
    """
    pairs = [a / b for a, b in zip(baseline, ours, strict=True)]
    median, best = statistics.median(pairs), min(baseline) / min(ours)
    return f"{median:.2f} median ({min(pairs):.2f} to {max(pairs):.2f}), {best:.2f} best over best"


@script
def main(argv: list[str] | None = None) -> float:
    """Run the benchmark; returns the throughput of `make_store` over the baseline's, median of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_stories", type=int, default=40_000, help="Stories, generated or of --source.")
    parser.add_argument("--source", help="A file or folder of stories; default: generated ones.")
    parser.add_argument("--vocab_size", type=int, default=4096, help="Tokens of the tokenizer, trained here.")
    parser.add_argument("--repetitions", type=int, default=5, help="How often to measure.")
    args = parser.parse_args(argv)
    if args.num_stories < 1 or args.repetitions < 1:
        raise UsageError(f"--num_stories {args.num_stories} --repetitions {args.repetitions}: both must be at least 1")

    records = (
        open_source(args.source).records()
        if args.source
        else map(record_from_row, generate_stories(args.num_stories, seed=0))
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        numbered = ((0, record) for _, record in zip(range(args.num_stories), records, strict=False))
        write_corpus(numbered, corpus, origin={})
        stories = [story for split in SPLITS for story in open_records(corpus, split)["story"]]
        tokenizer = train_tokenizer(stories, args.vocab_size)
        ways = _ways(corpus, tokenizer, stories)
        seconds = measure(ways, args.repetitions)

    megabytes = sum(len(story.encode()) for story in stories) / 1e6
    threads = os.environ.get("RAYON_NUM_THREADS", os.cpu_count())
    print(f"{len(stories):,} stories, {megabytes:.1f} MB, {threads} threads, n={args.repetitions}")
    for name, times in seconds.items():
        rates = f"{megabytes / statistics.median(times):6.2f} MB/s median, {megabytes / min(times):6.2f} best"
        print(f"{name:<28} {rates}; make_store / this: {ratio(times, seconds['make_store'])}")
    return statistics.median(a / b for a, b in zip(seconds["encode_batch_fast"], seconds["make_store"], strict=True))


def _ways(corpus: Path, tokenizer: object, stories: list[str]) -> dict[str, Callable[[], object]]:
    backend = tokenizer.backend_tokenizer
    batches = [stories[at : at + ENCODE_BATCH] for at in range(0, len(stories), ENCODE_BATCH)]

    def baseline() -> None:
        for batch in batches:
            backend.encode_batch_fast(batch, add_special_tokens=False)

    def baseline_with_ids() -> None:
        for batch in batches:
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                _ = encoding.ids

    def ours() -> None:
        folder = store_folder(corpus, tokenizer, append_eos=False)
        if folder.exists():
            shutil.rmtree(folder)
        make_store(corpus, tokenizer)

    return {"encode_batch_fast": baseline, "encode_batch_fast, .ids read": baseline_with_ids, "make_store": ours}


if __name__ == "__main__":
    main()
