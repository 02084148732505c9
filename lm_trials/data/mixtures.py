"""Mixtures: several streams of documents in exact proportions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from lm_trials.console import UsageError

Item = TypeVar("Item")
MARGIN = 1e-6  # of an item


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
) -> Iterator[Item]:
    """Yield items of each part in proportion, until the part whose turn it is has no more; then tell `ended`.

    After any number of items each part is within one item of its share; no draw, and so no seed, is involved.  This
    is the quota method of Balinski and Young (1975): of the parts that one more item would not take beyond their
    share rounded up, the one that needs it soonest.  Taking from the part furthest behind its share, the obvious
    rule, leaves the bound with five parts (0.426, 0.441, 0.107, 0.020, 0.006 are 1.10 off after 73 items).

    >>> "".join(mixed(["aaaa", "bbbbbbbb"], [0.25, 0.75]))
    'bbabbbabbba'
    """
    streams = [iter(part) for part in parts]
    taken = [0] * len(streams)
    while True:
        total = sum(taken) + 1
        # The margin keeps 0.7 * 10, which is 7.000000000000001 or so for some numbers, from counting as above 7.
        allowed = [part for part, count in enumerate(taken) if count < weights[part] * total - MARGIN]
        place = max(allowed, key=lambda part: weights[part] / (taken[part] + 1))
        try:
            item = next(streams[place])
        except StopIteration:
            ended(place, taken)
            return
        taken[place] += 1
        yield item
