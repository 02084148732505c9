"""Registration: what a trial fixed before its first run, kept beside its runs, and what was changed since."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.files import read_object, write_json
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.trial import Trial

REGISTRATION = "registration.json"


def register(trial: Trial, runs: Path) -> dict[str, Any]:
    """Write the registration of a trial before its first run, or read the one that is there.

    Raises:
        UsageError: if other runs were registered in this folder (other tests of the same runs are a deviation), or its
            registration is none.
    """
    path = runs / REGISTRATION
    now: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "trial": trial.name,
        "digest": trial.digest,
        "registered": trial.registered,
        "text": trial.text,
    }
    if (registered := read_registration(runs)) is None:
        now["finished"] = [job.name for job in jobs_of(trial, runs) if job.folder and job.finished()]
        write_json(path, now, synced=True)
        registered = now
    if changed := deviations(registered["registered"]["runs"], trial.registered["runs"]):
        raise UsageError(
            f"{runs} has the runs of another registration, of {registered['time']} ({'; '.join(changed[:3])}); rename "
            "the trial file, give another --runs_dir, or undo the change"
        )
    return registered


def deviations(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two registrations, one line for each value.

    >>> deviations({"seeds": [0, 1], "margin": 0.1}, {"seeds": [0, 1, 2], "margin": 0.1})
    ['seeds: [0, 1], now [0, 1, 2]']
    """
    return list(_changes(_named(before), _named(now)))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key in {**old, **new}:
        name, was, now = f"{above}{key}", old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _changes(was, now, f"{name}.")
        elif isinstance(was, Mapping) or isinstance(now, Mapping):  # a contrast or an arm, in one line
            yield f"{name}: {'removed' if isinstance(was, Mapping) else 'added'}"
        elif was != now:
            yield f"{name}: {was}, now {now}"


def _named(values: Any) -> Any:
    """Return values with lists of mappings as mappings, by the names of their entries or else their places."""
    if isinstance(values, Mapping):
        return {key: _named(value) for key, value in values.items()}
    if isinstance(values, list) and values and isinstance(values[0], Mapping):
        return {str(value.get("name", place)): _named(value) for place, value in enumerate(values)}
    return values


def read_registration(runs: Path) -> dict[str, Any] | None:
    """Return the registration beside a trial's runs; None before its first run.

    Raises:
        UsageError: for a file without the fields of a registration.
    """
    path = runs / REGISTRATION
    if not path.is_file():
        return None
    found = read_object(path)
    fixed = found.get("registered")
    if "time" not in found or not isinstance(fixed, dict) or {"runs", "test"} - fixed.keys():
        raise UsageError(f"{path} is no registration; restore it, or remove it to register the trial anew")
    return found
