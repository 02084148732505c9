"""What a `run.json` describes: the training data as flags of a command, and all of it without a machine's paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# An absolute path up to its last slash; not `https://`.
PLACE = re.compile(r"""(?:^|(?<=[\s=+,:'"(\[]))(?:~\w+/|(?:file:/*|~|[A-Za-z]:)?/(?!/)[^+,'"\n]*/)""")


def own_data(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the flags that name a run's data set: of a file or Hub data set, the corpus that training prepared of it.

    Without a flag for the split, a prepared corpus is read by its validation split.  None without stories (a
    fine-tuning's data), and for a stream with a validation share of its own, which no prepared corpus has.

    >>> data = {"corpus": "stories-0a1b2c3d"}
    >>> own_data({"outcome": {"dataset_name": "stories.jsonl", "data": data}, "logistics": {"data_cache_dir": "data"}})
    {'dataset_name': 'stories-0a1b2c3d', 'data_cache_dir': 'data'}
    >>> own_data({"outcome": {"dataset_name": "pairs.jsonl", "data": {"examples": "instruct-1a2b"}}}) is None
    True
    """
    outcome = run["outcome"] if run else {}
    data, given = outcome.get("data"), outcome.get("dataset_name")
    if not isinstance(data, Mapping) or not given or "examples" in data:
        return None
    place = {"data_cache_dir": (run or {}).get("logistics", {}).get("data_cache_dir")}
    if "source" in data:
        if outcome.get("validation_split_percentage") is not None:
            return None
        flags = {name: outcome.get(name) for name in ("dataset_config_name", "text_column")}
        return {"dataset_name": given, **flags, "dataset_split": "validation", "streaming": "True", **place}
    if "parts" in data:
        names = _part_names(given, outcome.get("dataset_config_name"), data["parts"])
        return {"dataset_name": "+".join(names), "data_mix": outcome.get("data_mix"), **place} if names else None
    name = _prepared_name(given, data)
    return {"dataset_name": name, **place} if name else None


def _prepared_name(given: str, data: Mapping[str, Any]) -> str | None:
    """Return the name under which the data is prepared; a prepared corpus may have been given by its path."""
    corpus = data.get("corpus")
    return given if corpus is None or "protocol" in data or Path(given).name == corpus else str(corpus)


def _part_names(given: str, config: str | None, parts: Mapping[str, Any]) -> list[str] | None:
    """Return the prepared names of a mixture's parts, in the order of the flag; None if one cannot be told.

    `run.json` sorts the parts by label: a configuration, or a prepared name such as `stories-0a1b2c3d`.
    """
    names = []
    for member in (config or given).split("+"):
        stem = Path(member).name.split(".")[0]
        found = [label for label in parts if label == Path(member).name]
        found = found or [label for label in parts if label.startswith(f"{stem}-")]
        if len(found) != 1 or "source" in parts[found[0]]:
            return None
        names.append(_prepared_name(given if config else member, parts[found[0]]) or member)
    return names


def public_value(value: Any) -> Any:
    """Return a JSON value with all absolute paths in it, keys too, cut to their last part.

    >>> public_value({"dataset_name": "/home/me/my stories/a.jsonl+/data/b", "command": ["--output_dir=/data/runs/x"]})
    {'dataset_name': 'a.jsonl+b', 'command': ['--output_dir=x']}
    >>> public_value(["file:///home/me/a", "~me/b", "~/b", "runs/x", "https://host/a/b", "and/or", 0.5, None])
    ['a', 'b', '~/b', 'runs/x', 'https://host/a/b', 'and/or', 0.5, None]
    """
    if isinstance(value, dict):
        return {public_value(name): public_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [public_value(inner) for inner in value]
    return PLACE.sub("", value) if isinstance(value, str) else value


def public_run(run: dict[str, Any]) -> dict[str, Any]:
    """Return a `run.json` without the working directory and absolute paths."""
    environment = {name: value for name, value in run.get("environment", {}).items() if name != "working_directory"}
    return public_value({**run, "environment": environment})
