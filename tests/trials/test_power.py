"""Power against published numbers, integrals and simulations; the program on runs written by hand."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from lm_trials.trials.power import MOST_SEEDS, Spread, equivalence_power, main, paired_power, seeds_needed


def over_spreads(seeds, power_given):
    """Average a power given the sample's standard deviation over that deviation's distribution."""
    freedom = seeds - 1
    density = stats.chi(freedom, scale=1 / math.sqrt(freedom)).pdf
    return integrate.quad(lambda sd: power_given(sd) * density(sd), 0, 10, limit=200)[0]


@pytest.mark.parametrize(
    ("seeds", "effect", "alpha"), [(3, 1.0, 0.05), (10, 0.9, 0.05), (6, 2.0, 0.01), (40, 0.3, 0.2)]
)
def test_power_is_the_integral_over_the_samples_spread(seeds, effect, alpha):
    shift = effect * math.sqrt(seeds)

    def differs(sd):
        limit = stats.t.ppf(1 - alpha / 2, seeds - 1) * sd
        return stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift)

    def equivalent(sd):
        return max(2 * stats.norm.cdf(shift - stats.t.ppf(1 - alpha, seeds - 1) * sd) - 1, 0)

    assert paired_power(seeds, effect, alpha) == pytest.approx(over_spreads(seeds, differs), abs=1e-6)
    assert equivalence_power(seeds, effect, alpha) == pytest.approx(over_spreads(seeds, equivalent), abs=1e-4)
    assert paired_power(seeds + 1, effect, alpha) > paired_power(seeds, effect, alpha) + 0.001


def test_power_is_the_share_of_significant_tests():
    rows = np.random.default_rng(0).normal(0.0, 1.0, (1500, 6))
    assert np.mean(stats.ttest_1samp(rows + 1.2, 0, axis=1).pvalue < 0.05) == pytest.approx(
        paired_power(6, 1.2), abs=0.03
    )
    sides = [stats.ttest_1samp(rows, -1.4, axis=1, alternative="greater")]
    sides += [stats.ttest_1samp(rows, 1.4, axis=1, alternative="less")]
    found = np.max([side.pvalue for side in sides], axis=0) < 0.05
    assert np.mean(found) == pytest.approx(equivalence_power(6, 1.4), abs=0.03)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (0.019 / 0.022, 13)])
def test_the_published_numbers_of_pairs(effect, seeds):
    """G*Power's numbers for a paired t test with power 0.8; the last is this project's diversity effect."""
    assert seeds_needed(paired_power, effect, 0.8, 0.05) == seeds
    assert paired_power(seeds - 1, effect) < 0.8 <= paired_power(seeds, effect)


def test_numbers_out_of_reach():
    assert seeds_needed(paired_power, 1e-6, 0.8, 0.05) == MOST_SEEDS + 1
    assert seeds_needed(paired_power, math.inf, 0.8, 0.05) == 2
    assert paired_power(10, 5.0) == pytest.approx(1)  # scipy's lower tail is NaN here
    assert seeds_needed(equivalence_power, 0.0, 0.8, 0.05) == MOST_SEEDS + 1


def test_the_interval_of_a_spread_covers_the_true_one():
    spreads = [Spread("", float(sd), seeds=4) for sd in np.random.default_rng(0).normal(0, 2, (1000, 4)).std(1, ddof=1)]
    covered = [spread.interval[0] < 2 < spread.interval[1] for spread in spreads]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert Spread("", 2.0).interval == ()


def test_a_stated_spread(capsys):
    rows = main(["--difference", "0.019", "--spread", "0.022"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "root seeds 13" in shown
    assert {row["seeds"]: row["estimate"] for row in rows}[13] == pytest.approx(paired_power(13, 0.019 / 0.022))
    main(["--difference", "0.0001", "--spread", "22"])
    assert "more than 100,000" in capsys.readouterr().out
    main(["--margin", "0.022", "--spread", "0.022"])
    assert "root seeds 11" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def six_runs(make_run):
    """Arms a and b with seeds 1, 2 and 3: differences of 0.1, 0.2 and 0.3; an hour of training each."""
    names = []
    for arm, rate in (("a", 0.004), ("b", 0.001)):
        for seed in (1, 2, 3):
            nats = [10.0 + (arm == "b") * seed + story / 7 for story in range(12)]
            names.append(make_run(f"{arm}-s{seed}", seed=seed, change={"learning_rate": rate}, nats=nats))
            state = {"global_step": 100, "log_history": [{"step": 100, "train_runtime": 3600.0 + seed}, {"step": 100}]}
            (Path(names[-1]) / "trainer_state.json").write_text(json.dumps(state))
    return names


def test_the_spread_and_the_time_of_runs(six_runs, capsys):
    rows = main(["--difference", "0.1", "--runs", *six_runs, "--output", "out/power"])
    needed = seeds_needed(paired_power, 1.0, 0.8, 0.05)
    shown = " ".join(capsys.readouterr().out.split())
    lower, upper = (seeds_needed(paired_power, 0.1 / sd, 0.8, 0.05) for sd in Spread("", 0.1, 3).interval)
    time = "{} h {} min".format(*divmod(round((needed - 3) * 2 * 3603 / 60), 60))
    assert f"B minus A, tiny-validation 3 0.1000 0.0521 0.6285 {needed} {lower} {upper} {needed - 3} {time}" in shown
    written = list(csv.DictReader(Path("out/power/power.csv").read_text().splitlines()))
    assert [float(row["estimate"]) for row in written] == [row["estimate"] for row in rows]
    assert all(row["lower"] <= row["estimate"] <= row["upper"] for row in rows)
    assert Path("out/power/power.png").stat().st_size > 5000
    (Path(six_runs[0]) / "trainer_state.json").write_text(json.dumps({"global_step": 100}))
    for name in six_runs[1:3]:
        (Path(name) / "trainer_state.json").unlink()
    main(["--difference", "0.1", "--runs", *six_runs])
    assert f"{needed - 3} unknown" in " ".join(capsys.readouterr().out.split())


def test_two_runs_of_one_root_seed_are_one_seed(six_runs, make_run, capsys):
    nats = [10.6 + story / 7 for story in range(12)]
    other_order = make_run("a-s1-d9", seed=1, data_seed=9, change={"learning_rate": 0.004}, nats=nats)
    main(["--difference", "0.1", "--runs", *six_runs, other_order])
    spread = np.std([0.1 - 0.03, 0.2, 0.3], ddof=1)
    assert f"B minus A, tiny-validation 3 {spread:.4f}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--spread 1", "--difference is missing"),
        ("--difference 1", "--spread is missing"),
        ("--difference 0 --spread 1", "--difference 0 must be above 0 (its sign does not matter)"),
        ("--difference 1 --spread -1", "--spread -1 must be above 0"),
        ("--difference 1 --spread 1 --alpha 1", "--alpha 1 must be above 0 and below 1"),
        ("--difference 1 --margin 1 --spread 1", "--margin 1 and --difference cannot be combined"),
        ("--difference 1 --spread 1 --table a.csv", "--table a.csv needs --runs"),
        ("--difference 1 --runs runs/a-s1 runs/b-s1", "A and B share 1 root seeds, so no spread can be computed"),
        ("--difference 1 --runs runs/a-s1 runs/a-s2", "these runs are one arm"),
        ("--difference 1 --runs runs/a-s1", "at least two run folders"),
    ],
)
def test_bad_input_is_one_line(six_runs, flags, line, capsys):
    with pytest.raises(SystemExit) as left:
        main(flags.split())
    assert left.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert line in errors[0]


def test_runs_without_results_and_without_a_spread(make_run, capsys):
    names = [
        make_run(f"{rate}-s{seed}", seed, {"learning_rate": rate}, dataset=str(rate))
        for rate in (1, 2)
        for seed in (1, 2)
    ]
    with pytest.raises(SystemExit):
        main(["--difference", "1", "--runs", *names])
    assert "no shared results to compare; make them: lm-trials evaluate" in capsys.readouterr().err
    same = [
        make_run(f"{rate}-t{seed}", seed, {"learning_rate": rate}, nats=[float(rate + 9)] * 12)
        for rate in (1, 2)
        for seed in (1, 2)
    ]
    with pytest.raises(SystemExit):
        main(["--difference", "1", "--runs", *same])
    assert "is the same for all root seeds" in capsys.readouterr().err
