"""The figure of a comparison of arms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lm_trials.reporting.figure_style import COLORS, Row, distinct, draw_curve, dress, legend, new_figure, number

LOSSES = "Loss of each run and mean of each arm"


def arms_figure(rows: Iterable[Row], title: str | None = None) -> Figure:
    """Draw each run as a point and each arm with its 95 % interval, a panel for each data set.

    Args:
        rows: the rows of `compare.csv`: kind, arm, data set, estimate, lower, upper, unit, and the unit that the
            interval is over; NaN for a missing interval.
        title: of the figure of a table's row, without panel titles; None for losses.

    >>> shared = {"dataset": "d", "arm": "A", "unit": "nats per token", "interval": "seeds and stories", "seeds": 3}
    >>> run, arm = {**shared, "row": "run", "estimate": 2.0}, {**shared, "row": "arm", "estimate": 2.0}
    >>> figure = arms_figure([run, {**arm, "lower": 1.9, "upper": 2.1}])
    >>> figure.axes[0].get_xlabel()
    'nats per token'
    """
    shown = [row for row in rows if row["row"] in ("run", "arm")]
    labels = distinct(shown, "arm")
    datasets = distinct(shown, "dataset")
    figure, panels = new_figure(title or LOSSES, len(datasets), (5.5, 0.6 * len(labels) + 0.9), least_width=6.0)
    for axes, dataset in zip(panels, datasets, strict=True):
        here = [row for row in shown if row["dataset"] == dataset]
        ticks = {}
        for label in labels:
            place = labels.index(label)
            runs = [row for row in here if row["row"] == "run" and row["arm"] == label]
            axes.plot(
                [number(row["estimate"]) for row in runs], [place] * len(runs), "o", color=COLORS[0], alpha=0.5,
                markersize=5, label="a run",
            )  # fmt: skip
            for row in (row for row in here if row["row"] == "arm" and row["arm"] == label):
                reach = [number(row["lower"]), number(row["upper"])]
                axes.plot(reach, [place, place], color=COLORS[1], linewidth=1.5, label="95 % interval of an arm")
                axes.plot(
                    number(row["estimate"]), place, "|", color=COLORS[1], markersize=14, markeredgewidth=2,
                    label="mean of an arm",
                )  # fmt: skip
                ticks[label] = f"{_named(label, [each.get('run') for each in runs])}\n95 % over {row['interval']}"
        dress(axes, "" if title else dataset, here[0]["unit"], grid="x")
        axes.set_yticks(range(len(labels)), [ticks.get(label, label) for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
    legend(figure)
    return figure


def power_figure(rows: Iterable[Row], decided: str) -> Figure:
    """Draw the power of each number of root seeds, with a band for the interval of the spread.

    Args:
        rows: of `power.csv`: difference, seeds, estimate, and lower and upper where the spread has an interval.
        decided: what is decided, for the title.

    >>> figure = power_figure([{"difference": "B minus A", "seeds": n, "estimate": n / 9} for n in (3, 6)], "0.02")
    >>> figure.get_suptitle()
    'Power to decide 0.02'
    """
    rows = list(rows)
    figure, (axes,) = new_figure(f"Power to decide {decided}")
    for place, name in enumerate(distinct(rows, "difference")):
        own = [row for row in rows if row["difference"] == name]
        draw_curve(axes, [row["seeds"] for row in own], own, COLORS[place % len(COLORS)], name)
    axes.set_ylim(0, 1.02)
    dress(axes, xlabel="root seeds", ylabel="power, band: 95 % interval of the spread")
    legend(figure)
    return figure


def _named(arm: str, runs: Sequence[str | None]) -> str:
    """Return an arm's label.

    >>> _named("A", ["runs/base-s1", "runs/base-s2"]), _named("B", [None])
    ('A: base-s1 + 1', 'B')
    """
    if not runs or runs[0] is None:
        return arm
    return f"{arm}: {Path(runs[0]).name}" + (f" + {len(runs) - 1}" if len(runs) > 1 else "")
