"""What every probe writes and tells: tables, figures, the sentence with its interval, the control, and the reading."""

import csv
import json

import pytest
from matplotlib.figure import Figure

from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.findings import Finding, write_findings
from lm_trials.probing.flags import SubjectArguments, TextArguments

ROWS = [
    {"model": "a", "role": "finding", "estimate": 0.5, "lower": 0.25, "upper": 0.75, "n": 9, "unit": "accuracy"},
    {
        "model": "b",
        "role": "control",
        "estimate": 0.1,
        "lower": float("nan"),
        "upper": None,
        "n": 1,
        "unit": "accuracy",
    },
]
FINDING = Finding("It is there: 0.5 [0.25, 0.75].", "Shuffled labels give 0.1.")


def written(folder, seed=3, **more):
    given = {"about": {"models": ["m"]}, "figures": {"curves": Figure(), "maps": Figure()}} | more
    arguments = (SubjectArguments(output_dir=str(folder), seed=seed), TextArguments(max_eval_samples=5))
    return write_findings("lens", arguments, ROWS, FINDING, **given)


def test_tables_figures_and_sentences_are_written_and_told(tmp_path, capsys):
    checks = {"a": CaptureCheck(0.0, 7, ("hidden",), 1e-4), "b": CaptureCheck(2e-5, 7, ("attention",), 1e-3)}
    folder = written(tmp_path / "new" / "lens", checks=checks, tables={"pairs": [{"pair": 1}], "none": []})
    names = {"lens.csv", "lens.json", "pairs.csv", "curves.png", "curves.svg", "maps.png", "maps.svg"}
    assert {path.name for path in folder.iterdir()} == names
    with (folder / "lens.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["model"] for line in lines] == ["a", "b"]
    assert (float(lines[0]["lower"]), lines[1]["lower"], lines[1]["upper"]) == (0.25, "", "")
    about = json.loads((folder / "lens.json").read_text())
    assert (about["probe"], about["finding"], about["control"]) == ("lens", FINDING.sentence, FINDING.control)
    assert (about["arguments"]["seed"], about["arguments"]["max_eval_samples"]) == (3, 5)
    assert about["models"] == ["m"]
    assert about["capture"]["b"] == {"largest": 2e-5, "tokens": 7, "sites": ["attention"], "allowed": 1e-3}
    assert [row["lower"] for row in about["rows"]] == [0.25, None]
    told = " ".join(capsys.readouterr().out.split())
    assert f"finding {FINDING.sentence} control {FINDING.control}" in told
    assert "check, a capturing hidden changes no log-probability (7 tokens)" in told
    assert "b capturing attention changes log-probabilities by at most 2" in told
    assert told.endswith(f"results {folder}")


def test_one_model_needs_no_name_and_no_check_is_told_as_none(tmp_path, capsys):
    written(tmp_path, checks={"a": CaptureCheck(0.0, 7, ("hidden",), 1e-4)})
    assert "check capturing hidden" in " ".join(capsys.readouterr().out.split())
    written(tmp_path)
    assert "check" not in capsys.readouterr().out
    assert json.loads((tmp_path / "lens.json").read_text())["capture"] == {}


def test_the_same_findings_are_the_same_bytes(tmp_path):
    first, again = ({path.name: path.read_bytes() for path in written(tmp_path).iterdir()} for _ in range(2))
    assert first == again
    other = written(tmp_path, seed=4)
    assert (other / "lens.json").read_bytes() != first["lens.json"]


def test_a_file_in_the_way_is_the_systems_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        written(tmp_path / "file" / "lens")


def test_clauses_are_joined_and_a_control_is_said_once():
    assert Finding.of(["a", "b"], ["c", "d", "c"]) == Finding("a; b", "c; d")
    assert Finding.of(["a", "b"], ["c"], joint=". ") == Finding("a. b", "c")


def test_what_an_earlier_measurement_left_and_this_one_does_not_write_is_removed(tmp_path):
    folder = tmp_path / "a"
    written(folder, tables={"neighbours": [{"token": "a"}]})
    (folder / "mine.txt").write_text("a note")
    about = json.loads((folder / "lens.json").read_text())
    assert {"lens.csv", "neighbours.csv", "curves.png", "maps.svg"} <= set(about["files"])
    written(folder, figures={"curves": Figure()})
    left = {path.name for path in folder.iterdir()}
    assert left == {"lens.csv", "lens.json", "curves.png", "curves.svg", "mine.txt"}
    # A file that names others' files is not obeyed.
    outside = tmp_path / "outside.csv"
    outside.write_text("x")
    (folder / "lens.json").write_text(json.dumps({"files": ["../outside.csv", 3, "mine.txt/.."]}))
    written(folder, figures={"curves": Figure()})
    assert outside.exists()
