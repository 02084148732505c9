"""Findings: what a probe writes, alike for all: a table, a figure, one sentence with its interval, and its control."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from lm_trials.console import UsageError, show_facts
from lm_trials.estimates import Estimate
from lm_trials.files import write_csv, write_json
from lm_trials.probing.capture import CaptureCheck
from lm_trials.reporting.pictures import save_pictures


@dataclass(frozen=True)
class Finding:
    """What came out, in one sentence with its interval, and what the control says of it, in another."""

    sentence: str
    control: str


def write_findings(
    folder: Path,
    probe: str,
    rows: Sequence[Mapping[str, Any]],
    finding: Finding,
    about: Mapping[str, Any],
    figures: Mapping[str, Figure],
    checks: Mapping[str, CaptureCheck] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write `<probe>.csv`, `<probe>.json`, more tables and each figure as PNG and SVG, and tell the finding.

    Args:
        rows: of the table; each with estimate, lower, upper, n, unit.
        about: the flags and models, for the JSON file.
        figures: by file name without ending.
        checks: by model, that reading it left its logits as they are; they are told.
        tables: more CSV files, by name without ending.

    Raises:
        UsageError: where the folder cannot be written to.
    """
    facts = {"finding": finding.sentence, "control": finding.control}
    told = {label: str(check) for label, check in (checks or {}).items()}
    named = {probe: rows, **(tables or {})}
    files = [f"{name}.csv" for name in named] + [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    try:
        for name, lines in named.items():
            write_csv(folder / f"{name}.csv", lines)
        for name, figure in figures.items():
            save_pictures(figure, folder / name)
        numbers = {label: asdict(check) for label, check in (checks or {}).items()}
        told_all = {"probe": probe, **facts, "capture": numbers, **about, "files": files, "rows": list(rows)}
        _remove_older(folder, probe, files)
        write_json(folder / f"{probe}.json", told_all)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror}); give another --output_dir") from None
    show_facts(
        probe,
        {
            **facts,
            **({"reading" if len(told) == 1 else f"reading {k}": v for k, v in told.items()}),
            "results": str(folder),
        },
    )
    return folder


def _remove_older(folder: Path, probe: str, files: Sequence[str]) -> None:
    """Remove what an earlier measurement wrote here and this one did not: it would pass for this one's."""
    try:
        older = json.loads((folder / f"{probe}.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it does not say
        return
    for name in older if isinstance(older, list) else ():
        if name not in files and Path(str(name)).name == name:  # a file of this folder, as this function's are
            (folder / name).unlink(missing_ok=True)


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Return an estimate for a sentence or a cell.

    >>> interval(Estimate(0.5, 0.4, 0.6, n=9, unit="accuracy"))
    '0.500 [0.400, 0.600]'
    >>> interval(Estimate(0.5, float("nan"), float("nan"), n=1, unit="accuracy"))
    '0.500 [no interval]'
    """
    if math.isnan(estimate.lower) or math.isnan(estimate.upper):
        return f"{estimate.estimate:.{digits}f} [no interval]"
    return f"{estimate.estimate:.{digits}f} [{estimate.lower:.{digits}f}, {estimate.upper:.{digits}f}]"


def one_more(values_D: np.ndarray, unit: str) -> Estimate:
    """Return the mean of some draws and the 95 % interval in which one more lies (Student's prediction interval).

    >>> print(one_more(np.array([0.1, 0.2, 0.3]), "share"))
    0.200 [-0.297, 0.697] share (n=3)
    """
    mean, count = float(np.mean(values_D)), len(values_D)
    reach = float(stats.t.ppf(0.975, count - 1) * np.std(values_D, ddof=1) * np.sqrt(1 + 1 / count))
    return Estimate(mean, mean - reach, mean + reach, count, unit)
