"""A fine-tuning session: the base and its adapter, what is said before and after, the merged model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from lm_trials.console import UsageError, note, show_facts
from lm_trials.data.folders import finished_folder
from lm_trials.data.tokenizers import tokenizer_hash
from lm_trials.evaluation.example_losses import loss_difference, loss_estimates, write_examples
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
    RUN_FILE,
    ModelReference,
    check_base,
    load_config,
    load_model,
    load_tokenizer_of,
    read_run,
    resolve_model,
)
from lm_trials.models.shapes import set_causal_loss
from lm_trials.reporting.figures import loss_figure
from lm_trials.sums import weights_digest
from lm_trials.tables import read_object
from lm_trials.training.checkpoints import mark_finished
from lm_trials.training.examples import Examples, FineTuningPlan
from lm_trials.training.hub import push
from lm_trials.training.session import LOSS_PICTURE
from lm_trials.training.sft_arguments import AdapterArguments
from lm_trials.training.sft_trainer import FineTuner, both_losses


@dataclass(frozen=True)
class Base:
    """What a fine-tuning starts from, checked and not yet loaded.

    Attributes:
        adapter: whose weights the new adapter begins with; None for fresh ones.
    """

    reference: ModelReference
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    adapter: ModelReference | None = None

    @property
    def name(self) -> str:
        """Name for the run."""
        return Path(self.reference.path).name

    def describe(self) -> dict[str, Any]:
        """Return what identifies the weights in `run.json`."""
        described: dict[str, Any] = {"name_or_path": self.reference.name}
        folder = Path(self.reference.path)
        if folder.is_dir():
            described["weights_sha256"] = weights_digest(folder)
            if run := read_run(folder):
                described["run"] = {"run_name": run.get("run_name"), "replicate": run["replicate"]}
        elif commit := getattr(self.config, "_commit_hash", None):
            described["commit"] = commit
        if self.adapter:
            described["adapter"] = weights_digest(Path(self.adapter.path))
        return described

    def load(
        self, args: TrainingArguments, adapter_args: AdapterArguments, finished: Path | None = None
    ) -> PreTrainedModel | PeftModel:
        """Load the base, quantized if asked, and put the adapter on it, or make all of it trainable.

        Args:
            finished: folder of a finished run, whose weights are loaded instead of fresh ones.

        Raises:
            UsageError: where this machine cannot, where a module that is named is not there, or where the adapter to
                begin with does not fit.
        """
        spec = lora_spec(adapter_args)
        dtype = getattr(torch, adapter_args.dtype)
        computed_in = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        how = quantization(adapter_args.load_in_8bit, adapter_args.load_in_4bit, args.device.type, computed_in)
        if finished and adapter_args.full_finetune:
            return load_model(resolve_model(str(finished)), dtype)
        model = load_model(self.reference, dtype, how, **_init_kwargs(args))
        if adapter_args.full_finetune:
            return model
        adapted = add_lora(model, spec, args.seed)
        if begun_with := finished or (self.adapter and Path(self.adapter.path)):
            load_adapter_weights(adapted, begun_with)
        set_causal_loss(adapted)
        return adapted


def _init_kwargs(args: TrainingArguments) -> dict[str, Any]:
    kwargs = args.model_init_kwargs or {}
    kwargs = json.loads(kwargs) if isinstance(kwargs, str) else dict(kwargs)
    for name in ("dtype", "torch_dtype", "quantization_config", "revision", "trust_remote_code"):
        if name in kwargs:
            raise UsageError(f"--model_init_kwargs: {name} has a flag of its own or is not taken; leave it out there")
    return kwargs


def lora_spec(adapter_args: AdapterArguments) -> LoraSpec:
    """Return what the adapter is to be.

    Raises:
        UsageError: for numbers that mean nothing.
    """
    spec = LoraSpec(
        adapter_args.lora_r,
        adapter_args.lora_alpha,
        adapter_args.lora_dropout,
        tuple(name for given in adapter_args.lora_target_modules for name in given.split(",") if name),
        adapter_args.use_dora,
        adapter_args.use_rslora,
    )
    spec.check(adapter_args.load_in_8bit)
    return spec


def choose_base(adapter_args: AdapterArguments) -> Base:
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
    return Base(reference, load_config(reference), load_tokenizer_of(reference), adapter)


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


def announce_tuning(
    args: TrainingArguments,
    adapter_args: AdapterArguments,
    model: PreTrainedModel | PeftModel,
    base: Base,
    plan: FineTuningPlan,
    examples: Examples,
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
            "validation data": f"{len(examples.validation):,} examples",
            "updates": f"{plan.num_steps:,} of {plan.blocks_per_step} {rows}, {plan.passes:.2f} passes",
            "device": f"{device}, {args.world_size} process{'es' if args.world_size > 1 else ''}, "
            f"{'float32' if args.mixed_precision == 'no' else args.mixed_precision}",
            "results": args.output_dir,
        },
    )
    note_untrained_end(base, adapter_args)


def note_untrained_end(base: Base, adapter_args: AdapterArguments) -> None:
    """Say so where a base has never seen the EOS that it is to write: LoRA leaves its tokens' rows as they are."""
    run = read_run(Path(base.reference.path)) or {"outcome": {}}
    if run["outcome"].get("append_eos") is False and not adapter_args.full_finetune:
        note(
            f"note: {base.reference.name} was trained without EOS, and LoRA leaves embeddings and output head as they "
            "are: it will hardly learn where to end; train the base with --append_eos True, or all of it with "
            "--full_finetune True"
        )


def _too_long(counts: Mapping[str, int], max_length: int) -> str:
    if not counts["overlong"]:
        return f"none has more than {max_length:,} tokens"
    became = f"{counts['dropped']:,} dropped, {counts['cut']:,} cut"
    return f"{counts['overlong']:,} with more than {max_length:,} tokens: {became}"


def finish_tuning(trainer: FineTuner, adapter_args: AdapterArguments, examples: Examples) -> dict[str, float]:
    """Evaluate, merge if asked, write metrics, picture and state, say where all lies, push; returns the metrics."""
    folder, trained = Path(trainer.args.output_dir), trainer.args.do_train
    metrics = trainer.final_metrics()
    trainer.save_metrics("eval", metrics)
    merged = merge_output(trainer, adapter_args)  # before it is finished: a killed merge is made up for
    if not trainer.is_world_process_zero():
        return metrics
    if metrics:
        name = f"{examples.pairs.described['name']}-completions"
        settings = {"layout": examples.layout, "dataset_name": [examples.pairs.name], "scored": "completions"}
        write_examples(folder / "eval" / name, examples.validation, trainer.sums_NK, trainer.processing_class, settings)
    if trained:
        # The loss that is trained on; that of the prompts, which nobody learns, would flatten it.
        drawn = [
            {key: value for key, value in row.items() if not key.startswith(("eval_completion", "eval_unmasked"))}
            for row in trainer.state.log_history
        ]
        loss_figure(drawn, title=trainer.args.run_name).savefig(folder / LOSS_PICTURE, dpi=150)
        trainer.save_state()
        mark_finished(folder, trainer.state.global_step, trainer.run_identity)
    model = trainer.accelerator.unwrap_model(trainer.model)
    facts = {
        "validation": both_losses(metrics) if metrics else "no validation examples",
        "adapter" if isinstance(model, PeftModel) else "model": str(folder),
        **merged,
        "loss curve": str(folder / LOSS_PICTURE),
        "next": f"python -m lm_trials.evaluation.generate --model {folder} --prompt '...'",
    }
    show_facts("done", facts)
    push(trainer)
    return metrics


def merge_output(trainer: FineTuner, adapter_args: AdapterArguments) -> dict[str, str]:
    """Merge the adapter into the base's unquantized weights and measure what that changes; returns facts to show."""
    if not adapter_args.merge_output:
        return {}
    destination, folder = Path(adapter_args.merge_output), Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        merge_adapter(folder, destination)
    trainer.accelerator.wait_for_everyone()
    facts = {"merged model": str(destination)}
    if trainer.eval_store:
        merged = load_model(resolve_model(str(destination))).to(trainer.args.device)
        before_NK, after_NK = trainer.evaluation_sums(), trainer.evaluation_sums(merged)
        loss, difference = loss_estimates(after_NK)["completion"]["loss"], loss_difference(after_NK, before_NK)
        facts["loss when merged"] = f"{loss}; merged less unmerged {_signed(difference)}"
    return facts


def _signed(difference: Any) -> str:
    limits = "" if math.isnan(difference.lower) else f" [{difference.lower:+.1e}, {difference.upper:+.1e}]"
    return f"{difference.estimate:+.1e}{limits}"


def check_merge(adapter_args: AdapterArguments, output_dir: str) -> None:
    """Refuse a place for the merged model that is taken, before anything is trained.

    Raises:
        UsageError: for a folder with something else in it than what this run merged, or a file.
    """
    if not adapter_args.merge_output:
        return
    destination, adapter = Path(adapter_args.merge_output), Path(output_dir)
    if destination.resolve() == adapter.resolve():
        raise UsageError(f"--merge_output {destination} is the run's own folder; name another")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir()) and not _merged(destination)):
        raise UsageError(f"--merge_output {destination} is not empty; name another folder, or remove it")


def _merged(destination: Path) -> str | None:
    """Return the SHA-256 of the adapter that a folder's model was merged from; None where it is none of ours."""
    run = read_run(destination) if (destination / RUN_FILE).is_file() else None
    return run.get("merged_from", {}).get("adapter_sha256") if run else None


def is_merged(adapter_args: AdapterArguments, output_dir: str) -> bool:
    """Say whether there is nothing to merge any more."""
    return not adapter_args.merge_output or _merged(Path(adapter_args.merge_output)) == weights_digest(Path(output_dir))


def merge_adapter(adapter: Path, destination: Path) -> None:
    """Merge an adapter into its base's full-precision weights and save model and tokenizer, whole or not at all.

    Merging into quantized weights would quantize the sum once more: nf4 changes it beyond use.

    Raises:
        UsageError: for an adapter that does not fit its base.
    """
    import shutil

    reference = resolve_model(str(adapter))
    check_base(reference)
    model = load_model(reference)
    merged = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    if destination.exists():
        shutil.rmtree(destination)
    with finished_folder(destination) as unfinished:
        merged.save_pretrained(unfinished)
        load_tokenizer_of(reference).save_pretrained(unfinished)
        if (adapter / RUN_FILE).is_file():
            run = read_object(adapter / RUN_FILE)
            run["merged_from"] = {"run_name": run.get("run_name"), "adapter_sha256": weights_digest(adapter)}
            (unfinished / RUN_FILE).write_text(json.dumps(run, indent=2, sort_keys=True) + "\n")
    note(f"note: merged into the unquantized weights of {reference.base}")


def describe_tuning(described: dict[str, Any], examples: Examples, base: Base, plan: FineTuningPlan) -> dict[str, Any]:
    """Complete what `describe_run` says of a fine-tuning, in place, and return it.

    How the base is quantized, its flags say.  The number of tokens goes with the order of the examples, and so with the
    seed: it is no outcome; the number of examples is.
    """
    outcome, tokens = described["outcome"], described["outcome"].pop("num_tokens")
    outcome["model"].pop("quantization_config", None)
    outcome["data"] = {**examples.describe(), "tokenizer_hash": tokenizer_hash(base.tokenizer)}
    outcome["layout"] = examples.layout
    outcome["num_examples"] = plan.num_steps * plan.blocks_per_step
    described["logistics"] |= {"num_tokens": tokens, "num_completion_tokens": plan.num_completion_tokens}
    return described
