"""Figures of lenses: distance by layer, over training, and the tokens that each layer predicts for a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from lm_trials.reporting.figure_style import (
    SHARES,
    Row,
    color_bar,
    distinct,
    draw_curve,
    dress,
    heat_map,
    legend,
    new_figure,
)
from lm_trials.reporting.layer_figures import curves_figure

PANELS = {
    "kl": "KL(final || lens)",
    "loss": "cross-entropy of the true token",
    "agreement": "same top token as the final prediction",
}
LENS_NAMES = {"frequencies": "token frequencies", "untrained": "untrained, logit lens"}
DRAWN_TOKENS = 40
"""Only a text's last tokens are drawn, so that they can be read; the table has all."""


def lens_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw the measures of each lens by layer, controls dashed; a control without layers is a level line.

    >>> row = {"model": "m", "lens": "logit", "role": "finding", "metric": "kl", "unit": "nats", "layer": 0}
    >>> rows = [{**row, "layer": n, "estimate": 1 - n, "lower": 0, "upper": 1} for n in range(2)]
    >>> lens_figure(rows, "a title").axes[0].get_yscale()
    'symlog'
    """
    rows = [row for metric in PANELS for row in rows if row["metric"] == metric]
    layers = [row["layer"] for row in rows if row["layer"] is not None]
    several = len(distinct(rows, "model")) > 1
    drawn = []
    for row in rows:
        name = LENS_NAMES.get(row["lens"], f"{row['lens']} lens")
        series = f"{row['model']}, {name}" if several else name
        ends = (min(layers), max(layers)) if row["layer"] is None else (row["layer"],)
        drawn += [{**row, "series": series, "panel": PANELS[row["metric"]], "layer": layer} for layer in ends]
    figure = curves_figure(drawn, title, panel="panel", xlabel="layer (0: embeddings)")
    for axes in figure.axes:
        if axes.get_title() in (PANELS["kl"], PANELS["loss"]):
            _symlog(axes)
    return figure


def _symlog(axes: Axes) -> None:
    """Make an axis of nats logarithmic from 1 on: the first layers of a logit lens are some 20 nats away."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_ylabel(f"{axes.get_ylabel()} (symlog)")


def checkpoints_figure(rows: Iterable[Row], title: str) -> Figure:
    """Draw the distance of each layer from its model's final prediction over training: a line a layer, a panel a run.

    Args:
        rows: each with run, lens, step, layer, metric, estimate, lower, upper, unit.
    """
    rows = [row for row in rows if row["metric"] == "kl" and row["lens"] in ("logit", "tuned")]
    names, layers = distinct(rows, "run", "lens"), sorted(distinct(rows, "layer"))
    figure, panels = new_figure(title, len(names), (5, 3.2))
    for axes, (run, lens) in zip(panels, names, strict=True):
        for place, layer in enumerate(layers):
            line = [row for row in rows if (row["run"], row["lens"], row["layer"]) == (run, lens, layer)]
            line.sort(key=lambda row: row["step"])
            color = mpl.colormaps["viridis"](0.9 * place / max(len(layers) - 1, 1))
            draw_curve(axes, [row["step"] for row in line], line, color, f"layer {layer}")
        dress(axes, run, "training step", f"KL(final || {lens} lens), {rows[0]['unit']}")
        _symlog(axes)
    legend(figure)
    return figure


def text_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw the token that each layer predicts after each token of a text, coloured by its probability.

    Args:
        rows: each with lens (a panel each), layer, position, after, prediction, estimate (a probability).
    """
    lenses = distinct(rows, "lens")
    layers = sorted(distinct(rows, "layer"), reverse=True)
    places = sorted(distinct(rows, "position"))[-DRAWN_TOKENS:]
    cells = {(row["lens"], row["layer"], row["position"]): row for row in rows}
    font = set(get_font(findfont(FontProperties())).get_charmap())
    size = (1.6 + 0.78 * len(places), 1.0 + 0.34 * len(layers))
    figure, panels = new_figure(title, len(lenses), size, columns=1)
    for axes, lens in zip(panels, lenses, strict=True):
        grid = [[cells[lens, layer, place] for place in places] for layer in layers]
        texts = {
            (i, j): fitting(cell["prediction"], font) for i, line in enumerate(grid) for j, cell in enumerate(line)
        }
        shares = np.array([[cell["estimate"] for cell in line] for line in grid])
        after = [fitting(cell["after"], font) for cell in grid[0]]
        most = max(len(places), len(layers))
        image = heat_map(axes, shares, after, list(map(str, layers)), SHARES, (0, 1), texts=texts, most_ticks=most)
        dress(axes, f"{lens} lens", "" if axes is not panels[-1] else "after the token", "layer", grid=None)
    color_bar(figure, image, panels, "probability", shrink=0.8)
    return figure


def fitting(text: str, characters: set[int], longest: int = 9) -> str:
    """Return a text that fits a cell, with a box for each character that the font lacks.

    >>> fitting("a\u4f60b", {97, 98}), fitting("extraordinary", set(map(ord, "extraordinary…")))
    ('a□b', 'extraord…')
    """
    text = "".join(letter if ord(letter) in characters else "□" for letter in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
