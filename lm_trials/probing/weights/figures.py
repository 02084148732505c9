"""Figures of the weights probe: the change of each matrix, and what undoing it restores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import (
    COLORS,
    DIVERGING,
    SEQUENTIAL,
    Row,
    color_bar,
    distinct,
    draw_curve,
    dress,
    heat_map,
    legend,
    lowest,
    new_figure,
)

COSINE = "cosine_with_the_change_before"


def matrices_figure(rows: Iterable[Row], top: int) -> Figure:
    """Draw, for each step, a map of blocks by matrices: relative change, effective rank over random, cosine.

    Args:
        rows: of `matrices.csv`.
        top: n of the column `top_<n>_share`.
    """
    rows = list(rows)
    steps = distinct(rows, "origin", "model")
    columns = [
        ("relative_change", "relative change", SEQUENTIAL, None),
        ("effective_rank", "effective rank over a random matrix's", SEQUENTIAL, (0, 1)),
        (f"top_{top}_share", f"share of the top {top} directions", SEQUENTIAL, (0, 1)),
    ]
    if any(row["metric"] == COSINE for row in rows):
        columns.append((COSINE, "cosine with the previous change", DIVERGING, (-1, 1)))
    kinds = distinct((row for row in rows if row["kind"] != "all"), "kind")
    blocks = distinct((row for row in rows if row["kind"] != "all"), "block")
    blocks = sorted(block for block in blocks if block is not None) + ([None] if None in blocks else [])
    size = max(3.6, 1.9 + 0.42 * len(blocks)), max(2.2, 0.9 + 0.3 * len(kinds))
    title = "How much each step changed each matrix, and in how many directions (white: no change, or no matrix)"
    figure, panels = new_figure(title, len(steps) * len(columns), size, len(columns))
    pairs = itertools.product(steps, columns)
    for axes, ((origin, model), (metric, name, colors, limits)) in zip(panels, pairs, strict=True):
        values = _map([row for row in rows if (row["origin"], row["model"]) == (origin, model)], metric, kinds, blocks)
        if not np.isfinite(values).any():
            axes.remove()
            continue
        # One scale for all steps, so that colours can be compared.
        limits = limits or (0, max(row["estimate"] for row in rows if row["metric"] == metric))
        names = ["no\nblock" if block is None else str(block) for block in blocks]
        image = heat_map(axes, values, names, kinds, colors, limits, most_ticks=max(12, len(kinds)))
        dress(axes, f"{origin} to {model}", "block", grid=None)
        color_bar(figure, image, [axes], name)
    return figure


def _map(rows: Sequence[Row], metric: str, kinds: Sequence[str], blocks: Sequence[int | None]) -> np.ndarray:
    values = np.full((len(kinds), len(blocks)), np.nan)
    for row in rows:
        if row["metric"] == metric and row["role"] == "finding" and row["kind"] in kinds:
            value = row.get("against_random") if metric == "effective_rank" else row["estimate"]
            values[kinds.index(row["kind"]), blocks.index(row["block"])] = np.nan if value is None else value
    return values


def trials_figure(rows: Iterable[Row], ways: Mapping[str, Sequence[str]]) -> Figure:
    """Draw how much of the deletion each method undoes, by the number of removed units, and below its cost.

    Args:
        rows: of `weights.csv`; where the loss does not rise significantly, the loss is drawn instead.
        ways: by unit the methods; the first of each is the finding, the others its controls.
    """
    rows = list(rows)
    metrics = distinct(rows, "metric")
    first = "share_undone" if "share_undone" in metrics else next(m for m in metrics if m.startswith("loss"))
    shown = [first, *[metric for metric in metrics if metric.startswith(("cost", "stories"))]]
    ways = {unit: methods for unit, methods in ways.items() if any(row["method"] == methods[0] for row in rows)}
    lines = [method for methods in ways.values() for method in methods]
    controls = [method for methods in ways.values() for method in methods[1:]]
    what = "How much of the deletion is undone by" if first == "share_undone" else "The loss after"
    title = f"{what} removing a part of the change"
    title += ", and what that costs" * (len(shown) > 1)
    figure, panels = new_figure(title, len(shown) * len(ways), (5.4, 3.1), len(ways))
    for axes, (metric, (unit, methods)) in zip(panels, itertools.product(shown, ways.items()), strict=True):
        mine = [row for row in rows if row["metric"] == metric]
        levels = sorted({row["level"] for row in mine if row["method"] in methods})
        for method in methods:
            if line := sorted((row for row in mine if row["method"] == method), key=lambda row: row["level"]):
                color = COLORS[lines.index(method) % len(COLORS)]
                places = [levels.index(row["level"]) for row in line]
                draw_curve(axes, places, line, color, method, control=method in controls)
        whole = [row for row in mine if row["level"] == 0]
        for row, style in zip(whole, itertools.cycle((":", (0, (1, 4)), "-.", (0, (5, 5)))), strict=False):
            axes.axhline(row["estimate"], color="black", linewidth=0.9, linestyle=style, label=_model(row))
        dress(axes, "", _xlabel(unit) if axes in lowest(panels) else "", _ylabel(metric, mine[0]["unit"]))
        axes.set_xticks(range(len(levels)), [f"{level:,}" for level in levels])
    legend(figure)
    return figure


def _xlabel(unit: str) -> str:
    return "directions removed from each matrix's change" if unit == "directions" else f"{unit} pruned"


def _ylabel(metric: str, unit: str) -> str:
    """Return the label of a metric; a data set's folder is left out.

    >>> _ylabel("cost on data/control.jsonl", "nats per token"), _ylabel("share_undone", "share of the deletion undone")
    ('cost on control.jsonl, nats per token', 'share of the deletion undone')
    """
    if not metric.startswith(("cost", "stories", "loss")):
        return unit
    words, _, name = metric.rpartition(" ")
    return f"{words} {name.rstrip('/').rpartition('/')[2]}, {unit}"


def _model(row: Row) -> str:
    names = {"first model": row["origin"], "second model": row["model"]}
    return f"{names.get(row['method'], row['method'])}, unedited"
