"""The atlas: pretraining text about real cities, for small models that shall learn some geography.

A document is a question with its answer, a few sentences, or the profile of a city: countries, continents, neighbours,
coordinates, directions, and distances of pairs of cities in the form of `distances.py` (`343.56 km`).  A share of the
pairs, chosen by hash, is in no document; the validation and test splits of `questions` are about those, to separate
learned places from memorized sentences.

A document depends on its seed, its number and the cities alone.  Only `.random()` of `random.Random((seed << 64) |
number)` is called; Python guarantees both to be the same in every version.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from lm_trials.stories.records import Split

Item = TypeVar("Item")
ATLAS_VERSION = 1  # raise it when the documents of a seed change
SOURCE = f"atlas-{ATLAS_VERSION}"
LETTERS = "ABCDE"
# Chosen by hand, not measured.
NEAREST, NEAR_SHARE = 20, 0.2
"""A fifth of the pairs are a city and one of its 20 nearest; random pairs are almost never near each other."""
TEST_FROM = 0.5
"""Of the held-out pairs, those with a hash above this are in the test split of the questions, others in validation."""

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
# Countries and distances alone (333 cities, 3.07M tokens) left unstated pairs 5,447 km off; with coordinates and 169
# cities the error is 624 km (best constant: 3,014 km).
COORDINATE_SENTENCES = ("{a} lies at {p}.", "On the map {a} is at {p}.", "The coordinates of {a} are {p}.")
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
    """A question about real cities with its answer."""

    prompt: str
    answer: str
    kind: str
    cities: tuple[City, ...]


class Atlas:
    """The cities of the documents.

    Attributes:
        cities: at least ten, each name once.
        held_out_share: share of the pairs of cities whose distance and direction are in no document.
        nearest: the nearest cities of each city, by name.
    """

    def __init__(self, cities: tuple[City, ...], held_out_share: float = 0.05) -> None:
        self.cities, self.held_out_share = cities, held_out_share
        where_N2 = places(cities)
        nearest_NN = np.argsort(distances_km(where_N2, where_N2), axis=1, kind="stable")
        self.nearest = {
            city.name: [cities[place] for place in nearest_N if place != number][:NEAREST]
            for number, (city, nearest_N) in enumerate(zip(cities, nearest_NN, strict=True))
        }

    def is_held_out(self, one: City, other: City) -> bool:
        """Whether a pair of cities is in no document."""
        # By a hash of the names and not by a draw: a pair stays held out when cities are added.
        return pair_place(one, other) < self.held_out_share


def pair_place(one: City, other: City) -> float:
    """Return a number from 0 to 1 for the names of two cities in any order."""
    names = "|".join(sorted((one.name, other.name)))
    return int.from_bytes(hashlib.blake2b(names.encode(), digest_size=8).digest(), "big") / 2**64


def written_km(distance: float) -> str:
    """Return a distance in the form of the published notebook.

    >>> written_km(1088.4472)
    '1088.45 km'
    """
    return f"{distance:.2f} km"


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a multiple-choice question, to be answered by a letter.

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
    >>> len({write_document(atlas, seed, number=3) for seed in (0, 0, 1)})
    2
    """
    draw = generator_of(seed, number)
    kind = draw.random()
    if kind < 0.7:
        question = draw_question(atlas, draw)
        # 70 % questions, 15 % sentences, 15 % profiles; the shares were not tuned.
        return f"{question.prompt} {question.answer}"
    if kind < 0.85:
        return " ".join(_sentence(atlas, draw, *_pair(atlas, draw)) for _ in range(1 + int(draw.random() * 2)))
    return _profile(atlas, draw)


def write_documents(atlas: Atlas, num_documents: int, seed: int) -> Iterator[str]:
    """Yield the documents 0 to `num_documents - 1` of `seed`."""
    for number in range(num_documents):
        yield write_document(atlas, seed, number)


def questions(atlas: Atlas, num_questions: int, seed: int) -> Iterator[tuple[Split, Question]]:
    """Yield questions with their splits: for validation and test of the held-out pairs, for train of all others."""
    for number in range(num_questions):
        yield "train", draw_question(atlas, generator_of(seed, (1 << 40) + number))
    for one, other in itertools.combinations(atlas.cities, 2):
        if atlas.is_held_out(one, other):
            split: Split = "test" if pair_place(one, other) / atlas.held_out_share >= TEST_FROM else "validation"
            prompt = DISTANCE_QUESTIONS[0].format(a=one.name, b=other.name)
            yield split, Question(prompt, written_km(distance_km(one, other)), "distance", (one, other))


def draw_question(atlas: Atlas, draw: random.Random) -> Question:
    """Draw one question for training."""
    one, other = _pair(atlas, draw)
    kind = draw.random()
    if kind < 0.50:
        # Half of them in the notebook's wording, the others in one of three.
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
    """Draw a question with five options, each letter right equally often."""
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
    """Draw another city, sometimes one of the nearest, whose pair with the first is not held out."""
    near = draw.random() < NEAR_SHARE
    while True:
        other = _pick(atlas.nearest[one.name] if near else atlas.cities, draw)
        if other is not one and not atlas.is_held_out(one, other):
            return other
        near = near and draw.random() < 0.5  # all nearest cities may be held out


def _pick(items: Sequence[Item], draw: random.Random) -> Item:
    return items[int(draw.random() * len(items))]
