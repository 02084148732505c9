"""Measurements of runs: one number per run, with its interval, from a table of a probe or an evaluation.

Each run has its table (`probes/feature_probe/feature_probe.csv`), or one table has rows of all runs.  `--where` selects
the row by its columns; zero or several rows of a run are refused, and so are rows of another run or measured with other
flags.  Other differences between the rows are noted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.estimates import Estimate
from lm_trials.files import read_object, readable
from lm_trials.trials.runs import Run

SHARED = ("estimate", "lower", "upper", "n", "unit")
# Columns that identify a row's model, which is checked against the run; `series` is the feature probe's name of it.
OF_THE_RUN = ("model", "run", "series", "seed", "run_seed", "step")
# Findings of a probe, which do not describe what was measured.
FOUND = ("chosen", "verdict", "beyond_controls")
# Flags of a probe or an evaluation that select the model or the output folder, or affect speed alone.
FREE = {"model_name_or_path", "model_dir", "model_seed", "output_dir", "tables_dir", "use_cpu"}
FREE |= {"per_device_eval_batch_size", "control_model", "lens"}
CONTENT = ("dataset_fingerprint", "texts_sha256")  # identify the texts, so that their folder may differ
SHOWN_VALUES = 6
Row = Mapping[str, str]


@dataclass(frozen=True)
class Measurement:
    """The same number of several runs.

    Attributes:
        name: the table and the selected row.
        estimates: of each run, with the table's interval, which is for this model, not over seeds.
        notes: for the caption.
    """

    name: str
    estimates: tuple[Estimate, ...]
    notes: tuple[str, ...] = ()


def read_measurement(runs: Sequence[Run], table: str, where: Sequence[str]) -> Measurement:
    """Read one row of each run's table.

    Args:
        table: a path under each run, or one file with rows of all runs and a column `model`.
        where: conditions COLUMN=VALUE on the row.

    Raises:
        UsageError: for a missing or unreadable table, conditions that no row or several rows of a run meet, a row of
            another seed or step than the run's, or runs measured with different flags or in different units.
    """
    conditions = _conditions(where)
    files = [_table_of(run, runs, table) for run in runs]
    flags = [recorded_flags(file) for file in files]
    _check_flags(runs, flags)
    rows = [_row_of(run, file, conditions) for run, file in zip(runs, files, strict=True)]
    used: dict[tuple[Path, int], Run] = {}
    for run, file, (number, _) in zip(runs, files, rows, strict=True):
        if (other := used.setdefault((file.resolve(), number), run)) is not run:
            raise UsageError(f"{file}: {other.name} and {run.name} match the same row; measure each run separately")
    chosen = [row for _, row in rows]
    estimates = tuple(_estimate(row, file) for row, file in zip(chosen, files, strict=True))
    _check_units(runs, table, estimates)
    name = ", ".join(f"{column} {value}" for column, value in conditions.items())
    return Measurement(
        f"{Path(table).stem}: {name}" if name else Path(table).stem,
        estimates,
        tuple(_notes(runs, files, flags, chosen, conditions)),
    )


def measurement_title(table: str, where: Sequence[str]) -> str:
    """Return the title of a figure: the measure, the selected row, the probe.

    >>> measurement_title("probes/x/feature_probe.csv", ["metric=accuracy", "feature=Twist", "site=normed"])
    'Accuracy of Twist after the final norm (feature probe)'
    >>> measurement_title("probes/lens/lens.csv", ["layer=2", "lens=tuned"])
    'Estimate of layer 2, lens tuned (lens)'
    """
    given = {column: value for column, value in _conditions(where).items() if column != "role"}
    measure = next((given.pop(column) for column in ("metric", "measure", "statistic") if column in given), "estimate")
    parts = [given.pop("feature")] if "feature" in given else []
    place = " after the final norm" if given.get("site") == "normed" and given.pop("site") else ""
    parts += [f"{column.replace('_', ' ')} {value}" for column, value in given.items()]
    of = f" of {parts[0]}{place}" if parts else place
    title = ", ".join([f"{measure.replace('_', ' ')}{of}", *parts[1:]])
    return f"{title[0].upper()}{title[1:]} ({Path(table).stem.replace('_', ' ')})"


def _conditions(where: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in where:
        column, sign, value = text.partition("=")
        if not sign or not column:
            raise UsageError(f"--where {text}: give COLUMN=VALUE, such as metric=accuracy")
        if column in found:
            raise UsageError(f"--where {column}={found[column]} {text}: a row has one {column}; remove one of them")
        found[column] = value
    return found


def _table_of(run: Run, runs: Sequence[Run], table: str) -> Path:
    own = run.folder / table
    try:
        if own.resolve().is_relative_to(run.folder.resolve()) and own.is_file():
            return own
        if Path(table).is_file():
            return Path(table)
    except OSError as error:
        raise UsageError(f"--table {table[:80]}: {error.strerror}; name a table such as probes/lens/lens.csv") from None
    if has := [other.name for other in runs if (other.folder / table).is_file()]:
        advice = f"{has[0]} has one; measure each run, or name one file with rows of all runs"
    else:
        tables = [path for top in ("probes", "eval") for path in (run.folder / top).glob("*/*.csv")]
        under = sorted(str(path.relative_to(run.folder)) for path in tables)
        advice = did_you_mean(table, under) if under else "run a probe or lm-trials evaluate on it"
    raise UsageError(f"--table {table}: {run.name} has no such table; {advice}")


def _read_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    with readable(str(file), "measure again"), file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        columns, rows = list(reader.fieldnames or []), list(reader)
    if lacking := [name for name in SHARED if name not in columns]:
        raise UsageError(f"{file} has no column {lacking[0]}; name a table with {', '.join(SHARED)}")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UsageError(f"{file}, line {number}: not {len(columns)} cells as in its header; measure again")
    return columns, rows


def _row_of(run: Run, file: Path, conditions: Mapping[str, str]) -> tuple[int, Row]:
    """Return the number and the content of the run's one row that meets the conditions."""
    columns, all_rows = _read_rows(file)
    for column in conditions:
        if column not in columns:
            raise UsageError(f"--where {column}=...: {file} has no such column; {did_you_mean(column, columns)}")
    rows = dict(enumerate(all_rows))
    if "model" in columns:
        rows = {number: row for number, row in rows.items() if row["model"] and _is_of(row["model"], run.folder)}
        if not rows:
            raise UsageError(f"{file} has no row of {run.name}; run the probe or the evaluation on that run")
    elif not file.resolve().is_relative_to(run.folder.resolve()):
        raise UsageError(f"{file} has no column model to find the row of {run.name}; name a table with that column")
    for column, value in conditions.items():
        there = dict.fromkeys(row[column] for row in rows.values())
        rows = {number: row for number, row in rows.items() if row[column] == value}
        if not rows:
            raise UsageError(f"--where {column}={value}: {run.name} has no such row in {file}; valid: {_values(there)}")
    if len(rows) > 1:
        found = {column: dict.fromkeys(row[column] for row in rows.values()) for column in columns}
        shown = [
            f"{column} ({_values(values)})"
            for column, values in found.items()
            if column not in (*SHARED, *conditions) and len(values) > 1
        ]
        raise UsageError(
            f"--where: {len(rows)} rows of {run.name} in {file} match and differ in {'; '.join(shown) or 'nothing'}; "
            "select one with --where COLUMN=VALUE"
        )
    ((number, row),) = rows.items()
    for column, known in (("seed", run.seeds[0]), ("step", run.steps)):
        if row.get(column) and known is not None and row[column] != str(known):
            raise UsageError(
                f"{file}: the row of {run.name} has {column} {row[column]} and the run has {known}; measure it again"
            )
    return number, row


def _values(there: Mapping[str, Any]) -> str:
    shown = [value or "(empty)" for value in there]
    return ", ".join(shown[:SHOWN_VALUES]) + (", ..." if len(shown) > SHOWN_VALUES else "")


def _is_of(model: str, folder: Path) -> bool:
    """Whether a model's name in a table, the last components of its path, names a folder.

    >>> _is_of("runs/a", Path("/home/runs/a")), _is_of("a", Path("/home/runs/a")), _is_of("a", Path("/home/runs/ba"))
    (True, True, False)
    """
    parts = Path(model).parts
    return folder.resolve().parts[-len(parts) :] == parts or Path(model).resolve() == folder.resolve()


def _estimate(row: Row, file: Path) -> Estimate:
    try:
        value, lower, upper = (float(row[name]) if row[name] else math.nan for name in SHARED[:3])
        found = Estimate(value, lower, upper, int(row["n"]), row["unit"])
    except ValueError as error:
        raise UsageError(f"{file} has a cell that is not a number ({error}); measure again") from None
    if not math.isfinite(value):
        raise UsageError(f"{file}: the selected row has no estimate; select another with --where")
    # A bootstrap estimate may lie outside its interval, so only the ends are compared.
    if not found.unit or found.n < 1 or lower > upper:
        raise UsageError(f"{file}: the selected row ({found}) has no unit, n or interval; measure again")
    return found


def _check_units(runs: Sequence[Run], table: str, estimates: Sequence[Estimate]) -> None:
    if len(units := dict.fromkeys(estimate.unit for estimate in estimates)) > 1:
        raise UsageError(f"--table {table}: the runs' units differ ({', '.join(units)}); select one with --where")
    hashes = {run.outcome.get("data.tokenizer_hash") for run in runs}
    if "token" in estimates[0].unit and len(hashes) > 1:
        raise UsageError(
            f"--table {table}: the runs have different tokenizers, so {estimates[0].unit} are not comparable; compare "
            "bits per byte"
        )


def _check_flags(runs: Sequence[Run], given: Sequence[Mapping[str, Any] | None]) -> None:
    """Refuse tables that were made with different flags, as then more than the runs would differ."""
    known = [(run, flags) for run, flags in zip(runs, given, strict=True) if flags is not None]
    for run, flags in known:
        reference, first = known[0]
        free = FREE | ({"data_cache_dir"} if any(content in first for content in CONTENT) else set())
        for name in sorted((flags.keys() | first.keys()) - free):
            if flags.get(name) != first.get(name):
                raise UsageError(
                    f"{run.name} and {reference.name} were measured with different {name}: {flags.get(name)} and "
                    f"{first.get(name)}; measure all runs with the same flags"
                )


def recorded_flags(file: Path) -> dict[str, Any] | None:
    """Return the flags that a table was made with, from the JSON file beside it; None if unknown."""
    for name in (f"{file.stem}.json", f"{file.parent.name}.json", "data_args.json"):
        if (beside := file.with_name(name)).is_file():
            content = read_object(beside)
            flags = content if name == "data_args.json" else content.get("arguments")
            if isinstance(flags, dict):
                return flags
    return None


def _notes(
    runs: Sequence[Run],
    files: Sequence[Path],
    flags: Sequence[Mapping[str, Any] | None],
    rows: Sequence[Row],
    conditions: Mapping[str, str],
) -> Iterator[str]:
    """Yield what else differs between the rows, and what is unknown of them."""
    ignored = {*SHARED[:3], *OF_THE_RUN, *FOUND, *conditions}
    for column in dict.fromkeys(column for row in rows for column in row):
        runs_of: dict[str, list[str]] = {}
        for run, row in zip(runs, rows, strict=True):
            runs_of.setdefault(row.get(column, ""), []).append(run.name)
        if column in ignored or len(runs_of) < 2 or any(map(_is_measured, runs_of)):
            continue
        shown = ", ".join(
            f"{value or '(empty)'} in {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
            for value, names in islice(runs_of.items(), 3)
        )
        shown += f", {len(runs_of)} values in all" if len(runs_of) > 3 else ""
        if column == "role":
            raise UsageError(f"--where: a finding and a control would be compared ({shown}); add --where role=...")
        yield f"the rows differ in {column}: {shown}"
    beside = {}
    for run, found in zip(runs, flags, strict=True):
        names = (found or {}).get("model_name_or_path")
        if not isinstance(names, list) or "model_dir" in (found or {}):
            continue
        if others := [str(name) for name in names if not _is_of(str(name), run.folder)]:
            beside[run.name] = others
    if beside and len({file.resolve() for file in files}) > 1:
        yield "measured together with: " + "; ".join(f"{name}: {', '.join(o)}" for name, o in beside.items())
    if unknown := [run.name for run, found in zip(runs, flags, strict=True) if found is None]:
        yield f"flags unknown: {', '.join(unknown)}"


def _is_measured(value: str) -> bool:
    """Whether a cell is a number with a fraction, such as a p value, and so not a description.

    >>> [_is_measured(value) for value in ("0.5", "1e-4", "3", "normed", "")]
    [True, True, False, False, False]
    """
    try:
        return bool(value) and not value.lstrip("-").isdigit() and math.isfinite(float(value))
    except ValueError:
        return False
