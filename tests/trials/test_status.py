"""The state of each job of a trial, from its files and from Slurm's queue."""

import os
from pathlib import Path

import pytest
from trials.trial_texts import TRIAL, write_trial

from lm_trials.trials import status


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A stand-in of squeue that prints the file `queue`, and a trial of one seed, which was submitted to Slurm."""
    write_trial(Path("decay.yaml"), {**TRIAL, "seeds": [0], "prepare": []})
    Path("runs/decay/logs/slurm").mkdir(parents=True)
    Path("squeue").write_text(f'#!/bin/bash\ncat "{tmp_path}/queue"\n')
    Path("squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(**states: str) -> None:
        place = Path("runs/decay").resolve()
        lines = [f"7|{state}|{name.replace('_', '-')}-s0@{place}" for name, state in states.items()]
        Path("queue").write_text("\n".join([*lines, f"8|RUNNING|None|more-plain-s0@{place}-pilot"]) + "\n")

    return write


def test_jobs_in_slurms_queue_are_queued_or_running(squeue, capsys):
    squeue(
        pretrain_plain="RUNNING|None",
        pretrain_decayed="PENDING|Resources",
        more_plain="PENDING|Dependency",
        more_decayed="CANCELLED|Dependency",
    )
    states = status.main(["decay.yaml"])
    found = [states[f"{stage}-{arm}-s0"] for stage in ("pretrain", "more") for arm in ("plain", "decayed")]
    assert found == ["running", "queued", "queued", "open"]
    told = capsys.readouterr().out
    assert "1 Resources; 1 Dependency" in told
    assert "running in Slurm" in told
    assert "lm-trials run decay.yaml --executor slurm" in told


def test_a_job_that_failed_and_is_queued_again_is_queued(squeue):
    line = '{"job": "pretrain-plain-s0", "host": "h", "process": 1, "event": "%s", "time": 1.0, "status": 1}\n'
    Path("runs/decay/attempts.jsonl").write_text(line % "start" + line % "end")
    squeue()
    assert status.main(["decay.yaml"])["pretrain-plain-s0"] == "failed"
    squeue(pretrain_plain="PENDING|Priority")
    assert status.main(["decay.yaml"])["pretrain-plain-s0"] == "queued"


def test_squeue_that_cannot_be_asked_is_told_where_the_trial_was_submitted_to_slurm(squeue, capsys, monkeypatch):
    assert set(status.main(["decay.yaml"]).values()) == {"open"}
    told = " ".join(capsys.readouterr().out.split())
    assert "submitted to Slurm, and its queued jobs are shown as open: squeue failed (cat: " in told
    monkeypatch.setenv("PATH", "/nowhere")
    status.main(["decay.yaml"])
    assert "queued jobs are shown as open: squeue not found" in " ".join(capsys.readouterr().out.split())
    Path("runs/decay/logs/slurm").rmdir()
    status.main(["decay.yaml"])
    assert "lurm" not in capsys.readouterr().out
