"""Series: a metric at each checkpoint of a run, and the update from which it stays near its end.

The rule is registered: the first checkpoint from which on a metric stays within delta of its end value, the end being
fixed before the runs.  Change-point methods move with the end.  Delta is a share of the change from the first
checkpoint to the end.  Sampling noise alone moves a metric, so a checkpoint counts as away from the end only if it is
further away than chance explains, too.  The limits of a step are those of checkpoints that are away, or near, for sure.

Shape suffixes: C = checkpoints, N = texts, K = sums kept per story.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lm_trials.estimates import STEP, Estimate, bootstrap_mean, scale_of
from lm_trials.trials.thresholds import ThresholdTime

CHANCE = 0.05
"""Chance that the noise of any checkpoint of a series is larger than `Series.noise_C`."""


@dataclass(frozen=True)
class Series:
    """A metric of one side of a run.

    Attributes:
        side: "input", "output" or "validation".
        slice: of the validation stories; "all" elsewhere.
        updates: of the C checkpoints; on the input side the records were read up to them.
        estimates: the values, without those that no text has.
        errors_C: the standard error of each value's difference from the last; infinite where unknown.
    """

    side: str
    metric: str
    updates: tuple[int, ...]
    estimates: tuple[Estimate, ...]
    errors_C: np.ndarray
    slice: str = "all"

    @cached_property
    def values_C(self) -> np.ndarray:
        """The (C,) values."""
        return np.array([estimate.estimate for estimate in self.estimates])

    @cached_property
    def noise_C(self) -> np.ndarray:
        """How far chance alone moves each value from the last: 95 % for all checkpoints together (Bonferroni)."""
        from scipy.special import stdtrit  # takes a while to import

        freedom = max(1, min(estimate.n for estimate in self.estimates) - 1)
        return float(stdtrit(freedom, 1 - CHANCE / 2 / max(1, len(self.updates) - 1))) * self.errors_C


@dataclass(frozen=True)
class Saturation:
    """When a series settles.

    Attributes:
        time: the update of the first settled checkpoint; censored if that is the last, which is settled by definition.
        lower, upper: the first and the last checkpoint that it may be, given the noise; inf: the noise, or a late
            change, leaves it open.
        after: the last checkpoint that is away from the end.
        tolerance: how near that checkpoint would have had to be: delta times the change, or the noise if that is more.
    """

    time: ThresholdTime
    lower: float
    upper: float
    after: int
    tolerance: float


def saturation(series: Series, delta: float) -> Saturation | None:
    """Return when a series settles; None where it does not change by more than noise, so that nothing saturates.

    >>> estimates = tuple(Estimate(value, 0, 0, 64, "grade") for value in (9.0, 4.0, 2.1, 2.0))
    >>> found = saturation(Series("output", "gunning_fog", (1, 2, 4, 8), estimates, np.full(4, 0.001)), delta=0.1)
    >>> found.time.update, found.lower, found.upper, found.after, round(found.tolerance, 3)
    (4.0, 4.0, 4.0, 2, 0.7)
    """
    # A checkpoint without a value, or after the change if that is unknown, is away.
    distances_C = np.nan_to_num(np.abs(series.values_C - series.values_C[-1]), nan=np.inf)
    change, noise_C = float(distances_C[0]), series.noise_C
    if not noise_C[0] < change < np.inf:
        return None

    def settled(tolerances_C: np.ndarray) -> int:
        """Return the first checkpoint of those that are within the tolerance up to the last, which is."""
        away_C = distances_C[:-1] > tolerances_C[:-1]
        return int(np.flatnonzero(away_C)[-1]) + 1 if away_C.any() else 0

    tolerances_C = np.maximum(delta * change, noise_C)
    place, last = settled(tolerances_C), len(series.updates) - 1
    lower, upper = settled(delta * change + noise_C), settled(delta * change - noise_C)
    time = ThresholdTime(float(series.updates[place]), censored=place == last)
    limits = float(series.updates[lower]), float(series.updates[upper]) if upper < last else np.inf
    return Saturation(time, *limits, series.updates[place - 1], float(tolerances_C[place - 1]))


def text_series(
    side: str, metric: str, unit: str, updates: Sequence[int], values: Sequence[np.ndarray], paired: bool, seed: int = 0
) -> Series:
    """Return the means over texts; NaN is a text without a value.

    Args:
        values: (N,) at each checkpoint.
        paired: whether text i of all checkpoints has the same prompt and the same random numbers.
    """
    known = [column[~np.isnan(column)] for column in values]
    missing = Estimate(float("nan"), float("nan"), float("nan"), 0, unit)
    means = tuple(bootstrap_mean(one, unit, seed, scale=scale_of(unit)) if len(one) else missing for one in known)
    if paired:
        errors = [_error(column - values[-1]) for column in values]
    else:
        errors = [np.hypot(_error(column), _error(values[-1])) for column in values]
        errors[-1] = 0.0
    return Series(side, metric, tuple(updates), means, np.nan_to_num(errors, nan=np.inf))


def _error(values_N: np.ndarray) -> float:
    """Return the standard error of a mean, without the values that are missing; NaN for fewer than two."""
    known_N = values_N[~np.isnan(values_N)]
    return float(known_N.std(ddof=1) / np.sqrt(len(known_N))) if len(known_N) > 1 else float("nan")


def influences(statistic: Callable[[np.ndarray], np.ndarray], sums_NK: np.ndarray) -> np.ndarray:
    """Return how much each story moves a statistic of the summed stories, (N,), to first order.

    The sum of squared differences of two models' influences is the variance of the difference of their statistics.

    >>> influences(lambda sums: sums[..., 0] / sums[..., 1], np.array([[2.0, 1.0], [4.0, 1.0]])).tolist()
    [-0.5, 0.5]
    """
    steps_KK = STEP * np.eye(sums_NK.shape[1])
    slopes_K = np.imag(statistic(sums_NK.sum(axis=0) + 1j * steps_KK)) / STEP
    return np.asarray(sums_NK @ slopes_K)


def loss_series(
    metric: str,
    statistic: Callable[[np.ndarray], np.ndarray],
    updates: Sequence[int],
    estimates: Sequence[Estimate],
    sums: Sequence[np.ndarray],
    slice: str = "all",
) -> Series:
    """Return a statistic of the same stories at each checkpoint; `sums` are (N, K) at each."""
    moved = [influences(statistic, sums_NK) for sums_NK in sums]
    count = len(moved[0])
    correction = count / (count - 1) if count > 1 else np.nan
    errors = [np.sqrt(correction * ((each - moved[-1]) ** 2).sum()) for each in moved]
    return Series("validation", metric, tuple(updates), tuple(estimates), np.nan_to_num(errors, nan=np.inf), slice)
