"""Compare runs: which variables differ, and the differences of the results with
intervals and tests. Reads files only.

    lm-trials compare runs/a-s1 runs/a-s2 runs/b-s1 runs/b-s2
    lm-trials compare runs/a runs/b runs/c --baseline runs/b

A number of a probe or of the feature scores, over seeds; `--where` selects the
row of its table:

    lm-trials compare runs/[ab]-s* --table probes/lens/lens.csv \\
        --where lens=tuned layer=2 metric=loss

Runs that differ in seeds alone are one arm. Each arm is compared with the first
on every data set that all runs were evaluated on (`lm-trials evaluate
--model_name_or_path runs/a runs/b`). The first interval is for new root seeds
and new stories. Runs of one root seed, such as fine-tunings of one base, are
averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import script
from lm_trials.files import write_csv, write_file, write_json
from lm_trials.flags import option, parse_arguments
from lm_trials.trials.compare_tables import show_arms, show_next, show_result
from lm_trials.trials.differences import Variable, differing_logistics, find_variables, names_only, same_passes, verdict
from lm_trials.trials.evaluations import evaluation_command, join_stories, own_validation, shared_sets
from lm_trials.trials.measurements import measurement_title, read_measurement
from lm_trials.trials.results import (
    EXPLORATORY,
    DatasetResult,
    as_one_family,
    measured_result,
    own_result,
    paired_result,
)
from lm_trials.trials.runs import Arm, group_arms, read_runs


@dataclass
class CompareArguments:
    """Which runs are compared, on which data, and where the results go."""

    runs: list[str] = option([], help="Folders of the runs; the flag itself may be omitted.")
    baseline: str | None = option(None, help="Run whose arm is the reference. Default: the first.")
    dataset_name: list[str] = option([], help="Folders under <run>/eval to compare on. Default: all shared ones.")
    table: str | None = option(
        None,
        not_with="dataset_name",
        help="Compare a number of this table instead of losses: under each run, or one table of all runs.",
    )
    where: list[str] = option([], needs="table", help="COLUMN=VALUE conditions that select one row per run of --table.")
    output: str = option("out/compare", output=True, help="Folder of compare.json, compare.csv and compare.png.")


@dataclass(frozen=True)
class Comparison:
    """Arms, the variables that differ between them, and the results on each data set.

    Attributes:
        arms: the first is the reference.
        names: fields that differ and only name the same thing differently.
        logistics: fields that differ and change no result.
        results: one for each data set; empty without a shared evaluation.
        next_command: the command that makes a shared evaluation; None if there is one.
    """

    arms: tuple[Arm, ...]
    variables: tuple[Variable, ...]
    names: tuple[str, ...]
    logistics: tuple[str, ...]
    results: tuple[DatasetResult, ...]
    next_command: str | None = None

    @property
    def verdict(self) -> str:
        """How many variables differ, in one line."""
        return verdict(self.variables)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table of all data sets."""
        return [dict(row) for result in self.results for row in result.rows]

    def described(self) -> dict[str, Any]:
        """Return everything as values of JSON."""
        facts = ("steps", "finished", "num_tokens", "parameters")
        arms = [
            {
                "label": arm.label,
                "root_seeds": arm.roots,
                "runs": [
                    {"run": run.name, **run.replicate, "root": run.root, **{fact: getattr(run, fact) for fact in facts}}
                    for run in arm.runs
                ],
            }
            for arm in self.arms
        ]
        labels = [arm.label for arm in self.arms]
        variables = [
            {"name": v.name, "fields": {f: dict(zip(labels, values, strict=True)) for f, values in v.fields.items()}}
            for v in self.variables
        ]
        return {
            "verdict": self.verdict,
            "arms": arms,
            "variables": variables,
            "names_only": self.names,
            "logistics": self.logistics,
            "family": EXPLORATORY,
            "results": [asdict(result) for result in self.results],
            "next_command": self.next_command,
        }


def compare_arguments(argv: list[str] | None) -> CompareArguments:
    """Parse the flags; runs may be given first, without `--runs`."""
    (args,) = parse_arguments(argv, (CompareArguments,), __doc__ or "", prog="lm-trials compare", first="runs")
    return args


def compare_runs(
    names: Sequence[str],
    baseline: str | None = None,
    datasets: Sequence[str] = (),
    table: str | None = None,
    where: Sequence[str] = (),
) -> Comparison:
    """Compare run folders: their variables, then the losses on each shared data set, or else on the validation splits.

    With `table`, one number of each run is compared instead, from the row of that table that `where` selects.

    Raises:
        UsageError: see `read_runs`, `group_arms`, `shared_sets`, `join_stories` and `read_measurement`.
    """
    arms = group_arms(read_runs(names), baseline)
    runs = [run for arm in arms for run in arm.runs]
    if table is not None:
        shared: Sequence[str] = [table]
        results = [measured_result(arms, read_measurement(runs, table, where))]
    else:
        shared = shared_sets(runs, datasets)
        results = [paired_result(arms, join_stories(runs, dataset)) for dataset in shared]
    if not results and (metrics := own_validation(runs)):
        results = [own_result(arms, metrics)]
    variables = find_variables([arm.outcome for arm in arms], same_passes([arm.runs[0] for arm in arms]))
    counted = {field for variable in variables for field in variable.fields}
    return Comparison(
        tuple(arms),
        tuple(variables),
        tuple(name for name in names_only([run.outcome for run in runs]) if name not in counted),
        tuple(differing_logistics(runs)),
        as_one_family(results),
        None if shared else evaluation_command(runs),
    )


def write_comparison(folder: Path, comparison: Comparison, title: str | None = None) -> None:
    """Write `compare.json` and, with results, `compare.csv` and `compare.png` with a title (None: losses)."""
    from lm_trials.reporting.arm_figures import arms_figure

    table, figure = folder / "compare.csv", folder / "compare.png"
    if rows := comparison.rows():
        write_csv(table, rows)
        write_file(figure, lambda place: arms_figure(rows, title).savefig(place, format="png", dpi=150))
    else:  # the files of an earlier comparison would be taken for this one's
        table.unlink(missing_ok=True)
        figure.unlink(missing_ok=True)
    write_json(folder / "compare.json", comparison.described())


@script
def main(argv: list[str] | None = None) -> Comparison:
    """Compare runs, show and write the results; returns the comparison."""
    args = compare_arguments(argv)
    folder = Path(args.output)
    comparison = compare_runs(args.runs, args.baseline, args.dataset_name, args.table, args.where)
    show_arms(comparison.arms, comparison.variables, comparison.names, comparison.logistics)
    count = len({(row["dataset"], row["arm"]) for row in comparison.rows() if row["row"] == "difference"})
    for result in comparison.results:
        show_result(comparison.arms, result, count)
    write_comparison(folder, comparison, measurement_title(args.table, args.where) if args.table else None)
    show_next(folder, bool(comparison.results), comparison.next_command)
    return comparison
