"""Results of a comparison: a row for each run, each arm and each difference, of every data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_trials.estimates import NO_INTERVAL, Estimate, StoryBootstrap, mean_over_seeds, scale_of
from lm_trials.trials.evaluations import BITS, NATS, SharedEvaluation
from lm_trials.trials.measurements import Measurement
from lm_trials.trials.paired import TestedDifference, holm, seed_test, story_test
from lm_trials.trials.runs import Arm
from lm_trials.trials.two_way import two_way

OVER_BOTH, OVER_STORIES, OVER_SEEDS = "seeds and stories", "stories", "seeds"
OF_ONE = "one model"  # the interval of a number from a table, whatever was resampled for it
FEWEST_PAIRS = 3  # root seeds that two arms share, from which on others are left out: two pairs give a t of 12.7
EXPLORATORY = "exploratory"
PAIRED, UNPAIRED = "paired by root seed", "root seeds not paired"


@dataclass(frozen=True)
class DatasetResult:
    """The results of a comparison on one data set.

    Attributes:
        rows: the table; `row` is run, arm or difference (from the reference), `interval` what the interval is over,
            `seeds` the number of root seeds, `n` that of stories.  The first interval of each is the headline.
        notes: for the caption.
        of_losses: whether the numbers are losses, of which less is better.
    """

    dataset: str
    unit: str
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    of_losses: bool = True

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the rows of one kind: run, arm or difference."""
        return [row for row in self.rows if row["row"] == kind]


def paired_result(arms: Sequence[Arm], shared: SharedEvaluation) -> DatasetResult:
    """Compare arms story by story; `shared` has a row of losses for each run, in the arms' order."""
    sizes_N, unit = shared.sizes_N, shared.unit
    runs = [_over_stories(losses_N, sizes_N, unit) for losses_N in shared.losses_RN]
    by_root = _by_root(arms, list(shared.losses_RN))
    whole = []
    for losses in by_root:
        losses_SN = np.array(list(losses.values()))
        if len(losses) > 1:
            whole.append((two_way(losses_SN, sizes_N, unit).difference, OVER_BOTH))
        else:
            whole.append((_over_stories(losses_SN[0], sizes_N, unit), OVER_STORIES))

    def tests(first: np.ndarray, second: np.ndarray, paired: bool) -> dict[str, TestedDifference | None]:
        both = two_way(second - first, sizes_N, unit) if paired else two_way(second, sizes_N, unit, first)
        ratios = [losses_SN.sum(axis=1) / sizes_N.sum() for losses_SN in (first, second)]
        return {
            OVER_BOTH: both if min(len(first), len(second)) > 1 else None,
            OVER_STORIES: story_test(second.mean(axis=0) - first.mean(axis=0), sizes_N, unit),
            OVER_SEEDS: seed_test(ratios[0], ratios[1], len(sizes_N), unit, paired),
        }

    return _result(arms, shared.dataset, unit, shared.notes, (runs, OVER_STORIES), whole, by_root, tests)


def own_result(arms: Sequence[Arm], metrics: Sequence[Mapping[str, float]]) -> DatasetResult:
    """Compare arms by each run's own last evaluation, without the losses of single stories."""
    same_tokens = len({arm.outcome.get("data.tokenizer_hash") for arm in arms}) == 1
    metric, unit = ("eval_loss", NATS) if same_tokens else ("eval_bits_per_byte", BITS)
    estimates = []
    for values in metrics:
        ends = [values.get(f"{metric}_{end}") for end in ("lower", "upper")]
        lower, upper = (math.nan if end is None else end for end in ends)
        estimates.append(Estimate(values[metric], lower, upper, int(values["eval_samples"]), unit))
    notes = ("each run's own last evaluation on its validation split; a test needs the losses of single stories",)
    return _over_seeds(arms, "own validation split", estimates, notes, OVER_STORIES)


def measured_result(arms: Sequence[Arm], found: Measurement) -> DatasetResult:
    """Compare arms by one number of each run, over root seeds only, as single stories are unknown."""
    return replace(_over_seeds(arms, found.name, found.estimates, found.notes, OF_ONE), of_losses=False)


def as_one_family(results: Sequence[DatasetResult]) -> tuple[DatasetResult, ...]:
    """Correct the p values of all differences together, each question by itself, and label them exploratory.

    The questions are the intervals: new seeds and stories, new stories, new seeds.  A trial's file registers what it
    tests; here the data sets and arms were chosen when the results may have been known.
    """
    rows = [row for result in results for row in result.of("difference")]
    corrected: dict[int, float] = {}
    for interval in (OVER_BOTH, OVER_STORIES, OVER_SEEDS):
        of_it = [row for row in rows if row["interval"] == interval]
        corrected |= zip(map(id, of_it), holm([row["p"] for row in of_it]), strict=True)

    def labelled(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**row, "p_holm": corrected[id(row)], "family": EXPLORATORY} if id(row) in corrected else row

    return tuple(replace(result, rows=tuple(map(labelled, result.rows))) for result in results)


def matched(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> tuple[list[Any], list[Any], str]:
    """Return the values of two arms by root seed as they are compared, and how they are paired.

    Pairs are a parent and its child, two children of one base, or runs of one seed: they share initial weights or the
    order of the data.  Root seeds of one arm alone are left out if three or more, or all of an arm, are shared.

    >>> matched({1: "a", 2: "b"}, {2: "c", 1: "d"}), matched({1: "a", 2: "b"}, {2: "c", 3: "d"})
    ((['a', 'b'], ['d', 'c'], 'paired by root seed'), (['a', 'b'], ['c', 'd'], 'root seeds not paired'))
    >>> matched({1: "a"}, {1: "b", 2: "c"})
    (['a'], ['b'], 'paired by root seed: 1 that both arms have')
    """
    shared = [root for root in first if root in second]
    if len(shared) < min(len(first), len(second), FEWEST_PAIRS):
        return list(first.values()), list(second.values()), UNPAIRED
    left_out = len(shared) < max(len(first), len(second))
    how = f"{PAIRED}: {len(shared)} that both arms have" if left_out else PAIRED
    return [first[root] for root in shared], [second[root] for root in shared], how


def _by_root(arms: Sequence[Arm], values: Sequence[Any]) -> list[dict[Any, Any]]:
    """Return each arm's values by root seed, the mean of its runs; `values` has one for each run, in their order."""
    left = iter(values)
    found = []
    for arm in arms:
        of_runs = [(run.root, next(left)) for run in arm.runs]
        found.append({root: np.mean([value for of, value in of_runs if of == root], axis=0) for root in arm.roots})
    return found


def _over_stories(losses_N: np.ndarray, sizes_N: np.ndarray, unit: str) -> Estimate:
    bootstrap = StoryBootstrap(seed=0)
    bootstrap.update(np.stack([losses_N, sizes_N], axis=1))
    return bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], unit)


def _over_seeds(
    arms: Sequence[Arm], dataset: str, estimates: Sequence[Estimate], notes: Sequence[str], interval: str
) -> DatasetResult:
    """Return the rows of numbers without single stories; `interval` is what a run's own is over."""
    n, unit = estimates[0].n, estimates[0].unit
    by_root = _by_root(arms, [estimate.estimate for estimate in estimates])
    of_run = {run.name: e for run, e in zip((run for arm in arms for run in arm.runs), estimates, strict=True)}
    whole = []
    for arm, values in zip(arms, by_root, strict=True):
        one = of_run[arm.runs[0].name]
        if len(values) > 1:
            shares = all(0 <= value <= 1 for value in values.values())
            one = mean_over_seeds(list(values.values()), n, unit, scale_of(unit) if shares else "identity")
        elif len(arm.runs) > 1:
            one = Estimate(float(next(iter(values.values()))), *NO_INTERVAL, n, unit)
        whole.append((one, OVER_SEEDS if len(values) > 1 else interval))

    def tests(first: np.ndarray, second: np.ndarray, paired: bool) -> dict[str, TestedDifference | None]:
        return {OVER_SEEDS: seed_test(first, second, n, unit, paired)}

    return _result(arms, dataset, unit, notes, (estimates, interval), whole, by_root, tests)


def _result(
    arms: Sequence[Arm],
    dataset: str,
    unit: str,
    notes: Sequence[str],
    of_runs: tuple[Sequence[Estimate], str],
    of_arms: Sequence[tuple[Estimate, str]],
    by_root: Sequence[Mapping[Any, Any]],
    tests: Callable[[np.ndarray, np.ndarray, bool], Mapping[str, TestedDifference | None]],
) -> DatasetResult:
    """Return the rows of runs, arms and differences.

    Args:
        of_runs: the estimate of each run, in the arms' order, and what their intervals are over.
        of_arms: that of each arm, with what its interval is over.
        by_root: of each arm, the values of its root seeds, for `tests`.
    """
    rows = []
    runs = [(arm, run) for arm in arms for run in arm.runs]
    for (arm, run), estimate in zip(runs, of_runs[0], strict=True):
        seed, data_seed, _ = run.seeds
        shown = {"run": run.name, "seed": seed, "data_seed": data_seed, "root": run.root, "seeds": 1}
        rows.append(_row(dataset, "run", arm.label, estimate, interval=of_runs[1], **shown))
    for arm, (estimate, interval) in zip(arms, of_arms, strict=True):
        rows.append(_row(dataset, "arm", arm.label, estimate, seeds=len(arm.roots), interval=interval))
    for arm, values in zip(arms[1:], by_root[1:], strict=True):
        first, second, how = matched(by_root[0], values)
        paired = how != UNPAIRED
        shown = {"reference": arms[0].label, "seeds": len(first) + (0 if paired else len(second)), "pairing": how}
        for interval, test in tests(np.array(first), np.array(second), paired).items():
            if test is not None:
                more = {**shown, "interval": interval, "method": test.method, "p": test.p}
                rows.append(_row(dataset, "difference", arm.label, test.difference, **more))
    return DatasetResult(dataset, unit, tuple(rows), tuple(notes))


def _row(dataset: str, kind: str, arm: str, estimate: Estimate, **more: Any) -> dict[str, Any]:
    """Return one row with the columns of every kind, in their order; None for those that its kind lacks."""
    whose = ("reference", "run", "seed", "data_seed", "root", "seeds")
    columns = (*whose, "interval", "pairing", "method", "p", "p_holm", "family")
    return {"dataset": dataset, "row": kind, "arm": arm, **estimate.row(), **{name: more.get(name) for name in columns}}
