"""Figures of the feature probes: curves over layers, curves and heat maps over training; nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import Row, color_bar, distinct, dress, heat_map, new_figure
from lm_trials.reporting.layer_figures import curves_figure

CHANCE = 0.5
BALANCED = "balanced accuracy"
SHUFFLED = "shuffled labels"
FLAT = ("text statistics", "bag of words")


def layers_figure(rows: Sequence[Row], pooling: str, models: Sequence[str], title: str) -> Figure:
    """Draw balanced accuracy over layers: a panel for each feature, a line for each model, controls dashed.

    What the text alone gives is a level through all layers.  Of shuffled labels only those of the first model are
    drawn; the table has all.
    """
    balanced = [row for row in rows if row["metric"] == BALANCED]
    after = 1 + max(row["layer"] for row in balanced if row.get("layer") is not None)
    drawn = [
        {**row, "at": after if row["site"] == "normed" else row["layer"]}
        for row in balanced
        if row.get("pooling") == pooling
        and (
            row["series"] in models
            or (row["series"] == SHUFFLED and row["model"] == models[0])
            or (row["role"] == "control" and row["series"] != SHUFFLED)
        )
    ]
    places = sorted({row["at"] for row in drawn})
    drawn += [{**row, "at": at} for row in balanced if row["series"] in FLAT for at in (places[0], places[-1])]
    drawn.sort(key=lambda row: row["role"] == "control")
    figure = curves_figure(drawn, title, x="at", panel="feature", chance=CHANCE, xlabel="layer (0: the embeddings)")
    _share_heights(figure, drawn)
    shown = [place for place in places if place != after]
    shown = shown[:: 1 + (len(shown) - 1) // 8]
    normed = [after] if after in places else []
    for axes in figure.axes:
        axes.set_xticks([*shown, *normed], [*map(str, shown), *(["n"] if normed else [])])
        if normed and axes.get_xlabel():
            axes.set_xlabel("layer (n: after the final norm)")
    return figure


def steps_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw balanced accuracy over training, each checkpoint where it does best on the stories that choose."""
    best = [row for row in rows if row["metric"] == BALANCED and row.get("chosen") == "all"]
    drawn = [{**row, "series": row["run"]} for row in best if row["role"] == "finding"]
    several = len({row["run"] for row in drawn}) > 1
    ends = sorted({row["step"] for row in drawn})
    for row in best:
        if row["series"] == SHUFFLED:
            drawn.append({**row, "series": f"{SHUFFLED} ({row['run']})" if several else SHUFFLED})
        elif row["role"] == "control":
            drawn += [{**row, "step": step} for step in (ends[0], ends[-1])]
    figure = curves_figure(drawn, title, x="step", panel="feature", chance=CHANCE, xlabel="update of training")
    _share_heights(figure, drawn)
    return figure


def _share_heights(figure: Figure, rows: Sequence[Row]) -> None:
    """Give all panels one scale, so that features can be compared."""
    for axes in figure.axes:
        axes.set_ylim(min(row["lower"] for row in rows) - 0.02, 1.02)


def heat_figure(rows: Sequence[Row], run: str, pooling: str, title: str) -> Figure:
    """Draw balanced accuracy of one run as heat maps, layers by checkpoints, one for each feature."""
    own = [
        row
        for row in rows
        if row["metric"] == BALANCED
        and row["role"] == "finding"
        and row.get("run") == run
        and row.get("pooling") == pooling
    ]
    features = distinct(own, "feature")
    steps = sorted(distinct(own, "step"))
    places = sorted({_place(row) for row in own})
    values = {(row["feature"], _place(row), row["step"]): row["estimate"] for row in own}
    figure, panels = new_figure(title, len(features), (3.6, 2.6))
    for axes, feature in zip(panels, features, strict=True):
        cells = np.array([[values[feature, at, step] for step in steps] for at in places])
        layers = ["n" if late else str(layer) for late, layer in places]
        image = heat_map(
            axes, cells, [f"{step:,}" for step in steps], layers, limits=(CHANCE, 1), upwards=True, most_ticks=7
        )
        dress(axes, feature, "update of training", "layer (n: after the final norm)", grid=None)
    color_bar(figure, image, panels, BALANCED)
    return figure


def _place(row: Row) -> tuple[bool, int]:
    """Return a row's layer, after the final norm last."""
    return row["site"] == "normed", row["layer"]
