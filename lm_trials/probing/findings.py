"""Findings: what a probe writes, alike for all: a table, a figure, one sentence with its interval, and its control."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lm_trials.console import UsageError, show_facts
from lm_trials.files import write_csv, write_json
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.flags import probe_folder
from lm_trials.reporting.pictures import save_pictures


@dataclass(frozen=True)
class Finding:
    """What came out, in one sentence with its interval, and what the control says of it, in another."""

    sentence: str
    control: str

    @classmethod
    def of(cls, told: Sequence[str], controls: Sequence[str], joint: str = "; ") -> Finding:
        """Join clauses, those of the controls each once."""
        return cls(joint.join(told), joint.join(dict.fromkeys(controls)))


def write_findings(
    probe: str,
    arguments: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    finding: Finding,
    about: Mapping[str, Any],
    figures: Mapping[str, Figure],
    checks: Mapping[str, CaptureCheck] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write `<probe>.csv`, `<probe>.json`, more tables and each figure as PNG and SVG, and show the finding.

    Args:
        arguments: the dataclasses of the flags, that of the models first: they name the folder and go into the JSON.
        rows: of the table; each with estimate, lower, upper, n, unit.
        about: what else the JSON file says.
        figures: by file name without ending.
        checks: by model, that reading it left its logits as they are.
        tables: more CSV files, by name without ending; one without rows is not written.

    Raises:
        UsageError: where the folder cannot be written to.
    """
    folder = probe_folder(arguments[0], probe)
    facts = {"finding": finding.sentence, "control": finding.control}
    checks = checks or {}
    named = {probe: rows, **{name: lines for name, lines in (tables or {}).items() if lines}}
    files = [f"{name}.csv" for name in named] + [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    written = {
        "probe": probe,
        **facts,
        "capture": {label: asdict(check) for label, check in checks.items()},
        "arguments": {name: value for one in arguments for name, value in asdict(one).items()},
        **about,
        "files": files,
        "rows": list(rows),
    }
    try:
        for name, lines in named.items():
            write_csv(folder / f"{name}.csv", lines)
        for name, figure in figures.items():
            save_pictures(figure, folder / name)
        _remove_older(folder, probe, files)
        write_json(folder / f"{probe}.json", written)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror}); give another --output_dir") from None
    read = {("reading" if len(checks) == 1 else f"reading {label}"): str(check) for label, check in checks.items()}
    show_facts(probe, {**facts, **read, "results": str(folder)})
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


def file_name(label: str) -> str:
    """Return a model's label as a part of a file's name."""
    return label.replace("/", "-")
