"""Data order: what the command says an update read is what the model was given in it."""

import json

import numpy as np
import pytest

import train_gpt2
from lm_trials.training import data_order as order
from lm_trials.training.data_order import RunOrder
from lm_trials.training.trainer import StoryTrainer


@pytest.fixture
def watched(train_flags, tmp_path, monkeypatch):
    """Train and keep the ids of each micro-batch as the model got them."""

    def train(*more):
        seen = []
        compute = StoryTrainer.compute_loss

        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(inputs["input_ids"].cpu().numpy().copy())
            return compute(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(StoryTrainer, "compute_loss", compute_loss)
        train_gpt2.main(train_flags("run", *more))
        return tmp_path / "run", np.concatenate(seen)

    return train


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
        ("--shuffle_buffer_size", "10", "--data_seed", "3"),
        ("--order_by", "tokens", "--order_window", "20", "--keep", "tokens>300"),
        ("--block_size", "32", "--per_device_train_batch_size", "64", "--max_steps", "71"),  # into the second pass
    ],
    ids=["plain", "accumulation", "buffer", "sorted", "passes"],
)
def test_the_parts_of_an_update_are_the_tokens_that_the_model_read(watched, more):
    folder, seen = watched(*more)
    found = RunOrder(folder)
    read = seen.reshape(found.num_steps, -1)
    passes = set()
    for step in (1, 2, found.num_steps):
        parts = found.parts_of(step)
        told = np.concatenate([part.ids for part in parts])
        assert told.tolist() == read[step - 1].tolist()
        assert told.tolist() != read[step % found.num_steps].tolist()
        passes |= {part.pass_index for part in parts}
    assert (max(passes) > 0) == ("71" in more)


def test_the_command_names_records_and_shows_their_text(watched, tiny_data, capsys):
    folder, _ = watched()
    parts = order.main([f"--run={folder}", "--step", "2", "--text"])
    out = capsys.readouterr().out
    assert "update 2 of 4" in out
    assert all(part.record_id in out for part in parts)
    found = RunOrder(folder)
    assert found.text_of(parts[0]).split()[0] in out
    opening = next(part for step in range(1, 5) for part in found.parts_of(step) if part.first == 0)
    assert found.text_of(opening).startswith("<s>")
    assert order.main([str(folder), "--step", "2"]) == parts  # the folder may stand alone


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step", "0"], "--step 0 must be at least 1"),
        (["--step", "5"], "--step 5: the run has updates 1 to 4"),
        (["--data_cache_dir", "elsewhere"], "tiny"),
    ],
)
def test_a_mistake_is_one_line(watched, capsys, argv, message):
    folder, _ = watched()
    with pytest.raises(SystemExit) as left:
        order.main([f"--run={folder}", *argv])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_the_order_of_a_run_that_was_killed_is_told_from_any_folder(watched, tmp_path, monkeypatch, tiny_data):
    monkeypatch.chdir(tiny_data.parent)
    folder, _ = watched("--data_cache_dir", tiny_data.name, "--save_strategy", "steps", "--save_steps", "2")
    expected = RunOrder(folder).parts_of(2)
    monkeypatch.chdir(tmp_path)
    for name in ("model.safetensors", "finished.json", "trainer_state.json"):
        (folder / name).unlink()
    assert RunOrder(folder).parts_of(2) == expected
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    assert RunOrder(folder).parts_of(2) == expected  # a checkpoint has the tokenizer too


def test_changed_data_is_refused(watched, tmp_path, capsys):
    folder, _ = watched()
    run = json.loads((folder / "run.json").read_text())
    run["outcome"]["data"]["content"] = "other"
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(SystemExit):
        order.main([f"--run={folder}"])
    assert "has changed since the training (content)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        order.main([f"--run={tmp_path / 'nothing'}"])
    assert "is not a run" in capsys.readouterr().err
