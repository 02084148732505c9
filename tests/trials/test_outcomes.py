"""The values of a contrast, against an independent computation from the files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_trials import STORIES, TRIAL, learning_curve, story_losses
from scipy import stats

from lm_trials.console import UsageError
from lm_trials.trials import effects
from lm_trials.trials.outcomes import TrialRuns, read_outcome
from lm_trials.trials.trial_file import read_trial
from lm_trials.trials.two_way import two_way

SEEDS = (0, 1, 2, 3)


@pytest.fixture
def outcome(make_trial):
    """Write a trial and return the outcome of one of its contrasts."""

    def read(place=0, change=None, **given):
        trial = read_trial(make_trial(**given))
        contrast = trial.contrasts[place]
        if change:
            contrast = replace(contrast, **change)
        return read_outcome(contrast, TrialRuns(Path("runs/t")), trial.seeds)

    return read


def losses(dataset, arm, effect=0.0):
    return np.array([story_losses(dataset, arm, seed, effect) for seed in SEEDS])


def test_a_loss_is_that_of_the_two_way_test_on_the_raw_differences(outcome):
    found = outcome()
    differences = losses("recovery", "never", 2.0) - losses("recovery", "seen")
    assert found.values_AS == pytest.approx(
        np.array([losses("recovery", "never", 2.0).sum(1), losses("recovery", "seen").sum(1)]) / (10 * STORIES)
    )
    assert (found.unit, found.n) == ("nats per token", STORIES)
    test, raw = found.test(), two_way(differences, np.full(STORIES, 10), "nats per token")
    assert test.difference.lower == pytest.approx(raw.difference.lower)
    assert (test.difference.estimate, test.p) == pytest.approx((raw.difference.estimate, raw.p))
    seeds = stats.ttest_1samp(differences.sum(1) / (10 * STORIES), 0).confidence_interval()
    assert [found.over_seeds().difference.lower, found.over_seeds().difference.upper] == pytest.approx(list(seeds))
    assert found.over_stories().lower > test.difference.lower


def test_the_test_against_another_value_agrees_with_the_interval(outcome):
    found = outcome()
    end = found.test().difference.lower
    assert found.test(end).p == pytest.approx(0.05)
    assert found.test(end).difference.lower == pytest.approx(end)
    assert found.test(end - 0.01).p < 0.05 < found.test(end + 0.01).p
    assert found.over_seeds(found.over_seeds().difference.upper).p == pytest.approx(0.05)


def test_several_sets_count_equally_and_each_by_its_own_ratio(outcome):
    both = {"outcome": {"measure": "loss", "dataset": ["recovery", "other-validation"]}}
    found = outcome(change=both)
    per_set = [
        losses(name, "never", effect) - losses(name, "seen") for name, effect in (("recovery", 2.0), ("other", 0))
    ]
    assert found.differences_S == pytest.approx(np.mean([each.sum(1) / (10 * STORIES) for each in per_set], axis=0))
    assert found.n == 2 * STORIES
    # Sets are strata: their different means are no spread of stories.
    variances = [np.var(each.mean(0), ddof=1) / STORIES / 100 for each in per_set]
    half = 1.96 * np.sqrt(sum(variances)) / 2
    over = found.over_stories()
    assert (over.upper - over.lower) / 2 == pytest.approx(half, rel=0.15)


def test_a_story_in_two_sets_is_one_story(outcome):
    outcome()
    for run in Path("runs/t").glob("recover-*"):
        (run / "eval/again").mkdir()
        for file in (run / "eval/recovery-validation").iterdir():
            (run / "eval/again" / file.name).write_bytes(file.read_bytes())
    trial = read_trial(Path("trials/t.yaml"))
    once, twice = (
        read_outcome(
            replace(trial.contrasts[0], outcome={"measure": "loss", "dataset": sets}),
            TrialRuns(Path("runs/t")),
            trial.seeds,
        )
        for sets in ("recovery", ["recovery", "again"])
    )
    assert twice.n == once.n == STORIES
    assert twice.differences_SN == pytest.approx(once.differences_SN)


def test_bits_per_byte_and_sentences_of_a_feature(outcome):
    found = outcome(change={"outcome": {"measure": "loss", "dataset": "recovery", "unit": "bits per byte"}})
    assert found.values_AS[1] == pytest.approx(losses("recovery", "seen").sum(1) / np.log(2) / (40 * STORIES))
    assert found.unit == "bits per byte"
    for run in Path("runs/t").glob("recover-*"):
        place = run / "eval/recovery-validation"
        other = run / "eval/other-validation/per_story.parquet"
        (place / "per_story-sentences-Twist.parquet").write_bytes(other.read_bytes())
    trial = read_trial(Path("trials/t.yaml"))
    twist = {"measure": "loss", "dataset": "recovery", "sentences_with": "Twist"}
    found = read_outcome(replace(trial.contrasts[0], outcome=twist), TrialRuns(Path("runs/t")), trial.seeds)
    assert found.values_AS[1] == pytest.approx(losses("other", "seen").sum(1) / (10 * STORIES))


def test_updates_to_the_threshold_of_each_root_seed(outcome):
    found = outcome(1)
    assert found.unit == found.test().difference.unit == "log2 ratio of updates"
    for place, seed in enumerate(SEEDS):
        for row, (arm, speed) in enumerate((("never", 0.05), ("seen", 0.5))):
            curve = learning_curve(arm, seed, speed)
            start = learning_curve("never", seed, 0.05)[0]["eval_recovery_loss"]
            threshold = 2 + 0.25 * (start - 2)
            steps, values = ([row[name] for row in curve[1:]] for name in ("step", "eval_recovery_loss"))
            assert found.values_AS[row, place] == pytest.approx(
                np.exp(np.interp(-threshold, -np.array(values), np.log(steps)))
            )
    assert found.differences_S == pytest.approx(np.log2(found.values_AS[0] / found.values_AS[1]))
    assert found.test().difference.lower > 1


def test_a_time_beyond_the_horizon_is_a_bound(outcome):
    found = outcome(1, speeds={"never": 0.001})
    assert [time.censored for time in found.times[0]] == [True] * 4
    assert list(found.values_AS[0]) == [64.0] * 4
    assert "not reached by the horizon: runs/t/recover-never-s0" in found.notes[0]
    test = found.test().difference
    assert test.estimate - 2 < test.lower < test.estimate
    assert test.upper == np.inf


def test_a_table_on_the_logit_scale(outcome):
    with pytest.raises(UsageError, match=r"table: probes/p/p.csv: .* has no such table"):
        outcome(change={"outcome": {"measure": "table", "table": "probes/p/p.csv", "where": {"layer": 2}}})
    shares = {}
    for run in Path("runs/t").glob("recover-*"):
        shares[run.name] = share = 1.0 if "seen" in run.name else 0.25 * int(run.name[-1]) + 0.1
        (run / "probes/p").mkdir(parents=True)
        (run / "probes/p/p.csv").write_text(
            f"layer,estimate,lower,upper,n,unit\n1,0.5,0,1,20,share\n2,{share},0,1,20,share\n"
        )
    trial = read_trial(Path("trials/t.yaml"))
    table = {"measure": "table", "table": "probes/p/p.csv", "where": {"layer": 2}}
    contrast = replace(trial.contrasts[0], outcome=table, scale="logit")
    found = read_outcome(contrast, TrialRuns(Path("runs/t")), trial.seeds)
    expected = [np.log((shares[f"recover-never-s{s}"] * 20 + 0.5) / ((1 - shares[f"recover-never-s{s}"]) * 20 + 0.5))
                - np.log(20.5 / 0.5) for s in SEEDS]  # fmt: skip
    assert found.differences_S == pytest.approx(expected)
    assert (found.unit, found.value_unit, found.n, found.over_stories()) == ("logit of share", "share", 4, None)
    test = stats.ttest_1samp(expected, 0)
    assert found.test().p == pytest.approx(test.pvalue)
    against_zero = read_outcome(replace(contrast, second=None), TrialRuns(Path("runs/t")), trial.seeds)
    assert against_zero.differences_S == pytest.approx(np.array(expected) + np.log(20.5 / 0.5))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dataset": "recoveri"}, "has no eval/recoveri/per_story.parquet; valid: other-validation, recovery-val"),
        ({"dataset": "recovery", "sentences_with": "Twist"}, "per_story-sentences-Twist.parquet"),
    ],
)
def test_what_is_not_there_is_named(outcome, change, text):
    with pytest.raises(UsageError, match=text):
        outcome(change={"outcome": {"measure": "loss", **change}})


def test_a_threshold_needs_an_evaluation_at_update_0(outcome):
    outcome(1)
    state = Path("runs/t/recover-never-s2/trainer_state.json")
    content = json.loads(state.read_text())
    content["log_history"].pop(0)
    state.write_text(json.dumps(content))
    trial = read_trial(Path("trials/t.yaml"))
    with pytest.raises(UsageError, match="never-s2 logged no eval_recovery_loss at update 0; add `eval_on_s"):
        read_outcome(trial.contrasts[1], TrialRuns(Path("runs/t")), trial.seeds)
    with pytest.raises(UsageError, match="logged no eval_recovery_los; did you mean eval_recovery_loss"):
        TrialRuns(Path("runs/t")).run(("recover", "seen"), 0).logged("eval_recovery_los")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("share: 0.25", "share: 25", "share: 25 is not a share"),
        ("reference: pretrain.seen, ", "", "reference is missing"),
        ("from: never", "from: nobody", "threshold.from: nobody is not an arm"),
        ("margin: 0.05}\nsecondary", "scale: log}\nsecondary", "scale log: loss has the scale identity"),
    ],
)
def test_thresholds_and_scales_are_checked_with_the_file(old, new, text):
    assert old in TRIAL
    Path("t.yaml").write_text(TRIAL.replace(old, new))
    with pytest.raises(UsageError, match=text):
        read_trial(Path("t.yaml"))


def test_the_reference_may_log_the_metric_under_another_name(outcome):
    found = outcome(1)
    for seed in SEEDS:
        state = Path(f"runs/t/pretrain-seen-s{seed}/trainer_state.json")
        state.write_text(state.read_text().replace("eval_recovery_loss", "eval_loss"))
    text = TRIAL.replace("share: 0.25", "share: 0.25, reference_metric: eval_loss")
    Path("trials/t.yaml").write_text(text)
    trial = read_trial(Path("trials/t.yaml"))
    again = read_outcome(trial.contrasts[1], TrialRuns(Path("runs/t")), trial.seeds)
    assert again.values_AS == pytest.approx(found.values_AS)
    Path("trials/t.yaml").write_text(TRIAL)
    trial = read_trial(Path("trials/t.yaml"))
    with pytest.raises(UsageError, match=r"pretrain-seen-s0 logged no eval_recovery_loss; .*eval_loss"):
        read_outcome(trial.contrasts[1], TrialRuns(Path("runs/t")), trial.seeds)


def test_a_difference_of_losses_is_said_as_training_tokens_of_the_second_arm(outcome):
    asked = {"measure": "loss", "dataset": "recovery", "worth": "eval_recovery_loss"}
    found = outcome(change={"outcome": asked})
    curves = [effects.learning_curve(run, "eval_recovery_loss") for run in found.runs[1]]
    worth = effects.worth_tokens(found.values_AS[1], found.values_AS[0], curves)
    assert worth.difference.estimate < 0  # `never` has the higher loss, which `seen` had with fewer tokens
    assert found.notes == (f"never is worth {worth.difference} of seen",)
    runs = TrialRuns(Path("runs/t"))
    without = replace(found.contrast, outcome={"measure": "loss", "dataset": "recovery"})
    assert read_outcome(without, runs, SEEDS).notes == ()
    other = replace(found.contrast, outcome={**asked, "worth": "eval_nothing"})
    with pytest.raises(UsageError, match="logged no eval_nothing"):
        read_outcome(other, runs, SEEDS)


@pytest.mark.parametrize("place", ["recover-never-s3", "recover-never-s3/eval"])
@pytest.mark.parametrize("other", ["recover-never-s2", "recover-seen-s3", "pretrain-never-s3"])
def test_a_copy_of_another_run_or_of_its_evaluation_is_refused(make_trial, place, other):
    text = TRIAL.replace("[evaluate --dataset_name recovery other]",
                         "[{command: evaluate --dataset_name recovery other, arms: [recover, pretrain]}]")  # fmt: skip
    trial = read_trial(make_trial(text=text))
    read_outcome(trial.contrasts[0], TrialRuns(Path("runs/t")), trial.seeds)
    copied = place.replace("recover-never-s3", other)
    shutil.rmtree(Path("runs/t") / place)
    shutil.copytree(Path("runs/t") / copied, Path("runs/t") / place)
    with pytest.raises(UsageError, match=f"recover-never-s3.* (holds another run: |is an evaluation of ){other}"):
        read_outcome(trial.contrasts[0], TrialRuns(Path("runs/t")), trial.seeds)


def test_two_splits_of_one_data_set_are_not_chosen_between(make_trial):
    trial, runs = read_trial(make_trial()), Path("runs/t")
    contrast = trial.contrasts[0]
    before = read_outcome(contrast, TrialRuns(runs), trial.seeds).values_AS
    place = runs / "recover-seen-s1/eval"
    shutil.copytree(place / "other-validation", place / "recovery-train")  # by hand, and first in the order of names
    with pytest.raises(UsageError, match="recover-seen-s1 was evaluated on recovery-train and recovery-validation"):
        read_outcome(contrast, TrialRuns(runs), trial.seeds)
    named = replace(contrast, outcome={**contrast.outcome, "dataset": "recovery-validation"})
    assert (read_outcome(named, TrialRuns(runs), trial.seeds).values_AS == before).all()
