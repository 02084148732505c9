"""`--config_overrides name=value,...`: parsed to the types of the configuration's own fields, and checked.

transformers accepts any name (`n_embed=512` would be stored and ignored) and reports a width that does not
divide only from inside the model, so both are checked here, where the answer can name what would have been
right.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from lm_trials.console import UsageError, did_you_mean

# The tokenizer's business, not the shape's.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

PLAIN = (bool, int, float, str, type(None))

# Fields that count something of which there must be at least one, in the common names.
COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "head_dim",
    "n_inner",
)


def field_types(config: PreTrainedConfig) -> dict[str, tuple[type, ...]]:
    """Fields that can be overridden, each with the plain types that it takes.

    >>> from transformers import GPT2Config
    >>> field_types(GPT2Config())["n_inner"]
    (<class 'int'>, <class 'NoneType'>)
    """
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} | set(TOKEN_IDS)
    found = {}
    for field in dataclasses.fields(config):
        plain = _plain_types(field.type)
        if field.name not in common and set(plain) - {type(None)}:
            found[field.name] = plain
    return found


def _plain_types(annotation: Any) -> tuple[type, ...]:
    if isinstance(annotation, str):  # some model types postpone their annotations
        names = {kind.__name__: kind for kind in PLAIN} | {"None": type(None)}
        return tuple(names[part] for part in annotation.replace(" ", "").split("|") if part in names)
    return tuple(kind for kind in typing.get_args(annotation) or (annotation,) if kind in PLAIN)


def parse_overrides(config: PreTrainedConfig, text: str | None) -> dict[str, Any]:
    """Parse `name=value,name=value` for this configuration class.

    Raises:
        UsageError: a name that the class does not have, a value of another type, a name given twice.

    >>> from transformers import GPT2Config
    >>> parse_overrides(GPT2Config(), "n_embd=512, n_head=8,resid_pdrop=0,scale_attn_weights=false")
    {'n_embd': 512, 'n_head': 8, 'resid_pdrop': 0.0, 'scale_attn_weights': False}
    >>> parse_overrides(GPT2Config(), "hidden_size=512")
    Traceback (most recent call last):
    lm_trials.console.UsageError: --config_overrides hidden_size is called n_embd in a gpt2 configuration
    """
    types = field_types(config)
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise UsageError(f"--config_overrides {part} has no value; write name=value,name=value")
        if name in values:
            raise UsageError(f"--config_overrides names {name} twice; give it once")
        if name not in types:
            if name in config.attribute_map:
                own = config.attribute_map[name]
                raise UsageError(f"--config_overrides {name} is called {own} in a {config.model_type} configuration")
            raise UsageError(
                f"--config_overrides {name} is no field of a {config.model_type} configuration; "
                f"{did_you_mean(name, types)}"
            )
        values[name] = _parse_value(name, value, types[name])
    return values


def _parse_value(name: str, text: str, types: tuple[type, ...]) -> Any:
    """Read `text` as the widest of the plain types: float before int, so that a probability of 0 is 0.0."""
    if text.lower() == "none" and type(None) in types:
        return None
    if bool in types:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"--config_overrides {name}={text} is neither true nor false")
    for kind, label in ((float, "a number"), (int, "a whole number"), (str, "")):
        if kind in types:
            try:
                return kind(text)
            except ValueError:
                raise UsageError(f"--config_overrides {name}={text} is not {label}") from None
    raise AssertionError(f"{name} has no plain type")  # field_types lets none through


def check_shape(base: PreTrainedConfig, values: Mapping[str, Any]) -> None:
    """Refuse counts below one and widths that do not divide, naming what would.

    Args:
        base: the configuration before the overrides.
        values: the overrides, with the base's own field names.

    Raises:
        UsageError: with the values that would work.
    """

    def get(common_name: str) -> tuple[str, Any]:
        own = base.attribute_map.get(common_name, common_name)
        return own, values.get(own, getattr(base, own, None))

    for common_name in COUNTS:
        own, value = get(common_name)
        if isinstance(value, int) and value < 1:
            raise UsageError(f"--config_overrides {own}={value} is too small; give at least 1")
    width_name, width = get("hidden_size")
    heads_name, heads = get("num_attention_heads")
    kv_name, kv_heads = get("num_key_value_heads")
    _, head_dim = get("head_dim")
    if width is None or heads is None:
        return  # a file's model type without such names; transformers checks what it knows
    if head_dim is None and width % heads:
        raise UsageError(
            f"{width_name} {width} is not divisible by {heads_name} {heads}; "
            f"{heads_name} may be {_listed(divisors(width))}"
        )
    if kv_heads is not None and heads % kv_heads:
        raise UsageError(
            f"{heads_name} {heads} is not divisible by {kv_name} {kv_heads}; "
            f"{kv_name} may be {_listed(divisors(heads))}"
        )
    size, rope = head_dim or width // heads, getattr(base, "rope_parameters", None)
    turned = (rope or {}).get("partial_rotary_factor", 1)  # share of a head's dimensions; GPT-NeoX: a quarter

    def turns(size: int) -> bool:
        pairs = -(-int(size * turned) // 2)
        return 0 < 2 * pairs <= size

    if hasattr(base, "rope_parameters") and not turns(size):
        even = [n for n in divisors(width) if turns(width // n)]
        choice = f"{heads_name} may be {_listed(even)}" if even else f"make {width_name} even"
        raise UsageError(
            f"{width_name} {width} over {heads_name} {heads} gives heads of {size}, and rotary positions "
            f"turn pairs of dimensions; {choice}"
        )


def divisors(number: int) -> list[int]:
    """All divisors, smallest first.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
