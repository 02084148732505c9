"""Evaluation of checkpoints: one model on one set of stories, and the tables of many."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError, did_you_mean, progress, show_facts, show_table
from lm_trials.data.tokenizers import batch_encoder, tokenizer_hash
from lm_trials.data.tokens import document_marks
from lm_trials.evaluation.arguments import EvaluationArguments
from lm_trials.evaluation.datasets import EvaluationSet
from lm_trials.evaluation.losses import Processes, story_losses
from lm_trials.evaluation.results import EvaluationResult, StoryTable
from lm_trials.evaluation.summary import LossSummary, record_documents
from lm_trials.models.reference import ModelReference, checkpoints, positions_of, read_run

LONGEST_DEFAULT_BLOCK = 1024
SLICES = ("features", "source")


def expand_models(names: list[str], all_checkpoints: bool) -> list[str]:
    """Return the models to evaluate: as named, or each run's checkpoints in order and its final model.

    Raises:
        UsageError: for no name, or a run without checkpoints.
    """
    if not names:
        raise UsageError("no model is named; give --model_dir RUN_OR_CHECKPOINT")
    if not all_checkpoints:
        return names
    expanded = []
    for name in names:
        steps = checkpoints(Path(name))
        if not steps:
            raise UsageError(f"--all_checkpoints: {name} holds no checkpoint-N folder; leave the flag away")
        expanded += [str(step) for step in steps] + ([name] if (Path(name) / "config.json").is_file() else [])
    return expanded


def check_slices(names: list[str]) -> None:
    """Refuse a slice that is not known."""
    for name in names:
        if name not in SLICES:
            raise UsageError(f"--by {name}: {did_you_mean(name, SLICES)}")


def evaluation_window(model: PreTrainedModel, block_size: int | None) -> int:
    """Return the window of an evaluation, in tokens.

    Raises:
        UsageError: for a window longer than the model's positions.
    """
    positions = positions_of(model)
    if block_size is None:
        return min(positions or LONGEST_DEFAULT_BLOCK, LONGEST_DEFAULT_BLOCK)
    if block_size < 2 or (positions is not None and block_size > positions):
        raise UsageError(
            f"--block_size {block_size}: the model sees 2 to {positions or 'any number of'} tokens; give that"
        )
    return block_size


def result_folder(reference: ModelReference, dataset: EvaluationSet, args: EvaluationArguments) -> Path:
    """Return where a result lies: under `--output_dir`, or beside a local model, or under `runs` for a Hub model."""
    several = len(args.model_name_or_path) * len(args.dataset_name) > 1 or args.all_checkpoints
    if args.output_dir is not None:
        model = reference.path.strip("/.").replace("/", "-")
        return Path(args.output_dir) / model / dataset.name if several else Path(args.output_dir)
    home = Path(reference.path) if Path(reference.path).is_dir() else Path("runs") / reference.path
    return home / "eval" / (dataset.name if args.layout == "per_story" else f"{dataset.name}-packed")


def evaluate_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EvaluationSet,
    reference: ModelReference,
    args: EvaluationArguments,
) -> EvaluationResult:
    """Score each story of `dataset` and sum up; the same result in every process."""
    state = PartialState()
    run = read_run(Path(reference.path)) if Path(reference.path).is_dir() else None
    append_eos = args.append_eos
    if append_eos is None:
        append_eos = bool(run and run["outcome"].get("append_eos"))
    block_size = evaluation_window(model, args.block_size)
    folder = result_folder(reference, dataset, args)
    summary, table = LossSummary(args.seed), StoryTable(folder / "per_story.parquet")
    started = time.perf_counter()
    documents = record_documents(
        dataset.read(), batch_encoder(tokenizer), document_marks(tokenizer, append_eos), args.by
    )
    losses = story_losses(
        model.to(state.device),
        documents,
        block_size,
        layout=args.layout,
        batch_size=args.per_device_eval_batch_size,
        attention_across_documents=args.attention_across_documents,
        processes=Processes(state.process_index, state.num_processes, gather_object)
        if state.num_processes > 1
        else None,
    )
    for story in progress(losses, f"{Path(reference.path).name} on {dataset.name}", "stories", dataset.total):
        summary.add(story)
        if state.is_main_process:
            table.add(story)
    if state.is_main_process:
        table.close()
    seconds = time.perf_counter() - started
    metrics = {
        **summary.metrics(),
        "perplexity": summary.estimates()["perplexity"].estimate,
        "eval_stories_without_target": summary.unscored,
        "eval_runtime": seconds,
        "eval_tokens_per_second": summary.tokens["all"] / seconds,
    }
    shared = {"model": reference.path, "step": reference.step, "dataset": dataset.name}
    settings = {
        "model_dir": reference.path,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "block_size": block_size,
        "append_eos": append_eos,
        "model_seed": run["replicate"]["seed"] if run else None,
    }
    rows = [{**shared, **row} for row in summary.rows()]
    return EvaluationResult(reference.path, dataset.name, folder, metrics, rows, settings)


def show_results(results: list[EvaluationResult]) -> None:
    """Print what came out, each number above its interval, and where the files lie."""
    names = ("loss", "perplexity", "accuracy", "bits_per_byte")
    rows = []
    for result in results:
        by_slice: dict[str, dict[str, Any]] = {}
        for row in result.rows:
            by_slice.setdefault(row["slice"], {})[row["metric"]] = row
        for name, metrics in by_slice.items():
            first = f"{short_name(result.model)}\n{result.dataset}" if name == "all" else f"  {name}"
            loss = metrics["loss"]
            rows.append([first, *(_cell(metrics[metric]) for metric in names), f"{loss['n']:,}", f"{loss['tokens']:,}"])
    columns = ["model, stories", "nats per token", "perplexity", "accuracy", "bits per byte", "stories", "tokens"]
    show_table("evaluation", columns, rows, caption="[95 % bootstrap interval over stories]")
    show_facts("results", {r.dataset: str(r.folder) for r in results})


def _cell(row: dict[str, Any]) -> str:
    digits = 2 if row["estimate"] >= 10 else 3
    return f"{row['estimate']:.{digits}f}\n[{row['lower']:.{digits}f}, {row['upper']:.{digits}f}]"


def short_name(path: str) -> str:
    """Return a model's path as far as a table has room for it.

    >>> short_name("runs/demo/checkpoint-100"), short_name("/some/where/deep/below/model/hf")
    ('runs/demo/checkpoint-100', 'model/hf')
    """
    return path if len(path) <= 28 else "/".join(Path(path).parts[-2:])
