"""What a run records of the model that it starts from."""

import json

import pytest
from huggingface_hub import constants
from tiny_models import tiny_model, tiny_tokenizer

from lm_trials.models.reference import load_config, load_model, load_tokenizer_of, resolve_model
from lm_trials.training.initial import InitialModel

COMMITS = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the Hub with two commits of owner/tiny, the second one of other weights."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    for seed, commit in enumerate(COMMITS):
        folder = repository / "snapshots" / commit
        tiny_model("llama", vocab_size=330, seed=seed).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 2.0 + seed}))
        (repository / "refs" / "main").write_text(commit)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "commit"),
    [("owner/tiny", COMMITS[1]), ("owner/tiny@main", COMMITS[1]), *((f"owner/tiny@{sha}", sha) for sha in COMMITS)],
)
def test_a_model_of_the_hub_is_recorded_with_its_commit(cache, name, commit):
    """transformers 5.23 no longer keeps the commit in the configuration."""
    reference = resolve_model(name)
    initial = InitialModel(load_config(reference), load_tokenizer_of(reference), reference)
    assert initial.describe() == {"name_or_path": name, "commit": commit}
    assert load_model(reference).settings_set_aside == ["repetition_penalty"]
