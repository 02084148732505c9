"""Losses on common stories, and their slope over a metric of the stories, with intervals over stories.

Shape suffixes: N = stories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from lm_trials.console import UsageError
from lm_trials.data.datasets import Text, dataset_of
from lm_trials.estimates import RESAMPLES, Estimate, StoryBootstrap, percentile_interval
from lm_trials.evaluation.losses import check_causal, story_losses
from lm_trials.evaluation.summary import record_documents
from lm_trials.metrics.tables import open_metrics
from lm_trials.metrics.texts import NAMES, SENTIMENT, Measures
from lm_trials.models.reference import separator_of
from lm_trials.probing.flags import TextArguments
from lm_trials.probing.subjects import Subject
from lm_trials.stories.records import SPLITS, Record
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder

NATS = "nats per token"
TENTHS = 10
"""Groups of stories by metric, for the table and figure that show the form behind a slope."""


def metric_values(records: Sequence[Record], metrics: Sequence[str], texts: TextArguments) -> dict[str, np.ndarray]:
    """Return the metrics of the stories, each (N,), NaN without a value: computed, or else read from a table.

    Raises:
        UsageError: for an unknown metric, or one that is the same for all stories.
    """
    found: dict[str, np.ndarray] = {}
    if computed := [name for name in metrics if name in NAMES]:
        measures = Measures(sentiment=not set(SENTIMENT).isdisjoint(computed))
        rows = [Text(row["record_id"], row["story"], row["prompt"], row["features"]) for row in records]
        found = measures.measure(rows)
    if read := [name for name in metrics if name not in NAMES]:
        dataset = dataset_of(texts)
        tables = [open_metrics(dataset, split, read, "--metric") for split in SPLITS]
        ids = [record_id for table in tables for record_id in table.table["record_id"].to_pylist()]
        place = {record_id: number for number, record_id in enumerate(ids)}
        places_N = [place[row["record_id"]] for row in records]
        found |= {name: np.concatenate([table.values(name) for table in tables])[places_N] for name in read}
    for name in metrics:
        if len(known := np.unique(found[name][~np.isnan(found[name])])) < 2:
            value = f"is {known[0]:g} for" if len(known) else "has no value for"
            raise UsageError(f"--metric {name} {value} all {len(records):,} stories; choose another metric")
    return {name: found[name].astype(np.float64) for name in metrics}


@dataclass(frozen=True)
class StoryLosses:
    """The losses of one model: sums of each story in nats, and its scored tokens."""

    nats_N: np.ndarray
    tokens_N: np.ndarray

    @classmethod
    def of(cls, model: PreTrainedModel, subject: Subject, records: Sequence[Record], batch_size: int) -> StoryLosses:
        """Score the stories as `lm-trials evaluate` does, each by itself."""
        candidate = subject.candidate
        check_causal(model, subject.label)
        marks = document_marks(candidate.tokenizer, candidate.append_eos, separator_of(candidate.run))
        documents = record_documents(records, batch_encoder(candidate.tokenizer), marks)
        found = list(story_losses(model, documents, candidate.block_size, batch_size=batch_size))
        return cls(np.array([story.nats for story in found]), np.array([float(story.tokens) for story in found]))

    def minus(self, other: StoryLosses) -> StoryLosses:
        """Return the differences of the nats; a slope is linear in them, so it is that of the differences."""
        return StoryLosses(self.nats_N - other.nats_N, self.tokens_N)

    def loss(self, seed: int, confidence: float = 0.95, where_N: np.ndarray | None = None) -> Estimate:
        """Return the loss per token of the stories, or of those `where_N`."""
        groups = None if where_N is None else {"all": where_N}
        bootstrap = StoryBootstrap(seed, confidence)
        bootstrap.update(np.stack([self.nats_N, self.tokens_N], axis=1), groups)
        return bootstrap.estimate(lambda sums: sums[..., 0] / sums[..., 1], NATS)

    def slope(self, metric: str, values_N: np.ndarray, seed: int) -> Estimate:
        """Return the slope of the story's loss over a metric; stories without a value are left out.

        Least squares weighted by tokens: the loss of a story is a mean over its tokens, and so each token counts the
        same, as in `loss`.

        >>> rising = StoryLosses(np.array([10.0, 30.0]), np.array([10.0, 20.0]))
        >>> rising.slope("words", np.array([4.0, 6.0]), seed=0).estimate
        0.25
        """
        bootstrap = StoryBootstrap(seed)
        known_N = ~np.isnan(values_N)
        # Centred, so that the sums of squares do not cancel.
        x_N = np.where(known_N, values_N - values_N[known_N].mean(), 0.0)
        bootstrap.update(np.stack(self._sums(x_N), axis=1), {"all": known_N})
        return bootstrap.estimate(_least_squares, f"{NATS} per unit of {metric}")

    def shuffled_slope(self, metric: str, values_N: np.ndarray, seed: int) -> Estimate:
        """Return the mean slope over the metrics of other stories, and the interval that contains 95 % of them."""
        known = StoryLosses(self.nats_N[~np.isnan(values_N)], self.tokens_N[~np.isnan(values_N)])
        x_N = values_N[~np.isnan(values_N)]
        draws = np.random.default_rng(seed)
        shuffled = [np.sum(known._sums(draws.permutation(x_N - x_N.mean())), axis=1) for _ in range(RESAMPLES)]
        slopes_R = _least_squares(np.array(shuffled))
        limits = percentile_interval(slopes_R, 0.95)
        return Estimate(float(slopes_R.mean()), *limits, len(x_N), f"{NATS} per unit of {metric}")

    def _sums(self, x_N: np.ndarray) -> list[np.ndarray]:
        w_N = self.tokens_N
        return [w_N, w_N * x_N, w_N * x_N**2, self.nats_N, self.nats_N * x_N]


def _least_squares(sums: np.ndarray) -> np.ndarray:
    w, wx, wxx, y, xy = np.moveaxis(sums, -1, 0)
    return np.asarray((w * xy - wx * y) / (w * wxx - wx * wx))


def tenths(values_N: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Return the stories in ten groups of equal size by a metric, with its medians; equal values stay together.

    >>> [(median, int(members_N.sum())) for median, members_N in tenths(np.array([1.0, 1.0, 1.0, 5.0, np.nan]))]
    [(1.0, 3), (5.0, 1)]
    """
    known_N = ~np.isnan(values_N)
    ends = np.unique(np.quantile(values_N[known_N], np.linspace(0, 1, TENTHS + 1)[1:-1]))
    group_N = np.searchsorted(ends, values_N, side="left")
    groups = [known_N & (group_N == group) for group in range(len(ends) + 1)]
    return [(float(np.median(values_N[members_N])), members_N) for members_N in groups if members_N.any()]
