"""Equivalence against scipy's one-sided tests; tokens' worth against curves whose answer is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lm_trials.console import UsageError
from lm_trials.trials.effects import LearningCurve, learning_curve, worth_tokens
from lm_trials.trials.runs import read_run

TOKENS = np.geomspace(1e5, 1e7, 9)


def curve(exponent=0.1, floor=0.0, tokens=TOKENS):
    return LearningCurve(tokens, floor + 5 * tokens**-exponent)


def worth(factors, exponent=0.1, floor=0.0, curves=None):
    """The worth of arms that have the losses of runs of `factors` as many tokens."""
    curves = curves or [curve(exponent, floor)] * len(factors)
    first = [each.losses_E[-1] for each in curves]
    return worth_tokens(first, [floor + 5 * (factor * 1e7) ** -exponent for factor in factors], curves)


def test_a_worse_arm_is_worth_the_tokens_at_which_the_reference_had_its_loss():
    found = worth([0.5, 0.4, 0.6])
    logs = np.log([0.5, 0.4, 0.6])
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    expected = [100 * (math.exp(log) - 1) for log in (logs.mean(), low, high)]
    difference = found.difference
    assert [difference.estimate, difference.lower, difference.upper] == pytest.approx(expected)
    assert found.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert (found.bound, found.censored) == (False, (0, 0))
    # The same share of tokens is another difference of losses on a steeper curve.
    assert worth([0.5, 0.4, 0.6], exponent=0.3).difference.estimate == pytest.approx(difference.estimate)


def test_a_better_arm_is_worth_at_least_what_a_power_law_gives():
    exact = worth([1.5, 1.4, 1.6])
    assert exact.difference.estimate == pytest.approx(100 * (np.prod([1.5, 1.4, 1.6]) ** (1 / 3) - 1))
    assert (exact.bound, exact.difference.upper) == (True, math.inf)
    flattening = worth([1.5, 1.4, 1.6], exponent=0.4, floor=1.0)
    assert 0 < flattening.difference.estimate < exact.difference.estimate - 5
    close = worth([1.05, 1.02, 0.99])
    assert (close.bound, close.difference.upper < 10) == (False, True)


def test_what_is_off_the_curve_is_a_bound():
    far = worth([3.0, 1.4, 1.6, 1.7])
    assert far.censored == (0, 1)
    assert far.difference.estimate == pytest.approx(worth([2.0, 1.4, 1.6, 1.7]).difference.estimate)
    before = worth([0.001, 0.02, 0.03, 0.04])
    assert (before.censored, before.bound, before.difference.lower) == ((1, 0), True, -100)
    neither = worth([0.001, 0.02, 1.5, 1.6])
    assert math.isnan(neither.difference.lower)


def test_the_curve_is_made_monotone_and_scaled_to_the_losses():
    tokens = np.array([1e6, 2e6, 3e6, 4e6, 8e6])
    noisy = LearningCurve(tokens, np.array([3.0, 2.2, 2.3, 2.0, 1.8]))
    level = math.sqrt(2.2 * 2.3)  # of the second and third evaluation
    first, second = [1.8, 1.8], [level, level * 1.0001]
    found = worth_tokens(first, second, [noisy, noisy])
    assert found.difference.estimate == pytest.approx(100 * (math.sqrt(6) / 8 - 1), abs=0.1)
    twice = worth_tokens([3.6, 3.6], [2 * loss for loss in second], [noisy, noisy])
    assert twice.difference.estimate == pytest.approx(found.difference.estimate)


def test_a_curve_that_does_not_fall_has_no_answer():
    rising = LearningCurve(TOKENS, np.linspace(2, 3, len(TOKENS)))
    for second in (1.9, 3.1):
        assert math.isnan(worth_tokens([3.0, 3.0], [second, second + 0.01], [rising, rising]).difference.estimate)


def test_a_learning_curve_is_read_from_the_evaluations_of_a_run(make_run):
    name = make_run("a", steps=100)
    rows = [{"step": step, "eval_loss": loss} for step, loss in ((0, 6.0), (25, 4.0), (50, 3.5), (100, 3.0))]
    rows += [{"step": 50, "loss": 3.6}, {"step": 100, "eval_loss": 3.0, "eval_other_loss": 2.0}]
    (Path(name) / "trainer_state.json").write_text(json.dumps({"global_step": 100, "log_history": rows}))
    found = learning_curve(read_run(name))
    assert found.tokens_E.tolist() == [3200, 6400, 12800]
    assert found.losses_E.tolist() == [4.0, 3.5, 3.0]
    with pytest.raises(UsageError, match="1 evaluations of eval_other_loss"):
        learning_curve(read_run(name), "eval_other_loss")
