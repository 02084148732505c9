"""Figures of the saturation probe: what goes in beside what comes out, over the updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lm_trials.reporting.figure_style import (
    COLORS,
    Row,
    distinct,
    draw_curve,
    dress,
    legend,
    lowest,
    new_figure,
    number,
    numbers,
    one_unit,
)

SIDES = {"input": "in", "output": "out"}


def curves_figure(rows: Sequence[Row], steps: Sequence[Row]) -> Figure:
    """Draw each metric of the texts that go in beside those that come out, then the losses; each on its own scale.

    A metric that is the same everywhere is left out, and named in the title.

    Args:
        rows: of `checkpoints.csv`.
        steps: the saturation steps, drawn as vertical lines.
    """
    rows = [row for row in rows if row["slice"] == "all"]
    texts = [row for row in rows if row["side"] in SIDES]
    losses = distinct([row for row in rows if row["side"] == "validation"], "metric")
    metrics, constant = _changing(texts)
    places = [(side, metric) for metric in metrics or constant for side in SIDES]
    places += [("validation", metric) for metric in losses]
    labels = distinct(rows, "model")
    title = "Metrics of what goes in (records read since the checkpoint before) and of what comes out (sampled texts); "
    title += "dotted: the saturation step"
    if metrics and constant:
        title += f"; not drawn because they do not vary: {', '.join(map(_words, constant))}"
    figure, panels = new_figure(title, len(places), (3.0, 2.4), columns=4)
    for axes, (side, metric) in zip(panels, places, strict=True):
        here = [row for row in rows if (row["side"], row["metric"]) == (side, metric)]
        for place, label in enumerate(labels):
            own = [row for row in here if row["model"] == label]
            color = COLORS[place % len(COLORS)]
            draw_curve(axes, numbers(own, "update"), own, color, label)
            settled = [row for row in steps if (row["model"], row["side"], row["metric"]) == (label, side, metric)]
            for row in settled:
                if row["changed"] and not row["censored"]:
                    axes.axvline(number(row["estimate"]), color=color, linewidth=0.8, linestyle=":")
        _updates(axes)
        below = axes in lowest(panels)
        dress(axes, f"{SIDES.get(side, side)}: {_words(metric)}", "update" if below else "", one_unit(here))
    legend(figure)
    return figure


def minmax_figure(rows: Sequence[Row]) -> Figure:
    """Draw all metrics of a run in two panels, each from 0 at its smallest value to 1 at its largest.

    The scale of each curve is its own, so heights are not comparable.  A metric that does not vary has no such scale
    and is left out.
    """
    rows = [row for row in rows if row["side"] in SIDES and row["slice"] == "all"]
    labels = distinct(rows, "model")
    names = distinct(rows, "metric")
    title = (
        "Metrics scaled from 0 at the smallest to 1 at the largest value of a curve (without those that do not vary)"
    )
    figure, panels = new_figure(title, 2 * len(labels), (4.5, 3.0), columns=2, sharey=True)
    for axes, (label, side) in zip(panels, ((label, side) for label in labels for side in SIDES), strict=True):
        for place, metric in enumerate(names):
            own = [row for row in rows if (row["model"], row["side"], row["metric"]) == (label, side, metric)]
            values = np.array(numbers(own, "estimate"))
            if len(np.unique(values[~np.isnan(values)])) < 2:
                continue
            scaled = (values - np.nanmin(values)) / (np.nanmax(values) - np.nanmin(values))
            axes.plot(
                numbers(own, "update"), scaled, color=COLORS[place % len(COLORS)], label=_words(metric), marker="o",
                markersize=3, linewidth=1.4, linestyle="-" if place < len(COLORS) else "--",
            )  # fmt: skip
        _updates(axes)
        left = "share of the range" if side == "input" else ""
        dress(axes, f"{label}: {SIDES[side]}", "update" if axes in lowest(panels) else "", left)
    legend(figure)
    return figure


def _changing(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the metrics with more than one value, and the others."""
    found: tuple[list[str], list[str]] = ([], [])
    for metric in distinct(rows, "metric"):
        values = {row["estimate"] for row in rows if row["metric"] == metric}
        found[len(values) < 2].append(metric)
    return found


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _updates(axes: Axes) -> None:
    """Scale the horizontal axis as log2, with update 0."""
    axes.set_xscale("symlog", base=2, linthresh=1)
    most = axes.dataLim.x1
    axes.set_xticks([0, *(4**power for power in range(16) if 4**power <= most)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    axes.set_xlim(left=0)
