"""Constraint tables: the scores, the stories and what judged them, on disk and at the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lm_trials.console import note, show_facts, show_table
from lm_trials.evaluation.constraint_flags import ConstraintArguments
from lm_trials.evaluation.constraint_scores import LISTENING, OTHERS, RECORDS, WRITTEN, Written
from lm_trials.evaluation.constraint_tasks import Coverage, names_words
from lm_trials.files import write_csv, write_file, write_json

SCORES, STORIES, COVERAGE, JUDGE, SETTINGS = (
    "constraint_scores.csv",
    "stories.parquet",
    "coverage.csv",
    "judge.csv",
    "constraints.json",
)
SHOWN_WORDS = 12
STORY_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("record_id", pa.string()),
        ("sampling_seed", pa.int64()),
        ("prompt", pa.string()),
        ("words", pa.list_(pa.string())),
        ("features", pa.list_(pa.string())),
        ("rarest_word", pa.string()),
        ("story", pa.string()),
        ("num_words", pa.int64()),
        ("ended", pa.bool_()),
        ("words_used", pa.float64()),
        ("features_found", pa.list_(pa.string())),
        ("own_story", pa.string()),
    ]
)


@dataclass(frozen=True)
class ConstraintResult:
    """What several models wrote and scored.

    Attributes:
        rows: of row (model, arm or records), model, seed, models, judged, slice, metric, and an estimate's columns.
        quality: the judge's balanced accuracy by feature; empty where there was nothing to measure it on.
        seeds: of the sampling.
    """

    written: list[Written]
    rows: list[dict[str, Any]]
    quality: list[dict[str, Any]]
    coverage: Coverage | None
    seeds: list[int]


def write_result(result: ConstraintResult, folder: Path, arguments: Mapping[str, Any]) -> None:
    """Write all tables, each whole or not at all; those of an earlier run with other flags do not stay."""
    stories = pa.Table.from_pylist(_stories(result), schema=STORY_SCHEMA)
    write_file(folder / STORIES, lambda place: pq.write_table(stories, place))
    for name, rows in ((COVERAGE, result.coverage.rows if result.coverage else []), (JUDGE, result.quality)):
        if rows:
            write_csv(folder / name, rows)
        else:
            (folder / name).unlink(missing_ok=True)
    models = [
        {"model": one.model, "mode": one.mode, "prompts": len(one.tasks), "max_new_tokens": one.max_new_tokens}
        for one in result.written
    ]
    write_json(folder / SETTINGS, {"arguments": arguments, "models": models})
    write_csv(folder / SCORES, result.rows)


def _stories(result: ConstraintResult) -> list[dict[str, Any]]:
    return [
        {
            "model": one.model,
            "record_id": task.record_id,
            "sampling_seed": seed,
            "prompt": task.prompt,
            "words": task.words,
            "features": task.features,
            "rarest_word": result.coverage.group(task) if result.coverage else None,
            "story": story.text,
            "num_words": len(story.words.words),
            "ended": story.ended,
            "words_used": story.words.share_used(task.words),
            "features_found": sorted(story.features),
            "own_story": task.story,
        }
        for one in result.written
        for task, of in zip(one.tasks, one.stories_PS, strict=True)
        for seed, story in zip(result.seeds, of, strict=True)
    ]


def show_result(result: ConstraintResult, folder: Path, args: ConstraintArguments) -> None:
    """Print the scores beside their controls, by coverage too, what the judge is worth, and where the files lie."""
    for name in dict.fromkeys(row["model"] for row in result.rows if row["row"] != "records"):
        _show_model(name, result)
    if result.coverage:
        _show_coverage(result, result.coverage)
    if result.quality:
        show_table(
            f"the judge ({args.feature_judge}) on held-out records of {args.judge_corpus}",
            ["feature", "balanced accuracy", "with it", "without"],
            [[row["feature"], _cell(row), str(row["with"]), str(row["without"])] for row in result.quality],
            "chance is 0.5; [95 % interval over stories]",
        )
    tasks = result.written[0].tasks
    silent = sum(bool(task.words) and not names_words(task) for task in tasks)
    if silent:
        note(f"note: {silent} of {len(tasks)} prompts do not name the words asked of the story, so words used say less")
    facts = {"scores": str(folder / SCORES), "stories": str(folder / STORIES)}
    if result.coverage is None:
        facts["next"] = "--coverage DATASET tells scores of words that training never showed from those it did"
    elif len(result.written) == 1:
        facts["next"] = "name replicates with other seeds behind --model: their arm's interval is over trainings"
    show_facts("results", facts)


def _show_model(name: str, result: ConstraintResult) -> None:
    rows = [row for row in result.rows if row["model"] == name]
    records = [row for row in result.rows if row["row"] == "records"]
    found = {(row["judged"], row["slice"], row["metric"]): row for row in [*records, *rows]}
    cells = []
    for metric, label in (
        ("words_used", "words used"),
        ("features_present", "features present"),
        ("satisfied", "all of both"),
        ("length", "length, words"),
        ("length_ratio", "length, to the record's"),
        ("ended", "ended by itself"),
    ):
        if (WRITTEN, "all", metric) in found:
            cells.append([label, *(_cell(found.get((what, "all", metric))) for what in _columns(found))])
    for metric in dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith("has_")):
        feature = metric.removeprefix("has_")
        for sign, label in (("=", f"{feature}, asked for"), ("!=", f"{feature}, not asked for")):
            part = f"asked{sign}{feature}"
            if records and (WRITTEN, part, metric) in found:
                cells.append([label, *(_cell(found.get((what, part, metric))) for what in _columns(found))])
    one = found[WRITTEN, "all", "length"]
    over = "over models" if rows[0]["row"] == "arm" else "over prompts"
    show_table(
        f"{name}: {one['n']} prompts, {len(result.seeds)} {'story' if len(result.seeds) == 1 else 'stories'} each",
        ["", *_columns(found)],
        cells,
        f"[95 % interval {over}]",
    )


def _columns(found: Mapping[tuple[str, str, str], Any]) -> list[str]:
    """Return what was judged against what; of a file's prompts there are only the stories."""
    judged = {what for what, _, _ in found}
    return [what for what in (WRITTEN, OTHERS, LISTENING, RECORDS) if what in judged]


def _show_coverage(result: ConstraintResult, coverage: Coverage) -> None:
    rare = coverage.rows[:SHOWN_WORDS]
    more = len(coverage.rows) - len(rare)
    show_table(
        f"rarest words of the prompts in {coverage.name}",
        ["word", "prompts", "times", "per million words"],
        [[r["word"], str(r["prompts"]), f"{r['count']:,}", f"{r['per_million']:.1f}"] for r in rare],
        f"in any form; {more:,} more in {COVERAGE}" if more > 0 else "in any form",
    )
    unseen = coverage.unseen
    if unseen:
        named = ", ".join(unseen[:40]) + (f" and {len(unseen) - 40} more" if len(unseen) > 40 else "")
        note(f"never seen in training: {named}")
    rows = [
        row
        for row in result.rows
        if row["slice"].startswith("rarest_word=") and row["judged"] == WRITTEN and row["row"] != "records"
    ]
    metrics = [m for m in ("words_used", "satisfied", "length", "ended") if any(row["metric"] == m for row in rows)]
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["slice"].partition("=")[2]), {})[row["metric"]] = row
    show_table(
        "scores by each prompt's rarest word",
        ["rarest word", "prompts", *(metric.replace("_", " ") for metric in metrics)],
        [
            [
                group if len(result.written) == 1 else f"{model}: {group}",
                str(max(row["n"] for row in of.values())),
                *(_cell(of.get(metric)) for metric in metrics),
            ]
            for (model, group), of in cells.items()
        ],
        f"rare: up to {coverage.median:,.0f} times in training, the median; common: more" if coverage.median else None,
    )


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    digits = 1 if row["unit"] == "words" else 3
    if math.isnan(row["lower"]):
        return f"{row['estimate']:.{digits}f}"
    lower, upper = (f"{row[side]:.{digits}f}" for side in ("lower", "upper"))
    return f"{row['estimate']:.{digits}f}\n[{lower}, {upper}]"
