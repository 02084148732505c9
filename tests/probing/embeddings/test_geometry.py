"""Embeddings: one basis for all, movement and neighbours against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from sklearn.decomposition import PCA
from tiny_models import KINDS, tiny_model

from lm_trials.models.adapters import without_noise
from lm_trials.probing.embeddings.geometry import (
    Embeddings,
    difference_of,
    embeddings_of,
    movement,
    nearest_tokens,
    project,
)


def moved_in_part(seed=0, tokens=40, width=12):
    """Two models: the first half of the tokens stays where it is, the other moves far along one direction."""
    draws = np.random.default_rng(seed)
    before = draws.standard_normal((tokens, width)) * np.linspace(2, 0.1, width)
    after = before.copy()
    after[tokens // 2 :, -1] += 9
    return [Embeddings("before", before), Embeddings("after", after)]


# One basis


@given(st.integers(0, 20), st.sampled_from(["joint", "last"]))
@settings(max_examples=15, deadline=None)
def test_what_did_not_move_stays_in_the_picture(seed, basis):
    models = moved_in_part(seed)
    points = project(models, np.arange(40), basis, "pca", 0).points
    assert np.array_equal(points["before"][:20], points["after"][:20])
    assert (np.linalg.norm(points["after"][20:] - points["before"][20:], axis=1) > 1).all()


def test_bases_fitted_one_by_one_would_move_it():
    models = moved_in_part()
    apart = [project([model], np.arange(40), "joint", "pca", 0).points[model.label] for model in models]
    assert np.abs(apart[0][:20] - apart[1][:20]).max() > 0.5


def test_axes_are_scikit_learns_but_for_their_sign():
    models = moved_in_part()
    picture = project(models, np.arange(40), "joint", "pca", 0)
    stacked = np.concatenate([model.table_VD for model in models])
    pca = PCA(2).fit(stacked)
    assert picture.explained == pytest.approx(pca.explained_variance_ratio_)
    assert np.abs(np.concatenate(list(picture.points.values()))) == pytest.approx(np.abs(pca.transform(stacked)))
    flipped = [Embeddings(model.label, -model.table_VD) for model in models]
    same = project(flipped, np.arange(40), "joint", "pca", 0).points["after"]
    assert same == pytest.approx(-picture.points["after"])  # the axes are the same, so the points are turned round
    other = project(models, np.arange(40), "last", "pca", 0)
    assert other.explained != pytest.approx(picture.explained)
    assert all(0 < share <= 1 for share in picture.explained_of.values())


def test_umap_gets_all_models_at_once(monkeypatch):
    import sys
    import types

    fitted = []

    class Umap:
        def __init__(self, **settings):
            self.seed = settings["random_state"]

        def fit(self, table_ND):
            fitted.append(table_ND)
            self.embedding_ = table_ND[:, :2]

        def transform(self, table_ND):
            return table_ND[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    models = moved_in_part()
    joint = project(models, np.arange(40), "joint", "umap", 3)
    last = project(models, np.arange(40), "last", "umap", 3)
    assert [len(table) for table in fitted] == [80, 40]
    for picture in (joint, last):
        assert np.array_equal(picture.points["after"], models[1].table_VD[:, :2])
        assert np.array_equal(picture.points["before"], models[0].table_VD[:, :2])


# What is read


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_what_the_layers_do(kind):
    model = tiny_model(kind)
    assert np.array_equal(embeddings_of(model, "input", 60), model.get_input_embeddings().weight[:60].double().detach())
    head = model.get_output_embeddings().weight.double().detach().numpy()
    assert embeddings_of(model, "output", 64) == pytest.approx(head, abs=1e-6)


def test_an_adapter_on_the_embeddings_counts_and_another_does_not():
    plain = embeddings_of(tiny_model("llama"), "input", 64)
    for target, changed in (("q_proj", False), ("embed_tokens", True)):
        with without_noise():
            adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=[target]))
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_" in name:
                    tensor.fill_(0.3)
        assert np.allclose(embeddings_of(adapted, "input", 64), plain) is not changed, target


# Movement and neighbours


@given(st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_movement_is_the_cosine_and_the_norm(seed):
    before, after = np.random.default_rng(seed).standard_normal((2, 6, 5))
    moved = movement(before, after)
    for token in range(6):
        cosine = before[token] @ after[token] / np.linalg.norm(before[token]) / np.linalg.norm(after[token])
        assert moved["cosine_distance"][token] == pytest.approx(1 - cosine)
        assert moved["relative_move"][token] == pytest.approx(
            np.linalg.norm(after[token] - before[token]) / np.linalg.norm(before[token])
        )
    longer = movement(before, 3 * before)  # weight decay alone changes no direction
    assert longer["cosine_distance"] == pytest.approx(0, abs=1e-12)
    assert longer["relative_move"] == pytest.approx(2)


def test_tokens_seen_are_told_from_the_others():
    draws = np.random.default_rng(0)
    seen = np.arange(200) < 120
    values = draws.gamma(2, 1, 200) + 2 * seen
    found = difference_of(values, seen, "cosine distance", seed=0)
    assert found.estimate == pytest.approx(values[seen].mean() - values[~seen].mean())
    assert found.lower > 1.3
    nothing = difference_of(values, draws.permutation(seen), "cosine distance", seed=0)
    assert nothing.lower < 0 < nothing.upper
    holes = np.where(np.arange(200) % 7 == 0, np.nan, values)  # a row of zeros has no relative move
    assert difference_of(holes, seen, "u", 0).n == np.isfinite(holes[~seen]).sum() < 80  # the fewer of the two


def test_neighbours_are_the_largest_cosines():
    table = np.random.default_rng(0).standard_normal((30, 8))
    cosines = (table @ table[4]) / np.linalg.norm(table, axis=1) / np.linalg.norm(table[4])
    expected = [token for token in np.argsort(-cosines) if token != 4][:5]
    found = nearest_tokens(table, 4, 5)
    assert [token for token, _ in found] == expected
    assert [cosine for _, cosine in found] == pytest.approx(cosines[expected])
