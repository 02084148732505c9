"""Evaluations of runs on shared stories, read from `<run>/eval/<data set>` and joined story by story.

Shape suffixes: R = runs, N = stories.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lm_trials.console import UsageError, command_line, did_you_mean
from lm_trials.files import read_object
from lm_trials.run_data import own_data
from lm_trials.run_fields import RUN_FILE, run_file
from lm_trials.trials.runs import Run

METRICS, STORIES, SETTINGS = "eval_results.json", "per_story.parquet", "data_args.json"
COLUMNS = ("record_id", "nats", "tokens", "num_bytes")
# Settings that may differ and change losses a little, which is noted; a different layout is refused.
# Packed and per-story losses of stories260K are 1.346 and 1.314 nats: as far apart as many arms.
NOTED = ("block_size", "append_eos", "attention_across_documents")
COMPLETIONS = "completions"  # scored by a fine-tuning's own evaluation
NATS, BITS = "nats per token", "bits per byte"


@dataclass(frozen=True)
class SharedEvaluation:
    """The losses of all runs on the same stories.

    Attributes:
        losses_RN: of each story, in nats, or in bits if `unit` is bits per byte.
        sizes_N: each story's tokens, or bytes.
        unit: nats per token, or bits per byte if the runs tokenize the stories differently.
        notes: for the caption.
        keys: of each story, its record id and how often the record occurred before.
    """

    dataset: str
    losses_RN: np.ndarray
    sizes_N: np.ndarray
    unit: str
    notes: tuple[str, ...] = ()
    keys: tuple[tuple[str, int], ...] = ()


def evaluated_sets(run: Run, stories: str = STORIES) -> set[str]:
    """Return the data sets of a run's complete evaluations, by the names of their folders."""
    places = (run.folder / "eval").glob("*/")
    return {place.name for place in places if (place / METRICS).is_file() and (place / stories).is_file()}


def shared_sets(runs: Sequence[Run], asked: Sequence[str] = ()) -> list[str]:
    """Return the data sets that all runs were evaluated on, or those in `asked`.

    Raises:
        UsageError: for a data set in `asked` that is not shared, naming the runs without it.
    """
    found = [evaluated_sets(run) for run in runs]
    shared = sorted(set.intersection(*found))
    for name in asked:
        if name in shared:
            continue
        lacking = [run.name for run, sets in zip(runs, found, strict=True) if name not in sets]
        if len(lacking) == len(runs):
            known = set.union(*found)
            advice = did_you_mean(name, known) if known else "no run has an evaluation; make one: lm-trials evaluate"
            raise UsageError(f"--dataset_name {name}: no run has eval/{name}; {advice}")
        raise UsageError(f"--dataset_name {name}: {', '.join(lacking)} lack it; {evaluation_advice(runs)}")
    return list(asked) or shared


def join_stories(runs: Sequence[Run], dataset: str, file: str = STORIES, in_bits: bool = False) -> SharedEvaluation:
    """Join the stories of all runs by record id and, for equal records, by order of occurrence.

    Args:
        file: the table of losses, in the folder of the evaluation.
        in_bits: bits per byte, though the runs tokenize the stories alike.

    Raises:
        UsageError: for runs evaluated on different stories or in different layouts, or a loss that is not finite.
    """
    _check_layouts(runs, dataset)
    notes = _noted_settings(runs, dataset)
    tables = [_read_stories(run, dataset, file) for run in runs]
    first = tables[0]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if table.keys() != first.keys():
            raise UsageError(
                f"{run.name} and {runs[0].name} were evaluated on different stories of {dataset} "
                f"({len(table.keys() ^ first.keys()):,} of {len(table.keys() | first.keys()):,} are not shared); "
                f"{evaluation_advice(runs)}"
            )
    keys = [key for key in first if all(table[key][1] for table in tables)]
    if dropped := len(first) - len(keys):
        notes.append(f"{dropped:,} stories without a token to predict are left out")
    if not keys:
        raise UsageError(f"{dataset}: no story has a token to predict in every run; evaluate on longer stories")
    values_RNK = np.array([[table[key] for key in keys] for table in tables], dtype=np.float64)
    nats_RN, tokens_RN, bytes_RN = np.moveaxis(values_RNK, 2, 0)
    for run, nats_N in zip(runs, nats_RN, strict=True):
        if not np.isfinite(nats_N).all():
            raise UsageError(f"{run.name} diverged: its losses on {dataset} are not finite; remove the run")
    same_tokens = bool((tokens_RN == tokens_RN[0]).all())
    notes += _check_layouts(runs, dataset, same_tokens)
    if same_tokens and not in_bits:
        return SharedEvaluation(dataset, nats_RN, tokens_RN[0], NATS, tuple(notes), tuple(keys))
    if (bytes_RN != bytes_RN[0]).any():
        raise UsageError(f"{dataset}: equal records have different texts in the runs; {evaluation_advice(runs)}")
    if not same_tokens:
        notes.append("the runs tokenize these stories differently: compared in bits per byte")
    return SharedEvaluation(dataset, nats_RN / math.log(2), bytes_RN[0], BITS, tuple(notes), tuple(keys))


def _read_stories(run: Run, dataset: str, file: str) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Return nats, tokens and bytes of each story, by its record and the record's earlier occurrences."""
    path = run.folder / "eval" / dataset / file
    try:
        columns = pq.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} cannot be read ({reason}); evaluate again with lm-trials evaluate") from None
    seen: Counter[str] = Counter()
    stories = {}
    for record_id, *values in zip(*(columns[name] for name in COLUMNS), strict=True):
        stories[record_id, seen[record_id]] = tuple(values)
        seen[record_id] += 1
    return stories


def _noted_settings(runs: Sequence[Run], dataset: str) -> list[str]:
    """Return a note for each of the settings `NOTED` that differs."""
    settings = [found for run in runs if (found := settings_of(run, dataset))]
    values = {name: sorted({str(found.get(name)) for found in settings}) for name in NOTED}
    return [f"evaluated with different {name}: {', '.join(of)}" for name, of in values.items() if len(of) > 1]


def _check_layouts(runs: Sequence[Run], dataset: str, same_tokens: bool | None = None) -> list[str]:
    """Refuse evaluations in different layouts; return a note if only the layouts' names differ.

    A base tuned in the instruct layout has it as its chat template, and a run tuned from it names its layout chat.

    Args:
        same_tokens: whether each story has equally many tokens in every run; None if not known yet.
    """
    settings = {run.name: found for run in runs if (found := settings_of(run, dataset))}
    layouts = {name: str(found.get("layout")) for name, found in settings.items()}
    if len(set(layouts.values())) < 2:
        return []
    if same_tokens is not False and all(found.get("scored") == COMPLETIONS for found in settings.values()):
        shown = ", ".join(sorted(set(layouts.values())))
        return [f"the layouts have different names ({shown}) and equally many tokens in every completion"]
    shown = ", ".join(f"{name} {layout}" for name, layout in layouts.items())
    raise UsageError(f"{dataset} was evaluated in different layouts: {shown}; {evaluation_advice(runs)}")


def settings_of(run: Run, dataset: str) -> dict[str, Any]:
    """Return the settings of an evaluation; {} where they are unknown."""
    path = run.folder / "eval" / dataset / SETTINGS
    return read_object(path) if path.is_file() else {}


def own_validation(runs: Sequence[Run]) -> list[dict[str, float]] | None:
    """Return each run's own last evaluation on its validation split; None unless all have the same stories there.

    These have no losses of single stories, so that nothing can be paired.
    """
    same = ("data.content", "data.split_by", "data.stories.validation")
    protocol = sorted({name for run in runs for name in run.outcome if name.startswith("data.protocol.")})
    samples = [{**run.logistics, **run.outcome}.get("max_eval_samples") for run in runs]
    described = [
        [*(run.outcome.get(name) for name in (*same, *protocol)), count]
        for run, count in zip(runs, samples, strict=True)
    ]
    known = all(run.outcome.get("data.content") is not None for run in runs)
    files = [run.folder / METRICS for run in runs]
    if not known or any(values != described[0] for values in described) or not all(f.is_file() for f in files):
        return None
    metrics = [read_object(file) for file in files]
    needed = ("eval_loss", "eval_bits_per_byte", "eval_samples")
    whole = all(isinstance(values.get(name), (int, float)) for values in metrics for name in needed)
    return metrics if whole and len({values["eval_samples"] for values in metrics}) == 1 else None


def evaluation_command(runs: Sequence[Run]) -> str:
    """Return the command that evaluates all runs on one data set: a prepared one that some run has, else its own."""
    candidates = [(settings_of(run, name), name) for run in runs for name in sorted(evaluated_sets(run))]
    sets = [
        (given, settings.get("data_cache_dir"))
        for settings, name in candidates
        for given in settings.get("dataset_name", [])
        if name.startswith(str(given)) and settings.get("scored") != COMPLETIONS
    ]
    flags = dict(zip(("dataset_name", "data_cache_dir"), sets[0], strict=True)) if sets else _stories_of(runs)
    return command_line("evaluate", model_name_or_path=[run.name for run in runs], **flags)


def _stories_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the flags of the first stories that a run, or the run that it was fine-tuned from, was trained on."""
    for run in runs:
        described = read_object(run.folder / RUN_FILE)
        earlier = run_file(Path((described["outcome"].get("initial_model") or {}).get("name_or_path") or run.folder))
        for each in (described, read_object(earlier) if earlier else None):
            if own := own_data(each):
                return own
    return {"dataset_name": "generated"}


def evaluation_advice(runs: Sequence[Run]) -> str:
    """Return the next step for runs without a shared evaluation."""
    return f"evaluate all alike: {evaluation_command(runs)}"
