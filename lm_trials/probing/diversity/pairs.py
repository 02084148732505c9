"""Pairs: distances between batches of text, and their mean with an interval that knows that pairs share batches.

Shape suffixes: N, M = batches, F = filters of a network (the entries of an embedding).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from lm_trials.estimates import NO_INTERVAL, Estimate


def cosine_distance(first_F: np.ndarray, second_F: np.ndarray) -> float:
    """Return Task2Vec's symmetric distance of two embeddings, from 0 (the same) to 1 (no filter in common).

    Both are divided, filter by filter, by their sum, which makes up for filters of very different scales; then the
    cosine of the angle is taken (Achille et al. 2019, arXiv 1902.03545, section 3.2).  A filter that is 0 in both
    says nothing and counts for nothing; aws-cv-task2vec adds 1e-8 to the sums instead, which silences every filter
    whose information is small beside 1e-8, and so depends on the scale of the loss.

    Raises:
        ValueError: for embeddings of different shapes, without any information, negative, not finite, or beyond all
            measure of one another.

    >>> cosine_distance(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    0.0
    >>> cosine_distance(np.array([1.0, 0.0]), np.array([0.0, 3.0]))
    1.0
    """
    if first_F.shape != second_F.shape:
        raise ValueError(f"embeddings of {first_F.shape} and {second_F.shape} filters are of two networks; use one")
    for embedding_F in (first_F, second_F):
        if not (np.isfinite(embedding_F).all() and (embedding_F >= 0).all() and embedding_F.any()):
            raise ValueError("an embedding is a diagonal of Fisher information: finite, not negative, not all zero")
    largest_F = np.maximum(first_F, second_F)
    known = largest_F > 0
    # Divided by the larger one first: a sum of two numbers near the largest float would overflow, and a ratio of two
    # near the smallest lose its digits.
    a_F, b_F = first_F[known] / largest_F[known], second_F[known] / largest_F[known]
    share_F = a_F / (a_F + b_F)
    other_F = b_F / (a_F + b_F)
    if np.array_equal(share_F, other_F):  # the same up to rounding, which the norms below would show
        return 0.0
    if not share_F.any() or not other_F.any():
        raise ValueError("one embedding is more than 1e308 times the other everywhere; they are of different losses")
    # The length of neither matters; without this, squares of shares below 1e-154 would be 0.
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
    """Return distances without what the drawing of tokens adds to them, from those that each half of the draws gives.

    An embedding of D draws is off by noise of variance 1 / D, which never shortens a distance on average: two
    embeddings of one batch are some c / D apart, not 0.  Half the draws add twice as much, so twice the distance less
    the halves' mean distance is without the term in 1 / D (Quenouille 1956, doi:10.1093/biomet/43.3-4.353).  What it
    gives for a single pair can be below 0.

    >>> without_noise(np.array([[0.0, 0.5], [0.5, 0.0]]), np.array([[[0.0, 0.7], [0.7, 0.0]]] * 2)).round(3).tolist()
    [[0.0, 0.3], [0.3, 0.0]]
    """
    return 2 * distances_NN - half_distances_2NN.mean(axis=0)


def mean_within(distances_NN: np.ndarray, unit: str, confidence: float = 0.95) -> Estimate:
    """Estimate the expected distance of two different batches of one data set; n counts batches, not pairs.

    The mean over pairs is a U-statistic.  Its pairs share batches, so an interval that takes N (N - 1) / 2 pairs for
    independent is far too narrow, and a bootstrap draws pairs of a batch with itself, at distance 0.  Here each batch
    is left out in turn (the jackknife; Arvesen 1969, doi:10.1214/aoms/1177697287), which never pairs a batch with
    itself, and the interval is Student's with N - 1 degrees of freedom.  The jackknife's variance errs to the safe
    side (Efron and Stein 1981, doi:10.1214/aos/1176345462), most where batches differ in nothing but noise.  Where no
    distance is outside of 0 and 1, neither is the interval.  Fewer than 3 batches give no interval.

    Raises:
        ValueError: for distances that are not square or not symmetric, or fewer than 2 batches.

    >>> print(mean_within(np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.3], [0.4, 0.3, 0.0]]), "cosine distance"))
    0.300 [0.000, 0.797] cosine distance (n=3)
    """
    n = len(distances_NN)
    if distances_NN.shape != (n, n) or not np.array_equal(distances_NN, distances_NN.T) or n < 2:
        raise ValueError(f"distances of shape {distances_NN.shape} are no symmetric table of at least 2 batches")
    sums_N = distances_NN.sum(axis=1) - distances_NN.diagonal()
    estimate = float(sums_N.sum()) / (n * (n - 1))
    if n < 3:
        return Estimate(estimate, *NO_INTERVAL, n, unit)
    without_N = (sums_N.sum() - 2 * sums_N) / ((n - 1) * (n - 2))
    half = t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(_jackknife_variance(without_N))
    return Estimate(estimate, *_around(estimate, half, distances_NN), n, unit)


def mean_between(distances_MN: np.ndarray, unit: str, confidence: float = 0.95) -> Estimate:
    """Estimate the expected distance of a batch of one data set (rows) and one of another; n counts both's batches.

    The interval is that of `mean_within` for two samples: the variance adds up the jackknife's over the rows and over
    the columns, with Welch and Satterthwaite's degrees of freedom.

    Raises:
        ValueError: for no batches on one side.

    >>> print(mean_between(np.array([[0.2, 0.3], [0.3, 0.5]]), "cosine distance"))
    0.325 [0.000, 0.781] cosine distance (n=4)
    """
    if distances_MN.ndim != 2 or 0 in distances_MN.shape:
        raise ValueError(f"distances of shape {distances_MN.shape} are no table of two sets' batches")
    m, n = distances_MN.shape
    total, estimate = float(distances_MN.sum()), float(distances_MN.mean())
    if min(m, n) < 2:
        return Estimate(estimate, *NO_INTERVAL, m + n, unit)
    rows = _jackknife_variance((total - distances_MN.sum(axis=1)) / ((m - 1) * n))
    columns = _jackknife_variance((total - distances_MN.sum(axis=0)) / (m * (n - 1)))
    spread = rows**2 / (m - 1) + columns**2 / (n - 1)
    freedom = (rows + columns) ** 2 / spread if spread > 0 else m + n - 2
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(rows + columns)
    return Estimate(estimate, *_around(estimate, half, distances_MN), m + n, unit)


def _around(estimate: float, half: float, distances: np.ndarray) -> tuple[float, float]:
    """Return the interval, cut off at the bounds of a distance if all of them keep these."""
    lower, upper = (0.0, 1.0) if distances.min() >= 0 and distances.max() <= 1 else (-math.inf, math.inf)
    return max(estimate - half, lower), min(estimate + half, upper)


def _jackknife_variance(without_N: np.ndarray) -> float:
    """Return the variance of a statistic from its values without each of N batches."""
    n = len(without_N)
    return float((n - 1) / n * np.square(without_N - without_N.mean()).sum())


def t_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t: exact for 1 and 2 degrees of freedom, else a series in their inverse.

    Below 2 it is that for 1, the wider.  The series is that of Cornish and Fisher (Abramowitz and Stegun 26.7.5); for
    the 97.5 % quantile it is 0.01 too small for 2.5 degrees of freedom and within 0.001 from 4 on.

    >>> [round(t_quantile(0.975, freedom), 3) for freedom in (1, 2, 9, 29)]
    [12.706, 4.303, 2.262, 2.045]
    """
    if freedom < 2 - 1e-9:
        return math.tan(math.pi * (probability - 0.5))
    if freedom <= 2 + 1e-9:
        half = 2 * probability - 1
        return half * math.sqrt(2 / (1 - half * half))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
