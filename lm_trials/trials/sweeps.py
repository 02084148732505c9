"""Write the stages of a trial as sweep files of W&B, whose agents then train its runs.

    lm-trials export-sweeps trials/my_claim.yaml
    wandb sweep sweeps/my_claim/pretrain.yaml

A sweep is a grid over root seeds and the stage's `parameters`.  Arms with names of
their own may differ in several flags at once, so each gets a file.  The runs go to the
folders of the trial: lm-trials run then measures them, and lm-trials report compares.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import script, show_facts
from lm_trials.files import check_writable, plain_name, write_file
from lm_trials.flags import option
from lm_trials.trials.registration import register
from lm_trials.trials.run import TrialArguments, again, opened, trial_arguments
from lm_trials.trials.trial import Stage, Trial


@dataclass
class ExportArguments(TrialArguments):
    """Where the sweep files go."""

    output_dir: str | None = option(None, output=True, help="Folder of the sweep files. Default: sweeps/<trial>.")


def sweeps_of(trial: Trial, runs: Path) -> dict[str, tuple[Stage, dict[str, Any]]]:
    """Return the sweeps of a trial whose runs are in `runs`, each with its stage, by the names of their files."""
    found = {}
    for stage in trial.stages.values():
        grid = [flag for flag in stage.grid if all(map(_keeps_text, (of[flag] for of in stage.flags.values())))]
        for arm, flags in stage.flags.items():
            named = arm.removesuffix("-".join(plain_name(str(flags[flag])) for flag in stage.grid)).removesuffix("-")
            apart = [plain_name(str(flags[flag])) for flag in stage.grid if flag not in grid]
            name = "-".join([stage.name, *([named] if named not in ("", stage.name) else []), *apart])
            points = [f"{{{flag}}}" if flag in grid else plain_name(str(flags[flag])) for flag in stage.grid]
            if name not in found:
                arms = "-".join(filter(None, [named, *points]))
                found[name] = stage, _sweep(trial, stage, name, arm, arms, grid, runs)
    return found


def _sweep(
    trial: Trial, stage: Stage, name: str, first: str, arms: str, grid: Sequence[str], runs: Path
) -> dict[str, Any]:
    """Return the grid of which `first` is the first arm; `arms` is the name of all, with braces."""
    own = {"run_name": f"{stage.name}-{arms}-s{{seed}}", "output_dir": f"{runs.as_posix()}/{{run_name}}"}
    if stage.after is not None:
        own["model_name_or_path"] = f"{runs.as_posix()}/{stage.after}-{stage.parents[first]}-s{{seed}}"
    words: list[str] = []
    parameters: dict[str, Any] = {"seed": {"values": list(trial.seeds)}}
    for flag, value in {**stage.flags[first], "report_to": "wandb", **own}.items():
        if flag in grid:
            several = {str(of[flag]): _sent(of[flag]) for of in stage.flags.values()}
            parameters[flag] = {"values": list(several.values())}
        elif isinstance(value, list):  # agents would pass its text in Python
            words += [f"--{flag}", *map(str, value)]
        else:
            parameters[flag] = {"value": _sent(value)}
    return {
        "name": f"{trial.name} {name}",
        "description": trial.claim,
        "program": "lm-trials",
        "command": ["${env}", "lm-trials", stage.program, *words, "${args}"],
        "method": "grid",
        "parameters": parameters,
    }


def _keeps_text(value: Any) -> bool:
    """Whether agents pass a value with the text that names the trial's folder.

    W&B's client writes the text 1e-3 without quotes, and its server reads 0.001.

    >>> [_keeps_text(value) for value in ("filter-Twist", 0.001, "1e-05", "1e-3")]
    [True, True, True, False]
    """
    try:
        return not isinstance(value, list) and (not isinstance(value, str) or str(float(value)) == value)
    except ValueError:
        return True


def _sent(value: Any) -> Any:
    """Return a value as a sweep file has it: a number only if W&B, which reads 1.0e-3 and 2.0, passes the same text.

    >>> _sent(300), _sent(0.5), _sent(2.0), _sent(True)
    (300, 0.5, '2.0', True)
    """
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        number = int(value) if isinstance(value, int) else float(value)
        if str(number) == str(value) and (isinstance(number, int) or number % 1):
            return number
    return str(value)


@script
def main(argv: list[str] | None = None) -> list[Path]:
    """Write the sweep files and register the trial; returns their paths."""
    import yaml

    args = trial_arguments(argv, ExportArguments, __doc__ or "", "export-sweeps")
    trial, runs = opened(args)
    folder = Path(args.output_dir or Path("sweeps") / runs.name)
    sweeps = sweeps_of(trial, runs)
    check_writable("--output_dir", folder)
    check_writable("--runs_dir", runs)
    register(trial, runs)  # agents may begin now
    paths = []
    for name, (stage, sweep) in sweeps.items():
        before = [f"lm-trials {shlex.join(words)}" for _, words in trial.preparations()]
        before += [f"all runs of stage {stage.after}"] if stage.after else []
        lines = [
            f"Stage {stage.name} of {args.trial}: wandb sweep THIS_FILE",
            *(f"Needs: {each}" for each in before),
            "{seed}, and any other flag in braces, stands for that flag's value in each run.",
            f"Afterwards, lm-trials run {again(args)} measures the runs.",
        ]
        text = "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(sweep, sort_keys=False, width=1000)
        paths.append(write_file(folder / f"{name}.yaml", text))
    facts = {path.stem: f"wandb sweep {path}" for path in paths}
    show_facts("sweeps, in this order", facts | {"next": f"lm-trials run {again(args)} measures the runs"})
    return paths
