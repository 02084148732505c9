"""The figures of a trial: its registered contrasts with their claims, and learning curves of its arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lm_trials.reporting.figure_style import (
    COLORS,
    CONTROL_COLORS,
    PANEL_TITLE,
    TICK,
    Row,
    distinct,
    draw_curve,
    dress,
    legend,
    new_figure,
    number,
    numbers,
    wrapped,
)

if TYPE_CHECKING:  # half a second, for those that only want colours
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLAIM = "#59a14f"
WIDTH = 5.2  # inches: small enough to be read on a phone
RESULT_COLORS = {"holds": COLORS[0], "does not hold": COLORS[1]}
UNEVEN = 8  # the largest gap of evaluations over the smallest from which their axis is logarithmic


def forest_figure(rows: Sequence[Row], values: Sequence[Row], title: str = "Registered contrasts") -> Figure:
    """Draw each contrast's difference with its 95 % interval, its root seeds as points, and the claimed range shaded.

    Args:
        rows: of `contrasts.csv`.
        values: of `values.csv`, for the difference of each root seed.

    >>> row = {"contrast": "a - b", "role": "primary", "unit": "nats", "estimate": 0.3, "lower": 0.1, "upper": 0.5}
    >>> figure = forest_figure([row | {"above": 0.05, "below": "", "result": "holds"}], [])
    >>> figure.axes[0].get_xlabel()
    'nats'
    """
    shown = [row for row in rows if math.isfinite(number(row["estimate"]))]
    units = distinct(shown, "unit")
    heights = [sum(row["unit"] == unit for row in shown) + 0.4 for unit in units]
    figure, panels = new_figure(
        title, len(units), (WIDTH, 0.62 * sum(heights) / max(len(units), 1) + 0.45), columns=1, least_width=WIDTH,
        height_ratios=heights,
    )  # fmt: skip
    for axes, unit in zip(panels, units, strict=True):
        _forest(axes, [row for row in shown if row["unit"] == unit], values, unit)
    legend(figure)
    return figure


def _forest(axes: Axes, rows: Sequence[Row], values: Sequence[Row], unit: str) -> None:
    seeds = {row["contrast"]: _of_seeds(values, row["contrast"]) for row in rows}
    ends = [number(row[key]) for row in rows for key in ("estimate", "lower", "upper", "above", "below")]
    ends = [0.0, *(end for end in ends if math.isfinite(end)), *(each for of in seeds.values() for each in of)]
    room = 0.06 * (max(ends) - min(ends) or 1.0)
    left, right = min(ends) - room, max(ends) + room
    for place, row in enumerate(rows):
        control, own = row["role"] == "control", seeds[row["contrast"]]
        color = CONTROL_COLORS[0] if control else RESULT_COLORS.get(str(row["result"]), "#000000")
        above, below, lower, upper = (number(row[key]) for key in ("above", "below", "lower", "upper"))
        top, bottom = place - 0.18, place + 0.26
        axes.plot([0, 0], [top, bottom], color="#000000", linewidth=0.8, linestyle=":")
        axes.fill_betweenx(
            [top, bottom], above if math.isfinite(above) else left, below if math.isfinite(below) else right,
            color=CONTROL_COLORS[1] if control else CLAIM, alpha=0.25, linewidth=0,
            label="would invalidate the trial" if control else "claimed",
        )  # fmt: skip
        if not math.isnan(lower):
            axes.plot([max(lower, left), min(upper, right)], [place, place], color=color, linewidth=2)
        axes.plot(number(row["estimate"]), place, "D" if control else "s", color=color, markersize=6)
        axes.plot(
            own, [place + 0.17] * len(own), "o", color=color, alpha=0.5, markersize=3.5, markeredgewidth=0,
            label="a root seed",
        )  # fmt: skip
        text = wrapped(f"{row['contrast']} ({row['role']}): {row['result']}", 66)
        across = axes.get_yaxis_transform()
        axes.text(0, top - 0.05, text, transform=across, fontsize=PANEL_TITLE - 1, va="bottom", parse_math=False)
    dress(axes, xlabel=unit, grid=None)
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.6, -0.75))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _of_seeds(values: Sequence[Row], contrast: str) -> list[float]:
    rows = [row for row in values if row["contrast"] == contrast]
    return numbers({row["seed"]: row for row in rows}.values(), "difference")


def curves_figure(rows: Sequence[Row], title: str = "Learning curves") -> Figure:
    """Draw a metric over the updates: a panel for each stage and metric, a curve with its band for each arm.

    Args:
        rows: of `curves.csv`: stage, arm, metric, step, estimate, lower, upper, unit.

    >>> row = {"stage": "train", "arm": "a", "metric": "eval_loss", "estimate": 2.0, "lower": 1.9, "upper": 2.1}
    >>> figure = curves_figure([row | {"step": step, "unit": "nats per token"} for step in (1, 2, 4, 32)])
    >>> figure.axes[0].get_xscale()
    'symlog'
    """
    places = distinct(rows, "stage", "metric")
    arms = distinct(rows, "arm")
    figure, panels = new_figure(title, len(places), (WIDTH, 2.7), columns=1, least_width=WIDTH)
    for axes, (stage, metric) in zip(panels, places, strict=True):
        here = [row for row in rows if (row["stage"], row["metric"]) == (stage, metric)]
        for arm in distinct(here, "arm"):
            own = [row for row in here if row["arm"] == arm]
            draw_curve(axes, numbers(own, "step"), own, COLORS[arms.index(arm) % len(COLORS)], str(arm))
        dress(axes, f"{stage}: {metric}", "updates", str(here[0]["unit"]))
        steps = sorted({number(row["step"]) for row in here})
        gaps = [later - earlier for earlier, later in pairwise(steps)]
        if gaps and max(gaps) >= UNEVEN * min(gaps):
            axes.set_xscale("symlog", linthresh=next(step for step in steps if step > 0))
            round_ = [digit * 10**power for power in range(10) for digit in (1, 3)]
            shown = [step for step in steps if step == 0] + [step for step in round_ if step <= steps[-1]]
            axes.set_xticks(shown, [f"{step:,g}" for step in shown], fontsize=TICK)
            axes.minorticks_off()
    legend(figure)
    return figure
