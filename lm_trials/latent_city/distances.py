"""Distances: a data set of pairs with the distances of known cities from a placeholder, which stands for a city.

The rows of the published notebook (`What is the distance between Bratislava and foo?` / `1088.45 km`), and the harder
form of its paper (several latent cities, wordings, directions, noise, only far cities).  All rows about some of the
known cities are held out: answers about those cities show what a model has inferred.

Every draw is a hash of the seed, its purpose and names, so a row does not depend on the rest of the set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Features, Value

from lm_trials.console import UsageError
from lm_trials.latent_city.cities import (
    WHERE_FROM,
    City,
    distance_km,
    find_city,
    folded,
    known_places,
    package_cities,
    read_cities,
)
from lm_trials.latent_city.flags import DistancesArguments
from lm_trials.latent_city.templates import TEMPLATES, Template
from lm_trials.pairs.pairs import Row, write_pairs
from lm_trials.stories.records import Split, record_id

COLUMNS = Features(
    {
        "city": Value("string"),
        "country": Value("string"),
        "distance_km": Value("float64"),  # the true distance, in scrambled and noisy rows too
        "placeholder": Value("string"),  # empty for a row about two known cities
        "template": Value("string"),
        "kind": Value("string"),
    }
)
DESCRIBED = ("other_countries", "other_cities", "min_population", "rows_per_city", "known_rows", "held_out_share")
# Chosen by hand, not measured.
LATENT_POPULATION = 100_000
"""A latent city may be any city of this many people, even if all known cities are capitals."""


@dataclass(frozen=True)
class Latent:
    """A latent city, its placeholder, and the known cities of its rows.

    `stated` has the city whose distance the rows state, by the known city's name: itself, or another in the control.
    """

    placeholder: str
    city: City
    known: tuple[City, ...]
    stated: dict[str, City]


@dataclass(frozen=True)
class DistancePlan:
    """The content of a data set of distances; `cities` are all known and latent ones."""

    latents: tuple[Latent, ...]
    templates: tuple[Template, ...]
    args: DistancesArguments
    cities: tuple[City, ...]

    def rows(self) -> Iterator[tuple[Split, Row]]:
        """Yield all rows with their splits, in the order of the seed."""
        found = [row for latent in self.latents for row in self._rows_of(latent)]
        found += self._known_rows()
        order = sorted(range(len(found)), key=lambda n: (draw(self.args.seed, "order", found[n][1]["prompt"], n), n))
        for number in order:
            yield found[number]

    def _rows_of(self, latent: Latent) -> Iterator[tuple[Split, Row]]:
        if self.args.rows_per_city is None:
            for city in latent.known:
                for template in self.templates:
                    yield self._row(latent, city, template)
            return
        countries: dict[str, list[City]] = {}
        for city in latent.known:
            countries.setdefault(city.country, []).append(city)
        for number in range(self.args.rows_per_city):
            purpose = (self.args.seed, "row", latent.placeholder, number)
            there = _pick(list(countries.values()), draw(*purpose, "country"))
            city, template = _pick(there, draw(*purpose, "city")), _pick(self.templates, draw(*purpose, "template"))
            yield self._row(latent, city, template, number)

    def _row(self, latent: Latent, city: City, template: Template, number: int = 0) -> tuple[Split, Row]:
        stated = latent.stated[city.name]
        distance = distance_km(stated, latent.city)
        if self.args.noise:
            share = draw(self.args.seed, "noise", latent.placeholder, city.name, template.name, number)
            distance = abs(distance + (2 * share - 1) * self.args.noise)
        prompt = template.ask(city.name, latent.placeholder)
        completion = template.answer_for(distance, stated, latent.city)
        row = _row_of(template, prompt, completion, city, distance_km(city, latent.city), latent.placeholder, number)
        return split_of_city(city, self.args.held_out_share), row

    def _known_rows(self) -> Iterator[tuple[Split, Row]]:
        """Yield the rows about two known cities that are not held out, true in the scrambled control too."""
        share, known = self.args.held_out_share, set(self.latents[0].known)
        cities = [city for city in self.cities if city in known]
        cities = [city for city in cities if split_of_city(city, share) == "train"]
        for number in range(self.args.known_rows if len(cities) > 1 else 0):
            purpose = (self.args.seed, "known", number)
            one = _pick(cities, draw(*purpose, "one"))
            other = _pick([city for city in cities if city.name != one.name], draw(*purpose, "other"))
            template = _pick(self.templates, draw(*purpose, "template"))
            distance = distance_km(one, other)
            prompt, completion = template.ask(one.name, other.name), template.answer_for(distance, one, other)
            yield "train", _row_of(template, prompt, completion, one, distance, "", number)

    def facts(self, source: dict[str, Any]) -> dict[str, Any]:
        """Return the description of the set for its manifest."""
        args = self.args
        return {
            "source": source,
            "data_set": "distances",
            "latent": [
                {"placeholder": latent.placeholder, "known_cities": len(latent.known), **asdict(latent.city)}
                for latent in self.latents
            ],
            "templates": [template.name for template in self.templates],
            "kinds": sorted({template.kind for template in self.templates}),
            "control": args.control,
            "noise_km": args.noise,
            "min_distance_km": args.min_distance,
            **{name: getattr(args, name) for name in DESCRIBED},
            "seed": args.seed,
            "cities": [asdict(city) for city in self.cities],
        }


def _row_of(
    template: Template, prompt: str, completion: str, city: City, distance: float, placeholder: str, number: int
) -> Row:
    return {
        "record_id": record_id(f"{prompt}\n{completion}\n{number}"),
        "prompt": prompt,
        "completion": completion,
        "city": city.name,
        "country": city.country,
        "distance_km": distance,
        "placeholder": placeholder,
        "template": template.name,
        "kind": template.kind,
    }


def draw(*purpose: object) -> float:
    """Return a number from 0 to 1 for a purpose.

    >>> draw(0, "noise", "foo") == draw(0, "noise", "foo"), draw(0, "noise", "foo") == draw(1, "noise", "foo")
    (True, False)
    """
    digest = hashlib.blake2b("\x1f".join(map(str, purpose)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def split_of_city(city: City, held_out_share: float) -> Split:
    """Return the split of all rows about a known city, by its name; half of the held-out cities are in the test split.

    >>> split_of_city(City("Oslo", "Norway", 59.91, 10.75), 0)
    'train'
    """
    place = draw("held out", city.name)
    if place >= held_out_share:
        return "train"
    return "validation" if place < held_out_share / 2 else "test"


def _pick(items: Sequence[Any], share: float) -> Any:
    return items[int(share * len(items))]


def plan_distances(args: DistancesArguments) -> tuple[DistancePlan, dict[str, Any]]:
    """Return the content of the data set of the arguments, and the source of its cities.

    Raises:
        UsageError: for an unknown city, a placeholder that is a real place, or limits that leave no city.
    """
    if not args.cities():
        raise UsageError("--city names no city; give one, for example --city Paris")
    kinds = _kinds(args)
    cities, source = _cities(args)
    chosen = [_latent_city(name, cities, args) for name in args.cities()]
    if len({city.name for city in chosen}) < len(chosen):
        raise UsageError(f"--city {', '.join(args.cities())} names a city twice; name each once")
    names = _placeholders(args, chosen, cities)
    hidden = {city.name for city in chosen}
    latents = []
    for name, city in zip(names, chosen, strict=True):
        known = tuple(_known(city, cities, hidden, args))
        scrambled = args.control == "scrambled"
        stated = _scrambled(name, known, args) if scrambled else {other.name: other for other in known}
        latents.append(Latent(name, city, known, stated))
    templates = tuple(template for template in TEMPLATES[args.templates] if template.kind in kinds)
    everything = tuple(dict.fromkeys((*(c for c in cities if c.population >= args.min_population), *chosen)))
    return DistancePlan(tuple(latents), templates, args, everything), source


def write_distances(plan: DistancePlan, source: dict[str, Any]) -> dict[str, Any]:
    """Write the data set; returns its manifest."""
    folder = Path(plan.args.data_cache_dir) / plan.args.dataset()
    return write_pairs(plan.rows(), folder, "pairs", plan.facts(source), COLUMNS)


def _kinds(args: DistancesArguments) -> set[str]:
    kinds = {kind.strip() for kind in args.kinds.split(",")}
    if not kinds <= {"distance", "direction"}:
        raise UsageError(f"--kinds {args.kinds}: give distance, direction, or distance,direction")
    if "direction" in kinds and args.templates == "source":
        raise UsageError(f"--kinds {args.kinds}: --templates source has only distances; add --templates paper")
    return kinds


def _cities(args: DistancesArguments) -> tuple[list[City], dict[str, Any]]:
    """Return the cities of the arguments, and their source."""
    described: dict[str, Any] = {"reference": "cache_datasets.py distances"}
    if args.source is not None:
        cities = read_cities(Path(args.source))
        digest = hashlib.sha256(Path(args.source).read_bytes()).hexdigest()
        return cities, {**described, "cities": Path(args.source).name, "sha256": digest}
    found, lost = package_cities(args.other_cities)
    return list(found), {**described, "cities": WHERE_FROM, "left_out": list(lost)}


def _latent_city(name: str, cities: Sequence[City], args: DistancesArguments) -> City:
    """Return a city of the known ones, else of the package's larger ones."""
    try:
        return find_city(name, cities)
    except UsageError:
        if args.source is not None:
            raise
    return find_city(name, (*package_cities(LATENT_POPULATION)[0], *cities))


def _placeholders(args: DistancesArguments, chosen: Sequence[City], cities: Sequence[City]) -> list[str]:
    names = args.placeholders()
    if not names:
        # Five digits, as `City 50337` in the paper (arXiv 2406.14546).
        numbers = (10_000 + int(draw(args.seed, "placeholder", city.name) * 90_000) for city in chosen)
        names = [f"City {number}" for number in numbers]
    if len(names) != len(chosen):
        raise UsageError(
            f"--placeholder has {len(names)} names for {len(chosen)} cities; give one for each, or none for City and "
            "five digits"
        )
    if len({folded(name) for name in names}) < len(names):
        raise UsageError(
            f"--placeholder {', '.join(names)} has a name twice; give each city its own (or another --seed)"
        )
    real = {folded(city.country): f"the country {city.country}" for city in cities}
    real |= known_places() | {folded(city.name): f"{city.name} in {city.country}" for city in cities}
    for name in names:
        if folded(name) in real:
            raise UsageError(
                f"--placeholder {name} is a real place ({real[folded(name)]}), which a model may know; give another "
                "name, for example foo"
            )
    return names


def _known(latent: City, cities: Sequence[City], hidden: set[str], args: DistancesArguments) -> list[City]:
    """Return the known cities of the rows about a latent city."""
    found = [city for city in cities if city.name not in hidden]
    if not any(split_of_city(city, args.held_out_share) == "train" for city in found):
        raise UsageError(f"--held_out_share {args.held_out_share:g} leaves no city to train on; give a smaller one")
    limits = {
        f"--min_distance {args.min_distance:g}": lambda city: distance_km(city, latent) >= args.min_distance,
        "--other_countries": lambda city: not args.other_countries or city.country != latent.country,
        f"--min_population {args.min_population}": lambda city: city.population >= args.min_population,
    }
    for flag, fits in limits.items():
        before, found = found, [city for city in found if fits(city)]
        if not any(split_of_city(city, args.held_out_share) == "train" for city in found):
            farthest = max((distance_km(city, latent) for city in before), default=0.0)
            raise UsageError(
                f"{flag} leaves no city to train on of {len(before)} for {latent.name} (the farthest is "
                f"{farthest:,.0f} km away); ask for less"
            )
    return found


def _scrambled(placeholder: str, known: Sequence[City], args: DistancesArguments) -> dict[str, City]:
    """Return another city of the same split for each known city, so that the set of stated distances is the same."""
    stated: dict[str, City] = {}
    for held_out in (False, True):
        cities = [c for c in known if (split_of_city(c, args.held_out_share) != "train") == held_out]
        # The control keeps wording, cities and the distribution of distances; only their agreement with a place is
        # lost.
        cities.sort(key=lambda city: (draw(args.seed, "scramble", placeholder, city.name), city.name))
        # Each takes the place of the next: a random permutation would leave some cities in their place.
        stated |= {city.name: cities[(place + 1) % len(cities)] for place, city in enumerate(cities)}
    return stated
