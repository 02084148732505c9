"""What a training takes where its command line names almost nothing."""

import json
import re
import shlex

import pytest
import torch

from lm_trials import cli
from lm_trials.commands.train import main, with_recipe
from lm_trials.stories.corpora import open_records


def test_a_command_line_that_names_nothing_gets_the_recipe_of_the_device(monkeypatch, capsys):
    words = ["--dataset_name", "stories"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert with_recipe(words) == ["--config", "start_cpu", *words]
    assert "using --config start_cpu" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert with_recipe(words) == ["--config", "start_gpu", *words]
    assert with_recipe([*words, "--use_cpu", "True"])[1] == "start_cpu"


@pytest.mark.parametrize(
    "flag",
    ["--config=a.yaml", "--model-name-or-path", "--model_dir", "--config_name", "--vocab_size", "--tokenizer_name",
     "--model_type", "--config_overrides", "--help", "-h", "--do_eval", "--arm"],
)  # fmt: skip
def test_whoever_names_something_gets_no_recipe(flag):
    assert with_recipe([flag, "x"]) == [flag, "x"]


def command_in(out):
    """Return the words after `next` at the end of a command's output."""
    return shlex.split(next(line for line in reversed(out.splitlines()) if line.startswith("next ")))[1:]


def check_next_commands(words, capsys):
    """A run on `stories.jsonl` is evaluated on the validation split of its own corpus, and notes name that split."""
    program, corpus = words[:2], words[-1]
    assert program == ["lm-trials", "evaluate"]
    assert re.fullmatch(r"stories-[0-9a-f]{8}", corpus)
    few = ["--max_eval_samples", "3"]
    rows = cli.main([*words[1:], *few])
    assert {row["dataset"] for row in rows} == {f"{corpus}-validation"}
    first = capsys.readouterr()
    assert "read whole" not in first.err
    assert command_in(first.out)[:3] == ["lm-trials", "probe", "lens"]

    model = words[1:-2]  # without the data set: the same one
    assert [row["estimate"] for row in cli.main([*model, *few])] == [row["estimate"] for row in rows]
    assert f"using {corpus}, the data of" in capsys.readouterr().err
    for split, reason in (
        ([], "stories.jsonl is read whole and contains stories that"),
        (["--dataset_split", "validation"], "the validation split of stories.jsonl is not the one of"),
    ):
        cli.main([*model, "--dataset_name", "stories.jsonl", *split, *few, "--output_dir", "out"])
        shown = capsys.readouterr()
        assert reason in shown.err
        assert shlex.join(words) in shown.err.splitlines()
        assert "stories.jsonl" in shown.out  # the file, not a count of stories


def test_tab_does_not_load_torch(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert with_recipe([]) == ["--config", "start_cpu"]
    capsys.readouterr()
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    assert with_recipe([]) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words", [["--dataset_name=a.txt"], ["--dataset-name", "a.txt"], ["--dataset_name", "a.txt+b.txt"]]
)
def test_more_of_a_file_is_held_out_in_each_spelling(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--validation_split_percentage" not in with_recipe(words)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("A story.")
    added = ["--validation_split_percentage", "5"]
    assert with_recipe(words)[2:4] == added
    assert "5" not in with_recipe([*words, "--validation_split_percentage=7"])
    assert added[0] not in with_recipe([*words, "--dataset_name", "generated"])  # the last one counts


@pytest.mark.parametrize("flag", ["--num_train_epochs", "--max_train_tokens"])
def test_a_named_length_replaces_that_of_the_recipe(flag):
    added = with_recipe([flag, "2"])
    assert added[2:4] == ["--max_steps", "-1"]
    assert "-1" not in with_recipe(["--max_steps", "2"])


def test_a_file_alone_trains_a_model_with_a_tokenizer_of_its_own(tmp_path, monkeypatch, capsys, tiny_data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    splits = open_records(tiny_data / "tiny").values()  # all three: a story's split follows from its text
    lines = (json.dumps({"story": story}) for rows in splits for story in rows["story"])
    (tmp_path / "stories.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--dataset_name", "stories.jsonl", "--max_steps", "2", "--warmup_steps", "0", "--report_to", "none"]
    assert with_recipe(flags)[2:4] == ["--validation_split_percentage", "5"]
    main([*flags, "--num_sampled_stories", "0"])
    done = capsys.readouterr()
    assert "training one of 512 tokens" in done.err
    run = json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())
    assert run["outcome"]["learning_rate"] == 4e-3  # of the recipe
    assert run["outcome"]["max_steps"] == 2  # of the command line, over the recipe's 750
    check_next_commands(command_in(done.out), capsys)
    (tokenizer,) = tmp_path.glob("data/*/tokenizer")
    before = (tokenizer / "tokenizer.json").read_bytes()
    main([*flags, "--num_sampled_stories", "0", "--seed", "1"])
    assert "training one of" not in capsys.readouterr().err  # the same tokenizer again
    assert (tokenizer / "tokenizer.json").read_bytes() == before
