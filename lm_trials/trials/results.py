"""Results of a comparison: a row for each run, each arm and each difference, of every data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_trials.estimates import Estimate, StoryBootstrap
from lm_trials.trials.evaluations import BITS, NATS, SharedEvaluation
from lm_trials.trials.measurements import Measurement
from lm_trials.trials.paired import TestedDifference, holm, mean_over_seeds, seed_test, story_test
from lm_trials.trials.runs import Arm

OVER_STORIES, OVER_SEEDS = "stories", "seeds"
OF_ONE = "one model"
"""What the interval of a table's number is about, whatever was resampled for it."""


@dataclass(frozen=True)
class DatasetResult:
    """What a comparison found on one data set.

    Attributes:
        rows: the table; `row` says of each whether it is a run, an arm or a difference of an arm from the reference,
            `interval` what its interval is over, and `n` counts the stories.
        notes: what a reader has to know beside the numbers.
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
    """Compare arms story by story; the stories are `shared`'s, a row of losses for each run in the arms' order."""
    estimates = [_over_stories(losses_N, shared.sizes_N, shared.unit) for losses_N in shared.losses_RN]
    ends = np.cumsum([len(arm.runs) for arm in arms])
    means_AN = [losses_SN.mean(axis=0) for losses_SN in np.split(shared.losses_RN, ends[:-1])]

    def tested(place: int) -> TestedDifference:
        return story_test(means_AN[place] - means_AN[0], shared.sizes_N, shared.unit)

    return _result(arms, shared.dataset, estimates, shared.notes, tested)


def own_result(arms: Sequence[Arm], metrics: Sequence[Mapping[str, float]]) -> DatasetResult:
    """Compare arms by each run's own last evaluation, whose single stories are not known."""
    same_tokens = len({arm.outcome.get("data.tokenizer_hash") for arm in arms}) == 1
    metric, unit = ("eval_loss", NATS) if same_tokens else ("eval_bits_per_byte", BITS)
    estimates = [
        Estimate(
            values[metric],
            *(values.get(f"{metric}_{end}", math.nan) for end in ("lower", "upper")),
            n=int(values["eval_samples"]),
            unit=unit,
        )
        for values in metrics
    ]
    notes = ("each run's own last evaluation on its validation split: without the losses of single stories no test",)
    return _result(arms, "own validation split", estimates, notes, None)


def measured_result(arms: Sequence[Arm], found: Measurement) -> DatasetResult:
    """Compare arms by one number of each run; only over seeds, as single stories are not known."""
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
    """Put the rows together; `estimates` has one for each run, in the arms' order."""
    runs = [(arm, run) for arm in arms for run in arm.runs]
    by_arm = {arm.label: [e for (of, _), e in zip(runs, estimates, strict=True) if of is arm] for arm in arms}
    rows = []
    for (arm, run), estimate in zip(runs, estimates, strict=True):
        seed, data_seed, _ = run.seeds
        shown = {"run": run.name, "seed": seed, "data_seed": data_seed, "seeds": 1, "interval": OVER_STORIES}
        rows.append(_row(dataset, "run", arm.label, estimate, **shown))
    for arm in arms:
        rows.append(_arm_row(dataset, arm, by_arm[arm.label]))
    over_seeds = [_over_seeds(arms[0], arm, by_arm) for arm in arms[1:]]
    over_stories = [story_difference(place) for place in range(1, len(arms))] if story_difference else []
    for interval, tests in ((OVER_STORIES, over_stories), (OVER_SEEDS, over_seeds)):
        corrected = iter(holm([test.p for test in tests if test is not None]))
        for arm, test in zip(arms[1:], tests or [None] * (len(arms) - 1), strict=True):
            if test is not None:
                rows.append(
                    _row(
                        dataset,
                        "difference",
                        arm.label,
                        test.difference,
                        reference=arms[0].label,
                        seeds=len(arms[0].runs) + len(arm.runs),
                        interval=interval,
                        method=test.method,
                        p=test.p,
                        p_holm=next(corrected),
                    )
                )
    return DatasetResult(dataset, estimates[0].unit, tuple(rows), tuple(notes))


def _arm_row(dataset: str, arm: Arm, estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return an arm's mean over its seeds; with one seed, that run's loss and its interval over stories."""
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
    any_ = next(iter(first.values()))
    return seed_test(*losses, n=any_.n, unit=any_.unit, paired=paired)


def _row(dataset: str, kind: str, arm: str, estimate: Estimate, **more: Any) -> dict[str, Any]:
    """Return one row with the columns of every kind, in their order; what a kind lacks is None."""
    columns = ("reference", "run", "seed", "data_seed", "seeds", "interval", "method", "p", "p_holm")
    return {"dataset": dataset, "row": kind, "arm": arm, **estimate.row(), **{name: more.get(name) for name in columns}}
