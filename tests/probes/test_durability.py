"""`probes/durability.py` from its command line: two models on common stories, a user's metric, and what it refuses."""

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
    narrow = row(rows, role="equivalence")
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


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"margin": 0.1}, "--margin 0.1 compares runs, but one is given"),
        ({"metric": "words words"}, "--metric words is given twice"),
    ],
)
def test_what_is_refused(models, tiny_data, tmp_path, capsys, more, expected):
    assert expected in refused(capsys, *flags(tiny_data, tmp_path, models / "first", **more))
