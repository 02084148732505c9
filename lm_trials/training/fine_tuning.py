"""A fine-tuning session: the base and its adapter, what is said before and after, the merged model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from lm_trials.console import UsageError, note, show_facts
from lm_trials.evaluation.example_losses import write_examples
from lm_trials.files import read_object, weights_digest, write_file
from lm_trials.models.adapters import (
    LoraSpec,
    add_lora,
    describe_layers,
    load_adapter_weights,
    quantization,
    total_parameters,
    trainable_parameters,
)
from lm_trials.models.reference import (
    ADAPTER_FILE,
    ModelReference,
    load_config,
    load_model,
    load_tokenizer_of,
    read_run,
    resolve_model,
)
from lm_trials.models.shapes import set_causal_loss
from lm_trials.reporting.figures import loss_figure
from lm_trials.tokens.tokenizers import tokenizer_hash
from lm_trials.training.checkpoints import mark_finished
from lm_trials.training.hub import push
from lm_trials.training.initial import InitialModel
from lm_trials.training.merging import merge_output
from lm_trials.training.session import LOSS_PICTURE
from lm_trials.training.tuning_examples import Examples, FineTuningPlan
from lm_trials.training.tuning_flags import AdapterArguments
from lm_trials.training.tuning_trainer import FineTuner, both_losses


def load_base(
    base: InitialModel, args: TrainingArguments, adapter_args: AdapterArguments
) -> PreTrainedModel | PeftModel:
    """Load a base, quantized if asked, and put the adapter on it, or make all of it trainable.

    Raises:
        UsageError: where this machine cannot, where a module that is named is not there, or where the adapter to
            begin with does not fit.
    """
    spec = lora_spec(adapter_args)
    dtype = getattr(torch, adapter_args.dtype)
    computed_in = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    how = quantization(adapter_args.load_in_8bit, adapter_args.load_in_4bit, args.device.type, computed_in)
    model = load_model(base.reference, dtype, how, **_init_kwargs(args))
    if adapter_args.full_finetune:
        return model
    adapted = add_lora(model, spec, args.seed)
    if base.adapter:
        load_adapter_weights(adapted, Path(base.adapter.path))
    set_causal_loss(adapted)
    return adapted


def finished_weights(model: PreTrainedModel | PeftModel, folder: Path, dtype: str) -> PreTrainedModel | PeftModel:
    """Return the model of a finished run, put into `model` where that has an adapter of its form.

    Raises:
        UsageError: where the folder's weights do not fit.
    """
    if not isinstance(model, PeftModel):
        return load_model(resolve_model(str(folder)), getattr(torch, dtype))
    load_adapter_weights(model, folder)
    return model


def _init_kwargs(args: TrainingArguments) -> dict[str, Any]:
    kwargs = args.model_init_kwargs or {}
    kwargs = json.loads(kwargs) if isinstance(kwargs, str) else dict(kwargs)
    for name in ("dtype", "torch_dtype", "quantization_config", "revision", "trust_remote_code"):
        if name in kwargs:
            raise UsageError(f"--model_init_kwargs: {name} has a flag of its own or is not taken; leave it out there")
    return kwargs


def lora_spec(adapter_args: AdapterArguments) -> LoraSpec:
    """Return what the adapter is to be."""
    return LoraSpec(
        adapter_args.lora_r,
        adapter_args.lora_alpha,
        adapter_args.lora_dropout,
        adapter_args.target_modules,
        adapter_args.use_dora,
        adapter_args.use_rslora,
    )


def choose_base(adapter_args: AdapterArguments) -> InitialModel:
    """Return what a fine-tuning starts from.

    Raises:
        UsageError: for a base that is an adapter itself, or an adapter to begin with that was made on another base.
    """
    reference = resolve_model(adapter_args.model_name_or_path or "")
    if reference.base is not None:
        raise UsageError(
            f"{reference.name} is an adapter; to go on with it give --model_name_or_path {reference.base} "
            f"--adapter_name_or_path {reference.name}, to build on it merge it first (--merge_output)"
        )
    adapter = None
    if adapter_args.adapter_name_or_path:
        adapter = resolve_model(adapter_args.adapter_name_or_path)
        if adapter.base is None or not Path(adapter.path).is_dir():
            raise UsageError(
                f"--adapter_name_or_path {adapter.name} is no adapter folder; name one with adapter_config.json"
            )
        _check_same_base(adapter, reference)
        _check_same_form(adapter, lora_spec(adapter_args))
    return InitialModel(load_config(reference), load_tokenizer_of(reference), reference, adapter)


def _check_same_base(adapter: ModelReference, base: ModelReference) -> None:
    """Refuse an adapter that was made on another base than this one."""
    made_on = Path(adapter.base or "")
    run = read_run(Path(adapter.path)) or {"outcome": {}}
    known = (run["outcome"].get("initial_model") or {}).get("weights_sha256")
    folder = Path(base.path)
    if known is None and made_on.is_dir():
        known = weights_digest(made_on)
    same = known == weights_digest(folder) if known and folder.is_dir() else adapter.base == base.path
    if not same:
        raise UsageError(
            f"--adapter_name_or_path {adapter.name} was made on another base, {adapter.base}; name that with "
            "--model_name_or_path"
        )


def _check_same_form(adapter: ModelReference, spec: LoraSpec) -> None:
    """Refuse to begin with an adapter under another rank or scale: the same tensors would be another model."""
    config = read_object(Path(adapter.path) / ADAPTER_FILE)
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        has, asked = config.get(name, False), getattr(spec, name)
        if has != asked:
            flag = {"r": "lora_r"}.get(name, name)
            raise UsageError(
                f"--adapter_name_or_path {adapter.name} has {flag} {has} and --{flag} is {asked}; give --{flag} {has}"
            )


def announce_tuning(
    args: TrainingArguments,
    adapter_args: AdapterArguments,
    model: PreTrainedModel | PeftModel,
    base: InitialModel,
    plan: FineTuningPlan,
    examples: Examples,
    max_eval_samples: int | None = None,
) -> None:
    """Say before training what is trained, on what, how many tokens count, and where the results will lie."""
    trainable, total = trainable_parameters(model), total_parameters(model)
    kind = "8-bit" if adapter_args.load_in_8bit else "4-bit (nf4)" if adapter_args.load_in_4bit else adapter_args.dtype
    adapter = "none: all weights are trained"
    if isinstance(model, PeftModel):
        spec = lora_spec(adapter_args)
        numbers = f"r = {spec.r}, alpha = {spec.lora_alpha:g}, dropout = {spec.lora_dropout:g}"
        adapter = f"LoRA, {numbers}, on {describe_layers(model)}"
    counts, share = examples.train.counts, plan.num_completion_tokens / plan.num_tokens
    what = "of the completions" if examples.completion_only else "all but each example's first"
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    rows = "packed rows" if args.packing else "examples"
    show_facts(
        f"{args.run_name}: fine-tuning {base.reference.name}",
        {
            "base": f"{model.config.model_type}, {kind}, {model.get_memory_footprint() / 1e6:,.1f} MB",
            "adapter": adapter,
            "parameters": f"{trainable:,} trained of {total:,} ({trainable / total:.2%})",
            "training data": f"{counts['examples']:,} examples, {counts['tokens']:,} tokens, layout {examples.layout}",
            "too long": _too_long(counts, examples.max_length),
            "tokens in the loss": f"{plan.num_completion_tokens:,} of {plan.num_tokens:,} ({share:.1%}), {what}",
            "validation data": _validation(len(examples.validation), max_eval_samples),
            "updates": f"{plan.num_steps:,} of {plan.blocks_per_step} {rows}, {plan.passes:.2f} passes",
            "device": f"{device}, {args.world_size} process{'es' if args.world_size > 1 else ''}, "
            f"{'float32' if args.mixed_precision == 'no' else args.mixed_precision}",
            "results": args.output_dir,
        },
    )
    note_untrained_end(base, adapter_args)


def note_untrained_end(base: InitialModel, adapter_args: AdapterArguments) -> None:
    """Say so where a base has never seen the EOS that it is to write: LoRA leaves its tokens' rows as they are."""
    run = read_run(Path(base.reference.path)) or {"outcome": {}}
    if run["outcome"].get("append_eos") is False and not adapter_args.full_finetune:
        note(
            f"note: {base.reference.name} was trained without EOS, and LoRA leaves embeddings and output head as they "
            "are: it will hardly learn where to end; train the base with --append_eos True, or all of it with "
            "--full_finetune True"
        )


def _validation(count: int, limit: int | None) -> str:
    """Say how many examples there are, and how many of them are evaluated.

    >>> _validation(500, 20), _validation(19, 500)
    ('500 examples, the first 20 of them are evaluated', '19 examples')
    """
    fewer = limit is not None and limit < count
    return f"{count:,} examples" + (f", the first {limit:,} of them are evaluated" if fewer else "")


def _too_long(counts: Mapping[str, int], max_length: int) -> str:
    if not counts["overlong"]:
        return f"none has more than {max_length:,} tokens"
    became = f"{counts['dropped']:,} dropped, {counts['cut']:,} cut"
    return f"{counts['overlong']:,} with more than {max_length:,} tokens: {became}"


def finish_tuning(trainer: FineTuner, adapter_args: AdapterArguments, examples: Examples) -> dict[str, float]:
    """Evaluate, merge if asked, write metrics, picture and state, say where all lies, push; returns the metrics."""
    folder = Path(trainer.args.output_dir)
    metrics = trainer.final_metrics()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        _write_results(trainer, examples, metrics)
    merged = merge_output(trainer, adapter_args)  # of a finished run: a merge that fails loses nothing
    if not trainer.is_world_process_zero():
        return metrics
    model = trainer.accelerator.unwrap_model(trainer.model)
    facts = {
        "validation": both_losses(metrics) if metrics else "no validation examples",
        "adapter" if isinstance(model, PeftModel) else "model": str(folder),
        **merged,
        "loss curve": str(folder / LOSS_PICTURE),
        "next": f"lm-trials generate --model {folder} --prompt '...'",
    }
    show_facts("done", facts)
    push(trainer)
    return metrics


def _write_results(trainer: FineTuner, examples: Examples, metrics: dict[str, float]) -> None:
    """Write the losses of the examples, the picture and the state; what marks the run as finished is written last."""
    folder = Path(trainer.args.output_dir)
    if metrics:
        name = f"{examples.pairs.described['name']}-completions"
        settings = {"layout": examples.layout, "dataset_name": [examples.pairs.name], "scored": "completions"}
        write_examples(folder / "eval" / name, examples.validation, trainer.sums_NK, trainer.processing_class, settings)
    if trainer.args.do_train:
        # The loss that is trained on; that of the prompts, which nobody learns, would flatten it.
        drawn = [
            {key: value for key, value in row.items() if not key.startswith(("eval_completion", "eval_unmasked"))}
            for row in trainer.state.log_history
        ]
        figure = loss_figure(drawn, title=trainer.args.run_name)
        write_file(folder / LOSS_PICTURE, partial(figure.savefig, format="png", dpi=150))
        trainer.save_state()
        mark_finished(folder, trainer.state.global_step, trainer.run_identity)


def describe_tuning(
    described: dict[str, Any], examples: Examples, base: InitialModel, plan: FineTuningPlan
) -> dict[str, Any]:
    """Complete what `describe_run` says of a fine-tuning, in place, and return it.

    How the base is quantized, its flags say.  The number of tokens goes with the order of the examples, and so with the
    seed: it is no outcome; the number of examples is.
    """
    outcome, tokens = described["outcome"], described["outcome"].pop("num_tokens")
    outcome["model"].pop("quantization_config", None)
    outcome["data"] = {**examples.describe(), "tokenizer_hash": tokenizer_hash(base.tokenizer)}
    outcome["prompt_layout"] = examples.layout
    outcome["num_examples"] = plan.num_steps * plan.blocks_per_step
    described["logistics"] |= {
        "num_tokens": tokens,
        "num_completion_tokens": plan.num_completion_tokens,
        "num_train_epochs": plan.passes,  # Trainer is told 1: it sees all passes as one
    }
    return described
