"""A pretraining at the terminal: the facts shown before and after it, and the files written at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lm_trials.console import UsageError, command_line, note, show_facts
from lm_trials.estimates import interval_text
from lm_trials.files import write_file
from lm_trials.models.reference import read_run
from lm_trials.models.shapes import count_parameters, describe_shape, dropout_fields, text_config
from lm_trials.reporting.figures import loss_figure
from lm_trials.run_data import own_data
from lm_trials.tokens.phases import Phase
from lm_trials.training.checkpoints import mark_finished
from lm_trials.training.flags import DataArguments
from lm_trials.training.guide import warnings_for_run
from lm_trials.training.hub import push
from lm_trials.training.initial import InitialModel
from lm_trials.training.order_flags import DataOrdering
from lm_trials.training.plan import Plan
from lm_trials.training.resumption import ExactResume, Interruption
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.run_folder import unlock_output_dir
from lm_trials.training.stores import RunStores
from lm_trials.training.trainer import StoryTrainer

LOSS_PICTURE = "loss.png"


def device_facts(args: RunArguments) -> str:
    """Return device, processes and precision as text."""
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    return f"{device}, {processes}, {'float32' if args.mixed_precision == 'no' else args.mixed_precision}"


def announce(
    args: RunArguments,
    data_args: DataArguments,
    model: Any,
    plan: Plan,
    stores: RunStores,
    initial: InitialModel,
    saved: dict[str, str],
) -> None:
    """Show the model, data and length of a run before it starts, and settings far from the usual ones.

    Args:
        saved: `snapshots.saved_facts`.
    """
    count, config = count_parameters(model), text_config(model)
    dropouts = {name: value for name in dropout_fields(config) if (value := getattr(config, name)) is not None}
    passes = "" if plan.passes is None else f" in {plan.passes:.2f} passes"
    show_facts(
        f"{args.run_name}: {config.model_type}",
        {
            "initial weights": initial.reference.name if initial.reference else f"random, seed {args.seed}",
            "shape": describe_shape(config),
            "parameters": f"{count.total:,}, {count.without_embeddings:,} without embeddings",
            "dropout": ", ".join(f"{name} {value:g}" for name, value in dropouts.items() if value is not None)
            or "none",
            **_data_facts(data_args, plan, stores),
            "tokens per step": f"{plan.tokens_per_step:,} = {plan.blocks_per_step} blocks of {plan.block_size}",
            "steps": f"{plan.num_steps:,}",
            "total tokens": f"{plan.num_tokens:,}{passes}",
            **saved,
            "device": device_facts(args),
            "output": args.output_dir,
        },
    )
    if initial.reference:
        return  # the guide is for training from scratch
    for warning in warnings_for_run(
        num_parameters=count.total,
        tokens_per_update=plan.tokens_per_step,
        learning_rate=args.learning_rate,
        total_tokens=plan.num_tokens,
        dataset_tokens=stores.num_tokens or plan.num_tokens,
        warmup_updates=args.get_warmup_steps(plan.num_steps),
        device_type=args.device.type,
        mixed_precision=args.mixed_precision,
    ):
        note(f"note: {warning}")


def _data_facts(data_args: DataArguments, plan: Plan, stores: RunStores) -> dict[str, str]:
    facts = {}
    if stores.mix is not None:
        shares = zip(stores.parts, stores.mix.weights, strict=True)
        shown = " + ".join(f"{weight:.1%} {part.name}" for part, weight in shares)
        facts["mixture"] = f"{shown}, by {stores.mix.unit}, until {stores.mix.stop_when.replace('_', ' ')}"
    data, buffer = f"stream (--streaming {data_args.streaming})", data_args.shuffle_buffer_size
    if not stores.streamed:
        data = f"{stores.num_documents:,} stories, {stores.num_tokens:,} tokens; "
        data += f"{plan.remainder:,} tokens dropped at the end of a pass"
    order = "full shuffle" if buffer is None else f"shuffle buffer of {buffer:,} stories" if buffer > 1 else "as stored"
    counts = [len(part.record_ids) for part in stores.metrics]
    orders = order_facts(data_args, stores.phases, counts) or {"order": order}
    validation = f"{len(stores.validation):,} stories, {stores.validation.num_tokens:,} tokens"
    return facts | {"training data": data, **orders, "validation data": validation}


def order_facts(flags: DataOrdering, phases: Sequence[Phase], counts: Sequence[int]) -> dict[str, str]:
    """Return the order of the data and the number of kept records, by phase; nothing for the random order of all."""
    facts = {}
    for asked, phase in zip(flags.phases, phases, strict=True):
        total = sum(counts[place] for place in phase.places)
        kept = sum(phase.arrangements[place].size(counts[place]) for place in phase.places)
        span = f", {asked.unit} {getattr(asked, asked.unit)}" if flags.order_schedule else ""
        facts[f"order{span}"] = asked.describe() + (f": {kept:,} of {total:,} records" if asked.keep else "")
    return facts


def train_from(trainer: ExactResume, checkpoint: str | None) -> None:
    """Train, from a checkpoint if one is given; the folder stays locked until `write_end`.

    Raises:
        SystemExit: after SIGTERM or Ctrl-C, with 128 plus the signal's number as in shells; a checkpoint is saved.
    """
    try:
        with Interruption(trainer) as interruption:
            trainer.add_callback(interruption)
            trainer.train(resume_from_checkpoint=checkpoint)
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if interruption.received is not None and step < steps:
            interruption.save()
            trainer._finish_current_push()  # the upload of that checkpoint
            note(
                f"Stopped after update {step:,} of {steps:,}, saved in {trainer.args.output_dir}/checkpoint-{step}. "
                "Run the same command again to resume."
            )
            raise SystemExit(128 + interruption.received)
    except BaseException:
        unlock_output_dir()
        raise


def next_command(folder: Path, prompt: str | None = None) -> str:
    """Return the command after a training: its validation stories, or stories from a prompt of a fine-tuning's data."""
    own = own_data(read_run(folder))
    if own is None:
        return command_line("generate", model_name_or_path=folder, prompt=prompt)
    return command_line("evaluate", model_name_or_path=folder, **own)


def loss_line(metrics: dict[str, float]) -> str:
    """Return the validation loss of a finished run."""
    return f"{metrics['eval_loss']:.4f} nats per token" if metrics else "no validation data"


def say_finished(
    folder: Path, prompt: str | None = None, line: Callable[[dict[str, float]], str] = loss_line
) -> dict[str, float]:
    """Show that the run is finished and the next commands; returns its final metrics, shown by `line`."""
    try:
        metrics = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
        shown = line(metrics)
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{folder / 'eval_results.json'} cannot be read; write it again with the same command and --do_eval True "
            "--do_train False"
        ) from None
    show_facts(
        f"{folder} is already finished",
        {
            "validation loss" if line is loss_line else "validation": shown,
            "next": next_command(folder, prompt),
            "train again": "the same command with --overwrite_output_dir",
        },
    )
    return metrics


def write_end(trainer: ExactResume, log_history: list[dict[str, Any]]) -> None:
    """Write the loss curve, Trainer's state and, last, `finished.json`; a run killed before it resumes."""
    folder = Path(trainer.args.output_dir)
    figure = loss_figure(log_history, title=trainer.args.run_name or folder.name)
    write_file(folder / LOSS_PICTURE, partial(figure.savefig, format="png", dpi=150))
    trainer.save_state()
    mark_finished(folder, trainer.state.global_step, trainer.run_identity)
    unlock_output_dir()


def finish(trainer: StoryTrainer) -> dict[str, float]:
    """Evaluate, write and show the results, and push; returns the metrics."""
    folder, trained = Path(trainer.args.output_dir), trainer.args.do_train
    metrics, shares = trainer.final_metrics(), trainer.part_shares()  # need all processes
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return metrics
    if trained:  # an evaluation alone does not change the run's record
        write_end(trainer, trainer.state.log_history)
    limits = interval_text(metrics["eval_loss_lower"], metrics["eval_loss_upper"], 4)
    stories = f"n = {metrics['eval_samples']:,} stories"
    facts = {
        "validation loss": f"{metrics['eval_loss']:.4f} {limits} nats per token, {stories}",
        "model": str(folder),
        "loss curve": str(folder / LOSS_PICTURE),
    }
    if shares and trained:
        facts["mixture"] = ", ".join(f"{share:.2%} {name}" for name, share in shares.items()) + " of the tokens"
    if "tensorboard" in trainer.args.report_to:
        facts["TensorBoard"] = f"tensorboard --logdir {folder}"
    facts["next"] = next_command(folder)
    show_facts("done", facts)
    push(trainer)
    return metrics
