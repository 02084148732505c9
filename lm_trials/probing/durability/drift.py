"""Drift: how far the weights and representations of one model are from another's, by module.

Weights are compared by the norm of their difference, representations by CKA, which does not depend on how the
features are rotated.  Two trainings from other initial weights may have similar representations far apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from lm_trials.estimates import Estimate
from lm_trials.probing.activation_store import captured, reduced
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import Activations, CaptureCheck, check_capture
from lm_trials.probing.similarity.cka import Cka, Features, Hsic, hsic
from lm_trials.probing.tables import exact
from lm_trials.probing.weights.changes import Weights, check_same_shape

WEIGHTS, CKA = "weight distance", "CKA"
SITES = {"hidden": "residual", "attention_output": "attention", "mlp": "MLP"}
ALL = "all"


class Part(NamedTuple):
    """A module, and its layer: a block for weights and for what a block adds, a hidden state for the residual."""

    module: str
    layer: int | str


def parts_of(model: PreTrainedModel, name: str = "") -> dict[str, Part]:
    """Return the part that each parameter belongs to: embeddings, attention, MLP, norms, head if it is not tied.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> parts = parts_of(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)))
    >>> [tuple(part) for part in dict.fromkeys(parts.values())]
    [('embeddings', 'all'), ('norms', 0), ('attention', 0), ('MLP', 0), ('norms', 'all')]
    """
    anatomy = anatomy_of(model, name)
    found = {id(parameter): Part("norms", ALL) for parameter in anatomy.final_norm.parameters()}
    found |= {id(parameter): Part("head", ALL) for parameter in anatomy.head.parameters()}
    found |= {id(parameter): Part("embeddings", ALL) for parameter in model.get_input_embeddings().parameters()}
    for block, module in enumerate(anatomy.blocks):
        for parameter in module.parameters():
            # Matrices of a block outside its attention: OPT has no module for its MLP.
            found[id(parameter)] = Part("MLP" if parameter.dim() > 1 else "norms", block)
        found |= {id(parameter): Part("MLP", block) for parameter in anatomy.mlp(block).parameters()}
        found |= {id(parameter): Part("attention", block) for parameter in anatomy.attention(block).parameters()}
    return {key: found.get(id(value), Part("embeddings", ALL)) for key, value in model.named_parameters()}


@dataclass(frozen=True)
class State:
    """What is compared of one model.

    Attributes:
        weights: float64, by name.
        parts: of each weight.
        features: of the stories, each the mean over its tokens, by part.
        own: HSIC of each part's features with themselves.
    """

    label: str
    weights: Weights
    parts: dict[str, Part]
    features: dict[Part, Features]
    own: dict[Part, Hsic] = field(default_factory=dict)


def read_state(
    model: Any, weights: Weights, documents: Sequence[np.ndarray], batch_size: int, label: str
) -> tuple[State, CaptureCheck]:
    """Read the representations of the stories; also returns the check that this changes no prediction."""
    check = check_capture(model, documents[0], list(SITES), label)
    batches = captured(model, documents, list(SITES), None, batch_size, None, label)
    features = {}
    for name, rows_ND in reduced(batches, len(documents), _means).items():
        site, layer = name.split()
        part = Part("embeddings", ALL) if (site, layer) == ("hidden", "0") else Part(SITES[site], int(layer))
        features[part] = Features.of(rows_ND)
    own = {part: hsic(layer, layer) for part, layer in features.items()}
    return State(label, weights, parts_of(model, label), features, own), check


def _means(found: Activations) -> dict[str, torch.Tensor]:
    return {f"{site} {layer}": found.means(site, layer) for site, layer in found.values}


@dataclass(frozen=True)
class Drift:
    """How far a model is from another one, by part; the layer `all` has all layers of a module.

    Attributes:
        distances: norm of the difference over the norm of the other's weights.
        ckas: CKA over stories; for all layers their mean.
    """

    distances: dict[Part, Estimate]
    ckas: dict[Part, Cka]

    @classmethod
    def between(cls, one: State, other: State) -> Drift:
        """Compare two models.

        Raises:
            UsageError: for models with other weights than one another.
        """
        check_same_shape(one.label, one.weights, other.label, other.weights)
        sums: dict[Part, np.ndarray] = {}
        for name, weight in other.weights.items():
            apart, norm = float(((one.weights[name] - weight) ** 2).sum()), float((weight**2).sum())
            part = other.parts[name]
            for each in {part, Part(part.module, ALL)}:
                sums[each] = sums.get(each, np.zeros(3)) + np.array([apart, norm, weight.numel()])
        distances = {
            part: exact(float(np.sqrt(apart / norm)), int(n), "distance over the norm of the other")
            for part, (apart, norm, n) in sums.items()
        }
        ckas = {
            part: Cka.of(hsic(features, other.features[part]), one.own[part], other.own[part])
            for part, features in one.features.items()
        }
        for module in SITES.values():
            layers = [cka for part, cka in ckas.items() if part.module == module]
            mean_N = np.mean([cka.without_N for cka in layers], axis=0)
            ckas[Part(module, ALL)] = Cka(float(np.mean([cka.value for cka in layers])), mean_N)
        return cls(distances, ckas)
