"""Domains: which data a model was trained on, so that a table can tell in-domain from out-of-domain.

Data is known by its content (`lm_trials.data.contents`): a copy of a corpus is the same data whatever it is called, and
two protocol sets of one corpus are different data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_trials.data.contents import contents_of
from lm_trials.models.reference import read_run

Domain = Literal["yes", "no", "partly", "unknown"]
# A run may start from a run that started from a run; more stages than this are one that starts from itself.
MAX_STAGES = 100


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on.

    Attributes:
        contents: names of the data (`contents.content_name`) of every stage that a `run.json` tells of.
        complete: whether that is all; False for a model without `run.json`, or one that started from such a model.
    """

    contents: frozenset[str] = frozenset()
    complete: bool = False


def training_data(run: Mapping[str, Any] | None, data_cache_dir: Path) -> TrainingData:
    """Return what the model of a `run.json` was trained on, in this run and in those it started from.

    Args:
        run: as `read_run` gave it; None for a model without.
        data_cache_dir: where corpora lie; their manifests say which file they were made of.

    >>> run = {"outcome": {"data": {"corpus": "a", "content": "9f86d081884c7d65"}}, "replicate": {"seed": 0}}
    >>> sorted(training_data(run, Path("data")).contents), training_data(run, Path("data")).complete
    (['9f86d081884c7d65'], True)
    """
    contents: set[str] = set()
    complete = True
    for _ in range(MAX_STAGES):
        if run is None:
            return TrainingData(frozenset(contents), complete=False)
        found = set(contents_of(run["outcome"].get("data"), data_cache_dir))
        complete = complete and bool(found)
        contents |= found
        initial = run["outcome"].get("initial_model")
        if initial is None:
            return TrainingData(frozenset(contents), complete)
        run = _earlier_run(initial)
    return TrainingData(frozenset(contents), complete=False)


def in_domain(trained: TrainingData, parts: tuple[frozenset[str], ...]) -> Domain:
    """Say whether a model was trained on an evaluation set, of a mixture on all of its parts.

    Args:
        trained: what it was trained on.
        parts: the names that each part of the evaluation set is known by.

    >>> trained = TrainingData(frozenset({"a", "b"}), complete=True)
    >>> [in_domain(trained, tuple(map(frozenset, parts))) for parts in (["a"], ["c"], ["a", "c"])]
    ['yes', 'no', 'partly']
    >>> in_domain(TrainingData(), (frozenset("c"),))
    'unknown'
    """
    hits = [bool(names & trained.contents) for names in parts]
    if hits and all(hits):
        return "yes"
    if any(hits):
        return "partly"
    return "no" if trained.complete else "unknown"


def _earlier_run(initial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `run.json` of the model that a run started from, where it is still that of the same run."""
    folder = Path(initial.get("name_or_path") or "")
    run = read_run(folder) if folder.is_dir() else None
    same = run and initial.get("run") == {"run_name": run.get("run_name"), "replicate": run["replicate"]}
    return run if same else None
