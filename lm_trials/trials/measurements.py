"""Measurements of runs: one number of each, with its interval, from a table that a probe or an evaluation wrote.

The tables lie under each run (`probes/feature_probe/feature_probe.csv`), or one table has rows of all runs.  Which row
is meant is said by its columns; a choice that leaves several rows of a run, or none, is refused.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.estimates import Estimate
from lm_trials.tables import read_object
from lm_trials.trials.runs import Run

SHARED = ("estimate", "lower", "upper", "n", "unit")
# Flags of a probe or an evaluation that say which model is read or where results go, or change speed alone.
FREE = {"model_name_or_path", "model_dir", "model_seed", "output_dir", "tables_dir", "use_cpu"}
FREE |= {"per_device_eval_batch_size", "control_model"}
SHOWN_VALUES = 6
Row = Mapping[str, str]


@dataclass(frozen=True)
class Measurement:
    """The same number of several runs.

    Attributes:
        name: the table and which row of it.
        estimates: of each run, with the interval that the table gives: of this model, not over seeds.
    """

    name: str
    estimates: tuple[Estimate, ...]


def read_measurement(runs: Sequence[Run], table: str, where: Sequence[str]) -> Measurement:
    """Read one row of each run's table.

    Args:
        table: a path under each run, or one file with rows of all of them, told apart by its column `model`.
        where: COLUMN=VALUE, each of which the row has to meet.

    Raises:
        UsageError: for a table that is not there or has other columns, a choice that leaves none or several rows of a
            run, or runs that were measured with other flags or in other units.
    """
    conditions = dict(_condition(text) for text in where)
    files = [_table_of(run, table) for run in runs]
    _check_flags(runs, files)
    rows = [_row_of(run, file, conditions) for run, file in zip(runs, files, strict=True)]
    estimates = tuple(_estimate(row, file) for row, file in zip(rows, files, strict=True))
    if len(units := dict.fromkeys(estimate.unit for estimate in estimates)) > 1:
        raise UsageError(f"--table {table}: the runs' units differ ({', '.join(units)}); choose one with --where")
    chosen = ", ".join(f"{column} {value}" for column, value in conditions.items())
    return Measurement(f"{Path(table).stem}: {chosen}" if chosen else Path(table).stem, estimates)


def _condition(text: str) -> tuple[str, str]:
    column, sign, value = text.partition("=")
    if not sign or not column:
        raise UsageError(f"--where {text}: give COLUMN=VALUE, such as metric=accuracy")
    return column, value


def _table_of(run: Run, table: str) -> Path:
    if (own := run.folder / table).is_file():
        return own
    if Path(table).is_file():
        return Path(table)
    under = sorted(
        str(path.relative_to(run.folder)) for top in ("probes", "eval") for path in _tables(run.folder / top)
    )
    known = did_you_mean(table, under) if under else "it has no table yet; run a probe or eval_checkpoint.py on it"
    raise UsageError(f"--table {table}: {run.name} has none of that name; {known}")


def _tables(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("*/*.csv"))


def _row_of(run: Run, file: Path, conditions: Mapping[str, str]) -> Row:
    """Return the one row that is of this run and meets the conditions."""
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        columns = list(reader.fieldnames or [])
        rows = list(reader)
    if lacking := [name for name in SHARED if name not in columns]:
        raise UsageError(f"{file} has no column {lacking[0]}; name a table with {', '.join(SHARED)}")
    for column in conditions:
        if column not in columns:
            raise UsageError(f"--where {column}=...: {file} has no such column; {did_you_mean(column, columns)}")
    if "model" in columns:
        rows = [row for row in rows if not row["model"] or _is_of(row["model"], run.folder)]
        if not any(row["model"] for row in rows):
            raise UsageError(f"{file} has no row of {run.name}; run the probe or the evaluation on it")
    for column, value in conditions.items():
        there = dict.fromkeys(row[column] for row in rows)
        rows = [row for row in rows if row[column] == value]
        if not rows:
            raise UsageError(f"--where {column}={value}: {run.name} has no such row in {file}; {_values(there)}")
    if len(rows) > 1:
        told = [
            f"{column} ({', '.join(list(values)[:SHOWN_VALUES])}{', ...' if len(values) > SHOWN_VALUES else ''})"
            for column in columns
            if column not in (*SHARED, *conditions)
            and 1 < len(values := dict.fromkeys(row[column] or '""' for row in rows)) <= len(rows)
        ]
        raise UsageError(
            f"{len(rows)} rows of {run.name} are left in {file}, which differ in {'; '.join(told)}; "
            "choose one with --where COLUMN=VALUE"
        )
    return rows[0]


def _values(there: Mapping[str, Any]) -> str:
    shown = [value or "(empty)" for value in there]
    return f"there are {', '.join(shown[:SHOWN_VALUES])}{', ...' if len(shown) > SHOWN_VALUES else ''}"


def _is_of(model: str, folder: Path) -> bool:
    """Whether a table's name of a model, the last parts of its path, is that of a folder.

    >>> _is_of("runs/a", Path("/work/runs/a")), _is_of("a", Path("/work/runs/a")), _is_of("a", Path("/work/runs/ba"))
    (True, True, False)
    """
    parts = Path(model).parts
    return folder.resolve().parts[-len(parts) :] == parts or Path(model).resolve() == folder.resolve()


def _estimate(row: Row, file: Path) -> Estimate:
    try:
        value, lower, upper = (float(row[name]) if row[name] else math.nan for name in SHARED[:3])
        found = Estimate(value, lower, upper, int(row["n"]), row["unit"])
    except ValueError as error:
        raise UsageError(f"{file} has a cell that is no number ({error}); write the table anew") from None
    if not math.isfinite(value):
        raise UsageError(f"{file}: the row that was chosen has no estimate; choose another with --where")
    return found


def _check_flags(runs: Sequence[Run], files: Sequence[Path]) -> None:
    """Refuse tables of one name that were made with other flags: then more than the runs would differ."""
    given = [_flags(file) for file in files]
    for run, flags in zip(runs[1:], given[1:], strict=True):
        for name in sorted(flags.keys() | given[0].keys()):
            if flags.get(name) != given[0].get(name):
                raise UsageError(
                    f"{run.name} and {runs[0].name} were measured otherwise: {name} {flags.get(name)} and "
                    f"{given[0].get(name)}; measure all runs with the same flags"
                )


def _flags(file: Path) -> dict[str, Any]:
    """Return what is known of how a table was made: the flags in the JSON file beside it."""
    for beside, inside in ((file.with_suffix(".json"), "arguments"), (file.with_name("data_args.json"), None)):
        if beside.is_file():
            content = read_object(beside)
            flags = content if inside is None else content.get(inside)
            if isinstance(flags, dict):
                # Where a fingerprint of the data is told, its folder is no matter.
                free = FREE | ({"data_cache_dir"} if "dataset_fingerprint" in flags else set())
                return {name: value for name, value in flags.items() if name not in free}
    return {}
