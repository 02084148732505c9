"""The model reference: what `--model_name_or_path` may name, and how it becomes a model.  One resolver for all scripts.

A reference is a run folder, a checkpoint, any causal LM folder, a LoRA adapter folder, a Hub name, or
`NAME@revision`.  Weights are read from safetensors only and no code of the model's is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lm_trials.console import UsageError
from lm_trials.files import read_object, weights_digest
from lm_trials.models.shapes import position_field, set_causal_loss
from lm_trials.tokens.stores import Separator
from lm_trials.tokens.tokenizers import load_tokenizer

RUN_FILE = "run.json"
LONGEST_WINDOW = 1024
CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
ADAPTER_FILE = "adapter_config.json"
CONFIG_FILES = ("config.json", ADAPTER_FILE)


@dataclass(frozen=True)
class ModelReference:
    """Where a model is: `path` a folder or Hub name, `revision` on the Hub, `base` of an adapter.

    >>> reference = ModelReference("runs/demo/checkpoint-20")
    >>> reference.name, reference.step
    ('runs/demo/checkpoint-20', 20)
    >>> ModelReference("owner/model", revision="step1000").name
    'owner/model@step1000'
    """

    path: str
    revision: str | None = None
    base: str | None = None

    @property
    def step(self) -> int | None:
        """Update at which a checkpoint was saved."""
        match = CHECKPOINT.search(self.path)
        return int(match[1]) if match else None

    @property
    def name(self) -> str:
        """What the user calls it; two revisions of one model have different names."""
        return f"{self.path}@{self.revision}" if self.revision else self.path


def resolve_model(reference: str) -> ModelReference:
    """Find out what `reference` names, without loading it.

    Raises:
        UsageError: for a folder that holds no model, naming what it holds instead; for a path that is not there.
    """
    folder = Path(reference).expanduser()
    if reference and folder.is_dir():  # an empty name would be the folder we stand in
        return _resolve_folder(folder, reference)
    name, _, revision = reference.partition("@")
    if not name or reference.startswith((".", "/", "~")) or name.count("/") > 1 or folder.is_file():
        raise UsageError(f"{reference} is no folder; name a run, a checkpoint, a model folder or a Hub model")
    return ModelReference(name, revision or None)


def _resolve_folder(folder: Path, reference: str) -> ModelReference:
    if not any((folder / name).is_file() for name in CONFIG_FILES):
        steps = ", ".join(checkpoint.name for checkpoint in checkpoints(folder)) or "no checkpoint either"
        raise UsageError(f"{reference} holds no model (no config.json); it holds {steps}; name a folder with a model")
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{reference} holds no *.safetensors; pickled weights (.bin) are not read, because reading runs them: "
            "convert them with transformers' save_pretrained"
        )
    if not (folder / ADAPTER_FILE).is_file():
        return ModelReference(str(folder))
    base = read_object(folder / ADAPTER_FILE).get("base_model_name_or_path")
    if not base:
        raise UsageError(f"{reference}/{ADAPTER_FILE} names no base_model_name_or_path; write the base model into it")
    return ModelReference(str(folder), base=_base_of(folder, base))


def _base_of(adapter: Path, base: str) -> str:
    """Return where an adapter's base is: as named, or as named where the adapter's run was started.

    Raises:
        UsageError: for a local base that is gone; the Hub is not asked for somebody else's model of that name.
    """
    if Path(base).expanduser().is_dir():
        return base
    run = read_run(adapter) or {"outcome": {}}
    there = Path(run.get("environment", {}).get("working_directory", ".")) / base
    if there.is_dir():
        return str(there)
    of_a_folder = (run["outcome"].get("initial_model") or {}).get("weights_sha256")
    if of_a_folder or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise UsageError(
            f"{adapter} is an adapter and its base {base} is not here; restore it, or write its place into "
            f"{adapter / ADAPTER_FILE} as base_model_name_or_path"
        )
    return base


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, in the order of their steps."""
    found = [path for path in run.glob("checkpoint-*") if CHECKPOINT.search(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(CHECKPOINT.search(path.name)[1]))  # type: ignore[index]


def load_config(reference: ModelReference) -> PretrainedConfig:
    """Load a model's configuration, an adapter's base's, which tells what fits the model before its weights are read.

    Raises:
        UsageError: where it cannot be had.
    """
    if reference.base is not None:
        return load_config(resolve_model(reference.base))
    try:
        return AutoConfig.from_pretrained(
            reference.path, revision=reference.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unloadable(reference, error) from None


def load_model(
    reference: ModelReference,
    dtype: torch.dtype = torch.float32,
    quantization_config: BitsAndBytesConfig | None = None,
    **init_kwargs: Any,
) -> PreTrainedModel:
    """Load the model in `dtype`, in evaluation mode, with the loss of a causal LM (see `set_causal_loss`).

    Args:
        quantization_config: how the base is quantized, see `adapters.quantization`; None for not at all.
        init_kwargs: further arguments of `from_pretrained`, as `attn_implementation`.

    Raises:
        UsageError: where it cannot be had, or its files lack weights: transformers would fill them in at random.
    """
    if reference.base is not None:
        return _load_adapter(reference, dtype, quantization_config, init_kwargs)
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            reference.path,
            revision=reference.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **init_kwargs,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _unloadable(reference, error) from None
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"{reference.name} lacks weights of a {type(model).__name__} ({missing[0]}{more}); "
            "give the folder of a whole causal language model"
        )
    if getattr(quantization_config, "load_in_4bit", False):
        from lm_trials.models.adapters import keep_4bit_weights

        keep_4bit_weights(model)
    set_causal_loss(model)
    return model.eval()


def _load_adapter(
    reference: ModelReference,
    dtype: torch.dtype,
    quantization_config: BitsAndBytesConfig | None,
    init_kwargs: Mapping[str, Any],
) -> PreTrainedModel:
    from peft import PeftModel

    from lm_trials.models.adapters import check_adapter_state, without_noise

    check_base(reference)
    base = load_model(resolve_model(reference.base or ""), dtype, quantization_config, **init_kwargs)
    try:
        with without_noise():
            model = PeftModel.from_pretrained(base, reference.path, revision=reference.revision or "main")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _unloadable(reference, error) from None
    if Path(reference.path).is_dir():
        check_adapter_state(model, Path(reference.path))
    set_causal_loss(model)
    return model.eval()  # type: ignore[return-value]


def check_base(reference: ModelReference) -> None:
    """Check that the base of an adapter of ours is the model that it was trained on, by the content of its weights.

    Raises:
        UsageError: where another lies in its place.
    """
    run = read_run(Path(reference.path)) or {"outcome": {}}
    trained_on = (run["outcome"].get("initial_model") or {}).get("weights_sha256")
    base = Path(reference.base or "")
    if trained_on and base.is_dir() and trained_on != weights_digest(base):
        raise UsageError(
            f"{reference.name} is an adapter for another base: {base} has other weights than the model that it was "
            "trained on; restore that model, or train the adapter anew"
        )


def _unloadable(reference: ModelReference, error: Exception) -> UsageError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UsageError(
        f"{reference.name} cannot be loaded as a causal language model ({first[:300]}); "
        "give a folder with config.json and model.safetensors, or a Hub model that is at hand"
    )


def load_tokenizer_of(reference: ModelReference, tokenizer_name: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside the model (or its adapter's base), or the one named instead.

    Raises:
        UsageError: where there is none.
    """
    if tokenizer_name:
        return load_tokenizer(tokenizer_name)
    try:
        if reference.revision:  # a revision has its own tokenizer
            return AutoTokenizer.from_pretrained(reference.path, revision=reference.revision, trust_remote_code=False)
        return load_tokenizer(reference.path)
    except (UsageError, OSError, ValueError) as error:
        if reference.base is not None:
            return load_tokenizer_of(resolve_model(reference.base))
        reason = str(error).removeprefix(f"--tokenizer_name {reference.path}: ").partition(";")[0]
        raise UsageError(
            f"{reference.name} has no tokenizer beside its weights ({reason}); give --tokenizer_name"
        ) from None


def positions_of(model: PreTrainedModel | PretrainedConfig) -> int | None:
    """Return how many positions the model, or its configuration, has; None for one without a limit."""
    config = getattr(model, "config", model).get_text_config(decoder=True)
    name = position_field(config)
    return getattr(config, name) if name else None


def default_window(model: PreTrainedModel | PretrainedConfig) -> int:
    """Return how many tokens a block or window has where nobody says: the model's positions, at most GPT-2's 1024."""
    return min(positions_of(model) or LONGEST_WINDOW, LONGEST_WINDOW)


def separator_of(run: Mapping[str, Any] | None) -> Separator:
    """Return what stood before each document in a run's training; BOS where no `run.json` tells.

    >>> separator_of({"outcome": {"document_separator": "none"}}), separator_of(None)
    ('none', 'bos')
    """
    return run["outcome"].get("document_separator", "bos") if run else "bos"


def read_run(folder: Path) -> dict[str, Any] | None:
    """Read the `run.json` of a run folder or of one of its checkpoints; None where there is none of this project's."""
    for place in (folder, folder.parent):
        if (place / RUN_FILE).is_file():
            run = read_object(place / RUN_FILE)
            return run if {"outcome", "replicate"} <= run.keys() else None
    return None
