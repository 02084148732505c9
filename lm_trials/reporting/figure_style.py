"""The style of all figures: size, titles, axes with units, curves with bands, heat maps, legends.

Figures are drawn from the rows of a table and compute nothing.  They are independent of pyplot and its global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:  # half a second, for those that only want colours and numbers
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Row = Mapping[str, Any]

COLORS = ("#4c78a8", "#e45756", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7")
CONTROL_COLORS = ("#7f7f7f", "#b0a08a", "#9aa7b5", "#c4a3a3", "#a3b18a", "#a89bc4")
# cividis and RdBu are readable with colour vision deficiencies and in greyscale by lightness (RdBu from its centre).
SEQUENTIAL, DIVERGING, SHARES = "cividis", "RdBu_r", "Blues"
"""Colour maps of heat maps: numbers, numbers around zero, and shares with dark text."""
COLUMNS = 3
"""Largest number of panels side by side."""
MARKED = 30
"""Curves with at least this many points have no markers."""
TITLE, PANEL_TITLE, LEGEND, TICK = 11, 10, 9, 8
"""Font sizes in points."""
CHARACTER = 0.6
"""Mean width of a character of DejaVu Sans in font sizes, 0.58 measured over this project's titles, and some room."""


def new_figure(
    title: str,
    panels: int = 1,
    size: tuple[float, float] = (4.0, 3.0),
    columns: int = COLUMNS,
    least_width: float = 7.0,
    **grid: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with its title, wrapped to the width, and its panels, row by row.

    Args:
        title: a sentence without full stop.
        panels: number of panels.
        size: width and height of a panel in inches, with its labels.
        columns: largest number of panels in a row.
        least_width: of the figure in inches, so that title and legend have room.
        grid: more arguments of `Figure.subplots`.

    >>> figure, panels = new_figure("Validation loss of " + "a long name " * 15, panels=4)
    >>> len(panels), len(figure.get_suptitle().splitlines())
    (4, 2)
    """
    from matplotlib.figure import Figure

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
    """Return the lowest panel of each column: those that get the label of the horizontal axis."""
    grid = panels[0].get_gridspec()
    return panels[-grid.ncols if grid else -1 :]


def dress(
    axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "", grid: Literal["both", "x", "y"] | None = "both"
) -> None:
    """Set a panel's title and labels, wrapped to its size, and draw a light grid along `grid`."""
    width, height = (side / axes.figure.dpi for side in axes.bbox.size)
    axes.set_title(wrapped(title, _characters(width * 1.2, PANEL_TITLE)), fontsize=PANEL_TITLE, parse_math=False)
    axes.set(xlabel=xlabel, ylabel=wrapped(ylabel, _characters(height * 1.2, PANEL_TITLE)))
    if grid:
        axes.grid(alpha=0.3, axis=grid)
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(
    axes: Axes, xs: Sequence[float], rows: Sequence[Row], color: Any, label: str | None = None, control: bool = False
) -> None:
    """Draw estimates as a line with their intervals as a band; controls thin and dashed; missing numbers as gaps."""
    axes.plot(
        xs, numbers(rows, "estimate"), color=color, label=label, marker="o" if len(rows) < MARKED else "",
        markersize=3.5, linestyle="--" if control else "-", linewidth=1.1 if control else 1.6,
    )  # fmt: skip
    draw_band(axes, xs, numbers(rows, "lower"), numbers(rows, "upper"), color)


def draw_band(
    axes: Axes, xs: Sequence[float], lower: Sequence[float], upper: Sequence[float], color: Any, alpha: float = 0.15
) -> None:
    """Draw a band with edges, so that overlapping bands stay distinguishable; nothing if no bound is finite."""
    from matplotlib.colors import to_rgba

    if not np.isfinite([lower, upper]).any():
        return
    if len(xs) == 1:  # a band over one point would have no width
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
    """Draw values as colours, with a tick for each row and column, or for every n-th of many.

    Args:
        values: rows by columns; values that are not finite are white.
        limits: values of the first and last colour; None: smallest and largest value.
        norm: replaces `limits`.
        upwards: the first row is at the bottom.
        texts: texts in cells, by row and column.
        most_ticks: largest number of ticks of an axis.
    """
    from matplotlib.colors import Normalize

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
    """Return black or white, whichever is readable on the colour of a value (luma weights of Rec. 601)."""
    red, green, blue, _ = image.to_rgba(np.array([value]))[0] if np.isfinite(value) else (1, 1, 1, 1)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def color_bar(figure: Figure, image: AxesImage, panels: Sequence[Axes], label: str, shrink: float = 0.9) -> None:
    """Draw the colour scale that panels share, with its unit."""
    figure.colorbar(image, ax=list(panels), label=label, shrink=shrink)


def legend(figure: Figure, *handles: Artist) -> None:
    """Draw a legend below the panels: every label in any of them, then those of `handles`, each label once."""
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
    figure.legend(
        list(named.values()), labels, ncols=columns, fontsize=LEGEND, loc="outside lower center", frameon=False
    )


def one_unit(rows: Iterable[Row]) -> str:
    """Return the unit of rows that share an axis; a ValueError for no rows or several units."""
    units = sorted({str(row["unit"]) for row in rows})
    if len(units) != 1:
        raise ValueError(f"{len(units)} units ({', '.join(units)}) in one panel; use one panel for each unit")
    return units[0]


def numbers(rows: Iterable[Row], key: str) -> list[float]:
    """Return a column as numbers, from CSV or JSON; NaN for missing values."""
    return [number(row.get(key)) for row in rows]


def number(value: Any) -> float:
    """Return a number of a table; NaN for a missing value.

    >>> number("0.5"), number("")
    (0.5, nan)
    """
    return float("nan") if value in (None, "") else float(value)


def distinct(rows: Iterable[Row], *keys: str) -> list[Any]:
    """Return the distinct values of one column, or tuples of several columns, in order."""
    found = (tuple(row[key] for key in keys) for row in rows)
    return list(dict.fromkeys(values if len(keys) > 1 else values[0] for values in found))


def wrapped(text: str, width: int) -> str:
    """Return a text in lines of at most `width` characters, preferably broken after a slash or hyphen.

    >>> print(wrapped("runs/filter-adv-Twist", 12))
    runs/
    filter-adv-
    Twist
    """
    lines = (textwrap.fill(line.replace("/", "/ "), max(width, 8)) for line in text.splitlines())
    return "\n".join(lines).replace("/ ", "/")


def _characters(inches: float, points: float) -> int:
    """Return how many characters of a font size fit into a width."""
    return int(inches * 72 / (CHARACTER * points))
