"""Two-way intervals: for new root seeds and new stories together.

Both are random samples, and every root seed is measured on the same stories.  The variance of the mean is
seeds + stories - residual / (S n), as both of the first contain the residual.  The statistic is
sum(nats) / sum(tokens); each story's share of it is linearised.

Shape suffixes: S = root seeds, N = stories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lm_trials.estimates import LEAST_STORIES, NO_INTERVAL, Estimate, t_test
from lm_trials.trials.paired import SAME, TestedDifference


def two_way(values_SN: np.ndarray, sizes_N: np.ndarray, unit: str) -> Estimate:
    """Estimate sum(values) / sum(sizes), mean over root seeds, with an interval for new root seeds and new stories.

    There is no interval with one root seed, with fewer than 10 stories, or where nothing varies.

    Args:
        values_SN: each story's nats or bits with each root seed; a root seed of several runs has their mean.
        sizes_N: each story's tokens or bytes.

    >>> values_SN = np.array([[11.0, 8, 9, 12, 10] * 4, [12.0, 9, 9, 13, 12] * 4, [11.0, 9, 8, 12, 11] * 4])
    >>> print(two_way(values_SN, np.full(20, 5), "nats per token"))
    2.080 [1.817, 2.343] nats per token (n=20)
    """
    return _tested([values_SN], sizes_N, unit).difference


def two_way_difference(differences_SN: np.ndarray, sizes_N: np.ndarray, unit: str) -> TestedDifference:
    """Test whether two arms with the same root seeds differ, for new root seeds and new stories.

    Args:
        differences_SN: each story's loss in the second arm minus that in the first, for each root seed.
        sizes_N: each story's tokens or bytes.

    >>> differences_SN = np.array([[1.0, 2, 3, 2, 2] * 4, [2.0, 2, 3, 2, 1] * 4, [2.0, 3, 4, 3, 2] * 4])
    >>> test = two_way_difference(differences_SN, np.full(20, 10), "nats per token")
    >>> f"{test.difference}, p = {test.p:.3f}"
    '0.227 [0.112, 0.341] nats per token (n=20), p = 0.014'
    """
    return _tested([differences_SN], sizes_N, unit)


def two_way_unpaired(first_SN: np.ndarray, second_SN: np.ndarray, sizes_N: np.ndarray, unit: str) -> TestedDifference:
    """Test whether two arms with other root seeds differ, on the same stories: second minus first.

    >>> first_SN, second_SN = np.array([[1.0, 2, 3, 2, 2] * 4] * 2), np.array([[2.0, 2, 3, 2, 1] * 4, [3.0] * 20])
    >>> test = two_way_unpaired(first_SN, second_SN, np.full(20, 10), "nats per token")
    >>> f"{test.difference}, p = {test.p:.2f}"
    '0.050 [-0.585, 0.685] nats per token (n=20), p = 0.50'
    """
    return _tested([-np.asarray(first_SN), second_SN], sizes_N, unit)


def _tested(arms: Sequence[np.ndarray], sizes_N: np.ndarray, unit: str) -> TestedDifference:
    """Test the sum over arms of their mean ratios; the arms have other root seeds and the same stories."""
    arms = [np.asarray(values_SN, dtype=np.float64) for values_SN in arms]
    sizes_N = np.asarray(sizes_N, dtype=np.float64)
    if any(values_SN.ndim != 2 or values_SN.shape[1:] != sizes_N.shape or not values_SN.size for values_SN in arms):
        shapes = " and ".join(str(values_SN.shape) for values_SN in arms)
        raise ValueError(f"values {shapes} and sizes {sizes_N.shape}; give a row of stories per root seed")
    ratios = [float(values_SN.mean(axis=0).sum() / sizes_N.sum()) for values_SN in arms]
    estimate, num_stories = sum(ratios), len(sizes_N)
    method = "t over root seeds and stories (Satterthwaite)"
    none = TestedDifference(Estimate(estimate, *NO_INTERVAL, num_stories, unit), math.nan, method)
    if num_stories < LEAST_STORIES or min(map(len, arms)) < 2:
        return none
    # A story's influence on a ratio of sums; the mean over stories of a row is the row's ratio minus the mean ratio.
    influences = [(values_SN - ratio * sizes_N) / sizes_N.mean() for values_SN, ratio in zip(arms, ratios, strict=True)]
    seeds, residuals = zip(*map(_parts, influences), strict=True)
    stories = float(np.var(sum(values_SN.mean(axis=0) for values_SN in influences), ddof=1)) / num_stories
    # Never below one of its parts: a negative variance of seeds or of stories is one of 0.
    variance = max(sum(seeds) + stories - sum(residuals), sum(seeds), stories)
    if variance <= (SAME * max(abs(values_SN / sizes_N.mean()).max() for values_SN in arms)) ** 2:
        return none
    degrees = [len(values_SN) - 1 for values_SN in arms]
    of_seeds = sum(seed**2 / degree for seed, degree in zip(seeds, degrees, strict=True))
    of_stories = stories**2 / (num_stories - 1)
    of_residuals = sum(r**2 / (degree * (num_stories - 1)) for r, degree in zip(residuals, degrees, strict=True))
    # Never narrower than for new seeds or new stories alone.  Satterthwaite's degrees of freedom, which are estimated
    # too, covered 0.88 where two seeds dominate.
    sources = [(variance, of_seeds + of_stories + of_residuals), (sum(seeds), of_seeds), (stories, of_stories)]
    sources = [(math.sqrt(part), part**2 / squares) for part, squares in sources if squares]
    lowers, uppers, ps = zip(*(t_test(estimate, error, freedom) for error, freedom in sources), strict=True)
    return TestedDifference(Estimate(estimate, min(lowers), max(uppers), num_stories, unit), max(ps), method)


def _parts(influences_SN: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean by rows (root seeds, with the residual in it) and that of the residual alone."""
    num_seeds, num_stories = influences_SN.shape
    rows_S1, columns_N = influences_SN.mean(axis=1, keepdims=True), influences_SN.mean(axis=0)
    residuals_SN = influences_SN - rows_S1 - columns_N + influences_SN.mean()
    residual = float((residuals_SN**2).sum()) / ((num_seeds - 1) * (num_stories - 1))
    return float(np.var(rows_S1, ddof=1)) / num_seeds, residual / (num_seeds * num_stories)
