"""Feature tables: the feature scores of a model on a set's prompts, written and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from lm_trials.console import note, show_table
from lm_trials.data.datasets import Selection
from lm_trials.evaluation.checkpoints import Candidate
from lm_trials.evaluation.feature_scores import score_features, write_generations
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.files import write_csv, write_file, write_json
from lm_trials.stories.records import FEATURES

ENOUGH = 256


def check_prompts(datasets: Sequence[Selection], args: EvaluationArguments) -> None:
    """Check that `--score_features` has prompts, before anything is evaluated.

    Raises:
        UsageError: for a data set without prompts.
    """
    for dataset in datasets if args.score_features else ():
        dataset.prompts(1)


def score_set(
    model: PreTrainedModel, candidate: Candidate, dataset: Selection, folder: Path, args: EvaluationArguments
) -> list[dict[str, Any]]:
    """Let the model write for a set's prompts and score the features; writes the stories and two tables.

    Returns:
        Rows of model, step, seed, dataset, slice, metric, estimate, lower, upper, n, unit.
    """
    texts = dataset.prompts(args.num_generations)
    if len(texts) < args.num_generations:
        note(f"note: {dataset.name} has {len(texts)} stories, fewer than --num_generations {args.num_generations}")
    temperature = 1.0 if args.temperature is None else args.temperature
    reference = candidate.reference
    generations = write_generations(
        model, candidate.tokenizer, texts, args.max_new_tokens, temperature, args.seed,
        description=f"{Path(reference.path).name} writes for {dataset.name}",
    )  # fmt: skip
    shared = {"model": reference.name, "step": reference.step, "seed": candidate.seed, "dataset": dataset.name}
    rows = [{**shared, **row} for row in score_features(generations, args.seed)]
    write_csv(folder / "feature_scores.csv", rows)
    write_json(folder / "feature_scores.json", {"temperature": temperature, "rows": rows})
    stories = pa.Table.from_pylist([asdict(g) for g in generations])
    write_file(folder / "generations.parquet", lambda place: pq.write_table(stories, place))
    few = [row["slice"] for row in rows if row["slice"].startswith("asked=") and row["n"] < ENOUGH]
    if few:
        note(f"note: fewer than {ENOUGH} prompts for {', '.join(few)}; raise --num_generations or prepare more stories")
    show_scores(f"{Path(reference.path).name} writes for {dataset.name}", rows)
    note(f"stories and scores: {folder}/generations.parquet, feature_scores.csv")
    return rows


def show_scores(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the share of stories with each feature, asked for and not asked for."""
    found = {row["slice"]: row for row in rows}
    cells = []
    for feature in FEATURES:
        cells.append([feature, *(_shown(found.get(f"asked{sign}{feature}")) for sign in ("=", "!="))])
    if "all" in found:
        cells.append(["words used", _shown(found["all"]), ""])
    show_table(
        title,
        ["feature", "share of stories,\nasked for", "share of stories,\nnot asked for"],
        cells,
        "[95 % interval over stories], n = stories",
    )


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no such prompt"
    return f"{row['estimate']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}] n={row['n']}"
