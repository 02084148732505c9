"""The diversity probe from the command line: planted differences are found, results repeat, mistakes are one line."""

import csv
import json
import random

import numpy as np
import pytest
from tiny_models import KINDS, TEXT, tiny_model, tiny_tokenizer

from lm_trials.reporting.figures import distance_figure
from probes import diversity

ANIMALS = ["cat", "dog", "fox", "mat", "fun", "sun", "lazy", "brown", "quick", "jumps"]
NUMBERS = [str(number) for number in range(10, 60)]


def write_texts(path, languages, count=24):
    """Texts of 30 words, each of one of the sub-languages in turn."""
    draws = random.Random(path.name)
    with path.open("w") as file:
        for number in range(count):
            words = draws.choices(languages[number % len(languages)], k=30)
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of each kind with its tokenizer, and texts of two sub-languages."""
    place = tmp_path_factory.mktemp("probe")
    tokenizer = tiny_tokenizer()
    for kind in KINDS:
        tiny_model(kind, vocab_size=330, seed=5).save_pretrained(place / kind)
        tokenizer.save_pretrained(place / kind)
    write_texts(place / "animals.jsonl", [ANIMALS])
    write_texts(place / "numbers.jsonl", [NUMBERS])
    return place


def flags(folder, out, *more, kind="llama", names=("animals", "numbers")):
    given = {
        "model_name_or_path": folder / kind,
        "num_batches": 4,
        "num_control_batches": 3,
        "batch_size": 4,
        "max_length": 24,
        "fisher_draws": 2,
        "finetune_steps": 2,
        "output_dir": out,
    }
    data = [word for name in names for word in ("--dataset_name", str(folder / f"{name}.jsonl"))]
    return [word for key, value in given.items() for word in (f"--{key}", str(value))] + data + list(more)


def table(rows, layers="all layers", noise="as drawn"):
    chosen = [row for row in rows if (row["layers"], row["noise"], row["probe"]) == (layers, noise, "as given")]
    return {row["data_set"]: row for row in chosen}


@pytest.fixture(scope="module")
def measured(folder):
    """One run whose rows and files several tests look at."""
    out = folder / "out"
    return diversity.main(flags(folder, out, "--data_mix", ".5,.5", "--fisher_draws", "4")), out


def test_two_sub_languages_are_farther_apart_than_one_from_itself(measured):
    found = table(measured[0])
    cross = found["animals × numbers"]
    for name in ("animals", "numbers"):
        assert cross["lower"] > found[name]["upper"]
        assert found[name]["n"] == 4
    assert cross["n"] == 8
    assert found["one token"]["estimate"] < found["animals"]["estimate"]


def test_batches_of_either_language_are_more_diverse_than_of_one(folder, tmp_path):
    """Batches of one text each, from a corpus of one sub-language and from one of two: the claim, planted."""
    write_texts(folder / "either.jsonl", [ANIMALS, NUMBERS])
    more = ["--batch_size", "1", "--num_batches", "16", "--num_control_batches", "0", "--fisher_draws", "8"]
    found = table(diversity.main(flags(folder, tmp_path, *more, names=("animals", "numbers", "either"))))
    for name in ("animals", "numbers"):
        assert found["either"]["lower"] > found[name]["estimate"]
        assert found["either"]["estimate"] > found[name]["upper"]


def test_the_noise_of_one_batch_again_goes_when_it_is_removed(measured):
    drawn, removed = table(measured[0]), table(measured[0], noise="removed")
    assert drawn["one batch again"]["lower"] > 0
    assert abs(removed["one batch again"]["estimate"]) < 0.5 * drawn["one batch again"]["estimate"]
    assert removed["animals × numbers"]["estimate"] > 0.5 * drawn["animals × numbers"]["estimate"]


def test_files_hold_what_was_returned(measured):
    rows, out = measured
    with (out / "diversity.csv").open() as file:
        written = list(csv.DictReader(file))
    # No interval (NaN) is an empty cell; of 4 batches the measures without a model have none.
    assert [{key: "" if value != value else str(value) for key, value in row.items()} for row in rows] == written
    assert {row["measure"] for row in written if not row["lower"]} == {
        "compression ratio", "distinct 1-grams", "distinct 2-grams", "distinct 3-grams"
    }  # fmt: skip
    assert {"estimate", "lower", "upper", "n", "unit"} <= set(written[0])
    report = json.loads((out / "diversity.json").read_text())
    assert [row["estimate"] for row in report["rows"]] == [row["estimate"] for row in rows]
    assert report["arguments"]["batch_size"] == 4
    about = report["groups"]["as given"]["animals"]
    assert about["predicted_tokens"] == 4 * 4 * 23
    assert about["nats_per_token_after_fitting"] < about["nats_per_token_before_fitting"]
    with (out / "distances.csv").open() as file:
        header, *lines = csv.reader(file)
    distances_NN = np.array([line[1:] for line in lines], dtype=float)
    assert header[1:] == [line[0] for line in lines]
    place = [number for number, name in enumerate(header[1:]) if name.startswith("numbers:")]
    pairs = distances_NN[np.ix_(place, place)][np.triu_indices(4, 1)]
    assert pairs.mean() == pytest.approx(table(rows)["numbers"]["estimate"])
    assert sorted(path.name for path in out.iterdir()) == [
        "distances.csv", "distances.png", "distances.svg", "diversity.csv", "diversity.json"
    ]  # fmt: skip


def test_the_picture_shows_data_sets_without_controls(monkeypatch, folder, tmp_path):
    shown = []
    monkeypatch.setattr(
        "lm_trials.reporting.figures.distance_figure", lambda *given: shown.append(given) or distance_figure(*given)
    )
    argv = flags(folder, tmp_path, "--num_batches", "3", "--batch_size", "2")
    diversity.main(argv)
    ((distances_NN, places, title),) = shown
    assert list(places) == ["animals", "numbers"]
    assert [(place.start, place.stop) for place in places.values()] == [(0, 3), (3, 6)]
    assert title.endswith("llama")
    with (tmp_path / "distances.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 + 9
    table_of = {row["batch"]: row for row in rows}
    assert distances_NN[1, 5] == float(table_of["animals:1"]["numbers:2"])
    assert distances_NN[1, 5] != float(table_of["animals:1"]["numbers:1"])


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_are_the_same_and_another_seed_is_not(folder, tmp_path, kind):
    argv = flags(folder, tmp_path, "--num_control_batches", "0", "--num_batches", "3", kind=kind, names=("animals",))
    first, again, other = (table(diversity.main(argv + more))["animals"] for more in ([], [], ["--seed", "1"]))
    assert first == again
    assert first["estimate"] != other["estimate"]
    assert 0 < first["estimate"] < 1


def test_what_else_is_measured_changes_nothing(folder, tmp_path, measured):
    rows = diversity.main(
        flags(folder, tmp_path, "--num_control_batches", "0", "--fisher_draws", "4", names=("animals",))
    )
    assert table(rows)["animals"] == table(measured[0])["animals"]


def test_text_only_needs_no_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = flags(folder, tmp_path / "texts", "--text_only")
    argv[argv.index("--model_name_or_path") + 1] = "no/such/model"
    rows = diversity.main(argv)
    assert {row["measure"] for row in rows} == {
        "compression ratio", "distinct 1-grams", "distinct 2-grams", "distinct 3-grams"
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["diversity.csv", "diversity.json"]
    found = {(row["measure"], row["data_set"]): row["estimate"] for row in rows}
    assert found["distinct 1-grams", "numbers"] > found["distinct 1-grams", "animals"]  # 50 words against 10


def test_random_weights_stand_beside_the_probe_and_results_beside_the_model(folder):
    argv = flags(
        folder, "-", "--random_weights", "--num_control_batches", "0", "--num_batches", "3", names=("animals",)
    )
    at = argv.index("--output_dir")
    rows = diversity.main(argv[:at] + argv[at + 2 :])
    given, control = (
        next(row for row in rows if row["probe"] == probe)["estimate"] for probe in ("as given", "random weights")
    )
    assert given != control
    out = folder / "llama" / "probes" / "diversity" / "animals"
    assert {"distances.png", "distances-random-weights.png", "diversity.json"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_batches", "2"], "--num_batches 2 must be"),
        (["--num_batches", "9"], "--num_batches 9 of --batch_size 4 need 36 texts, but animals has 24; lower one"),
        (["--fisher_draws", "3"], "--fisher_draws 3 must be even; give 2 or 4"),
        (["--num_control_batches", "2"], "--num_control_batches 2 must be"),
        (["--finetune_learning_rate", "-1"], "--finetune_learning_rate -1 must be"),
        (["--words_per_batch", "9999"], "--words_per_batch 9,999: batch "),
        (["--max_length", "65"], "--max_length 65 is longer than"),
        (["--data_mix", ".5,.6"], "--data_mix .5,.6 sums to 1.1"),
        (["--dataset_config_name", "a+b"], "--dataset_config_name a+b needs one --dataset_name, not 2"),
        (["--seed", "-1"], "--seed -1 must be"),
        (["--model_name_or_path", "gpt2"], "offline, use a local model, for example --model_name_or_path runs/demo"),
        (["--fisher_drawing", "dice"], "invalid choice: 'dice'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(folder, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as left:
        diversity.main(flags(folder, tmp_path / "out", *more))
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_another_model_s_tokenizer_and_a_blocked_place_are_refused(folder, tmp_path, capsys):
    small = tmp_path / "small"
    tiny_model("llama", vocab_size=64).save_pretrained(small)
    tiny_tokenizer().save_pretrained(small)
    (tmp_path / "file").write_text(TEXT)
    for argv, message in (
        (["--model_name_or_path", str(small)], "has 64 embeddings"),
        (["--output_dir", str(tmp_path / "file" / "out")], "Not a directory); give another folder"),
    ):
        with pytest.raises(SystemExit):
            diversity.main(flags(folder, tmp_path / "out", *argv))
        assert message in capsys.readouterr().err


def test_help_needs_no_torch(capsys):
    with pytest.raises(SystemExit) as left:
        diversity.main(["--help"])
    assert left.value.code == 0
    assert "--num_control_batches" in capsys.readouterr().out
