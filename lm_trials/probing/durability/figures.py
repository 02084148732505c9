"""Figures of the durability probe: losses and slopes over training, and losses by a metric of the stories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.figure import Figure

from lm_trials.probing.durability.drift import ALL
from lm_trials.reporting.figure_style import COLORS, Row, distinct, draw_curve, dress, legend, new_figure, numbers
from lm_trials.reporting.layer_figures import curves_figure


def trajectories_figure(rows: Iterable[Row], title: str) -> Figure:
    """Draw losses and slopes over updates: a line for each run, a panel for each quantity and metric."""
    known = [row for row in rows if row["step"] is not None]  # of models that have a run.json
    drawn = [{**row, "panel": " over ".join(filter(None, (row["quantity"], row["metric"])))} for row in known]
    return curves_figure(drawn, title, x="step", series="run", panel="panel", xlabel="update")


def drift_figure(rows: Iterable[Row], title: str, x: Literal["step", "layer"]) -> Figure:
    """Draw the distance of weights and CKA, a panel for each module, over updates or over layers, a line for each run.

    >>> row = {"role": "finding", "quantity": "CKA", "module": "MLP", "run": "a", "estimate": 1, "lower": 1, "upper": 1}
    >>> rows = [{**row, "unit": "CKA", "layer": layer, "step": 9} for layer in (0, 1, "all")]
    >>> [len(drift_figure(rows, "a title", x).axes[0].lines[0].get_xdata()) for x in ("layer", "step")]
    [2, 1]
    """
    wanted = [row for row in rows if (row["layer"] == ALL) == (x == "step") and row[x] is not None]
    drawn = [{**row, "panel": f"{row['quantity']}, {row['module']}"} for row in wanted]
    return curves_figure(drawn, title, x=x, series="run", panel="panel", xlabel="update" if x == "step" else "layer")


def tenths_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw the loss of the stories in tenths by each metric, and the difference from the first run, a line a model.

    Args:
        rows: each with model, metric, median of the tenth, minus, estimate, lower, upper, unit.
    """
    names, models = distinct(rows, "metric", "minus"), distinct(rows, "model")
    names.sort(key=lambda name: distinct(rows, "metric").index(name[0]))
    figure, panels = new_figure(title, len(names), (4.2, 3.2), columns=2)
    for axes, (metric, minus) in zip(panels, names, strict=True):
        inside = [row for row in rows if (row["metric"], row["minus"]) == (metric, minus)]
        for model in distinct(inside, "model"):
            own: list[Any] = [row for row in inside if row["model"] == model]
            draw_curve(axes, numbers(own, "median"), own, COLORS[models.index(model) % len(COLORS)], model)
        if minus:
            axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        dress(axes, f"minus {minus}" if minus else "loss", f"{metric} (median of a tenth)", inside[0]["unit"])
    legend(figure)
    return figure
