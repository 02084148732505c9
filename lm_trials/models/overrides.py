"""`--config_overrides name=value,...`: parsed to the types of the configuration's fields, and checked.

transformers would store and ignore an unknown name (`n_embed=512`), and fails on a width that does not divide only
inside the model.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from lm_trials.console import UsageError, did_you_mean

# Set by the tokenizer, not by the shape.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

PLAIN = (bool, int, float, str, type(None))

# Fields that must be at least 1, in the common names.
COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "head_dim", "n_inner"),
)


def field_types(config: PreTrainedConfig) -> dict[str, tuple[type, ...]]:
    """Return the fields that can be overridden, with their plain types.

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
    if isinstance(annotation, str):  # from __future__ import annotations
        names = {kind.__name__: kind for kind in PLAIN} | {"None": type(None)}
        return tuple(names[part] for part in annotation.replace(" ", "").split("|") if part in names)
    return tuple(kind for kind in typing.get_args(annotation) or (annotation,) if kind in PLAIN)


def parse_overrides(config: PreTrainedConfig, text: str | None) -> dict[str, Any]:
    """Parse `name=value,name=value` for this configuration class.

    Raises:
        UsageError: for an unknown or repeated name, or a value of another type.

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
                f"--config_overrides {name} is not a field of a {config.model_type} configuration; "
                f"{did_you_mean(name, types)}"
            )
        values[name] = _parse_value(name, value, types[name])
    return values


def _parse_value(name: str, text: str, types: tuple[type, ...]) -> Any:
    """Parse `text` as the widest plain type: float before int, so that a probability of 0 is 0.0."""
    if text.lower() == "none" and type(None) in types:
        return None
    if bool in types:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"--config_overrides {name}={text} must be true or false")
    for kind, label in ((float, "a number"), (int, "a whole number"), (str, "")):
        if kind in types:
            try:
                return kind(text)
            except ValueError:
                raise UsageError(f"--config_overrides {name}={text} must be {label}") from None
    raise AssertionError(f"{name} has no plain type")  # field_types returns no such field


def check_numbers(config: PreTrainedConfig, name: str) -> None:
    """Raise a UsageError for a configuration with -2 layers, a dropout of 3 or the like, with which transformers runs.

    >>> from transformers import GPT2Config
    >>> check_numbers(GPT2Config(n_layer=-2), "runs/demo: config.json")
    Traceback (most recent call last):
    lm_trials.console.UsageError: runs/demo: config.json has n_layer -2, which must be at least 1; restore it
    """
    values = config.to_dict()
    for common_name in (*COUNTS, "vocab_size"):
        own = config.attribute_map.get(common_name, common_name)
        value = values.get(own)
        if isinstance(value, (int, float)) and value < 1:
            raise UsageError(f"{name} has {own} {value}, which must be at least 1; restore it")
    for own, value in values.items():
        if "drop" in own and isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise UsageError(f"{name} has {own} {value}, which must be from 0 to 1; restore it")
        if own.endswith(("_eps", "_epsilon")) and isinstance(value, (int, float)) and not value > 0:
            raise UsageError(f"{name} has {own} {value}, which must be greater than 0; restore it")


def check_shape(base: PreTrainedConfig, values: Mapping[str, Any]) -> None:
    """Check that counts are at least 1 and widths divide.

    Args:
        base: the configuration before the overrides.
        values: the overrides, with the base's own field names.

    Raises:
        UsageError: naming the values that would work.
    """

    def get(common_name: str) -> tuple[str, Any]:
        own = base.attribute_map.get(common_name, common_name)
        return own, values.get(own, getattr(base, own, None))

    for common_name in COUNTS:
        own, value = get(common_name)
        if isinstance(value, int) and value < 1:
            raise UsageError(f"--config_overrides {own}={value} must be at least 1")
    width_name, width = get("hidden_size")
    heads_name, heads = get("num_attention_heads")
    kv_name, kv_heads = get("num_key_value_heads")
    _, head_dim = get("head_dim")
    if width is None or heads is None:
        return  # a model type without these fields
    quotients = [(heads_name, heads, kv_name, kv_heads)] if kv_heads is not None else []
    if head_dim is None:
        quotients.insert(0, (width_name, width, heads_name, heads))
    for name, number, by_name, by in quotients:
        if number % by:
            raise UsageError(
                f"--config_overrides: {name} {number} is not divisible by {by_name} {by}; "
                f"{by_name} may be {_listed(divisors(number))}"
            )
    if not hasattr(base, "rope_parameters"):
        return
    rotary = (base.rope_parameters or {}).get("partial_rotary_factor", 1)  # share of a head; GPT-NeoX: a quarter

    def fits(size: int) -> bool:
        pairs = -(-int(size * rotary) // 2)
        return 0 < 2 * pairs <= size

    size = head_dim or width // heads
    if not fits(size):
        even = [n for n in divisors(width) if fits(width // n)]
        choice = f"{heads_name} may be {_listed(even)}" if even else f"make {width_name} even"
        raise UsageError(
            f"--config_overrides: {width_name} {width} / {heads_name} {heads} gives heads of {size} dimensions, and "
            f"rotary positions rotate pairs of dimensions; {choice}"
        )


def divisors(number: int) -> list[int]:
    """All divisors, smallest first.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
