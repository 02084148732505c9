"""Reproduction: every number that came out otherwise is named, and the status says so."""

import shutil
from pathlib import Path

import pytest
from fake_trials import TRIAL

from lm_trials.console import UsageError
from lm_trials.trials import run
from lm_trials.trials.reproduce import main, read_table
from lm_trials.trials.trial_file import read_trial
from lm_trials.trials.trial_report import main as report


@pytest.fixture
def reproduce(make_trial, no_figures, monkeypatch, capsys):
    """Report a trial, then reproduce it with runs that `change` may alter; returns status, rows and output."""

    def again(change=lambda runs: None):
        report([str(make_trial())])
        called = []

        def rerun(argv):
            called.append(argv)
            shutil.copytree("runs/t", "runs/t-reproduced", dirs_exist_ok=True)
            change(Path("runs/t-reproduced"))

        monkeypatch.setattr(run, "main", rerun)
        capsys.readouterr()
        status, rows = 0, []
        try:
            rows = main(["results/t", "--workers", "2"])
        except SystemExit as left:
            status = left.code
        expected = ["runs/t-reproduced/t-reproduced.yaml", "--runs_dir", "runs", "--workers", "2"]
        assert called == [expected]
        assert Path(expected[0]).read_bytes() == Path("trials/t.yaml").read_bytes()
        return status, rows, capsys.readouterr().out

    return again


def exchange(runs):
    """Give one run the evaluation of another."""
    place = "eval/recovery-validation/per_story.parquet"
    shutil.copy(runs / "recover-never-s0" / place, runs / "recover-never-s1" / place)


def test_the_same_runs_give_the_same_numbers_bit_for_bit(reproduce):
    status, rows, shown = reproduce()
    assert status == 0
    assert len(rows) == 3 * 4 * 2 * 2 + 3 * 5
    assert {result for *_, result in rows} == {"the same"}
    assert f"{len(rows)} of {len(rows)} numbers" in shown


def test_a_number_that_differs_is_named_and_the_status_is_1(reproduce):
    status, _, shown = reproduce(exchange)
    assert status == 1
    assert "loss on recovery: never - seen, 1, recover.never, value" in " ".join(shown.split())
    assert "loss on recovery: never - seen, 0, recover.never, value" not in " ".join(shown.split())


def test_the_recipes_of_a_trial_are_kept_and_used(make_trial, no_figures, monkeypatch):
    """On a machine that has other recipes of these names, and one of them not."""
    for name, rate in (("own.yaml", 0.004), ("more/it's.yaml", 0.001)):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"learning_rate: {rate}\n")
    config = "    config: own.yaml  # not ./own.yaml.old\n    max_steps: 100"
    text = TRIAL.replace("    max_steps: 100", config)
    text = text.replace("{program: train, after", """{config: "more/it's.yaml", program: train, after""")
    report([str(make_trial(text=text))])
    kept = {path.name: path.read_text() for path in Path("results/t/recipes").iterdir()}
    assert kept == {"own.yaml": "learning_rate: 0.004\n", "more-it's.yaml": "learning_rate: 0.001\n"}
    Path("own.yaml").write_text("learning_rate: 7\n")
    shutil.rmtree("more")
    monkeypatch.setattr(run, "main", lambda argv: shutil.copytree("runs/t", "runs/t-reproduced", dirs_exist_ok=True))
    assert {result for *_, result in main(["results/t"])} == {"the same"}
    file = Path("runs/t-reproduced/t-reproduced.yaml")
    assert "# not ./own.yaml.old" in file.read_text()
    for stage, arm in (("pretrain", "seen"), ("recover", "never")):
        recipe = Path(read_trial(file).stages[stage].flags[arm]["config"])
        assert recipe.parent == Path("runs/t-reproduced/recipes")
        assert recipe.read_text() == kept[recipe.name]


def test_a_folder_without_results_is_refused(capsys):
    Path("results").mkdir()
    for words, text in ((["results"], "results has no trial.yaml"), ([], "needs a folder of results")):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after"), [(",", ";"), ("contrast", "name"), ("0.5", "half"), ("x,0,a,0.5,\n", "")])
def test_a_table_that_another_program_has_changed_is_one_line(tmp_path, before, after):
    table = tmp_path / "values.csv"
    text = "contrast,seed,arm,value,difference\nx,0,a,0.5,\n"
    table.write_text(text)
    assert read_table(table)[0]["value"] == "0.5"
    table.write_text(text.replace(before, after))
    with pytest.raises(UsageError, match=r"values\.csv .*; write the results again with lm-trials report"):
        read_table(table)
