"""lm-trials: every command is found, its help is short lines, and Tab completes what the shell asks."""

import os
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

from lm_trials import cli
from lm_trials.commands import demo

REPOSITORY = Path(__file__).resolve().parents[1]
PROBES = {path.stem for path in (REPOSITORY / "probes").glob("[a-z]*.py")}
WORDS = [[name] for name in cli.COMMANDS if name != "probe"] + [["probe", name] for name in sorted(PROBES)]
SUBCOMMANDS = [["prepare", "generate"], ["prepare", "protocol_set"], ["cache", "fetch"], ["cache", "distances"]]


def test_the_overview_names_every_command_and_probe_within_80_columns(capsys):
    assert cli.main([]) is None
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)
    assert all(name in shown for name in cli.probes())
    assert set(cli.probes()) == PROBES
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("words", [["probe"], ["probe", "--help"]])
def test_probe_alone_lists_the_probes(words, capsys, monkeypatch):
    assert cli.main(words) is None
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in PROBES)
    assert "Activation patching" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("words", WORDS + SUBCOMMANDS, ids=" ".join)
def test_help_is_readable_at_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "lm-trials " + " ".join(words) in shown
    if words not in (["prepare"], ["cache"]):
        assert shown.count("[--") == 1  # the usage is one line, not a page


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trian"], "did you mean train?"),
        (["--seed", "1", "train"], "the command comes before its flags"),
        (["train", "--config", "dmeo"], "--config dmeo is neither a file nor an installed recipe; did you mean demo?"),
        (["train", "--arm", "x"], "--arm x names an arm"),
        (["probe", "lense"], "did you mean lens?"),
        (["generate", "runs/a"], "give --model_name_or_path runs/a"),
        (["train", "--sed", "1"], "did you mean --seed?"),
        (["demo", "--output_dir", "."], "--output_dir . exists"),
    ],
)
def test_a_mistake_is_one_line(words, reason, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_the_demos_steps_are_commands():
    for words in demo.steps(Path("out/demo")):
        program, rest = cli.command_of(words)
        assert callable(program)
        assert rest == words[1:]
    assert [words[0] for words in demo.steps(Path("a"))] == ["prepare"] * 3 + ["train", "evaluate", "generate"]


def test_a_demo_that_ends_early_names_how_to_start_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "steps", lambda folder: [["prepare", "frob"], ["prepare", "generate"]])
    with pytest.raises(SystemExit) as end:
        demo.main(["--output_dir", str(tmp_path / "demo")])
    assert end.value.code == 2
    error, advice = capsys.readouterr().err.splitlines()[-2:]
    assert "frob is not a command" in error
    assert advice.startswith(f"The demo ended early. To start it again, remove {tmp_path / 'demo'} ")


def test_only_this_package_is_installed_with_its_command_and_its_recipes():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert setup["options.packages.find"]["include"].split() == ["lm_trials*"]
    assert setup["options.entry_points"]["console_scripts"].split() == ["lm-trials", "=", "lm_trials.cli:run"]
    patterns = setup["options.package_data"]["lm_trials"].split()
    installed = {file for pattern in patterns for file in (REPOSITORY / "lm_trials").glob(pattern)}
    package = REPOSITORY / "lm_trials"
    assert installed == {*package.rglob("*.yaml"), *(package / "metrics" / "words").iterdir(), package / "py.typed"}
    assert "setuptools" not in tomllib.loads((REPOSITORY / "pyproject.toml").read_text()).get("tool", {})


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        ("lm-trials tr", {"train"}, "tune"),
        ("lm-trials probe le", {"lens"}, "weights"),
        ("lm-trials train --per_device_t", {"--per_device_train_batch_size"}, "--seed"),
        ("lm-trials probe lens --lens_s", {"--lens_steps"}, "--lens"),
        ("lm-trials prepare train_vocab --voc", {"--vocab_size"}, "--corpus"),
    ],
)
def test_tab_completes(line, expected, absent, tmp_path):
    pytest.importorskip("argcomplete", reason="the extra `completion` is not installed")
    found = tmp_path / "found"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(found),
        "IFS": "\n",
    }
    subprocess.run([sys.executable, "-m", "lm_trials.cli"], cwd=REPOSITORY, env=environment, check=True, timeout=60)
    words = {word.strip() for word in found.read_text().replace("\013", "\n").split("\n")}
    assert expected <= words
    assert absent not in words
