"""Models from scratch: a configuration from flags, weights from a seed.

What is left unsaid is filled in as follows, and a script prints the result:

* no name and no overrides: `DEFAULT_PRESETS`, a small shape for each model type;
* GPT-2 overrides without a name: the library's own defaults (12 layers of 768), as the seed scripts have it;
* Llama overrides without a name: the `demo` preset, because the library's defaults are the 7B model, whose 32
  heads and feed-forward width of 11,008 nobody means who writes `hidden_size=256`;
* `intermediate_size` follows an overridden `hidden_size` (`feed_forward_size`) unless it is given too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from lm_trials.console import UsageError, did_you_mean
from lm_trials.models.overrides import check_shape, parse_overrides
from lm_trials.models.presets import (
    DEFAULT_PRESETS,
    DROPOUT_FIELDS,
    MODEL_TYPES,
    PRESETS,
    ModelType,
    feed_forward_size,
)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; a tensor that two modules share counts once."""

    total: int
    without_embeddings: int  # neither token nor position embeddings nor the output projection onto the vocabulary

    def __str__(self) -> str:
        return f"{self.total:,} parameters ({self.without_embeddings:,} without embeddings)"


def build_config(
    model_type: ModelType | None,
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
    nothing.  Positions become the larger of `block_size` and the preset's (a GPT-2 has a weight vector for
    each) unless they are overridden or come from a file.  `dropout=None` leaves the configuration's own: 0.1
    in GPT-2, as the seed scripts train it, 0.0 in Llama; a value sets all dropouts of the type
    (`DROPOUT_FIELDS`), which in Llama is that of the attention weights alone, a much weaker regulariser.

    Raises:
        UsageError: an unknown name, key or value; widths that do not divide; a block longer than the
            positions; a vocabulary or model type that contradicts the tokenizer or the preset.

    >>> given = dict(vocab_size=50257, block_size=256, bos_token_id=None, eos_token_id=50256)
    >>> config = build_config("gpt2", None, "n_embd=512,n_layer=8,n_head=8", **given)
    >>> config.n_embd, config.n_positions, config.resid_pdrop
    (512, 1024, 0.1)
    """
    base = _base_config(model_type, config_name, config_overrides)
    overrides = parse_overrides(base, config_overrides)
    values = _derived(base, overrides)
    values |= _vocabulary_values(overrides, vocab_size)
    values |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": None}
    values |= _dropout_values(base, dropout)
    values |= _position_values(base, overrides, block_size)
    check_shape(base, values)
    try:
        return type(base).from_dict(base.to_dict() | values)
    except (
        ValueError,
        TypeError,
    ) as error:  # the library's own validation, for what check_shape does not know
        raise UsageError(f"the configuration is refused by transformers: {error}") from None


def _base_config(
    model_type: ModelType | None, config_name: str | None, config_overrides: str | None
) -> PreTrainedConfig:
    """The configuration before overrides: a preset's, a default or a file's."""
    if model_type is not None and model_type not in MODEL_TYPES:
        raise UsageError(f"--model_type {model_type} is unknown; {did_you_mean(model_type, MODEL_TYPES)}")
    if config_name is not None and config_name not in PRESETS:
        return _config_of_file(config_name)
    name = config_name
    if name is None:
        model_type = model_type or "gpt2"
        if model_type == "gpt2" and config_overrides:
            return AutoConfig.for_model("gpt2")
        name = DEFAULT_PRESETS[model_type]
    preset = PRESETS[name]
    if model_type not in (None, preset.model_type):
        raise UsageError(
            f"--config_name {name} is a {preset.model_type} and --model_type says {model_type}; leave one of them out"
        )
    positions = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[preset.model_type]
    return AutoConfig.for_model(preset.model_type, **preset.overrides, **{positions: preset.positions})


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        # transformers answers a missing model_type with a list of hundreds of them.
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--config_name {config_name} is no model configuration: {reason}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"--config_name {config_name} describes a {config.model_type}, for which transformers has no "
            "causal language model"
        )
    return config


def _own_name(config: PreTrainedConfig, name: str) -> str:
    """What this configuration class calls a common field (GPT-2 says `n_embd` for `hidden_size`)."""
    return config.attribute_map.get(name, name)


def _derived(base: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with the fields that follow from them."""
    values = dict(overrides)
    if "hidden_size" in values and "intermediate_size" not in values and base.model_type == "llama":
        values["intermediate_size"] = feed_forward_size(values["hidden_size"])
    # One head of keys for each head stays so; grouped heads (stories260K) keep their number.
    heads = values.get("num_attention_heads")
    if heads and base.model_type == "llama" and base.num_key_value_heads == base.num_attention_heads:
        values.setdefault("num_key_value_heads", heads)
    # A finished configuration carries its head_dim, which would stay behind when the width changes.
    if hasattr(base, "head_dim") and {"hidden_size", "num_attention_heads"} & values.keys():
        values.setdefault("head_dim", None)
    return values


def _dropout_values(config: PreTrainedConfig, dropout: float | None) -> dict[str, float]:
    if dropout is None:
        return {}
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout} is no probability; give 0 or more and less than 1")
    fields = DROPOUT_FIELDS.get(config.model_type)
    if fields is None:
        raise UsageError(
            f"--dropout is not defined for a {config.model_type}; set its own fields with --config_overrides"
        )
    return dict.fromkeys(fields, float(dropout))


def _vocabulary_values(overrides: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    if overrides.get("vocab_size", vocab_size) != vocab_size:
        raise UsageError(
            f"--config_overrides vocab_size={overrides['vocab_size']} disagrees with the tokenizer's "
            f"{vocab_size} tokens; leave it out, the tokenizer decides"
        )
    return {"vocab_size": vocab_size}


def _position_values(base: PreTrainedConfig, overrides: Mapping[str, Any], block_size: int) -> dict[str, int]:
    name = _own_name(base, "max_position_embeddings")
    positions = overrides.get(name, getattr(base, name, None))
    if positions is None or positions >= block_size:  # None: a model type without a limit
        return {}
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
        # A copy: from_config writes the dtype and the class name into what it is given.
        model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict()), dtype=torch.float32)
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
