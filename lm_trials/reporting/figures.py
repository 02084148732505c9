"""Figures: each takes a table that lies in a file and returns a `Figure`; axes have units, nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

TRAIN, VALIDATION = "#4c78a8", "#e45756"


def loss_figure(log_history: Iterable[Mapping[str, Any]], title: str) -> Figure:
    """Draw training and validation loss over steps, the latter with its interval over stories.

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
    names = ("step", "eval_loss", "eval_loss_lower", "eval_loss_upper")
    validation = [tuple(row[name] for name in names) for row in rows if "eval_loss" in row]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color=TRAIN, linewidth=1.2, label="training")
    if validation:
        steps, losses, lower, upper = zip(*validation, strict=True)
        axes.plot(steps, losses, color=VALIDATION, marker="o", markersize=4, label="validation, 95 % over stories")
        axes.fill_between(steps, lower, upper, color=VALIDATION, alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel="nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if train or validation:
        axes.legend(frameon=False)
    return figure
