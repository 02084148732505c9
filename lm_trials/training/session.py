"""A training session at the terminal: what is decided before the run, what is said of it, what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from lm_trials.console import note, show_facts
from lm_trials.data.corpora import read_manifest
from lm_trials.data.tokens import TokenStore
from lm_trials.models.presets import PRESETS
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.models.shapes import build_config, count_parameters
from lm_trials.training.arguments import DataArguments, ModelArguments
from lm_trials.training.guide import warnings_for_run
from lm_trials.training.plan import Plan

# A shape without a limit of its own, or with a far larger one, is trained on blocks of GPT-2's length.
LONGEST_DEFAULT_BLOCK = 1024
LOSS_PICTURE = "loss.png"


def choose_config(
    model_args: ModelArguments, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig:
    """Return the model's configuration, and settle `--block_size` in `data_args`, in place."""
    preset = PRESETS.get(model_args.config_name or "")
    config = build_config(
        model_args.model_type or (preset.model_type if preset else None),
        model_args.config_name,
        model_args.config_overrides,
        vocab_size=len(tokenizer),
        block_size=data_args.block_size or 2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dropout=model_args.dropout,
    )
    if data_args.block_size is None:
        positions = getattr(config, "max_position_embeddings", None) or LONGEST_DEFAULT_BLOCK
        data_args.block_size = min(positions, LONGEST_DEFAULT_BLOCK)
    return config


def finished_model(output_dir: str) -> PreTrainedModel:
    """Load the model of a finished run, for `--do_eval` alone."""
    return load_model(resolve_model(output_dir))


def describe_data(corpus: Path, store: Path) -> dict[str, Any]:
    """Return what identifies the training data in `run.json`: content, tokenizer, counts."""
    manifest, tokens = read_manifest(corpus), read_manifest(store)
    return {
        "corpus": corpus.name,
        "origin_fingerprint": manifest["origin"]["fingerprint"],
        "split_by": manifest["split_by"],
        "stories": manifest["stories"],
        "tokenizer_hash": tokens["tokenizer_hash"],
        "append_eos": tokens["append_eos"],
        "tokens": tokens["tokens"],
    }


def announce(
    args: TrainingArguments, model: PreTrainedModel, plan: Plan, train: TokenStore, validation: TokenStore
) -> None:
    """Say before training what will run, how long it is, where its results will lie, and what is unusual about it."""
    count = count_parameters(model)
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    show_facts(
        f"{args.run_name}: {model.config.model_type}",
        {
            "parameters": f"{count.total:,}, {count.without_embeddings:,} without embeddings",
            "dropout": _dropout(model.config),
            "training data": f"{len(train):,} stories, {train.num_tokens:,} tokens; "
            f"{plan.remainder:,} tokens at the end of a pass fill no block",
            "validation data": f"{len(validation):,} stories, {validation.num_tokens:,} tokens",
            "tokens per step": f"{plan.tokens_per_step:,} = {plan.blocks_per_step} blocks of {plan.block_size}",
            "steps": f"{plan.num_steps:,}",
            "total tokens": f"{plan.num_tokens:,} in {plan.passes:.2f} passes",
            "device": f"{device}, {processes}, {'float32' if args.mixed_precision == 'no' else args.mixed_precision}",
            "results": args.output_dir,
        },
    )
    for warning in warnings_for_run(
        num_parameters=count.total,
        tokens_per_update=plan.tokens_per_step,
        learning_rate=args.learning_rate,
        total_tokens=plan.num_tokens,
        dataset_tokens=train.num_tokens,
        warmup_updates=args.get_warmup_steps(plan.num_steps),
        device_type=args.device.type,
        mixed_precision=args.mixed_precision,
    ):
        note(f"note: {warning}")


def _dropout(config: PretrainedConfig) -> str:
    names = [name for name in config.to_dict() if "drop" in name and isinstance(getattr(config, name), float)]
    return ", ".join(f"{name} {getattr(config, name):g}" for name in names) or "none"


def finish(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Write metrics and state, and say where everything lies and what to do next."""
    folder = Path(trainer.args.output_dir)
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return
    trainer.save_state()
    limits = f"[{metrics['eval_loss_lower']:.4f}, {metrics['eval_loss_upper']:.4f}]"
    stories = f"n = {metrics['eval_samples']:,} stories"
    show_facts(
        "done",
        {
            "validation loss": f"{metrics['eval_loss']:.4f} {limits} nats per token, {stories}",
            "model": str(folder),
            "loss curve": str(folder / LOSS_PICTURE),
            "TensorBoard": f"tensorboard --logdir {folder}",
            "next": f"python eval_checkpoint.py --model_dir {folder} --dataset_name <name or path>",
        },
    )
