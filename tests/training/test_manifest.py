import dataclasses
import json
import resource

import pytest

from lm_trials.console import UsageError
from lm_trials.training import manifest
from lm_trials.training.arguments import CommonTrainingArguments, DataArguments, ModelArguments
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.sft_arguments import AdapterArguments, CommonSftArguments, PairArguments
from lm_trials.training.sft_run_arguments import SftRunArguments

FLAGS = (RunArguments, DataArguments, ModelArguments, SftRunArguments, PairArguments, AdapterArguments)
FIELDS = {field.name for flags in FLAGS for field in dataclasses.fields(flags)}


def test_every_role_names_a_flag_that_exists():
    assert set() == manifest.LOGISTICS - FIELDS
    assert set() == manifest.REPLICATE - FIELDS
    assert set() == manifest.SECRET - FIELDS
    assert {"no_such_flag"} - FIELDS == {"no_such_flag"}  # the comparison can fail


def test_what_moves_the_weights_is_an_outcome():
    for field in ("learning_rate", "config_overrides", "dataset_name", "block_size", "dropout", "max_steps", "optim"):
        assert manifest.role_of(field) == "outcome", field
    assert manifest.role_of("data_seed") == "replicate"
    assert manifest.role_of("per_device_train_batch_size") == "logistics"


@pytest.mark.parametrize(
    ("shown", "parsed"), [(CommonTrainingArguments, RunArguments), (CommonSftArguments, SftRunArguments)]
)
def test_help_shows_flags_that_exist_with_their_real_defaults(shown, parsed):
    real = {field.name: field for field in dataclasses.fields(parsed)}
    for field in dataclasses.fields(shown):
        assert field.name in real, field.name
        if field.name not in ("output_dir", "run_name"):  # those are filled in from the model and data
            assert field.default == real[field.name].default, field.name


def test_no_token_is_written(tmp_path):
    args = RunArguments(output_dir=str(tmp_path), hub_token="hf_secret", use_cpu=True)
    assert "hf_secret" not in json.dumps(manifest._resolved(args))
    assert "learning_rate" in manifest._resolved(args)


def test_the_code_revision_follows_the_sources(monkeypatch, tmp_path):
    package = tmp_path / "lm_trials" / "training"
    package.mkdir(parents=True)
    file = package / "manifest.py"
    file.write_text("a = 1\n")
    monkeypatch.setattr(manifest, "__file__", str(file))
    first = manifest.code_revision()
    assert manifest.code_revision() == first
    file.write_text("a = 2\n")
    assert manifest.code_revision() != first


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UsageError, match=r"run.json cannot be written \(File too large\); make room"):
            manifest.write_run(tmp_path, {"a": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_written_whole_and_found_from_a_checkpoint(tmp_path):
    from lm_trials.models.reference import read_run

    described = {"run_name": "a", "outcome": {}, "replicate": {}}
    manifest.write_run(tmp_path, described)
    (tmp_path / "checkpoint-2").mkdir()
    assert read_run(tmp_path) == read_run(tmp_path / "checkpoint-2") == described
    assert read_run(tmp_path / "elsewhere" / "deeper") is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
