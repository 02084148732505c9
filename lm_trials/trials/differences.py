"""Differences between arms: which fields of `run.json` differ, and how many variables that is.

One changed flag changes many fields: another `--dataset_name` has other content and token counts, another
`--config_name` another width and depth.  Fields that follow from a variable are listed under it and not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_trials.run_fields import ADDED, BOOKKEEPING, names_in
from lm_trials.trials.runs import ADAPTER, Run

ORDER = ("order_by", "order", "order_window", "order_schedule", "shuffle_buffer_size")
# Variables of several fields: the flags that set them, and the fields that show that the variable differs.
GROUPS = {
    "initial_model": (("initial_model.name_or_path",), r"initial_model\.(weights_sha256|recipe|name_or_path)"),
    "data": (
        ("dataset_name", "dataset_config_name", "text_column"),
        r"data\.(content|records|source_fingerprint|split_by|stories\..*|protocol\..*|parts\..*|source\..*)",
    ),
    "tokenizer": (("vocab_size", "tokenizer_name"), r"data\.tokenizer_hash"),
    "model": (("model_type", "config_name", "config_overrides"), r"model\..*"),
    "dropout": (("dropout",), r"model\..*(dropout|pdrop)"),
    "block_size": (("max_length",), r"block_size"),
    "order": (ORDER, "|".join(ORDER)),
    "model_init_kwargs": ((), r"model_init_kwargs(\..*)?"),
    "versions": ((), r"versions\..*"),
}
TUNING_DATA = ("block_size", "overlong", "data.chat_template", "chat_template_path", "prompt_layout")
# Fields that follow from others, with the variables that they may belong to: a field belongs to the first that differs,
# else to the last.  The first matching pattern counts; a field that matches none is a variable.
FOLLOWS_FROM = (
    (re.escape(ADAPTER), (ADAPTER,)),
    (r"initial_model\..*", ("initial_model",)),
    (r"data\.tokens\..*", ("data", "tokenizer", "append_eos", "document_separator", "data")),
    ("|".join(ORDER), ("order",)),
    # The tables of the metrics that order or filter the records; of other data they are others.
    (r"data\.metrics\..*", ("data", "order", "keep", "metrics")),
    (r"data\.append_eos", ("append_eos",)),
    (r"data\.document_separator", ("document_separator",)),
    # With the same parts the shares differ; with other parts the shares are of other data.
    (r"data_mix", ("data", "data_mix")),
    (r"validation_split_percentage", ("data", "validation_split_percentage")),
    (r"data\.tokenizer_hash|vocab_size|tokenizer_name", ("initial_model", "tokenizer")),
    # Of a fine-tuning: its examples, and how many it was trained on.
    (r"data\.(examples|token_ids|counts\..*)", ("data", "tokenizer", *TUNING_DATA, "initial_model", "data")),
    (r"data\.chat_template", ("initial_model", "chat_template_path")),
    (r"num_examples", ("max_steps", "total_train_batch_size", "num_examples")),
    (r"max_length", ("block_size",)),
    (r"(activation|gradient)_checkpointing(_kwargs(\..*)?)?", ("activation_checkpointing",)),
    (r"model_init_kwargs\..*", ("model_init_kwargs",)),
    (r"model\.dtype", ("dtype", "initial_model", "model_init_kwargs", "model")),
    (r"data\..*|dataset_name|dataset_config_name|text_column", ("data",)),
    (r"model\.(vocab_size|(bos|eos|pad)_token_id)", ("initial_model", "tokenizer", "model")),
    (r"model\.(max_position_embeddings|n_positions|n_ctx)", ("initial_model", "block_size", "model")),
    (r"model\..*(dropout|pdrop)|dropout", ("initial_model", "model_init_kwargs", "dropout")),
    (r"model\..*|model_type|config_name|config_overrides", ("initial_model", "model_init_kwargs", "model")),
    (r"num_tokens", ("max_steps", "total_train_batch_size", "block_size", "num_tokens")),
    (r"mixed_precision", ("bf16", "fp16", "mixed_precision")),
    (r"versions\..*", ("versions",)),
)
# Logistics that always differ, or that follow from the initial model.
SAID_ELSEWHERE = frozenset({"output_dir", "run_name", "model_name_or_path", "adapter_name_or_path"})
FLAG_NAMES = {"initial_model.name_or_path": "model_name_or_path", ADAPTER: "adapter_name_or_path"}
# With a fixed number of passes, these decide a fine-tuning's number of updates.
OF_A_PASS = ("packing", "packing_strategy", "data", "block_size", "overlong", "total_train_batch_size")


@dataclass(frozen=True)
class Variable:
    """A variable that differs between arms.

    Attributes:
        name: the flag that sets it, or its field if no flag differs.
        fields: the fields that differ, by dotted name, with their values in each arm (None: absent).
    """

    name: str
    fields: Mapping[str, tuple[Any, ...]]


def differing(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the fields whose values are not all the same, sorted, with their values; an absent field is None.

    >>> differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}])
    {'b': (2, 3, None)}
    """
    names = sorted({name for outcome in outcomes for name in outcome})
    found = {name: tuple(outcome.get(name) for outcome in outcomes) for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def find_variables(outcomes: Sequence[Mapping[str, Any]], same_passes: bool = True) -> list[Variable]:
    """Return each variable that differs, with all fields that follow from it.

    Args:
        same_passes: whether fine-tunings made equally many passes over their data, so that another number of updates
            follows, for example, from packing.

    >>> found = find_variables([{"max_steps": 10, "num_tokens": 640}, {"max_steps": 20, "num_tokens": 1280}])
    >>> [(variable.name, list(variable.fields)) for variable in found]
    [('max_steps', ['max_steps', 'num_tokens'])]
    """
    different = {
        name: values
        for name, values in differing(outcomes).items()
        if name not in BOOKKEEPING and not (name in ADDED and None in values)
    }
    decisive = set(different) - set(names_only(outcomes))
    tuned = same_passes and all("num_examples" in outcome for outcome in outcomes)
    fields: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name, values in different.items():
        fields.setdefault(owner_of(name, different, decisive, tuned), {})[name] = values
    found = [_variable(owner, inner) for owner, inner in fields.items() if decisive & set(inner)]
    return sorted(found, key=lambda variable: variable.name)


def names_only(outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields that differ and only name something that other fields identify, in every arm."""
    known = names_in(*outcomes)
    return [name for name in differing(outcomes) if name in known]


def owner_of(
    name: str, different: Mapping[str, tuple[Any, ...]], decisive: set[str], steps_follow: bool = False
) -> str:
    """Return the variable that a differing field belongs to.

    Args:
        different: all fields that differ, with their values.
        decisive: those that are not just names.
        steps_follow: whether the number of updates follows from the content of a pass.
    """
    owner = next(_owners(name, different, decisive, steps_follow), name)
    if owner == "tokenizer" and _differs("initial_model", decisive):
        return "initial_model"
    # The owner may itself follow from another field: examples from updates, and updates from packing.
    return owner_of(owner, different, decisive, steps_follow) if owner != name and owner in different else owner


def _owners(
    name: str, different: Mapping[str, tuple[Any, ...]], decisive: set[str], steps_follow: bool
) -> Iterator[str]:
    if name == "prompt_layout":
        yield from _owners_of_layout(different, decisive)
    if name == "data.chat_template" and "chat_template_path" in different:
        yield "chat_template_path"
    if name == "max_steps" and steps_follow:
        yield from (owner for owner in OF_A_PASS if _differs(owner, decisive))
    for pattern, owners in FOLLOWS_FROM:
        if re.fullmatch(pattern, name):
            # Another architecture names its dropout differently; that follows from it, unless --dropout differs.
            if owners[-1] == "dropout" and None in different[name] and "dropout" not in different:
                owners = ("initial_model", "model_init_kwargs", "model")
            yield from (owner for owner in owners if _differs(owner, decisive))
            yield owners[-1]


def _owners_of_layout(different: Mapping[str, tuple[Any, ...]], decisive: set[str]) -> Iterator[str]:
    """Yield what a layout that was not set follows from: a chat template, texts without prompts, the base.

    A base tuned in the instruct layout has it as its chat template; the layout of the same tokens is then named chat.
    """
    if "chat_template_path" in different:
        yield "chat_template_path"
    if "data.kind" in different:
        yield "data"
    same_tokens = not any(field.startswith(("data.counts.", "data.token_ids")) for field in different)
    if same_tokens and _differs("initial_model", decisive):
        yield "initial_model"


def _differs(owner: str, decisive: set[str]) -> bool:
    shows = GROUPS[owner][1] if owner in GROUPS else re.escape(owner)
    return any(re.fullmatch(shows, field) for field in decisive)


def _variable(owner: str, fields: Mapping[str, tuple[Any, ...]]) -> Variable:
    flags = [name for name in GROUPS.get(owner, ((), ""))[0] if name in fields]
    name = ", ".join(FLAG_NAMES.get(flag, flag) for flag in flags or [owner])
    return Variable(name, dict(sorted(fields.items(), key=lambda item: (item[0] not in (*flags, owner), item[0]))))


def verdict(variables: Sequence[Variable]) -> str:
    """Return in one line how many variables differ.

    >>> verdict([Variable("learning_rate", {"learning_rate": (1e-3, 4e-3)})])
    'exactly one variable differs: learning_rate'
    """
    if not variables:
        return "no variable differs: these runs are one arm and differ in seeds alone"
    names = "; ".join(variable.name for variable in variables)
    if len(variables) == 1:
        return f"exactly one variable differs: {names}"
    return f"{len(variables)} variables differ, so no difference can be attributed to one of them: {names}"


def differing_logistics(runs: Sequence[Run]) -> list[str]:
    """Return the fields that differ and change no result, without folders and names."""
    return [name for name in differing([r.logistics for r in runs]) if name not in SAID_ELSEWHERE]


def same_passes(runs: Sequence[Run]) -> bool:
    """Return whether fine-tunings made equally many passes over their data, to the update; True if unknown."""
    limits = []
    for run in runs:
        tokens, steps = run.logistics.get("num_tokens"), run.outcome.get("max_steps")
        of_a_pass = run.outcome.get("data.counts.tokens")
        if not tokens or not steps or not of_a_pass:
            return True
        # A run ends with a whole update, and updates differ in tokens: two mean updates of tolerance.
        limits.append((tokens / of_a_pass, tokens * (1 + 2 / steps) / of_a_pass))
    return max(low for low, _ in limits) <= min(high for _, high in limits)
