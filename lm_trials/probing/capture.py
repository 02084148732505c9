"""Capture: a model's activations, read by hooks during an ordinary forward pass.

    with Capture(model, ["hidden", "values"]) as capture:
        model(input_ids=input_ids_BT, attention_mask=attention_mask_BT)
    capture.activations.of("hidden", 3)  # (N, D): the tokens of all texts, without padding

The model is not converted: any decoder, in float32 or 8 bits, with an unmerged LoRA adapter.  transformers' own
`output_hidden_states` returns the last layer only after the final norm, on another scale than the others;
`output_attentions` is silently empty unless the attention is eager; both leave hooks on the model.

Shape suffixes: B = texts, T = tokens of the longest, N = tokens kept of all texts, D = width, H = heads, K = key/value
heads, E = width of a head.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lm_trials.console import UsageError
from lm_trials.models.quantization import is_exact
from lm_trials.probing.anatomy import Anatomy, anatomy_of, check_sites

SITES = {
    "hidden": "hidden states before the final norm, (N, D): layer 0 the embeddings, layer h the output of block h-1",
    "normed": "the last hidden states after the final norm, (N, D), the input of the output head; layer L",
    "keys": "keys of each block as in the cache, positions included, (N, K, E)",
    "values": "values of each block as in the cache, (N, K, E)",
    "attention": "attention weights of each block, a list of (H, kept, T) for each text; rows are the kept tokens",
    "heads": "outputs of each block's heads before the output projection, concatenated, (N, H * E)",
    "attention_output": "what each block's attention adds to the hidden states, (N, D)",
    "mlp": "what each block's MLP adds to the hidden states, (N, D)",
}
# Nats at one token of a text. On a CPU, hooks usually change no bit; eager attention sums in another order than the
# fused kernel. The bounds were not tuned.
HOOKED, EAGER = 1e-4, 1e-3
"""Largest change of log-probabilities, in nats, allowed for hooks alone, and for eager attention in float32."""
Sites = Sequence[str] | Mapping[str, Sequence[int] | None]
Positions = int | Sequence[Sequence[int]] | None
Site = tuple[str, int]


@dataclass(frozen=True)
class Activations:
    """The activations of one forward pass at the kept tokens, in float32 on the CPU.

    Attributes:
        values: by (site, layer), with the shapes of `SITES`.
        text_N: index in the batch of each kept token's text.
        position_N: its position in that text, without padding.
        lengths_B: tokens of each text.
        document_B: index of each text in the whole data set, if the batch is one of many.
    """

    values: dict[Site, Any]
    text_N: torch.Tensor
    position_N: torch.Tensor
    lengths_B: torch.Tensor
    document_B: torch.Tensor

    def of(self, site: str, layer: int) -> Any:
        """Return one site of one layer; raise a KeyError that lists what was captured if it was not."""
        if (site, layer) not in self.values:
            there = ", ".join(f"{name} {number}" for name, number in self.values)
            raise KeyError(f"{site} {layer} was not captured; captured are {there}")
        return self.values[site, layer]

    def layers(self, site: str) -> list[int]:
        """Return the layers of a site."""
        return [layer for name, layer in self.values if name == site]

    def means(self, site: str, layer: int, last: int | None = None) -> torch.Tensor:
        """Return the mean over each text's kept tokens, or over those among its `last` tokens, -> (B, D)."""
        values_ND = self.of(site, layer)
        text_N = self.text_N
        if last is not None:
            kept_N = self.position_N >= (self.lengths_B[text_N] - last)
            values_ND, text_N = values_ND[kept_N], text_N[kept_N]
        sums_BD = torch.zeros(len(self.lengths_B), *values_ND.shape[1:]).index_add_(0, text_N, values_ND)
        counts_B = torch.bincount(text_N, minlength=len(self.lengths_B))
        return sums_BD / counts_B.reshape(-1, *[1] * (values_ND.dim() - 1))


class Capture(AbstractContextManager):
    """Reads activations at chosen sites, layers and tokens inside the `with`; removes its hooks afterwards.

    Args:
        model: a causal language model, possibly with a PEFT adapter, possibly quantized.
        sites: names of `SITES`, or a mapping of names to layers: hidden-state layers 0 to L for `hidden`, blocks 0 to
            L-1 for the others, negative ones counted from the end, None for all.
        positions: which tokens are kept: None for all, n for the last n of each text, or for each text of the batch
            the positions in it.  May be set before each forward pass.  Padding is never kept.
        name: the model's name in error messages.

    Only whole texts are captured: a forward pass with `past_key_values` raises an error.  With `attention` the model
    runs with eager attention inside the `with`, which may change the last bits of its logits.  A capture can be
    entered again.  As without a capture, models with learned positions need `position_ids` for left-padded texts.

    Raises:
        UsageError: for a site, layer or position that does not exist.
        RuntimeError: on exit, if the model did not run inside the `with`; on entering twice.
    """

    def __init__(self, model: Any, sites: Sites = ("hidden",), positions: Positions = None, name: str = "") -> None:
        self.anatomy = anatomy_of(model, name)
        self.layers = _layers_of(self.anatomy, sites)
        _check_cached(self.anatomy, self.layers)
        self.positions = positions
        self._activations: Activations | None = None
        self._handles: list[Any] = []
        self._implementation = ""
        # Of the current forward pass: the kept rows of the flattened batch, and their activations.
        self._kept_N = torch.zeros(0, dtype=torch.long)
        self._mask_BT = torch.zeros(0, 0, dtype=torch.bool)
        self._found: dict[Site, Any] = {}

    @property
    def activations(self) -> Activations:
        """The activations of the last forward pass; a RuntimeError before the first."""
        if self._activations is None:
            raise RuntimeError("nothing was captured yet; run the model inside the `with`")
        return self._activations

    def __enter__(self) -> Capture:
        if self._handles:
            raise RuntimeError("this capture is already active; leave its `with` first, or create another one")
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
        except BaseException:  # a part that this architecture lacks: `__exit__` is not called then
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
        """Register the hook of a site; keys and values are read from the cache at the end instead."""
        if site in ("keys", "values"):
            return

        def on_inputs(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(site, layer, inputs[0] if inputs else kwargs["hidden_states"])

        def on_output(module: nn.Module, inputs: Any, output: Any) -> None:
            if site == "attention":
                self._keep_weights(layer, output)
            else:
                self._keep(site, layer, output[0] if isinstance(output, tuple) else output)

        module, before = self.anatomy.module_of(site, layer)
        if before:
            self._handles.append(module.register_forward_pre_hook(on_inputs, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(on_output))

    def _keep(self, site: str, layer: int, values_BTD: torch.Tensor) -> None:
        # OPT's MLP gets the tokens of all texts flattened into one dimension.
        rows = values_BTD if values_BTD.dim() == 2 else values_BTD.flatten(0, 1)
        wanted = [(self._mask_BT.numel(),), tuple(self._mask_BT.shape)]
        dims = 2 if site in ("keys", "values") else 1
        if values_BTD.shape[:-dims] not in wanted:
            kind = type(self.anatomy.model).__name__  # the blocks of Gemma 3n and DeepSeek V4 have several streams
            raise UsageError(f"{self.anatomy.name}: {site} {layer} of a {kind} is not one vector for each token")
        kept = rows.detach().index_select(0, self._kept_N.to(rows.device))
        self._found[site, layer] = kept.to("cpu", torch.float32)

    def _keep_weights(self, layer: int, output: Any) -> None:
        size = self._mask_BT.shape[1]
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None or weights.shape[2:] != (size, size):  # linear attention returns its state
            kind = type(self.anatomy.model).__name__
            raise UsageError(
                f"{self.anatomy.name}: the attention of a {kind} returns no weights; drop the site attention"
            )
        mask_BT, width = self._mask_BT, self._mask_BT.shape[1]
        row_N, column_N = self._kept_N // width, self._kept_N % width
        self._found["attention", layer] = [
            weights_HTT[:, column_N[row_N == text]][:, :, mask_BT[text]]
            for text, weights_HTT in enumerate(weights.detach().to("cpu", torch.float32))
        ]

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before a forward pass: find the tokens to keep, and make a cache only if keys or values are read from it."""
        self._activations, self._found = None, {}
        # By name, because positions differ: the attention mask is GPT-2's third argument and Llama's second.
        names = list(inspect.signature(module.forward).parameters)
        given = dict(zip(names, inputs, strict=False)) | kwargs
        if given.get("past_key_values") is not None:
            raise UsageError(
                "past_key_values: a capture reads whole texts; run the model without one inside the `with`"
            )
        ids_BT, mask_BT = given.get("input_ids"), given.get("attention_mask")
        if ids_BT is None:
            raise UsageError("a capture needs input_ids; pass them to the model inside the `with`")
        if mask_BT is not None and (not isinstance(mask_BT, torch.Tensor) or mask_BT.shape != ids_BT.shape):
            raise UsageError("attention_mask: a capture needs the padding; pass a mask of the shape of input_ids")
        self._mask_BT = (torch.ones_like(ids_BT) if mask_BT is None else mask_BT).bool().cpu()
        self._kept_N = kept_tokens(self._mask_BT, self.positions)
        given["use_cache"] = bool({"keys", "values"} & self.layers.keys())
        if given["use_cache"] and (cache := _cache_without_windows(self.anatomy.model.config)):
            given["past_key_values"] = cache
        return (), given

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name, cache = self.anatomy.name, getattr(output, "past_key_values", None)
        for site in ("keys", "values"):
            for layer in self.layers.get(site, ()):
                if cache is None:
                    raise UsageError(
                        f"{name} returned no key-value cache; turn gradient checkpointing off and return_dict on"
                    )
                cached_BKTE = getattr(cache.layers[layer], site, None) if layer < len(cache.layers) else None
                if cached_BKTE is None:
                    raise UsageError(f"{name}: block {layer} of a {type(module).__name__} has no {site} in its cache")
                if cached_BKTE.shape[2] != self._mask_BT.shape[1]:
                    raise UsageError(f"{name} caches only a window of its {site}; use shorter texts")
                self._keep(site, layer, cached_BKTE.transpose(1, 2))
        positions_BT = self._mask_BT.long().cumsum(dim=1) - 1
        self._activations = Activations(
            {(site, layer): self._found[site, layer] for site, layers in self.layers.items() for layer in layers},
            text_N=self._kept_N // self._mask_BT.shape[1],
            position_N=positions_BT.flatten()[self._kept_N],
            lengths_B=self._mask_BT.sum(dim=1),
            document_B=torch.arange(len(self._mask_BT)),
        )


def cached_blocks(config: PretrainedConfig, site: str = "keys") -> list[int] | None:
    """Return the blocks that cache keys (or values); None where the configuration does not say.

    >>> from transformers import AutoConfig
    >>> cached_blocks(AutoConfig.for_model("mamba")), cached_blocks(AutoConfig.for_model("jamba", num_hidden_layers=8))
    ([], [4])
    """
    layers = DynamicCache(config=config).layers
    return [block for block, layer in enumerate(layers) if hasattr(layer, site)] if layers else None


def _check_cached(anatomy: Anatomy, layers: Mapping[str, Sequence[int]]) -> None:
    """Check that the blocks whose keys or values are captured cache some: not those of state-space models."""
    for site in [site for site in ("keys", "values") if site in layers]:
        there = cached_blocks(anatomy.model.config, site)
        if there is not None and (lacking := [block for block in layers[site] if block not in there]):
            raise UsageError(
                f"{anatomy.name}: block {lacking[0]} of a {type(anatomy.model).__name__} has no {site}; blocks with "
                f"{site}: {', '.join(map(str, there)) or 'none'}"
            )


def _cache_without_windows(config: PretrainedConfig) -> DynamicCache | None:
    """Return a cache that keeps all tokens of sliding-window layers; None for a model without such layers."""
    cache = DynamicCache(config=config)
    if not any(type(layer) is DynamicSlidingWindowLayer for layer in cache.layers):
        return None
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
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
    """Return the indices of the kept tokens in the flattened batch, text by text; padding may be on either side.

    Raises:
        UsageError: for a text without tokens, or a position outside its text.

    >>> mask_BT = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]).bool()
    >>> [kept_tokens(mask_BT, positions).tolist() for positions in (None, 1, [[0], [1, 0]])]
    [[0, 1, 2, 6, 7], [2, 7], [0, 7, 6]]
    """
    lengths_B = mask_BT.sum(dim=1).tolist()
    if not lengths_B or not min(lengths_B):
        raise UsageError("a text has no tokens; leave empty texts out")
    if positions is not None and not isinstance(positions, int) and len(positions) != len(lengths_B):
        raise UsageError(f"positions are given for {len(positions)} of {len(lengths_B)} texts; give them for each text")
    kept: list[torch.Tensor] = []
    for text, length in enumerate(lengths_B):
        places = mask_BT[text].nonzero()[:, 0] + text * mask_BT.shape[1]
        if positions is None:
            kept.append(places)
        elif isinstance(positions, int):
            if positions < 1:
                raise UsageError(f"positions must be at least 1 (the last n tokens of each text), not {positions}")
            kept.append(places[-positions:])
        else:
            asked = np.asarray(positions[text], dtype=np.int64)
            if wrong := [number for number in asked.tolist() if not -length <= number < length]:
                raise UsageError(f"position {wrong[0]}: the text has {length} tokens; give 0 to {length - 1}")
            kept.append(places[torch.from_numpy(asked)])
    return torch.cat(kept)


@dataclass(frozen=True)
class CaptureCheck:
    """Largest change of a model's log-probabilities by capturing, in nats, over the `tokens` tokens of a text."""

    largest: float
    tokens: int
    sites: tuple[str, ...]
    allowed: float

    def __str__(self) -> str:
        changed = "changes no log-probability"
        if self.largest:
            changed = f"changes log-probabilities by at most {self.largest:.1e} nats"
        return f"capturing {', '.join(self.sites)} {changed} ({self.tokens} tokens)"


@torch.no_grad()
def check_capture(model: Any, ids_T: Sequence[int] | np.ndarray, sites: Sites, name: str = "") -> CaptureCheck:
    """Check that capturing does not change a model's log-probabilities on a text.

    Hooks and a cache must not change them beyond `HOOKED`.  With `attention`, logits with hooks are compared with
    eager attention without hooks.  The change by eager attention itself is reported; in 8-bit and 16-bit arithmetic it
    is not bounded, because small probabilities may change by any factor.

    Raises:
        RuntimeError: if log-probabilities differ by more than rounding explains.
        UsageError: for `mlp` or `attention_output` of an architecture whose blocks add something else.
    """
    anatomy = anatomy_of(model, name)
    ids_BT = torch.as_tensor([list(map(int, ids_T))], device=anatomy.model.device)
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    plain = model(**inputs, use_cache=False).logits
    with Capture(model, sites, name=name) as capture:
        captured = model(**inputs).logits
    if "attention" in sites:
        _check_rows(capture.activations, anatomy)
    checks = [CaptureCheck(_apart(plain, captured), ids_BT.shape[1], tuple(sites), HOOKED)]
    if "attention" in sites:
        before = anatomy.model.config._attn_implementation
        anatomy.model.set_attn_implementation("eager")
        try:
            eager = model(**inputs, use_cache=False).logits
        finally:
            anatomy.model.set_attn_implementation(before)
        reported = replace(checks[0], allowed=EAGER if is_exact(anatomy.model) else math.inf)
        checks = [reported, replace(reported, largest=_apart(eager, captured), allowed=HOOKED)]
    for check in checks:
        if not check.largest <= check.allowed:
            raise RuntimeError(
                f"{anatomy.name}: {check}, more than rounding explains ({check.allowed:g}); "
                "the captured activations would not be those of this model"
            )
    if {"mlp", "attention_output"} & set(sites):
        _check_added(model, inputs, anatomy)
    return checks[0]


def _check_rows(found: Activations, anatomy: Anatomy) -> None:
    """Check that attention weights are shares of the tokens: with sinks (gpt-oss) their sum is below 1."""
    sums = [float(found.of("attention", layer)[0].sum(-1).sub(1).abs().max()) for layer in found.layers("attention")]
    if not max(sums) <= 0.02:  # rounding of 16-bit weights
        raise UsageError(
            f"{anatomy.name}: the attention weights of a token do not sum to 1 in a {type(anatomy.model).__name__} (by "
            f"up to {max(sums):.2g}), so they are no shares of attention; name another model"
        )


def _apart(logits: torch.Tensor, others: torch.Tensor) -> float:
    return float((logits.float().log_softmax(-1) - others.float().log_softmax(-1)).abs().max())


def _check_added(model: Any, inputs: Mapping[str, torch.Tensor], anatomy: Anatomy) -> None:
    """Check that the outputs of attention and MLP are what each block adds to the hidden states."""
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
                f"{anatomy.name}: block {block} of a {kind} does not add the outputs of its attention and MLP to the "
                "hidden states; drop the sites mlp and attention_output"
            )
