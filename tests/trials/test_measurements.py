"""Arms compared by a number of a probe's table: the row that is meant, of each run, and nothing else."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lm_trials.console import UsageError
from lm_trials.trials.compare import compare_arguments, compare_runs, main

LOW = {"learning_rate": 0.001}
TABLE = "probes/lens/lens.csv"
WHERE = ["metric=loss", "layer=1"]
COLUMNS = ["model", "metric", "layer", "estimate", "lower", "upper", "n", "unit"]


def write_table(path, rows, arguments=None, columns=COLUMNS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    if arguments is not None:
        path.with_suffix(".json").write_text(json.dumps({"probe": "lens", "arguments": arguments}))


def rows_of(model, value):
    return [
        [model, metric, layer, value + shift, value + shift - 0.1, "" if layer else value + shift + 0.1, 40, unit]
        for metric, unit, shift in (("loss", "nats per token", 0.0), ("loss_kl", "nats", 5.0))
        for layer, shift in ((0, shift + 1), (1, shift))
    ]


VALUES = {"a": (1.0, 1.2, 1.1), "b": (1.5, 1.9, 1.4)}


@pytest.fixture
def measured(make_run):
    runs = []
    for arm, change in (("a", {}), ("b", LOW)):
        for seed, value in enumerate(VALUES[arm], 1):
            runs.append(make_run(f"{arm}-s{seed}", seed, change))
            others = rows_of("elsewhere/other", 7.0)  # a model that was read beside the run
            flags = {"dataset_name": "tiny", "model_name_or_path": [runs[-1]], "use_cpu": seed == 1}
            name = Path(runs[-1]).name if seed == 1 else runs[-1]
            write_table(Path(runs[-1]) / TABLE, [*rows_of(name, value), *others], flags)
    return runs


def test_the_numbers_of_a_table_are_compared_over_seeds(measured, capsys):
    comparison = main([*measured, "--table", TABLE, "--where", *WHERE, "--output", "out"])
    (result,) = comparison.results
    first, second = (np.array(VALUES[arm]) for arm in "ab")
    assert [row["estimate"] for row in result.of("run")] == [*first, *second]
    assert [row["estimate"] for row in result.of("arm")] == pytest.approx([first.mean(), second.mean()])
    (difference,) = result.of("difference")  # none over stories, of which nothing is known
    expected = stats.ttest_rel(second, first)
    assert difference["interval"] == "seeds"
    assert difference["p"] == pytest.approx(expected.pvalue)
    assert difference["estimate"] == pytest.approx((second - first).mean())
    assert (difference["lower"], difference["upper"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert {row["n"] for row in result.rows} == {40}
    assert {row["interval"] for row in result.of("run")} == {"one model"}
    shown = " ".join(capsys.readouterr().out.split())
    assert "lens: metric loss, layer 1" in shown
    assert "Positive: the arm's number is higher" in shown
    assert "the arm's loss is lower" not in shown
    assert "B minus A, new root seeds" in shown
    written = json.loads(Path("out/compare.json").read_text())
    assert written["verdict"].endswith("differs: learning_rate")
    assert written["next_command"] is None
    # Another row, another result.
    (other,) = compare_runs(measured, table=TABLE, where=["metric=loss_kl", "layer=0"]).results
    assert other.of("run")[0]["estimate"] == VALUES["a"][0] + 6
    assert other.unit == "nats"


def test_shares_of_a_table_stay_within_0_and_1(measured):
    def arm(values):
        for run, value in zip(measured, values, strict=True):
            rows = [[*row[:-1], "share of stories"] for row in rows_of(Path(run).name, value)]
            write_table(Path(run) / TABLE, rows, {})
        result = compared(measured)
        return [(row["lower"], row["upper"]) for row in (*result.of("arm"), *result.of("difference"))]

    for lower, upper in arm([0.0, 0.01, 0.04, 0.9, 0.99, 1.0])[:2]:
        assert 0 < lower < upper < 1
    (lower, upper), _, difference = arm([0.0, 0.0, 0.0, 1.0, 1.0, 0.9])
    assert lower == 0 < upper < 0.1  # Wilson's, of 40 stories
    assert difference[1] < 1
    # The same numbers in another unit leave the range.
    for run, value in zip(measured, [0.0, 0.01, 0.04, 0.9, 0.99, 1.0], strict=True):
        write_table(Path(run) / TABLE, rows_of(Path(run).name, value), {})
    first, second = compared(measured).of("arm")
    assert first["lower"] < 0 < 1 < second["upper"]


def test_one_table_may_hold_the_rows_of_all_runs(measured):
    rows = [row for place, run in enumerate(measured) for row in rows_of(Path(run).name, float(place))]
    write_table(Path("all.csv"), rows)
    (result,) = compare_runs(measured, table="all.csv", where=WHERE).results
    assert [row["estimate"] for row in result.of("run")] == [0, 1, 2, 3, 4, 5]


def test_one_seed_has_no_test(measured, capsys):
    comparison = main([measured[0], measured[3], "--table", TABLE, "--where", *WHERE])
    (result,) = comparison.results
    assert result.of("difference") == []
    shown = " ".join(capsys.readouterr().out.split())
    assert "Nothing can be said about the recipe: A has 1 root seed; B has 1 root seed." in shown
    assert "one model (1 seed)" in shown


@pytest.mark.parametrize(
    ("table", "where", "message"),
    [
        ("probes/lens/lenses.csv", WHERE, "has no such table; did you mean probes/lens/lens.csv"),
        (TABLE, ["metric=loss"], "2 rows of runs/a-s1 in .* differ in layer \\(0, 1\\); select one"),
        (TABLE, [], "4 rows .* differ in metric \\(loss, loss_kl\\); layer \\(0, 1\\)"),
        (
            TABLE,
            ["metric=losses", "layer=1"],
            "--where metric=losses: runs/a-s1 has no such row .* valid: loss, loss_kl",
        ),
        (TABLE, ["metrics=loss"], "has no such column; did you mean metric"),
        (TABLE, ["metric"], "--where metric: give COLUMN=VALUE, such as metric=accuracy"),
    ],
)
def test_a_choice_that_leaves_not_one_row_is_refused(measured, table, where, message):
    with pytest.raises(UsageError, match=message):
        compare_runs(measured, table=table, where=where)


def test_what_was_measured_otherwise_is_refused(measured):
    def write(value, rows=None, columns=COLUMNS, **flags):
        write_table(Path(measured[-1]) / TABLE, rows or rows_of(measured[-1], value), flags, columns)

    write(1.4, dataset_name="other")
    with pytest.raises(UsageError, match="measured with different dataset_name: other and tiny; measure all runs with"):
        compare_runs(measured, table=TABLE, where=WHERE)
    write(1.4, dataset_name="tiny", per_device_eval_batch_size=3)  # which changes no number
    assert compare_runs(measured, table=TABLE, where=WHERE).results
    write(0, [[*row[:-1], "bits"] for row in rows_of(measured[-1], 1.4)], dataset_name="tiny")
    with pytest.raises(UsageError, match=r"units differ \(nats per token, bits\)"):
        compare_runs(measured, table=TABLE, where=WHERE)
    write(0, [[*row[:3], "much", *row[4:]] for row in rows_of(measured[-1], 1.4)], dataset_name="tiny")
    with pytest.raises(UsageError, match=r"is not a number .*'much'"):
        compare_runs(measured, table=TABLE, where=WHERE)
    write(0, [[*row[:3], "", *row[4:]] for row in rows_of(measured[-1], 1.4)], dataset_name="tiny")
    with pytest.raises(UsageError, match="has no estimate; select another"):
        compare_runs(measured, table=TABLE, where=WHERE)
    write(0, [row[:-1] for row in rows_of(measured[-1], 1.4)], COLUMNS[:-1], dataset_name="tiny")
    with pytest.raises(UsageError, match="has no column unit; name a table with estimate, lower"):
        compare_runs(measured, table=TABLE, where=WHERE)
    write(0, rows_of("elsewhere/other", 1.4), dataset_name="tiny")
    with pytest.raises(UsageError, match="has no row of runs/b-s3; run the probe"):
        compare_runs(measured, table=TABLE, where=WHERE)


def test_flags_that_mean_nothing_together():
    with pytest.raises(UsageError, match="--where needs --table"):
        compare_arguments(["runs/a", "--where", "metric=loss"])
    with pytest.raises(UsageError, match=r"--table .* and --dataset_name"):
        compare_arguments(["runs/a", "--table", TABLE, "--dataset_name", "d"])


def compared(runs, table=TABLE, where=WHERE):
    (result,) = compare_runs(runs, table=table, where=where).results
    return result


def refused(runs, message, table=TABLE, where=WHERE):
    with pytest.raises(UsageError, match=message):
        compare_runs(runs, table=table, where=where)


def test_a_row_that_names_no_model_stands_for_no_run(measured):
    nameless = [[row[0] and "", *row[1:]] for row in rows_of("x", 2.0)]
    write_table(Path(measured[-1]) / TABLE, nameless, {"dataset_name": "tiny"})
    refused(measured, "has no row of runs/b-s3")
    write_table(Path("all.csv"), [*rows_of("a-s1", 1.0), *nameless])
    refused(measured, "has no row of runs/a-s2", table="all.csv")


def test_a_table_without_models_is_of_the_run_that_it_lies_under_alone(measured):
    for place, run in enumerate(measured):
        write_table(Path(run) / "mine.csv", [row[1:] for row in rows_of("", float(place))], columns=COLUMNS[1:])
    assert [row["estimate"] for row in compared(measured, "mine.csv").of("run")] == [0, 1, 2, 3, 4, 5]
    for elsewhere in ("../a-s1/mine.csv", str(Path(measured[0]).resolve() / "mine.csv")):
        refused(measured[::-1], "has no (column model to find the row|such table)", table=elsewhere)


def test_one_row_stands_for_one_run(make_run):
    """Runs of one name in two folders, and a table that has the last part of their names alone."""
    runs = [make_run(name, seed, LOW if "b" in name else {}) for name, seed in
            (("a-s1", 1), ("other/a-s1", 2), ("b-s1", 1), ("other/b-s1", 2))]  # fmt: skip
    write_table(Path("all.csv"), [*rows_of("a-s1", 1.0), *rows_of("b-s1", 2.0)])
    refused(runs, "runs/a-s1 and runs/other/a-s1 match the same row", table="all.csv")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("seed", ("1", "2", "3", "1", "2", "9"), "has seed 9 and the run has 3; measure it again"),
        ("step", ("100", "", "", "50", "", ""), "has step 50 and the run has 100"),
        ("role", ("finding",) * 5 + ("control",), "a finding and a control would be compared .finding in runs/a-s1"),
    ],
)
def test_rows_of_another_run_or_role_are_refused(measured, column, values, message):
    def write(values):
        for run, value in zip(measured, values, strict=True):
            rows = [[*row, value] for row in rows_of(run, 1.0)]
            write_table(Path(run) / TABLE, rows, {"dataset_name": "tiny"}, [*COLUMNS, column])

    write(values)
    refused(measured, message)
    write({"seed": "123123", "step": ("100", "") * 3, "role": ("finding",) * 6}[column])
    assert compared(measured).notes == ()


def test_what_else_differs_between_the_rows_is_told(measured, capsys):
    for place, run in enumerate(measured):
        rows = [
            [*row[:6], 40 + place // 5, row[7], "last" if place else "first", f"0.{place}"] for row in rows_of(run, 1)
        ]
        write_table(Path(run) / TABLE, rows, {"dataset_name": "tiny"}, [*COLUMNS, "place", "p"])
    notes = compared(measured).notes
    assert [note.split(":")[0] for note in notes] == ["the rows differ in n", "the rows differ in place"]
    assert notes[1].endswith("first in runs/a-s1, last in runs/a-s2 and 4 more")
    main([*measured, "--table", TABLE, "--where", *WHERE])
    assert "the rows differ in place: first in runs/a-s1, last in" in " ".join(capsys.readouterr().out.split())


def test_only_three_of_many_values_are_named(measured):
    for place, run in enumerate(measured):
        write_table(Path(run) / TABLE, [[*row, f"city {place}"] for row in rows_of(run, 1)], {}, [*COLUMNS, "city"])
    (note,) = (note for note in compared(measured).notes if "city" in note)
    assert note.endswith("city 0 in runs/a-s1, city 1 in runs/a-s2, city 2 in runs/a-s3, 6 values in all")


def test_the_flags_of_a_probe_are_those_of_all_its_tables(measured):
    for place, run in enumerate(measured):
        folder = Path(run) / "probes" / "lens"
        (folder / "lens_text.csv").write_bytes((folder / "lens.csv").read_bytes())
        flags = {"dataset_name": "tiny" if place else "other", "model_name_or_path": [run]}
        (folder / "lens.json").write_text(json.dumps({"arguments": flags}))
    refused(measured, "dataset_name: tiny and other", table="probes/lens/lens_text.csv")
    for run in measured:
        (Path(run) / "probes" / "lens" / "lens.json").unlink()
    assert compared(measured).notes == (f"flags unknown: {', '.join(measured)}",)


def test_texts_are_known_by_their_content_where_it_is_told(measured):
    def write(**last):
        for place, run in enumerate(measured):
            flags = {"model_name_or_path": [run, "runs/beside"], "data_cache_dir": "data", "texts_sha256": "f0"}
            flags |= last if place == 5 else {}
            write_table(Path(run) / TABLE, rows_of(run, float(place)), flags)

    write(data_cache_dir="/elsewhere/data")
    (note,) = compared(measured).notes
    assert note.startswith("measured together with: runs/a-s1: runs/beside; ")
    write(texts_sha256="f1")
    refused(measured, "measured with different texts_sha256: f1 and f0")
    write(texts_sha256=None, data_cache_dir="/elsewhere/data")
    refused(measured, "measured with different ")


def test_losses_by_token_are_of_one_tokenizer(make_run):
    runs = [make_run("a", 1), make_run("b", 1, {"data.tokenizer_hash": "t1"})]
    for run in runs:
        write_table(Path(run) / TABLE, rows_of(run, 1.0), {})
    refused(runs, "different tokenizers, so nats per token are not comparable")
    assert compared(runs, where=["metric=loss_kl", "layer=1"]).unit == "nats"


def test_files_that_are_no_tables_are_one_line(measured):
    place = Path(measured[-1]) / TABLE
    whole, before = place.read_bytes(), compared(measured).rows
    place.write_bytes(b"\xff\xfe\x00" + whole)
    refused(measured, "cannot be read")
    place.write_bytes(whole + b"a,b\n")
    refused(measured, "line 10: not 8 cells as in its header")
    place.write_text(whole.decode().replace("\n", f",{'x' * 200_000}\n", 1))
    limit = csv.field_size_limit(131_072)  # the default, which reading long stories raises for the whole process
    refused(measured, "cannot be read .*field larger than field limit")
    csv.field_size_limit(limit)
    place.write_bytes(b"\xef\xbb\xbf" + whole)  # a byte order mark, as spreadsheets write it
    assert compared(measured).rows == before
    for spoilt in ("40,", "0,"):
        place.write_text(
            whole.decode().replace("40,nats per token", spoilt + ("" if spoilt == "40," else "nats per token"))
        )
        refused(measured, "has no unit, n or interval")
    refused(measured, "name too long", table="x" * 5000)
    refused(measured, "has no such table", table="probes")
    refused(measured, "--where layer=1 layer=0: a row has one layer", where=["layer=1", "layer=0"])


def test_a_value_may_hold_an_equals_sign(measured):
    for run in measured:
        rows = [[*row[:1], "asked=Twist", *row[2:]] for row in rows_of(run, 1.0)[:2]]
        write_table(Path(run) / TABLE, rows, {"dataset_name": "tiny"})
    assert compared(measured, where=["metric=asked=Twist", "layer=1"]).unit == "nats per token"
