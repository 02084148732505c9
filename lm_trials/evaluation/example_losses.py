"""Losses of examples: of the completion alone (prompt masked) and of all tokens (unmasked), in one pass of the model.

Each example's sums are float64, for any batch size and process count; intervals are over examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.estimates import Estimate, StoryBootstrap
from lm_trials.evaluation.losses import SORTED_BATCHES, Document, Processes, StoryLoss, Window, window_sums
from lm_trials.evaluation.results import STORY_TABLE, EvaluationResult, StoryTable, write_results
from lm_trials.evaluation.summary import metrics_of
from lm_trials.pairs.examples import ExampleStore

KINDS = ("completion", "unmasked")
NATS = "nats per token"


def example_sums(
    model: PreTrainedModel,
    store: ExampleStore,
    limit: int | None = None,
    batch_size: int = 8,
    processes: Processes | None = None,
) -> np.ndarray:
    """Return (N, 6) for the first `limit` examples: nats, tokens and correct tokens of the completion, then of all.

    The first token of an example is not predicted and counts in neither.
    """
    processes = processes or Processes()
    count = len(store) if limit is None else min(limit, len(store))
    group_size = batch_size * max(SORTED_BATCHES, processes.count)

    def sums(window: Window, nats_T: np.ndarray, correct_T: np.ndarray) -> list[float]:
        counted_T = store.completion_mask(int(window.owners_T[0]))[1:] == 1
        completion = [nats_T[counted_T].sum(), counted_T.sum(), correct_T[counted_T].sum()]
        return [float(value) for value in (*completion, nats_T.sum(), len(nats_T), correct_T.sum())]

    rows: list[list[float]] = []
    for start in range(0, count, group_size):
        numbers = range(start, min(start + group_size, count))
        ids = [(number, store.input_ids(number)) for number in numbers]
        windows = [Window(found[:-1], found[1:], np.full(len(found) - 1, number)) for number, found in ids]
        rows += window_sums(model, windows, batch_size, processes, sums)
    return np.array(rows).reshape(count, 6)


def loss_estimates(sums_NK: np.ndarray, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Return loss, perplexity and accuracy of each kind, with intervals over examples.

    >>> estimates = loss_estimates(np.array([[2.0, 1, 1, 6.0, 3, 1], [4.0, 1, 0, 8.0, 4, 2]]))
    >>> estimates["completion"]["loss"].estimate, estimates["unmasked"]["loss"].estimate
    (3.0, 2.0)
    """
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(sums_NK)
    found = {}
    for place, kind in zip((0, 3), KINDS, strict=True):
        statistics: dict[str, Any] = {
            "loss": (lambda s, p=place: s[..., p] / s[..., p + 1], NATS, "identity"),
            "perplexity": (lambda s, p=place: np.exp(s[..., p] / s[..., p + 1]), "perplexity", "log"),
            "accuracy": (lambda s, p=place: s[..., p + 2] / s[..., p + 1], "share of tokens", "logit"),
        }
        found[kind] = {name: bootstrap.estimate(f, unit, scale=scale) for name, (f, unit, scale) in statistics.items()}
    return found


def loss_metrics(sums_NK: np.ndarray, trained_on: str, prefix: str = "eval") -> dict[str, float]:
    """Return the metrics under Trainer's names: `eval_completion_loss`, `eval_unmasked_loss`, their intervals, ...

    `eval_loss` is the one of the two that is trained on.
    """
    metrics: dict[str, float] = {}
    estimates = loss_estimates(sums_NK)
    for name, kind in ((prefix, trained_on), *((f"{prefix}_{kind}", kind) for kind in KINDS)):
        metrics |= metrics_of(estimates[kind], int(sums_NK[:, 1 if kind == "completion" else 4].sum()), name)
    return metrics


def write_examples(
    folder: Path, store: ExampleStore, sums_NK: np.ndarray, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> None:
    """Write each example's completion loss in the format of an evaluation, so that runs can be compared by it."""
    with StoryTable(folder / STORY_TABLE) as table:
        for number, (nats, tokens, correct) in enumerate(sums_NK[:, :3]):
            ids = store.input_ids(number)[store.completion_mask(number) == 1]
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            document = Document(store.record_id(number), ids, len(text.encode()))
            table.add(StoryLoss(document, float(nats), int(tokens), int(correct)))
    rows = [
        {"slice": kind, "metric": metric, **estimate.row()}
        for kind, estimates in loss_estimates(sums_NK).items()
        for metric, estimate in estimates.items()
    ]
    result = EvaluationResult("", folder.name, folder, loss_metrics(sums_NK, "completion"), rows)
    write_results(result, settings)


def loss_difference(one_NK: np.ndarray, other_NK: np.ndarray, seed: int = 0) -> Estimate:
    """Return the completion loss of the first minus that of the second, on the same examples."""
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.concatenate([one_NK[:, :2], other_NK[:, :2]], axis=1))
    return bootstrap.estimate(lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3], NATS)
