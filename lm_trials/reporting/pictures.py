"""Pictures: a figure on disk as PNG and SVG, each written whole or not at all, the same bytes for the same figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_trials.console import UsageError

DPI = 150


def save_pictures(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem.png` and `stem.svg` and return both.

    Raises:
        UsageError: where the folder cannot be written to.

    >>> import tempfile
    >>> [path.name for path in save_pictures(Figure(), Path(tempfile.mkdtemp()) / "curve")]
    ['curve.png', 'curve.svg']
    """
    paths = []
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        # A fixed salt and no date: else each SVG has other names inside. Text stays text, to be found and read aloud.
        with mpl.rc_context({"svg.hashsalt": stem.name, "svg.fonttype": "none"}):
            for kind, about in (("png", None), ("svg", {"Date": None})):
                path = stem.with_name(f"{stem.name}.{kind}")
                unfinished = path.with_name(f".{path.name}.unfinished")
                try:
                    figure.savefig(unfinished, format=kind, dpi=DPI, metadata=about)
                    unfinished.replace(path)
                finally:
                    unfinished.unlink(missing_ok=True)
                paths.append(path)
    except OSError as error:
        raise UsageError(f"{stem.parent} cannot be written to ({error.strerror}); give another --output_dir") from None
    return paths
