"""Figures of the feature probes: curves over layers, curves and heat maps over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import Row, color_bar, distinct, dress, heat_map, new_figure
from lm_trials.reporting.layer_figures import curves_figure

CHANCE = 0.5
BALANCED = "balanced accuracy"
SHUFFLED = "shuffled labels"
FLAT = ("text statistics", "bag of words", "length", "last sentence")


def layers_figure(rows: Sequence[Row], pooling: str, models: Sequence[str], title: str) -> Figure:
    """Draw balanced accuracy over layers: a panel for each feature, a line for each model, controls dashed.

    Controls on the text alone are levels, with their intervals at the right edge.  Shuffled labels are drawn for the
    first model only; the table has all.
    """
    balanced = [row for row in rows if row["metric"] == BALANCED]
    after = 1 + max(row["layer"] for row in balanced if row.get("layer") is not None)
    series = {*models, *(row["series"] for row in balanced if row["role"] == "control" and row["series"] != SHUFFLED)}
    drawn = [
        {**row, "at": after if row["site"] == "normed" else row["layer"]}
        for row in balanced
        if row.get("pooling") == pooling
        and (row["series"] in series or (row["series"] == SHUFFLED and row["model"] == models[0]))
    ]
    places = sorted({row["at"] for row in drawn})
    levels = [row for row in balanced if row["series"] in FLAT]
    drawn.sort(key=lambda row: row["role"] == "control")
    shown = [place for place in places if place != after]
    shown = shown[:: 1 + max(len(shown) - 1, 0) // 8]  # of `--layers normed` alone none
    ticks = {place: str(place) for place in shown} | ({after: "n"} if after in places else {})
    label = "layer (0: embeddings; n: after the final norm)" if after in places else "layer (0: embeddings)"
    figure = _curves(drawn, levels, "at", (places[0], places[-1]), title, label)
    for axes in figure.axes:
        axes.set_xticks(list(ticks), list(ticks.values()))
    return figure


def steps_figure(rows: Sequence[Row], title: str) -> Figure:
    """Draw balanced accuracy over training, each checkpoint at its selected place; other controls as levels."""
    best = [row for row in rows if row["metric"] == BALANCED and row.get("chosen") == "all"]
    drawn = [{**row, "series": row["run"]} for row in best if row["role"] == "finding"]
    several = len({row["run"] for row in drawn}) > 1
    ends = min(row["step"] for row in drawn), max(row["step"] for row in drawn)
    shuffled = [row for row in best if row["series"] == SHUFFLED]
    drawn += [{**row, "series": f"{SHUFFLED} ({row['run']})" if several else SHUFFLED} for row in shuffled]
    levels = [row for row in best if row["role"] == "control" and row["series"] != SHUFFLED]
    return _curves(drawn, levels, "step", ends, title, "training step")


def _curves(
    drawn: Sequence[Row], levels: Sequence[Row], x: str, ends: tuple[int, int], title: str, xlabel: str
) -> Figure:
    """Draw curves with bands, and levels from end to end with their intervals beside the right end.

    Bands of six series would cover one another, so levels have none.
    """
    flat = [{**row, x: end, "lower": None, "upper": None} for row in levels for end in dict.fromkeys(ends)]
    figure = curves_figure([*drawn, *flat], title, x=x, panel="feature", chance=CHANCE, xlabel=xlabel)
    names = distinct(levels, "series")
    for axes in figure.axes:
        for row in (row for row in levels if row["feature"] == axes.get_title()):
            away = 0.03 * (1 + names.index(row["series"])) * ((ends[1] - ends[0]) or 1)
            _draw_interval(axes, ends[1] + away, row)
        # One scale in all panels, so that features can be compared.
        axes.set_ylim(min(row["lower"] for row in [*drawn, *levels]) - 0.02, 1.02)
    return figure


def _draw_interval(axes: Axes, at: float, row: Row) -> None:
    color = next(line.get_color() for line in axes.lines if line.get_label() == row["series"])
    reach = [[row["estimate"] - row["lower"]], [row["upper"] - row["estimate"]]]
    axes.errorbar([at], [row["estimate"]], reach, color=color, linewidth=1.2, capsize=2)


def heat_figure(rows: Sequence[Row], run: str, pooling: str, title: str) -> Figure:
    """Draw balanced accuracy of one run as heat maps, layers by checkpoints, one for each feature."""
    wanted = {"metric": BALANCED, "role": "finding", "run": run, "pooling": pooling}
    own = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    features = distinct(own, "feature")
    steps = sorted(distinct(own, "step"))
    places = sorted({_place(row) for row in own})
    values = {(row["feature"], _place(row), row["step"]): row["estimate"] for row in own}
    figure, panels = new_figure(title, len(features), (3.6, 2.6))
    layers, labels = ["n" if late else str(layer) for late, layer in places], [f"{step:,}" for step in steps]
    for axes, feature in zip(panels, features, strict=True):
        cells = np.array([[values[feature, at, step] for step in steps] for at in places])
        image = heat_map(axes, cells, labels, layers, limits=(CHANCE, 1), upwards=True, most_ticks=7)
        dress(axes, feature, "training step", "layer (n: after the final norm)", grid=None)
    color_bar(figure, image, panels, BALANCED)
    return figure


def _place(row: Row) -> tuple[bool, int]:
    """Return a row's layer, after the final norm last."""
    return row["site"] == "normed", row["layer"]
