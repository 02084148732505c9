"""Evaluation of checkpoints: one model on one set of stories, and the tables of many."""

from __future__ import annotations

import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError, note, progress, show_facts, show_table
from lm_trials.data.datasets import Selection
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.losses import Processes, check_causal, story_losses
from lm_trials.evaluation.results import STORY_TABLE, EvaluationResult, StoryTable
from lm_trials.evaluation.summary import STATISTICS, LossSummary, record_documents
from lm_trials.models.reference import (
    CONFIG_FILES,
    ModelReference,
    checkpoints,
    default_window,
    load_config,
    load_tokenizer_of,
    positions_of,
    read_run,
    resolve_model,
    separator_of,
)
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash


@dataclass(frozen=True)
class Candidate:
    """A model to be evaluated, checked but not loaded.

    Attributes:
        reference: which one.
        tokenizer: what it reads with.
        block_size: longest window, in tokens.
        append_eos: whether EOS after each story is scored.
        seed: of its training, where a `run.json` tells.
        run: what that `run.json` holds.
    """

    reference: ModelReference
    tokenizer: PreTrainedTokenizerBase
    block_size: int
    append_eos: bool
    seed: int | None = None
    run: dict[str, Any] | None = None


def expand_models(names: list[str], all_checkpoints: bool) -> list[str]:
    """Return the models to evaluate: as named, or each run's checkpoints in order and its final model.

    Raises:
        UsageError: for a run without checkpoints.
    """
    if not all_checkpoints:
        return names
    expanded = []
    for name in names:
        steps = checkpoints(Path(name))
        if not steps:
            raise UsageError(f"--all_checkpoints: {name} holds no checkpoint-N folder; leave the flag away")
        final = any((Path(name) / file).is_file() for file in CONFIG_FILES)
        expanded += [str(step) for step in steps] + ([name] if final else [])
    return expanded


def check_candidate(name: str, args: EvaluationArguments) -> Candidate:
    """Find a model and all that its evaluation needs, without loading its weights.

    Raises:
        UsageError: for a model that is not there, a window longer than its positions, a tokenizer with ids that the
            model has no embedding for.
    """
    reference = resolve_model(name)
    config = load_config(reference)
    tokenizer = load_tokenizer_of(reference, args.tokenizer_name)
    run = read_run(Path(reference.path)) if Path(reference.path).is_dir() else None
    append_eos = args.append_eos
    if append_eos is None:
        append_eos = bool(run and run["outcome"].get("append_eos"))
    document_marks(
        tokenizer, append_eos, separator_of(run)
    )  # raises where the tokenizer lacks what stands between stories
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    # Only ids that a text can have count: a pad token above the vocabulary is never read.
    largest = max(tokenizer.get_vocab().values())
    if vocab_size is not None and largest >= vocab_size and not _only_padding(tokenizer, vocab_size):
        raise UsageError(
            f"{reference.name} has {vocab_size:,} embeddings and the tokenizer's ids go up to {largest:,}; "
            "give the tokenizer it was trained with by --tokenizer_name"
        )
    seed = run["replicate"].get("seed") if run else None
    return Candidate(reference, tokenizer, evaluation_window(config, args.block_size), append_eos, seed, run)


def _only_padding(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> bool:
    beyond = {number for number in tokenizer.get_vocab().values() if number >= vocab_size}
    return beyond == {tokenizer.pad_token_id} and tokenizer.pad_token_id != tokenizer.eos_token_id


def evaluation_window(model: PreTrainedModel | PretrainedConfig, block_size: int | None) -> int:
    """Return the window of an evaluation, in tokens.

    Raises:
        UsageError: for a window longer than the model's positions.
    """
    positions = positions_of(model)
    if block_size is None:
        return default_window(model)
    if block_size < 2 or (positions is not None and block_size > positions):
        raise UsageError(
            f"--block_size {block_size}: the model sees 2 to {positions or 'any number of'} tokens; give that"
        )
    return block_size


def plan_results(
    candidates: list[Candidate], datasets: list[Selection], args: EvaluationArguments
) -> dict[tuple[str, str], Path]:
    """Return the folder of each (model, data set), before anything runs.

    Raises:
        UsageError: for two results that would lie in one folder, or a place that cannot be written to.
    """
    folders: dict[tuple[str, str], Path] = {}
    for candidate in candidates:
        for dataset in datasets:
            folder = result_folder(candidate.reference, dataset, args)
            key = (candidate.reference.name, dataset.name)
            if key in folders or folder in folders.values():
                raise UsageError(
                    f"two evaluations of the matrix would both be written to {folder}; "
                    "name each model and each data set once, and give files different names"
                )
            folders[key] = folder
    places = [("--output_dir", folder) for folder in folders.values()]
    places += [("--tables_dir", Path(args.tables_dir))] if args.generate else []
    places += [("--matrix_dir", Path(args.matrix_dir))] if len(folders) > 1 else []
    for flag, place in places:
        there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UsageError(f"{place} cannot be written to; give another folder by {flag}")
    return folders


def result_folder(reference: ModelReference, dataset: Selection, args: EvaluationArguments) -> Path:
    """Return where a result lies: under `--output_dir`, or beside a local model, or under `runs` for a Hub model."""
    several = len(args.model_name_or_path) * len(args.dataset_name) > 1 or args.all_checkpoints
    if args.output_dir is not None:
        return Path(args.output_dir) / slug(reference) / dataset.name if several else Path(args.output_dir)
    home = Path(reference.path) if Path(reference.path).is_dir() else Path("runs") / reference.name
    return home / "eval" / (dataset.name if args.layout == "per_story" else f"{dataset.name}-packed")


def slug(reference: ModelReference) -> str:
    """Return a model's name as one part of a path.

    >>> slug(ModelReference("./runs/demo/checkpoint-20"))
    'runs-demo-checkpoint-20'
    """
    return reference.name.strip("/.").replace("/", "-")


def evaluate_checkpoint(
    model: PreTrainedModel, candidate: Candidate, dataset: Selection, folder: Path, args: EvaluationArguments
) -> EvaluationResult:
    """Score each story of `dataset` and sum up; the same result in every process.

    The main process writes the loss of each story into `folder`, when all are scored.
    """
    state = PartialState()
    reference, tokenizer = candidate.reference, candidate.tokenizer
    marks = document_marks(tokenizer, candidate.append_eos, separator_of(candidate.run))
    started = time.perf_counter()
    check_causal(model.to(state.device), reference.name)
    losses = story_losses(
        model,
        record_documents(dataset.read(), batch_encoder(tokenizer), marks, args.by),
        candidate.block_size,
        layout=args.layout,
        batch_size=args.per_device_eval_batch_size,
        attention_across_documents=args.attention_across_documents,
        processes=Processes(state.process_index, state.num_processes, gather_object)
        if state.num_processes > 1
        else None,
    )
    summary = LossSummary(args.seed)
    table = StoryTable(folder / STORY_TABLE) if state.is_main_process else None
    with table or nullcontext():
        for story in progress(losses, f"{Path(reference.path).name} on {dataset.name}", "stories", dataset.total):
            summary.add(story)
            if table is not None:
                table.add(story)
        metrics = summary.metrics()
    if summary.drop_unknown_features():
        note(f"note: no story of {dataset.name} names a feature, so there are no slices by features")
    return _result(candidate, dataset, folder, summary, metrics, time.perf_counter() - started)


def _result(
    candidate: Candidate,
    dataset: Selection,
    folder: Path,
    summary: LossSummary,
    metrics: dict[str, float],
    seconds: float,
) -> EvaluationResult:
    metrics = {
        **metrics,
        "perplexity": metrics["eval_perplexity"],  # the name in the seed's files
        "eval_stories_without_target": summary.unscored,
        "eval_runtime": seconds,
        "eval_tokens_per_second": metrics["eval_tokens"] / seconds,
    }
    reference = candidate.reference
    shared = {"model": reference.name, "step": reference.step, "seed": candidate.seed, "dataset": dataset.name}
    settings = {
        "model_dir": reference.name,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "tokenizer_hash": tokenizer_hash(candidate.tokenizer),
        "block_size": candidate.block_size,
        "append_eos": candidate.append_eos,
        "document_separator": separator_of(candidate.run),
        "model_seed": candidate.seed,
    }
    rows = [{**shared, **row} for row in summary.rows()]
    return EvaluationResult(reference.name, dataset.name, folder, metrics, rows, settings)


def show_results(results: list[EvaluationResult]) -> None:
    """Print what came out, each number above its interval, and where the files lie."""
    names = tuple(STATISTICS)
    rows = []
    for result in results:
        by_slice: dict[str, dict[str, Any]] = {}
        for row in result.rows:
            by_slice.setdefault(row["slice"], {})[row["metric"]] = row
        for name, metrics in by_slice.items():
            first = f"{folded(result.model)}\n{result.dataset}" if name == "all" else f"  {slice_label(name)}"
            loss = metrics["loss"]
            rows.append([first, *(_cell(metrics[metric]) for metric in names), f"{loss['n']:,}\n{loss['tokens']:,}"])
    units = [unit.removeprefix("next-token ") for _, unit in STATISTICS.values()]
    columns = ["model\ndata", *units, "stories\ntokens"]
    show_table("evaluation", columns, rows, caption="[95 % bootstrap interval over stories]")
    labels = [f"{Path(result.model).name} on {result.dataset}" for result in results]
    if len(set(labels)) < len(labels):
        labels = [f"{result.model} on {result.dataset}" for result in results]
    show_facts("results", {label: str(result.folder) for label, result in zip(labels, results, strict=True)})


def _cell(row: dict[str, Any]) -> str:
    digits = 2 if row["estimate"] >= 10 else 3
    return f"{row['estimate']:.{digits}f}\n[{row['lower']:.{digits}f}, {row['upper']:.{digits}f}]"


def slice_label(name: str) -> str:
    """Return a slice's name as the terminal shows it.

    >>> slice_label("features=Twist"), slice_label("features!=Twist"), slice_label("source=GPT-4")
    ('Twist', 'no Twist', 'source=GPT-4')
    """
    return name.removeprefix("features=") if "features=" in name else name.replace("features!=", "no ")


def folded(name: str, width: int = 26, after: str = "/") -> str:
    """Return a name in lines that a table has room for, cut after a slash or what else `after` names.

    >>> print(folded("runs/llama-generated-seed42/checkpoint-100"))
    runs/
    llama-generated-seed42/
    checkpoint-100
    >>> print(folded("filter-adv-Twist-validation", width=17, after="/-"))
    filter-adv-Twist-
    validation
    """
    lines = [""]
    for part in re.findall(f"[^{after}]*[{after}]?", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
