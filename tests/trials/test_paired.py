"""The arithmetic of the tests, against independent computations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm_trials.estimates import mean_over_seeds, proportion
from lm_trials.trials.paired import holm, seed_test, story_test

UNIT = "nats per token"
losses = st.lists(st.floats(-5, 5).map(lambda value: round(value, 3)), min_size=2, max_size=14)


def sign_flip_p(values, seed=0):
    return story_test(values, np.ones(len(values)), UNIT, seed).p


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


@pytest.mark.parametrize("count", [10, 12, 14, 60])
def test_the_interval_has_the_differences_that_the_test_does_not_reject(count):
    """By testing the stories' distances from a value, an independent way to the same interval."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        tokens = generator.integers(5, 50, count)
        differences = tokens * (generator.gamma(0.5, 1.0, count) - 0.3)
        found = story_test(differences, tokens, UNIT).difference
        for limit, inside in ((found.lower, 1), (found.upper, -1)):
            step = 1e-9 * (found.upper - found.lower) * inside
            assert story_test(differences - (limit + step) * tokens, tokens, UNIT).p > 0.05
            assert story_test(differences - (limit - step) * tokens, tokens, UNIT).p <= 0.05


def test_the_interval_never_contradicts_the_test():
    decided = set()
    for seed in range(200):
        generator = np.random.default_rng(seed)
        values = generator.standard_t(2, 25) + 0.8
        test = story_test(values, np.ones(25), UNIT)
        significant = not test.difference.lower <= 0 <= test.difference.upper
        assert significant == (test.p <= 0.05)
        decided.add(significant)
    assert decided == {True, False}


def test_over_few_or_equal_stories_there_is_no_interval():
    values = np.arange(10.0)
    assert not math.isnan(story_test(values, np.ones(10), UNIT).difference.lower)
    assert math.isnan(story_test(values[:9], np.ones(9), UNIT).difference.lower)
    assert math.isnan(story_test(np.full(20, 0.1), np.ones(20), UNIT).difference.lower)


def test_the_interval_agrees_with_the_delta_method():
    generator = np.random.default_rng(1)
    differences, tokens = generator.normal(1, 2, 300), generator.integers(5, 50, 300)
    found = story_test(differences, tokens, UNIT).difference
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
        (-there.difference.upper, -there.difference.lower), nan_ok=True
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


def test_seeds_that_all_give_one_number_show_no_spread_and_have_no_interval_unless_shares():
    found = mean_over_seeds([0.0, 0.0, 0.0], 85, UNIT)
    assert found.estimate == 0.0
    assert math.isnan(found.lower)
    assert math.isnan(found.upper)
    share = mean_over_seeds([0.0, 0.0, 0.0], 85, "share of stories", "logit")
    assert (share.lower, share.upper) == (0.0, proportion(0, 85, "share of stories").upper)


shares = st.lists(st.integers(0, 85).map(lambda count: count / 85), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(shares, shares)
def test_intervals_of_shares_stay_where_shares_are(first, second):
    found = mean_over_seeds(first, 85, "share of stories", "logit")
    assert 0 <= found.lower <= found.estimate <= found.upper <= 1
    assert found.lower < found.upper
    test = seed_test(first, second, 85, "balanced accuracy", paired=False)
    if not math.isnan(test.p):
        assert -1 <= test.difference.lower <= test.difference.estimate <= test.difference.upper <= 1
        assert (test.difference.lower <= 0 <= test.difference.upper) == (test.p >= 0.05)


def test_shares_of_the_pages_stay_above_zero():
    """Of three seeds, once given as 0.012 [-0.018, 0.041]."""
    low, high = 0.0, 0.0258
    values = [low, 0.012, high]
    found = mean_over_seeds(values, 85, "share of stories", "logit")
    assert mean_over_seeds(values, 85, "share of stories").lower < 0 < found.lower
    # On the logit scale, by the delta method.
    mean, error = np.mean(values), stats.sem(values) / (np.mean(values) * (1 - np.mean(values)))
    half = stats.t.ppf(0.975, 2) * error
    limits = [1 / (1 + math.exp(-(math.log(mean / (1 - mean)) + end))) for end in (-half, half)]
    assert (found.lower, found.upper) == pytest.approx(limits)


def test_the_interval_of_shares_over_seeds_covers():
    """Shares of 0.05 of 50 stories, over 5 seeds that vary: 2,000 draws, of which 0.89 were covered by plain t."""
    generator, hits, plain = np.random.default_rng(0), 0, 0
    for values in generator.binomial(50, generator.beta(0.95, 18.05, (2000, 5))) / 50:
        found, other = (mean_over_seeds(values, 50, UNIT, scale) for scale in ("logit", "identity"))
        hits += found.lower <= 0.05 <= found.upper
        plain += other.lower <= 0.05 <= other.upper
    assert hits / 2000 > 0.94 > 0.91 > plain / 2000


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
