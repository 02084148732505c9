"""Entries of a trial file: lists, mappings, numbers and commands, each checked with one line for what cannot work."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean

TRAINING = ("train", "tune", "align")
# The scripts of a clone, and the commands that run the same code.
SCRIPTS = {
    "train_gpt2.py": "train",
    "sft_lora.py": "tune",
    "align_lora.py": "align",
    "eval_checkpoint.py": "evaluate",
    "cache_datasets.py": "cache",
    "prepare_tinystories.py": "prepare",
}


def check_keys(given: Iterable[Any], valid: Collection[str], place: str = "", of: str = "") -> None:
    """Refuse keys that are not valid; `place` and `of` surround the key in the error."""
    for key in given:
        if key not in valid:
            raise UsageError(f"{place}unknown key {key}{of}; {did_you_mean(str(key), valid)}")


def one_of(value: Any, valid: Collection[str], name: str) -> str:
    """Return a value that is one of several texts; `name` says of what."""
    if value not in valid:
        raise UsageError(f"{name} {value} is unknown; {did_you_mean(str(value), valid)}")
    return str(value)


def as_list(given: Any) -> list[Any]:
    """Return a list, of one element if none is given.

    >>> as_list("a"), as_list(["a", "b"]), as_list(None)
    (['a'], ['a', 'b'], [])
    """
    return given if isinstance(given, list) else [] if given is None else [given]


def as_mapping(given: Any, key: str) -> Mapping[str, Any]:
    """Return a mapping that is not empty."""
    if not isinstance(given, dict) or not given:
        problem = "missing" if given is None else "not a mapping"
        raise UsageError(f"{key} is {problem}; write `key: value` lines under it")
    return given


def as_number(given: Any) -> float | None:
    """Return a finite number as it is written, also `1e-3`, which YAML reads as a text; None for anything else.

    >>> as_number("1e-3"), as_number(2), as_number("5%"), as_number(True), as_number("inf")
    (0.001, 2.0, None, None, None)
    """
    try:
        number = float(str(given))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_command(given: Any, programs: Sequence[str], key: str) -> tuple[str, ...]:
    """Return the words of a command after `lm-trials`, whose program is one of `programs`.

    >>> as_command("probes/lens.py --layers 2", ("evaluate", "probe"), "measure")
    ('probe', 'lens', '--layers', '2')
    """
    if not isinstance(given, str) or not given.strip():
        raise UsageError(f"{key}: {given!r} is not a command; write, for example, {programs[0]} ...")
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise UsageError(f"{key}: {given} cannot be read ({error}); close the quotation mark") from None
    first, *rest = words[words[0] == "lm-trials" :] or [""]
    if first.startswith("probes/"):
        first, rest = "probe", [Path(first).stem, *rest]
    program = SCRIPTS.get(first, first)
    if program not in programs:
        known = [*programs, *(script for script, command in SCRIPTS.items() if command in programs)]
        raise UsageError(f"{key}: {first} is not a program that can be used here; {did_you_mean(first, known)}")
    return (program, *rest)


def flags_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of a command with their values; the words before the first flag are under an empty name.

    >>> flags_of(["evaluate", "--dataset_name", "a", "b", "--data-dir=c", "--streaming"])
    {'': ['evaluate'], 'dataset_name': ['a', 'b'], 'data_dir': ['c'], 'streaming': []}
    """
    flag, found = "", {"": list[str]()}
    for word in words:
        if not word.startswith("--"):
            found[flag].append(word)
            continue
        name, equals, value = word[2:].partition("=")
        flag = name.replace("-", "_")
        found[flag] = [value] if equals else []
    return found
