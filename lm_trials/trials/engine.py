"""The engine: runs the unfinished jobs of a trial, several at a time, and resumes those that were stopped.

It keeps no state: whether a job is finished is read from its folder (`graph.Job.finished`), and a job that runs holds a
lock.  The engine and its jobs can be killed at any instant, and two engines on one trial share its jobs.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lm_trials.console import UsageError
from lm_trials.files import locked, unlock, write_json
from lm_trials.trials.graph import Job

ATTEMPTS = "attempts.jsonl"
BUSY = 75  # exit status of a job that another process runs (EX_TEMPFAIL)
LOG_END = 4096  # bytes of a log that are read for its progress
PAUSE = 0.2  # seconds between two looks at the jobs; a job takes seconds to hours
AGAIN = 5.0  # seconds until a job that another process runs is looked at again


class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""

    def stop(self) -> None:
        """End it, and wait for its end."""


class Executor(Protocol):
    """Starts jobs."""

    def start(self, job: Job, runs: Path) -> Handle:
        """Start a job, whose output goes to `log_of(runs, job)`."""


class Watcher(Protocol):
    """Shows what happens; called at each change, and several times a second with the running jobs."""

    def event(self, job: Job, what: str) -> None:
        """Show that a job was started, finished, failed or found to be run by another process."""

    def show(self, running: Mapping[str, float], open_jobs: Sequence[Job]) -> None:
        """Show the jobs that run, with the seconds since their start, and those that are not finished."""


def log_of(runs: Path, job: Job) -> Path:
    """Return the file of a job's output."""
    return runs / "logs" / f"{job.name}.log"


def lock_of(runs: Path, job: Job) -> Path:
    """Return the file that is locked while a job runs."""
    return runs / "logs" / f"{job.name}.lock"


def is_busy(runs: Path, job: Job) -> bool:
    """Whether some process runs a job now."""
    if not lock_of(runs, job).is_file():
        return False
    try:
        unlock(locked(lock_of(runs, job)))
    except BlockingIOError:
        return True
    return False


def run_jobs(
    jobs: Sequence[Job], executor: Executor, runs: Path, workers: int, watcher: Watcher
) -> tuple[list[Job], list[Job]]:
    """Run all jobs that are not finished, at most `workers` at a time, parents first.

    A job that fails does not stop the others, only those that need it.

    Returns:
        The jobs that failed, and those that could not be run because of them.
    """
    waiting = {job.name: job for job in jobs if not job.finished()}
    running: dict[str, tuple[Job, Handle, float]] = {}
    failed: dict[str, Job] = {}
    elsewhere: dict[str, float] = {}  # until when not to look again
    try:
        while True:
            for name, (job, handle, _) in list(running.items()):
                status = handle.poll()
                if status is None:
                    continue
                del running[name]
                if job.finished():
                    watcher.event(job, "finished")
                elif status == BUSY:
                    waiting[name], elsewhere[name] = job, time.monotonic() + AGAIN
                    watcher.event(job, "run by another process")
                else:
                    failed[name] = job
                    watcher.event(job, "failed")
            for name, job in list(waiting.items()):
                if len(running) >= workers:
                    break
                if elsewhere.get(name, 0.0) > time.monotonic() or any(
                    parent in waiting or parent in running or parent in failed for parent in job.after
                ):
                    continue
                del waiting[name]
                if name in elsewhere and job.finished():
                    continue
                if is_busy(runs, job):
                    waiting[name], elsewhere[name] = job, time.monotonic() + AGAIN
                    continue
                running[name] = job, executor.start(job, runs), time.monotonic()
                watcher.event(job, "started")
            blocked = _blocked(waiting, failed)
            if not running and len(blocked) == len(waiting):
                return list(failed.values()), blocked
            now = time.monotonic()
            still_open = [job for job, _, _ in running.values()] + [j for j in waiting.values() if j not in blocked]
            watcher.show({name: now - start for name, (_, _, start) in running.items()}, still_open)
            time.sleep(PAUSE)
    finally:
        for _, handle, _ in running.values():
            handle.stop()


def _blocked(waiting: Mapping[str, Job], failed: Mapping[str, Job]) -> list[Job]:
    """Return the waiting jobs that need one that failed, directly or not."""
    gone = set(failed)
    blocked = []
    for name, job in waiting.items():  # parents come before their children
        if gone & set(job.after):
            gone.add(name)
            blocked.append(job)
    return blocked


def perform(job: Job, runs: Path) -> None:
    """Run a job in this process, and write its receipt; the process ends with the command's exit status.

    Raises:
        SystemExit: with `BUSY` if another process runs the job, else with the command's status if that is not 0.
    """
    try:
        lock = locked(lock_of(runs, job))
    except BlockingIOError:
        raise SystemExit(BUSY) from None
    try:
        if not job.finished():
            _perform(job, runs)
    finally:
        unlock(lock)


def _perform(job: Job, runs: Path) -> None:
    from lm_trials.cli import command_of

    about = {"job": job.name, "host": socket.gethostname(), "process": os.getpid(), **_devices()}
    _note_attempt(runs, {**about, "event": "start", "time": time.time()})
    started = (runs / ATTEMPTS).stat().st_mtime  # not the time here: the disk's clock may be another
    status: Any = 1
    receipt = job.receipt_now()  # of the model before it is measured
    sys.argv = ["lm-trials", *job.words]  # recorded by trainings in run.json
    try:
        program, rest = command_of(list(job.words))
        program(rest)
        status = 0
        if job.receipt is not None:
            write_json(job.receipt, receipt | _results(job, started), synced=True)
    except SystemExit as stop:
        status = stop.code
        raise
    finally:
        _note_attempt(runs, {**about, "event": "end", "time": time.time(), "status": status})


def _results(job: Job, started: float) -> dict[str, list[str]]:
    """Return the folders of results in a run's folder that were written to since a job started.

    Another measurement of the run at the same time may have written one of them: without it, both are done again.
    """
    if job.folder is None:
        return {}
    folders = [path for top in ("eval", "probes") for path in (job.folder / top).glob("*/")]
    written = [path.relative_to(job.folder).as_posix() for path in folders if path.stat().st_mtime >= started]
    return {"results": sorted(written)}


def _devices() -> dict[str, int]:
    """Return the threads and the GPUs that this process uses."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {
        "cpus": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "gpus": len(gpus.split(",")) if gpus else 0,
    }


def _note_attempt(runs: Path, about: Mapping[str, Any]) -> None:
    """Append a line; one write of a short line to a file opened for appending is not mixed with another's."""
    with (runs / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(about) + "\n")


def durations(runs: Path) -> dict[str, float]:
    """Return the seconds that each job took when it succeeded."""
    return {each["job"]: each["seconds"] for each in read_attempts(runs) if each.get("status", 1) in (0, None)}


def read_attempts(runs: Path) -> list[dict[str, Any]]:
    """Return the attempts at a trial's jobs, in the order of their starts; with `seconds` and `status` if they ended.

    A line cut short by a full disk is left out.

    Raises:
        UsageError: for a line that is no attempt.
    """
    attempts: list[dict[str, Any]] = []
    running: dict[tuple[Any, ...], dict[str, Any]] = {}
    with suppress(FileNotFoundError):
        for number, text in enumerate((runs / ATTEMPTS).read_text(encoding="utf-8").splitlines(), 1):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if not isinstance(line, dict) or not {"job", "event", "time"} <= line.keys():
                raise UsageError(f"{runs / ATTEMPTS}: line {number} is no attempt at a job; remove the line")
            key = tuple(line.get(name) for name in ("job", "host", "process"))
            if line["event"] == "start":
                attempts.append(line)
                running[key] = line
            elif key in running:
                start = running.pop(key)
                start |= {"seconds": line["time"] - start["time"], "status": line.get("status")}
    return attempts


class Forecast:
    """How long jobs take: the mean of those of their kind that are done, else the seconds of the plan.

    >>> Forecast({"pretrain": [8.0, 12.0]}, {"pretrain": 30.0}).seconds("pretrain")
    10.0
    """

    def __init__(self, done: Mapping[str, list[float]], planned: Mapping[str, float]) -> None:
        self.done = dict(done)
        self.planned = planned

    @classmethod
    def of(cls, jobs: Sequence[Job], runs: Path, planned: Mapping[str, float]) -> Forecast:
        """Read how long the finished jobs of a trial took."""
        done: dict[str, list[float]] = {}
        seconds = durations(runs)
        for job in jobs:
            if job.name in seconds and job.finished():
                done.setdefault(job.kind, []).append(seconds[job.name])
        return cls(done, planned)

    def seconds(self, kind: str) -> float | None:
        """Return the expected seconds of one job; None where nothing is known."""
        done = self.done.get(kind)
        return sum(done) / len(done) if done else self.planned.get(kind)

    def left(self, open_jobs: Sequence[Job], running: Mapping[str, float], workers: int) -> float | None:
        """Return the expected seconds until all open jobs are finished; None if a kind is unknown."""
        total = 0.0
        for job in open_jobs:
            seconds = self.seconds(job.kind)
            if seconds is None:
                return None
            total += max(seconds - running.get(job.name, 0.0), 0.0)
        return total / max(workers, 1)


def progress_of(log: Path) -> str | None:
    """Return the last progress in a job's log, as `120/1000`; None without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_END))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    found = re.findall(r"(\d[\d.k]*/\d[\d.k]*) \[", text)
    return found[-1] if found else None


def log_end(log: Path, lines: int = 3) -> list[str]:
    """Return the last lines of a log that are not progress bars."""
    try:
        text = log.read_bytes()[-LOG_END * 4 :].decode(errors="replace")
    except OSError:
        return [f"{log} cannot be read"]
    kept = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    return [line for line in kept if line.strip() and not re.search(r"\d+%\|", line)][-lines:]


def redirect_output(log: Path) -> None:
    """Send this process's output to the end of a file, and give it no input."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
