r"""Learn from preferences (DPO) or from rewards of sampled completions (GRPO).

With a LoRA adapter on a run, a model or an 8-bit base; an adapter is trained further:

    lm-trials align --method dpo --model_name_or_path runs/teller \
        --dataset_name teller-preferences
    lm-trials align --method dpo --model_name_or_path runs/teller-lora8 \
        --dataset_name preferences.jsonl
    lm-trials align --method grpo --model_name_or_path runs/teller \
        --dataset_name generated-instruct-prompt \
        --reward_funcs words ends mine.py:rhymes --reward_weights 1 0.5 0.5

Preferences have the columns prompt, chosen and rejected (texts or messages).  Rewards
read the completions of a column prompt, and the other columns.  All flags of
trl.DPOConfig and trl.GRPOConfig work (see --method NAME --help_all).
--config FILE.yaml reads flags from a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, script
from lm_trials.flags import parse_arguments
from lm_trials.training.alignment_flags import CommonAlignmentArguments, MethodArguments
from lm_trials.training.tuning_flags import Adapter, PairData, check_targets


def run_arguments(method: str) -> type:
    """Load the full class of training arguments of a method, and torch and trl with it."""
    from lm_trials.training.alignment_run_arguments import DpoRunArguments, GrpoRunArguments

    return GrpoRunArguments if method == "grpo" else DpoRunArguments


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, save and evaluate; returns the metrics of the final evaluation."""
    argv = sys.argv[1:] if argv is None else argv
    chosen = ["grpo" if {"grpo", "--method=grpo"} & {*argv} else "dpo"]  # for --help_all, which parses no flag

    def check(data_args: PairData, adapter_args: Adapter, method_args: MethodArguments) -> None:
        check_targets(adapter_args)
        if method_args.method == "grpo" and data_args.overlong != "drop":
            raise UsageError("--method grpo and --overlong cannot be combined; remove one of them")
        chosen.append(method_args.method)

    data_args, adapter_args, method_args, args = parse_arguments(
        argv,
        (PairData, Adapter, MethodArguments),
        __doc__ or "",
        CommonAlignmentArguments,
        lambda: run_arguments(chosen[-1]),
        "lm-trials align",
        check,
    )
    from lm_trials.training import hub
    from lm_trials.training.alignment import (
        announce_alignment,
        check_method,
        choose_reference,
        choose_rewards,
        describe_alignment,
        ends_of_answers,
        evaluation_line,
        finish_alignment,
        load_reference,
    )
    from lm_trials.training.alignment_examples import open_alignment, plan_preferences, plan_rewards
    from lm_trials.training.alignment_trainer import PreferenceTuner, RewardTuner
    from lm_trials.training.fine_tuning import (
        begin,
        carry_out,
        check_tunable,
        choose_start,
        describe_tuning,
        finished_weights,
        load_base,
        quantized,
    )
    from lm_trials.training.launch import check_processes
    from lm_trials.training.manifest import describe_run
    from lm_trials.training.merging import is_merged
    from lm_trials.training.plan import name_run
    from lm_trials.training.session import say_finished
    from lm_trials.training.tuning_examples import choose_padding
    from lm_trials.training.tuning_trainer import make_trainer

    is_dpo = method_args.method == "dpo"
    check_processes(args.distributed_state)
    check_method(args, adapter_args, method_args)
    hub.check_push(args)
    quantized(args, adapter_args)  # refused before the data are prepared
    base = choose_start(adapter_args)
    reference = choose_reference(method_args, base)
    if adapter_args.full_finetune and args.do_train:
        base.check_memory(args)
    name_run(args, f"{base.name}-{method_args.method}", data_args)
    with args.main_process_first(desc="the data"):
        data = open_alignment(data_args, args, base)
    plan, rows = plan_preferences(args, data) if is_dpo else plan_rewards(args, data)
    model = load_base(base, args, adapter_args)
    check_tunable(model, base, args)
    choose_padding(base.tokenizer, model)
    more: dict[str, Any] = {"ref_model": load_reference(reference, base, args, adapter_args)} if is_dpo else {}
    rewards: list[Any] = []
    if not is_dpo:
        ends = ends_of_answers(base, model, data)
        rewards, held_out = choose_rewards(method_args, args, data_args, data, ends)
        more = {"reward_funcs": rewards, "held_out": held_out, "ends": ends}
        more["eval_rows"] = data.asked_rows("validation")
    given = [data_args, adapter_args, method_args]
    described = describe_run(args, given, model.config, plan, {}, base.describe())
    describe_tuning(described, data, base, plan)
    describe_alignment(described, base, reference, rewards)
    start, identity = begin(args, adapter_args, described)
    folder = Path(args.output_dir)
    if args.do_train and start.finished and is_merged(adapter_args, args.output_dir):
        metrics = say_finished(folder, data.prompt(), evaluation_line)
        hub.push_finished(args)
        return metrics
    if start.finished:  # it is evaluated, or what is left is to merge it
        args.do_train = False
        model = finished_weights(model, folder, adapter_args.dtype)
    else:
        announce_alignment(args, adapter_args, model, base, plan, data, data_args, reference, rewards)
    hub.open_repository(args)
    args.distributed_state.wait_for_everyone()  # every process has checked the folder before one changes it
    kind: type[Any] = PreferenceTuner if is_dpo else RewardTuner
    trainer = make_trainer(
        kind,
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=base.tokenizer,
        eval_store=data.validation,
        max_eval_samples=data_args.max_eval_samples,
        initial_adapter=base.adapter is not None,
        **more,
    )
    trainer.run_identity = identity
    carry_out(trainer, start, described)
    return finish_alignment(trainer, adapter_args, data)


if __name__ == "__main__":
    main()
