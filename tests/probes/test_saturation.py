"""The saturation probe from the command line: both sides, the losses and the steps are those of other commands."""

import json
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from probe_runs import refused_by, row, table

import eval_checkpoint
import prepare_tinystories
import sft_lora
import train_gpt2
from lm_trials.data.datasets import open_dataset
from lm_trials.evaluation.storytellers import open_storyteller
from lm_trials.metrics.texts import text_metrics
from lm_trials.training.records import records_between
from probes import saturation

LADDER = ("--checkpoint_ladder", "True", "--save_strategy", "steps", "--save_steps", "100")
FEW = ("--max_new_tokens", "12", "--max_eval_samples", "12")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **settings: open(path, "wb").close())


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """Two seeds of a GPT-2 with checkpoints 0, 1, 2, 4."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_data, folder / "data", ignore=shutil.ignore_patterns("metrics-*"))
    for seed in (1, 2):
        flags = {
            "dataset_name": "tiny", "data_cache_dir": folder / "data", "vocab_size": 400, "model_type": "gpt2",
            "config_overrides": "n_embd=32,n_layer=2,n_head=2", "block_size": 64, "max_steps": 4, "seed": seed,
            "learning_rate": 2e-2, "num_sampled_stories": 0, "report_to": "none", "output_dir": folder / f"g{seed}",
        }  # fmt: skip
        train_gpt2.main([*(word for key, value in flags.items() for word in (f"--{key}", str(value))), *LADDER])
    return folder


def measure(folder, *names, more=(), metrics=("words", "vocabulary_diversity")):
    models, out = [str(folder / name) for name in names], folder / "out"
    rows = saturation.main(
        ["--model_name_or_path", *models, *FEW, "--metrics", *metrics, "--output_dir", str(out), *more]
    )
    return rows, table(out / "checkpoints.csv")


def test_both_sides_and_the_losses_are_those_of_other_commands(runs, capsys):
    rows, values = measure(runs, "g1", more=("--by", "features"))
    said = capsys.readouterr()
    assert "has no metrics" in said.err
    assert "it has one root seed, so nothing can be said about new seeds" in " ".join(said.out.split())

    dataset = open_dataset("tiny", runs / "data")
    stories = {record["record_id"]: record["story"] for record in dataset.select("train").read()}
    for first, last in ((1, 1), (2, 2), (3, 4)):
        read = [stories[name] for name in records_between(runs / "g1", first, last)["record_id"].unique()]
        there = row(values, side="input", metric="words", update=str(last))
        assert float(there["estimate"]) == pytest.approx(text_metrics(read)["words"].mean())
        assert (there["n"], there["since"]) == (str(len(read)), str(first - 1))
    assert not [one for one in values if one["side"] == "input" and one["update"] == "0"]

    teller = open_storyteller(str(runs / "g1" / "checkpoint-2"), use_cpu=True)
    sampling = saturation_sampling()
    ids = teller.write(teller.prompts([""] * 64), [str(n) for n in range(64)], 12, sampling)
    texts = [teller.tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
    shown = [one["text"] for one in table(runs / "out" / "texts.csv") if one["update"] == "2"]
    assert shown == texts
    there = row(values, side="output", metric="words", update="2")
    assert float(there["estimate"]) == pytest.approx(text_metrics(texts)["words"].mean())
    assert float(there["lower"]) < float(there["estimate"]) < float(there["upper"])
    assert float(row(values, side="output", metric="words", update="4")["estimate"]) != float(there["estimate"])

    eval_checkpoint.main(
        ["--model_name_or_path", str(runs / "g1" / "checkpoint-4"), "--dataset_name", "tiny", "--data_cache_dir",
         str(runs / "data"), "--max_eval_samples", "12", "--by", "features", "--output_dir", str(runs / "eval")]
    )  # fmt: skip
    for expected in table(runs / "eval" / "eval_results.csv"):
        if expected["metric"] != "bits_per_byte":
            found = row(values, side="validation", metric=expected["metric"], slice=expected["slice"], update="4")
            assert {k: found[k] for k in ("lower", "n")} == {k: expected[k] for k in ("lower", "n")}
            assert float(found["estimate"]) == float(expected["estimate"])

    step = row(rows, quantity="saturation_step", side="validation", metric="loss", slice="all")
    losses = [float(one["estimate"]) for one in values if (one["metric"], one["slice"]) == ("loss", "all")]
    near = np.abs(np.array(losses) - losses[-1]) <= step["tolerance"]
    assert step["estimate"] == [0, 1, 2, 4][int(np.flatnonzero(~near)[-1]) + 1]
    assert step["model"] == "g1"
    again = row(rows, role="control", metric="words")
    assert again["lower"] < 0 < again["upper"]


def saturation_sampling():
    from lm_trials.evaluation.sampling import Sampling

    return Sampling(temperature=1.0, seed=0)


def test_a_prepared_table_gives_the_same_inputs(runs, capsys):
    _, measured = measure(runs, "g1")
    assert "has no metrics" in capsys.readouterr().err
    data = ["--dataset_name", "tiny", "--data_cache_dir", str(runs / "data")]
    prepare_tinystories.main(["metadata", *data, "--sentiment", "False"])
    capsys.readouterr()
    _, read = measure(runs, "g1")
    assert "has no metrics" not in capsys.readouterr().err
    assert read == measured


def test_over_root_seeds_of_one_arm(runs, capsys):
    rows, _ = measure(runs, "g1", "g2")
    said = " ".join(capsys.readouterr().out.split())
    assert "over 2 root seeds: " in said
    assert json.loads((runs / "out" / "saturation.json").read_text())["arms"] == {"g1": "g1", "g2": "g1"}
    steps = [row(rows, quantity="saturation_step", model=name, metric="loss")["estimate"] for name in ("g1", "g2")]
    mean = row(rows, quantity="mean_log2_step", metric="loss")
    assert mean["estimate"] == pytest.approx(np.log2(steps).mean())
    assert (mean["n"], mean["arm"], mean["model"]) == (2, "g1", None)
    ratios = [one for one in rows if one["quantity"] == "log2_ratio"]
    pair, *_ = ratios
    times = [
        [row(rows, quantity="saturation_step", side=side, model=n, metric=metric)["estimate"] for n in ("g1", "g2")]
        for side, metric in ((pair["side"], pair["metric"]), (pair["other_side"], pair["other"]))
    ]
    assert pair["estimate"] == pytest.approx(np.log2(np.array(times[1]) / times[0]).mean())
    assert all(one["p_holm"] >= one["p"] for one in ratios if one["p"] == one["p"])


def test_a_fine_tuned_llama_is_asked_with_its_prompts(runs, tiny_base, tiny_pairs):
    flags = {
        "model_name_or_path": tiny_base, "dataset_name": tiny_pairs, "validation_split_percentage": 10,
        "data_cache_dir": runs / "data", "max_length": 64, "lora_r": 2, "max_steps": 2, "learning_rate": 1e-2,
        "report_to": "none", "output_dir": runs / "tuned",
    }  # fmt: skip
    sft_lora.main([*(word for key, value in flags.items() for word in (f"--{key}", str(value))), *LADDER])
    _, values = measure(runs, "tuned", metrics=("words", "bleu_score"), more=("--max_eval_samples", "15"))
    prompts = {one["prompt"] for one in table(runs / "out" / "texts.csv")}
    assert 1 < len(prompts) < 64
    assert all(prompt.startswith("Write about") for prompt in prompts)
    assert 3 < float(row(values, side="input", metric="words", update="2")["estimate"]) < 9  # of completions alone
    assert row(values, side="output", metric="bleu_score", update="2")["n"] == "64"
    expected = json.loads((runs / "tuned" / "eval_results.json").read_text())["eval_completion_accuracy"]
    found = row(values, side="validation", metric="accuracy", update="2")
    assert float(found["estimate"]) == pytest.approx(expected)
    assert int(found["n"]) == 15


def test_mistakes_are_one_line(runs, tiny_base, capsys):
    assert "has no checkpoints" in refused_by(saturation.main, capsys, "--model_name_or_path", tiny_base)
    assert "is no run" in refused_by(saturation.main, capsys, "--model_name_or_path", runs)
    line = refused_by(saturation.main, capsys, "--model_name_or_path", runs / "g1", "--horizon", 3)
    assert "--horizon 3" in line
    assert "0, 1, 2, 4" in line
    line = refused_by(saturation.main, capsys, "--model_name_or_path", runs / "g1", "--num_samples", 63)
    assert "--num_samples 63" in line
    assert "--metrics" in refused_by(saturation.main, capsys, "--model_name_or_path", runs / "g1", "--metrics", "wrds")
