"""Figures of the patching probe: what each swap closes, by block, with its controls; heads and positions as maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = {"embeddings": "#b07aa1", "attention": "#4c78a8", "mlp": "#e45756", "residual": "#59a14f"}
CONTROLS = {
    "random direction": ("#7f7f7f", "s"),
    "another text": ("#b0a08a", "D"),
    "another token": ("#9aa7b5", "o"),
    "untrained donor": ("#c4a3a3", "P"),
}
MAP = "RdBu_r"
Rows = Sequence[Mapping[str, Any]]


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
    directions = list(dict.fromkeys(str(row["direction"]) for row in rows))
    positions = list(dict.fromkeys(str(row["position"]) for row in rows))
    swaps = [row for row in rows if row["role"] == "finding"]
    if len(positions) > 1:
        kinds = [name for name in dict.fromkeys(str(row["component"]) for row in swaps) if name != "heads"] or ["heads"]
    else:
        kinds = [name for name, wanted in (("parts", False), ("heads", True))
                 if any((row["component"] == "heads") is wanted for row in swaps)]  # fmt: skip
    widths = [2.2 if kind == "parts" else 1 for kind in kinds]
    figure = Figure(figsize=(max(7, 3.6 * sum(widths)), 1.1 + 3.2 * len(directions)), layout="constrained")
    grid = figure.subplots(len(directions), len(kinds), squeeze=False, width_ratios=widths)
    mapped = [row for row in swaps if len(positions) > 1 or row["component"] == "heads"]
    limit = max((abs(float(row["estimate"])) for row in mapped), default=1.0) or 1.0
    for line, direction in zip(grid, directions, strict=True):
        inside = [row for row in rows if row["direction"] == direction]
        for axes, kind in zip(line, kinds, strict=True):
            if len(positions) > 1:
                chosen = [row for row in inside if row["component"] == kind and row["role"] == "finding"]
                _draw_map(axes, chosen, "position", positions, limit)
                axes.set_title(f"{direction}: {kind}", fontsize=10)
            elif kind == "parts":
                _draw_bars(axes, [row for row in inside if row["component"] != "heads"], quantity)
                for row in (row for row in plain if row["direction"] == direction):
                    style = "--" if row["run"] == "donor" else ":"
                    axes.axhline(row["estimate"], color="black", linewidth=1, linestyle=style, label=row["run"])
                    low, high = axes.get_ylim()
                    axes.set_ylim(min(low, float(row["estimate"])), max(high, 1.05 * float(row["estimate"])))
                axes.set_title(direction, fontsize=10)
            else:
                chosen = [row for row in inside if row["component"] == "heads" and row["role"] == "finding"]
                heads = sorted({int(row["head"]) for row in chosen})
                _draw_map(axes, chosen, "head", heads, limit)
                axes.set_title(f"{direction}: heads", fontsize=10)
    figure.suptitle(title, fontsize=11)
    named = {label: handle for axes in grid.flat
             for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_bars(axes: Axes, rows: Rows, quantity: str) -> None:
    """Draw the swaps of each block side by side, their controls as marks on the bars, all with their intervals."""
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
            axes.plot(at, [row["estimate"] for row in marks], marker, color=color, markersize=3.5, label=label,
                      markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
            _whiskers(axes, at, marks, color)
    ticks = ([-1] if "embeddings" in components else []) + list(range(len(blocks)))
    axes.set_xticks(ticks, [("emb." if tick < 0 else str(blocks[tick])) for tick in ticks])
    _limit_view(axes, rows)
    if quantity.startswith("share"):
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="block", ylabel=_unit(rows))
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)


def _place(row: Mapping[str, Any], blocks: list[int]) -> float:
    return -1.0 if row["block"] is None else float(blocks.index(int(row["block"])))


def _limit_view(axes: Axes, rows: Rows) -> None:
    """Keep the view where the swaps and disturbances of their size are; an arrow says that a control lies beyond."""
    near = [row for row in rows if row["role"] == "finding" or row["run"] == "random direction"]
    low = min(0.0, *(_number(row["lower"], row["estimate"]) for row in near))
    high = max(0.0, *(_number(row["upper"], row["estimate"]) for row in near))
    span = (high - low) or 1.0
    bottom, top = low - 0.08 * span, high + 0.08 * span
    for line in list(axes.lines):
        if line.get_marker() not in (marker for _, marker in CONTROLS.values()):
            continue
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            if not bottom <= y <= top:
                edge, sign = (bottom, "v") if y < bottom else (top, "^")
                axes.plot([x], [edge], sign, color=line.get_color(), markersize=5, clip_on=False)
    axes.set_ylim(bottom, top)


def _whiskers(axes: Axes, xs: Sequence[float], rows: Rows, color: str) -> None:
    for x, row in zip(xs, rows, strict=True):
        lower, upper = (_number(row[key], float("nan")) for key in ("lower", "upper"))
        if np.isfinite([lower, upper]).all():
            axes.plot([x, x], [lower, upper], color=color, linewidth=1.0)


def _draw_map(axes: Axes, rows: Rows, across: str, columns: Sequence[Any], limit: float) -> None:
    """Draw estimates as colours, blocks upwards; the same colours in every panel."""
    blocks = sorted({-1 if row["block"] is None else int(row["block"]) for row in rows})
    values = np.full((len(blocks), len(columns)), np.nan)
    for row in rows:
        block = -1 if row["block"] is None else int(row["block"])
        key = str(row[across]) if across == "position" else int(row[across])
        place = blocks.index(block), list(columns).index(key)
        values[place] = np.fmax(values[place], row["estimate"])  # heads at positions: the largest of a block's
    image = axes.imshow(values, cmap=MAP, vmin=-limit, vmax=limit, origin="lower", aspect="auto")
    axes.set_yticks(range(len(blocks)), ["emb." if block < 0 else str(block) for block in blocks])
    axes.set(xlabel=across, ylabel="block")
    if across == "head":
        axes.set_xticks(range(len(columns)), [str(column) for column in columns])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.figure.colorbar(image, ax=axes, label=_unit(rows), shrink=0.85)


def _unit(rows: Rows) -> str:
    units = {str(row["unit"]) for row in rows}
    if len(units) != 1:
        raise ValueError(f"{len(units)} units ({', '.join(sorted(units))}) in one panel; give each its own")
    return units.pop()


def _number(value: Any, otherwise: float) -> float:
    return otherwise if value in (None, "") or not np.isfinite(value) else float(value)
