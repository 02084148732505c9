"""The default data set of evaluation and probes: that of the model's run, else `generated`, else an error."""

import json
from pathlib import Path

import pytest

from lm_trials.console import UsageError
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.own_data import choose_dataset
from lm_trials.probing.flags import TextArguments
from lm_trials.stories.corpora import read_manifest


@pytest.fixture
def model(tiny_data, tmp_path, monkeypatch):
    """A run on the corpus `tiny`, which is prepared in `data`."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/tiny").symlink_to(tiny_data / "tiny")
    write_run(read_manifest(tiny_data / "tiny")["content"])
    return "runs/demo"


def write_run(content, **outcome):
    data = {"corpus": "tiny", "content": content}
    run = {"run_name": "demo", "outcome": {"dataset_name": "tiny", "data": data, **outcome}, "replicate": {"seed": 0}}
    Path("runs/demo").mkdir(parents=True, exist_ok=True)
    Path("runs/demo/run.json").write_text(json.dumps({**run, "logistics": {"data_cache_dir": "data"}}))


@pytest.mark.parametrize("flags", [EvaluationArguments, TextArguments])
def test_the_data_of_the_run_and_where_it_is_prepared(model, capsys, flags):
    assert choose_dataset(flags(), model) == "tiny"
    assert choose_dataset(args := flags(data_cache_dir="empty"), model) == "tiny"
    assert args.data_cache_dir == "data"
    assert "using tiny, the data of runs/demo" in capsys.readouterr().err


def test_other_data_of_that_name_is_not_the_data_of_the_run(model, tiny_data, capsys):
    write_run("0" * 16)
    with pytest.raises(UsageError, match="--dataset_name is missing, and the data of runs/demo, tiny, is not here"):
        choose_dataset(EvaluationArguments(), model)
    Path("data/generated").symlink_to(tiny_data / "tiny")
    assert choose_dataset(EvaluationArguments(), model) == "generated"
    assert "using generated, prepared in data" in capsys.readouterr().err


def test_a_model_without_a_run_has_no_default(model):
    with pytest.raises(UsageError, match=r"gpt2 has no run\.json that names stories; give a prepared corpus"):
        choose_dataset(EvaluationArguments(), "gpt2")


def test_a_mixture_with_shares_is_no_default_of_a_probe_without_that_flag(model):
    write_run("c", data={"parts": {"tiny": {"corpus": "tiny"}}}, data_mix=".3,.7")
    with pytest.raises(UsageError, match="is missing"):
        choose_dataset(TextArguments(), model)
