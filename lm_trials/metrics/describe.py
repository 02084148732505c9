"""What the metrics of a data set look like: quantiles, rank correlations, and what a protocol changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lm_trials.console import show_facts, show_table
from lm_trials.data.datasets import DataSet, open_prepared
from lm_trials.files import write_csv
from lm_trials.metrics.tables import open_metrics

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRONGEST = 8  # correlations that are printed

Rows = list[dict[str, Any]]


def describe_metrics(dataset: DataSet, output_dir: Path) -> dict[str, Any]:
    """Print and return the metrics of the train split, and of a protocol set how they differ from its corpus's.

    A folder of the data set's name in `output_dir` gets the tables `metric_quantiles.csv`, `metric_correlations.csv`
    and, of a protocol set, `metric_changes.csv`, and a figure of the distributions, `metrics.png`.

    Raises:
        UsageError: for a data set without metrics, or a protocol set whose corpus has none.
    """
    from lm_trials.reporting.metric_figures import metrics_figure
    from lm_trials.reporting.pictures import save_pictures

    dataset = dataset.as_prepared()
    folder = output_dir / dataset.label
    values, before, changes = _frame(dataset), None, Rows()
    if dataset.has_prompts:
        before = _frame(open_prepared(str(dataset.corpus()), dataset.place, "dataset_name"))
        changes = changes_of(before, values)
    quantiles, correlations = quantiles_of(values), correlations_of(values)
    show_table(
        f"Metrics of {dataset.label}, {len(values):,} train texts",
        list(quantiles[0]),
        [[_shown(value) for value in row.values()] for row in quantiles],
    )
    strongest = sorted(correlations, key=lambda row: -abs(row["correlation"]))[:STRONGEST]
    show_table(
        "Strongest rank correlations (Spearman)",
        ["metrics", "correlation"],
        [[f"{row['metric']}, {row['other']}", f"{row['correlation']:.2f}"] for row in strongest],
        "An order by one metric is partly an order by those it correlates with.",
    )
    if changes:
        show_table(
            f"Means before and after the protocol of {dataset.label}",
            list(changes[0]),
            [[_shown(value) for value in row.values()] for row in changes],
            "Of all train texts of the corpus, of those that the set keeps, and of these as the set has them.",
        )
    tables = {"metric_quantiles": quantiles, "metric_correlations": correlations, "metric_changes": changes}
    for name, rows in tables.items():
        if rows:
            write_csv(folder / f"{name}.csv", rows)
    title = f"Metrics of {dataset.label}" + (", before and after the protocol" if changes else "")
    picture, _ = save_pictures(metrics_figure(dict(values), correlations, title, before), folder / "metrics")
    show_facts("files", {"tables": str(folder), "figure": str(picture)})
    return {"dataset": dataset.label, "texts": len(values), **{name: rows for name, rows in tables.items() if rows}}


def quantiles_of(values: pd.DataFrame) -> Rows:
    """Return each metric's number of texts with a value, mean, standard deviation and quantiles.

    >>> quantiles_of(pd.DataFrame({"words": [1.0, 2.0, 3.0, np.nan]}))[0]["50 %"]
    2.0
    """
    names = [f"{quantile:.0%}".replace("%", " %") for quantile in QUANTILES]
    return [
        {"metric": name, "texts": int(column.count()), "mean": float(column.mean()), "SD": float(column.std())}
        | dict(zip(names, map(float, column.quantile(QUANTILES)), strict=True))
        for name, column in values.items()
    ]


def correlations_of(values: pd.DataFrame) -> Rows:
    """Return Spearman's correlation of each pair of metrics, over the texts that have both; not of a constant metric.

    >>> correlations_of(pd.DataFrame({"a": [1, 2, 3], "b": [1, 4, 9], "c": [0, 0, 0]}))
    [{'metric': 'a', 'other': 'b', 'correlation': 1.0}]
    """
    varied = values.loc[:, values.nunique() > 1]
    matrix = varied.corr(method="spearman")
    return [
        {"metric": name, "other": other, "correlation": float(matrix.loc[name, other])}
        for place, name in enumerate(matrix)
        for other in matrix.columns[place + 1 :]
        if not np.isnan(matrix.loc[name, other])
    ]


def changes_of(before: pd.DataFrame, after: pd.DataFrame) -> Rows:
    """Return for each metric of both tables the means of the corpus, of what a set keeps of it, and of the set.

    Args:
        before: metrics of the corpus by record id, in its order.
        after: metrics of the set, in the same order without what was filtered out.
    """
    ids = iter(enumerate(before.index))
    kept = [next(place for place, name in ids if name == wanted) for wanted in after.index]
    same = before.iloc[kept]
    return [
        {
            "metric": name,
            "corpus": float(before[name].mean()),
            "kept": float(same[name].mean()),
            "after": float(after[name].mean()),
            "texts changed": float((same[name].fillna(np.inf) != after[name].fillna(np.inf)).mean()),
        }
        for name in after
        if name in before
    ]


def _frame(dataset: DataSet) -> pd.DataFrame:
    """Return the metrics of the train split, with the record ids as index."""
    return open_metrics(dataset).table.to_pandas().set_index("record_id")


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
