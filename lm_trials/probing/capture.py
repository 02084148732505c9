"""Capture: what a model computes inside, read by hooks while it runs as always.

    with Capture(model, ["hidden", "values"]) as capture:
        model(input_ids=input_ids_BT, attention_mask=attention_mask_BT)
    capture.activations.of("hidden", 3)  # (N, D): the tokens of all texts, padding left out

Nothing is converted, so a model is read as it is: any decoder, in float32 or 8 bits, with a LoRA adapter unmerged.
transformers' own `output_hidden_states` gives the last layer only after the final norm, on another scale than the
others; `output_attentions` is empty without a word where the attention is not eager; both leave hooks behind.

Shape suffixes: B = texts, T = tokens of the longest, N = tokens kept of all texts, D = width, H = heads, K = key/value
heads, E = width of a head.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lm_trials.console import UsageError
from lm_trials.probing.anatomy import Anatomy, anatomy_of, check_sites

SITES = {
    "hidden": "hidden states, (N, D): layer 0 the embeddings, layer h what block h-1 leaves, before the final norm",
    "normed": "the last hidden states after the final norm, (N, D), what the output head reads; layer L",
    "keys": "keys of each block as the cache has them, positions included, (N, K, E)",
    "values": "values of each block as the cache has them, (N, K, E)",
    "attention": "attention weights of each block, a list of (H, kept, T) for each text; rows are the kept tokens",
    "heads": "what the heads of each block read out, side by side, before the output projection, (N, H * E)",
    "attention_output": "what each block's attention adds to the hidden states, (N, D)",
    "mlp": "what each block's MLP adds to the hidden states, (N, D)",
}
HOOKED, EAGER = 1e-4, 1e-3
"""How far, in nats, log-probabilities may move by hooks alone, and by eager attention in float32."""
Sites = Sequence[str] | Mapping[str, Sequence[int] | None]
Positions = int | Sequence[Sequence[int]] | None
Site = tuple[str, int]


@dataclass(frozen=True)
class Activations:
    """What one forward pass computed at the kept tokens, in float32 on the CPU.

    Attributes:
        values: by (site, layer), what `SITES` says.
        text_N: which text of the batch each kept token is of.
        position_N: its position in that text, padding not counted.
        lengths_B: tokens of each text.
        document_B: which text of the whole data set each is, where the batch is one of many.
    """

    values: dict[Site, Any]
    text_N: torch.Tensor
    position_N: torch.Tensor
    lengths_B: torch.Tensor
    document_B: torch.Tensor

    def of(self, site: str, layer: int) -> Any:
        """Return one site of one layer.

        Raises:
            KeyError: naming what there is.
        """
        if (site, layer) not in self.values:
            there = ", ".join(f"{name} {number}" for name, number in self.values)
            raise KeyError(f"{site} {layer} was not captured; there are {there}")
        return self.values[site, layer]

    def layers(self, site: str) -> list[int]:
        """Return the layers of a site."""
        return [layer for name, layer in self.values if name == site]

    def means(self, site: str, layer: int, last: int | None = None) -> torch.Tensor:
        """Return the mean over the kept tokens of each text, or over the last ones of them, -> (B, D)."""
        values_ND = self.of(site, layer)
        text_N = self.text_N
        if last is not None:
            kept_N = self.position_N >= (self.lengths_B[text_N] - last)
            values_ND, text_N = values_ND[kept_N], text_N[kept_N]
        sums_BD = torch.zeros(len(self.lengths_B), *values_ND.shape[1:]).index_add_(0, text_N, values_ND)
        counts_B = torch.bincount(text_N, minlength=len(self.lengths_B))
        return sums_BD / counts_B.reshape(-1, *[1] * (values_ND.dim() - 1))


class Capture(AbstractContextManager):
    """Reads a model's inside at chosen sites, layers and tokens while it runs; leaves no hook behind.

    Args:
        model: a causal language model, a PEFT adapter on one, quantized or not.
        sites: names of `SITES`, or a mapping of names to layers: hidden-state layers 0 to L for `hidden`, blocks 0 to
            L-1 for the others, negative ones counted from the end, None for all.
        positions: which tokens are kept: None for all, n for the last n of each text, or for each text of the batch
            the positions in it.  It may be set anew before each forward pass.  Padding is never kept.
        name: what errors call the model.

    Only whole texts are captured: a forward pass that goes on from `past_key_values` is refused.  With `attention`
    the model runs with eager attention inside the `with`, which may change the last bits of its logits.  It may be
    entered again after it was left; models with learned positions read a text that is padded on the left as another
    one unless they are given `position_ids`, read or not.

    Raises:
        UsageError: for a site, layer or position that there is not.
        RuntimeError: on leaving, if the model did not run inside the `with`; on entering twice.
    """

    def __init__(self, model: Any, sites: Sites = ("hidden",), positions: Positions = None, name: str = "") -> None:
        self.anatomy = anatomy_of(model, name)
        self.layers = _layers_of(self.anatomy, sites)
        self.positions = positions
        self._activations: Activations | None = None
        self._handles: list[Any] = []
        self._implementation = ""
        # Of the forward pass that is running: which rows of the flattened batch are kept, and what was found there.
        self._kept_N = torch.zeros(0, dtype=torch.long)
        self._mask_BT = torch.zeros(0, 0, dtype=torch.bool)
        self._found: dict[Site, Any] = {}

    @property
    def activations(self) -> Activations:
        """What the last forward pass computed.

        Raises:
            RuntimeError: before the first.
        """
        if self._activations is None:
            raise RuntimeError("nothing was captured yet; run the model inside the `with`")
        return self._activations

    def __enter__(self) -> Capture:
        if self._handles:
            raise RuntimeError("this capture is running already; leave its `with` first, or make another")
        model, self._activations = self.anatomy.model, None
        try:
            self._handles = [
                model.register_forward_pre_hook(self._begin, with_kwargs=True),
                model.register_forward_hook(self._end),
            ]
            for site, layers in self.layers.items():
                for layer in layers:
                    self._listen(site, layer)
            if "attention" in self.layers:
                self._implementation = model.config._attn_implementation
                model.set_attn_implementation("eager")
        except BaseException:  # a part that this architecture lacks: then nobody leaves the `with`
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave()
        if kind is None and self._activations is None:
            raise RuntimeError(f"captured 0 of {len(self.layers)} sites; did the model run inside the `with`?")

    def _leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._found = [], {}
        if self._implementation:
            self.anatomy.model.set_attn_implementation(self._implementation)
            self._implementation = ""

    def _listen(self, site: str, layer: int) -> None:
        """Hang a hook where a site is; keys and values are read from the cache at the end."""
        parts = self.anatomy
        if site == "hidden" and layer == 0:
            self._before(parts.blocks[0], site, layer)
        elif site == "hidden":
            self._after(parts.blocks[layer - 1], site, layer)
        elif site == "normed":
            self._after(parts.final_norm, site, layer)
        elif site == "mlp":
            self._after(parts.added(layer, parts.mlp(layer)), site, layer)
        elif site == "attention_output":
            self._after(parts.added(layer, parts.attention(layer)), site, layer)
        elif site == "heads":
            self._before(parts.projection(layer), site, layer)
        elif site == "attention":
            self._handles.append(parts.attention(layer).register_forward_hook(self._keep_weights(layer)))

    def _before(self, module: nn.Module, site: str, layer: int) -> None:
        def hook(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(site, layer, inputs[0] if inputs else kwargs["hidden_states"])

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, site: str, layer: int) -> None:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._keep(site, layer, output[0] if isinstance(output, tuple) else output)

        self._handles.append(module.register_forward_hook(hook))

    def _keep(self, site: str, layer: int, values_BTD: torch.Tensor) -> None:
        # OPT's MLP sees the tokens of all texts in one row.
        rows = values_BTD if values_BTD.dim() == 2 else values_BTD.flatten(0, 1)
        kept = rows.detach().index_select(0, self._kept_N.to(rows.device))
        self._found[site, layer] = kept.to("cpu", torch.float32)

    def _keep_weights(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, tuple) or len(output) < 2 or output[1] is None:
                kind = type(self.anatomy.model).__name__
                raise UsageError(f"{self.anatomy.name}: the attention of a {kind} gives no weights; drop that site")
            mask_BT, width = self._mask_BT, self._mask_BT.shape[1]
            row_N, column_N = self._kept_N // width, self._kept_N % width
            weights_BHTT = output[1].detach().to("cpu", torch.float32)
            self._found["attention", layer] = [
                weights_HTT[:, column_N[row_N == text]][:, :, mask_BT[text]]
                for text, weights_HTT in enumerate(weights_BHTT)
            ]

        return hook

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before a forward pass: find which tokens are kept, and have a cache made only where it is read."""
        self._activations, self._found = None, {}
        # By name, however they were given: the attention mask is GPT-2's third argument and Llama's second.
        names = list(inspect.signature(module.forward).parameters)
        given = dict(zip(names, inputs, strict=False)) | kwargs
        if given.get("past_key_values") is not None:
            raise UsageError("a capture reads whole texts; run the model without past_key_values inside the `with`")
        ids_BT, mask_BT = given.get("input_ids"), given.get("attention_mask")
        if ids_BT is None:
            raise UsageError("a capture reads texts; give the model input_ids inside the `with`")
        if mask_BT is not None and (not isinstance(mask_BT, torch.Tensor) or mask_BT.shape != ids_BT.shape):
            raise UsageError("a capture needs to see the padding; give an attention_mask of the shape of input_ids")
        self._mask_BT = (torch.ones_like(ids_BT) if mask_BT is None else mask_BT).bool().cpu()
        self._kept_N = kept_tokens(self._mask_BT, self.positions)
        given["use_cache"] = bool({"keys", "values"} & self.layers.keys())
        if given["use_cache"] and (cache := _cache_without_windows(module.config)):
            given["past_key_values"] = cache
        return (), given

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for site in ("keys", "values"):
            for layer in self.layers.get(site, ()):
                cached_BKTE = getattr(_cache_of(output, self.anatomy.name).layers[layer], site)
                if cached_BKTE.shape[2] != self._mask_BT.shape[1]:
                    raise UsageError(f"{self.anatomy.name} keeps a window of its {site} only; give shorter texts")
                self._keep(site, layer, cached_BKTE.transpose(1, 2))
        positions_BT = self._mask_BT.long().cumsum(dim=1) - 1
        self._activations = Activations(
            {(site, layer): self._found[site, layer] for site, layers in self.layers.items() for layer in layers},
            text_N=self._kept_N // self._mask_BT.shape[1],
            position_N=positions_BT.flatten()[self._kept_N],
            lengths_B=self._mask_BT.sum(dim=1),
            document_B=torch.arange(len(self._mask_BT)),
        )


def _cache_without_windows(config: PretrainedConfig) -> DynamicCache | None:
    """Return a cache that keeps all tokens of sliding-window layers; None where the model's own does."""
    cache = DynamicCache(config=config)
    if not any(type(layer) is DynamicSlidingWindowLayer for layer in cache.layers):
        return None
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    return cache


def _cache_of(output: Any, name: str) -> Any:
    """Return the cache that a forward pass made."""
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise UsageError(f"{name} made no cache of keys and values; turn gradient checkpointing off and return_dict on")
    return cache


def _layers_of(anatomy: Anatomy, sites: Sites) -> dict[str, list[int]]:
    """Return the layers of each site, checked."""
    wanted = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites)
    check_sites(list(wanted), list(SITES))
    layers: dict[str, list[int]] = {}
    for site, asked in wanted.items():
        if site == "normed":
            layers[site] = [anatomy.num_blocks]
        elif site == "hidden":
            layers[site] = anatomy.check_hidden(range(anatomy.num_blocks + 1) if asked is None else asked)
        else:
            layers[site] = anatomy.check_blocks(range(anatomy.num_blocks) if asked is None else asked)
    return layers


def kept_tokens(mask_BT: torch.Tensor, positions: Positions = None) -> torch.Tensor:
    """Return the places of the kept tokens in the flattened batch, text by text; padding may stand on either side.

    Raises:
        UsageError: for a text without tokens, or a position that its text does not have.

    >>> mask_BT = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]).bool()
    >>> [kept_tokens(mask_BT, positions).tolist() for positions in (None, 1, [[0], [1, 0]])]
    [[0, 1, 2, 6, 7], [2, 7], [0, 7, 6]]
    """
    lengths_B = mask_BT.sum(dim=1).tolist()
    if not lengths_B or not min(lengths_B):
        raise UsageError("a text has no token; leave empty texts out")
    if positions is not None and not isinstance(positions, int) and len(positions) != len(lengths_B):
        raise UsageError(f"positions for {len(positions)} texts and a batch of {len(lengths_B)}; give them for each")
    kept: list[torch.Tensor] = []
    for text, length in enumerate(lengths_B):
        places = mask_BT[text].nonzero()[:, 0] + text * mask_BT.shape[1]
        if positions is None:
            kept.append(places)
        elif isinstance(positions, int):
            if positions < 1:
                raise UsageError(f"the last {positions} tokens are none; give at least 1")
            kept.append(places[-positions:])
        else:
            asked = np.asarray(positions[text], dtype=np.int64)
            if wrong := [number for number in asked.tolist() if not -length <= number < length]:
                raise UsageError(f"position {wrong[0]} of a text of {length} tokens; give 0 to {length - 1}")
            kept.append(places[torch.from_numpy(asked)])
    return torch.cat(kept)


@dataclass(frozen=True)
class CaptureCheck:
    """How far capturing moved a model's log-probabilities on a text: `largest` in nats, over `tokens` tokens."""

    largest: float
    tokens: int
    sites: tuple[str, ...]
    allowed: float

    def __str__(self) -> str:
        moved = "not at all" if self.largest == 0 else f"by at most {self.largest:.1e} nats"
        return f"capturing {', '.join(self.sites)} moves log-probabilities {moved} ({self.tokens} tokens)"


@torch.no_grad()
def check_capture(model: Any, ids_T: Sequence[int], sites: Sites, name: str = "") -> CaptureCheck:
    """Check that a model says the same of a text while it is read: the guard against a probe of another model.

    Hooks and a cache change nothing, so next to nothing is allowed.  With `attention` that is held against the same
    eager attention; eager attention itself rounds otherwise than another kind, which is told, and in 8-bit or 16-bit
    arithmetic may come to any size where probabilities are small.

    Raises:
        RuntimeError: where log-probabilities differ by more than rounding explains.
        UsageError: for `mlp` or `attention_output` of an architecture that adds something else, as one with a norm
            behind each part does.
    """
    anatomy = anatomy_of(model, name)
    ids_BT = torch.as_tensor([list(map(int, ids_T))], device=anatomy.model.device)
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    plain = model(**inputs, use_cache=False).logits
    with Capture(model, sites, name=name):
        captured = model(**inputs).logits
    checks = [CaptureCheck(_apart(plain, captured), ids_BT.shape[1], tuple(sites), HOOKED)]
    if "attention" in sites:
        before = anatomy.model.config._attn_implementation
        anatomy.model.set_attn_implementation("eager")
        try:
            eager = model(**inputs, use_cache=False).logits
        finally:
            anatomy.model.set_attn_implementation(before)
        exact = plain.dtype == torch.float32 and not getattr(anatomy.model, "is_quantized", False)
        told = replace(checks[0], allowed=EAGER if exact else math.inf)
        checks = [told, replace(told, largest=_apart(eager, captured), allowed=HOOKED)]
    for check in checks:
        if not check.largest <= check.allowed:
            raise RuntimeError(
                f"{anatomy.name}: {check}, more than rounding explains ({check.allowed:g}); "
                "what would be read is not this model"
            )
    if {"mlp", "attention_output"} & set(sites):
        _check_added(model, inputs, anatomy)
    return checks[0]


def _apart(logits: torch.Tensor, others: torch.Tensor) -> float:
    return float((logits.float().log_softmax(-1) - others.float().log_softmax(-1)).abs().max())


def _check_added(model: Any, inputs: Mapping[str, torch.Tensor], anatomy: Anatomy) -> None:
    """Check that what attention and MLP give is what a block adds to the hidden states."""
    with Capture(model, ["hidden", "attention_output", "mlp"], name=anatomy.name) as capture:
        model(**inputs)
    found = capture.activations
    rounding = 4 * torch.finfo(anatomy.model.dtype).eps
    for block in range(anatomy.num_blocks):
        before_ND, after_ND = found.of("hidden", block), found.of("hidden", block + 1)
        added_ND = found.of("attention_output", block) + found.of("mlp", block)
        allowed = 0.05 * added_ND.abs().max() + rounding * after_ND.abs().max()
        if not (after_ND - before_ND - added_ND).abs().max() <= allowed:
            kind = type(anatomy.model).__name__
            raise UsageError(
                f"{anatomy.name}: what the attention and MLP of a {kind} give is not what block {block} adds to the "
                "hidden states; drop the sites mlp and attention_output"
            )
