"""Probes on families that differ: what is captured, swapped and compared is exact, or refused before the work."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import family, hooks, opt
from transformers import OPTConfig, OPTForCausalLM

from lm_trials.console import UsageError
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import SITES, Capture, check_capture
from lm_trials.probing.interventions import ModelPart, Patched
from lm_trials.probing.lens import report
from lm_trials.probing.lens.flags import LensArguments
from lm_trials.probing.lens.lenses import Decoder, check_head, check_last_layer, lens_sums
from lm_trials.probing.lens.training import LensStories
from lm_trials.probing.weights.changes import Matrix, change_of, matrices_of
from lm_trials.probing.weights.edits import Gates
from lm_trials.stories.records import make_record

IDS = list(range(3, 15))
IDS_BT = torch.tensor([IDS, [number + 20 for number in IDS]])
# By family, the sites that are refused; all others are exact.
WITHOUT_ATTENTION = {"keys", "values", "attention", "heads", "attention_output", "mlp"}
REFUSED = {
    "llama": set(),
    "mixtral": set(),
    "gemma2": set(),
    "cohere": set(),
    "gpt_oss": {"attention"},
    "mamba": WITHOUT_ATTENTION,
    "bamba": WITHOUT_ATTENTION,
    "jamba": WITHOUT_ATTENTION,
    "qwen3_next": WITHOUT_ATTENTION,
    "falcon_h1": {"attention_output", "mlp"},
    "gemma3n_text": {"hidden", "attention_output", "mlp"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_site_is_captured_exactly_or_refused(kind):
    model = family(kind)
    for site in SITES:
        expected = pytest.raises(UsageError, match=f"^{kind}: ") if site in REFUSED[kind] else nullcontext()
        with expected:
            check_capture(model, IDS, [site], kind)
    assert not hooks(model)


def test_the_blocks_of_a_hybrid_that_have_values_are_captured():
    model = family("jamba")
    with pytest.raises(UsageError, match=r"block 0 of a JambaForCausalLM has no values; blocks with values: 1$"):
        Capture(model, ["values"])
    with Capture(model, {"values": [1]}) as capture:
        model(input_ids=IDS_BT)
    with torch.no_grad():
        cached_BKTE = model(input_ids=IDS_BT, use_cache=True).past_key_values.layers[1].values
    assert torch.equal(capture.activations.of("values", 1), cached_BKTE.transpose(1, 2).flatten(0, 1))


def test_attention_that_sums_to_one_is_accepted_in_16_bits_too():
    check_capture(family("llama").to(torch.bfloat16), IDS, ["attention"])


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "cohere", "granite", "mixtral", "mamba", "jamba", "falcon_h1"])
def test_the_lens_at_the_last_layer_is_the_model(kind):
    model, documents = family(kind), [np.array(ids) for ids in IDS_BT.tolist()]
    assert check_head(model, documents[0], kind) < 1e-5
    sums = lens_sums(model, documents, [anatomy_of(model).num_blocks], description=None)
    assert check_last_layer(model, documents, sums, window=32).apart < 1e-5


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_without_what_follows_the_head_the_lens_is_refused(kind, monkeypatch):
    monkeypatch.setattr("lm_trials.probing.lens.lenses.after_head", lambda config: (None, 1.0))
    with pytest.raises(UsageError, match="changes its logits after them"):
        check_head(family(kind), np.array(IDS), kind)


def test_a_lens_is_refused_where_the_head_reads_a_projection_of_the_hidden_states():
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    for width in (8, 16):
        model = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=width)).eval()
        if width == 8:
            with pytest.raises(UsageError, match="projects its hidden states before them"):
                check_head(model, np.array(IDS), "OPT 350M")
        else:
            assert check_head(model, np.array(IDS), "OPT 125M") < 1e-5


def test_the_head_is_checked_before_a_lens_is_trained(monkeypatch):
    monkeypatch.setattr("lm_trials.probing.lens.lenses.after_head", lambda config: (None, 1.0))
    monkeypatch.setattr(report, "load_subject", lambda subject, models: family("gemma2"))
    monkeypatch.setattr(report, "mean_prediction", lambda *_: pytest.fail("stories are read for training"))
    stories = LensStories([make_record("a")], [make_record("b")])
    subject = SimpleNamespace(label="it", story_ids=lambda texts: [np.array(IDS) for _ in texts])
    texts, args = SimpleNamespace(per_device_eval_batch_size=2), LensArguments()
    with pytest.raises(UsageError, match=r"^it: its logits are not those"):
        report.measure_subject(subject, stories, None, texts, args, None)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma2", "jamba"])
def test_a_swap_is_the_same_with_rows_with_a_donor_and_with_a_cache(kind):
    model, donor = family(kind), family(kind, seed=1)
    with torch.no_grad(), Capture(donor, ["hidden"]) as capture:
        donor(input_ids=IDS_BT)
    part = ModelPart("hidden", 1)
    with torch.no_grad(), Patched(model, {part: capture.activations.of("hidden", 1)}):
        by_rows = model(input_ids=IDS_BT, use_cache=False).logits
    with torch.no_grad(), Patched(model, [part], donor=donor):
        by_donor = model(input_ids=IDS_BT, use_cache=False).logits
    assert torch.equal(by_rows, by_donor)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=IDS_BT, use_cache=False).logits, by_rows, atol=1e-3)
    torch.testing.assert_close(*(swapped_generation(model, donor, part, use_cache) for use_cache in (True, False)))


def swapped_generation(model, donor, part, use_cache):
    """The logits of six tokens generated with a part of another model."""
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    mask_BT = torch.ones_like(IDS_BT)
    with Patched(model, [part], donor=donor):
        found = model.generate(IDS_BT, attention_mask=mask_BT, use_cache=use_cache, return_dict_in_generate=True, **how)
    return torch.stack(found.logits)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_donor_without_keys_cannot_follow_a_cache(kind):
    model, donor = family(kind), family(kind, seed=1)
    with pytest.raises(UsageError, match="generate with use_cache=False"):
        swapped_generation(model, donor, ModelPart("hidden", 1), use_cache=True)
    assert swapped_generation(model, donor, ModelPart("hidden", 1), use_cache=False).shape[0] == 6


def test_the_mlp_of_an_opt_is_swapped_too():
    model, donor = opt(), opt(seed=1)
    with torch.no_grad(), Capture(donor, ["mlp"]) as capture:
        donor(input_ids=IDS_BT)
    logits = []
    for swaps, other in (
        ({ModelPart("mlp", 0): capture.activations.of("mlp", 0)}, None),
        ([ModelPart("mlp", 0)], donor),
    ):
        with torch.no_grad(), Patched(model, swaps, donor=other):
            logits.append(model(input_ids=IDS_BT, use_cache=False).logits)
    assert torch.equal(*logits)


def test_a_part_that_a_family_does_not_have_is_refused_without_a_trace():
    model = family("mamba")
    for part in (
        ModelPart("mlp", 0),
        ModelPart("attention_output", 0),
        ModelPart("heads", 0),
        ModelPart("heads", 0, 1),
    ):
        with pytest.raises(UsageError):
            Patched(model, {part: torch.zeros(1, 32)})
    for kind in ("neurons", "heads"):
        with pytest.raises(UsageError):
            Gates(anatomy_of(model), kind)
    assert not hooks(model)


@pytest.mark.parametrize(
    ("kind", "experts", "turned"), [("mixtral", 4, False), ("olmoe", 4, False), ("gpt_oss", 4, True)]
)
def test_the_matrices_of_experts_are_compared_one_by_one(kind, experts, turned):
    model = family(kind)
    found = [matrix for matrix in matrices_of(model) if matrix.expert is not None]
    names = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert {matrix.kind for matrix in found} == names
    assert len(found) == experts * len(names) * 2
    assert len({matrix.name for matrix in found}) == len(found)
    before = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    matrix = next(m for m in found if m.kind.endswith("down_proj") and m.expert == 2)
    assert matrix.of(before).shape[0] == 32  # outputs first: the width
    after = dict(before)
    after[matrix.parameter] = before[matrix.parameter].clone()
    direction = torch.outer(torch.randn(32).double(), torch.randn(matrix.of(before).shape[1]).double())
    after[matrix.parameter][2] += direction.T if turned else direction
    assert change_of(matrix, before, after).spectrum.rank == 1
    other = Matrix(matrix.name, matrix.parameter, matrix.transposed, expert=1)
    assert change_of(other, before, after).spectrum.norm == 0


def test_the_convolutions_of_a_state_space_model_are_no_matrices():
    assert all(matrix.expert is None for matrix in matrices_of(family("mamba")))


def test_a_decoder_is_as_before_where_nothing_follows_the_head():
    model = family("llama")
    anatomy = anatomy_of(model)
    hidden_ND = torch.randn(5, 32)
    assert torch.equal(Decoder(anatomy).logits(hidden_ND), anatomy.head(anatomy.final_norm(hidden_ND)))
