"""Model references: what `--model_name_or_path` may name in every command, and how it is loaded.

A reference is a run, a checkpoint, another causal LM's folder, a LoRA adapter's folder, a Hub name, or `NAME@revision`.
Weights are read from safetensors only, and remote code is never run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging
from transformers.utils.hub import cached_file

from lm_trials.console import UsageError, did_you_mean, is_out_of_memory
from lm_trials.files import check_sums, read_object, weights_digest
from lm_trials.models.overrides import TOKEN_IDS, check_numbers
from lm_trials.models.quantization import keep_4bit_weights
from lm_trials.models.shapes import not_finite, position_field, set_causal_loss, text_config, whole_weights
from lm_trials.run_fields import run_file
from lm_trials.tokens.stores import Separator
from lm_trials.tokens.tokenizers import load_tokenizer

LONGEST_WINDOW = 1024
CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
ADAPTER_FILE = "adapter_config.json"
CONFIG_FILES = ("config.json", ADAPTER_FILE)
# Fields of config.json that change what a call returns or how attention is computed, but not the model.
NEUTRAL = {"return_dict": True, "output_attentions": False, "output_hidden_states": False, "attn_implementation": None}
# Causal masks and positions, which older versions of transformers saved with the weights.
OLD_BUFFERS = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$|\.inv_freq$|position_ids$")
METADATA = ("transformers_version", "_from_model_config", "_commit_hash")
# Adapters that put vectors before the tokens, or need more than tokens: positions and logits are not the text's.
UNREAD_ADAPTERS = (
    *("PREFIX_TUNING", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "CARTRIDGE"),
    *("ADAPTION_PROMPT", "POLY", "XLORA"),
)
EMBEDDINGS = re.compile(
    r"\.(embed_tokens|wte|embed_in|word_embeddings|embeddings|lm_head|embed_out)(\.base_layer)?\.weight$"
)


def default_device(use_cpu: bool = False) -> torch.device:
    """Return the device that models run on: the GPU (CUDA, MPS, ...) if there is one and `use_cpu` is not given."""
    found = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


@dataclass(frozen=True)
class ModelReference:
    """The place of a model: `path` is a folder or Hub name; `base` is set for an adapter.

    >>> reference = ModelReference("runs/demo/checkpoint-20")
    >>> reference.name, reference.step
    ('runs/demo/checkpoint-20', 20)
    >>> ModelReference("owner/model", revision="step1000").name
    'owner/model@step1000'
    """

    path: str
    revision: str | None = None
    base: str | None = None

    @property
    def step(self) -> int | None:
        """Training step of a checkpoint; None for other folders."""
        match = CHECKPOINT.search(self.path)
        return int(match[1]) if match else None

    @property
    def name(self) -> str:
        """The reference as the user gives it, with its revision."""
        return f"{self.path}@{self.revision}" if self.revision else self.path


def resolve_model(reference: str) -> ModelReference:
    """Find the model that `reference` names, without loading it.

    Raises:
        UsageError: for a folder without a model, a path that does not exist, or a damaged configuration or tokenizer.
    """
    folder = Path(reference)
    if not reference or not folder.is_dir():  # Path("") would be the working directory
        name, _, revision = reference.partition("@")
        if not name or _is_path(name) or folder.is_file():
            raise UsageError(f"{reference} is not a folder; give a run, a checkpoint, a model folder or a Hub name")
        if "/" in name and not revision and folder.parent.is_dir():  # runs/mistyped, and never somebody's Hub model
            near = did_you_mean(name, (str(other) for other in folder.parent.iterdir() if other.is_dir()))
            raise UsageError(f"{name} does not exist; {near}; for a Hub model of this name give {name}@main")
        return ModelReference(name, revision or None)
    if not any((folder / name).is_file() for name in CONFIG_FILES):
        inside = [path for path in sorted(folder.iterdir()) if any((path / name).is_file() for name in CONFIG_FILES)]
        found = ", ".join(path.name for path in checkpoints(folder) or inside) or "no checkpoints"
        raise UsageError(f"{reference} has no config.json (it has {found}); give a folder that contains a model")
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{reference} has no *.safetensors; pickled weights (.bin) are not loaded, because unpickling runs code: "
            "convert them with transformers' save_pretrained"
        )
    if (folder / "model.safetensors").is_file() and (folder / "model.safetensors.index.json").is_file():
        raise UsageError(
            f"{reference} has two models, model.safetensors and the files of model.safetensors.index.json; remove one"
        )
    for name in ("config.json", "tokenizer.json"):
        check_sums(folder, name)
    if not (folder / ADAPTER_FILE).is_file():
        return ModelReference(str(folder))
    config = read_object(folder / ADAPTER_FILE)
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type", "LORA")
    if not (folder / "adapter_model.safetensors").is_file():  # PEFT would ask the Hub for it
        whole = f", or remove {ADAPTER_FILE} if it is a whole model" if (folder / "config.json").is_file() else ""
        raise UsageError(f"{folder} has {ADAPTER_FILE} without adapter_model.safetensors; restore that{whole}")
    if kind in UNREAD_ADAPTERS:
        raise UsageError(
            f"{folder} is a {kind} adapter, which needs more inputs than the tokens of a text; give an adapter that "
            "changes weights, such as LORA"
        )
    if not base or not isinstance(base, str):
        raise UsageError(f"{folder / ADAPTER_FILE} has no base_model_name_or_path; add the base model there")
    base = _base_of(folder, base)
    if Path(base).resolve() == folder.resolve():
        raise UsageError(f"{folder} is an adapter that names itself as its base; correct {folder / ADAPTER_FILE}")
    if (Path(base) / ADAPTER_FILE).is_file():
        raise UsageError(
            f"{folder} is an adapter and its base {base} is one too; name a whole model in {folder / ADAPTER_FILE}, "
            "for example that adapter merged into its base"
        )
    if config.get("revision") and not Path(base).is_dir():
        base = f"{base}@{config['revision']}"
    return ModelReference(str(folder), base=base)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _base_of(adapter: Path, base: str) -> str:
    """Return the place of an adapter's base; a relative path may be relative to where the adapter's run was started."""
    if Path(base).is_dir():
        return base
    run = read_run(adapter) or {}
    there = Path(run.get("environment", {}).get("working_directory", ".")) / base
    if there.is_dir():
        return str(there)
    if trained_on(adapter) or _is_path(base):  # never somebody else's Hub model of the same name
        raise UsageError(
            f"{adapter} is an adapter and its base {base} does not exist; restore the base, or set "
            f"base_model_name_or_path in {adapter / ADAPTER_FILE} to its path"
        )
    return base


def trained_on(folder: Path) -> str | None:
    """Return `files.weights_digest` of the local model that a run started from; None where that is not known."""
    run = read_run(folder) or {"outcome": {}}
    return (run["outcome"].get("initial_model") or {}).get("weights_sha256")


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, in the order of their steps."""
    steps = {path: CHECKPOINT.search(path.name) for path in run.glob("checkpoint-*") if path.is_dir()}
    return [path for _, path in sorted((int(match[1]), path) for path, match in steps.items() if match)]


def load_config(reference: ModelReference) -> PretrainedConfig:
    """Load a model's configuration, for an adapter its base's, or raise a UsageError."""
    if reference.base is not None:
        config = load_config(resolve_model(reference.base))
        text = text_config(config)
        text.vocab_size = max(text.vocab_size, *_embedding_rows(reference).values(), 0)
        return config
    try:
        config = AutoConfig.from_pretrained(
            reference.path, revision=reference.revision or "main", trust_remote_code=False, **NEUTRAL
        )
    except Exception as error:  # each of 189 model types has its own checks
        raise _unloadable(reference, error) from None
    check_numbers(text_config(config), f"{reference.name}: config.json")
    return config


def _embedding_rows(adapter: ModelReference) -> dict[str, int]:
    """Return the rows of each embedding or head that a local adapter contains whole, by its name in the weights."""
    rows = {}
    for path in Path(adapter.path).glob("adapter_model.safetensors"):
        with safe_open(path, framework="pt") as file:
            found = ((key, EMBEDDINGS.search(key)) for key in file.keys())  # noqa: SIM118, no mapping
            rows = {match[1]: file.get_slice(key).get_shape()[0] for key, match in found if match}
    return rows


def load_model(
    reference: ModelReference,
    dtype: torch.dtype = torch.float32,
    quantization_config: BitsAndBytesConfig | None = None,
    **init_kwargs: Any,
) -> PreTrainedModel:
    """Load the model in `dtype`, in evaluation mode, with the loss of a causal LM (see `set_causal_loss`).

    Its generation settings are neutral: the token ids of `generation_config.json` alone.  The model's attribute
    `settings_set_aside` names what else that file changes; `write_stories` shows it.

    Args:
        quantization_config: see `quantization.quantization`; None for full-precision weights.
        init_kwargs: further arguments of `from_pretrained`, for example `attn_implementation`.

    Raises:
        UsageError: where it cannot be loaded, or where weights are damaged, not finite, or do not fit `config.json`.
    """
    check_sums(Path(reference.path), "*.safetensors")  # SHA-256: 2 s for each GB on a loaded machine
    if reference.base is not None:
        return _load_adapter(reference, dtype, quantization_config, init_kwargs)
    config = load_config(reference)
    generation_config, set_aside = _neutral_generation(reference, config)
    if quantization_config is not None:
        if getattr(config, "quantization_config", None):  # which transformers would use instead
            raise UsageError(
                f"{reference.name} has quantized weights, which cannot be quantized again; name the model that was "
                "quantized, or take the weights as they are"
            )
        init_kwargs["quantization_config"] = quantization_config
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a table of the weights that do not fit; `check_weights` names them
    try:
        with whole_weights():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                reference.path,
                revision=reference.revision or "main",
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                generation_config=generation_config,
                **NEUTRAL | init_kwargs,
            )
    except Exception as error:  # as in `load_config`
        raise _unloadable(reference, error) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, found = loaded
    check_weights(reference, model, found)
    model.settings_set_aside = set_aside
    if getattr(model, "is_loaded_in_4bit", False):  # by a flag, or saved so
        keep_4bit_weights(model)
    check_finite(model, reference.name)
    set_causal_loss(model)
    # The row of a pad token gets no gradient, and EOS is the pad token of models without a spare one (Phi, SmolLM3).
    model.get_input_embeddings().padding_idx = None
    return model.eval()


def load_on(
    device: torch.device,
    reference: ModelReference,
    dtype: torch.dtype = torch.float32,
    quantization_config: BitsAndBytesConfig | None = None,
    **init_kwargs: Any,
) -> PreTrainedModel:
    """Load a model as `load_model` does, on a device."""
    if quantization_config is not None:
        return load_model(reference, dtype, quantization_config, device_map={"": device}, **init_kwargs)
    module: Any = load_model(reference, dtype, **init_kwargs)
    return module.to(device)


def check_weights(reference: ModelReference, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Raise a UsageError unless the files have exactly the weights that the configuration describes.

    transformers draws missing weights at random and ignores those that the configuration has no place for: a
    configuration of 3 layers over the weights of 5 evaluates to 4.50 instead of 2.12 nats.
    """
    shapes = [f"{name} {list(saved)}, not {list(own)}" for name, saved, own in sorted(found["mismatched_keys"])]
    faults = {
        "lacks weights": sorted(found["missing_keys"]),
        "has weights that are no part": sorted(
            name for name in found["unexpected_keys"] if not OLD_BUFFERS.search(name)
        ),
        "has weights of other shapes than those": shapes,
    }
    for what, names in faults.items():
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UsageError(
                f"{reference.name} {what} of a {type(model).__name__} ({shown}); "
                "give a complete causal language model, with the config.json of its weights"
            )


def _neutral_generation(reference: ModelReference, config: PretrainedConfig) -> tuple[GenerationConfig, list[str]]:
    """Return generation settings with a model's token ids alone, and the names of those that were set aside.

    Before transformers 4.26 the settings were fields of `config.json`.
    """
    text, known = text_config(config), vars(GenerationConfig())
    given: dict[str, Any] = {}
    set_aside = []
    for file in ("generation_config.json", "config.json"):
        place = cached_file(
            reference.path, file, revision=reference.revision, _raise_exceptions_for_missing_entries=False
        )
        if place is None:
            continue
        try:
            given = read_object(Path(place))
        except UsageError:
            set_aside.append(f"all of {file} (not a JSON object)")
        if file == "config.json":
            given = {name: value for name, value in given.items() if name in known and not hasattr(text, name)}
        break
    ids = {name: getattr(text, name, None) for name in TOKEN_IDS}
    ids |= {name: given[name] for name in TOKEN_IDS if _is_id_of(name, given.get(name))}
    ids = {name: number for name, number in ids.items() if _is_id_of(name, number)}
    neutral = known | GenerationConfig._get_default_generation_params()
    others = {name: value for name, value in given.items() if name not in METADATA and ids.get(name) != value}
    set_aside += [name for name, value in others.items() if (value or None) != (neutral.get(name) or None)]
    return GenerationConfig(**ids), set_aside


def _is_id_of(name: str, value: Any) -> bool:
    """Whether a value is a token id, or of the end of a text several."""
    numbers = value if isinstance(value, list) and name == "eos_token_id" else [value]
    return bool(numbers) and all(type(number) is int and number >= 0 for number in numbers)


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that are nan or infinite, whose losses and texts mean nothing (UsageError)."""
    if tensor := not_finite(model):
        advice = "--dtype float32" if model.dtype == torch.float16 else "a checkpoint of before training diverged"
        raise UsageError(
            f"{name}: {tensor} is nan or infinite in {str(model.dtype).removeprefix('torch.')}; give {advice}"
        )


def _load_adapter(
    reference: ModelReference,
    dtype: torch.dtype,
    quantization_config: BitsAndBytesConfig | None,
    init_kwargs: Mapping[str, Any],
) -> PreTrainedModel:
    from peft import PeftModel

    from lm_trials.models.adapters import check_adapter_state, without_noise

    expected, base = trained_on(Path(reference.path)), Path(reference.base or "")
    if expected and base.is_dir() and expected != weights_digest(base):
        raise UsageError(
            f"{reference.name} is an adapter for another base: the weights in {base} have changed since; "
            "restore that model, or train the adapter again"
        )
    model = load_model(resolve_model(reference.base or ""), dtype, quantization_config, **init_kwargs)
    _add_rows(model, reference)
    local = Path(reference.path).is_dir()
    try:
        with without_noise():
            # Keys that are missing would stay as they were initialized; of a local adapter all are compared below.
            warnings.filterwarnings("ignore" if local else "error", message="Found missing adapter keys")
            # Read on the CPU: PEFT's default is the GPU, with --use_cpu too.
            adapted: Any = PeftModel.from_pretrained(
                model, reference.path, revision=reference.revision or "main", torch_device="cpu"
            )
    except Exception as error:  # each kind of adapter has its own checks
        raise _unloadable(reference, error) from None
    if local:
        check_adapter_state(adapted, Path(reference.path), embeddings=True)
    check_finite(adapted, reference.name)
    set_causal_loss(adapted)
    return adapted.eval()


def _add_rows(model: PreTrainedModel, adapter: ModelReference) -> None:
    """Resize embeddings for the tokens that an adapter adds; all their rows must be in it, for new ones are random."""
    rows, weight = _embedding_rows(adapter), model.get_input_embeddings().get_parameter("weight")
    wanted, has = max(rows.values(), default=0), weight.shape[0]
    if wanted <= has:
        return
    tied = model.get_output_embeddings().weight is weight
    if not tied and list(rows.values()).count(wanted) < 2:
        raise UsageError(
            f"{adapter.name} adds {wanted - has} tokens to its base and has rows for them in {', '.join(rows)} only; "
            f"add the tokens to the base, save it, and name it in {ADAPTER_FILE}"
        )
    model.resize_token_embeddings(wanted, mean_resizing=False)


def _unloadable(reference: ModelReference, error: Exception) -> Exception:
    if is_out_of_memory(error):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = f"unknown or missing: {reason}" if isinstance(error, KeyError) else reason
    return UsageError(
        f"{reference.name} cannot be loaded as a causal language model ({reason[:300]}); "
        "give a folder with config.json and model.safetensors, or a Hub model"
    )


def load_tokenizer_of(reference: ModelReference, tokenizer_name: str | None = None) -> PreTrainedTokenizerBase:
    """Load `tokenizer_name`, or the tokenizer of the model or its adapter's base; a UsageError where there is none."""
    if tokenizer_name:
        tokenizer = load_tokenizer(tokenizer_name)
        check_vocabulary(reference, tokenizer, "--tokenizer_name: ")
        return tokenizer
    try:
        tokenizer = load_tokenizer(reference.path, revision=reference.revision)
    except UsageError as error:
        if reference.base is not None:
            return load_tokenizer_of(resolve_model(reference.base))
        reason = str(error).removeprefix(f"--tokenizer_name {reference.path}: ").partition(";")[0]
        raise UsageError(
            f"{reference.name} has no tokenizer beside its weights ({reason}); add its files there, or use a command "
            "with a tokenizer, such as lm-trials evaluate --tokenizer_name"
        ) from None
    check_vocabulary(reference, tokenizer)
    return tokenizer


def check_vocabulary(reference: ModelReference, tokenizer: PreTrainedTokenizerBase, flag: str = "") -> None:
    """Raise a UsageError for a tokenizer with ids beyond the model's embeddings."""
    vocab_size = getattr(text_config(load_config(reference)), "vocab_size", None)
    beyond = {number for number in tokenizer.get_vocab().values() if vocab_size is not None and number >= vocab_size}
    # A pad token above the vocabulary is never an input; any other id would be.
    if beyond and (beyond != {tokenizer.pad_token_id} or tokenizer.pad_token_id == tokenizer.eos_token_id):
        raise UsageError(
            f"{flag}{reference.name} has {vocab_size:,} embeddings and the tokenizer's ids go up to {max(beyond):,}; "
            "give the tokenizer that the model was trained with"
        )


def positions_of(model: PreTrainedModel | PretrainedConfig) -> int | None:
    """Return the maximum number of positions of a model or configuration; None for one without a limit.

    LongRoPE (Phi-3) has other frequencies for a whole batch where its longest row is longer than in pretraining: losses
    would change with the batch, by 0.4 nats in a story.  Its positions end there.
    """
    config = text_config(model)
    name, rope = position_field(config), getattr(config, "rope_parameters", None) or {}
    ropes = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]  # some types have one for each layer
    limits = [part["original_max_position_embeddings"] for part in ropes if part.get("rope_type") == "longrope"]
    return min(limits + ([getattr(config, name)] if name else []), default=None)


def chosen_window(asked: int | None, config: PretrainedConfig, flag: str) -> int:
    """Return the length in tokens that a flag asks for, by default the model's positions, at most GPT-2's 1024.

    Raises:
        UsageError: for more than the positions.
    """
    positions = positions_of(config)
    if asked is not None and positions is not None and asked > positions:
        raise UsageError(f"{flag} {asked} is longer than the model's {positions} positions; give at most those")
    return min(positions or LONGEST_WINDOW, LONGEST_WINDOW) if asked is None else asked


def separator_of(run: Mapping[str, Any] | None) -> Separator:
    """Return the token before each document in a run's training; BOS where there is no `run.json`.

    >>> separator_of({"outcome": {"document_separator": "none"}}), separator_of(None)
    ('none', 'bos')
    """
    return run["outcome"].get("document_separator", "bos") if run else "bos"


def read_run(folder: Path) -> dict[str, Any] | None:
    """Read the `run.json` of a run or of one of its checkpoints; None where there is none, or another program's."""
    file = run_file(folder) if folder.is_dir() else None  # else a name on the Hub
    run = read_object(file) if file else {}
    return run if {"outcome", "replicate"} <= run.keys() else None
