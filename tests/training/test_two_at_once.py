"""Several processes that are started together and need the same data, or the same folder."""

import json
import signal
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
from killed_runs import Processes, Training, outcome

from lm_trials.evaluation.losses import Document, StoryLoss
from lm_trials.evaluation.results import StoryTable
from lm_trials.files import locked, unlock
from lm_trials.models.reference import checkpoints
from lm_trials.stories.corpora import open_records


def hidden(folder):
    """Return what is left of work that is under way."""
    return [path for path in folder.rglob(".*") if path.name != ".cache"]


def stories_file(tiny_data, tmp_path):
    """Return a file of stories that is not prepared."""

    path = tmp_path / "mine.jsonl"
    stories = open_records(tiny_data / "tiny", "train")["story"][:200]
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return path


def test_seeds_started_together_share_what_they_prepare(tiny_data, train_flags, tmp_path):
    """Corpus, tokenizer and tokens are made by the process that comes first; the runs are those of seeds in turn."""

    def argv(seed, data):
        own = ("--seed", str(seed), "--data_cache_dir", str(tmp_path / data), "--vocab_size", "0")
        own += ("--dataset_name", str(path), "--validation_split_percentage", "10")
        return train_flags(f"{data}-{seed}", *own)

    path = stories_file(tiny_data, tmp_path)
    together = [Training(argv(seed, "together"), tmp_path / f"together-{seed}") for seed in (1, 2)]
    for run in together:
        run.finish()
    assert len(list((tmp_path / "together").glob("*/tokens-*"))) == 1
    assert not hidden(tmp_path / "together")
    Training(argv(1, "alone"), tmp_path / "alone-1").finish()
    first, second, alone = (outcome(tmp_path / name) for name in ("together-1", "together-2", "alone-1"))
    assert first == alone
    assert first != second


def test_sets_and_examples_needed_by_two_are_made_once(tiny_data, tune_flags, tmp_path):
    shared = ["--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    prepare = ["pretokenize", *shared, "--filtering", "features!=Twist", "--dataset_name"]
    running = [
        Processes("call", ["prepare_tinystories", "main", [*prepare, "at-once"]], tmp_path / f"set-{number}")
        for number in range(2)
    ]
    running += [
        Training(tune_flags(f"run-{seed}", "--seed", seed, "--max_length", "63"), tmp_path / f"run-{seed}", 1, "tune")
        for seed in "12"
    ]
    for process in running:
        process.finish()
    assert len(list((tiny_data / "at-once").glob("tokens-*"))) == 1
    assert not hidden(tiny_data)


def test_the_second_training_in_a_folder_is_told_of_the_first(train_flags, tmp_path):
    folder = tmp_path / "run"
    argv = train_flags("run", "--max_steps", "2000", "--save_strategy", "steps", "--save_steps", "20")
    first = Training(argv, folder)
    first.wait_for(folder / "checkpoint-20")
    second = Processes("train", [argv], tmp_path / "second.log")
    assert second.wait() == [2]
    (owner,) = first.codes
    said = (tmp_path / "second.log").read_text()
    assert f"error: --output_dir {folder}: process {owner} on " in said
    assert "is training in it; wait for it or give another folder" in said
    first.signal()
    assert first.wait() == [-signal.SIGKILL]
    assert (folder / ".lock").exists()  # of a process that is gone
    reached = int(checkpoints(folder)[-1].name.removeprefix("checkpoint-"))
    third = Processes("train", [argv], tmp_path / "third.log")
    third.wait_for(folder / f"checkpoint-{reached + 20}")
    third.signal(signal.SIGTERM)
    assert third.wait() == [128 + signal.SIGTERM]
    assert not (folder / ".lock").exists()


def test_a_second_evaluation_waits_for_the_first_and_replaces_its_table(tmp_path, capsys):
    path = tmp_path / "eval" / "per_story.parquet"

    def evaluate():
        with StoryTable(path) as table:
            table.add(StoryLoss(Document("second", np.array([1, 2]), 5), 1.0, 1, 0))

    first = locked(path.with_name(f".{path.name}.lock"), "writes")
    second = Thread(target=evaluate)
    second.start()
    second.join(0.5)
    assert second.is_alive()
    assert not path.exists()
    unlock(first)
    second.join(20)
    assert pq.read_table(path)["record_id"].to_pylist() == ["second"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert f"which writes {path} ..." in capsys.readouterr().err
