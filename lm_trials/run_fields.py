"""Identity: which fields of `run.json` identify a thing, and which only name it.

A comparison of runs and a resumption ask the same: is this another run, or the same under another name?
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_trials.files import read_object

RUN_FILE = "run.json"
# What identifies a thing, by dotted name, and the fields that only record its name.  Where the first is
# the same, the others are names: a tokenizer found by --vocab_size 1000 or beside a model is one tokenizer.
TOKENS = ("data.tokens.train", "data.tokens.validation", "data.tokens.test")  # recorded for map-style data only
NAMES_OF = {
    "data.records": ("data.corpus", *TOKENS),
    "data.source_fingerprint": (
        *("dataset_name", "dataset_config_name", "text_column", "data.corpus", "data.content", "data.records"),
        *TOKENS,
        *("data.split_by", "data.stories.train", "data.stories.validation", "data.stories.test"),
        *("data.source.reference", "data.source.fingerprint", "data.source.validation_split_percentage"),
        *("data.source.files", "data.source.revision", "data.source.read_as", "data.source.dataset_config_name"),
    ),
    "data.content": ("dataset_name", "dataset_config_name", "text_column", "data.corpus", "data.name"),
    "data.tokenizer_hash": ("vocab_size", "tokenizer_name"),
    "data.chat_template": ("chat_template_path",),
    "model.model_type": ("model_type", "config_name", "config_overrides", "dropout"),
    "initial_model.weights_sha256": (
        "initial_model.name_or_path",
        "initial_model.run.run_name",
        "initial_model.run.replicate.seed",
        "initial_model.run.replicate.data_seed",
    ),
    "initial_model.recipe": ("initial_model.name_or_path",),
    # The length that examples came to have; a --max_length beyond the model's positions is these.
    "block_size": ("max_length",),
}
# Fields that runs of older versions do not have; their absence is no difference.
ADDED = frozenset({"data.chat_template", "data.token_ids"})
# `versions` has the last of these already; the others follow from the source of the weights.
BOOKKEEPING = frozenset({"model._name_or_path", "model.architectures", "model.transformers_version"})
# Names that may differ when a run is resumed.  A stream and a prepared corpus of one source are one arm, but neither
# can resume from the other's checkpoint, so `data.source_fingerprint` is not in this list.
_TO_GO_ON = {
    "data.content": NAMES_OF["data.content"],
    "data.tokenizer_hash": NAMES_OF["data.tokenizer_hash"],
    "model.model_type": NAMES_OF["model.model_type"],
    "initial_model.weights_sha256": (*NAMES_OF["initial_model.weights_sha256"], "model._name_or_path"),
    "block_size": NAMES_OF["block_size"],
}


def names_in(*outcomes: Mapping[str, Any]) -> set[str]:
    """Return the fields that only name what another field identifies, in every outcome.

    >>> sorted(names_in({"data.tokenizer_hash": "a"}, {"data.tokenizer_hash": "b"}))
    ['tokenizer_name', 'vocab_size']
    """
    known = (key for key in NAMES_OF if all(outcome.get(key) is not None for outcome in outcomes))
    return {name for key in known for name in NAMES_OF[key]}


def names_to_go_on(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the fields in which a resumed run may differ: names of the same content, on which no result depends.

    >>> known = {"data.tokenizer_hash": "a"}
    >>> "vocab_size" in names_to_go_on(known, known), "vocab_size" in names_to_go_on(known, {"vocab_size": 8})
    (True, False)
    """
    same = (key for key in _TO_GO_ON if before.get(key) is not None and before[key] == now.get(key))
    names = {name for key in same for name in _TO_GO_ON[key]}
    return names | {"model.transformers_version"}  # `versions` has it, and other code is refused or accepted there


def run_file(place: Path) -> Path | None:
    """Return the `run.json` in a folder of a run, or above one of its checkpoints; None where there is none."""
    return next((folder / RUN_FILE for folder in (place, place.parent) if (folder / RUN_FILE).is_file()), None)


def lineage_of(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models that the weights of a `run.json` descend from, nearest first; none for random weights.

    Of a run: its name, seeds (`replicate`) and weights; of another model: its name, and its weights or commit.  Where
    the field is missing, as in runs of older versions, the folders that are still there are followed.

    >>> initial = {"name_or_path": "gpt2", "commit": "607a30d7"}
    >>> lineage_of({"outcome": {"initial_model": initial}, "replicate": {"seed": 0}})
    [{'model': 'gpt2', 'commit': '607a30d7'}]
    """
    if "lineage" in run:
        return list(run["lineage"])
    initial = run["outcome"].get("initial_model")
    if not initial:
        return []
    weights = {name: initial[name] for name in ("weights_sha256", "commit") if name in initial}
    if "run" not in initial:
        return [{"model": initial["name_or_path"], **weights}]
    file = run_file(Path(initial["name_or_path"]))
    earlier = read_object(file) if file else {}
    same = initial["run"] == {"run_name": earlier.get("run_name"), "replicate": earlier.get("replicate")}
    return [{**initial["run"], **weights}, *(lineage_of(earlier) if same and earlier != run else [])]
