"""Interventions: one part of a model computes what another computed, by hooks while the model runs as always.

    with Patched(model, {ModelPart("mlp", 3): rows_ND}):       # what was captured elsewhere, at the kept tokens
        logits = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    with Patched(model, [ModelPart("mlp", 3)], donor=other):   # what another model computes on the same tokens
        model.generate(ids_BT, attention_mask=mask_BT)

A donor runs in step with the model, on the same tokens and undisturbed: it has its own cache, and what it gives at a
token is what it computes there by itself.  The model above the part goes on from what it is given.

Shape suffixes: B = texts, T = tokens of this pass, N = tokens kept of all texts, D = width of what a part gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn

from lm_trials.console import UsageError
from lm_trials.probing.anatomy import Anatomy, anatomy_of, check_sites
from lm_trials.probing.capture import Positions, kept_tokens

SWAPPABLE = {
    "hidden": "hidden states, layer 0 the embeddings, layer h what block h-1 leaves",
    "attention_output": "what each block's attention adds to the hidden states",
    "mlp": "what each block's MLP adds to the hidden states",
    "heads": "what the heads of a block read out, before the output projection; all side by side, or one head",
    "normed": "the last hidden states after the final norm; layer L",
    "logits": "what the output head says; layer L",
}


class ModelPart(NamedTuple):
    """One part of a model: a site of `SWAPPABLE` at a layer, of `heads` perhaps one head."""

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
        raise UsageError(f"{part.site} has no heads (head {part.head} was asked for); give the site heads")
    if part.site in ("hidden", "normed", "logits"):
        (layer,) = anatomy.check_hidden([part.layer])
        if part.site != "hidden" and layer != anatomy.num_blocks:
            raise UsageError(f"{part.site} is of layer {anatomy.num_blocks} alone, not of {part.layer}; give that")
    else:
        (layer,) = anatomy.check_blocks([part.layer])
    return ModelPart(part.site, layer, None if part.head is None else anatomy.check_heads([part.head])[0])


class Patched(AbstractContextManager):
    """Lets parts of a model give what they are given, instead of what they compute; leaves no hook behind.

    Args:
        model: the recipient: a causal language model, a PEFT adapter on one, quantized or not.
        swaps: by part, the (N, D) rows that it gives at the kept tokens, text by text as `Activations` has them; with
            a donor, the parts alone.
        donor: another model of the same shape, which runs in step.  Greedy and sampled generation with a cache go on
            as always; beams do not.
        positions: which tokens are swapped, as for `Capture`; None for all.  It may be set anew before each pass.
        name: what errors call the model.

    Raises:
        UsageError: for a part or position that there is not, or texts that go on from a cache where rows are given.
        ValueError: for a donor that is the model itself, or rows that are not one for each kept token.
        RuntimeError: where a part was not swapped, because the model did not run or went another way.
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
            raise ValueError("a model cannot run in step with itself; load it twice, or capture first and give rows")
        if (donor is None) != isinstance(swaps, Mapping):
            raise ValueError("give rows for each part, or parts and a donor")
        self.parts = [checked_part(self.anatomy, ModelPart(*part)) for part in swaps]
        self.rows = dict(zip(self.parts, swaps.values(), strict=True)) if isinstance(swaps, Mapping) else {}
        self.positions = positions
        self._places: dict[tuple[str, int], list[ModelPart]] = {}
        for part in self.parts:
            self._places.setdefault(part[:2], []).append(part)
        self._handles: list[Any] = []
        self._passes = 0
        # Of the pass that is running: the kept rows of the flattened batch (None for all), what the donor gave, and
        # where something was swapped.
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
            self._hang(self.anatomy, place, donates=False)
            if self.donor is not None:
                self._hang(self.donor, place, donates=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._cache, self._donated = [], None, {}
        if kind is None and not self._passes:
            raise RuntimeError(f"swapped 0 of {len(self.parts)} parts; did the model run inside the `with`?")

    def _hang(self, anatomy: Anatomy, place: tuple[str, int], donates: bool) -> None:
        """Hang a hook where a part's activations are to be had, on the donor, or to be replaced."""
        module, before = _module_of(anatomy, place)

        def seen(values_BTD: torch.Tensor) -> torch.Tensor | None:
            if donates:
                self._donated[place] = values_BTD
                return None
            self._swapped.add(place)
            return self._replaced(place, values_BTD)

        def on_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            found = seen(inputs[0])
            return None if found is None else (found, *inputs[1:])

        def on_output(module: nn.Module, inputs: Any, output: Any) -> Any:
            several = isinstance(output, tuple)
            found = seen(output[0] if several else output)
            return (found, *output[1:]) if several and found is not None else found

        hang = module.register_forward_pre_hook if before else module.register_forward_hook
        self._handles.append(hang(on_inputs if before else on_output))

    def _replaced(self, place: tuple[str, int], values_BTD: torch.Tensor) -> torch.Tensor:
        flat_ND = values_BTD.flatten(0, 1).clone()
        kept_N = slice(None) if self._kept_N is None else self._kept_N.to(flat_ND.device)
        for part in self._places[place]:
            columns = slice(None)
            if part.head is not None:
                size = flat_ND.shape[1] // self.anatomy.num_heads
                columns = slice(part.head * size, (part.head + 1) * size)
            donated = self._donated.get(place)
            rows_ND = self.rows[part] if donated is None else donated.flatten(0, 1)[kept_N, columns]
            target_ND = flat_ND[kept_N, columns]
            if rows_ND.shape != target_ND.shape:
                raise ValueError(
                    f"{part.site} {part.layer} gives {tuple(target_ND.shape)} at the kept tokens, and it was given "
                    f"{tuple(rows_ND.shape)}; give a row for each kept token"
                )
            flat_ND[kept_N, columns] = rows_ND.to(flat_ND)
        return flat_ND.view_as(values_BTD)

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass: find which tokens are swapped, and let the donor read the same tokens."""
        self._swapped = set()
        ids_BT = kwargs.get("input_ids", inputs[0] if inputs else None)
        if ids_BT is None:
            raise UsageError("a patch swaps what is computed on texts; give the model input_ids inside the `with`")
        past = kwargs.get("past_key_values")
        seen = past.get_seq_length() if past is not None else 0
        if self.donor is None or self.positions is not None:
            if seen:
                raise UsageError(
                    "rows and positions are of whole texts; run the model without past_key_values inside the `with`, "
                    "or give a donor and no positions"
                )
            mask_BT = kwargs.get("attention_mask")
            self._kept_N = kept_tokens((torch.ones_like(ids_BT) if mask_BT is None else mask_BT).bool().cpu(),
                                       self.positions)  # fmt: skip
        else:
            self._kept_N = None
        if self.donor is None:
            return
        if seen and (self._cache is None or self._cache.get_seq_length() != seen):
            raise RuntimeError(f"the donor has not read the {seen} tokens before these; begin a text inside the `with`")
        self._donated = {}
        output = self.donor.model(*inputs, **{**kwargs, "past_key_values": self._cache if seen else None})
        self._cache = getattr(output, "past_key_values", None)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if missed := [f"{site} {layer}" for site, layer in self._places if (site, layer) not in self._swapped]:
            raise RuntimeError(f"the pass did not go by {', '.join(missed)}, so nothing was swapped there")
        self._passes += 1


def _module_of(anatomy: Anatomy, place: tuple[str, int]) -> tuple[nn.Module, bool]:
    """Return the module that a part's activations enter (True) or leave (False)."""
    site, layer = place
    if site == "hidden":
        return (anatomy.blocks[0], True) if layer == 0 else (anatomy.blocks[layer - 1], False)
    if site == "heads":
        return anatomy.projection(layer), True
    if site == "mlp":
        return anatomy.added(layer, anatomy.mlp(layer)), False
    if site == "attention_output":
        return anatomy.added(layer, anatomy.attention(layer)), False
    return (anatomy.final_norm if site == "normed" else anatomy.head), False
