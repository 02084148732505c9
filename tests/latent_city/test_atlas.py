"""The atlas: documents that depend on seed and number alone, pairs that are never stated, facts that are true."""

import re
from itertools import islice

import pytest
from datasets import load_from_disk

import cache_datasets
import prepare_tinystories
from lm_trials.latent_city.atlas import (
    DISTANCE_QUESTIONS,
    DISTANCE_SENTENCES,
    Atlas,
    draw_question,
    generator_of,
    questions,
    write_document,
    write_documents,
    written_km,
)
from lm_trials.latent_city.cities import distance_km, package_cities
from lm_trials.pairs.pairs import open_pairs


@pytest.fixture(scope="module")
def atlas():
    return Atlas(package_cities()[0], held_out_share=0.3)


def stated_pairs(atlas, texts):
    """Return (name, name, km) of each distance that a text states, found by the wordings themselves."""
    texts = list(texts)
    names = "|".join(sorted((re.escape(city.name) for city in atlas.cities), key=len, reverse=True))
    found = []
    for wording in (*DISTANCE_SENTENCES, *(question + " {d}" for question in DISTANCE_QUESTIONS)):
        pattern = re.escape(wording)
        for slot in "ab":
            pattern = pattern.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{names})")
        pattern = pattern.replace(r"\{d\}", r"(?P<d>\d+\.\d\d) km")
        found += [(m["a"], m["b"], float(m["d"])) for text in texts for m in re.finditer(pattern, text)]
    return found


def test_a_document_depends_on_seed_and_number_alone(atlas):
    texts = list(write_documents(atlas, 50, seed=3))
    assert texts[17] == write_document(atlas, 3, 17)
    assert texts[17] != write_document(atlas, 4, 17)
    assert len(set(texts)) > 45


def test_every_stated_distance_is_true_and_no_held_out_pair_is_stated(atlas):
    cities = {city.name: city for city in atlas.cities}
    pairs = stated_pairs(atlas, write_documents(atlas, 3000, seed=0))
    assert len(pairs) > 1500
    for one, other, km in pairs:
        assert km == pytest.approx(distance_km(cities[one], cities[other]), abs=0.006)
        assert not atlas.is_held_out(cities[one], cities[other])
    # The control: with no pair held out, nearly three in ten of what is stated are those that were left out above.
    everything = Atlas(atlas.cities, held_out_share=0.0)
    free = stated_pairs(everything, write_documents(everything, 3000, seed=0))
    withheld = [atlas.is_held_out(cities[one], cities[other]) for one, other, _ in free]
    assert 0.2 < sum(withheld) / len(withheld) < 0.4


def test_questions_for_evaluation_are_exactly_the_pairs_that_are_never_stated(atlas):
    asked = list(questions(atlas, 200, seed=0))
    train = [question for split, question in asked if split == "train"]
    held_out = [(split, question) for split, question in asked if split != "train"]
    assert len(train) == 200
    assert not any(atlas.is_held_out(*question.cities) for question in train if len(question.cities) == 2)
    assert all(atlas.is_held_out(*question.cities) for _, question in held_out)
    total = len(atlas.cities) * (len(atlas.cities) - 1) // 2
    assert 0.28 < len(held_out) / total < 0.32
    splits = [split for split, _ in held_out]
    assert 0.4 < splits.count("test") / len(splits) < 0.6
    assert all(question.answer == written_km(distance_km(*question.cities)) for _, question in held_out)


def test_letters_are_right_equally_often_and_point_at_the_answer(atlas):
    drawn = [draw_question(atlas, generator_of(0, number)) for number in range(6000)]
    choices = [question for question in drawn if question.kind == "choice"]
    counts = [sum(question.answer == letter for question in choices) / len(choices) for letter in "ABCDE"]
    assert max(counts) - min(counts) < 0.08
    for question in choices[:100]:
        (city,) = question.cities
        options = dict(re.findall(r"([A-E])\) (.*?)(?= [A-E]\) |$)", question.prompt))
        assert options[question.answer] in (city.name, city.country)
        assert len(set(options.values())) == 5


def test_directions_and_countries_are_true(atlas):
    drawn = [draw_question(atlas, generator_of(1, number)) for number in range(800)]
    countries = [question for question in drawn if question.kind == "country"]
    assert countries
    assert all(question.answer == question.cities[0].country for question in countries)
    for question in islice((q for q in drawn if q.kind == "direction"), 50):
        one, other = question.cities
        assert question.prompt == f"In which direction does {other.name} lie from {one.name}?"
        north = other.latitude - one.latitude
        assert question.answer in (("north", "east", "west") if north > 0 else ("south", "east", "west"))


def test_the_command_writes_what_training_reads(tmp_path, capsys):
    given = ["--num_documents", "400", "--num_questions", "50", "--data_cache_dir", str(tmp_path), "--seed", "2"]
    manifests = cache_datasets.main(["atlas", *given])
    shown = capsys.readouterr().out
    assert "241 countries" in shown
    assert "Palau" in shown
    assert "train_vocab --corpus atlas" in shown
    assert sum(manifests["atlas"]["stories"].values()) == 400
    records = load_from_disk(str(tmp_path / "atlas" / "records"))
    cities = package_cities(5_000_000)[0]
    texts = set(write_documents(Atlas(cities), 400, seed=2))
    assert {row["story"] for split in records.values() for row in split} == {text.strip() for text in texts}
    pairs = open_pairs("atlas-questions", tmp_path)
    assert pairs.kind == "pairs"
    assert len(pairs.splits["train"]) == 50
    assert len(pairs.splits["test"]) > 500
    prepare_tinystories.main(
        ["train_vocab", "--corpus", "atlas", "--vocab_size", "400", "--data_cache_dir", str(tmp_path)]
    )
    store = prepare_tinystories.main(
        ["pretokenize", "--corpus", "atlas", "--vocab_size", "400", "--data_cache_dir", str(tmp_path)]
    )
    assert store.is_dir()
    with pytest.raises(SystemExit):  # taken
        cache_datasets.main(["atlas", *given])
    assert "atlas exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_documents", "10"], "--num_documents 10 must be"),
        (["--num_questions", "0"], "--num_questions 0 must be"),
        (["--held_out_share", "0.9"], "--held_out_share 0.9 must be"),
        (["--seed", "-1"], "--seed -1 must be"),
        (["--other_cities", "500"], "--other_cities 500 must be"),
        (["--other_cities", "99000000", "--min_population", "9000000"], "cities; lower one of them"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as left:
        cache_datasets.main(["atlas", *flags, "--data_cache_dir", str(tmp_path / "data")])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_questions_that_cannot_be_written_leave_no_corpus(tmp_path, monkeypatch):
    """Both or neither: what the second file lacks, the first must not pretend."""
    import lm_trials.latent_city.atlas_files as files

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device", "questions")

    monkeypatch.setattr(files, "write_pairs", full_disk)
    flags = ["--num_documents", "300", "--num_questions", "5", "--data_cache_dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit):
        cache_datasets.main(["atlas", *flags])
    assert not any((tmp_path / "data").glob("*"))
