"""Figures of the embeddings probe: points on common axes, and how far they moved; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import COLORS, Row, distinct, dress, legend, lowest, new_figure

MARKERS = "o^sDvP*X"
MARGIN = 0.04


def points_figure(points: Iterable[Row], shown: Sequence[str], title: str, axes_names: tuple[str, str]) -> Figure:
    """Draw one panel for each of the models, all on the same axes and with the same limits.

    Args:
        points: of `points.csv`: model, category, x, y, and step.
        shown: labels of the models, in their order.
        title: of the figure.
        axes_names: what the axes are, for the labels.
    """
    points = list(points)
    names = distinct(points, "category")
    names = sorted(names, key=lambda name: -sum(point["category"] == name for point in points))
    figure, panels = new_figure(title, len(shown), (3.8, 3.3), sharex=True, sharey=True)
    for place, (axes, model) in enumerate(zip(panels, shown, strict=True)):
        mine = [point for point in points if point["model"] == model]
        for number, name in enumerate(names):  # the largest first, so that it lies below
            chosen = np.array([[point["x"], point["y"]] for point in mine if point["category"] == name])
            axes.scatter(
                *chosen.T, s=14 if len(mine) < 500 else 7, alpha=0.75, linewidths=0, label=name,
                color=COLORS[number % len(COLORS)], marker=MARKERS[number // len(COLORS) % len(MARKERS)],
            )  # fmt: skip
        step = mine[0].get("step")
        below = axes not in lowest(panels)
        dress(
            axes,
            model + (f" (step {step:,})" if step is not None else ""),
            "" if below else axes_names[0],
            "" if place % axes.get_gridspec().ncols else axes_names[1],
        )
        axes.tick_params(labelbottom=not below)
    for axis, limits in (("x", panels[0].set_xlim), ("y", panels[0].set_ylim)):
        values = [point[axis] for point in points if point["model"] in shown]
        low, high = min(values), max(values)
        room = MARGIN * (high - low) or 1.0
        limits(low - room, high + room)
    legend(figure)
    return figure
