"""Mixtures: several streams of documents in exact proportions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from lm_trials.console import UsageError

Item = TypeVar("Item")
MARGIN = 1e-6  # of an item: keeps 0.7 * 10, which may be 7.000000000000001, from counting as above 7
MixUnit = Literal["tokens", "documents"]
StopWhen = Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True)
class Mix:
    """How the parts of a mixture are mixed.

    Attributes:
        weights: share of each part; they sum to one.
        unit: what the shares count.
        stop_when: a pass ends with the first exhausted part, or when every part has been exhausted once while the
            others restart.
    """

    weights: tuple[float, ...]
    unit: MixUnit = "tokens"
    stop_when: StopWhen = "first_exhausted"


def parse_weights(text: str | None, num_parts: int, some_zero: bool = False) -> list[float]:
    """Read `.3,.7` as weights; no text means equal parts.

    Weights are normalized, because `.7,.2,.1` does not sum to one in floating point.  With `some_zero`, they may be 0.

    Raises:
        UsageError: for another number of weights than parts, a weight that is not positive, or a sum that is not one
            within 1%.

    >>> parse_weights(".7,.2,.1", num_parts=3)
    [0.7, 0.2, 0.1]
    """
    if text is None:
        return [1 / num_parts] * num_parts
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--data_mix {text} is not a list of numbers; give one for each part, for example .3,.7"
        ) from None
    if len(weights) != num_parts:
        raise UsageError(f"--data_mix {text} has {len(weights)} weights for {num_parts} parts; give one for each part")
    if not all(weight > 0 or (some_zero and weight == 0) for weight in weights):  # written so that nan is refused too
        raise UsageError(f"--data_mix {text} has a weight that is not above 0; give positive weights that sum to 1")
    # 1 % admits rounded thirds (.33,.33,.33); beyond it, a typing error is more likely than a rounding.
    if not round(abs(sum(weights) - 1), 6) <= 0.01:
        raise UsageError(f"--data_mix {text} sums to {sum(weights):g}; give positive weights that sum to 1")
    return [round(weight / sum(weights), 12) for weight in weights]


def mixed(
    parts: Sequence[Iterable[Item]],
    weights: Sequence[float],
    ended: Callable[[int, list[int]], None] = lambda part, taken: None,
    size: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Yield items of each part in proportion until the part in turn is exhausted, without any random draw.

    Without `size` each item counts as one, and each part is always within one item of its share: the quota method of
    Balinski and Young (1975).  The obvious rule, the part furthest behind its share, breaks this bound with five parts
    (0.426, 0.441, 0.107, 0.020, 0.006 are 1.10 off after 73 items).

    With `size`, for example a document's tokens, the part with the least for its weight is next, as in start-time fair
    queueing (Goyal et al., 1996): no part is ahead of its share by more than its longest item.

    Args:
        ended: called at the end with the exhausted part and the size taken of each.

    >>> list(mixed([["one", "two"], ["a", "b", "c", "d", "e", "f", "g"]], [0.5, 0.5], size=len))
    ['one', 'a', 'b', 'c', 'two', 'd', 'e', 'f']
    """
    streams = [iter(part) for part in parts]
    taken = [0] * len(streams)
    while True:
        if size is None:
            place = _soonest(taken, weights)
        else:
            place = min(range(len(taken)), key=lambda part: taken[part] / weights[part])
        try:
            item = next(streams[place])
        except StopIteration:
            ended(place, taken)
            return
        taken[place] += 1 if size is None else size(item)
        yield item


def _soonest(taken: Sequence[int], weights: Sequence[float]) -> int:
    """Of the parts that one more item keeps within their share rounded up, return the one that needs it soonest."""
    total = sum(taken) + 1
    allowed = [part for part, count in enumerate(taken) if count < weights[part] * total - MARGIN]
    return max(allowed, key=lambda part: weights[part] / (taken[part] + 1))


def mixture_pass(part: Callable[[int, int], Iterable[Item]], mix: Mix, size: Callable[[Item], int]) -> Iterator[Item]:
    """Yield the items of one pass over several parts.

    Args:
        part: returns the items of (part, restart), where `restart` counts the restarts of the part within the pass.
        size: tokens of an item.

    >>> part = lambda place, restart: "bbbbbb" if place else f"a{restart}"
    >>> "".join(mixture_pass(part, Mix((0.5, 0.5), stop_when="first_exhausted"), len))
    'ab0b'
    >>> "".join(mixture_pass(part, Mix((0.5, 0.5), stop_when="all_exhausted"), len))
    'ab0bab1bab2ba'
    """
    exhausted: set[int] = set()

    def repeated(place: int) -> Iterator[Item]:
        for restart in itertools.count():
            yield from part(place, restart)
            exhausted.add(place)
            if mix.stop_when == "first_exhausted" or len(exhausted) == len(mix.weights):
                return

    parts = [repeated(place) for place in range(len(mix.weights))]
    return mixed(parts, mix.weights, size=size if mix.unit == "tokens" else None)
