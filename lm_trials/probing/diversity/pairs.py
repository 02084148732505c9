"""Pairs: distances between batches of text, and their mean with an interval that accounts for shared batches.

Shape suffixes: N, M = batches, F = filters of a network (the entries of an embedding).
"""

from __future__ import annotations

import math

import numpy as np

from lm_trials.estimates import NO_INTERVAL, Estimate, t_interval


def cosine_distance(first_F: np.ndarray, second_F: np.ndarray) -> float:
    """Return Task2Vec's symmetric distance of two embeddings, from 0 (the same) to 1 (no filter in common).

    Both are divided, filter by filter, by their sum, because the scales of filters differ by orders of magnitude; then
    the cosine is taken (Achille et al. 2019, arXiv 1902.03545, section 3.2).  Filters that are 0 in both are left out.
    aws-cv-task2vec adds 1e-8 to the sums instead, so its distance depends on the scale of the loss.

    Raises:
        ValueError: for embeddings of different shapes, all zero, negative, not finite, or differing by over 1e308.

    >>> cosine_distance(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    0.0
    >>> cosine_distance(np.array([1.0, 0.0]), np.array([0.0, 3.0]))
    1.0
    """
    if first_F.shape != second_F.shape:
        raise ValueError(
            f"embeddings of {first_F.shape} and {second_F.shape} filters are of two networks; use one network"
        )
    for embedding_F in (first_F, second_F):
        if not (np.isfinite(embedding_F).all() and (embedding_F >= 0).all() and embedding_F.any()):
            raise ValueError(
                "an embedding must be a diagonal of Fisher information: finite, not negative, not all zero"
            )
    largest_F = np.maximum(first_F, second_F)
    known = largest_F > 0
    # Divided by the larger one first: a sum of two numbers near the largest float would overflow, and a ratio of two
    # numbers near the smallest would lose digits.
    a_F, b_F = first_F[known] / largest_F[known], second_F[known] / largest_F[known]
    share_F = a_F / (a_F + b_F)
    other_F = b_F / (a_F + b_F)
    if np.array_equal(share_F, other_F):  # otherwise the norms below would give a distance of rounding errors
        return 0.0
    if not share_F.any() or not other_F.any():
        raise ValueError("one embedding is over 1e308 times the other; they are of different losses")
    # The cosine does not depend on the scale; without this, squares of shares below 1e-154 would be 0.
    share_F, other_F = share_F / share_F.max(), other_F / other_F.max()
    cosine = share_F @ other_F / math.sqrt((share_F @ share_F) * (other_F @ other_F))
    return float(min(max(1.0 - cosine, 0.0), 1.0))


def task_distances(embeddings_NF: np.ndarray) -> np.ndarray:
    """Return the (N, N) distances of all pairs of embeddings; 0 on the diagonal.

    >>> task_distances(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    distances_NN = np.zeros((len(embeddings_NF), len(embeddings_NF)))
    for i, first_F in enumerate(embeddings_NF):
        for j in range(i):
            distances_NN[i, j] = distances_NN[j, i] = cosine_distance(first_F, embeddings_NF[j])
    return distances_NN


def without_noise(distances_NN: np.ndarray, half_distances_2NN: np.ndarray) -> np.ndarray:
    """Return distances without the bias by the random draws, from the distances of each half of the draws.

    The noise of D draws adds c / D to a distance: two embeddings of one batch are not at distance 0.  Half the draws
    add twice as much, so twice the distance minus the halves' mean distance has no term in 1 / D (Quenouille 1956,
    doi:10.1093/biomet/43.3-4.353).  The result for a single pair can be negative.

    >>> without_noise(np.array([[0.0, 0.5], [0.5, 0.0]]), np.array([[[0.0, 0.7], [0.7, 0.0]]] * 2)).round(3).tolist()
    [[0.0, 0.3], [0.3, 0.0]]
    """
    return 2 * distances_NN - half_distances_2NN.mean(axis=0)


def mean_within(distances_NN: np.ndarray, unit: str) -> Estimate:
    """Estimate the expected distance of two different batches of one data set; n counts batches, not pairs.

    The mean over pairs is a U-statistic.  Pairs share batches, so an interval that treats N (N - 1) / 2 pairs as
    independent is far too narrow, and a bootstrap would draw pairs of a batch with itself, at distance 0.  The interval
    is Student's with N - 1 degrees of freedom and the jackknife's variance (Arvesen 1969, doi:10.1214/aoms/1177697287),
    which is conservative (Efron and Stein 1981, doi:10.1214/aos/1176345462), most where batches differ only by noise.
    If all distances are in [0, 1], the interval is cut off there.  Fewer than 3 batches give no interval.

    Raises:
        ValueError: for a table that is not square or not symmetric, or fewer than 2 batches.

    >>> print(mean_within(np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.3], [0.4, 0.3, 0.0]]), "cosine distance"))
    0.300 [0.000, 0.797] cosine distance (n=3)
    """
    n = len(distances_NN)
    if distances_NN.shape != (n, n) or not np.array_equal(distances_NN, distances_NN.T) or n < 2:
        raise ValueError(f"distances of shape {distances_NN.shape} are not a symmetric table of at least 2 batches")
    sums_N = distances_NN.sum(axis=1) - distances_NN.diagonal()
    estimate = float(sums_N.sum()) / (n * (n - 1))
    if n < 3:
        return Estimate(estimate, *NO_INTERVAL, n, unit)
    without_N = (sums_N.sum() - 2 * sums_N) / ((n - 1) * (n - 2))
    return Estimate(estimate, *_interval(estimate, _jackknife_variance(without_N), n - 1, distances_NN), n, unit)


def mean_between(distances_MN: np.ndarray, unit: str) -> Estimate:
    """Estimate the expected distance of a batch of one data set (rows) and one of another; n counts all batches.

    The interval is that of `mean_within` for two samples: the sum of the jackknife's variances over rows and columns,
    with Welch and Satterthwaite's degrees of freedom.

    Raises:
        ValueError: for no batches on one side.

    >>> print(mean_between(np.array([[0.2, 0.3], [0.3, 0.5]]), "cosine distance"))
    0.325 [0.000, 0.781] cosine distance (n=4)
    """
    if distances_MN.ndim != 2 or 0 in distances_MN.shape:
        raise ValueError(f"distances of shape {distances_MN.shape} are not a table of two sets' batches")
    m, n = distances_MN.shape
    total, estimate = float(distances_MN.sum()), float(distances_MN.mean())
    if min(m, n) < 2:
        return Estimate(estimate, *NO_INTERVAL, m + n, unit)
    rows = _jackknife_variance((total - distances_MN.sum(axis=1)) / ((m - 1) * n))
    columns = _jackknife_variance((total - distances_MN.sum(axis=0)) / (m * (n - 1)))
    spread = rows**2 / (m - 1) + columns**2 / (n - 1)
    freedom = (rows + columns) ** 2 / spread if spread > 0 else m + n - 2
    return Estimate(estimate, *_interval(estimate, rows + columns, freedom, distances_MN), m + n, unit)


def _interval(estimate: float, variance: float, freedom: float, distances: np.ndarray) -> tuple[float, float]:
    """Return the t interval, cut off at 0 and 1 if all distances are between them."""
    lower, upper = t_interval(estimate, math.sqrt(variance), freedom)
    return (max(lower, 0.0), min(upper, 1.0)) if distances.min() >= 0 and distances.max() <= 1 else (lower, upper)


def _jackknife_variance(without_N: np.ndarray) -> float:
    """Return the variance of a statistic from its values without each one of N batches."""
    n = len(without_N)
    return float((n - 1) / n * np.square(without_N - without_N.mean()).sum())
