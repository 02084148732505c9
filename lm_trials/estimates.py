"""Estimates: every reported number with its interval, sample size and unit.

Resample what is independent: pass one row per story, never one per token.

Shape suffixes: N = stories, K = sums kept per story, R = resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number with the 95 % interval (unless said otherwise) that resampling gave it; NaN where it gave none.

    >>> print(Estimate(0.5, 0.4, 0.6, n=100, unit="accuracy"))
    0.500 [0.400, 0.600] accuracy (n=100)
    """

    estimate: float
    lower: float
    upper: float
    n: int
    unit: str

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.lower:.3f}, {self.upper:.3f}] {self.unit} (n={self.n:,})"

    def row(self) -> dict[str, Any]:
        """Return the columns that all tables of this project share."""
        return asdict(self)


def percentile_interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central interval of resampled values; NaN where a resample was not defined.

    >>> percentile_interval(np.arange(101.0), confidence=0.9)
    (5.0, 95.0)
    """
    values_R = values_R[np.isfinite(values_R)]
    if len(values_R) < 2:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(values_R, [tail, 1 - tail])
    return float(lower), float(upper)


def bootstrap_mean(
    values_N: np.ndarray, unit: str, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Estimate the mean of one value per story, with a percentile bootstrap interval.

    Raises:
        ValueError: for no values.

    >>> print(bootstrap_mean(np.array([0.0, 1.0] * 50), unit="accuracy", seed=0))
    0.500 [0.410, 0.600] accuracy (n=100)
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"values of shape {values_N.shape} are no stories; give one value per story")
    bootstrap = StoryBootstrap(seed, confidence, resamples)
    bootstrap.update(np.stack([values_N, np.ones_like(values_N)], axis=1))
    return bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], unit)


class StoryBootstrap:
    """Bootstrap of statistics of sums over stories, in one pass and in memory that does not grow with them.

    Each resample gives each story a Poisson(1) weight, which for more than a few dozen stories is drawing N stories
    with replacement (Hanley and MacGibbon 2006, doi:10.1016/j.cmpb.2006.04.006).  Weights are drawn story by story in
    the order of the stories, so the interval does not depend on batches or processes.  A story may belong to several
    groups (slices); it has the same weights in each.

    >>> bootstrap = StoryBootstrap(seed=0)
    >>> bootstrap.update(np.array([[2.0, 1.0], [6.0, 3.0]]), {"all": np.array([True, True])})
    >>> bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], "nats per token", "all").estimate
    2.0
    """

    def __init__(self, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES) -> None:
        self.confidence = confidence
        self.resamples = resamples
        self.generator = np.random.Generator(np.random.Philox(seed))
        self.counts: dict[str, int] = {}
        self.sums_RK: dict[str, np.ndarray] = {}
        self.totals_K: dict[str, np.ndarray] = {}

    def update(self, sums_NK: np.ndarray, groups: Mapping[str, np.ndarray] | None = None) -> None:
        """Add N stories with K sums each; `groups` maps a name to the (N,) stories in it, default all."""
        sums_NK = np.asarray(sums_NK, dtype=np.float64)
        weights_NR = self.generator.poisson(1.0, size=(len(sums_NK), self.resamples))
        for name, members_N in (groups or {"all": np.ones(len(sums_NK), dtype=bool)}).items():
            sums = sums_NK[members_N]
            if not len(sums):
                continue
            self.counts[name] = self.counts.get(name, 0) + len(sums)
            self.totals_K[name] = self.totals_K.get(name, 0.0) + sums.sum(axis=0)
            self.sums_RK[name] = self.sums_RK.get(name, 0.0) + weights_NR[members_N].T @ sums

    def estimate(self, statistic: Callable[[np.ndarray], np.ndarray], unit: str, group: str = "all") -> Estimate:
        """Return `statistic(sums_..K) -> (...)` of a group's sums, with its interval; one story gives no interval."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = float(statistic(self.totals_K[group]))
            resampled_R = np.asarray(statistic(self.sums_RK[group]), dtype=np.float64)
        n = self.counts[group]
        lower, upper = percentile_interval(resampled_R, self.confidence) if n > 1 else (float("nan"), float("nan"))
        return Estimate(value, lower, upper, n, unit)
