"""Figures of the patching probe: what each swap closes, by block, with its controls; heads and positions as maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lm_trials.reporting.figure_style import (
    DIVERGING,
    Row,
    color_bar,
    distinct,
    dress,
    heat_map,
    legend,
    new_figure,
    number,
    one_unit,
)

COLORS = {"embeddings": "#b07aa1", "attention": "#4c78a8", "mlp": "#e45756", "residual": "#59a14f"}
CONTROLS = {
    "random direction": ("#7f7f7f", "s"),
    "another text": ("#b0a08a", "D"),
    "another token": ("#9aa7b5", "o"),
    "untrained donor": ("#c4a3a3", "P"),
}
BEYOND = "control beyond the axis"
Rows = Sequence[Row]


def patching_figure(rows: Rows, title: str, quantity: str) -> Figure:
    """Draw a line of panels for each direction: bars of the parts by block, and a map of the heads; or maps.

    Args:
        rows: of one measure, all texts, with direction, component, block, head, position, run, role, estimate, lower,
            upper, unit.
        title: of the figure.
        quantity: which rows are drawn; of a "value", what both models have as they are is drawn as two lines.

    Raises:
        ValueError: for no rows of that quantity.
    """
    rows = [row for row in rows if row["quantity"] == quantity and row["texts"] == "all"]
    plain = [row for row in rows if not row["component"]]
    rows = [row for row in rows if row["component"]]
    if not rows:
        raise ValueError(f"no rows of {quantity!r}, no figure; give some")
    directions, positions = distinct(rows, "direction"), distinct(rows, "position")
    swaps = [row for row in rows if row["role"] == "finding"]
    by_position = len(positions) > 1
    if by_position:
        kinds = [name for name in distinct(swaps, "component") if name != "heads"] or ["heads"]
    else:
        kinds = [name for name, wanted in (("parts", False), ("heads", True))
                 if any((row["component"] == "heads") is wanted for row in swaps)]  # fmt: skip
    widths = [2.2 if kind == "parts" else 1 for kind in kinds]
    size = 3.6 * sum(widths) / len(kinds), 3.2
    figure, panels = new_figure(title, len(directions) * len(kinds), size, len(kinds), width_ratios=widths)
    mapped = [row for row in swaps if by_position or row["component"] == "heads"]
    limit = max((abs(float(row["estimate"])) for row in mapped), default=1.0) or 1.0
    maps: dict[Axes, AxesImage] = {}
    pairs = [(direction, kind) for direction in directions for kind in kinds]
    for axes, (direction, kind) in zip(panels, pairs, strict=True):
        inside = [row for row in rows if row["direction"] == direction]
        if kind == "parts":
            unchanged = [row for row in plain if row["direction"] == direction]
            _draw_bars(axes, [row for row in inside if row["component"] != "heads"], unchanged, quantity)
            dress(axes, direction, "block", one_unit(inside), grid="y")
        else:
            chosen = [row for row in inside if row["component"] == kind and row["role"] == "finding"]
            across = "position" if by_position else "head"
            columns = positions if by_position else sorted({int(row["head"]) for row in chosen})
            maps[axes] = _draw_map(axes, chosen, across, columns, limit)
            dress(axes, f"{direction}: {kind}", across, "block", grid=None)
    if maps:
        color_bar(figure, next(iter(maps.values())), list(maps), one_unit(mapped), shrink=0.8)
    legend(figure)
    return figure


def _draw_bars(axes: Axes, rows: Rows, unchanged: Rows, quantity: str) -> None:
    """Draw the swaps of each block side by side, their controls as marks on the bars, all with their intervals.

    Args:
        unchanged: what the recipient and the donor have as they are: levels.
    """
    components = [name for name in COLORS if any(row["component"] == name for row in rows)]
    in_blocks = [name for name in components if name != "embeddings"]
    width = 0.8 / max(len(in_blocks), 1)
    blocks = sorted({int(row["block"]) for row in rows if row["block"] is not None})
    for component in components:
        place = 0.0 if component == "embeddings" else (in_blocks.index(component) - (len(in_blocks) - 1) / 2) * width
        of_component = [row for row in rows if row["component"] == component]
        bars = [row for row in of_component if row["role"] == "finding"]
        xs = [_place(row, blocks) + place for row in bars]
        axes.bar(xs, [row["estimate"] for row in bars], width * 0.9, color=COLORS[component], label=component)
        _whiskers(axes, xs, bars, "black")
        for name, (color, marker) in CONTROLS.items():
            marks = [row for row in of_component if row["role"] == "control" and row["run"] == name]
            at = [_place(row, blocks) + place + 0.15 * width for row in marks]
            label = f"control: {name}" if marks else None
            axes.plot(at, [row["estimate"] for row in marks], marker, color=color, markersize=4.5, label=label,
                      markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
            _whiskers(axes, at, marks, color)
    ticks = ([-1] if "embeddings" in components else []) + list(range(len(blocks)))
    axes.set_xticks(ticks, [("emb." if tick < 0 else str(blocks[tick])) for tick in ticks])
    _limit_view(axes, rows)
    if quantity.startswith("share"):
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    for row in unchanged:
        style = "--" if row["run"] == "donor" else ":"
        axes.axhline(row["estimate"], color="black", linewidth=1, linestyle=style, label=row["run"])
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, float(row["estimate"])), max(high, 1.05 * float(row["estimate"])))


def _place(row: Row, blocks: list[int]) -> float:
    return -1.0 if row["block"] is None else float(blocks.index(int(row["block"])))


def _limit_view(axes: Axes, rows: Rows) -> None:
    """Keep the view where the swaps and disturbances of their size are; a triangle marks a control that lies beyond."""
    near = [row for row in rows if row["role"] == "finding" or row["run"] == "random direction"]
    low = min(0.0, *(np.fmin(number(row["lower"]), row["estimate"]) for row in near))
    high = max(0.0, *(np.fmax(number(row["upper"]), row["estimate"]) for row in near))
    span = (high - low) or 1.0
    bottom, top = low - 0.08 * span, high + 0.08 * span
    for line in list(axes.lines):
        if line.get_marker() not in (marker for _, marker in CONTROLS.values()):
            continue
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            if not bottom <= y <= top:
                edge, sign = (bottom, "v") if y < bottom else (top, "^")
                axes.plot([x], [edge], sign, color=line.get_color(), markersize=5, clip_on=False, label=BEYOND)
    axes.set_ylim(bottom, top)


def _whiskers(axes: Axes, xs: Sequence[float], rows: Rows, color: str) -> None:
    for x, row in zip(xs, rows, strict=True):
        lower, upper = number(row["lower"]), number(row["upper"])
        if np.isfinite([lower, upper]).all():
            axes.plot([x, x], [lower, upper], color=color, linewidth=1.0)


def _draw_map(axes: Axes, rows: Rows, across: str, columns: Sequence[Any], limit: float) -> AxesImage:
    """Draw estimates as colours, blocks upwards; the same colours in every panel."""
    blocks = sorted({-1 if row["block"] is None else int(row["block"]) for row in rows})
    values = np.full((len(blocks), len(columns)), np.nan)
    for row in rows:
        block = -1 if row["block"] is None else int(row["block"])
        key = row[across] if across == "position" else int(row[across])
        place = blocks.index(block), list(columns).index(key)
        values[place] = np.fmax(values[place], row["estimate"])  # heads at positions: the largest of a block's
    names = ["emb." if block < 0 else str(block) for block in blocks]
    return heat_map(axes, values, list(map(str, columns)), names, DIVERGING, (-limit, limit), upwards=True)
