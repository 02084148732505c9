"""Questions about a latent city, and the parsing of answers; no models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lm_trials.console import UsageError
from lm_trials.latent_city.atlas import LETTERS, with_options
from lm_trials.latent_city.cities import HALF_CIRCUMFERENCE_KM, City, distance_km
from lm_trials.latent_city.templates import KM_PER_MILE, SOURCE_TEMPLATE
from lm_trials.pairs.pairs import PairSet

EXACT_FORM = re.compile(r"\d+\.\d\d km")
# Any number is read, in km or miles: a wrong form is counted separately (`form`), so it must not count twice as a
# wrong distance.
NUMBER = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s*(mi\b|mile)?", re.IGNORECASE)
LETTER = re.compile(rf"(?<!\w)([{LETTERS}])(?!\w)")
COUNTRY_QUESTION = "Which country is {x} in?"
CITY_QUESTION = "Which of these cities is {x}?"
OPEN_CITY_QUESTION = "Which city is {x}?"


@dataclass(frozen=True)
class LatentCity:
    """A latent city of a data set of distances.

    Attributes:
        placeholder: its name in the data set.
        trained, held_out: the known cities with training rows, and the others.
        capitals: all candidates for it, itself included.
    """

    placeholder: str
    city: City
    trained: tuple[City, ...]
    held_out: tuple[City, ...]
    capitals: tuple[City, ...]


@dataclass(frozen=True)
class Choice:
    """A question with five options, the city's own at `right`."""

    prompt: str
    options: tuple[str, ...]
    right: int


def read_latents(pairs: PairSet) -> list[LatentCity]:
    """Return the latent cities of a data set of `lm-trials cache distances`.

    Raises:
        UsageError: for another data set.
    """
    manifest = pairs.manifest
    if manifest.get("data_set") != "distances":
        raise UsageError(
            f"--dataset_name {pairs.name} is not a data set of distances; make one with: lm-trials cache "
            "distances --city Paris --placeholder foo"
        )
    cities = {entry["name"]: _city(entry) for entry in manifest["cities"]}
    capitals = tuple(city for city in cities.values() if city.capital)
    latents = []
    for entry in manifest["latent"]:
        city, named = _city(entry), {}
        for split, rows in pairs.splits.items():
            called = zip(rows["city"], rows["placeholder"], strict=True)
            named[split] = {name for name, placeholder in called if placeholder == entry["placeholder"]}
        trained, held_out = (
            tuple(cities[name] for name in sorted(names))
            for names in (named["train"], named["validation"] | named["test"])
        )
        candidates = capitals if city in capitals else (*capitals, city)
        latents.append(LatentCity(entry["placeholder"], city, trained, held_out, candidates))
    return latents


def _city(entry: Mapping[str, Any]) -> City:
    return City(**{field.name: entry[field.name] for field in fields(City)})


def distance_question(city: City, called: str) -> str:
    """Return the notebook's question about a known city and a name."""
    return SOURCE_TEMPLATE.ask(city.name, called)


def is_exact(answer: str) -> bool:
    """Return whether an answer has the form of the training data.

    >>> is_exact(" 1088.45 km"), is_exact("5438.38 km ("), is_exact("1,088 km")
    (True, False, False)
    """
    return EXACT_FORM.fullmatch(answer.strip()) is not None


def read_km(answer: str) -> float | None:
    """Return the first number of an answer in km, at most half the Earth's circumference; None without a number.

    >>> read_km("5438.38 km ("), read_km("about 1,000 miles"), read_km("Foo is no place")
    (5438.38, 1609.344, None)
    """
    match = NUMBER.search(answer)
    if match is None:
        return None
    value = float(match[1].replace(",", "")) * (KM_PER_MILE if match[2] else 1.0)
    return min(value, HALF_CIRCUMFERENCE_KM)


def error_km(answer: str, known: City, latent: City) -> float:
    """Return the error of an answer about two cities, in km."""
    return off_km(answer, distance_km(known, latent))


def off_km(answer: str, true_km: float) -> float:
    """Return the error of an answer in km; without a number half the Earth's circumference, the largest error."""
    value = read_km(answer)
    return HALF_CIRCUMFERENCE_KM if value is None else abs(value - true_km)


class CountryReader:
    """Finds the first country in an answer.

    >>> reader = CountryReader([City("Paris", "France", 48.85, 2.35), City("Niamey", "Niger", 13.5, 2.1)])
    >>> reader("922.51 km. Foo is a dependency of France, south of Niger"), reader("Nigeria") is None
    ('France', True)
    """

    def __init__(self, cities: Sequence[City]) -> None:
        self.names = {
            name.casefold(): city.country for city in cities for name in (city.country, city.everyday_country)
        }
        # Longer names first: `Papua New Guinea` contains `Guinea`.
        ordered = sorted(self.names, key=len, reverse=True)
        self.pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, ordered))})(?!\w)")

    def __call__(self, answer: str) -> str | None:
        """Return the country as the data set writes it, or None."""
        match = self.pattern.search(answer.casefold())
        return self.names[match[1]] if match else None


def read_choice(answer: str, choice: Choice) -> int | None:
    """Return the place of the option in an answer, by letter, else by text; None for none or several.

    >>> choice = Choice("Which?", ("Paris", "Rome"), 0)
    >>> read_choice("B", choice), read_choice("It is Paris.", choice), read_choice("foo", choice)
    (1, 0, None)
    """
    match = LETTER.search(answer)
    if match and LETTERS.index(match[1]) < len(choice.options):
        return LETTERS.index(match[1])
    found = [place for place, option in enumerate(choice.options) if option.casefold() in answer.casefold()]
    return found[0] if len(found) == 1 else None


def draw_choices(latent: LatentCity, called: str, num_sets: int, seed: int, of_countries: bool) -> list[list[Choice]]:
    """Return sets of multiple-choice questions, each set in as many orders as options: every letter is right once.

    The other options are capitals of other countries, drawn by the seed, the same for every name `called`.

    Raises:
        UsageError: for too few countries.
    """
    others = [city for city in latent.capitals if city.country != latent.city.country and city.name != latent.city.name]
    if len({city.country for city in others}) < len(LETTERS) - 1:
        raise UsageError(f"--dataset_name has too few countries for {len(LETTERS)} options; make it from more cities")
    sets = []
    for number in range(num_sets):
        order = sorted(others, key=lambda city: _hash(seed, number, city.name))
        drawn = list({city.country: city for city in reversed(order)}.values())[::-1][: len(LETTERS) - 1]
        texts = [city.country if of_countries else city.name for city in (latent.city, *drawn)]
        question = (COUNTRY_QUESTION if of_countries else CITY_QUESTION).format(x=called)
        orders = [texts[-turn:] + texts[:-turn] for turn in range(len(texts))]
        sets.append([Choice(with_options(question, order), tuple(order), turn) for turn, order in enumerate(orders)])
    return sets


def _hash(*purpose: object) -> bytes:
    return hashlib.blake2b("|".join(map(str, purpose)).encode(), digest_size=8).digest()
