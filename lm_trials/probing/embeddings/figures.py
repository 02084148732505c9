"""Figure of the embeddings probe: tokens as points, on the same axes for all models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import COLORS, COLUMNS, Row, distinct, dress, legend, lowest, new_figure

MARKERS = "o^sDvP*X"


def points_figure(points: Iterable[Row], shown: Sequence[str], title: str, axes_names: tuple[str, str]) -> Figure:
    """Draw a panel for each model, all with the same axes and limits.

    Args:
        points: of `points.csv`: model, category, x, y, and step.
        shown: labels of the models, in order.
        title: of the figure.
        axes_names: labels of the axes.
    """
    points = list(points)
    names = sorted(distinct(points, "category"), key=lambda name: -sum(p["category"] == name for p in points))
    figure, panels = new_figure(title, len(shown), (3.8, 3.3), sharex=True, sharey=True)
    for place, (axes, model) in enumerate(zip(panels, shown, strict=True)):
        mine = [point for point in points if point["model"] == model]
        for number, name in enumerate(names):  # the largest category first, so that it is drawn below the others
            chosen = np.array([[point["x"], point["y"]] for point in mine if point["category"] == name])
            axes.scatter(
                chosen[:, 0], chosen[:, 1], s=18 if len(mine) < 500 else 9, alpha=0.75, linewidths=0, label=name,
                color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)],
            )  # fmt: skip
        step = mine[0].get("step")
        below, left = axes in lowest(panels), place % COLUMNS == 0
        model += f" (step {step:,})" if step is not None else ""
        dress(axes, model, axes_names[0] if below else "", axes_names[1] if left else "")
        axes.tick_params(labelbottom=below)
    legend(figure)
    return figure
