"""Anatomy: the parts of a decoder, whatever its architecture calls them.

Blocks are counted 0 to L-1.  Hidden states are counted 0 to L: 0 is the input of the first block (the embeddings), and
h is the output of block h-1, before the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lm_trials.console import UsageError, did_you_mean
from lm_trials.models.shapes import text_config

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
MLPS = ("mlp", "fc2", "ffn")
# Norms after attention and after the MLP (OLMo 2, Gemma 3).  Llama has the first name alone, before its MLP.
NORMS_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model; those of a PEFT model include the adapter.

    Attributes:
        model: the causal language model, inside the adapter if there is one.
        blocks: its L decoder blocks.
        final_norm: the norm between the last block and the output head.
        name: the model's name in error messages.
    """

    model: PreTrainedModel
    blocks: Sequence[nn.Module]
    final_norm: nn.Module
    name: str

    @property
    def num_blocks(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def num_heads(self) -> int:
        """Query heads of a block; 0 without attention."""
        return int(getattr(text_config(self.model), "num_attention_heads", 0))

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(text_config(self.model).hidden_size)

    @property
    def head(self) -> nn.Module:
        """The output head: from normed hidden states to logits."""
        return self.model.get_output_embeddings()

    def attention(self, block: int) -> nn.Module:
        """Return a block's attention."""
        return self._part(self.blocks[block], ATTENTIONS, "attention")

    def mlp(self, block: int) -> nn.Module:
        """Return a block's MLP; in OPT, which has no MLP module, its second linear layer."""
        return self._part(self.blocks[block], MLPS, "MLP")

    def projection(self, block: int) -> nn.Module:
        """Return a block's attention output projection, from the concatenated heads to the model's width."""
        return self._part(self.attention(block), PROJECTIONS, "output projection")

    def module_of(self, site: str, layer: int) -> tuple[nn.Module, bool]:
        """Return the module whose input (True) or output (False) is a site of `capture.SITES` or the logits."""
        if site == "hidden":
            return (self.blocks[0], True) if layer == 0 else (self.blocks[layer - 1], False)
        if site in ("normed", "logits"):
            return (self.final_norm if site == "normed" else self.head), False
        if site == "heads":
            return self.projection(layer), True
        part = self.mlp(layer) if site == "mlp" else self.attention(layer)
        # A block with norms after its parts adds the output of the norm, not of the part.
        norms = [norm for name in NORMS_BEHIND if (norm := getattr(self.blocks[layer], name, None)) is not None]
        if site == "attention" or len(norms) < len(NORMS_BEHIND):
            return part, False
        return norms[site == "mlp"], False

    def _part(self, parent: nn.Module, names: Sequence[str], what: str) -> nn.Module:
        for name in names:
            if isinstance(part := getattr(parent, name, None), nn.Module):
                return part
        kind = type(self.model).__name__
        raise UsageError(f"{self.name}: a {kind} has no known {what} module; use a GPT-2, Llama or GPT-NeoX model")

    def check_hidden(self, layers: Sequence[int]) -> list[int]:
        """Return hidden-state layers as the function `check_hidden` does."""
        return check_hidden(layers, self.num_blocks, self.name)

    def check_blocks(self, blocks: Sequence[int]) -> list[int]:
        """Return blocks as the function `check_blocks` does."""
        return check_blocks(blocks, self.num_blocks, self.name)

    def check_heads(self, heads: Sequence[int]) -> list[int]:
        """Return heads as the function `check_heads` does."""
        return check_heads(heads, self.num_heads, self.name)


def check_hidden(layers: Sequence[int], depth: int, name: str, called: str = "layer") -> list[int]:
    """Return hidden-state layers of a model of `depth` blocks, negative ones counted from the end, each from 0 to L.

    Args:
        called: name of the flag in an error message.

    Raises:
        UsageError: for a layer that the model does not have.

    >>> check_hidden([9], 3, "a model", "--layers")
    Traceback (most recent call last):
    lm_trials.console.UsageError: --layers 9: a model has hidden states 0 to 3 (the embeddings are 0); give one of them
    """
    return _checked(layers, depth + 1, called, f"{name} has hidden states", "the embeddings are 0")


def check_blocks(blocks: Sequence[int], depth: int, name: str, called: str = "layer") -> list[int]:
    """Return blocks like `check_hidden`, each from 0 to L-1."""
    return _checked(blocks, depth, called, f"{name} has blocks", "the first is 0")


def check_heads(heads: Sequence[int], count: int, name: str, called: str = "head") -> list[int]:
    """Return heads like `check_hidden`, each from 0 to `count` - 1."""
    return _checked(heads, count, called, f"{name} has heads", "the first is 0")


def _checked(numbers: Sequence[int], count: int, called: str, whose: str, first: str) -> list[int]:
    for number in numbers:
        if not count:
            raise UsageError(f"{called} {number}: {whose.partition(' has ')[0]} has none; give another")
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
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = name or type(whole).__name__
    if getattr(model, "peft_type", None) == "ADALORA":
        raise UsageError(
            f"{name} is an AdaLoRA adapter, in which PEFT calls the model past its hooks; name another model"
        )
    body = whole.base_model
    layers = getattr(text_config(whole), "num_hidden_layers", None)
    for place in (body, *body.children()):  # OPT's blocks are one level deeper, in its decoder
        lists = [part for part in place.children() if isinstance(part, nn.ModuleList) and len(part) == layers]
        norms = [part for norm in FINAL_NORMS if isinstance(part := getattr(place, norm, None), nn.Module)]
        if len(lists) == 1 and norms:
            return Anatomy(whole, list(lists[0]), norms[0], name)
    raise UsageError(
        f"{name}: no decoder blocks and final norm found in a {type(whole).__name__}; "
        "use a GPT-2, Llama or GPT-NeoX model"
    )


def check_sites(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise a UsageError for a name that is not a site, with the closest known one."""
    for name in names:
        if name not in known:
            raise UsageError(f"site {name}: {did_you_mean(name, known)}")
