"""Feature probes: logistic regressions that decode a story's features from numbers, scored on held-out stories.

The numbers are a model's hidden states, pooled over the story, or, as a control, statistics of the text.  Layer,
pooling and penalty are selected on a part of the training stories; the test stories only score.

Shape suffixes: N = training stories, M = test stories, D = numbers of a story, S = shuffles.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lm_trials.console import note, progress
from lm_trials.estimates import Estimate, StoryBootstrap, mean_over_seeds, proportion
from lm_trials.evaluation.judges import balanced_accuracy
from lm_trials.models.reference import load_config
from lm_trials.probing.activation_store import captured, reduced
from lm_trials.probing.anatomy import check_hidden
from lm_trials.probing.capture import Activations, CaptureCheck, check_capture
from lm_trials.probing.feature_probe.flags import BEFORE_MARKER, NORMED, WHOLE, FeatureProbeArguments
from lm_trials.probing.feature_probe.stories import (
    CHOICE_SHARE,
    ProbeStories,
    bag_of_words,
    before_marker,
    parted,
    text_length,
    text_statistics,
)
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.subjects import Subject, load_subject, run_folder, run_names, untrained
from lm_trials.probing.tables import by_values, one_more
from lm_trials.stories.variety import split_sentences
from lm_trials.tokens.tokenizers import tokenizer_hash

BALANCED, PLAIN = "balanced accuracy", "accuracy"
DIFFERENCE = "difference in balanced accuracy"
# The end of a story, whose states have read all of it; 10 as published, not tuned here.
LAST = 10
"""Positions that `last_10` averages over, as in the deletion and recovery study."""
# scikit-learn's default is 100; fits that do not converge within 1,000 are reported.
MOST_UPDATES = 1000
# TF-IDF weights are small, so they need a weaker penalty than standardised numbers.
WORDS_L2 = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Labels:
    """Which stories have a feature.

    Attributes:
        train_N, test_M: the labels.
        choice_N: the training stories that layer, pooling and penalty are selected on.
        shuffled_SN: permutations of the training labels.
    """

    train_N: np.ndarray
    test_M: np.ndarray
    choice_N: np.ndarray
    shuffled_SN: np.ndarray

    @classmethod
    def of(cls, train_N: np.ndarray, test_M: np.ndarray, num_shuffles: int, seed: int) -> Labels:
        """Draw the selection stories, a quarter of those with and without the feature, and the permutations."""
        generator = np.random.Generator(np.random.Philox(seed))
        choice_N = np.zeros(len(train_N), dtype=bool)
        for has in (True, False):
            of_class = np.flatnonzero(train_N == has)
            choice_N[generator.permutation(of_class)[: round(CHOICE_SHARE * len(of_class))]] = True
        shuffled_SN = np.stack([generator.permutation(train_N) for _ in range(num_shuffles)])
        return cls(train_N, test_M, choice_N, shuffled_SN)


@dataclass(frozen=True)
class FittedProbe:
    """A fitted probe on the test stories.

    Attributes:
        chosen_by: balanced accuracy on the selection stories, which layers are selected by.
        l2: the weight of the penalty that was best there.
        right_M: whether it is correct on each test story; for shuffled labels (S, M).
        converged: whether every fit converged.
    """

    chosen_by: float
    l2: float
    right_M: np.ndarray
    converged: bool = True


def read_feature(train_ND: Any, test_MD: Any, labels: Labels, l2: Sequence[float]) -> FittedProbe:
    """Fit a probe with each penalty, select one, refit it on all training stories and score it on the test stories.

    >>> values_ND = np.random.default_rng(0).normal(size=(300, 4))
    >>> labels = Labels.of(values_ND[:200, 0] > 0, values_ND[200:, 0] > 0, num_shuffles=2, seed=0)
    >>> reading = read_feature(values_ND[:200], values_ND[200:], labels, [1.0, 10.0])
    >>> bool(reading.right_M.mean() > 0.9)
    True
    """
    train_N, choice_N = labels.train_N, labels.choice_N
    scores, converged = {}, True
    for weight in sorted(l2, reverse=True):  # of equally good ones, the stronger penalty
        probe, ended = fit_probe(train_ND[~choice_N], train_N[~choice_N], weight)
        scores[weight] = _balanced(train_N[choice_N], probe.predict(train_ND[choice_N]) == train_N[choice_N])
        converged &= ended
    best = max(scores, key=lambda weight: scores[weight])
    probe, ended = fit_probe(train_ND, train_N, best)
    return FittedProbe(scores[best], best, probe.predict(test_MD) == labels.test_M, converged and ended)


def read_shuffled(train_ND: Any, test_MD: Any, labels: Labels, l2: float) -> FittedProbe:
    """Fit and score probes on permuted training labels: the control for chance."""
    probes = [fit_probe(train_ND, shuffled_N, l2) for shuffled_N in labels.shuffled_SN]
    right_SM = np.stack([probe.predict(test_MD) == labels.test_M for probe, _ in probes])
    return FittedProbe(float("nan"), l2, right_SM, all(ended for _, ended in probes))


def fit_probe(values_ND: Any, has_N: np.ndarray, l2: float) -> tuple[Any, bool]:
    """Fit a logistic regression by L-BFGS; returns it and whether it converged.

    Numbers are standardised, except sparse TF-IDF weights, and both classes have equal weight.  The loss is the
    weighted sum over stories plus l2 / 2 times the squared norm of the coefficients.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    scaler = StandardScaler() if isinstance(values_ND, np.ndarray) else FunctionTransformer()
    # Balanced, because features have a probability of 0.4 in generated stories and are rarer in real ones; scores are
    # balanced too.
    model = LogisticRegression(C=1 / l2, class_weight="balanced", solver="lbfgs", max_iter=MOST_UPDATES)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline = make_pipeline(scaler, model).fit(values_ND, has_N)
    return pipeline, not told


def _balanced(has_N: np.ndarray, right_N: np.ndarray) -> float:
    return float((right_N[has_N].mean() + right_N[~has_N].mean()) / 2)


def score(has_M: np.ndarray, right_M: np.ndarray, metric: str) -> Estimate:
    """Return a probe's accuracy or balanced accuracy, with an interval over stories that has a width even at 1.

    >>> has_M = np.array([True] * 10 + [False] * 90)
    >>> str(score(has_M, ~has_M, "accuracy")), str(score(has_M, ~has_M, "balanced accuracy"))
    ('0.900 [0.826, 0.945] accuracy (n=100)', '0.500 [0.480, 0.639] balanced accuracy (n=100)')
    """
    if metric == PLAIN:
        return proportion(int(right_M.sum()), len(right_M), PLAIN)
    return balanced_accuracy(has_M, has_M == right_M)


def score_shuffled(has_M: np.ndarray, right_SM: np.ndarray) -> Estimate:
    """Return the mean over shuffles and the interval of one more shuffle (95 %, t distribution).

    Where a feature is a main direction of the states, single shuffles are far from chance, on either side.

    >>> has_M, right_SM = np.array([True, False] * 10), np.arange(60).reshape(3, 20) % 9 < 4
    >>> print(score_shuffled(has_M, right_SM))
    0.467 [0.180, 0.754] balanced accuracy (n=3)
    """
    more = one_more(np.array([_balanced(has_M, right_M) for right_M in right_SM]), BALANCED)
    return replace(more, lower=max(more.lower, 0.0), upper=min(more.upper, 1.0))


def difference(has_M: np.ndarray, right_M: np.ndarray, other_SM: np.ndarray, seed: int = 0) -> Estimate:
    """Return the difference in balanced accuracy of two probes on the same stories, paired; none if both are equal.

    Args:
        other_SM: the other probe's, or those of several shuffles, whose mean counts.  The interval then is over stories
            and shuffles: the squared distances of both from the estimate are added (Zou and Donner 2008).

    >>> has_M = np.array([True, False] * 50)
    >>> print(difference(has_M, np.ones(100), np.arange(100) % 4 < 2))
    0.500 [0.400, 0.600] difference in balanced accuracy (n=100)
    """
    gain_SM = np.asarray(right_M, dtype=np.float64) - np.atleast_2d(np.asarray(other_SM, dtype=np.float64))
    num_shuffles = len(gain_SM)

    def statistic(sums: np.ndarray) -> np.ndarray:
        rates = sums[..., 2:] / np.repeat(sums[..., :2], num_shuffles, axis=-1)
        return ((rates[..., :num_shuffles] + rates[..., num_shuffles:]) / 2).mean(axis=-1)

    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.stack([has_M, ~has_M, *(gain_SM * has_M), *(gain_SM * ~has_M)], axis=1))
    over_stories = bootstrap.estimate(statistic, DIFFERENCE, scale="arctanh")
    if num_shuffles == 1:
        return over_stories
    of_shuffles = [_balanced(has_M, gain_M) for gain_M in gain_SM]
    over_shuffles = mean_over_seeds(of_shuffles, len(has_M), DIFFERENCE, scale="arctanh")
    sides = [over_stories, over_shuffles] if np.ptp(of_shuffles) else [over_stories]
    below = math.hypot(*(one.estimate - one.lower for one in sides))
    above = math.hypot(*(one.upper - one.estimate for one in sides))
    value = over_stories.estimate
    return replace(over_stories, lower=max(value - below, -1.0), upper=min(value + above, 1.0))


def above_chance(has_M: np.ndarray, right_M: np.ndarray) -> Estimate:
    """Return the balanced accuracy above 0.5, that of the majority class."""
    # The majority class has a balanced accuracy of exactly 0.5: no draws are needed.
    found = score(has_M, right_M, BALANCED)
    return Estimate(found.estimate - 0.5, found.lower - 0.5, found.upper - 0.5, found.n, DIFFERENCE)


@dataclass(frozen=True)
class Place:
    """The numbers that a probe reads: pooling, site and layer; of a text control its name and no layer."""

    pooling: str
    site: str
    layer: int | None = None


Fits = dict[str, dict[Place, FittedProbe]]
"""By feature and place."""


def chosen(fits: Mapping[Place, FittedProbe], pooling: str | None = None) -> Place:
    """Return the best place on the selection stories, of all or of one pooling; of equal ones the first."""
    places = [place for place in fits if pooling in (None, place.pooling)]
    return max(places, key=lambda place: fits[place].chosen_by)


def pooled(
    model: Any,
    documents: Sequence[np.ndarray],
    opening: int,
    sites: Mapping[str, Sequence[int] | None],
    poolings: Sequence[str],
    batch_size: int,
    name: str,
) -> dict[Place, np.ndarray]:
    """Return the hidden states of each story, averaged over its last 10 tokens or all of them, float64.

    Padding and the `opening` tokens before the story are excluded.  Memory does not grow with the length of stories.
    """
    places: dict[str, Place] = {}

    def reduce(found: Activations) -> dict[str, torch.Tensor]:
        means = {}
        for pooling in poolings:
            for site, layer in found.values:
                place = Place(pooling, site, layer)
                places[str(place)] = place
                means[str(place)] = found.means(site, layer, LAST if pooling == "last_10" else None)
        return means

    most = None if "mean" in poolings else LAST
    positions = [list(range(len(ids_T)))[opening:][-(most or len(ids_T)) :] for ids_T in documents]
    batches = captured(model, documents, dict(sites), positions, batch_size, f"capturing {name}", name)
    gathered = reduced(batches, len(documents), reduce)
    # In single precision rounding stops L-BFGS before it converges.
    return {place: gathered[key].astype(np.float64) for key, place in places.items()}


def read_all(
    values: Mapping[Place, Any],
    labels: Mapping[str, Labels],
    num_train: int,
    l2: Sequence[float],
    name: str,
    shuffled: bool = False,
) -> tuple[Fits, Fits]:
    """Probe each feature at each place; with `shuffled` on shuffled labels too, else the second dictionary is empty.

    Args:
        values: by place, of all stories, training stories first.
        labels: by feature.
    """
    fits: Fits = {feature: {} for feature in labels}
    controls: Fits = {feature: {} for feature in labels if shuffled}
    both = [(place, feature) for place in values for feature in labels]
    for place, feature in progress(both, f"probing {name}", "probes", len(both)):
        train_ND, test_MD = values[place][:num_train], values[place][num_train:]
        fit = read_feature(train_ND, test_MD, labels[feature], l2)
        fits[feature][place] = fit
        if shuffled:
            controls[feature][place] = read_shuffled(train_ND, test_MD, labels[feature], fit.l2)
    return fits, controls


@dataclass(frozen=True)
class Reading:
    """What is read of the stories.

    Attributes:
        name: of `READS`.
        stories, labels: by feature.
        without: why each other feature is left out.
    """

    name: str
    stories: dict[str, ProbeStories]
    labels: dict[str, Labels]
    without: dict[str, str]

    @classmethod
    def of(cls, name: str, stories: ProbeStories, features: Sequence[str], num_shuffles: int, seed: int) -> Reading:
        """Read the stories whole, or cut them for each feature.

        Raises:
            UsageError: where no feature has enough stories.
        """
        own, without = parted({f: before_marker(stories, f) if name == BEFORE_MARKER else stories for f in features})
        labels = {feature: Labels.of(*part.has(feature), num_shuffles, seed) for feature, part in own.items()}
        return cls(name, own, labels, without)

    def fit(
        self,
        numbers: Callable[[ProbeStories], Mapping[Place, Any]],
        l2: Sequence[float],
        name: str,
        shuffled: bool = False,
    ) -> tuple[Fits, Fits]:
        """Probe each feature as `read_all`; `numbers` returns the values of stories, by place."""
        fits, controls = Fits(), Fits()
        for features in by_values(self.labels, key=lambda feature: id(self.stories[feature])).values():
            stories, labels = self.stories[features[0]], {feature: self.labels[feature] for feature in features}
            own, shuffles = read_all(numbers(stories), labels, len(stories.train), l2, name, shuffled)
            fits, controls = fits | own, controls | shuffles
        return fits, controls


LENGTH, STATISTICS, WORDS, LAST_WORDS = "length", "text statistics", "bag of words", "last sentence"
UNTRAINED, SHUFFLED, MAJORITY = "untrained", "shuffled labels", "majority"


@dataclass(frozen=True)
class Series:
    """The probes of one source: a model, an untrained model of its shape, or the text.

    Attributes:
        name: its name in tables and figures.
        role: "finding" or "control".
        fits, shuffled: by feature and place.
        subject: the model; of an untrained one the model whose shape it has.
        run: the run that a checkpoint is of, else the name.
        control: for a model, the name of the untrained one of its shape.
        read: what is read of the stories, one of `READS`.
    """

    name: str
    role: str
    fits: Fits
    shuffled: Fits
    subject: Subject | None = None
    run: str = ""
    control: str = ""
    read: str = WHOLE


def read_texts(reading: Reading, l2: Sequence[float]) -> list[Series]:
    """Probe the text alone: its statistics and words; before the marker also its length and its last sentence."""
    numbers: dict[str, Callable[[Sequence[str], int], Any]] = {
        STATISTICS: lambda texts, _: text_statistics(texts),
        WORDS: bag_of_words,
    }
    if reading.name == BEFORE_MARKER:
        numbers[LENGTH] = lambda texts, _: text_length(texts)
        # What the last positions read.
        numbers[LAST_WORDS] = lambda texts, count: bag_of_words([split_sentences(text)[-1] for text in texts], count)

    def read(name: str) -> Series:
        def values(stories: ProbeStories) -> dict[Place, Any]:
            return {Place(name, "text"): numbers[name](stories.texts, len(stories.train))}

        fits = reading.fit(values, WORDS_L2 if name in (WORDS, LAST_WORDS) else l2, name)
        return Series(name, "control", *fits, read=reading.name)

    return [read(name) for name in numbers]


def read_models(
    subjects: Sequence[Subject],
    readings: Sequence[Reading],
    how: SubjectArguments,
    args: FeatureProbeArguments,
    batch_size: int,
) -> tuple[dict[str, list[Series]], dict[str, CaptureCheck]]:
    """Probe each model, and one with random weights of each shape.

    Returns:
        By reading the probes, controls last, and for each model the check that hooks leave its logits unchanged.
    """
    found: dict[str, list[Series]] = {reading.name: [] for reading in readings}
    checks = {}
    controls: dict[tuple[str, str, int], list[Series]] = {}
    for subject, run in zip(subjects, run_names(subjects), strict=True):
        sites, opening = sites_of(subject, args.layers), len(subject.opening())

        def read(model: Any, name: str, shuffled: bool = True) -> list[tuple[Fits, Fits]]:
            def values(stories: ProbeStories) -> dict[Place, np.ndarray]:
                documents = subject.story_ids(stories.texts)  # noqa: B023
                return pooled(model, documents, opening, sites, args.pooling, batch_size, name)  # noqa: B023

            return [reading.fit(values, args.l2, name, shuffled) for reading in readings]

        config = load_config(subject.reference).to_diff_dict() | {"_name_or_path": None}
        shape = (json.dumps(config, sort_keys=True, default=str), tokenizer_hash(subject.tokenizer), subject.window)
        model = load_subject(subject, how)
        first = next(iter(readings[0].stories.values())).texts[:1]
        checks[subject.label] = check_capture(model, subject.story_ids(first)[0].tolist(), sites, subject.label)
        fits = read(model, subject.label)
        del model  # before the next is loaded
        if shape not in controls:
            name = UNTRAINED if not controls else f"{UNTRAINED} (as {subject.label})"
            blank = zip(readings, read(untrained(subject, how), name, False), strict=True)
            controls[shape] = [Series(name, "control", *own, subject, read=reading.name) for reading, own in blank]
        for own, control in zip(fits, controls[shape], strict=True):
            found[control.read].append(Series(subject.label, "finding", *own, subject, run, control.name, control.read))
    for control in itertools.chain(*controls.values()):
        found[control.read].append(control)
    return found, checks


def sites_of(subject: Subject, layers: Sequence[str]) -> dict[str, list[int] | None]:
    """Return the sites to capture, checked before the weights are loaded.

    Raises:
        UsageError: for a layer that it does not have.
    """
    if not layers:
        return {"hidden": None, NORMED: None}
    numbers = [int(layer) for layer in layers if layer != NORMED]
    hidden = sorted(set(check_hidden(numbers, subject.depth, subject.reference.name, "--layers")))
    return ({"hidden": hidden} if hidden else {}) | ({NORMED: None} if NORMED in layers else {})


def distinct_steps(subjects: Sequence[Subject]) -> list[Subject]:
    """Leave out a run's final model where its last checkpoint is the same update, or its update is unknown."""
    places = [(run_folder(subject), subject.step) for subject in subjects]
    runs = {folder for (folder, _), subject in zip(places, subjects, strict=True) if subject.reference.step is not None}
    kept = []
    for number, (place, subject) in enumerate(zip(places, subjects, strict=True)):
        if subject.step is None and place[0] in runs:
            note(f"left out: {subject.reference.name}, as no run.json has its update; its checkpoints are probed")
        elif subject.step is None or place not in places[:number]:
            kept.append(subject)
    return kept
