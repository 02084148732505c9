"""`probes/feature_probe.py` from its command line: models of all kinds, curves over training, and what it refuses."""

import json
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from probe_runs import refused_by, table
from small_models import with_lora
from tiny_models import KINDS, tiny_model

from lm_trials.models.reference import ModelReference
from lm_trials.probing.feature_probe import report as feature_probe_results
from lm_trials.probing.feature_probe.figures import heat_figure, layers_figure, steps_figure
from lm_trials.probing.feature_probe.fits import distinct_steps
from lm_trials.probing.tables import ProbeTable
from lm_trials.stories.corpora import open_records
from lm_trials.tokens.tokenizers import load_tokenizer
from probes import feature_probe

refused = partial(refused_by, feature_probe.main)

# PEFT 0.21 asks transformers 5.23 by a name that is to go, and says of GPT-2's layers that it does what is right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
FAST = ["--use_cpu", "--num_shuffles", "2", "--l2", "10", "--num_train_stories", "150", "--max_eval_samples", "40"]


@pytest.fixture(scope="module")
def stories(tiny_data, tmp_path_factory):
    """A file of 250 generated stories with their features, all of which fit 256 tokens of the 400-token vocabulary."""
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    records = [record for split in open_records(tiny_data / "tiny").values() for record in split]
    path.write_text(
        "".join(json.dumps({"story": r["story"], "features": r["features"]}) + "\n" for r in records[:250]),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def models(tiny_data, tmp_path_factory):
    """Folders of random models with the tokenizer of 400 tokens: by kind, another seed, an adapter, checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(tiny_data / "tok400")

    def save(name, kind, seed=0, positions=512):
        tiny_model(kind, vocab_size=len(tokenizer), positions=positions, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    for kind in KINDS:
        save(kind, kind)
    save("other", "llama", seed=1)
    save("short", "gpt2", positions=48)
    for step, seed in ((10, 3), (20, 4), (30, 5)):
        save(f"run/checkpoint-{step}", "llama", seed=seed)
    model = tiny_model("llama", vocab_size=len(tokenizer), positions=512)
    model.name_or_path = str(folder / "llama")
    with_lora(model, "q_proj", "v_proj").save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder


def run(stories, out, *models, flags=()):
    names = [word for model in models for word in ("--model_name_or_path", str(model))]
    return feature_probe.main([*names, "--dataset_name", str(stories), "--output_dir", str(out), *FAST, *flags])


@pytest.mark.slow
def test_two_kinds_of_models_side_by_side(stories, models, tmp_path, capsys):
    flags = ["--features", "twist", "Dialogue", "--layers", "0", "-1", "normed"]
    flags += ["--num_train_stories", "250", "--max_eval_samples", "60"]
    rows = run(stories, tmp_path / "a", models / "gpt2", models / "llama", flags=flags)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "feature_probe.csv", "feature_probe.json", "feature_probe-differences.csv",
        "feature_probe-last_10.png", "feature_probe-last_10.svg", "feature_probe-mean.png", "feature_probe-mean.svg",
    }  # fmt: skip
    written = table(tmp_path / "a" / "feature_probe.csv")
    assert len(written) == len(rows)
    assert {"model", "role", "estimate", "lower", "upper", "n", "unit", "seed"} <= set(written[0])
    findings = [row for row in rows if row["role"] == "finding"]
    places = {(row["pooling"], row["site"], row["layer"]) for row in findings}
    assert len(places) == 6
    assert ("mean", "normed", 2) in places
    assert ("last_10", "hidden", 0) in places
    assert len(findings) == 2 * 2 * 6 * 2  # models, features, places, metrics
    for row in rows:
        assert row["lower"] <= row["estimate"] <= row["upper"]
        assert row["n"] > 0
        assert row["unit"] == row["metric"]
    series = {row["series"] for row in rows if row["role"] == "control"}
    assert series == {
        "shuffled labels",
        "untrained",
        "untrained (as llama)",
        "text statistics",
        "bag of words",
        "majority",
    }
    for name in ("gpt2", "llama"):
        for feature in ("Twist", "Dialogue"):
            own = [r for r in findings if r["model"] == name and r["feature"] == feature and r["metric"] == r["unit"]]
            assert [r["chosen"] for r in own].count("all") == 2  # one place, two metrics
            assert [r["chosen"] for r in own].count("pooling") == 2
    # Quotation marks tell dialogue; the words tell a twist: a random model's states must not be told as a finding.
    best = {(r["series"], r["feature"]): r["estimate"] for r in rows if r["metric"] == "balanced accuracy"}
    assert best["text statistics", "Dialogue"] > 0.9
    assert best["bag of words", "Twist"] > 0.75
    differences = table(tmp_path / "a" / "feature_probe-differences.csv")
    kinds = {(row["kind"], row["against"]) for row in differences}
    assert {("control", "majority"), ("control", "untrained"), ("model", "gpt2")} <= kinds
    about = json.loads((tmp_path / "a" / "feature_probe.json").read_text())
    assert "worse than the strongest control" in about["finding"]
    assert "better than every control" not in about["finding"]
    test_stories = about["stories"]["test"]
    assert about["finding"].startswith(f"on {test_stories} held-out stories, from gpt2, ")
    # Each number of the control's sentence stands with its interval.
    for name in ("shuffled labels", "untrained, one draw of its weights,", "text statistics", "bag of words"):
        assert re.search(rf"{name} \d\.\d+ \[[^]]+\] \(\w+\) to \d\.\d+ \[[^]]+\] \(\w+\)", about["control"]), name
    assert about["stories"]["labels_from"] == "records"
    assert about["capture"]["llama"]["largest"] == 0
    told = capsys.readouterr()
    assert "changes no log-probability" in told.out
    assert "labels: the records' features" in told.err


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes_and_another_seed_others(stories, models, tmp_path):
    flags = ["--features", "Twist", "--layers", "1", "--pooling", "mean"]
    for name, more in (("a", []), ("b", ["--per_device_eval_batch_size", "3"]), ("c", ["--seed", "1"])):
        run(stories, tmp_path / name, models / "other", flags=[*flags, *more])
    first, same, other = (table(tmp_path / name / "feature_probe.csv") for name in "abc")
    said = [[row["estimate"] for row in rows] for rows in (first, same, other)]
    own, control = ([r["estimate"] for r in first if r["series"] == name] for name in ("other", "untrained"))
    assert len(own) == len(control) == 2
    assert own != control  # random weights are not the model's
    assert said[0] == said[1] != said[2]
    for path in sorted((tmp_path / "a").iterdir()):
        if path.suffix != ".json":  # it names its folder
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
            assert path.read_bytes() != (tmp_path / "c" / path.name).read_bytes()


def test_a_word_that_is_the_feature_is_found_in_the_embeddings_and_noise_is_not(models, tmp_path):
    """Planted: a word of its own in half of the stories; and a label drawn by a coin."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(500):
        twist, coin = generator.random(2) < 0.5
        words = generator.permutation(
            ["sun", "boy", "hat", "red", "cup", "big"] + (["dog"] * 3 if twist else ["cat"] * 3)
        )
        features = ["Twist"] * int(twist) + ["Conflict"] * int(coin)
        rows.append({"story": f"{' '.join(words)} {number}.", "features": features})
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(path, tmp_path / "a", models / "gpt2", flags=["--pooling", "mean", "--num_shuffles", "5"])
    best = {
        row["feature"]: row for row in found
        if row["role"] == "finding" and row["chosen"] == "all" and row["metric"] == "balanced accuracy"
    }  # fmt: skip
    assert set(best) == {"Twist", "Conflict"}  # the others have no story, and are left out
    assert best["Twist"]["estimate"] > 0.95
    assert best["Conflict"]["lower"] < 0.5 < best["Conflict"]["upper"]
    finding = json.loads((tmp_path / "a" / "feature_probe.json").read_text())["finding"]
    assert (
        " held-out stories, from gpt2, 1 of 2 features are decoded significantly above chance (Twist 1.000" in finding
    )
    assert "not significantly better than the strongest control" in finding


def test_before_the_marker_and_a_place_named_in_advance(models, tmp_path, capsys):
    """Planted: the twist, but not the conflict, is foretold by a word of the first sentence."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(600):
        twist, conflict = generator.random(2) < 0.5
        sentences = [f"A {'dog' if twist else 'cat'} dug {number} holes."]
        sentences += [f"The {word} sat." for word in generator.choice(["boy", "cup", "hat"], generator.integers(2, 5))]
        sentences += ["It turned out that he was a king."] * int(twist) + ["They had a fight."] * int(conflict)
        features = ["Twist"] * int(twist) + ["Conflict"] * int(conflict)
        lines.append({"story": " ".join(sentences), "features": features})
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    place = ["--layers", "normed", "--pooling", "mean", "--num_train_stories", "400", "--max_eval_samples", "200"]
    both = run(path, tmp_path, models / "gpt2", flags=[*place, "--read", "whole", "before_marker"])
    told = capsys.readouterr()
    assert re.search(r"before_marker, Twist: \d{3} training and \d{2,3} test stories", told.err)
    assert "Features decoded from gpt2 before the sentence that shows them" in told.out
    found = {}
    for read in ("whole", "before_marker"):
        for feature in ("Twist", "Conflict"):
            # What a trial registers: one place, hence one row.
            (found[read, feature],) = [
                row for row in both
                if row["role"] == "finding" and (row["read"], row["feature"]) == (read, feature)
                and row["metric"] == "balanced accuracy"
            ]  # fmt: skip
    assert found["whole", "Twist"]["estimate"] > 0.9
    assert found["whole", "Conflict"]["lower"] > 0.6
    assert found["before_marker", "Twist"]["estimate"] > 0.9
    assert found["before_marker", "Conflict"]["lower"] < 0.5 < found["before_marker", "Conflict"]["upper"]
    (length,) = [r for r in both if r["series"] == "length" and r["feature"] == "Twist" and r["metric"] != "accuracy"]
    assert length["lower"] < 0.5 < length["upper"]
    about = json.loads((tmp_path / "feature_probe.json").read_text())
    counts = about["before_marker"]["stories"]["Twist"]
    assert counts["test"] == found["before_marker", "Twist"]["n"] < about["stories"]["test"]
    assert " held-out stories cut at equal lengths, from gpt2, " in about["finding"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "feature_probe-mean.png", "feature_probe-before_marker-mean.png"}  # fmt: skip


@pytest.mark.parametrize("flags", [[], ["--load_in_8bit"]])
def test_an_adapter_is_read_on_its_base(flags, stories, models, tmp_path):
    rows = run(stories, tmp_path / "a", models / "llama", models / "adapter", flags=[
        "--features", "Twist", "--pooling", "mean", "--layers", "1", *flags])  # fmt: skip
    by_model = {row["model"]: row["estimate"] for row in rows if row["role"] == "finding"}
    assert set(by_model) == {"llama", "adapter"}
    differences = table(tmp_path / "a" / "feature_probe-differences.csv")
    assert {row["place"] for row in differences if row["kind"] == "model"} == {"chosen", "same"}
    # One untrained model for both, as they have one shape.
    assert {row["series"] for row in rows if row["series"].startswith("untrained")} == {"untrained"}


def test_the_curve_over_training(stories, models, tmp_path):
    shutil.copytree(models / "run", tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoint-30").iterdir():  # the final model, of the last update
        shutil.copy(file, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"outcome": {"max_steps": 30}, "replicate": {"seed": 5}}')
    rows = run(stories, tmp_path / "a", tmp_path / "run", flags=[
        "--all_checkpoints", "--features", "Dialogue", "--pooling", "mean"])  # fmt: skip
    findings = [row for row in rows if row["role"] == "finding" and row["metric"] == "balanced accuracy"]
    assert [row["step"] for row in findings if row["chosen"] == "all"][:3] == [10, 20, 30]
    assert {row["run"] for row in findings} == {"run"}
    assert {path.name for path in (tmp_path / "a").glob("*.png")} == {
        "feature_probe-mean.png", "feature_probe-steps.png", "feature_probe-checkpoints-mean.png"}  # fmt: skip
    figure = steps_figure(rows, "t")
    line = next(line for line in figure.axes[0].lines if line.get_label() == "run")
    assert line.get_xdata().tolist() == [10, 20, 30]
    assert line.get_ydata().tolist() == [row["estimate"] for row in findings if row["chosen"] == "all"][:3]
    heat = heat_figure(rows, "run", "mean", "t")
    cells = heat.axes[0].images[0].get_array()
    assert cells.shape == (4, 3)  # layers 0, 1, 2 and normed by checkpoints
    lowest = [row["estimate"] for row in findings if row["layer"] == 0][:3]
    assert cells[0].tolist() == lowest
    assert isinstance(layers_figure(rows, "mean", ["run/checkpoint-10"], "t"), Figure)
    finding = json.loads((tmp_path / "a" / "feature_probe.json").read_text())["finding"]
    assert "checkpoint-30 minus checkpoint-10" in finding
    assert "checkpoint-20" not in finding


def test_a_final_model_is_no_second_reading_of_its_last_checkpoint(capsys):
    def subject(path, step):
        reference = ModelReference(path)
        return SimpleNamespace(reference=reference, step=step if reference.step is None else reference.step)

    subjects = [subject(*of) for of in (("r/checkpoint-5", 0), ("r/checkpoint-9", 0), ("r", 9), ("s", None), ("t", 9))]
    assert distinct_steps(subjects) == [*subjects[:2], *subjects[3:]]
    later = [*subjects[:2], subject("r", 12)]
    assert distinct_steps(later) == later
    assert capsys.readouterr().err == ""
    assert distinct_steps([*subjects[:2], subject("r", None)]) == subjects[:2]
    assert "left out: r, as no run.json has its update" in capsys.readouterr().err


def test_what_is_read_better_than_from_every_control_is_told_so():
    """The sentence both ways, from rows in which one control or none comes near."""
    cells = {"estimate": 0.9, "lower": 0.85, "upper": 0.94, "n": 200, "unit": "balanced accuracy"}
    place = {"metric": "balanced accuracy", "chosen": "all", "feature": "Twist", "layer": 3, "pooling": "mean",
             "site": "hidden"}  # fmt: skip
    rows = [{**cells, **place, "series": "base"}, {**cells, **place, "series": "bag of words"},
            {**cells, **place, "series": "shuffled labels", "estimate": 0.49}]  # fmt: skip

    def told(lower, chance=0.3, upper=0.2):
        shared = {"series": "base", "feature": "Twist", "kind": "control", "estimate": 0.1, "upper": upper, "n": 200,
                  "unit": "", "place": "chosen"}  # fmt: skip
        differences = ProbeTable([{**shared, "against": "bag of words", "lower": lower}])
        differences += [{**shared, "against": name, "lower": chance} for name in ("majority", "shuffled labels")]
        return feature_probe_results._model_sentence("base", ProbeTable(rows), differences)

    assert "Twist is decoded significantly above chance: 0.900 [0.850, 0.940] (layer 3, mean)" in told(0.02)
    assert told(0.02).endswith("better than every control Twist by 0.100 [0.020, 0.200] over bag of words")
    assert told(-0.2, upper=-0.1).endswith(
        "worse than the strongest control (difference from bag of words 0.100 [-0.200, -0.100])"
    )
    assert told(-0.02).endswith(
        "not significantly better than the strongest control (difference from bag of words 0.100 [-0.020, 0.200])"
    )
    assert "Twist is not decoded" in told(-0.02, chance=-0.01)


def test_what_means_nothing_is_one_line(stories, models, tmp_path, capsys):
    base = ["--model_name_or_path", models / "llama", "--dataset_name", stories, "--output_dir", tmp_path / "x", *FAST]
    cases = {
        ("--layers", "9"): "--layers 9: ",
        ("--layers", "-4"): "has hidden states 0 to 2",
        ("--layers", "last"): "--layers last is not a layer",
        ("--layers", "1", "1"): "--layers 1 is given twice",
        ("--pooling", "max"): "--pooling max: valid: last_10, mean",
        ("--read", "after"): "--read after: valid: before_marker, whole",
        ("--read", "before_marker", "--long_stories", "cut"): "--long_stories cut: --read before_marker needs whole",
        ("--features", "Twist", "twist"): "--features Twist twist: a feature is given twice",
        ("--features", "Plot"): "unknown feature 'Plot'",
        ("--l2", "0"): "--l2 0 must be",
        ("--l2", "nan"): "--l2 nan must be",
        ("--num_shuffles", "1"): "--num_shuffles 1 must be",
        ("--num_train_stories", "1"): "--num_train_stories 1 must be",
        ("--num_train_stories", "60"): "no feature can be probed: Dialogue: ",
        ("--validation_split_percentage", "60"): "--validation_split_percentage 60 must be",
        ("--dataset_split", "train"): "--dataset_split train: the probes are fitted on train",
        ("--all_checkpoints",): "holds no checkpoint-N folder",
        ("--max_eval_samples", "0"): "--max_eval_samples 0 must be",
        ("--seed", "-1"): "--seed -1 must be",
    }
    for flags, expected in cases.items():
        assert expected in refused(capsys, *base, *flags), flags
    assert not (tmp_path / "x").exists()
    assert "--model_name_or_path is missing" in refused(capsys, "--dataset_name", stories)
    assert "--long_stories cut" in refused(capsys, *base, "--model_name_or_path", models / "short")


def test_data_that_tells_nothing_is_one_line(models, tmp_path, capsys):
    def file(name, features):
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"story": f"Tom saw {n} cats.", "features": features}) + "\n" for n in range(300))
        )
        return ["--model_name_or_path", models / "llama", "--dataset_name", path, *FAST]

    assert "300" not in refused(capsys, *file("none.jsonl", []))  # no labels anywhere, and the detectors find nothing
    one = refused(capsys, *file("one.jsonl", ["Twist"]))
    assert "Twist: " in one
    assert "test stories have it" in one
    assert "names a feature" in refused(capsys, *[*file("none.jsonl", []), "--labels", "records"])
    (tmp_path / "empty.jsonl").write_text("")
    empty = refused(capsys, *["--model_name_or_path", models / "llama", "--dataset_name", tmp_path / "empty.jsonl"])
    assert "empty.jsonl" in empty


@pytest.mark.slow
def test_models_of_another_depth_and_tokenizer_are_compared_where_they_do_best(stories, models, tiny_data, tmp_path):
    """Stories are pooled over a model's own tokens; only layers side by side need one depth."""
    deeper = tmp_path / "deeper"
    torch.manual_seed(0)
    config = tiny_model("gpt2", vocab_size=400, positions=512).config
    config.n_layer = 3
    type(tiny_model("gpt2"))(config).save_pretrained(deeper)
    load_tokenizer(tiny_data / "tok400").save_pretrained(deeper)
    run(stories, tmp_path / "a", models / "gpt2", deeper, flags=["--features", "Twist", "--pooling", "mean"])
    models_apart = [r for r in table(tmp_path / "a" / "feature_probe-differences.csv") if r["kind"] == "model"]
    assert [row["place"] for row in models_apart] == ["chosen"]


@pytest.mark.slow
def test_real_stories_with_a_real_model(shared_data, tmp_path, capsys):
    rows = feature_probe.main([
        "--model_name_or_path", str(shared_data / "stories260K" / "hf"), "--output_dir", str(tmp_path / "a"),
        "--dataset_name", str(shared_data / "tinystories" / "val.jsonl"), "--features", "Dialogue",
        "--block_size", "300",
        "--layers", "3", "--pooling", "last_10", *FAST,
    ])  # fmt: skip
    assert {row["n"] for row in rows if row["role"] == "finding"} == {40}
    assert "labels: detectors" in capsys.readouterr().err
