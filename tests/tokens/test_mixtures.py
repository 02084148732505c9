"""Mixtures: exact proportions after any number of items, and weights as people write them."""

from collections import Counter
from itertools import islice, repeat

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.tokens.mixtures import mixed, parse_weights

WEIGHTS = st.lists(st.floats(0.001, 1), min_size=1, max_size=9).map(lambda ws: [w / sum(ws) for w in ws])
# The part furthest behind its share, as a rule, is 1.10 off after 73 items here.
HARD = [0.42607623304393627, 0.440476828775822, 0.005816969105060824, 0.10722053400338008, 0.020409435071800854]


def furthest_off(draws, weights):
    """Return the largest distance, in items, of any part from its share after any number of draws."""
    taken, worst = Counter(), 0.0
    for total, part in enumerate(draws, start=1):
        taken[part] += 1
        worst = max(worst, *(abs(weight * total - taken[n]) for n, weight in enumerate(weights)))
    return worst


@settings(deadline=None)
@given(WEIGHTS)
@example([0.7, 0.2, 0.1])
@example(HARD)
@example([1 / 3] * 3)
def test_every_part_is_within_one_item_of_its_share_at_any_time(weights):
    draws = islice(mixed([repeat(n) for n in range(len(weights))], weights), 300)
    assert furthest_off(draws, weights) < 1 + 1e-5


def test_the_obvious_rule_would_not_hold_that_bound():
    """The control of the test above."""

    def greedy():
        taken = [0] * len(HARD)
        while True:
            part = max(range(len(HARD)), key=lambda n: HARD[n] * (sum(taken) + 1) - taken[n])
            taken[part] += 1
            yield part

    assert furthest_off(islice(greedy(), 300), HARD) > 1.1


def test_each_part_keeps_its_order_and_the_mixture_ends_with_the_first_that_is_empty():
    found = list(mixed([["a1", "a2"], [f"b{n}" for n in range(100)]], [0.25, 0.75]))
    assert [item for item in found if item[0] == "a"] == ["a1", "a2"]
    assert [item for item in found if item[0] == "b"] == [f"b{n}" for n in range(len(found) - 2)]
    assert 8 <= len(found) <= 12
    assert list(mixed(["ab"], [1.0])) == ["a", "b"]


def test_a_stream_is_read_no_further_than_needed():
    streams = [iter(range(10)), iter(range(10))]
    list(islice(mixed(streams, [0.5, 0.5]), 4))
    assert [next(stream) for stream in streams] == [2, 2]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (".7,.2,.1", [0.7, 0.2, 0.1]),
        (" 0.5, .25 ,0.25", [0.5, 0.25, 0.25]),
        (".33,.33,.33", [1 / 3] * 3),
        (".1,.1,.8", [0.1, 0.1, 0.8]),
    ],
)
def test_weights_are_read_as_written(text, weights):
    assert parse_weights(text, 3) == pytest.approx(weights, abs=1e-12)


def test_no_weights_are_equal_parts():
    assert parse_weights(None, 4) == [0.25] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".3,x", "--data_mix .3,x is not a list of numbers; give one for each part, for example .3,.7"),
        ("", "--data_mix  is not a list of numbers"),
        (".3,.3,.4", "--data_mix .3,.3,.4 has 3 weights for 2 parts; give one for each"),
        (".3,.3", "--data_mix .3,.3 sums to 0.6"),
        ("1.5,-.5", "--data_mix 1.5,-.5 has a weight that is not above 0"),
        ("0,1", "--data_mix 0,1 has a weight"),
        ("nan,1", "--data_mix nan,1 has a weight"),
        ("inf,1", "--data_mix inf,1 sums to inf"),
    ],
)
def test_wrong_weights_are_one_line(text, message):
    with pytest.raises(UsageError) as error:
        parse_weights(text, 2)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
