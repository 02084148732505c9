"""Errors of comparisons over many draws: what is a replicate, what is paired, and what is corrected together."""

import numpy as np
import pytest

from lm_trials.estimates import NO_INTERVAL, Estimate
from lm_trials.trials.evaluations import SharedEvaluation
from lm_trials.trials.measurements import Measurement
from lm_trials.trials.results import as_one_family, measured_result, paired_result
from lm_trials.trials.runs import Arm, Run, arm_label

UNIT = "nats per token"


def arms_of(*roots_of_arms):
    """Arms of runs with these root seeds; every run has a seed of its own."""
    return [
        Arm(arm_label(place), tuple(run_of(root, 100 * place + number) for number, root in enumerate(roots)))
        for place, roots in enumerate(roots_of_arms)
    ]


def run_of(root, seed):
    return Run("", f"{root}-{seed}", {}, {"seed": seed, "data_seed": seed}, {}, None, None, root=root)


def over_seeds(arms, *values):
    """The p value of each difference between arms with these values, one for each run; 1 where there is no test."""
    estimates = tuple(Estimate(float(value), *NO_INTERVAL, 50, UNIT) for value in np.concatenate(values))
    (result,) = as_one_family([measured_result(arms, Measurement("m", estimates))])
    return [row["p"] for row in result.of("difference")] or [1.0]


@pytest.mark.parametrize(("num_roots", "per_root", "before"), [(1, 3, 0.445), (2, 3, 0.285), (3, 2, 0.18)])
def test_runs_of_one_root_seed_are_no_replicates(num_roots, per_root, before):
    """With no difference between recipes, and 80 % of the variance between root seeds; other roots in each arm.

    800 draws: 0.05 is 0.05 +- 0.015 (two standard errors).  `before`: with every run as a replicate.
    """
    generator = np.random.default_rng(num_roots)
    roots = np.repeat(np.arange(num_roots), per_root)
    arms, wrong = arms_of(roots, roots + 50), 0
    for _ in range(800):
        values = [
            np.repeat(generator.normal(0, 0.8**0.5, num_roots), per_root) + generator.normal(0, 0.2**0.5, len(roots))
            for _ in arms
        ]
        wrong += over_seeds(arms, *values)[0] < 0.05
    assert wrong / 800 <= (0.0 if num_roots == 1 else 0.06)
    assert wrong / 800 < before - 0.1


def test_pairs_of_parents_and_children_find_what_unrelated_arms_do_not():
    """Three root seeds with a correlation of 0.8 and a difference of 2 standard deviations: 0.77 against 0.44."""
    generator, power = np.random.default_rng(0), {}
    for name, roots in (("paired", (1, 2, 3)), ("not", (7, 8, 9))):
        arms, found = arms_of((1, 2, 3), roots), 0
        for _ in range(400):
            shared = generator.normal(0, 0.8**0.5, 3)
            first, second = (shared + generator.normal(0, 0.2**0.5, 3) for _ in arms)
            found += over_seeds(arms, first, second + 2)[0] < 0.05
        power[name] = found / 400
    assert power["paired"] > 0.7
    assert power["not"] < 0.5


def test_the_error_of_a_whole_command_is_that_of_one_test():
    """Four data sets and two arms without a difference, 3 seeds, data sets correlated: 0.16 to 0.18 without it."""
    generator, arms = np.random.default_rng(0), arms_of((1, 2, 3), (1, 2, 3), (1, 2, 3))
    wrong = alone = 0
    for _ in range(500):
        shared = generator.normal(0, 0.5**0.5, 9)
        results = []
        for _ in range(4):
            values = shared + generator.normal(0, 0.5**0.5, 9)
            estimates = tuple(Estimate(float(value), *NO_INTERVAL, 50, UNIT) for value in values)
            results.append(measured_result(arms, Measurement("m", estimates)))
        together = [row for result in as_one_family(results) for row in result.of("difference")]
        wrong += min(row["p_holm"] for row in together) < 0.05
        each = [row["p_holm"] for result in results for row in as_one_family([result])[0].of("difference")]
        alone += min(each) < 0.05
    assert wrong / 500 <= 0.06
    assert alone / 500 > 0.1


def test_runs_of_a_root_seed_are_averaged_before_anything_else():
    """Two fine-tunings that are equal count as one, in every row of the arm and the differences."""
    generator = np.random.default_rng(0)
    stories, sizes_N = generator.normal(20, 3, (4, 30)), np.full(30, 10)
    once = SharedEvaluation("d", stories, sizes_N, UNIT)
    twice = SharedEvaluation("d", stories[[0, 0, 1, 2, 2, 3]], sizes_N, UNIT)
    plain = paired_result(arms_of((1, 2), (1, 2)), once)
    doubled = paired_result(arms_of((1, 1, 2), (1, 1, 2)), twice)
    for kind in ("arm", "difference"):
        assert doubled.of(kind) == plain.of(kind)
    other = paired_result(arms_of((1, 2, 2), (1, 1, 2)), twice)
    assert other.of("difference") != plain.of("difference")
