"""Debiased CKA from sums over stories, held against n x n matrices of kernels, and against planted truths."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, tiny_model

from lm_trials.console import UsageError
from lm_trials.probing.similarity import cka
from lm_trials.probing.similarity.cka import Cka, Features, cka_matrix, cka_rows, hsic, pooled_stories, shuffled


def u_centred(rows_ND):
    """Szekely and Rizzo's (2014) centring of a kernel matrix, another way to Song's estimate."""
    kernel = np.asarray(rows_ND, dtype=np.float64) @ np.asarray(rows_ND, dtype=np.float64).T
    np.fill_diagonal(kernel, 0.0)
    n = len(kernel)
    sums = kernel.sum(axis=1)
    centred = kernel - (sums[:, None] + sums[None, :]) / (n - 2) + kernel.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    return centred


def by_kernels(x_ND, y_NE):
    one, other = u_centred(x_ND), u_centred(y_NE)
    return (one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum())


def plain_cka(x_ND, y_NE):
    x, y = x_ND - x_ND.mean(axis=0), y_NE - y_NE.mean(axis=0)
    return ((x.T @ y) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum())


def both(x_ND, y_NE):
    x, y = Features.of(x_ND), Features.of(y_NE)
    return Cka.of(hsic(x, y), hsic(x, x), hsic(y, y))


def related(seed, n=30, d=6, e=4, shared=2):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, shared))
    x = common @ rng.normal(size=(shared, d)) + rng.normal(size=(n, d))
    return x, common @ rng.normal(size=(shared, e)) + rng.normal(size=(n, e))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 30), st.integers(1, 50), st.integers(1, 50))
def test_sums_over_stories_give_what_kernels_give(seed, n, d, e):
    x, y = related(seed, n, d, e)
    x, y = x + 3.0, y - 2.0  # a common direction, as hidden states have
    found = both(x, y)
    assert found.value == pytest.approx(by_kernels(x, y), abs=1e-8)
    without = [by_kernels(np.delete(x, i, axis=0), np.delete(y, i, axis=0)) for i in range(n)]
    np.testing.assert_allclose(found.without_N, without, atol=1e-7)


def test_pieces_change_nothing(monkeypatch):
    x, y = related(0)
    whole = both(x, y)
    monkeypatch.setattr(cka, "PIECE", 7)
    parts = both(x, y)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(parts.without_N, whole.without_N, rtol=1e-11)


def test_directions_scale_and_origin_do_not_count_and_stories_do():
    x, y = related(1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    value = both(x, y).value
    assert both(3.0 * x @ turn + 50.0, y).value == pytest.approx(value, abs=1e-9)
    assert abs(both(x * np.arange(1, 7), y).value - value) > 1e-3  # stretched along some: another geometry
    assert abs(both(x[::-1].copy(), y).value - value) > 0.05


def test_a_layer_is_itself():
    estimate = both(*[related(2)[0]] * 2).estimate()
    assert estimate.estimate == pytest.approx(1.0, abs=1e-12)
    assert estimate.lower == pytest.approx(1.0, abs=1e-9)
    assert estimate.lower <= estimate.estimate <= estimate.upper


def test_unrelated_layers_have_none_and_the_plain_estimate_says_they_have():
    rng = np.random.default_rng(3)
    layers = [(rng.normal(size=(40, 60)), rng.normal(size=(40, 60))) for _ in range(40)]
    debiased = [both(x, y).value for x, y in layers]
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / np.sqrt(len(debiased)) + 1e-3
    assert np.mean([plain_cka(x, y) for x, y in layers]) > 0.5


def test_shuffled_stories_are_unrelated_and_paired_ones_are_not():
    x, y = related(4, n=200, shared=3)
    paired = both(x, y).estimate()
    (layer,) = shuffled([Features.of(y)], seed=0)
    anew = Features.of(layer.rows_ND)
    assert layer.squares_N == pytest.approx(anew.squares_N)
    assert not np.array_equal(layer.rows_ND, y)
    first = Features.of(x)
    mixed = Cka.of(hsic(first, layer), hsic(first, first), hsic(layer, layer)).estimate()
    assert paired.lower > 0.1
    assert mixed.lower <= 0 <= mixed.upper


def test_intervals_cover_what_many_stories_have():
    x, y = related(5, n=16_000)
    truth = both(x, y).value
    assert 0.1 < truth < 0.9
    estimates = [both(x[start : start + 80], y[start : start + 80]).estimate() for start in range(0, 16_000, 80)]
    covered = np.mean([estimate.lower <= truth <= estimate.upper for estimate in estimates])
    assert 0.88 <= covered <= 0.99


def test_a_difference_is_of_the_same_stories():
    x, y = related(6, n=100, shared=3)
    noise = np.random.default_rng(6).normal(size=y.shape)
    near, far = both(x, y), both(x, y + 3 * noise)
    difference = near.minus(far)
    assert difference.estimate == pytest.approx(near.value - far.value)
    assert difference.lower > 0
    same = near.minus(near)
    assert same.estimate == 0.0
    assert np.isnan([same.lower, same.upper]).all()


def test_a_layer_that_says_the_same_of_all_stories_has_none():
    x, _ = related(7)
    estimate = both(x, np.ones((30, 3))).estimate()
    assert np.isnan([estimate.estimate, estimate.lower, estimate.upper]).all()


@pytest.mark.end_to_end
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooled_stories_are_transformers_own_states(kind, pooling, monkeypatch):
    model = tiny_model(kind)
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 60, size=rng.integers(2, 12)) for _ in range(10)]
    layers = pooled_stories(model, documents, pooling, 4, "tiny")
    assert len(layers) == 3
    for row, ids_T in enumerate(documents):
        with torch.no_grad():
            states = model(torch.as_tensor(ids_T)[None], output_hidden_states=True).hidden_states
        for layer in (0, 1):  # the last of transformers' is after the norm
            expected = states[layer][0].mean(dim=0) if pooling == "mean" else states[layer][0, -1]
            np.testing.assert_allclose(layers[layer][row], expected, atol=2e-6)
    # Much of it lies in files, which go with it.
    monkeypatch.setattr(cka, "IN_MEMORY", 10)
    rows = cka._room((2, 3, 4))
    place = Path(rows.filename)
    assert place.exists()
    filed = pooled_stories(model, documents, pooling, 4, "tiny")
    for one, other in zip(layers, filed, strict=True):
        np.testing.assert_array_equal(one, other)
    del rows
    gc.collect()
    assert not place.exists()


def test_too_few_stories_are_refused():
    with pytest.raises(UsageError, match="7 stories are too few for CKA"):
        pooled_stories(tiny_model("gpt2"), [np.array([3, 4])] * 7, "mean", 4, "tiny")


def test_all_pairs_of_layers_have_a_row():
    x, y = related(8)
    one, other = [Features.of(x), Features.of(x[:, :3])], [Features.of(y), Features.of(x)]
    found = cka_matrix(one, other, "CKA")
    assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found[0, 1].value == pytest.approx(1.0)
    assert found[1, 0].value == pytest.approx(by_kernels(x[:, :3], y))
    assert sorted(cka_matrix(one, other, "CKA", diagonal=True)) == [(0, 0), (1, 1)]
    rows = cka_rows(found, {"model": "b", "minus": "a"}, "finding")
    assert [(row["layer_of_other"], row["layer"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {row["n"] for row in rows} == {30}
