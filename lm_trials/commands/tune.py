r"""Fine-tune a causal language model on prompts and completions.

LoRA (also on an 8-bit or 4-bit base model), or all weights:

    lm-trials tune --model_name_or_path runs/demo \
        --dataset_name generated-instruct-prompt --lora_r 8
    lm-trials tune --model_name_or_path runs/demo --dataset_name pairs.jsonl \
        --load_in_8bit --merge_output runs/merged
    lm-trials tune --model_name_or_path runs/demo --dataset_name pairs.jsonl \
        --full_finetune True
    accelerate launch --config_file accelerate_configs/cpu_two_processes.yaml \
        sft_lora.py --model_name_or_path runs/demo --dataset_name pairs.jsonl

Rows have the columns prompt and completion (texts or messages), messages, or text.
All flags of trl.SFTConfig work (see --help_all).  --config FILE.yaml reads flags from
a file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.training.tuning_flags import AdapterArguments, CommonSftArguments, PairArguments, check_tuning


def run_arguments() -> type:
    """Load the full class of training arguments, and torch and trl with it."""
    from lm_trials.training.tuning_run_arguments import SftRunArguments

    return SftRunArguments


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune, save, evaluate and merge; returns the metrics of the final evaluation."""
    pair_args, adapter_args, args = parse_arguments(
        argv,
        (PairArguments, AdapterArguments),
        __doc__ or "",
        CommonSftArguments,
        run_arguments,
        "lm-trials tune",
        check_tuning,
    )
    import torch

    from lm_trials.data.datasets import open_prepared
    from lm_trials.models.reference import load_on
    from lm_trials.training import hub
    from lm_trials.training.callbacks import CheckpointLadder
    from lm_trials.training.fine_tuning import (
        announce_tuning,
        begin,
        carry_out,
        check_tunable,
        choose_start,
        describe_tuning,
        finish_tuning,
        finished_weights,
        load_base,
        quantized,
    )
    from lm_trials.training.launch import check_processes
    from lm_trials.training.manifest import describe_run
    from lm_trials.training.merging import is_merged
    from lm_trials.training.plan import name_run
    from lm_trials.training.session import say_finished
    from lm_trials.training.snapshots import check_saved_arguments, choose_snapshots, example_texts, saved_facts
    from lm_trials.training.tuning_examples import choose_padding, end_at_turns, open_examples, plan_fine_tuning
    from lm_trials.training.tuning_trainer import FineTuner, make_trainer
    from lm_trials.training.window_metrics import choose_window_metrics

    check_processes(args.distributed_state)
    check_saved_arguments(args, adapter_args)
    hub.check_push(args)
    quantization = quantized(args, adapter_args)  # refused before the data are prepared
    base = choose_start(adapter_args)
    if adapter_args.full_finetune and args.do_train:
        base.check_memory(args)
    name_run(args, base.name, pair_args)
    with args.main_process_first(desc="the data"):
        examples = open_examples(pair_args, args, base.tokenizer, base.config)
        dataset = open_prepared(examples.folder.parent.name, pair_args.data_cache_dir, "dataset_name")
        windows = choose_window_metrics(adapter_args.window_metrics, [dataset])
    plan, rows = plan_fine_tuning(args, pair_args, examples, examples.rows(args))
    model = load_base(base, args, adapter_args)
    check_tunable(model, base, args)
    choose_padding(base.tokenizer, model)
    end_at_turns(base.tokenizer, model)
    described = describe_run(args, [pair_args, adapter_args], model.config, plan, {}, base.describe())
    describe_tuning(described, examples, base, plan)
    start, identity = begin(args, adapter_args, described)
    folder = Path(args.output_dir)
    if args.do_train and start.finished and is_merged(adapter_args, args.output_dir):
        metrics = say_finished(folder, examples.prompt())
        hub.push_finished(args)
        return metrics
    texts = example_texts(examples.validation, examples.completion_only)
    load = partial(load_on, args.device, dtype=getattr(torch, adapter_args.dtype), quantization_config=quantization)
    snapshots = choose_snapshots(adapter_args, texts, base.tokenizer, load)
    if start.finished:  # it is evaluated, or what is left is to merge it
        args.do_train = False
        model = finished_weights(model, folder, adapter_args.dtype)
    else:
        saved = saved_facts(args, adapter_args, plan, snapshots, model)
        announce_tuning(args, adapter_args, model, base, plan, examples, pair_args, saved)
    hub.open_repository(args)
    args.distributed_state.wait_for_everyone()  # every process has checked the folder before one changes it
    trainer = make_trainer(
        FineTuner,
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=base.tokenizer,
        eval_store=examples.validation,
        completion_only=examples.completion_only,
        max_eval_samples=pair_args.max_eval_samples,
    )
    trainer.run_identity, trainer.snapshots = identity, snapshots
    if windows:
        windows.add_to(trainer)
    if adapter_args.checkpoint_ladder:
        trainer.add_callback(CheckpointLadder(trainer))
    carry_out(trainer, start, described)
    return finish_tuning(trainer, adapter_args, examples)


if __name__ == "__main__":
    main()
