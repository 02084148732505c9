"""Figures of attention: maps of one text, and statistics of heads by layer or by step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lm_trials.reporting import figure_style as style
from lm_trials.reporting.figure_style import COLORS, CONTROL_COLORS, Row, distinct, number, numbers

AHEAD = "#eeeeee"
"""Colour of masked tokens, those after the query."""
WEIGHT = "share of attention"
QUERY, KEY = "query token", "key token"
LABELLED = 40
"""Most tokens that are written beside a small map."""


def shown_token(token: str) -> str:
    """Return a token as a label: spaces and line ends visible, nothing that matplotlib would read as a formula.

    >>> shown_token(" day"), shown_token("\\n"), shown_token("$")
    ('·day', '⏎', '\\\\$')
    """
    text = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·").replace("$", r"\$")
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def maps_figure(maps_LHTT: np.ndarray, tokens: Sequence[str], title: str) -> Figure:
    """Draw the attention of every head on one text: a row for each layer, a column for each head.

    Args:
        maps_LHTT: weights by layer and head; rows are queries, columns keys.
        tokens: of the text, T.
        title: of the figure.

    >>> figure = maps_figure(np.eye(3)[None, None], ["a", "b", "c"], "a map")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['a', 'b', 'c']
    """
    layers, heads, length, _ = maps_LHTT.shape
    labelled = length <= LABELLED and heads <= 8
    # A label of 4.5 points needs a sixteenth of an inch; without labels a map can be smaller.
    side = max(1.7, length / 15) if labelled else 1.15
    # The last part is room for the colour bar: else it shrinks the maps, and gaps open between their rows.
    size = side + 0.2 + 1.3 / heads, side + 0.2
    figure, panels = style.new_figure(title, layers * heads, size, heads, least_width=4.0)
    for place, axes in enumerate(panels):
        layer, head = divmod(place, heads)
        image = _draw_map(axes, maps_LHTT[layer, head])
        axes.set_title(f"layer {layer}, head {head}" if labelled else f"{layer}.{head}", fontsize=7, pad=2)
        axes.set(xticks=[], yticks=[])
        if labelled:
            _label(axes, tokens, down=head == 0, across=layer == layers - 1, size=4.5)
    figure.supxlabel(KEY, fontsize=9)
    figure.supylabel(QUERY + ("" if labelled else " (above each map: layer.head)"), fontsize=9)
    style.color_bar(figure, image, panels, WEIGHT, shrink=min(1.0, 3.5 / (side * layers)))
    return figure


def head_figure(maps: Mapping[str, np.ndarray], tokens: Sequence[str], title: str) -> Figure:
    """Draw one head large, of each model a map.

    Args:
        maps: (T, T) weights by model.
        tokens: of the text, T.
        title: of the figure.
    """
    side = max(3.5, len(tokens) * 0.17)
    size = side + 1.2 + 1.5 / len(maps), side + 0.4
    figure, panels = style.new_figure(title, len(maps), size, least_width=4.0)
    for axes, (name, weights_TT) in zip(panels, maps.items(), strict=True):
        image = _draw_map(axes, weights_TT)
        axes.set(xlabel=KEY, ylabel=QUERY)
        if len(maps) > 1:
            axes.set_title(name, fontsize=10)
        _label(axes, tokens, down=True, across=True, size=8 if len(tokens) <= 64 else 5)
    style.color_bar(figure, image, panels, WEIGHT, shrink=0.7)
    return figure


def _draw_map(axes: Axes, weights_TT: np.ndarray) -> AxesImage:
    seen = np.ma.masked_array(weights_TT, mask=~np.tri(len(weights_TT), dtype=bool))
    axes.set_facecolor(AHEAD)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    # Square roots: on a linear scale, even attention to thirty tokens would be white.
    return axes.imshow(seen, cmap=style.SHARES, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")


def _label(axes: Axes, tokens: Sequence[str], down: bool, across: bool, size: float) -> None:
    labels = [shown_token(token) for token in tokens]
    if down:
        axes.set_yticks(range(len(labels)), labels, fontsize=size)
    if across:
        axes.set_xticks(range(len(labels)), labels, fontsize=size, rotation=90)
    axes.tick_params(length=1.5, width=0.4, pad=1)


def statistics_figure(rows: Iterable[Row], leaders: Iterable[Row], names: Mapping[str, str], title: str) -> Figure:
    """Draw the statistics of every head by layer, a panel for each, beside the untrained models and even attention.

    Args:
        rows: of `attention.csv`.
        leaders: of `attention-leaders.csv`; the selected heads are ringed.
        names: of the statistics, in the order of the panels.
        title: of the figure.
    """
    rows = list(rows)
    models = distinct((row for row in rows if row["role"] == "finding"), "model")
    # Scores on sequences that are not repeated ("untrained 1, not repeated") are in the table alone.
    untrained = [row for row in rows if re.fullmatch(r"untrained \d+", str(row["model"]))]
    ringed = {(str(r["model"]), r["statistic"], r["layer"], r["head"]) for r in leaders if r["role"] == "finding"}
    figure, panels = style.new_figure(title, len(names), (4.0, 2.9))
    for axes, (statistic, name) in zip(panels, names.items(), strict=True):
        inside = [row for row in rows if row["statistic"] == statistic]
        random = [row for row in untrained if row["statistic"] == statistic]
        left, label = [int(row["layer"]) - 0.42 for row in random], "heads of untrained models"
        axes.plot(left, numbers(random, "estimate"), "_", color=CONTROL_COLORS[0], markersize=5, label=label)
        for place, model in enumerate(models):
            mine = [row for row in inside if row["model"] == model and row["role"] == "finding"]
            shift = 0.7 * (place + 0.5) / len(models) - 0.3
            width = 0.5 / len(models)
            heads = 1 + max(int(row["head"]) for row in mine)
            xs = [int(row["layer"]) + shift + width * ((int(row["head"]) + 0.5) / heads - 0.5) for row in mine]
            ys, lower, upper = (np.array(numbers(mine, key)) for key in ("estimate", "lower", "upper"))
            color = COLORS[place % len(COLORS)]
            reach = np.nan_to_num(np.maximum([ys - lower, upper - ys], 0))
            axes.errorbar(xs, ys, reach, fmt="o", color=color, markersize=3.2, elinewidth=0.8, label=model)
            for x, y, above, row in zip(xs, ys, ys + reach[1], mine, strict=True):
                if (model, statistic, row["layer"], row["head"]) in ringed:
                    axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=color)
                    _name_head(axes, row, (x, above), (0, 6), color, "center")
        _draw_even(axes, inside)
        style.dress(axes, name, "layer", style.one_unit(inside))
        axes.margins(y=0.15)
        axes.set_xticks(range(1 + max(int(row["layer"]) for row in inside if row["role"] == "finding")))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    ring = Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black",
                  label="selected head, named layer.head")  # fmt: skip
    style.legend(figure, ring)
    return figure


def steps_figure(rows: Iterable[Row], steps: Iterable[Row], names: Mapping[str, str], title: str) -> Figure:
    """Draw the statistics of heads over training: all heads thin, and with its interval the head selected at the end.

    Args:
        rows: of `attention.csv`.
        steps: of `attention-steps.csv`.
        names: of the statistics, in the order of the panels.
        title: of the figure.
    """
    steps = list(steps)
    rows = [row for row in rows if row["role"] == "control" or row["step"] is not None]
    runs = distinct(steps, "run")
    figure, panels = style.new_figure(title, len(names), (4.0, 2.9))
    for axes, (statistic, name) in zip(panels, names.items(), strict=True):
        inside = [row for row in rows if row["statistic"] == statistic]
        for place, run in enumerate(runs):
            color, of_run = COLORS[place % len(COLORS)], f", {run}" if len(runs) > 1 else ""
            mine = [row for row in inside if row["role"] == "finding" and row["run"] == run]
            for head in dict.fromkeys((row["layer"], row["head"]) for row in mine):
                line = {row["step"]: row["estimate"] for row in mine if (row["layer"], row["head"]) == head}
                axes.plot(sorted(line), [line[step] for step in sorted(line)], color=color, linewidth=0.6, alpha=0.35,
                          label=f"each head{of_run}")  # fmt: skip
            lead = [row for row in steps if (row["run"], row["statistic"], row["role"]) == (run, statistic, "finding")]
            xs = numbers(lead, "step")
            style.draw_curve(axes, xs, lead, color, f"head selected at the end, named layer.head{of_run}")
            if lead:
                _name_head(axes, lead[-1], (xs[-1], number(lead[-1]["estimate"])), (4, 3), color, "left")
        random = next((r for r in steps if (r.get("control"), r["statistic"]) == ("untrained", statistic)), None)
        if random is not None:
            level = number(random["estimate"])
            axes.axhline(level, color=CONTROL_COLORS[0], linewidth=1, label="selected head of untrained models")
        _draw_even(axes, inside)
        style.dress(axes, name, "training step", style.one_unit(inside))
        axes.margins(y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    style.legend(figure)
    return figure


def _name_head(
    axes: Axes, row: Row, at: tuple[float, float], offset: tuple[int, int], color: str, ha: Literal["left", "center"]
) -> None:
    name = f"{row['layer']}.{row['head']}"
    axes.annotate(name, at, offset, textcoords="offset points", fontsize=7, color=color, ha=ha)


def _draw_even(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        if row["model"] == "even attention":
            axes.axhline(number(row["estimate"]), color="black", linewidth=0.9, linestyle=":", label="even attention")
