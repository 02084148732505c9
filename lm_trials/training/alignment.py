"""An alignment: its reference, its rewards, the facts shown before and after it, the files written at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lm_trials.console import UsageError, show_facts
from lm_trials.evaluation.held_out import HeldOut
from lm_trials.evaluation.judges import open_judges
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.models.adapters import merged
from lm_trials.models.reference import (
    load_config,
    load_model,
    load_tokenizer_of,
    read_run,
    resolve_model,
)
from lm_trials.rewards.functions import Reward, open_rewards, reward_values
from lm_trials.run_fields import lineage_of
from lm_trials.tokens.tokenizers import tokenizer_hash
from lm_trials.training.alignment_examples import AlignmentData
from lm_trials.training.alignment_flags import MethodArguments
from lm_trials.training.alignment_run_arguments import DpoRunArguments, GrpoRunArguments
from lm_trials.training.alignment_trainer import (
    PreferenceTuner,
    RewardTuner,
    as_answer,
    preference_line,
    reward_line,
)
from lm_trials.training.fine_tuning import held_out_fact, model_facts, note_untrained_end, quantized
from lm_trials.training.hub import push
from lm_trials.training.initial import InitialModel
from lm_trials.training.merging import is_merged, merge_adapter
from lm_trials.training.plan import Plan
from lm_trials.training.session import LOSS_PICTURE, device_facts, next_command, write_end
from lm_trials.training.tuning_flags import Adapter, PairData


def check_method(args: DpoRunArguments | GrpoRunArguments, adapter_args: Adapter, method_args: MethodArguments) -> None:
    """Refuse flags that have no effect with the others, and unknown rewards.

    Raises:
        UsageError: for dropout that trl switches off; as `open_rewards`.
    """
    if isinstance(args, GrpoRunArguments):
        open_rewards(method_args.reward_funcs, args.reward_weights)
    if adapter_args.lora_dropout and args.disable_dropout:
        raise UsageError(
            f"--lora_dropout {adapter_args.lora_dropout:g} has no effect with --disable_dropout True, the default of "
            f"--method {method_args.method}; give --disable_dropout False, or remove it"
        )


def choose_reference(method_args: MethodArguments, base: InitialModel) -> InitialModel | None:
    """Return `--ref_model_name_or_path`, not loaded; None without it.

    Raises:
        UsageError: for a model of another tokenizer.
    """
    if method_args.ref_model_name_or_path is None:
        return None
    reference = resolve_model(method_args.ref_model_name_or_path)
    tokenizer = load_tokenizer_of(reference)
    if tokenizer_hash(tokenizer) != tokenizer_hash(base.tokenizer):
        raise UsageError(
            f"--ref_model_name_or_path {reference.name} has another tokenizer than {base.name}, and log probabilities "
            "of other tokens cannot be compared; give a model with the same tokenizer"
        )
    return InitialModel(load_config(reference), tokenizer, reference)


def load_reference(
    named: InitialModel | None, base: InitialModel, args: DpoRunArguments | GrpoRunArguments, adapter_args: Adapter
) -> PreTrainedModel | None:
    """Load the reference model of dpo; None where it is the model without its adapter, or with its initial one."""
    if named is None and not (adapter_args.full_finetune and isinstance(args, DpoRunArguments)):
        return None
    reference = (named or base).reference
    assert reference is not None  # choose_start and choose_reference set it
    model: Any = load_model(reference, getattr(torch, adapter_args.dtype), quantized(args, adapter_args))
    return merged(model, reference.name) if isinstance(model, PeftModel) else model


def choose_rewards(
    method_args: MethodArguments, args: GrpoRunArguments, data_args: PairData, data: AlignmentData, ends: Sequence[int]
) -> tuple[list[Reward], HeldOut]:
    """Return the rewards and the judges beside them.

    Raises:
        UsageError: as `open_rewards`, and for a reward that cannot score the first two prompts, or applies to none.
    """
    folder = Path(data_args.data_cache_dir)
    judge, *others = open_judges(method_args.feature_judge, method_args.judge_corpus, folder, args.seed).values()
    rewards = open_rewards(method_args.reward_funcs, args.reward_weights, judge, ends)
    rows = data.asked_rows("train").remove_columns(["prompt_ids"])
    first = [rows[number] for number in range(min(2, len(rows)))]
    answers = [row.get("completion") or row.get("chosen") or as_answer(row["prompt"], "A cat sat.") for row in first]
    reward_values(rewards, first, answers, [[ends[0]]] * len(first))  # before the model is trained for an hour
    for reward in rewards:
        if reward.column and not any(row[reward.column] for row in rows):
            raise UsageError(
                f"--reward_funcs {reward.given}: the column {reward.column} of {data.pairs.name} is empty in each of "
                f"{len(rows):,} training prompts, so nothing is rewarded; remove it, or give another data set"
            )
    always = tuple(name for reward in rewards for name in reward.features)
    return rewards, HeldOut(others[0] if others else None, None, always)


def ends_of_answers(base: InitialModel, model: Any, data: AlignmentData) -> list[int]:
    """Return the ids that end a completion in the layout of the prompts."""
    return Storyteller(base.name, model, base.tokenizer, "chat" if data.layout == "chat" else "instruct").ends


def describe_alignment(
    described: dict[str, Any], base: InitialModel, reference: InitialModel | None, rewards: Sequence[Reward]
) -> None:
    """Complete the `run.json` fields of `describe_tuning` for an alignment, in place.

    Models and files of rewards are outcomes by their content, and logistics by their names.
    """
    outcome, logistics = described["outcome"], described["logistics"]
    if base.adapter:  # whose run is the stage before, and not its base's
        outcome["initial_model"]["name_or_path"] = base.adapter.name
        run = read_run(Path(base.adapter.path)) or {}
        own = {"run": {"run_name": run.get("run_name"), "replicate": run.get("replicate")}} if run else {}
        outcome["initial_model"] = {k: v for k, v in outcome["initial_model"].items() if k != "run"} | own
        del described["lineage"]
        described["lineage"] = lineage_of(described)
    outcome["reference_model"] = reference.describe() if reference else None
    outcome["rewards"] = [{**reward.described, "weight": reward.weight} for reward in rewards]
    if rewards:
        outcome["num_generations"] = logistics.pop("num_generations")  # in a pretraining, stories for the log
        for name in ("num_tokens", "num_completion_tokens"):
            logistics[name] = None  # of completions that are not sampled yet


def announce_alignment(
    args: DpoRunArguments | GrpoRunArguments,
    adapter_args: Adapter,
    model: Any,
    base: InitialModel,
    plan: Plan,
    data: AlignmentData,
    data_args: PairData,
    reference: InitialModel | None,
    rewards: Sequence[Reward],
) -> None:
    """Show the model, data and length of an alignment before it starts."""
    assert base.reference is not None  # choose_start sets it
    counts, unit = data.counts, "prompts" if rewards else "pairs"
    beside = "not read (--beta 0)" if rewards and not args.beta else "the base" if base.adapter is None else None
    named = reference.reference.name if reference and reference.reference else None
    facts = {
        **model_facts(model, adapter_args),
        "training data": f"{counts['examples']:,} {unit}, {counts['tokens']:,} tokens, layout {data.layout}",
    }
    if counts["overlong"]:
        dropped = f"{counts['dropped']:,} dropped, {counts['cut']:,} cut"
        facts[f"over {data.max_length:,} tokens"] = f"{counts['overlong']:,} pairs: {dropped}"
    facts["reference"] = named or beside or f"the initial adapter, {adapter_args.adapter_name_or_path}"
    if isinstance(args, GrpoRunArguments):
        facts["rewards"] = ", ".join(f"{reward.weight:g} x {reward.__name__}" for reward in rewards)
        facts["completions"] = (
            f"{args.num_generations} of each prompt, at most {args.max_completion_length:,} tokens, temperature "
            f"{args.temperature:g}"
        )
    passes = "" if plan.passes is None else f", {plan.passes:.2f} passes"
    show_facts(
        f"{args.run_name}: {'grpo' if rewards else 'dpo'} from {(base.adapter or base.reference).name}",
        {
            **facts,
            "validation data": held_out_fact(len(data.validation), unit, data_args.max_eval_samples),
            "updates": f"{plan.num_steps:,} of {plan.blocks_per_step} {'completions' if rewards else unit}{passes}",
            "device": device_facts(args),
            "output": args.output_dir,
        },
    )
    note_untrained_end(base, adapter_args)


def finish_alignment(
    trainer: PreferenceTuner | RewardTuner, adapter_args: Adapter, data: AlignmentData
) -> dict[str, float]:
    """Evaluate, write and show the results, merge if asked, and push; returns the metrics."""
    folder = Path(trainer.args.output_dir)
    metrics = trainer.final_metrics()
    trainer.save_metrics("eval", metrics)
    if not trainer.is_world_process_zero():
        return metrics
    if trainer.args.do_train:
        write_end(trainer, trainer.state.log_history)
    kind = "model" if adapter_args.full_finetune else "adapter"
    facts = {"validation": evaluation_line(metrics), kind: str(folder)}
    if not is_merged(adapter_args, str(folder)):  # after finished.json: a merge that fails loses nothing
        destination = Path(str(adapter_args.merge_output))
        merge_adapter(folder, destination, trainer.run_identity, getattr(torch, adapter_args.dtype))
        facts["merged model"] = str(destination)
    facts |= {"loss curve": str(folder / LOSS_PICTURE), "next": next_command(folder, data.prompt())}
    show_facts("done", facts)
    push(trainer)
    return metrics


def evaluation_line(metrics: Mapping[str, float]) -> str:
    """Return the evaluation of either method in one line."""
    if not metrics:
        return "no validation data"
    return preference_line(metrics) if "eval_loss" in metrics else reward_line(metrics)
