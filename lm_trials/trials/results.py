"""Results of a comparison: a row for each run, each arm and each difference, of every data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_trials.estimates import Estimate, StoryBootstrap, mean_over_seeds
from lm_trials.trials.evaluations import BITS, NATS, SharedEvaluation
from lm_trials.trials.measurements import Measurement
from lm_trials.trials.paired import TestedDifference, holm, seed_test, story_test
from lm_trials.trials.runs import Arm

OVER_STORIES, OVER_SEEDS = "stories", "seeds"
OF_ONE = "one model"  # the interval of a number from a table, whatever was resampled for it


@dataclass(frozen=True)
class DatasetResult:
    """The results of a comparison on one data set.

    Attributes:
        rows: the table; `row` is run, arm or difference (from the reference), `interval` what the interval is over,
            `n` the number of stories.
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
    estimates = [_over_stories(losses_N, shared.sizes_N, shared.unit) for losses_N in shared.losses_RN]
    ends = np.cumsum([len(arm.runs) for arm in arms])
    means_AN = [losses_SN.mean(axis=0) for losses_SN in np.split(shared.losses_RN, ends[:-1])]

    def tested(place: int) -> TestedDifference:
        return story_test(means_AN[place] - means_AN[0], shared.sizes_N, shared.unit)

    return _result(arms, shared.dataset, estimates, shared.notes, tested)


def own_result(arms: Sequence[Arm], metrics: Sequence[Mapping[str, float]]) -> DatasetResult:
    """Compare arms by each run's own last evaluation, without the losses of single stories."""
    same_tokens = len({arm.outcome.get("data.tokenizer_hash") for arm in arms}) == 1
    metric, unit = ("eval_loss", NATS) if same_tokens else ("eval_bits_per_byte", BITS)
    estimates = []
    for values in metrics:
        lower, upper = (values.get(f"{metric}_{end}", math.nan) for end in ("lower", "upper"))
        estimates.append(Estimate(values[metric], lower, upper, int(values["eval_samples"]), unit))
    notes = ("each run's own last evaluation on its validation split; a test needs the losses of single stories",)
    return _result(arms, "own validation split", estimates, notes, None)


def measured_result(arms: Sequence[Arm], found: Measurement) -> DatasetResult:
    """Compare arms by one number of each run, over seeds only, as single stories are unknown."""
    result = _result(arms, found.name, found.estimates, found.notes, None)
    rows = [{**row, "interval": OF_ONE} if row["interval"] == OVER_STORIES else row for row in result.rows]
    return replace(result, rows=tuple(rows), of_losses=False)


def _over_stories(losses_N: np.ndarray, sizes_N: np.ndarray, unit: str) -> Estimate:
    bootstrap = StoryBootstrap(seed=0)
    bootstrap.update(np.stack([losses_N, sizes_N], axis=1))
    return bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], unit)


def _result(
    arms: Sequence[Arm],
    dataset: str,
    estimates: Sequence[Estimate],
    notes: Sequence[str],
    story_difference: Callable[[int], TestedDifference] | None,
) -> DatasetResult:
    """Return the rows of runs, arms and differences; `estimates` has one for each run, in the arms' order."""
    runs = [(arm, run) for arm in arms for run in arm.runs]
    by_arm = {arm.label: [e for (of, _), e in zip(runs, estimates, strict=True) if of is arm] for arm in arms}
    rows = []
    for (arm, run), estimate in zip(runs, estimates, strict=True):
        seed, data_seed, _ = run.seeds
        shown = {"run": run.name, "seed": seed, "data_seed": data_seed, "seeds": 1, "interval": OVER_STORIES}
        rows.append(_row(dataset, "run", arm.label, estimate, **shown))
    rows += [_arm_row(dataset, arm, by_arm[arm.label]) for arm in arms]
    over_seeds = [_over_seeds(arms[0], arm, by_arm) for arm in arms[1:]]
    over_stories = [story_difference(place) for place in range(1, len(arms))] if story_difference else []
    for interval, tests in ((OVER_STORIES, over_stories), (OVER_SEEDS, over_seeds)):
        corrected = iter(holm([test.p for test in tests if test is not None]))
        for arm, test in zip(arms[1:], tests, strict=False):  # `over_stories` may be empty
            if test is None:
                continue
            shown = {"reference": arms[0].label, "seeds": len(arms[0].runs) + len(arm.runs), "interval": interval}
            shown |= {"method": test.method, "p": test.p, "p_holm": next(corrected)}
            rows.append(_row(dataset, "difference", arm.label, test.difference, **shown))
    return DatasetResult(dataset, estimates[0].unit, tuple(rows), tuple(notes))


def _arm_row(dataset: str, arm: Arm, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return an arm's mean over its seeds; of one seed, the run's loss with its interval over stories."""
    first = estimates[0]
    several = len(estimates) > 1
    whole = mean_over_seeds([e.estimate for e in estimates], first.n, first.unit) if several else first
    interval = OVER_SEEDS if several else OVER_STORIES
    return _row(dataset, "arm", arm.label, whole, seeds=len(estimates), interval=interval)


def _over_seeds(reference: Arm, arm: Arm, by_arm: Mapping[str, Sequence[Estimate]]) -> TestedDifference | None:
    """Test an arm against the reference over seeds: in pairs where both have the same seeds."""
    first, second = (
        {run.seeds: estimate for run, estimate in zip(a.runs, by_arm[a.label], strict=True)} for a in (reference, arm)
    )
    paired = first.keys() == second.keys()
    losses = [e.estimate for e in first.values()], [second[s].estimate for s in (first if paired else second)]
    some = next(iter(first.values()))
    return seed_test(*losses, n=some.n, unit=some.unit, paired=paired)


def _row(dataset: str, kind: str, arm: str, estimate: Estimate, **more: Any) -> dict[str, Any]:
    """Return one row with the columns of every kind, in their order; None for those that its kind lacks."""
    columns = ("reference", "run", "seed", "data_seed", "seeds", "interval", "method", "p", "p_holm")
    return {"dataset": dataset, "row": kind, "arm": arm, **estimate.row(), **{name: more.get(name) for name in columns}}
