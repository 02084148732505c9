"""Domains: which data a model was trained on, so that tables separate in-domain from out-of-domain data.

Data is identified by content (`lm_trials.data.contents`): a copy of a corpus is the same data under any name, and two
protocol sets of one corpus are different data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_trials.data.contents import contents_of
from lm_trials.models.reference import read_run

Domain = Literal["yes", "no", "partly", "unknown"]
MAX_STAGES = 100  # of runs that start from runs; more are a run that starts from itself


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on.

    Attributes:
        contents: names of the data (`contents.content_name`) of every stage with a `run.json`.
        complete: whether every stage has one.
    """

    contents: frozenset[str] = frozenset()
    complete: bool = False


def training_data(run: Mapping[str, Any] | None, data_cache_dir: Path) -> TrainingData:
    """Return what the model of a `run.json` (None: it has none) was trained on, in this run and those it started from.

    The manifests of the corpora in `data_cache_dir` name the files that they were made of.

    >>> run = {"outcome": {"data": {"corpus": "a", "content": "9f86d081884c7d65"}}, "replicate": {"seed": 0}}
    >>> sorted(training_data(run, Path("data")).contents), training_data(run, Path("data")).complete
    (['9f86d081884c7d65'], True)
    """
    contents: set[str] = set()
    complete, last = True, None
    for last in stages(run):
        found = stage_contents(last, data_cache_dir)
        complete = complete and bool(found)
        contents |= found
    is_first = last is not None and last["outcome"].get("initial_model") is None
    return TrainingData(frozenset(contents), complete and is_first)


def stages(run: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield a `run.json` and those of the runs that it started from, as far as they are known."""
    for _ in range(MAX_STAGES):
        if run is None:
            return
        yield run
        initial = run["outcome"].get("initial_model")
        run = None if initial is None else _earlier_run(initial)


def stage_contents(run: Mapping[str, Any], data_cache_dir: Path) -> frozenset[str]:
    """Return the names of the data of one `run.json` alone."""
    return frozenset(contents_of(run["outcome"].get("data"), data_cache_dir))


def in_domain(trained: TrainingData, parts: tuple[frozenset[str], ...]) -> Domain:
    """Return whether a model was trained on an evaluation set; `parts` has the names of each part of a mixture.

    >>> trained = TrainingData(frozenset({"a", "b"}), complete=True)
    >>> [in_domain(trained, tuple(map(frozenset, parts))) for parts in (["a"], ["c"], ["a", "c"])]
    ['yes', 'no', 'partly']
    >>> in_domain(TrainingData(), (frozenset("c"),))
    'unknown'
    """
    hits = [bool(names & trained.contents) for names in parts]
    if any(hits):
        return "yes" if all(hits) else "partly"
    return "no" if trained.complete else "unknown"


def _earlier_run(initial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `run.json` of the model that a run started from, if it is still that of the same run."""
    folder = Path(initial.get("name_or_path") or "")
    run = read_run(folder)
    same = run and initial.get("run") == {"run_name": run.get("run_name"), "replicate": run["replicate"]}
    return run if same else None
