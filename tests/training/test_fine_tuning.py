"""Fine-tuning from a checkpoint on a set: weights alone, named losses, dense evaluations, stories written."""

import json
import sys
import types

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import prepare_tinystories
import train_gpt2
from lm_trials.evaluation.losses import story_losses
from lm_trials.evaluation.summary import store_documents
from lm_trials.protocols.set_stores import open_set
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training.callbacks import dense_steps

pytestmark = pytest.mark.end_to_end

SETS = ("filter-adv-Twist", "recovery-Twist")


@pytest.fixture(scope="module")
def base(tiny_data, tiny_shape, tmp_path_factory):
    """A pretrained model of some updates, and the sets."""
    prepare_tinystories.main(
        ["protocol_set", "--corpus", "tiny", "--vocab_size", "400", "--data_cache_dir", str(tiny_data)]
    )
    folder = tmp_path_factory.mktemp("base") / "base"
    argv = f"--dataset_name pretrain-all --data_cache_dir {tiny_data} --vocab_size 400 --model_type llama --max_steps 6"
    shape = f"--config_overrides {tiny_shape},max_position_embeddings=512"
    more = "--block_size 512 --per_device_train_batch_size 2 --learning_rate 1e-3 --save_strategy no --report_to none"
    train_gpt2.main([*argv.split(), *shape.split(), *more.split(), "--output_dir", str(folder)])
    return folder


@pytest.fixture
def tune(base, tiny_data, tmp_path):
    def run(name, *more):
        argv = [
            *("--model_name_or_path", str(base), "--data_cache_dir", str(tiny_data), "--max_steps", "6"),
            *("--block_size", "64", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3"),
            *("--lr_scheduler_type", "constant", "--logging_steps", "1", "--save_strategy", "no"),
            *("--report_to", "none", "--num_sampled_stories", "0", "--num_generations", "2"),
            *("--generation_tokens", "8", "--max_eval_samples", "4", "--dataset_name", SETS[0]),
            *("--output_dir", str(tmp_path / name), *more),
        ]
        metrics = train_gpt2.main(argv)
        return metrics, tmp_path / name

    return run


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_a_run_on_a_set_starts_from_the_weights_and_a_new_schedule(tune, base):
    _, folder = tune("run")
    run, before = (json.loads((place / "run.json").read_text()) for place in (folder, base))
    outcome = run["outcome"]
    assert outcome["data"]["protocol"]["adversarial"] == ["features=Twist:1.0"]
    assert outcome["initial_model"]["name_or_path"] == str(base)
    assert outcome["initial_model"]["run"]["run_name"]
    digest = outcome["initial_model"]["weights_sha256"]
    named = {"run_name": before["run_name"], "replicate": before["replicate"], "weights_sha256": digest}
    assert (run["lineage"], before["lineage"]) == ([named], [])
    assert [row["learning_rate"] for row in history(folder) if "loss" in row] == [1e-3] * 6
    weights = [load_file(place / "model.safetensors") for place in (base, folder)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    unmoved = tune("still", "--learning_rate", "0")[1]
    still = load_file(unmoved / "model.safetensors")
    assert all(torch.equal(weights[0][name], still[name]) for name in still)
    digests = [json.loads((place / "run.json").read_text())["outcome"] for place in (folder, unmoved)]
    assert digests[0]["initial_model"]["weights_sha256"] == digests[1]["initial_model"]["weights_sha256"]
    AutoModelForCausalLM.from_pretrained(folder)


def test_each_named_set_has_its_loss_over_its_own_validation_records(tune, base, tiny_data):
    metrics, folder = tune("run", "--eval_datasets", ",".join(SETS), "--eval_strategy", "steps", "--eval_steps", "3")
    names = {"", "_train", "_test", *(f"_{name}" for name in SETS)}
    assert names <= {key.removeprefix("eval").removesuffix("_loss") for key in metrics if key.endswith("_loss")}
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(str(base))
    for name in SETS:
        store = open_set(name, tiny_data, tokenizer, "validation")
        losses = list(story_losses(model, store_documents(store, 4), 64))
        expected = sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["eval_loss"] == metrics[f"eval_{SETS[0]}_loss"] != metrics[f"eval_{SETS[1]}_loss"]
    assert [row["step"] for row in history(folder) if "eval_loss" in row] == [3, 6]


def test_prompts_that_do_not_fit_are_said_at_the_start_and_stop_nothing(tiny_data, tiny_shape, tmp_path, capsys, base):
    argv = f"--dataset_name pretrain-all --data_cache_dir {tiny_data} --vocab_size 400 --model_type llama --max_steps 2"
    more = f"--config_overrides {tiny_shape},max_position_embeddings=64 --block_size 64 --max_eval_samples 2"
    rest = f"--per_device_train_batch_size 2 --report_to none --save_strategy no --output_dir {tmp_path / 'short'}"
    train_gpt2.main([*argv.split(), *more.split(), *rest.split()])
    assert "no stories are generated for pretrain-all: a prompt has" in capsys.readouterr().err
    assert (tmp_path / "short" / "model.safetensors").is_file()
    assert not (tmp_path / "short" / "generations").exists()


def test_an_interval_of_evaluations_may_be_a_share(tune):
    more = ["--eval_strategy", "steps", "--eval_steps", "0.99", "--dense_eval_steps", "6", "--generate_every", "0"]
    dense = [row["step"] for row in history(tune("dense", *more, "--max_steps", "20")[1]) if "eval_loss" in row]
    assert dense == [2, 4, 6, 20]


def test_texts_stay_out_of_the_state_that_checkpoints_keep(tune):
    _, folder = tune("run", "--eval_strategy", "steps", "--eval_steps", "3", "--num_sampled_stories", "1")
    kept = [value for row in history(folder) for key, value in row.items() if "generations" in key]
    assert kept == []


def test_dense_evaluations_come_first(tune):
    more = ["--eval_strategy", "steps", "--eval_steps", "20", "--dense_eval_steps", "5", "--generate_every", "0"]
    steps = [row["step"] for row in history(tune("linear", *more)[1]) if "eval_loss" in row]
    assert steps == [2, 4, 6]  # the last one is the final model's
    steps = [row["step"] for row in history(tune("plain", *more[:4], "--generate_every", "0")[1]) if "eval_loss" in row]
    assert steps == [6]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((200, 200), list(range(20, 201, 20))),
        ((200, 200, "geometric"), [1, 2, 3, 6, 11, 19, 34, 62, 111, 200]),
        ((5, 7), [1, 2, 3, 4, 5]),
        ((3, 100), []),
        ((3, 100, "geometric"), [3]),
    ],
)
def test_dense_steps(arguments, steps):
    assert dense_steps(*arguments) == steps


def test_stories_for_prompts_of_the_sets_are_kept_as_tables(tune, tiny_data, base):
    _, folder = tune(
        "run", "--eval_datasets", SETS[1], "--eval_strategy", "steps", "--eval_steps", "2", "--generate_every", "2"
    )
    table = pd.read_parquet(folder / "generations" / SETS[0])
    assert list(table)[:5] == ["prefix", "clean_prefix", "generation", "target", "step"]
    assert sorted(set(table["step"])) == [2, 6]  # the first evaluation and the third
    store = open_set(SETS[0], tiny_data, load_tokenizer(str(base)), "validation")
    first = table[table["step"] == 2].iloc[0]
    assert first["record_id"] == store.record_id(0)
    assert first["prefix"].startswith("<s>")
    assert first["clean_prefix"].endswith("\nStory:")
    assert "Twist" in first["features"]
    assert "Story:" not in first["target"]
    assert len(pd.read_parquet(folder / "generations" / SETS[1])) == 4
    shares = [row for row in history(folder) if f"eval_{SETS[0]}_asked_Twist" in row]
    assert shares
    assert all(0 <= row[f"eval_{SETS[0]}_asked_Twist"] <= 1 for row in shares)


def test_tensorboard_shows_the_stories_and_the_shares(tune):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder = tune("board", "--report_to", "tensorboard", "--eval_strategy", "steps", "--eval_steps", "3")
    (events,) = (folder / "runs").iterdir()
    board = EventAccumulator(str(events)).Reload()
    (tag,) = [tag for tag in board.Tags()["tensors"] if f"generations_{SETS[0]}" in tag]
    text = board.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| prefix | generation | target |")
    assert "Story:" in text
    assert f"eval/{SETS[0]}_asked_Twist" in board.Tags()["scalars"]


def test_the_picture_has_a_line_for_each_named_set(tune):
    from lm_trials.reporting.figures import loss_figure

    _, folder = tune("run", "--eval_datasets", SETS[1], "--eval_strategy", "steps", "--eval_steps", "3")
    labels = [line.get_label() for line in loss_figure(history(folder), "run").axes[0].lines]
    assert labels == ["training", "validation, 95 % interval over stories", SETS[1]]


def test_writing_stories_does_not_move_the_training(tune):
    more = ["--eval_strategy", "steps", "--eval_steps", "2"]
    losses = [
        [row["loss"] for row in history(tune(name, *more, "--generate_every", every)[1]) if "loss" in row]
        for name, every in (("with", "1"), ("without", "0"))
    ]
    assert losses[0] == losses[1]
    other = [row["loss"] for row in history(tune("seed", *more, "--data_seed", "5")[1]) if "loss" in row]
    assert other != losses[0]


def test_wandb_gets_the_tables_under_the_studys_columns(monkeypatch):
    from lm_trials.evaluation.feature_scores import Generation
    from lm_trials.training.callbacks import report_to_wandb

    logged = {}
    wandb = types.SimpleNamespace(
        Table=lambda columns, data: (columns, data), log=lambda content, commit: logged.update(content)
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    report_to_wandb({"a": [Generation("1", "<s> p", "p", "g", "t", ("Twist",), ())]}, step=7)
    columns, rows = logged["generations/a"]
    assert columns == ["prefix", "clean_prefix", "generation", "target", "step"]
    assert rows == [["<s> p", "p", "g", "t", 7]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset_name", "filter-adv-Twst"], "filter-adv-Twst"),
        (["--eval_datasets", "../recovery-Twist"], "give names of data sets in"),
        (["--eval_datasets", "recovery-Twist, train"], "--eval_datasets train: give names"),
        (["--eval_datasets", "recovery-Tvist"], "--eval_datasets recovery-Tvist is not prepared"),
        (["--model_name_or_path", "nowhere/at/all"], "is not a folder; give a run"),
        (["--config_overrides", "hidden_size=8"], "has its shape); remove --config_overrides"),
        (["--block_size", "4096"], "--block_size 4096 is longer than the model's 512 positions"),
        (["--vocab_size", "401"], "train_vocab --corpus CORPUS --vocab_size 401"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(tune, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as left:
        tune("run", *more)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_than_the_models_and_an_empty_folder_are_refused(tune, tmp_path, capsys):
    tiny_model("llama", vocab_size=330).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    for more, message in (
        (["--tokenizer_name", str(tmp_path / "other")], "differs from the tokenizer of"),
        (["--model_name_or_path", str(tmp_path / "other")], "the tokens of this tokenizer"),
        (["--model_name_or_path", str(tmp_path)], "has no config.json"),
    ):
        with pytest.raises(SystemExit):
            tune("run", *more)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
