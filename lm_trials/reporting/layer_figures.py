"""Figures of what goes by layer or by step: curves with their intervals, controls dashed; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = ("#4c78a8", "#e45756", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7")
CONTROL_COLORS = ("#7f7f7f", "#b0a08a", "#9aa7b5", "#c4a3a3")
COLUMNS = 3


def curves_figure(
    rows: Iterable[Mapping[str, Any]],
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
        series: column that names the lines.
        panel: column that names the panels; None for one.
        xlabel: of the axis; default the column's name.
        chance: a level drawn through every panel, as what guessing gives.

    Raises:
        ValueError: for no rows, or rows of several units in one panel.

    >>> rows = [{"layer": n, "series": "a", "role": "finding", "estimate": n / 2, "lower": 0, "upper": 1, "unit": "u"}
    ...     for n in range(3)]
    >>> axes = curves_figure(rows, "a title").axes[0]
    >>> axes.get_xlabel(), axes.get_ylabel(), len(axes.lines)
    ('layer', 'u', 1)
    """
    rows = list(rows)
    if not rows:
        raise ValueError("no rows, no curves; give at least one")
    panels = list(dict.fromkeys(str(row[panel]) for row in rows)) if panel else [""]
    names = list(dict.fromkeys(_name(row, series) for row in rows))
    styles = _styles(names)
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(7, 3.6 * columns), 1.2 + 3.0 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        # Where nothing stands below, the numbers of the shared axis would be hidden with the empty panel.
        axes.tick_params(labelbottom=place + columns >= len(panels))
        inside = [row for row in rows if not panel or str(row[panel]) == panels[place]]
        _draw_panel(axes, inside, x, series, styles, chance)
        axes.set_xlabel((xlabel or x) if place + columns >= len(panels) else "")
        if panel:
            axes.set_title(panels[place], fontsize=10)
    figure.suptitle(title, fontsize=11)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    for axes in grid.flat[1:]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    if labels and (len(labels) > 1 or labels[0]):
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=min(3, len(labels)), fontsize=9)
    return figure


def _styles(names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return how the line of each series and role is drawn; a control that has a finding's name says so."""
    findings = [name for name, role in names if role != "control"]
    controls = [name for name, role in names if role == "control"]
    styles: dict[tuple[str, str], dict[str, Any]] = {}
    for name, role in names:
        if role == "control":
            color = CONTROL_COLORS[controls.index(name) % len(CONTROL_COLORS)]
            label = f"{name} (control)" if name in findings else name
            styles[name, role] = {"color": color, "linestyle": "--", "linewidth": 1.1, "label": label}
        else:
            color = COLORS[findings.index(name) % len(COLORS)]
            styles[name, role] = {"color": color, "linestyle": "-", "linewidth": 1.6, "label": name}
    return styles


def _draw_panel(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    x: str,
    series: str,
    styles: Mapping[tuple[str, str], Mapping[str, Any]],
    chance: float | None,
) -> None:
    units = {str(row["unit"]) for row in rows}
    if len(units) != 1:
        raise ValueError(f"{len(units)} units ({', '.join(sorted(units))}) in one panel; give each its own")
    for named in dict.fromkeys(_name(row, series) for row in rows):
        line = sorted((row for row in rows if _name(row, series) == named), key=lambda row: float(row[x]))
        xs, ys = ([_number(row[key]) for row in line] for key in (x, "estimate"))
        bounds = [[_number(row[key]) for row in line] for key in ("lower", "upper")]
        style = styles[named]
        axes.plot(xs, ys, marker="o" if len(line) < 30 else "", markersize=3.5, **style)
        if np.isfinite(bounds).any():
            axes.fill_between(xs, *bounds, color=style["color"], alpha=0.18, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color="black", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_ylabel(units.pop())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _name(row: Mapping[str, Any], series: str) -> tuple[str, str]:
    return str(row[series]), str(row.get("role", "finding"))


def _number(value: Any) -> float:
    return float("nan") if value in (None, "") else float(value)
