"""The style of all figures: size, titles, axes with units, curves with bands, heat maps, legends.

A figure is drawn from the rows of a table and computes nothing; it is a `Figure` of its own, never pyplot's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

Row = Mapping[str, Any]

COLORS = ("#4c78a8", "#e45756", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7")
CONTROL_COLORS = ("#7f7f7f", "#b0a08a", "#9aa7b5", "#c4a3a3")
SEQUENTIAL, DIVERGING, SHARES = "cividis", "RdBu_r", "Blues"
"""Colour scales of heat maps: of numbers, of numbers around zero, and of shares below dark text."""
COLUMNS = 3
"""Most panels side by side."""
MARKED = 30
"""Points from which on a curve has no markers."""
TITLE, PANEL_TITLE, LEGEND, TICK = 11, 10, 9, 8
"""Font sizes in points."""
CHARACTER = 0.6
"""Mean width of a character of DejaVu Sans, in font sizes; 0.58 was measured over this project's titles."""


def new_figure(
    title: str,
    panels: int = 1,
    size: tuple[float, float] = (4.0, 3.0),
    columns: int = COLUMNS,
    least_width: float = 7.0,
    **grid: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with its title, in as many lines as it needs, and its panels, line by line.

    Args:
        title: a sentence without its full stop.
        panels: how many.
        size: of a panel, width and height in inches, with its labels.
        columns: most panels in a line.
        least_width: of the figure, in inches, so that title and legend have room.
        grid: more for `Figure.subplots`.

    >>> figure, panels = new_figure("Validation loss of " + "a long name " * 15, panels=4)
    >>> len(panels), len(figure.get_suptitle().splitlines())
    (4, 2)
    """
    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(max(least_width, size[0] * columns), 1.2 + size[1] * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, **grid).flat)
    for unused in axes[panels:]:
        unused.remove()
    text = wrapped(title, _characters(figure.get_figwidth(), TITLE))
    figure.suptitle(text, fontsize=TITLE, parse_math=False)
    return figure, axes[:panels]


def lowest(panels: Sequence[Axes]) -> Sequence[Axes]:
    """Return the panels below which there is none: those that name the horizontal axis for their column."""
    return panels[-panels[0].get_gridspec().ncols :]


def dress(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "", grid: str | None = "both") -> None:
    """Give a panel its title and labels, wrapped where they would be cut, and a pale grid along `grid`."""
    place = axes.get_position()
    width, height = (axes.figure.get_size_inches() * (place.width, place.height)).tolist()
    axes.set_title(wrapped(title, _characters(width * 1.2, PANEL_TITLE)), fontsize=PANEL_TITLE, parse_math=False)
    axes.set(xlabel=xlabel, ylabel=wrapped(ylabel, _characters(height * 1.2, PANEL_TITLE)))
    if grid:
        axes.grid(alpha=0.3, axis=grid)
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axes: Axes, xs: Sequence[float], rows: Sequence[Row], color: Any, label: str | None = None, control: bool = False
) -> None:
    """Draw estimates with their intervals as a band; a control thinner and dashed; a missing number is a gap."""
    style = {"linestyle": "--", "linewidth": 1.1} if control else {"linestyle": "-", "linewidth": 1.6}
    marker = "o" if len(rows) < MARKED else ""
    axes.plot(xs, numbers(rows, "estimate"), color=color, marker=marker, markersize=3.5, label=label, **style)
    draw_band(axes, xs, numbers(rows, "lower"), numbers(rows, "upper"), color)


def draw_band(
    axes: Axes, xs: Sequence[float], lower: Sequence[float], upper: Sequence[float], color: Any, alpha: float = 0.15
) -> None:
    """Draw a band with edges, so that bands above each other can be told apart; nothing where no bound is finite."""
    if not np.isfinite([lower, upper]).any():
        return
    if len(xs) == 1:  # a band of one place cannot be seen
        axes.vlines(xs, lower, upper, color=color, linewidth=1.2)
    else:
        axes.fill_between(
            xs, lower, upper, facecolor=to_rgba(color, alpha), edgecolor=to_rgba(color, 0.5), linewidth=0.6
        )


def heat_map(
    axes: Axes,
    values: np.ndarray,
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    cmap: str = SEQUENTIAL,
    limits: tuple[float | None, float | None] = (None, None),
    norm: Normalize | None = None,
    upwards: bool = False,
    texts: Mapping[tuple[int, int], str] | None = None,
    most_ticks: int = 12,
) -> AxesImage:
    """Draw values as colours, with a tick for each line and column, or for some of many.

    Args:
        values: lines by columns; what is not finite stays white.
        x_labels: of the columns.
        y_labels: of the lines.
        cmap: of the colours.
        limits: the values of the first and last colour; None for those of the values.
        norm: instead of limits.
        upwards: the first line lies at the bottom.
        texts: what is written into cells, by line and column.
        most_ticks: of an axis.
    """
    shade = norm or Normalize(*limits)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=cmap, norm=shade, aspect="auto", origin="lower" if upwards else "upper"
    )
    for place, labels in ((axes.set_xticks, x_labels), (axes.set_yticks, y_labels)):
        every = -(-len(labels) // most_ticks) or 1
        place(range(0, len(labels), every), list(labels)[::every], fontsize=TICK, parse_math=False)
    for (line, column), text in (texts or {}).items():
        color = text_color(image, values[line, column])
        axes.text(column, line, text, ha="center", va="center", fontsize=TICK, color=color, parse_math=False)
    return image


def text_color(image: AxesImage, value: float) -> str:
    """Return black or white: what can be read on the colour of a value (weights of Rec. 601)."""
    red, green, blue, _ = image.cmap(image.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def color_bar(figure: Figure, image: AxesImage, panels: Sequence[Axes], label: str, shrink: float = 0.9) -> None:
    """Draw the colour scale of panels that share one, with its unit."""
    figure.colorbar(image, ax=list(panels), label=label, shrink=shrink)


def legend(figure: Figure, *handles: Artist) -> None:
    """Explain below the panels whatever has a label in any of them, and `handles`, each label once."""
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    for handle in handles:
        named.setdefault(str(handle.get_label()), handle)
    if not named:
        return
    room = _characters(figure.get_figwidth(), LEGEND)
    labels = [wrapped(label, room - 6) for label in named]
    widest = max(len(line) for label in labels for line in label.splitlines() or [""])
    most = max(1, min(4, room // (widest + 6)))  # 6: the handle and the space between columns
    columns = -(-len(labels) // -(-len(labels) // most))  # of even length
    where = {"loc": "outside lower center", "frameon": False}
    figure.legend(list(named.values()), labels, ncols=columns, fontsize=LEGEND, **where)


def one_unit(rows: Iterable[Row]) -> str:
    """Return the unit of rows that share an axis.

    Raises:
        ValueError: for rows of several units.
    """
    units = sorted({str(row["unit"]) for row in rows})
    if len(units) != 1:
        raise ValueError(f"{len(units)} units ({', '.join(units)}) in one panel; give each its own")
    return units[0]


def numbers(rows: Iterable[Row], key: str) -> list[float]:
    """Return a column as numbers, from CSV or JSON; NaN where there is none."""
    return [number(row.get(key)) for row in rows]


def number(value: Any) -> float:
    """Return a number as a table has it; NaN where there is none.

    >>> number("0.5"), number("")
    (0.5, nan)
    """
    return float("nan") if value in (None, "") else float(value)


def distinct(rows: Iterable[Row], *keys: str) -> list[Any]:
    """Return the values of one column, or the tuples of several, in the order in which they come."""
    found = (tuple(row[key] for key in keys) for row in rows)
    return list(dict.fromkeys(values if len(keys) > 1 else values[0] for values in found))


def wrapped(text: str, width: int) -> str:
    """Return a text in lines of at most `width` characters, cut after a slash or hyphen where there is one.

    >>> print(wrapped("runs/filter-adv-Twist", 12))
    runs/
    filter-adv-
    Twist
    """
    lines = (textwrap.fill(line.replace("/", "/ "), max(width, 8)) for line in text.splitlines())
    return "\n".join(lines).replace("/ ", "/")


def _characters(inches: float, points: float) -> int:
    """Return how many characters of a font size there is room for."""
    return int(inches * 72 / (CHARACTER * points))
