"""The arithmetic of the tests, against independent computations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm_trials.estimates import StoryBootstrap, mean_over_seeds
from lm_trials.trials.paired import holm, seed_test, sign_flip_p, story_test

UNIT = "nats per token"
losses = st.lists(st.floats(-5, 5).map(lambda value: round(value, 3)), min_size=2, max_size=12)


def brute_force_p(differences):
    """Share of all choices of signs whose sum is at least as far out, doubled on the smaller side."""
    sums = np.array([np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))])
    seen = np.sum(differences)
    return min(1.0, 2 * min(np.mean(sums >= seen - 1e-9), np.mean(sums <= seen + 1e-9)))


@pytest.mark.parametrize("differences", [[1.0, 2.0, -0.5, 3.0], [0.1] * 7, [1.0, -1.0, 2.0, -2.0, 0.5, 4.0, 1.5, -0.2]])
def test_few_stories_are_tested_by_all_choices_of_signs(differences):
    test = story_test(np.array(differences), np.full(len(differences), 10), UNIT)
    assert test.p == pytest.approx(brute_force_p(differences), abs=1e-12)
    turned = [-differences[0], *differences[1:]]
    assert story_test(np.array(turned), np.full(len(turned), 10), UNIT).p != pytest.approx(test.p, abs=1e-3)


def test_drawn_signs_agree_with_scipys_permutation_test():
    values = np.random.default_rng(3).normal(0.3, 1.0, size=40)
    known = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", vectorized=True, n_resamples=9999, rng=np.random.default_rng(5)
    ).pvalue
    # Both estimate one p from 9,999 draws each; three standard errors of their difference.
    assert sign_flip_p(values) == pytest.approx(known, abs=3 * math.sqrt(8 * known / 9999))
    assert sign_flip_p(values - values.mean()) > 0.9
    assert sign_flip_p(values + 1) == pytest.approx(2 / 10000)
    assert sign_flip_p(values, seed=0) == sign_flip_p(values, seed=0)


def test_many_stories_agree_with_the_normal_approximation():
    generator = np.random.default_rng(0)
    for shift, low, high in ((0.0, 0.05, 1.0), (0.06, 1e-4, 0.05)):
        values = generator.normal(shift, 1.0, size=2000)
        p = story_test(values, np.full(2000, 20), UNIT).p
        z = values.sum() / math.sqrt((values**2).sum())
        assert p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.02)
        assert low < p < high


def test_the_statistic_weighs_stories_by_their_tokens():
    differences, tokens = np.array([1.0, 5.0, 2.0]), np.array([10, 100, 30])
    estimate = story_test(differences, tokens, UNIT).difference.estimate
    assert estimate == pytest.approx(8 / 140)
    assert estimate != pytest.approx(np.mean(differences / tokens))


def test_the_interval_is_the_bootstrap_over_stories():
    generator = np.random.default_rng(1)
    differences, tokens = generator.normal(1, 2, 300), generator.integers(5, 50, 300)
    found = story_test(differences, tokens, UNIT).difference
    bootstrap = StoryBootstrap(seed=0)
    bootstrap.update(np.stack([differences, tokens], axis=1))
    assert found == bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], UNIT)
    # The delta method's standard error of a ratio of sums, independent of any resampling.
    ratio = differences.sum() / tokens.sum()
    error = np.sqrt(((differences - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert (found.upper - found.lower) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (found.upper - found.lower) / 2 != pytest.approx(1.96 * error / math.sqrt(tokens.mean()), rel=0.5)


def test_equal_models_are_not_told_apart_and_one_story_tells_nothing():
    assert story_test(np.zeros(30), np.full(30, 5), UNIT).p == 1
    assert math.isnan(story_test(np.array([1.0]), np.array([5]), UNIT).p)
    with pytest.raises(ValueError, match="give one of each per story"):
        story_test(np.zeros(0), np.zeros(0), UNIT)


@settings(max_examples=25, deadline=None)
@given(losses)
def test_swapping_the_models_negates_the_difference(values):
    values, tokens = np.array(values), np.arange(1, len(values) + 1)
    there, back = story_test(values, tokens, UNIT), story_test(-values, tokens, UNIT)
    assert back.difference.estimate == -there.difference.estimate
    assert (back.difference.lower, back.difference.upper) == pytest.approx(
        (-there.difference.upper, -there.difference.lower)
    )
    assert back.p == pytest.approx(there.p)


@settings(max_examples=25, deadline=None)
@given(losses, losses, st.randoms(use_true_random=False), st.booleans())
def test_over_seeds_swapping_negates_and_the_order_of_seeds_is_irrelevant(first, second, random, paired):
    if paired:
        first, second = first[: len(second)], second[: len(first)]
    there = seed_test(first, second, 5, UNIT, paired)
    back = seed_test(second, first, 5, UNIT, paired)
    assert back.difference.estimate == pytest.approx(-there.difference.estimate)
    assert back.p == pytest.approx(there.p, nan_ok=True)
    order = random.sample(range(len(first)), len(first))
    other = order if paired else random.sample(range(len(second)), len(second))
    mixed = seed_test([first[i] for i in order], [second[i] for i in other], 5, UNIT, paired)
    assert mixed.difference.lower == pytest.approx(there.difference.lower, abs=1e-9, nan_ok=True)
    assert mixed.p == pytest.approx(there.p, abs=1e-9, nan_ok=True)


FIRST, SECOND = [1.0, 1.2, 1.1], [1.2, 1.35, 1.4]


def test_welch_by_its_formula():
    test = seed_test(FIRST, SECOND, 5, UNIT, paired=False)
    variances = [np.var(values, ddof=1) / 3 for values in (FIRST, SECOND)]
    freedom = sum(variances) ** 2 / sum(v**2 / 2 for v in variances)
    difference = np.mean(SECOND) - np.mean(FIRST)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    assert (test.difference.lower, test.difference.upper) == pytest.approx((difference - half, difference + half))
    assert test.p == pytest.approx(2 * stats.t.sf(difference / math.sqrt(sum(variances)), freedom))
    assert test.method.startswith("Welch")


def test_equal_seeds_are_paired_by_the_formula_of_one_sample():
    test = seed_test(FIRST, SECOND, 5, UNIT, paired=True)
    pairs = np.subtract(SECOND, FIRST)
    error = np.std(pairs, ddof=1) / math.sqrt(3)
    assert test.p == pytest.approx(2 * stats.t.sf(pairs.mean() / error, 2))
    assert test.difference.upper - test.difference.estimate == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert test.p != pytest.approx(seed_test(FIRST, SECOND, 5, UNIT, paired=False).p)


def test_one_seed_has_no_interval_and_equal_losses_have_no_spread():
    assert seed_test([1.0], [1.0, 2.0], 5, UNIT, paired=False) is None
    assert math.isnan(mean_over_seeds([1.0], 5, UNIT).lower)
    same = seed_test([1.0, 1.0], [2.0, 2.0], 5, UNIT, paired=False)
    assert same.difference.estimate == 1
    assert math.isnan(same.p)
    assert math.isnan(same.difference.lower)
    assert not math.isnan(seed_test([1.0, 1.0], [2.0, 2.1], 5, UNIT, paired=False).p)


def test_seeds_that_all_give_one_number_show_no_spread_and_have_no_interval():
    found = mean_over_seeds([0.0, 0.0, 0.0], 85, UNIT)
    assert found.estimate == 0.0
    assert math.isnan(found.lower)
    assert math.isnan(found.upper)


def test_an_arms_interval_is_students():
    found = mean_over_seeds(FIRST, 5, UNIT)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(FIRST), scale=stats.sem(FIRST))
    assert (found.lower, found.upper) == pytest.approx((low, high))
    # The normal distribution's 1.96 would be far too narrow for three seeds.
    assert found.upper - found.estimate > 2 * 1.96 * stats.sem(FIRST)


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.04]) == [0.04]
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_raises_and_keeps_the_order(values):
    corrected = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, corrected, strict=True))
    ordered = [q for _, q in sorted(zip(values, corrected, strict=True))]
    assert ordered == sorted(ordered)
