"""Slopes against numpy's least squares, their intervals by simulation, and metrics of stories from both places."""

import numpy as np
import pytest

from lm_trials.console import UsageError
from lm_trials.metrics.texts import text_metrics
from lm_trials.probing.durability.slopes import StoryLosses, metric_values, tenths
from lm_trials.probing.flags import TextArguments
from lm_trials.stories.records import make_record


def some_stories(count=80, slope=0.1, seed=0, noise=0.3):
    """Losses with a slope over a metric, and fewer scattered ones of longer stories."""
    draws = np.random.default_rng(seed)
    values_N, tokens_N = draws.normal(3, 1, count), draws.integers(20, 400, count).astype(float)
    mean_N = 2 + slope * values_N + draws.normal(0, noise, count) * (100 / tokens_N) ** 0.5
    return StoryLosses(mean_N * tokens_N, tokens_N), values_N


def fitted(losses, values_N, power=0.5):
    return np.polyfit(values_N, losses.nats_N / losses.tokens_N, 1, w=losses.tokens_N**power)[0]


def test_the_slope_is_that_of_numpy_weighted_by_tokens():
    losses, values_N = some_stories()
    found = losses.slope("words", values_N, seed=0)
    assert found.estimate == pytest.approx(fitted(losses, values_N), rel=1e-10)
    assert found.estimate != pytest.approx(fitted(losses, values_N, power=0), rel=1e-3)
    assert (found.n, found.unit) == (80, "nats per token per unit of words")
    far = losses.slope("words", values_N + 1e6, seed=0)  # sums of squares that would cancel
    assert far.estimate == pytest.approx(found.estimate, rel=1e-6)


def test_a_story_without_a_value_has_no_part_in_the_slope():
    losses, values_N = some_stories()
    values_N[::4] = np.nan
    there = ~np.isnan(values_N)
    alone = StoryLosses(losses.nats_N[there], losses.tokens_N[there])
    found = losses.slope("words", values_N, seed=0)
    assert found.estimate == pytest.approx(fitted(alone, values_N[there]), rel=1e-10)
    assert found.n == 60 == losses.shuffled_slope("words", values_N, seed=0).n


def test_a_difference_of_slopes_is_paired_and_so_is_its_interval():
    one, values_N = some_stories(slope=0.1)
    own = np.random.default_rng(1).normal(0, 0.01, 80) * one.tokens_N
    other = StoryLosses(one.nats_N + (0.05 * values_N) * one.tokens_N + own, one.tokens_N)
    apart, alone = other.minus(one).slope("words", values_N, 0), other.slope("words", values_N, 0)
    assert apart.estimate == pytest.approx(alone.estimate - one.slope("words", values_N, 0).estimate, rel=1e-9)
    assert apart.upper - apart.lower < 0.2 * (alone.upper - alone.lower)


def test_the_interval_of_a_slope_covers_it():
    covered = []
    for seed in range(120):
        losses, values_N = some_stories(60, slope=0.1, seed=seed)
        found = losses.slope("words", values_N, seed=0)
        covered.append(found.lower <= 0.1 <= found.upper)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_shuffled_metrics_bound_what_chance_gives():
    flat, rising = (some_stories(slope=slope) for slope in (0.0, 0.2))
    for (losses, values_N), beyond in ((flat, False), (rising, True)):
        chance = losses.shuffled_slope("words", values_N, seed=0)
        found = losses.slope("words", values_N, seed=0).estimate
        assert chance.lower < 0 < chance.upper
        assert (not chance.lower <= found <= chance.upper) == beyond
        assert chance == losses.shuffled_slope("words", values_N, seed=0) != losses.shuffled_slope("words", values_N, 1)


def test_tenths_are_of_equal_size_and_have_every_story_once():
    values_N = np.random.default_rng(0).permutation(np.append(np.arange(200.0), np.nan))
    groups = tenths(values_N)
    assert [int(members_N.sum()) for _, members_N in groups] == [20] * 10
    assert [median for median, _ in groups] == [9.5 + 20 * place for place in range(10)]
    assert np.sum([members_N for _, members_N in groups], axis=0).tolist() == (~np.isnan(values_N)).astype(int).tolist()


def test_a_metric_is_computed_as_in_the_table_of_metrics():
    stories = ["The cat saw Tom. It ran to him.", "Ann sat.", "Nobody had ever understood this complicated story."]
    records = [make_record(story, features=["Twist"] * (number == 1)) for number, story in enumerate(stories)]
    found = metric_values(records, ["flesch_kincaid_grade", "feature_Twist"], TextArguments())
    assert found["flesch_kincaid_grade"].tolist() == text_metrics(stories)["flesch_kincaid_grade"].tolist()
    assert found["feature_Twist"].tolist() == [0, 1, 0]


def test_a_metric_without_differences_is_refused():
    records = [make_record(story) for story in ("One cat sat.", "Two dogs ran.")]
    with pytest.raises(UsageError, match=r"--metric words is 3 for all 2 stories; choose another metric"):
        metric_values(records, ["words"], TextArguments())
    with pytest.raises(UsageError, match=r"--metric bleu_score has no value for all 2 stories"):
        metric_values(records, ["bleu_score"], TextArguments())
