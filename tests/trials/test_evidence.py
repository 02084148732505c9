"""What stands beside the numbers: differences between arms, deviations, cost."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_trials import TRIAL
from safetensors.numpy import save_file

from lm_trials.files import file_sums
from lm_trials.trials.evidence import all_deviations, all_runs, cost, lineage, other_commands, stage_differences
from lm_trials.trials.graph import Job, jobs_of
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


@pytest.mark.parametrize(("flag", "unstated"), [("order: file", 0), ("weight_decay: 0.1", 1)])
def test_the_order_of_the_file_is_recorded_as_a_buffer_of_one(make_trial, flag, unstated):
    arms = f"learning_rate: 0.004, arms: {{seen: {{}}, never: {{{flag}}}}}}}\nmeasure"
    text = TRIAL.replace("learning_rate: 0.004}\nmeasure", arms)
    changes = {f"recover-never-s{seed}": {"shuffle_buffer_size": 1} for seed in range(4)}
    found = deviations_of(make_trial, text=text, changes=changes)
    line = "recover.seen and recover.never differ in more than the file states: shuffle_buffer_size"
    assert found == [line] * unstated


def test_runs_of_one_arm_that_differ_are_named(make_trial):
    (found,) = deviations_of(make_trial, changes={"recover-never-s2": {"weight_decay": 0.3}})
    assert found == "the runs of recover.never differ in more than their seeds: weight_decay"


@pytest.mark.parametrize(("value", "deviations"), [('"{decay}"', 0), ("0.1", 1)])
def test_what_the_file_varies_between_root_seeds_is_no_deviation(make_trial, value, deviations):
    changes = {f"recover-never-s{seed}": {"weight_decay": 0.1 * (seed + 1)} for seed in range(4)}
    arms = f"learning_rate: 0.004, arms: {{seen: {{}}, never: {{weight_decay: {value}}}}}}}\nmeasure"
    text = TRIAL.replace("learning_rate: 0.004}\nmeasure", arms)
    text = text.replace("seeds:", "per_seed: {decay: {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}}\nseeds:", 1)
    found = deviations_of(make_trial, text=text, changes=changes)
    assert found == ["the runs of recover.never differ in more than their seeds: weight_decay"] * deviations


def test_a_registration_of_another_trial_is_named(make_trial):
    trial = read_trial(make_trial())
    for name, expected in (("t", []), ("u", ["the registration is that of the trial u"])):
        registration = {**REGISTERED, "registered": trial.registered, "trial": name}
        assert all_deviations(trial, registration, all_runs(trial, TrialRuns(Path("runs/t")))) == expected


def test_runs_that_were_moved_do_not_differ_in_what_they_started_from(make_trial):
    trial = read_trial(make_trial())
    for arm in ("seen", "never"):
        for seed in trial.seeds:
            file = Path(f"runs/t/recover-{arm}-s{seed}/run.json")
            outcome = json.loads(file.read_text())["outcome"]
            initial = outcome["initial_model"] | {
                "name_or_path": f"gone/{arm}-s{seed}",
                "weights_sha256": arm + str(seed),
            }
            update(file, outcome=outcome | {"initial_model": initial})
    assert (
        all_deviations(
            trial, {**REGISTERED, "registered": trial.registered}, all_runs(trial, TrialRuns(Path("runs/t")))
        )
        == []
    )


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


@pytest.mark.parametrize("stated", [True, False])
def test_a_stated_injection_states_the_schedule_that_it_is_short_for(make_trial, stated):
    changes = {f"pretrain-never-s{seed}": {"order_schedule": "[]"} for seed in range(4)}
    text = TRIAL
    if stated:
        text = text.replace("{dataset_name: all}", "{inject: a@1-2, dataset_name: all}")
        text = text.replace("{dataset_name: without}", "{inject: a@3-4, dataset_name: without}")
        text = text.replace("    max_steps: 100", "    varies: [dataset_name, inject]\n    max_steps: 100")
    line = "pretrain.seen and pretrain.never differ in more than the file states: order_schedule"
    assert deviations_of(make_trial, text=text, changes=changes) == ([] if stated else [line])


def test_cost_is_of_all_attempts_with_an_end(make_trial):
    make_trial()
    assert str(cost(Path("runs/t"))) == "0.00 core-hours, 0.00 of them for training"
    lines = [
        {"job": "a", "event": "start", "time": 0.0, "cpus": 2, "gpus": 1},
        {"job": "b", "event": "start", "time": 0.0, "cpus": 2, "gpus": 0},
        {"job": "a/evaluate-1", "event": "start", "time": 0.0, "cpus": 2, "gpus": 0},
        {"job": "a", "event": "end", "time": 1800.0, "status": 1, "cpus": 2, "gpus": 1},
        {"job": "a/evaluate-1", "event": "end", "time": 900.0, "status": 0, "cpus": 2, "gpus": 0},
    ]
    Path("runs/t/attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = cost(Path("runs/t"))
    assert (found.core_hours, found.training_core_hours, found.gpu_hours, found.open) == (1.5, 1.0, 0.5, 1)
    assert "1.50 core-hours, 1.00 of them for training, 0.50 GPU-hours" in str(found)
    assert str(found).endswith("killed or still run (1)")


def update(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def jobs(make_trial):
    """The jobs of a trial whose runs recorded the commands of the file."""
    found = jobs_of(read_trial(make_trial()), Path("runs/t"))
    for job in found:
        if not job.receipt:
            update(job.folder / "run.json", environment={"command": ["lm-trials", *job.words]})
    return found


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (lambda words: ["train_gpt2.py", *words[3:], *words[1:3]], ""),  # another order
        (lambda words: ["cli.py", "run", "t.yaml", "--workers", "2"], ""),  # of the engine, in earlier versions
        (lambda words: [], ""),
        (lambda words: ["lm-trials", *words, "--weight_decay=0.3"], "weight_decay 0.3 instead of not set"),
        (
            lambda words: ["train_gpt2.py", *words[1:], "--learning_rate", "1", "--bf16"],
            "bf16 True instead of not set, learning_rate 1 instead of 0.004",
        ),
        (lambda words: ["lm-trials", *words[:-2]], "data_seed not set instead of 3"),
    ],
)
def test_a_run_that_was_trained_by_hand_is_named_with_the_flags_that_differ(jobs, command, text):
    job = next(job for job in jobs if job.name == "pretrain-seen-s3")
    assert job.words[-2:] == ("--data_seed", "3")
    update(job.folder / "run.json", environment={"command": command(list(job.words))})
    expected = [f"pretrain-seen-s3: trained by another command than the file's: {text}"] if text else []
    assert other_commands(jobs) == expected


def test_runs_that_were_all_trained_alike_by_hand_are_one_line(jobs):
    runs = [job for job in jobs if not job.receipt]
    for job in runs:
        update(job.folder / "run.json", environment={"command": ["lm-trials", *job.words, "--dropout", "0.2"]})
    (line,) = other_commands(jobs)
    assert line.startswith("pretrain-seen-s0, pretrain-never-s0, recover-seen-s0, recover-never-s0, pretrain-seen-s1")
    assert line.endswith(": trained by another command than the file's: dropout 0.2 instead of not set")


def test_a_run_from_other_weights_than_its_parent_has_and_one_whose_weights_were_exchanged_are_named(jobs):
    parent, other = Path("runs/t/pretrain-never-s1"), Path("runs/t/recover-seen-s2")
    (other / "finished.json").write_text(json.dumps({"files": file_sums(other, ["finished.json"])}))
    assert other_commands(jobs) == []
    for folder in (parent, other):
        save_file({"wte": np.ones((400, 32), np.float32), "h": np.zeros(7, np.float32)}, folder / "model.safetensors")
    assert other_commands(jobs) == [
        "recover-never-s1: not trained from the weights that pretrain-never-s1 has now",
        "recover-seen-s2: changed after its training: model.safetensors has other content than when it was written "
        "(sha256)",
    ]


def test_a_measurement_that_was_made_by_hand_is_named_with_the_flags_that_differ(jobs):
    for job in jobs:
        if job.receipt:
            same = {"max_eval_samples": None, "dataset_name": ["recovery"], "per_device_eval_batch_size": 1}
            update(job.folder / "eval/recovery-validation/data_args.json", **same)
    assert other_commands(jobs) == []
    update(Path("runs/t/recover-never-s1/eval/recovery-validation/data_args.json"), max_eval_samples=4)
    assert other_commands(jobs) == [
        "recover-never-s1: eval/recovery-validation was measured with other flags than the file's: max_eval_samples 4 "
        "instead of not set"
    ]
    folder = Path("runs/t/recover-seen-s1")
    words = ("probe", "lens", "--model_name_or_path", str(folder), "--dataset_name", "recovery")
    probe = Job("x", words, (), "x", folder, folder / "measured/2.json")
    assert other_commands([probe]) == []
    (folder / "probes/lens").mkdir(parents=True)
    (folder / "probes/lens/lens.json").write_text(json.dumps({"arguments": {"seed": 7, "model_name_or_path": ["x"]}}))
    (line,) = other_commands([probe])
    assert line == "recover-seen-s1: probes/lens was measured with other flags than the file's: seed 7 instead of 0"
