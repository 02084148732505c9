"""Figures of similarity by layer, with the candidates' spread as the control, and of CKA; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lm_trials.reporting.layer_figures import COLORS

PANELS = {"hidden": "hidden states, before the final norm", "values": "values, all heads together"}
NORMED = "after the\nfinal norm"
MOST_TICKS = 8
WRITTEN = 9
"""Layers up to which a cell's number is written into it."""


def similarity_figure(rows: Iterable[Mapping[str, Any]], title: str) -> Figure:
    """Draw by layer how similar a term is to the true one, a colour for each model, and to the other candidates.

    Args:
        rows: with model, site, layer, role, estimate, lower, upper, unit. Those of the candidates have `low` and
            `high`, between which 90 % of them lie: a band, with their mean dashed.
        title: of the figure.

    >>> row = {"model": "a", "site": "hidden", "layer": 0, "estimate": 1, "lower": 1, "upper": 1, "unit": "u"}
    >>> figure = similarity_figure([row, {**row, "low": 0, "high": 1}], "a title")
    >>> figure.axes[0].get_title(), figure.axes[0].get_ylabel(), len(figure.axes[0].lines)
    ('hidden states, before the final norm', 'u', 2)
    """
    rows = list(rows)
    figure = _by_layer(rows, title)
    handles = [Line2D([], [], color=color, label=model) for model, color in _colors(rows).items()]
    handles += [
        Line2D([], [], color="#555555", linestyle="--", linewidth=1, label="the other candidates: mean"),
        Patch(color="#555555", alpha=0.15, label="and where 90 % of them lie"),
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def rank_figure(rows: Iterable[Mapping[str, Any]], title: str, chance: float) -> Figure:
    """Draw by layer which rank the true term has among the candidates, a colour for each model; 1 is at the top.

    Args:
        rows: with model, site, layer, estimate, lower, upper, unit.
        title: of the figure.
        chance: the rank that a candidate at random has.
    """
    rows = list(rows)
    figure = _by_layer(rows, title)
    for axes in figure.axes:
        axes.axhline(chance, color="black", linewidth=0.9, linestyle=":")
        worst = max(chance, *(float(row["estimate"]) for row in rows))
        axes.set_ylim(1.05 * worst + 1, 0)
        ticks = [tick for tick in axes.get_yticks() if 1 < tick < 1.05 * worst + 1]
        axes.set_yticks([1, *ticks])
    handles = [Line2D([], [], color=color, label=model) for model, color in _colors(rows).items()]
    handles.append(Line2D([], [], color="black", linestyle=":", linewidth=0.9, label=f"chance, {chance:g}"))
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _colors(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    models = dict.fromkeys(str(row["model"]) for row in rows)
    return {model: COLORS[place % len(COLORS)] for place, model in enumerate(models)}


def _by_layer(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    if not rows:
        raise ValueError("no rows, no curves; give at least one")
    sites = [site for site in PANELS if any(row["site"] == site for row in rows)]
    figure = Figure(figsize=(4.8 * len(sites), 4.4), layout="constrained")
    grid = figure.subplots(1, len(sites), squeeze=False)
    for axes, site in zip(grid.flat, sites, strict=True):
        _draw_site(axes, [row for row in rows if row["site"] == site], _colors(rows))
        axes.set_title(PANELS[site], fontsize=10)
        if site == "hidden":
            _draw_normed(axes, [row for row in rows if row["site"] == "normed"], _colors(rows))
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_site(axes: Axes, rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    (unit,) = {str(row["unit"]) for row in rows}
    for model, color in colors.items():
        for others in (True, False):  # the finding above its control
            line = [row for row in rows if row["model"] == model and (row.get("low") is not None) == others]
            if not line:
                continue
            line.sort(key=lambda row: int(row["layer"]))
            layers = [int(row["layer"]) for row in line]
            estimates = [float(row["estimate"]) for row in line]
            if others:
                axes.plot(layers, estimates, color=color, linestyle="--", linewidth=1)
                low, high = ([float(row[key]) for row in line] for key in ("low", "high"))
                axes.fill_between(layers, low, high, color=color, alpha=0.13, linewidth=0)
            else:
                axes.plot(layers, estimates, color=color, marker="o" if len(line) < 30 else "", markersize=3.5)
                axes.fill_between(layers, *_bounds(line), color=color, alpha=0.25, linewidth=0)
    last = max(int(row["layer"]) for row in rows)
    axes.set_xticks(range(0, last + 1, -(-(last + 1) // MOST_TICKS)))
    axes.set(xlabel="layer", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_normed(axes: Axes, rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    """Draw the last layer after the final norm apart: it is on another scale, so no line leads to it."""
    if not rows:
        return
    ticks = [int(tick) for tick in axes.get_xticks()]
    place = max(int(row["layer"]) for row in rows) * 1.12 + 0.6
    step = max(0.06, 0.012 * place)
    for number, (model, color) in enumerate(colors.items()):
        x = place + step * number
        for row in (row for row in rows if row["model"] == model):
            if row.get("low") is not None:
                axes.vlines(x, float(row["low"]), float(row["high"]), color=color, alpha=0.25, linewidth=4)
            else:
                (lower,), (upper,) = _bounds([row])
                axes.plot(x, float(row["estimate"]), color=color, marker="s", markersize=4.5)
                axes.vlines(x, lower, upper, color=color, linewidth=1.2)
    # The last layer's own number would stand under this one's.
    shown = [tick for tick in ticks if tick < place - 0.12 * place]
    axes.set_xticks([*shown, place], [*map(str, shown), NORMED])
    axes.get_xticklabels()[-1].set_fontsize(8)


def _bounds(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    missing = (None, "")
    return [[float("nan") if row[key] in missing else float(row[key]) for row in rows] for key in ("lower", "upper")]


def cka_figure(rows: Iterable[Mapping[str, Any]], title: str) -> Figure:
    """Draw CKA as heat maps, a panel for each model: its layers to the right, those of the other model upwards.

    Args:
        rows: with model, minus (the other model), layer, layer_of_other, estimate, unit.
        title: of the figure.

    >>> row = {"model": "a", "minus": "b", "layer": 0, "layer_of_other": 0, "estimate": 0.5, "unit": "CKA"}
    >>> axes = cka_figure([row], "a title").axes[0]
    >>> axes.get_xlabel(), axes.get_ylabel(), axes.texts[0].get_text()
    ('layer of a', 'layer of b', '0.50')
    """
    rows = list(rows)
    if not rows:
        raise ValueError("no rows, no heat map; give at least one")
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    figure = Figure(figsize=(1.4 + 3.8 * len(models), 4.3), layout="constrained")
    grid = figure.subplots(1, len(models), squeeze=False)
    for axes, model in zip(grid.flat, models, strict=True):
        inside = [row for row in rows if row["model"] == model]
        size = 1 + max(max(int(row["layer"]), int(row["layer_of_other"])) for row in inside)
        values = np.full((size, size), np.nan)
        for row in inside:
            if row["estimate"] is not None:
                values[int(row["layer_of_other"]), int(row["layer"])] = float(row["estimate"])
        picture = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", origin="lower", vmin=0, vmax=1)
        ticks = range(0, size, -(-size // MOST_TICKS))
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.set(xlabel=f"layer of {model}", ylabel=f"layer of {inside[0]['minus']}")
        for (i, j), value in np.ndenumerate(values):
            if size <= WRITTEN and np.isfinite(value):
                color = "black" if value > 0.45 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(picture, ax=grid.ravel().tolist(), label=str(rows[0]["unit"]), shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return figure
