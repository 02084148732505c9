"""The figure of a data set's metrics: the distribution of each, and their rank correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import (
    COLORS,
    DIVERGING,
    Row,
    color_bar,
    distinct,
    dress,
    heat_map,
    legend,
    new_figure,
)

BINS = 40
OUTER = (0.5, 99.5)  # percentiles between which a distribution is drawn; a few long texts would fill the axis


def metrics_figure(
    values: Mapping[str, np.ndarray],
    correlations: Sequence[Row],
    title: str,
    before: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Draw a histogram of each metric that is not 0 or 1 alone, and a heat map of rank correlations.

    Args:
        values: each metric's values, one a text.
        correlations: rows with metric, other and correlation.
        before: the same metrics of the texts before a protocol changed them.

    >>> values = {"words": np.array([1.0, 2.0, 3.0]), "sentences": np.array([1.0, 2.0, 2.0])}
    >>> rows = [{"metric": "words", "other": "sentences", "correlation": 0.87}]
    >>> len(metrics_figure(values, rows, "Metrics of a set").axes)  # two histograms, the heat map and its scale
    4
    """
    drawn = [name for name, column in values.items() if not set(np.unique(column)) <= {0, 1}]
    names = distinct([{"name": row[key]} for row in correlations for key in ("metric", "other")], "name")
    figure, panels = new_figure(title, len(drawn) + bool(names), columns=4)
    for axes, name in zip(panels, drawn, strict=False):
        shown = {"after" if before is not None else "": values[name]}
        if before is not None and name in before:
            shown = {"before": before[name], **shown}
        finite = {label: np.asarray(column)[~np.isnan(column)] for label, column in shown.items()}
        together = np.concatenate(list(finite.values()))
        edges = np.histogram_bin_edges(together, BINS, tuple(np.percentile(together, OUTER))).tolist()
        for color, (label, column) in enumerate(finite.items()):
            weights = np.full(len(column), 1 / max(1, len(column)))
            axes.hist(
                column,
                edges,
                weights=weights,
                histtype="stepfilled",
                alpha=0.45,
                color=COLORS[color],
                label=label or None,
            )
        dress(axes, xlabel=name.replace("_", " "), ylabel="share of texts")
    if names:
        matrix = np.eye(len(names))
        for row in correlations:
            one, other = names.index(row["metric"]), names.index(row["other"])
            matrix[one, other] = matrix[other, one] = row["correlation"]
        labels = [name.replace("_", " ") for name in names]
        image = heat_map(panels[-1], matrix, labels, labels, DIVERGING, (-1, 1), most_ticks=len(names))
        panels[-1].tick_params(axis="x", rotation=90)
        dress(panels[-1], grid=None)
        color_bar(figure, image, panels[-1:], "rank correlation")
    legend(figure)
    return figure
