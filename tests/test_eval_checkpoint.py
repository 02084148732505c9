"""The command lines of `eval_checkpoint.py`: those of its docstring, its help, and a launch of two processes."""

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_evaluations import numbers, results_in, write_stories
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

import eval_checkpoint
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.flags import parse_arguments

REPOSITORY = Path(__file__).resolve().parents[1]


def documented_commands():
    lines = [line.strip() for line in (eval_checkpoint.__doc__ or "").splitlines()]
    return [line for line in lines if line.startswith(("python ", "accelerate "))]


def arguments_of(command):
    words = shlex.split(command)
    return words[words.index("eval_checkpoint.py") + 1 :]


def test_there_are_commands_in_the_docstring():
    assert len(documented_commands()) >= 10
    assert any("PileSubsets" in command for command in documented_commands())
    assert len(list(local_commands())) >= 6


@pytest.mark.parametrize("command", documented_commands())
def test_each_documented_command_parses(command):
    parse_arguments(arguments_of(command), (EvaluationArguments,), "")
    with pytest.raises(ValueError, match="is no flag"):
        parse_arguments([*arguments_of(command), "--not_there"], (EvaluationArguments,), "")
    if command.startswith("accelerate"):
        assert (REPOSITORY / shlex.split(command)[3]).is_file()


def local_commands():
    """Those that need neither the Hub nor a launcher."""
    for command in documented_commands():
        argv = arguments_of(command)
        names = {word for flag, word in pairwise(argv) if flag == "--dataset_name"}
        if command.startswith("python") and names <= {"generated", "stories.jsonl"}:
            yield command


@pytest.mark.end_to_end
@pytest.mark.parametrize("command", list(local_commands()))
def test_each_documented_command_on_local_files_runs(command, tiny_data, tmp_path, monkeypatch, capsys):
    """With a run `demo` (and `a`, `b`) and the corpus `generated` of a data folder, as the docstring has them."""
    argv = arguments_of(command)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/generated").symlink_to(tiny_data / "tiny")
    write_stories(tmp_path / "stories.jsonl", 5)
    for name in ("demo", "a", "b"):
        for place in (f"runs/{name}", *(["runs/demo/checkpoint-1"] if name == "demo" else [])):
            tiny_model("llama", vocab_size=400, positions=1024).save_pretrained(place)
            AutoTokenizer.from_pretrained(tiny_data / "tok400").save_pretrained(place)
    rows = eval_checkpoint.main([*argv, *(["--generate", "1"] if "--generate" in argv else [])])
    assert all(row["n"] >= 1 for row in rows)
    assert "nats per token" in capsys.readouterr().out


def test_help_does_not_load_torch():
    """One launch: the flags are shown by a process that ends without torch."""
    code = (
        "import sys, eval_checkpoint\n"
        "try: eval_checkpoint.main(['--help'])\n"
        "except SystemExit as left: print('status', left.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.stdout.splitlines()[-1] == "status 0 False", done.stderr
    assert "--model_name_or_path" in done.stdout


@pytest.mark.end_to_end
def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch):
    """One launch through accelerate's own launcher and gloo; equal to the last bit."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama", vocab_size=330).save_pretrained("llama")
    tiny_tokenizer().save_pretrained("llama")
    write_stories(tmp_path / "stories.jsonl", 30)
    flags = ["--model_dir", "llama", "--dataset_name", "stories.jsonl", "--by", "features", "--output_dir"]
    eval_checkpoint.main([*flags, "one"])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(REPOSITORY / "accelerate_configs/cpu_two_processes.yaml")]
    command += [str(REPOSITORY / "eval_checkpoint.py"), *flags, "two", "--use_cpu", "True"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
    environ = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nats per token") == 1  # one process speaks
    one, two = (numbers(results_in(tmp_path / name)) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-6)  # this process may have more threads than the launched ones
    assert two["eval_samples"] == 30
    per_story = [pq.read_table(tmp_path / name / "per_story.parquet").drop(["nats"]) for name in ("one", "two")]
    assert per_story[0].equals(per_story[1])
