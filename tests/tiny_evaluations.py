"""Stories and results of evaluations in tests."""

import csv
import json

import numpy as np

WORDS = [
    "one",
    "day",
    "a",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    ".",
    "quick",
    "brown",
    "fox",
    "!",
]


def write_stories(path, count, seed=0):
    """Stories of 3 to 60 words; every second one has a Twist, every third Dialogue."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        story = " ".join(generator.choice(WORDS, size=generator.integers(3, 60)))
        features = [name for name, every in (("Twist", 2), ("Dialogue", 3)) if number % every == 0]
        rows.append(
            {"story": f"{number} {story}", "features": features, "source": "GPT-4" if number % 4 else "GPT-3.5"}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def results_in(folder):
    """The metrics of one evaluation."""
    return json.loads((folder / "eval_results.json").read_text())


def table_in(path):
    """The rows of a CSV file."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def numbers(metrics):
    """Metrics without what a clock measures."""
    return {name: value for name, value in metrics.items() if name not in ("eval_runtime", "eval_tokens_per_second")}


def stories_in(path):
    """The rows of a file that `write_stories` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
