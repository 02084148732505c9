"""A run or checkpoint whose model has changed since it was written is refused where it is opened."""

import shutil

import pytest

import sft_lora
from lm_trials.console import UsageError
from lm_trials.evaluation import generate
from lm_trials.files import file_sums, read_object, write_json
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.training.checkpoints import is_finished
from lm_trials.training.public_copy import public_copy

MODEL = ("model.safetensors", "config.json", "tokenizer.json")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def opened(folder):
    """Open a model as every command does."""
    return load_model(resolve_model(str(folder)))


@pytest.fixture(params=["run", "checkpoint"])
def folder(request, tiny_base, tmp_path):
    """Return a copy of a finished run, or the same as a checkpoint."""
    place = tmp_path / {"run": "run", "checkpoint": "checkpoint-30"}[request.param]
    shutil.copytree(tiny_base, place)
    if request.param == "checkpoint":
        (place / "finished.json").unlink()
        write_json(place / "sums.json", {"files": file_sums(place)})
    return place


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("file", MODEL)
def test_a_damaged_file_is_named(file, damage, folder):
    opened(folder)
    damage(folder / file)
    with pytest.raises(UsageError, match=rf"is damaged: {file} has .*; restore the file, or remove \w+\.json if you"):
        opened(folder)


@pytest.mark.parametrize(
    ("before", "after"), [('"files"', '"files": 0, "fi"'), ('"sha256"', '"sha257"'), ('"bytes"', '"bites"')]
)
def test_sums_that_are_damaged_themselves_are_named(before, after, folder):
    (seal,) = (folder / name for name in ("finished.json", "sums.json") if (folder / name).is_file())
    seal.write_text(seal.read_text().replace(before, after, 1))
    with pytest.raises(UsageError, match=rf"{seal} is damaged: its checksums cannot be read; restore the file"):
        opened(folder)
    if seal.name == "finished.json":
        with pytest.raises(UsageError, match="its checksums cannot be read"):
            is_finished(folder, read_object(seal)["run"])


@pytest.mark.parametrize("file", ["tokenizer_config.json", "run.json", "trainer_state.json"])
def test_files_that_a_loss_does_not_depend_on_may_change(file, folder):
    (folder / file).write_text((folder / file).read_text() + "\n")
    opened(folder)


def test_a_folder_without_sums_and_a_public_copy_are_taken(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "other", ignore=shutil.ignore_patterns("finished.json"))
    flip(tmp_path / "other" / "model.safetensors")
    opened(tmp_path / "other")
    shutil.copytree(tiny_base, tmp_path / "run")
    opened(public_copy(tmp_path / "run", tmp_path / "run", {}))


@pytest.mark.parametrize("command", ["generate", "tune"])
def test_a_command_ends_in_one_line_before_it_writes(command, tiny_base, tune_flags, tmp_path, capsys):
    shutil.copytree(tiny_base, tmp_path / "run")
    flip(tmp_path / "run" / "model.safetensors")
    model = ["--model_name_or_path", str(tmp_path / "run")]
    argv = {"generate": [*model, "--prompt", "One day"], "tune": tune_flags("tuned", *model)}[command]
    with pytest.raises(SystemExit) as stopped:
        {"generate": generate.main, "tune": sft_lora.main}[command](argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path}/run is damaged: model.safetensors")
    assert not (tmp_path / "tuned").exists()
