"""Trials on a Slurm cluster: each job of a trial becomes a Slurm job that waits for the jobs it depends on.

All are submitted at once, so that nothing of ours must keep running.  The name of a Slurm job contains the trial's
folder: `squeue` alone says what is queued, and nothing is submitted twice.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.files import locked, unlock, write_json
from lm_trials.flags import option
from lm_trials.trials.graph import Job

# What `squeue --states=all` shows of a job that has ended; every other state still leads to one of these.
ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
}
POLL_SECONDS = 10  # between two calls of squeue, for which a cluster's controller stops other work
MAX_TIMEOUTS = 100  # submitit's 3 would end a run that needs more than four time limits


@dataclass
class SlurmArguments:
    """What each Slurm job asks for."""

    flag_group = "with --executor slurm"

    partition: str | None = option(None, filled=True, help="Partition of the jobs; by default the cluster's default.")
    gpus_per_node: int = option(0, least=0, help="GPUs of each job; train and tune start one process for each GPU.")
    cpus_per_task: int = option(1, least=1, help="CPU cores of each process.")
    timeout_min: int = option(
        240, least=1, help="Time limit of a job, in minutes. A training that reaches it is queued again and resumes."
    )
    slurm: list[str] = option(
        [], help="Other flags of sbatch, each as KEY=VALUE, for example account=physics mem=32G constraint=a100."
    )


class Command:
    """The command of one job, as submitit runs it inside a Slurm job."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> None:
        """Run the command; if the time limit is near, stop it and queue the Slurm job again.

        submitit lets Slurm send SIGUSR2 before the time limit.  At SIGTERM a training saves a checkpoint and stops.
        """
        import submitit

        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        received: list[int] = []

        def stop(number: int, frame: Any) -> None:
            received.append(number)
            if received == [signal.SIGUSR2]:  # Slurm sends both to every process: a SIGTERM has reached the command
                command.terminate()

        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # for the command, which inherits it
        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        command = subprocess.Popen([sys.executable, "-m", "lm_trials.cli", *self.job.words])
        signal.signal(signal.SIGUSR2, stop)
        signal.signal(signal.SIGTERM, stop)
        code = command.wait()
        if code == 0:
            if self.job.receipt:
                write_json(self.job.receipt, {"words": list(self.job.words)})
            return
        if not received:
            sys.exit(code)
        signal.signal(signal.SIGUSR2, requeue)
        if signal.SIGUSR2 in received:
            requeue(signal.SIGUSR2, None)
        # Slurm itself ends a job that it preempts or that was cancelled, and queues the preempted again; one that ended
        # by itself would have failed.
        while True:
            signal.pause()

    def checkpoint(self) -> Any:
        """Return what submitit runs when the Slurm job starts again: the same command, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmHandle:
    """One Slurm job of a trial."""

    number: str
    job: Job
    executor: SlurmExecutor

    def poll(self) -> int | None:
        """Return 0 after success, 1 after failure, None while it is queued or running."""
        state = self.executor.states().get(self.number)
        if state is None:  # Slurm forgets a job some minutes after its end
            return 0 if self.job.finished() else 1
        return int(state != "COMPLETED") if state in ENDED else None

    def stop(self) -> None:
        """Leave it in the queue: `scancel` is the command that removes it."""


class SlurmExecutor:
    """Submits the jobs of a trial to Slurm.

    Args:
        runs: the trial's folder, which all nodes must see.

    Raises:
        UsageError: where Slurm or submitit is missing or does not answer; for a --slurm that is not KEY=VALUE.
    """

    def __init__(self, runs: Path, arguments: SlurmArguments) -> None:
        if missing := next((program for program in ("sbatch", "squeue", "srun") if not shutil.which(program)), None):
            raise UsageError(
                f"--executor slurm: {missing} not found; run the command where Slurm is, or omit --executor"
            )
        try:
            import submitit
        except ImportError:
            raise UsageError("--executor slurm needs submitit; pip install 'lm_trials[slurm]'") from None
        if wrong := next((pair for pair in arguments.slurm if not pair.partition("=")[1]), None):
            raise UsageError(f"--slurm {wrong} is not KEY=VALUE; give, for example, account=physics")
        self.runs = runs.resolve()
        self.arguments = arguments
        self.submitit = submitit.SlurmExecutor(self.runs / "logs" / "slurm", max_num_timeout=MAX_TIMEOUTS)
        self._asked = 0.0
        self._states: dict[str, str] = {}
        self._squeue()

    def start(self, jobs: Sequence[Job]) -> dict[str, SlurmHandle]:
        """Submit the jobs that are not in the queue, parents first; returns the Slurm job of each by its name.

        Raises:
            UsageError: where Slurm refuses one.
        """
        found: dict[str, SlurmHandle] = {}
        lock = locked(self.runs / ".slurm-lock", "submits this trial")
        try:
            queued = {name: number for number, state, name in self._squeue() if state not in ENDED}
            for job in jobs:
                name = f"{job.name}@{self.runs}"
                if name not in queued and job.finished():
                    continue
                number = queued.get(name) or self._submit(
                    job, name, [found[name] for name in job.after if name in found]
                )
                found[job.name] = SlurmHandle(number, job, self)
        finally:
            unlock(lock)
        return found

    def _submit(self, job: Job, name: str, after: Sequence[SlurmHandle]) -> str:
        """Submit one job; returns its number."""
        from submitit.core.utils import FailedJobError

        arguments = self.arguments
        log = self.runs / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        processes = max(arguments.gpus_per_node, 1) if job.words[0] in ("train", "tune") else 1
        given = dict(pair.split("=", 1) for pair in arguments.slurm)
        cores = arguments.cpus_per_task
        self.submitit.parameters = {}
        self.submitit.update_parameters(
            job_name=name,
            time=arguments.timeout_min,
            partition=arguments.partition,
            gpus_per_node=min(arguments.gpus_per_node, processes) or None,
            ntasks_per_node=processes,
            cpus_per_task=cores,
            dependency="afterok:" + ":".join(handle.number for handle in after) if after else None,
            stderr_to_stdout=True,
            # Since Slurm 22.05 srun does not take the number of cores from sbatch.
            srun_args=[f"--output={log}", "--open-mode=append", f"--cpus-per-task={cores}"],
            setup=[f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cores}}}"],
            additional_parameters={"output": str(log), "requeue": True, "kill-on-invalid-dep": "yes", **given},
        )
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                number = str(self.submitit.submit(Command(job)).job_id)
        except FailedJobError as error:
            raise UsageError(f"--executor slurm: sbatch refused {job.name} ({error})") from None
        self._states[number] = "PENDING"
        return number

    def states(self) -> dict[str, str]:
        """Return the state of each Slurm job by its number, at most `POLL_SECONDS` old unless Slurm is too busy."""
        if time.monotonic() > self._asked + POLL_SECONDS:
            with suppress(UsageError):
                self._squeue()
        return self._states

    def _squeue(self) -> list[tuple[str, ...]]:
        """Ask for the number, state and name of each of this user's jobs, also of those that ended minutes ago."""
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A %T %j"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            raise UsageError(f"--executor slurm: squeue failed ({answer.stderr.strip()}); try again when Slurm answers")
        jobs = [tuple(line.split(" ", 2)) for line in answer.stdout.splitlines()]
        self._states = {number: state for number, state, _ in jobs}
        return jobs
