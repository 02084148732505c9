"""Fine-tunings end with the same bits however often killed, and see the same examples in any number of processes."""

import json
import random
import shutil

import pytest
import torch
from datasets import Dataset
from killed_runs import Processes, Training, kill_and_go_on, outcome, stopped_after
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.trainer import base_trainer

import sft_lora
from lm_trials.models.adapters import LoraSpec, add_lora, check_adapter_state, load_adapter_weights, without_noise
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.training.alignment_trainer import PreferenceTuner, RewardTuner
from lm_trials.training.checkpoints import SUMS, seal
from lm_trials.training.data_order import main as tell_order
from lm_trials.training.data_order import open_order
from lm_trials.training.tuning_trainer import AdapterTrainer, FineTuner

SAVED = ("--max_steps", "8", "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "3")
ARMS = {
    "lora": ("--lora_dropout", "0.1", "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "2"),
    "8 bit": ("--load_in_8bit", "True"),
    "full": ("--full_finetune", "True", "--eval_strategy", "steps", "--eval_steps", "3"),
    "packed": ("--packing", "True"),
}


@pytest.mark.parametrize("arm", list(ARMS))
def test_resumed_anywhere_it_ends_with_the_same_bits(tune_flags, tmp_path, arm):
    """Within a logging interval too, whose loss, entropy and accuracy are sums over both parts."""
    argv, folder = tune_flags("run", *SAVED, *ARMS[arm]), tmp_path / "run"
    sft_lora.main(argv)
    straight = outcome(folder)
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} <= {key for row in straight[1] for key in row}
    stopped_after(folder, 4)
    sft_lora.main(argv)
    assert outcome(folder) == straight


@pytest.mark.parametrize("arm", ["lora", "full"])
def test_killed_in_the_final_evaluation(tune_flags, tmp_path, arm):
    """No update is left to make; the log is the same, with the evaluation of the last update in it once."""
    argv = tune_flags("run", *SAVED, *ARMS[arm], "--eval_strategy", "steps", "--eval_steps", "2")
    folder = tmp_path / "run"
    sft_lora.main(argv)
    straight = outcome(folder)
    (folder / "finished.json").unlink()
    sft_lora.main(argv)
    assert outcome(folder) == straight
    assert [row["step"] for row in straight[1] if "eval_loss" in row] == [2, 4, 6, 8]


def test_under_other_names_it_is_the_same_run(tune_flags, tiny_base, tiny_pairs, tmp_path):
    """Gone on with twice, under a link to the base and a copy of the data; each checkpoint is one of this run."""
    argv, folder = tune_flags("run", *SAVED), tmp_path / "run"
    sft_lora.main(argv)
    straight = outcome(folder)
    (tmp_path / "link").symlink_to(tiny_base)
    shutil.copy(tiny_pairs, tmp_path / "rows.jsonl")
    other = [*argv, "--model_name_or_path", str(tmp_path / "link"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    for step, again in ((2, other), (6, argv)):
        stopped_after(folder, step)
        sft_lora.main(again)
        assert outcome(folder) == straight


def test_what_is_saved_is_read_back(tune_flags, monkeypatch):
    from lm_trials.training import tuning_trainer as sft_trainer

    read = []
    monkeypatch.setattr(sft_trainer, "check_adapter_state", lambda model, folder, *_, **__: read.append(folder.name))
    sft_lora.main(tune_flags("run", "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"))
    assert read == [".checkpoint-1.unfinished", ".checkpoint-2.unfinished", "run"]


def test_the_neighbour_of_the_same_bits(tune_flags, tmp_path):
    """Without what `FineTuner.progress` keeps, the log is another."""
    argv, folder = tune_flags("run", *SAVED), tmp_path / "run"
    sft_lora.main(argv)
    straight = outcome(folder)
    stopped_after(folder, 4)
    place = folder / "checkpoint-4" / "progress_0.json"
    progress = json.loads(place.read_text())
    assert progress["train_metrics"]["entropy"]  # there is something to keep at an update between two log lines
    place.write_text(json.dumps({**progress, "train_metrics": {}, "train_tokens": 0}))
    facts = json.loads((folder / "checkpoint-4" / SUMS).read_text())
    (folder / "checkpoint-4" / SUMS).unlink()
    facts.pop("files")
    seal(folder / "checkpoint-4", folder / "checkpoint-4-new", facts)
    (folder / "checkpoint-4-new").rename(folder / "checkpoint-4")
    sft_lora.main(argv)
    weights, numbers = outcome(folder)
    assert weights == straight[0]
    assert numbers != straight[1]


def test_a_killed_fine_tuning_ends_as_one_that_was_not(tune_flags, tmp_path):
    argv, folder = tune_flags("run", *SAVED, *ARMS["lora"]), tmp_path / "run"
    Training(argv, folder, function="tune").finish()
    straight = outcome(folder)
    delay = random.Random(0).uniform(0, 0.05)
    assert kill_and_go_on(argv, folder, delay, after=folder / "checkpoint-4", function="tune")
    assert outcome(folder) == straight


@pytest.mark.parametrize("prefix", ["_orig_mod."])
def test_an_adapter_with_other_keys_is_not_gone_on_with(tune_flags, tmp_path, capsys, prefix):
    """Pitfall P7: what torch.compile calls the weights.  The checkpoint is whole, its keys are others."""
    argv, folder = tune_flags("run", *SAVED), tmp_path / "run"
    sft_lora.main(argv)
    stopped_after(folder, 4)
    renamed(folder / "checkpoint-4", prefix)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        sft_lora.main(argv)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "28 missing" in line
    assert "28 unexpected" in line
    assert prefix in line


def renamed(checkpoint, prefix):
    facts = json.loads((checkpoint / SUMS).read_text())
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)  # it was trained
    tensors = {name.replace("base_model.model.", f"base_model.model.{prefix}"): t for name, t in tensors.items()}
    save_file(tensors, checkpoint / "adapter_model.safetensors", {"format": "pt"})
    (checkpoint / SUMS).unlink()
    facts.pop("files")
    seal(checkpoint, checkpoint.with_name("sealed"), facts)
    checkpoint.with_name("sealed").rename(checkpoint)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")
def test_stock_trainer_goes_on_with_a_fresh_adapter(tune_flags, tiny_base, tmp_path):
    """What P7 is: stock SFTTrainer takes up none of the weights and trains on."""
    argv, folder = tune_flags("run", *SAVED), tmp_path / "run"
    sft_lora.main(argv)
    renamed(folder / "checkpoint-4", "_orig_mod.")
    model = add_lora(load_model(resolve_model(str(tiny_base))), LoraSpec(r=2), seed=42)
    fresh = {name: tensor.clone() for name, tensor in model.named_parameters() if "lora" in name}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path / "stock"), use_cpu=True, bf16=False, gradient_checkpointing=False),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 5, 6]], "labels": [[1, 5, 6]]}),
        processing_class=AutoTokenizer.from_pretrained(tiny_base),
    )
    trainer._load_from_checkpoint(str(folder / "checkpoint-4"))  # no error
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in fresh.items())
    with pytest.raises(ValueError, match="does not fit the model"):
        check_adapter_state(model, folder / "checkpoint-4")


def test_an_adapter_is_loaded_to_the_bit_or_not_at_all(tune_flags, tiny_base, tmp_path):
    sft_lora.main(tune_flags("run"))
    model = add_lora(load_model(resolve_model(str(tiny_base))), LoraSpec(r=2), seed=0)
    with pytest.raises(ValueError, match="was not loaded exactly"):
        check_adapter_state(model, tmp_path / "run")
    load_adapter_weights(model, tmp_path / "run")
    check_adapter_state(model, tmp_path / "run")
    larger = add_lora(load_model(resolve_model(str(tiny_base))), LoraSpec(r=3), seed=0)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_adapter_weights(larger, tmp_path / "run")


def test_the_best_adapter_is_loaded_at_the_end(tune_flags, tmp_path):
    best = ("--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", "True")
    high = ("--learning_rate", "4", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "8")
    metrics = sft_lora.main(tune_flags("run", *SAVED, "--max_steps", "6", *best, *high))
    rows = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = {row["step"]: row["eval_loss"] for row in rows[:-1] if "eval_loss" in row}
    step = min(losses, key=losses.get)
    assert step != 6  # the last is not the best, or nothing would be shown
    kept = (tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == kept
    assert metrics["eval_loss"] == losses[step]


def test_processes_and_accumulation_see_the_same_examples(tune_flags, tmp_path):
    def run(name, *more, world_size=1):
        argv = tune_flags(name, "--max_steps", "3", *more)
        folder = tmp_path / name
        Processes("tune_and_keep", [argv, str(folder)], tmp_path / f"{name}.log", world_size).finish()
        rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        batches = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(world_size)]
        per_step = len(batches[0]) // 3
        updates = [
            sorted(
                tuple(row)
                for rank in batches
                for batch in rank[step * per_step : (step + 1) * per_step]
                for row in batch
            )
            for step in range(3)
        ]
        return [row["loss"] for row in rows if "loss" in row], updates, rows[-2 if "train_loss" in rows[-2] else -1]

    losses, updates, _ = run("one", "--per_device_train_batch_size", "8")
    halves = ("--per_device_train_batch_size", "4")
    for name, more, world in (("two", ("--use_cpu", "True"), 2), ("parts", ("--gradient_accumulation_steps", "2"), 1)):
        found, seen, _ = run(name, *halves, *more, world_size=world)
        assert seen == updates
        assert found == pytest.approx(losses, abs=1e-5)
    order = open_order(tmp_path / "one")  # which examples were in which update can be told afterwards
    assert [sorted(part.ids for part in order.parts_of(step)) for step in (1, 2, 3)] == updates
    other, seen, _ = run("other", "--per_device_train_batch_size", "8", "--data_seed", "5")
    assert seen != updates
    assert other != pytest.approx(losses, abs=1e-5)


def test_the_order_of_packed_examples_is_told(tune_flags, tmp_path, capsys):
    """Of one pass each example is in one row; an update that there is not is named."""
    sft_lora.main(tune_flags("run", "--packing", "True", "--max_steps", "-1", "--num_train_epochs", "1"))
    order = open_order(tmp_path / "run")
    numbers = [part.document for step in range(1, order.num_steps + 1) for part in order.parts_of(step)]
    assert len(set(numbers)) == len(numbers) > 90
    assert {part.pass_index for part in order.parts_of(order.num_steps)} == {0}
    capsys.readouterr()
    parts = tell_order([str(tmp_path / "run"), "--step", "1", "--text"])
    assert "Write about" in capsys.readouterr().out
    assert sum(len(part.ids) for part in parts if part.block == 0) <= 64
    with pytest.raises(SystemExit):
        tell_order([str(tmp_path / "run"), "--step", str(order.num_steps + 1)])


def test_nothing_is_reported_to_anybody(tune_flags, tmp_path, monkeypatch):
    """trl counts its Trainers at the Hub; ours do not call there, stock ones do."""
    calls = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **facts: calls.append(facts))
    sft_lora.main(tune_flags("run", "--max_steps", "1"))
    assert not calls
    ours = {kind._send_telemetry for kind in (FineTuner, PreferenceTuner, RewardTuner)}
    assert ours == {AdapterTrainer._send_telemetry}
    monkeypatch.delattr(AdapterTrainer, "_send_telemetry")
    sft_lora.main(tune_flags("stock", "--max_steps", "1"))
    assert calls


def test_noise_is_known_by_its_words():
    import warnings

    with warnings.catch_warnings(record=True) as heard, without_noise():
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
    assert not heard
    with pytest.warns(FutureWarning, match="other"), without_noise():
        warnings.warn("something other", FutureWarning, stacklevel=1)
