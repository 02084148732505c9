"""Figures of estimates by layer or step: curves with intervals, controls dashed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lm_trials.reporting.figure_style import (
    COLORS,
    CONTROL_COLORS,
    Row,
    distinct,
    draw_curve,
    dress,
    legend,
    lowest,
    new_figure,
    number,
    one_unit,
)


def curves_figure(
    rows: Iterable[Row],
    title: str,
    x: str = "layer",
    series: str = "series",
    panel: str | None = None,
    xlabel: str | None = None,
    chance: float | None = None,
) -> Figure:
    """Draw estimates over layers (or steps): a line for each series, a panel for each value of `panel`.

    Args:
        rows: each with `x`, `series`, estimate, lower, upper, unit, and `role`: "finding", or "control", drawn dashed.
        title: of the figure.
        x: column of the horizontal axis.
        series: column with the names of the lines.
        panel: column with the names of the panels; None for one panel.
        xlabel: default: the name of the column `x`.
        chance: a level drawn in every panel, such as the accuracy of guessing.

    Raises:
        ValueError: for no rows, or rows of several units in one panel.

    >>> rows = [{"layer": n, "series": "a", "role": "finding", "estimate": n / 2, "lower": 0, "upper": 1, "unit": "u"}
    ...     for n in range(3)]
    >>> axes = curves_figure(rows, "a title").axes[0]
    >>> axes.get_xlabel(), axes.get_ylabel(), len(axes.lines)
    ('layer', 'u', 1)
    """
    rows = [{"role": "finding", **row} for row in rows]
    if not rows:
        raise ValueError("no rows to draw; give at least one")
    names = distinct(rows, panel) if panel else [""]
    styles = _styles(distinct(rows, series, "role"))
    figure, panels = new_figure(title, len(names), sharex=True)
    for axes, name in zip(panels, names, strict=True):
        inside = [row for row in rows if not panel or row[panel] == name]
        for named in distinct(inside, series, "role"):
            own = [row for row in inside if (row[series], row["role"]) == named]
            own.sort(key=lambda row: float(row[x]))
            draw_curve(axes, [number(row[x]) for row in own], own, **styles[named])
        if chance is not None:
            axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", label=f"chance, {chance:g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        # matplotlib hides tick labels above the last row, even in a column whose last panel does not exist.
        below = axes not in lowest(panels)
        axes.tick_params(labelbottom=not below)
        dress(axes, str(name), "" if below else xlabel or x, one_unit(inside))
    legend(figure)
    return figure


def _styles(names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the style of each series and role; a control with the name of a finding is labelled as control."""
    findings = [name for name, role in names if role != "control"]
    controls = [name for name, role in names if role == "control"]
    styles: dict[tuple[str, str], dict[str, Any]] = {}
    for name, role in names:
        control = role == "control"
        own, colors = (controls, CONTROL_COLORS) if control else (findings, COLORS)
        label = f"{name} (control)" if control and name in findings else str(name)
        styles[name, role] = {"color": colors[own.index(name) % len(colors)], "label": label, "control": control}
    return styles
