r"""Evaluate models on data sets: loss, perplexity, accuracy, bits per byte.

Every number has a 95 % interval over stories.  The validation split of the
run's own data (the default), that of a corpus, and a file, which is read whole:

    lm-trials evaluate --model_name_or_path runs/demo
    lm-trials evaluate --model_name_or_path runs/demo --dataset_name generated \
        --by features
    lm-trials evaluate --model_name_or_path runs/demo \
        --dataset_name stories.jsonl --max_eval_samples 1000

Every checkpoint of a run; packed blocks as in pretraining; a matrix of models and
data sets with means in and out of each model's domain (see --matrix_dir):

    lm-trials evaluate --model_name_or_path runs/demo --dataset_name generated \
        --all_checkpoints
    lm-trials evaluate --model_name_or_path runs/demo --dataset_name generated \
        --layout packed --block_size 256
    lm-trials evaluate --model_name_or_path runs/a runs/b \
        --dataset_name generated stories.jsonl

Data sets of the Hub, streamed or downloaded, and mixtures of their parts:

    lm-trials evaluate --model_name_or_path runs/demo \
        --dataset_name roneneldan/TinyStories --dataset_split validation \
        --streaming True
    lm-trials evaluate --model_name_or_path runs/demo \
        --dataset_name wikitext --dataset_config_name wikitext-103-v1
    lm-trials evaluate --model_name_or_path runs/demo --max_eval_samples 512 \
        --dataset_name Skylion007/openwebtext --dataset_split train
    lm-trials evaluate --model_name_or_path runs/demo --data_mix .3,.7 \
        --dataset_name SudharsanSundar/PileSubsets \
        --dataset_config_name pubmed+uspto

Whether the model writes the features that a protocol set's prompts ask for:

    lm-trials evaluate --model_name_or_path runs/demo \
        --dataset_name filter-adv-Twist --score_features --num_generations 256

Stories continued by the model and compared with the originals; two processes:

    lm-trials evaluate --model_name_or_path runs/demo --dataset_name generated \
        --generate 200
    accelerate launch --config_file accelerate_configs/cpu_two_processes.yaml \
        eval_checkpoint.py --model_name_or_path runs/demo \
        --dataset_name generated
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_trials.console import is_main_process, load_libraries, note, script
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.remote_judge import open_judge
from lm_trials.flags import parse_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Evaluate each model on each data set; returns the rows of all tables."""
    (args,) = parse_arguments(argv, (EvaluationArguments,), __doc__ or "", prog="lm-trials evaluate")
    judge = open_judge(args)
    load_libraries()
    import torch
    from accelerate import PartialState

    from lm_trials.data.datasets import dataset_of
    from lm_trials.evaluation.checkpoints import (
        check_candidate,
        evaluate_checkpoint,
        expand_models,
        next_command,
        plan_results,
        show_results,
    )
    from lm_trials.evaluation.continuations import score_continuations
    from lm_trials.evaluation.feature_scores import check_prompts, score_set
    from lm_trials.evaluation.matrix import evaluation_matrix, show_matrix, write_matrix
    from lm_trials.evaluation.own_data import choose_dataset, training_note
    from lm_trials.evaluation.results import write_results
    from lm_trials.models.reference import load_model
    from lm_trials.reporting.figures import matrix_figure
    from lm_trials.training.launch import check_processes

    # Explicit, because a launched process without `cpu=True` looks for a GPU and takes itself for the only process.
    check_processes(PartialState(cpu=args.use_cpu or not torch.accelerator.is_available()))
    # All models and data sets are checked before the first is evaluated; a matrix can take hours.
    names = expand_models(args.model_name_or_path, args.all_checkpoints)
    candidates = [check_candidate(name, args) for name in names]
    args.dataset_name = args.dataset_name or [choose_dataset(args, names[0])]
    opened = [dataset_of(args, name) for name in args.dataset_name]
    datasets = [dataset.select(args.dataset_split, args.max_eval_samples) for dataset in opened]
    check_prompts(datasets, args)
    folders = plan_results(candidates, datasets, args)
    for candidate in candidates:
        for source, selection in zip(opened, datasets, strict=True):
            if text := training_note(source, selection, candidate, args):
                note(text)
    if judge and is_main_process():
        judge.check()

    results, continuations = [], []
    for candidate in candidates:
        model = load_model(candidate.reference)
        for dataset in datasets:
            folder = folders[candidate.reference.name, dataset.name]
            result = evaluate_checkpoint(model, candidate, dataset, folder, args)
            results.append(result)
            if is_main_process():
                write_results(result, asdict(args))
                if args.score_features:
                    continuations += score_set(model, candidate, dataset, folder, args, judge)
                if args.generate:
                    continuations += score_continuations(model, candidate, dataset, args)
    titles = {dataset.name: dataset.title or dataset.name for dataset in datasets}
    show_results(results, titles, next_command(candidates, args))
    if len(results) > 1 and is_main_process():
        matrix = evaluation_matrix(results, candidates, datasets, args)
        picture = matrix_figure(matrix.cells, "Each model on each data set, with 95 % intervals over stories")
        write_matrix(matrix, Path(args.matrix_dir), picture)
        show_matrix(matrix, Path(args.matrix_dir), titles)
    return [row for result in results for row in result.rows] + continuations


if __name__ == "__main__":
    main()
