"""Context of a trial's numbers: deviations from the registration, the differences between its arms, and the cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path
from typing import Any

from lm_trials.cli import command_of
from lm_trials.console import UsageError
from lm_trials.files import damaged, plain_name, read_object, sealed_sums, weights_digest
from lm_trials.flags import ParsedError, parsing_only
from lm_trials.run_data import public_value
from lm_trials.trials.differences import differing, find_variables, same_passes
from lm_trials.trials.engine import read_attempts
from lm_trials.trials.entries import flags_of
from lm_trials.trials.graph import FINISHED, Job, without_place
from lm_trials.trials.measurements import FREE, recorded_flags
from lm_trials.trials.outcomes import ArmName, TrialRuns
from lm_trials.trials.registration import deviations
from lm_trials.trials.runs import ADAPTER, RUN_FILE, Run
from lm_trials.trials.trial import Contrast, Trial

# Flags of a training that name its folder, which the reader of runs checks.
FOLDER = {"output_dir", "run_name"}
# Flags of an evaluation that its folder shows, or that are resolved where they are not given.
SHOWN = {"dataset_name", "dataset_split", "matrix_dir", "block_size", "append_eos"}
# Of the whole trial, reported once: not of a pair of arms.
ENVIRONMENT = ("code_revision", "versions")
RECORDED_AS = {"order": "shuffle_buffer_size", "inject": "order_schedule"}
"""Flags that run.json contains as another: `--order file` and `--inject`."""


@dataclass(frozen=True)
class StageDifference:
    """What the two arms of a contrast differ in within one stage of their lineages.

    Attributes:
        arms: of the two lineages, in the order of the file.
        variables: the names of the variables that differ in `run.json`.
        unstated: those of them that the trial file does not state.
    """

    stage: str
    arms: tuple[str, ...]
    variables: tuple[str, ...]
    unstated: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What a trial took: hours of cores and GPUs of all attempts, and of cores in trainings alone.

    Attributes:
        open: attempts that were killed or still run, whose time is not counted.
    """

    core_hours: float
    training_core_hours: float
    gpu_hours: float
    open: int

    def __str__(self) -> str:
        text = f"{self.core_hours:.2f} core-hours, {self.training_core_hours:.2f} of them for training"
        text += f", {self.gpu_hours:.2f} GPU-hours" if self.gpu_hours else ""
        return text + (f"; not counted: attempts that were killed or still run ({self.open})" if self.open else "")


def lineage(trial: Trial, arm: ArmName) -> dict[str, str]:
    """Return the arms that an arm descends from, by stage, itself included, from the first stage on."""
    stage = trial.stages[arm[0]]
    earlier = lineage(trial, (stage.after, stage.parents[arm[1]])) if stage.after is not None else {}
    return {**earlier, arm[0]: arm[1]}


def all_runs(trial: Trial, runs: TrialRuns) -> dict[tuple[str, str], list[Run]]:
    """Return the runs of each arm, without those that are not there."""
    return {
        (name, arm): [
            runs.run((name, arm), seed) for seed in trial.seeds if (runs.place((name, arm), seed) / RUN_FILE).is_file()
        ]
        for name, stage in trial.stages.items()
        for arm in stage.arms
    }


def stage_differences(
    trial: Trial, contrast: Contrast, of_arms: Mapping[ArmName, Sequence[Run]]
) -> list[StageDifference]:
    """Return what the lineages of a contrast's arms differ in, stage by stage, by the runs of the first root seed."""
    if contrast.second is None:
        return []
    first, second = lineage(trial, contrast.first), lineage(trial, contrast.second)
    found = []
    for name in (name for name in first if first[name] != second.get(name, first[name])):
        arms = [arm for arm in trial.stages[name].arms if arm in (first[name], second[name])]
        runs = [of_arms[name, arm][:1] for arm in arms]
        if not all(runs):
            continue
        pair = [run for (run,) in runs]
        stage = trial.stages[name]
        variables = [
            variable
            for variable in find_variables([run.outcome for run in pair], same_passes(pair))
            if variable.name not in ENVIRONMENT
        ]
        stated = set(stage.varies)
        stated |= {field for flag, field in RECORDED_AS.items() if flag in stated}
        if stage.parents.get(first[name]) != stage.parents.get(second[name]):
            stated |= {"initial_model.name_or_path", ADAPTER}
        # A recipe of flags (`config`) states all that it sets.
        unstated = [
            variable.name
            for variable in variables
            if "config" not in stated and not stated & {*variable.name.split(", "), *variable.fields}
        ]
        found.append(StageDifference(name, tuple(arms), tuple(each.name for each in variables), tuple(unstated)))
    return found


def all_deviations(
    trial: Trial, registration: Mapping[str, Any] | None, of_arms: Mapping[ArmName, Sequence[Run]]
) -> list[str]:
    """Return a line for each change of the file since its registration, and runs that differ in more than stated."""
    if registration is None:
        found = ["the trial was not registered before its first run: its runs have no registration.json"]
    else:
        changed = deviations(registration["registered"], trial.registered)
        found = [f"changed after the registration of {registration['time']}: {line}" for line in changed]
        if (name := registration.get("trial", trial.name)) != trial.name:
            found.append(f"the registration is that of the trial {name}")
        if before := registration.get("finished"):
            found.append(f"{len(before)} jobs were finished before the registration, {before[0]} for example")
    for contrast in trial.contrasts:
        for each in stage_differences(trial, contrast, of_arms):
            if not each.variables:
                found.append(f"{each.stage}.{each.arms[0]} and {each.stage}.{each.arms[1]} differ in nothing")
            if each.unstated:
                found.append(
                    f"{each.stage}.{each.arms[0]} and {each.stage}.{each.arms[1]} differ in more than the file states: "
                    f"{', '.join(each.unstated)}"
                )
    everyone = [run for runs in of_arms.values() for run in runs]
    for arm, runs in of_arms.items():
        varied = {flag for flag, given in trial.stages[arm[0]].flags[arm[1]].items() if _by_seed(trial, given)}
        variables = [
            each.name
            for each in (find_variables([run.outcome for run in runs]) if runs else [])
            if not varied & {*each.name.split(", "), *each.fields}
        ]
        # What each run started from is a run of the stage before: `other_commands` compares it with that.
        known = (
            (*ENVIRONMENT, "model_name_or_path", "adapter_name_or_path") if trial.stages[arm[0]].after else ENVIRONMENT
        )
        if names := [name for name in variables if name not in known]:
            found.append(f"the runs of {'.'.join(arm)} differ in more than their seeds: {', '.join(names)}")
    for name in sorted({name for run in everyone for name in run.outcome}):
        values = {str(run.outcome.get(name)) for run in everyone}
        if name.startswith(ENVIRONMENT) and len(values) > 1:
            found.append(f"the runs have different {name}: {', '.join(sorted(values))}")
    return list(dict.fromkeys(found))


def _by_seed(trial: Trial, given: Any) -> bool:
    """Whether a flag's value is another for each root seed by the trial file."""
    return len({str(trial.filled(given, seed)) for seed in trial.seeds}) > 1


def other_commands(jobs: Sequence[Job]) -> list[str]:
    """Return a line for runs and results that were made with other flags, or from other weights, than by their jobs.

    A run that was trained by hand is noticed by its command, also where all arms were trained alike.
    """
    found: dict[str, list[str]] = {}
    for job in jobs:
        if job.folder is None or not (job.folder / RUN_FILE).is_file():
            continue
        for text in _made_otherwise(job) if job.receipt is None else _measured_otherwise(job):
            found.setdefault(str(public_value(text)), []).append(job.folder.name)
    return [f"{', '.join(names)}: {text}" for text, names in found.items()]


def _made_otherwise(job: Job) -> Iterator[str]:
    assert job.folder is not None
    described = read_object(job.folder / RUN_FILE)
    command = described.get("environment", {}).get("command", [])
    if command and command[1:2] != ["run"]:  # earlier versions recorded the engine's own command
        given = [given_flags(without_place(words)) for words in (command, job.words)]
        if changed := _changes(*({name: of[name] for name in of.keys() - FOLDER} for of in given)):
            yield f"trained by another command than the file's: {changed}"
    initial, parent = described["outcome"].get("initial_model") or {}, job.folder.parent / "".join(job.after[:1])
    started = [initial.get("weights_sha256"), initial.get("adapter")]
    if any(parent.glob("*.safetensors")) and weights_digest(parent) not in started:
        yield f"not trained from the weights that {parent.name} has now"
    sums = sealed_sums(job.folder / FINISHED) if job.finished() else {}
    for fault in damaged(job.folder, {name: sums[name] for name in sums if (job.folder / name).is_file()}):
        yield f"changed after its training: {fault}"


def _measured_otherwise(job: Job) -> Iterator[str]:
    assert job.folder is not None
    if job.words[0] not in ("probe", "evaluate", "latent-city"):
        return  # no contrast reads the others' results
    flags = parsed_flags(job.words)
    if job.words[0] == "probe":
        places = [f"probes/{job.words[1]}"]
    elif job.words[0] == "latent-city":
        places = ["eval/latent_city"]
    else:
        names = [plain_name(Path(name).name.partition(".")[0]) for name in flags.get("dataset_name") or []]
        split, packed = flags.get("dataset_split") or "validation", "-packed" * (flags.get("layout") == "packed")
        places = [f"eval/{name}{of}{packed}" for name in names for of in ("", f"-{split}")]
    for place in places:
        recorded = recorded_flags(job.folder / place / f"{Path(place).name}.csv") or {}
        both = (flags.keys() & recorded.keys()) - FREE - SHOWN
        if changed := _changes(*({name: of[name] for name in both} for of in (recorded, flags))):
            yield f"{place} was measured with other flags than the file's: {changed}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = differing([before, now]).items()
    shown = ((name, *("not set" if value is None else value for value in both)) for name, both in changed)
    return ", ".join(f"{name} {old} instead of {new}" for name, old, new in shown)


def given_flags(words: Sequence[str]) -> dict[str, str]:
    """Return the flags of a command line as they are written, by name.

    >>> given_flags(["lm-trials", "train", "--max_steps=6", "--eval_datasets", "a", "b", "--bf16"])
    {'max_steps': '6', 'eval_datasets': 'a b', 'bf16': 'True'}
    """
    return {name: " ".join(values) or "True" for name, values in flags_of(words).items() if name}


def parsed_flags(words: Sequence[str]) -> dict[str, Any]:
    """Return all flags of a command as its program parses them, as values of JSON; none where it refuses them here.

    >>> found = parsed_flags(["evaluate", "--model_name_or_path", "runs/a", "--max_eval_samples", "4"])
    >>> found["max_eval_samples"], found["layout"]
    (4, 'per_story')
    >>> parsed_flags(["evaluate"])  # without a model
    {}
    """
    program, rest = command_of(list(words))
    try:
        with parsing_only():
            unwrap(program)(rest)
    except ParsedError as parsed:
        return dict(json.loads(json.dumps(parsed.values, default=str)))
    except UsageError:  # a file of the measurement that is not on this machine
        return {}
    raise AssertionError(f"{words[0]} ran")


def cost(runs: Path) -> Cost:
    """Return what the attempts under a trial's folder took."""
    tried = read_attempts(runs)
    ended = [attempt for attempt in tried if "seconds" in attempt]
    cores, gpus = (sum(each["seconds"] * each[what] for each in ended) / 3600 for what in ("cpus", "gpus"))
    training = sum(each["seconds"] * each["cpus"] for each in ended if "/" not in each["job"]) / 3600
    return Cost(cores, training, gpus, len(tried) - len(ended))
