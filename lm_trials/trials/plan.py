"""Plan a trial: its graph of runs, and their expected time and disk space.

    lm-trials plan trials/deletion_recovery.yaml

Prepares the data, then rehearses the trial with one root seed that is not in the file:
each run with 20 updates, and every measurement.  Mistakes in the file show within
minutes, and the expected times are computed from those of the rehearsal.  The runs of
the rehearsal are removed.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, note, script, show_facts, show_table
from lm_trials.files import read_object, write_json
from lm_trials.flags import option
from lm_trials.snapshots import saved_updates
from lm_trials.trials.engine import Forecast, durations, log_end, log_of, run_jobs
from lm_trials.trials.graph import Job, jobs_of
from lm_trials.trials.run import (
    PLAN,
    RunTrialArguments,
    again,
    check_disk,
    distinct,
    opened,
    resources,
    trial_arguments,
)
from lm_trials.trials.runs import log_history
from lm_trials.trials.screen import Screen, clock
from lm_trials.trials.trial import Trial

REHEARSED = 20  # updates; the first ones are slower
SNAPSHOT = ("snapshot", "snapshot_samples")  # they need checkpoints, which a rehearsal has of a ladder alone
STATE = 3  # times the weights: AdamW's two moments, and the weights themselves


@dataclass
class PlanArguments(RunTrialArguments):
    """How the trial is rehearsed."""

    rehearse: bool = option(True, help="Measure the times in a rehearsal; False: only show the graph.")


def rehearsed(trial: Trial) -> Trial:
    """Return the trial with few updates and one seed, not a registered one: its results would be seen."""
    few: dict[str, Any] = {"max_steps": REHEARSED, "eval_strategy": "no", "load_best_model_at_end": False}

    def short(flags: Mapping[str, Any]) -> dict[str, Any]:
        kept = {flag: value for flag, value in flags.items() if flag != "order_schedule"}
        if "inject" in flags:  # in the few updates, as those of the trial come later
            kept["inject"] = f"{str(flags['inject']).rpartition('@')[0]}@1-{REHEARSED // 2}"
        if flags.get("checkpoint_ladder"):  # for measurements that read several checkpoints
            return {**kept, **few, "save_strategy": "steps", "save_steps": REHEARSED}
        return {flag: value for flag, value in kept.items() if flag not in SNAPSHOT} | few | {"save_strategy": "no"}

    stages = {}
    for name, stage in trial.stages.items():
        own = {"dense_eval_steps": 0} if stage.program == "train" else {}
        stages[name] = replace(stage, flags={arm: short(flags) | own for arm, flags in stage.flags.items()})
    spare = [seed for values in trial.per_seed.values() for seed in values if seed not in trial.seeds]
    return replace(trial, seeds=(spare[0] if spare else max(trial.seeds) + 1,), stages=stages)


def seconds_of(trial: Trial, runs: Path, flags: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], int]:
    """Return the expected seconds of each kind of job, and the bytes of one seed, from a rehearsal in `runs`.

    Args:
        flags: the parsed flags of each training of one seed of the whole trial, in the order of its jobs.
    """
    found: dict[str, float] = {}
    took, num_bytes, trained = durations(runs), 0, iter(flags)
    for job in jobs_of(rehearsed(trial), runs):
        if job.receipt is not None:
            found[job.kind] = max(took.get(job.name, 0.0), found.get(job.kind, 0.0))
            continue
        assert job.folder is not None
        training = sum(line.get("train_runtime", 0.0) for line in log_history(job.folder))
        metrics = read_object(job.folder / "all_results.json")
        evaluation = sum(metrics[name] for name in metrics if name.startswith("eval") and name.endswith("_runtime"))
        of = next(trained)
        steps = int(of["max_steps"])
        total = took[job.name] - training + training / REHEARSED * steps + evaluation * evaluations(of, steps)
        found[job.kind] = max(total, found.get(job.kind, 0.0))
        saved = _size(job.folder / f"checkpoint-{REHEARSED}")
        each = saved or STATE * sum(path.stat().st_size for path in job.folder.glob("*.safetensors"))
        num_bytes += _size(job.folder) - sum(map(_size, job.folder.glob("checkpoint-*")))
        num_bytes += each * checkpoints(of, steps)
    return found, num_bytes


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def evaluations(flags: Mapping[str, Any], steps: int) -> int:
    """Return how many evaluations a training makes before its last.

    >>> evaluations({"eval_strategy": "steps", "eval_steps": 50, "dense_eval_steps": 20}, 200)
    24
    """
    dense = int(flags.get("dense_eval_steps") or 0)
    if flags.get("eval_strategy") == "no":
        return dense
    every = float(flags.get("eval_steps") or flags.get("logging_steps") or steps)
    return dense + math.floor(steps / (every * steps if every < 1 else every))


def checkpoints(flags: Mapping[str, Any], steps: int) -> int:
    """Return how many checkpoints a training keeps.

    >>> checkpoints({"save_strategy": "steps", "save_steps": 50, "save_total_limit": 2}, 200)
    2
    """
    if flags.get("save_strategy") == "no":
        return 0
    saved = saved_updates(steps, float(flags.get("save_steps") or steps), bool(flags.get("checkpoint_ladder")))
    return min(len(saved), int(flags.get("save_total_limit") or len(saved)))


@script
def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Print the plan and keep its times for `lm-trials run`; returns it."""
    args = trial_arguments(argv, PlanArguments, __doc__ or "", "plan")
    trial, runs = opened(args)
    jobs = jobs_of(trial, runs)
    workers, threads, gpus = resources(args.workers, args.threads)
    show_graph(trial)
    from lm_trials.trials.local import LocalExecutor

    executor = LocalExecutor(threads, gpus)
    first = distinct(jobs, trial)
    note("checking the flags of all programs ...")
    checked = list(zip(first, executor.check(first), strict=True))
    if not args.rehearse:
        return {}
    parsed = {job.name: flags for job, flags in checked if job.receipt is None}
    if unknown := [name for name, flags in parsed.items() if int(flags["max_steps"]) < 1]:
        raise UsageError(f"{unknown[0]} has no max_steps, so its minutes are unknown; give max_steps in its stage")
    place = runs / "rehearsal"
    shutil.rmtree(place, ignore_errors=True)
    short = jobs_of(rehearsed(trial), place)
    note(f"rehearsal: {len(short)} jobs, {REHEARSED} updates a run")
    with Screen(short, place, Forecast({}, {}), workers) as screen:
        failed, _ = run_jobs(short, executor, place, workers, screen)
    if failed:
        log = log_of(place, failed[0])
        raise UsageError(f"{failed[0].name} failed in the rehearsal: {' '.join(log_end(log))} ({log})")
    seconds, num_bytes = seconds_of(trial, place, parsed.values())
    free = shutil.disk_usage(place).free
    shutil.rmtree(place)
    disk = num_bytes * len(trial.seeds)
    write_json(runs / PLAN, {"seconds": seconds, "bytes": disk})
    show_costs(jobs, seconds, workers)
    facts = {"disk": f"{disk / 1e9:.2f} GB of {free / 1e9:.0f} GB free", "next": f"lm-trials run {again(args)}"}
    show_facts("costs", facts)
    check_disk(runs, 1.0)
    return {"seconds": seconds, "bytes": disk, "jobs": len(jobs)}


def show_graph(trial: Trial) -> None:
    """Print the arms of each stage with what they start from and what they change, and the measures."""
    from lm_trials.trials.verdict import claim_text

    rows = []
    for stage in trial.stages.values():
        for arm, flags in stage.flags.items():
            given = str(flags.get("model_name_or_path", "random weights"))
            parent = f"{stage.after}-{stage.parents[arm]}" if stage.after else given
            changed = ", ".join(f"{name} {flags.get(name)}" for name in stage.varies)
            rows.append([f"{stage.name}-{arm}", parent, changed, str(len(trial.seeds))])
    show_table(trial.name, ["arm", "starts from", "differs in", "runs"], rows)
    facts = {"claim": trial.claim, "root seeds": ", ".join(map(str, trial.seeds))}
    facts |= {f"prepare {number}": f"lm-trials {shlex.join(words)}" for number, words in enumerate(trial.prepare, 1)}
    for number, measure in enumerate(trial.measures, 1):
        facts[f"measure {number}"] = f"{shlex.join(measure.words)} (of {', '.join(map('-'.join, measure.arms))})"
    for role in ("primary", "secondary", "control"):
        for number, contrast in enumerate(trial.of(role), 1):
            facts[f"{role} {number}"] = f"{contrast.name}; claimed: {claim_text(contrast)}"
    show_facts("to be registered by the first run", facts)


def show_costs(jobs: list[Job], seconds: Mapping[str, float], workers: int) -> None:
    """Print the expected time of each kind of job, and of all."""
    kinds = Counter(job.kind for job in jobs)
    rows = [[kind, str(n), clock(seconds[kind]), clock(n * seconds[kind])] for kind, n in kinds.items()]
    total = sum(n * seconds[kind] for kind, n in kinds.items())
    rows.append(["all", str(len(jobs)), "", clock(total)])
    rows.append([f"all, {workers} at a time", "", "", clock(total / workers)])
    show_table("expected time", ["jobs", "number", "each", "together"], rows)
