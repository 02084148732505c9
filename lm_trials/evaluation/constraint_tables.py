"""Constraint tables: scores, stories and the judge's accuracy, on disk and at the terminal."""

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
    *("constraint_scores.csv", "stories.parquet", "coverage.csv", "judge.csv", "constraints.json"),
)
SHOWN_WORDS = 12
STORY_COLUMNS = (
    *("model", "record_id", "sampling_seed", "prompt", "words", "features", "rarest_word", "story", "num_words"),
    *("ended", "words_used", "features_found", "own_story"),
)
STORY_TYPES = {
    **dict.fromkeys(("words", "features", "features_found"), pa.list_(pa.string())),
    **dict.fromkeys(("sampling_seed", "num_words"), pa.int64()),
    "ended": pa.bool_(),
    "words_used": pa.float64(),
}
STORY_SCHEMA = pa.schema([(name, STORY_TYPES.get(name, pa.string())) for name in STORY_COLUMNS])
# Labels in two lines, as a number has its interval below it: with at most 14 characters the table fits 80 columns.
SHOWN_METRICS = {
    "words_used": "words used",
    "features_present": "features\npresent",
    "satisfied": "all words\nand features",
    "length": "length, words",
    "length_ratio": "length /\nrecord's",
    "ended": "ended by\nthe model",
    "distinct_2": "distinct\nword pairs",
    "repeated_4grams": "repeated\n4-grams",
    "copied_prompt": "4-grams of the\nprompt copied",
    "other_judge": "features, by\nother judge",
    "base_loss": "loss under\nthe base",
    "record_loss": "loss of the\nrecord's story",
}
HEADERS = {WRITTEN: "model", OTHERS: "other\nprompts", LISTENING: "difference", RECORDS: "records'\nstories"}


@dataclass(frozen=True)
class ConstraintResult:
    """The stories and scores of several models.

    Attributes:
        rows: of row (model, arm or records), model, seed, models, judged, slice, metric, and an estimate's columns.
        quality: each judge's balanced accuracy by feature; empty without a labelled corpus.
        seeds: of sampling.
    """

    written: list[Written]
    rows: list[dict[str, Any]]
    quality: list[dict[str, Any]]
    coverage: Coverage | None
    seeds: list[int]


def write_result(result: ConstraintResult, folder: Path, arguments: Mapping[str, Any]) -> None:
    """Write all tables atomically; tables of an earlier run that this one has not are removed."""
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
    """Print the scores beside their controls and by coverage, the judge's accuracy, and the files."""
    for name in dict.fromkeys(row["model"] for row in result.rows if row["row"] != "records"):
        _show_model(name, result)
    if result.coverage:
        _show_coverage(result, result.coverage)
    if result.quality:
        show_table(
            f"the judges on held-out records of {args.judge_corpus}",
            ["judge", "feature", "balanced accuracy", "with it", "without"],
            [[r["judge"], r["feature"], _cell(r), str(r["with"]), str(r["without"])] for r in result.quality],
            f"the {args.feature_judge} scores; chance is 0.5; [95 % interval over stories]",
        )
    tasks = result.written[0].tasks
    silent = sum(bool(task.words) and not names_words(task) for task in tasks)
    if silent:
        note(f"note: {silent} of {len(tasks)} prompts do not contain the words that are scored as words used")
    facts = {"scores": str(folder / SCORES), "stories": str(folder / STORIES)}
    if result.coverage is None:
        facts["next"] = "--coverage DATASET splits the scores by how often training data has the prompts' words"
    elif len(result.written) == 1:
        facts["next"] = "give replicates with other seeds to --model for an interval over training seeds"
    show_facts("results", facts)


def _show_model(name: str, result: ConstraintResult) -> None:
    rows = [row for row in result.rows if row["model"] == name]
    records = [row for row in result.rows if row["row"] == "records"]
    found = {(row["judged"], row["slice"], row["metric"]): row for row in [*records, *rows]}
    judged = {what for what, _, _ in found}
    columns = [what for what in HEADERS if what in judged]  # prompts of a file have no controls
    shown = [("all", metric, label) for metric, label in SHOWN_METRICS.items()]
    for metric in dict.fromkeys(row["metric"] for row in rows if records and row["metric"].startswith("has_")):
        feature = metric.removeprefix("has_")
        shown += [(f"asked={feature}", metric, f"{feature},\nasked for")]
        shown += [(f"asked!={feature}", metric, f"{feature},\nnot asked for")]
    cells = [
        [label, *(_cell(found.get((what, part, metric))) for what in columns)]
        for part, metric, label in shown
        if (WRITTEN, part, metric) in found
    ]
    one = found[WRITTEN, "all", "length"]
    over = "over models" if rows[0]["row"] == "arm" else "over prompts"
    show_table(
        f"{name}: {one['n']} prompts, {len(result.seeds)} {'story' if len(result.seeds) == 1 else 'stories'} each",
        ["score", *(HEADERS[what] for what in columns)],
        cells,
        f"[95 % interval {over}]",
    )


def _show_coverage(result: ConstraintResult, coverage: Coverage) -> None:
    rare = coverage.rows[:SHOWN_WORDS]
    more = len(coverage.rows) - len(rare)
    show_table(
        f"rarest words of the prompts in {coverage.name}",
        ["word", "prompts", "count", "per million words"],
        [[r["word"], str(r["prompts"]), f"{r['count']:,}", f"{r['per_million']:.1f}"] for r in rare],
        f"in any form; {more:,} more in {COVERAGE}" if more > 0 else "in any form",
    )
    unseen = coverage.unseen
    if unseen:
        named = ", ".join(unseen[:40]) + (f" and {len(unseen) - 40} more" if len(unseen) > 40 else "")
        note(f"not in the train split: {named}")
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
        ["rarest\nword", "prompts", *(SHOWN_METRICS[metric] for metric in metrics)],
        [
            [
                group if len(result.written) == 1 else f"{model}: {group}",
                str(max(row["n"] for row in of.values())),
                *(_cell(of.get(metric)) for metric in metrics),
            ]
            for (model, group), of in cells.items()
        ],
        f"rare: at most the median, {coverage.median:,.0f} times in the train split" if coverage.median else None,
    )


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    digits = 1 if row["unit"] in ("words", "nats per story") else 3
    if math.isnan(row["lower"]):
        return f"{row['estimate']:.{digits}f}"
    lower, upper = (f"{row[side]:.{digits}f}" for side in ("lower", "upper"))
    return f"{row['estimate']:.{digits}f}\n[{lower}, {upper}]"
