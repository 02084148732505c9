"""Anatomy: where the parts of a decoder are, whatever its architecture calls them.

Layers are counted in two ways, as the field does.  *Blocks* are 0 to L-1.  *Hidden states* are 0 to L: 0 is what the
first block reads (the embeddings), and h is what block h-1 leaves, before the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lm_trials.console import UsageError, did_you_mean

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
MLPS = ("mlp", "fc2", "ffn")
# Norms behind attention and MLP, as in OLMo 2 and Gemma 3; Llama's `post_attention_layernorm` stands before its MLP.
NORMS_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model; of a LoRA adapter, the layers with the adapter in them.

    Attributes:
        model: the causal language model itself, inside the adapter if there is one.
        blocks: its L decoder blocks.
        final_norm: what stands between the last block and the output head.
        name: what errors call it.
    """

    model: PreTrainedModel
    blocks: Sequence[nn.Module]
    final_norm: nn.Module
    name: str

    @property
    def num_blocks(self) -> int:
        """L."""
        return len(self.blocks)

    @cached_property
    def num_heads(self) -> int:
        """Query heads of a block."""
        return int(self.model.config.get_text_config().num_attention_heads)

    @cached_property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def head(self) -> nn.Module:
        """The output head: from normed hidden states to logits."""
        return self.model.get_output_embeddings()

    def attention(self, block: int) -> nn.Module:
        """Return a block's attention."""
        return self._part(self.blocks[block], ATTENTIONS, "attention")

    def mlp(self, block: int) -> nn.Module:
        """Return a block's MLP; of OPT, which has none by itself, its second layer."""
        return self._part(self.blocks[block], MLPS, "MLP")

    def added(self, block: int, part: nn.Module) -> nn.Module:
        """Return the module whose output a block adds for its attention or MLP: that part or the norm behind it."""
        norms = [getattr(self.blocks[block], name, None) for name in NORMS_BEHIND]
        if None in norms:
            return part
        return norms[part is not self.attention(block)]

    def projection(self, block: int) -> nn.Module:
        """Return what maps a block's heads, side by side, back to the model's width."""
        return self._part(self.attention(block), PROJECTIONS, "output projection")

    def _part(self, parent: nn.Module, names: Sequence[str], what: str) -> nn.Module:
        for name in names:
            if isinstance(part := getattr(parent, name, None), nn.Module):
                return part
        kind = type(self.model).__name__
        raise UsageError(f"{self.name}: no {what} is known in a {kind}; name a GPT-2, Llama or GPT-NeoX model")

    def check_hidden(self, layers: Sequence[int]) -> list[int]:
        """Return hidden-state layers, negative ones counted from the end, each from 0 to L.

        Raises:
            UsageError: for one that the model does not have.
        """
        return check_hidden(layers, self.num_blocks, self.name)

    def check_blocks(self, blocks: Sequence[int]) -> list[int]:
        """Return blocks, negative ones counted from the end, each from 0 to L-1.

        Raises:
            UsageError: for one that the model does not have.
        """
        return check_blocks(blocks, self.num_blocks, self.name)

    def check_heads(self, heads: Sequence[int]) -> list[int]:
        """Return heads, negative ones counted from the end.

        Raises:
            UsageError: for one that the model does not have.
        """
        return check_heads(heads, self.num_heads, self.name)


def check_hidden(layers: Sequence[int], depth: int, name: str, called: str = "layer") -> list[int]:
    """Return hidden-state layers of a model of L blocks, negative ones counted from the end, each from 0 to L.

    Args:
        called: what an error calls them: a flag, where one named them.

    Raises:
        UsageError: for one that the model does not have.

    >>> check_hidden([9], 3, "a model", "--layers")
    Traceback (most recent call last):
    lm_trials.console.UsageError: --layers 9: a model has hidden states 0 to 3 (the embeddings are 0); give one of them
    """
    return _checked(layers, depth + 1, called, f"{name} has hidden states", "the embeddings are 0")


def check_blocks(blocks: Sequence[int], depth: int, name: str, called: str = "layer") -> list[int]:
    """Return blocks, as `check_hidden`, each from 0 to L-1."""
    return _checked(blocks, depth, called, f"{name} has blocks", "the first is 0")


def check_heads(heads: Sequence[int], count: int, name: str, called: str = "head") -> list[int]:
    """Return heads, as `check_hidden`, each from 0 to H-1."""
    return _checked(heads, count, called, f"{name} has heads", "the first is 0")


def _checked(numbers: Sequence[int], count: int, called: str, whose: str, first: str) -> list[int]:
    for number in numbers:
        if not -count <= number < count:
            raise UsageError(f"{called} {number}: {whose} 0 to {count - 1} ({first}); give one of them")
    return [number % count for number in numbers]


def anatomy_of(model: Any, name: str = "") -> Anatomy:
    """Find the parts of a model.

    Raises:
        UsageError: for an architecture whose decoder blocks or final norm are not found.

    >>> from lm_trials.models.shapes import build_config, build_model
    >>> config = build_config("llama", None, "hidden_size=8,num_hidden_layers=2,num_attention_heads=1,"
    ...     "intermediate_size=16", vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> anatomy = anatomy_of(build_model(config, seed=0), "a tiny model")
    >>> anatomy.num_blocks, anatomy.width, anatomy.check_hidden([0, -1])
    (2, 8, [0, 2])
    >>> anatomy.check_blocks([2])
    Traceback (most recent call last):
    lm_trials.console.UsageError: layer 2: a tiny model has blocks 0 to 1 (the first is 0); give one of them
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = name or type(whole).__name__
    body = whole.base_model
    layers = getattr(whole.config.get_text_config(), "num_hidden_layers", None)
    places = [body, *body.children()]  # OPT's lie one deeper, in its decoder
    for place in places:
        lists = [part for part in place.children() if isinstance(part, nn.ModuleList) and len(part) == layers]
        norms = [part for norm in FINAL_NORMS if isinstance(part := getattr(place, norm, None), nn.Module)]
        if len(lists) == 1 and norms:
            return Anatomy(whole, list(lists[0]), norms[0], name)
    raise UsageError(
        f"{name}: the blocks of a {type(whole).__name__} are not where a decoder has them; "
        "name a GPT-2, Llama or GPT-NeoX model"
    )


def check_sites(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a site that nothing is captured at.

    Raises:
        UsageError: naming the nearest.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"site {name}: {did_you_mean(name, known)}")
