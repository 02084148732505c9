"""Metrics of the records read since the last log line: right, the same after a resume, no effect on training."""

import json

import numpy as np
import pytest
from refusals import error_line
from transformers import TrainerCallback

import prepare_tinystories
import sft_lora
import train_gpt2
from lm_trials.data.datasets import open_dataset, open_prepared
from lm_trials.metrics.tables import open_metrics
from lm_trials.training.records import records_between
from lm_trials.training.window_metrics import WindowMetrics

ASKED = ("--window_metrics", "flesch_kincaid_grade,tokens")


@pytest.fixture(scope="module")
def measured(tiny_data):
    """The metrics of the corpus `tiny`, by record."""
    prepare_tinystories.main(
        ["metadata", "--dataset_name", "tiny", "--data_cache_dir", str(tiny_data), "--sentiment", "False"]
    )
    return by_record(open_prepared("tiny", tiny_data, "dataset_name"))


def by_record(dataset):
    found = open_metrics(dataset, "train", ["flesch_kincaid_grade", "words"])
    grades, words = found.values("flesch_kincaid_grade"), found.values("words")
    return dict(zip(found.table["record_id"].to_pylist(), zip(grades, words, strict=True), strict=True))


def logged(folder):
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    timed = {"tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    return [{name: row[name] for name in row if name not in timed} for row in rows if "loss" in row]


def windows(rows):
    return [row["window_flesch_kincaid_grade"] for row in rows]


def expected(folder, metrics, first, last):
    ids = records_between(folder, first, last)["record_id"].unique()
    return np.mean([metrics[each][0] for each in ids])


def test_the_log_has_the_means_of_the_records_read_and_the_same_after_a_resume(measured, train_flags, tmp_path):
    flags = ("--max_steps", "6", "--logging_steps", "2", "--save_strategy", "steps", "--save_steps", "3")
    train_gpt2.main(train_flags("plain", *flags))
    train_gpt2.main(train_flags("run", *flags, *ASKED))
    rows = logged(tmp_path / "run")
    spans = [(1, 2), (3, 4), (5, 6)]
    assert windows(rows) == pytest.approx([expected(tmp_path / "run", measured, *span) for span in spans])
    assert len(set(windows(rows))) == 3
    assert all(20 < row["window_tokens"] < 1000 for row in rows)
    plain = [{name: row[name] for name in row if not name.startswith("window_")} for row in rows]
    assert plain == logged(tmp_path / "plain")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "run")]
    assert weights[0] == weights[1]

    (tmp_path / "run" / "model.safetensors").unlink()
    again = ("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-3"))  # between two log lines
    train_gpt2.main(train_flags("run", *flags, *ASKED, *again))
    assert logged(tmp_path / "run") == rows


def test_a_fine_tuning_logs_them_too(tune_flags, tiny_pairs, tmp_path):
    data = tmp_path / "data"
    name = open_dataset(str(tiny_pairs), data, validation_split_percentage=10).as_prepared().name
    pairs = ["--dataset_name", name, "--data_cache_dir", str(data), "--sentiment", "False"]
    prepare_tinystories.main(["metadata", *pairs])
    metrics = by_record(open_dataset(name, data))
    sft_lora.main(tune_flags("run", "--logging_steps", "2", "--packing", "True", "--data_cache_dir", str(data), *ASKED))
    run = tmp_path / "run"
    assert windows(logged(run)) == pytest.approx([expected(run, metrics, *span) for span in ((1, 2), (3, 4))])


def test_the_progress_bar_and_later_callbacks_show_them(measured, train_flags, tmp_path, monkeypatch, capsys):
    seen, add = [], WindowMetrics.add_to

    class Later(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs.get("window_words"))

    def add_both(self, trainer):
        trainer.add_callback(Later())
        add(self, trainer)

    monkeypatch.setattr(WindowMetrics, "add_to", add_both)
    train_gpt2.main(train_flags("run", "--max_steps", "1", "--window_metrics", "words"))
    words = [measured[each][1] for each in records_between(tmp_path / "run", 1, 1)["record_id"].unique()]
    assert seen[0] == np.mean(words)
    assert seen[1:] == [None] * len(seen[1:])  # of an evaluation and of the end
    assert f"words {np.mean(words):.3g}" in capsys.readouterr().err


def test_mistakes_are_one_line_before_training(measured, train_flags, tmp_path, capsys):
    line = error_line(capsys, train_gpt2.main, *train_flags("run", "--window_metrics", "wrods"))
    assert "--window_metrics wrods: tiny has no such metric" in line
    assert "words" in line
    line = error_line(capsys, train_gpt2.main, *train_flags("run", *ASKED, "--streaming", "True"))
    assert "--streaming True: a stream has no table of metrics" in line
    assert not (tmp_path / "run").exists()
