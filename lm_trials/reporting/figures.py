"""Figures: each takes a table that lies in a file and returns a `Figure`; axes have units, nothing is computed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

TRAIN, VALIDATION = "#4c78a8", "#e45756"
NAMED = ("#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7")
OUTLINE = {"fill": False, "edgecolor": VALIDATION, "linewidth": 3}
NAMED_LOSS = re.compile(r"eval_(.+)_loss")


def loss_figure(log_history: Iterable[Mapping[str, Any]], title: str) -> Figure:
    """Draw training and validation loss over steps, the latter with its interval over stories; named sets beside it.

    Args:
        log_history: the rows of `trainer_state.json`.
        title: the run's name.

    >>> evaluation = {"step": 2, "eval_loss": 2.5, "eval_loss_lower": 2.4, "eval_loss_upper": 2.6}
    >>> history = [{"step": 1, "loss": 3.0}, evaluation]
    >>> [line.get_label() for line in loss_figure(history, "a run").axes[0].lines]
    ['training', 'validation, 95 % over stories']
    """
    rows = list(log_history)
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    named = dict.fromkeys(match[1] for row in rows for key in row if (match := NAMED_LOSS.fullmatch(key)))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color=TRAIN, linewidth=1.2, label="training")
    _draw(axes, rows, "eval_loss", VALIDATION, "validation, 95 % over stories")
    # The Trainer's own training and test splits are drawn already, or kept for the end.
    shown = [name for name in named if name not in ("train", "test")]
    for place, name in enumerate(shown):
        _draw(axes, rows, f"eval_{name}_loss", NAMED[place % len(NAMED)], name)
    axes.set(xlabel="step", ylabel="nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:  # so many lines leave no free corner
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
    elif axes.lines:
        axes.legend(frameon=False)
    return figure


def _draw(axes: Axes, rows: Iterable[Mapping[str, Any]], key: str, color: str, label: str) -> None:
    points = [(row["step"], row[key], row[f"{key}_lower"], row[f"{key}_upper"]) for row in rows if key in row]
    if points:
        steps, losses, lower, upper = zip(*points, strict=True)
        axes.plot(steps, losses, color=color, marker="o", markersize=4, label=label)
        axes.fill_between(steps, lower, upper, color=color, alpha=0.2, linewidth=0)


def matrix_figure(rows: Iterable[Mapping[str, Any]], title: str) -> Figure:
    """Draw a heat map of one metric, models by data sets; each cell with its value and interval, in-domain outlined.

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
    units = {str(row["unit"]) for row in cells.values()}
    if len(units) != 1:
        raise ValueError(f"{len(units)} units ({', '.join(sorted(units))}) are no one colour scale; give one metric")
    models, datasets = (list(dict.fromkeys(pair[axis] for pair in cells)) for axis in (0, 1))
    values = np.full((len(models), len(datasets)), np.nan)
    for (model, dataset), row in cells.items():
        values[models.index(model), datasets.index(dataset)] = _number(row["estimate"])
    figure = Figure(figsize=(3.5 + 1.3 * len(datasets), 2.2 + 0.7 * len(models)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    figure.colorbar(image, ax=axes, label=units.pop())
    axes.set(title=title, xlabel="data set", ylabel="model")
    stories = [{int(row["n"]) for pair, row in cells.items() if pair[1] == dataset} for dataset in datasets]
    counts = ["–".join(f"{n:,}" for n in sorted({min(found), max(found)})) for found in stories]
    columns = [f"{_wrapped(name, 17)}\nn = {count}" for name, count in zip(datasets, counts, strict=True)]
    axes.set_xticks(range(len(datasets)), columns, fontsize=8)
    axes.set_yticks(range(len(models)), [_wrapped(name, 26) for name in models], fontsize=8)
    for (model, dataset), row in cells.items():
        _write_cell(axes, image, datasets.index(dataset), models.index(model), row)
    if axes.patches:
        label = "in-domain: trained on that data"
        figure.legend(handles=[Patch(**OUTLINE, label=label)], loc="outside lower center", frameon=False)
    return figure


def _write_cell(axes: Axes, image: AxesImage, x: int, y: int, row: Mapping[str, Any]) -> None:
    value, lower, upper = (_number(row[key]) for key in ("estimate", "lower", "upper"))
    red, green, blue, _ = image.cmap(image.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
    color = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
    interval = f"[{lower:.3f}, {upper:.3f}]" if np.isfinite([lower, upper]).all() else "no interval"
    axes.text(x, y, f"{value:.3f}\n{interval}", ha="center", va="center", color=color, fontsize=8)
    if row["in_domain"] == "yes":
        axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, **OUTLINE))


def _number(value: Any) -> float:
    """Return a number as a table has it, from CSV or JSON; NaN where there is none."""
    return float("nan") if value in (None, "") else float(value)


def _wrapped(name: str, width: int) -> str:
    """Return a name in lines of at most `width` characters, cut after a slash or hyphen where there is one.

    >>> print(_wrapped("runs/filter-adv-Twist", 12))
    runs/
    filter-adv-
    Twist
    """
    return textwrap.fill(name.replace("/", "/ "), width).replace("/ ", "/")


def distance_figure(distances_NN: np.ndarray, places: Mapping[str, slice], title: str) -> Figure:
    """Draw the distances between batches as a heat map, group by group; a batch's distance to itself is left white.

    Args:
        distances_NN: from 0 to 1, symmetric.
        places: the rows of each group, by its name, in their order.
        title: the probe's name.

    >>> figure = distance_figure(np.ones((3, 3)) - np.eye(3), {"a": slice(0, 2), "b": slice(2, 3)}, "a probe")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['a', 'b']
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(np.where(np.eye(len(distances_NN), dtype=bool), np.nan, distances_NN), cmap="viridis")
    centres = [(place.start + place.stop - 1) / 2 for place in places.values()]
    for place in list(places.values())[1:]:
        axes.axhline(place.start - 0.5, color="white", linewidth=1)
        axes.axvline(place.start - 0.5, color="white", linewidth=1)
    axes.set_yticks(centres, labels=list(places))
    axes.set_xticks(centres, labels=list(places), rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="batches", ylabel="batches", title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, label="cosine distance of two batches", shrink=0.8)
    return figure
