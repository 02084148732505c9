"""Trials whose runs are files written by hand: everything that `report` reads, in milliseconds."""

import json
from pathlib import Path

import numpy as np

from lm_trials.files import weights_digest
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.registration import register
from lm_trials.trials.trial_file import read_trial

TRIAL = """\
claim: Fine-tuning hides a feature.
source: arXiv 2311.12786
seeds: [0, 1, 2, 3]
stages:
  pretrain:
    program: train
    max_steps: 100
    learning_rate: 0.004
    arms: {seen: {dataset_name: all}, never: {dataset_name: without}}
  recover: {program: train, after: pretrain, dataset_name: recovery, max_steps: 64, eval_datasets: recovery,
            learning_rate: 0.004}
measure: [evaluate --dataset_name recovery other]
primary: {measure: loss, dataset: recovery, contrast: never - seen, margin: 0.05}
secondary:
  - {measure: updates_to_threshold, metric: eval_recovery_loss, contrast: never - seen, scale: log2,
     threshold: {reference: pretrain.seen, from: never, share: 0.25}}
controls: {measure: loss, dataset: other, contrast: never - seen, margin: 0.05}
"""
STORIES = 40
STEPS = (0, 1, 2, 4, 8, 16, 32, 64)


def story_losses(dataset, arm, seed, effect):
    """Losses of stories that all runs share, a root seed's own level, and what is left."""
    stories = np.random.default_rng(len(dataset)).gamma(20, 1.0, STORIES)
    left = np.random.default_rng([seed, len(arm), len(dataset)]).normal(0, 0.3, STORIES)
    return stories + np.random.default_rng(seed).normal(0, 0.5) + effect + left


def learning_curve(arm, seed, speed):
    rate = speed * (1 + 0.1 * np.random.default_rng([seed, len(arm)]).normal())
    return [{"step": step, "eval_recovery_loss": 2 + 2 * float(np.exp(-step * rate))} for step in STEPS]


def write_trial(
    make_run, write_evaluation, text=TRIAL, effects=None, speeds=None, name="t", skip=(), changes=None, registered=False
):
    """Write `trials/<name>.yaml` and its finished runs.

    Args:
        effects: nats per story that an arm's losses lie above those of the others, by (data set, arm).
        speeds: of learning in the second stage, by arm.
        skip: names of jobs that are not run.
        changes: fields of `run.json` by the run's name.
        registered: whether the trial was registered before its first run.
    """
    file = Path("trials") / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    trial, runs = read_trial(file), Path("runs") / name
    if registered:
        register(trial, runs)
    effects = {("recovery", "never"): 2.0, **(effects or {})}
    speeds = {"seen": 0.5, "never": 0.05, **(speeds or {})}
    for job in jobs_of(trial, runs):
        if job.name in skip:
            continue
        if job.receipt:
            for dataset in job.words[job.words.index("--dataset_name") + 1 :]:
                _, arm, seed = job.folder.name.rsplit("-", 2)
                nats = story_losses(dataset, arm, int(seed[1:]), effects.get((dataset, arm), 0.0))
                ids = [f"{dataset}{number}" for number in range(STORIES)]
                write_evaluation(job.folder / "eval" / f"{dataset}-validation", nats, [10] * STORIES,
                                 [40] * STORIES, ids, {"model_dir": str(job.folder)})  # fmt: skip
            job.receipt.parent.mkdir(exist_ok=True)
            job.receipt.write_text(json.dumps({"words": job.words}))
            continue
        stage, arm, seed = job.folder.name.rsplit("-", 2)
        flags = dict(trial.stages[stage].flags[arm])
        change = {"learning_rate": flags["learning_rate"], "max_steps": flags["max_steps"],
                  "dataset_name": flags["dataset_name"], "data.content": flags["dataset_name"]}  # fmt: skip
        if parent := trial.stages[stage].parents.get(arm):
            initial = runs / f"{trial.stages[stage].after}-{parent}-{seed}"
            replicate = dict.fromkeys(("seed", "data_seed"), int(seed[1:]))
            run = {"run_name": f"{name}/{initial.name}", "replicate": replicate}
            about = {"name_or_path": str(initial), "weights_sha256": weights_digest(initial), "run": run}
            change["initial_model"] = about
        change |= (changes or {}).get(job.folder.name, {})
        make_run(f"{name}/{job.folder.name}", int(seed[1:]), change)
        log = learning_curve(arm, int(seed[1:]), speeds[arm])
        if stage == "pretrain":
            log = [{"step": 100, "eval_recovery_loss": 2.0}]
        log.append({"step": flags["max_steps"], "train_runtime": 36.0})
        (job.folder / "trainer_state.json").write_text(
            json.dumps({"global_step": flags["max_steps"], "log_history": log})
        )
        (job.folder / "finished.json").write_text("{}")
    return file
