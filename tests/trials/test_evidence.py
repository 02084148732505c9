"""What stands beside the numbers: differences between arms, deviations, cost."""

import json
from pathlib import Path

from fake_trials import TRIAL

from lm_trials.trials.evidence import all_deviations, all_runs, cost, lineage, stage_differences
from lm_trials.trials.outcomes import TrialRuns
from lm_trials.trials.trial_file import read_trial

REGISTERED = {"time": "now"}


def deviations_of(make_trial, **given):
    trial = read_trial(make_trial(**given))
    registration = {**REGISTERED, "registered": trial.registered}
    return all_deviations(trial, registration, all_runs(trial, TrialRuns(Path("runs/t"))))


def test_arms_that_differ_as_the_file_says_are_no_deviation(make_trial):
    assert deviations_of(make_trial) == []


def test_arms_that_differ_in_more_are_named_with_the_variable(make_trial):
    changes = {f"recover-never-s{seed}": {"learning_rate": 0.1} for seed in range(4)}
    assert deviations_of(make_trial, changes=changes) == [
        "recover.seen and recover.never differ in more than the file states: learning_rate"
    ]


def test_runs_of_one_arm_that_differ_are_named(make_trial):
    (found,) = deviations_of(make_trial, changes={"recover-never-s2": {"weight_decay": 0.3}})
    assert found == "the runs of recover.never differ in more than their seeds: weight_decay"


def test_other_code_is_one_deviation_of_the_whole_trial(make_trial):
    (found,) = deviations_of(make_trial, changes={"recover-never-s2": {"code_revision": "bbbb"}})
    assert found == "the runs have different code_revision: aaaa, bbbb"


def test_the_stages_of_two_lineages(make_trial):
    trial = read_trial(make_trial())
    assert lineage(trial, ("recover", "never")) == {"pretrain": "never", "recover": "never"}
    of_arms = all_runs(trial, TrialRuns(Path("runs/t")))
    first, second = stage_differences(trial, trial.contrasts[0], of_arms)
    assert (first.stage, first.arms, first.variables) == ("pretrain", ("seen", "never"), ("dataset_name",))
    assert (second.stage, second.variables, second.unstated) == ("recover", ("model_name_or_path",), ())


def test_a_stated_recipe_states_what_it_sets(make_trial):
    text = TRIAL.replace("{dataset_name: all}", "{config: demo, dataset_name: all}")
    text = text.replace("{dataset_name: without}", "{config: start_cpu, dataset_name: without}")
    text = text.replace("    max_steps: 100", "    varies: [config, dataset_name]\n    max_steps: 100")
    changes = {f"pretrain-never-s{seed}": {"weight_decay": 0.1} for seed in range(4)}
    assert deviations_of(make_trial, text=text, changes=changes) == []


def test_cost_is_of_all_attempts_with_an_end(make_trial):
    trial = read_trial(make_trial())
    everyone = [run for runs in all_runs(trial, TrialRuns(Path("runs/t"))).values() for run in runs]
    assert cost(Path("runs/t"), everyone).core_hours == 0
    assert str(cost(Path("runs/t"), everyone)) == "0.16 hours of training"
    lines = [
        {"job": "a", "event": "start", "time": 0.0, "cpus": 2, "gpus": 1},
        {"job": "b", "event": "start", "time": 0.0, "cpus": 2, "gpus": 0},
        {"job": "a", "event": "end", "time": 1800.0, "status": 1, "cpus": 2, "gpus": 1},
    ]
    Path("runs/t/attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = cost(Path("runs/t"), everyone)
    assert (found.core_hours, found.gpu_hours, found.killed) == (1.0, 0.5, 1)
    assert "1.00 core-hours, 0.50 GPU-hours" in str(found)
    assert "1 attempts were killed" in str(found)
