"""Figures of training, evaluation matrices and distances between batches, drawn from tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lm_trials.reporting.figure_style import (
    COLORS,
    SEQUENTIAL,
    TICK,
    Row,
    color_bar,
    distinct,
    draw_curve,
    dress,
    heat_map,
    legend,
    new_figure,
    number,
    one_unit,
    wrapped,
)

OUTLINE: dict[str, Any] = {"fill": False, "edgecolor": COLORS[1], "linewidth": 3}
NAMED_LOSS = re.compile(r"eval_(.+)_loss")


def loss_figure(log_history: Iterable[Row], title: str) -> Figure:
    """Draw training loss, validation loss and the loss on named sets over steps, evaluations with their intervals.

    Args:
        log_history: the rows of `trainer_state.json`.
        title: the run's name.

    >>> evaluation = {"step": 2, "eval_loss": 2.5, "eval_loss_lower": 2.4, "eval_loss_upper": 2.6}
    >>> figure = loss_figure([{"step": 1, "loss": 3.0}, evaluation], "a run")
    >>> figure.get_suptitle(), [line.get_label() for line in figure.axes[0].lines]
    ('Training and validation loss of a run', ['training', 'validation, 95 % interval over stories'])
    """
    rows = list(log_history)
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    kinds = ["training"] * bool(train) + ["validation"] * any("eval_loss" in row for row in rows)
    figure, (axes,) = new_figure(f"{' and '.join(kinds).capitalize()} loss of {title}".strip())
    if train:
        axes.plot(*zip(*train, strict=True), color=COLORS[0], linewidth=1.2, label="training")
    named = dict.fromkeys(match[1] for row in rows for key in row if (match := NAMED_LOSS.fullmatch(key)))
    labels = {"eval_loss": "validation, 95 % interval over stories"}
    # "train" is the loss drawn above, and "test" is evaluated only after training.
    labels |= {f"eval_{name}_loss": name for name in named if name not in ("train", "test")}
    for color, (key, label) in enumerate(labels.items(), start=1):
        if own := [row for row in rows if key in row]:
            estimates = [
                {"estimate": row[key], "lower": row[f"{key}_lower"], "upper": row[f"{key}_upper"]} for row in own
            ]
            draw_curve(axes, [row["step"] for row in own], estimates, COLORS[color % len(COLORS)], label)
    dress(axes, xlabel="training step", ylabel="loss (nats per token)")
    legend(figure)
    return figure


def matrix_figure(rows: Iterable[Row], title: str) -> Figure:
    """Draw a heat map of one metric, models by data sets, with values and intervals; in-domain cells are outlined.

    Args:
        rows: of `matrix.csv`, of one metric: model, dataset, in_domain, estimate, lower, upper, n, unit.
        title: of the figure.

    Raises:
        ValueError: for no rows, or rows of several units.

    >>> numbers = {"estimate": 1.0, "lower": 0.9, "upper": 1.1, "n": 30, "unit": "nats per token"}
    >>> figure = matrix_figure([{"model": "a", "dataset": "d", "in_domain": "yes", **numbers}], "a matrix")
    >>> print(figure.axes[0].texts[0].get_text())
    1.000
    [0.900, 1.100]
    """
    cells = {(str(row["model"]), str(row["dataset"])): row for row in rows}
    unit = one_unit(cells.values())
    models, datasets = distinct(cells.values(), "model"), distinct(cells.values(), "dataset")
    places = {(models.index(model), datasets.index(dataset)): row for (model, dataset), row in cells.items()}
    values = np.full((len(models), len(datasets)), np.nan)
    for place, row in places.items():
        values[place] = number(row["estimate"])
    size = (3.5 + 1.3 * len(datasets), 1.6 + 0.7 * len(models))
    figure, (axes,) = new_figure(title, size=size, least_width=6.0)
    stories = [{int(row["n"]) for row in cells.values() if row["dataset"] == dataset} for dataset in datasets]
    counts = ["–".join(f"{n:,}" for n in sorted({min(found), max(found)})) for found in stories]
    columns = [f"{wrapped(name, 17)}\nn = {count}" for name, count in zip(datasets, counts, strict=True)]
    lines, most = [wrapped(name, 26) for name in models], max(len(models), len(datasets))
    texts = {place: _cell(row) for place, row in places.items()}
    image = heat_map(axes, values, columns, lines, texts=texts, most_ticks=most)
    if len(cells) > 1:  # the scale of one colour would be arbitrary
        color_bar(figure, image, [axes], unit)
    else:
        axes.set_title(unit, fontsize=TICK)
    axes.set(xlabel="data set", ylabel="model")
    for (y, x), row in places.items():
        if row["in_domain"] == "yes":
            axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, **OUTLINE))
    if axes.patches:
        legend(figure, Patch(**OUTLINE, label="in-domain: model trained on this data set"))
    return figure


def _cell(row: Row) -> str:
    value, lower, upper = (number(row[key]) for key in ("estimate", "lower", "upper"))
    interval = f"[{lower:.3f}, {upper:.3f}]" if np.isfinite([lower, upper]).all() else "no interval"
    return f"{value:.3f}\n{interval}"


def distance_figure(distances_NN: np.ndarray, places: Mapping[str, slice], title: str) -> Figure:
    """Draw the distances between batches as a heat map, group by group; the diagonal is white.

    Args:
        distances_NN: from 0 to 1, symmetric.
        places: the rows of each group by name, in order.
        title: of the figure.

    >>> figure = distance_figure(np.ones((3, 3)) - np.eye(3), {"a": slice(0, 2), "b": slice(2, 3)}, "a probe")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['a', 'b']
    """
    figure, (axes,) = new_figure(title, size=(7, 5))
    apart = np.where(np.eye(len(distances_NN), dtype=bool), np.nan, distances_NN)
    picture = axes.imshow(apart, cmap=SEQUENTIAL)
    centres = [(place.start + place.stop - 1) / 2 for place in places.values()]
    for place in list(places.values())[1:]:
        axes.axhline(place.start - 0.5, color="white", linewidth=1)
        axes.axvline(place.start - 0.5, color="white", linewidth=1)
    names = [wrapped(name, 26) for name in places]
    axes.set_yticks(centres, labels=names, fontsize=TICK)
    slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) > 2 else {}
    axes.set_xticks(centres, labels=names, fontsize=TICK, **slant)
    axes.set(xlabel="batches of each data set", ylabel="batches of each data set")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    color_bar(figure, picture, [axes], "cosine distance between two batches")
    return figure
