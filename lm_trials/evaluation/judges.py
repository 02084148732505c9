"""Judges: which features a story has, said by the detectors or by a classifier that was trained on labelled records.

A judge's error limits every score that it gives, so each is measured on held-out records of the labelled corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lm_trials.console import UsageError, progress
from lm_trials.data.datasets import open_prepared
from lm_trials.estimates import Estimate, proportion
from lm_trials.stories.corpora import open_records
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.detectors import detect_features

JudgeName = Literal["detector", "classifier"]
TRAIN_RECORDS = 20_000
HELD_OUT_RECORDS = 5_000
FEWEST = 10
"""Records with a feature, and without, that a classifier of it is trained on at least."""


class Judge(Protocol):
    """Says of each story which features it has; `known` are those that it can tell."""

    known: tuple[str, ...]

    def features(self, stories: Sequence[str]) -> list[frozenset[str]]:
        """Return the features of each story."""


class DetectorJudge:
    """The detectors: exact on the generated language, on other prose a lower bound.

    >>> DetectorJudge().features(["It turned out that Ben was a king!"])
    [frozenset({'Twist'})]
    """

    known = FEATURES

    def features(self, stories: Sequence[str]) -> list[frozenset[str]]:
        """Return the features of each story."""
        return [frozenset(detect_features(story)) for story in stories]


@dataclass(frozen=True)
class ClassifierJudge:
    """A logistic regression on the TF-IDF of words and pairs of words, one for each feature.

    Attributes:
        vectorizer: texts to (N, words) weights, scikit-learn's.
        classifiers: for each feature one, and the probability from which on it says yes.
    """

    vectorizer: Any
    classifiers: dict[str, tuple[Any, float]]

    @property
    def known(self) -> tuple[str, ...]:
        """The features that there were enough records of."""
        return tuple(self.classifiers)

    def features(self, stories: Sequence[str]) -> list[frozenset[str]]:
        """Return the features of each story."""
        if not stories:
            return []
        weights_NV = self.vectorizer.transform(stories)
        has = {
            feature: classifier.predict_proba(weights_NV)[:, 1] >= threshold
            for feature, (classifier, threshold) in self.classifiers.items()
        }
        return [frozenset(feature for feature in has if has[feature][place]) for place in range(len(stories))]


def train_classifiers(stories: Sequence[str], features: Sequence[Sequence[str]], seed: int = 0) -> ClassifierJudge:
    """Train a classifier of each feature.

    Raises:
        UsageError: where no feature has enough records with and without it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = {feature: np.array([feature in of for of in features]) for feature in FEATURES}
    enough = [name for name, has_N in labels.items() if FEWEST <= has_N.sum() <= len(has_N) - FEWEST]
    if not enough:
        raise UsageError(
            f"no feature has {FEWEST} of {len(stories):,} records with it and {FEWEST} without; give a --judge_corpus "
            "whose records name their features, or --feature_judge detector"
        )
    # A feature can hang on quotation marks and end marks, so these are words too.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"
    )
    weights_NV = vectorizer.fit_transform(stories)
    classifiers = {}
    for feature in progress(enough, "training the judge", "features", len(enough)):
        model = LogisticRegression(class_weight="balanced", solver="liblinear", random_state=seed)
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        said_N = cross_val_predict(model, weights_NV, labels[feature], cv=folds, method="predict_proba")[:, 1]
        classifiers[feature] = (model.fit(weights_NV, labels[feature]), best_threshold(labels[feature], said_N))
    return ClassifierJudge(vectorizer, classifiers)


def best_threshold(has_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return the probability that parts stories best by balanced accuracy, half-way to the next lower one.

    >>> round(best_threshold(np.array([True, True, False, False]), np.array([0.9, 0.7, 0.3, 0.1])), 3)
    0.5
    """
    from sklearn.metrics import roc_curve

    false_rates, true_rates, thresholds = roc_curve(has_N, said_N)
    best = float(thresholds[1 + np.argmax((true_rates - false_rates)[1:])])  # the first, infinite, says never
    return (best + float(max(said_N[said_N < best], default=best))) / 2


def corpus_judge(name: str, data_cache_dir: Path, seed: int = 0) -> ClassifierJudge:
    """Train classifiers on the labelled records of a corpus's train split, the first 20,000.

    Raises:
        UsageError: for a name that is no corpus, or whose records name no features.
    """
    train = _records(name, data_cache_dir, ("train",), TRAIN_RECORDS)
    return train_classifiers([story for story, _ in train], [features for _, features in train], seed)


def judge_quality(judge: Judge, name: str, data_cache_dir: Path) -> list[dict[str, Any]]:
    """Measure a judge on the held-out records of a labelled corpus, the first 5,000 of validation and test.

    Returns:
        Rows of feature, with, without, estimate, lower, upper, n, unit: balanced accuracy, with an interval over
        stories; features of which the held-out records have none, or nothing else, are not in them.
    """
    records = _records(name, data_cache_dir, ("validation", "test"), HELD_OUT_RECORDS)
    found = judge.features([story for story, _ in records])
    rows = []
    for feature in judge.known:
        has_N = np.array([feature in features for _, features in records])
        said_N = np.array([feature in features for features in found])
        if has_N.any() and not has_N.all():
            estimate = balanced_accuracy(has_N, said_N)
            rows.append(
                {"feature": feature, "with": int(has_N.sum()), "without": int((~has_N).sum()), **estimate.row()}
            )
    return rows


def balanced_accuracy(has_N: np.ndarray, said_N: np.ndarray) -> Estimate:
    """Return the mean of the shares told rightly of the stories with a feature and of those without; chance is 0.5.

    The interval joins Wilson's of the two shares (Zou and Donner 2008, doi:10.1002/sim.3095): resampling would find
    nothing to vary in a judge that made no mistake.

    >>> print(balanced_accuracy(np.array([True] * 30 + [False] * 30), np.array([True] * 30 + [False] * 30)))
    1.000 [0.920, 1.000] balanced accuracy (n=60)
    """
    shares = [
        proportion(int((has_N & said_N).sum()), int(has_N.sum()), "share of stories"),
        proportion(int((~has_N & ~said_N).sum()), int((~has_N).sum()), "share of stories"),
    ]
    value = sum(share.estimate for share in shares) / 2
    below = math.hypot(*(share.estimate - share.lower for share in shares)) / 2
    above = math.hypot(*(share.upper - share.estimate for share in shares)) / 2
    return Estimate(value, value - below, value + above, len(has_N), "balanced accuracy")


def _records(name: str, data_cache_dir: Path, splits: Sequence[str], count: int) -> list[tuple[str, list[str]]]:
    folder = open_prepared(name, data_cache_dir, "judge_corpus").corpus()

    def rows() -> Iterator[tuple[str, list[str]]]:
        for split in splits:
            records = open_records(folder, split)
            for record in records.select(range(min(len(records), count))):
                yield record["story"], record["features"]

    found = list(rows())[:count]
    if not found:
        raise UsageError(f"the {' and '.join(splits)} split of {name} has no story; prepare more stories")
    return found
