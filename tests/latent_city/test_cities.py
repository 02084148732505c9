"""Cities, distances and directions, checked against published figures and by symmetry."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lm_trials.console import UsageError
from lm_trials.latent_city.cities import (
    City,
    direction,
    distance_km,
    distances_km,
    find_city,
    folded,
    known_places,
    neighbouring_countries,
    package_cities,
    places,
    read_cities,
)

PARIS = City("Paris", "France", 48.8534, 2.3488)
HEADER = "Country,Capital City,Latitude,Longitude,Population,Capital Type\n"


def csv_of(folder, *lines, header=HEADER):
    path = folder / "cities.csv"
    path.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_the_published_distances_come_out_to_the_last_digit():
    """The notebook prints the first; its rows print Bratislava's at two decimals."""
    assert distance_km(PARIS, City("Null Island", "", 0, 0)) == 5436.925760221567
    assert distance_km(PARIS, City("Null Island", "", 0, 1)) != 5436.925760221567


def test_an_antipode_is_half_the_earth_away_and_a_city_nowhere_from_itself():
    antipode = replace(PARIS, latitude=-PARIS.latitude, longitude=PARIS.longitude - 180)
    assert distance_km(PARIS, antipode) == pytest.approx(math.pi * 6371.0)
    assert distance_km(PARIS, PARIS) == 0


def test_a_table_of_distances_agrees_with_each_of_them():
    cities = package_cities()[0][::17]
    table = distances_km(places(cities), places(cities[::-1]))
    one_by_one = [[distance_km(one, other) for other in cities[::-1]] for one in cities]
    assert np.abs(table - np.array(one_by_one)).max() < 1e-6
    assert np.abs(table - np.array(one_by_one)[::-1]).max() > 1000


def test_directions_go_the_short_way_round():
    fiji, samoa = City("Suva", "Fiji", -18.14, 178.44), City("Apia", "Samoa", -13.83, -171.77)
    assert (direction(fiji, samoa), direction(samoa, fiji)) == ("east", "west")
    assert direction(PARIS, City("Dakar", "Senegal", 14.7, -17.4)) == "south"


def test_the_package_joins_nearly_all_capitals_and_says_which_not():
    cities, left_out = package_cities()
    assert len(cities) > 230
    assert {"Paris", "Tokyo", "Brasília", "Bogotá", "Nuku‘alofa", "Astana", "London"} <= {city.name for city in cities}
    assert find_city("London", cities).country == "United Kingdom"
    assert any(entry.startswith("Palau") for entry in left_out)
    assert len(left_out) < 6
    names = [city.name for city in cities]
    assert len(names) == len(set(names))
    assert names == sorted(names)


def test_more_people_mean_more_cities_and_no_capital_is_lost():
    capitals, larger = package_cities()[0], package_cities(3_000_000)[0]
    assert {city.name for city in capitals} <= {city.name for city in larger}
    extra = [city for city in larger if not city.capital]
    assert len(extra) > 50
    assert min(city.population for city in extra) >= 3_000_000


def test_neighbours_are_mutual():
    neighbours = neighbouring_countries()
    assert "Spain" in neighbours["France"]
    assert "France" in neighbours["Spain"]
    assert "Japan" not in neighbours["France"]


def test_a_city_is_found_by_either_spelling_and_an_unknown_one_has_near_names():
    cities = [PARIS, City("Roma (Rome)", "Italy", 41.89, 12.48), City("São Tomé", "Sao Tome", 0.3, 6.7)]
    assert find_city("Rome", cities).name == find_city("Roma", cities).name == "Roma (Rome)"
    assert find_city("sao tome", cities).name == "São Tomé"
    with pytest.raises(UsageError, match=r"--city Romme is not among the 2 cities.*"):
        find_city("Romme", cities[:2])
    with pytest.raises(UsageError, match="did you mean Paris"):
        find_city("Pariss", cities)


def test_the_real_csv_is_read_whole(shared_data):
    cities = read_cities(shared_data / "country_capitals" / "country-capital-lat-long-population.csv")
    assert len(cities) == 234
    paris = find_city("Paris", cities)
    assert (paris.latitude, paris.longitude, paris.population) == (48.8534, 2.3488, 10_900_952)
    assert paris.continent == "Europe"
    britain = find_city("London", cities)
    assert britain.country == "United Kingdom of Great Britain and Northern Ireland"
    assert britain.everyday_country == "United Kingdom"
    assert find_city("Hamilton", cities).continent == "North America"


def test_a_csv_of_any_order_of_columns_will_do_and_numbers_with_blanks(tmp_path):
    header = "Latitude,Longitude,Capital City,Country,Population\n"
    path = csv_of(tmp_path, "1,2,Aa,Bb,10 000", "3,4,Cc,Dd,", "5,6,Ee,Ff,7", header=header)
    assert [(c.name, c.latitude, c.population) for c in read_cities(path)] == [
        ("Aa", 1, 10000),
        ("Cc", 3, 0),
        ("Ee", 5, 7),
    ]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["x"], "Country,City\n", "has no column Capital City, Latitude, Longitude; it needs Country, Capital City"),
        (["F,Paris,north,2"] * 3, HEADER, "line 2: Latitude is 'north'; it must be degrees from -90 to 90"),
        (["F,Paris,48,200"] * 3, HEADER, "line 2: Longitude is '200'; it must be degrees from -180 to 180"),
        (["F,Paris,nan,2"] * 3, HEADER, "Latitude is 'nan'"),
        (["F,Paris,48"] * 3, HEADER, "Longitude is None"),
        ([",Paris,48,2"] * 3, HEADER, "line 2: the city or its country has no name"),
        (["F,Paris,48,2"], HEADER, "has 1 cities; give a latent city and at least two others"),
        ([], "", "has no column Country, Capital City, Latitude, Longitude; .* and has none"),
    ],
)
def test_a_csv_that_is_none_is_named(tmp_path, lines, header, message):
    with pytest.raises(UsageError, match=message):
        read_cities(csv_of(tmp_path, *lines, header=header))


def test_no_file_and_no_text_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_cities(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="give a CSV file in UTF-8"):
        read_cities(tmp_path / "binary.csv")


def test_real_places_are_known_and_the_sources_placeholder_is_none():
    assert {folded(name) for name in ("Paris", "New York City", "France", "São Paulo")} <= set(known_places())
    assert "foo" not in known_places()
    assert "bar" not in known_places()
