"""Figures of the embeddings probe: points on common axes, and how far they moved; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lm_trials.reporting.layer_figures import COLORS, COLUMNS

MARKERS = "o^sDvP*X"


def points_figure(
    points: Iterable[Mapping[str, Any]], shown: Sequence[str], title: str, axes_names: tuple[str, str]
) -> Figure:
    """Draw one panel for each of the models, all on the same axes and with the same limits.

    Args:
        points: of `points.csv`: model, category, x, y, and step.
        shown: labels of the models, in their order.
        title: of the figure.
        axes_names: what the axes are, for the labels.
    """
    points = list(points)
    names = list(dict.fromkeys(point["category"] for point in points))
    names = sorted(names, key=lambda name: -sum(point["category"] == name for point in points))
    xs, ys = ([point[axis] for point in points if point["model"] in shown] for axis in ("x", "y"))
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(0.6 + 3.6 * columns, 1.3 + 3.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        mine = [point for point in points if point["model"] == shown[place]]
        for number, name in enumerate(names):  # the largest first, so that it lies below
            chosen = np.array([[point["x"], point["y"]] for point in mine if point["category"] == name])
            axes.scatter(
                *chosen.T, s=14 if len(mine) < 500 else 7, alpha=0.75, linewidths=0, label=name,
                color=COLORS[number % len(COLORS)], marker=MARKERS[number // len(COLORS) % len(MARKERS)],
            )  # fmt: skip
        step = mine[0].get("step")
        axes.set_title(shown[place] + (f" (step {step:,})" if step is not None else ""), fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(axes_names[1])
    for axes in list(grid.flat)[: len(shown)][-columns:]:  # the lowest of each column
        axes.set_xlabel(axes_names[0])
        axes.tick_params(labelbottom=True)
    margin = 0.04
    for limits, values in ((grid[0, 0].set_xlim, xs), (grid[0, 0].set_ylim, ys)):
        low, high = min(values), max(values)
        room = margin * (high - low) or 1.0
        limits(low - room, high + room)
    figure.suptitle(title, fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9)
    return figure
