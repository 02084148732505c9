"""Tables of probes: rows by their columns, what is shown of them, and how an estimate is written."""

from lm_trials.estimates import Estimate
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


def test_an_interval_is_told_in_as_many_digits_as_asked():
    found = Estimate(0.12345, -0.1, 0.3, n=4, unit="u")
    assert interval(found, 2) == "0.12 [-0.10, 0.30]"
    assert interval(found.row(), lines=True) == "0.123\n[-0.100, 0.300]"
    assert interval(exact(0.12345, 4, "u")) == "0.123 [no interval]"
    assert interval(widened(found, 0.1), 1) == "0.1 [-0.2, 0.4]"


def test_nothing_is_shown_where_the_interval_has_0_or_is_not_there():
    assert [sign(Estimate(0, low, low + 1, 9, "u")) for low in (0.1, -1.1, -0.5, 0.0, -1.0)] == [1, -1, 0, 0, 0]
    assert sign(exact(3.0, 1, "u")) == 0


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
