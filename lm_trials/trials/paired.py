"""Tests of a difference: over stories for the models at hand, over seeds for the recipes that trained them.

Stories are resampled or flipped whole, because the tokens of a story are not independent.

Shape suffixes: N = stories, S = seeds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_trials.estimates import NO_INTERVAL, Estimate, StoryBootstrap

RESAMPLES = 9_999  # with the observed sum 10,000, so that p is a multiple of 0.0001
BATCH_NUMBERS = 4_000_000  # values per batch of resamples, so that memory does not grow with the stories
SAME = 1e-12  # relative; losses closer than this differ by rounding alone, not by seed


@dataclass(frozen=True)
class TestedDifference:
    """A difference with its 95 % interval and two-sided p value (NaN: none); `method` describes both."""

    __test__ = False  # pytest would take it for a test

    difference: Estimate
    p: float
    method: str


def story_test(
    differences_N: np.ndarray, sizes_N: np.ndarray, unit: str, seed: int = 0, resamples: int = RESAMPLES
) -> TestedDifference:
    """Test whether two models differ on the population that these stories are a sample of.

    The statistic is sum(differences) / sum(sizes).  Under the null hypothesis each story's difference has either sign
    with equal probability (Fisher's randomisation test for pairs; exact if 2^N is at most `resamples`).  The interval
    is a bootstrap over stories.

    Args:
        differences_N: loss of the second model minus that of the first on each story, in nats or bits.
        sizes_N: each story's tokens or bytes.

    Raises:
        ValueError: for no stories or other shapes.

    >>> test = story_test(np.array([2.0, 1.0, 3.0]), np.array([10, 10, 10]), "nats per token")
    >>> test.difference.estimate, test.p  # 2 of the 8 choices of signs
    (0.2, 0.25)
    """
    differences_N, sizes_N = np.asarray(differences_N, dtype=np.float64), np.asarray(sizes_N, dtype=np.float64)
    if differences_N.ndim != 1 or not len(differences_N) or differences_N.shape != sizes_N.shape:
        raise ValueError(f"differences {differences_N.shape} and sizes {sizes_N.shape}; give one of each per story")
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.stack([differences_N, sizes_N], axis=1))
    difference = bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], unit)
    method = "sign flips of stories, bootstrap over stories"
    if len(differences_N) < 2:
        return TestedDifference(difference, math.nan, method)
    return TestedDifference(difference, sign_flip_p(differences_N, seed, resamples), method)


def sign_flip_p(differences_N: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Return the two-sided p value of a sum of differences under random signs.

    All choices of signs if these are at most `resamples` (scipy's exact test); else that many random ones, with the
    observed sum counted among them, so that p is never 0 (Phipson and Smyth 2010).  Drawn here because for 20,000
    stories scipy's `permutation_test`, which shuffles pairs, took 54 s and this takes 5 s.
    """
    from scipy import stats  # takes most of a second to import

    # Up to 13 stories all sign patterns are enumerated: p is exact, at least 2 / 2^N.
    if len(differences_N) <= math.log2(resamples):
        result = stats.permutation_test(
            (differences_N,), np.sum, permutation_type="samples", vectorized=True, n_resamples=resamples
        )
        return float(result.pvalue)
    generator = np.random.default_rng(seed)
    observed = float(differences_N.sum())
    ties = SAME * float(np.abs(differences_N).sum())  # sums that differ by rounding alone are equal
    above = below = 1
    for start in range(0, resamples, batch := max(1, BATCH_NUMBERS // len(differences_N))):
        # Flipping a story subtracts twice its difference from the sum.
        flipped = generator.integers(0, 2, size=(min(batch, resamples - start), len(differences_N)), dtype=np.int8)
        sums = observed - 2 * (flipped @ differences_N)
        above += int((sums >= observed - ties).sum())
        below += int((sums <= observed + ties).sum())
    return min(1.0, 2 * min(above, below) / (resamples + 1))


def seed_test(
    first_S: Sequence[float], second_S: Sequence[float], n: int, unit: str, paired: bool
) -> TestedDifference | None:
    """Test whether two recipes differ: second minus first, over seeds; None if an arm has one seed.

    Args:
        first_S, second_S: the loss of each seed over `n` stories; in the same order of seeds if `paired`.
        paired: Student's t over the differences of equal seeds; else Welch's t (1947) for unequal variances.

    >>> test = seed_test([1.0, 1.2, 1.1], [1.2, 1.3, 1.4], n=500, unit="nats per token", paired=False)
    >>> f"{test.difference}, p = {test.p:.2f}"
    '0.200 [-0.027, 0.427] nats per token (n=500), p = 0.07'
    """
    from scipy import stats  # takes most of a second to import

    first, second = np.asarray(first_S, dtype=np.float64), np.asarray(second_S, dtype=np.float64)
    if min(len(first), len(second)) < 2:
        return None
    method = "t over pairs of equal seeds" if paired else "Welch's t over seeds"
    estimate = float(second.mean() - first.mean())
    spreads = [np.ptp(second - first)] if paired else [np.ptp(first), np.ptp(second)]
    if max(spreads) <= SAME * max(np.abs(first).max(), np.abs(second).max()):
        return TestedDifference(Estimate(estimate, *NO_INTERVAL, n, unit), math.nan, method)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # equal losses within one arm are valid
        result = stats.ttest_rel(second, first) if paired else stats.ttest_ind(second, first, equal_var=False)
        interval = result.confidence_interval(0.95)
    difference = Estimate(estimate, float(interval.low), float(interval.high), n, unit)
    return TestedDifference(difference, float(result.pvalue), method)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple tests (Holm 1979); NaN stays and does not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    # Holm (1979), by hand because scipy has none; statsmodels would be a dependency for four lines.
    corrected, largest = list(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected
