"""Matrices: several models on several data sets in one table, and each model's mean in-domain and out-of-domain.

Shape suffixes: N = stories, S = data sets, K = sums kept per story (nats, tokens, correct, bytes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from lm_trials.console import show_facts, show_table
from lm_trials.data.datasets import Selection
from lm_trials.estimates import LEAST_STORIES, NO_INTERVAL, Estimate, StoryBootstrap, interval_text
from lm_trials.evaluation.checkpoints import Candidate, folded
from lm_trials.evaluation.domains import in_domain, training_data
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.results import STORY_TABLE, EvaluationResult
from lm_trials.evaluation.summary import STATISTICS
from lm_trials.files import write_csv, write_file, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORY_SUMS = ("nats", "tokens", "correct", "num_bytes")
LEGEND = {
    "yes": "* in-domain: the model was trained on this data",
    "partly": "~ trained on a part of this mixture",
    "unknown": "? training data unknown: a run.json is missing",
}


MARKS = {"no": "", **{domain: text[:2] for domain, text in LEGEND.items()}}


@dataclass(frozen=True)
class Matrix:
    """The results of several models on several data sets.

    Attributes:
        metric: the one comparable between models: `loss`, or `bits_per_byte` if their tokenizers differ.
        rows: one for each model, data set and metric, with `in_domain` (yes, no, partly, unknown).
        means: of each model over its in-domain sets and over its out-of-domain sets, in `metric`.
        notes: the caption, one sentence each.
    """

    metric: str
    rows: list[dict[str, Any]]
    means: list[dict[str, Any]]
    notes: list[str]

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The rows of `metric`, one for each model and data set."""
        return [row for row in self.rows if row["metric"] == self.metric]


def evaluation_matrix(
    results: Sequence[EvaluationResult],
    candidates: Sequence[Candidate],
    datasets: Sequence[Selection],
    args: EvaluationArguments,
) -> Matrix:
    """Collect the results of all pairs; reads the stories' losses from the results' folders."""
    trained = {c.reference.name: training_data(c.run, Path(args.data_cache_dir)) for c in candidates}
    parts = {dataset.name: dataset.parts for dataset in datasets}
    domains = {(r.model, r.dataset): in_domain(trained[r.model], parts[r.dataset]) for r in results}
    different = len({result.settings["tokenizer_hash"] for result in results}) > 1
    metric = "bits_per_byte" if different else "loss"
    columns = ("metric", "estimate", "lower", "upper", "n", "unit", "tokens")
    rows = [
        {name: row[name] for name in ("model", "step", "seed", "dataset")}
        | {"in_domain": domains[result.model, result.dataset]}
        | {name: row[name] for name in columns}
        for result in results
        for row in result.rows
        if row["slice"] == "all"
    ]
    means = []
    for candidate in candidates:
        model = candidate.reference.name
        of_model = {r.dataset: r.folder / STORY_TABLE for r in results if r.model == model}
        in_and_out = {name: domains[model, name] for name in of_model}
        means += [
            {"model": model, "step": candidate.reference.step, "seed": candidate.seed, **mean}
            for mean in domain_means(of_model, in_and_out, metric, args.seed)
        ]
    return Matrix(metric, rows, means, _notes(results, candidates, set(domains.values()), different))


def domain_means(
    story_tables: Mapping[str, Path], domains: Mapping[str, str], metric: str, seed: int = 0
) -> list[dict[str, Any]]:
    """Return a model's mean over its in-domain data sets and over its out-of-domain ones, each set counted once.

    The mean is over the sets' own ratios of sums.  The interval is a bootstrap-t over stories; a story that is in two
    sets, as in protocol sets of one corpus, has the same weight in both.  Taking two equal sets as independent would
    make the interval too narrow by the square root of 2.  With a set of fewer than 10 stories there is no interval.

    Args:
        story_tables: the Parquet file of each data set's stories; held in memory, 32 bytes a story and set.
        domains: `in_domain` of each set; those that are neither yes nor no are in no mean.
        metric: a name of `summary.STATISTICS`.

    Returns:
        A row for each of yes and no that has sets: in_domain, datasets, metric, estimate, lower, upper, n (different
        stories), unit.
    """
    rows = []
    for side in ("yes", "no"):
        names = sorted(name for name in story_tables if domains[name] == side)
        if names:
            found = _mean([story_tables[name] for name in names], metric, seed)
            rows.append({"in_domain": side, "datasets": names, "metric": metric, **found.row()})
    return rows


def _mean(tables: Sequence[Path], metric: str, seed: int) -> Estimate:
    """Estimate the mean of a metric over data sets; without an interval if one of them has none."""
    sums_NSK = _story_sums(tables)
    statistic, unit, scale = STATISTICS[metric]
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(sums_NSK.reshape(len(sums_NSK), -1))

    def mean(sums: np.ndarray) -> np.ndarray:
        return statistic(sums.reshape(*sums.shape[:-1], *sums_NSK.shape[1:])).mean(axis=-1)

    found = bootstrap.estimate(mean, unit, scale=scale)
    # Of a few stories most resamples are alike, so the interval would not contain their uncertainty.
    has_interval = ((sums_NSK[..., 1] > 0).sum(axis=0) >= LEAST_STORIES).all()
    return found if has_interval else replace(found, lower=NO_INTERVAL[0], upper=NO_INTERVAL[1])


def _story_sums(tables: Sequence[Path]) -> np.ndarray:
    """Return sums_NSK of the different stories of all tables; zero if a story is not in a set."""
    places: dict[str, int] = {}
    read = []
    for path in tables:
        table = pq.read_table(path, columns=["record_id", *STORY_SUMS])
        table = table.filter(np.asarray(table["tokens"]) > 0)  # as in `LossSummary.add`
        number_M = np.array([places.setdefault(story, len(places)) for story in table["record_id"].to_pylist()])
        read.append((number_M, [np.asarray(table[name], dtype=np.float64) for name in STORY_SUMS]))
    sums_NSK = np.zeros((len(places), len(tables), len(STORY_SUMS)))
    for place, (number_M, columns) in enumerate(read):
        for k, values_M in enumerate(columns):
            sums_NSK[:, place, k] = np.bincount(number_M, weights=values_M, minlength=len(places))
    return sums_NSK


def _notes(
    results: Sequence[EvaluationResult], candidates: Sequence[Candidate], domains: set[str], different: bool
) -> list[str]:
    notes = []
    if different:
        notes.append("bits per byte, as nats per token of different tokenizers are not comparable")
    notes.append("[95 % bootstrap-t interval over stories]")
    notes += [text for domain, text in LEGEND.items() if domain in domains]
    if len({result.settings["append_eos"] for result in results}) > 1:
        notes.append("EOS after each story is scored for some models only; to compare, set --append_eos")
    windows = sorted({result.settings["block_size"] for result in results})
    if len(windows) > 1:
        shown = ", ".join(map(str, windows))
        notes.append(f"windows differ ({shown} tokens); to compare, set --block_size {windows[0]}")
    seeds: dict[str, set[str]] = {}
    for candidate in candidates:
        if candidate.run:
            arm = json.dumps([candidate.reference.step, candidate.run["outcome"]], sort_keys=True)
            seeds.setdefault(arm, set()).add(json.dumps(candidate.run["replicate"], sort_keys=True))
    if any(len(found) > 1 for found in seeds.values()):  # runs that differ in seeds alone, at the same update
        notes.append("each row is one run; for intervals over seeds: lm-trials compare")
    return notes


def write_matrix(matrix: Matrix, folder: Path, picture: Figure) -> None:
    """Write `matrix.csv`, `matrix.json` and, as `matrix.png`, the picture of its cells into `folder`, atomically."""
    write_csv(folder / "matrix.csv", matrix.rows)
    described = {"metric": matrix.metric, "notes": matrix.notes, "cells": matrix.rows, "means": matrix.means}
    write_json(folder / "matrix.json", described)
    write_file(folder / "matrix.png", lambda place: picture.savefig(place, format="png", dpi=150))


def show_matrix(matrix: Matrix, folder: Path, titles: Mapping[str, str]) -> None:
    """Print the matrix, the means in-domain and out-of-domain, and the files; `titles` has the data sets' names."""
    models, datasets = (list(dict.fromkeys(cell[key] for cell in matrix.cells)) for key in ("model", "dataset"))
    by_pair = {(cell["model"], cell["dataset"]): cell for cell in matrix.cells}
    unit = matrix.cells[0]["unit"]
    rows = []
    for model in models:
        cells = [by_pair[model, dataset] for dataset in datasets]
        rows.append([_label(cells[0]), *(_cell(cell, MARKS[cell["in_domain"]]) for cell in cells)])
    headings = [folded(titles[dataset], width=18, after="/-") for dataset in datasets]
    show_table(f"matrix, {unit}", ["model", *headings], rows, "; ".join(matrix.notes))
    for side, title in (("yes", "in-domain"), ("no", "out-of-domain")):
        means = [mean for mean in matrix.means if mean["in_domain"] == side]
        if means:
            shown = [[_label(mean), _cell(mean), str(len(mean["datasets"])), f"{mean['n']:,}"] for mean in means]
            caption = "mean over each model's own data sets, which may differ between models; each counts once"
            show_table(f"\n{title} mean, {unit}", ["model", unit, "data sets", "stories"], shown, caption)
    show_facts("matrix", {"table": str(folder / "matrix.csv"), "heat map": str(folder / "matrix.png")})


def _label(row: dict[str, Any]) -> str:
    return folded(row["model"]) + (f"\nseed {row['seed']}" if row["seed"] is not None else "")


def _cell(row: dict[str, Any], mark: str = "") -> str:
    return f"{mark}{row['estimate']:.3f}\n{interval_text(row['lower'], row['upper'])}"
