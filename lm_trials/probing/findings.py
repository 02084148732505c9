"""Findings: the output of every probe: tables, figures, one sentence with its interval, and its control."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lm_trials.console import show_facts
from lm_trials.files import write_csv, write_json
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.flags import probe_folder
from lm_trials.reporting.pictures import save_pictures


@dataclass(frozen=True)
class Finding:
    """The result of a probe in one sentence with its interval, and the result of its control in another."""

    sentence: str
    control: str

    @classmethod
    def of(cls, sentences: Sequence[str], controls: Sequence[str], joint: str = "; ") -> Finding:
        """Join clauses; repeated clauses of the controls appear once."""
        return cls(joint.join(sentences), joint.join(dict.fromkeys(controls)))


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
    """Write `<probe>.csv`, `<probe>.json`, more tables and each figure as PNG and SVG, and print the finding.

    Args:
        arguments: the dataclasses of the flags, `SubjectArguments` first; they go into the JSON file.
        rows: of the table; each with estimate, lower, upper, n, unit.
        about: more entries of the JSON file.
        figures: by file name without extension.
        checks: by model, the check that capturing did not change its logits.
        tables: more CSV files, by name without extension; a table without rows is not written.
    """
    folder, checks = probe_folder(arguments[0], probe), checks or {}
    facts = {"finding": finding.sentence, "control": finding.control}
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
    for name, lines in named.items():
        write_csv(folder / f"{name}.csv", lines)
    for name, figure in figures.items():
        save_pictures(figure, folder / name)
    _remove_older(folder, probe, files)
    write_json(folder / f"{probe}.json", written)
    read = {("check" if len(checks) == 1 else f"check, {label}"): str(check) for label, check in checks.items()}
    show_facts(probe, {**facts, **read, "table": str(folder / f"{probe}.csv"), "results": str(folder)})
    return folder


def _remove_older(folder: Path, probe: str, files: Sequence[str]) -> None:
    """Remove files that an earlier measurement wrote here and this one did not: they would pass for new results."""
    try:
        older = json.loads((folder / f"{probe}.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):  # no earlier measurement, or one without a list of files
        return
    for name in older if isinstance(older, list) else ():
        if name not in files and Path(str(name)).name == name:  # never outside of this folder
            (folder / name).unlink(missing_ok=True)


def file_name(label: str) -> str:
    """Return a model's label as part of a file name."""
    return label.replace("/", "-")
