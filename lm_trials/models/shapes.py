"""Models from scratch: a configuration from flags, weights from a seed.

Any model type of `AutoModelForCausalLM` can be trained, of a multimodal one the text model.  Defaults:

* GPT-2 and Llama without a name or overrides: `DEFAULT_PRESETS`;
* GPT-2 with overrides alone: the library's defaults (12 layers of 768), as in the source systems;
* Llama with overrides alone: the `demo` preset, because the library's defaults are the 7B model's;
* other model types: the library's defaults at `SMALL_SHAPE`, with 256 positions or a block's; a sliding window that
  would span all positions becomes half of them;
* fields that depend on a changed one keep their proportion to it (`FOLLOWING`), unless they are given too.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.integrations import deepspeed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lm_trials.console import UsageError, did_you_mean
from lm_trials.models.overrides import COUNTS, check_shape, divisors, field_types, parse_overrides
from lm_trials.models.presets import (
    DEFAULT_PRESETS,
    FOLLOWING,
    PRESETS,
    SMALL_POSITIONS,
    SMALL_SHAPE,
    WINDOWS,
    feed_forward_size,
)

# Exceptions of the library's configurations for values that contradict each other.
REFUSED = (ValueError, TypeError, StrictDataclassError)


class ParameterCount(NamedTuple):
    """Parameters of a model; a tensor that two modules share counts once."""

    total: int
    without_embeddings: int  # without token and position embeddings and the output projection


def build_config(
    model_type: str | None,
    config_name: str | None,
    config_overrides: str | None,
    *,
    vocab_size: int,
    block_size: int,
    bos_token_id: int | None,
    eos_token_id: int | None,
    dropout: float | None = None,
) -> PreTrainedConfig:
    """Return the configuration for `--model_type`, `--config_name`, `--config_overrides` and `--dropout`.

    No pad token is set, because packed pretraining pads nothing.

    Args:
        config_name: a preset, or a `config.json` or its folder, of any causal model.
        vocab_size: the tokenizer's, as are the token ids.
        block_size: tokens of a block.  Positions are the preset's or the file's unless overridden; of another model
            type, the larger of this and `SMALL_POSITIONS`.
        dropout: for all of `dropout_fields`; None keeps the configuration's (GPT-2: 0.1, Llama: 0.0).

    Raises:
        UsageError: an unknown name, key or value; widths that do not divide; a block longer than the
            positions; a vocabulary or model type that contradicts the tokenizer or the preset.

    >>> given = dict(vocab_size=50257, block_size=256, bos_token_id=None, eos_token_id=50256)
    >>> config = build_config("gpt2", None, "n_embd=512,n_layer=8,n_head=8", **given)
    >>> config.n_embd, config.n_positions, config.resid_pdrop
    (512, 1024, 0.1)
    >>> config = build_config("gemma3_text", None, "num_hidden_layers=2", **given)
    >>> config.hidden_size, config.head_dim, config.num_key_value_heads, config.sliding_window, config.layer_types
    (128, 32, 2, 128, ['sliding_attention', 'full_attention'])
    """
    base, small = _base_config(model_type, config_name, config_overrides, block_size)
    overrides = parse_overrides(base, config_overrides)
    values = _derived(base, small | overrides)
    vocabulary, positions = _own_name(base, "vocab_size"), position_field(base)
    if overrides.get(vocabulary, vocab_size) != vocab_size:
        raise UsageError(
            f"--config_overrides {vocabulary}={overrides[vocabulary]} contradicts the tokenizer's {vocab_size} tokens; "
            "remove it"
        )
    values |= {vocabulary: vocab_size, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": None}
    values |= _dropout_values(base, dropout)
    if positions and (number := values.get(positions, getattr(base, positions))) < block_size:
        raise UsageError(
            f"--block_size {block_size} is longer than the model's {number} positions; lower it or give "
            f"--config_overrides {positions}={block_size}"
        )
    check_shape(base, values)
    if "head_dim" in values and values["head_dim"] is None:
        values["head_dim"] = _sizes(base, values)["head_dim"]
    kept = {} if small else base.to_dict()
    if (layers := values.get(_own_name(base, "num_hidden_layers"))) is not None:
        kept = {name: value for name, value in kept.items() if name not in _layer_lists(base)}
        if base.model_type == "gpt_neo":  # the only type with layer kinds as [pattern, repeats]
            values["attention_types"] = [[["global", "local"], layers // 2], [["global"], layers % 2]]
    try:
        config = type(base).from_dict(kept | values)
        if kinds := _with_all_kinds(base, config):
            config = type(base).from_dict(kept | values | kinds)
    except REFUSED as error:  # the library's own checks, beyond those of check_shape
        raise UsageError(
            f"--config_overrides: transformers refuses the configuration ({' '.join(str(error).split())}); change it"
        ) from None
    length = small.get(positions or "", 0)
    for name in WINDOWS if length else ():
        window = getattr(config, name, None)
        if isinstance(window, int) and window >= length and name not in overrides:
            setattr(config, name, length // 2)
    return config


def _base_config(
    model_type: str | None, config_name: str | None, config_overrides: str | None, block_size: int
) -> tuple[PreTrainedConfig, dict[str, int]]:
    """Return the configuration before overrides, and the small shape for a library default."""
    if model_type is not None and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _unknown_type(model_type)
    if config_name is not None and config_name not in PRESETS:
        return _library_config("", config_name), {}
    name = config_name
    if name is None:
        model_type = model_type or "gpt2"
        if model_type not in DEFAULT_PRESETS:
            base = _library_config(model_type, None)
            return base, _small_shape(base, block_size)
        if model_type == "gpt2" and config_overrides:
            return AutoConfig.for_model("gpt2"), {}
        name = DEFAULT_PRESETS[model_type]
    preset = PRESETS[name]
    if model_type not in (None, preset.model_type):
        raise UsageError(
            f"--config_name {name} is a {preset.model_type}, not --model_type {model_type}; remove one of them"
        )
    return AutoConfig.for_model(preset.model_type, **preset.overrides, max_position_embeddings=preset.positions), {}


def _unknown_type(model_type: str) -> UsageError:
    near = get_close_matches(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=4)
    near.sort(key=lambda name: name not in DEFAULT_PRESETS)
    wrong = "has no causal language model in transformers" if model_type in CONFIG_MAPPING else "is unknown"
    meant = f"did you mean {near[0]}? " if near else ""
    return UsageError(
        f"--model_type {model_type} {wrong}; {meant}give a type of AutoModelForCausalLM, "
        f"for example {', '.join(near[1:] or ('gpt2', 'llama', 'qwen3'))}"
    )


def _small_shape(base: PreTrainedConfig, block_size: int) -> dict[str, int]:
    """`SMALL_SHAPE` in this configuration's own names, with positions for a block."""
    fields = {field.name for field in dataclasses.fields(base)}
    shape = {_own_name(base, name): number for name, number in SMALL_SHAPE.items()}
    shape = {name: number for name, number in shape.items() if name in fields}
    if positions := position_field(base):
        shape[positions] = max(block_size, SMALL_POSITIONS)
    return shape


def _library_config(model_type: str, config_name: str | None) -> PreTrainedConfig:
    """Return a file's configuration, or a model type's default."""
    path, what, wrong = Path(config_name or ""), f"--config_name {config_name}", "is not a model configuration"
    file = path / "config.json" if path.is_dir() else path
    if config_name is not None and not file.is_file():
        raise UsageError(f"{what} is neither a preset nor a config.json; {did_you_mean(config_name, PRESETS)}")
    try:
        if config_name is not None:
            config = AutoConfig.from_pretrained(str(file), local_files_only=True, trust_remote_code=False)
        else:
            what, wrong = f"--model_type {model_type}", "has no default configuration in transformers"
            config = AutoConfig.for_model(model_type)
        config = config.get_text_config(decoder=True)
    except (OSError, KeyError, *REFUSED) as error:
        reason = " ".join(str(error).split())[:200]  # for a missing model_type, transformers lists hundreds
        raise UsageError(f"{what} {wrong} ({reason}); give a valid config.json with --config_name") from None
    if config.is_heterogeneous:  # reading hidden_size and the like raises
        raise UsageError(f"{what} has layers of different sizes, which are not supported; give another model type")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{what} is a {config.model_type}, for which transformers has no causal language model; "
            "give another model type"
        )
    return config


def text_config(model: Any) -> PreTrainedConfig:
    """Return the configuration of a model's text decoder, given a model or a configuration.

    A multimodal model has it nested in its own, whose fields have other meanings or do not exist.

    >>> text_config(AutoConfig.for_model("gemma3")).model_type, text_config(AutoConfig.for_model("gpt2")).model_type
    ('gemma3_text', 'gpt2')
    """
    config: PreTrainedConfig = model if isinstance(model, PreTrainedConfig) else model.config
    return config.get_text_config(decoder=True)


def _own_name(config: PreTrainedConfig, name: str) -> str:
    """This configuration class's name of a common field (GPT-2: `n_embd` for `hidden_size`)."""
    return config.attribute_map.get(name, name)


def position_field(config: PreTrainedConfig) -> str | None:
    """Return the configuration's field for the number of positions; None for a model type without a limit.

    >>> position_field(AutoConfig.for_model("gpt2")), position_field(AutoConfig.for_model("bloom"))
    ('n_positions', None)
    """
    names = (_own_name(config, "max_position_embeddings"), "max_seq_len")  # MPT maps its own name to none
    return next((name for name in names if (getattr(config, name, None) or 0) > 0), None)


def _sizes(base: PreTrainedConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Width, heads and the size of a head after `values`."""
    names = {name: _own_name(base, name) for name in ("hidden_size", "num_attention_heads", "head_dim")}
    sizes = {name: values.get(own, getattr(base, own, None)) for name, own in names.items()}
    if not sizes["head_dim"] and sizes["hidden_size"] and sizes["num_attention_heads"]:
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes


def _derived(base: PreTrainedConfig, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Changed fields and those that depend on them."""
    values, fields = dict(changed), {field.name for field in dataclasses.fields(base)}
    if "is_decoder" in fields:  # without it, BERT and similar types attend to later tokens
        values.setdefault("is_decoder", True)
    width_and_heads = {_own_name(base, name) for name in ("hidden_size", "num_attention_heads")}
    # A saved configuration has a head_dim, which would otherwise stay as it was when the width changes.
    if "head_dim" in fields and width_and_heads & values.keys():
        values.setdefault("head_dim", None)
    if base.model_type == "llama":  # by the rules of llama2.c; grouped heads (stories260K) keep their number
        if "hidden_size" in values:
            values.setdefault("intermediate_size", feed_forward_size(values["hidden_size"]))
        if "num_attention_heads" in values and base.num_key_value_heads == base.num_attention_heads:
            values.setdefault("num_key_value_heads", values["num_attention_heads"])
        return values
    before, after = _sizes(base, {}), _sizes(base, values)
    for leader, followers in FOLLOWING.items():
        for name in followers:
            own = _own_name(base, name)
            value = getattr(base, own, None) if own in fields - values.keys() else None
            if not isinstance(value, int) or before[leader] == after[leader]:
                continue
            multiple = {"hidden_size": 8, "head_dim": 2}.get(leader, 1)  # for matrix kernels and for rotary pairs
            number = multiple * -(-value * after[leader] // (before[leader] * multiple))
            if leader == "num_attention_heads":
                number = next(count for count in divisors(after[leader]) if count >= number)
            values[own] = number
    return values


def _layer_lists(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """Fields with one kind for each layer, for example `layer_types`."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, list)
        and len(value) == getattr(config, "num_hidden_layers", None)
        and all(isinstance(kind, (str, int)) for kind in value)
    }


def _with_all_kinds(base: PreTrainedConfig, config: PreTrainedConfig) -> dict[str, list[Any]]:
    """Layer lists completed, near their ends, with the kinds of layers that only the deeper base has.

    In Gemma 3 every sixth layer attends to all positions; four layers would all have a sliding window.
    """
    changed = {}
    deep, lists = _layer_lists(base), _layer_lists(config)
    for name in deep.keys() & lists.keys():
        layers = list(lists[name])
        missing = [kind for kind in dict.fromkeys(deep[name]) if kind not in layers]
        if missing and len({*layers, *missing}) <= len(layers):
            for kind in missing:
                layers[max(n for n, other in enumerate(layers) if layers.count(other) > 1)] = kind
            changed[name] = layers
    return changed


def dropout_fields(config: PreTrainedConfig) -> list[str]:
    """Return the fields that `--dropout` sets: the dropouts of a causal language model.

    >>> dropout_fields(AutoConfig.for_model("gpt2")), dropout_fields(AutoConfig.for_model("llama"))
    (['resid_pdrop', 'embd_pdrop', 'attn_pdrop'], ['attention_dropout'])
    """
    others = ("classifier", "summary", "layerdrop")  # of other output heads, or of whole layers
    return [
        name
        for name, types in field_types(config).items()
        if "drop" in name and float in types and not any(other in name for other in others)
    ]


def _dropout_values(config: PreTrainedConfig, dropout: float | None) -> dict[str, float]:
    if dropout is None:
        return {}
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout} is not a probability; give 0 or more and less than 1")
    fields = dropout_fields(config)
    if not fields:
        raise UsageError(f"--dropout {dropout}: a {config.model_type} has no dropout; remove --dropout")
    return dict.fromkeys(fields, float(dropout))


def describe_shape(config: PreTrainedConfig) -> str:
    """Return the fields that define the shape, given or by default, for `name value` output.

    >>> describe_shape(AutoConfig.for_model("bloom", n_layer=2, hidden_size=8))
    'hidden_size 8, n_layer 2, n_head 8, tie_word_embeddings True'
    """
    names = dict.fromkeys(_own_name(config, name) for name in (*COUNTS, *WINDOWS, "tie_word_embeddings"))
    values = config.to_dict()  # an attribute that differs between layers (Gemma 4) cannot be read
    shown = {name: value for name in names if (value := values.get(name)) is not None}
    kinds = {
        name: " + ".join(f"{count} x {kind}" for kind, count in Counter(layers).items())
        for name, layers in _layer_lists(config).items()
    }
    return ", ".join(f"{name} {value}" for name, value in (shown | kinds).items())


def set_causal_loss(model: Any) -> None:
    """Make Trainer divide the loss by the number of predicted labels, in place; also through PEFT's wrapper.

    A causal model does not predict a sequence's first label, and Trainer excludes it from the count only where
    `model.loss_type` is `"ForCausalLM"`.  transformers 5.23 derives that name from the class name; for
    `GPT2LMHeadModel` and seven others it finds none.  Logged loss and gradients are then too small by (L - 1) / L for
    sequences of L tokens, 6 % at 16 tokens, and GPT-2 cannot be compared with Llama.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.loss_type = "ForCausalLM"


@contextmanager
def whole_weights() -> Iterator[None]:
    """Draw and load all weights in each process, also where DeepSpeed (ZeRO-3) shards them afterwards.

    Drawn in shards, the same seed gave others: a first loss of 6.2606 instead of 6.2580.  Loaded in shards, a model has
    0 parameters until it is trained, and cannot be checked.
    """
    settings = deepspeed._hf_deepspeed_config_weak_ref  # by which transformers knows of ZeRO-3
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = settings


def check_memory(config: PreTrainedConfig, name: str, device: torch.device, num_bytes: int) -> None:
    """Refuse a model that the device's whole memory cannot hold, before it is built.

    Args:
        num_bytes: for each parameter, of weights, gradients and optimizer.

    Raises:
        UsageError: with both sizes.
    """
    # On the meta device no tensor has memory: 0.02 s for the demo, 0.1 s for 48 layers.
    with whole_weights(), no_init_weights(), torch.device("meta"):
        try:
            model: Any = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict()))
            model.tie_weights()  # `no_init_weights` leaves it out
        except Exception:  # `build_model` explains it
            return
    needed, has = model.num_parameters() * num_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cuda":
        has = torch.cuda.get_device_properties(device).total_memory
    if needed > has:
        raise UsageError(
            f"{name}: {model.num_parameters():,} parameters need {needed / 1e9:,.1f} GB to be trained ({num_bytes} "
            f"bytes each: weights, gradients, optimizer), and this {device.type.upper()} has {has / 1e9:,.1f} GB; give "
            "a smaller model"
        )


def build_model(config: PreTrainedConfig, seed: int, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """Return a model on the CPU with weights drawn from `seed` in `dtype`; the global random state is restored.

    >>> tokens = dict(vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> config = build_config("llama", None, None, **tokens)
    >>> first, again, other = (build_model(config, seed).lm_head.weight for seed in (0, 0, 1))
    >>> bool((first == again).all()), bool((first == other).any())
    (True, False)
    """
    # Forking the GPUs' states would open a context on each GPU.
    with whole_weights(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            # A copy, because from_config writes dtype and class name into its argument.
            model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict()), dtype=dtype)
        except Exception as error:  # each of 189 model types has its own requirements
            raise UsageError(
                f"--model_type {config.model_type} cannot be built from this configuration "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); change its fields with "
                "--config_overrides, or give a config.json with --config_name"
            ) from error
    set_causal_loss(model)
    return model


def not_finite(model: nn.Module) -> str | None:
    """Return the name of a floating-point parameter with a value that is nan or infinite; None if all are finite.

    Of a sharded model, this process's shards are read.

    >>> layer = nn.Linear(2, 2)
    >>> before = not_finite(layer)
    >>> _ = nn.init.constant_(layer.bias, float("inf"))
    >>> before, not_finite(layer)
    (None, 'bias')
    """
    for name, weight in model.named_parameters():
        shard = getattr(weight, "ds_tensor", weight).detach()  # DeepSpeed's
        shard = shard.to_local() if hasattr(shard, "to_local") else shard  # FSDP2's
        # `aminmax` returns nan for a nan, and takes 0.16 s for each GB; `isfinite` makes a copy and takes 6 s.
        is_read = shard.is_floating_point() and shard.numel() and not shard.is_meta
        if is_read and not torch.stack(shard.aminmax()).isfinite().all():
            return name
    return None


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    """Count each parameter tensor once, however many modules share it.

    >>> tokens = dict(vocab_size=1024, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> config = build_config(None, "demo", None, **tokens)
    >>> count_parameters(build_model(config, seed=0))
    ParameterCount(total=935040, without_embeddings=803968)
    """
    sizes = {id(tensor): tensor.numel() for tensor in model.parameters()}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if (head := model.get_output_embeddings()) is not None:
        embeddings.add(id(head.weight))
    total = sum(sizes.values())
    return ParameterCount(total, total - sum(sizes[tensor] for tensor in embeddings if tensor in sizes))
