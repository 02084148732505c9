"""How fast texts are measured: each group of metrics, and the libraries that define them, called plainly.

    python benchmarks/metadata.py
    python benchmarks/metadata.py --source stories.jsonl --num_stories 3000 --repetitions 5

Readability and BLEU are equal to those of textstat and NLTK, number for number; the program stops where one differs.
textstat is no dependency, because its wheel installs a package called `tests`: install it beside, and add its folder.

    pip install --target elsewhere textstat==0.7.13
    PYTHONPATH=elsewhere python benchmarks/metadata.py

It counts in this project's copy of CMUdict, as its own must be downloaded.  The rate of a group is by CPU
time of one process, the best of interleaved repetitions.  The last rows are `lm-trials prepare metadata` without
sentiment, reading and writing included: one process by CPU time, and two by the clock, with their start.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from textblob import TextBlob

from lm_trials.console import UsageError, script, show_table
from lm_trials.data.datasets import Text, open_dataset
from lm_trials.flags import option, parse_arguments
from lm_trials.metrics.tables import make_metrics
from lm_trials.metrics.texts import Measures, SyllableCounts, bleu
from lm_trials.stories.corpora import write_corpus
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import SPLITS, record_from_row
from lm_trials.stories.sources import open_source

PROMPT = "Once upon a time, there was a little girl named Lily..."


@dataclass
class BenchmarkArguments:
    """What is measured."""

    source: str | None = option(None, help="A file or folder of stories. Default: generated ones.")
    num_stories: int = option(2000, least=100, help="Stories of the groups, from the start of the source.")
    num_written: int = option(20_000, least=100, help="Generated stories of the last rows.")
    repetitions: int = option(3, least=1, help="Repetitions, interleaved.")


def best_of(ways: dict[str, Callable[[], object]], repetitions: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the least seconds of each way, over interleaved repetitions."""
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(repetitions):
        for name, run in ways.items():
            start = clock()
            run()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def records_of(args: BenchmarkArguments) -> Iterable[str]:
    """Return the stories that the groups are measured on."""
    if args.source:
        return (record["story"] for record in islice(open_source(args.source).records(), args.num_stories))
    return (row["story"] for row in generate_stories(args.num_stories, seed=0))


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns the stories per second of each way."""
    (args,) = parse_arguments(argv, (BenchmarkArguments,), __doc__ or "", prog="benchmarks/metadata.py")
    if find_spec("textstat") is None:
        raise UsageError("textstat is not installed; see --help")
    import textstat
    from textstat.backend.counts import _count_syllables

    texts = list(records_of(args))
    rows = [Text("", text, PROMPT, []) for text in texts]
    counts = dict(SyllableCounts())
    phones = {word: [["AA1"] * count] for word, count in counts.items()}
    _count_syllables.get_cmudict = lambda lang: phones
    smoothing = SmoothingFunction().method1
    measures = Measures(sentiment=False)
    without_bleu = [row._replace(prompt="") for row in rows]

    groups: dict[str, tuple[Callable[[], list[float]], Callable[[], list[float]]]] = {
        "length, readability, vocabulary, flagged words": (
            lambda: measures.measure(without_bleu)["gunning_fog"].tolist(),
            lambda: [(textstat.flesch_kincaid_grade(text), textstat.gunning_fog(text))[1] for text in texts],
        ),
        "BLEU": (
            lambda: [bleu(PROMPT, text) for text in texts],
            lambda: [sentence_bleu([PROMPT.split()], text.split(), smoothing_function=smoothing) for text in texts],
        ),
        "sentiment, subjectivity": (
            lambda: Measures().measure(without_bleu)["sentiment_score"].tolist(),
            lambda: [TextBlob(text).sentiment.polarity for text in texts],
        ),
    }
    for name, (ours, plain) in groups.items():
        assert ours() == plain(), f"{name}: the numbers differ"
    ways = {
        f"{name}|{way}": run for name, pair in groups.items() for way, run in zip(("ours", "plain"), pair, strict=True)
    }
    seconds = best_of(ways, args.repetitions, time.process_time)
    first, _, last = groups
    seconds[f"{last}|ours"] -= seconds[f"{first}|ours"]  # measured together with the first group

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        stories = ((0, record_from_row(story)) for story in generate_stories(args.num_written, seed=0))
        write_corpus(stories, place / "corpus", {"reference": "benchmark"}, splits_needed=SPLITS)
        dataset = open_dataset("corpus", place)
        seconds_of = {}
        for workers, clock, named in (
            (1, time.process_time, "CPU time of 1 process"),
            (2, time.perf_counter, "2 processes"),
        ):
            start = clock()
            made = make_metrics(dataset, measures, num_workers=workers)
            seconds_of[f"whole command, {named}"] = clock() - start
            shutil.rmtree(made)

    whole = sum(seconds[f"{name}|ours"] for name in groups)
    shown = []
    rates = {}
    for name in groups:
        own, plain_seconds = seconds[f"{name}|ours"], seconds[f"{name}|plain"]
        rates |= {f"{name}|{way}": len(texts) / seconds[f"{name}|{way}"] for way in ("ours", "plain")}
        rate, plain_rate = (f"{rates[f'{name}|{way}']:,.0f}" for way in ("ours", "plain"))
        shown.append([name, rate, f"{own / whole:.0%}", plain_rate, f"{plain_seconds / own:.1f}"])
    for name, taken in seconds_of.items():
        rates[name] = args.num_written / taken
        shown.append([name, f"{rates[name]:,.0f}", "", "", ""])
    words = sum(len(text.split()) for text in texts) / len(texts)
    show_table(
        f"Metrics of {len(texts):,} stories of {words:.0f} words",
        ["metrics", "stories/s", "share of time", "library, stories/s", "times faster"],
        shown,
    )
    return rates


if __name__ == "__main__":
    main()
