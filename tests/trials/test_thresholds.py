"""Times to a threshold against known curves, and the comparison of arms against scipy and by simulation."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm_trials.console import UsageError
from lm_trials.trials.thresholds import (
    ThresholdTime,
    bounded_mean,
    log_ratio_difference,
    time_of_injection,
    time_to_threshold,
)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8, unique=True), st.floats(1.5, 290))
def test_a_metric_that_is_linear_in_log_updates_gives_its_exact_time_on_any_grid(steps, crossing):
    steps = sorted({*steps, 1, 300})
    values = [5 - math.log(step / crossing) for step in steps]
    found = time_to_threshold(steps, values, threshold=5, horizon=300)
    assert found.update == pytest.approx(crossing)
    assert time_to_threshold(steps, values, threshold=4.9, horizon=300).update > found.update * 1.01


def test_the_metric_must_stay_below_until_the_horizon():
    steps, values = [0, 1, 2, 4, 8, 16], [9.0, 3.0, 1.0, 3.0, 1.0, 1.0]
    found = time_to_threshold(steps, values, threshold=2, horizon=16)
    assert found == ThresholdTime(pytest.approx(4 * math.sqrt(2)), censored=False)
    assert time_to_threshold(steps, values, threshold=2, horizon=4) == ThresholdTime(4, censored=True)
    assert time_to_threshold(steps, values, threshold=2, horizon=3).update == pytest.approx(math.sqrt(2))
    assert time_to_threshold(steps, values, threshold=0.5, horizon=16) == ThresholdTime(16, censored=True)
    assert time_to_threshold(steps, [*values[:-1], math.nan], threshold=2, horizon=16).censored


def test_a_metric_below_from_the_first_update_is_early_whatever_it_was_before():
    for before in (1.0, 9.0):
        found = time_to_threshold([0, 2, 4], [before, 1.0, 1.0], threshold=2, horizon=4)
        assert found == ThresholdTime(2, censored=False, early=True)
    assert not time_to_threshold([0, 2, 4], [9.0, 3.0, 1.0], threshold=2, horizon=4).early


@pytest.mark.parametrize("steps", [[], [0], [1, 2, 299], [0, 400]])
def test_evaluations_that_do_not_reach_the_horizon_are_refused(steps):
    with pytest.raises(UsageError, match="horizon 300"):
        time_to_threshold(steps, [1.0] * len(steps), threshold=2, horizon=300)


def times(*updates, horizon=math.inf):
    return [ThresholdTime(min(update, horizon), update >= horizon) for update in updates]


def test_without_censoring_it_is_students_t_of_log_ratios():
    first, second = [10, 12, 9, 14], [30, 50, 20, 44]
    found = log_ratio_difference(times(*first), times(*second))
    known = stats.ttest_rel(np.log2(second), np.log2(first))
    interval = known.confidence_interval(0.95)
    assert (found.difference.lower, found.difference.upper) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(known.pvalue)
    moved = log_ratio_difference(times(*first), times(*second), null=1.0)
    assert moved.p == pytest.approx(stats.ttest_rel(np.log2(second), np.log2(first) + 1).pvalue)
    assert moved.difference.lower == pytest.approx(interval.low)
    assert (found.bound, found.censored) == (False, (0, 0))


def test_a_censored_time_makes_the_difference_a_bound():
    first, second = times(10, 12, 9, 14), times(30, 500, 20, 44, horizon=300)
    found = log_ratio_difference(first, second)
    assert (found.bound, found.censored, found.difference.upper) == (True, (0, 1), math.inf)
    logs = np.log2([30 / 10, 300 / 12, 20 / 9, 44 / 14])
    assert found.difference.lower == pytest.approx(logs.mean() - stats.t.ppf(0.975, 2) * stats.sem(logs))
    later = log_ratio_difference(first, times(30, 9e9, 20, 44, horizon=300))
    assert later == found  # what is not known has no effect
    back = log_ratio_difference(second, first)
    assert (back.difference.lower, back.censored, back.p) == (-math.inf, (1, 0), pytest.approx(found.p))
    assert back.difference.upper == pytest.approx(-found.difference.lower)
    early = [ThresholdTime(10, False, early=True), *first[1:]]
    assert log_ratio_difference(early, times(30, 40, 20, 44)).difference.upper == math.inf
    assert log_ratio_difference(times(30, 40, 20, 44), early).difference.lower == -math.inf


def test_where_few_times_are_exact_the_limit_is_that_of_the_rank_test():
    first, second = [10, 12, 9, 14, 11], [500, 40, 500, 500, 500]
    found = log_ratio_difference(times(*first), times(*second, horizon=300))
    assert (found.bound, found.difference.upper) == (True, math.inf)
    # The exact test of 5 against 5 rejects for U of at most 2 at 5 % (any table), so the limit is the third difference.
    differences = sorted(math.log2(min(b, 300) / a) for a in first for b in second)
    assert found.difference.lower == pytest.approx(differences[2])
    exact = [stats.mannwhitneyu(np.array(first) * 2**null, [301, 40, 302, 303, 304], method="exact").pvalue
             for null in (differences[2] - 1e-9, differences[2] + 1e-9)]  # fmt: skip
    assert exact[0] <= 0.05 < exact[1]
    back = log_ratio_difference(times(*second, horizon=300), times(*first)).difference
    assert (back.lower, back.upper) == (-math.inf, pytest.approx(-found.difference.lower))
    assert log_ratio_difference(times(*first), times(*second, horizon=300), null=1).difference == found.difference
    assert log_ratio_difference(times(*first), times(*second, horizon=300), null=4).p > 0.05 > found.p
    three = log_ratio_difference(times(10, 12, 9), times(500, 500, 40, horizon=300))
    assert math.isnan(three.difference.lower)  # no test of 3 against 3 has p below 0.05


def test_bounds_of_both_directions_have_no_interval():
    first, second = times(10, 12, 9, 14, 500, horizon=300), times(30, 500, 20, 44, 50, horizon=300)
    found = log_ratio_difference(first, second)
    assert math.isnan(found.difference.lower)
    assert (found.censored, found.bound) == ((1, 1), False)
    ranks = stats.mannwhitneyu([10, 12, 9, 14, 300], [30, 300, 20, 44, 50])
    assert found.p == pytest.approx(ranks.pvalue)
    both = log_ratio_difference(times(500, 500, horizon=300), times(500, 500, horizon=300))
    assert both.p == 1
    assert math.isnan(log_ratio_difference(times(10), times(500, horizon=300)).p)


def simulated(rng, seeds, quantile, draws):
    """Yield values of a normal distribution with mean 0, cut off at a quantile, and which of them are."""
    for values_S in rng.normal(size=(draws, seeds)):
        cut = stats.norm.ppf(quantile)
        yield np.minimum(values_S, cut), values_S >= cut


def test_the_lower_limit_of_bounds_is_not_too_high():
    over, over_as_if_exact, none = 0, 0, np.zeros(5, dtype=bool)
    for values_S, cut_S in simulated(np.random.default_rng(0), 5, 0.8, 3000):
        over += bounded_mean(values_S, cut_S, none, "").difference.lower > 0
        over_as_if_exact += bounded_mean(values_S, none, none, "").difference.lower > 0
    assert over / 3000 <= 0.02
    assert over_as_if_exact / 3000 > 0.027


def test_exact_values_are_covered_in_95_percent():
    none, covered = np.zeros(5, dtype=bool), 0
    for values_S, _ in simulated(np.random.default_rng(1), 5, 1.0, 2000):
        found = bounded_mean(values_S, none, none, "").difference
        covered += found.lower < 0 < found.upper
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_with_any_censoring_p_and_limits_are_wrong_in_at_most_5_and_2_5_percent():
    rng, null = np.random.default_rng(2), 1.5
    for quantile in (0.3, 0.7, 0.95):
        logs = rng.normal(size=(500, 2, 5)) + rng.normal(size=(500, 1, 5))  # pairs share a part of their seed's luck
        logs[:, 1] += null
        horizon = 2 ** float(stats.norm.ppf(quantile, loc=null, scale=math.sqrt(2)))
        pairs = ([times(*arm, horizon=horizon) for arm in 2**arms] for arms in logs)
        found = [log_ratio_difference(*pair, null) for pair in pairs]
        assert np.mean([test.p < 0.05 for test in found]) <= 0.055
        assert np.mean([test.difference.lower > null for test in found]) <= 0.03
        assert np.mean([test.difference.upper < null for test in found]) <= 0.03


@dataclass
class Injected:
    """A run with a schedule and a curve, as far as a time of its injection needs them."""

    outcome: dict
    curve: list
    name: str = "run"

    def logged(self, metric):
        assert metric == "eval_facts_loss"
        return self.curve


def injected(curve, *phases):
    data = [{"updates": updates, "data_mix": mix} for updates, mix in phases]
    return Injected({"order_schedule": json.dumps(data), "max_steps": 60}, curve)


BURST = ("1-10", "1,0"), ("11-18", "0,1"), ("19-", "1,0")
STEPS = (0, 10, 12, 14, 18, 20, 22, 26, 60)
TAUGHT = (0.0, 0.1, 1.0, 3.0, 4.0, 3.0, 1.0, 2.5, 0.5)  # how far the loss is below that of the run without an injection


def time_in(taught, which, share=0.5, horizon=None, phases=BURST, trend=1.0):
    """The time for losses that fall by themselves, too: what was taught does not depend on that."""
    other = [(step, 9 * math.exp(-trend * step / 60)) for step in STEPS]
    own = [(step, loss - gap) for (step, loss), gap in zip(other, taught, strict=True)]
    return time_of_injection(injected(own, *phases), injected(other), "eval_facts_loss", which, share, horizon)


def test_what_was_injected_is_learned_and_forgotten_by_half():
    # Half of 4 is 2: between updates 2 and 4 of the injection, and for good between updates 8 and 42 after it.
    learned, forgotten = time_in(TAUGHT, "learned"), time_in(TAUGHT, "forgotten")
    assert learned == ThresholdTime(pytest.approx(2 * 2**0.5), censored=False)
    assert forgotten == ThresholdTime(pytest.approx(8 * (42 / 8) ** 0.25), censored=False)
    for which, found in (("learned", learned), ("forgotten", forgotten)):
        assert time_in(TAUGHT, which, trend=4.0).update == pytest.approx(found.update)
    assert time_in(TAUGHT, "learned", 0.75) == ThresholdTime(pytest.approx(4), censored=False)
    assert time_in(TAUGHT, "forgotten", 0.25).update == pytest.approx(2)
    assert time_in(TAUGHT, "forgotten", horizon=4).update == pytest.approx(2 * 2**0.5)
    kept = [*TAUGHT[:5], 2.1, 2.1, 2.1, 2.1]
    assert time_in(kept, "forgotten") == ThresholdTime(42, censored=True)
    assert time_in(kept, "forgotten", horizon=8) == ThresholdTime(8, censored=True)


def test_an_injection_may_be_one_update_or_a_share():
    assert time_in(TAUGHT, "forgotten", phases=[("1-17", "1,0"), ("18", ".5,.5"), ("19-", "1,0")]).update > 8
    assert time_in(TAUGHT, "learned", phases=[("1-11", "1,0"), ("12-18", "0,1"), ("19-", "1,0")]).update < 3


@pytest.mark.parametrize(
    ("taught", "phases", "message"),
    [
        (TAUGHT, [("1-60", "1,0")], "run has no injections; a time needs one"),
        (TAUGHT, [("1-10", "0,1"), ("11-20", "1,0"), ("21-", ".5,.5")], "run has 2 injections"),
        (
            TAUGHT,
            [("1-10", "1,0"), ("11-17", "0,1"), ("18-", "1,0")],
            "logged no eval_facts_loss at update 17, the end",
        ),
        ([-gap for gap in TAUGHT], BURST, "run: the injection did not lower eval_facts_loss below that of run"),
    ],
)
def test_a_run_without_the_numbers_of_an_injection_is_refused(taught, phases, message):
    with pytest.raises(UsageError, match=message):
        time_in(taught, "learned", phases=phases)
