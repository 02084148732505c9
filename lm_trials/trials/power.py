"""How many root seeds decide a difference, or show that two arms are equivalent.

    lm-trials power --difference 0.02 --spread 0.022
    lm-trials power --difference 0.02 --runs runs/a-s* runs/b-s*
    lm-trials power --margin 0.01 --spread 0.022

The spread is the standard deviation over root seeds of the paired difference of two arms.  With `--runs` it is
computed from runs at hand, with the training time of the seeds that are missing.  A spread from few seeds is
uncertain, and so is the number of seeds: both have an interval.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from lm_trials.console import UsageError, script, show_facts, show_table
from lm_trials.files import write_csv, write_file
from lm_trials.flags import option, parse_arguments
from lm_trials.trials.compare import Comparison, compare_runs
from lm_trials.trials.results import DatasetResult
from lm_trials.trials.runs import Arm
from lm_trials.trials.screen import clock

MOST_SEEDS = 100_000
SHOWN_SEEDS = (3, 5, 8, 12, 20)
NODES = 2_000  # of the quadrature over standard deviations; power within 0.0001


@dataclass
class PowerArguments:
    """The difference to decide, and the spread over root seeds."""

    difference: float | None = option(
        None,
        above=0,
        why="its sign does not matter",
        help="Smallest difference of two arms that the trial is to find, in the unit of the outcome.",
    )
    margin: float | None = option(
        None,
        above=0,
        not_with="difference",
        help="Instead: margin within which equal arms are to be shown equivalent (TOST).",
    )
    spread: float | None = option(
        None, above=0, not_with="runs", help="Standard deviation over root seeds of the paired difference."
    )
    runs: list[str] = option([], help="Instead: folders of runs of two or more arms, which have a spread.")
    baseline: str | None = option(None, needs="runs", help="Run whose arm is the reference. Default: the first.")
    dataset_name: list[str] = option([], needs="runs", help="Folders under <run>/eval. Default: all shared ones.")
    table: str | None = option(
        None, needs="runs", not_with="dataset_name", help="Use a number of this table instead of losses."
    )
    where: list[str] = option([], needs="table", help="COLUMN=VALUE conditions that select one row per run of --table.")
    power: float = option(0.8, above=0, below=1, help="Probability of deciding the difference if it is that large.")
    alpha: float = option(0.05, above=0, below=1, help="Level: two-sided, or of each of the two tests of --margin.")
    output: str | None = option(None, output=True, help="Folder of power.csv and power.png.")


@dataclass(frozen=True)
class Spread:
    """The standard deviation over root seeds of one paired difference.

    Attributes:
        name: of the difference.
        seeds: root seeds that both arms have; None for a stated spread.
        seconds: training time of one more seed in both arms; None if it is not known.
    """

    name: str
    value: float
    seeds: int | None = None
    seconds: float | None = None

    @property
    def interval(self) -> tuple[float, ...]:
        """The 95 % interval for normally distributed differences (chi-square); empty for a stated spread.

        >>> [round(limit, 4) for limit in Spread("B minus A", 0.022, seeds=3).interval]
        [0.0115, 0.1383]
        """
        from scipy import stats  # takes most of a second to import

        if self.seeds is None:
            return ()
        freedom = self.seeds - 1
        return tuple(self.value * math.sqrt(freedom / stats.chi2.ppf(q, freedom)) for q in (0.975, 0.025))


def paired_power(seeds: int, effect: float, alpha: float = 0.05) -> float:
    """Return the power of the two-sided paired t test, from the noncentral t distribution.

    Args:
        seeds: pairs of root seeds, at least 2.
        effect: the true difference divided by the spread.

    >>> round(paired_power(15, 0.8), 3)
    0.821
    """
    from scipy import stats  # takes most of a second to import

    limit, shift = stats.t.isf(alpha / 2, seeds - 1), min(effect * math.sqrt(seeds), 1e6)  # scipy's largest: 1e17
    tails = stats.nct.sf(limit, seeds - 1, shift), stats.nct.cdf(-limit, seeds - 1, shift)
    return min(float(np.nan_to_num(tails).sum()), 1.0)  # the lower tail is NaN where it is below 1e-100


def equivalence_power(seeds: int, effect: float, alpha: float = 0.05) -> float:
    """Return the probability that equal arms are shown equivalent: that both one-sided t tests are significant.

    Args:
        effect: the margin divided by the spread.

    >>> round(equivalence_power(11, 1.0), 3)
    0.849
    """
    from scipy import special, stats  # takes most of a second to import

    spreads = np.sqrt(stats.chi2.ppf((np.arange(NODES) + 0.5) / NODES, seeds - 1) / (seeds - 1))
    rooms = effect * math.sqrt(seeds) - stats.t.isf(alpha, seeds - 1) * spreads  # for the mean, in standard errors
    return float((2 * special.ndtr(np.maximum(rooms, 0)) - 1).mean())


def seeds_needed(power_of: Callable[[int, float, float], float], effect: float, power: float, alpha: float) -> int:
    """Return the smallest number of root seeds with a power; above `MOST_SEEDS` if that is not enough.

    >>> [seeds_needed(paired_power, effect, 0.8, 0.05) for effect in (0.5, 0.8, 1.0)]
    [34, 15, 10]
    """
    return 2 + bisect_left(range(2, MOST_SEEDS + 1), power, key=lambda seeds: power_of(seeds, effect, alpha))


def spreads_of(comparison: Comparison) -> list[Spread]:
    """Return the spread of each arm's difference from the reference, on each data set.

    Raises:
        UsageError: for runs of one arm, without a shared result, or with fewer than two root seeds in both arms.
    """
    reference, *others = comparison.arms
    if not others:
        raise UsageError("--runs: these runs are one arm, equal but for seeds; name runs of two arms, or give --spread")
    if not comparison.results:
        raise UsageError(f"--runs have no shared results to compare; make them: {comparison.next_command}")
    found = []
    for result in comparison.results:
        of_reference = _by_root(result, reference)
        for arm in others:
            of_arm = _by_root(result, arm)
            differences = [of_arm[root] - of_reference[root] for root in of_reference if root in of_arm]
            name = f"{arm.label} minus {reference.label}, {result.dataset}"
            if len(differences) < 2:
                shared = f"arms {reference.label} and {arm.label} share {len(differences)} root seeds"
                raise UsageError(f"--runs: {shared}, so no spread can be computed; train two seeds, or give --spread")
            if not (value := stdev(differences)):
                raise UsageError(f"--runs: {name} is the same for all root seeds; give --spread")
            found.append(Spread(name, value, len(differences), _seconds([reference, arm])))
    return found


def _by_root(result: DatasetResult, arm: Arm) -> dict[Any, float]:
    """Return an arm's mean over the runs of each root seed."""
    rows = [row for row in result.of("run") if row["arm"] == arm.label]
    return {root: mean(row["estimate"] for row in rows if row["root"] == root) for root in arm.roots}


def _seconds(arms: Sequence[Arm]) -> float | None:
    """Return the training time of one run of each arm: the longest recorded, as a resumed run records its last part."""
    longest = [max(run.training_seconds for run in arm.runs) for arm in arms]
    return sum(longest) if all(longest) else None


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Show how many root seeds are needed; returns the rows of `power.csv`."""
    (args,) = parse_arguments(argv, (PowerArguments,), __doc__ or "", prog="lm-trials power")
    if args.difference is None and args.margin is None:
        raise UsageError("--difference is missing; give the smallest difference that matters, or --margin")
    if args.spread is None and not args.runs:
        raise UsageError("--spread is missing; give the standard deviation over root seeds, or --runs to compute it")
    spreads = [Spread("stated spread", args.spread)] if args.spread else []
    if args.runs:
        spreads = spreads_of(compare_runs(args.runs, args.baseline, args.dataset_name, args.table, args.where))
    size, power_of = (args.margin, equivalence_power) if args.margin else (args.difference or 0.0, paired_power)

    def needed(spread: float) -> int:
        return seeds_needed(power_of, size / spread, args.power, args.alpha)

    counts = [needed(spread.value) for spread in spreads]
    facts = {
        "decide": f"{'equivalence within' if args.margin else 'a difference of'} {size:g}",
        "test": "two one-sided paired t tests, equal arms" if args.margin else "two-sided paired t test",
        "level, power": f"{args.alpha:g}, {args.power:g}",
    }
    if args.spread:
        facts |= {"spread": f"{args.spread:g} over root seeds, as given", "root seeds": _count(counts[0])}
    show_facts("power", facts)
    if args.runs:
        _show_spreads(spreads, counts, needed)
    marked = {*SHOWN_SEEDS, *(min(count, MOST_SEEDS) for count in counts)}
    curve = sorted({*np.geomspace(2, 2 * max(marked), 30).astype(int).tolist(), *marked})
    rows = []
    for spread in spreads:
        ends = dict(zip(("lower", "upper"), spread.interval[::-1], strict=False))  # a stated spread has none
        for seeds in curve:
            powers = {
                name: power_of(seeds, size / sd, args.alpha) for name, sd in ({"estimate": spread.value} | ends).items()
            }
            rows.append({"difference": spread.name, "seeds": seeds, **powers, "n": spread.seeds, "unit": "power"})
    names = [spread.name for spread in spreads]
    power = {(row["seeds"], row["difference"]): f"{row['estimate']:.3f}" for row in rows}
    cells = [[f"{seeds:,}", *(power[seeds, name] for name in names)] for seeds in sorted(marked)]
    show_table("power", ["root seeds", *names], cells)
    show_facts("next", {"register": "write the seeds into a trial file before the first run (lm-trials new)"})
    if args.output:
        from lm_trials.reporting.arm_figures import power_figure

        table, figure = Path(args.output, "power.csv"), Path(args.output, "power.png")
        write_csv(table, rows)
        write_file(figure, lambda path: power_figure(rows, facts["decide"]).savefig(path, format="png", dpi=150))
        show_facts("results", {"files": f"{table}, {figure}"})
    return rows


def _show_spreads(spreads: Sequence[Spread], counts: Sequence[int], needed: Callable[[float], int]) -> None:
    """Print each spread, the root seeds it needs, and the time of those that are missing."""
    rows = []
    for spread, count in zip(spreads, counts, strict=True):
        missing = max(count - (spread.seeds or 0), 0)
        time = "none" if not missing else clock(spread.seconds and missing * spread.seconds)
        numbers = (f"{sd:.4f}" for sd in (spread.value, *spread.interval))
        seeds = _count(count), *(_count(needed(sd)) for sd in spread.interval)
        rows.append([spread.name, f"{spread.seeds}", *numbers, *seeds, f"{missing:,}", time])
    columns = ["seeds\nat hand", "spread", "lower", "upper", "seeds\nneeded", "lower", "upper", "missing", "time"]
    caption = (
        "Spread: standard deviation over root seeds of the paired difference, with its 95 % interval, and the seeds "
        "that its limits need. Time: training of the missing seeds in both arms, one run after another, as these runs "
        "took. More seeds do not reduce the uncertainty from the stories."
    )
    show_table("spread", ["difference", *columns], rows, caption=caption)


def _count(seeds: int) -> str:
    return f"{seeds:,}" if seeds <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"
