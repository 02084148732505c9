"""Figures of the weights probe: what changed by matrix, and what taking it back undoes; nothing is computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm_trials.reporting.layer_figures import COLORS, CONTROL_COLORS


def matrices_figure(rows: Iterable[Mapping[str, Any]], top: int) -> Figure:
    """Draw, for each step, a map of blocks by matrices: relative change, effective rank against random, cosine.

    Args:
        rows: of `matrices.csv`.
        top: which `top_<n>_share` there is.
    """
    rows = list(rows)
    steps = list(dict.fromkeys((row["origin"], row["model"]) for row in rows))
    panels = [
        ("relative_change", "relative change", "viridis", None),
        ("effective_rank", "effective rank over random", "viridis", (0, 1)),
        (f"top_{top}_share", f"share in the top {top} directions", "viridis", (0, 1)),
    ]
    if any(row["metric"] == "cosine_with_the_change_before" for row in rows):
        panels.append(("cosine_with_the_change_before", "cosine with the change before", "RdBu", (-1, 1)))
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != "all"))
    blocks = list(dict.fromkeys(row["block"] for row in rows if row["kind"] != "all"))
    blocks = sorted(block for block in blocks if block is not None) + ([None] if None in blocks else [])
    height = max(2.2, 0.9 + 0.3 * len(kinds))
    width = max(3.6, 1.9 + 0.42 * len(blocks))
    figure = Figure(figsize=(width * len(panels), 0.5 + height * len(steps)), layout="constrained")
    grid = figure.subplots(len(steps), len(panels), squeeze=False)
    for line, (origin, model) in zip(grid, steps, strict=True):
        mine = [row for row in rows if (row["origin"], row["model"]) == (origin, model)]
        for axes, (metric, title, colors, limits) in zip(line, panels, strict=True):
            values = _map(mine, metric, kinds, blocks)
            if not np.isfinite(values).any():
                axes.set_visible(False)
                continue
            # One scale for all steps, so that equal colours are equal numbers.
            low, high = limits or (0, max(row["estimate"] for row in rows if row["metric"] == metric))
            image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
            axes.set_xticks(range(len(blocks)), ["none" if block is None else str(block) for block in blocks])
            axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
            axes.set(title=f"{origin} to {model}\n{title}", xlabel="block")
            axes.title.set_fontsize(9)
            figure.colorbar(image, ax=axes)
    return figure


def _map(
    rows: Sequence[Mapping[str, Any]], metric: str, kinds: Sequence[str], blocks: Sequence[int | None]
) -> np.ndarray:
    values = np.full((len(kinds), len(blocks)), np.nan)
    for row in rows:
        if row["metric"] == metric and row["role"] == "finding" and row["kind"] in kinds:
            value = row.get("against_random") if metric == "effective_rank" else row["estimate"]
            values[kinds.index(row["kind"]), blocks.index(row["block"])] = np.nan if value is None else value
    return values


def trials_figure(rows: Iterable[Mapping[str, Any]], ways: Mapping[str, Sequence[str]]) -> Figure:
    """Draw how much of the deletion each way undoes, by how much is taken back or pruned; below, what it costs.

    Args:
        rows: of `weights.csv`; where no deletion is shown, the loss instead.
        ways: what the levels count, and the methods; the first of each is the finding, the others its controls.
    """
    rows = list(rows)
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first = "share_undone" if "share_undone" in metrics else next(m for m in metrics if m.startswith("loss"))
    shown = [first, *[metric for metric in metrics if metric.startswith(("cost", "stories"))]]
    ways = {unit: methods for unit, methods in ways.items() if any(row["method"] == methods[0] for row in rows)}
    figure = Figure(figsize=(5.4 * len(ways), 0.4 + 3.3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(ways), squeeze=False)
    for line, metric in zip(grid, shown, strict=True):
        for axes, (unit, methods) in zip(line, ways.items(), strict=True):
            mine = [row for row in rows if row["metric"] == metric]
            levels = sorted({row["level"] for row in mine if row["method"] in methods})
            for place, method in enumerate(methods):
                _curve(axes, [row for row in mine if row["method"] == method], levels, place)
            whole = [row for row in mine if row["level"] == 0]
            for row, style in zip(whole, itertools.cycle((":", (0, (1, 4)), "-.", (0, (5, 5)))), strict=False):
                axes.axhline(row["estimate"], color="black", linewidth=0.9, linestyle=style, label=_model(row))
            unit_of = next(row["unit"] for row in mine)
            label = f"{metric},\n{unit_of}" if metric.startswith(("cost", "stories", "loss")) else unit_of
            axes.set(xlabel=f"{unit} taken back" if unit == "directions" else f"{unit} pruned", ylabel=label)
            axes.set_xticks(range(len(levels)), [f"{level:,}" for level in levels])
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for place, axes in enumerate(grid[-1]):
        handles, labels = grid[0, place].get_legend_handles_labels()
        axes.legend(handles, labels, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], levels: Sequence[int], place: int) -> None:
    line = sorted(rows, key=lambda row: row["level"])
    if not line:
        return
    xs = [levels.index(row["level"]) for row in line]
    color = COLORS[0] if place == 0 else ("#e45756", *CONTROL_COLORS)[place - 1]
    axes.plot(
        xs, [row["estimate"] for row in line], marker="o", markersize=3.5, color=color, label=line[0]["method"],
        linestyle="-" if place == 0 else "--", linewidth=1.6 if place == 0 else 1.1,
    )  # fmt: skip
    bounds = [[np.nan if row[key] is None else row[key] for row in line] for key in ("lower", "upper")]
    if len(line) == 1:  # a band of one place cannot be seen
        axes.vlines(xs, *bounds, color=color, linewidth=1.2)
    axes.fill_between(xs, *bounds, color=color, alpha=0.18, linewidth=0)


def _model(row: Mapping[str, Any]) -> str:
    return {"first model": row["origin"], "second model": row["model"]}.get(row["method"], row["method"])
