"""The embedding is the diagonal of the Fisher information as defined: every drawing enumerated, in float64."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny_model

from lm_trials.console import UsageError
from lm_trials.probing.diversity.fisher import (
    DRAWINGS,
    ProbeNetwork,
    fit_final_layer,
    signs_to_scores,
    squared_gradients,
)
from lm_trials.probing.diversity.flags import DiversityArguments

VOCABULARY, PLACES = 3, 2
# Llama's normalisation computes in float32 whatever the weights are.
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-4}
TEXT = np.array([0, 2, 1])
TEXTS = [np.array([1, 5, 7, 2, 9, 9]), np.array([1, 3, 3]), np.array([1, 60, 4, 8, 5, 7, 5, 2])]


def tiny_probe(kind="gpt2", vocab_size=64, dtype=torch.float32, **settings):
    model = tiny_model(kind, vocab_size=vocab_size, dtype=dtype)
    return ProbeNetwork(model, DiversityArguments(**settings))


def exact_fisher(probe, ids):
    """The definition by loops: the squared gradient of the log-probability of each token at each place."""
    total = []
    log_probs = probe.model(torch.as_tensor(ids)[None]).logits[0, :-1].log_softmax(-1)
    for place, token in itertools.product(range(log_probs.shape[0]), range(log_probs.shape[1])):
        gradients = torch.autograd.grad(
            log_probs[place, token], [w.values for w in probe.weights], retain_graph=True, allow_unused=True
        )
        chance = log_probs[place, token].detach().exp()
        squares = [
            chance * (torch.zeros_like(w.values) if g is None else g) ** 2
            for w, g in zip(probe.weights, gradients, strict=True)
        ]
        total.append(torch.cat([w.filter_means(s) for w, s in zip(probe.weights, squares, strict=True)]))
    return torch.stack(total).sum(dim=0)


def logits_of(probe, ids):
    return probe.model(torch.as_tensor(ids)[None]).logits[0, :-1]


def untied(kind):
    """A model whose table is not its final layer, as the probe's copy of the final layer makes it."""
    probe = tiny_probe(kind, VOCABULARY, torch.float64)
    if kind == "gpt2":
        probe.model.lm_head.weight = torch.nn.Parameter(probe.model.lm_head.weight.detach().clone())
    return probe


@pytest.mark.parametrize("kind", KINDS)
def test_squares_of_drawn_tokens_have_the_definition_as_their_expectation(kind):
    """All 9 texts of tokens that could be drawn, each with its chance: no Monte-Carlo error at all."""
    probe = untied(kind)
    logits_TV = logits_of(probe, TEXT)
    chances_TV = logits_TV.detach().softmax(-1)
    expected = 0
    for drawn in itertools.product(range(VOCABULARY), repeat=PLACES):
        chance = chances_TV[torch.arange(PLACES), list(drawn)].prod()
        scores_TV = torch.eye(VOCABULARY, dtype=torch.float64)[list(drawn)] - chances_TV
        expected = expected + chance * squared_gradients(logits_TV, scores_TV, probe.weights, keep_graph=True)
    torch.testing.assert_close(expected, exact_fisher(probe, TEXT), rtol=TOLERANCE[kind], atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_squares_of_signs_have_it_too(kind):
    """All 64 choices of 6 signs."""
    probe = untied(kind)
    logits_TV = logits_of(probe, TEXT)
    chances_TV = logits_TV.detach().softmax(-1)
    choices = list(itertools.product((-1.0, 1.0), repeat=PLACES * VOCABULARY))
    assert len(choices) == 64
    expected = 0
    for signs in choices:
        scores_TV = signs_to_scores(chances_TV, torch.tensor(signs, dtype=torch.float64).view(PLACES, VOCABULARY))
        expected = expected + squared_gradients(logits_TV, scores_TV, probe.weights, keep_graph=True) / len(choices)
    torch.testing.assert_close(expected, exact_fisher(probe, TEXT), rtol=TOLERANCE[kind], atol=1e-14)


def test_labels_and_tokens_of_the_next_place_give_something_else():
    """The control of the two above: the empirical Fisher, and the published code's shift by one place."""
    probe = untied("gpt2")
    logits_TV = logits_of(probe, TEXT)
    chances_TV, exact = logits_TV.detach().softmax(-1), exact_fisher(probe, TEXT)
    eye = torch.eye(VOCABULARY, dtype=torch.float64)
    with_labels = squared_gradients(logits_TV, eye[TEXT[1:]] - chances_TV, probe.weights, keep_graph=True)
    assert not torch.allclose(with_labels, exact, rtol=0.1)
    shifted = 0
    for drawn in itertools.product(range(VOCABULARY), repeat=PLACES):
        chance = chances_TV.roll(-1, 0)[torch.arange(PLACES), list(drawn)].prod()
        shifted = shifted + chance * squared_gradients(logits_TV, eye[list(drawn)] - chances_TV, probe.weights, True)
    assert not torch.allclose(shifted, exact, rtol=0.05)


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_drawn_scores_have_the_covariance_of_the_model_s_own_tokens(drawing):
    chances_TV = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).repeat(40_000, 1)
    scores_TV = DRAWINGS[drawing](chances_TV, torch.Generator().manual_seed(0))
    p = chances_TV[0]
    torch.testing.assert_close(scores_TV.T @ scores_TV / 40_000, p.diag() - p.outer(p), rtol=0, atol=5e-3)
    assert scores_TV.mean(dim=0).abs().max() < 0.01


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_an_embedding_converges_to_the_exact_one(drawing):
    """The whole way, fitting left out: 200 draws of one text against the loops."""
    probe = tiny_probe("llama", VOCABULARY, torch.float64, finetune_steps=0, fisher_draws=200, fisher_drawing=drawing)
    fisher_F = probe.embed([TEXT], "a").fisher_F
    exact_F = exact_fisher(probe, TEXT).numpy() / PLACES
    assert np.abs(fisher_F - exact_F).max() < 0.5 * exact_F.max()
    assert fisher_F.sum() == pytest.approx(exact_F.sum(), rel=0.2)
    assert fisher_F.sum() != pytest.approx(exact_F.sum() * PLACES, rel=0.2)


def test_signs_are_less_noisy_than_tokens_where_the_model_is_sure():
    spread = {}
    for chances in ([0.98, 0.01, 0.01], [0.5, 0.5, 0.0]):
        chances_TV = torch.tensor([chances], dtype=torch.float64).repeat(10_000, 1)
        for drawing, draw in DRAWINGS.items():
            squares_TV = draw(chances_TV, torch.Generator().manual_seed(0)).square()
            spread[drawing, chances[0]] = squares_TV[:, 0].std() / squares_TV[:, 0].mean()
    assert spread["signs", 0.98] < 0.25 * spread["tokens", 0.98]
    assert not spread["signs", 0.5] < 0.25 * spread["tokens", 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_batch_and_name_give_the_same_bits_and_another_name_does_not(kind):
    probe = tiny_probe(kind)
    first, again, other = (probe.embed(TEXTS, name) for name in ("a", "a", "b"))
    assert np.array_equal(first.halves_2F, again.halves_2F)
    assert not np.array_equal(first.halves_2F, other.halves_2F)
    assert not np.array_equal(first.halves_2F[0], first.halves_2F[1])
    assert (first.loss, first.fitted_loss) == (other.loss, other.fitted_loss)
    assert first.places == sum(len(text) - 1 for text in TEXTS)


def test_texts_add_up_weighted_by_their_tokens():
    """Without a fitting each text's part is its own: a batch is the mean over places, however it is put together."""
    probe = tiny_probe("llama", dtype=torch.float64, finetune_steps=0, fisher_draws=2)
    generator = torch.Generator().manual_seed(3)
    parts = [probe._text_fisher(torch.as_tensor(text), probe.final_layer, generator) for text in TEXTS]
    places = sum(len(text) - 1 for text in TEXTS)
    generator.manual_seed(3)
    whole = sum(probe._text_fisher(torch.as_tensor(text), probe.final_layer, generator) for text in TEXTS) / places
    torch.testing.assert_close(whole, sum(parts) / places, rtol=1e-14, atol=0)
    assert not torch.allclose(whole, parts[0] / (len(TEXTS[0]) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_model_changes(kind):
    model = tiny_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embedding = ProbeNetwork(model, DiversityArguments()).embed(TEXTS, "a")
    assert embedding.fitted_loss < embedding.loss  # the copy of the final layer did change
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_changes_the_embedding_and_only_the_final_layer_is_left_out(kind):
    plain, fitted = (tiny_probe(kind, finetune_steps=steps).embed(TEXTS, "a") for steps in (0, 10))
    assert plain.loss == plain.fitted_loss == fitted.loss
    assert not np.allclose(plain.fisher_F, fitted.fisher_F, rtol=0.01)
    probe = tiny_probe(kind)
    names = [weight.name for weight in probe.weights]
    body = dict(probe.body.named_modules())
    assert not any("head" in name for name in names)
    assert {n for n, m in body.items() if isinstance(getattr(m, "weight", None), torch.nn.Parameter)} == set(names)
    assert len(plain.fisher_F) == len(probe.is_table_F)
    assert probe.is_table_F.sum() == 64 * (2 if kind == "gpt2" else 1)  # tokens, and GPT-2's positions


def test_a_filter_is_an_output_unit_however_the_weights_are_stored():
    weights = {weight.name: weight for weight in tiny_probe("gpt2").weights}
    narrow_to_wide = weights["h.0.mlp.c_fc"]  # Conv1D, (in, out) = (16, 64)
    assert narrow_to_wide.values.shape == (16, 64)
    assert narrow_to_wide.filter_means(narrow_to_wide.values.square()).shape == (64,)
    linear = {weight.name: weight for weight in tiny_probe("llama").weights}["layers.0.mlp.up_proj"]
    assert linear.filter_means(linear.values.square()).shape == (linear.values.shape[0],)
    assert linear.values.shape == (32, 16)


def test_the_fit_is_on_the_whole_batch_in_any_order():
    head = torch.nn.Linear(4, 5, bias=False).double()
    features, targets = torch.randn(2100, 4, dtype=torch.float64), torch.arange(2100) % 5
    settings = DiversityArguments(finetune_steps=3, finetune_learning_rate=0.1)
    order = torch.randperm(2100)
    fitted, *losses = fit_final_layer(head, features, targets, settings)
    again, *losses_again = fit_final_layer(head, features[order], targets[order], settings)
    torch.testing.assert_close(fitted.weight, again.weight)
    assert losses == pytest.approx(losses_again)
    shuffled, *_ = fit_final_layer(head, features, targets[order], settings)  # labels that belong to other places
    assert not torch.allclose(fitted.weight, shuffled.weight)


def test_a_model_that_runs_away_is_said_so():
    with pytest.raises(UsageError, match=r"not finite or all 0.*lower --finetune_learning_rate"):
        tiny_probe(finetune_learning_rate=1e30, finetune_steps=3).embed(TEXTS, "a")
    probe = tiny_probe(finetune_steps=0)
    with torch.no_grad():
        probe.weights[2].values.fill_(float("nan"))
    with pytest.raises(UsageError, match="loss goes from nan"):
        probe.embed(TEXTS, "a")


def test_a_final_layer_with_something_behind_it_is_refused():
    model = tiny_model("gpt2")
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits)
    ProbeNetwork(model, DiversityArguments())  # a hook that changes nothing
    model.forward = lambda forward=model.forward, **inputs: _halved(forward(**inputs))
    with pytest.raises(UsageError, match="changes the logits after its final layer"):
        ProbeNetwork(model, DiversityArguments())


def _halved(output):
    output.logits = output.logits / 2
    return output
