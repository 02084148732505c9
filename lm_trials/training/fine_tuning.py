"""A fine-tuning: the base and its adapter, the facts shown before and after it, the files written at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from lm_trials.console import UsageError, note, show_facts
from lm_trials.evaluation.example_losses import write_examples
from lm_trials.evaluation.losses import documents_apart, quiet, rounding_of
from lm_trials.files import read_object, weights_digest
from lm_trials.models.adapters import LoraSpec, add_lora, default_layers, describe_layers, load_adapter_weights
from lm_trials.models.quantization import quantization
from lm_trials.models.reference import (
    ADAPTER_FILE,
    ModelReference,
    load_config,
    load_model,
    load_tokenizer_of,
    read_run,
    resolve_model,
    trained_on,
)
from lm_trials.models.shapes import set_causal_loss
from lm_trials.tokens.tokenizers import tokenizer_hash
from lm_trials.training.checkpoints import run_identity
from lm_trials.training.hub import push
from lm_trials.training.initial import InitialModel, check_trainable
from lm_trials.training.manifest import check_resumable, continued, write_run
from lm_trials.training.merging import check_merge, merge_output
from lm_trials.training.plan import Plan
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.run_folder import Start, claim_output_dir, prepare_output_dir
from lm_trials.training.session import LOSS_PICTURE, device_facts, next_command, order_facts, train_from, write_end
from lm_trials.training.tuning_examples import Examples, TokenizedPairs
from lm_trials.training.tuning_flags import Adapter, AdapterArguments, PairArguments
from lm_trials.training.tuning_run_arguments import SftRunArguments
from lm_trials.training.tuning_trainer import FineTuner, both_losses

LORA_FLAGS = {"r": "lora_r", "lora_alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}
SETTINGS = (
    *("alpha_pattern", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"),
    *("arrow_config", "kasa_config", "monteclora_config"),
)
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora")  # of init_lora_weights; the last is lora_ga


def load_base(base: InitialModel, args: RunArguments, adapter_args: Adapter) -> PreTrainedModel | PeftModel:
    """Load a base, quantized if asked, and add the adapter unless all weights are trained.

    Raises:
        UsageError: for an unsupported quantization, an unknown layer, or an initial adapter that does not fit.
    """
    dtype = getattr(torch, adapter_args.dtype)
    reference = _reference(base)
    model = load_model(reference, dtype, quantized(args, adapter_args), **_init_kwargs(args))
    asked = [name for name in ("full_finetune", "merge_output") if getattr(adapter_args, name)]
    if asked and getattr(model, "is_quantized", False) and not (adapter_args.load_in_8bit or adapter_args.load_in_4bit):
        raise UsageError(
            f"--{asked[0]} needs whole weights and those of {reference.name} are quantized; remove it, or name the "
            "model that was quantized"
        )
    if adapter_args.full_finetune:
        return model
    adapted = add_lora(model, lora_spec(adapter_args), args.seed, args.device)
    if reference.revision:
        adapted.peft_config[adapted.active_adapters[0]].revision = reference.revision
    if base.adapter:
        _check_settings(adapted, base.adapter)
        load_adapter_weights(adapted, Path(base.adapter.path))
    set_causal_loss(adapted)
    return adapted


def quantized(args: RunArguments, adapter_args: Adapter) -> BitsAndBytesConfig | None:
    """Return how the base is quantized; None for full precision; a UsageError where this device cannot."""
    computed_in = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return quantization(adapter_args.load_in_8bit, adapter_args.load_in_4bit, args.device.type, computed_in)


def check_tunable(model: Any, base: InitialModel, args: Any) -> None:
    """Check on eight tokens that a model can be trained, and keeps apart the examples that are joined.

    Raises:
        UsageError: as `check_trainable`, for a model whose loss trl computes otherwise, or for one that attends to the
            examples before one's own.
    """
    if is_deepspeed_zero3_enabled() or is_fsdp_enabled():  # no process has all weights
        return
    if not getattr(model, "is_quantized", False):
        model.to(args.device)  # flash attention has no CPU kernels
    check_trainable(model, _reference(base).name, documents_apart=False)
    _check_fused_loss(model, _reference(base).name)
    if not args.packing and not args.padding_free:
        return
    examples = [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [1, 5, 6, 7]}]
    joined = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(examples)
    del joined["input_ids"], joined["labels"]
    if not documents_apart(model, **joined):
        flag = "--packing True" if args.packing else "--padding_free True"
        raise UsageError(
            f"{flag}: the tokens of a {model.config.model_type} attend to the examples before theirs in a row; remove "
            "the flag or give another model type"
        )


def _check_fused_loss(model: Any, name: str) -> None:
    """Refuse a model whose logits are more than its head's outputs in a way that trl's fused loss leaves out.

    RecurrentGemma and xLSTM cap them under names of their own; in Llama 4 trl does not find the layers below the head.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    ids_BT = torch.arange(1, 9, device=model.device)[None]
    forward = vars(inner).get("forward")  # accelerate's, of a quantized model
    add_fused_lm_head(inner)
    try:
        with quiet(model):
            expected = float(model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss)
            found = float(model(input_ids=ids_BT, labels=ids_BT, fused_lm_head=True).loss)
        reason = "" if abs(found - expected) <= rounding_of(model) * max(1.0, expected) else f"{found:.4f} nats"
    except AttributeError as error:
        reason = str(error)
    finally:
        del inner.forward
        vars(inner).update({"forward": forward} if forward else {})
    if reason:
        raise UsageError(
            f"{name}: the loss of trl is not that of a {model.config.model_type} ({reason}), so it cannot be "
            "fine-tuned here; give another model type"
        )


def finished_weights(model: PreTrainedModel | PeftModel, folder: Path, dtype: str) -> PreTrainedModel | PeftModel:
    """Return the model of a finished run; an adapter's weights are loaded into `model` (UsageError: do not fit)."""
    if not isinstance(model, PeftModel):
        return load_model(resolve_model(str(folder)), getattr(torch, dtype))
    load_adapter_weights(model, folder)
    return model


def _reference(base: InitialModel) -> ModelReference:
    assert base.reference is not None  # choose_start sets it
    return base.reference


def _init_kwargs(args: Any) -> dict[str, Any]:
    kwargs = args.model_init_kwargs or {}
    kwargs = json.loads(kwargs) if isinstance(kwargs, str) else dict(kwargs)
    for name in ("dtype", "torch_dtype", "quantization_config", "revision", "trust_remote_code"):
        if name in kwargs:
            raise UsageError(f"--model_init_kwargs: {name} is set by a flag of its own or not supported; remove it")
    return kwargs


def lora_spec(adapter_args: Adapter) -> LoraSpec:
    """Return the settings of the adapter."""
    numbers = adapter_args.lora_r, adapter_args.lora_alpha, adapter_args.lora_dropout
    return LoraSpec(*numbers, adapter_args.target_modules, adapter_args.use_dora, adapter_args.use_rslora)


def choose_start(adapter_args: Adapter) -> InitialModel:
    """Return the base and the initial adapter; an adapter as the model is trained further, in place of its base.

    In place, `adapter_args` then name its base, and get its settings where they are at their defaults; and
    `--lora_target_modules default` becomes the names of the layers, so that both are one arm.

    Raises:
        UsageError: for an adapter whose weights are all to be trained, a model type without default layers, or an
            initial adapter of another base, rank or scale.
    """
    reference = resolve_model(adapter_args.model_name_or_path or "")
    if reference.base is not None:
        if asked := [name for name in ("full_finetune", "adapter_name_or_path") if getattr(adapter_args, name)]:
            raise UsageError(
                f"--{asked[0]}: --model_name_or_path {reference.name} is an adapter already; remove --{asked[0]}, or "
                "merge the adapter first (lm-trials tune --merge_output)"
            )
        adapter_args.model_name_or_path, adapter_args.adapter_name_or_path = reference.base, reference.name
        defaults, saved = Adapter(), read_object(Path(reference.path) / ADAPTER_FILE)
        own = {flag: saved.get(name, getattr(defaults, flag)) for name, flag in LORA_FLAGS.items()}
        if isinstance(saved.get("target_modules"), list):
            own["lora_target_modules"] = sorted(saved["target_modules"])
        for flag, value in own.items():
            if getattr(adapter_args, flag) == getattr(defaults, flag):
                setattr(adapter_args, flag, value)
        reference = resolve_model(reference.base)
    config = load_config(reference)
    if adapter_args.target_modules == ("default",):
        adapter_args.lora_target_modules = default_layers(config)
    adapter = None
    if adapter_args.adapter_name_or_path:
        adapter = resolve_model(adapter_args.adapter_name_or_path)
        if adapter.base is None or not Path(adapter.path).is_dir():
            raise UsageError(
                f"--adapter_name_or_path {adapter.name} is not a folder with an adapter_config.json; give one"
            )
        _check_adapter(adapter, reference, lora_spec(adapter_args))
    # An adapter may have another chat template than its base.
    return InitialModel(config, load_tokenizer_of(adapter or reference), reference, adapter)


def _check_adapter(adapter: ModelReference, base: ModelReference, spec: LoraSpec) -> None:
    """Refuse an initial adapter of another base, rank or scale, with which the same tensors would be another model."""
    own_base, folder, flag = Path(adapter.base or ""), Path(base.path), f"--adapter_name_or_path {adapter.name}"
    known = trained_on(Path(adapter.path)) or (weights_digest(own_base) if own_base.is_dir() else None)
    same = known == weights_digest(folder) if known and folder.is_dir() else adapter.base == base.name
    if not same:
        raise UsageError(f"{flag} is an adapter for another base; give --model_name_or_path {adapter.base}")
    config = read_object(Path(adapter.path) / ADAPTER_FILE)
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise UsageError(f"{flag} is a {kind} adapter, and only LoRA adapters can be trained; give one")
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        has, asked = config.get(name, False), getattr(spec, name)
        if has != asked:
            name = "lora_r" if name == "r" else name
            raise UsageError(f"{flag} has {name} {has} and --{name} is {asked}; give --{name} {has}")


def _check_settings(adapted: PeftModel, adapter: ModelReference) -> None:
    """Refuse an initial adapter with a setting that no flag has, with which the same tensors are another function."""
    saved = read_object(Path(adapter.path) / ADAPTER_FILE)
    ours = adapted.peft_config[adapted.active_adapters[0]].to_dict()
    differing = [name for name in SETTINGS if (saved.get(name) or None) != (ours[name] or None)]
    if str(saved.get("init_lora_weights")).partition("_")[0] in CHANGED_BASES:
        differing.append("init_lora_weights")
    if differing:
        raise UsageError(
            f"--adapter_name_or_path {adapter.name} has {differing[0]} {saved[differing[0]]}, which no flag sets; give "
            "another adapter"
        )


def begin(args: RunArguments, adapter_args: Adapter, described: dict[str, Any]) -> tuple[Start, str]:
    """Return how a run starts and its identity, after checking the folders that it writes to; changes nothing.

    Raises:
        UsageError: as `claim_output_dir`, `check_resumable` and `check_merge`.
    """
    folder, start = Path(args.output_dir), Start(finished=not args.do_train)
    if args.do_train:
        models = (adapter_args.model_name_or_path, adapter_args.adapter_name_or_path)
        again = adapter_args.overwrite_output_dir, adapter_args.accept_other_code
        start = claim_output_dir(args, described, *again, models)
    else:
        check_resumable(folder, described, adapter_args.accept_other_code)
    goes_on = start.finished or start.checkpoint  # perhaps under other names of the same content
    identity = run_identity((read_run(folder) if goes_on else None) or described)
    check_merge(adapter_args, args.output_dir, identity)
    return start, identity


def carry_out(trainer: Any, start: Start, described: dict[str, Any]) -> None:
    """Write the run's folder, train and save; nothing where only an evaluation is asked for."""
    args = trainer.args
    if not args.do_train:
        return
    if args.should_save:
        described = continued(described, Path(start.checkpoint)) if start.checkpoint else described
        prepare_output_dir(args, start)
        write_run(Path(args.output_dir), described)
    train_from(trainer, start.checkpoint)
    trainer.save_model()


def model_facts(model: Any, adapter_args: Adapter) -> dict[str, str]:
    """Return the lines about a base, its adapter and what is trained."""
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    kind = "8-bit" if adapter_args.load_in_8bit else "4-bit (nf4)" if adapter_args.load_in_4bit else adapter_args.dtype
    adapter = "none: all weights are trained"
    if isinstance(model, PeftModel):
        numbers = f"r = {adapter_args.lora_r}, alpha = {adapter_args.lora_alpha:g}"
        adapter = f"LoRA, {numbers}, dropout = {adapter_args.lora_dropout:g}, on {describe_layers(model)}"
    return {
        "base": f"{model.config.model_type}, {kind}, {model.get_memory_footprint() / 1e6:,.1f} MB",
        "adapter": adapter,
        "parameters": f"{trainable:,} trained of {total:,} ({trainable / total:.2%})",
    }


def held_out_fact(count: int, unit: str, limit: int | None) -> str:
    """Return the number of validation examples, and how many of them are evaluated."""
    return f"{count:,} {unit}" + (f", the first {limit:,} are evaluated" if limit is not None and limit < count else "")


def announce_tuning(
    args: SftRunArguments,
    adapter_args: AdapterArguments,
    model: Any,
    base: InitialModel,
    plan: Plan,
    examples: Examples,
    pair_args: PairArguments,
    saved: dict[str, str],
) -> None:
    """Show the model, data and length of a fine-tuning before it starts; `saved` is `snapshots.saved_facts`."""
    counts, share = examples.train.counts, plan.num_completion_tokens / plan.num_tokens
    what = "of the completions" if examples.completion_only else "all but each example's first"
    too_long = f"{counts['overlong']:,} examples: {counts['dropped']:,} dropped, {counts['cut']:,} cut"
    rows = "packed rows" if args.packing else "examples"
    passes = "" if plan.passes is None else f", {plan.passes:.2f} passes"
    show_facts(
        f"{args.run_name}: fine-tuning {_reference(base).name}",
        {
            **model_facts(model, adapter_args),
            "training data": f"{counts['examples']:,} examples, {counts['tokens']:,} tokens, layout {examples.layout}",
            f"over {examples.max_length:,} tokens": too_long if counts["overlong"] else "no examples",
            **order_facts(pair_args, examples.phases, [len(examples.train)]),
            "tokens in the loss": f"{plan.num_completion_tokens:,} of {plan.num_tokens:,} ({share:.1%}), {what}",
            "validation data": held_out_fact(len(examples.validation), "examples", pair_args.max_eval_samples),
            "updates": f"{plan.num_steps:,} of {plan.blocks_per_step} {rows}{passes}",
            **saved,
            "device": device_facts(args),
            "output": args.output_dir,
        },
    )
    note_untrained_end(base, adapter_args)


def note_untrained_end(base: InitialModel, adapter_args: Adapter) -> None:
    """Warn about LoRA on a base trained without EOS: it ended 34.5 % of its stories, full fine-tuning 99.5 %."""
    reference = _reference(base)
    run = read_run(Path(reference.path)) or {"outcome": {}}
    if run["outcome"].get("append_eos") is False and not adapter_args.full_finetune:
        note(
            f"note: {reference.name} was trained without EOS, and LoRA does not train embeddings and output head, so "
            "few completions will end; train the base with lm-trials train --append_eos True, or give --full_finetune "
            "True"
        )


def finish_tuning(trainer: FineTuner, adapter_args: AdapterArguments, examples: Examples) -> dict[str, float]:
    """Evaluate, write and show the results, merge if asked, and push; returns the metrics."""
    folder = Path(trainer.args.output_dir)
    metrics = trainer.final_metrics()
    trainer.save_metrics("eval", metrics)
    if metrics and trainer.is_world_process_zero():
        place = folder / "eval" / f"{examples.pairs.described['name']}-completions"
        settings = {"layout": examples.layout, "dataset_name": [examples.pairs.name], "scored": "completions"}
        write_examples(place, examples.validation, trainer.sums_NK, trainer.processing_class, settings)
    if trainer.args.do_train and trainer.is_world_process_zero():
        others = ("eval_completion", "eval_unmasked")  # eval_loss is the one of the two that is trained on
        log = trainer.state.log_history
        write_end(trainer, [{key: row[key] for key in row if not key.startswith(others)} for row in log])
    merged = merge_output(trainer, adapter_args)  # after finished.json: a merge that fails loses nothing
    if not trainer.is_world_process_zero():
        return metrics
    model = trainer.accelerator.unwrap_model(trainer.model)
    facts = {
        "validation": both_losses(metrics) if metrics else "no validation examples",
        "adapter" if isinstance(model, PeftModel) else "model": str(folder),
        **merged,
        "loss curve": str(folder / LOSS_PICTURE),
        "next": next_command(folder, examples.prompt()),
    }
    show_facts("done", facts)
    push(trainer)
    return metrics


def describe_tuning(
    described: dict[str, Any], examples: TokenizedPairs, base: InitialModel, plan: Plan
) -> dict[str, Any]:
    """Complete the `run.json` fields of `describe_run` for a fine-tuning, in place, and return them.

    The number of tokens depends on the order of the examples, and so on the seed: the number of examples is the
    outcome.  The flags describe the quantization.
    """
    outcome, tokens = described["outcome"], described["outcome"].pop("num_tokens")
    outcome["model"].pop("quantization_config", None)
    outcome["data"] = {**examples.describe(), "tokenizer_hash": tokenizer_hash(base.tokenizer)}
    outcome["prompt_layout"] = examples.layout
    outcome["num_examples"] = plan.num_steps * plan.blocks_per_step
    described["logistics"] |= {
        "num_tokens": tokens,
        "num_completion_tokens": plan.num_completion_tokens,
        "num_train_epochs": plan.passes,  # Trainer has 1: it reads all passes as one data set
    }
    return described
