"""A training session at the terminal: what is decided before the run, what is said of it, what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from lm_trials.console import UsageError, note, show_facts
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.models.shapes import count_parameters
from lm_trials.training.guide import warnings_for_run
from lm_trials.training.plan import Plan
from lm_trials.training.stores import Store

LOSS_PICTURE = "loss.png"


def finished_model(output_dir: str) -> PreTrainedModel:
    """Load the model of a finished run, for `--do_eval` alone."""
    return load_model(resolve_model(output_dir))


def announce(
    args: TrainingArguments, model: PreTrainedModel, plan: Plan, train: Store, validation: Store, initial: str | None
) -> None:
    """Say before training what will run, how long it is, where its results will lie, and what is unusual about it."""
    count = count_parameters(model)
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    show_facts(
        f"{args.run_name}: {model.config.model_type}",
        {
            "starts from": initial or f"random weights of seed {args.seed}",
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
    if initial:
        return  # the guide is about training from scratch
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


def train_from(trainer: Trainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint where one is given.

    Raises:
        UsageError: for a checkpoint whose weights cannot be read.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except SafetensorError as error:
        raise UsageError(
            f"--resume_from_checkpoint {checkpoint}: its weights are damaged ({error}); name an earlier checkpoint"
        ) from None


def finish(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Write metrics and state, and say where everything lies and what to do next."""
    folder = Path(trainer.args.output_dir)
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return
    if trainer.args.do_train:  # an evaluation alone leaves the run's own record as it is
        trainer.save_state()
    limits = f"[{metrics['eval_loss_lower']:.4f}, {metrics['eval_loss_upper']:.4f}]"
    stories = f"n = {metrics['eval_samples']:,} stories"
    facts = {
        "validation loss": f"{metrics['eval_loss']:.4f} {limits} nats per token, {stories}",
        "model": str(folder),
        "loss curve": str(folder / LOSS_PICTURE),
    }
    if "tensorboard" in trainer.args.report_to:
        facts["TensorBoard"] = f"tensorboard --logdir {folder}"
    facts["next"] = f"python eval_checkpoint.py --model_dir {folder} --dataset_name <name or path>"
    show_facts("done", facts)
