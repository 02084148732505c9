"""Figures: each takes a table that lies in a file and returns a `Figure`; axes have units, nothing is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAIN, VALIDATION = "#4c78a8", "#e45756"
NAMED = ("#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7")
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
