"""Named model shapes, without heavy imports because `--help` lists their names.

The Llama shapes follow llama2.c: its feed-forward width, tied embeddings, no biases, RMSNorm with 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Preset:
    """A shape, with the vocabulary size and the positions that its parameter count is for."""

    name: str
    model_type: str
    source: str
    vocab_size: int
    positions: int
    num_parameters: int  # tied embeddings counted once
    overrides: Mapping[str, int | float | bool]  # fields of the model type's configuration class


def feed_forward_size(hidden_size: int, multiple_of: int = 32) -> int:
    """Return the width of a gated feed-forward layer by llama2.c's rule.

    A gated layer has three matrices instead of two, so 4 times the hidden size becomes 8/3, rounded up to a
    multiple that suits matrix kernels.

    >>> [feed_forward_size(64, 4), feed_forward_size(288), feed_forward_size(1024, 64)]
    [172, 768, 2752]
    """
    # llama2.c's formula, so that published checkpoints load.
    width = int(2 * 4 * hidden_size / 3)
    return multiple_of * -(-width // multiple_of)


def _llama(
    name: str, source: str, shape: tuple[int, int, int, int, int], vocab_size: int, positions: int, num_parameters: int
) -> Preset:
    hidden_size, layers, heads, kv_heads, multiple_of = shape
    overrides = {
        "hidden_size": hidden_size,
        "intermediate_size": feed_forward_size(hidden_size, multiple_of),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    return Preset(name, "llama", source, vocab_size, positions, num_parameters, MappingProxyType(overrides))


def _gpt2(name: str, source: str, shape: tuple[int, int, int], num_parameters: int) -> Preset:
    n_embd, n_layer, n_head = shape
    overrides = {"n_embd": n_embd, "n_layer": n_layer, "n_head": n_head}
    return Preset(name, "gpt2", source, 50257, 1024, num_parameters, MappingProxyType(overrides))


# Llama: (hidden size, layers, heads, key-value heads, multiple_of), vocabulary, positions, parameters.
# The demo's heads have 32 dimensions because the CPU's attention kernel is slowest at small ones.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _llama("demo", "this suite", (128, 4, 4, 4, 32), 1024, 256, 935_040),
        _llama("stories260K", "llama2.c", (64, 5, 8, 4, 4), 512, 512, 260_032),
        _llama("stories15M", "llama2.c", (288, 6, 6, 6, 32), 32000, 256, 15_191_712),
        _llama("stories42M", "llama2.c", (512, 8, 8, 8, 32), 32000, 1024, 41_689_600),
        _llama("stories110M", "llama2.c", (768, 12, 12, 12, 64), 32000, 1024, 109_529_856),
        _llama("base8M", "tinystories-wrappers", (288, 6, 6, 6, 32), 8192, 256, 8_335_008),
        _llama("base30M", "tinystories-wrappers", (512, 8, 8, 8, 64), 8192, 256, 29_893_120),
        _llama("base91M", "tinystories-wrappers", (768, 12, 12, 12, 64), 8192, 256, 91_245_312),
        _llama("base210M", "tinystories-wrappers", (1024, 16, 16, 16, 64), 8192, 1024, 210_797_568),
        _gpt2("gpt2-3M", "beyond-scale, its script's default", (64, 3, 2), 3_432_064),
        _gpt2("gpt2-51M", "beyond-scale, its experiment", (512, 8, 8), 51_475_968),
    )
}

# The preset of a model type without --config_name and --config_overrides.
DEFAULT_PRESETS: dict[str, str] = {"gpt2": "gpt2-3M", "llama": "demo"}

# Default shape of every other model type (the demo's), in the common names of `attribute_map`.
SMALL_SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
# As base8M's and the demo's.
SMALL_POSITIONS = 256

# Fields for a sliding window, in tokens.
WINDOWS = ("sliding_window", "window_size")

# Fields that scale with the width, the number of heads or the size of a head.
FOLLOWING: dict[str, tuple[str, ...]] = {
    "hidden_size": (
        *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim"),
        *("ffn_hidden_size", "word_embed_proj_dim"),
    ),
    "num_attention_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("query_pre_attn_scalar", "rotary_dim"),
}
