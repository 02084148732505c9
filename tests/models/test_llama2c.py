"""The commands `lm-trials llama2c import` and `export`, from a file to the same file."""

import pytest
import torch
from llama2c_models import as_llama2c_does, llama, logits, lora_checkpoint, same_weights, written
from refusals import error_line
from tiny_models import tiny_tokenizer

from lm_trials.models.llama2c import main
from lm_trials.models.llama2c_files import read_llama2c
from lm_trials.models.reference import load_model, resolve_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tokenizer `tok` and a model of its size, `m.bin`."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tok")
    written(llama(vocab_size=len(tokenizer)), tmp_path / "m.bin", 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_and_back_again(place, capsys):
    main(["import", "m.bin", "--tokenizer", "tok", "runs/mine"])
    assert same_weights(load_model(resolve_model("runs/mine")), llama(vocab_size=len(tiny_tokenizer())))
    main(["export", "runs/mine", "out/again.bin"])
    assert (place / "out" / "again.bin").read_bytes() == (place / "m.bin").read_bytes()
    assert (place / "out" / "tokenizer.bin").is_file()
    main(["export", "--version=2", "runs/mine", "out/int8.bin"])
    capsys.readouterr()
    main(["import", "out/int8.bin", "runs/int8", "--tokenizer=tok"])
    assert "weights are int8" in capsys.readouterr().err
    assert not same_weights(load_model(resolve_model("runs/int8")), load_model(resolve_model("runs/mine")))


def test_lora_becomes_a_base_and_an_adapter(place, monkeypatch):
    model = llama(vocab_size=len(tiny_tokenizer()))
    found = read_llama2c(lora_checkpoint(model, place / "ckpt.pt", 4, 2, monkeypatch))
    main(["import", "ckpt.pt", "runs/teller", "--tokenizer", "tok"])
    told = load_model(resolve_model("runs/teller"))
    with torch.no_grad():
        expected = as_llama2c_does(found, scale=1 / 4).float()
    torch.testing.assert_close(logits(told), expected, atol=1e-3, rtol=1e-4)
    assert (logits(told) - logits(model)).abs().max() > 0.1
    assert same_weights(load_model(resolve_model("runs/teller/base")), model)
    main(["export", "runs/teller", "merged.bin"])
    merged = as_llama2c_does(read_llama2c(place / "merged.bin")).float()
    torch.testing.assert_close(merged, expected, atol=1e-3, rtol=1e-4)


def test_what_is_wrong_is_said_before_anything_is_written(place, capsys):
    main(["import", "m.bin", "mine", "--tokenizer", "tok"])
    written(llama(vocab_size=40), place / "small.bin", 1)
    (place / "cut.bin").write_bytes((place / "m.bin").read_bytes()[:-4])
    llama(vocab_size=len(tiny_tokenizer()), hidden_act="gelu").save_pretrained(place / "gelu")
    tiny_tokenizer().save_pretrained(place / "gelu")
    (place / "other").mkdir()
    (place / "other" / "tokenizer.bin").write_bytes(b"another")
    before = sorted(place.rglob("*"))
    for line, said in {
        "import none.bin new --tokenizer tok": "--source none.bin is not a file",
        "import cut.bin new --tokenizer tok": "bytes instead of",
        "import small.bin new --tokenizer tok": "has embeddings for 40",
        "import m.bin new": "--tokenizer_name is missing",
        "import m.bin mine --tokenizer tok": "--output_dir mine exists",
        "import m.bin new more --tokenizer tok": "more has no flag before it",
        "export mine m.bin": "--output m.bin exists",
        "export mine other/new.bin": "would be another tokenizer",
        "export gelu new.bin": "gelu has hidden_act gelu",
        "export mine": "--output is missing",
        "expert mine": "did you mean export",
    }.items():
        assert said in error_line(capsys, main, *line.split()), line
    assert sorted(place.rglob("*")) == before
