"""Figures of the feature probes: curves over layers, curves and heat maps over training; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lm_trials.reporting.layer_figures import curves_figure

Row = Mapping[str, Any]
CHANCE = 0.5
BALANCED = "balanced accuracy"
SHUFFLED = "shuffled labels"
FLAT = ("text statistics", "bag of words")
COLUMNS = 3


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
    features = list(dict.fromkeys(row["feature"] for row in own))
    steps = sorted({row["step"] for row in own})
    places = sorted({_place(row) for row in own})
    values = {(row["feature"], _place(row), row["step"]): row["estimate"] for row in own}
    columns = min(COLUMNS, len(features))
    lines = -(-len(features) // columns)
    figure = Figure(figsize=(max(6, 3.6 * columns), 1.0 + 2.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for place, axes in enumerate(grid.flat):
        if place >= len(features):
            axes.set_visible(False)
            continue
        cells = [[values[features[place], at, step] for step in steps] for at in places]
        image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis", vmin=CHANCE, vmax=1)
        every = 1 + (len(steps) - 1) // 6
        axes.set_xticks(range(0, len(steps), every), [f"{step:,}" for step in steps[::every]], fontsize=8)
        axes.set_yticks(range(len(places)), ["n" if late else str(layer) for late, layer in places], fontsize=8)
        axes.set(xlabel="update of training", ylabel="layer")
        axes.set_title(features[place], fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.colorbar(image, ax=list(grid.flat), label=BALANCED)
    return figure


def _place(row: Row) -> tuple[bool, int]:
    """Return a row's layer, after the final norm last."""
    return row["site"] == "normed", row["layer"]
