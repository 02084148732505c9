"""`probes/durability.py` from its command line: models on common stories, their drift, and what it refuses."""

from functools import partial

import numpy as np
import pytest
import torch
from probe_runs import refused_by, row, table
from tiny_models import tiny_model

import prepare_tinystories
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.stories.corpora import open_records
from lm_trials.tokens.tokenizers import load_tokenizer
from probes import durability

refused = partial(refused_by, durability.main)
FLESCH = "flesch_kincaid_grade"


@pytest.fixture(scope="module")
def models(tiny_data, tmp_path_factory):
    """Two random Llamas with the tokenizer of 400 tokens, and one of another depth."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(tiny_data / "tok400")
    for seed, name in enumerate(("first", "second")):
        tiny_model("llama", vocab_size=len(tokenizer), positions=512, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def flags(data, out, *names, **more):
    given = {"dataset_name": "tiny", "dataset_split": "train", "max_eval_samples": 40, "data_cache_dir": data,
             "output_dir": out} | more  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key}", *str(value).split())]
    return ["--model_name_or_path", *map(str, names), "--use_cpu", *words]


def test_two_models_are_compared_on_common_stories(models, tiny_data, tmp_path):
    names = models / "first", models / "second"
    rows = durability.main(flags(tiny_data, tmp_path, *names, margin=9, metric=f"{FLESCH} words"))
    by_model = {}
    for name in names:
        model, tokenizer = load_model(resolve_model(str(name))), load_tokenizer(name)
        nats, tokens = [], []
        for story in list(open_records(tiny_data / "tiny", "train"))[:40]:
            text = story["story"]
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
            with torch.no_grad():
                loss = model(ids, labels=ids).loss.item()
            nats.append(loss * (ids.shape[1] - 1))
            tokens.append(ids.shape[1] - 1)
        by_model[name.name] = np.sum(nats) / np.sum(tokens)
        found = row(rows, model=name.name, quantity="loss", role="finding")
        assert found["estimate"] == pytest.approx(by_model[name.name], rel=1e-5)
        assert found["n"] == 40
    difference = row(rows, quantity="loss difference", role="finding")
    assert (difference["model"], difference["minus"]) == ("second", "first")
    assert difference["estimate"] == pytest.approx(by_model["second"] - by_model["first"], abs=1e-5) != 0
    narrow = row(rows, quantity="loss difference, 90 % interval")
    assert difference["lower"] < narrow["lower"] < narrow["upper"] < difference["upper"]
    assert narrow["equivalent"] == "yes"
    for metric in (FLESCH, "words"):
        own = {r["model"]: r["estimate"] for r in rows if r["quantity"] == "slope" and r["metric"] == metric
               and r["role"] == "finding"}  # fmt: skip
        apart = row(rows, quantity="slope difference", metric=metric)["estimate"]
        assert apart == pytest.approx(own["second"] - own["first"], rel=1e-6)
    written = table(tmp_path / "durability.csv")
    # What a trial selects: one row of each model.
    assert len([r for r in written if (r["model"], r["role"], r["quantity"], r["metric"]) == (
        "second", "finding", "slope", FLESCH)]) == 1  # fmt: skip
    assert (tmp_path / "durability_tenths.png").is_file()


def test_a_metric_of_the_users_is_read_from_its_table(models, tiny_data, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def letters(text):\n    return len(text)\n")
    data = ["--dataset_name", "tiny", "--data_cache_dir", str(tiny_data), "--output_dir", str(tmp_path)]
    prepare_tinystories.main(["metadata", *data, "--metric", f"{tmp_path / 'mine.py'}:letters"])
    rows = durability.main(flags(tiny_data, tmp_path / "out", models / "first", metric="letters"))
    assert row(rows, quantity="slope", role="finding", model="first")["metric"] == "letters"
    line = refused(capsys, *flags(tiny_data, tmp_path / "out", models / "first", metric="leters"))
    assert "--metric leters: tiny has no such metric; did you mean letters?" in line


def test_checkpoints_are_compared_with_the_first_run_and_within_their_run(models, tiny_data, tmp_path):
    tokenizer = load_tokenizer(models / "first")
    for run, seeds in (("shuffled", (0, 1, 2)), ("sorted", (0, 3, 4)), ("other", (0, 5, 6))):
        for seed, name in zip(seeds, ("checkpoint-1", "checkpoint-2", ""), strict=True):
            model = tiny_model("llama", vocab_size=len(tokenizer), positions=512, seed=seed)
            model.save_pretrained(tmp_path / run / name)
            tokenizer.save_pretrained(tmp_path / run / name)
    runs = [tmp_path / name for name in ("shuffled", "sorted")]
    control = ["--control_model", str(tmp_path / "other"), "--all_checkpoints"]
    rows = durability.main(flags(tiny_data, tmp_path / "out", *runs, max_eval_samples=12) + control)
    whole = [r for r in rows if r.get("layer") == "all" and r["module"] == "MLP" and r["quantity"] == "weight distance"]
    compared = {(r["model"], r["against"], r["minus"], r["role"]) for r in whole}
    assert compared == {
        *(("sorted" + at, "first run", "shuffled" + at, "finding") for at in ("/checkpoint-1", "/checkpoint-2", "")),
        *(("other" + at, "first run", "shuffled" + at, "control") for at in ("/checkpoint-1", "/checkpoint-2", "")),
        *((run + at, "first checkpoint", f"{run}/checkpoint-1", role) for at in ("/checkpoint-2", "")
          for run, role in (("shuffled", "finding"), ("sorted", "finding"), ("other", "control"))),
        *((run + at, "checkpoint before", run + before, role)
          for at, before in (("/checkpoint-2", "/checkpoint-1"), ("", "/checkpoint-2"))
          for run, role in (("shuffled", "finding"), ("sorted", "finding"), ("other", "control"))),
        ("random weights", "first run", "shuffled", "control"),
    }  # fmt: skip
    by_place = {(r["model"], r["against"]): r["estimate"] for r in whole}
    assert by_place["sorted/checkpoint-1", "first run"] == 0  # of the same seed
    assert by_place["sorted/checkpoint-2", "first run"] > 1
    assert by_place["sorted", "first checkpoint"] != by_place["sorted", "checkpoint before"]
    losses = [(r["model"], r["control"]) for r in rows if r["quantity"] == "loss difference"]
    assert losses == [(f"{run}/checkpoint-{n}" if n < 3 else run, {"other": "other order"}.get(run))
                      for n in (1, 2, 3) for run in ("sorted", "other")]  # fmt: skip
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        f"durability{end}.png" for end in ("", "_apart", "_drift", "_tenths")
    }


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"margin": 0.1}, "--margin 0.1 compares runs, but one is given"),
        ({"metric": "words words"}, "--metric words is given twice"),
        ({"load_in_8bit": "True"}, "--load_in_8bit: the distance of quantized weights is rounding"),
    ],
)
def test_what_is_refused(models, tiny_data, tmp_path, capsys, more, expected):
    assert expected in refused(capsys, *flags(tiny_data, tmp_path, models / "first", **more))
