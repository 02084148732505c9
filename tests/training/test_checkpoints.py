"""Checkpoints: whole or not there, checked before they are loaded; and what stock Trainer does without."""

import json
import resource
import shutil

import pytest
from refusals import error_line
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

import train_gpt2
from lm_trials.models.reference import checkpoints
from lm_trials.training import resumption
from lm_trials.training.checkpoints import SUMS, newest_checkpoint, rotate, seal
from lm_trials.training.trainer import StoryTrainer

SAVED = ("--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the run of `saved_run` is kept once it was trained."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def saved_run(train_flags, tmp_path, trained):
    """A finished run with checkpoints 2, 4 and 6, as if it had been killed after the last of them."""
    argv, folder = train_flags("run", *SAVED), tmp_path / "run"
    if trained.exists():
        shutil.copytree(trained, folder)
    else:
        train_gpt2.main(argv)
        shutil.copytree(folder, trained)
    (folder / "finished.json").unlink()
    return argv, folder


def refusal(argv, capsys):
    return error_line(capsys, train_gpt2.main, *argv)


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("model.safetensors", flip, "model.safetensors has other content"),
        ("optimizer.pt", flip, "optimizer.pt has other content"),
        ("optimizer.pt", lambda path: path.unlink(), "optimizer.pt is missing"),
        ("scheduler.pt", lambda path: path.unlink(), "scheduler.pt is missing"),
        ("rng_state.pth", lambda path: path.unlink(), "rng_state.pth is missing"),
        ("progress_0.json", lambda path: path.unlink(), "progress_0.json is missing"),
        ("trainer_state.json", lambda path: path.write_bytes(path.read_bytes()[:-9]), "trainer_state.json has"),
        (SUMS, lambda path: path.write_text("{"), "its sums.json cannot be read"),
        (SUMS, lambda path: path.write_text('{"files": {}}'), "its sums.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_file(saved_run, capsys, name, harm, said):
    argv, folder = saved_run
    harm(folder / "checkpoint-6" / name)
    before = snapshot(folder)
    line = refusal(argv, capsys)
    assert "checkpoint-6" in line
    assert said in line
    assert "which resumes from checkpoint-4" in line
    assert snapshot(folder) == before
    shutil.rmtree(folder / "checkpoint-6")  # as the line says
    train_gpt2.main(argv)


def test_an_incomplete_checkpoint_is_skipped_with_a_warning(saved_run, capsys):
    argv, folder = saved_run
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "checkpoint-6" / SUMS).unlink()
    (folder / ".checkpoint-7.unfinished").mkdir()
    capsys.readouterr()
    train_gpt2.main(argv)
    said = capsys.readouterr().err
    assert f"checkpoint-6 is incomplete (it has no {SUMS})" in said
    assert ".checkpoint-7.unfinished is incomplete" in said
    assert "from checkpoint-4" in said
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not (folder / ".checkpoint-7.unfinished").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--seed", "8"), "seed was 42 and is now 8"),
        (("--data_seed", "8"), "data_seed was 42 and is now 8"),
        (("--learning_rate", "2e-3"), "learning_rate was 0.001 and is now 0.002"),
        (("--shuffle_buffer_size", "7"), "shuffle_buffer_size was None and is now 7"),
        (("--append_eos", "True"), "append_eos was False and is now True"),
    ],
)
def test_another_run_is_listed_and_refused(saved_run, capsys, more, said):
    argv, folder = saved_run
    before = snapshot(folder)
    line = refusal([*argv, *more], capsys)
    assert said in line
    assert "--overwrite_output_dir" in line
    assert snapshot(folder) == before


def test_a_checkpoint_of_another_run_put_into_the_folder_is_refused(saved_run, train_flags, tmp_path, capsys):
    argv, folder = saved_run
    train_gpt2.main(train_flags("other", *SAVED, "--seed", "8"))
    shutil.rmtree(folder / "checkpoint-6")
    shutil.copytree(tmp_path / "other" / "checkpoint-6", folder / "checkpoint-6")
    assert "checkpoint-6 is a checkpoint of another run" in refusal(argv, capsys)


def test_data_that_changed_since_are_refused(tmp_path, train_flags, capsys):
    stories = tmp_path / "stories.jsonl"
    stories.write_text("".join(json.dumps({"text": f"One day a cat saw {n} dogs."}) + "\n" for n in range(900)))
    argv = train_flags("run", *SAVED, "--dataset_name", str(stories), "--streaming", "True")
    train_gpt2.main(argv)
    (tmp_path / "run" / "finished.json").unlink()
    with stories.open("a") as file:
        file.write(json.dumps({"text": "One more."}) + "\n")
    assert "data.source.fingerprint was" in refusal(argv, capsys)


def test_a_run_of_other_code_is_refused_unless_that_is_accepted(saved_run, capsys, monkeypatch):
    argv, folder = saved_run
    shutil.rmtree(folder / "checkpoint-6")
    monkeypatch.setattr("lm_trials.training.manifest.code_revision", lambda: "another")
    line = refusal(argv, capsys)
    assert "was started by other code: lm_trials was" in line
    assert "--accept_other_code True" in line
    train_gpt2.main([*argv, "--accept_other_code", "True"])
    assert "and is now another" in capsys.readouterr().err
    described = json.loads((folder / "run.json").read_text())
    assert described["outcome"]["code_revision"] != "another"
    assert [code["lm_trials"] for code in described["went_on"]] == ["another"]
    (folder / "finished.json").unlink()
    train_gpt2.main(argv)  # what was accepted once needs no flag again
    monkeypatch.undo()
    run = json.loads((folder / "run.json").read_text())
    del run["went_on"]
    run["versions"]["torch"] = "1.0"
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "finished.json").unlink()
    assert "torch was 1.0 and is now" in refusal(argv, capsys)


def test_a_finished_run_is_not_trained_again_and_a_changed_model_is_said(train_flags, tmp_path, capsys):
    argv = train_flags("run", *SAVED)
    metrics = train_gpt2.main(argv)
    before = snapshot(tmp_path / "run")
    again = train_gpt2.main(argv)
    assert again["eval_loss"] == metrics["eval_loss"]
    assert "run is already finished" in capsys.readouterr().out.replace("\n", " ")
    assert snapshot(tmp_path / "run") == before
    flip(tmp_path / "run" / "model.safetensors")
    assert "is finished and its model is damaged: model.safetensors has other content" in refusal(argv, capsys)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "damaged: config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("eval_results.json", "eval_results.json cannot be read"),
    ],
)
def test_a_finished_run_that_lost_a_file_says_which(train_flags, tmp_path, capsys, name, said):
    argv = train_flags("run", "--max_steps", "2")
    train_gpt2.main(argv)
    (tmp_path / "run" / name).unlink()
    assert said in refusal(argv, capsys)


@pytest.mark.parametrize("streaming", ["False", "CacheStream"])
def test_data_that_were_changed_on_the_disk_are_refused_by_name(train_flags, tmp_path, capsys, tiny_data, streaming):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    argv = train_flags("run", *SAVED, "--data_cache_dir", str(data), "--streaming", streaming)
    train_gpt2.main(argv)
    (tmp_path / "run" / "finished.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    pattern = "tokens-*/train/*.arrow" if streaming == "False" else "records/train/*.arrow"
    files = list((data / "tiny").glob(pattern))
    for file in files:
        flip(file)
    line = refusal(argv, capsys)
    assert "has changed since it was prepared" in line
    assert f"{files[0].name} has other content" in line


def test_the_same_stories_with_other_blanks_are_other_data(train_flags, tmp_path, capsys, tiny_data):
    """A story's name does not see blanks, its tokens do."""
    import prepare_tinystories

    stories, data = tmp_path / "stories.jsonl", tmp_path / "data"

    def prepare(blank):
        shutil.rmtree(data / "mine", ignore_errors=True)
        texts = (f"One day a cat saw {n} dogs.{blank}They ran." for n in range(900))
        stories.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        place = ["--corpus", "mine", "--data_cache_dir", str(data)]
        prepare_tinystories.main(["ingest", "--source", str(stories), *place])

    prepare("\n")
    shutil.copytree(tiny_data / "tok400", data / "tok400")
    more = ("--dataset_name", "mine", "--data_cache_dir", str(data), "--streaming", "CacheStream")
    argv = train_flags("run", *SAVED, *more)
    train_gpt2.main(argv)
    (tmp_path / "run" / "finished.json").unlink()
    prepare(" ")
    assert "data.records was" in refusal(argv, capsys)


def test_a_checkpoint_that_a_signal_asked_for_is_not_the_best_model(train_flags, tmp_path, monkeypatch):
    """Uninterrupted, none is saved after updates 1, 3 and 5, so that the best is sought among those of 2, 4 and 6."""
    best = ("--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end", "True")
    argv = train_flags("run", *SAVED, *best, "--lr_scheduler_type", "constant", "--learning_rate", "0.5")
    train_gpt2.main(argv)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    rows = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert min(losses, key=losses.get) % 2  # the best of all is one of which a signal's checkpoint would be taken
    shutil.rmtree(tmp_path / "run")
    step_end = resumption.Interruption.on_step_end
    for stop in (1, 3, 5):

        def on_step_end(self, args, state, control, stop=stop, **kwargs):
            if state.global_step == stop:
                self.received = 15
            return step_end(self, args, state, control, **kwargs)

        monkeypatch.setattr(resumption.Interruption, "on_step_end", on_step_end)
        with pytest.raises(SystemExit) as left:
            train_gpt2.main(argv)
        assert left.value.code == 128 + 15
        assert (tmp_path / "run" / f"checkpoint-{stop}").is_dir()
    monkeypatch.undo()
    train_gpt2.main(argv)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    facts = json.loads((tmp_path / "run" / "checkpoint-3" / SUMS).read_text())
    assert (facts["scheduled"], json.loads((tmp_path / "run" / "checkpoint-4" / SUMS).read_text())["scheduled"]) == (
        False,
        True,
    )


def test_a_signal_is_saved_where_only_the_best_is(train_flags, tmp_path, monkeypatch):
    """Trainer takes the request back after an evaluation that is not the best."""
    more = (
        "--save_strategy",
        "best",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--metric_for_best_model",
        "loss",
    )
    argv = train_flags("run", "--max_steps", "6", *more, "--learning_rate", "5", "--lr_scheduler_type", "constant")
    step_end = resumption.Interruption.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.received = 15
        return step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(resumption.Interruption, "on_step_end", on_step_end)
    with pytest.raises(SystemExit):
        train_gpt2.main(argv)
    assert (tmp_path / "run" / "checkpoint-4" / SUMS).is_file()


def test_other_batches_of_the_same_product_say_what_they_change(saved_run, capsys):
    argv, folder = saved_run
    shutil.rmtree(folder / "checkpoint-6")
    train_gpt2.main([*argv, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"])
    assert "other batches of the same product" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_begins_anew(train_flags, tmp_path, capsys):
    argv = train_flags("run", "--max_steps", "2")
    train_gpt2.main(argv)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "finished.json").unlink()
    train_gpt2.main(argv)
    assert "it starts from the beginning" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_a_model_saved_alone_is_not_resumed_with_a_new_optimizer(train_flags, tmp_path, capsys):
    argv = train_flags("run", *SAVED, "--save_only_model", "True")
    train_gpt2.main(argv)
    (tmp_path / "run" / "finished.json").unlink()
    assert "checkpoint-6 has no optimizer (--save_only_model)" in refusal(argv, capsys)


def test_a_full_disk_leaves_the_checkpoint_before_usable(train_flags, tmp_path, capsys, monkeypatch):
    """The limit of a file's size stands in for the disk: writing fails in the same call, with another number."""
    argv, folder = train_flags("run", *SAVED), tmp_path / "run"
    train_gpt2.main(argv)
    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    save = StoryTrainer._save_optimizer_and_scheduler

    def full_at_the_second(self, output_dir):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            save(self, output_dir)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(StoryTrainer, "_save_optimizer_and_scheduler", full_at_the_second)
    line = refusal(argv, capsys)
    assert "checkpoint-4 cannot be written" in line
    assert "which resumes from checkpoint-2" in line
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]
    assert [path.name for path in folder.glob(".*")] == []
    monkeypatch.undo()
    train_gpt2.main(argv)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_the_oldest_are_removed_by_their_updates_and_the_best_stays(tmp_path):
    for step in (5, 10, 20, 100):
        (tmp_path / "part").mkdir()
        seal(tmp_path / "part", tmp_path / f"checkpoint-{step}", {})
    (tmp_path / "checkpoint-5" / "touched").write_text("now the newest by its time")
    rotate(tmp_path, 2, [str(tmp_path / "checkpoint-10")])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    rotate(tmp_path, None, [])
    assert len(checkpoints(tmp_path)) == 2
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_the_log_between_two_log_lines_is_not_lost(train_flags, tmp_path):
    """The control: without the progress of the checkpoint, the mean of updates 1 to 5 would be that of 5 alone."""
    argv = train_flags("run", *SAVED, "--logging_steps", "5")
    train_gpt2.main(argv)

    def logged():
        rows = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
        return [row["loss"] for row in rows if "loss" in row], [
            row["train_loss"] for row in rows if "train_loss" in row
        ]

    straight = logged()
    for number in (4, 6):
        (tmp_path / "run" / "finished.json").unlink()
        if number == 4:
            shutil.rmtree(tmp_path / "run" / "checkpoint-6")
            train_gpt2.main(argv)
            assert logged() == straight
        else:
            shutil.rmtree(tmp_path / "run" / "checkpoint-6")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(resumption.ExactResume, "restore_progress", lambda self, parts: None)
                train_gpt2.main(argv)
            assert logged() != straight


# What stock Trainer does, reproduced on what is installed: the guards above close these.


def stock_trainer(tmp_path, model, rows, steps=6, **more):
    args = TrainingArguments(
        str(tmp_path), max_steps=steps, save_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        disable_tqdm=True, learning_rate=1e-3, logging_steps=1, **more,
    )  # fmt: skip
    return Trainer(model=model, args=args, train_dataset=rows)


def tiny_gpt2():
    from lm_trials.models.shapes import build_config, build_model

    shape = "n_embd=16,n_layer=1,n_head=1"
    known = {"vocab_size": 30, "block_size": 8, "bos_token_id": 1, "eos_token_id": 2}
    model = build_model(build_config("gpt2", None, shape, **known, dropout=0.0), seed=0)
    assert model.num_parameters() < 25_000
    return model


def rows_of(count=24):
    return [{"input_ids": [n, n + 1, n + 2, 3], "labels": [n, n + 1, n + 2, 3]} for n in range(count)]


@pytest.mark.end_to_end
def test_stock_trainer_takes_damage_without_a_word(tmp_path):
    """Pitfall P6: flipped bytes are loaded, and a missing scheduler resets optimizer and schedule both."""
    stock_trainer(tmp_path, tiny_gpt2(), rows_of()).train()
    flip(tmp_path / "checkpoint-4" / "model.safetensors")
    (tmp_path / "checkpoint-4" / "scheduler.pt").unlink()
    again = stock_trainer(tmp_path, tiny_gpt2(), rows_of())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    rates = [row["learning_rate"] for row in again.state.log_history if "learning_rate" in row]
    assert rates[4] == rates[0] == 1e-3  # of update 5 as of update 1: the schedule began anew


class Counting(IterableDataset):
    """A stream that says what is read of it, and begins anew like one of `datasets`."""

    def __init__(self, seen):
        self.seen = seen
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for n in range(4):
            self.seen.append((self.epoch, n))
            yield {"input_ids": [4 * self.epoch + n, 1, 2], "labels": [1, 1, 2]}


@pytest.mark.end_to_end
def test_a_stream_resumed_by_stock_trainer_replays_its_first_pass(tmp_path, monkeypatch):
    """Pitfall P4: past the first pass, the updates after a resume read rows of pass 0 again."""
    read = []
    step = Trainer.training_step
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, model, inputs, *rest: read.append(inputs["input_ids"][:, 0].tolist()) or
        step(self, model, inputs, *rest),
    )  # fmt: skip
    stock_trainer(tmp_path, tiny_gpt2(), Counting([])).train()
    straight = read.copy()
    assert straight == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    read.clear()
    stock_trainer(tmp_path, tiny_gpt2(), Counting([])).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert read != straight[4:]
