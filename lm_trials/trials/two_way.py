"""Two-way intervals: for new root seeds and new stories together.

Both are random samples, and every root seed is measured on the same stories.  The variance of the mean is
seeds + stories - residual / (S n), as both of the first contain the residual.  The statistic is
sum(nats) / sum(tokens); each story's share of it is linearised.

Shape suffixes: S = root seeds, N = stories.
"""

from __future__ import annotations

import math

import numpy as np

from lm_trials.estimates import LEAST_STORIES, NO_INTERVAL, Estimate, t_test
from lm_trials.trials.paired import SAME, TestedDifference


def two_way(
    values_SN: np.ndarray, sizes_N: np.ndarray, unit: str, minus_SN: np.ndarray | None = None
) -> TestedDifference:
    """Test whether sum(values) / sum(sizes), mean over root seeds, is 0, for new root seeds and new stories.

    There is no interval with one root seed, with fewer than 10 stories, or where nothing varies.

    Args:
        values_SN: each story's nats or bits with each root seed, or their difference between two arms of the same root
            seeds; a root seed of several runs has their mean.
        sizes_N: each story's tokens or bytes.
        minus_SN: the values of another arm with other root seeds, on the same stories, which are subtracted.

    >>> first_SN = np.array([[1.0, 2, 3, 2, 2] * 4, [2.0, 2, 3, 2, 1] * 4, [2.0, 3, 4, 3, 2] * 4])
    >>> test = two_way(first_SN, np.full(20, 10), "nats per token")
    >>> f"{test.difference}, p = {test.p:.3f}"
    '0.227 [0.112, 0.341] nats per token (n=20), p = 0.014'
    >>> print(two_way(np.array([[2.0, 2, 3, 2, 1] * 4, [3.0] * 20]), np.full(20, 10), "nats", first_SN).difference)
    0.023 [-0.293, 0.340] nats (n=20)
    """
    arms = [np.asarray(values_SN, dtype=np.float64)]
    arms += [] if minus_SN is None else [-np.asarray(minus_SN, dtype=np.float64)]
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
