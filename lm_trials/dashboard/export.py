"""The dashboard as one HTML file that needs no network and no server: all pages but the playground."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from lm_trials.dashboard.pages import FAULTS, PAGES, Choices, Page, Shown, View, reason
from lm_trials.dashboard.tables import RunsFolder, thinned
from lm_trials.files import write_file

RUNS = 24  # in a page; it has each combination of choices, so it grows with their product
# The most choices of a picker; evenly spaced, the default and the last among them.  All would be hundreds of MB.
FEW = {"Story": 1, "Checkpoint": 6, "Head": 24, "Metric": 5, "Run": 12, "Table": 20}
PLACE = re.compile(r"\{\{(\w+)\}\}")


def export(folder: RunsFolder, path: Path) -> Path:
    """Write the page and return its path."""
    listing = folder.list()
    view = View(folder, listing, listing.first_shown(RUNS))
    shown: list[dict[str, Any]] = []
    pages = [
        {"name": page.name, "lede": page.lede, "pickers": page.pickers, "tree": _tree(view, page, (), shown)}
        for page in PAGES
    ]
    title = f"{folder.folder}: {len(view.names)} of {len(listing.runs)} runs"
    # No `<` or `&` as it is: no text of a story can end the script.
    data = json.dumps({"pages": pages, "shown": shown}).replace("<", "\\u003c").replace("&", "\\u0026")
    parts = {"title": escape(title), "data": data, "plotly": get_plotlyjs(), "style": _file("style.css")}
    # In one pass, so that a text that contains `{{data}}` is not replaced.
    return write_file(path, PLACE.sub(lambda match: parts[match[1]], _file("page.html")))


def _file(name: str) -> str:
    return files("lm_trials.dashboard").joinpath(name).read_text(encoding="utf-8")


def _tree(view: View, page: Page, chosen: Sequence[Any], shown: list[dict[str, Any]]) -> Any:
    """Return [choice, tree] pairs for the next picker, or the place in `shown` of what is shown for these choices."""
    try:
        if len(chosen) < len(page.pickers):
            choices = few(page.pickers[len(chosen)], page.choices(view, *chosen))
            return [[str(choice), _tree(view, page, (*chosen, choice), shown)] for choice in choices]
        what = page.show(view, chosen)
    except FAULTS as error:
        what = Shown(reason(error))
    figure = what.figure and json.loads(what.figure.to_json())
    shown.append({"head": what.head, "figure": figure, "foot": what.foot})
    return len(shown) - 1


def few(label: str, choices: Choices) -> Sequence[Any]:
    """Return the choices that the page has: of updates the powers of two and the last.

    >>> few("Update", range(1, 21)), few("Story", ["story 1", "story 2"])
    ([1, 2, 4, 8, 16, 20], ['story 1'])
    """
    if isinstance(choices, range):
        return sorted({*(1 << power for power in range(choices[-1].bit_length())), choices[-1]})
    return thinned(choices, FEW.get(label, len(choices)))
