"""Evaluation of checkpoints: one model on one data set, and the table of several."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import FILE_WIDTH, UsageError, command_line, note, progress, show_facts, show_table
from lm_trials.data.datasets import Selection
from lm_trials.estimates import interval_text
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.losses import Processes, check_causal, check_documents_apart, story_losses
from lm_trials.evaluation.results import EvaluationResult, StoryTable, story_table
from lm_trials.evaluation.sentences import SentenceTokens
from lm_trials.evaluation.summary import STATISTICS, LossSummary, record_documents
from lm_trials.files import LONGEST_NAME, check_writable, plain_name
from lm_trials.models.reference import (
    CONFIG_FILES,
    ModelReference,
    checkpoints,
    chosen_window,
    load_config,
    load_tokenizer_of,
    read_run,
    resolve_model,
    separator_of,
)
from lm_trials.run_fields import RUN_FILE
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

NARROW = 104  # columns; five intervals and the model's name need as many


@dataclass(frozen=True)
class Candidate:
    """A model to be evaluated, checked but not loaded.

    Attributes:
        block_size: longest window, in tokens.
        append_eos: whether EOS after each story is scored.
        seed: of its training; None without a `run.json`.
        run: the content of that `run.json`.
    """

    reference: ModelReference
    tokenizer: PreTrainedTokenizerBase
    block_size: int
    append_eos: bool
    seed: int | None = None
    run: dict[str, Any] | None = None


def expand_models(names: list[str], all_checkpoints: bool) -> list[str]:
    """Return the models to evaluate: as named, or each run's checkpoints in order, then its final model.

    Raises:
        UsageError: for a run without checkpoints.
    """
    if not all_checkpoints:
        return names
    expanded = []
    for name in names:
        steps = checkpoints(Path(name))
        if not steps:
            advice = "remove the flag" if Path(name).is_dir() else "it is no folder here; name a run"
            raise UsageError(f"--all_checkpoints: {name} holds no checkpoint-N folder; {advice}")
        final = any((Path(name) / file).is_file() for file in CONFIG_FILES)
        expanded += [str(step) for step in steps] + ([name] if final else [])
    return expanded


def check_candidate(name: str, args: EvaluationArguments) -> Candidate:
    """Find a model, its tokenizer and its window, without loading its weights.

    Raises:
        UsageError: for a missing model, a window longer than its positions, a tokenizer with ids beyond its embeddings.
    """
    reference = resolve_model(name)
    config = load_config(reference)
    tokenizer = load_tokenizer_of(reference, args.tokenizer_name)
    run = read_run(Path(reference.path))
    append_eos = args.append_eos
    if append_eos is None:
        append_eos = bool(run and run["outcome"].get("append_eos"))
    document_marks(tokenizer, append_eos, separator_of(run))  # raises for a tokenizer without the separator's token
    window = chosen_window(args.block_size, config, "--block_size")
    seed = run["replicate"].get("seed") if run else None
    return Candidate(reference, tokenizer, window, append_eos, seed, run)


def plan_results(
    candidates: list[Candidate], datasets: list[Selection], args: EvaluationArguments
) -> dict[tuple[str, str], Path]:
    """Return the folder of each (model, data set), before anything is evaluated.

    Raises:
        UsageError: for two results in one folder, or a folder that cannot be written to.
    """
    folders: dict[tuple[str, str], Path] = {}
    for candidate in candidates:
        for dataset in datasets:
            folder = result_folder(candidate.reference, dataset, args)
            key = (candidate.reference.name, dataset.name)
            if key in folders or folder in folders.values():
                raise UsageError(
                    f"--output_dir: two results of the matrix would be written to {folder}; "
                    "name each model and each data set once, and give files different names"
                )
            folders[key] = folder
    places = [("--output_dir", folder) for folder in folders.values()]
    places += [("--tables_dir", Path(args.tables_dir))] if args.generate else []
    places += [("--matrix_dir", Path(args.matrix_dir))] if len(folders) > 1 else []
    for flag, place in places:
        check_writable(flag, place)
    return folders


def result_folder(reference: ModelReference, dataset: Selection, args: EvaluationArguments) -> Path:
    """Return a result's folder: under `--output_dir`, else under a local model, else under `runs` for a Hub model."""
    several = len(args.model_name_or_path) * len(args.dataset_name) > 1 or args.all_checkpoints
    if args.output_dir is not None:
        return Path(args.output_dir) / slug(reference) / dataset.name if several else Path(args.output_dir)
    home = Path(reference.path) if Path(reference.path).is_dir() else Path("runs") / reference.name
    return home / "eval" / (dataset.name if args.layout == "per_story" else f"{dataset.name}-packed")


def slug(reference: ModelReference) -> str:
    """Return a model's name as one component of a path.

    >>> slug(ModelReference("./runs/demo/checkpoint-20"))
    'runs-demo-checkpoint-20'
    """
    return plain_name(reference.name.strip("/."), LONGEST_NAME)


def evaluate_checkpoint(
    model: PreTrainedModel, candidate: Candidate, dataset: Selection, folder: Path, args: EvaluationArguments
) -> EvaluationResult:
    """Score each story of `dataset`; the result is the same in every process.

    The main process writes the loss of each story into `folder` once all are scored.
    """
    state = PartialState()
    reference, tokenizer = candidate.reference, candidate.tokenizer
    marks = document_marks(tokenizer, candidate.append_eos, separator_of(candidate.run))
    started = time.perf_counter()
    check_causal(model.to(state.device), reference.name)
    if args.layout == "packed" and not args.attention_across_documents:
        check_documents_apart(model, model.config.model_type)
    sentences = SentenceTokens(tokenizer, args.sentences_with)
    documents = record_documents(dataset.read(), batch_encoder(tokenizer), marks, args.by)
    losses = story_losses(
        model,
        (replace(document, parts=sentences.parts(document.input_ids)) for document in documents),
        candidate.block_size,
        layout=args.layout,
        batch_size=args.per_device_eval_batch_size,
        attention_across_documents=args.attention_across_documents,
        processes=Processes(state.process_index, state.num_processes, gather_object)
        if state.num_processes > 1
        else None,
    )
    summary = LossSummary(args.seed)
    written = ("", *sentences.features) if state.is_main_process else ()
    with ExitStack() as stack:
        tables = {name: stack.enter_context(StoryTable(folder / story_table(name))) for name in written}
        for story in progress(losses, f"{Path(reference.path).name} on {dataset.name}", "stories", dataset.total):
            summary.add(story)
            for name, table in tables.items():
                table.add(story.parts[name] if name else story)
        metrics = summary.metrics()
    if summary.drop_unknown_features():
        note(f"note: --by features: no story of {dataset.name} has a feature, so there are no slices by features")
    for name, part in summary.parts.items():
        if not part.tokens:
            note(f"note: --sentences_with {name}: no sentence of {dataset.name} shows it, so there is no slice")
    seconds = time.perf_counter() - started
    metrics |= {
        "perplexity": metrics["eval_perplexity"],  # its name in beyond-scale's files
        "eval_stories_without_target": summary.unscored,
        "eval_runtime": seconds,
        "eval_tokens_per_second": metrics["eval_tokens"] / seconds,
    }
    shared = {"model": reference.name, "step": reference.step, "seed": candidate.seed, "dataset": dataset.name}
    settings = {
        "model_dir": reference.name,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "block_size": candidate.block_size,
        "append_eos": candidate.append_eos,
        "document_separator": separator_of(candidate.run),
        "model_seed": candidate.seed,
    }
    rows = [{**shared, **row} for row in summary.rows()]
    return EvaluationResult(reference.name, dataset.name, folder, metrics, rows, settings)


def show_results(results: list[EvaluationResult], titles: Mapping[str, str], following: str | None = None) -> None:
    """Print the results, each number above its interval, their folders and the next command.

    `titles` has the data sets' names for the terminal.
    """
    narrow = shutil.get_terminal_size((FILE_WIDTH, 24)).columns < NARROW
    names = [name for name in STATISTICS if not narrow or name != "bits_per_byte"]
    rows = []
    for result in results:
        by_slice: dict[str, dict[str, Any]] = {}
        for row in result.rows:
            by_slice.setdefault(row["slice"], {})[row["metric"]] = row
        for name, metrics in by_slice.items():
            width, after = (19, "/-") if narrow else (26, "/")
            model = f"{folded(result.model, width, after)}\n{folded(titles[result.dataset], width, after)}"
            first = model if name == "all" else f"  {slice_label(name)}"
            loss = metrics["loss"]
            rows.append([first, *(_cell(metrics[metric]) for metric in names), f"{loss['n']:,}\n{loss['tokens']:,}"])
    units = [STATISTICS[name][1].removeprefix("next-token ") for name in names]
    caption = "[95 % bootstrap-t interval over stories]" + ("; bits per byte: eval_results.csv" if narrow else "")
    show_table("evaluation", ["model\ndata", *units, "stories\ntokens"], rows, caption=caption)
    labels = [f"{Path(result.model).name} on {result.dataset}" for result in results]
    if len(set(labels)) < len(labels):
        labels = [f"{result.model} on {result.dataset}" for result in results]
    facts = {label: str(result.folder) for label, result in zip(labels, results, strict=True)}
    show_facts("results", {**facts, "next": following} if following else facts)


def next_command(candidates: list[Candidate], args: EvaluationArguments) -> str | None:
    """Return the command after an evaluation: a comparison of several runs, else the lens probe of the model."""
    names = [candidate.reference.name for candidate in candidates]
    are_runs = all((Path(candidate.reference.path) / RUN_FILE).is_file() for candidate in candidates)
    if len(names) > 1 and are_runs and args.output_dir is None and args.layout == "per_story":
        return command_line("compare", runs=names)
    if args.data_mix is not None:  # no flag of the probes
        return None
    flags = ("dataset_config_name", "text_column", "dataset_split", "data_cache_dir")
    return command_line(
        "probe lens",
        model_name_or_path=[names[-1]],
        dataset_name=args.dataset_name[0],
        **{flag: getattr(args, flag) for flag in flags},
        streaming=None if args.streaming == "False" else args.streaming,
    )


def _cell(row: dict[str, Any]) -> str:
    digits = max(4 - len(f"{row['estimate'] // 1:.0f}"), 0)  # 4 significant ones, so that an interval has 14 characters
    return f"{row['estimate']:.{digits}f}\n{interval_text(row['lower'], row['upper'], digits)}"


def slice_label(name: str) -> str:
    """Return a slice's name for the terminal.

    >>> slice_label("features=Twist"), slice_label("features!=Twist"), slice_label("source=GPT-4")
    ('Twist', 'no Twist', 'source=GPT-4')
    >>> print(slice_label("sentences=Twist"))
    sentences with
      Twist
    """
    name = name.replace("sentences=", "sentences with\n  ")  # two lines, as the numbers have: 80 columns are narrow
    return name.removeprefix("features=") if "features=" in name else name.replace("features!=", "no ")


def folded(name: str, width: int = 26, after: str = "/") -> str:
    """Return a name in lines of at most `width` characters, broken after one of the characters `after`.

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
