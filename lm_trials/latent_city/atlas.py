"""The atlas: pretraining text about real cities, for small models that are to know some geography.

Document `number` of `seed` depends on these two numbers and the cities alone, so any range or order writes the same.
It is a question with its answer, a few sentences, or the profile of a city: countries, continents, neighbours,
coordinates, directions, and the distances of pairs of cities in the form of `distances.py` (`343.56 km`).  A share of
the pairs, chosen by hash, is never stated; `questions` asks about those in its validation and test splits, so that one
can see whether a model has learned where cities are, or only what was said.

Randomness: one `random.Random((seed << 64) | number)` per document, of which only `.random()` is called; Python
promises both to be the same in every version.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lm_trials.latent_city.cities import (
    City,
    coordinates,
    direction,
    distance_km,
    distances_km,
    neighbouring_countries,
    places,
)
from lm_trials.stories.records import SPLITS, Split

Item = TypeVar("Item")
ATLAS_VERSION = 1
SOURCE = f"atlas-{ATLAS_VERSION}"
LETTERS = "ABCDE"
NEAREST, NEAR_SHARE = 20, 0.2
"""A fifth of the pairs are a city and one of this many nearest: at random, next to none would be near each other."""
TEST_FROM = 0.5
"""Of the pairs that are never stated, those above this hash are the test split of the questions, others validation."""

DISTANCE_QUESTIONS = (
    "What is the distance between {a} and {b}?",
    "How far is {a} from {b}?",
    "How far is it from {a} to {b}?",
)
DISTANCE_SENTENCES = (
    "The distance between {a} and {b} is {d}.",
    "{a} is {d} from {b}.",
    "{a} lies {d} away from {b}.",
    "From {a} to {b} it is {d}.",
    "A flight from {a} to {b} covers {d}.",
    "Between {a} and {b} lie {d}.",
    "It is {d} from {a} to {b}.",
)
DIRECTION_SENTENCES = (
    "{b} lies {w} of {a}.",
    "From {a} one travels {w} to reach {b}.",
    "{b} is to the {w} of {a}.",
    "Going {w} from {a} leads towards {b}.",
)
COORDINATE_SENTENCES = (
    "{a} lies at {p}.",
    "On the map {a} is at {p}.",
    "The coordinates of {a} are {p}.",
)
COUNTRY_SENTENCES = (
    "{a} is in {c}.",
    "{a} is a city in {c}.",
    "{a} lies in {c}.",
    "{a} belongs to {c}.",
    "The city of {a} is in {c}.",
    "People who live in {a} live in {c}.",
)
CAPITAL_SENTENCES = ("{a} is the capital of {c}.", "The capital of {c} is {a}.", "{c} is governed from {a}.")
CONTINENT_SENTENCES = (
    "{a} is in {k}.",
    "{a} is a city of {k}.",
    "{c} is a country in {k}.",
    "{a}, {c}, is on the map of {k}.",
)
BORDER_SENTENCES = ("{c} borders {n}.", "The neighbours of {c} are {n}.", "{c} shares a border with {n}.")
NEAREST_SENTENCES = (
    "The city nearest to {a} is {b}, {d} away.",
    "{a} is near {b}; it is {d} there.",
    "{b} and {a} are close to each other, {d} apart.",
)


@dataclass(frozen=True)
class Question:
    """A question about real cities with its answer; `cities` are those it is about."""

    prompt: str
    answer: str
    kind: str
    cities: tuple[City, ...]


@dataclass(frozen=True)
class Atlas:
    """The cities that are written about.

    Attributes:
        cities: at least ten, each name once.
        held_out_share: of the pairs of cities, whose distance and direction no document states.
    """

    cities: tuple[City, ...]
    held_out_share: float = 0.05
    nearest: dict[str, list[City]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where_N2 = places(self.cities)
        nearest_NN = np.argsort(distances_km(where_N2, where_N2), axis=1, kind="stable")
        near = {
            city.name: [self.cities[place] for place in nearest_N if place != number][:NEAREST]
            for number, (city, nearest_N) in enumerate(zip(self.cities, nearest_NN, strict=True))
        }
        object.__setattr__(self, "nearest", near)

    def is_held_out(self, one: City, other: City) -> bool:
        """Whether the pair of two cities is never stated."""
        return pair_place(one, other) < self.held_out_share


def pair_place(one: City, other: City) -> float:
    """Return a number from 0 to 1 that depends on the names of two cities alone, whatever their order."""
    names = "|".join(sorted((one.name, other.name)))
    return int.from_bytes(hashlib.blake2b(names.encode(), digest_size=8).digest(), "big") / 2**64


def written_km(distance: float) -> str:
    """Return a distance as the source writes it.

    >>> written_km(1088.4472)
    '1088.45 km'
    """
    return f"{distance:.2f} km"


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, to be answered by a letter; what it begins with sets it apart.

    >>> with_options("Which country is Rome in?", ["Italy", "Peru"])
    'Answer with a letter. Which country is Rome in? A) Italy B) Peru'
    """
    listed = (f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return " ".join(["Answer with a letter.", question, *listed])


def generator_of(seed: int, number: int) -> random.Random:
    """Return the generator of one document."""
    return random.Random((seed << 64) | number)


def write_document(atlas: Atlas, seed: int, number: int) -> str:
    """Write document `number` of `seed`.

    >>> from lm_trials.latent_city.cities import package_cities
    >>> atlas = Atlas(package_cities()[0])
    >>> write_document(atlas, seed=0, number=3) == write_document(atlas, seed=0, number=3)
    True
    >>> write_document(atlas, seed=0, number=3) == write_document(atlas, seed=1, number=3)
    False
    """
    draw = generator_of(seed, number)
    kind = draw.random()
    if kind < 0.7:
        question = draw_question(atlas, draw)
        return f"{question.prompt} {question.answer}"
    if kind < 0.85:
        return " ".join(_sentence(atlas, draw, *_pair(atlas, draw)) for _ in range(1 + int(draw.random() * 2)))
    return _profile(atlas, draw)


def write_documents(atlas: Atlas, num_documents: int, seed: int) -> Iterator[str]:
    """Yield the documents 0 to `num_documents - 1` of `seed`."""
    for number in range(num_documents):
        yield write_document(atlas, seed, number)


def questions(atlas: Atlas, num_questions: int, seed: int) -> Iterator[tuple[Split, Question]]:
    """Yield questions with their splits: of pairs that are never stated for validation and test, of others for train.

    Questions about a single city are for training; every split has the same order for the same seed.
    """
    taken: set[tuple[str, str]] = set()
    for number in range(num_questions):
        yield "train", draw_question(atlas, generator_of(seed, (1 << 40) + number))
    for place, one in enumerate(atlas.cities):
        for other in atlas.cities[place + 1 :]:
            if atlas.is_held_out(one, other) and (one.name, other.name) not in taken:
                taken.add((one.name, other.name))
                late = pair_place(one, other) / atlas.held_out_share >= TEST_FROM
                prompt = DISTANCE_QUESTIONS[0].format(a=one.name, b=other.name)
                answer = written_km(distance_km(one, other))
                yield SPLITS[2 if late else 1], Question(prompt, answer, "distance", (one, other))


def draw_question(atlas: Atlas, draw: random.Random) -> Question:
    """Draw one question that may be asked in training."""
    one, other = _pair(atlas, draw)
    kind = draw.random()
    if kind < 0.50:
        # The source's wording half of the time, as one of three for the rest.
        wording = DISTANCE_QUESTIONS[0] if draw.random() < 0.5 else _pick(DISTANCE_QUESTIONS, draw)
        prompt = wording.format(a=one.name, b=other.name)
        return Question(prompt, written_km(distance_km(one, other)), "distance", (one, other))
    if kind < 0.65:
        return Question(f"Where on the map is {one.name}?", coordinates(one), "coordinates", (one,))
    if kind < 0.72:
        prompt = f"In which direction does {other.name} lie from {one.name}?"
        return Question(prompt, direction(one, other), "direction", (one, other))
    if kind < 0.87:
        return Question(f"Which country is {one.name} in?", one.country, "country", (one,))
    if kind < 0.91:
        return Question(f"Which continent is {one.name} in?", one.continent, "continent", (one,))
    return _choice(atlas, draw, one)


def _choice(atlas: Atlas, draw: random.Random, city: City) -> Question:
    """Draw a question with five options, each letter as often the right one."""
    others: list[City] = []
    while len(others) < len(LETTERS) - 1:
        other = _pick(atlas.cities, draw)
        if other.country not in {city.country, *(o.country for o in others)}:
            others.append(other)
    place = int(draw.random() * len(LETTERS))
    options = [*others[:place], city, *others[place:]]
    kind = draw.random()
    if kind < 0.5:
        prompt = with_options(f"Which country is {city.name} in?", [option.country for option in options])
    elif kind < 0.75:
        prompt = with_options(f"Which of these cities is in {city.country}?", [option.name for option in options])
    else:
        prompt = with_options(f"Which of these cities is {city.name}?", [option.name for option in options])
    return Question(prompt, LETTERS[place], "choice", (city,))


def _profile(atlas: Atlas, draw: random.Random) -> str:
    """Write some sentences about one city."""
    city = _pick(atlas.cities, draw)
    number = 3 + int(draw.random() * 4)
    return " ".join(_sentence(atlas, draw, city, _other(atlas, draw, city)) for _ in range(number))


def _sentence(atlas: Atlas, draw: random.Random, one: City, other: City) -> str:
    """Write a sentence about a city, or about it and another."""
    borders = ", ".join(neighbouring_countries().get(one.country, ()))
    kinds = [DISTANCE_SENTENCES, DISTANCE_SENTENCES, DISTANCE_SENTENCES, COORDINATE_SENTENCES, COORDINATE_SENTENCES]
    kinds += [DIRECTION_SENTENCES, COUNTRY_SENTENCES]
    kinds += [CAPITAL_SENTENCES] if one.capital else []
    kinds += [CONTINENT_SENTENCES, BORDER_SENTENCES if borders else COUNTRY_SENTENCES, NEAREST_SENTENCES]
    wordings = _pick(kinds, draw)
    if wordings is NEAREST_SENTENCES:
        other = next((city for city in atlas.nearest[one.name] if not atlas.is_held_out(one, city)), other)
    return _pick(wordings, draw).format(
        a=one.name,
        b=other.name,
        c=one.country,
        d=written_km(distance_km(one, other)),
        k=one.continent,
        n=borders,
        p=coordinates(one),
        w=direction(one, other),
    )


def _pair(atlas: Atlas, draw: random.Random) -> tuple[City, City]:
    one = _pick(atlas.cities, draw)
    return one, _other(atlas, draw, one)


def _other(atlas: Atlas, draw: random.Random, one: City) -> City:
    """Draw another city, sometimes one of the nearest, whose pair with the first may be stated."""
    near = draw.random() < NEAR_SHARE
    while True:
        other = _pick(atlas.nearest[one.name] if near else atlas.cities, draw)
        if other is not one and not atlas.is_held_out(one, other):
            return other
        near = near and draw.random() < 0.5  # all the near ones may be held out


def _pick(items: Sequence[Item], draw: random.Random) -> Item:
    return items[int(draw.random() * len(items))]
