"""The graph of a trial: which command each job is, what it waits for, and when it is finished."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from trials.trial_texts import TRIAL, changed, write_trial

from lm_trials.console import UsageError
from lm_trials.trials.graph import jobs_of, open_jobs
from lm_trials.trials.plan import rehearsed
from lm_trials.trials.run import distinct
from lm_trials.trials.trial_file import read_trial


@pytest.fixture
def jobs(tmp_path):
    return jobs_of(read_trial(write_trial(tmp_path / "decay.yaml")), Path("runs/decay"))


def test_each_lineage_has_one_root_seed(jobs):
    by_name = {job.name: job for job in jobs}
    assert len(jobs) == 2 + 2 * (2 + 2 + 2)
    more = by_name["more-plain-s1"]
    prepared = ("prepare/1", "prepare/2")  # also the first: the second can be there from another trial
    assert more.after == ("pretrain-plain-s1", *prepared)
    flags = dict(zip(more.words[1::2], more.words[2::2], strict=True))
    assert (flags["--seed"], flags["--data_seed"]) == ("1", "1")
    assert flags["--model_name_or_path"] == "runs/decay/pretrain-plain-s1"
    assert flags["--output_dir"] == "runs/decay/more-plain-s1"
    assert by_name["pretrain-plain-s0"].after == prepared
    assert by_name["more-plain-s1/evaluate-1"].after == ("more-plain-s1", *prepared)
    assert by_name["prepare/2"].after == ("prepare/1",)
    assert by_name["more-plain-s1/evaluate-1"].words[:3] == (
        "evaluate",
        "--model_name_or_path",
        "runs/decay/more-plain-s1",
    )


def test_what_differs_between_root_seeds_is_prepared_trained_and_measured_for_each(tmp_path):
    given = changed("stages.more.dataset_name", "distances-{seed}")
    given["per_seed"] = {"city": {0: "Rome", 1: "San José", 100: "Oslo"}}
    given["prepare"][1] = "cache distances --city '{city}' --name 'distances-{seed}'"
    given["measure"] = ["evaluate --dataset_name generated 'distances-{seed}'"]
    trial = read_trial(write_trial(tmp_path / "decay.yaml", given))
    jobs = {job.name: job for job in jobs_of(trial, Path("runs/decay"))}
    assert jobs["prepare/1"].words == ("prepare", "generate", "--num_stories", "300")  # once
    assert [jobs[f"prepare/{place}"].words[3:6] for place in (2, 3)] == [
        ("Rome", "--name", "distances-0"),
        ("San José", "--name", "distances-1"),
    ]
    assert {jobs[f"prepare/{place}"].kind for place in (2, 3)} == {"prepare/2"}  # of about equal time
    assert "prepare/3" in jobs["pretrain-plain-s0"].after
    assert "distances-0" in jobs["more-plain-s0"].words
    assert "distances-1" in jobs["more-plain-s1"].words
    assert jobs["more-decayed-s1/evaluate-1"].words[3:] == ("--dataset_name", "generated", "distances-1")
    first = distinct(list(jobs.values()), trial)
    assert [job.name for job in first if job.receipt is None] == [
        f"{stage}-{arm}-s0" for stage in ("pretrain", "more") for arm in ("plain", "decayed")
    ]
    # A pilot and a rehearsal need a value too.
    assert rehearsed(trial).seeds == (100,)
    assert "Oslo" in jobs_of(replace(trial, seeds=(100,)), Path("runs/pilot"))[1].words
    with pytest.raises(UsageError, match=r"per_seed.city has no value for seed 101; add one"):
        jobs_of(replace(trial, seeds=(101,)), Path("runs/pilot"))


def test_parents_come_before_their_children(jobs):
    seen = set()
    for job in jobs:
        assert seen.issuperset(job.after)
        seen.add(job.name)


def test_a_receipt_is_of_one_command(jobs):
    job = next(job for job in jobs if job.name == "more-plain-s0/evaluate-1")
    assert not job.finished()
    job.receipt.parent.mkdir(parents=True)
    job.receipt.write_text(json.dumps({"words": list(job.words)}))
    assert job.finished()
    job.receipt.write_text(json.dumps({"words": [*job.words, "--by", "features"]}))
    assert not job.finished()


def test_trials_share_what_is_prepared(tmp_path):
    one = read_trial(write_trial(tmp_path / "one.yaml"))
    two = read_trial(
        write_trial(tmp_path / "two.yaml", {**TRIAL, "prepare": [*TRIAL["prepare"][:1], "prepare download"]})
    )
    first, second = (jobs_of(trial, Path("runs") / trial.name)[:2] for trial in (one, two))
    assert first[0].receipt == second[0].receipt
    assert first[1].receipt != second[1].receipt


def finish(job):
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "finished.json").write_text("{}")


def test_a_finished_run_without_its_parent_is_refused(jobs):
    by_name = {job.name: job for job in jobs}
    finish(by_name["pretrain-plain-s0"])
    finish(by_name["more-plain-s0"])
    assert {job.name for job in jobs} - {job.name for job in open_jobs(jobs)} == {"pretrain-plain-s0", "more-plain-s0"}
    (by_name["pretrain-plain-s0"].folder / "finished.json").unlink()
    with pytest.raises(
        UsageError, match="more-plain-s0 is finished and pretrain-plain-s0, which it started from, is not"
    ):
        open_jobs(jobs)


def test_a_measurement_is_open_again_once_its_model_is_trained_again(jobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = next(job for job in jobs if job.name == "more-plain-s1/evaluate-1")
    job.receipt.parent.mkdir(parents=True)
    (job.folder / "finished.json").write_text('{"run": "first"}')
    job.receipt.write_text(json.dumps(job.receipt_now()))
    assert job.finished()
    (job.folder / "finished.json").write_text('{"run": "second"}')
    assert not job.finished()
    job.receipt.write_text(json.dumps({"words": job.words}))  # of an earlier version
    assert job.finished()


@pytest.mark.parametrize("place", ["moved", "moved/further", "{tmp_path}/moved"])
def test_runs_that_were_moved_are_still_measured(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    trial, place = read_trial(write_trial(Path("decay.yaml"))), Path(place.format(tmp_path=tmp_path))
    before, after = (
        next(job for job in jobs_of(trial, runs) if job.receipt and job.folder) for runs in (Path("runs"), place)
    )
    before.receipt.parent.mkdir(parents=True)
    before.receipt.write_text(json.dumps(before.receipt_now()))
    place.parent.mkdir(exist_ok=True)
    Path("runs").rename(place)
    assert after.finished()
    assert not replace(after, words=(*after.words, "--head", "1")).finished()
