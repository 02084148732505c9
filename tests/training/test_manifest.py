import copy
import dataclasses
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig

import sft_lora
from lm_trials.console import UsageError
from lm_trials.training import checkpoints, manifest
from lm_trials.training.alignment_flags import CommonDpoArguments, CommonGrpoArguments, MethodArguments
from lm_trials.training.alignment_run_arguments import DpoRunArguments, GrpoRunArguments
from lm_trials.training.flags import CommonTrainingArguments, DataArguments, ModelArguments
from lm_trials.training.plan import Plan
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.run_folder import Start, claim_output_dir
from lm_trials.training.tuning_flags import AdapterArguments, CommonSftArguments, PairArguments
from lm_trials.training.tuning_run_arguments import SftRunArguments

FLAGS = (
    *(RunArguments, DataArguments, ModelArguments, SftRunArguments, PairArguments, AdapterArguments),
    *(DpoRunArguments, GrpoRunArguments, MethodArguments),
)
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
    ("shown", "parsed"),
    [
        (CommonTrainingArguments, RunArguments),
        (CommonSftArguments, SftRunArguments),
        (CommonDpoArguments, DpoRunArguments),
        (CommonGrpoArguments, GrpoRunArguments),
    ],
)
def test_help_shows_flags_that_exist_with_their_real_defaults(shown, parsed):
    real = {field.name: field for field in dataclasses.fields(parsed)}
    for field in dataclasses.fields(shown):
        assert field.name in real, field.name
        # Those are filled in from the model and data; the two methods have other betas.
        if field.name not in ("output_dir", "run_name", "beta"):
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
        with pytest.raises(OSError, match="File too large") as raised:
            manifest.write_run(tmp_path, {"a": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_written_whole_and_found_from_a_checkpoint(tmp_path):
    from lm_trials.models.reference import read_run

    described = {"run_name": "a", "outcome": {}, "replicate": {}}
    manifest.write_run(tmp_path, described)
    (tmp_path / "checkpoint-2").mkdir()
    assert read_run(tmp_path) == read_run(tmp_path / "checkpoint-2") == described
    assert read_run(tmp_path / "elsewhere" / "deeper") is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


STARTED = {
    "run_name": "a",
    "outcome": {
        "dataset_name": "rows.jsonl",
        "vocab_size": 400,
        "tokenizer_name": None,
        "lora_r": 2,
        "max_length": 1024,
        "block_size": 256,
        "code_revision": "r",
        "data": {"name": "rows-pairs-1", "content": "c", "tokenizer_hash": "t"},
        "model": {"_name_or_path": "runs/base", "hidden_size": 32, "transformers_version": "5"},
        "initial_model": {"name_or_path": "runs/base", "weights_sha256": "w", "adapter": "x"},
    },
    "replicate": {"seed": 1, "data_seed": 1},
    "logistics": {"model_name_or_path": "runs/base"},
    "versions": {"torch": "2"},
}
OTHER_NAMES = {
    "dataset_name": "./there/rows.jsonl",
    "vocab_size": None,
    "tokenizer_name": "tok400",
    "max_length": 256,
    "data.name": "copy-pairs-2",
    "model._name_or_path": "/somewhere/base",
    "initial_model.name_or_path": "/somewhere/base",
}


def changed(fields):
    """STARTED with other values of outcome fields, by dotted name."""
    described = copy.deepcopy(STARTED)
    for name, value in fields.items():
        *path, last = name.split(".")
        place = described["outcome"]
        for part in path:
            place = place[part]
        place[last] = value
    return described


def test_a_run_goes_on_under_other_names_of_the_same_content(tmp_path):
    manifest.write_run(tmp_path, STARTED)
    manifest.check_resumable(tmp_path, changed(OTHER_NAMES))
    kept = manifest.continued(changed(OTHER_NAMES), tmp_path)
    assert kept["outcome"] == STARTED["outcome"]
    assert checkpoints.run_identity(kept) == checkpoints.run_identity(STARTED)
    assert checkpoints.run_identity(changed(OTHER_NAMES)) != checkpoints.run_identity(STARTED)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"data.content": "d"}, "data.content was c and is now d"),
        ({"data.content": "d", "dataset_name": "b"}, "dataset_name was rows.jsonl and is now b"),
        ({"data.tokenizer_hash": "u", "vocab_size": 8}, "vocab_size was 400 and is now 8"),
        ({"initial_model.weights_sha256": "v", "initial_model.name_or_path": "b"}, "name_or_path was runs/base and is"),
        ({"initial_model.adapter": "y"}, "initial_model.adapter was x and is now y"),
        ({"block_size": 128, "max_length": 128}, "max_length was 1024 and is now 128"),
        ({"lora_r": 4}, "lora_r was 2 and is now 4"),
    ],
)
def test_another_content_is_another_run(tmp_path, fields, text):
    manifest.write_run(tmp_path, STARTED)
    with pytest.raises(UsageError, match=text):
        manifest.check_resumable(tmp_path, changed({**OTHER_NAMES, **fields}))


def test_other_tokens_are_another_run_and_a_run_that_did_not_record_them_goes_on(tmp_path):
    recorded = changed({"data.token_ids": "i", "data.chat_template": "t"})
    manifest.write_run(tmp_path, STARTED)
    manifest.check_resumable(tmp_path, recorded)
    manifest.write_run(tmp_path, recorded)
    manifest.check_resumable(tmp_path, recorded)
    with pytest.raises(UsageError, match=r"data\.token_ids was i and is now j"):
        manifest.check_resumable(tmp_path, changed({"data.token_ids": "j", "data.chat_template": "t"}))
    with pytest.raises(UsageError, match=r"data\.chat_template was t and is now None"):
        manifest.check_resumable(tmp_path, changed({"data.token_ids": "i", "data.chat_template": None}))


@pytest.mark.parametrize("known", ["data.content", "data.tokenizer_hash", "initial_model.weights_sha256"])
def test_where_the_content_is_not_known_names_count(tmp_path, known):
    manifest.write_run(tmp_path, changed({known: None}))
    with pytest.raises(UsageError, match="cannot be resumed as another run"):
        manifest.check_resumable(tmp_path, changed({**OTHER_NAMES, known: None}))
    manifest.check_resumable(tmp_path, changed({known: None}))


def test_recomputation_of_activations_is_no_other_run_and_arguments_of_its_own_are(tmp_path):
    assert manifest.role_of("activation_checkpointing") == manifest.role_of("gradient_checkpointing") == "logistics"
    plan = Plan(num_steps=1, blocks_per_step=1, block_size=8, blocks_per_pass=1, num_tokens=8)
    for kwargs, role in ((None, "logistics"), ({"preserve_rng_state": False}, "outcome")):
        args = RunArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            activation_checkpointing=True,
            activation_checkpointing_kwargs=kwargs,
        )
        described = manifest.describe_run(args, [], LlamaConfig(), plan, {})
        assert [part for part in ("outcome", "logistics") if "activation_checkpointing" in described[part]] == [role]


def test_another_transformers_is_told_as_other_code(tmp_path):
    manifest.write_run(tmp_path, {**STARTED, "versions": {"transformers": "5"}})
    now = {**changed({"model.transformers_version": "6"}), "versions": {"transformers": "6"}}
    with pytest.raises(UsageError, match="was started by other code: transformers was 5 and is now 6"):
        manifest.check_resumable(tmp_path, now)
    manifest.check_resumable(tmp_path, now, accept_other_code=True)


def claimed(folder, described, **flags):
    return claim_output_dir(RunArguments(output_dir=str(folder), use_cpu=True, **flags), described, overwrite=False)


def sealed(run, step, described):
    """A whole checkpoint without weights."""
    place = checkpoints.unfinished_folder(run, step)
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text("{}")
    checkpoints.seal(place, run / f"checkpoint-{step}", {"run": checkpoints.run_identity(described)})
    return str(run / f"checkpoint-{step}")


def test_checkpoints_and_the_end_of_a_run_are_found_under_other_names(tmp_path):
    run = tmp_path / "run"
    manifest.write_run(run, STARTED)
    first = sealed(run, 2, STARTED)
    assert claimed(run, changed(OTHER_NAMES)) == Start(first)
    # Killed before the next checkpoint, with the run.json that going on writes, it is found again under either name.
    manifest.write_run(run, manifest.continued(changed(OTHER_NAMES), run))
    assert claimed(run, changed(OTHER_NAMES)) == claimed(run, STARTED) == Start(first)
    # One of another run put there is still seen.
    sealed(run, 4, changed({"lora_r": 4}))
    with pytest.raises(UsageError, match="checkpoint-4 is a checkpoint"):
        claimed(run, changed(OTHER_NAMES))
    checkpoints.mark_finished(run, 4, checkpoints.run_identity(STARTED))
    assert claimed(run, changed(OTHER_NAMES)) == Start(finished=True)
    with pytest.raises(UsageError, match=r"data\.content was c and is now d"):
        claimed(run, changed({"data.content": "d"}))
    with pytest.raises(UsageError, match=f"{run} is a run; give one of its checkpoints, as {first[:-1]}4"):
        claimed(run, STARTED, resume_from_checkpoint=str(run))
    assert claimed(run, STARTED, resume_from_checkpoint=first) == Start(first)


@pytest.mark.parametrize("model", ["", "checkpoint-2", "../link", "../run/sub/.."])
def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path, monkeypatch, model):
    run = tmp_path / "run"
    manifest.write_run(run, STARTED)
    (run / "sub").mkdir()
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    other = changed({"lora_r": 4})

    def overwritten(*models):
        return claim_output_dir(RunArguments(output_dir="run", use_cpu=True), other, overwrite=True, models=models)

    with pytest.raises(UsageError, match="which the run starts from; give another folder"):
        overwritten("gpt2", f"run/{model}")
    assert overwritten("gpt2", None, "run2", ".") == Start()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_fine_tuning_goes_on_from_a_base_and_data_spelled_otherwise(tune_flags, tiny_base, tiny_pairs, tmp_path):
    """The bits of an uninterrupted run, its own merge afterwards, and the base's content is still looked at."""
    flags = tune_flags("run", "--save_strategy", "steps", "--save_steps", "2", "--lora_dropout", "0.2")
    sft_lora.main(flags)
    run, weights = tmp_path / "run", (tmp_path / "run" / "adapter_model.safetensors")
    (tmp_path / "moved").symlink_to(tiny_base)
    rows = shutil.copy(tiny_pairs, tmp_path / "rows2.jsonl")
    renamed = [*flags, "--model_name_or_path", os.path.relpath(tmp_path / "moved"), "--dataset_name", str(rows)]
    whole, written = weights.read_bytes(), weights.stat().st_mtime_ns
    sft_lora.main([*renamed, "--merge_output", str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert weights.stat().st_mtime_ns == written  # nothing was trained
    for name in ("finished.json", "adapter_model.safetensors"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint-4")
    sft_lora.main(renamed)
    assert weights.read_bytes() == whole
    assert weights.stat().st_mtime_ns != written
    started = json.loads((run / "run.json").read_text())["outcome"]
    assert started["initial_model"]["name_or_path"] == str(tiny_base)
    other = Path(rows).read_text().replace("cats", "dogs", 1)
    Path(rows).write_text(other)
    with pytest.raises(SystemExit):
        sft_lora.main(renamed)
    assert weights.read_bytes() == whole
