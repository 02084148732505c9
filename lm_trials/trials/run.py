"""Run a trial: everything in its file that is not finished yet.

    lm-trials run trials/deletion_recovery.yaml
    lm-trials run trials/deletion_recovery.yaml --workers 4
    lm-trials run trials/deletion_recovery.yaml --pilot 100
    lm-trials run trials/diversity_51M.yaml --executor slurm --gpus_per_node 1

Prepares the data, trains every arm with every root seed, and measures the runs.  Each
job is a process of its own; jobs that do not need each other run at the same time.
After Ctrl-C, a crash or a reboot, run the same command again to resume.  If a job
fails, the end of its log is shown, and the other jobs continue.

The claim, seeds, arms, outcomes and margins of the file are stored with the first run;
lm-trials report lists every later change.  A pilot runs one seed that is not
registered, in a folder of its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lm_trials.console import UsageError, note, script, show_facts
from lm_trials.files import check_writable, read_object
from lm_trials.flags import SEED, option, parse_arguments
from lm_trials.trials.engine import Forecast, run_jobs
from lm_trials.trials.graph import Job, jobs_of, open_jobs
from lm_trials.trials.registration import register
from lm_trials.trials.screen import Screen
from lm_trials.trials.slurm import Slurm, SlurmArguments
from lm_trials.trials.trial import Trial
from lm_trials.trials.trial_file import read_trial

PLAN = "plan.json"
SLURM_THREADS = 4  # of a job, where the flags give no number
LEAST_BYTES = 100e6  # of a trial that was not planned: some small models
MOST_WORKERS = 8  # by default; each holds a model and its data


@dataclass
class TrialArguments:
    """Which trial, and where its runs are."""

    trial: str = option("", help="The trial file; the flag itself may be omitted.")
    runs_dir: str = option("runs", output=True, help="Folder of the trial's folder, which has its runs.")
    pilot: int | None = option(None, **SEED, help="Run this one seed, which the file must not have, as a pilot.")


@dataclass
class RunTrialArguments(TrialArguments):
    """How the jobs are run."""

    workers: int | None = option(
        None, least=1, help="Jobs at a time. Default: one for each GPU, else one for each core."
    )
    threads: int | None = option(
        None, least=1, help="Threads of each job. Default: the cores divided by the workers; with Slurm 4."
    )


@dataclass
class ExecutorArguments(SlurmArguments, RunTrialArguments):
    """Where the jobs are run."""

    executor: Literal["local", "slurm"] = option(
        "local", not_with={"slurm": "workers"}, help="Processes of this machine, or jobs of a Slurm cluster."
    )


def trial_arguments(argv: list[str] | None, kind: type, description: str, name: str) -> Any:
    """Parse the flags of a program on a trial file, which may be given first, without `--trial`."""
    (args,) = parse_arguments(argv, (kind,), description, prog=f"lm-trials {name}", first="trial")
    if not args.trial:
        raise UsageError(f"lm-trials {name} needs a trial file; lm-trials new my_trial.yaml writes an example")
    return args


def opened(args: TrialArguments) -> tuple[Trial, Path]:
    """Return the trial that the flags name, with the pilot's seed if one is asked for, and the folder of its runs."""
    trial = read_trial(Path(args.trial))
    if args.pilot is None:
        return trial, Path(args.runs_dir) / trial.name
    if args.pilot in trial.seeds:
        raise UsageError(f"--pilot {args.pilot} is a registered seed; a pilot on it would be seen before the test")
    return replace(trial, seeds=(args.pilot,)), Path(args.runs_dir) / f"{trial.name}-pilot"


def again(args: TrialArguments) -> str:
    """Return the flags that name the same trial in another command."""
    words = [args.trial] + (["--runs_dir", args.runs_dir] if args.runs_dir != "runs" else [])
    return shlex.join(words + (["--pilot", str(args.pilot)] if args.pilot is not None else []))


def resources(workers: int | None, threads: int | None) -> tuple[int, int, int]:
    """Return the number of workers, of threads of each, and of GPUs."""
    from lm_trials.trials.local import gpu_count

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = gpu_count()
    count = workers or gpus or min(cores, MOST_WORKERS)
    return (min(count, gpus) if gpus else count), threads or max(cores // count, 1), gpus


def planned_seconds(runs: Path) -> dict[str, float]:
    """Return the seconds of each kind of job that `lm-trials plan` measured."""
    return dict(read_object(runs / PLAN)["seconds"]) if (runs / PLAN).is_file() else {}


def check_disk(runs: Path, share: float) -> None:
    """Refuse a disk that is too small for the share of a planned trial that is not run yet (UsageError)."""
    planned = read_object(runs / PLAN)["bytes"] if (runs / PLAN).is_file() else LEAST_BYTES
    place = next(folder for folder in (runs.resolve(), *runs.resolve().parents) if folder.is_dir())
    if (free := shutil.disk_usage(place).free) < planned * share:
        raise UsageError(
            f"--runs_dir {runs.parent}: {free / 1e9:.2f} GB are free and the runs need about "
            f"{planned * share / 1e9:.2f} GB; make room, lower save_total_limit, or give a folder on another disk"
        )


def distinct(jobs: list[Job], trial: Trial) -> list[Job]:
    """Return the jobs of the first seed and the preparation: the others differ from them in seeds and folders."""
    prepared = len(trial.preparations())
    return jobs[: prepared + (len(jobs) - prepared) // len(trial.seeds)]


@script
def main(argv: list[str] | None = None) -> list[Job]:
    """Run the open jobs; returns those that failed.  The exit status is 1 if one did."""
    args = trial_arguments(argv, ExecutorArguments, __doc__ or "", "run")
    trial, runs = opened(args)
    check_writable("--runs_dir", runs / "logs")
    jobs = jobs_of(trial, runs)
    todo = open_jobs(jobs)
    if not todo:
        register(trial, runs)  # refuses a file with other runs than those that are finished
    else:
        check_disk(runs, len(todo) / len(jobs))
        from lm_trials.trials.local import LocalExecutor

        workers, threads, gpus = resources(args.workers, args.threads)
        slurm = Slurm(runs, args.threads or SLURM_THREADS, args) if args.executor == "slurm" else None
        executor = LocalExecutor(threads, gpus)
        note("checking the flags of all programs ...")
        executor.check(distinct(jobs, trial))
        register(trial, runs)
        where = f"{workers} at a time, {f'{gpus} GPUs' if gpus else f'{threads} threads each'}"
        if slurm:
            where = f"by Slurm, {slurm.threads} threads each"
        show_facts(
            trial.name,
            {
                "claim": trial.claim,
                "jobs": f"{len(todo)} of {len(jobs)} to run, {where}",
                "runs": f"{runs} (logs in {runs / 'logs'})",
            },
        )
        forecast = Forecast.of(jobs, runs, planned_seconds(runs))
        with Screen(jobs, runs, forecast, None if slurm else workers) as screen:
            failed, blocked = slurm.run(todo, screen) if slurm else run_jobs(jobs, executor, runs, workers, screen)
        if failed:
            show_facts(
                "failed",
                {job.name: f"lm-trials {shlex.join(job.words)}" for job in failed}
                | ({"not run": f"{len(blocked)} jobs that need them"} if blocked else {})
                | {"next": "correct the cause and run the same command again; finished jobs are not repeated"},
            )
            raise SystemExit(1)
    show_facts(f"{trial.name}: all {len(jobs)} jobs are finished", {"next": f"lm-trials report {again(args)}"})
    return []
