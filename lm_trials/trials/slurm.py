"""Trials on a Slurm cluster: each job of a trial becomes a Slurm job that waits for the jobs it depends on.

All are submitted at once, so that no process must keep running.  The name of a Slurm job contains the trial's
folder: `squeue` alone says what is queued, and nothing is submitted twice.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm_trials.console import UsageError, note
from lm_trials.files import locked, unlock
from lm_trials.flags import option
from lm_trials.trials.engine import AGAIN, BUSY, PAUSE, Watcher, log_of
from lm_trials.trials.graph import Job

# What `squeue --states=all` shows of a job that has ended; those of rarer states are judged when Slurm forgets them.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")
POLL_SECONDS = 10.0  # between two calls of squeue, which keep a cluster's controller from other work
MAX_TIMEOUTS = 100  # submitit's 3 would end a training that needs more than four time limits
# What sbatch is given of each job, with the flag that changes it; --slurm takes the others.
OWN = {
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "chdir", "array", "nodes", "ntasks", "clusters"), ""),
    **dict.fromkeys(("ntasks-per-node", "dependency", "kill-on-invalid-dep", "requeue", "signal"), ""),
    "partition": "--partition",
    "time": "--timeout_min",
    "cpus-per-task": "--threads",
    "gpus-per-node": "--gpus_per_node",
}


class Queued(NamedTuple):
    """A job in Slurm's queue, or one that ended some minutes ago."""

    number: str
    state: str
    reason: str  # why it is pending
    name: str


def read_queue() -> list[Queued]:
    """Ask squeue for this user's jobs (UsageError where that fails)."""
    flags = ["--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A|%T|%r|%j"]
    try:
        answer = subprocess.run(["squeue", *flags], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UsageError("squeue not found; ask on a machine with Slurm") from None
    except subprocess.CalledProcessError as error:
        told = error.stderr.strip()
        raise UsageError(f"squeue failed ({told}); try again when Slurm answers") from None
    return [Queued(*line.split("|", 3)) for line in answer.stdout.splitlines()]


def jobs_in(queue: Sequence[Queued], runs: Path) -> dict[str, Queued]:
    """Return those of a trial that have not ended, by the names of the trial's jobs; of one name the newest."""
    place = f"@{runs.resolve()}"
    mine = [each for each in queue if each.name.endswith(place) and each.state not in ENDED]
    return {each.name.removesuffix(place): each for each in sorted(mine, key=lambda each: int(each.number))}


@dataclass
class SlurmArguments:
    """What each Slurm job asks for."""

    flag_group = "with --executor slurm"

    partition: str | None = option(None, filled=True, help="Partition of the jobs. Default: the cluster's.")
    gpus_per_node: int = option(0, least=0, most=1, why="a job uses one GPU", help="1: each job gets a GPU.")
    timeout_min: int = option(
        240,
        least=5,
        why="Slurm stops a job up to 2.5 minutes before its limit",
        help="Time limit of a job, in minutes. A training that reaches it is queued again and resumes.",
    )
    slurm: list[str] = option(
        [], help="Other flags of sbatch, each as KEY=VALUE, for example account=physics mem=32G constraint=a100."
    )


class Command:
    """One job of a trial, as submitit runs it inside a Slurm job."""

    def __init__(self, job: Job, runs: Path) -> None:
        self.job = job
        self.runs = runs

    def __call__(self) -> None:
        """Run the job; if the time limit is near, stop it and queue the Slurm job again.

        submitit lets Slurm send SIGUSR2 before the time limit.  At SIGTERM a training saves a checkpoint and stops.
        """
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        received: list[int] = []

        def stop(number: int, frame: Any) -> None:
            received.append(number)
            if received == [signal.SIGUSR2]:  # Slurm signals all processes of a job: a SIGTERM has reached the other
                process.terminate()

        while not received:
            process = multiprocessing.get_context("fork").Process(target=_work, args=(self.job, self.runs))
            process.start()
            signal.signal(signal.SIGUSR2, stop)
            signal.signal(signal.SIGTERM, stop)
            process.join()
            if process.exitcode != BUSY:
                break
            time.sleep(AGAIN)
        if process.exitcode == 0:
            return
        if not received:
            sys.exit(process.exitcode)
        signal.signal(signal.SIGUSR2, requeue)
        if signal.SIGUSR2 in received:
            requeue(signal.SIGUSR2, None)
        # Slurm ends a job that it preempts or that was cancelled, and queues the preempted again; where the job ends by
        # itself in its grace time, it counts as failed.
        while True:
            signal.pause()

    def checkpoint(self) -> Any:
        """Return what submitit runs when the Slurm job starts again: the same job, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _work(job: Job, runs: Path) -> None:
    from lm_trials.trials.local import work

    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work(job, runs, {})


class Slurm:
    """A Slurm cluster to which the jobs of one trial are submitted.

    Args:
        runs: the trial's folder, which all nodes must see.
        threads: of each job.

    Raises:
        UsageError: where Slurm or submitit is missing or does not answer; for a --slurm that is not KEY=VALUE.
    """

    def __init__(self, runs: Path, threads: int, arguments: SlurmArguments) -> None:
        if missing := next((program for program in ("sbatch", "squeue", "srun") if not shutil.which(program)), None):
            raise UsageError(f"--executor slurm: {missing} not found; run it on a machine with Slurm, or omit the flag")
        try:
            import submitit
        except ImportError:
            raise UsageError("--executor slurm needs submitit; pip install 'lm_trials[slurm]'") from None
        if wrong := next((pair for pair in arguments.slurm if "=" not in pair), None):
            raise UsageError(f"--slurm {wrong} is not KEY=VALUE; give, for example, account=physics")
        for pair in arguments.slurm:
            key = pair.partition("=")[0].replace("_", "-")
            if own := next((flag for flag in OWN if flag.startswith(key)), None):  # sbatch takes shortened names
                use = f"use {OWN[own]}" if OWN[own] else "remove it"
                raise UsageError(f"--slurm {pair}: the trial sets sbatch's --{own}; {use}")
        for name in ("JOB_NAME", "TIMELIMIT", "SIGNAL", "NO_REQUEUE", *(["PARTITION"] if arguments.partition else [])):
            os.environ.pop(f"SBATCH_{name}", None)  # sbatch prefers them to what it is given in its file
        self.runs = runs.resolve()
        if "%" in str(self.runs):
            raise UsageError(f"--executor slurm: {self.runs} contains %, which Slurm replaces; rename what has it")
        self.threads = threads
        self.arguments = arguments
        self.submitit = submitit.SlurmExecutor(self.runs / "logs" / "slurm", max_num_timeout=MAX_TIMEOUTS)
        self._states: dict[str, str] = {}
        self._squeue()

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Submit the jobs that are not queued, parents first; returns the number of each one's Slurm job by its name.

        Raises:
            UsageError: where Slurm refuses one.
        """
        numbers: dict[str, str] = {}
        lock = locked(self.runs / "logs" / "slurm.lock", "submits this trial")
        try:
            queued = jobs_in(self._squeue(), self.runs)
            new: set[str] = set()
            for job in jobs:
                # Slurm soon cancels a job that waits for one that failed.
                if job.name in queued and not new & set(job.after):
                    numbers[job.name] = queued[job.name].number
                elif not job.finished():  # one may have ended since the other `run` submitted it
                    new.add(job.name)
                    after = [numbers[parent] for parent in job.after if parent in numbers]
                    numbers[job.name] = self._submit(job, after)
        finally:
            unlock(lock)
        return numbers

    def _submit(self, job: Job, after: Sequence[str]) -> str:
        """Submit one job; returns its number."""
        from submitit.core.utils import FailedJobError

        from lm_trials.trials.local import variables

        log_of(self.runs, job).parent.mkdir(parents=True, exist_ok=True)
        log = str(log_of(self.runs, job)).replace("%", "%%")  # as an arm's name may have one
        given = dict(pair.split("=", 1) for pair in self.arguments.slurm)
        measures = job.folder and job.receipt  # and would start from its beginning each time
        self.submitit.max_num_timeout = 0 if measures else MAX_TIMEOUTS
        self.submitit.parameters = {}
        self.submitit.update_parameters(
            job_name=f"{job.name}@{self.runs}",
            time=self.arguments.timeout_min,
            partition=self.arguments.partition,
            gpus_per_node=self.arguments.gpus_per_node or None,
            cpus_per_task=self.threads,
            dependency=":".join(("afterok", *after)) if after else None,
            stderr_to_stdout=True,
            # Since Slurm 22.05 srun does not take the number of cores from sbatch.
            srun_args=[f"--output={log}", "--open-mode=append", f"--cpus-per-task={self.threads}"],
            setup=[f"export {variable}={value}" for variable, value in variables(self.threads).items()],
            additional_parameters={"output": log, "requeue": True, "kill-on-invalid-dep": "yes", **given},
        )
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                number = str(self.submitit.submit(Command(job, self.runs)).job_id)
        except FailedJobError as error:
            raise UsageError(
                f"--executor slurm: sbatch refused {job.name} ({error}); correct the flag and run it again"
            ) from None
        self._states[number] = "PENDING"
        return number

    def states(self) -> Mapping[str, str]:
        """Return the state of each Slurm job by its number, some seconds old; older while Slurm does not answer."""
        if time.monotonic() > self._asked + POLL_SECONDS:
            with suppress(UsageError):
                self._squeue()
        return self._states

    def _squeue(self) -> list[Queued]:
        self._asked = time.monotonic()
        queue = read_queue()
        self._states = {each.number: each.state for each in queue}
        return queue

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> tuple[list[Job], list[Job]]:
        """Submit jobs and wait until all have ended; Ctrl-C leaves them in the queue.

        Returns:
            The jobs that failed, and those that could not be run because of them.
        """
        numbers = self.submit(jobs)
        left = {job.name: job for job in jobs if job.name in numbers}
        starts: dict[str, float] = {}
        failed: list[Job] = []
        blocked: list[Job] = []
        try:
            while left:
                now, states = time.monotonic(), self.states()
                for name, job in list(left.items()):
                    state = states.get(numbers[name])
                    if state is not None and state not in ENDED:
                        if state != "RUNNING":
                            starts.pop(name, None)  # queued again
                        elif name not in starts:
                            starts[name] = now
                            watcher.event(job, "started")
                        continue
                    del left[name]
                    starts.pop(name, None)
                    if state == "COMPLETED" or job.finished():  # Slurm forgets a job some minutes after its end
                        watcher.event(job, "finished")
                    elif {parent.name for parent in failed + blocked} & set(job.after):
                        blocked.append(job)
                    else:
                        failed.append(job)
                        if state not in ("FAILED", None):
                            note(f"{name}: {state} in Slurm, job {numbers[name]}")
                        watcher.event(job, "failed")
                watcher.show({name: now - start for name, start in starts.items()}, list(left.values()))
                time.sleep(PAUSE)
        except KeyboardInterrupt:
            note(
                f"\n{len(left)} jobs stay in Slurm's queue, and the same command follows them again; to cancel them:\n"
                f"scancel {' '.join(numbers[name] for name in left)}"
            )
            raise
        return failed, blocked
