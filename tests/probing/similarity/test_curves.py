"""Similarities held against transformers' own outputs; ranks and the permutation test against planted truths."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata
from tiny_models import KINDS, tiny_model, tiny_tokenizer

from lm_trials.probing.similarity.cka import Cka, cka_finding
from lm_trials.probing.similarity.curves import (
    SITES,
    TermSimilarities,
    curve,
    gain_rows,
    permutation_test,
    ranks,
    read_similarities,
    similarity_rows,
)
from lm_trials.probing.similarity.flags import SimilarityArguments
from lm_trials.probing.similarity.prompts import PromptLayout, plan_terms
from lm_trials.probing.similarity.report import term_finding

LETTERS = list("abcdefghijklmnopqrst")
ARGS = SimilarityArguments(
    term_a="cat", term_b="dog", template=["a {city} and {term} sat", "{term}, a {city}"], query=["mat", "fox", "quick"],
    candidates=LETTERS, candidate_tokens="any",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def plan(tokenizer):
    return plan_terms(PromptLayout(tokenizer, "completion"), ARGS, 0, 64)


def cosine(one, other):
    one, other = (np.asarray(vector.detach(), dtype=np.float64).ravel() for vector in (one, other))
    return one @ other / np.sqrt((one @ one) * (other @ other))


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_are_those_of_transformers_own_outputs(kind, tokenizer, plan):
    model = tiny_model(kind, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # the norms' too: an RMS norm of ones alone would change no cosine
                weight.mul_(torch.rand_like(weight) + 0.2)

    @torch.no_grad()
    def vectors(prompt):
        """One prompt alone, without padding: layer by layer what transformers says at the term's tokens."""
        output = model(torch.as_tensor(prompt.ids)[None], output_hidden_states=True, use_cache=True)
        at = list(prompt.positions)
        named = {("hidden", n): states[0, at] for n, states in enumerate(output.hidden_states[:-1])}
        named["normed", len(output.hidden_states) - 1] = output.hidden_states[-1][0, at]
        cached = enumerate(output.past_key_values.layers)
        return named | {("values", n): layer.values[0, :, at].transpose(0, 1) for n, layer in cached}

    own, others = ([vectors(prompt) for prompt in prompts] for prompts in (plan.own, plan.others))
    for align in ("last", "mean", "first"):
        take = {"last": lambda v: v[-1], "first": lambda v: v[0], "mean": lambda v: v.mean(axis=0)}[align]
        found = read_similarities(model, plan, align, 7, "tiny")
        assert list(found) == [
            (site, n) for site in SITES for n in {"hidden": (0, 1, 2), "normed": (2,)}.get(site, (0, 1))
        ]
        width = len(plan.candidates)
        for key in own[0]:
            # Two templates for each query lie together.
            pairs = [
                [cosine(take(own[p][key]), take(others[p * width + c][key])) for c in range(width)] for p in range(6)
            ]
            np.testing.assert_allclose(found[key], np.reshape(pairs, (3, 2, width)).mean(axis=1), atol=2e-6)
        # The last layer before the norm is another than the one after it.
        assert np.abs(found["hidden", 2] - found["normed", 2]).max() > 1e-3


def test_another_alignment_gives_other_similarities(tokenizer, plan):
    model = tiny_model("llama", vocab_size=len(tokenizer))
    assert any(len(prompt.positions) > 1 for prompt in plan.others)
    last, first = (read_similarities(model, plan, align, 16, "tiny") for align in ("last", "first"))
    assert np.abs(last["hidden", 1] - first["hidden", 1]).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_term_with_the_true_ones_embedding_is_it(kind, tokenizer, plan):
    model = tiny_model(kind, vocab_size=len(tokenizer))
    term, true = (prompts[0].ids[list(prompts[0].positions)].tolist() for prompts in (plan.own, plan.others))
    assert len(term) == len(true) == 1
    before = read_similarities(model, plan, "last", 16, "before")
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[term] = embeddings[true]
    found = read_similarities(model, plan, "last", 16, "planted")
    for site, layer in found:
        assert found[site, layer][:, 0] == pytest.approx(np.ones(3), abs=1e-5)
        assert ranks(found[site, layer]) == pytest.approx(np.ones(3))
    assert before["hidden", 0][:, 0].max() < 0.9  # the neighbour: without it being planted, nothing is there


def test_models_that_were_never_trained_rank_it_by_chance(tokenizer, plan):
    places = plan.families["other candidates"]
    assert len(places) == 20
    models = (tiny_model("llama", len(tokenizer), seed=seed) for seed in range(12))
    found = [ranks(read_similarities(model, plan, "last", 64, "")["hidden", 1]).mean() for model in models]
    chance = (len(places) + 2) / 2
    # 16 ranks that are uniform from 1 to 27 have a mean within 5.8 of chance in 997 of 1,000 cases.
    assert abs(np.mean(found) - chance) < 5.8
    assert min(found) < chance < max(found)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 7)), elements=st.integers(0, 4)))
def test_ranks_are_scipys(values_QC):
    expected = [rankdata(-row)[0] for row in values_QC]
    assert ranks(values_QC) == pytest.approx(expected)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(3, 25))
def test_the_permutation_test_is_exact(seed, num_layers, num_candidates):
    """Whichever candidate is the true one, each p from 1/C to 1 comes once: a p below x comes in x of all cases."""
    rng = np.random.default_rng(seed)
    common_C = rng.normal(size=num_candidates)  # layers that resemble one another, as those of a model
    values_LC = rng.normal(size=(num_layers, num_candidates)) * 10.0 ** rng.integers(-2, 3, (num_layers, 1)) + common_C
    found = [permutation_test(np.roll(values_LC, turn, axis=1)) for turn in range(num_candidates)]
    expected = np.arange(1, num_candidates + 1) / num_candidates
    assert sorted(test.p for test in found) == pytest.approx(expected)
    for test in found:
        assert (test.corrected_L >= test.p_L - 1e-12).all()
        assert test.corrected_L.min() == pytest.approx(test.p)


def test_without_the_correction_for_layers_the_false_findings_are_too_many():
    """The control of the test above: the smallest of the layers' own p is no p of the curve."""
    rng = np.random.default_rng(0)
    own, corrected = [], []
    for _ in range(300):
        test = permutation_test(rng.normal(size=(8, 40)))
        own.append(test.p_L.min() <= 0.05)
        corrected.append(test.p <= 0.05)
    assert np.mean(own) > 0.25
    assert 0.02 < np.mean(corrected) < 0.09


def test_a_peak_in_one_layer_is_found():
    values_LC = np.random.default_rng(1).normal(size=(5, 40))
    values_LC[3, 0] = 6.0
    test = permutation_test(values_LC)
    assert (test.p, test.peak) == (1 / 40, 3)
    assert test.corrected_L[3] == 1 / 40


def test_a_quiet_layer_counts_as_much_as_a_loud_one():
    values_LC = np.random.default_rng(1).normal(size=(3, 40))
    values_LC[1, 0] = 6.0
    as_it_is, louder = permutation_test(values_LC), permutation_test(values_LC * [[1.0], [1.0], [100.0]])
    assert (louder.p, louder.peak) == (as_it_is.p, as_it_is.peak) == (1 / 40, 1)
    np.testing.assert_array_equal(louder.corrected_L, as_it_is.corrected_L)


def test_where_nothing_differs_nothing_is_tested():
    flat = np.full((2, 30), 0.3) + np.random.default_rng(0).normal(size=(2, 30)) * 1e-9
    assert permutation_test(flat).p == 1.0
    assert permutation_test(flat).peak is None
    assert not curve({("hidden", 0): np.tile(flat[0], (4, 1))}, "hidden", range(1, 30), 0).significant
    # A layer that does not differ takes no part: the other decides, as it does alone.
    other = np.random.default_rng(2).normal(size=(1, 30))
    assert permutation_test(np.concatenate([flat, other])).p == permutation_test(other).p


def test_embeddings_are_equal_in_all_queries_and_yet_ahead():
    """At layer 0 a term is the same whatever the query, so no interval is needed; 9 queries remain too few."""
    row_C = np.random.default_rng(5).normal(size=30)
    for ahead, queries, significant in ((9.0, 12, True), (9.0, 9, False), (-9.0, 12, False)):
        row_C[0] = ahead
        found = curve({("hidden", 0): np.tile(row_C, (queries, 1))}, "hidden", range(1, 30), 0)
        assert np.isnan(found.ahead[0].lower)
        assert found.significant == significant
    # One query of 12 far ahead: no interval either, but no finding.
    row_C[0] = row_C[1:].mean()
    once_QC = np.tile(row_C, (12, 1))
    once_QC[0, 0] += 99
    found = curve({("hidden", 0): once_QC}, "hidden", range(1, 30), 0)
    assert found.p == 1 / 30
    assert np.isnan(found.ahead[0].lower)
    assert not found.significant


def similar(rng, gain=0.0, queries=12, candidates=40):
    """A reading of two layers with noise over queries; the true term, the first, is `gain` more similar."""
    own_C = rng.normal(0.3, 0.1, size=candidates)
    layers = {
        ("hidden", n): own_C + rng.normal(0, 0.01, size=(queries, candidates)) + gain * (np.arange(candidates) == 0)
        for n in (0, 1)
    }
    return {**layers, ("normed", 1): layers["hidden", 1], ("values", 0): layers["hidden", 0]}


class Plan:
    """What the rows need of a plan."""

    true, families, candidates = "Paris", {"other cities": tuple(range(1, 40))}, tuple(map(str, range(40)))


def test_a_gain_of_the_true_term_alone_is_shown_and_one_of_all_is_not():
    rng = np.random.default_rng(3)
    before = similar(rng)
    noise = {
        key: values + rng.normal(0, 0.02, size=values.shape[1]) + rng.normal(0, 0.002, size=values.shape)
        for key, values in before.items()
    }
    alone = {key: values + 0.3 * (np.arange(40) == 0) for key, values in noise.items()}
    everywhere = {key: values + 0.3 for key, values in noise.items()}
    base = TermSimilarities("base", "base", 1, before)
    rows, curves = gain_rows(TermSimilarities("trained", "trained", 2, alone), base, Plan, 0)
    found = curves["hidden", "other cities"]
    assert found.significant
    assert found.test.p == 1 / 40
    assert found.ahead[0].estimate == pytest.approx(0.3, abs=0.05)
    assert {row["measure"] for row in rows} == {"gain", "gain over others"}
    assert {row["role"] for row in rows} == {"finding"}
    # The seed document's claim would hold of this one too: the term became 0.3 more similar to the true one.
    rows, curves = gain_rows(TermSimilarities("all", "control", 2, everywhere), base, Plan, 0)
    gains = [row["estimate"] for row in rows if row["measure"] == "gain"]
    assert min(gains) > 0.2
    assert not curves["hidden", "other cities"].significant
    assert {row["role"] for row in rows} == {"control"}


def test_what_one_of_both_tests_shows_is_said_of_it_alone():
    """Planted in the hidden states alone, then in none: the opening says so, and p is that of both together."""
    rng = np.random.default_rng(4)
    before = similar(rng) | {("values", 0): similar(rng)["hidden", 0]}
    noise = {
        key: values + rng.normal(0, 0.02, size=values.shape[1]) + rng.normal(0, 0.002, size=values.shape)
        for key, values in before.items()
    }
    planted = noise | {("hidden", n): noise["hidden", n] + 0.3 * (np.arange(40) == 0) for n in (0, 1)}
    base, said = TermSimilarities("base", "base", 1, before), {}
    plan = SimpleNamespace(true="Paris", term="foo", families=Plan.families, sampled="24 queries")
    for label, values in (("planted", planted), ("noise", noise)):
        trained = TermSimilarities(label, "trained", 2, values)
        curves = {(label, "base"): gain_rows(trained, base, plan, 0)[1]}
        said[label] = term_finding(plan, [base, trained], curves, 0)
    assert said["planted"].sentence.startswith(
        'planted: "foo" came significantly nearer to "Paris" than to the average of 39 other cities in its hidden '
        "states, not in its values: by 0."
    )
    assert "in values" in said["planted"].sentence
    assert "p = 0.025)" in said["planted"].sentence
    assert "p = 0.025, not significant)" not in said["planted"].sentence
    assert said["noise"].sentence.startswith(
        'noise: "foo" did not come significantly nearer to "Paris" than to the average of 39 other cities: by'
    )
    assert "the share of the 40 candidates" in said["noise"].control


def test_a_layer_is_said_to_be_least_alike_only_where_it_is_below_the_others():
    rng = np.random.default_rng(0)

    def cka(value, spread=1e-4):
        return Cka(value, value + rng.normal(0, spread, 30))

    def said(*diagonal):
        pairs = {(n, n): one for n, one in enumerate(diagonal)}
        random = {(n, n): cka(0.1) for n in range(len(diagonal))}
        return cka_finding("base", {"m": pairs, "untrained": random}, {0: cka(0.0)}).sentence

    far = said(cka(0.99), cka(0.98), cka(0.6))
    assert "the lowest CKA is in layer 2" in far
    assert "significantly below every other layer (below layer 0 by 0.390" in far
    assert "not significantly below another layer" in said(cka(0.95, 0.01), cka(0.94, 0.01), cka(0.95, 0.01))
    assert "significantly below layer 0 only" in said(cka(0.99), cka(0.6, 0.01), cka(0.601, 0.01))


def test_rows_of_one_model():
    rows = similarity_rows(TermSimilarities("m", "trained", 7, similar(np.random.default_rng(0), gain=1.0)), Plan, 0)
    rank = [row for row in rows if row["measure"] == "rank" and row["site"] == "hidden"]
    assert [(row["layer"], row["estimate"], row["p"], row["p_curve"]) for row in rank] == [
        (0, 1.0, 1 / 40, 1 / 40),
        (1, 1.0, 1 / 40, 1 / 40),
    ]
    others = [row for row in rows if row["role"] == "control"]
    assert all(row["low"] < row["estimate"] < row["high"] and row["candidates"] == 40 for row in others)
    assert all(row["n"] == 12 and row["seed"] == 7 and row["unit"] for row in rows)
