import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm_trials.estimates import (
    LEAST_STORIES,
    PIECE,
    SCALES,
    StoryBootstrap,
    bootstrap_mean,
    bootstrap_means,
    mean_over_seeds,
    percentile_interval,
    proportion,
    story_weights,
    studentized_interval,
)


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def stories(count, seed=0):
    """Nats and tokens of stories: lengths differ widely, and longer ones are easier, so that weights matter."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 400, size=count)
    nats = tokens * generator.gamma(20, 0.1, size=count) * (1 + 50 / tokens)
    return np.stack([nats, tokens], axis=1).astype(float)


def interval(estimate):
    return np.array([estimate.lower, estimate.upper])


def of_ratio(rows, statistic=ratio, seed=0, **options):
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(rows)
    return bootstrap.estimate(statistic, "", **options)


def in_batches(rows, sizes, groups=None, **options):
    bootstrap, at = StoryBootstrap(**options), 0
    for size in sizes:
        part = slice(at, at + size)
        bootstrap.update(rows[part], groups and {name: members[part] for name, members in groups.items()})
        at += size
    bootstrap.update(rows[at:], groups and {name: members[at:] for name, members in groups.items()})
    return bootstrap


def test_the_mean_has_the_interval_of_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, size=4000)
    estimate = bootstrap_mean(values, "nats", resamples=2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.estimate == pytest.approx(values.mean(), rel=1e-12)
    assert interval(estimate) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.06 * half)
    assert (estimate.n, estimate.unit) == (4000, "nats")


def test_a_ratio_has_the_interval_of_scipys_bootstrap():
    """Poisson weights against drawing with replacement; both are within their own noise of one another."""
    rows = stories(300)
    bootstrap = StoryBootstrap(seed=1, resamples=3000)
    bootstrap.update(rows)
    ours = interval(bootstrap.estimate(ratio, "nats per token"))
    # Of 300 stories the bootstrap-t and scipy's percentiles are nearly the same.
    theirs = stats.bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda nats, tokens, axis: nats.sum(axis=axis) / tokens.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=3000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.08 * width)
    # The neighbour: one weight for every token, as if tokens were independent, is far too sure of itself.
    per_token = interval(bootstrap_mean(np.repeat(rows[:, 0] / rows[:, 1], rows[:, 1].astype(int))[:10_000], "nats"))
    assert np.ptp(per_token) < 0.4 * width


def test_the_ratio_of_sums_is_not_the_mean_of_ratios():
    rows = stories(200)
    bootstrap = StoryBootstrap()
    bootstrap.update(rows)
    assert bootstrap.estimate(ratio, "nats per token").estimate == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    assert abs((rows[:, 0] / rows[:, 1]).mean() - rows[:, 0].sum() / rows[:, 1].sum()) > 0.1


def percentiles(rows, seed=0):
    """The percentile interval of the same resamples, which ours replaced."""
    return np.array(percentile_interval(ratio(story_weights(seed, 0, len(rows), 1000).T @ rows), 0.95))


def covered(count, repetitions=400, confidence=0.95):
    """In how many data sets of `count` skewed stories the bootstrap-t and the percentile interval hold the truth."""
    generator = np.random.default_rng(0)
    ours = theirs = 0
    for _ in range(repetitions):
        tokens = np.exp(generator.normal(5.9, 0.6, size=count)).round()
        rows = np.stack([tokens * generator.gamma(2, 0.5, size=count), tokens], axis=1)
        truth = 1.0
        bootstrap = StoryBootstrap(0, confidence)
        bootstrap.update(rows)
        found, lower_upper = bootstrap.estimate(ratio, ""), percentiles(rows)
        ours += found.lower <= truth <= found.upper
        theirs += lower_upper[0] <= truth <= lower_upper[1]
    return ours / repetitions, theirs / repetitions


def test_of_few_skewed_stories_the_interval_holds_the_truth_where_percentiles_do_not():
    ours, theirs = np.mean([covered(12), covered(20)], axis=0)
    assert 0.93 <= ours <= 0.97
    assert theirs < 0.91
    assert 0.40 <= covered(20, confidence=0.5)[0] <= 0.60  # the neighbour: another confidence is another coverage


def test_the_interval_is_each_resamples_distance_in_its_own_errors():
    """Held against a loop over the resamples, with the jackknife-like variance of a ratio written out."""
    rows = stories(30)

    def error(x, y, weights):
        n, total = weights.sum(), (weights * y).sum()
        rest = x - (weights * x).sum() / total * y
        return np.sqrt((weights * rest**2).sum() * n / (n - 1)) / total

    x, y = rows.T
    value, own = ratio(rows.sum(axis=0)), error(x, y, np.ones(30))
    distances = sorted(
        ((w * x).sum() / (w * y).sum() - value) / error(x, y, w) for w in story_weights(0, 0, 30, 1000).T
    )
    expected = [value - own * distances[-1 - 24], value - own * distances[24]]
    assert interval(of_ratio(rows)) == pytest.approx(expected, rel=1e-9)
    assert interval(of_ratio(rows, seed=1)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("statistic", "scale"),
    [
        (ratio, "identity"),
        (lambda s: np.exp(s[..., 0] / s[..., 1]), "log"),
        (lambda s: s[..., 0] / s[..., 1] / 5, "logit"),
        (lambda s: (s[..., 1] - s[..., 0] / 4) / s[..., 1] - np.log(s[..., 1] / s[..., 2]) / 9, "arctanh"),
    ],
)
def test_the_slopes_of_a_statistic_are_those_of_small_differences(statistic, scale):
    """The width of many stories is that of the delta method, with slopes by finite differences."""
    rows = np.concatenate([stories(4000), np.ones((4000, 1)) * 100], axis=1)
    totals = rows.sum(axis=0)
    steps = 1e-5 * np.diag(totals)
    slopes = np.array([(statistic(totals + s) - statistic(totals - s)) / (2 * s.sum()) for s in steps])
    half = 1.96 * np.sqrt(((rows @ slopes) ** 2).sum())
    found = of_ratio(rows, statistic, scale=scale)
    assert found.upper - found.lower == pytest.approx(2 * half, rel=0.08)
    assert half / found.estimate > 1e-3


def test_an_interval_stays_in_the_range_of_its_scale():
    generator = np.random.default_rng(0)
    shares = np.array([0.93, 0.99, 0.99, 0.95, 1.0, 1.0, 0.13, 0.96, 0.84, 0.99, 1.0, 0.99])
    within, beyond = (bootstrap_mean(shares, "share", scale=scale) for scale in ("logit", "identity"))
    assert 0 < within.lower < within.estimate < within.upper < 1
    assert within.estimate == beyond.estimate
    assert beyond.lower < 0
    assert beyond.upper > 1
    differences = np.tanh(generator.gamma(1, 1, 12) - 0.2)
    within, beyond = (bootstrap_mean(differences, "", scale=scale) for scale in ("arctanh", "identity"))
    assert -1 < within.lower < within.estimate < within.upper < 1
    assert (within.lower, within.upper) != (beyond.lower, beyond.upper)
    hard = np.stack([np.exp(generator.normal(0, 2, 10)), np.ones(10)], axis=1)
    positive = of_ratio(hard, scale="log")
    assert 0 < positive.lower < positive.estimate < positive.upper
    assert positive.lower != of_ratio(hard).lower


def test_a_scale_and_its_inverse():
    for forward, slope, back in SCALES.values():
        x = np.array([0.1, 0.5, 0.97])
        assert back(forward(x)) == pytest.approx(x)
        assert slope(x) == pytest.approx((forward(x + 1e-6) - forward(x - 1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("scale", ["identity", "logit"])
def test_equal_stories_have_no_interval(scale):
    for value in (0.0, 0.1, 1 / 3, 1.0):
        found = bootstrap_mean(np.full(1000, value), "share", scale=scale)
        if scale == "logit" and value in (0.0, 1.0):  # as of counts: Wilson's
            assert found == proportion(int(1000 * value), 1000, "share")
        else:
            assert np.isnan(interval(found)).all()
        rows = np.stack([value * np.arange(1.0, 31), np.arange(1.0, 31)], axis=1)
        assert np.isnan(interval(of_ratio(rows, scale=scale))).all()
    different = stories(30)
    assert not np.isnan(interval(of_ratio(different / different.max(), lambda s: ratio(s) / 400, scale=scale))).any()


def test_too_few_stories_that_differ_bound_nothing_but_a_share():
    """One of 20 stories is in 63 of 100 resamples; the others would say that the mean is 0 and certain."""
    rare = np.array([0.7] + [0.0] * 19)
    assert np.isnan(interval(bootstrap_mean(rare, "nats"))).all()
    share = bootstrap_mean(rare, "share", scale="logit")
    wilson = stats.binomtest(1, 20).proportion_ci(0.95, method="wilson")
    assert 0 < share.lower < share.estimate < share.upper < wilson.high
    several = np.array([0.7] * 6 + [0.0] * 14)
    assert bootstrap_mean(several, "nats").lower < 0.21 < bootstrap_mean(several, "nats").upper


def test_a_resample_without_variation_is_infinitely_far():
    values, errors = np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 0.0, 1.0, np.nan])
    assert np.isnan(studentized_interval(1.5, 1.0, values, errors, 0.95, "identity")).all()
    assert studentized_interval(1.5, 1.0, values, errors + 1, 0.95, "identity") == (0.75, 1.75)
    assert np.isnan(studentized_interval(1.5, 0.0, values, errors + 1, 0.95, "identity")).all()


def test_means_over_seeds_stay_in_range():
    shares = [0.0, 0.02, 0.015]
    plain, within = (mean_over_seeds(shares, 200, "share", scale) for scale in ("identity", "logit"))
    assert plain.lower < 0 < within.lower < plain.estimate == within.estimate < within.upper < 1
    assert mean_over_seeds([0.0, 0.0], 200, "share", "logit") == proportion(0, 200, "share")  # of one run's stories
    assert np.isnan(interval(mean_over_seeds([0.0, 0.0], 200, "share"))).all()


def test_the_estimate_of_skewed_data_is_their_mean():
    """A published package prints the mean under "Median"; here the header says mean and the mean it is."""
    values = np.array([1.0] * 9 + [101.0])
    assert bootstrap_mean(values, "nats").estimate == values.mean() == 11
    assert np.median(values) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=5), st.sampled_from([30, PIECE, PIECE + 1, 1300]))
def test_batches_change_no_bit(sizes, count):
    rows = stories(count)
    groups = {"all": np.ones(count, dtype=bool), "odd": np.arange(count) % 2 == 1}
    whole = in_batches(rows, [], groups, resamples=20)
    batched = in_batches(rows, sizes, groups, resamples=20)
    for group in groups:
        assert whole.estimate(ratio, "nats", group) == batched.estimate(ratio, "nats", group)


def test_asking_for_an_estimate_early_changes_no_later_one():
    rows = stories(900)
    asked = StoryBootstrap(resamples=20)
    for start in range(0, 900, 100):
        asked.update(rows[start : start + 100])
        early = asked.estimate(ratio, "nats")
    late = in_batches(rows, [], resamples=20).estimate(ratio, "nats")
    assert early == late
    assert in_batches(rows[:800], [], resamples=20).estimate(ratio, "nats") != late


def test_a_story_has_the_same_weights_in_each_of_its_groups():
    rows = stories(100)
    everyone = np.ones(100, dtype=bool)
    bootstrap = StoryBootstrap()
    bootstrap.update(rows, {"all": everyone, "copy": everyone, "half": np.arange(100) < 50})
    assert bootstrap.estimate(ratio, "nats", "all") == bootstrap.estimate(ratio, "nats", "copy")
    assert bootstrap.estimate(ratio, "nats", "half") != bootstrap.estimate(ratio, "nats", "all")
    assert bootstrap.counts == {"all": 100, "copy": 100, "half": 50}
    # A group's interval does not depend on which other groups there are.
    alone = StoryBootstrap()
    alone.update(rows, {"half": np.arange(100) < 50})
    assert alone.estimate(ratio, "nats", "half") == bootstrap.estimate(ratio, "nats", "half")


def test_the_seed_decides_the_interval_and_not_the_estimate():
    values = stories(100)[:, 0]
    first, again, other = (bootstrap_mean(values, "nats", seed) for seed in (0, 0, 1))
    assert first == again
    assert first.estimate == other.estimate
    assert first.lower != other.lower


def test_few_stories_give_no_interval():
    one = bootstrap_mean(np.array([2.0]), "nats")
    assert (one.estimate, one.n) == (2.0, 1)
    rows = stories(LEAST_STORIES)
    for count in (1, 2, LEAST_STORIES - 1, LEAST_STORIES):
        for found in (bootstrap_mean(rows[:count, 0], "nats"), of_ratio(rows[:count])):
            assert np.isnan(interval(found)).all() == (count < LEAST_STORIES)


def test_what_is_not_finite_has_no_interval():
    """An infinite loss with a finite interval would be a lie; leaving its story out of the resamples made one."""
    values = np.arange(12.0)
    infinite = bootstrap_mean(np.array([*values, np.inf]), "nats")
    assert infinite.estimate == np.inf
    assert np.isnan(interval(infinite)).all()
    undefined = bootstrap_mean(np.array([*values, np.nan]), "nats")
    assert np.isnan([undefined.estimate, *interval(undefined)]).all()
    assert np.isfinite(interval(bootstrap_mean(values, "nats"))).all()


@pytest.mark.parametrize("values", [np.array([]), np.zeros((2, 3)), 1.0])
def test_no_stories_are_refused(values):
    with pytest.raises(ValueError, match="are not stories; give one value per story"):
        bootstrap_mean(values, "nats")


def test_a_group_without_stories_is_refused():
    bootstrap = StoryBootstrap()
    bootstrap.update(stories(2), {"none": np.zeros(2, dtype=bool)})
    assert bootstrap.counts == {}
    with pytest.raises(ValueError, match="no story is in 'none'"):
        bootstrap.estimate(ratio, "nats", "none")


def test_memory_does_not_grow_with_the_stories():
    bootstrap = StoryBootstrap(resamples=10)
    for _ in range(20):
        bootstrap.update(stories(300))
        assert sum(len(sums) for sums, _, _ in bootstrap._waiting) < PIECE
    assert bootstrap.counts == {"all": 6000}


def test_an_undefined_resample_is_left_out_and_an_infinite_one_is_not():
    assert percentile_interval(np.array([np.nan, 1.0, 1.0]), 0.95) == (1.0, 1.0)
    assert percentile_interval(np.array([1.0, 1.0, 1.0, np.inf]), 0.0) == (1.0, 1.0)
    assert np.isnan(percentile_interval(np.array([np.nan, 1.0]), 0.95)).all()


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 85), (41, 85), (85, 85), (256, 1000)])
def test_a_share_has_wilsons_interval(successes, n):
    found = proportion(successes, n, "share")
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.estimate == successes / n
    assert found.upper > found.lower
    wider = stats.binomtest(successes, n).proportion_ci(0.99, method="wilson")
    assert (found.lower, found.upper) != pytest.approx((wider.low, wider.high), abs=1e-3)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(successes, n):
    with pytest.raises(ValueError, match="is not a share"):
        proportion(successes, n, "share")


@pytest.mark.parametrize("count", [1, 10, 700])
def test_means_of_columns_are_the_mean_of_each(count):
    values = np.random.default_rng(5).gamma(2.0, size=(count, 3))
    values[0, 1] = np.nan  # a column that is not defined leaves the others as they are
    together = bootstrap_means(values, "nats", seed=3)
    for column, estimate in zip(values.T, together, strict=True):
        alone = of_ratio(np.stack([column, np.ones(count)], axis=1), seed=3)
        numbers = (estimate.estimate, estimate.lower, estimate.upper)
        assert numbers == pytest.approx((alone.estimate, alone.lower, alone.upper), rel=1e-12, nan_ok=True)
        assert (estimate.n, estimate.unit) == (alone.n, "nats")
        assert bootstrap_mean(column, "nats", seed=3).lower == pytest.approx(estimate.lower, rel=1e-12, nan_ok=True)
    if count == 700:
        assert bootstrap_means(values, "nats", seed=4)[0].lower != together[0].lower
    with pytest.raises(ValueError, match=r"shape \(0, 3\) are not stories"):
        bootstrap_means(values[:0], "nats")


def test_a_share_of_all_or_none_lies_in_its_interval():
    """Rounding ends some of these, such as 85 of 85, below 1."""
    for n in range(1, 400):
        every, none = proportion(n, n, "share"), proportion(0, n, "share")
        assert every.upper == 1.0 > every.lower
        assert none.lower == 0.0 < none.upper
