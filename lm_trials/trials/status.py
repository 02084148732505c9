"""Show which jobs of a trial are finished, running, queued in Slurm, failed or open.

Reads files, and asks squeue about a trial that was submitted to Slurm.

lm-trials status trials/deletion_recovery.yaml
"""

from __future__ import annotations

import signal
from collections import Counter

from lm_trials.console import UsageError, script, show_facts, show_table
from lm_trials.trials.engine import Forecast, is_busy, log_end, log_of, progress_of, read_attempts
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.registration import deviations, read_registration
from lm_trials.trials.run import TrialArguments, again, opened, planned_seconds, resources, trial_arguments
from lm_trials.trials.screen import clock
from lm_trials.trials.slurm import Queued, jobs_in, read_queue

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a training that saved a checkpoint
STATES = ("finished", "running", "queued", "failed", "open")


@script
def main(argv: list[str] | None = None) -> dict[str, str]:
    """Print a table of the stages and measures; returns the state of each job."""
    args = trial_arguments(argv, TrialArguments, __doc__ or "", "status")
    trial, runs = opened(args)
    jobs = jobs_of(trial, runs)
    statuses = {each["job"]: each["status"] for each in read_attempts(runs) if "status" in each}
    states = {job.name: "finished" if job.finished() else "open" for job in jobs}
    unfinished = [job for job in jobs if states[job.name] == "open"]
    by_slurm = bool(unfinished) and (runs / "logs" / "slurm").is_dir()
    queue: dict[str, Queued] = {}
    unknown = ""
    if by_slurm:
        try:
            queue = jobs_in(read_queue(), runs)
        except UsageError as error:
            unknown = str(error)
    for job in unfinished:
        if is_busy(runs, job):
            states[job.name] = "running"
        elif job.name in queue:
            states[job.name] = "queued" if queue[job.name].state == "PENDING" else "running"
        elif statuses.get(job.name) not in (0, None, *INTERRUPTED):
            states[job.name] = "failed"
    counts: dict[str, Counter[str]] = {}
    for job in jobs:
        counts.setdefault(job.kind, Counter())[states[job.name]] += 1
    rows = [[kind, *(str(of[state]) if of[state] else "" for state in STATES)] for kind, of in counts.items()]
    show_table(trial.name, ["jobs", *STATES], rows)
    facts = {}
    for job in jobs:
        if states[job.name] == "running":
            slurm = f"{queue[job.name].state.lower()} in Slurm" if job.name in queue else "running"
            facts[job.name] = progress_of(log_of(runs, job)) or slurm
        if states[job.name] == "failed":
            facts[job.name] = " | ".join(log_end(log_of(runs, job), 1)) + f" ({log_of(runs, job)})"
    reasons = Counter(queue[job.name].reason for job in jobs if states[job.name] == "queued")
    if reasons:
        facts["queued"] = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    if unknown:
        facts["Slurm"] = f"the trial was submitted to Slurm, and its queued jobs are shown as open: {unknown}"
    workers = sum(state == "running" for state in states.values()) if queue else resources(None, None)[0]
    left = Forecast.of(jobs, runs, planned_seconds(runs)).left(unfinished, {}, workers)
    facts["runs"] = str(runs)
    facts["finished"] = f"{len(jobs) - len(unfinished)} of {len(jobs)} jobs"
    if unfinished:
        facts["time left"] = f"{clock(left)} with {max(workers, 1)} at a time"
    registered = read_registration(runs)
    facts["registered"] = registered["time"] if registered else "not yet; the first run registers the trial"
    if registered and (changed := deviations(registered["registered"], trial.registered)):
        facts["deviations"] = "; ".join(changed)
    facts["next"] = f"lm-trials {'run' if unfinished else 'report'} {again(args)}"
    if by_slurm:
        facts["next"] += " --executor slurm, with its other flags"
    show_facts(trial.name, facts)
    return states
