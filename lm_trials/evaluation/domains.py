"""Domains: which data a model was trained on, so that a table can tell in-domain from out-of-domain.

Data is known by its content: the hash of a corpus's record names, for a set together with its protocol, for a file the
hash of its bytes.  So a copy of a corpus is the same data whatever it is called, and two sets that protocols made of
one corpus are different data.  A Hub data set, which is not at hand to be hashed, is known by its name and
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_trials.models.reference import read_run
from lm_trials.stories.corpora import is_corpus, read_manifest

Domain = Literal["yes", "no", "partly", "unknown"]
# A run may start from a run that started from a run; more stages than this are one that starts from itself.
MAX_STAGES = 100


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on.

    Attributes:
        contents: names of the data (`content_name`) of every stage that a `run.json` tells of.
        complete: whether that is all; False for a model without `run.json`, or one that started from such a model.
    """

    contents: frozenset[str] = frozenset()
    complete: bool = False


def content_name(content: str, protocol: Mapping[str, Any] | None = None) -> str:
    """Return what a corpus, or the set that a protocol makes of it, is known by.

    >>> content_name("9f86d081884c7d65"), content_name("9f86d081884c7d65", {"seed": 0})
    ('9f86d081884c7d65', '9f86d081884c7d65+{"seed": 0}')
    """
    return content if protocol is None else f"{content}+{json.dumps(protocol, sort_keys=True)}"


def hub_name(reference: str, config: str | None) -> str:
    """Return what a Hub data set is known by, whichever split or revision of it is read.

    >>> hub_name("owner/pile", "pubmed")
    'hub owner/pile pubmed'
    """
    return f"hub {reference} {config or ''}".strip()


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


def contents_of(data: Any, data_cache_dir: Path) -> Iterator[str]:
    """Yield the names of all data that `outcome.data` describes, at any depth: each part of a mixture counts.

    >>> list(contents_of({"first": {"content": "a"}, "second": {"content": "b"}}, Path("data")))
    ['a', 'b']
    """
    if isinstance(data, Mapping):
        protocol = data.get("protocol")
        for key in ("content", "fingerprint"):
            if isinstance(data.get(key), str):
                yield content_name(data[key], protocol)
        if isinstance(data.get("files"), list):  # of a source of files: what each is known by
            yield from data["files"]
        if "read_as" in data:  # where a source of the Hub says what it is
            yield hub_name(data["reference"], data.get("dataset_config_name"))
        if protocol is None and isinstance(data.get("corpus"), str):
            yield from contents_of(_origin(data_cache_dir / data["corpus"], data.get("content")), data_cache_dir)
    if isinstance(data, (Mapping, list)):
        for inner in data.values() if isinstance(data, Mapping) else data:
            yield from contents_of(inner, data_cache_dir)


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


def _origin(corpus: Path, content: Any) -> Any:
    """Return what a corpus's manifest says of the file or Hub data set it was made of, if it is still as it was."""
    manifest = read_manifest(corpus) if is_corpus(corpus) else {}
    return manifest.get("origin") if manifest.get("content") == content else None


def _earlier_run(initial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the `run.json` of the model that a run started from, where it is still that of the same run."""
    folder = Path(initial.get("name_or_path") or "")
    run = read_run(folder) if folder.is_dir() else None
    same = run and initial.get("run") == {"run_name": run.get("run_name"), "replicate": run["replicate"]}
    return run if same else None
