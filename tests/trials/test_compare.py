"""The command, end to end, on run folders written by hand."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lm_trials.console import UsageError
from lm_trials.trials.compare import compare_runs, main
from lm_trials.trials.paired import holm
from lm_trials.trials.two_way import two_way

LOW = {"learning_rate": 0.001}


def nats(seed, shift=0.0, count=50):
    """Losses of stories that all runs share, with the noise of a seed."""
    stories = np.random.default_rng(0).gamma(5, 4, count)
    return list(stories + shift + np.random.default_rng(seed).normal(0, 0.5, count))


@pytest.fixture
def two_arms(make_run):
    return [
        *(make_run(f"a-s{seed}", seed, nats=nats(seed)) for seed in (1, 2, 3)),
        *(make_run(f"b-s{seed}", seed, LOW, nats=nats(seed + 10, 1.0)) for seed in (1, 2, 3)),
    ]


def test_two_arms_of_three_seeds_from_the_command_to_the_files(two_arms, capsys):
    comparison = main([*two_arms, "--output", "out"])
    losses = np.array([np.sum(nats(seed, shift)) / 500 for seed, shift in
                       ((1, 0), (2, 0), (3, 0), (11, 1), (12, 1), (13, 1))]).reshape(2, 3)  # fmt: skip
    (result,) = comparison.results
    arms = result.of("arm")
    assert [row["estimate"] for row in arms] == pytest.approx(losses.mean(axis=1))
    assert [row["interval"] for row in arms] == ["seeds and stories", "seeds and stories"]
    over_both, over_stories, over_seeds = result.of("difference")
    stories = np.array([nats(seed, shift) for seed, shift in ((1, 0), (2, 0), (3, 0), (11, 1), (12, 1), (13, 1))])
    expected = two_way(stories[3:] - stories[:3], np.full(50, 10), "nats per token")
    assert (over_both["lower"], over_both["upper"]) == pytest.approx(
        (expected.difference.lower, expected.difference.upper)
    )
    assert over_both["interval"] == "seeds and stories"
    assert over_stories["estimate"] == pytest.approx(over_seeds["estimate"])
    assert over_seeds["p"] == pytest.approx(stats.ttest_rel(losses[1], losses[0]).pvalue)
    assert over_seeds["method"] == "t over pairs of root seeds"
    assert over_stories["p"] < 0.001

    written = json.loads(Path("out/compare.json").read_text())
    assert written["verdict"].endswith("differs: learning_rate")
    assert [len(arm["runs"]) for arm in written["arms"]] == [3, 3]
    with Path("out/compare.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"estimate", "lower", "upper", "n", "unit", "seed"} <= rows[0].keys()
    assert [row["row"] for row in rows] == ["run"] * 6 + ["arm"] * 2 + ["difference"] * 3
    assert [row["family"] for row in rows] == [""] * 8 + ["exploratory"] * 3
    assert written["family"] == "exploratory"
    assert [row["seed"] for row in rows[:6]] == ["1", "2", "3", "1", "2", "3"]
    assert Path("out/compare.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(Path("out").glob(".*"))
    shown = capsys.readouterr().out
    for text in ("differs: learning_rate", "the same in all: 12,807", "Paired by root seed. Exploratory: no test",
                 "root seeds A 3; B 3", "3 seeds, stories", "B minus A, new seeds and stories"):  # fmt: skip
        assert text in " ".join(shown.split())


def test_one_seed_says_that_it_has_no_interval_over_seeds(make_run, capsys):
    comparison = main([make_run("a", nats=nats(1)), make_run("b", change=LOW, nats=nats(2))])
    shown = " ".join(capsys.readouterr().out.split())
    assert "stories (1 seed)" in shown
    assert "Nothing can be said about the recipe: A has 1 root seed; B has 1 root seed." in shown
    (result,) = comparison.results
    assert [row["interval"] for row in result.of("difference")] == ["stories"]
    first, _ = result.of("arm")
    assert first["lower"] < first["estimate"] < first["upper"]
    assert Path("out/compare/compare.json").is_file()


def test_other_seeds_are_not_paired(make_run):
    runs = [make_run(f"a{s}", s, nats=nats(s)) for s in (1, 2)]
    runs += [make_run(f"b{s}", s, LOW, nats=nats(s)) for s in (3, 4)]
    (result,) = compare_runs(runs).results
    assert [row["interval"] for row in result.of("difference")] == ["seeds and stories", "stories", "seeds"]
    assert result.of("difference")[2]["method"] == "Welch's t over root seeds"
    assert {row["pairing"] for row in result.of("difference")} == {"root seeds not paired"}


def tuned(make_run, name, base, root, seed, change, nats):
    """A fine-tuning of a run whose folder is gone: its lineage is what `run.json` has."""
    run = {"run_name": base, "replicate": {"seed": root, "data_seed": root}}
    initial = {"name_or_path": f"gone/{base}", "run": run, "weights_sha256": "w"}
    lineage = [{**run, "weights_sha256": "w"}]
    return make_run(name, seed, {"initial_model": initial, **change}, nats=nats, lineage=lineage)


def test_fine_tunings_of_one_base_are_one_root_seed(make_run, capsys):
    runs = [tuned(make_run, f"a{s}", "base", 1, s, {}, nats(s)) for s in (0, 1, 2)]
    runs += [tuned(make_run, f"b{s}", "base", 1, s, LOW, nats(s + 10, 1.0)) for s in (0, 1, 2)]
    comparison = main(runs)
    (row,) = comparison.results[0].of("difference")
    assert (row["interval"], row["seeds"]) == ("stories", 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "root seeds A 1 (3 fine-tunings); B 1 (3 fine-tunings)" in shown
    assert "Nothing can be said about the recipe: A has 1 root seed (3 fine-tunings); B has" in shown
    written = json.loads(Path("out/compare/compare.json").read_text())
    assert [arm["root_seeds"] for arm in written["arms"]] == [[1], [1]]


def test_parents_and_children_are_paired_by_root_seed(make_run):
    """Two fine-tunings of each of three bases, against the bases: three pairs, whatever the seeds of the second."""
    values = {root: nats(root) for root in (1, 2, 3)}
    runs = [make_run(f"base{root}", root, nats=values[root]) for root in values]
    children = []
    for root in values:
        for seed in (7, 8):
            name, losses = f"tuned{root}-{seed}", nats(10 * root + seed, -0.5)
            change = {"initial_model": {"name_or_path": "gone", "run": {}, "weights_sha256": "w"}, **LOW}
            run = {"run_name": "b", "replicate": {"seed": root, "data_seed": root}}
            children.append((root, losses))
            runs.append(make_run(name, 10 * root + seed, change, nats=losses, lineage=[run]))
    rows = compare_runs(runs).results[0].of("difference")
    assert [(row["seeds"], row["pairing"]) for row in rows] == [(3, "paired by root seed")] * 3
    of_root = np.array([np.mean([losses for of, losses in children if of == root], axis=0) for root in values])
    expected = two_way(of_root - np.array(list(values.values())), np.full(50, 10), "nats per token")
    assert (rows[0]["estimate"], rows[0]["p"]) == pytest.approx((expected.difference.estimate, expected.p))


def test_data_orders_of_one_seed_are_one_root_seed(make_run):
    runs = [make_run(f"{arm}{s}", 1, change, nats=nats(s), data_seed=s) for arm, change in (("a", {}), ("b", LOW))
            for s in (1, 2)]  # fmt: skip
    assert [row["interval"] for row in compare_runs(runs).results[0].of("difference")] == ["stories"]


def test_all_differences_of_a_command_are_one_family(make_run, capsys):
    runs = []
    for rate in (1, 2, 3):
        for seed in (1, 2, 3):
            losses = nats(10 * rate + seed, rate / 10)
            run = make_run(f"{rate}-s{seed}", seed, {"learning_rate": rate}, nats=losses, dataset="one")
            other = Path(run, "eval", "two")
            shutil.copytree(Path(run, "eval", "one"), other)
            runs.append(run)
    comparison = main(runs)
    rows = [row for result in comparison.results for row in result.of("difference")]
    assert len(rows) == 2 * 2 * 3
    for interval in ("seeds and stories", "stories", "seeds"):
        p, corrected = zip(*((row["p"], row["p_holm"]) for row in rows if row["interval"] == interval), strict=True)
        assert list(corrected) == holm(p)
        assert min(corrected) == pytest.approx(4 * min(p))
    assert "Exploratory: no test was registered, 4 differences in all." in " ".join(capsys.readouterr().out.split())


def test_seeds_are_paired_by_their_number_and_not_by_the_order_of_the_command(two_arms):
    straight = compare_runs(two_arms).results[0].of("difference")
    mixed = compare_runs([*two_arms[:3], *two_arms[5:2:-1]]).results[0].of("difference")
    for one, other in zip(straight, mixed, strict=True):
        assert other["estimate"] == pytest.approx(one["estimate"])
        assert other["p"] == pytest.approx(one["p"])


def test_swapping_the_arms_negates_every_difference(two_arms):
    there = compare_runs(two_arms).results[0].of("difference")
    back = compare_runs(two_arms, baseline=two_arms[3]).results[0].of("difference")
    for one, other in zip(there, back, strict=True):
        assert (other["estimate"], other["lower"]) == pytest.approx((-one["estimate"], -one["upper"]))


def test_three_arms_are_corrected_for_two_comparisons(make_run):
    runs = [make_run(str(rate), change={"learning_rate": rate}, nats=nats(rate, rate / 10)) for rate in (1, 2, 3)]
    rows = compare_runs(runs).results[0].of("difference")
    p, corrected = ([row[name] for row in rows] for name in ("p", "p_holm"))
    assert min(corrected) == pytest.approx(2 * min(p))
    assert [row["reference"] for row in rows] == ["A", "A"]


def test_stories_are_joined_by_record_and_equal_records_by_their_order(make_run):
    ids, rest = ["x", "y", "x", "z"], [f"story{number}" for number in range(10)]
    first = make_run("a", nats=[1.0, 2.0, 3.0, 4.0, *range(10)], ids=ids + rest)
    turned = make_run("b", change=LOW, nats=[4.0, 1.0, 3.0, 2.0, *range(10)], ids=["z", "x", "x", "y", *rest])
    (row,) = compare_runs([first, turned]).results[0].of("difference")
    assert (row["estimate"], row["p"]) == (0, 1)
    assert math.isnan(row["lower"])  # every difference is 0
    other = make_run("c", change=LOW, nats=[4.0, 3.0, 1.0, 2.0, *range(10)], ids=["z", "x", "x", "y", *rest])
    (row,) = compare_runs([first, other]).results[0].of("difference")
    assert row["lower"] < 0 < row["upper"]


def test_other_tokens_of_the_same_stories_are_compared_in_bits_per_byte(make_run):
    first = make_run("a", nats=[4.0, 8.0], tokens=[5, 7], sizes=[20, 30])
    second = make_run("b", change={"data.tokenizer_hash": "t1"}, nats=[5.0, 9.0], tokens=[4, 7], sizes=[20, 30])
    (result,) = compare_runs([first, second]).results
    assert result.unit == "bits per byte"
    assert "compared in bits per byte" in result.notes[0]
    assert [row["estimate"] for row in result.of("arm")] == pytest.approx(
        [12 / math.log(2) / 50, 14 / math.log(2) / 50]
    )
    same = make_run("c", change=LOW, nats=[5.0, 9.0], tokens=[5, 7], sizes=[20, 30])
    assert compare_runs([first, same]).results[0].unit == "nats per token"


def test_a_story_without_a_token_to_predict_is_left_out(make_run):
    runs = [make_run("a", nats=[4.0, 0.0], tokens=[5, 0]), make_run("b", change=LOW, nats=[5.0, 0.0], tokens=[5, 0])]
    (result,) = compare_runs(runs).results
    assert [row["n"] for row in result.of("arm")] == [1, 1]
    assert result.notes == ("1 stories without a token to predict are left out",)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"nats": [1.0, 2.0], "ids": ["story0", "other"]}, "different stories of tiny-validation .2 of 3"),
        ({"nats": [1.0, 2.0, 3.0]}, "different stories"),
        ({"nats": [1.0, 2.0], "tokens": [10, 11], "sizes": [40, 41]}, "equal records have different texts"),
        ({"nats": [1.0, math.nan]}, "runs/b diverged"),
        ({"nats": [1.0, 2.0], "settings": {"layout": "packed"}}, "different layouts: runs/a per_story, runs/b packed"),
    ],
)
def test_evaluations_that_are_not_alike_are_refused(make_run, more, text):
    with pytest.raises(UsageError, match=text):
        compare_runs([make_run("a", nats=[1.0, 2.0]), make_run("b", change=LOW, **more)])


def test_another_window_of_the_evaluation_is_noted(make_run):
    runs = [
        make_run("a", nats=[1.0, 2.0], settings={"block_size": 32}),
        make_run("b", change=LOW, nats=[1.0, 2.0], settings={"block_size": 64}),
    ]
    assert compare_runs(runs).results[0].notes == ("evaluated with different block_size: 32, 64",)


def test_without_shared_stories_the_runs_own_validation_is_shown_and_the_command_for_more(make_run, capsys):
    runs = [make_run("a", own=2.0), make_run("b", change=LOW, own=2.5)]
    comparison = main(runs)
    (result,) = comparison.results
    assert [row["estimate"] for row in result.of("arm")] == [2.0, 2.5]
    assert result.of("difference") == []
    command = "lm-trials evaluate --model_name_or_path runs/a runs/b --dataset_name tiny"
    assert comparison.next_command == command
    assert command in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "more", [{"change": {"data.content": "c1"}}, {"change": LOW, "logistics": {"max_eval_samples": 9}}]
)
def test_own_validations_of_other_stories_are_not_compared(make_run, more):
    assert compare_runs([make_run("a", own=2.0), make_run("b", own=2.5, **more)]).results == ()


def test_own_validations_over_seeds_are_tested_over_seeds(make_run):
    runs = [make_run(f"a{s}", s, own=2 + s / 10) for s in (1, 2)]
    runs += [make_run(f"b{s}", s, LOW, own=3 + s / 7) for s in (1, 2)]
    (row,) = compare_runs(runs).results[0].of("difference")
    assert row["interval"] == "seeds"
    assert row["p"] == pytest.approx(stats.ttest_rel([3 + 1 / 7, 3 + 2 / 7], [2.1, 2.2]).pvalue)


def test_a_comparison_without_results_leaves_no_table_of_an_earlier_one(make_run):
    main([make_run("a", nats=[1.0, 2.0]), make_run("b", change=LOW, nats=[1.0, 2.5])])
    assert Path("out/compare/compare.csv").is_file()
    main(["runs/a", make_run("c", change=LOW | {"weight_decay": 1.0})])
    assert sorted(path.name for path in Path("out/compare").iterdir()) == ["compare.json"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--dataset_name", "tiny-valid"], "no run has eval/tiny-valid; did you mean tiny-validation"),
        (["--dataset_name", "extra"], "--dataset_name extra: runs/b lack it; evaluate all alike: lm-trials evaluate"),
        (
            ["--output", "runs/a/run.json"],
            "--output runs/a/run.json cannot be written to (Not a directory); give another",
        ),
        (["--baseline", "runs/x"], "--baseline runs/x is none of the runs"),
        (["--verbose"], "unrecognized flag --verbose"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2_and_nothing_is_written(make_run, capsys, more, text):
    runs = [make_run("a", nats=[1.0, 2.0]), make_run("b", change=LOW, nats=[1.0, 2.0])]
    extra = Path("runs/a/eval/extra")
    extra.mkdir()
    for file in Path("runs/a/eval/tiny-validation").iterdir():
        (extra / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit) as left:
        main([*runs, *more])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not Path("out").exists()


def test_only_the_data_set_that_was_asked_for(make_run):
    runs = [make_run("a", nats=[1.0, 2.0]), make_run("b", change=LOW, nats=[1.0, 2.0])]
    assert [result.dataset for result in compare_runs(runs, datasets=["tiny-validation"]).results] == [
        "tiny-validation"
    ]
