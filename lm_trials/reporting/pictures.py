"""Pictures: figures as PNG and SVG files, written atomically, with the same bytes for the same figure."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_trials.files import write_file

DPI = 150


def save_pictures(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem.png` and `stem.svg` and return both.

    >>> import tempfile
    >>> [path.name for path in save_pictures(Figure(), Path(tempfile.mkdtemp()) / "curve")]
    ['curve.png', 'curve.svg']
    """
    # Without a fixed salt and with a date, each SVG would differ. Text stays text for search and screen readers.
    with mpl.rc_context({"svg.hashsalt": stem.name, "svg.fonttype": "none"}):
        return [
            write_file(
                stem.with_name(f"{stem.name}.{kind}"), partial(figure.savefig, format=kind, dpi=DPI, metadata=about)
            )
            for kind, about in (("png", None), ("svg", {"Date": None}))
        ]
