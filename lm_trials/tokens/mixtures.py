"""Mixtures: several streams of documents in exact proportions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from lm_trials.console import UsageError

Item = TypeVar("Item")
MARGIN = 1e-6  # of an item
MixUnit = Literal["tokens", "documents"]
StopWhen = Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True)
class Mix:
    """How the parts of a mixture are put together.

    Attributes:
        weights: share of each part; they sum to one.
        unit: what the shares are of.
        stop_when: when a pass ends: with the part whose turn it is and that has no more, or when every part has come
            to its end once, the others having begun anew.
    """

    weights: tuple[float, ...]
    unit: MixUnit = "tokens"
    stop_when: StopWhen = "first_exhausted"


def parse_weights(text: str | None, num_parts: int) -> list[float]:
    """Read `.3,.7` as weights that sum to one; no text means equal parts.

    Weights are normalised: `.7,.2,.1` does not sum to one in floating point, and is meant to.

    Raises:
        UsageError: for another number of weights than parts, a weight that is no positive number, or a sum that is
            not one within 1 per cent.

    >>> parse_weights(".7,.2,.1", num_parts=3)
    [0.7, 0.2, 0.1]
    >>> parse_weights(None, num_parts=2)
    [0.5, 0.5]
    """
    if text is None:
        return [1 / num_parts] * num_parts
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--data_mix {text} is no list of numbers; give one for each part, as .3,.7") from None
    if len(weights) != num_parts:
        raise UsageError(f"--data_mix {text} has {len(weights)} weights for {num_parts} parts; give one for each")
    if not all(weight > 0 for weight in weights):  # written so that nan is refused too
        raise UsageError(f"--data_mix {text} has a weight that is not above 0; give positive weights that sum to 1")
    if not round(abs(sum(weights) - 1), 6) <= 0.01:
        raise UsageError(f"--data_mix {text} sums to {sum(weights):g}; give positive weights that sum to 1")
    return [round(weight / sum(weights), 12) for weight in weights]


def mixed(
    parts: Sequence[Iterable[Item]],
    weights: Sequence[float],
    ended: Callable[[int, list[int]], None] = lambda part, taken: None,
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yield items of each part in proportion, until the part whose turn it is has no more; then tell `ended`.

    No draw, and so no seed, is involved.  Without `size` each item counts for one, and after any number of items each
    part is within one item of its share: the quota method of Balinski and Young (1975), of the parts that one more item
    would not take beyond their share rounded up the one that needs it soonest.  Taking from the part furthest behind
    its share, the obvious rule, leaves the bound with five parts (0.426, 0.441, 0.107, 0.020, 0.006 are 1.10 off after
    73 items).

    With `size`, for example a document's tokens, the part comes next that has had least for its weight, as in
    start-time fair queueing (Goyal and others, 1996): no part is ever ahead of its share by more than its longest item.

    >>> "".join(mixed(["aaaa", "bbbbbbbb"], [0.25, 0.75]))
    'bbabbbabbba'
    >>> list(mixed([["one", "two"], ["a", "b", "c", "d", "e", "f", "g"]], [0.5, 0.5], size=len))
    ['one', 'a', 'b', 'c', 'two', 'd', 'e', 'f']
    """
    streams = [iter(part) for part in parts]
    taken = [0] * len(streams)
    while True:
        place = _soonest(taken, weights) if size is None else _least_served(taken, weights)
        try:
            item = next(streams[place])
        except StopIteration:
            ended(place, taken)
            return
        taken[place] += 1 if size is None else size(item)
        yield item


def _soonest(taken: Sequence[int], weights: Sequence[float]) -> int:
    total = sum(taken) + 1
    # The margin keeps 0.7 * 10, which is 7.000000000000001 or so for some numbers, from counting as above 7.
    allowed = [part for part, count in enumerate(taken) if count < weights[part] * total - MARGIN]
    return max(allowed, key=lambda part: weights[part] / (taken[part] + 1))


def _least_served(taken: Sequence[int], weights: Sequence[float]) -> int:
    return min(range(len(taken)), key=lambda part: taken[part] / weights[part])


def mixture_pass(
    parts: Sequence[Callable[[int], Iterable[Item]]], mix: Mix, size: Callable[[Item], int]
) -> Iterator[Item]:
    """Yield one pass of a mixture.

    Args:
        parts: for each part, what gives its items; it is told how often the part has begun anew in this pass.
        size: tokens of an item.

    >>> parts = [lambda restart: f"a{restart}", lambda restart: "bbbbbb"]
    >>> "".join(mixture_pass(parts, Mix((0.5, 0.5), stop_when="first_exhausted"), len))
    'ab0b'
    >>> "".join(mixture_pass(parts, Mix((0.5, 0.5), stop_when="all_exhausted"), len))
    'ab0bab1bab2ba'
    """
    ended: set[int] = set()
    turns = [_again_and_again(part, place, ended, len(parts), mix.stop_when) for place, part in enumerate(parts)]
    return mixed(turns, mix.weights, size=size if mix.unit == "tokens" else None)


def _again_and_again(
    part: Callable[[int], Iterable[Item]], place: int, ended: set[int], num_parts: int, stop_when: StopWhen
) -> Iterator[Item]:
    """Yield the items of a part; anew, as long as some part has not come to its end, where `stop_when` says so."""
    restart = 0
    while True:
        yield from part(restart)
        ended.add(place)
        if stop_when == "first_exhausted" or len(ended) == num_parts:
            return
        restart += 1


def in_order(
    parts: Sequence[Callable[[int, int], Iterable[Item]]], mix: Mix | None, size: Callable[[Item], int]
) -> Iterator[Item]:
    """Yield the items of one pass over one part or, with a `mix`, several; see `mixture_pass`.

    Args:
        parts: for each part, what gives its items in the order of (part, restart).
    """
    if mix is None:
        (part,) = parts
        return iter(part(0, 0))
    return mixture_pass([partial(part, place) for place, part in enumerate(parts)], mix, size)
