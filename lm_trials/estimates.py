"""Estimates: every reported number with its interval, sample size and unit.

Resample what is independent: pass one row per story, never one per token.

Shape suffixes: N = stories, K = sums kept per story, P = products of two of them, R = resamples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

# The end of a 95 % interval then varies by a few percent of its width. Not tuned.
RESAMPLES = 1000
# Stories are summed up in pieces of this many, whatever the batches they came in: a float64 sum depends on its order.
PIECE = 512
DRAWN = 64  # stories whose weights are drawn at once
NO_INTERVAL = (float("nan"), float("nan"))
LEAST_STORIES = 10
"""Stories from which on a mean or ratio has an interval: of 5 skewed ones no method covers 95 %."""
# Relative to the squares it is a sum of: below it, a variance is rounding.
ROUNDING = 1e-12
STEP = 1e-20  # of the derivatives; its square is far below a rounding error of 1

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
    """A number with its 95 % interval (another if stated); NaN if there is none.

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


def studentized_interval(
    value: float, error: float, values_R: np.ndarray, errors_R: np.ndarray, confidence: float, scale: str
) -> tuple[float, float]:
    """Return the bootstrap-t interval on a scale (Efron 1979; Davison and Hinkley 1997, section 5.2.1).

    Each resample's distance from the value is divided by the resample's own standard error, so that the interval is
    wider on the side of a skewed sample's tail, and as wide as few stories make it.  None without a standard error, or
    where the resamples without one are too many to bound the value.

    Args:
        value, error: the estimate and its standard error.
        values_R, errors_R: those of each resample; NaN if not defined.
    """
    if not error > 0:
        return NO_INTERVAL
    forward, slope, back = SCALES[scale]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        distances_R = (forward(values_R) - forward(value)) / (slope(values_R) * errors_R)
        # All stories of a resample are equal: infinitely many errors away, and leaving it out would be a lie.
        distances_R = np.where(errors_R > 0, distances_R, np.sign(values_R - value) * np.inf)
        distances_R = np.sort(distances_R[~np.isnan(distances_R)])
        if len(distances_R) < 2:
            return NO_INTERVAL
        tail = int((1 - confidence) / 2 * (len(distances_R) - 1))
        ends = forward(value) - slope(value) * error * distances_R[[-1 - tail, tail]]
    lower, upper = (float(back(end)) for end in ends)
    return (lower, upper) if np.isfinite(ends).all() and lower < upper else NO_INTERVAL


def bootstrap_mean(
    values_N: np.ndarray, unit: str, seed: int = 0, resamples: int = RESAMPLES, scale: str = "identity"
) -> Estimate:
    """Estimate the mean of one value per story, with a bootstrap-t interval on a scale of `SCALES`.

    Raises:
        ValueError: for no values.

    >>> print(bootstrap_mean(np.array([0.1, 0.9] * 50), unit="share of words", scale="logit"))
    0.500 [0.422, 0.582] share of words (n=100)
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"values of shape {values_N.shape} are not stories; give one value per story")
    return bootstrap_means(values_N[:, None], unit, seed, resamples, scale)[0]


def bootstrap_means(
    values_NK: np.ndarray, unit: str, seed: int = 0, resamples: int = RESAMPLES, scale: str = "identity"
) -> list[Estimate]:
    """Estimate the mean of each of K columns, as `bootstrap_mean` does for one, all from the same resamples.

    Raises:
        ValueError: for no values.

    >>> [str(mean) for mean in bootstrap_means(np.array([[0.0, 5.0], [1.0, 5.0]] * 50), unit="words")]
    ['0.500 [0.399, 0.606] words (n=100)', '5.000 [no interval] words (n=100)']
    """
    values_NK = np.asarray(values_NK, dtype=np.float64)
    if values_NK.ndim != 2 or not len(values_NK):
        raise ValueError(f"values of shape {values_NK.shape} are not stories; give one row per story")
    ones_N1 = np.ones((len(values_NK), 1))
    columns = np.concatenate([values_NK, values_NK**2, ones_N1], axis=1)
    totals, sums_R = np.zeros(columns.shape[1]), np.zeros((resamples, columns.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, len(columns), PIECE):
            piece = columns[start : start + PIECE]
            weights_NR = story_weights(seed, start, start + len(piece), resamples)
            totals, sums_R = totals + piece.sum(axis=0), sums_R + weights_NR.T @ piece
        (means_K, errors_K), (means_RK, errors_RK) = (_means_with_errors(sums) for sums in (totals, sums_R))
    estimates = []
    for mean, error, means_R, errors_R in zip(means_K.tolist(), errors_K, means_RK.T, errors_RK.T, strict=True):
        known = len(values_NK) >= LEAST_STORIES and math.isfinite(mean)
        interval = studentized_interval(mean, error, means_R, errors_R, 0.95, scale) if known else NO_INTERVAL
        if known and scale == "logit" and (error > 0 or mean in (0, 1)) and math.isnan(interval[0]):
            # So few stories differ from 0 or 1, or none, that many resamples have none. Wilson's interval is then the
            # safe one: no values from 0 to 1 vary more than those that are 0 or 1.
            interval = _wilson(mean, len(values_NK))
        estimates.append(Estimate(mean, *interval, len(values_NK), unit))
    return estimates


def _means_with_errors(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and their standard errors, of sums, sums of squares and the number of stories."""
    columns, n = sums.shape[-1] // 2, sums[..., -1:]
    means, squares = sums[..., :columns] / n, sums[..., columns:-1] / n
    return means, _error(squares - means**2, squares, n) / np.sqrt(n)


def _error(variance: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the root of N / (N - 1) times a variance, 0 where it is rounding of the squares; NaN for N < 2."""
    corrected = np.where(variance > ROUNDING * squares, variance, 0.0) * n / np.where(n > 1, n - 1, np.nan)
    return np.where(np.isnan(variance), np.nan, np.sqrt(corrected))


def story_weights(seed: int, start: int, stop: int, resamples: int) -> np.ndarray:
    """Return the weights of the stories from `start` to `stop` in each resample, (N, R)."""
    first = start // DRAWN
    blocks = [_drawn(seed, block, resamples) for block in range(first, -(-stop // DRAWN))]
    return np.concatenate(blocks)[start - first * DRAWN : stop - first * DRAWN].astype(np.float64)


@lru_cache(maxsize=64)
def _drawn(seed: int, block: int, resamples: int) -> np.ndarray:
    # Kept, because tables have hundreds of numbers of the same stories: drawing is 0.8 of the time of an interval.
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, block])))
    return generator.poisson(1.0, size=(DRAWN, resamples)).astype(np.uint8)


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
    return Estimate(successes / n, *_wilson(successes / n, n), n, unit)


def _wilson(share: float, n: int) -> tuple[float, float]:
    z2 = NormalDist().inv_cdf(0.975) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # It contains the share; rounding alone would end that of n of n just below 1.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def scale_of(unit: str, difference: bool = False) -> str:
    """Return the scale for values in a unit, or for their difference: that of shares if they are shares of a whole.

    >>> scale_of("share of words"), scale_of("balanced accuracy", difference=True), scale_of("share of the gap")
    ('logit', 'arctanh', 'identity')
    """
    if not re.match(r"share(?! of the (gap|deletion|change))|([\w-]+ )?accuracy$", unit):
        return "identity"
    return "arctanh" if difference else "logit"


def t_interval(
    value: float, error: float, freedom: float, scale: str = "identity", confidence: float = 0.95
) -> tuple[float, float]:
    """Return Student's t interval of a value with its standard error, symmetric on a scale of `SCALES`.

    >>> [round(limit, 3) for limit in t_interval(0.98, 0.01, 2, "logit")]
    [0.845, 0.998]
    """
    from scipy import special  # takes a while to import

    forward, slope, back = SCALES[scale]
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * slope(value) * error
    return float(back(forward(value) - half)), float(back(forward(value) + half))


def t_test(
    value: float, error: float, freedom: float, scale: str = "identity", null: float = 0.0
) -> tuple[float, float, float]:
    """Return `t_interval`'s limits, and the two-sided p value of Student's t test against `null`.

    >>> [round(number, 3) for number in t_test(0.2, 0.1, 4)]
    [-0.078, 0.478, 0.116]
    """
    from scipy import special  # takes a while to import

    forward, slope, _ = SCALES[scale]
    with np.errstate(divide="ignore"):  # a null hypothesis at an end of the scale is infinitely far
        t = abs(forward(value) - forward(null)) / (slope(value) * error)
    return *t_interval(value, error, freedom, scale), 2 * float(special.stdtr(freedom, -t))


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
        interval = _wilson(mean, n)
    return Estimate(mean, *interval, n, unit)


@dataclass
class _GroupSums:
    """The sums of one group of stories, as they are and in each resample; `rows` are sums, products and a count."""

    count: int = 0
    totals_K: np.ndarray | float = 0.0
    products_P: np.ndarray | float = 0.0
    rows_RF: np.ndarray | float = 0.0

    def plus(self, sums_NK: np.ndarray, weights_NR: np.ndarray) -> _GroupSums:
        one, other = np.triu_indices(sums_NK.shape[1])
        with np.errstate(invalid="ignore"):  # an infinite loss with weight 0; its estimate has no interval anyway
            products_NP = sums_NK[:, one] * sums_NK[:, other]
            rows_NF = np.concatenate([sums_NK, products_NP, np.ones((len(sums_NK), 1))], axis=1)
            return _GroupSums(
                self.count + len(sums_NK),
                self.totals_K + sums_NK.sum(axis=0),
                self.products_P + products_NP.sum(axis=0),
                self.rows_RF + weights_NR.T @ rows_NF,
            )


class StoryBootstrap:
    """Bootstrap-t of statistics of sums over stories, in one pass and in memory that does not grow with them.

    Each resample gives each story a Poisson(1) weight, which for more than a few dozen stories is drawing N stories
    with replacement (Hanley and MacGibbon 2006, doi:10.1016/j.cmpb.2006.04.006).  Weights depend on the seed
    and the number of the story, so the interval does not depend on batches or processes.  A story may belong to several
    groups (slices); it has the same weights in each.  Two bootstraps with one seed have the same weights.

    K sums keep K (K + 1) / 2 products for the standard errors: give a number of a wide table its own columns.

    >>> bootstrap = StoryBootstrap(seed=0)
    >>> bootstrap.update(np.array([[2.0, 1.0], [6.0, 3.0]]), {"all": np.array([True, True])})
    >>> bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], "nats per token", "all").estimate
    2.0
    """

    def __init__(self, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES) -> None:
        self.confidence = confidence
        self.resamples = resamples
        self.seed = seed
        self._count = 0
        self._sums: dict[str, _GroupSums] = {}
        # What came since the last full piece: sums and weights of the stories, and who belongs to which group.
        self._waiting: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
        self._found: dict[str, _GroupSums] | None = None  # of all stories so far, until the next update

    @property
    def counts(self) -> dict[str, int]:
        """How many stories each group has."""
        return {name: sums.count for name, sums in self._with_waiting().items()}

    def update(self, sums_NK: np.ndarray, groups: Mapping[str, np.ndarray] | None = None) -> None:
        """Add N stories with K sums each; `groups` maps a name to the (N,) stories in it, default all."""
        sums_NK = np.asarray(sums_NK, dtype=np.float64)
        groups = groups or {"all": np.ones(len(sums_NK), dtype=bool)}
        self._found, start = None, 0
        while start < len(sums_NK):
            room = PIECE - sum(len(sums) for sums, _, _ in self._waiting)
            part = slice(start, start + room)
            stop = self._count + len(sums_NK[part])
            weights_NR = story_weights(self.seed, self._count, stop, self.resamples)
            self._count = stop
            self._waiting.append((sums_NK[part], weights_NR, {name: np.asarray(m)[part] for name, m in groups.items()}))
            if len(sums_NK[part]) == room:
                self._sums = self._with_waiting()
                self._waiting, self._found = [], None
            start += room

    def _with_waiting(self) -> dict[str, _GroupSums]:
        """Return the sums of all stories so far; the buffer is not changed, so a call does not alter later results."""
        if not self._waiting:
            return self._sums
        if self._found is not None:
            return self._found
        sums_NK = np.concatenate([sums for sums, _, _ in self._waiting])
        weights_NR = np.concatenate([weights for _, weights, _ in self._waiting])
        names = dict.fromkeys(name for _, _, groups in self._waiting for name in groups)
        result = dict(self._sums)
        for name in names:
            members_N = np.concatenate([g.get(name, np.zeros(len(s), dtype=bool)) for s, _, g in self._waiting])
            if members_N.any():
                result[name] = result.get(name, _GroupSums()).plus(sums_NK[members_N], weights_NR[members_N])
        self._found = result
        return result

    def estimate(
        self, statistic: Callable[[np.ndarray], np.ndarray], unit: str, group: str = "all", scale: str = "identity"
    ) -> Estimate:
        """Return `statistic(sums_..K) -> (...)` of a group's sums, with its interval on a scale of `SCALES`.

        The standard errors are by the delta method, with derivatives by complex step: the statistic must be built of
        arithmetic, exp, log and other analytic functions.  There is no interval for fewer than `LEAST_STORIES`
        stories, for equal stories, or for a value that is not finite.

        Raises:
            ValueError: for a group without stories.
        """
        sums = self._with_waiting().get(group)
        if sums is None:
            raise ValueError(f"no story is in {group!r}; add stories before asking for an estimate")
        totals_K, rows_RF = np.asarray(sums.totals_K), np.asarray(sums.rows_RF)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = float(statistic(totals_K))
            if sums.count < LEAST_STORIES or not math.isfinite(value):
                return Estimate(value, *NO_INTERVAL, sums.count, unit)
            error = _delta_error(statistic, totals_K, np.asarray(sums.products_P), np.asarray(sums.count))
            sums_RK, products_RP, count_R = np.split(rows_RF, [len(totals_K), rows_RF.shape[1] - 1], axis=1)
            values_R = np.asarray(statistic(sums_RK), dtype=np.float64)
            errors_R = _delta_error(statistic, sums_RK, products_RP, count_R[:, 0])
        interval = studentized_interval(value, float(error), values_R, errors_R, self.confidence, scale)
        return Estimate(value, *interval, sums.count, unit)


def _delta_error(
    statistic: Callable[[np.ndarray], np.ndarray], sums: np.ndarray, products: np.ndarray, n: np.ndarray
) -> np.ndarray:
    """Return the standard error of a statistic of sums (..., K), given their stories' products (..., P), -> (...)."""
    size = sums.shape[-1]
    steps = STEP * np.eye(size)
    slopes = np.stack([np.imag(statistic(sums + 1j * step)) / STEP for step in steps], axis=-1)
    one, other = np.triu_indices(size)
    terms = np.where(one == other, 1.0, 2.0) * slopes[..., one] * slopes[..., other] * products
    return _error(terms.sum(axis=-1), np.abs(terms).sum(axis=-1), n)
