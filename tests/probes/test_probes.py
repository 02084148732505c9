"""A probe is one folder of `lm_trials/probing` and one script of `probes`, and no other file names it."""

import re
from pathlib import Path

import pytest

from lm_trials import cli

REPOSITORY = Path(__file__).parents[2]
FOLDERS = {path.parent.name for path in (REPOSITORY / "lm_trials/probing").glob("*/__init__.py")}


def test_each_probe_is_a_folder_with_its_flags_and_its_report_and_a_script():
    assert {path.stem for path in (REPOSITORY / "probes").glob("*.py")} - {"__init__"} == FOLDERS
    assert len(FOLDERS) >= 8
    for name in FOLDERS:
        there = {path.name for path in (REPOSITORY / "lm_trials/probing" / name).iterdir()}
        assert {"flags.py", "report.py"} <= there, name


def lists(text):
    """The probes that a text imports from or lists as strings."""
    named = re.findall(r"probing\.(\w+)", text) + re.findall(r"[\"'](\w+)[\"']", text)
    return FOLDERS.intersection(named)


def test_no_file_lists_the_probes():
    listed = {}
    for path in [*(REPOSITORY / "lm_trials").rglob("*.py"), REPOSITORY / "setup.cfg", REPOSITORY / "pyproject.toml"]:
        within = path.relative_to(REPOSITORY).parts
        if within[:2] == ("lm_trials", "probing") and len(within) > 3:
            continue  # a probe's own
        if len(found := lists(path.read_text(encoding="utf-8"))) > 2:  # words such as attention have other uses
            listed["/".join(within)] = found
    assert listed == {}


def test_a_list_of_probes_would_be_found():
    assert lists('PROBES = ["lens", "weights"]') == {"lens", "weights"}
    assert lists("from lm_trials.probing.lens.flags import ARGUMENTS") == {"lens"}
    assert lists("the weights of a lens") == set()


@pytest.mark.parametrize("name", sorted({*cli.probes()} - {"diversity"}))  # which reads a corpus
def test_words_before_the_flags_are_models(name, capsys):
    with pytest.raises(SystemExit):
        cli.main(["probe", name, "runs/none-s0", "--seed", "x"])
    assert "argument --seed: invalid int value: 'x'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["probe", name])
    assert "--model_name_or_path" in capsys.readouterr().err
