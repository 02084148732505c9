"""Trials run from their file: killed at any instant, the same command ends with the same bits."""

import copy
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from trials.trial_texts import TRIAL, changed, write_trial

from lm_trials.trials import plan, run, status
from lm_trials.trials.evidence import other_commands
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.local import LocalExecutor
from lm_trials.trials.trial_file import read_trial

SHAPE = "hidden_size=16,intermediate_size=32"
TINY = {
    "config_name": "demo",
    "config_overrides": f"{SHAPE},num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2",
    "vocab_size": 400,
    "block_size": 64,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
    "num_sampled_stories": 0,
    "generate_every": 0,
    "max_eval_samples": 4,
    "report_to": "none",
    "use_cpu": True,
}
LINEAR = {name: value for name, value in TINY.items() if name not in ("config_name", "config_overrides", "vocab_size")}


def tiny_trial(seeds=(0,)):
    own = copy.deepcopy(TRIAL["stages"])
    stages = {"pretrain": {**own["pretrain"], **TINY}, "more": {**own["more"], **LINEAR}}
    measure = ["evaluate --dataset_name generated --max_eval_samples 4 --use_cpu"]
    return {**TRIAL, "seeds": list(seeds), "stages": stages, "measure": measure[:1]}


def weights(runs="runs/decay"):
    return {
        str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(runs).glob("*-s*/model.safetensors"))
    }


def start(*words):
    """Start the command as a user does, in a session of its own so that all its processes can be counted."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "80"}
    command = [sys.executable, "-m", "lm_trials.cli", *words]
    with Path("out.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def wait_for(condition, seconds=90.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, Path("out.log").read_text()
        time.sleep(0.02)


@pytest.mark.end_to_end
def test_a_trial_that_is_killed_and_started_again_ends_with_the_same_bits():
    """One lineage; the slow tests have several, and more kills."""
    one = tiny_trial()
    one["stages"]["pretrain"].pop("arms")
    one["stages"]["pretrain"]["max_steps"] = 40  # 6 ended once before the kill
    write_trial(Path("decay.yaml"), {**one, "primary": None})
    process = start("run", "decay.yaml", "--workers", "1", "--threads", "1")
    wait_for(lambda: list(Path("runs/decay").glob("pretrain-*/checkpoint-2")))
    process.kill()
    process.wait()
    assert weights() == {}
    assert run.main(["decay.yaml", "--workers", "1", "--threads", "1"]) == []
    assert set(status.main(["decay.yaml"]).values()) == {"finished"}
    registered = json.loads(Path("runs/decay/registration.json").read_text())
    assert registered["registered"]["test"]["seeds"] == [0]
    jobs = jobs_of(read_trial(Path("decay.yaml")), Path("runs/decay"))
    assert other_commands(jobs) == []
    assert json.loads(jobs[-1].receipt.read_text())["results"] == ["eval/generated-validation"]
    command = json.loads((jobs[-1].folder / "run.json").read_text())["environment"]["command"]
    assert command == ["lm-trials", *jobs[-2].words]

    before = Path("runs/decay/attempts.jsonl").read_text()
    assert run.main(["decay.yaml"]) == []  # nothing is left to do, so nothing is started
    assert Path("runs/decay/attempts.jsonl").read_text() == before

    assert run.main(["decay.yaml", "--workers", "1", "--threads", "1", "--runs_dir", "whole"]) == []
    assert weights() == weights("whole/decay")
    assert len(set(weights().values())) == 2  # the stages differ


def test_a_rehearsal_saves_the_checkpoints_of_a_ladder_alone_and_they_are_in_the_disk_space():
    given = changed("stages.pretrain.checkpoint_ladder", True)
    given["stages"]["pretrain"] |= {"snapshot": "attention", "save_steps": 50}
    trial = read_trial(write_trial(Path("decay.yaml"), given))
    flags = trial.stages["pretrain"].flags["plain"]
    short = plan.rehearsed(trial).stages["pretrain"].flags["plain"]
    assert {name: short[name] for name in ("save_strategy", "save_steps")} == {
        "save_strategy": "steps",
        "save_steps": 20,
    }
    assert flags.keys() - short.keys() == set()
    given["stages"]["pretrain"]["checkpoint_ladder"] = False
    short = plan.rehearsed(read_trial(write_trial(Path("decay.yaml"), given))).stages["pretrain"].flags["plain"]
    assert flags.keys() - short.keys() == {"snapshot"}
    assert short["save_strategy"] == "no"
    assert plan.checkpoints(flags, 200) == 13  # 0, 1, 2, ..., 128 and 50, 100, 150, 200
    assert plan.checkpoints({**flags, "checkpoint_ladder": False}, 200) == 4


def test_a_rehearsal_reads_an_injection_in_its_few_updates():
    given = changed("stages.pretrain.inject", "facts@101-120:.5")
    short = plan.rehearsed(read_trial(write_trial(Path("decay.yaml"), given))).stages["pretrain"].flags["plain"]
    assert (short["inject"], short["max_steps"]) == ("facts@1-10", 20)
    given = changed("stages.pretrain.order_schedule", '[{"updates": "1-100"}, {"updates": "101-"}]')
    short = plan.rehearsed(read_trial(write_trial(Path("decay.yaml"), given))).stages["pretrain"].flags["plain"]
    assert "order_schedule" not in short


@pytest.mark.slow
def test_a_rehearsal_forecasts_the_time_and_leaves_no_run(capsys):
    write_trial(Path("decay.yaml"), tiny_trial())
    assert plan.main(["decay.yaml", "--workers", "2", "--threads", "1"])["jobs"] == 8
    assert "all, 2 at a time" in capsys.readouterr().out
    assert not Path("runs/decay/rehearsal").exists()
    assert not weights()


@pytest.mark.slow
def test_a_job_that_fails_is_shown_with_the_end_of_its_log_and_the_others_go_on(capsys):
    failing = tiny_trial()
    failing["stages"]["pretrain"]["arms"]["decayed"]["dataset_name"] = "nowhere"
    failing["stages"]["pretrain"]["varies"] = ["dataset_name", "weight_decay"]
    write_trial(Path("failing.yaml"), failing)
    with pytest.raises(SystemExit) as stop:
        run.main(["failing.yaml", "--workers", "2", "--threads", "1"])
    assert stop.value.code == 1
    output = capsys.readouterr()
    assert "pretrain-decayed-s0: FAILED, runs/failing/logs/pretrain-decayed-s0.log" in output.err
    assert "nowhere" in output.err
    assert "2 jobs that need them" in output.out
    assert set(weights("runs/failing")) == {"pretrain-plain-s0/model.safetensors", "more-plain-s0/model.safetensors"}
    assert status.main(["failing.yaml"])["pretrain-decayed-s0"] == "failed"


@pytest.mark.slow
def test_twenty_kills_at_random_change_no_bit():
    write_trial(Path("decay.yaml"), tiny_trial(seeds=(0, 1)))
    assert run.main(["decay.yaml", "--workers", "2", "--threads", "1", "--runs_dir", "whole"]) == []
    draw, kills = random.Random(0), 0
    while kills < 20:
        process = start("run", "decay.yaml", "--workers", "2", "--threads", "1")
        try:
            process.wait(draw.uniform(4, 12))
        except subprocess.TimeoutExpired:
            # The whole group, as a machine that is switched off; or the engine alone, whose jobs end by themselves.
            (os.killpg if kills % 2 else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # the machine was faster than the kills
            assert weights() == weights("whole/decay")
            shutil.rmtree("runs")
    assert run.main(["decay.yaml", "--workers", "2", "--threads", "1"]) == []
    assert weights() == weights("whole/decay")
    assert len(weights()) == 8


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_a_checkpoint():
    """It reaches the engine and its jobs at once, and the engine ends the jobs: for a training one signal, not two."""
    long = tiny_trial()
    long["stages"]["pretrain"] |= {"save_strategy": "no", "max_steps": 100_000}
    write_trial(Path("decay.yaml"), long)
    process = start("run", "decay.yaml", "--workers", "1", "--threads", "1")
    log = Path("runs/decay/logs/pretrain-plain-s0.log")
    wait_for(lambda: log.is_file() and "/100000" in log.read_text().replace("100k", "/100000"))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert list(Path("runs/decay/pretrain-plain-s0").glob("checkpoint-*")), log.read_text()


@pytest.mark.slow
def test_two_engines_share_the_jobs_of_a_trial():
    write_trial(Path("decay.yaml"), tiny_trial(seeds=(0, 1)))
    both = [start("run", "decay.yaml", "--workers", "1", "--threads", "1") for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert len(weights()) == 8
    started = [json.loads(line) for line in Path("runs/decay/attempts.jsonl").read_text().splitlines()]
    started = [line["job"] for line in started if line["event"] == "start"]
    assert len(started) == len(set(started)) == 14


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "needs a trial file; lm-trials new my_trial.yaml writes an example"),
        (["nowhere.yaml"], "nowhere.yaml: it cannot be read"),
        (["decay.yaml", "--pilot", "0"], "--pilot 0 is a registered seed"),
        (["decay.yaml", "--workers", "0"], "--workers 0"),
        (["decay.yaml", "--runs_dir", "decay.yaml"], "--runs_dir"),
    ],
)
def test_what_cannot_be_run_is_one_line(words, line, capsys):
    write_trial(Path("decay.yaml"))
    with pytest.raises(SystemExit) as stop:
        run.main(words)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("planned", "free", "refused"), [(None, 1e6, True), (None, 1e9, False), (5e9, 1e9, True)])
def test_a_disk_that_is_too_small_is_one_line_before_the_first_run(planned, free, refused, capsys, monkeypatch):
    write_trial(Path("decay.yaml"))
    if planned:
        Path("runs/decay").mkdir(parents=True)
        Path("runs/decay/plan.json").write_text(json.dumps({"bytes": planned, "seconds": {}}))
    monkeypatch.setattr(run.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    monkeypatch.setattr(LocalExecutor, "__init__", lambda *_: (_ for _ in ()).throw(SystemExit(99)))
    with pytest.raises(SystemExit) as stop:
        run.main(["decay.yaml"])
    assert (stop.value.code == 2) is refused
    assert ("GB are free and the runs need about" in capsys.readouterr().err) is refused


@pytest.mark.parametrize(
    "content", ["{}", '{"time": "now", "registered": 3}', '{"time": "now", "registered": {"runs": 1}}']
)
@pytest.mark.parametrize("command", [run.main, status.main])
def test_a_registration_that_is_none_is_one_line(content, command, capsys, monkeypatch):
    write_trial(Path("decay.yaml"))
    Path("runs/decay").mkdir(parents=True)
    Path("runs/decay/registration.json").write_text(content)
    monkeypatch.setattr(LocalExecutor, "__init__", lambda *_: None)
    monkeypatch.setattr(LocalExecutor, "check", lambda *_: [])
    with pytest.raises(SystemExit) as stop:
        command(["decay.yaml"])
    assert stop.value.code == 2
    line = "runs/decay/registration.json is no registration; restore it, or remove it to register the trial anew"
    assert line in capsys.readouterr().err


def test_other_runs_of_a_registered_trial_are_refused_and_other_tests_are_not():
    from lm_trials.console import UsageError
    from lm_trials.trials.registration import deviations, read_registration, register

    runs = Path("runs/decay")
    assert read_registration(runs) is None
    first = register(read_trial(write_trial(Path("decay.yaml"))), runs)
    again = read_trial(write_trial(Path("decay.yaml"), changed("primary.margin", 0.5)))
    assert register(again, runs) == first  # the registration stays as it was
    assert deviations(first["registered"], again.registered) == [
        "test.contrasts.loss on generated: plain - decayed.margin: 0.01, now 0.5"
    ]
    swapped = read_trial(write_trial(Path("decay.yaml"), changed("primary.contrast", "decayed - plain")))
    assert deviations(first["registered"], swapped.registered) == [
        "test.contrasts.loss on generated: plain - decayed: removed",
        "test.contrasts.loss on generated: decayed - plain: added",
    ]
    other = read_trial(write_trial(Path("decay.yaml"), changed("stages.pretrain.max_steps", 7)))
    with pytest.raises(UsageError, match=r"has the runs of another registration.*max_steps: 6, now 7"):
        register(other, runs)
