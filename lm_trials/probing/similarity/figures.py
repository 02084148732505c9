"""Figures of similarity by layer, with the spread of the candidates as the control, and of CKA."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lm_trials.reporting.figure_style import (
    COLORS,
    TICK,
    Row,
    color_bar,
    distinct,
    draw_band,
    draw_curve,
    dress,
    heat_map,
    legend,
    new_figure,
    number,
    numbers,
    one_unit,
)

PANELS = {"hidden": "hidden states, before the final norm", "values": "values, all heads together"}
NORMED = "after the\nfinal norm"
MOST_TICKS = 8
WRITTEN = 9
"""With more layers the cells are too small for their numbers."""


def similarity_figure(rows: Iterable[Row], title: str) -> Figure:
    """Draw by layer how similar a term is to the true one, a colour for each model, and to the other candidates.

    Args:
        rows: with model, site, layer, role, estimate, lower, upper, unit.  Those of the candidates have `low` and
            `high`, between which 90 % of them lie: a band, with their mean dashed.

    >>> row = {"model": "a", "site": "hidden", "layer": 0, "estimate": 1, "lower": 1, "upper": 1, "unit": "u"}
    >>> figure = similarity_figure([row, {**row, "low": 0, "high": 1}], "a title")
    >>> figure.axes[0].get_title(), figure.axes[0].get_ylabel(), len(figure.axes[0].lines)
    ('hidden states, before the final norm', 'u', 2)
    """
    figure, handles = _by_layer(list(rows), title)
    mean = Line2D([], [], color="#555555", linestyle="--", linewidth=1, label="mean of the other candidates")
    legend(figure, *handles, mean, Patch(facecolor="#55555510", edgecolor="#55555580", label="90 % of the others"))
    return figure


def rank_figure(rows: Iterable[Row], title: str, chance: float) -> Figure:
    """Draw by layer the rank of the true term among the candidates, a colour for each model; 1 is at the top.

    Args:
        rows: with model, site, layer, estimate, lower, upper, unit.
        chance: the expected rank of a random candidate.
    """
    rows = list(rows)
    figure, handles = _by_layer(rows, title)
    lowest_rank = 1.05 * max(chance, *(float(row["estimate"]) for row in rows)) + 1
    for axes in figure.axes:
        axes.axhline(chance, color="black", linewidth=0.9, linestyle=":")
        axes.set_ylim(lowest_rank, 0)
        axes.set_yticks([1, *(tick for tick in axes.get_yticks() if 1 < tick < lowest_rank)])
    legend(figure, *handles, Line2D([], [], color="black", linestyle=":", linewidth=0.9, label=f"chance, {chance:g}"))
    return figure


def _by_layer(rows: Sequence[Row], title: str) -> tuple[Figure, list[Line2D]]:
    """Return a panel for each site with its curves, and the legend's handles of the models."""
    if not rows:
        raise ValueError("no rows, no curves; give at least one")
    colors = dict(zip(distinct(rows, "model"), itertools.cycle(COLORS), strict=False))
    sites = [site for site in PANELS if any(row["site"] == site for row in rows)]
    figure, panels = new_figure(title, len(sites), (4.8, 3.4))
    for axes, site in zip(panels, sites, strict=True):
        mine = [row for row in rows if row["site"] == site]
        _draw_site(axes, mine, colors)
        dress(axes, PANELS[site], "layer", one_unit(mine))
        if normed := [row for row in rows if row["site"] == "normed" and site == "hidden"]:
            _draw_normed(axes, normed, colors)
    return figure, [Line2D([], [], color=color, label=model) for model, color in colors.items()]


def _draw_site(axes: Axes, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    for model, color in colors.items():
        for others in (True, False):  # the finding above its control
            line = [row for row in rows if row["model"] == model and (row.get("low") is not None) == others]
            line.sort(key=lambda row: int(row["layer"]))
            layers = [int(row["layer"]) for row in line]
            if others and line:
                axes.plot(layers, numbers(line, "estimate"), color=color, linestyle="--", linewidth=1)
                # Filled bands of several models cover one another: only their edges are drawn.
                alpha = 0.06 if len(colors) == 1 else 0.0
                draw_band(axes, layers, numbers(line, "low"), numbers(line, "high"), color, alpha)
            elif line:
                draw_curve(axes, layers, line, color)
    last = max(int(row["layer"]) for row in rows)
    axes.set_xticks(range(0, last + 1, -(-(last + 1) // MOST_TICKS)))


def _draw_normed(axes: Axes, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    """Draw the last layer after the final norm apart: it has another scale, so no line leads to it."""
    ticks = [int(tick) for tick in axes.get_xticks()]
    place = max(int(row["layer"]) for row in rows) * 1.12 + 0.6
    step = max(0.06, 0.012 * place)
    for count, (model, color) in enumerate(colors.items()):
        x = place + step * count
        for row in (row for row in rows if row["model"] == model):
            if row.get("low") is not None:
                axes.vlines(x, float(row["low"]), float(row["high"]), color=color, alpha=0.25, linewidth=4)
            else:
                axes.plot(x, float(row["estimate"]), color=color, marker="s", markersize=4.5)
                axes.vlines(x, number(row["lower"]), number(row["upper"]), color=color, linewidth=1.2)
    # The last layer's label would overlap with this one.
    shown = [tick for tick in ticks if tick < place - 0.12 * place]
    axes.set_xticks([*shown, place], [*map(str, shown), NORMED])
    axes.get_xticklabels()[-1].set_fontsize(TICK)


def cka_figure(rows: Iterable[Row], title: str) -> Figure:
    """Draw CKA as heat maps, a panel for each model: its layers to the right, those of the other model upwards.

    Args:
        rows: with model, minus (the other model), layer, layer_of_other, estimate, unit.

    >>> row = {"model": "a", "minus": "b", "layer": 0, "layer_of_other": 0, "estimate": 0.5, "unit": "CKA"}
    >>> axes = cka_figure([row], "a title").axes[0]
    >>> axes.get_xlabel(), axes.get_ylabel(), axes.texts[0].get_text()
    ('layer of a', 'layer of b', '0.50')
    """
    rows = list(rows)
    if not rows:
        raise ValueError("no rows, no heat map; give at least one")
    models = distinct(rows, "model")
    figure, panels = new_figure(title, len(models), (3.8, 3.4))
    for axes, model in zip(panels, models, strict=True):
        inside = [row for row in rows if row["model"] == model]
        size = 1 + max(max(int(row["layer"]), int(row["layer_of_other"])) for row in inside)
        values = np.full((size, size), np.nan)
        for row in inside:
            values[int(row["layer_of_other"]), int(row["layer"])] = number(row["estimate"])
        written = {place: f"{value:.2f}" for place, value in np.ndenumerate(values) if np.isfinite(value)}
        layers = list(map(str, range(size)))
        texts = written if size <= WRITTEN else None
        image = heat_map(axes, values, layers, layers, limits=(0, 1), upwards=True, texts=texts)
        dress(axes, "", f"layer of {model}", f"layer of {inside[0]['minus']}", grid=None)
    color_bar(figure, image, panels, one_unit(rows))
    return figure
