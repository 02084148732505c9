"""Continuations: a model continues held-out stories, and its text is scored against the stories' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import note, show_facts
from lm_trials.data.datasets import Selection
from lm_trials.estimates import bootstrap_mean
from lm_trials.evaluation.checkpoints import Candidate, slug
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.generation import write_stories
from lm_trials.files import write_csv
from lm_trials.models.reference import LONGEST_WINDOW, positions_of, separator_of
from lm_trials.tokens.stores import opening_of
from lm_trials.tokens.tokenizers import batch_encoder

# Does not change results: each story has its own draws. Not tuned.
GENERATION_BATCH = 16
UNITS = {"bleu": "sentence BLEU (0 to 100)", "rouge_l": "ROUGE-L F1 (0 to 1)", "length_ratio": "words written per word"}
SCALES = {"bleu": "log", "rouge_l": "logit", "length_ratio": "log"}  # of the intervals


class ContinuationOverlap(evaluate.Metric):
    """BLEU, ROUGE-L and length of each prediction against its one reference.

    BLEU is sacrebleu's sentence BLEU with its default smoothing and tokenization, ROUGE-L is the F1 of Google's
    implementation without stemming.  `compute` returns a value for each story, so that intervals are over stories.

    >>> metric = ContinuationOverlap()
    >>> scores = metric.compute(predictions=["the cat sat on the mat"], references=["the cat sat on a mat"])
    >>> [round(float(scores[name][0]), 3) for name in ("rouge_l", "length_ratio")]
    [0.833, 1.0]
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Overlap of a continuation with the story's own text.",
            citation="Post 2018 (sacrebleu), Lin 2004 (ROUGE)",
            inputs_description="predictions and references: one text each.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, np.ndarray]:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer

        rouge = RougeScorer(["rougeL"])
        pairs = list(zip(predictions, references, strict=True))
        return {
            "bleu": np.array([sacrebleu.sentence_bleu(ours, [theirs]).score for ours, theirs in pairs]),
            "rouge_l": np.array([rouge.score(theirs, ours)["rougeL"].fmeasure for ours, theirs in pairs]),
            "length_ratio": np.array([len(ours.split()) / max(len(theirs.split()), 1) for ours, theirs in pairs]),
        }


def score_continuations(
    model: PreTrainedModel, candidate: Candidate, dataset: Selection, args: EvaluationArguments
) -> list[dict[str, Any]]:
    """Continue the beginnings of `--generate N` stories and score the continuations; writes two CSV tables.

    The prompt is the first `--prompt_share` of a story's tokens; a continuation has at most 1.25 times the tokens that
    the story has left.  Stories too long for the model's positions are skipped and counted.

    Returns:
        One row for each score, with its interval over stories.
    """
    reference = candidate.reference
    window = positions_of(model) or LONGEST_WINDOW
    opening = opening_of(candidate.tokenizer, separator_of(candidate.run))
    encode = batch_encoder(candidate.tokenizer)
    chosen: list[tuple[str, list[int], list[int]]] = []  # record id, prompt, reference
    skipped = 0
    for record in dataset.read():
        ids = encode([record["story"]])[0]
        cut = max(int(len(ids) * args.prompt_share), 1)
        if len(ids) - cut < 2:
            continue
        if len(opening) + cut + _limit(ids[cut:]) > window:
            skipped += 1
            continue
        chosen.append((record["record_id"], ids[:cut], ids[cut:]))
        if len(chosen) == args.generate:
            break
    if not chosen:
        note(f"note: --generate {args.generate}: no story of {dataset.name} fits the model's {window} positions")
        return []
    stories = _continued(model, candidate.tokenizer, opening, chosen, args)
    scores = ContinuationOverlap().compute(
        predictions=[story["continuation"] for story in stories], references=[story["reference"] for story in stories]
    )
    for number, story in enumerate(stories):
        story.update({metric: float(scores[metric][number]) for metric in UNITS})
    estimates = {
        metric: bootstrap_mean(scores[metric], unit, args.seed, scale=SCALES[metric]) for metric, unit in UNITS.items()
    }
    shared = {"model": reference.name, "step": reference.step, "seed": candidate.seed, "dataset": dataset.name}
    rows = [
        {**shared, "slice": "continuations", "metric": metric, **estimate.row()}
        for metric, estimate in estimates.items()
    ]
    tables = Path(args.tables_dir) / f"{slug(reference)}-{dataset.name}"
    write_csv(tables.with_name(f"{tables.name}-continuations.csv"), stories)
    write_csv(tables.with_name(f"{tables.name}-continuation_scores.csv"), rows)
    facts = {metric: str(estimate) for metric, estimate in estimates.items()}
    facts["skipped"] = f"{skipped} stories longer than the model's {window} tokens"
    show_facts(f"continuations of {dataset.name}", {**facts, "tables": f"{tables}-*.csv"})
    return rows


def _limit(reference: list[int]) -> int:
    """Return the most tokens that a continuation may have."""
    # Room for a somewhat longer ending; without a limit, a model that never writes EOS would decide `length_ratio`.
    # Convention.
    return len(reference) + len(reference) // 4


def _continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    opening: list[int],
    chosen: list[tuple[str, list[int], list[int]]],
    args: EvaluationArguments,
) -> list[dict[str, Any]]:
    record_ids, prompts, references = zip(*chosen, strict=True)
    continued = write_stories(
        model,
        tokenizer,
        [opening + prompt for prompt in prompts],
        list(map(_limit, references)),
        temperature=args.temperature or 0.0,
        seed=args.seed,
        batch_size=GENERATION_BATCH,
        keys=record_ids,
        by_length=True,
        description="writing",
    )
    texts = [map(tokenizer.decode, ids) for ids in (prompts, continued, references)]
    columns = ("record_id", "prompt", "continuation", "reference")
    return [dict(zip(columns, row, strict=True)) for row in zip(record_ids, *texts, strict=True)]
