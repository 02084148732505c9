"""Run a reported trial again, and check whether each number is the same.

    lm-trials reproduce results/deletion_recovery

Runs results/<trial>/trial.yaml into runs/<trial>-reproduced (what is finished there is
not repeated) and compares every value and every interval with the tables in the folder:
the same bit for bit, the same within rounding (relative 1e-6), or different.  The exit
status is 1 if a number is different.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, script, show_facts, show_table
from lm_trials.files import plain_name, readable, write_file
from lm_trials.flags import option, parse_arguments
from lm_trials.trials import run
from lm_trials.trials.trial_file import read_trial
from lm_trials.trials.trial_report import RECIPES, TRIAL_FILE
from lm_trials.trials.trial_tables import collect, contrast_rows, value_rows

SAME, ROUNDED, DIFFERENT = "the same", "within rounding", "different"
ROUNDING = 1e-6  # relative
TABLES = {
    "values.csv": (("contrast", "seed", "arm"), ("value", "difference")),
    "contrasts.csv": (("contrast",), ("estimate", "lower", "upper", "p", "p_holm")),
}


@dataclass
class ReproduceArguments:
    """Which results, and where the runs go."""

    results: str = option("", help="Folder that lm-trials report wrote; the flag itself may be omitted.")
    runs_dir: str = option("runs", output=True, help="Folder of <trial>-reproduced, which has the new runs.")
    workers: int | None = option(None, least=1, help="Jobs at a time. Default: that of lm-trials run.")


def agreement(before: float, now: float) -> str:
    """Return whether a number came out the same.

    >>> agreement(0.1, 0.1), agreement(0.1, 0.1 + 1e-9), agreement(0.1, 0.2), agreement(math.nan, math.nan)
    ('the same', 'within rounding', 'different', 'the same')
    """
    if before == now or (math.isnan(before) and math.isnan(now)):
        return SAME
    return ROUNDED if math.isclose(before, now, rel_tol=ROUNDING) else DIFFERENT


def compare_rows(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], keys: Sequence[str], numbers: Sequence[str]
) -> list[tuple[str, float, float, str]]:
    """Return (name, number before, number now, agreement) of each number; one that is missing now is NaN.

    >>> compare_rows([{"seed": "0", "value": "0.5"}], [{"seed": 0, "value": 0.25}], ["seed"], ["value"])
    [('0, value', 0.5, 0.25, 'different')]
    """
    found = {tuple(str(row[key]) for key in keys): row for row in now}
    rows = []
    for row in before:
        name = tuple(row[key] for key in keys)
        for column in numbers:
            pair = [_number(each.get(column)) for each in (row, found.get(name, {}))]
            rows.append((", ".join((*name, column)), pair[0], pair[1], agreement(pair[0], pair[1])))
    return rows


def _number(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a table of the results.

    Raises:
        UsageError: for one that is missing, cannot be read, or has other columns or no numbers in them.
    """
    advice = "write the results again with lm-trials report"
    keys, numbers = TABLES[path.name]
    with readable(str(path), advice), path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
        for row in rows or [{}]:
            if lacking := [name for name in (*keys, *numbers) if row.get(name) is None]:
                raise UsageError(f"{path} has no column {lacking[0]}, or no row with it; {advice}")
            for name in numbers:
                _number(row[name])
    return rows


def with_recipes(file: Path, place: Path) -> str:
    """Return the text of a reported trial, whose local recipes are copied to `place` and named there."""
    kept = {path.name: path.read_bytes() for path in file.with_name(RECIPES).glob("*")}

    def replaced(word: re.Match[str]) -> str:
        name = plain_name(word[0].strip("'\""))
        return f'"{write_file(place / name, kept[name])}"' if name in kept else word[0]

    return re.sub(r"""'[^'\n]*'|"[^"\n]*"|[^\s,'"{}\[\]]+""", replaced, file.read_text(encoding="utf-8"))


@script
def main(argv: list[str] | None = None) -> list[tuple[str, float, float, str]]:
    """Run and compare; returns each number with its agreement.  The exit status is 1 if one is different."""
    (args,) = parse_arguments(argv, (ReproduceArguments,), __doc__ or "", prog="lm-trials reproduce", first="results")
    if not args.results:
        raise UsageError("lm-trials reproduce needs a folder of results, such as results/deletion_recovery")
    folder = Path(args.results)
    file = folder / TRIAL_FILE
    if not file.is_file():
        raise UsageError(f"{folder} has no trial.yaml; name a folder that lm-trials report wrote")
    tables = {name: read_table(folder / name) for name in TABLES}
    name = f"{folder.resolve().name}-reproduced"
    runs = Path(args.runs_dir) / name
    # The name of a trial's folders is that of its file.
    copy = write_file(runs / f"{name}.yaml", with_recipes(file, runs / RECIPES))
    trial = read_trial(copy)
    workers = ["--workers", str(args.workers)] if args.workers else []
    run.main([str(copy), "--runs_dir", args.runs_dir, *workers])
    report = collect(trial, runs, f"lm-trials run {copy}")
    again = {"values.csv": value_rows(report), "contrasts.csv": contrast_rows(report)}
    found = [row for table in TABLES for row in compare_rows(tables[table], again[table], *TABLES[table])]
    counts = Counter(result for *_, result in found)
    other = [row for row in found if row[3] != SAME]
    if other:
        cells = [[what, f"{before:.9g}", f"{now:.9g}", result] for what, before, now, result in other]
        show_table("numbers that are not the same bit for bit", ["number", "reported", "now", "result"], cells)
    facts = {result: f"{counts[result]} of {len(found)} numbers" for result in (SAME, ROUNDED, DIFFERENT)}
    if counts[DIFFERENT]:
        facts["deviations"] = "; ".join(report.deviations) or "none"
        facts["compare"] = f"the run.json of a run in {folder / 'runs'} with that in {runs}: versions, code revision"
    show_facts(f"{folder}, verdict again: {report.verdict.word}", facts)
    if counts[DIFFERENT]:
        raise SystemExit(1)
    return found
