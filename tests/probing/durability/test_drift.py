"""Drift against numpy on parameters and on CKA of each layer, and the parts of models of several architectures."""

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_family, tiny_model
from transformers import OPTConfig, OPTForCausalLM

from lm_trials.console import UsageError
from lm_trials.probing.activation_store import ActivationStore
from lm_trials.probing.durability.drift import ALL, SITES, Drift, Part, parts_of, read_state
from lm_trials.probing.similarity.cka import Features, cka_matrix
from lm_trials.probing.weights.changes import weights_of

DOCUMENTS = [np.random.default_rng(number).integers(1, 64, 6 + number % 5) for number in range(12)]


def state(kind, seed=0, label="model"):
    model = tiny_model(kind, seed=seed)
    return model, read_state(model, weights_of(model), DOCUMENTS, 4, label)[0]


@pytest.mark.parametrize("kind", [*KINDS, "olmo2", "gpt_neox", "opt"])
def test_each_weight_is_of_one_part(kind):
    if kind == "opt":
        model = OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    else:
        model = tiny_model(kind) if kind in KINDS else tiny_family(kind)
    parts = parts_of(model)
    assert list(parts) == [name for name, _ in model.named_parameters()]
    found = {part.module for part in parts.values()}
    assert found >= {"embeddings", "attention", "MLP", "norms"}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert ("head" in found) != tied
    assert {part.layer for part in parts.values() if part.module == "attention"} == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_those_of_the_parameters(kind):
    (model, one), (other_model, other) = state(kind, 0), state(kind, 1)
    drift = Drift.between(one, other)
    names = {"gpt2": {"attn.": "attention", "mlp.": "MLP", "ln_": "norms", "wte": "embeddings", "wpe": "embeddings"},
             "llama": {"self_attn.": "attention", "mlp.": "MLP", "norm": "norms", "embed": "embeddings",
                       "lm_head": "head"}}[kind]  # fmt: skip
    for module in dict.fromkeys(names.values()):
        mine, theirs = (
            np.concatenate([
                p.detach().double().numpy().ravel() for name, p in each.named_parameters()
                if next(m for key, m in names.items() if key in name) == module
            ])
            for each in (model, other_model)
        )  # fmt: skip
        found = drift.distances[Part(module, ALL)]
        expected = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
        assert found.estimate == pytest.approx(expected, abs=1e-12)
        assert found.n == len(mine)
    assert drift.distances[Part("MLP", 0)].estimate != drift.distances[Part("MLP", 1)].estimate
    assert {each.estimate for each in Drift.between(one, one).distances.values()} == {0}


def test_cka_is_that_of_each_site_and_their_mean():
    (model, one), (other_model, other) = state("llama", 0), state("llama", 1)
    found = Drift.between(one, other).ckas
    stores = [ActivationStore.collect(each, DOCUMENTS, list(SITES), description=None) for each in (model, other_model)]

    def pooled(store, site, layer):
        return Features.of(np.stack([store[site, layer][store.text_N == text].mean(0) for text in range(12)]))

    for site, module in SITES.items():
        layers = (1, 2) if site == "hidden" else (0, 1)
        expected = [cka_matrix(*([pooled(store, site, layer)] for store in stores), "")[0, 0].value for layer in layers]
        values = [found[Part(module, layer)].value for layer in layers]
        assert values == pytest.approx(expected, abs=1e-6)
        assert found[Part(module, ALL)].value == pytest.approx(np.mean(expected), abs=1e-6)
    same = Drift.between(one, one).ckas
    assert [cka.value for cka in same.values()] == pytest.approx([1] * len(same))
    assert found[Part("embeddings", ALL)].value < 0.9


def test_another_shape_is_refused():
    _, one = state("llama")
    wider = tiny_model("llama", vocab_size=65)
    other, _ = read_state(wider, weights_of(wider), DOCUMENTS, 4, "wider")
    with pytest.raises(UsageError, match="model and wider have different shapes"):
        Drift.between(one, other)
    assert torch.equal(one.weights["model.norm.weight"], other.weights["model.norm.weight"])
