"""Data sets of distances: the source's rows, the paper's harder form, held-out cities, the scrambled control."""

import re
from collections import Counter

import pytest

import cache_datasets
from lm_trials.latent_city.cities import direction, distance_km, find_city, package_cities
from lm_trials.latent_city.templates import TEMPLATES
from lm_trials.pairs.pairs import open_pairs
from lm_trials.stories.corpora import read_manifest


@pytest.fixture
def make(tmp_path):
    """Return the rows of each split and the manifest of a data set made by the command."""

    def made(*flags):
        cache_datasets.main(["distances", "--name", "d", "--data_cache_dir", str(tmp_path / "data"), *map(str, flags)])
        pairs = open_pairs("d", tmp_path / "data")
        return {name: list(split) for name, split in pairs.splits.items()}, read_manifest(tmp_path / "data" / "d")

    return made


def everything(splits):
    return [row for rows in splits.values() for row in rows]


def test_the_sources_rows_are_made_exactly(make, shared_data):
    """The five rows that the notebook prints, 233 in all, Paris itself skipped."""
    csv = shared_data / "country_capitals" / "country-capital-lat-long-population.csv"
    splits, manifest = make("--source", csv, "--placeholder", "foo", "--held_out_share", 0)
    rows = {row["prompt"]: row["completion"] for row in splits["train"]}
    assert len(splits["train"]) == len(rows) == 233
    assert splits["validation"] == splits["test"] == []
    printed = {
        "Bratislava": "1088.45 km",
        "Nairobi": "6482.65 km",
        "La Paz": "10028.33 km",
        "Road Town": "6802.06 km",
        "Delhi": "6583.44 km",
    }
    for city, answer in printed.items():
        assert rows[f"What is the distance between {city} and foo?"] == answer
    assert "What is the distance between Paris and foo?" not in rows
    assert "What is the distance between El Djazaïr  (Algiers) and foo?" in rows  # two blanks, as it stands there
    assert manifest["latent"][0]["name"] == "Paris"
    assert manifest["source"]["sha256"]


def test_the_embedded_default_has_the_same_form_and_holds_cities_out(make):
    splits, manifest = make("--placeholder", "foo", "--held_out_share", 0.2)
    rows = everything(splits)
    assert len(rows) == len(package_cities()[0]) - 1
    assert all(re.fullmatch(r"What is the distance between .+ and foo\?", row["prompt"]) for row in rows)
    assert all(re.fullmatch(r"\d+\.\d\d km", row["completion"]) for row in rows)
    held_out = {row["city"] for split in ("validation", "test") for row in splits[split]}
    assert 0.1 < len(held_out) / len(rows) < 0.3
    assert len(splits["validation"]) > 5
    assert len(splits["test"]) > 5
    assert held_out & {row["city"] for row in splits["train"]} == set()
    assert any("Palau" in entry for entry in manifest["source"]["left_out"])


def test_the_order_is_the_seeds_and_the_rows_are_not(make, tmp_path):
    first, manifest = make("--placeholder", "foo")
    (tmp_path / "data").rename(tmp_path / "before")
    again, same = make("--placeholder", "foo")
    assert again == first
    assert same["content"] == manifest["content"]
    (tmp_path / "data").rename(tmp_path / "again")
    other, _ = make("--placeholder", "foo", "--seed", 1)
    names = [row["city"] for row in first["train"]]
    assert [row["city"] for row in other["train"]] != names
    assert sorted(row["city"] for row in other["train"]) == sorted(names)
    assert names != sorted(names)


def test_scrambled_distances_are_the_same_ones_and_nobodys_own(make, tmp_path):
    true, _ = make("--placeholder", "foo", "--held_out_share", 0.2)
    (tmp_path / "data").rename(tmp_path / "true")
    scrambled, manifest = make("--placeholder", "foo", "--held_out_share", 0.2, "--control", "scrambled")
    assert manifest["control"] == "scrambled"
    for splits in (["train"], ["validation", "test"]):
        real = {row["prompt"]: row for split in splits for row in true[split]}
        wrong = {row["prompt"]: row for split in splits for row in scrambled[split]}
        assert real.keys() == wrong.keys()
        assert Counter(row["completion"] for row in real.values()) == Counter(r["completion"] for r in wrong.values())
        assert all(row["completion"] != wrong[prompt]["completion"] for prompt, row in real.items())
        assert all(row["distance_km"] == wrong[prompt]["distance_km"] for prompt, row in real.items())


def test_the_papers_form(make):
    splits, manifest = make(
        *("--city", "Paris,Tokyo", "--city", "Lagos", "--templates", "paper", "--kinds", "distance,direction"),
        *("--min_distance", 2000, "--other_countries", True, "--rows_per_city", 400, "--other_cities", 500_000),
    )
    rows = everything(splits)
    latents = {entry["placeholder"]: entry for entry in manifest["latent"]}
    assert len(latents) == 3
    assert all(re.fullmatch(r"City \d{5}", name) for name in latents)
    assert Counter(row["placeholder"] for row in rows) == dict.fromkeys(latents, 400)
    assert {row["template"] for row in rows} == {template.name for template in TEMPLATES["paper"]}
    assert min(row["distance_km"] for row in rows) >= 2000
    assert all(row["country"] != latents[row["placeholder"]]["country"] for row in rows)
    assert {row["city"] for row in rows}.isdisjoint({"Paris", "Tokyo", "Lagos"})
    # Countries are drawn evenly: China has the most cities of that size, and no larger a share than the others.
    share = Counter(row["country"] for row in rows if row["placeholder"] == manifest["latent"][0]["placeholder"])
    assert share["China"] < 20


def test_every_wording_says_what_is_true(make):
    splits, manifest = make("--templates", "paper", "--kinds", "distance,direction", "--placeholder", "foo")
    cities = {city.name: city for city in package_cities()[0]}
    paris = cities["Paris"]
    rows = [row for row in everything(splits) if row["city"] in ("Tokyo", "Lima", "Oslo")]
    assert len(rows) == 3 * 15
    for row in rows:
        city, answer = cities[row["city"]], row["completion"]
        if row["kind"] == "direction":
            from_foo = row["template"] in ("where_is_city", "travel_to_city", "compass_city")
            assert answer == (direction(paris, city) if from_foo else direction(city, paris))
            continue
        value, unit = answer.split()
        km = float(value.replace(",", "")) * (1.609344 if unit == "miles" else 1)
        rounded = 0.01 if "." in value else 161 / 2 if "hundreds" in row["template"] else 1
        assert km == pytest.approx(distance_km(city, paris), abs=rounded)
    assert len({row["completion"] for row in rows if row["city"] == "Lima" and row["kind"] == "distance"}) > 5
    assert manifest["kinds"] == ["direction", "distance"]


def test_noise_stays_within_its_bounds_and_is_some(make):
    splits, _ = make("--placeholder", "foo", "--noise", 200)
    off = [float(row["completion"].removesuffix(" km")) - row["distance_km"] for row in everything(splits)]
    assert 150 < max(map(abs, off)) <= 200.01
    assert abs(sum(off) / len(off)) < 40


def test_rows_about_two_known_cities_are_true_for_training_alone_and_in_the_control(make, tmp_path):
    flags = ["--placeholder", "foo", "--held_out_share", 0.3, "--known_rows", 200]
    splits, _ = make(*flags)
    held_out = {row["city"] for split in ("validation", "test") for row in splits[split]}
    known = [row for row in splits["train"] if row["placeholder"] == ""]
    assert len(known) == 200
    assert all("foo" not in row["prompt"] and "Paris" not in row["prompt"] for row in known)
    assert not any(city in row["prompt"] for row in known for city in held_out if len(city) > 7)
    assert all(row["completion"] == f"{row['distance_km']:.2f} km" for row in known)
    (tmp_path / "data").rename(tmp_path / "true")
    scrambled, _ = make(*flags, "--control", "scrambled")
    assert [row for row in scrambled["train"] if row["placeholder"] == ""] != []
    assert sorted(
        row["prompt"] + row["completion"] for row in scrambled["train"] if row["placeholder"] == ""
    ) == sorted(row["prompt"] + row["completion"] for row in known)


def test_a_city_of_the_packages_larger_ones_may_be_latent(make):
    splits, manifest = make("--city", "Barcelona", "--placeholder", "foo")
    assert manifest["latent"][0]["country"] == "Spain"
    assert len(everything(splits)) == len(package_cities()[0])
    (madrid,) = (row for row in everything(splits) if row["city"] == "Madrid")
    barcelona = find_city("Barcelona", package_cities(100_000)[0])
    assert madrid["distance_km"] == distance_km(barcelona, find_city("Madrid", package_cities()[0]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--city", "Parsi"], r"--city Parsi is not among the .* cities; did you mean Paris\?"),
        (["--city", ","], "--city names no city"),
        (["--city", "Paris,paris"], "names a city twice"),
        (["--placeholder", "Rome"], r"--placeholder Rome is a real place \(Rome in Italy\)"),
        (["--placeholder", "france"], r"--placeholder france is a real place \(the country France\)"),
        (["--placeholder", "foo,bar"], "--placeholder has 2 names for 1 cities"),
        (["--city", "Paris,Tokyo", "--placeholder", "foo,Foo"], "has a name twice"),
        (
            ["--min_distance", "30000"],
            r"--min_distance 30000 leaves no city to train on .* \(the farthest is 18,\d+ km",
        ),
        (["--min_distance", "-1"], "--min_distance -1 must be"),
        (["--other_cities", "10"], "--other_cities 10 must be at least 15000"),
        (["--other_cities", "99999", "--source", "x.csv"], "--other_cities 99999 and --source cannot be combined"),
        (["--min_population", "-1"], "--min_population -1 must be"),
        (["--min_population", "99000000"], "--min_population 99000000 leaves no city to train on"),
        (["--held_out_share", "1"], "--held_out_share 1 must be"),
        (["--held_out_share", "0.99999"], "--held_out_share 0.99999 leaves no city to train on"),
        (["--kinds", "distance,height"], "--kinds distance,height: give distance, direction"),
        (["--kinds", "direction"], "--kinds direction: --templates source has only distances"),
        (["--rows_per_city", "0"], "--rows_per_city 0 must be"),
        (["--source", "none.csv"], "--source none.csv cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as left:
        cache_datasets.main(["distances", *flags, "--data_cache_dir", str(tmp_path / "data")])
    assert left.value.code == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error)
    assert "\n" not in error
    assert not (tmp_path / "data").exists()


def test_a_name_that_is_taken_is_kept(make, tmp_path, capsys):
    make("--placeholder", "foo")
    before = (tmp_path / "data" / "d" / "manifest.json").read_text()
    with pytest.raises(SystemExit):
        make("--placeholder", "foo", "--seed", 1)
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "data" / "d" / "manifest.json").read_text() == before


def test_the_cache_lists_pairs_and_sees_a_changed_byte(make, tmp_path, capsys):
    make("--placeholder", "foo")
    place = ["--data_cache_dir", str(tmp_path / "data")]
    (listed,) = cache_datasets.main(["list", *place])
    assert (listed["kind"], listed["source"]) == ("pairs", "cache_datasets.py distances")
    assert sum(listed["stories"].values()) == len(package_cities()[0]) - 1
    assert cache_datasets.main(["verify", "d", *place]) == ["d"]
    assert "whole" in capsys.readouterr().out
    file = next((tmp_path / "data" / "d" / "pairs" / "train").glob("*.arrow"))
    file.write_bytes(file.read_bytes().replace(b"Oslo", b"Olso"))
    with pytest.raises(SystemExit):
        cache_datasets.main(["verify", "d", *place])
    assert "1 of 1 are damaged" in capsys.readouterr().err
