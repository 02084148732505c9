"""Context of a trial's numbers: deviations from the registration, the differences between its arms, and the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.trials.differences import find_variables, same_passes
from lm_trials.trials.engine import read_attempts
from lm_trials.trials.outcomes import ArmName, TrialRuns
from lm_trials.trials.registration import deviations
from lm_trials.trials.runs import RUN_FILE, Run
from lm_trials.trials.trial import Contrast, Trial

# Of the whole trial, reported once: not of a pair of arms.
ENVIRONMENT = ("code_revision", "versions")


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
    """What a trial took: hours of cores and GPUs of all attempts, and hours of training alone.

    Attributes:
        killed: attempts without an end, whose time is not known and not counted.
    """

    core_hours: float
    gpu_hours: float
    training_hours: float
    killed: int

    def __str__(self) -> str:
        text = f"{self.core_hours:.2f} core-hours" if self.core_hours else ""
        text += f", {self.gpu_hours:.2f} GPU-hours" if self.gpu_hours else ""
        text = f"{text}, of which {self.training_hours:.2f} hours are training" if text else (
            f"{self.training_hours:.2f} hours of training"
        )  # fmt: skip
        return text + (f"; {self.killed} attempts were killed and are not counted" if self.killed else "")


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
        if stage.parents.get(first[name]) != stage.parents.get(second[name]):
            stated.add("initial_model.name_or_path")
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
        if before := registration.get("finished"):
            found.append(f"{len(before)} jobs were finished before the registration, {before[0]} for example")
    for contrast in trial.contrasts:
        for each in stage_differences(trial, contrast, of_arms):
            if each.unstated:
                found.append(
                    f"{each.stage}.{each.arms[0]} and {each.stage}.{each.arms[1]} differ in more than the file states: "
                    f"{', '.join(each.unstated)}"
                )
    everyone = [run for runs in of_arms.values() for run in runs]
    for arm, runs in of_arms.items():
        variables = [each.name for each in find_variables([run.outcome for run in runs])] if runs else []
        if names := [name for name in variables if name not in ENVIRONMENT]:
            found.append(f"the runs of {'.'.join(arm)} differ in more than their seeds: {', '.join(names)}")
    for name in sorted({name for run in everyone for name in run.outcome}):
        values = {str(run.outcome.get(name)) for run in everyone}
        if name.startswith(ENVIRONMENT) and len(values) > 1:
            found.append(f"the runs have different {name}: {', '.join(sorted(values))}")
    return list(dict.fromkeys(found))


def cost(runs: Path, everyone: Sequence[Run]) -> Cost:
    """Return what the attempts under a trial's folder took."""
    tried = read_attempts(runs)
    ended = [attempt for attempt in tried if "seconds" in attempt]
    cores, gpus = (sum(each["seconds"] * each[what] for each in ended) / 3600 for what in ("cpus", "gpus"))
    return Cost(cores, gpus, sum(run.training_seconds for run in everyone) / 3600, len(tried) - len(ended))
