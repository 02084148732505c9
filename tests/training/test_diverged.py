"""A loss, gradient or weight that is nan or infinite stops a run, and is never saved as good."""

import math
import re
import shutil

import pytest
import torch
from killed_runs import Processes, break_update
from refusals import error_line
from safetensors.torch import load_file, save_file

import eval_checkpoint
import sft_lora
import train_gpt2
from lm_trials.console import UsageError
from lm_trials.evaluation.losses import Document, NotFiniteError, story_losses
from lm_trials.evaluation.losses import Processes as Sharing
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.training.trainer import StoryTrainer
from lm_trials.training.tuning_trainer import FineTuner

SAVED = ("--save_strategy", "steps", "--save_steps", "1")


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies a model's folder, without the sums of its files."""

    def copy(folder):
        shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("finished.json"))
        return tmp_path / "copy"

    return copy


@pytest.mark.parametrize(
    ("where", "value", "update"),
    [
        ("loss", math.nan, 1),
        ("loss", math.inf, 3),
        ("gradient", math.nan, 2),
        ("gradient", -math.inf, 3),
        ("weight", math.nan, 4),
        ("weight", math.inf, 2),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_not_saved(
    where, value, update, train_flags, tmp_path, monkeypatch, capsys
):
    break_update(StoryTrainer, where, value, update, monkeypatch.setattr)
    line = error_line(capsys, train_gpt2.main, *train_flags("run", *SAVED))
    saved = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert f"error: training diverged at update {update} " in line
    assert saved == [f"checkpoint-{number}" for number in range(1, update)]
    last = (
        f"the last checkpoint with finite weights is {tmp_path}/run/{saved[-1]}" if saved else "no checkpoint was saved"
    )
    assert last in line
    assert "Lower --learning_rate (0.001) or raise" in line
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "finished.json").exists()


def test_a_log_line_every_ten_updates_names_the_first_one(train_flags, monkeypatch, capsys):
    break_update(StoryTrainer, "loss", math.nan, 2, monkeypatch.setattr)
    argv = train_flags("run", "--max_steps", "12", "--logging_steps", "10")
    assert "at update 2 " in error_line(capsys, train_gpt2.main, *argv)


@pytest.mark.parametrize("rate", ["nan", "inf", "-inf", "-1e-3", "1e30", "1001"])
@pytest.mark.parametrize("main", [train_gpt2.main, sft_lora.main])
def test_an_impossible_rate_is_refused_before_anything_is_loaded(main, rate, train_flags, tune_flags, tmp_path, capsys):
    argv = {train_gpt2.main: train_flags, sft_lora.main: tune_flags}[main]("run", "--learning_rate", rate)
    assert error_line(capsys, main, *argv).startswith(f"error: --learning_rate {float(rate):g} must be")
    assert not (tmp_path / "run").exists()


def test_a_real_divergence(train_flags, tmp_path, capsys):
    much = ("--learning_rate", "100", "--weight_decay", "0.1", "--optim", "sgd", "--max_grad_norm", "0")
    much += ("--max_steps", "60", "--bf16", "True")  # the decay multiplies the weights by -9 in each update
    line = error_line(capsys, train_gpt2.main, *train_flags("run", *much))
    assert re.search(r"diverged at update \d+ .* no checkpoint was saved before.*\(now 0\), remove --bf16", line)


@pytest.mark.parametrize("where", ["loss", "weight"])
def test_a_fine_tuning_stops_too(where, tune_flags, tmp_path, monkeypatch, capsys):
    argv = tune_flags("run", "--max_steps", "4", *SAVED)
    break_update(FineTuner, where, math.nan, 3, monkeypatch.setattr)
    line = error_line(capsys, sft_lora.main, *argv)
    assert "diverged at update 3 (the loss, its gradient or a weight is nan or infinite); the last checkpoint" in line
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.end_to_end
def test_all_processes_stop_together(train_flags, tmp_path):
    argv = train_flags("run", *SAVED, "--use_cpu", "True")
    running = Processes("diverge", [argv, 1], tmp_path / "log", world_size=2)
    assert running.wait(60) == [2, 2]
    assert (tmp_path / "log").read_text().count("error: training diverged at update 3 ") == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", [0, 3, -1])
def test_a_folder_with_such_a_weight_is_refused_by_name(value, tensor, tiny_base, copied):
    folder = copied(tiny_base)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[tensor]
    before = weights[name].view(-1)[-1].clone()
    for number, refused in ((value, True), (1e30, False), (float(before), False)):
        weights[name].view(-1)[-1] = number
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        if refused:
            with pytest.raises(UsageError, match=f"{name} is nan or infinite in float32; give a checkpoint"):
                load_model(resolve_model(str(folder)))
        else:
            load_model(resolve_model(str(folder)))
    weights[name].view(-1)[-1] = 1e30
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=f"{name} is nan or infinite in float16; give --dtype float32"):
        load_model(resolve_model(str(folder)), torch.float16)
    load_model(resolve_model(str(folder)), torch.bfloat16)


def test_a_loss_that_overflows_is_refused_in_every_process(tiny_base, copied, capsys):
    model = load_model(resolve_model(str(tiny_base)))
    story = [Document("a", torch.arange(1, 20).numpy(), 20)]
    gather = lambda own: own or [(0, [(0, 1.0, 1, 0)], False)]  # noqa: E731 - of the other process
    list(story_losses(model, story, 32))
    model.lm_head.weight.data *= 1e39 / model.lm_head.weight.data.abs().max() / 10
    for processes in (None, Sharing(0, 2, gather), Sharing(1, 2, gather)):
        with pytest.raises(NotFiniteError, match="the loss of 1 of 1 windows is nan or infinite"):
            list(story_losses(model, story, 32, processes=processes))
    folder = copied(tiny_base)
    model.save_pretrained(folder)
    argv = ["--model_name_or_path", str(folder), "--dataset_name", "tiny", "--data_cache_dir", str(tiny_base.parent)]
    assert "nan or infinite" in error_line(capsys, eval_checkpoint.main, *argv)
    assert not (folder / "eval").exists()
