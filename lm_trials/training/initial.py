"""The initial model of a run: a shape with random weights, or a run, a checkpoint or a Hub model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import resolve_revision

from lm_trials.console import UsageError
from lm_trials.data.datasets import dataset_of
from lm_trials.data.default_tokenizer import default_tokenizer
from lm_trials.evaluation.losses import check_causal, check_documents_apart, check_loss
from lm_trials.files import weights_digest
from lm_trials.models.reference import (
    ModelReference,
    chosen_window,
    load_config,
    load_model,
    load_tokenizer_of,
    read_run,
    resolve_model,
)
from lm_trials.models.shapes import build_config, build_model, check_memory
from lm_trials.tokens.stores import num_ids_of
from lm_trials.tokens.tokenizers import resolve_vocab, tokenizer_hash
from lm_trials.training.flags import DataArguments, ModelArguments
from lm_trials.training.launch import SHARDING, is_asked
from lm_trials.training.run_arguments import RunArguments


@dataclass(frozen=True)
class InitialModel:
    """The initial model of a run, checked but not loaded.

    Attributes:
        reference: of the weights; None for random ones.
        adapter: of a fine-tuning, the initial adapter; None for a new one.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    reference: ModelReference | None = None
    adapter: ModelReference | None = None

    @property
    def name(self) -> str:
        """The model's part of a default run name."""
        return Path(self.reference.path).name if self.reference else self.config.model_type

    def check_memory(self, args: RunArguments) -> None:
        """Refuse a model too large for all its weights to be trained here, before data is read for it (UsageError)."""
        shards = args.deepspeed or args.fsdp or any(is_asked(os.environ, variable) for variable, _, _ in SHARDING)
        # Bytes of float32 weights and gradients, and of the two moments of AdamW; each process draws whole weights,
        # also where they are sharded afterwards.
        num_bytes = 4 if shards else 16 if args.optim.value in ("adamw_torch", "adamw_torch_fused") else 8
        check_memory(self.config, self.name, torch.device("cpu") if shards else args.device, num_bytes)

    def load(self, seed: int, documents_apart: bool = False) -> PreTrainedModel:
        """Build the model or load its weights, and call `check_trainable`."""
        model = load_model(self.reference) if self.reference else build_model(self.config, seed)
        if self.reference and getattr(model, "is_quantized", False):
            raise UsageError(
                f"--model_name_or_path {self.reference.name} has quantized weights, on which an adapter alone can be "
                "trained; give the model that was quantized, or use lm-trials tune"
            )
        if model.device.type != "meta":  # FSDP's low-memory loading gives the weights to the first process only
            check_trainable(model, self.reference.name if self.reference else self.config.model_type, documents_apart)
        return model

    def describe(self) -> dict[str, Any] | None:
        """Return the fields for `run.json` that identify the weights; None for random ones."""
        if self.reference is None:
            return None
        described: dict[str, Any] = {"name_or_path": self.reference.name}
        folder = Path(self.reference.path)
        if folder.is_dir():
            described["weights_sha256"] = weights_digest(folder)
            if run := read_run(folder):
                described["run"] = {"run_name": run.get("run_name"), "replicate": run["replicate"]}
        elif commit := getattr(resolve_revision(self.reference.path, self.reference.revision), "resolved", None):
            described["commit"] = commit
        if self.adapter:
            described["adapter"] = weights_digest(Path(self.adapter.path))
        return described


def check_trainable(model: PreTrainedModel, name: str, documents_apart: bool) -> None:
    """Check on eight tokens that a model can be trained to predict the next one.

    Raises:
        UsageError: for a model that needs more than tokens, attends to later ones, has another loss, or cannot separate
            a block's documents where `documents_apart`.
    """
    try:
        check_causal(model, name)
        check_loss(model, name)
        if documents_apart:
            check_documents_apart(model, name)
    except UsageError:
        raise
    except Exception as error:  # of 189 model types, about 145 are trained on tokens alone with the next-token loss
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{name} cannot be trained on tokens alone ({type(error).__name__}: {reason}); give another model type"
        ) from error


def choose_initial(model_args: ModelArguments, data_args: DataArguments) -> InitialModel:
    """Return the initial model of a run, and set the defaults of `--block_size` and `--tokenizer_name`, in place.

    Raises:
        UsageError: for a shape and a model together, a folder without a model, a tokenizer other than the model's, a
            block longer than its positions, or an invalid shape.
    """
    tokenizer: PreTrainedTokenizerBase
    if model_args.model_name_or_path is None:
        if not (data_args.vocab_size or data_args.tokenizer_name):
            data_args.tokenizer_name = str(default_tokenizer(dataset_of(data_args)))
        tokenizer = resolve_vocab(data_args.vocab_size, data_args.tokenizer_name, data_args.data_cache_dir)
        config = build_config(
            model_args.model_type,
            model_args.config_name,
            model_args.config_overrides,
            vocab_size=num_ids_of(tokenizer),
            block_size=data_args.block_size or 2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dropout=model_args.dropout,
        )
        data_args.block_size = chosen_window(data_args.block_size, config, "--block_size")
        return InitialModel(config, tokenizer)
    for flag in ("model_type", "config_name", "config_overrides", "dropout"):
        if getattr(model_args, flag) is not None:
            raise UsageError(
                f"--{flag} cannot be combined with --model_name_or_path {model_args.model_name_or_path} (a trained "
                f"model has its shape); remove --{flag}"
            )
    reference = resolve_model(model_args.model_name_or_path)
    if reference.base is not None:
        raise UsageError(
            f"--model_name_or_path {reference.name} is an adapter; merge it into its base (lm-trials tune "
            "--merge_output) and give the merged model"
        )
    config = load_config(reference)
    tokenizer = load_tokenizer_of(reference)
    if data_args.vocab_size or data_args.tokenizer_name:
        given = resolve_vocab(data_args.vocab_size, data_args.tokenizer_name, data_args.data_cache_dir)
        if tokenizer_hash(given) != tokenizer_hash(tokenizer):
            flag = "tokenizer_name" if data_args.tokenizer_name else "vocab_size"
            raise UsageError(
                f"--{flag} {getattr(data_args, flag)} differs from the tokenizer of {reference.name}; remove it"
            )
    data_args.block_size = chosen_window(data_args.block_size, config, "--block_size")
    return InitialModel(config, tokenizer, reference)
