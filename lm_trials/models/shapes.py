"""Models from scratch: a configuration from flags, weights from a seed.

Any model type of `AutoModelForCausalLM` can be trained.  What is not given is filled in as follows, and the training
script prints the result:

* no name and no overrides: `DEFAULT_PRESETS` for GPT-2 and Llama;
* GPT-2 overrides without a name: the library's own defaults (12 layers of 768), as the source systems have it;
* Llama overrides without a name: the `demo` preset, because the library's defaults are the 7B model, whose 32
  heads and feed-forward width of 11,008 nobody means who writes `hidden_size=256`;
* any other model type: the library's own defaults at the demo's width, depth and number of heads (`SMALL_SHAPE`),
  with 256 positions or a block's; `FOLLOWING` keeps its proportion, and a sliding window that would span all
  positions becomes half of them;
* what follows from an override (`FOLLOWING`, the kinds of layers, the size of a head) unless it is given too.

A multimodal configuration stands for its text model.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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

# What the library's configurations raise for values that do not go together.
REFUSED = (ValueError, TypeError, StrictDataclassError)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; a tensor that two modules share counts once."""

    total: int
    without_embeddings: int  # neither token nor position embeddings nor the output projection onto the vocabulary

    def __str__(self) -> str:
        return f"{self.total:,} parameters ({self.without_embeddings:,} without embeddings)"


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
    """The configuration that `--model_type`, `--config_name`, `--config_overrides` and `--dropout` describe.

    `config_name` is a preset, or the path of a `config.json` or of its folder, of any causal model.
    Vocabulary and token ids are the tokenizer's; no pad token is set, because packed pretraining pads
    nothing.  Positions are the preset's or the file's unless they are overridden (a GPT-2 has a weight vector for
    each); those of another model type are the larger of `block_size` and `SMALL_POSITIONS`.  `dropout=None` leaves
    the configuration's own: 0.1 in GPT-2, as the source systems train it, 0.0 in Llama; a value sets all dropouts of
    the type (`dropout_fields`), which in Llama is that of the attention weights alone, a much weaker regulariser.

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
    values |= _vocabulary_values(base, overrides, vocab_size)
    values |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": None}
    values |= _dropout_values(base, dropout)
    _check_positions(base, values, block_size)
    check_shape(base, values)
    if "head_dim" in values and values["head_dim"] is None:
        values["head_dim"] = _sizes(base, values)["head_dim"]
    kept = {} if small else base.to_dict()
    if (layers := values.get(_own_name(base, "num_hidden_layers"))) is not None:
        kept = {name: value for name, value in kept.items() if name not in _layer_lists(base)}
        if base.model_type == "gpt_neo":  # the only type that spells its layers as a pattern, times a number
            values["attention_types"] = [[["global", "local"], layers // 2], [["global"], layers % 2]]
    try:
        config = type(base).from_dict(kept | values)
        if kinds := _with_all_kinds(base, config):
            config = type(base).from_dict(kept | values | kinds)
    except REFUSED as error:  # the library's own validation, for what check_shape does not know
        raise UsageError(f"the configuration is refused by transformers: {' '.join(str(error).split())}") from None
    for name in WINDOWS if small else ():
        window, positions = getattr(config, name, None), small.get(position_field(base), 0)
        if isinstance(window, int) and window >= positions > 0 and name not in overrides:
            setattr(config, name, positions // 2)
    return config


def _base_config(
    model_type: str | None, config_name: str | None, config_overrides: str | None, block_size: int
) -> tuple[PreTrainedConfig, dict[str, int]]:
    """The configuration before overrides: a preset's, a default or a file's; of a library default, the small shape."""
    if model_type is not None:
        _check_type(model_type)
    if config_name is not None and config_name not in PRESETS:
        return _config_of_file(config_name), {}
    name = config_name
    if name is None:
        model_type = model_type or "gpt2"
        if model_type not in DEFAULT_PRESETS:
            base = _config_of_type(model_type)
            return base, _small_shape(base, block_size)
        if model_type == "gpt2" and config_overrides:
            return AutoConfig.for_model("gpt2"), {}
        name = DEFAULT_PRESETS[model_type]
    preset = PRESETS[name]
    if model_type not in (None, preset.model_type):
        raise UsageError(
            f"--config_name {name} is a {preset.model_type} and --model_type says {model_type}; leave one of them out"
        )
    return AutoConfig.for_model(preset.model_type, **preset.overrides, max_position_embeddings=preset.positions), {}


def _check_type(model_type: str) -> None:
    """Refuse a model type that transformers does not know, or has no causal language model of."""
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    near = get_close_matches(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=4)
    near.sort(key=lambda name: name not in DEFAULT_PRESETS)
    wrong = "has no causal language model in transformers" if model_type in CONFIG_MAPPING else "is unknown"
    meant = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"--model_type {model_type} {wrong}; {meant}give a type of AutoModelForCausalLM, "
        f"as {', '.join(near[1:] or ('gpt2', 'llama', 'qwen3'))}"
    )


def _config_of_type(model_type: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.for_model(model_type).get_text_config(decoder=True)
    except REFUSED as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--model_type {model_type} has no default configuration in transformers ({reason}); give a config.json "
            "with --config_name"
        ) from None
    return _causal(config, f"--model_type {model_type}")


def _small_shape(base: PreTrainedConfig, block_size: int) -> dict[str, int]:
    """The demo's width, depth and heads in this configuration's own names, and positions for a block."""
    fields = {field.name for field in dataclasses.fields(base)}
    shape = {_own_name(base, name): number for name, number in SMALL_SHAPE.items()}
    shape = {name: number for name, number in shape.items() if name in fields}
    if positions := position_field(base):
        shape[positions] = max(block_size, SMALL_POSITIONS)
    return shape


def _config_of_file(config_name: str) -> PreTrainedConfig:
    path = Path(config_name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"--config_name {config_name} is neither a preset nor a folder with a config.json; "
            f"{did_you_mean(config_name, PRESETS)}"
        )
    try:
        config = AutoConfig.from_pretrained(str(file), local_files_only=True, trust_remote_code=False)
        config = config.get_text_config(decoder=True)
    except (OSError, KeyError, *REFUSED) as error:
        # transformers answers a missing model_type with a list of hundreds of them.
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--config_name {config_name} is no model configuration: {reason}") from None
    return _causal(config, f"--config_name {config_name}")


def _causal(config: PreTrainedConfig, what: str) -> PreTrainedConfig:
    if config.is_heterogeneous:  # its own attributes refuse to be read
        raise UsageError(
            f"{what} describes layers of different sizes, which are not supported; give another model type"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{what} describes a {config.model_type}, for which transformers has no causal language model; "
            "give another model type"
        )
    return config


def _own_name(config: PreTrainedConfig, name: str) -> str:
    """What this configuration class calls a common field (GPT-2 says `n_embd` for `hidden_size`)."""
    return config.attribute_map.get(name, name)


def position_field(config: PreTrainedConfig) -> str | None:
    """What this configuration class calls the number of positions; None for a model type without a limit.

    >>> position_field(AutoConfig.for_model("gpt2")), position_field(AutoConfig.for_model("bloom"))
    ('n_positions', None)
    """
    names = (_own_name(config, "max_position_embeddings"), "max_seq_len")  # MPT maps its own name to none
    return next((name for name in names if (getattr(config, name, None) or 0) > 0), None)


def _sizes(base: PreTrainedConfig, values: Mapping[str, Any]) -> dict[str, int | None]:
    """Width, heads and the size of a head, as `values` change them."""
    names = {name: _own_name(base, name) for name in ("hidden_size", "num_attention_heads", "head_dim")}
    sizes = {name: values.get(own, getattr(base, own, None)) for name, own in names.items()}
    if not sizes["head_dim"] and sizes["hidden_size"] and sizes["num_attention_heads"]:
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes


def _derived(base: PreTrainedConfig, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Changed fields with those that follow from them."""
    values, fields = dict(changed), {field.name for field in dataclasses.fields(base)}
    if "is_decoder" in fields:  # BERT and its kin see the tokens that follow unless they are told
        values.setdefault("is_decoder", True)
    width_and_heads = {_own_name(base, name) for name in ("hidden_size", "num_attention_heads")}
    # A finished configuration carries its head_dim, which would stay behind when the width changes.
    if "head_dim" in fields and width_and_heads & values.keys():
        values.setdefault("head_dim", None)
    if base.model_type == "llama":
        return _derived_llama(base, values)
    before, after = _sizes(base, {}), _sizes(base, values)
    for leader, followers in FOLLOWING.items():
        for name in followers:
            own = _own_name(base, name)
            value = getattr(base, own, None) if own in fields - values.keys() else None
            if not isinstance(value, int) or before[leader] == after[leader]:
                continue
            multiple = {"hidden_size": 8, "head_dim": 2}.get(leader, 1)  # what matrix kernels and rotations take
            number = multiple * -(-value * after[leader] // (before[leader] * multiple))
            if leader == "num_attention_heads":
                number = next(count for count in divisors(after[leader]) if count >= number)
            values[own] = number
    return values


def _derived_llama(base: PreTrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Llama's follow the rules of llama2.c; grouped heads (stories260K) keep their number."""
    if "hidden_size" in values:
        values.setdefault("intermediate_size", feed_forward_size(values["hidden_size"]))
    if "num_attention_heads" in values and base.num_key_value_heads == base.num_attention_heads:
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
    return values


def _layer_lists(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """Fields that name a kind for each layer, as `layer_types`."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, list)
        and len(value) == getattr(config, "num_hidden_layers", None)
        and all(isinstance(kind, (str, int)) for kind in value)
    }


def _with_all_kinds(base: PreTrainedConfig, config: PreTrainedConfig) -> dict[str, list[Any]]:
    """Layer lists that lack a kind of layer which the deeper model has, with it among their last.

    Gemma 3's every sixth layer attends to all positions, so four of its layers would see a window only.
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
    """What `--dropout` sets, in this configuration's own names: the dropouts that a causal language model has.

    >>> dropout_fields(AutoConfig.for_model("gpt2")), dropout_fields(AutoConfig.for_model("llama"))
    (['resid_pdrop', 'embd_pdrop', 'attn_pdrop'], ['attention_dropout'])
    """
    others = ("classifier", "summary", "layerdrop")  # of other heads, or of whole layers
    return [
        name
        for name, types in field_types(config).items()
        if "drop" in name and float in types and not any(other in name for other in others)
    ]


def _dropout_values(config: PreTrainedConfig, dropout: float | None) -> dict[str, float]:
    if dropout is None:
        return {}
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout} is no probability; give 0 or more and less than 1")
    fields = dropout_fields(config)
    if not fields:
        raise UsageError(f"--dropout is not defined for a {config.model_type}, which has none; remove --dropout")
    return dict.fromkeys(fields, float(dropout))


def describe_shape(config: PreTrainedConfig) -> str:
    """What decides the shape, given or filled in, in this configuration's own names.

    >>> describe_shape(AutoConfig.for_model("bloom", n_layer=2, hidden_size=8))
    'hidden_size 8, n_layer 2, n_head 8, tie_word_embeddings True'
    """
    names = dict.fromkeys(_own_name(config, name) for name in (*COUNTS, *WINDOWS, "tie_word_embeddings"))
    shown = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    kinds = {
        name: " + ".join(f"{count} x {kind}" for kind, count in Counter(layers).items())
        for name, layers in _layer_lists(config).items()
    }
    return ", ".join(f"{name} {value}" for name, value in (shown | kinds).items())


def _vocabulary_values(base: PreTrainedConfig, overrides: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    name = _own_name(base, "vocab_size")
    if overrides.get(name, vocab_size) != vocab_size:
        raise UsageError(
            f"--config_overrides {name}={overrides[name]} disagrees with the tokenizer's "
            f"{vocab_size} tokens; leave it out, the tokenizer decides"
        )
    return {name: vocab_size}


def _check_positions(base: PreTrainedConfig, values: Mapping[str, Any], block_size: int) -> None:
    name = position_field(base)
    positions = values.get(name, getattr(base, name)) if name else None
    if positions is not None and positions < block_size:
        raise UsageError(
            f"--block_size {block_size} is longer than the model's {positions} positions; lower it or give "
            f"--config_overrides {name}={block_size}"
        )


def set_causal_loss(model: nn.Module) -> None:
    """Make Trainer count the labels that a causal model predicts, in place.

    Trainer divides the summed loss by the labels in the batch.  A causal model predicts all but the first
    label of a sequence, and Trainer leaves that one out of its count only where `model.loss_type` is
    `"ForCausalLM"`.  transformers 5.23 derives that name from the class name; for `GPT2LMHeadModel` and
    seven others it finds none, and both the logged loss and the gradients come out too small by (L - 1) / L
    for sequences of L tokens: 6 % at 16 tokens.  A GPT-2 arm could then not be compared with a Llama arm,
    nor short blocks with long ones.  The loss function itself is the same one either way.

    Works on any causal model, and through PEFT's wrapper, below which Trainer looks.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.loss_type = "ForCausalLM"


def build_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A float32 model on the CPU, its weights drawn from `seed`; the caller's random state stays as it was.

    Only the CPU's generator is touched: the weights are drawn there, and forking those of all GPUs would
    open a context on each of them from every process.

    >>> tokens = dict(vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> config = build_config("llama", None, None, **tokens)
    >>> first, again, other = (build_model(config, seed).lm_head.weight for seed in (0, 0, 1))
    >>> bool((first == again).all()), bool((first == other).any())
    (True, False)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            # A copy: from_config writes the dtype and the class name into what it is given.
            model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict()), dtype=torch.float32)
        except Exception as error:  # of 189 model types, each with its own demands on its fields
            raise UsageError(
                f"a {config.model_type} cannot be built from this configuration "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); change its fields with "
                "--config_overrides, or give a config.json with --config_name"
            ) from error
    set_causal_loss(model)
    return model


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count each parameter tensor once, however many modules share it.

    >>> tokens = dict(vocab_size=1024, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> config = build_config(None, "demo", None, **tokens)
    >>> print(count_parameters(build_model(config, seed=0)))
    935,040 parameters (803,968 without embeddings)
    """
    sizes = {id(tensor): tensor.numel() for tensor in model.parameters()}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        embeddings.add(id(head.weight))
    total = sum(sizes.values())
    return ParameterCount(total, total - sum(sizes[tensor] for tensor in embeddings if tensor in sizes))
