import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm_trials.estimates import (
    PIECE,
    StoryBootstrap,
    bootstrap_mean,
    bootstrap_means,
    percentile_interval,
    proportion,
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
    estimate = bootstrap_mean(values, "nats", resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.estimate == pytest.approx(values.mean(), rel=1e-12)
    assert interval(estimate) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.06 * half)
    assert (estimate.n, estimate.unit) == (4000, "nats")


def test_a_ratio_has_the_interval_of_scipys_bootstrap():
    """Poisson weights against drawing with replacement; both are within their own noise of one another."""
    rows = stories(300)
    bootstrap = StoryBootstrap(seed=1, resamples=5000)
    bootstrap.update(rows)
    ours = interval(bootstrap.estimate(ratio, "nats per token"))
    theirs = stats.bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda nats, tokens, axis: nats.sum(axis=axis) / tokens.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.08 * width)
    # The neighbour: one weight for every token, as if tokens were independent, is far too sure of itself.
    per_token = interval(bootstrap_mean(np.repeat(rows[:, 0] / rows[:, 1], rows[:, 1].astype(int))[:20_000], "nats"))
    assert np.ptp(per_token) < 0.4 * width


def test_the_ratio_of_sums_is_not_the_mean_of_ratios():
    rows = stories(200)
    bootstrap = StoryBootstrap()
    bootstrap.update(rows)
    assert bootstrap.estimate(ratio, "nats per token").estimate == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    assert abs((rows[:, 0] / rows[:, 1]).mean() - rows[:, 0].sum() / rows[:, 1].sum()) > 0.1


def coverage(confidence):
    """In how many of 200 data sets of 100 stories the interval holds the truth, a gamma's mean of 2."""
    generator = np.random.default_rng(0)
    held = 0
    for number in range(200):
        values = generator.gamma(2, 1, size=100)
        estimate = bootstrap_mean(values, "nats", seed=number, confidence=confidence, resamples=400)
        held += estimate.lower <= 2 <= estimate.upper
    return held / 200


def test_a_95_per_cent_interval_holds_the_truth_about_95_times_in_100():
    assert 0.90 <= coverage(0.95) <= 0.99
    assert 0.40 <= coverage(0.5) <= 0.60  # the neighbour: another confidence is another coverage


def test_the_estimate_of_skewed_data_is_their_mean():
    """A published package prints the mean under "Median"; here the header says mean and the mean it is."""
    values = np.array([1.0] * 9 + [101.0])
    assert bootstrap_mean(values, "nats").estimate == values.mean() == 11
    assert np.median(values) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=5), st.sampled_from([3, PIECE, PIECE + 1, 1300]))
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


def test_one_story_gives_no_interval_and_two_give_one():
    one, two = bootstrap_mean(np.array([2.0]), "nats"), bootstrap_mean(np.array([2.0, 3.0]), "nats")
    assert (one.estimate, one.n) == (2.0, 1)
    assert np.isnan(interval(one)).all()
    assert (two.lower, two.upper) == (2.0, 3.0)


def test_what_is_not_finite_has_no_interval():
    """An infinite loss with a finite interval would be a lie; leaving its story out of the resamples made one."""
    infinite = bootstrap_mean(np.array([1.0, np.inf, 2.0]), "nats")
    assert infinite.estimate == np.inf
    assert np.isnan(interval(infinite)).all()
    undefined = bootstrap_mean(np.array([1.0, np.nan]), "nats")
    assert np.isnan([undefined.estimate, *interval(undefined)]).all()


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


@pytest.mark.parametrize("count", [1, 2, 700])
def test_means_of_columns_are_the_mean_of_each(count):
    values = np.random.default_rng(5).gamma(2.0, size=(count, 3))
    values[0, 1] = np.nan  # a column that is not defined leaves the others as they are
    together = bootstrap_means(values, "nats", seed=3)
    for column, estimate in zip(values.T, together, strict=True):
        alone = bootstrap_mean(column, "nats", seed=3)
        numbers = (estimate.estimate, estimate.lower, estimate.upper)
        assert numbers == pytest.approx((alone.estimate, alone.lower, alone.upper), rel=1e-12, nan_ok=True)
        assert (estimate.n, estimate.unit) == (alone.n, alone.unit)
    if count == 700:
        assert bootstrap_means(values, "nats", seed=4)[0].lower != together[0].lower
    with pytest.raises(ValueError, match=r"shape \(0, 3\) are not stories"):
        bootstrap_means(values[:0], "nats")
