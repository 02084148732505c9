"""Verdicts: from intervals, in the order that controls, missing runs and primary outcomes come."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.estimates import Estimate
from lm_trials.trials.contrasts import EXPECTATIONS
from lm_trials.trials.outcomes import Outcome, TrialRuns
from lm_trials.trials.trial import Contrast
from lm_trials.trials.trial_file import read_trial
from lm_trials.trials.verdict import (
    AGAINST,
    HOLDS,
    INCOMPLETE,
    NO_VERDICT,
    UNDECIDED,
    UNKNOWN,
    Finding,
    claimed_range,
    corrected,
    excluded_text,
    find,
    find_all,
    judge,
    p_value,
    verdict,
)

PATIENT = settings(deadline=None)  # the first example imports scipy
MIRRORED = {"greater": "less", "not_less": "not_greater", "equivalent": "equivalent"}
MIRRORED |= {other: one for one, other in MIRRORED.items()}


def outcome_of(differences_SN, expect="greater", margin=0.0):
    """An outcome of stories (several columns), or of one number per root seed."""
    differences_SN = np.asarray(differences_SN, dtype=float)
    contrast = Contrast("a - b", "primary", ("s", "a"), ("s", "b"), {}, expect=expect, margin=margin)
    seeds = tuple(range(len(differences_SN)))
    return Outcome(contrast, seeds, (), np.zeros((2, len(seeds))), "nats", differences_SN, "nats",
                   of_stories=differences_SN.shape[1] > 1)  # fmt: skip


def result_of(outcome):
    p = p_value(outcome)
    return judge(outcome.test().difference, p, outcome.contrast.expect, outcome.contrast.margin)


differences = st.lists(st.integers(-30, 30), min_size=3, max_size=6).map(lambda values: np.array(values)[:, None] / 10)
claims = st.tuples(st.sampled_from(EXPECTATIONS), st.sampled_from([0.25, 0.5, 1.0]))


@PATIENT
@given(differences, claims)
def test_a_mirrored_contrast_has_the_mirrored_verdict(values, claim):
    expect, margin = claim
    there = outcome_of(values, expect, margin)
    back = outcome_of(-values, MIRRORED[expect], margin)
    assert result_of(there) == result_of(back)
    assert p_value(there) == pytest.approx(p_value(back), nan_ok=True)


@PATIENT
@given(differences, claims)
def test_a_claim_and_its_opposite_do_not_both_hold(values, claim):
    expect, margin = claim
    opposite = {"greater": "not_greater", "less": "not_less", "not_less": "less", "not_greater": "greater"}
    result = result_of(outcome_of(values, expect, margin))
    if expect in opposite:
        # The range of one begins where that of the other ends, but for the sign of the margin.
        low, high = claimed_range(expect, margin)
        test = outcome_of(values).test().difference
        assert (result == AGAINST) == (test.upper < low or test.lower > high)
    else:
        assert not (result == HOLDS and abs(values.mean()) > margin)
    assert result in (HOLDS, AGAINST, UNDECIDED)


@PATIENT
@given(differences, claims)
def test_a_decision_is_one_of_the_p_value(values, claim):
    """`p` is below 0.05 exactly where the interval excludes the end of the claim, or two one-sided tests reject."""
    outcome = outcome_of(values, *claim)
    p, result = p_value(outcome), result_of(outcome)
    if abs(p - 0.05) > 1e-9 and not math.isnan(p):
        assert (p < 0.05) == (result == HOLDS or (result == AGAINST and claim[0] != "equivalent"))


@PATIENT
@given(st.floats(-2, 2), st.floats(0, 2), st.sampled_from([0.25, 0.5]))
def test_intervals_at_hand(centre, half, margin):
    interval = Estimate(centre, centre - half, centre + half, 5, "nats")
    found = {expect: judge(interval, 1.0, expect, margin) for expect in EXPECTATIONS}
    assert (found["greater"] == HOLDS) == (centre - half > margin)
    assert (found["greater"] == AGAINST) == (centre + half < margin)
    assert (found["less"] == HOLDS) == (centre + half < -margin)
    assert (found["not_less"] == HOLDS) == (centre - half > -margin)
    assert (found["not_greater"] == AGAINST) == (centre - half > margin)
    assert (found["equivalent"] == AGAINST) == (centre - half > margin or centre + half < -margin)


def test_the_interval_of_equivalence_has_90_percent():
    values = np.array([0.1, -0.1, 0.2, -0.2, 0.05])[:, None]
    test = outcome_of(values).test().difference
    ratio = 2.131847 / 2.776445  # quantiles 0.95 and 0.975 of Student's t with 4 degrees of freedom
    end = test.estimate + (test.upper - test.estimate) * ratio
    assert result_of(outcome_of(values, "equivalent", end * 1.001)) == HOLDS
    assert result_of(outcome_of(values, "equivalent", end * 0.999)) == UNDECIDED
    assert test.upper > end * 1.001


@pytest.mark.parametrize(("expect", "truth"), [("greater", 0.5), ("not_less", -0.5), ("equivalent", 0.5)])
def test_at_the_margin_a_claim_holds_in_at_most_5_percent(expect, truth):
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        seeds, stories = generator.normal(0, 0.3, (5, 1)), generator.normal(0, 2.0, 60)
        values = truth + seeds + stories + generator.normal(0, 1.0, (5, 60))
        held += result_of(outcome_of(values, expect, 0.5)) == HOLDS
    assert held / 400 <= 0.05
    assert result_of(outcome_of(generator.normal(0, 0.1, (5, 60)) + 0.2, "not_less", 0.5)) == HOLDS


def findings_of(trial):
    return find_all(trial, TrialRuns(Path("runs/t")))


def test_a_trial_from_its_files(make_trial):
    trial = read_trial(make_trial())
    findings = findings_of(trial)
    assert [each.result for each in findings] == [HOLDS, HOLDS, AGAINST]
    said = verdict(trial, findings)
    assert said.word == HOLDS
    assert said.reason.startswith("loss on recovery: never - seen is +0.19")
    assert "over 4 root seeds and 40 stories; claimed: above 0.05" in said.reason
    assert verdict(trial, findings, ["recover-seen-s0"]).word == INCOMPLETE
    one = verdict(replace(trial, seeds=(0,)), findings)
    assert (one.word, "nothing can be said about the recipe" in one.reason) == (NO_VERDICT, True)


def test_a_control_that_shows_the_effect_or_cannot_be_computed_leaves_no_verdict(make_trial):
    trial = read_trial(make_trial(effects={("other", "never"): 2.0}))
    findings = findings_of(trial)
    assert [each.result for each in findings] == [HOLDS, HOLDS, HOLDS]
    said = verdict(trial, findings)
    assert said.word == NO_VERDICT
    assert said.reason.startswith("the control loss on other: never - seen shows the effect: +0.2")
    Path("runs/t/recover-never-s1/eval/other-validation/per_story.parquet").unlink()
    said = verdict(trial, findings_of(trial))
    assert said.word == NO_VERDICT
    assert "the control loss on other: never - seen: runs/t/recover-never-s1 has no eval/other" in said.reason


def test_several_primary_contrasts_must_all_hold(make_trial):
    trial = read_trial(make_trial())
    holding = findings_of(trial)[0]
    for result, word in ((UNDECIDED, UNDECIDED), (AGAINST, AGAINST), (HOLDS, HOLDS)):
        assert verdict(trial, [holding, replace(holding, result=result)]).word == word
    against, undecided = replace(holding, result=AGAINST), replace(holding, result=UNDECIDED)
    assert verdict(trial, [undecided, against]).word == AGAINST
    assert verdict(trial, [holding, replace(holding, result=UNKNOWN, problem="gone")]).reason == "gone"


def test_secondary_contrasts_are_one_family(make_trial):
    trial = read_trial(make_trial())
    secondary = findings_of(trial)[1]
    named = [
        replace(secondary, contrast=replace(secondary.contrast, name=name), p=p, result=HOLDS)
        for name, p in (("a", 0.01), ("b", 0.03), ("c", 0.04))
    ]
    primary = replace(named[2], contrast=replace(secondary.contrast, name="d", role="primary"))
    found = corrected([*named, primary])
    assert [each.p_holm for each in found[:3]] == pytest.approx([0.03, 0.06, 0.06])
    assert [each.result for each in found] == [HOLDS, UNDECIDED, UNDECIDED, HOLDS]
    assert math.isnan(found[3].p_holm)


def test_the_same_value_in_every_root_seed_has_no_interval_and_decides_nothing():
    outcome = outcome_of(np.full((4, 1), 2.0))
    assert math.isnan(outcome.test().difference.lower)
    assert result_of(outcome) == UNDECIDED


def test_what_cannot_be_read_is_a_finding_with_its_reason(make_trial):
    trial = read_trial(make_trial(skip=["recover-seen-s3", "recover-seen-s3/evaluate-1"]))
    found = find(trial.contrasts[0], TrialRuns(Path("runs/t")), trial.seeds)
    assert found.result == UNKNOWN
    assert "runs/t/recover-seen-s3 holds no run.json" in found.problem


@pytest.mark.parametrize("role", ["control", "primary"])
@pytest.mark.parametrize("claim", [("greater", 0.5), ("less", 0.5), ("equivalent", 0.5), ("not_less", 0.5)])
@pytest.mark.parametrize("size", [-2.0, -0.25, 0.0, 0.25, 2.0])
def test_equal_differences_have_no_interval_and_block_only_as_a_control_that_shows_the_effect(role, claim, size):
    outcome = outcome_of([[size]] * 4, *claim)
    own = Finding(replace(outcome.contrast, role=role), outcome, outcome.test(), p_value(outcome), UNDECIDED)
    low, high = claimed_range(*claim)
    blocked = verdict(SimpleNamespace(seeds=(0, 1, 2, 3)), [own]).reason.startswith("the control a - b shows")
    assert blocked == (role == "control" and low < size < high)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.99, 1.0, 1.5, 20.0])
@pytest.mark.parametrize("expect", EXPECTATIONS)
def test_p_values_of_shares_agree_with_the_interval_for_any_margin(margin, expect):
    margin = margin or (0.0 if expect in ("greater", "less") else 0.01)
    outcome = replace(outcome_of([[0.3], [0.4], [0.35]], expect, margin), unit="share", values_AS=np.ones((2, 3)))
    p, result = p_value(outcome), result_of(outcome)
    assert (p < 0.05) == (result in (HOLDS, AGAINST) and (expect != "equivalent" or result == HOLDS))


def judged(differences, role, expect="greater", margin=0.0, unit="nats"):
    outcome = replace(outcome_of(differences, expect, margin), unit=unit)
    outcome = replace(outcome, contrast=replace(outcome.contrast, role=role, name=role))
    return Finding(outcome.contrast, outcome, outcome.test(), p_value(outcome), result_of(outcome))


@pytest.mark.parametrize(
    ("differences", "claim", "unit", "excluded", "named"),
    [
        ([-0.1, 0.1, 0.05, -0.05], ("greater", 0.02), "nats", "above +0.15", False),
        ([-3.0, 3.0, 1.0, -1.5], ("greater", 0.02), "nats", "above +4.1", True),
        ([-3.0, 3.0, 1.0, -1.5], ("greater", 0.02), "updates", "above +4.1", False),  # not comparable
        ([-3.0, 3.0, 1.0, -1.5], ("less", 0.02), "nats", "below -4.4", True),
        ([-3.0, 3.0, 1.0, -1.5], ("not_less", 0.02), "nats", "above +4.1", True),
        ([5.0, 5.2, 5.1, 4.9], ("less", 0.02), "nats", "below +4.84", False),  # as the other direction would invalidate
        ([5.0, 5.2, 5.1, 4.9], ("equivalent", 0.02), "nats", "below +4.84 and above +5.26", False),
        ([0.0, 0.0, 0.0, 0.0], ("greater", 0.02), "nats", "none", True),  # no interval
    ],
)
def test_a_control_that_does_not_exclude_the_primary_effect_is_named(differences, claim, unit, excluded, named):
    primary = judged([[1.0], [1.1], [0.9], [1.05]], "primary")
    control = judged(np.array(differences)[:, None], "control", *claim, unit)
    assert excluded_text(control) == excluded
    said = verdict(SimpleNamespace(seeds=(0, 1, 2, 3)), [primary, control])
    assert said.word == HOLDS
    assert ("the control control does not exclude an effect of this size: " in said.reason) == named
    same = judged([[0.001], [0.002], [0.001], [0.002]], "primary", "equivalent", 0.05)  # claims no effect
    with_same = verdict(SimpleNamespace(seeds=(0, 1, 2, 3)), [primary, same, control])
    assert ("the control control does not exclude" in with_same.reason) == named
    undecided = verdict(SimpleNamespace(seeds=(0, 1, 2, 3)), [judged([[-1.0], [1.0], [0.5]], "primary"), control])
    assert (undecided.word, "exclude" in undecided.reason) == (UNDECIDED, False)
