"""The model reference: what `--model_name_or_path` may name, and how it becomes a model.  One resolver for all scripts.

A reference is a run folder, a checkpoint, any causal LM folder, a LoRA adapter folder, a Hub name, or
`NAME@revision`.  Weights are read from safetensors only and no code of the model's is run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError
from lm_trials.data.tokenizers import load_tokenizer
from lm_trials.models.shapes import set_causal_loss

RUN_FILE = "run.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class ModelReference:
    """Where a model is: `path` a folder or Hub name, `revision` on the Hub, `base` of an adapter."""

    path: str
    revision: str | None = None
    base: str | None = None

    @property
    def step(self) -> int | None:
        """Update at which a checkpoint was saved."""
        match = CHECKPOINT.search(self.path)
        return int(match[1]) if match else None


def resolve_model(reference: str) -> ModelReference:
    """Find out what `reference` names, without loading it.

    Raises:
        UsageError: for a folder that holds no model, naming what it holds instead; for a path that is not there.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
            return ModelReference(str(folder), base=base)
        if not (folder / "config.json").is_file():
            steps = ", ".join(checkpoint.name for checkpoint in checkpoints(folder)) or "no checkpoint either"
            raise UsageError(
                f"{reference} holds no model (no config.json); it holds {steps}; name a folder with a model"
            )
        if not any(folder.glob("*.safetensors")):
            raise UsageError(
                f"{reference} holds no *.safetensors; pickled weights (.bin) are not read, because reading runs them: "
                "convert them with transformers' save_pretrained"
            )
        return ModelReference(str(folder))
    name, _, revision = reference.partition("@")
    if reference.startswith((".", "/", "~")) or name.count("/") > 1 or folder.is_file():
        raise UsageError(f"{reference} is no folder; name a run, a checkpoint, a model folder or a Hub model")
    return ModelReference(name, revision or None)


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, in the order of their steps."""
    found = [path for path in run.glob("checkpoint-*") if CHECKPOINT.search(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(CHECKPOINT.search(path.name)[1]))  # type: ignore[index]


def load_model(reference: ModelReference, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the model in `dtype`, in evaluation mode, with the loss of a causal LM (see `set_causal_loss`).

    Raises:
        UsageError: where it cannot be had.
    """
    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    try:
        if reference.base is not None:
            from peft import PeftModel

            base = AutoModelForCausalLM.from_pretrained(reference.base, **options)
            return PeftModel.from_pretrained(base, reference.path).eval()  # type: ignore[return-value]
        model = AutoModelForCausalLM.from_pretrained(reference.path, revision=reference.revision or "main", **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"{reference.path} cannot be loaded as a causal language model ({first})") from None
    set_causal_loss(model)
    return model.eval()


def load_tokenizer_of(reference: ModelReference, tokenizer_name: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside the model, or the one named instead."""
    return load_tokenizer(tokenizer_name or reference.path)


def positions_of(model: PreTrainedModel) -> int | None:
    """Return how many positions the model has; None for one without a limit."""
    return getattr(model.config, "max_position_embeddings", None)


def read_run(folder: Path) -> dict[str, Any] | None:
    """Read the `run.json` of a run folder or of one of its checkpoints; None where there is none."""
    for place in (folder, folder.parent):
        if (place / RUN_FILE).is_file():
            return json.loads((place / RUN_FILE).read_text())
    return None
