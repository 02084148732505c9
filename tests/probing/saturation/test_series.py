"""When a series settles: the registered rule, its limits by noise, and standard errors by an independent way."""

import math

import numpy as np
import pytest

from lm_trials.estimates import Estimate
from lm_trials.probing.saturation.series import Series, loss_series, saturation, text_series


def series(values, updates=None, error=0.0, n=64):
    updates = updates or tuple(2**place for place in range(len(values)))
    errors_C = np.full(len(values), float(error))
    errors_C[-1] = 0
    return Series("output", "words", updates, tuple(Estimate(v, 0, 0, n, "words") for v in values), errors_C)


def by_hand(values, updates, delta):
    """The registered rule as it is written: the first checkpoint from which on all are within delta of the end."""
    change = abs(values[0] - values[-1])
    return next(
        update
        for place, update in enumerate(updates)
        if all(abs(value - values[-1]) <= delta * change for value in values[place:])
    )


def test_the_step_without_noise_is_the_registered_rule():
    random = np.random.default_rng(0)
    updates, seen = tuple(2**place for place in range(8)), set()
    for _ in range(200):
        values = (2.0 ** -np.arange(8) * 10 + random.normal(0, 0.5, 8)).tolist()
        found = saturation(series(values), delta=0.2)
        assert found.time.update == found.lower == by_hand(values, updates, 0.2)
        assert found.time.censored == (found.time.update == updates[-1])
        assert found.upper == (math.inf if found.time.censored else found.time.update)
        seen.add(found.time.update)
    assert len(seen) > 4


def test_a_dip_into_the_tolerance_does_not_count():
    assert saturation(series([10, 1, 5, 1, 1]), 0.2).time.update == 8
    assert saturation(series([10, 1, 1, 1, 1]), 0.2).time.update == 2


def test_noise_decides_where_it_is_more_than_delta():
    values, settles = [10.0, 3.0, 1.4, 1.0], 4
    assert saturation(series(values), 0.01).time.censored
    found = saturation(series(values, error=0.2), 0.01)  # the noise is about 0.5
    assert (found.time.update, found.time.censored, found.upper) == (settles, False, math.inf)
    assert found.tolerance == pytest.approx(series(values, error=0.2).noise_C[1])
    assert saturation(series(values, error=4.0), 0.01) is None  # it does not change
    assert saturation(series([1.0] * 4), 0.2) is None


def test_limits_contain_the_true_step_and_shrink_with_the_noise():
    updates = tuple(2**place for place in range(8))
    true = 10 * np.exp(-np.arange(8.0))
    step, random = by_hand(true.tolist(), updates, 0.2), np.random.default_rng(1)
    inside = {0.05: 0, 0.5: 0}
    for error in inside:
        for _ in range(200):
            noisy = true + np.append(random.normal(0, error, 7), 0)
            found = saturation(series(noisy.tolist(), error=error, n=10_000), 0.2)
            inside[error] += found.lower <= step <= found.upper
    assert min(inside.values()) >= 190
    assert saturation(series(true.tolist(), error=0.05), 0.2).upper < math.inf
    assert saturation(series(true.tolist(), error=1.0), 0.2).upper == math.inf


def test_errors_of_texts_are_of_pairs_only_where_texts_are_paired():
    random = np.random.default_rng(2)
    text_N, noise_2N = random.normal(0, 3, 400), random.normal(0, 0.1, (2, 400))
    values = [text_N + noise_2N[0] + 1, text_N + noise_2N[1]]
    paired, apart = (text_series("output", "words", "words", (1, 2), values, each) for each in (True, False))
    assert paired.errors_C[0] == pytest.approx((values[0] - values[1]).std(ddof=1) / 20)
    assert apart.errors_C[0] == pytest.approx(math.sqrt(sum(each.var(ddof=1) / 400 for each in values)))
    assert paired.errors_C[0] < 0.1 * apart.errors_C[0]
    assert paired.errors_C[1] == apart.errors_C[1] == 0
    assert [each.estimate for each in paired.estimates] == pytest.approx([each.mean() for each in values])


def test_texts_without_a_value_are_left_out():
    holes = np.array([1.0, np.nan, 3.0] * 10)
    found = text_series("output", "words", "words", (1, 2, 3), [np.full(30, np.nan), holes, holes + 1], paired=True)
    assert [each.n for each in found.estimates] == [0, 20, 20]
    assert found.errors_C[0] == math.inf
    assert saturation(found, 0.2) is None


@pytest.mark.parametrize("name", ["ratio", "exp"])
def test_errors_of_losses_agree_with_the_jackknife(name):
    statistic = {"ratio": lambda s: s[..., 0] / s[..., 1], "exp": lambda s: np.exp(s[..., 0] / s[..., 1])}[name]
    random = np.random.default_rng(3)
    tokens_N = random.integers(20, 60, 300)
    sums = [np.stack([tokens_N * random.normal(mean, 0.3, 300), tokens_N], axis=1) for mean in (2.0, 1.5)]
    values = [Estimate(float(statistic(each.sum(axis=0))), 0, 0, 300, "nats") for each in sums]
    found = loss_series("loss", statistic, (1, 2), values, sums)
    left_out = [[statistic(np.delete(each, place, axis=0).sum(axis=0)) for each in sums] for place in range(300)]
    differences_N = np.array([first - second for first, second in left_out])
    jackknife = math.sqrt(299 / 300 * ((differences_N - differences_N.mean()) ** 2).sum())
    assert found.errors_C.tolist() == pytest.approx([jackknife, 0], rel=0.01)
