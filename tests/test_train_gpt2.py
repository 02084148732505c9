"""`train_gpt2.py` end to end, through `main(argv)` and through `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import error_line
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_gpt2
from lm_trials.commands import evaluate

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "tiny_llama_losses.json"


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def refusal(argv, capsys):
    return error_line(capsys, train_gpt2.main, *argv)


@pytest.fixture
def run(train_flags, tmp_path):
    def train(name, *more):
        train_gpt2.main(train_flags(name, *more))
        return tmp_path / name

    return train


def test_a_run_leaves_a_plain_hugging_face_model_with_all_that_determines_it(run, capsys):
    more = ("--eval_datasets", "tiny", "--max_eval_samples", "12")  # the train split too
    folder = run("run", "--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "3", *more)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == 33_440  # tiny indeed, and the shape that was asked for
    assert model.config.use_cache
    assert len(AutoTokenizer.from_pretrained(folder)) == 400
    described = json.loads((folder / "run.json").read_text())
    assert described["outcome"]["num_tokens"] == 6 * 4 * 32
    assert described["replicate"] == {"seed": 42, "data_seed": 42}
    assert described["outcome"]["data"]["tokens"]["train"] > 0
    assert (folder / "loss.png").stat().st_size > 1000
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["eval_train_samples"] == 12
    assert results["eval_train_loss_lower"] < results["eval_train_loss"] < results["eval_train_loss_upper"]
    assert (results["eval_samples"], results["eval_loss_lower"], results["eval_loss_upper"]) == (6, None, None)
    shown = capsys.readouterr().out
    assert f"eval loss {results['eval_loss']:.4f} [no interval]" in shown
    assert f"eval_train loss {results['eval_train_loss']:.4f} [{results['eval_train_loss_lower']:.4f}, " in shown
    assert losses(folder)[-1] < losses(folder)[0]


def test_the_same_command_gives_the_same_bits_and_another_seed_others(run):
    first, again = run("first"), run("again")
    assert losses(first) == losses(again)
    weights = [load_file(folder / "model.safetensors") for folder in (first, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert losses(run("other", "--seed", "1")) != losses(first)
    # Only the order differs: the first update sees other blocks with the same weights.
    assert losses(run("order", "--data_seed", "1"))[0] != losses(first)[0]


def test_sentences_with_a_feature_have_a_curve_that_ends_at_what_evaluate_finds(run, tiny_data):
    when = ("--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "5", "--dense_eval_steps", "3")
    folder = run("slice", *when, "--dense_eval_spacing", "geometric", "--sentences_with", "Twist", "Dialogue")
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    curve = {row["step"]: row["eval_sentences_Twist_loss"] for row in history if "eval_sentences_Twist_loss" in row}
    assert list(curve) == [row["step"] for row in history if "eval_loss" in row] == [1, 2, 3, 5, 6]
    assert len(set(curve.values())) == 5
    described = json.loads((folder / "run.json").read_text())
    assert described["logistics"]["sentences_with"] == ["Twist", "Dialogue"]  # no difference between arms
    argv = ["--model_name_or_path", str(folder), "--dataset_name", "tiny", "--data_cache_dir", str(tiny_data)]
    argv += ["--block_size", "32", "--sentences_with", "Twist"]
    rows = {row["slice"]: row for row in evaluate.main(argv) if row["metric"] == "loss"}
    last = json.loads((folder / "eval_results.json").read_text())
    for name, under in (("all", "eval"), ("sentences=Twist", "eval_sentences_Twist")):
        found = [last[f"{under}_{of}"] for of in ("loss", "loss_lower", "loss_upper", "samples", "tokens")]
        found = [float("nan") if value is None else value for value in found]  # six stories have no interval
        expected = [rows[name][column] for column in ("estimate", "lower", "upper", "n", "tokens")]
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert last["eval_sentences_Twist_loss"] == curve[6] != last["eval_sentences_Dialogue_loss"]


def test_accumulation_and_workers_are_no_variables(run):
    whole = losses(run("whole"))
    parts = losses(run("parts", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4"))
    workers = losses(run("workers", "--dataloader_num_workers", "2"))
    assert parts == pytest.approx(whole, abs=1e-5)
    assert workers == whole
    half = losses(run("half", "--per_device_train_batch_size", "2"))
    assert half != pytest.approx(whole, abs=1e-5)  # the neighbour: another batch is another run


@pytest.mark.quick
def test_losses_follow_the_golden_trajectory(run):
    golden = json.loads(GOLDEN.read_text())
    found = losses(run("golden", "--max_steps", "20", "--config_overrides", golden["config_overrides"]))
    assert found == pytest.approx(golden["losses"], abs=2e-5), (
        "The losses of a fixed run have moved. If the change meant to move them (order, packing, initialisation, "
        "generated stories, a pinned library), write the new ones into tests/golden with the versions, and say "
        "'numbers change' in CHANGELOG.md; otherwise something that should not matter does."
    )
    assert found != pytest.approx(golden["losses"][::-1], abs=2e-5)


def test_two_processes_see_the_same_examples_as_one(run, train_flags, tmp_path):
    one = losses(run("one"))
    flags = train_flags("two", "--per_device_train_batch_size", "2")
    config = REPOSITORY / "accelerate_configs" / "cpu_two_processes.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--main_process_port", "0", str(REPOSITORY / "train_gpt2.py"), *flags],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-5)
    described = json.loads((tmp_path / "two" / "run.json").read_text())
    assert described["logistics"]["world_size"] == 2
    assert described["outcome"]["total_train_batch_size"] == 4


@pytest.mark.end_to_end
def test_help_needs_no_torch(tmp_path):
    code = (
        "import sys, train_gpt2\n"
        "try:\n    train_gpt2.main(['--help'])\n"
        "except SystemExit as left:\n    assert left.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config_overrides" in done.stdout
    assert "--learning_rate" in done.stdout


def test_help_all_shows_every_training_argument(capsys):
    with pytest.raises(SystemExit) as left:
        train_gpt2.main(["--help_all"])
    assert left.value.code == 0
    assert "--adam_epsilon" in capsys.readouterr().out


def test_a_config_file_gives_flags_and_the_command_line_wins(run, tmp_path):
    config = tmp_path / "arm.yaml"
    config.write_text("weight_decay: 2.5e-1\nmax_steps: 3\n")
    outcome = json.loads((run("config", "--config", str(config)) / "run.json").read_text())["outcome"]
    assert outcome["max_steps"] == 4  # the command line's
    assert outcome["weight_decay"] == 0.25  # the file's, as a number though YAML reads 2.5e-1 as it likes


def test_epochs_become_whole_updates(run, tiny_data):
    folder = run("epochs", "--max_steps", "-1", "--num_train_epochs", "0.02", "--eval_strategy", "epoch")
    outcome = json.loads((folder / "run.json").read_text())["outcome"]
    tokens = outcome["data"]["tokens"]["train"]
    assert outcome["max_steps"] == int(0.02 * (tokens // 32) / 4)
    assert len(losses(folder)) == outcome["max_steps"]


def test_do_eval_alone_evaluates_the_finished_run(run, train_flags):
    trained = run("run")
    before = json.loads((trained / "eval_results.json").read_text())["eval_loss"]
    kept = {name: (trained / name).read_bytes() for name in ("trainer_state.json", "loss.png", "run.json")}
    metrics = train_gpt2.main(train_flags("run", "--do_eval"))
    assert metrics["eval_loss"] == before
    assert {name: (trained / name).read_bytes() for name in kept} == kept


def test_resuming_ends_where_the_straight_run_ends(run):
    straight = run("straight", "--max_steps", "6")
    saved = ["--save_strategy", "steps", "--save_steps", "3"]
    stopped = run("stopped", "--max_steps", "6", *saved)
    (stopped / "model.safetensors").unlink()
    resumed = run("stopped", "--max_steps", "6", *saved, "--resume_from_checkpoint", str(stopped / "checkpoint-3"))
    weights = [load_file(folder / "model.safetensors") for folder in (straight, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learning_rate", "9e-3"], "learning_rate was 0.001 and is now 0.009"),
        (["--data_seed", "7"], "data_seed was 42 and is now 7"),
        (["--max_steps", "5"], "max_steps was 6 and is now 5"),
    ],
)
def test_a_run_is_not_resumed_as_another(run, train_flags, capsys, more, message):
    saved = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3"]
    folder = run("run", *saved)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = refusal(train_flags("run", *saved, "--resume_from_checkpoint", "True", *more), capsys)
    assert message in found
    assert "cannot be resumed" in found
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    # What is mere logistics may change: the same product of batch and accumulation, another log interval.
    run("run", *saved, "--resume_from_checkpoint", "True", "--logging_steps", "2", "--per_device_train_batch_size", "2",
        "--gradient_accumulation_steps", "2")  # fmt: skip


def test_a_damaged_checkpoint_is_one_line(run, train_flags, capsys):
    saved = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3"]
    weights = run("run", *saved) / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    argv = train_flags("run", *saved, "--resume_from_checkpoint", str(weights.parent))
    assert "checkpoint-3 is damaged: model.safetensors has 1,000 bytes instead of the" in refusal(argv, capsys)


def test_the_metrics_of_the_best_model_are_those_of_the_model_that_is_saved(run):
    more = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2", "--save_strategy", "steps"]
    diverging = ["--learning_rate", "20", "--lr_scheduler_type", "constant", "--load_best_model_at_end", "True"]
    folder = run("best", "--max_steps", "8", *more, *diverging)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses_at = {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(min(losses_at[step] for step in (2, 4, 6)), rel=1e-6)
    assert json.loads((folder / "run.json").read_text())["outcome"]["eval_steps"] == 2
    assert "eval_steps" in json.loads((run("last", *more) / "run.json").read_text())["logistics"]


def test_a_typo_does_not_cost_the_run_that_would_be_overwritten(run, train_flags, capsys):
    folder = run("run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for wrong in (
        ["--dataset_name", "nowhere.jsonl"],
        ["--config_overrides", "hidden_size=33"],
        ["--max_eval_samples", "0"],
    ):
        refusal(train_flags("run", "--overwrite_output_dir", *wrong), capsys)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_corpus_without_validation_stories_is_refused_before_it_is_tokenised(train_flags, tmp_path, capsys):
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"text": f"A cat saw {n} dogs."}) for n in range(3)))
    data = ["--data_cache_dir", str(tmp_path / "data"), "--vocab_size", "0", "--tokenizer_name"]
    argv = train_flags("run", "--dataset_name", str(tmp_path / "few.jsonl"))
    tokenizer = str(Path(argv[argv.index("--data_cache_dir") + 1]) / "tok400")
    assert "is in the validation split" in refusal([*argv, *data, tokenizer], capsys)
    assert not list((tmp_path / "data").glob("*/tokens-*"))


def test_tensorboard_holds_losses_tokens_and_sampled_stories(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = ["--report_to", "tensorboard", "--num_sampled_stories", "1", "--sample_tokens", "8"]
    folder = run("board", *more, "--eval_strategy", "steps", "--eval_steps", "2")
    (events,) = (path for path in (folder / "runs").iterdir())
    board = EventAccumulator(str(events)).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses(folder))
    assert [event.value for event in board.Scalars("train/tokens_seen")] == [128, 256, 384, 512]
    assert len(board.Scalars("eval/loss")) == 2
    assert "eval/story_0/text_summary" in board.Tags()["tensors"]


def test_sampling_stories_does_not_move_the_training(run):
    more = ["--eval_strategy", "steps", "--eval_steps", "1", "--dropout", "0.1"]
    without = losses(run("without", *more))
    assert losses(run("with", *more, "--num_sampled_stories", "1", "--sample_tokens", "4")) == without
    assert losses(run("seed", *more, "--seed", "3")) != without


def test_gpt2_of_the_fifth_seed_has_its_parameters():
    from lm_trials.models.shapes import build_config, count_parameters

    config = build_config(
        "gpt2", None, "n_embd=512,n_layer=8,n_head=8", vocab_size=50257, block_size=1024, bos_token_id=50256,
        eos_token_id=50256,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert count_parameters(model).total == 51_475_968


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--config_overrides", "n_embed=8"], "num_attention_heads"),
        (["--config_overrides", "hidden_size=30,num_attention_heads=4"], "30"),
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--dataset_name", "tyni"], "tiny"),
        (["--vocab_size", "399"], "train_vocab --corpus CORPUS --vocab_size 399"),
        (["--block_size", "1"], "--block_size 1"),
        (["--block_size", "200000"], "is longer than the model's 256 positions"),
        (
            ["--block_size", "200000", "--config_overrides", "max_position_embeddings=200000"],
            "--block_size 200000 is more than",
        ),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0 must be"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0"),
        (["--seed", "-1"], "--seed -1 must be"),
        (["--seed", "5000000000"], "--seed 5000000000 must be"),
        (["--data_seed", "-1"], "--data_seed -1 must be"),
        (["--learning_rate", "-1"], "--learning_rate -1 must be"),
        (["--max_eval_samples", "0"], "--max_eval_samples 0 must be"),
        (["--sentences_with", "Twist", "Moral"], "--sentences_with Moral: did you mean MoralValue?"),
        (["--shuffle_buffer_size", "0"], "--shuffle_buffer_size 0 must be"),
        (["--num_sampled_stories", "-1"], "--num_sampled_stories -1 must be"),
        (["--sample_tokens", "0"], "--sample_tokens 0 must be"),
        (["--report_to", "tensorbord"], "did you mean tensorboard?"),
        (["--output_dir", "README.md/x"], "README.md: Not a directory); give another folder"),
        (["--output_dir", "/proc/nowhere"], "give another folder"),
        (["--config_name", "base9M"], "base8M"),
        (["--learning_rat", "1"], "--learning_rate"),
        (["--model_type", "gpt3"], "gpt2"),
        (["--model_type", "t5"], "no causal language model"),
        (["--train_sampling_strategy", "random"], "--data_seed"),
        (["--resume_from_checkpoint", "True"], "has no checkpoint"),
        (["--num_train_epochs", "0.0001", "--max_steps", "-1"], "makes no update"),
        (["--config_overrides", "max_position_embeddings=16"], "--block_size 32 is longer"),
        (["--report_to", "wandb"], "pip install wandb"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: it cannot be read"),
        (["--text_column", "body", "--dataset_name", "tests/golden/rows.jsonl"], "body"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(train_flags, tmp_path, capsys, more, expected, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert expected in refusal(train_flags("run", *more), capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_run_is_left_alone(run, train_flags, capsys):
    folder = run("run")
    before = (folder / "model.safetensors").read_bytes()
    assert "--overwrite_output_dir" in refusal(train_flags("run", "--seed", "2"), capsys)
    assert (folder / "model.safetensors").read_bytes() == before
    run("run", "--seed", "2", "--overwrite_output_dir")
    assert (folder / "model.safetensors").read_bytes() != before


def test_a_folder_that_is_no_run_is_never_removed(train_flags, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "is not a run" in refusal(train_flags("run", "--overwrite_output_dir"), capsys)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_a_path_is_read_and_tokenised_on_the_way(run, tiny_data, tmp_path):
    stories = tmp_path / "mine.jsonl"
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": f"Once there were {n} cats. They {rng.choice(['ran', 'sat'])}."}) for n in range(300)]
    stories.write_text("\n".join(lines))
    folder = run("path", "--dataset_name", str(stories))
    assert json.loads((folder / "run.json").read_text())["outcome"]["data"]["corpus"].startswith("mine-")
