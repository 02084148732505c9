"""Estimates: every reported number with its interval, sample size and unit.

Resample what is independent: pass one row per story, never one per token.

Shape suffixes: N = stories, K = sums kept per story, R = resamples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 1000
# Stories are summed up in pieces of this many, whatever the batches they came in: a float64 sum depends on its order.
PIECE = 512
NO_INTERVAL = (float("nan"), float("nan"))

# Each scale with its derivative and its inverse: an interval that is symmetric in errors on the scale stays in range.
SCALES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "identity": (lambda x: x, np.ones_like, lambda y: y),
    "log": (np.log, lambda x: 1 / x, np.exp),  # above 0
    "logit": (lambda x: np.log(x / (1 - x)), lambda x: 1 / (x * (1 - x)), lambda y: 0.5 + 0.5 * np.tanh(y / 2)),
    "arctanh": (np.arctanh, lambda x: 1 / (1 - x * x), np.tanh),  # from -1 to 1
}
"""Scales by name: identity, log for values above 0, logit for shares, arctanh for differences of shares."""


@dataclass(frozen=True)
class Estimate:
    """A number with the 95 % interval (another if stated) of a resampling; NaN if there is none.

    >>> print(Estimate(0.5, 0.4, 0.6, n=100, unit="accuracy"))
    0.500 [0.400, 0.600] accuracy (n=100)
    """

    estimate: float
    lower: float
    upper: float
    n: int
    unit: str

    def __str__(self) -> str:
        return f"{self.estimate:.3f} {interval_text(self.lower, self.upper)} {self.unit} (n={self.n:,})"

    def row(self) -> dict[str, Any]:
        """Return the columns that all tables of this project share."""
        return asdict(self)


def interval_text(lower: float | None, upper: float | None, digits: int = 3) -> str:
    """Return an interval's limits as text; one story, for example, gives no interval.

    >>> interval_text(0.4, 0.6), interval_text(*NO_INTERVAL), interval_text(None, None)
    ('[0.400, 0.600]', '[no interval]', '[no interval]')
    """
    if lower is None or upper is None or math.isnan(lower) or math.isnan(upper):
        return "[no interval]"
    return f"[{lower:z.{digits}f}, {upper:z.{digits}f}]"


def percentile_interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central interval of resampled values, without those that were not defined; NaN for fewer than 2.

    >>> percentile_interval(np.arange(101.0), confidence=0.5)
    (25.0, 75.0)
    """
    # NaN is a resample that drew no story at all.  An infinite value is a value, and leaving it out would be a lie.
    values_R = values_R[~np.isnan(values_R)]
    if len(values_R) < 2:
        return NO_INTERVAL
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
    0.500 [0.405, 0.596] accuracy (n=100)
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"values of shape {values_N.shape} are not stories; give one value per story")
    bootstrap = StoryBootstrap(seed, confidence, resamples)
    bootstrap.update(np.stack([values_N, np.ones_like(values_N)], axis=1))
    return bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], unit)


def bootstrap_means(
    values_NK: np.ndarray, unit: str, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Estimate the mean of each of K columns, as `bootstrap_mean` does for one, all from the same resamples.

    Raises:
        ValueError: for no values.

    >>> [str(mean) for mean in bootstrap_means(np.array([[0.0, 5.0], [1.0, 5.0]] * 50), unit="accuracy")]
    ['0.500 [0.405, 0.596] accuracy (n=100)', '5.000 [5.000, 5.000] accuracy (n=100)']
    """
    values_NK = np.asarray(values_NK, dtype=np.float64)
    if values_NK.ndim != 2 or not len(values_NK):
        raise ValueError(f"values of shape {values_NK.shape} are not stories; give one row per story")
    bootstrap = StoryBootstrap(seed, confidence, resamples)
    bootstrap.update(np.concatenate([values_NK, np.ones((len(values_NK), 1))], axis=1))
    sums = bootstrap._with_waiting()["all"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means_K, means_RK = (
            values[..., :-1] / values[..., -1:] for values in map(np.asarray, (sums.totals_K, sums.sums_RK))
        )
    estimates = []
    for mean, means_R in zip(means_K.tolist(), means_RK.T, strict=True):
        known = sums.count > 1 and math.isfinite(mean)
        interval = percentile_interval(means_R, confidence) if known else NO_INTERVAL
        estimates.append(Estimate(mean, *interval, sums.count, unit))
    return estimates


def proportion(successes: int, n: int, unit: str) -> Estimate:
    """Estimate a share of stories, with Wilson's score interval (1927), 95 %.

    Resampling has nothing to draw from where none or all have it, and would give an interval without width.

    Raises:
        ValueError: for no stories, or more successes than stories.

    >>> print(proportion(0, 85, "share of stories"))
    0.000 [0.000, 0.043] share of stories (n=85)
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a share; give at least one story and at most all")
    return Estimate(successes / n, *_wilson(successes / n, n, 0.95), n, unit)


def _wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def scale_of(unit: str, difference: bool = False) -> str:
    """Return the scale for values in a unit, or for their difference: that of shares if they are shares of a whole.

    >>> scale_of("share of words"), scale_of("balanced accuracy", difference=True), scale_of("share of the gap")
    ('logit', 'arctanh', 'identity')
    """
    if not re.match(r"share(?! of the (gap|deletion|change))|([\w-]+ )?accuracy$", unit):
        return "identity"
    return "arctanh" if difference else "logit"


def t_interval(value: float, error: float, freedom: float, scale: str = "identity") -> tuple[float, float]:
    """Return Student's 95 % t interval of a value with its standard error, symmetric on a scale of `SCALES`.

    >>> [round(limit, 3) for limit in t_interval(0.98, 0.01, 2, "logit")]
    [0.845, 0.998]
    """
    from scipy import stats  # takes most of a second to import

    forward, slope, back = SCALES[scale]
    half = float(stats.t.ppf(0.975, freedom)) * slope(value) * error
    return float(back(forward(value) - half)), float(back(forward(value) + half))


def mean_over_seeds(losses_S: Sequence[float], n: int, unit: str, scale: str = "identity") -> Estimate:
    """Estimate an arm's mean loss over `n` stories each, with Student's t interval over its seeds on a scale.

    One seed gives no interval, nor do equal losses: the spread over seeds is not known to be 0.  Equal shares (scale
    "logit") have Wilson's interval over the stories of one seed.

    >>> print(mean_over_seeds([1.0, 1.2, 1.1], n=500, unit="nats per token"))
    1.100 [0.852, 1.348] nats per token (n=500)
    >>> print(mean_over_seeds([0.0, 0.02, 0.015], n=200, unit="share of stories", scale="logit"))
    0.012 [0.001, 0.100] share of stories (n=200)
    """
    values, interval = np.asarray(losses_S, dtype=np.float64), NO_INTERVAL
    mean = float(values.mean())
    if len(values) > 1 and np.ptp(values) > 0:
        # Student's t and not a bootstrap: three seeds have 10 distinct resamples.
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        interval = t_interval(mean, error, len(values) - 1, scale)
    elif len(values) > 1 and scale == "logit":
        interval = _wilson(mean, n, 0.95)
    return Estimate(mean, *interval, n, unit)


@dataclass
class _GroupSums:
    """The sums of one group of stories: as they are, and in each resample."""

    count: int = 0
    totals_K: np.ndarray | float = 0.0
    sums_RK: np.ndarray | float = 0.0

    def plus(self, sums_NK: np.ndarray, weights_NR: np.ndarray) -> _GroupSums:
        with np.errstate(invalid="ignore"):  # an infinite loss with weight 0; its estimate has no interval anyway
            totals_K, sums_RK = self.totals_K + sums_NK.sum(axis=0), self.sums_RK + weights_NR.T @ sums_NK
        return _GroupSums(self.count + len(sums_NK), totals_K, sums_RK)


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
        self._sums: dict[str, _GroupSums] = {}
        # What came since the last full piece: sums and weights of the stories, and who belongs to which group.
        self._waiting: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    @property
    def counts(self) -> dict[str, int]:
        """How many stories each group has."""
        return {name: sums.count for name, sums in self._with_waiting().items()}

    def update(self, sums_NK: np.ndarray, groups: Mapping[str, np.ndarray] | None = None) -> None:
        """Add N stories with K sums each; `groups` maps a name to the (N,) stories in it, default all."""
        sums_NK = np.asarray(sums_NK, dtype=np.float64)
        groups = groups or {"all": np.ones(len(sums_NK), dtype=bool)}
        start = 0
        while start < len(sums_NK):
            room = PIECE - sum(len(sums) for sums, _, _ in self._waiting)
            part = slice(start, start + room)
            # 1,000 resamples: the end of a 95 % interval then varies by a few percent of its width. Not tuned.
            weights_NR = self.generator.poisson(1.0, size=(len(sums_NK[part]), self.resamples)).astype(np.float64)
            self._waiting.append((sums_NK[part], weights_NR, {name: np.asarray(m)[part] for name, m in groups.items()}))
            if len(sums_NK[part]) == room:
                self._sums = self._with_waiting()
                self._waiting = []
            start += room

    def _with_waiting(self) -> dict[str, _GroupSums]:
        """Return the sums of all stories so far; the buffer is not changed, so a call does not alter later results."""
        if not self._waiting:
            return self._sums
        sums_NK = np.concatenate([sums for sums, _, _ in self._waiting])
        weights_NR = np.concatenate([weights for _, weights, _ in self._waiting])
        names = dict.fromkeys(name for _, _, groups in self._waiting for name in groups)
        result = dict(self._sums)
        for name in names:
            members_N = np.concatenate([g.get(name, np.zeros(len(s), dtype=bool)) for s, _, g in self._waiting])
            if members_N.any():
                result[name] = result.get(name, _GroupSums()).plus(sums_NK[members_N], weights_NR[members_N])
        return result

    def estimate(self, statistic: Callable[[np.ndarray], np.ndarray], unit: str, group: str = "all") -> Estimate:
        """Return `statistic(sums_..K) -> (...)` of a group's sums, with its interval.

        One story gives no interval, and neither does a value that is not finite.

        Raises:
            ValueError: for a group without stories.
        """
        sums = self._with_waiting().get(group)
        if sums is None:
            raise ValueError(f"no story is in {group!r}; add stories before asking for an estimate")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = float(statistic(np.asarray(sums.totals_K)))
            resampled_R = np.asarray(statistic(np.asarray(sums.sums_RK)), dtype=np.float64)
        known = sums.count > 1 and math.isfinite(value)
        lower, upper = percentile_interval(resampled_R, self.confidence) if known else NO_INTERVAL
        return Estimate(value, lower, upper, sums.count, unit)
