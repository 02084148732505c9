"""Evaluations of tiny models in a fresh working folder."""

import pytest
from tiny_evaluations import write_stories
from tiny_models import tiny_model, tiny_tokenizer

import eval_checkpoint


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Two models `llama` and `gpt2` with their tokenizer, and two files of stories, never written to."""
    folder = tmp_path_factory.mktemp("made")
    for kind in ("llama", "gpt2"):
        tiny_model(kind, vocab_size=330).save_pretrained(folder / kind)
        tiny_tokenizer().save_pretrained(folder / kind)
    write_stories(folder / "stories.jsonl", 30)
    write_stories(folder / "more.jsonl", 12, seed=1)
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """Evaluate with the models and stories at hand; results under `out` of a fresh working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("llama", "gpt2", "stories.jsonl", "more.jsonl"):
        (tmp_path / name).symlink_to(made / name)

    def call(*more, model="llama", data="stories.jsonl", output="out"):
        argv = [
            word for flag, word in (("--model_dir", model), ("--dataset_name", data)) if word for word in (flag, word)
        ]
        return eval_checkpoint.main([*argv, *(["--output_dir", output] if output else []), *map(str, more)])

    return call
