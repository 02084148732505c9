"""How fast stories are generated, in stories and words per second on one core, and how varied they are.

python benchmarks/generate_stories.py --num_stories 5000 --repetitions 5
python benchmarks/generate_stories.py --variety      # takes some seconds more
"""

import argparse
import statistics
import time

from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.variety import describe_variety


def measure(num_stories: int, repetitions: int) -> list[float]:
    """Return the seconds of processor time that each repetition took, each with stories of its own."""
    seconds = []
    for repetition in range(repetitions):
        # Processor time, so that other work on the machine does not count.
        start = time.process_time()
        for _ in generate_stories(num_stories, seed=repetition):
            pass
        seconds.append(time.process_time() - start)
    return seconds


def main(argv: list[str] | None = None) -> float:
    """Run the benchmark; returns the median of stories per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_stories", type=int, default=5000, help="Stories per repetition.")
    parser.add_argument("--repetitions", type=int, default=5, help="How often to measure.")
    parser.add_argument("--variety", action="store_true", help="Also report the variety of 20,000 stories.")
    args = parser.parse_args(argv)
    if args.num_stories < 1 or args.repetitions < 1:
        parser.error(f"--num_stories {args.num_stories} --repetitions {args.repetitions}: both must be at least 1")

    rates = [args.num_stories / seconds for seconds in measure(args.num_stories, args.repetitions)]
    words = [len(record["story"].split()) for record in generate_stories(args.num_stories, seed=0)]
    median = statistics.median(rates)
    print(f"stories/s: min {min(rates):,.0f}, median {median:,.0f} (n={args.repetitions}, one core)")
    print(f"words/s: median {median * statistics.mean(words):,.0f} ({statistics.mean(words):.1f} words a story)")
    if args.variety:
        train = (record["story"] for record in generate_stories(20_000, seed=0))
        held_out = (record["story"] for record in generate_stories(1_000, seed=1))
        for name, value in describe_variety(train, held_out).items():
            print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
    return median


if __name__ == "__main__":
    main()
