"""Distances keep Task2Vec's properties, and intervals over batches cover what they say, where pairs' do not."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from lm_trials.probing.diversity.pairs import cosine_distance, mean_between, mean_within, task_distances, without_noise

FISHER = st.just(0.0) | st.floats(1e-200, 1e30)
EMBEDDINGS = arrays(np.float64, (4, 6), elements=FISHER)


def test_the_distance_is_the_cosine_of_shares():
    first, second = np.array([1.0, 4.0, 0.5]), np.array([3.0, 1.0, 0.5])
    shares = first / (first + second), second / (first + second)
    expected = 1 - shares[0] @ shares[1] / np.linalg.norm(shares[0]) / np.linalg.norm(shares[1])
    assert cosine_distance(first, second) == pytest.approx(expected, abs=1e-15)
    assert cosine_distance(first, second) > 0.1


def test_a_filter_that_neither_has_counts_for_nothing():
    first, second = np.array([1.0, 4.0]), np.array([3.0, 1.0])
    assert cosine_distance(np.append(first, 0.0), np.append(second, 0.0)) == cosine_distance(first, second)
    assert cosine_distance(np.append(first, 0.0), np.append(second, 1e-300)) != cosine_distance(first, second)


def test_the_distance_does_not_depend_on_the_scale_of_the_loss():
    """An epsilon of 1e-8, as the reference has it, would make all small embeddings equal or silent."""
    first, second = np.array([1.0, 4.0, 0.5]), np.array([3.0, 1.0, 0.5])
    assert cosine_distance(first * 1e-12, second * 1e-12) == pytest.approx(cosine_distance(first, second), rel=1e-12)
    assert cosine_distance(first * 1e-12, second) != pytest.approx(cosine_distance(first, second), rel=0.1)


def test_embeddings_of_extreme_sizes_have_a_distance():
    """Found by hypothesis: the squares of shares of 1e-160 are 0, and 0 / 0 is no cosine."""
    tiny, large = np.array([1e-160, 2e-160]), np.array([1.0, 1.0])
    assert 0 < cosine_distance(tiny, large) == pytest.approx(cosine_distance(tiny * 1e100, large), rel=1e-9)
    with pytest.raises(ValueError, match="of different losses"):
        cosine_distance(tiny * 1e-145, large * 1e30)
    assert cosine_distance(tiny, large) != pytest.approx(cosine_distance(tiny[::-1] ** 1.01, large), rel=1e-9)


@given(EMBEDDINGS)
@settings(max_examples=80, deadline=None)
def test_distances_are_symmetric_between_0_and_1_and_0_for_the_same(embeddings_NF):
    assume(embeddings_NF.any(axis=1).all())
    distances_NN = task_distances(embeddings_NF)
    assert np.array_equal(distances_NN, distances_NN.T)
    assert (distances_NN >= 0).all()
    assert (distances_NN <= 1).all()
    assert cosine_distance(embeddings_NF[0], embeddings_NF[0].copy()) == 0.0
    assert cosine_distance(embeddings_NF[0], embeddings_NF[1]) == cosine_distance(embeddings_NF[1], embeddings_NF[0])


@given(arrays(np.float64, (5, 5), elements=st.floats(0, 1)), st.permutations(range(5)))
@settings(max_examples=80, deadline=None)
def test_the_order_of_batches_changes_nothing(values_NN, order):
    distances_NN = np.triu(values_NN, 1) + np.triu(values_NN, 1).T
    again = mean_within(distances_NN[np.ix_(order, order)], "u")
    whole = mean_within(distances_NN, "u")
    assert (again.estimate, again.lower, again.upper) == pytest.approx((whole.estimate, whole.lower, whole.upper))
    crossed = mean_between(values_NN[list(order)], "u"), mean_between(values_NN, "u")
    assert crossed[0].estimate == pytest.approx(crossed[1].estimate)
    assert mean_between(values_NN.T, "u").upper == pytest.approx(crossed[1].upper)
    assert whole.lower <= whole.estimate + 1e-12
    assert whole.estimate <= whole.upper + 1e-12


@pytest.mark.parametrize("embedding", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_what_is_no_fisher_information_is_refused(embedding):
    with pytest.raises(ValueError, match="diagonal of Fisher information"):
        cosine_distance(np.array([1.0, 1.0]), np.array(embedding))
    with pytest.raises(ValueError, match="two networks"):
        cosine_distance(np.ones(2), np.ones(3))


def test_the_diagonal_is_in_no_mean():
    distances_NN = np.array([[0.0, 0.2, 0.4], [0.2, 0.0, 0.3], [0.4, 0.3, 0.0]])
    assert mean_within(distances_NN, "u").estimate == pytest.approx(0.3)
    assert mean_within(distances_NN, "u") == mean_within(distances_NN + np.eye(3), "u")
    assert mean_within(distances_NN, "u") != mean_within(distances_NN + 0.1 - 0.1 * np.eye(3), "u")


def test_few_batches_give_no_interval_and_wrong_tables_are_refused():
    assert np.isnan(mean_within(np.array([[0.0, 0.5], [0.5, 0.0]]), "u").lower)
    assert np.isnan(mean_between(np.ones((1, 5)), "u").upper)
    for table in (np.zeros((1, 1)), np.zeros((2, 3)), np.array([[0.0, 0.1, 0.1], [0.2, 0.0, 0.1], [0.1, 0.1, 0.0]])):
        with pytest.raises(ValueError, match="symmetric table"):
            mean_within(table, "u")
    with pytest.raises(ValueError, match="two sets' batches"):
        mean_between(np.zeros((0, 3)), "u")


def covered(kernel, expected, batches, rounds=600):
    """How often intervals of both kinds hold the expectation: over batches (ours), over pairs taken as independent."""
    generator = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(rounds):
        points_N = generator.normal(size=batches)
        distances_NN = kernel(points_N[:, None], points_N[None, :])
        ours = mean_within(distances_NN, "u")
        pairs = distances_NN[np.triu_indices(batches, 1)]
        half = 1.96 * pairs.std(ddof=1) / np.sqrt(len(pairs))
        hits += [ours.lower <= expected <= ours.upper, abs(pairs.mean() - expected) <= half]
    return hits / rounds


@pytest.mark.parametrize("batches", [10, 30])
def test_intervals_cover_a_known_answer_where_pairs_as_independent_do_not(batches):
    """The mean distance of two standard normal points is 2 / sqrt(pi); unbounded, as no cut-off shall help."""
    ours, naive = covered(lambda a, b: np.abs(a - b) - 5, 2 / np.sqrt(np.pi) - 5, batches)
    assert 0.91 < ours < 0.99
    assert naive < 0.75


def test_intervals_err_to_the_safe_side_where_batches_differ_in_noise_alone():
    """A degenerate kernel: no batch is farther from the others than another is, in expectation."""
    ours, _ = covered(lambda a, b: a * b - 5, -5.0, batches=10)
    assert ours > 0.94


def test_intervals_of_two_samples_cover_too():
    generator = np.random.default_rng(1)
    expected = stats.foldnorm.mean(1 / np.sqrt(2)) * np.sqrt(2) - 9  # of |x - y|, x about 0 and y about 1
    hits = 0
    for _ in range(600):
        tables = np.abs(generator.normal(size=(12, 1)) - generator.normal(1, 1, size=(1, 20))) - 9
        estimate = mean_between(tables, "u")
        hits += estimate.lower <= expected <= estimate.upper
    assert 0.91 < hits / 600 < 0.99
    assert estimate.n == 32


def test_twice_the_distance_less_the_halves_removes_noise_of_one_over_draws():
    """Distances of a planted difference and noise of c / D: 8 draws in all, 4 in each half."""
    planted, noise = 0.3, 0.4
    table = np.full((2, 2), planted)
    removed = without_noise(table + noise / 8, np.stack([table + noise / 4] * 2))
    assert removed == pytest.approx(table)
    assert without_noise(table + noise / 8, np.stack([table + noise / 2] * 2)) != pytest.approx(table)


def test_noise_is_removed_from_embeddings_of_one_task():
    """Squared Gaussians with 40 draws: the distance that is left is small beside the one that the noise makes."""
    generator = np.random.default_rng(2)
    halves_2NF = generator.chisquare(20, size=(2, 6, 2000)) / 20
    distances_NN = task_distances(halves_2NF.mean(axis=0))
    removed_NN = without_noise(distances_NN, np.stack([*map(task_distances, halves_2NF)]))
    drawn, removed = mean_within(distances_NN, "u"), mean_within(removed_NN, "u")
    assert drawn.lower > 0.01
    assert abs(removed.estimate) < 0.1 * drawn.estimate
