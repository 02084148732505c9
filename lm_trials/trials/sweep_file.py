"""A sweep file of W&B, read as a trial of one stage without an outcome."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.trials.entries import SCRIPTS, TRAINING, check_keys, flags_of
from lm_trials.trials.stages import parameter_values

SWEEP_KEYS = ("method", "parameters", "program", "command")
NO_GRID = ("early_terminate", "run_cap", "scheduler", "controller", "job", "image_uri")  # other runs than the grid's
IGNORED = ("name", "description", "project", "entity", "metric", "metrics", "apiVersion", "kind")
OF_THE_TRIAL = ("output_dir", "run_name", "report_to")  # where runs go, and that agents log to W&B
DEFAULT_SEED = 42  # of the programs, so that agents and `lm-trials run` train the same runs


def trial_of_sweep(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep file's content as that of a trial file, with one stage called `name`.

    Raises:
        UsageError: for a sweep that is no grid of flags of a training.
    """
    if other := next((key for key in given if key in NO_GRID), None):
        raise UsageError(f"{other}: a trial trains all runs of its grid by itself; remove {other}")
    check_keys(given, SWEEP_KEYS + IGNORED)
    if given["method"] != "grid":
        raise UsageError(f"method: {given['method']} chooses runs by earlier results or chance; write `method: grid`")
    values = parameter_values(given.get("parameters") or "", "parameters")
    seeds = values.pop("seed", [DEFAULT_SEED])
    values = {flag: of for flag, of in values.items() if flag not in OF_THE_TRIAL}
    program, flags = _program(given)
    stage = {
        "program": program,
        **flags,
        "parameters": {flag: {"values": of} for flag, of in values.items()} or None,
        "varies": [flag for flag, of in values.items() if len(set(map(str, of))) > 1],
    }
    claim = str(given.get("description") or f"The sweep {given.get('name', name)}.")
    return {"claim": claim, "seeds": seeds, "stages": {name: stage}}


def _program(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the program that a sweep's command runs, and the flags that the command itself gives."""
    command = given.get("command") or ["${program}", "${args}"]
    if not isinstance(command, list):
        raise UsageError(f"command: {command} is not a list; write each word after a dash")
    words = [str(given.get("program", "")) if word == "${program}" else str(word) for word in command]
    programs = [SCRIPTS.get(Path(word).name, word) for word in words]
    place = next((place for place, program in enumerate(programs) if program in TRAINING), None)
    if place is None:
        raise UsageError(
            f"command: {shlex.join(words)} runs none of lm-trials train, tune and align, and of train_gpt2.py, "
            "sft_lora.py and align_lora.py"
        )
    flags = flags_of([word for word in words[place + 1 :] if not word.startswith("${")])
    if stray := flags.pop(""):
        raise UsageError(f"command: {stray[0]} has no flag before it; write --flag={stray[0]}")
    return programs[place], {flag: of if len(of) > 1 else of[0] if of else True for flag, of in flags.items()}
