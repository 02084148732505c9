"""Feature probes as arithmetic: what is planted is found, chance is told as chance, the test chooses nothing."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, tiny_model

from lm_trials.estimates import story_weights
from lm_trials.probing.feature_probe.fits import (
    BALANCED,
    Labels,
    Place,
    Reading,
    Series,
    above_chance,
    chosen,
    difference,
    fit_probe,
    pooled,
    read_all,
    read_feature,
    read_shuffled,
    read_texts,
    score,
    score_shuffled,
)
from lm_trials.probing.feature_probe.report import difference_rows
from lm_trials.probing.feature_probe.stories import ProbeStories, bag_of_words, text_length, text_statistics
from lm_trials.stories.records import make_record

L2 = [1.0, 100.0]
NAMES, PETS = ["Tom", "Sue", "Ben", "Lily"], ["cat", "dog", "hen", "cow"]


def planted(seed=0, num_train=400, num_test=300, width=12, strength=4.0, share=0.5, shuffles=8):
    """Numbers of stories in which one direction, and no single coordinate, tells a feature; the rest is noise."""
    generator = np.random.default_rng(seed)
    has_N = generator.random(num_train + num_test) < share
    direction = generator.normal(size=width)
    values = generator.normal(size=(len(has_N), width)) + strength * np.outer(has_N, direction / 3)
    labels = Labels.of(has_N[:num_train], has_N[num_train:], num_shuffles=shuffles, seed=seed)
    return values[:num_train] * 100 + 7, values[num_train:] * 100 + 7, labels


def balanced(labels, right_M):
    return score(labels.test_M, right_M, BALANCED).estimate


def test_a_planted_direction_is_found_and_shuffled_labels_find_nothing():
    train, test, labels = planted()
    assert balanced(labels, read_feature(train, test, labels, L2).right_M) > 0.95
    shuffled = read_shuffled(train, test, labels, 10.0).right_M
    found = score_shuffled(labels.test_M, shuffled)
    assert found.lower < 0.5 < found.upper
    assert abs(found.estimate - 0.5) < 0.15


def test_where_nothing_is_planted_nothing_is_shown():
    train, test, labels = planted(strength=0.0)
    reading = read_feature(train, test, labels, L2)
    assert abs(balanced(labels, reading.right_M) - 0.5) < 0.08
    found = above_chance(labels.test_M, reading.right_M)
    assert found.lower < 0 < found.upper
    shuffled = read_shuffled(train, test, labels, reading.l2).right_M
    assert abs(score_shuffled(labels.test_M, shuffled).estimate - 0.5) < 0.05


def test_a_leak_would_be_told_as_a_finding():
    """Why a story may not be in both parts: noise is read perfectly from stories that were fitted on."""
    train, test, labels = planted(strength=0.0, num_train=60, num_test=60, width=200)
    honest = read_feature(train, test, labels, [0.01])
    leaky = Labels(labels.train_N, labels.train_N, labels.choice_N, labels.shuffled_SN)
    leaked = read_feature(train, train, leaky, [0.01])
    assert score(leaky.test_M, leaked.right_M, BALANCED).estimate == 1
    assert above_chance(labels.test_M, honest.right_M).lower < 0


def test_the_fit_is_where_the_stated_objective_is_flat():
    """Held against the gradient, worked out here: a balanced sum of losses and l2 / 2 times the squared length."""
    train, _, labels = planted(share=0.2, strength=1.0)
    has_N = labels.train_N.astype(float)
    for l2 in (1.0, 50.0):
        pipeline, ended = fit_probe(train, labels.train_N, l2)
        assert ended
        values = (train - train.mean(axis=0)) / train.std(axis=0)
        weights = np.where(has_N, 0.5 / has_N.mean(), 0.5 / (1 - has_N.mean()))
        model = pipeline[-1]

        def slope(coefficients, bias, values=values, weights=weights, l2=l2):
            apart = weights * (1 / (1 + np.exp(-(values @ coefficients + bias))) - has_N)
            return np.append(values.T @ apart + l2 * coefficients, apart.sum())

        assert np.abs(slope(model.coef_[0], model.intercept_[0])).max() < 0.1
        assert np.abs(slope(1.2 * model.coef_[0], model.intercept_[0])).max() > 1  # the control: not flat elsewhere


def test_rare_features_are_not_lost_to_the_majority():
    train, test, labels = planted(share=0.08, strength=2.0, num_train=800)
    reading = read_feature(train, test, labels, L2)
    assert balanced(labels, reading.right_M) > 0.8
    majority = np.array(labels.test_M == False)  # noqa: E712
    assert score(labels.test_M, majority, "accuracy").estimate > 0.85  # accuracy alone would flatter it
    assert score(labels.test_M, majority, BALANCED).estimate == 0.5


def test_the_test_stories_choose_nothing():
    """Other test labels change the score, and neither the penalty nor the place."""
    values = {
        Place("mean", "hidden", layer): np.concatenate(planted(seed=1, strength=0.5 * layer)[:2]) for layer in range(4)
    }
    labels = planted(seed=1)[2]
    other = Labels(labels.train_N, ~labels.test_M, labels.choice_N, labels.shuffled_SN)
    first, _ = read_all(values, {"Twist": labels}, 400, L2, "a")
    second, _ = read_all(values, {"Twist": other}, 400, L2, "a")
    place = chosen(first["Twist"])
    assert place.layer == 3 == chosen(second["Twist"]).layer
    assert [r.l2 for r in first["Twist"].values()] == [r.l2 for r in second["Twist"].values()]
    assert balanced(labels, first["Twist"][place].right_M) > 0.8 > 0.2 > balanced(other, second["Twist"][place].right_M)
    # Another choosing part may choose otherwise; here only that it is what chooses.
    flipped = Labels(labels.train_N ^ labels.choice_N, labels.test_M, labels.choice_N, labels.shuffled_SN)
    third, _ = read_all(values, {"Twist": flipped}, 400, L2, "a")
    assert third["Twist"][Place("mean", "hidden", 3)].chosen_by < 0.5 < first["Twist"][place].chosen_by


def test_of_poolings_each_has_its_choice_and_one_is_best():
    _, _, labels = planted()
    strong, weak = (np.concatenate(planted(strength=s)[:2]) for s in (4.0, 0.5))
    values = {Place("last_10", "hidden", 0): weak, Place("mean", "hidden", 0): strong}
    readings, shuffled = read_all(values, {"Twist": labels}, 400, L2, "a", shuffled=True)
    assert chosen(readings["Twist"]).pooling == "mean"
    assert chosen(readings["Twist"], "last_10").pooling == "last_10"
    assert shuffled["Twist"][Place("mean", "hidden", 0)].right_M.shape == (8, 300)


def test_what_does_not_come_to_an_end_is_told(monkeypatch):
    train, test, labels = planted()
    assert read_feature(train, test, labels, [10.0]).converged
    monkeypatch.setattr("lm_trials.probing.feature_probe.fits.MOST_UPDATES", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read_feature(train, test, labels, [0.001]).converged


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=30, max_size=80), st.integers(0, 5))
def test_the_parts_of_the_training_stories(has, seed):
    train_N = np.array([True] * 4 + [False] * 4 + has)
    labels = Labels.of(train_N, train_N, num_shuffles=3, seed=seed)
    for value in (True, False):
        own = train_N == value
        assert labels.choice_N[own].sum() == round(0.25 * own.sum())
    assert (labels.shuffled_SN.sum(axis=1) == train_N.sum()).all()
    again = Labels.of(train_N, ~train_N, num_shuffles=3, seed=seed)  # whatever the test labels
    assert (labels.choice_N == again.choice_N).all()
    assert (labels.shuffled_SN == again.shuffled_SN).all()
    assert not (labels.choice_N == Labels.of(train_N, train_N, 3, seed + 1).choice_N).all() or len(set(train_N)) < 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(12, 60))
def test_differences_are_paired(seed, count):
    generator = np.random.default_rng(seed)
    has_M, right_M, other_M = (generator.random(count) < 0.5 for _ in range(3))
    has_M[:2] = True, False
    found, back = difference(has_M, right_M, other_M), difference(has_M, other_M, right_M)
    assert found.estimate == pytest.approx(-back.estimate)
    assert found.lower == pytest.approx(-back.upper, nan_ok=True)
    assert np.isnan(found.lower) or -1 < found.lower < found.upper < 1
    alone = [(m[has_M].mean() + m[~has_M].mean()) / 2 for m in (right_M, other_M)]
    assert found.estimate == pytest.approx(alone[0] - alone[1])
    same = difference(has_M, right_M, right_M)
    assert same.estimate == 0
    assert np.isnan([same.lower, same.upper]).all()


def test_a_paired_difference_is_surer_than_an_unpaired_one():
    generator = np.random.default_rng(0)
    has_M, right_M = np.arange(400) % 2 == 0, generator.random(400) < 0.7
    other_M = np.where(np.arange(400) % 40 < 2, ~right_M, right_M)
    paired = difference(has_M, right_M, other_M)
    shuffled = difference(has_M, right_M, generator.permutation(other_M))
    assert paired.upper - paired.lower < 0.6 * (shuffled.upper - shuffled.lower)


def test_a_difference_from_shuffles_varies_with_them_too():
    has_M, right_M = np.arange(200) % 2 == 0, np.ones(200)
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 200))
    swinging, steady = np.array([[0.0], [1.0], [0.0], [1.0]]) + noise, 0.5 + noise
    wide, narrow = difference(has_M, right_M, swinging), difference(has_M, right_M, steady)
    assert wide.estimate == pytest.approx(0.5, abs=0.02) == narrow.estimate
    assert 2 > wide.upper - wide.lower > 0.5 > narrow.upper - narrow.lower > 0


def test_two_perfect_probes_have_a_difference_without_an_interval():
    has_M = np.arange(40) % 2 == 0
    for other in (np.ones(40), np.ones((3, 40))):
        found = difference(has_M, np.ones(40), other)
        assert found.estimate == 0
        assert np.isnan([found.lower, found.upper]).all()


def test_the_bootstrap_of_a_difference_is_that_of_the_stories():
    """Held against resamples and standard errors computed here, with one weight for each story."""
    generator = np.random.default_rng(1)
    has_M, right_M, other_M = (generator.random(50) < 0.6 for _ in range(3))
    gains = right_M.astype(float) - other_M

    def with_error(weights):
        value, rest = 0.0, np.zeros(50)
        for member in (has_M, ~has_M):
            rate = (weights * gains * member).sum() / (weights * member).sum()
            value += rate / 2
            rest += member * (gains - rate) / (weights * member).sum() / 2
        n = weights.sum()
        return value, np.sqrt((weights * rest**2).sum() * n / (n - 1))

    value, error = with_error(np.ones(50))
    resampled = [with_error(weights) for weights in story_weights(3, 0, 50, 1000).T]
    far = sorted((np.arctanh(v) - np.arctanh(value)) * (1 - v * v) / e for v, e in resampled)
    step = error / (1 - value**2)
    found = difference(has_M, right_M, other_M, seed=3)
    assert found.lower == pytest.approx(np.tanh(np.arctanh(value) - step * far[-1 - 24]))
    assert found.upper == pytest.approx(np.tanh(np.arctanh(value) - step * far[24]))


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_is_of_the_storys_own_tokens(kind):
    """Held against a pass over each text alone, without padding or hooks; batches change nothing."""
    model = tiny_model(kind)
    generator = np.random.default_rng(0)
    documents = [np.append([1], generator.integers(3, 64, size=length)) for length in (3, 25, 9, 40, 11)]
    found = pooled(model, documents, 1, {"hidden": None, "normed": None}, ["last_10", "mean"], 4, "a")
    for row, ids in enumerate(documents):
        with torch.no_grad():
            states = model(torch.tensor(ids)[None], output_hidden_states=True).hidden_states
        for layer in (0, 1):
            last, mean = states[layer][0][1:][-10:].mean(0), states[layer][0][1:].mean(0)
            np.testing.assert_allclose(found[Place("last_10", "hidden", layer)][row], last, atol=1e-4)
            np.testing.assert_allclose(found[Place("mean", "hidden", layer)][row], mean, atol=1e-4)
        normed = states[2][0][1:].mean(0)
        np.testing.assert_allclose(found[Place("mean", "normed", 2)][row], normed, atol=1e-4)
        assert np.abs(found[Place("mean", "hidden", 2)][row] - normed.numpy()).max() > 1e-2
        with_mark = states[1][0].mean(0).numpy()  # the control: the opening mark would change the mean
        assert np.abs(found[Place("mean", "hidden", 1)][row] - with_mark).max() > 1e-3
    alone = pooled(model, documents, 1, {"hidden": [1]}, ["last_10"], 1, "a")
    assert list(alone) == [Place("last_10", "hidden", 1)]
    for place, values in alone.items():
        np.testing.assert_allclose(values, found[place], atol=1e-5)


def test_text_statistics_count_what_a_reader_would():
    counted = text_statistics(['"Hi!" said Tom. Tom ran.\nWhy, Tom?', ""])
    assert counted[0].tolist() == [34, 7, 3, 2, 1, 2, 1, 1, 0, 1, 3, pytest.approx(5 / 7)]
    assert counted[1].tolist() == [0, 0, 1] + [0] * 9


def test_words_are_known_from_the_training_stories_alone():
    stories = ["a cat sat", "a cat ran", "a dog dog dog sat", "zebra zebra cat"]
    weights = bag_of_words(stories, 2)
    assert weights.shape == (4, 3)  # a, cat, a cat: what two of the first two have
    assert weights[3].nnz == 1
    assert bag_of_words(stories, 4).shape[1] > 3


def is_odd(story):
    """Whether a name and a pet of a story's beginning are of different halves: no word and no pair of words tells."""
    name, pet = re.match(r"(\w+) was small\. \w+ had a (\w+)", story).groups()
    return (NAMES.index(name) < 2) != (PETS.index(pet) < 2)


def foretold(count, seed=0):
    """Stories that have a twist where their beginning `is_odd`; these are longer."""
    generator = np.random.default_rng(seed)
    records = {}
    while len(records) < count:
        name, other = generator.choice(NAMES, 2)
        middle = [f"{other} {verb} {generator.integers(900)}." for verb in generator.choice(["ran", "sat", "ate"], 9)]
        story = f"{name} was small. {other} had a {generator.choice(PETS)}. "
        twist, place = is_odd(story), generator.integers(1, 6)
        told = [*middle[:place], f"It turned out that {name} was a king.", *middle[place:]]
        story += " ".join(told if twist else middle[:7])
        record = make_record(story, features=["Twist"] * int(twist))
        records[record["record_id"]] = record
    return list(records.values())


def state_of(signal, seed=1):
    """The states of a synthetic model that is told `signal` by what it reads, in one direction among noise."""

    def values(stories):
        generator = np.random.default_rng(seed)
        told_N = np.array([signal(story) for story in stories.texts])
        noise_ND = generator.normal(size=(len(told_N), 8))
        return {Place("last_10", "hidden", 1): noise_ND + 3 * np.outer(told_N, np.ones(8) / np.sqrt(8))}

    return values


def test_before_the_marker_the_marker_and_the_length_tell_nothing_and_a_state_that_foretells_is_found():
    records = foretold(900)
    stories = ProbeStories(records[:600], records[600:], "records")
    readings = {name: Reading.of(name, stories, ["Twist"], 4, 0) for name in ("whole", "before_marker")}
    found, beyond = {}, {}
    for read, reading in readings.items():
        texts = read_texts(reading, L2)
        for name, signal in {"foretells": is_odd, "reads": lambda story: "turned" in story}.items():
            fits = reading.fit(state_of(signal), L2, name, shuffled=True)
            model = Series(name, "finding", *fits, control="text statistics", read=read)
            rows = difference_rows([model, *texts], reading, 0)
            beyond[read, name] = min(row["lower"] for row in rows)
            for one in (*texts, model):
                (fit,) = one.fits["Twist"].values()
                found[read, one.name] = score(reading.labels["Twist"].test_M, fit.right_M, BALANCED)
    # In whole stories, words and length predict the twist, so a model that predicts it is not beyond the controls.
    for name in ("text statistics", "bag of words", "reads"):
        assert found["whole", name].estimate > 0.9
    assert beyond["whole", "foretells"] < 0
    for name in ("length", "text statistics", "bag of words", "last sentence", "reads"):
        control = found["before_marker", name]
        assert control.lower < 0.5 < control.upper, name
    assert found["before_marker", "foretells"].estimate > 0.85
    assert beyond["before_marker", "foretells"] > 0.2
    assert beyond["before_marker", "reads"] < 0
    # Without the pairs the length would tell: the same beginnings beside whole stories without the twist.
    reading = readings["before_marker"]
    cut, whole = reading.stories["Twist"], {record["record_id"]: record["story"] for record in records}
    uncut = ProbeStories(
        *([{**r, "story": r["story"] if r["features"] else whole[r["record_id"]]} for r in part]
          for part in (cut.train, cut.test)), "records"
    )  # fmt: skip
    fits, _ = reading.fit(lambda _: {Place("length", "text"): text_length(uncut.texts)}, L2, "length")
    assert score(reading.labels["Twist"].test_M, fits["Twist"][Place("length", "text")].right_M, BALANCED).lower > 0.6


def test_stories_that_features_share_are_read_once():
    records = [make_record(f"{n} ran.", features=["Twist"] * (n % 2) + ["Conflict"] * (n % 3 == 0)) for n in range(200)]
    shared = ProbeStories(records[:150], records[150:], "records")
    asked = []

    def values(stories):
        asked.append(stories)
        return {Place("mean", "hidden", 0): np.arange(200.0)[:, None]}

    fits, shuffled = Reading.of("whole", shared, ["Twist", "Conflict"], 2, 0).fit(values, L2, "a")
    assert asked == [shared]
    assert list(fits) == ["Twist", "Conflict"]
    assert shuffled == {}
