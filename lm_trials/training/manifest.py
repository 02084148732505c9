"""`run.json`: everything that determines a run, each field with its role.

*outcome* fields can change a result, *replicate* fields are seeds, *logistics* change no result.  Process count, batch
and accumulation are logistics; their product is the outcome field `total_train_batch_size`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from lm_trials.console import UsageError, note
from lm_trials.files import flat, write_file
from lm_trials.models.reference import read_run
from lm_trials.run_fields import ADDED, RUN_FILE, lineage_of, names_to_go_on
from lm_trials.training.plan import Plan
from lm_trials.training.run_arguments import RunArguments

# Recomputed activations are the same bit for bit, because the random state for dropout is restored; with arguments of
# its own (preserve_rng_state) they may not be.
RECOMPUTATION = frozenset({"activation_checkpointing", "gradient_checkpointing"})
RECOMPUTATION_ARGUMENTS = "activation_checkpointing_kwargs"
# Runs that differ only in these are replicates of one arm: the unit of replication in `compare`.
REPLICATE = frozenset({"seed", "data_seed"})
LOGISTICS = frozenset(
    {
        *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "do_train", "do_eval", "do_predict"),
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
        *("log_level", "log_level_replica", "include_num_input_tokens_seen", "trackio_space_id", "trackio_bucket_id"),
        *("trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "debug"),
        *("per_device_eval_batch_size", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"),
        *("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "save_only_model", "save_strategy"),
        *("save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "skip_memory_metrics"),
        *("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size", "local_rank"),
        *("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "torch_empty_cache_steps"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "ddp_timeout"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_backend", "ddp_bucket_cap_mb"),
        *("num_train_epochs", "data_cache_dir", "num_sampled_stories", "sample_tokens", "overwrite_output_dir"),
        *("accept_other_code", "streaming", "max_train_tokens", "sentences_with"),
        *("max_eval_samples", "eval_datasets", "dense_eval_steps", "dense_eval_spacing", "generate_every"),
        *("num_generations", "generation_tokens", "model_name_or_path", "adapter_name_or_path", "merge_output"),
        *("dataset_num_proc", "checkpoint_ladder", "snapshot", "snapshot_samples", "window_metrics"),
        *("num_generations_eval", "log_completions", "num_completions_to_print", "log_unique_prompts"),
        *("reward_funcs", "ref_model_name_or_path"),
        *RECOMPUTATION,
    }
)
# With the best of several checkpoints, the schedule of evaluations selects the final weights.
CHOICE_OF_THE_BEST = (
    *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "max_eval_samples"),
    "num_generations_eval",
)
# Never written: `run.json` is pushed to the Hub.
SECRET = frozenset({"hub_token"})
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "numpy", "peft", "trl", "bitsandbytes")


def role_of(field: str) -> str:
    """Return the role of a field; unlisted fields are outcomes.

    >>> role_of("learning_rate"), role_of("seed"), role_of("logging_steps")
    ('outcome', 'replicate', 'logistics')
    """
    return "replicate" if field in REPLICATE else "logistics" if field in LOGISTICS else "outcome"


def describe_run(
    arguments: RunArguments,
    others: list[Any],
    config: PretrainedConfig,
    plan: Plan,
    data: dict[str, Any],
    initial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `run.json`.

    Args:
        arguments: the training arguments, with defaults filled in.
        others: further dataclasses of flags.
        config: the model's configuration.
        data: fingerprints of the data and the tokenizer.
        initial: `InitialModel.describe()`; None for random weights.
    """
    described: dict[str, Any] = {"run_name": arguments.run_name, "outcome": {}, "replicate": {}, "logistics": {}}
    for field, value in _resolved(arguments, *others).items():
        # With --load_best_model_at_end the schedule of evaluations decides which model is kept.
        decides = arguments.load_best_model_at_end and field in CHOICE_OF_THE_BEST
        decides = decides or (field in RECOMPUTATION and bool(getattr(arguments, RECOMPUTATION_ARGUMENTS)))
        described["outcome" if decides else role_of(field)][field] = value
    described["outcome"].update(
        total_train_batch_size=plan.blocks_per_step,
        block_size=plan.block_size,
        num_tokens=plan.num_tokens,
        model=json.loads(config.to_json_string(use_diff=False)),
        data=data,
        initial_model=initial,
        # Not only --bf16: accelerate's configuration files set it too.
        mixed_precision=arguments.mixed_precision,
        code_revision=code_revision(),
    )
    described["logistics"]["world_size"] = arguments.world_size
    described["lineage"] = lineage_of(described)
    return {**described, "versions": versions(), "environment": environment(arguments)}


def _resolved(*dataclass_objects: Any) -> dict[str, Any]:
    """Return the fields of all flags as JSON values, without tokens."""
    values: dict[str, Any] = {}
    for flags in dataclass_objects:
        for field in dataclasses.fields(flags):
            if field.init and field.name not in SECRET:
                value = getattr(flags, field.name)
                value = value.value if isinstance(value, Enum) else value
                plain = isinstance(value, (int, float, bool, list, dict, type(None)))
                values[field.name] = value if plain else str(value)
    return json.loads(json.dumps(values, default=str))


def code_revision() -> str:
    """Return 16 hexadecimal digits of a hash of this project's sources; needs no git."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    # Hashed from the sources because an installed package has no git; a changed comment changes it too, which
    # --accept_other_code allows.
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root.parent)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries; results of different versions may differ."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment(arguments: RunArguments) -> dict[str, Any]:
    """Return platform, command, device and the number of threads, on which CPU results depend."""
    # Threads are recorded because a CPU sum depends on how it is split: the demo's losses are bit-exact for 2
    # threads.
    on_gpu = arguments.device.type == "cuda"
    return {
        "platform": platform.platform(),
        "command": _command(arguments.hub_token),
        "working_directory": str(Path.cwd()),
        "device": torch.cuda.get_device_name() if on_gpu else arguments.device.type,
        "num_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "parallel_mode": str(arguments.parallel_mode.value),
    }


def _command(token: str | None) -> list[str]:
    """Return the command's words without the Hub's token."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return [word.replace(token, "<HUB_TOKEN>") for word in words] if token else words


def check_resumable(folder: Path, described: Mapping[str, Any], accept_other_code: bool = False) -> None:
    """Check that a run to resume is this one: equal outcome and replicate fields, code and library versions.

    Another path or name of the same content is not a difference.

    Raises:
        UsageError: naming each difference.
    """
    before = read_run(folder)
    if before is None:
        raise UsageError(f"{folder} has no {RUN_FILE}, so it cannot be resumed; give another --output_dir")
    names = names_to_go_on(flat(before["outcome"]), flat(described["outcome"])) | {"code_revision"}
    differences = [
        (key, old, new)
        for key, old, new in _differences(before["outcome"], described["outcome"])
        if key not in names and not (key in ADDED and old is None)
    ]
    differences += _differences(before["replicate"], described["replicate"])
    if differences:
        shown = ", ".join(f"{key} was {old} and is now {new}" for key, old, new in differences)
        raise UsageError(
            f"{folder} cannot be resumed as another run: {shown}; give the values it was started with, another "
            "--output_dir, or --overwrite_output_dir to replace the old run"
        )
    # Kernels and defaults change between versions, so exact resumption holds for one version of each library only.
    # The code that it was last resumed with, which was accepted then, else the code it was started with.
    code = _differences([_code(before), *before.get("went_on", [])][-1], _code(described))
    shown = ", ".join(f"{name} was {old} and is now {new}" for name, old, new in code)
    if code and not accept_other_code:
        raise UsageError(
            f"{folder} was started by other code: {shown}; its result may differ from an uninterrupted run's. Restore "
            "that code, resume with --accept_other_code True, or replace the run with --overwrite_output_dir"
        )
    if code:
        note(f"note: {folder} was started by other code: {shown}")


def continued(described: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the `run.json` of a resumed run: that of its start, which keeps its identity, with all later code."""
    before = read_run(folder)
    if before is None:
        return described
    went_on = list(before.get("went_on", []))
    if [_code(before), *went_on][-1] != _code(described):
        went_on.append(_code(described))
    described = {**described, "outcome": before["outcome"], "versions": before["versions"]}
    return {**described, "went_on": went_on} if went_on else described


def _code(described: Mapping[str, Any]) -> dict[str, str]:
    return {"lm_trials": described["outcome"]["code_revision"], **described["versions"]}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    old, new = flat(before), flat(now)
    return [(key, old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)]


def write_run(folder: Path, described: dict[str, Any]) -> Path:
    """Write `run.json` atomically."""
    return write_file(folder / RUN_FILE, json.dumps(described, indent=2, sort_keys=True) + "\n")
