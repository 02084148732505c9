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
from typing import Any

from lm_trials.console import UsageError, note
from lm_trials.files import locked, unlock
from lm_trials.flags import option
from lm_trials.trials.engine import AGAIN, BUSY, PAUSE, Watcher, log_of
from lm_trials.trials.graph import Job

# What `squeue --states=all` shows of a job that has ended; those of rarer states are judged when Slurm forgets them.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")
POLL_SECONDS = 10.0  # between two calls of squeue, which keep a cluster's controller from other work
MAX_TIMEOUTS = 100  # submitit's 3 would end a training that needs more than four time limits


@dataclass
class SlurmArguments:
    """What each Slurm job asks for."""

    flag_group = "with --executor slurm"

    partition: str | None = option(None, filled=True, help="Partition of the jobs. Default: the cluster's.")
    gpus_per_node: int = option(0, least=0, most=1, why="a job uses one GPU", help="1: each job gets a GPU.")
    timeout_min: int = option(
        240, least=1, help="Time limit of a job, in minutes. A training that reaches it is queued again and resumes."
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
        self.runs = runs.resolve()
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
            queued = {name: number for number, state, name in self._squeue() if state not in ENDED}
            for job in jobs:
                name = f"{job.name}@{self.runs}"
                if name in queued or not job.finished():  # one may have ended since the other `run` submitted it
                    after = [numbers[parent] for parent in job.after if parent in numbers]
                    numbers[job.name] = queued.get(name) or self._submit(job, name, after)
        finally:
            unlock(lock)
        return numbers

    def _submit(self, job: Job, name: str, after: Sequence[str]) -> str:
        """Submit one job; returns its number."""
        from submitit.core.utils import FailedJobError

        from lm_trials.trials.local import variables

        log = log_of(self.runs, job)
        log.parent.mkdir(parents=True, exist_ok=True)
        given = dict(pair.split("=", 1) for pair in self.arguments.slurm)
        self.submitit.parameters = {}
        self.submitit.update_parameters(
            job_name=name,
            time=self.arguments.timeout_min,
            partition=self.arguments.partition,
            gpus_per_node=self.arguments.gpus_per_node or None,
            cpus_per_task=self.threads,
            dependency=":".join(("afterok", *after)) if after else None,
            stderr_to_stdout=True,
            # Since Slurm 22.05 srun does not take the number of cores from sbatch.
            srun_args=[f"--output={log}", "--open-mode=append", f"--cpus-per-task={self.threads}"],
            setup=[f"export {variable}={value}" for variable, value in variables(self.threads).items()],
            additional_parameters={"output": str(log), "requeue": True, "kill-on-invalid-dep": "yes", **given},
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

    def _squeue(self) -> list[list[str]]:
        """Ask for number, state and name of each of this user's jobs, also of those that ended some minutes ago."""
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A %T %j"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            raise UsageError(f"--executor slurm: squeue failed ({answer.stderr}); try again when Slurm answers")
        jobs = [line.split(" ", 2) for line in answer.stdout.splitlines()]
        self._states = {number: state for number, state, _ in jobs}
        return jobs

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
