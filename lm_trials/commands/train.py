r"""Train a causal language model: from random weights, or from a checkpoint.

    lm-trials train --dataset_name stories.jsonl
    lm-trials train --dataset_name generated --vocab_size 1000 \
        --config_name demo --learning_rate 4e-3 --max_steps 500
    lm-trials train --dataset_name generated --vocab_size 1000 \
        --model_type qwen3 --config_overrides num_hidden_layers=6
    lm-trials train --dataset_name stories.jsonl --tokenizer_name FOLDER \
        --config_overrides n_embd=512,n_layer=8,n_head=8
    lm-trials train --model_name_or_path runs/demo \
        --dataset_name filter-adv-Twist --eval_datasets filter-Twist \
        --learning_rate 1e-4 --lr_scheduler_type constant --max_steps 400
    accelerate launch --config_file accelerate_configs/cpu_two_processes.yaml \
        train_gpt2.py --config demo

If no model, shape, tokenizer or recipe is given, the recipe start_cpu or start_gpu
is used and a tokenizer is trained on the data.  All flags of
transformers.TrainingArguments work (see --help_all).  --config FILE.yaml reads flags
from a file.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from lm_trials.console import load_libraries, note, script
from lm_trials.flags import check_given, parse_arguments
from lm_trials.training.flags import CommonTrainingArguments, DataArguments, ModelArguments, check_training


def run_arguments() -> type:
    """Load the full class of training arguments, and torch with it."""
    from lm_trials.training.run_arguments import RunArguments

    return RunArguments


def with_recipe(argv: list[str]) -> list[str]:
    """Add the recipe for this device to a command line that names no model, shape, tokenizer or recipe.

    >>> with_recipe(["--config", "demo"])
    ['--config', 'demo']
    """
    named = {"config", "model_name_or_path", "model_dir", "config_name", "config_overrides", "model_type"}
    if "_ARGCOMPLETE" in os.environ:  # Tab must not wait for torch
        return argv
    flags: dict[str, str] = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags[name.replace("-", "_")] = value if equals else following
    if flags.keys() & {*named, "arm", "vocab_size", "tokenizer_name", "help", "help_all", "do_eval"} or "-h" in argv:
        return argv
    check_given((DataArguments, ModelArguments, CommonTrainingArguments), argv)
    load_libraries()
    from torch.cuda import is_available

    recipe = "start_gpu" if is_available() and "use_cpu" not in flags else "start_cpu"
    note(f"no model, shape, tokenizer or recipe is named: using --config {recipe}")
    more = []
    # The default, 1 %, may select no story of a small file.
    data = flags.get("dataset_name", "")
    files = Path(data).is_file() or all(Path(part).is_file() for part in data.split("+"))
    if files and "validation_split_percentage" not in flags:
        more += ["--validation_split_percentage", "5"]
    # The recipe's number of updates would win over passes, and be refused beside a number of tokens.
    if flags.keys() & {"num_train_epochs", "max_train_tokens"}:
        more += ["--max_steps", "-1"]
    return ["--config", recipe, *more, *argv]


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, save and evaluate; returns the metrics of the final evaluation."""
    own = (DataArguments, ModelArguments)
    data_args, model_args, args = parse_arguments(
        with_recipe(list(sys.argv[1:] if argv is None else argv)),
        own,
        __doc__ or "",
        common=CommonTrainingArguments,
        full=run_arguments,
        prog="lm-trials train",
        check=check_training,
    )
    from lm_trials.data.datasets import dataset_of
    from lm_trials.models.reference import load_model, load_on, positions_of, resolve_model
    from lm_trials.training import hub
    from lm_trials.training.callbacks import CheckpointLadder, DenseEvaluation, GenerationPlan
    from lm_trials.training.checkpoints import run_identity
    from lm_trials.training.initial import choose_initial
    from lm_trials.training.launch import check_processes
    from lm_trials.training.manifest import continued, describe_run, write_run
    from lm_trials.training.plan import check_best, name_run, plan_run
    from lm_trials.training.run_folder import Start, claim_output_dir, prepare_output_dir
    from lm_trials.training.session import announce, finish, say_finished, train_from
    from lm_trials.training.snapshots import check_saved_arguments, choose_snapshots, saved_facts, story_texts
    from lm_trials.training.stores import open_stores, sets_to_write_for
    from lm_trials.training.trainer import StoryTrainer
    from lm_trials.training.window_metrics import choose_window_metrics

    check_best(args, data_args)
    check_saved_arguments(args, model_args)
    check_processes(args.distributed_state)
    hub.check_push(args)
    with args.main_process_first(desc="the tokenizer"):
        initial = choose_initial(model_args, data_args)
    if args.do_train:
        initial.check_memory(args)
    name_run(args, model_args.config_name or initial.name, data_args)
    with args.main_process_first(desc="the data"):
        windows = choose_window_metrics(model_args.window_metrics, dataset_of(data_args).members)
        stores = open_stores(data_args, initial.tokenizer, args.dataloader_num_workers)

    documents_apart = not data_args.attention_across_documents
    model = initial.load(args.seed, documents_apart) if args.do_train else load_model(resolve_model(args.output_dir))
    plan = plan_run(args, data_args, stores)
    described = describe_run(args, [data_args, model_args], model.config, plan, stores.described, initial.describe())
    texts = story_texts(stores.validation, plan.block_size)
    snapshots = choose_snapshots(model_args, texts, initial.tokenizer, partial(load_on, args.device))
    start = Start()
    if args.do_train:
        again = model_args.overwrite_output_dir, model_args.accept_other_code
        start = claim_output_dir(args, described, *again, [model_args.model_name_or_path])
        if start.finished:
            metrics = say_finished(Path(args.output_dir))
            hub.push_finished(args)
            return metrics
        if start.checkpoint:
            stores.check_unchanged()
        announce(args, data_args, model, plan, stores, initial, saved_facts(args, model_args, plan, snapshots, model))
    hub.open_repository(args)
    args.distributed_state.wait_for_everyone()  # every process has checked the folder before one changes it
    if args.should_save and args.do_train:
        described = continued(described, Path(start.checkpoint)) if start.checkpoint else described
        prepare_output_dir(args, start)
        write_run(Path(args.output_dir), described)
        initial.tokenizer.save_pretrained(args.output_dir)  # `lm-trials order` needs it before training ends
    trainer = StoryTrainer(
        model=model,
        args=args,
        train_dataset=stores.blocks(data_args, plan.num_blocks, args.data_seed, plan.blocks_per_step),
        eval_dataset=stores.validation,
        processing_class=initial.tokenizer,
        eval_block_size=plan.block_size,
        max_eval_samples=data_args.max_eval_samples,
        num_sampled_stories=model_args.num_sampled_stories,
        sample_tokens=model_args.sample_tokens,
        named_eval_datasets=stores.named,
        part_names=[part.name for part in stores.parts] if stores.mix else (),
        separator=data_args.document_separator,
        sentences_with=data_args.sentences_with,
        generations=GenerationPlan(
            sets_to_write_for(stores, data_args, positions_of(model)),
            Path(data_args.data_cache_dir),
            data_args.generate_every,
            data_args.num_generations,
            data_args.generation_tokens,
        ),
    )
    trainer.run_identity, trainer.snapshots = run_identity(described), snapshots
    trainer.add_callback(
        DenseEvaluation(data_args.dense_eval_steps, data_args.dense_eval_spacing, args.eval_steps, plan.num_steps)
    )
    if windows:
        windows.add_to(trainer)
    if model_args.checkpoint_ladder:
        trainer.add_callback(CheckpointLadder(trainer))
    if args.do_train:
        train_from(trainer, start.checkpoint)
        trainer.save_model()
    return finish(trainer)


if __name__ == "__main__":
    main()
