"""Continuations: how a model goes on with held-out stories, scored against how the records go on."""

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
from lm_trials.tokens.tokenizers import Encoder, batch_encoder

GENERATION_BATCH = 16
UNITS = {"bleu": "sentence BLEU (0 to 100)", "rouge_l": "ROUGE-L F1 (0 to 1)", "length_ratio": "words written per word"}


class ContinuationOverlap(evaluate.Metric):
    """BLEU, ROUGE-L and length of each prediction against its one reference.

    BLEU is sacrebleu's sentence BLEU with its default smoothing and tokenisation, ROUGE-L the F1 of Google's
    implementation without stemming.  `compute` gives a value for each story, so that intervals are over stories.

    >>> metric = ContinuationOverlap()
    >>> scores = metric.compute(predictions=["the cat sat on the mat"], references=["the cat sat on a mat"])
    >>> [round(float(scores[name][0]), 3) for name in ("rouge_l", "length_ratio")]
    [0.833, 1.0]
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Overlap of a continuation with the story's own.",
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
    """Give the model the beginning of `--generate N` stories and score what it writes; writes two CSV tables.

    The prompt is the first `--prompt_share` of a story's tokens; the model may write a quarter more tokens than the
    story has left.  A story that leaves no room within the model's positions is passed over and counted.

    Returns:
        One row for each score, with its interval over stories.
    """
    reference, tokenizer = candidate.reference, candidate.tokenizer
    window = positions_of(model) or LONGEST_WINDOW
    bos = opening_of(tokenizer, separator_of(candidate.run))
    chosen, too_long = _chosen(dataset, batch_encoder(tokenizer), window, args)
    if not chosen:
        note(f"note: --generate {args.generate}: no story of {dataset.name} fits the model's {window} positions")
        return []
    stories = _written(model, tokenizer, bos, chosen, args)
    scores = ContinuationOverlap().compute(
        predictions=[story["continuation"] for story in stories], references=[story["reference"] for story in stories]
    )
    for number, story in enumerate(stories):
        story.update({metric: float(scores[metric][number]) for metric in UNITS})
    estimates = {metric: bootstrap_mean(scores[metric], unit, args.seed) for metric, unit in UNITS.items()}
    shared = {"model": reference.name, "step": reference.step, "seed": candidate.seed, "dataset": dataset.name}
    rows = [
        {**shared, "slice": "continuations", "metric": metric, **estimate.row()}
        for metric, estimate in estimates.items()
    ]
    tables = Path(args.tables_dir) / f"{slug(reference)}-{dataset.name}"
    write_csv(tables.with_name(f"{tables.name}-continuations.csv"), stories)
    write_csv(tables.with_name(f"{tables.name}-continuation_scores.csv"), rows)
    facts = {metric: str(estimate) for metric, estimate in estimates.items()}
    facts["passed over"] = f"{too_long} stories longer than the model's {window} tokens"
    show_facts(f"continuations of {dataset.name}", {**facts, "tables": f"{tables}-*.csv"})
    return rows


def _chosen(
    dataset: Selection, encode: Encoder, window: int, args: EvaluationArguments
) -> tuple[list[tuple[str, list[int], list[int]]], int]:
    """Return (record_id, prompt, reference) of the first stories that fit, and how many were passed over."""
    chosen: list[tuple[str, list[int], list[int]]] = []
    too_long = 0
    for record in dataset.read():
        ids = encode([record["story"]])[0]
        cut = max(int(len(ids) * args.prompt_share), 1)
        if len(ids) - cut < 2:
            continue
        if 1 + cut + _room(len(ids) - cut) > window:
            too_long += 1
            continue
        chosen.append((record["record_id"], ids[:cut], ids[cut:]))
        if len(chosen) == args.generate:
            break
    return chosen, too_long


def _room(length: int) -> int:
    """Return the most tokens that a continuation may have, for a reference of `length`."""
    return length + length // 4


def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bos: list[int],
    chosen: list[tuple[str, list[int], list[int]]],
    args: EvaluationArguments,
) -> list[dict[str, Any]]:
    """Let the model continue each story; what is drawn depends on the seed and the record's id."""
    continued = write_stories(
        model,
        tokenizer,
        [bos + prompt for _, prompt, _ in chosen],
        [_room(len(reference)) for _, _, reference in chosen],
        temperature=args.temperature or 0.0,
        seed=args.seed,
        batch_size=GENERATION_BATCH,
        keys=[record_id for record_id, *_ in chosen],
        by_length=True,
        description="writing",
    )
    return [
        {
            "record_id": record_id,
            "prompt": tokenizer.decode(prompt),
            "continuation": tokenizer.decode(ids),
            "reference": tokenizer.decode(reference),
        }
        for ids, (record_id, prompt, reference) in zip(continued, chosen, strict=True)
    ]
