"""Tables of probes: rows with one estimate each, to select, write as CSV and print; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from lm_trials.console import show_table
from lm_trials.estimates import NO_INTERVAL, Estimate, interval_text, t_interval

Row = dict[str, Any]


class ProbeTable(list[Row]):
    """Rows of a probe's table: what is estimated, and estimate, lower, upper, n, unit.

    >>> table = ProbeTable()
    >>> for model, share in (("base", 0.25), ("tuned", 0.5)):
    ...     table.add(Estimate(share, 0.0, 1.0, n=9, unit="share"), {"model": model}, layer=3)
    >>> table.where(layer=3, model=["tuned", "other"])[0]["estimate"], table.find(model="other")
    (0.5, None)
    >>> table.distinct("model"), table.distinct("layer", "unit")
    (['base', 'tuned'], [(3, 'share')])
    """

    def add(self, estimate: Estimate, about: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Append an estimate's row: first the columns of `about`, last those of `more`."""
        self.append({**(about or {}), **estimate.row(), **more})

    def where(self, **wanted: Any) -> ProbeTable:
        """Return the rows with these values (a list: any of them); a missing column counts as None."""
        lists = {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}
        return ProbeTable(row for row in self if all(row.get(name) in values for name, values in lists.items()))

    def find(self, **wanted: Any) -> Row | None:
        """Return the first row with these values, or None."""
        return next(iter(self.where(**wanted)), None)

    def distinct(self, *columns: str) -> list[Any]:
        """Return the distinct values of a column, or tuples of several columns, in order."""
        values = (tuple(row.get(column) for column in columns) for row in self)
        return list(dict.fromkeys(found if len(columns) > 1 else found[0] for found in values))

    def estimates(self, *columns: str) -> dict[tuple[Any, ...], Estimate]:
        """Return the estimates, keyed by the values of columns."""
        return {
            tuple(row.get(column) for column in columns): Estimate(*(row[field.name] for field in fields(Estimate)))
            for row in self
        }

    def show(
        self,
        title: str,
        corner: str,
        down: Mapping[str, Row],
        across: Mapping[str, Row],
        caption: str | None = None,
        cell: Callable[[Row | None], str] | None = None,
        counted: str | None = None,
    ) -> None:
        """Print a table; each cell shows the row with the values of its line and of its column.

        Args:
            corner: the heading of the first column.
            down, across: values by heading.
            cell: formats a row; default: its estimate above its interval.
            counted: the heading of an extra column, the n of the first row of each line.
        """
        written = cell or (lambda row: interval(row, lines=True))
        lines = []
        for name, line in down.items():
            found = [self.find(**line, **column) for column in across.values()]
            counts = [str((found[0] or {}).get("n", "-"))] if counted else []
            lines.append([name, *counts, *map(written, found)])
        show_table(title, [corner, *([counted] if counted else []), *across], lines, caption)


def interval(found: Estimate | Mapping[str, Any] | None, digits: int = 3, lines: bool = False) -> str:
    """Return an estimate or a row as text for a sentence, or with `lines` on two lines for a cell.

    >>> interval(Estimate(0.5, 0.4, 0.6, n=9, unit="accuracy"))
    '0.500 [0.400, 0.600]'
    >>> interval({"estimate": -0.0001, "lower": None, "upper": None}), interval(None)
    ('0.000 [no interval]', '-')
    """
    if found is None:
        return "-"
    row = found if isinstance(found, Mapping) else found.row()
    limits = interval_text(row["lower"], row["upper"], digits)
    return f"{row['estimate']:z.{digits}f}" + ("\n" if lines else " ") + limits


def exact(value: float, n: int, unit: str) -> Estimate:
    """Return a number without an interval, because nothing was sampled."""
    return Estimate(value, *NO_INTERVAL, n, unit)


def sign(found: Estimate | Mapping[str, Any]) -> int:
    """Return 1 if the interval is above 0, -1 if it is below, and 0 if it contains 0 or does not exist.

    >>> [sign(Estimate(0.0, lower, lower + 2, n=9, unit="")) for lower in (1.0, -3.0, -1.0, float("nan"))]
    [1, -1, 0, 0]
    """
    row = found if isinstance(found, Mapping) else found.row()
    return int(row["lower"] > 0) - int(row["upper"] < 0)


def widened(found: Estimate, reach: float, most: float = math.inf) -> Estimate:
    """Return an estimate with its interval widened by `reach`, to at most -`most` and `most`, for random draws."""
    reach = max(0.0, reach)  # NaN where all draws are equal
    lower, upper = np.clip([found.lower - reach, found.upper + reach], -most, most).tolist()
    return Estimate(found.estimate, lower, upper, found.n, found.unit)


def one_more(values_D: np.ndarray, unit: str, scale: str = "identity") -> Estimate:
    """Return the mean of draws with the 95 % prediction interval of one more draw (Student's t, on a scale).

    Equal draws have no interval.

    >>> print(one_more(np.array([0.1, 0.2, 0.3]), "share"))
    0.200 [-0.297, 0.697] share (n=3)
    """
    # Random weights do not vary by story: controls with an interval over stories alone, and one random model, gave a
    # false finding in 40 of 40 draws.
    mean, count = float(np.mean(values_D)), len(values_D)
    error = float(np.std(values_D, ddof=1) * np.sqrt(1 + 1 / count))
    return Estimate(mean, *(t_interval(mean, error, count - 1, scale) if error > 0 else NO_INTERVAL), count, unit)


def by_values(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Return the items grouped by `key`, in order."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
