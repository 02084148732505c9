"""Figures of the dashboard: from the rows of tables to Plotly figures that resize; they compute no result.

A figure has no title, because Plotly does not wrap it: the sentence above it is the page's.  Backgrounds are
transparent and `style.css` colours the texts, so that one figure is readable in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import get_colorscale
from plotly.subplots import make_subplots

from lm_trials.reporting.figure_style import COLORS, CONTROL_COLORS, Row, distinct, number, numbers, wrapped
from lm_trials.reporting.trial_figures import CLAIM, RESULT_COLORS, UNEVEN

GRID = "rgba(127, 127, 127, 0.25)"
DASHES = ("solid", "dash", "dot", "dashdot")  # beyond eight colours
SIDES = {"input": COLORS[0], "output": COLORS[1], "validation": COLORS[2]}


def styled(figure: go.Figure, height: int = 420, legend: bool = True) -> go.Figure:
    """Set what all figures share: size, transparent background, a light grid, the legend above."""
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "linecolor": GRID, "title": {"standoff": 8}}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=COLORS,
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#555"},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def curves_figure(rows: Sequence[Row], unit: str, x_title: str = "updates") -> go.Figure:
    """Draw a curve with its band for each name.

    Args:
        rows: name, step, estimate, lower, upper.

    >>> row = {"name": "a", "step": 1, "estimate": 2.0, "lower": 1.9, "upper": 2.1}
    >>> figure = curves_figure([row, row | {"step": 2}], "nats per token")
    >>> [trace.name for trace in figure.data], figure.layout.yaxis.title.text
    (['a', 'a'], 'nats per token')
    """
    figure = go.Figure()
    for place, name in enumerate(distinct(rows, "name")):
        own = [row for row in rows if row["name"] == name]
        dash = DASHES[place // len(COLORS) % len(DASHES)]
        _curve(figure, own, str(name), COLORS[place % len(COLORS)], dash)
    steps = sorted({number(row["step"]) for row in rows})
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    if gaps and steps[0] > 0 and max(gaps) >= UNEVEN * min(gaps):
        figure.update_xaxes(type="log")
    figure.update_layout(hovermode="x unified")
    return styled(figure.update_xaxes(title=x_title).update_yaxes(title=unit))


def _curve(figure: go.Figure, rows: Sequence[Row], name: str, color: str, dash: str = "solid", **where: Any) -> None:
    steps, values = numbers(rows, "step"), numbers(rows, "estimate")
    lower, upper = numbers(rows, "lower"), numbers(rows, "upper")
    band = np.isfinite(lower) & np.isfinite(upper)
    if band.any():
        around = np.flatnonzero(band)
        xs = [steps[place] for place in (*around, *around[::-1])]
        ys = [lower[place] for place in around] + [upper[place] for place in around[::-1]]
        figure.add_scatter(
            x=_small(xs), y=_small(ys), fill="toself", mode="lines", line_width=0, fillcolor=_faint(color, 0.18),
            hoverinfo="skip", showlegend=False, legendgroup=name, name=name, **where,
        )  # fmt: skip
    digits = [f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if known else "")
              for value, low, high, known in zip(values, lower, upper, band, strict=True)]  # fmt: skip
    figure.add_scatter(
        x=_small(steps), y=_small(values), mode="lines+markers" if len(rows) < 30 else "lines", name=name,
        legendgroup=name, line={"color": color, "dash": dash, "width": 2}, marker_size=6, text=digits,
        hovertemplate="%{text}", **where,
    )  # fmt: skip


def sides_figure(rows: Sequence[Row], unit: str, settled: Mapping[str, float], scaled: bool = False) -> go.Figure:
    """Draw a metric of what went in and of what comes out over the updates, one above the other.

    Args:
        rows: of one metric: side, step, estimate, lower, upper.
        settled: by side, its saturation step, drawn as a vertical line; NaN for none.
        scaled: both in one panel, each from its smallest (0) to its largest value (1).
    """
    sides = distinct(rows, "side")
    figure = make_subplots(1 if scaled else len(sides), 1, shared_xaxes=True, vertical_spacing=0.08)
    for place, side in enumerate(sides):
        own = [{**row, **{key: number(row[key]) for key in ("estimate", "lower", "upper")}} for row in rows
               if row["side"] == side]  # fmt: skip
        if scaled:
            values = [row["estimate"] for row in own]
            low, span = min(values), (max(values) - min(values)) or 1.0
            own = [{**row, **{key: (row[key] - low) / span for key in ("estimate", "lower", "upper")}} for row in own]
        color = SIDES.get(str(side), CONTROL_COLORS[0])
        panel = 1 if scaled else place + 1
        _curve(figure, own, str(side), color, row=panel, col=1)
        if math.isfinite(settled.get(str(side), math.nan)):
            figure.add_vline(settled[str(side)], line={"color": color, "dash": "dot"}, row=panel, col=1)
        figure.update_yaxes(title="share of its range" if scaled else f"{side}: {unit}", row=panel, col=1)
    figure.update_xaxes(title="updates", row=1 if scaled else len(sides), col=1)
    return styled(figure, 420 if scaled else 200 + 190 * len(sides))


def attention_figure(weights_TT: np.ndarray, tokens: Sequence[str], most: int = 64) -> go.Figure:
    """Draw one head's attention: rows are the tokens that look, columns those that are looked at."""
    shown = weights_TT[:most, :most]
    names = [f"{place}  {token}" for place, token in enumerate(tokens[: len(shown)])]
    # Bytes of square roots, as on the attention probe's page: small weights stay visible, and the page small.
    roots = np.rint(255 * np.sqrt(np.clip(shown, 0, 1))).astype(np.uint8)
    every = -(-len(names) // 24)
    ticks = {"tickvals": list(range(0, len(names), every)), "ticktext": names[::every]}
    _, *colours = get_colorscale("Cividis")
    scale = [[0, "rgba(0, 0, 0, 0)"], [1 / 255, "#00224e"], *colours]  # what no token may look at is no colour
    marks = [0, 0.01, 0.05, 0.2, 0.5, 1]
    bar = {"title": "weight", "tickvals": [255 * math.sqrt(mark) for mark in marks], "ticktext": marks, "thickness": 12}
    figure = go.Figure(
        go.Heatmap(
            z=roots, zmin=0, zmax=255, colorscale=scale, colorbar=bar, customdata=np.rint(100 * shown).astype(np.uint8),
            hovertemplate="%{customdata} %<br>from token %{y}<br>to token %{x}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="token that is looked at", tickangle=-60, **ticks)
    return styled(figure.update_yaxes(title="token that looks", autorange="reversed", **ticks), 560, legend=False)


def embeddings_figure(
    points_CVK: np.ndarray, shares_K: np.ndarray, place: int, tokens: Sequence[str], steps: Sequence[int]
) -> go.Figure:
    """Draw the tokens at one checkpoint on the axes of all checkpoints, and the way there of the five farthest."""
    now = points_CVK[place]
    moved = np.linalg.norm(now - points_CVK[0], axis=1)
    figure = go.Figure()
    for token in np.argsort(-moved)[:5]:
        path = points_CVK[: place + 1, token]
        figure.add_scatter(
            x=_small(path[:, 0]), y=_small(path[:, 1]), mode="lines+markers", line_color=COLORS[1], marker_size=4,
            name=tokens[token], text=[f"update {step:,}" for step in steps[: place + 1]],
            hovertemplate=f"{tokens[token]}<br>%{{text}}<extra></extra>",
        )  # fmt: skip
    bar = {"title": "distance<br>moved", "thickness": 12}
    figure.add_scatter(
        x=_small(now[:, 0]), y=_small(now[:, 1]), mode="markers", text=list(tokens),
        hovertemplate="%{text}<extra></extra>",
        marker={"size": 6, "color": _small(moved), "colorscale": "Cividis", "colorbar": bar, "cmin": 0,
                "cmax": float(np.linalg.norm(points_CVK[-1] - points_CVK[0], axis=1).max()) or 1.0},
    )  # fmt: skip
    low, high = points_CVK.min(axis=(0, 1)), points_CVK.max(axis=(0, 1))
    room = 0.05 * (high - low)
    for axis, which in ((figure.update_xaxes, 0), (figure.update_yaxes, 1)):
        limits = [float(low[which] - room[which]), float(high[which] + room[which])]
        axis(title=f"axis {which + 1} ({shares_K[which]:.0%} of the variance)", range=limits)
    return styled(figure, 520, legend=False)


def layers_figure(cka_LL: np.ndarray, rows: str, columns: str) -> go.Figure:
    """Draw the similarity of each layer of one checkpoint with each layer of another."""
    figure = go.Figure(
        go.Heatmap(
            z=_small(cka_LL), zmin=0, zmax=1, colorscale="Cividis", colorbar={"title": "CKA", "thickness": 12},
            hovertemplate="%{z:.3f}<br>layer %{y}<br>layer %{x}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=f"layer of {columns}", dtick=1).update_yaxes(title=f"layer of {rows}", dtick=1)
    return styled(figure, 460, legend=False)


def metric_figure(whole_N: np.ndarray, chosen_N: np.ndarray, metric: str) -> go.Figure:
    """Draw the distribution of a metric over all records, and the records of one update as marks below."""
    whole_N, chosen_N = (values[np.isfinite(values)] for values in (whole_N, chosen_N))
    limits = np.percentile(whole_N, (0.1, 99.9))  # some texts are far out; the bars at the ends have them
    counts, edges = np.histogram(np.clip(whole_N, *limits), bins=50)
    figure = go.Figure()
    figure.add_bar(
        x=_small((edges[:-1] + edges[1:]) / 2), y=_small(counts / len(whole_N)), width=float(edges[1] - edges[0]),
        marker_color=CONTROL_COLORS[2], name="all training records",
    )  # fmt: skip
    figure.add_scatter(
        x=_small(chosen_N), y=[-0.03 * float(counts.max() / len(whole_N))] * len(chosen_N), mode="markers",
        marker={"symbol": "line-ns-open", "size": 14, "color": COLORS[1], "line_width": 2}, name="this update",
    )  # fmt: skip
    figure.update_layout(bargap=0)
    return styled(figure.update_xaxes(title=metric).update_yaxes(title="share of records"), 300)


def forest_figure(rows: Sequence[Row], values: Sequence[Row]) -> go.Figure:
    """Draw each contrast's difference with its 95 % interval, its root seeds and the claimed range, a panel for a unit.

    Args:
        rows: of `contrasts.csv`.
        values: of `values.csv`, for the difference of each root seed.
    """
    shown = [row for row in rows if math.isfinite(number(row["estimate"]))]
    units = distinct(shown, "unit")
    sizes = [sum(row["unit"] == unit for row in shown) for unit in units]
    figure = make_subplots(
        len(units), 1, row_heights=[size + 0.6 for size in sizes], vertical_spacing=min(0.15, 0.5 / max(len(units), 1))
    )
    for panel, unit in enumerate(units, start=1):
        own = [row for row in shown if row["unit"] == unit]
        seeds = {row["contrast"]: _of_seeds(values, row["contrast"]) for row in own}
        ends = [number(row[key]) for row in own for key in ("estimate", "lower", "upper", "above", "below")]
        ends = [0.0, *(end for end in ends if math.isfinite(end)), *(each for of in seeds.values() for each in of)]
        room = 0.06 * (max(ends) - min(ends) or 1.0)
        limits = min(ends) - room, max(ends) + room
        for place, row in enumerate(own):
            _contrast(figure, row, place, seeds[row["contrast"]], limits, {"row": panel, "col": 1})
        figure.update_xaxes(title=unit, range=limits, row=panel, col=1)
        figure.update_yaxes(visible=False, range=[len(own) - 0.4, -0.9], row=panel, col=1)
    figure = styled(figure, 110 * len(units) + 95 * len(shown), legend=False)
    return figure.update_xaxes(zeroline=True, zerolinecolor="#888")


def _of_seeds(values: Sequence[Row], contrast: str) -> list[float]:
    rows = {row["seed"]: row for row in values if row["contrast"] == contrast}
    return [each for each in numbers(rows.values(), "difference") if math.isfinite(each)]


def _contrast(
    figure: go.Figure, row: Row, place: int, seeds: list[float], limits: tuple[float, float], where: dict[str, int]
) -> None:
    control = row["role"] == "control"
    color = CONTROL_COLORS[0] if control else RESULT_COLORS.get(str(row["result"]), CONTROL_COLORS[0])
    estimate, lower, upper, above, below = (
        number(row[key]) for key in ("estimate", "lower", "upper", "above", "below")
    )
    figure.add_shape(
        type="rect", y0=place - 0.25, y1=place + 0.25, line_width=0, layer="below",
        x0=above if math.isfinite(above) else limits[0], x1=below if math.isfinite(below) else limits[1],
        fillcolor=_faint(CONTROL_COLORS[1] if control else CLAIM, 0.3), **where,
    )  # fmt: skip
    figure.add_scatter(
        x=seeds, y=[place + 0.17] * len(seeds), mode="markers", marker={"color": color, "size": 5, "opacity": 0.6},
        hovertemplate="a root seed: %{x:.4g}<extra></extra>", **where,
    )  # fmt: skip
    known = math.isfinite(lower) and math.isfinite(upper)
    around = {"symmetric": False, "array": [upper - estimate], "arrayminus": [estimate - lower], "visible": known}
    text = f"{estimate:.3g}" + (f" [{lower:.3g}, {upper:.3g}]" if known else "")
    figure.add_scatter(
        x=[estimate], y=[place], mode="markers", error_x={**around, "thickness": 2.5, "color": color},
        marker={"color": color, "size": 10, "symbol": "diamond" if control else "square"},
        hovertemplate=f"{text}<extra></extra>", **where,
    )  # fmt: skip
    name = escape(wrapped(f"{row['contrast']} ({row['role']}): {row['result']}", 46)).replace("\n", "<br>")
    figure.add_annotation(
        text=name, x=0, xref="x domain", y=place - 0.34, xanchor="left", yanchor="bottom", showarrow=False,
        align="left", **where,
    )  # fmt: skip


def _faint(color: str, share: float) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {share})"


def _small(values: Any) -> np.ndarray:
    """Return numbers as Plotly sends them in binary: half the size of float64, beyond what a screen shows."""
    return np.asarray(values, dtype=np.float32)
