"""Judges of a story's features: the feature detectors, or classifiers trained on labelled records.

A judge's error limits every score based on it, so each judge is evaluated on held-out records of a labelled corpus.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm_trials.console import UsageError, progress
from lm_trials.data.datasets import open_prepared
from lm_trials.estimates import NO_INTERVAL, Estimate, proportion
from lm_trials.stories.corpora import open_records
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.detectors import detect_features

# Not tuned; more records were not tried.
TRAIN_RECORDS = 20_000
HELD_OUT_RECORDS = 5_000
FEWEST = 10  # records with a feature, and without it, to train its classifier on


class Judge(Protocol):
    """Returns the features of stories; `known` are those that it can detect."""

    @property
    def known(self) -> tuple[str, ...]:
        """The features that it can detect."""

    def features(self, stories: Sequence[str]) -> list[frozenset[str]]:
        """Return the features of each story."""


class DetectorJudge:
    """The detectors: exact on generated stories, a lower bound on other prose.

    >>> DetectorJudge().features(["It turned out that Ben was a king!"])
    [frozenset({'Twist'})]
    """

    known: tuple[str, ...] = FEATURES

    def features(self, stories: Sequence[str]) -> list[frozenset[str]]:
        """Return the features of each story."""
        return [frozenset(detect_features(story)) for story in stories]


@dataclass(frozen=True)
class ClassifierJudge:
    """A logistic regression on the TF-IDF of words and pairs of words for each feature.

    Attributes:
        vectorizer: scikit-learn's, from texts to (N, words) weights.
        classifiers: the classifier of each feature and its probability threshold.
    """

    vectorizer: Any
    classifiers: dict[str, tuple[Any, float]]

    @property
    def known(self) -> tuple[str, ...]:
        """The features with enough records."""
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
        UsageError: if no feature has enough records with and without it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = {feature: np.array([feature in of for of in features]) for feature in FEATURES}
    enough = [name for name, has_N in labels.items() if FEWEST <= has_N.sum() <= len(has_N) - FEWEST]
    if not enough:
        raise UsageError(
            f"--judge_corpus: no feature has {FEWEST} of {len(stories):,} records with it and {FEWEST} without; give a "
            "corpus with features"
        )
    # Quotation marks and final punctuation can show a feature (Dialogue), so punctuation marks are tokens too.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"
    )
    weights_NV = vectorizer.fit_transform(stories)
    classifiers = {}
    for feature in progress(enough, "training the judge", "features", len(enough)):
        # Balanced weights, because the judge is reported by its balanced accuracy.
        model = LogisticRegression(class_weight="balanced", solver="liblinear", random_state=seed)
        # Threshold on held-out predictions: predictions for a classifier's own training stories would bias it.
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        predicted_N = cross_val_predict(model, weights_NV, labels[feature], cv=folds, method="predict_proba")[:, 1]
        classifiers[feature] = (model.fit(weights_NV, labels[feature]), best_threshold(labels[feature], predicted_N))
    return ClassifierJudge(vectorizer, classifiers)


def best_threshold(has_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Return the probability with the best balanced accuracy, half-way to the next lower one.

    >>> round(best_threshold(np.array([True, True, False, False]), np.array([0.9, 0.7, 0.3, 0.1])), 3)
    0.5
    """
    from sklearn.metrics import roc_curve

    false_rates, true_rates, thresholds = roc_curve(has_N, predicted_N)
    # Youden's J, which maximizes the balanced accuracy that the judge is reported by.
    best = float(thresholds[1 + np.argmax((true_rates - false_rates)[1:])])  # the first threshold is infinite
    return (best + float(max(predicted_N[predicted_N < best], default=best))) / 2


def corpus_judge(name: str, data_cache_dir: Path, seed: int = 0) -> ClassifierJudge:
    """Train classifiers on the first 20,000 records of a corpus's train split.

    Raises:
        UsageError: for a name that is not a corpus, or a corpus without features.
    """
    train = _records(name, data_cache_dir, ("train",), TRAIN_RECORDS)
    return train_classifiers([story for story, _ in train], [features for _, features in train], seed)


def open_judges(feature_judge: str, judge_corpus: str | None, data_cache_dir: Path, seed: int = 0) -> dict[str, Judge]:
    """Return the judge of features that scores, and after it the other one, if there is a corpus to train it on.

    They err on different stories: the detectors match phrases, the classifiers weigh all words of a story.
    """
    judges: dict[str, Judge] = {"detector": DetectorJudge()}
    if judge_corpus is not None:
        judges["classifier"] = corpus_judge(judge_corpus, data_cache_dir, seed)
    return {name: judges[name] for name in sorted(judges, key=lambda name: name != feature_judge)}


def judge_quality(judge: Judge, name: str, data_cache_dir: Path) -> list[dict[str, Any]]:
    """Evaluate a judge on the first 5,000 records of a labelled corpus's validation and test splits.

    Returns:
        Rows of feature, with, without, estimate, lower, upper, n, unit: balanced accuracy with an interval over
        stories; a feature that all or no held-out records have is left out.
    """
    records = _records(name, data_cache_dir, ("validation", "test"), HELD_OUT_RECORDS)
    found = judge.features([story for story, _ in records])
    rows = []
    for feature in judge.known:
        has_N = np.array([feature in features for _, features in records])
        found_N = np.array([feature in features for features in found])
        if has_N.any() and not has_N.all():
            counts = {"feature": feature, "with": int(has_N.sum()), "without": int((~has_N).sum())}
            rows.append({**counts, **balanced_accuracy(has_N, found_N).row()})
    return rows


def balanced_accuracy(has_N: np.ndarray, found_N: np.ndarray) -> Estimate:
    """Return the mean accuracy on the stories with a feature and on those without it; chance is 0.5.

    The interval combines the Wilson intervals of both shares (Zou and Donner 2008, doi:10.1002/sim.3095); resampling
    gives no interval for a judge without errors.

    >>> print(balanced_accuracy(np.array([True] * 30 + [False] * 30), np.array([True] * 30 + [False] * 30)))
    1.000 [0.920, 1.000] balanced accuracy (n=60)
    """
    shares = [
        proportion(int((has_N & found_N).sum()), int(has_N.sum()), "share of stories"),
        proportion(int((~has_N & ~found_N).sum()), int((~has_N).sum()), "share of stories"),
    ]
    value = sum(share.estimate for share in shares) / 2
    below = math.hypot(*(share.estimate - share.lower for share in shares)) / 2
    above = math.hypot(*(share.upper - share.estimate for share in shares)) / 2
    return Estimate(value, value - below, value + above, len(has_N), "balanced accuracy")


def agreement(first_N: np.ndarray, second_N: np.ndarray) -> tuple[Estimate, Estimate]:
    """Return the share of stories that two judges judge alike, and Cohen's kappa; NaN if both give one answer always.

    Kappa's interval is the share's (Wilson), rescaled as Cohen (1960) does with a standard error: it has a width where
    the judges agree on all stories. In simulations it covered 94 to 96 % of kappas at 85 and 256 stories.

    >>> share, kappa = agreement(np.array([True] * 50 + [False] * 50), np.array([True] * 40 + [False] * 60))
    >>> print(share, kappa, sep="\\n")
    0.900 [0.826, 0.945] share of stories (n=100)
    0.800 [0.651, 0.890] Cohen's kappa (n=100)
    """
    share = proportion(int((first_N == second_N).sum()), len(first_N), "share of stories")
    first, second = first_N.mean(), second_N.mean()
    chance = float(first * second + (1 - first) * (1 - second))
    if chance == 1:
        return share, Estimate(math.nan, *NO_INTERVAL, len(first_N), "Cohen's kappa")
    kappa, lower, upper = (
        max((value - chance) / (1 - chance), -1.0) for value in (share.estimate, share.lower, share.upper)
    )
    return share, Estimate(kappa, lower, upper, len(first_N), "Cohen's kappa")


def _records(name: str, data_cache_dir: Path, splits: Sequence[str], count: int) -> list[tuple[str, list[str]]]:
    folder = open_prepared(name, data_cache_dir, "judge_corpus").corpus()
    records = itertools.chain.from_iterable(open_records(folder, split) for split in splits)
    found = [(record["story"], record["features"]) for record in itertools.islice(records, count)]
    if not found:
        raise UsageError(f"--judge_corpus {name}: the {' and '.join(splits)} split has no story; prepare more stories")
    return found
