"""The figure of a comparison: it takes the rows of a table and returns a `Figure`; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

RUN, ARM = "#4c78a8", "#e45756"
LONGEST_LINE = 48


def arms_figure(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw each run as a point and each arm with its 95 % interval, a panel for each data set.

    Args:
        rows: the rows of `compare.csv`: kind, arm, data set, estimate, lower, upper, unit, and what the interval is
            over; an interval that does not exist is NaN.

    >>> shared = {"dataset": "d", "arm": "A", "unit": "nats per token", "interval": "seeds", "seeds": 1}
    >>> run, arm = {**shared, "row": "run", "estimate": 2.0}, {**shared, "row": "arm", "estimate": 2.0}
    >>> figure = arms_figure([run, {**arm, "lower": 1.9, "upper": 2.1}])
    >>> figure.axes[0].get_xlabel()
    'nats per token'
    """
    shown = [row for row in rows if row["row"] in ("run", "arm")]
    datasets = list(dict.fromkeys(row["dataset"] for row in shown))
    labels = list(dict.fromkeys(row["arm"] for row in shown))
    figure = Figure(figsize=(4.5 * len(datasets) + 1, 0.6 * len(labels) + 1.6), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        here = [row for row in shown if row["dataset"] == dataset]
        for row in here:
            place = labels.index(row["arm"])
            if row["row"] == "run":
                axes.plot(row["estimate"], place, "o", color=RUN, alpha=0.5, markersize=5)
            else:
                axes.plot((row["lower"], row["upper"]), (place, place), color=ARM, linewidth=1.5)
                axes.plot(row["estimate"], place, "|", color=ARM, markersize=14)
        runs = {
            label: [row.get("run") for row in here if row["row"] == "run" and row["arm"] == label] for label in labels
        }
        ticks = {
            row["arm"]: f"{_named(row['arm'], runs[row['arm']])}\n95 % over {row['interval']}"
            for row in here
            if row["row"] == "arm"
        }
        axes.set(xlabel=here[0]["unit"], title=fill(dataset, LONGEST_LINE))
        axes.set_yticks(range(len(labels)), [ticks[label] for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _named(arm: str, runs: Sequence[str | None]) -> str:
    """Return what an arm is called beside its line.

    >>> _named("A", ["runs/base-s1", "runs/base-s2"]), _named("B", [None])
    ('A: base-s1 + 1', 'B')
    """
    if not runs or runs[0] is None:
        return arm
    return f"{arm}: {Path(runs[0]).name}" + (f" + {len(runs) - 1}" if len(runs) > 1 else "")
