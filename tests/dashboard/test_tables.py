"""The dashboard's tables are what the project's other readers and independent computations give for the same files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy import stats

from lm_trials.console import UsageError
from lm_trials.dashboard import tables
from lm_trials.dashboard.tables import RunsFolder
from lm_trials.snapshots import open_snapshots
from lm_trials.trials.runs import group_arms, log_history, read_run


def test_the_arms_are_those_of_compare(runs, training, view):
    listing = view(runs).listing
    assert list(listing.runs) == ["going-s0", "tiny-s0", "tiny-s1"]
    arms = group_arms([read_run(str(runs / name)) for name in listing.runs])
    assert [list(names) for names in listing.arms.values()] == [[run.folder.name for run in arm.runs] for arm in arms]
    assert list(listing.arms) == ["A  going-s0", "B  tiny-s*"]
    assert listing.arm_of("tiny-s1") == "B  tiny-s*"
    assert listing.first_shown(most=1) == ["going-s0"]  # the newest arm
    assert listing.first_shown() == list(listing.runs)


def test_a_quick_look_at_a_run_reads_the_same_as_a_slow_one(runs, tmp_path, monkeypatch):
    child = runs / "child"
    shutil.copytree(runs / "tiny-s1", child)
    described = json.loads((child / "run.json").read_text())
    from lm_trials.files import weights_digest

    base = {"name_or_path": str(runs / "tiny-s0"), "weights_sha256": weights_digest(runs / "tiny-s0")}
    described["outcome"]["initial_model"] = {**base, "run": {"run_name": "tiny-s0", "replicate": {"seed": 0}}}
    (child / "run.json").write_text(json.dumps(described))
    slow = read_run(str(child))
    assert "initial_model.recipe" in slow.outcome
    assert slow.steps == 4
    assert read_run(str(child), quick=True) == slow
    monkeypatch.setattr("lm_trials.trials.runs.weights_digest", None)
    monkeypatch.setattr("lm_trials.trials.runs.read_object", forbidding(child / "trainer_state.json"))
    assert read_run(str(child), quick=True) == slow  # and reads neither weights nor log
    with pytest.raises(TypeError):
        read_run(str(child))
    (runs / "tiny-s0" / "finished.json").unlink()  # then the weights are unknown
    assert read_run(str(child), quick=True) != slow


def forbidding(path):
    from lm_trials.files import read_object

    def read(file):
        assert file != path
        return read_object(file)

    return read


def test_a_damaged_run_is_a_line_and_the_others_are_shown(runs, view):
    (runs / "tiny-s0" / "run.json").write_text("{")
    (runs / "odd").mkdir()
    (runs / "odd" / "run.json").write_text(json.dumps({"outcome": {"initial_model": 3}, "replicate": {}}))
    listing = view(runs).listing
    assert list(listing.runs) == ["tiny-s1"]
    first, second = listing.faults
    assert first.startswith("odd is not shown: run.json has unexpected fields")
    assert second.startswith("tiny-s0 is not shown: ")
    assert "cannot be read as JSON" in second


def test_runs_of_a_trial_and_a_run_itself_are_found(runs, tmp_path, view):
    assert list(view(tmp_path).listing.runs) == ["runs/tiny-s0", "runs/tiny-s1"]
    assert list(view(runs / "tiny-s0").listing.runs) == ["tiny-s0"]


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no runs \(no run\.json\); train one with lm-trials train"):
        RunsFolder(tmp_path)
    with pytest.raises(UsageError, match="nowhere is not a folder; give the folder of your runs"):
        RunsFolder(tmp_path / "nowhere")


def test_a_run_that_trains_is_followed(training, runs, view):
    folder = RunsFolder(runs)
    before = folder.list()
    run = before.runs["going-s0"]
    assert [(row["step"], row["estimate"]) for row in tables.curve(tables.log_of(run), "loss")] == [
        (1, 5),
        (2, 4),
        (3, 3),
    ]
    assert tables.curve(tables.log_of(run), "eval_loss")[0]["estimate"] == 2.5
    assert tables.steps_of(run) == 3
    assert not run.finished
    assert folder.list().state == before.state
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(training / "runs" / "tomorrow") as writer:
        writer.add_scalar("train/loss", 1.0, 4)
    after = folder.list()
    assert after.state != before.state
    assert tables.steps_of(after.runs["going-s0"]) == 4


def test_a_curve_has_what_was_logged_at_each_update_and_its_interval(runs):
    run = read_run(str(runs / "tiny-s0"))
    logged = {row["step"]: row["eval_loss"] for row in log_history(run.folder) if "eval_loss" in row}
    found = tables.curve(tables.log_of(run), "eval_loss")
    assert {row["step"]: row["estimate"] for row in found} == logged
    assert list(logged) == [2, 4]
    assert tables.metrics_of([tables.log_of(run)])[:2] == ["eval_loss", "loss"]
    log = [{"step": 4, "eval_loss": 2.0, "eval_loss_lower": 1.0, "eval_loss_upper": 4.0}, {"step": 2, "eval_loss": 3}]
    first, second = tables.curve(log, "eval_loss")
    assert second == {"step": 4, "estimate": 2.0, "lower": 1.0, "upper": 4.0}
    assert first["estimate"] == 3
    assert np.isnan([first["lower"], first["upper"]]).all()


def test_the_band_of_an_arm_is_students_over_its_root_seeds():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, (4, 2))
    curves = [[{"step": step, "estimate": value} for step, value in zip((1, 5), run, strict=True)] for run in values]
    longer = [*curves[:3], [*curves[3], {"step": 9, "estimate": 0.0}]]
    found = tables.arm_curve(longer, [0, 1, 2, 3], "nats per token")
    assert [row["step"] for row in found] == [1, 5]  # those that all have
    for row, column in zip(found, values.T, strict=True):
        low, high = stats.t.interval(0.95, 3, column.mean(), stats.sem(column))
        assert (row["estimate"], row["lower"], row["upper"]) == pytest.approx((column.mean(), low, high))
    of_two = tables.arm_curve(curves, [0, 0, 1, 1], "nats per token")  # two root seeds, two runs each
    low, high = stats.t.interval(0.95, 1, values[:, 0].mean(), stats.sem([values[:2, 0].mean(), values[2:, 0].mean()]))
    assert (of_two[0]["lower"], of_two[0]["upper"]) == pytest.approx((low, high))
    assert of_two[0]["lower"] != pytest.approx(found[0]["lower"])
    assert tables.arm_curve(curves[:1], [0], "nats per token") == curves[0]


def test_similarity_of_layers_is_cka_by_its_definition(runs):
    first, last = (runs / "tiny-s0" / f"checkpoint-{step}" for step in (0, 4))
    states = [
        np.concatenate(list(tables.snapshot_of(each).read("activations").values()), axis=1) for each in (first, last)
    ]

    def hsic(left, right):  # of Gram matrices over tokens, centred as matrices
        centre = np.eye(len(left)) - 1 / len(left)
        return np.trace(left @ left.T @ centre @ right @ right.T @ centre)

    def cka(left, right):
        return hsic(left, right) / np.sqrt(hsic(left, left) * hsic(right, right))

    one, other = (each.astype(np.float64) for each in states)
    expected = [[cka(left, right) for right in other] for left in one]
    found = tables.layer_similarity(first, last)
    assert found == pytest.approx(np.array(expected), abs=1e-9)
    assert tables.layer_similarity(first, last, same=True) == pytest.approx(np.diag(found))
    assert np.diag(tables.layer_similarity(first, first)) == pytest.approx(1)
    assert found.max() < 1


def test_similarity_needs_the_same_stories(runs):
    place = runs / "tiny-s1" / "checkpoint-4"
    texts = json.loads((place / "snapshot" / "texts.json").read_text())
    texts["texts"].reverse()
    (place / "snapshot" / "texts.json").write_text(json.dumps(texts))
    for seal in ("sums.json",):
        described = json.loads((place / seal).read_text())
        described["files"].pop("snapshot/texts.json")
        (place / seal).write_text(json.dumps(described))
    with pytest.raises(UsageError, match="are of other stories or tokens; choose another run"):
        tables.layer_similarity(runs / "tiny-s0" / "checkpoint-4", place)


def test_the_records_of_an_update_have_their_metrics(runs, trained):
    from lm_trials.data.datasets import open_prepared
    from lm_trials.metrics.tables import open_metrics
    from lm_trials.training.data_order import open_order

    run = read_run(str(runs / "tiny-s0"))
    rows, whole = tables.update_records(run, 3)
    parts = open_order(run.folder).parts_of(3)
    assert [row["record"] for row in rows] == [part.record_id for part in parts]
    assert rows[0]["text"] == open_order(run.folder).text_of(parts[0])
    table = open_metrics(open_prepared("tiny", trained / "data", "dataset_name")).table.to_pylist()
    words = {row["record_id"]: row["words"] for row in table}
    assert [row["words"] for row in rows] == [words[row["record"]] for row in rows]
    assert whole["words"].mean() == pytest.approx(np.mean(list(words.values())))
    assert {row["record"] for row in rows} != {row["record"] for row in tables.update_records(run, 4)[0]}
    with pytest.raises(UsageError, match="--step 5: the run has updates 1 to 4"):
        tables.update_records(run, 5)


def test_embeddings_and_tokens(runs):
    points_CVK, _shares_K = tables.embeddings(runs / "tiny-s0", (0, 1, 2, 4))
    assert (points_CVK == open_snapshots(runs / "tiny-s0").embeddings()[0]).all()
    names = tables.vocabulary(runs / "tiny-s0")
    assert "␣the" in names.values()
    assert not any(name.startswith("<0x") for name in names.values())


@pytest.mark.parametrize("text", ["a,b\n1\n", 'a,b\n"1,2\n', "a,b\n1,2,3\n"])
def test_a_damaged_table_is_one_line(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UsageError, match=r"x\.csv cannot be read \(.*\); write it again with the command that made it"):
        tables.read_table(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert tables.read_table(tmp_path / "x.csv") == [{"a": "1", "b": "2"}]


def test_trials_are_reported_or_registered(runs, view):
    looked = view(runs)
    shutil.copytree(REPOSITORY / "results" / "diversity", runs / "mine", ignore=shutil.ignore_patterns("*.csv", "*.md"))
    found = tables.trials_of(looked.folder)
    assert found["mine"] == runs / "mine"
    assert found["diversity"] == REPOSITORY / "results" / "diversity"
    trial = tables.read_trial("diversity", found["diversity"])
    assert trial.verdict == "holds"
    assert trial.claim.startswith("Half PubMed, half patents")
    assert "claimed: below 0" in trial.sentence
    assert len(trial.contrasts) == 6
    mine = tables.read_trial("mine", found["mine"])
    assert mine.claim == trial.claim
    assert not mine.contrasts
    assert not mine.verdict


def test_folders_with_weights(runs, view):
    listing = view(runs).listing
    found = tables.checkpoints_of(listing)
    names = [f"tiny-s{seed}{of}" for seed in (0, 1) for of in ("", *(f", update {step}" for step in (0, 1, 2, 4)))]
    assert list(found) == names
    assert found["tiny-s1, update 2"] == runs / "tiny-s1" / "checkpoint-2"
    (runs / "tiny-s1" / "model.safetensors").unlink()
    assert "tiny-s1" not in tables.checkpoints_of(listing)
    without = replace(listing, runs={})
    assert tables.checkpoints_of(without) == {}
