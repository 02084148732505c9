"""Figures of lenses: distance by layer, over training, and what each layer says of a text; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from lm_trials.reporting.layer_figures import curves_figure

PANELS = {
    "kl": "KL(final || lens)",
    "loss": "cross-entropy of the true token",
    "agreement": "top-1 as the final prediction",
}
DRAWN_TOKENS = 40
"""A text's last tokens that are drawn; the table has all."""


def lens_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw the measures of each lens by layer, controls dashed; what has no layer is a level line.

    >>> row = {"model": "m", "lens": "logit", "role": "finding", "metric": "kl", "unit": "nats", "layer": 0}
    >>> rows = [{**row, "layer": n, "estimate": 1 - n, "lower": 0, "upper": 1} for n in range(2)]
    >>> lens_figure(rows, "a title").axes[0].get_yscale()
    'symlog'
    """
    rows = [row for metric in PANELS for row in rows if row["metric"] == metric]
    ends = [f([row["layer"] for row in rows if row["layer"] is not None]) for f in (min, max)]
    several = len({row["model"] for row in rows}) > 1
    drawn = []
    for row in rows:
        name = {"frequencies": "token frequencies", "untrained": "untrained, logit lens"}.get(
            row["lens"], f"{row['lens']} lens"
        )
        shared = {
            **row,
            "series": f"{row['model']}, {name}" if several else name,
            "panel": PANELS[row["metric"]],
        }
        drawn += [{**shared, "layer": end} for end in ends] if row["layer"] is None else [shared]
    figure = curves_figure(drawn, title, panel="panel", xlabel="layer (0: embeddings)")
    for axes in figure.axes:  # early layers of a logit lens are tens of nats away
        if axes.get_title() in (PANELS["kl"], PANELS["loss"]):
            axes.set_yscale("symlog", linthresh=1)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    return figure


def checkpoints_figure(rows: Iterable[Mapping[str, Any]], title: str) -> Figure:
    """Draw the distance of each layer from its model's final prediction over training: a line a layer, a panel a run.

    Args:
        rows: each with run, lens, step, layer, metric, estimate, lower, upper, unit.
    """
    rows = [row for row in rows if row["metric"] == "kl" and row["lens"] in ("logit", "tuned")]
    panels = list(dict.fromkeys((row["run"], row["lens"]) for row in rows))
    layers = sorted({row["layer"] for row in rows})
    colors = mpl.colormaps["viridis"]
    figure = Figure(figsize=(1.5 + 5 * len(panels), 4), layout="constrained")
    for axes, (run, lens) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, layer in enumerate(layers):
            here = [row for row in rows if (row["run"], row["lens"], row["layer"]) == (run, lens, layer)]
            line = sorted(here, key=lambda row: row["step"])
            steps, middle, *bounds = ([row[key] for row in line] for key in ("step", "estimate", "lower", "upper"))
            color = colors(0.9 * place / max(len(layers) - 1, 1))
            axes.plot(steps, middle, marker="o", markersize=3.5, color=color, label=f"layer {layer}")
            axes.fill_between(steps, *bounds, color=color, alpha=0.18, linewidth=0)
        axes.set(xlabel="update", ylabel=f"KL(final || {lens} lens), {rows[0]['unit']}", title=run)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def text_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw what each layer would say after each token of a text, coloured by its probability; a panel for each lens.

    Args:
        rows: each with lens, layer, position, after, prediction, estimate (a probability).
    """
    lenses = list(dict.fromkeys(row["lens"] for row in rows))
    layers = sorted({row["layer"] for row in rows}, reverse=True)
    places = sorted({row["position"] for row in rows})[-DRAWN_TOKENS:]
    cells = {(row["lens"], row["layer"], row["position"]): row for row in rows}
    font = drawable()
    size = (1.6 + 0.78 * len(places), 0.7 + len(lenses) * (1.0 + 0.34 * len(layers)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(lenses), 1, squeeze=False)[:, 0]
    for axes, lens in zip(grid, lenses, strict=True):
        shares = [[cells[lens, layer, place]["estimate"] for place in places] for layer in layers]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for line, layer in enumerate(layers):
            for column, place in enumerate(places):
                text = fitting(cells[lens, layer, place]["prediction"], font)
                color = "white" if shares[line][column] > 0.6 else "black"
                axes.text(column, line, text, ha="center", va="center", fontsize=7, color=color, parse_math=False)
        labels = [fitting(cells[lens, layers[0], place]["after"], font) for place in places]
        axes.set_xticks(range(len(places)), labels, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(layers)), map(str, layers))
        axes.set(ylabel="layer", title=f"{lens} lens")
    grid[-1].set_xlabel("after the token")
    figure.colorbar(image, ax=list(grid), label="probability", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return figure


def drawable() -> set[int]:
    """Return the characters that the figures' font has."""
    return set(get_font(findfont(FontProperties())).get_charmap())


def fitting(text: str, characters: set[int], longest: int = 9) -> str:
    """Return a text that can be drawn in a cell: short, and with a box for what the font lacks.

    >>> fitting("a\u4f60b", {97, 98}), fitting("extraordinary", set(map(ord, "extraordinary…")))
    ('a□b', 'extraord…')
    """
    text = "".join(letter if ord(letter) in characters else "□" for letter in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
