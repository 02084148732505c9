"""Lenses say what float64 arithmetic says; their training finds what can be found, and its control what cannot."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import neox, with_lora
from tiny_models import KINDS, tiny_model
from transformers import CohereConfig, CohereForCausalLM

from lm_trials.console import UsageError
from lm_trials.evaluation.losses import Document, story_losses
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.lens import lenses as lens_module
from lm_trials.probing.lens import training as lens_training
from lm_trials.probing.lens.figures import checkpoints_figure, lens_figure, text_figure
from lm_trials.probing.lens.lenses import (
    SUMS,
    Decoder,
    LensSums,
    Places,
    Translators,
    check_last_layer,
    kl_divergence,
    lens_sums,
    mean_prediction,
    read_text,
    scores,
    weights_sha256,
)
from lm_trials.probing.lens.report import LensResult, _control_sentence, by_run, finding_of, first_layer, readable
from lm_trials.probing.lens.training import LensSettings, TunedLens, drawn_batches, train_lens, train_translators

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")
LAYERS = (0, 1, 2)
TEXTS = [np.random.default_rng(length).integers(3, 60, length) for length in (9, 4, 6, 2)]
WIDTH = 16


def random_maps(layers=(0, 1), width=WIDTH, scale=0.3):
    draws = torch.Generator().manual_seed(3)
    return Translators(
        {layer: scale * torch.randn(width, width, generator=draws) for layer in layers},
        {layer: scale * torch.randn(width, generator=draws) for layer in layers},
    )


def softmax64(logits):
    """Log-probabilities in float64, by hand."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def normed64(kind, model, hidden):
    """The final norm in float64, by hand."""
    if kind == "gpt2":
        norm = model.transformer.ln_f
        centred = hidden - hidden.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
        return scaled * norm.weight.double().numpy() + norm.bias.double().numpy()
    norm = model.model.norm
    return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + norm.variance_epsilon) * norm.weight.double().numpy()


@torch.no_grad()
def by_hand(kind, model, maps=None):
    """The (S, 4) sums of each lens and layer, story by story and without padding, in float64 after the blocks."""
    head = model.lm_head.weight.double().numpy()
    found = {}
    for ids in TEXTS:
        states = model(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states
        states = [state[0, :-1].double().numpy() for state in states]
        final = softmax64(states[-1] @ head.T)  # transformers' last is after the norm
        for layer in LAYERS:
            for lens in ("logit", "tuned"):
                hidden = states[layer]
                if lens == "tuned" and layer < 2:
                    hidden = hidden + hidden @ maps.weights[layer].double().numpy().T + maps.biases[layer].numpy()
                said = final if layer == 2 else softmax64(normed64(kind, model, hidden) @ head.T)
                places = np.arange(len(ids) - 1)
                sums = (
                    -said[places, ids[1:]].sum(),
                    (np.exp(final) * (final - said)).sum(),
                    (said.argmax(-1) == final.argmax(-1)).sum(),
                    (said.argmax(-1) == ids[1:]).sum(),
                )
                found.setdefault((lens, layer), []).append(sums)
    return {key: np.array(rows) for key, rows in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_float64_by_hand(kind):
    model, maps = tiny_model(kind), random_maps()
    found = lens_sums(model, TEXTS, LAYERS, maps, batch_size=3, description=None)
    expected = by_hand(kind, model, maps)
    assert found.sums.keys() == expected.keys()
    assert found.tokens_S.tolist() == [8, 3, 5, 1]
    for key, rows in expected.items():
        np.testing.assert_allclose(found.sums[key], rows, rtol=1e-4, atol=1e-4)
    assert found.sums["tuned", 1][0, 1] > 0.1  # the comparison is of numbers that are not 0
    assert abs(found.sums["tuned", 1] - found.sums["logit", 1]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_is_the_model_by_every_token_and_the_others_are_not(kind):
    model = tiny_model(kind)
    found = lens_sums(model, TEXTS, LAYERS, description=None)
    documents = [Document(str(number), ids, 0) for number, ids in enumerate(TEXTS)]
    own = list(story_losses(model, documents, block_size=64))
    assert found.tokens_S.tolist() == [story.tokens for story in own]
    np.testing.assert_allclose(found.sums["logit", 2][:, 0], [story.nats for story in own], rtol=1e-5)
    assert found.sums["logit", 2][:, 3].tolist() == [story.correct for story in own]
    assert found.sums["logit", 2][:, 1].max() < 1e-4 < 0.1 < found.sums["logit", 1][:, 1].max()
    assert (found.sums["logit", 2][:, 2] == found.tokens_S).all()
    check = check_last_layer(model, TEXTS, found, window=64)
    assert check.kl < 1e-5
    assert check.apart < 1e-5
    assert check.loss == pytest.approx(sum(story.nats for story in own) / 17)


def test_a_lens_that_is_not_the_model_at_the_last_layer_is_a_fault():
    model = tiny_model("llama")
    found = lens_sums(model, TEXTS, LAYERS, description=None)
    found.sums["logit", 2][:, 0] *= 1.01
    with pytest.raises(RuntimeError, match="more than rounding explains"):
        check_last_layer(model, TEXTS, found, window=64)
    fewer = lens_sums(model, TEXTS[:3], LAYERS, description=None)
    with pytest.raises(RuntimeError, match="over 16 and 17 tokens"):
        check_last_layer(model, TEXTS, fewer, window=64)


def test_a_model_that_scales_its_logits_otherwise_than_its_configuration_is_refused():
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CohereForCausalLM(
        CohereConfig(**shape, intermediate_size=32, logit_scale=0.1, initializer_range=0.3, max_position_embeddings=64)
    ).eval()
    found = lens_sums(model, TEXTS, LAYERS, description=None)
    check_last_layer(model, TEXTS, found, window=64)
    model.logit_scale = 0.3
    with pytest.raises(UsageError, match="a scaler: its logits are not those of its final norm and output head"):
        check_last_layer(model, TEXTS, found, window=64, name="a scaler")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_and_chunks_change_no_result(batch_size, monkeypatch):
    model, maps, frequencies = tiny_model("gpt2"), random_maps(), torch.full((64,), 1 / 64).log()
    whole = lens_sums(model, TEXTS, LAYERS, maps, frequencies, 16, None)
    monkeypatch.setattr(lens_module, "LOGITS", 3 * 64)
    assert Decoder(anatomy_of(model)).places == 3
    pieces = lens_sums(model, TEXTS, LAYERS, maps, frequencies, batch_size, None)
    assert pieces.sums.keys() == whole.sums.keys() == {("frequencies", None), *by_lens("logit"), *by_lens("tuned")}
    for key, rows in whole.sums.items():
        np.testing.assert_allclose(pieces.sums[key], rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.sums["frequencies", None][:, 0], math.log(64) * whole.tokens_S, rtol=1e-6)


def by_lens(lens):
    return [(lens, layer) for layer in LAYERS]


def test_layers_that_are_asked_for_are_those_that_are_read():
    model = tiny_model("llama")
    every, one = (lens_sums(model, TEXTS, layers, description=None).sums for layers in (LAYERS, (1, 2)))
    assert set(one) == {("logit", 1), ("logit", 2)}
    np.testing.assert_array_equal(one["logit", 1], every["logit", 1])


@pytest.mark.parametrize(
    "model",
    [neox(), with_lora(tiny_model("llama"), "q_proj", "v_proj"), with_lora(tiny_model("gpt2"), "c_attn")],
    ids=["neox", "llama-lora", "gpt2-lora"],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
def test_other_models_and_adapters_are_read_as_they_are(model):
    found = lens_sums(model, TEXTS, LAYERS, description=None)
    check = check_last_layer(model, TEXTS, found, window=64)
    assert check.kl < 1e-4
    assert check.apart < 1e-4
    if hasattr(model, "disable_adapter"):  # and the adapter is in what was read
        with model.disable_adapter():
            base = lens_sums(model, TEXTS, LAYERS, description=None)
        assert abs(base.sums["logit", 1] - found.sums["logit", 1]).max() > 1e-2


probabilities = st.lists(st.floats(1e-4, 1), min_size=5, max_size=5).map(
    lambda weights: np.array(weights) / sum(weights)
)


@settings(deadline=None)
@given(probabilities, probabilities, st.integers(0, 4))
def test_scores_are_those_of_float64(final, lens, target):
    found = scores(*(torch.tensor(p[None], dtype=torch.float32).log() for p in (final, lens)), torch.tensor([target]))[
        0
    ]
    np.testing.assert_allclose(found[0], -np.log(lens[target]), atol=1e-5)
    np.testing.assert_allclose(found[1], (final * np.log(final / lens)).sum(), atol=1e-5)
    assert found[3] == (lens.astype(np.float32).argmax() == target)
    assert found[1] > -1e-6
    assert kl_divergence(*[torch.tensor(final).log()] * 2) == 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_mean_prediction_is_the_nearest_that_looks_at_nothing(kind):
    model = tiny_model(kind)
    found = mean_prediction(model, TEXTS, batch_size=3, description=None)
    said = [model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].double().softmax(-1) for ids in TEXTS]
    torch.testing.assert_close(found, torch.cat(said).mean(0).log(), rtol=1e-5, atol=1e-5)

    def kl(log_frequencies):
        return lens_sums(model, TEXTS, [2], None, log_frequencies, 16, None).sums["frequencies", None][:, 1].sum()

    counts = torch.from_numpy(np.bincount(np.concatenate(TEXTS), minlength=64) + 0.5)
    others = [(counts / counts.sum()).log(), torch.full((64,), 1 / 64).log()]
    others += [
        (found + 0.1 * torch.randn(64, generator=torch.Generator().manual_seed(s))).log_softmax(-1) for s in (0, 1)
    ]
    assert all(kl(found) < kl(other) for other in others)


class Planted:
    """A final norm and head without a model: what a training needs to make predictions."""

    device, places = torch.device("cpu"), 512

    def __init__(self, width=8, vocab_size=12, dtype=torch.float32):
        self.dtype = dtype
        self.head = 2 * torch.randn(vocab_size, width, generator=torch.Generator().manual_seed(0))

    def of_normed(self, normed_ND):
        return (normed_ND @ self.head.T).log_softmax(-1)

    def logits(self, hidden_ND):
        normed_ND = torch.nn.functional.rms_norm(hidden_ND, hidden_ND.shape[-1:])
        return (normed_ND.to(self.dtype) @ self.head.T.to(self.dtype)).float()

    def __call__(self, hidden_ND):
        return self.logits(hidden_ND).log_softmax(-1)


def planted(seed, places=96, width=8):
    """Layer 0 is the last layer in other directions, layer 1 is noise that has nothing to do with it."""
    draws = torch.Generator().manual_seed(seed)
    last, noise = (torch.randn(places, width, generator=draws) for _ in range(2))
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99)))
    normed = torch.nn.functional.rms_norm(last, (width,))
    return Places({0: last @ rotation.T, 1: noise}, normed, torch.zeros(places, dtype=torch.long), torch.zeros(places))


def train_planted(layers=(0, 1), steps=250, first=1, **more):
    given_ = LensSettings(steps=steps, **more)
    return train_translators((planted(first + step) for step in range(steps)), Planted(), layers, 8, given_)


def test_training_finds_a_rotation_and_in_noise_finds_the_token_frequencies_alone():
    maps, decode, held_out = train_planted(), Planted(), planted(0, places=4000)
    final = decode.of_normed(held_out.normed_ND)
    kl = {
        (lens, layer): float(kl_divergence(final, decode(use(layer, held_out.hidden[layer]))).mean())
        for layer in (0, 1)
        for lens, use in (("logit", lambda layer, hidden: hidden), ("tuned", maps))
    }
    frequencies = float(kl_divergence(final, final.exp().mean(0).log()).mean())
    assert kl["tuned", 0] < 0.02 * frequencies < 0.02 * kl["logit", 0]
    # The planted false finding: in noise too the tuned lens is far better than the logit lens.  The control shows why.
    assert kl["tuned", 1] < 0.7 * kl["logit", 1]
    assert kl["tuned", 1] > 0.99 * frequencies


def test_a_map_trained_through_a_head_in_float16_loses_no_small_probabilities():
    """A gradient of 1 / positions times a probability of 1 / tokens is 0 in float16."""
    settings_ = LensSettings(steps=1)

    def trained(dtype):
        decode = Planted(vocab_size=4096, dtype=dtype)
        decode.head /= 8  # flat predictions, as of a language model
        return train_translators([planted(1, places=2000)], decode, [0], 8, settings_).weights[0]

    exact, found = trained(torch.float32), trained(torch.float16)
    assert 0 < float((found - exact).norm() / exact.norm()) < 3e-4


def same(first, second):
    return all(
        torch.equal(a, b) for layer in first.weights for a, b in zip(first.of(layer), second.of(layer), strict=True)
    )


def test_training_gives_the_same_bits_again_and_of_each_layer_by_itself():
    both = train_planted(steps=12)
    assert same(both, train_planted(steps=12))
    assert not same(both, train_planted(steps=12, first=2))
    alone = train_planted(layers=(1,), steps=12)
    assert same(alone, both)
    assert 0 not in alone.weights


def test_a_rate_that_goes_to_infinity_is_refused():
    with pytest.raises(UsageError, match=r"--learning_rate 1e\+38 made the lens of layer 0 infinite"):
        train_planted(steps=4, learning_rate=1e38)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 12))
def test_each_pass_sees_every_story_once(count, batch_size, steps):
    drawn = list(drawn_batches(count, LensSettings(steps, batch_size)))
    assert [len(batch) for batch in drawn] == [batch_size] * steps
    seen = [number for batch in drawn for number in batch]
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))


def test_the_order_of_the_stories_is_the_seeds():
    first, again, other = (list(drawn_batches(20, LensSettings(9, 4, seed=seed))) for seed in (0, 0, 1))
    assert first == again != other


DOCUMENTS = {f"{number:032x}": ids for number, ids in enumerate(TEXTS)}


def trained(model, steps=3, layers=LAYERS, **more):
    frequencies = mean_prediction(model, TEXTS, description=None)
    return train_lens(model, DOCUMENTS, frequencies, layers, LensSettings(steps, 2, **more), "a model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lens_is_trained_on_a_frozen_model_and_its_story_fits_it_better(kind):
    model = tiny_model(kind)
    before = weights_sha256(model)
    lens = trained(model, steps=60)
    found = lens_sums(model, TEXTS, LAYERS, lens.translators, description=None)
    assert weights_sha256(model) == before
    assert all(p.grad is None for p in model.parameters())
    for layer in (0, 1):
        assert found.sums["tuned", layer][:, 1].sum() < 0.7 * found.sums["logit", layer][:, 1].sum()
    assert found.sums["tuned", 2] is found.sums["logit", 2]  # the last layer has no map
    assert (lens.about["layers"], lens.about["weights_sha256"], lens.about["stories"]) == ([0, 1], before, 4)


def test_one_update_is_the_gradient_of_the_kl():
    """The first update by autograd of the definition, in one piece: Nesterov's first step is 1 + 0.9 gradients."""
    model = tiny_model("llama")
    found = trained(model, steps=1, learning_rate=0.5).translators
    [numbers] = drawn_batches(4, LensSettings(1, 2))
    maps = Translators.identity((0, 1), WIDTH)
    leaves = [values.requires_grad_(True) for layer in (0, 1) for values in maps.of(layer)]
    terms = []
    for number in numbers:
        with torch.no_grad():
            output = model(input_ids=torch.from_numpy(TEXTS[number])[None], output_hidden_states=True)
        for layer in (0, 1):
            hidden = maps(layer, output.hidden_states[layer][0, :-1].clone())
            terms.append(kl_divergence(output.logits[0, :-1].log_softmax(-1), Decoder(anatomy_of(model))(hidden)))
    (torch.cat(terms).sum() / sum(len(TEXTS[number]) - 1 for number in numbers)).backward()
    for layer in (0, 1):
        torch.nn.utils.clip_grad_norm_(maps.of(layer), 1.0)
        for values, leaf in zip(found.of(layer), maps.of(layer), strict=True):
            torch.testing.assert_close(values, -0.5 * 1.9 * leaf.grad, rtol=1e-3, atol=1e-6)
            assert values.abs().max() > 1e-3
    assert len(leaves) == 4


def test_a_model_that_changes_while_its_lens_is_trained_is_a_fault(monkeypatch):
    def spoil(batches, decode, *more):
        decode.head.weight.data[0, 0] += 1
        return Translators.identity(*more[:2])

    monkeypatch.setattr(lens_training, "train_translators", spoil)
    with pytest.raises(RuntimeError, match="a model has changed while its lens was trained"):
        trained(tiny_model("llama"))


def test_a_lens_is_the_same_after_saving_and_its_file_the_same_bytes(tmp_path):
    lens = trained(tiny_model("llama"))
    lens.save(tmp_path / "a" / "lens.safetensors")
    lens.save(tmp_path / "b.safetensors")
    found = TunedLens.load(tmp_path / "b.safetensors")
    assert same(found.translators, lens.translators)
    assert found.about == lens.about
    assert torch.equal(found.log_frequencies_V, lens.log_frequencies_V)
    assert (found.stories == lens.stories).all()
    assert (tmp_path / "a/lens.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    trained(tiny_model("llama"), seed=1).save(tmp_path / "b.safetensors")
    assert (tmp_path / "a/lens.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()


def test_a_lens_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    lens, path = trained(tiny_model("llama")), tmp_path / "lens.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            lens.save(path)
    assert not path.exists()
    lens.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["lens.safetensors"]


def test_a_lens_of_another_model_or_layer_or_of_the_same_stories_is_refused():
    model = tiny_model("llama")
    lens, anatomy = trained(model, layers=(1, 2)), anatomy_of(model, "this one")
    lens.check("f", anatomy, weights_sha256(model), (1, 2))
    with pytest.raises(UsageError, match="--lens f was trained for a model, "):
        lens.check("f", anatomy, weights_sha256(tiny_model("llama", seed=1)), (1, 2))
    with pytest.raises(UsageError, match="--lens f has no layer 0; give --layers 1"):
        lens.check("f", anatomy, weights_sha256(model), LAYERS)
    other = SimpleNamespace(num_blocks=3, width=16, name="a deeper one")
    with pytest.raises(UsageError, match="of 2 blocks of width 16 and a deeper one has 3 of 16"):
        lens.check("f", other, "", (1,))
    lens.check_held_out("f", ["another", "third"])
    with pytest.raises(UsageError, match="--lens f was trained on 1 of the 2 stories"):
        lens.check_held_out("f", ["another", next(iter(DOCUMENTS))])


@pytest.mark.parametrize("content", [b"", b"no lens", None])
def test_a_file_that_holds_no_lens_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is None:  # safetensors of something else
        save_file({"a": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a tuned lens"):
        TunedLens.load(path)


@torch.no_grad()
def test_a_text_is_read_at_each_place_and_layer():
    model, maps, ids = tiny_model("gpt2"), random_maps(), TEXTS[0]
    rows = read_text(model, ids, LAYERS, maps)
    assert len(rows) == 2 * 3 * len(ids)
    states = model(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states
    for lens, layer in (("logit", 1), ("tuned", 1), ("tuned", 2)):
        here = [row for row in rows if (row["lens"], row["layer"]) == (lens, layer)]
        normed = states[2][0]
        if layer == 1:
            hidden = states[1][0]
            normed = model.transformer.ln_f(maps(1, hidden) if lens == "tuned" else hidden)
        best = model.lm_head(normed).softmax(-1).max(-1)
        assert [row["prediction"] for row in here] == best.indices.tolist()
        np.testing.assert_allclose([row["probability"] for row in here], best.values, rtol=1e-4)
        assert [row["after"] for row in here] == ids.tolist()


def result_of(kl, label="m", step=None, tuned=True, untrained_loss=7.0, stories=40, frequencies=2.0, noise=0.01):
    """A result whose stories of 10 places have these KLs by layer, each story a little other; the last layer's is 0."""
    draws, tokens = np.random.default_rng(1), np.full(stories, 10)
    lens = "tuned" if tuned else "logit"
    sums = {}

    def put(key, loss, distance):
        each = 1 + noise * draws.standard_normal(stories)
        sums[key] = np.stack([10 * loss * each, 10 * distance * each, 5 + 0 * each, 4 + 0 * each], axis=1)

    put(("frequencies", None), 6.0, frequencies)
    for layer, distance in enumerate([*kl, 0]):
        put((lens, layer), distance + 1, distance)
        put(("logit", layer), distance + 1, distance)
        put(("untrained", layer), untrained_loss, 0.1)
    path = f"runs/{label}" + (f"/checkpoint-{step}" if step else "")
    subject = SimpleNamespace(
        label=label, step=step, candidate=SimpleNamespace(seed=3), reference=SimpleNamespace(path=path, step=step)
    )
    check = SimpleNamespace(apart=0.0, __str__=lambda self: "same")
    about = SimpleNamespace() if tuned else None
    return LensResult(subject, list(range(len(kl) + 1)), LensSums(sums, tokens), check, check, about, 6.9, [])


def test_the_sentence_says_from_which_layer_on_and_with_what_interval():
    result = result_of([3.0, 1.5, 0.5])
    sentence = finding_of([result], checkpoints=False).sentence
    assert "from layer 1 on, the tuned lens is nearer" in sentence
    assert "It is nearer than layer 0 from layer 1 on. At layer 1 of 3 its KL is" in sentence
    kl = result.table["tuned", 1, "kl"]
    assert f"{kl.estimate:.3f} [{kl.lower:.3f}, {kl.upper:.3f}]" in sentence
    assert "n=40 stories" in sentence
    assert abs(kl.estimate - 1.5) < 0.02
    assert kl.lower < 1.5 < kl.upper
    below = result.table["tuned", 1, "kl_below_frequencies"]
    assert abs(below.estimate - 0.5) < 0.02
    assert below.lower > 0


NO_LAYER = (
    "no layer before the last is shown to be nearer to the final prediction than the token frequencies (tuned lens)"
)


def test_the_sentence_names_no_layer_where_none_is_nearer():
    sentence = finding_of([result_of([2.1, 2.0, 2.05])], checkpoints=False).sentence
    assert NO_LAYER in sentence
    unsure = result_of([1.8, 1.8], noise=0.6)
    below = unsure.table["tuned", 1, "kl_below_frequencies"]
    assert below.lower < 0 < below.estimate  # nearer by the estimate, but not beyond doubt
    assert NO_LAYER in finding_of([unsure], checkpoints=False).sentence
    assert NO_LAYER not in finding_of([result_of([1.8, 1.8])], checkpoints=False).sentence
    dip = result_of([1.0, 2.5, 1.0])  # what is lost on the way is not "from layer 0 on"
    assert first_layer(dip, "kl_below_frequencies") == 2
    assert first_layer(dip, "kl_below_layer_0") is None
    assert "nearer than layer 0 at no layer before the last" in finding_of([dip], checkpoints=False).sentence


def test_a_second_model_is_set_beside_the_first_with_the_difference():
    first, same_, other = result_of([3.0, 1.5]), result_of([3.0, 1.5], "b"), result_of([3.0, 1.0], "c")
    sentence = finding_of([first, same_, other], checkpoints=False).sentence
    assert "b: nearer than the token frequencies from layer 1 on; " in sentence
    assert "difference from m 0.000 [no interval] (not significant)." in sentence
    assert "difference from m -0.500 [" in sentence
    assert "significant" not in sentence.partition("c: ")[2]


def test_the_control_sentence_would_tell_of_random_weights_that_read():
    assert "shape predict no better than chance" in _control_sentence([result_of([1.0])])
    assert "shape predict BETTER than chance" in _control_sentence([result_of([1.0], untrained_loss=5.0)])
    # A model whose own frequencies are worse than guessing is no measure for it.
    poor = result_of([1.0], untrained_loss=6.95)
    poor.sums.sums["frequencies", None][:, 0] = 10 * 8.0
    assert "shape predict no better than chance" in _control_sentence([poor])


def test_over_training_the_change_is_told_with_its_interval_and_no_change_too():
    results = [result_of([3.0, 2.0], step=step, tuned=False) for step in (10, 20)]
    assert "did not change significantly (0.000" in finding_of(results, checkpoints=True).sentence
    results[1] = result_of([3.0, 1.0], step=20, tuned=False)
    sentence = finding_of(results, checkpoints=True).sentence
    assert "m: the logit lens' KL from layer 1 to the final prediction changed (-0.99" in sentence
    assert "at step 10 to 0.99" in sentence
    results[1] = result_of([3.0, 1.0], tuned=False)
    assert "at the final model (n=40" in finding_of(results, checkpoints=True).sentence


def test_runs_with_folders_of_one_name_are_two_series():
    results = [result_of([kl, kl], f"{x}/run", step, tuned=False) for x, step, kl in (("a", 10, 3.0), ("a", None, 3.0),
               ("b", 10, 1.0), ("b", 20, 1.0))]  # fmt: skip
    assert {run: len(group) for run, group in by_run(results).items()} == {"a/run": 2, "b/run": 2}
    assert finding_of(results, checkpoints=True).sentence.count("did not change significantly (0.000") == 2
    assert list(by_run(results[:2])) == ["run"]


def test_rows_are_the_token_weighted_means_of_the_stories():
    result = result_of([3.0, 1.5])
    rows = {(row["lens"], row["layer"], row["metric"]): row for row in result.rows}
    for name, place in zip(SUMS, range(4), strict=True):
        table = result.sums.sums["tuned", 1]
        assert rows["tuned", 1, name]["estimate"] == pytest.approx(table[:, place].sum() / 400)
    assert {row["role"] for row in result.rows if row["lens"] in ("frequencies", "untrained")} == {"control"}
    assert {row["role"] for row in result.rows if row["lens"] in ("tuned", "logit")} == {"finding"}
    assert all((row["seed"], row["n"]) == (3, 40) for row in result.rows)


def test_figures_draw_each_lens_and_any_token():
    result = result_of([3.0, 1.5])
    figure = lens_figure(result.rows, "t")
    assert [axes.get_title() for axes in figure.axes] == [
        "KL(final || lens)", "cross-entropy of the true token", "same top token as the final prediction",
    ]  # fmt: skip
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines.keys() == {"tuned lens", "logit lens", "token frequencies", "untrained, logit lens"}
    assert lines["tuned lens"] == [result.table["tuned", layer, "kl"].estimate for layer in range(3)]
    steps = [{**row, "run": "r", "step": step} for step in (10, 20) for row in result.rows]
    assert len(checkpoints_figure(steps, "t").axes[0].lines) == 3
    row = {"lens": "logit", "layer": 0, "position": 0, "after": "$x_$", "estimate": 0.5}
    figure = text_figure([{**row, "prediction": "你"}, {**row, "layer": 1, "prediction": "$a_"}], "t")
    figure.savefig("/dev/null", format="png")  # a glyph that is lacking would warn, and a lone $ fail
    assert [text.get_text() for text in figure.axes[0].texts] == ["$a_", "□"]


def test_tokens_can_be_read():
    names = {0: "▁day", 1: "Ġday", 2: "<0x0A>", 3: "<0xE2>", 4: "day", 5: None, 6: "▁"}
    texts = {0: "day", 1: " day", 2: "\n", 3: "\ufffd", 4: "day", 5: "", 6: ""}
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=names.get, decode=lambda ids, clean_up_tokenization_spaces: texts[ids[0]]
    )
    assert [readable(tokenizer, n) for n in range(7)] == ["␣day", "␣day", "\\n", "<0xE2>", "day", "[5]", "␣"]
