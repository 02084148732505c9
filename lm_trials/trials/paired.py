"""Tests of a difference: over stories for the models at hand, over seeds for the recipes that trained them.

Stories are resampled or flipped whole, because the tokens of a story are not independent.

Shape suffixes: N = stories, S = seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lm_trials.estimates import LEAST_STORIES, NO_INTERVAL, Estimate, scale_of, t_test

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
    has all values that this test does not reject (p > 0.05): ends are quantiles of the ratio over random subsets of the
    stories, those whose signs are flipped (Hartigan 1969).  There is none for fewer than 10 stories.

    Args:
        differences_N: loss of the second model minus that of the first on each story, in nats or bits.
        sizes_N: each story's tokens or bytes, above 0.

    Raises:
        ValueError: for no stories or other shapes.

    >>> test = story_test(np.array([2.0, 1.0, 3.0]), np.array([10, 10, 10]), "nats per token")
    >>> test.difference.estimate, test.p  # 2 of the 8 choices of signs
    (0.2, 0.25)
    """
    differences_N, sizes_N = np.asarray(differences_N, dtype=np.float64), np.asarray(sizes_N, dtype=np.float64)
    if differences_N.ndim != 1 or not len(differences_N) or differences_N.shape != sizes_N.shape:
        raise ValueError(f"differences {differences_N.shape} and sizes {sizes_N.shape}; give one of each per story")
    estimate, n = float(differences_N.sum() / sizes_N.sum()), len(differences_N)
    ratios_R, num_empty = _subset_ratios(differences_N, sizes_N, seed, resamples)
    total = len(ratios_R) + num_empty
    # Flipping a subset gives at least the observed sum if the subset's own sum is at most 0.
    p = 2 * (num_empty + min(int((ratios_R <= 0).sum()), int((ratios_R >= 0).sum()))) / total
    lower, upper = NO_INTERVAL
    if n >= LEAST_STORIES:
        place = math.floor(0.025 * total) - num_empty  # the first from either end that is not rejected
        lower, upper = float(ratios_R[place]), float(ratios_R[-1 - place])
        if upper - lower <= SAME * max(abs(lower), abs(upper)):  # equal stories
            lower, upper = NO_INTERVAL
    method = "sign flips of stories"
    return TestedDifference(Estimate(estimate, lower, upper, n, unit), min(1.0, p) if n > 1 else math.nan, method)


def _subset_ratios(differences_N: np.ndarray, sizes_N: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, int]:
    """Return the sorted ratios sum(differences) / sum(sizes) of subsets of the stories, and how many are empty.

    All subsets if these are at most `resamples`; else that many random ones and an empty one, for the observed signs,
    so that p is never 0 (Phipson and Smyth 2010).  Drawn here because for 20,000 stories scipy's `permutation_test`,
    which shuffles pairs, took 54 s and this takes 2 s.
    """
    columns_N2, n = np.stack([differences_N, sizes_N], axis=1), len(sizes_N)
    if n <= math.log2(resamples):
        sums_R2 = (np.arange(2**n)[:, None] >> np.arange(n) & 1) @ columns_N2
    else:
        generator, batch = np.random.default_rng(seed), max(1, BATCH_NUMBERS // n)
        sums_R2 = np.concatenate(
            [
                generator.integers(0, 2, size=(min(batch, resamples - start), n), dtype=np.int8) @ columns_N2
                for start in range(0, resamples, batch)
            ]
            + [np.zeros((1, 2))]
        )
    sums_R2 = sums_R2[sums_R2[:, 1] > 0]
    total = 2**n if n <= math.log2(resamples) else resamples + 1
    # Sums that differ from 0 by rounding alone are 0.
    sums_R2[np.abs(sums_R2[:, 0]) <= SAME * np.abs(differences_N).sum(), 0] = 0.0
    return np.sort(sums_R2[:, 0] / sums_R2[:, 1]), total - len(sums_R2)


def seed_test(first_S: ArrayLike, second_S: ArrayLike, n: int, unit: str, paired: bool) -> TestedDifference | None:
    """Test whether two recipes differ: second minus first, over root seeds; None if an arm has one.

    Differences of shares are tested on a scale that stays within -1 and 1.

    Args:
        first_S, second_S: the loss of each root seed over `n` stories; in the same order of seeds if `paired`.
        paired: Student's t over the differences of equal seeds; else Welch's t (1947) for unequal variances.

    >>> test = seed_test([1.0, 1.2, 1.1], [1.2, 1.3, 1.4], n=500, unit="nats per token", paired=False)
    >>> f"{test.difference}, p = {test.p:.2f}"
    '0.200 [-0.027, 0.427] nats per token (n=500), p = 0.07'
    """
    first, second = np.asarray(first_S, dtype=np.float64), np.asarray(second_S, dtype=np.float64)
    if min(len(first), len(second)) < 2:
        return None
    method = "t over pairs of root seeds" if paired else "Welch's t over root seeds"
    estimate = float(second.mean() - first.mean())
    samples = [second - first] if paired else [first, second]
    if max(map(np.ptp, samples)) <= SAME * max(np.abs(first).max(), np.abs(second).max()):
        return TestedDifference(Estimate(estimate, *NO_INTERVAL, n, unit), math.nan, method)
    variances = [float(values.var(ddof=1)) / len(values) for values in samples]
    error = math.sqrt(sum(variances))
    parts = [variance / error**2 for variance in variances]
    freedom = 1 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, samples, strict=True))
    shares = min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1
    scale = scale_of(unit, difference=True) if shares else "identity"
    lower, upper, p = t_test(estimate, error, freedom, scale)
    return TestedDifference(Estimate(estimate, lower, upper, n, unit), p, method)


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
