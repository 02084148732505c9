"""Measures of a pairing: intervals of rare outcomes, exact probabilities, and the distance of groups."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import TEXT, tiny_model, tiny_tokenizer

from lm_trials.probing.bias.contexts import Context
from lm_trials.probing.bias.measures import distance, group_projections, preferences, share_difference
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.subjects import find_subjects, load_subject

UNIT = "share of stories"


@pytest.mark.parametrize("shares", [(0.3, 0.2), (0.04, 0.01), (0.9, 0.05), (0.02, 0.02)])
def test_the_interval_of_a_difference_of_shares_covers(shares):
    p, q = shares
    draws = np.random.default_rng(0).multinomial(200, [p, q, 1 - p - q], size=1500)
    found = [share_difference(int(one), int(other), 200, UNIT) for one, other, _ in draws]
    assert 0.93 < np.mean([each.lower <= p - q <= each.upper for each in found]) < 0.985
    assert all(each.lower < each.estimate < each.upper for each in found)


def test_outcomes_that_never_or_always_occur_have_an_interval_with_a_width():
    never, always, split = (share_difference(*counts, 64, UNIT) for counts in ((0, 0), (64, 0), (32, 32)))
    assert -0.1 < never.lower < 0 < never.upper < 0.1
    assert (always.estimate, always.upper) == (1, 1)
    assert 0.8 < always.lower < 1
    assert -0.3 < split.lower < 0 < split.upper < 0.3


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A tiny model with its tokenizer, and how it is loaded."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=330).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    how = SubjectArguments([str(folder)], use_cpu=True)
    (found,) = find_subjects(how)
    return found, load_subject(found, how)


def context(*leads):
    return Context(openings=("", ""), leads=leads, elsewhere=("", ""))


def test_the_preference_is_the_log_odds_ratio_of_the_models_own_probabilities(subject):
    found, model = subject
    words = TEXT.split()
    contexts = [context(f"One {one},", f"One {other},") for one, other in itertools.pairwise(words[2:15])]
    pairs = [("cat sat", "fox jumps"), ("dog", "mat on a")]
    odds_C = preferences(found, model, contexts, pairs, batch=5)

    def probability(lead, attribute):
        prompt, whole = (found.story_ids([text])[0] for text in (lead, f"{lead} {attribute}"))
        with torch.no_grad():
            shares = model(torch.tensor(whole)[None]).logits[0].double().softmax(-1)
        return np.prod([float(shares[at - 1, whole[at]]) for at in range(len(prompt), len(whole))])

    for value, each in zip(odds_C, contexts, strict=True):
        odds = [
            sum(probability(lead, one) for one, _ in pairs) / sum(probability(lead, other) for _, other in pairs)
            for lead in each.leads
        ]
        assert value == pytest.approx(np.log(odds[0] / odds[1]), abs=1e-4)
    swapped_C = preferences(found, model, [context(*each.leads[::-1]) for each in contexts], pairs, batch=64)
    assert swapped_C == pytest.approx(-odds_C, abs=1e-4)
    assert np.abs(odds_C).max() > 0.01


@pytest.mark.parametrize("apart", [0.0, 1.0, 6.0])
def test_the_distance_is_the_planted_one_and_its_interval_covers(apart):
    draws = np.random.default_rng(0).normal(size=(200, 80, 2)) + np.array([apart, 0.0])
    found = [distance(each_CG * 7 + 3, seed=0) for each_CG in draws]
    assert np.mean([each.estimate for each in found]) == pytest.approx(apart, abs=0.02 + 0.02 * apart)
    assert 0.9 < np.mean([each.lower <= apart <= each.upper for each in found]) < 0.99
    assert distance(draws[0], seed=0).estimate == pytest.approx(found[0].estimate)
    assert distance(draws[0][:, ::-1], seed=0).estimate == pytest.approx(-found[0].estimate)


def test_a_probe_reads_the_group_in_a_model_and_shuffled_labels_do_not(subject):
    found, model = subject
    words = TEXT.split()
    fitted, read = (
        found.story_ids([f"{start} sat on a {word}" for start in words[first::2] for word in ("cat", "dog")])
        for first in (0, 1)
    )
    projections = group_projections(model, fitted, read, num_shuffles=5, seed=0, batch=3)
    assert list(projections) == ["1", "2", "normed"]
    own, *shuffled = [distance(each_CG, 0).estimate for each_CG in projections["normed"]]
    assert projections["normed"].shape == (6, len(read) // 2, 2)
    assert own > 3
    assert abs(np.mean(shuffled)) < own / 3
    again = group_projections(model, fitted, read, num_shuffles=5, seed=0, batch=64)
    assert again["1"] == pytest.approx(projections["1"], abs=1e-3)
