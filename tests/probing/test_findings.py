"""What every probe writes and tells: tables, figures, the sentence with its interval, the control, and the reading."""

import csv
import json

import pytest
from matplotlib.figure import Figure

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.findings import Finding, write_findings
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.tables import ProbeTable, exact, interval, sign, widened

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
    assert "reading a capturing hidden moves log-probabilities not at all (7 tokens)" in told
    assert "reading b capturing attention moves log-probabilities by at most 2.0e-05 nats (7 tokens)" in told
    assert told.endswith(f"results {folder}")


def test_one_model_needs_no_name_and_no_check_is_told_as_none(tmp_path, capsys):
    written(tmp_path, checks={"a": CaptureCheck(0.0, 7, ("hidden",), 1e-4)})
    assert "reading capturing hidden" in " ".join(capsys.readouterr().out.split())
    written(tmp_path)
    assert "reading" not in capsys.readouterr().out
    assert json.loads((tmp_path / "lens.json").read_text())["capture"] == {}


def test_the_same_findings_are_the_same_bytes(tmp_path):
    first, again = ({path.name: path.read_bytes() for path in written(tmp_path).iterdir()} for _ in range(2))
    assert first == again
    other = written(tmp_path, seed=4)
    assert (other / "lens.json").read_bytes() != first["lens.json"]


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as raised:
        written(tmp_path / "file" / "lens")
    said = str(raised.value)
    assert said.startswith(str(tmp_path / "file"))
    assert said.endswith("cannot be written to (Not a directory); give another --output_dir")


def test_an_interval_is_told_in_as_many_digits_as_asked():
    found = Estimate(0.12345, -0.1, 0.3, n=4, unit="u")
    assert interval(found, 2) == "0.12 [-0.10, 0.30]"
    assert interval(found.row(), lines=True) == "0.123\n[-0.100, 0.300]"
    assert interval(exact(0.12345, 4, "u")) == "0.123 [no interval]"
    assert interval(widened(found, 0.1), 1) == "0.1 [-0.2, 0.4]"


def test_nothing_is_shown_where_the_interval_has_0_or_is_not_there():
    assert [sign(Estimate(0, low, low + 1, 9, "u")) for low in (0.1, -1.1, -0.5, 0.0, -1.0)] == [1, -1, 0, 0, 0]
    assert sign(exact(3.0, 1, "u")) == 0


def test_clauses_are_joined_and_a_control_is_said_once():
    assert Finding.of(["a", "b"], ["c", "d", "c"]) == Finding("a; b", "c; d")
    assert Finding.of(["a", "b"], ["c"], joint=". ") == Finding("a. b", "c")


def test_rows_are_chosen_by_their_columns():
    table = ProbeTable(ROWS)
    table.add(Estimate(0.3, 0.2, 0.4, 7, "share"), {"model": "a", "role": "control"}, layer=0)
    assert [row["n"] for row in table.where(model="a")] == [9, 7]
    assert [row["n"] for row in table.where(model=["a", "b"], role="control")] == [1, 7]
    assert [row["n"] for row in table.where(layer=None)] == [9, 1]  # a column that a row lacks
    assert (table.find(layer=0)["model"], table.find(layer=1)) == ("a", None)
    assert (table.distinct("role"), table.distinct("model", "layer")) == (
        ["finding", "control"], [("a", None), ("b", None), ("a", 0)]
    )  # fmt: skip
    assert table.estimates("model", "role")["a", "control"] == Estimate(0.3, 0.2, 0.4, 7, "share")
    assert list(table[2]) == ["model", "role", "estimate", "lower", "upper", "n", "unit", "layer"]


def test_a_table_is_shown_with_a_cell_for_each_line_and_column(capsys):
    down, across = (
        {"A": {"model": "a"}, "B": {"model": "b"}},
        {"found": {"role": "finding"}, "beside": {"role": "control"}},
    )
    ProbeTable(ROWS).show("a title", "model", down, across, "below", interval, counted="n")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["a", "title"]
    assert lines[1] == ["model", "n", "found", "beside"]
    assert ["A", "9", "0.500", "[0.250,", "0.750]", "-"] in lines
    assert ["B", "-", "-", "0.100", "[no", "interval]"] in lines
    assert lines[-1] == ["below"]


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
