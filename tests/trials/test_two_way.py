"""The interval for new root seeds and new stories: its arithmetic, its coverage, and where there is none."""

import math

import numpy as np
import pytest
from scipy import stats

from lm_trials.trials.paired import seed_test
from lm_trials.trials.two_way import two_way

UNIT = "nats per token"


def drawn(generator, num_seeds, num_stories, of_seeds, of_stories, of_both):
    """Values with effects of each seed, of each story, and of both together, in standard deviations."""
    return (
        generator.normal(0, of_seeds, (num_seeds, 1))
        + generator.normal(0, of_stories, (1, num_stories))
        + generator.normal(0, of_both, (num_seeds, num_stories))
    )


def by_projections(values_SN, sizes_N):
    """Estimate, standard error and degrees of freedom from mean squares of an analysis of variance."""
    num_seeds, num_stories = values_SN.shape
    ratio = values_SN.sum() / (num_seeds * sizes_N.sum())
    y = ((values_SN - ratio * sizes_N) / sizes_N.mean()).ravel()
    mean = {size: np.full((size, size), 1 / size) for size in (num_seeds, num_stories)}
    rest = {size: np.eye(size) - mean[size] for size in mean}
    squares = [
        float(y @ np.kron(over_seeds[num_seeds], over_stories[num_stories]) @ y) / freedom
        for over_seeds, over_stories, freedom in (
            (rest, mean, num_seeds - 1),
            (mean, rest, num_stories - 1),
            (rest, rest, (num_seeds - 1) * (num_stories - 1)),
        )
    ]
    total = squares[0] + squares[1] - squares[2]
    degrees = (num_seeds - 1, num_stories - 1, (num_seeds - 1) * (num_stories - 1))
    return ratio, math.sqrt(total / y.size), total**2 / sum(s**2 / d for s, d in zip(squares, degrees, strict=True))


def test_the_interval_is_that_of_an_analysis_of_variance():
    generator = np.random.default_rng(0)
    sizes_N = generator.integers(5, 50, 30)
    values_SN = sizes_N * (0.1 + drawn(generator, 8, 30, 0.1, 0.4, 0.1))
    ratio, error, freedom = by_projections(values_SN, sizes_N)
    test = two_way(values_SN, sizes_N, UNIT)
    half = stats.t.ppf(0.975, freedom) * error
    assert (test.difference.lower, test.difference.upper) == pytest.approx((ratio - half, ratio + half))
    assert test.p == pytest.approx(2 * stats.t.sf(abs(ratio) / error, freedom))
    # Stories weigh by their sizes.
    assert two_way(values_SN, np.full(30, sizes_N.mean()), UNIT).difference.upper != pytest.approx(
        test.difference.upper
    )


def test_arms_with_other_seeds_have_the_variances_of_both_and_the_stories_in_common():
    generator = np.random.default_rng(1)
    sizes_N = generator.integers(5, 50, 40)
    stories = generator.normal(0, 3.0, 40)
    first, second = (stories + drawn(generator, count, 40, 0.1, 0.1, 0.1) for count in (3, 5))
    test = two_way(second, sizes_N, UNIT, first)
    back = two_way(first, sizes_N, UNIT, second)
    assert (back.difference.lower, back.p) == pytest.approx((-test.difference.upper, test.p))
    assert test.difference.estimate == pytest.approx((second.mean(0) - first.mean(0)).sum() / sizes_N.sum())
    # What the stories have in common is no part of it; of each arm's own interval it is almost all.
    width = test.difference.upper - test.difference.lower
    assert width < (two_way(first, sizes_N, UNIT).difference.upper - two_way(first, sizes_N, UNIT).difference.lower) / 5
    # With one story effect and no residual, it is Welch's interval over seeds.
    rows = [np.repeat(generator.normal(0, 1, (count, 1)), 40, axis=1) for count in (3, 5)]
    welch = seed_test(rows[0][:, 0], rows[1][:, 0], 40, UNIT, paired=False)
    alone = two_way(rows[1], np.ones(40), UNIT, rows[0])
    assert (alone.difference.lower, alone.p) == pytest.approx((welch.difference.lower, welch.p))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_it_covers_new_seeds_and_new_stories_and_the_interval_over_seeds_does_not(num_seeds):
    """Seeds vary by 0.01, each of 50 stories by 0.1: 500 draws, 0.95 is 0.95 +- 0.019 (two standard errors)."""
    generator, hits, over_seeds = np.random.default_rng(num_seeds), 0, 0
    for _ in range(500):
        values_SN = drawn(generator, num_seeds, 50, 0.01, 0.1, 0.02)
        found = two_way(values_SN, np.ones(50), UNIT).difference
        hits += found.lower <= 0 <= found.upper
        half = stats.t.ppf(0.975, num_seeds - 1) * stats.sem(values_SN.mean(axis=1))
        over_seeds += abs(values_SN.mean()) <= half
    assert 0.93 <= hits / 500 <= 0.98
    assert over_seeds / 500 < 0.85


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_it_is_never_narrower_than_for_new_seeds_or_new_stories_alone(num_seeds):
    """Where seeds dominate, Satterthwaite's degrees of freedom alone cover 0.90 and 0.93; 500 draws, as above."""
    generator, hits = np.random.default_rng(num_seeds), 0
    for of_seeds in [0.05] * 500 + [0.0] * 100:  # without an effect, seeds that happen to be equal
        values_SN = drawn(generator, num_seeds, 20, of_seeds, 0.1, 0.02)
        test = two_way(values_SN, np.ones(20), UNIT)
        found, alone = test.difference, seed_test(np.zeros(num_seeds), values_SN.mean(axis=1), 20, UNIT, paired=True)
        over_stories = stats.t.ppf(0.975, 19) * stats.sem(values_SN.mean(axis=0))
        half = found.upper - found.estimate
        assert half >= (alone.difference.upper - alone.difference.estimate) * (1 - 1e-9)
        assert half >= over_stories
        assert test.p >= alone.p * (1 - 1e-9)
        assert (test.p < 0.05) == (not found.lower <= 0 <= found.upper)
        hits += of_seeds > 0 and found.lower <= 0 <= found.upper
    assert hits / 500 >= 0.94


@pytest.mark.parametrize(
    "values_SN",
    [np.arange(30.0)[None], np.arange(18.0).reshape(2, 9), np.zeros((3, 20)), np.full((3, 20), 0.1)],
    ids=["one root seed", "nine stories", "no difference", "one difference"],
)
def test_where_nothing_is_known_of_new_ones_there_is_no_interval(values_SN):
    test = two_way(values_SN, np.full(values_SN.shape[1], 3), UNIT)
    assert test.difference.estimate == pytest.approx(values_SN.mean() / 3)
    assert all(math.isnan(value) for value in (test.difference.lower, test.difference.upper, test.p))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="give a row of stories per root seed"):
        two_way(np.zeros(20), np.ones(20), UNIT)
    with pytest.raises(ValueError, match="give a row of stories"):
        two_way(np.zeros((2, 20)), np.ones(10), UNIT, np.zeros((2, 20)))
