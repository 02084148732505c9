"""Differences of arms: which fields of `run.json` differ, and how many variables were changed.

One change of a user's moves many fields: another `--dataset_name` has another content and other token counts, another
`--config_name` another width and depth.  Fields that follow from a variable are listed under it and not counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_trials.trials.runs import BOOKKEEPING, NAMES_OF, Arm, Run

# Variables that more than one field makes up: the flags a user sets it by, then what shows that it is another.
GROUPS = {
    "initial_model": (("initial_model.name_or_path",), r"initial_model\.(weights_sha256|recipe|name_or_path)"),
    "data": (
        ("dataset_name", "dataset_config_name", "text_column"),
        r"data\.(content|records|source_fingerprint|split_by|stories\..*|protocol\..*|parts\..*|source\..*)",
    ),
    "tokenizer": (("vocab_size", "tokenizer_name"), r"data\.tokenizer_hash"),
    "model": (("model_type", "config_name", "config_overrides"), r"model\..*"),
    "dropout": (("dropout",), r"model\..*(dropout|pdrop)"),
    "versions": ((), r"versions\..*"),
}
# Fields that follow from others: the variables that each may belong to, the likeliest first.  It belongs to the first
# that differs, or else to the last.  The first pattern that fits a field counts; a field that none fits is a variable.
FOLLOWS_FROM = (
    (r"initial_model\..*", ("initial_model",)),
    (r"data\.tokens\..*", ("data", "tokenizer", "append_eos", "document_separator", "data")),
    (r"data\.append_eos", ("append_eos",)),
    (r"data\.document_separator", ("document_separator",)),
    # Without another part there is another share; with one the shares are of other things.
    (r"data_mix", ("data", "data_mix")),
    (r"validation_split_percentage", ("data", "validation_split_percentage")),
    (r"data\.tokenizer_hash|vocab_size|tokenizer_name", ("initial_model", "tokenizer")),
    # Of a fine-tuning: how its examples came out.
    (r"data\.(examples|counts\..*)", ("data", "tokenizer", "max_length", "overlong", "layout", "data")),
    (r"data\..*|dataset_name|dataset_config_name|text_column", ("data",)),
    (r"model\.(vocab_size|(bos|eos|pad)_token_id)", ("initial_model", "tokenizer", "model")),
    (r"model\.(max_position_embeddings|n_positions|n_ctx)", ("initial_model", "block_size", "model")),
    (r"model\..*(dropout|pdrop)|dropout", ("initial_model", "dropout")),
    (r"model\..*|model_type|config_name|config_overrides", ("initial_model", "model")),
    (r"num_tokens", ("max_steps", "total_train_batch_size", "block_size", "num_tokens")),
    (r"mixed_precision", ("bf16", "fp16", "mixed_precision")),
    (r"versions\..*", ("versions",)),
)
# Logistics that always differ, or that the initial model says.
SAID_ELSEWHERE = frozenset({"output_dir", "run_name", "model_name_or_path"})
FLAG_NAMES = {"initial_model.name_or_path": "model_name_or_path"}


@dataclass(frozen=True)
class Variable:
    """One thing that differs between arms.

    Attributes:
        name: the flag by which a user changes it, or what it is where no flag differs.
        fields: the fields that differ, by dotted name, each with its value in every arm (None: not there).
    """

    name: str
    fields: Mapping[str, tuple[Any, ...]]


def differing(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the fields whose values are not all the same, sorted, with their values; an absent field is None.

    >>> differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}])
    {'b': (2, 3, None)}
    """
    found = {}
    for name in sorted({name for outcome in outcomes for name in outcome}):
        values = tuple(outcome.get(name) for outcome in outcomes)
        if any(value != values[0] for value in values):
            found[name] = values
    return found


def find_variables(outcomes: Sequence[Mapping[str, Any]]) -> list[Variable]:
    """Name each variable that differs, with all fields that follow from it.

    >>> found = find_variables([{"max_steps": 10, "num_tokens": 640}, {"max_steps": 20, "num_tokens": 1280}])
    >>> [(variable.name, list(variable.fields)) for variable in found]
    [('max_steps', ['max_steps', 'num_tokens'])]
    """
    different = {name: values for name, values in differing(outcomes).items() if name not in BOOKKEEPING}
    decisive = set(different) - set(names_only(outcomes))
    fields: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name, values in different.items():
        fields.setdefault(owner_of(name, different, decisive), {})[name] = values
    found = [_variable(owner, inner) for owner, inner in fields.items() if decisive & set(inner)]
    return sorted(found, key=lambda variable: variable.name)


def names_only(outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields that differ and only name what other fields identify, in every arm."""
    known = {
        name
        for identity, names in NAMES_OF.items()
        if all(outcome.get(identity) is not None for outcome in outcomes)
        for name in names
    }
    return [name for name in differing(outcomes) if name in known]


def owner_of(name: str, different: Mapping[str, tuple[Any, ...]], decisive: set[str]) -> str:
    """Return the variable that a differing field belongs to.

    Args:
        different: all fields that differ, with their values.
        decisive: those of them that are more than a name.
    """
    for pattern, owners in FOLLOWS_FROM:
        if re.fullmatch(pattern, name):
            # Another architecture has dropout under other names; that is the architecture, unless --dropout differs.
            if owners[-1] == "dropout" and None in different[name] and "dropout" not in different:
                owners = ("initial_model", "model")
            return next((owner for owner in owners if _differs(owner, decisive)), owners[-1])
    return name


def _differs(owner: str, decisive: set[str]) -> bool:
    shows = GROUPS[owner][1] if owner in GROUPS else re.escape(owner)
    return any(re.fullmatch(shows, field) for field in decisive)


def _variable(owner: str, fields: Mapping[str, tuple[Any, ...]]) -> Variable:
    flags = [name for name in GROUPS.get(owner, ((), ""))[0] if name in fields]
    name = ", ".join(FLAG_NAMES.get(flag, flag) for flag in flags) or owner
    return Variable(name, dict(sorted(fields.items(), key=lambda item: (item[0] not in (*flags, owner), item[0]))))


def verdict(variables: Sequence[Variable]) -> str:
    """Say in one line whether a comparison is about one variable.

    >>> verdict([Variable("learning_rate", {"learning_rate": (1e-3, 4e-3)})])
    'exactly one variable differs: learning_rate'
    """
    if not variables:
        return "no variable differs: these runs are one arm, apart by their seeds alone"
    names = "; ".join(variable.name for variable in variables)
    if len(variables) == 1:
        return f"exactly one variable differs: {names}"
    return f"{len(variables)} variables differ, so no result can be put down to one of them: {names}"


def differing_logistics(runs: Sequence[Run]) -> list[str]:
    """Return the fields that differ and change no result; folders and names always do and are left out."""
    return [name for name in differing([r.logistics for r in runs]) if name not in SAID_ELSEWHERE]


def arm_variables(arms: Sequence[Arm]) -> list[Variable]:
    """Name each variable that differs between arms."""
    return find_variables([arm.outcome for arm in arms])
