"""Changes of weights against numpy and planted truths; edits that undo them; units ranked as removing them tells."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, tiny_model

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate
from lm_trials.evaluation.losses import Document, per_story_windows
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.tables import ProbeTable
from lm_trials.probing.weights.changes import (
    Matrix,
    Spectrum,
    change_of,
    check_same_shape,
    matrices_of,
    overlap,
    random_spectra,
    turning,
)
from lm_trials.probing.weights.edits import (
    BACK,
    LARGEST,
    NOISE,
    OWN,
    Gates,
    Pruning,
    Removal,
    Workbench,
    _nats,
    check_gates,
    removed_part,
    unit_effects,
)
from lm_trials.probing.weights.report import Deletion, _mostly, show_trials

W = Matrix("w", "w")


def parameters(model):
    return {name: tensor.detach().to(torch.float64, copy=True) for name, tensor in model.named_parameters()}


def documents(count=6, vocab_size=64, seed=0):
    draws = np.random.default_rng(seed)
    return [Document(str(n), draws.integers(1, vocab_size, 9 + n), num_bytes=9) for n in range(count)]


def a_change(rows=9, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    old, new = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    return change_of(W, {"w": old}, {"w": new}), old.numpy(), new.numpy()


# Spectra


def test_a_planted_rank_is_found():
    u, v = np.random.default_rng(0).standard_normal((2, 30))
    one = Spectrum(np.linalg.svd(np.outer(u, v), compute_uv=False), rounding=1e-9)
    assert (one.rank, one.share(1)) == (1, pytest.approx(1))
    assert one.effective_rank == pytest.approx(1, abs=1e-9)
    assert one.stable_rank == pytest.approx(1, abs=1e-9)
    even = Spectrum(np.full(7, 0.3))
    assert (even.effective_rank, even.stable_rank, even.share(2)) == tuple(map(pytest.approx, (7, 7, 2 / 7)))
    full = random_spectra((30, 30), 1, seed=0)[0]
    assert full.effective_rank > 20
    assert full.share(1) < 0.2


@given(
    st.lists(st.floats(0, 1e6).filter(lambda value: value == 0 or value > 1e-6), min_size=1, max_size=8),
    st.floats(0.1, 9),
)
def test_ranks_have_bounds_and_no_scale(values, scale):
    values_R = np.sort(values)[::-1]
    spectrum, scaled = Spectrum(values_R), Spectrum(values_R * scale)
    if not any(values):
        assert np.isnan([spectrum.effective_rank, spectrum.stable_rank, spectrum.share(1)]).all()
        return
    positive = sum(value > 0 for value in values)
    assert 1 - 1e-9 <= spectrum.stable_rank <= spectrum.effective_rank**2 + 1e-6
    assert 1 - 1e-9 <= spectrum.effective_rank <= positive + 1e-9
    assert scaled.effective_rank == pytest.approx(spectrum.effective_rank)
    assert spectrum.share(len(values)) == pytest.approx(1)


def test_the_decomposition_is_numpys():
    change, old, new = a_change()
    u, s, v = np.linalg.svd(new - old, full_matrices=False)
    assert change.s_R.numpy() == pytest.approx(s, abs=1e-12)
    assert ((change.u_OR * change.s_R) @ change.v_RI).numpy() == pytest.approx((u * s) @ v, abs=1e-12)
    assert change.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))
    assert (change.shape, change.spectrum.rank) == ((9, 5), 5)


def test_random_spectra_repeat_and_differ():
    first, again, other = (random_spectra((8, 6), 2, seed) for seed in (0, 0, 1))
    assert (first[0].values_R == again[0].values_R).all()
    assert (first[0].values_R != other[0].values_R).any()
    assert (first[0].values_R != first[1].values_R).any()


# Matrices of a model


def test_gpt2s_fused_matrix_comes_apart_the_right_way_round():
    model = tiny_model("gpt2")
    weights = parameters(model)
    found = {matrix.name: matrix for matrix in matrices_of(model)}
    fused = weights["transformer.h.1.attn.c_attn.weight"]  # inputs by outputs
    for place, part in enumerate("qkv"):
        matrix = found[f"transformer.h.1.attn.c_attn.{part}"]
        assert torch.equal(matrix.of(weights), fused[:, 16 * place : 16 * place + 16].T)
        assert (matrix.block, matrix.kind) == (1, f"attn.c_attn.{part}")
    assert found["transformer.h.0.mlp.c_fc"].of(weights).shape == (64, 16)  # outputs by inputs
    assert found["transformer.wte"].block is None
    found["transformer.h.1.attn.c_attn.k"].of(weights).zero_()  # a view: what is written arrives
    assert not fused[:, 16:32].any()
    assert fused[:, :16].all()
    assert fused[:, 32:].all()


def test_llamas_matrices_are_its_two_dimensional_parameters():
    model = tiny_model("llama")
    weights = parameters(model)
    found = matrices_of(model)
    assert [m.parameter for m in found] == [name for name, values in weights.items() if values.dim() == 2]
    assert all(torch.equal(m.of(weights), weights[m.parameter]) for m in found)
    assert {m.kind for m in found if m.block == 1} == {
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    }


def test_models_of_two_shapes_are_refused():
    llama, gpt2 = (parameters(tiny_model(kind)) for kind in ("llama", "gpt2"))
    check_same_shape("a", llama, "b", parameters(tiny_model("llama", seed=3)))
    with pytest.raises(UsageError, match=r"^--model_name_or_path a and b have different shapes \(.*none.*\)"):
        check_same_shape("a", llama, "b", gpt2)
    wider = parameters(tiny_model("llama", vocab_size=70))
    with pytest.raises(UsageError, match=r"\(model.embed_tokens.weight: \(64, 16\) and \(70, 16\)\)"):
        check_same_shape("a", llama, "b", wider)


# Two changes beside one another


def test_what_is_undone_has_cosine_minus_one():
    change = [torch.randn(50, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)]
    back = turning(change, [-0.25 * tensor for tensor in change])
    assert (back.cosine, back.taken_back, back.n) == (pytest.approx(-1), pytest.approx(0.25), 59)
    assert turning(change, change).cosine == pytest.approx(1)


def test_random_changes_stay_within_what_chance_gives():
    inside = 0
    for seed in range(200):
        first, second = torch.randn(2, 400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        turned = turning([first], [second])
        inside += abs(turned.cosine) <= turned.by_chance
    assert 180 <= inside <= 199  # 95 % of them


def test_overlap_is_one_in_the_same_span_and_by_chance_in_random_ones():
    change, _, _ = a_change(40, 30)
    assert overlap(change, change, top=3) == (pytest.approx(1), pytest.approx(1))
    found = np.mean([overlap(change, a_change(40, 30, seed)[0], top=3) for seed in range(1, 60)], axis=0)
    assert found == pytest.approx([3 / 40, 3 / 30], abs=0.02)
    assert np.isnan(overlap(change, change, top=31)).all()


# Taking directions back


@given(st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_what_is_removed_is_what_its_name_says(directions, seed):
    change, old, new = a_change(seed=seed)
    u, s, v = np.linalg.svd(new - old, full_matrices=False)
    top = min(directions, 5)
    parts = {
        method: removed_part(change, method, directions, torch.Generator().manual_seed(seed)).numpy()
        for method in (LARGEST, BACK, OWN, NOISE)
    }
    assert parts[LARGEST] == pytest.approx((u[:, :top] * s[:top]) @ v[:top], abs=1e-10)
    for method in (BACK, NOISE):  # as large, and elsewhere
        assert np.linalg.norm(parts[method]) == pytest.approx(np.linalg.norm(s[:top]))
    assert np.linalg.svd(parts[NOISE], compute_uv=False)[:top] == pytest.approx(s[:top])
    assert not np.allclose(parts[NOISE], parts[LARGEST])
    assert np.linalg.matrix_rank(parts[OWN], tol=1e-9) == top
    if top == 5:
        for method in (LARGEST, BACK, OWN):
            assert parts[method] == pytest.approx(new - old, abs=1e-10)
    else:
        assert not np.allclose(parts[BACK], parts[LARGEST])


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_rank_one_change_is_gone_with_one_direction(kind):
    model = tiny_model(kind)
    base, changed = parameters(model), parameters(model)
    matrices = matrices_of(model)
    generator = torch.Generator().manual_seed(1)
    for matrix in matrices:
        rows, columns = matrix.of(changed).shape
        u, v = (torch.randn(width, generator=generator, dtype=torch.float64) for width in (rows, columns))
        matrix.of(changed).add_(0.3 * torch.outer(u, v))
    kept = {name: tensor.clone() for name, tensor in changed.items()}
    changes = [change_of(matrix, base, changed) for matrix in matrices]
    assert all(change.spectrum.rank == 1 for change in changes)
    removal = Removal(changed, changes, seed=0)
    for method, same in ((LARGEST, True), (BACK, True), (NOISE, False)):
        apart = max(float((removal.weights(method, 1)[name] - base[name]).abs().max()) for name in base)
        assert (apart < 1e-12) is same, method
    bench = Workbench(model, {"set": documents()}, window=32, batch_size=4)
    nats = {}
    for name, weights in {"base": base, "changed": changed, "back": removal.weights(LARGEST, 1)}.items():
        bench.put(weights)
        nats[name] = bench.sums()["set"][:, 0]
    assert (nats["back"] == nats["base"]).all()  # to the last bit: in float32 they are the same weights
    assert (abs(nats["changed"] - nats["base"]) > 1e-3).all()
    assert all(torch.equal(changed[name], kept[name]) for name in changed)  # the originals stay


def test_random_directions_repeat_and_differ_by_seed_and_count():
    change, _, _ = a_change()
    after = {"w": torch.zeros(9, 5, dtype=torch.float64)}
    first, again, other = (Removal(after, [change], seed).weights(NOISE, 2)["w"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


# Pruning


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_gate_is_a_unit_whose_weights_are_zero(kind):
    model = tiny_model(kind)
    anatomy = anatomy_of(model)
    inputs = {"input_ids": torch.arange(1, 12)[None], "use_cache": False}
    plain = model(**inputs).logits
    for what, columns in (("neurons", 1), ("heads", 16 // anatomy.num_heads)):
        gates = Gates(anatomy, what).ones()
        gates[1][1] = 0.0
        with torch.no_grad(), Gates(anatomy, what, gates):
            gated = model(**inputs).logits
        edited = tiny_model(kind)
        edited.load_state_dict(model.state_dict())
        layer = Gates(anatomy_of(edited), what).layers[1]
        with torch.no_grad():
            weight = layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T
            weight[:, columns : 2 * columns] = 0.0
            assert torch.allclose(edited(**inputs).logits, gated, atol=1e-6)
        assert not torch.allclose(plain, gated, atol=1e-3)
    assert torch.equal(model(**inputs).logits, plain)  # no hook stays


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gates_of_one_change_nothing_and_a_fault_is_seen(monkeypatch, dtype):
    anatomy = anatomy_of(tiny_model("gpt2", dtype=dtype))
    assert check_gates(anatomy, "heads", range(1, 9)).largest == 0
    assert {gate.dtype for gate in Gates(anatomy, "heads").gates} == {torch.float32}
    honest = Gates.ones
    monkeypatch.setattr(Gates, "ones", lambda self, *batch: [gate * 1.01 for gate in honest(self, *batch)])
    with pytest.raises(RuntimeError, match="the gates change the model"):
        check_gates(anatomy, "heads", range(1, 9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["neurons", "heads"])
def test_effects_are_gradients_and_their_squares_by_finite_differences(kind, what):
    model = tiny_model(kind, dtype=torch.float64).requires_grad_(False)
    anatomy, stories = anatomy_of(model), documents(3)
    found = unit_effects(anatomy, what, stories, window=32, batch_size=2, description="ranking")
    windows = list(per_story_windows(enumerate(stories), 32))
    tokens = sum(len(story.input_ids) - 1 for story in stories)
    for block, unit in ((0, 0), (1, 1)):
        expected = 0.0
        for window in windows:
            nats = []
            for gate in (1.001, 0.999):
                gates = Gates(anatomy, what).ones()
                gates[block][unit] = gate
                with torch.no_grad(), Gates(anatomy, what, gates):
                    nats.append(float(_nats(model, [window])))
            slope = (nats[0] - nats[1]) / 0.002
            expected += (slope - slope**2 / 2) / tokens
        assert found[block][unit] == pytest.approx(expected, rel=2e-3, abs=3e-5)  # Llama's norm is in float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_wrapper_is_the_first_to_go(kind):
    """A neuron that writes what spoils predictions: it is ranked first, and without it the loss is the base's."""
    model = tiny_model(kind)
    anatomy = anatomy_of(model)
    layers = Gates(anatomy, "neurons").layers
    for layer in layers:
        layer.weight.data *= 0.05
    weight = layers[1].weight if isinstance(layers[1], torch.nn.Linear) else layers[1].weight.T
    weight.data[:, 5] = 0.0
    stories = documents(30, vocab_size=9, seed=9)
    _nats(model, list(per_story_windows(enumerate(stories), 32))).backward()
    spoiling = layers[1].weight.grad if isinstance(layers[1], torch.nn.Linear) else layers[1].weight.grad.T
    bench = Workbench(model, {"set": documents(30, vocab_size=9)}, window=32, batch_size=8)
    base = bench.sums()["set"]
    weight.data[:, 5] = 0.5 * len(stories) * spoiling[:, 5] / (spoiling[:, 5] ** 2).sum()
    deletion = Deletion(base, bench.sums()["set"], seed=0)
    assert deletion.significant
    ranked = Pruning.by_effect(unit_effects(anatomy, "neurons", stories, 32, 8, "ranking"))
    assert ranked.order[0] == (1, 5)
    shares = {}
    for name, order in (("ranked", ranked), ("random", ranked.at_random(3))):
        with Gates(anatomy, "neurons", order.gates(1, weight)):
            shares[name] = deletion.undone(bench.sums()["set"])
    assert shares["ranked"].estimate == pytest.approx(1, abs=1e-4)
    assert shares["random"].upper < 0.5


def test_what_the_control_set_pays_counts_against_a_unit_and_what_it_gains_does_not():
    helped, spared = [np.array([3.0, 2.0, 1.0])], [np.array([-9.0, 0.0, 50.0])]
    assert Pruning.by_effect(helped).order == [(0, 0), (0, 1), (0, 2)]
    assert Pruning.by_effect(helped, spared).order == [(0, 1), (0, 2), (0, 0)]
    pruning = Pruning.by_effect(helped)
    assert sorted(pruning.at_random(1).order) == sorted(pruning.order)
    assert (pruning.count(0.0001), pruning.count(0.67), pruning.count(1)) == (1, 2, 3)


# The share undone


def sums(nats, tokens=10):
    return np.stack([np.asarray(nats, dtype=float), np.full(len(nats), float(tokens))], axis=1)


def test_the_share_undone_is_a_ratio_of_sums_over_the_same_stories():
    draws = np.random.default_rng(0)
    base = draws.gamma(20, 1, 200)
    changed, trial = base + draws.gamma(2, 1, 200), base + draws.gamma(1, 1, 200)
    deletion = Deletion(sums(base), sums(changed), seed=0)
    found = deletion.undone(sums(trial))
    assert found.estimate == pytest.approx((changed - trial).sum() / (changed - base).sum())
    weights = draws.poisson(1.0, (4000, 200))
    resampled = (weights @ (changed - trial)) / (weights @ (changed - base))
    assert (found.lower, found.upper) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.02)
    everything = deletion.undone(sums(base))
    assert (everything.estimate, everything.n) == (1.0, 200)
    assert np.isnan([everything.lower, everything.upper]).all()  # the same in every story
    assert [_mostly(share) for share in (everything, found, deletion.undone(sums(changed)))] == [True, False, False]
    assert deletion.beyond(sums(base), sums(trial)).lower > 0
    assert deletion.beyond(sums(trial), sums(trial)).estimate == 0
    assert np.isnan(deletion.beyond(sums(trial), sums(trial)).upper)


def test_no_rise_is_no_deletion():
    nats = np.random.default_rng(1).gamma(20, 1, 100)
    noise = np.random.default_rng(2).normal(0, 1, 100)
    assert not Deletion(sums(nats), sums(nats + noise - noise.mean()), seed=0).significant
    assert Deletion(sums(nats), sums(nats + noise - noise.mean() + 1), seed=0).significant


def test_the_table_says_what_it_shows(capsys):
    """Without a deletion there is no share of it: the table has losses, and its title says so."""
    for metric, title in (
        ("share_undone", "share of the deletion"),
        ("loss on a", "loss, nats per"),
    ):
        rows = ProbeTable()
        rows.add(Estimate(0.5, 0.4, 0.6, n=9, unit=""), {"metric": metric, "method": "ranked", "level": 1})
        show_trials(rows, "by neurons pruned", "neurons", ["ranked"])
        assert title in capsys.readouterr().out
