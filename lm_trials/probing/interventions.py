"""Interventions: replace the output of parts of a model by hooks, during an ordinary forward pass.

    with Patched(model, {ModelPart("mlp", 3): rows_ND}):       # captured elsewhere, at the kept tokens
        logits = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    with Patched(model, [ModelPart("mlp", 3)], donor=other):   # what another model computes on the same tokens
        model.generate(ids_BT, attention_mask=mask_BT)

A donor runs unmodified on the same tokens, with its own cache.  The layers above a replaced part compute with the new
values.

Shape suffixes: B = texts, T = tokens of this pass, N = tokens kept of all texts, D = width of a part's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn

from lm_trials.console import UsageError
from lm_trials.probing.anatomy import Anatomy, anatomy_of, check_sites
from lm_trials.probing.capture import Positions, cached_blocks, kept_tokens

SWAPPABLE = {
    "hidden": "hidden states: layer 0 is the embeddings, layer h the output of block h-1",
    "attention_output": "what a block's attention adds to the hidden states",
    "mlp": "what a block's MLP adds to the hidden states",
    "heads": "outputs of a block's heads before the output projection, concatenated, or of one head",
    "normed": "the last hidden states after the final norm; layer L",
    "logits": "the output of the output head; layer L",
}


class ModelPart(NamedTuple):
    """One part of a model: a site of `SWAPPABLE` at a layer; for `heads`, all heads or one."""

    site: str
    layer: int
    head: int | None = None


def checked_part(anatomy: Anatomy, part: ModelPart) -> ModelPart:
    """Return a part with negative numbers counted from the end.

    Raises:
        UsageError: for a site, layer or head that the model does not have.
    """
    check_sites([part.site], list(SWAPPABLE))
    if part.head is not None and part.site != "heads":
        raise UsageError(f"head {part.head}: the site {part.site} has no heads; use the site heads")
    if part.site in ("hidden", "normed", "logits"):
        (layer,) = anatomy.check_hidden([part.layer])
        if part.site != "hidden" and layer != anatomy.num_blocks:
            raise UsageError(
                f"layer {part.layer}: {part.site} exists at layer {anatomy.num_blocks} only; use that layer"
            )
    else:
        (layer,) = anatomy.check_blocks([part.layer])
    return ModelPart(part.site, layer, None if part.head is None else anatomy.check_heads([part.head])[0])


class Patched(AbstractContextManager):
    """Replaces the output of parts of a model inside the `with`; removes its hooks afterwards.

    Args:
        model: the recipient: a causal language model, possibly with a PEFT adapter, possibly quantized.
        swaps: by part, its (N, D) new rows at the kept tokens, text by text as in `Activations`; with a donor, only
            the parts.
        donor: another model of the same shape, which runs on the same tokens.  Greedy and sampled generation with a
            cache work; beam search does not.
        positions: which tokens are replaced, as for `Capture`; None for all.  May be set before each forward pass.
        name: the model's name in error messages.

    Raises:
        UsageError: for a part or position that does not exist, or rows given for texts continued from a cache.
        ValueError: for a donor that is the model itself, or another number of rows than of kept tokens.
        RuntimeError: if a part was not replaced because the model did not run or did not use it.
    """

    def __init__(
        self,
        model: Any,
        swaps: Mapping[ModelPart, torch.Tensor] | Sequence[ModelPart],
        donor: Any = None,
        positions: Positions = None,
        name: str = "",
    ) -> None:
        self.anatomy = anatomy_of(model, name)
        self.donor = None if donor is None else anatomy_of(donor, "the donor")
        if self.donor is not None and self.donor.model is self.anatomy.model:
            raise ValueError("the donor is the model itself; load the model twice, or capture first and pass rows")
        if (donor is None) != isinstance(swaps, Mapping):
            raise ValueError("pass either rows for each part, or parts and a donor")
        self.parts = [checked_part(self.anatomy, ModelPart(*part)) for part in swaps]
        self.rows = dict(zip(self.parts, swaps.values(), strict=True)) if isinstance(swaps, Mapping) else {}
        self.positions = positions
        self._places: dict[tuple[str, int], list[ModelPart]] = {}
        for part in self.parts:
            self._places.setdefault(part[:2], []).append(part)
            self.anatomy.module_of(*part[:2])  # refuses a part that this architecture does not have
        self._handles: list[Any] = []
        self._passes = 0
        # Of the current pass: the kept rows of the flattened batch (None for all), what the donor computed, and where
        # something was replaced.
        self._kept_N: torch.Tensor | None = None
        self._donated: dict[tuple[str, int], torch.Tensor] = {}
        self._swapped: set[tuple[str, int]] = set()
        self._cache: Any = None

    def __enter__(self) -> Patched:
        self._passes, self._cache = 0, None
        model = self.anatomy.model
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        for place in self._places:
            self._register(self.anatomy, place, donates=False)
            if self.donor is not None:
                self._register(self.donor, place, donates=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._cache, self._donated = [], None, {}
        if kind is None and not self._passes:
            raise RuntimeError(f"replaced 0 of {len(self.parts)} parts; did the model run inside the `with`?")

    def _register(self, anatomy: Anatomy, place: tuple[str, int], donates: bool) -> None:
        """Register a hook at a part: on the donor to read its activations, on the recipient to replace them."""
        module, before = anatomy.module_of(*place)

        def seen(values_BTD: torch.Tensor) -> torch.Tensor:
            if donates:
                self._donated[place] = values_BTD
                return values_BTD
            self._swapped.add(place)
            return self._replaced(place, values_BTD)

        def on_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (seen(inputs[0]), *inputs[1:])

        def on_output(module: nn.Module, inputs: Any, output: Any) -> Any:
            return (seen(output[0]), *output[1:]) if isinstance(output, tuple) else seen(output)

        handle = module.register_forward_pre_hook(on_inputs) if before else module.register_forward_hook(on_output)
        self._handles.append(handle)

    def _replaced(self, place: tuple[str, int], values_BTD: torch.Tensor) -> torch.Tensor:
        flat_ND = values_BTD.reshape(-1, values_BTD.shape[-1]).clone()  # the tokens of OPT's MLP are flat already
        kept_N = slice(None) if self._kept_N is None else self._kept_N.to(flat_ND.device)
        for part in self._places[place]:
            columns = slice(None)
            if part.head is not None:
                size = flat_ND.shape[1] // self.anatomy.num_heads
                columns = slice(part.head * size, (part.head + 1) * size)
            donated = self._donated.get(place)
            rows_ND = self.rows[part] if donated is None else donated.reshape(-1, donated.shape[-1])[kept_N, columns]
            target_ND = flat_ND[kept_N, columns]
            if rows_ND.shape != target_ND.shape:
                raise ValueError(
                    f"{part.site} {part.layer} has shape {tuple(target_ND.shape)} at the kept tokens, but the new rows "
                    f"have {tuple(rows_ND.shape)}; pass one row for each kept token"
                )
            flat_ND[kept_N, columns] = rows_ND.to(flat_ND)
        return flat_ND.view_as(values_BTD)

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass: find the tokens to replace, and run the donor on the same tokens."""
        self._swapped = set()
        ids_BT = kwargs.get("input_ids", inputs[0] if inputs else None)
        if ids_BT is None:
            raise UsageError("Patched needs input_ids; pass them to the model inside the `with`")
        past = kwargs.get("past_key_values")
        kept = past is not None or kwargs.get("use_cache")
        if self.donor is not None and kept and cached_blocks(self.anatomy.model.config) == []:
            raise UsageError(
                f"{self.anatomy.name}: a donor needs a cache of keys and values, and a {type(module).__name__} has "
                "none; generate with use_cache=False"
            )
        seen = past.get_seq_length() if past is not None else 0
        if self.donor is None or self.positions is not None:
            if seen:
                raise UsageError(
                    "past_key_values: rows and positions refer to whole texts; run the model without one inside the "
                    "`with`, or pass a donor and no positions"
                )
            mask_BT = kwargs.get("attention_mask")
            mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
            self._kept_N = kept_tokens(mask_BT.bool().cpu(), self.positions)
        else:
            self._kept_N = None
        if self.donor is None:
            return
        if seen and (self._cache is None or self._cache.get_seq_length() != seen):
            raise RuntimeError(f"the donor has not seen the first {seen} tokens; start the text inside the `with`")
        self._donated = {}
        output = self.donor.model(*inputs, **{**kwargs, "past_key_values": self._cache if seen else None})
        self._cache = getattr(output, "past_key_values", None)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if missed := [f"{site} {layer}" for site, layer in self._places if (site, layer) not in self._swapped]:
            raise RuntimeError(f"the forward pass did not use {', '.join(missed)}, so nothing was replaced there")
        self._passes += 1
