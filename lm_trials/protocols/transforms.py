"""Transforms: named changes to a record.  Each is one function and one entry of `TRANSFORMS`.

`--transform NAME` or `NAME:ARGUMENT` applies them in the order given, after filter, mix_match, adversarial and refusal.
A function takes the record after the earlier steps, and `draw`, a random integer below 2**64 that depends only on the
protocol's seed, the transform and the record id.  It returns the changed record.  For more random numbers,
`random.Random(draw).random` gives the same ones on every machine.

docs/extending.md shows how to add a transform.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lm_trials.console import UsageError, did_you_mean
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.pairing import ACTIVITIES
from lm_trials.stories.variety import split_sentences

if TYPE_CHECKING:  # records imports datasets, and the help of `--transform` needs this module
    from lm_trials.stories.records import Record


def shuffle_sentences(record: Record, draw: int) -> Record:
    """Shuffle the story's sentences.

    The spaces and line breaks between them keep their places.
    """
    sentences = split_sentences(record["story"])
    return {**record, "story": _replaced(record["story"], _shuffled(sentences, random.Random(draw).random))}


def shuffle_words(record: Record, draw: int) -> Record:
    """Shuffle the words within each sentence (arXiv 2104.06644).

    Punctuation moves with its word.  Source: Sinha et al.
    """
    number = random.Random(draw).random
    sentences = [" ".join(_shuffled(sentence.split(), number)) for sentence in split_sentences(record["story"])]
    return {**record, "story": _replaced(record["story"], sentences)}


def truncate_story(record: Record, draw: int, count: int) -> Record:
    """Keep the first N sentences."""
    sentences = split_sentences(record["story"])[:count]
    return {**record, "story": record["story"][: _spans(record["story"], sentences)[-1][1]]}


def drop_labels(record: Record, draw: int, probability: float) -> Record:
    """Drop each feature label with probability P.

    A larger P drops the same labels and more.
    """
    number = random.Random(draw).random
    return {**record, "features": [feature for feature in record["features"] if number() >= probability]}


def swap_labels(record: Record, draw: int, probability: float) -> Record:
    """Replace each feature label with probability P by another one that the record does not have.

    A larger P swaps the same labels, for the same others, and more.
    """
    number = random.Random(draw).random
    others = [feature for feature in FEATURES if feature not in record["features"]]
    swapped = []
    for feature in record["features"]:
        # Drawn whether or not the label is swapped, so that each label has its own.
        chance, other = number(), others.pop(int(number() * len(others))) if others else feature
        swapped.append(other if chance < probability else feature)
    return {**record, "features": swapped}


def pair_activities(record: Record, draw: int, probability: float) -> Record:
    """Give the hero, with probability P, an activity that fits the pairing of generated stories, else its partner.

    0.5 is balanced.  A larger P pairs the same stories and more.
    """
    fits = random.Random(draw).random() < probability
    return {**record, "story": ACTIVITIES.paired(record["story"], fits)}


def _spans(story: str, sentences: Iterable[str]) -> list[tuple[int, int]]:
    """Return where each of a story's sentences begins and ends."""
    spans, end = [], 0
    for sentence in sentences:
        start = story.index(sentence, end)
        end = start + len(sentence)
        spans.append((start, end))
    return spans


def _replaced(story: str, sentences: list[str]) -> str:
    """Replace the sentences of a story by others."""
    text, end = "", 0
    for (start, next_end), sentence in zip(_spans(story, split_sentences(story)), sentences, strict=True):
        text += story[end:start] + sentence
        end = next_end
    return text + story[end:]


def _shuffled(items: list[str], number: Callable[[], float]) -> list[str]:
    return sorted(items, key=lambda _: number())  # of `random.Random`, only `random` never changes between versions


def whole_number(text: str) -> int:
    """Read a count of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def probability(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a number from 0 to 1")


@dataclass(frozen=True)
class Transform:
    """An entry of `TRANSFORMS`.

    Attributes:
        function: changes one record; the first line of its docstring is the transform's help.
        changes: `labels`: only `features` and `words` of the record.  The set then shares the corpus's tokens.
            `story`: any field but `record_id`.  The set's texts are then tokenized one by one.
        argument: the name of the argument in the help; empty for a transform without one.
        parse: reads the text after the colon; raises a `ValueError` for a wrong one.
        version: raise it when the results of the function change; sets of another version are refused.
    """

    function: Callable[..., Record]
    changes: Literal["labels", "story"]
    argument: str = ""
    parse: Callable[[str], Any] = str
    version: int = 1


TRANSFORMS: dict[str, Transform] = {
    "shuffle_sentences": Transform(shuffle_sentences, "story"),
    "shuffle_words": Transform(shuffle_words, "story"),
    "truncate_story": Transform(truncate_story, "story", "N", whole_number),
    "drop_labels": Transform(drop_labels, "labels", "P", probability),
    "swap_labels": Transform(swap_labels, "labels", "P", probability),
    "pair_activities": Transform(pair_activities, "story", "P", probability),
}


@dataclass(frozen=True)
class TransformStep:
    """A transform with its argument: `NAME` or `NAME:ARGUMENT`.

    >>> parse_transforms(["truncate_story:5"])[0].arguments
    (5,)
    """

    name: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def transform(self) -> Transform:
        """The entry of `TRANSFORMS`."""
        return TRANSFORMS[self.name]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the function after the record and the draw; a ValueError for a malformed one."""
        return (self.transform.parse(self.argument),) if self.transform.argument else ()


def parse_transforms(texts: Iterable[str]) -> tuple[TransformStep, ...]:
    """Read the values of `--transform`.

    Raises:
        UsageError: for an unknown name, a missing, superfluous or malformed argument, or the same step twice.
    """
    steps: list[TransformStep] = []
    for text in texts:
        name, _, argument = text.partition(":")
        if name not in TRANSFORMS:
            raise UsageError(f"--transform {text}: {name} is not a transform; {did_you_mean(name, TRANSFORMS)}")
        step, usage = TransformStep(name, argument), usage_of(name)
        if bool(argument) != bool(step.transform.argument):
            takes = "an" if step.transform.argument else "no"
            raise UsageError(f"--transform {text}: {name} takes {takes} argument; give {usage}")
        try:
            _ = step.arguments
        except ValueError as error:
            raise UsageError(f"--transform {text}: {error}; give {usage}") from None
        if step in steps:
            raise UsageError(f"--transform {text} is given twice; give it once")
        steps.append(step)
    return tuple(steps)


def usage_of(name: str) -> str:
    """Return the form of a transform on the command line.

    >>> usage_of("drop_labels"), usage_of("shuffle_words")
    ('drop_labels:P', 'shuffle_words')
    """
    return ":".join(filter(None, (name, TRANSFORMS[name].argument)))


def transforms_help() -> str:
    """Return each transform with the first line of its docstring, for `--help`."""
    return " ".join(
        f"{usage_of(name)}: {(entry.function.__doc__ or '').splitlines()[0]}" for name, entry in TRANSFORMS.items()
    )
