"""Figures of the patching probe: the effect of each swap by block, with controls; heads and positions as maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lm_trials.reporting import figure_style as style
from lm_trials.reporting.figure_style import Row, distinct, number

SHARE, CHANGE, VALUE = "share of the gap", "change", "value"
COLORS = {"embeddings": "#b07aa1", "attention": "#4c78a8", "mlp": "#e45756", "residual": "#59a14f"}
NAMES = {"mlp": "MLP", "residual": "residual stream"}
CONTROLS = {
    "random direction": ("#404040", "s"),
    "another text": ("#b0a08a", "D"),
    "another token": ("#9aa7b5", "o"),
    "untrained donor": ("#c4a3a3", "P"),
}
TITLES = {
    SHARE: "Share of the gap in the {} that each swap closes",
    CHANGE: "Change in the {} with each component swapped",
    VALUE: "{} with each component swapped",
}
MEASURES = {"story": "story log-likelihood", "answer": "answer log-probability",
            "answer difference": "answer log-probability difference"}  # fmt: skip
Rows = Sequence[Row]


def patching_figure(rows: Rows, quantity: str) -> Figure:
    """Draw a line of panels for each direction: bars of the components by block, and a map of the heads; or maps.

    Args:
        rows: of one measure, all texts, with direction, component, block, head, position, run, role, measure, estimate,
            lower, upper, unit.
        quantity: which rows are drawn; of a "value", both models unchanged are drawn as two lines.

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
    there = set(distinct(swaps, "component"))
    if by_position:
        kinds = [name for name in distinct(swaps, "component") if name != "heads"] or ["heads"]
    else:
        kinds = ["parts"] * bool(there - {"heads"}) + ["heads"] * ("heads" in there)
    widths = [2.2 if kind == "parts" else 1 for kind in kinds]
    size = 3.6 * sum(widths) / len(kinds), 3.2
    measure = str(rows[0]["measure"])
    words = MEASURES.get(measure, f"{measure} log-likelihood" if measure.endswith("sentence") else measure)
    title = TITLES[quantity].format(words)
    figure, panels = style.new_figure(title, len(directions) * len(kinds), size, len(kinds), width_ratios=widths)
    mapped = [row for row in swaps if by_position or row["component"] == "heads"]
    limit = max((abs(float(row["estimate"])) for row in mapped), default=1.0) or 1.0
    unit = style.one_unit(rows) if quantity != CHANGE else f"change, {style.one_unit(rows)}"
    maps: dict[Axes, AxesImage] = {}
    pairs = [(direction, kind) for direction in directions for kind in kinds]
    for axes, (direction, kind) in zip(panels, pairs, strict=True):
        inside = [row for row in rows if row["direction"] == direction]
        if kind == "parts":
            unchanged = [row for row in plain if row["direction"] == direction]
            _draw_bars(axes, [row for row in inside if row["component"] != "heads"], unchanged, quantity == SHARE)
            style.dress(axes, direction, "block", unit, grid="y")
        else:
            chosen = [row for row in inside if row["component"] == kind and row["role"] == "finding"]
            across = "position" if by_position else "head"
            columns = positions if by_position else sorted({int(row["head"]) for row in chosen})
            maps[axes] = _draw_map(axes, chosen, across, columns, limit)
            label = "position of the token" if by_position else across
            style.dress(axes, f"{direction}: {NAMES.get(kind, kind)}", label, "block", grid=None)
    if maps:
        style.color_bar(figure, next(iter(maps.values())), list(maps), unit, shrink=0.8)
    style.legend(figure)
    return figure


def _draw_bars(axes: Axes, rows: Rows, unchanged: Rows, share: bool) -> None:
    """Draw the swaps of each block side by side, their controls as marks on the bars, all with their intervals.

    The view is that of the swaps and random directions; a triangle marks a control beyond it.

    Args:
        unchanged: recipient and donor without a swap: levels.
    """
    components = [name for name in COLORS if any(row["component"] == name for row in rows)]
    in_blocks = [name for name in components if name != "embeddings"]
    width = 0.8 / max(len(in_blocks), 1)
    blocks = sorted({int(row["block"]) for row in rows if row["block"] is not None})
    near = [row for row in rows if row["role"] == "finding" or row["run"] == "random direction"]
    low = min(0.0, *(np.fmin(number(row["lower"]), row["estimate"]) for row in near))
    high = max(0.0, *(np.fmax(number(row["upper"]), row["estimate"]) for row in near))
    margin = 0.08 * ((high - low) or 1.0)
    bottom, top = low - margin, high + margin
    for row in rows:
        color, name = COLORS[row["component"]], NAMES.get(row["component"], row["component"])
        x = -1.0 if row["block"] is None else float(blocks.index(int(row["block"])))
        if row["component"] in in_blocks:
            x += (in_blocks.index(row["component"]) - (len(in_blocks) - 1) / 2) * width
        if row["role"] == "finding":
            axes.bar(x, row["estimate"], width * 0.9, color=color, label=name)
            _whisker(axes, x, row, "black")
        elif row["run"] in CONTROLS:
            x += 0.15 * width
            color, marker = CONTROLS[row["run"]]
            y, label, edge = float(row["estimate"]), f"control: {row['run']}", "white"
            if not bottom <= y <= top:
                y, marker, edge = (bottom, "v", color) if y < bottom else (top, "^", color)
                label += ", beyond the axis"
            axes.plot(x, y, marker, color=color, markersize=4.5, label=label, markeredgecolor=edge, markeredgewidth=0.4,
                      clip_on=False, zorder=3)  # fmt: skip
            _whisker(axes, x, row, color)
    ticks = ([-1] if "embeddings" in components else []) + list(range(len(blocks)))
    axes.set_xticks(ticks, [("emb." if tick < 0 else str(blocks[tick])) for tick in ticks])
    axes.axhline(0, color="black", linewidth=0.8)
    if share:
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="the whole gap")
    for row in unchanged:
        style_of = "--" if row["run"] == "donor" else ":"
        axes.axhline(row["estimate"], color="black", linewidth=1, linestyle=style_of, label=f"{row['run']}, unchanged")
        bottom, top = min(bottom, float(row["estimate"])), max(top, 1.05 * float(row["estimate"]))
    axes.set_ylim(bottom, top)


def _whisker(axes: Axes, x: float, row: Row, color: str) -> None:
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
        values[place] = np.fmax(values[place], row["estimate"])  # heads at positions: the largest of a block
    names = ["emb." if block < 0 else str(block) for block in blocks]
    return style.heat_map(axes, values, list(map(str, columns)), names, style.DIVERGING, (-limit, limit), upwards=True)
