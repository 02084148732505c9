"""The engine: order, failures, jobs of another process, and what it knows of the time."""

import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.files import locked, unlock
from lm_trials.trials import engine
from lm_trials.trials.engine import Forecast, durations, is_busy, lock_of, log_end, perform, progress_of, run_jobs
from lm_trials.trials.graph import Job

RUNS = Path("runs")


@dataclass(frozen=True)
class FakeJob(Job):
    """A job that is finished when it was done."""

    def finished(self):
        return self.name in DONE


DONE = set()


class Instant:
    """Does each job at once, or lets it fail, and notes the order."""

    def __init__(self, failing=(), busy=()):
        self.failing, self.busy, self.order, self.running, self.most = set(failing), dict(busy), [], 0, 0

    def start(self, job, runs):
        self.order.append(job.name)
        self.running += 1
        self.most = max(self.most, self.running)
        return self.Handle(self, job)

    @dataclass
    class Handle:
        executor: "Instant"
        job: Job
        polls: int = 0

        def poll(self):
            self.polls += 1
            if self.polls < 2:
                return None
            self.executor.running -= 1
            if self.executor.busy.get(self.job.name, 0) > 0:
                self.executor.busy[self.job.name] -= 1
                return engine.BUSY
            if self.job.name in self.executor.failing:
                return 2
            DONE.add(self.job.name)
            return 0

        def stop(self):
            self.executor.running -= 1


class Quiet:
    def __init__(self):
        self.events = []

    def event(self, job, what):
        self.events.append((job.name, what))

    def show(self, running, open_jobs):
        pass


@pytest.fixture(autouse=True)
def nothing_done(monkeypatch):
    DONE.clear()
    monkeypatch.setattr(engine, "PAUSE", 0.0)
    monkeypatch.setattr(engine, "AGAIN", 0.01)
    monkeypatch.setattr(sys, "argv", sys.argv)


def job(name, *after):
    return FakeJob(name, ("prepare",), after, name, None)


CHAIN = [job("a"), job("b", "a"), job("c", "b"), job("d"), job("e", "c", "d")]


def run(jobs, executor, workers=2):
    quiet = Quiet()
    failed, blocked = run_jobs(jobs, executor, RUNS, workers, quiet)
    return [each.name for each in failed], [each.name for each in blocked], quiet.events


@given(
    st.lists(st.sets(st.integers(0, 30)), max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(1, 4),
)
def test_every_graph_is_run_in_order_and_failures_stop_only_what_needs_them(parents, failing, workers):
    DONE.clear()
    jobs = [job(str(n), *(str(p) for p in of if p < n)) for n, of in enumerate(parents)]
    executor = Instant({str(n) for n in failing})
    failed, blocked, _ = run(jobs, executor, workers)
    for name in executor.order:
        parent = next(each for each in jobs if each.name == name).after
        assert DONE.issuperset(parent)
        assert all(executor.order.index(p) < executor.order.index(name) for p in parent)
    assert executor.most <= workers
    assert sorted([*DONE, *failed, *blocked]) == sorted(each.name for each in jobs)
    lost = set(failed)
    for each in jobs:  # computed anew: what needs a failed job, directly or not
        if lost & set(each.after):
            lost.add(each.name)
    assert lost == {*failed, *blocked}


def test_finished_jobs_are_not_repeated():
    DONE.add("a")
    executor = Instant()
    run(CHAIN, executor)
    assert executor.order == ["d", "b", "c", "e"] or executor.order == ["b", "d", "c", "e"]


def test_a_failed_job_is_told_and_the_others_go_on():
    failed, blocked, events = run(CHAIN, Instant(failing={"b"}))
    assert (failed, blocked) == (["b"], ["c", "e"])
    assert {"a", "d"} == DONE
    assert ("b", "failed") in events


def test_a_job_that_another_process_does_is_waited_for():
    executor = Instant(busy={"a": 2})
    assert run(CHAIN, executor)[:2] == ([], [])
    assert executor.order.count("a") == 3


def test_a_lock_says_that_a_job_is_run():
    (lone,) = [job("x/y")]
    assert not is_busy(RUNS, lone)
    lock = locked(lock_of(RUNS, lone))
    assert is_busy(RUNS, lone)
    executor = Instant()
    thread = threading.Thread(target=run, args=([lone], executor))
    thread.start()
    time.sleep(0.05)
    assert executor.order == []
    unlock(lock)
    thread.join(10)
    assert executor.order == ["x/y"]


def test_running_jobs_are_stopped_when_the_engine_is():
    class Interrupting(Quiet):
        def show(self, running, open_jobs):
            raise KeyboardInterrupt

    executor = Instant()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(CHAIN, executor, RUNS, 2, Interrupting())
    assert executor.order
    assert executor.running == 0


def real(words, receipt="data/.trials/x.json"):
    return Job("prepare/1", words, (), "prepare/1", None, Path(receipt))


def test_a_job_is_performed_once_and_leaves_a_receipt_and_its_time(capsys):
    RUNS.mkdir()
    good = real(("new", "mine.yaml"))
    perform(good, RUNS)
    assert good.finished()
    assert Path("mine.yaml").is_file()
    assert set(durations(RUNS)) == {"prepare/1"}
    perform(good, RUNS)  # a second time it would refuse to overwrite the file
    bad = real(("new", "mine.yaml"), "data/.trials/y.json")
    with pytest.raises(SystemExit) as stop:
        perform(bad, RUNS)
    assert stop.value.code == 2
    assert not bad.finished()


def test_a_measurement_is_open_again_without_its_results(monkeypatch):
    recorded = []

    def evaluate(words):
        recorded.append(list(sys.argv))
        results = Path("runs/a/eval/new/eval_results.json")
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text("{}")

    monkeypatch.setattr("lm_trials.cli.command_of", lambda words: (evaluate, words[1:]))
    RUNS.mkdir()
    old = Path("runs/a/eval/old/eval_results.json")
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    os.utime(old.parent, (0, 0))
    own = Job("a/evaluate-1", ("evaluate", "--use_cpu"), (), "a", Path("runs/a"), Path("runs/a/measured/1.json"))
    perform(own, RUNS)
    assert recorded == [["lm-trials", "evaluate", "--use_cpu"]]  # what a training records as its command
    assert own.finished()
    shutil.rmtree(old.parent)
    assert own.finished()
    shutil.rmtree("runs/a/eval/new")
    assert not own.finished()
    perform(own, RUNS)
    assert own.finished()


@pytest.mark.parametrize("line", ["5", "[]", '{"event": "start"}', "null"])
def test_a_line_that_is_no_attempt_is_refused_and_one_cut_short_is_left_out(line):
    RUNS.mkdir()
    start = '{"job": "a", "event": "start", "time": 1.0}'
    (RUNS / "attempts.jsonl").write_text(f'{start}\n{{"job": "b", "ev\n')
    assert [each["job"] for each in engine.read_attempts(RUNS)] == ["a"]
    (RUNS / "attempts.jsonl").write_text(f"{start}\n{line}\n")
    with pytest.raises(UsageError, match=r"attempts\.jsonl: line 2 is no attempt at a job; remove the line"):
        engine.read_attempts(RUNS)


def test_a_job_that_another_process_runs_is_left_to_it():
    RUNS.mkdir()
    good = real(("new", "mine.yaml"))
    lock = locked(lock_of(RUNS, good))
    with pytest.raises(SystemExit) as stop:
        perform(good, RUNS)
    assert stop.value.code == engine.BUSY
    assert not good.finished()
    unlock(lock)
    perform(good, RUNS)
    assert good.finished()


def test_the_time_left_is_of_what_is_open():
    forecast = Forecast({"a": [10.0, 20.0]}, {"b": 30.0, "a": 1.0})
    jobs = [job("a"), job("b")]
    assert forecast.left(jobs, {}, 1) == 45.0
    assert forecast.left(jobs, {"a": 5.0}, 2) == 20.0
    assert forecast.left(jobs, {"a": 500.0}, 1) == 30.0  # a job that takes longer than expected is not negative
    assert forecast.left([job("c")], {}, 1) is None


def test_progress_and_the_end_of_a_log(tmp_path):
    log = tmp_path / "a.log"
    assert progress_of(log) is None
    log.write_bytes("loading\n  3%|▏ | 10/300 [00:01<00:30]\r 40%|▍ | 120/300 [00:12<00:18]\nerror: no room\n".encode())
    assert progress_of(log) == "120/300"
    assert log_end(log) == ["loading", "error: no room"]
    with suppress(FileNotFoundError):
        log.unlink()
    assert "cannot be read" in log_end(log)[0]
