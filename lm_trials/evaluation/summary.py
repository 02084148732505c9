"""Summaries: cross-entropy, perplexity, accuracy and bits per byte of story losses, with intervals over stories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate, StoryBootstrap
from lm_trials.evaluation.losses import Document, StoryLoss
from lm_trials.stories.features import FEATURES
from lm_trials.stories.records import Record
from lm_trials.tokens.stores import TokenStore

BATCH = 512  # stories per update of the bootstrap, which draws its weights in pieces of as many


class Statistic(NamedTuple):
    """A metric of a group's sums (nats, tokens, correct, bytes), with its unit and the scale of its interval."""

    of_sums: Callable[[np.ndarray], np.ndarray]
    unit: str
    scale: str = "identity"


STATISTICS: dict[str, Statistic] = {
    "loss": Statistic(lambda sums: sums[..., 0] / sums[..., 1], "nats per token"),
    "perplexity": Statistic(lambda sums: np.exp(sums[..., 0] / sums[..., 1]), "perplexity", "log"),
    "accuracy": Statistic(lambda sums: sums[..., 2] / sums[..., 1], "next-token accuracy", "logit"),
    "bits_per_byte": Statistic(lambda sums: sums[..., 0] / np.log(2) / sums[..., 3], "bits per byte"),
}


def groups_of(record: Record, by: Sequence[str]) -> tuple[str, ...]:
    """Return the slices that a record belongs to: for each feature those with it or those without it.

    >>> from lm_trials.stories.records import make_record
    >>> groups_of(make_record("Hi.", features=["Twist"], source="GPT-4"), by=["features", "source"])[:4]
    ('all', 'features!=Dialogue', 'features=Twist', 'features!=BadEnding')
    """
    groups = ["all"]
    if "features" in by:
        groups += [f"features{'=' if name in record['features'] else '!='}{name}" for name in FEATURES]
    if "source" in by:
        groups.append(f"source={record['source'] or 'unknown'}")
    return tuple(groups)


def record_documents(
    records: Iterable[Record],
    encode: Callable[[list[str]], list[list[int]]],
    marks: tuple[list[int], list[int]],
    by: Sequence[str] = (),
) -> Iterator[Document]:
    """Tokenize records as they are read, with marks before and after each story (`tokens.stores.document_marks`).

    `by` names slices (`features`, `source`).
    """
    (bos, eos), records = marks, iter(records)
    while batch := list(islice(records, BATCH)):
        for record, ids in zip(batch, encode([record["story"] for record in batch]), strict=True):
            num_bytes = len(record["story"].encode())
            yield Document(record["record_id"], np.array(bos + ids + eos), num_bytes, groups_of(record, by))


def store_documents(store: TokenStore, limit: int | None = None) -> Iterator[Document]:
    """Yield the first `limit` documents of a token store."""
    for number in range(len(store) if limit is None else min(len(store), limit)):
        yield Document(store.record_id(number), store.tokens(number), int(store.num_bytes_N[number]))


class LossSummary:
    """Accumulates story losses into estimates for each slice, in constant memory.

    The sentences with a feature have a summary of their own, in `parts`, so that other draws do not depend on them.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.parts: dict[str, LossSummary] = {}
        self.bootstrap = StoryBootstrap(seed)
        self.tokens: dict[str, int] = {}
        self.unscored = 0
        self._waiting: list[StoryLoss] = []

    def add(self, story: StoryLoss) -> None:
        """Add one story; a story without a token to predict is only counted in `unscored`."""
        for name, part in story.parts.items():
            self.parts.setdefault(name, LossSummary(self.seed)).add(part)
        if not story.tokens:
            self.unscored += 1
            return
        self._waiting.append(story)
        for group in story.document.groups:
            self.tokens[group] = self.tokens.get(group, 0) + story.tokens
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        sums_NK = np.array([(s.nats, s.tokens, s.correct, s.document.num_bytes) for s in self._waiting])
        names = dict.fromkeys(group for story in self._waiting for group in story.document.groups)
        groups = {name: np.array([name in story.document.groups for story in self._waiting]) for name in names}
        self.bootstrap.update(sums_NK, groups)
        self._waiting.clear()

    def drop_unknown_features(self) -> bool:
        """Drop the slices by features if no story has one, as data without feature labels; returns whether it did."""
        by_features = [name for name in self.tokens if name.startswith("features")]
        unknown = all(name.startswith("features!=") for name in by_features)
        for name in by_features if unknown else ():
            del self.tokens[name]
        return unknown and bool(by_features)

    def estimates(self, group: str = "all") -> dict[str, Estimate]:
        """Return loss, perplexity, accuracy and bits per byte of a slice.

        Raises:
            UsageError: if no story of the slice has a token to predict.
        """
        self._flush()
        if group not in self.tokens:
            raise UsageError("--dataset_name: no story has a token to predict; give stories of at least two tokens")
        return {
            name: self.bootstrap.estimate(of_sums, unit, group, scale)
            for name, (of_sums, unit, scale) in STATISTICS.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: a row for each slice and metric, `all` first, then by name, then the parts."""
        rows = [
            {"slice": group, "metric": metric, **estimate.row(), "tokens": self.tokens[group]}
            for group in sorted(self.tokens, key=lambda name: (name != "all", name.replace("!=", "=~")))
            for metric, estimate in self.estimates(group).items()
        ]
        return rows + [row | {"slice": f"sentences={name}"} for name, part in self.parts.items() for row in part.rows()]

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Return the metrics of all stories under Trainer's names: `eval_loss`, `eval_perplexity`, ...

        Those of the sentences with a feature follow: `eval_sentences_Twist_loss`, ...; if there are none, their counts.
        """
        metrics = metrics_of(self.estimates(), self.tokens["all"], prefix)
        for name, part in self.parts.items():
            under = f"{prefix}_sentences_{name}"
            metrics |= part.metrics(under) if part.tokens else {f"{under}_samples": 0}
            metrics[f"{under}_stories_without"] = part.unscored
        return metrics


def metrics_of(estimates: Mapping[str, Estimate], num_tokens: int, prefix: str) -> dict[str, float]:
    """Return estimates under Trainer's names with their intervals, and the numbers of stories and tokens.

    >>> list(metrics_of({"loss": Estimate(2.0, 1.0, 3.0, 5, "nats per token")}, 70, "eval"))
    ['eval_loss', 'eval_loss_lower', 'eval_loss_upper', 'eval_samples', 'eval_tokens']
    """
    metrics: dict[str, float] = {}
    for name, estimate in estimates.items():
        metrics[f"{prefix}_{name}"] = estimate.estimate
        metrics[f"{prefix}_{name}_lower"] = estimate.lower
        metrics[f"{prefix}_{name}_upper"] = estimate.upper
    return {**metrics, f"{prefix}_samples": estimates["loss"].n, f"{prefix}_tokens": num_tokens}
