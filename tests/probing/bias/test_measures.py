"""Measures of a pairing: intervals of rare outcomes, exact probabilities, and a planted shift of hidden states."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import TEXT, tiny_model, tiny_tokenizer

from lm_trials.probing.bias.contexts import Context
from lm_trials.probing.bias.measures import preferences, read_shifts, share_difference
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
    return Context(openings=("", ""), leads=leads, cued=("", ""))


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


def planted(bias, draws, contexts=200, width=16, centred=True):
    """States with a large direction of the group, and one of the attribute, along which the group moves them too."""
    group_D, attribute_D = np.eye(width)[:2] * [[9.0], [2.0]]
    group_D = group_D + bias * attribute_D

    def states(attribute):
        noise_CGKD = draws.normal(size=(contexts, 2, len(attribute), width))
        sides_G = np.array([0.5, -0.5])[:, None, None]
        return (noise_CGKD + sides_G * group_D + np.array(attribute)[:, None] * attribute_D).reshape(-1, width)

    train_ND, cued_ND, bare_ND = states([0.5, -0.5]), states([0.5, -0.5]), states([0.0])
    first_N = np.tile([True, False], 2 * contexts)
    group_N = np.arange(len(first_N)) // 2 % 2
    shuffled = [draws.permutation(first_N) for _ in range(3)]
    return read_shifts(
        train_ND, cued_ND, bare_ND, [first_N, *shuffled], group_N if centred else draws.permutation(group_N)
    )


@pytest.mark.parametrize("bias", [0.0, 0.5, -1.0])
def test_the_group_moves_states_by_the_planted_part_of_the_separation(bias):
    shifts = planted(bias, np.random.default_rng(0))
    separation = shifts.separations_C.mean()
    assert shifts.shifts_SC.shape == (4, 200)
    assert shifts.shifts_SC[0].mean() / separation == pytest.approx(bias, abs=0.15)
    assert shifts.right_N.mean() > 0.8


def test_a_fit_with_the_groups_means_would_hide_the_shift():
    shifts = planted(1.0, np.random.default_rng(0), centred=False)
    assert abs(shifts.shifts_SC[0].mean() / shifts.separations_C.mean()) < 0.5
