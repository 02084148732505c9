"""What is captured is what the model computed: held against transformers' own outputs, sums and projections."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import hooks, neox, opt
from tiny_models import KINDS, tiny_model

from lm_trials.console import UsageError
from lm_trials.probing import capture as capture_module
from lm_trials.probing.activation_store import captured, padded
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import SITES, Capture, check_capture, kept_tokens

BUILDERS = {"gpt2": lambda: tiny_model("gpt2"), "llama": lambda: tiny_model("llama"), "neox": neox, "opt": opt}
LENGTHS = (7, 3, 5, 1)
TEXTS = [np.random.default_rng(length).integers(3, 60, length) for length in LENGTHS]
MODELS = {name: build() for name, build in BUILDERS.items()}


@pytest.fixture(params=list(BUILDERS))
def model(request):
    """A model that is the same before and after: no hook, the same attention, not in training."""
    model = MODELS[request.param]
    before = hooks(model), model.config._attn_implementation
    yield model
    assert (hooks(model), model.config._attn_implementation, model.training) == (*before, False)


@torch.no_grad()
def capture(model, sites=tuple(SITES), texts=TEXTS, positions=None, **more):
    ids_BT, mask_BT = padded(texts)
    with Capture(model, sites, positions) as found:
        found.output = model(input_ids=ids_BT, attention_mask=mask_BT, **more)
    return found


@torch.no_grad()
def own(model, texts=TEXTS, attention="eager", **more):
    """transformers' own outputs of a padded batch, and which tokens are no padding."""
    ids_BT, mask_BT = padded(texts)
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    asked = {"output_hidden_states": True, "output_attentions": attention == "eager", "use_cache": True}
    output = model(input_ids=ids_BT, attention_mask=mask_BT, **asked, **more)
    model.set_attn_implementation(before)
    return output, mask_BT.bool()


for built in MODELS.values():
    own(built)  # transformers' own recording leaves hooks behind for good, which are none of ours


def test_hidden_states_are_transformers_own_but_the_last_which_is_before_the_norm(model):
    output, mask_BT = own(model, attention="sdpa")
    found = capture(model, ["hidden", "normed"]).activations
    anatomy = anatomy_of(model)
    depth = anatomy.num_blocks
    assert found.layers("hidden") == list(range(depth + 1))
    assert found.layers("normed") == [depth]
    for layer in range(depth):
        torch.testing.assert_close(found.of("hidden", layer), output.hidden_states[layer][mask_BT], rtol=0, atol=0)
    last_ND = output.hidden_states[-1][mask_BT]
    torch.testing.assert_close(found.of("normed", depth), last_ND, rtol=0, atol=0)
    assert (found.of("hidden", depth) - last_ND).abs().max() > 0.1  # P10: another scale
    with torch.no_grad():
        torch.testing.assert_close(anatomy.final_norm(found.of("hidden", depth)), last_ND)
        torch.testing.assert_close(anatomy.head(found.of("normed", depth)), output.logits[mask_BT])
        assert (anatomy.head(found.of("hidden", depth)) - output.logits[mask_BT]).abs().max() > 0.1


def test_keys_and_values_are_the_caches(model):
    output, mask_BT = own(model, attention="sdpa")
    found = capture(model, ["keys", "values"]).activations
    for layer, cached in enumerate(output.past_key_values.layers):
        heads = cached.keys.shape[1]
        assert heads == (2 if model is not MODELS["neox"] and model is not MODELS["opt"] else 4)  # Llama: 4 query heads
        keys_NKE, values_NKE = (getattr(cached, site).transpose(1, 2)[mask_BT] for site in ("keys", "values"))
        assert torch.equal(found.of("keys", layer), keys_NKE)
        assert torch.equal(found.of("values", layer), values_NKE)
        assert not torch.equal(keys_NKE, values_NKE)
    assert not torch.equal(found.of("values", 0), found.of("values", 1))


def test_attention_weights_are_those_of_eager_attention_and_their_rows_sum_to_one(model):
    output, mask_BT = own(model)
    found = capture(model, ["attention"]).activations
    for layer, weights_BHTT in enumerate(output.attentions):
        for text, mask_T in enumerate(mask_BT):
            weights_HTT = found.of("attention", layer)[text]
            assert torch.equal(weights_HTT, weights_BHTT[text][:, mask_T][:, :, mask_T])
            assert weights_HTT.shape == (anatomy_of(model).num_heads, LENGTHS[text], LENGTHS[text])
            torch.testing.assert_close(weights_HTT.sum(-1), torch.ones(weights_HTT.shape[:2]))
            assert torch.equal(weights_HTT, weights_HTT.tril())
    assert (found.of("attention", 0)[0] - found.of("attention", 1)[0]).abs().max() > 1e-3


def test_what_the_parts_add_is_what_the_hidden_states_gain(model):
    found = capture(model, ["hidden", "attention_output", "mlp"]).activations
    for block in range(anatomy_of(model).num_blocks):
        before, after = found.of("hidden", block), found.of("hidden", block + 1)
        attention, mlp = found.of("attention_output", block), found.of("mlp", block)
        torch.testing.assert_close(before + attention + mlp, after, rtol=0, atol=1e-5)
        assert (before + mlp - after).abs().max() > 1e-3
        assert (before + attention - after).abs().max() > 1e-3


def test_the_heads_projected_are_what_the_attention_gives(model):
    found = capture(model, ["heads", "attention_output"]).activations
    anatomy = anatomy_of(model)
    for block in range(anatomy.num_blocks):
        with torch.no_grad():
            projected = anatomy.projection(block)(found.of("heads", block))
            other = anatomy.projection(block)(found.of("heads", (block + 1) % anatomy.num_blocks))
        torch.testing.assert_close(projected, found.of("attention_output", block))
        assert (other - projected).abs().max() > 1e-3


def left_padded(texts):
    ids_BT, mask_BT = padded(texts)
    rolled = [(row.roll(len(row) - len(text)), mask.roll(len(row) - len(text)))
              for row, mask, text in zip(ids_BT, mask_BT, texts, strict=True)]  # fmt: skip
    ids_BT, mask_BT = (torch.stack(rows) for rows in zip(*rolled, strict=True))
    return ids_BT, mask_BT, (mask_BT.cumsum(1) - 1).clamp(min=0)


def test_padding_on_either_side_gives_the_same_tokens(model):
    sites = ["hidden", "keys", "values", "mlp", "heads", "attention_output", "normed"]
    right = capture(model, sites).activations
    ids_BT, mask_BT, positions_BT = left_padded(TEXTS)
    with torch.no_grad(), Capture(model, [*sites, "attention"]) as found:
        model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT)
        left = found.activations
        model(input_ids=ids_BT, attention_mask=mask_BT)
        unplaced = found.activations
    for name in ("text_N", "position_N", "lengths_B"):
        assert torch.equal(getattr(left, name), getattr(right, name))
    for site, layer in right.values:
        torch.testing.assert_close(left.of(site, layer), right.of(site, layer), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        left.of("attention", 1)[1], capture(model, ["attention"]).activations.of("attention", 1)[1]
    )
    if model is MODELS["gpt2"]:  # without position ids it reads a text that begins late, captured or not
        assert (unplaced.of("hidden", 0) - right.of("hidden", 0)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_size_give_the_same_tokens(kind):
    model = MODELS[kind]
    sites = [site for site in SITES if site != "attention"]
    alone = {}
    for text, ids_T in enumerate(TEXTS):
        alone[text] = capture(model, sites, [ids_T]).activations
    for size in range(1, len(TEXTS) + 1):
        seen = []
        for found in captured(model, TEXTS, sites, batch_size=size, description=None):
            for row, text in enumerate(found.document_B.tolist()):
                mine_N = found.text_N == row
                assert found.position_N[mine_N].tolist() == list(range(LENGTHS[text]))
                for site, layer in found.values:
                    values = alone[text].of(site, layer)
                    torch.testing.assert_close(found.of(site, layer)[mine_N], values, rtol=1e-4, atol=1e-5)
                seen.append(text)
        assert sorted(seen) == list(range(len(TEXTS)))
    assert (alone[0].of("hidden", 1)[:3] - alone[1].of("hidden", 1)).abs().max() > 0.1


def test_padding_is_never_included_and_would_move_the_mean(model):
    found = capture(model, ["hidden"]).activations
    assert len(found.of("hidden", 0)) == sum(LENGTHS)
    assert found.text_N.tolist() == [text for text, length in enumerate(LENGTHS) for _ in range(length)]
    means_BD = found.means("hidden", 1)
    padded_BTD, mask_BT = own(model, attention="sdpa")[0].hidden_states[1], padded(TEXTS)[1].bool()
    for text, mask_T in enumerate(mask_BT):
        torch.testing.assert_close(means_BD[text], padded_BTD[text][mask_T].mean(0))
        last_D = padded_BTD[text][mask_T][-2:].mean(0)
        torch.testing.assert_close(found.means("hidden", 1, last=2)[text], last_D)
    moved_B = (padded_BTD.mean(1) - means_BD).norm(dim=1) / means_BD.norm(dim=1)
    assert moved_B[0] < 1e-5  # the longest has none
    assert moved_B[1:].min() > 0.1


def test_the_other_tokens_of_a_padded_text_change_nothing():
    """What stands in the padding is not read; what stands in the text is."""
    model = MODELS["llama"]
    ids_BT, mask_BT = padded(TEXTS)
    others = [ids_BT.clone(), ids_BT.clone()]
    others[0][1, LENGTHS[1] :] = 7
    others[1][1, 1] += 1
    found = []
    for ids in (ids_BT, *others):
        with torch.no_grad(), Capture(model) as capturing:
            model(ids, mask_BT)
        found.append(capturing.activations.of("hidden", 2))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert (found[0] - found[2]).abs().max() > 0.1


@pytest.mark.parametrize("positions", [1, 2, 100, [[0], [2, 0], [-1, -1, -5], []]], ids=str)
def test_only_the_positions_that_are_asked_for_are_kept(model, positions):
    every = capture(model).activations
    found = capture(model, positions=positions).activations
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    wanted = []
    for text, length in enumerate(LENGTHS):
        chosen = range(max(0, length - positions), length) if isinstance(positions, int) else positions[text]
        wanted += [(text, position % length) for position in chosen]
    assert list(zip(found.text_N.tolist(), found.position_N.tolist(), strict=True)) == wanted
    rows = [starts[text] + position for text, position in wanted]
    for site, layer in every.values:
        if site != "attention":
            assert torch.equal(found.of(site, layer), every.of(site, layer)[rows])
            continue
        for text in range(len(LENGTHS)):
            mine = [position for other, position in wanted if other == text]
            assert torch.equal(found.of(site, layer)[text], every.of(site, layer)[text][:, mine])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_kept_tokens_are_the_places_of_the_positions(data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    width = max(lengths) + data.draw(st.integers(0, 3))
    left = data.draw(st.booleans())
    mask_BT = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask_BT[row, width - length :] = left
        mask_BT[row, : length if not left else width] |= not left
    listed = [data.draw(st.lists(st.integers(-length, length - 1), max_size=4)) for length in lengths]
    positions = data.draw(st.one_of(st.none(), st.integers(1, 12), st.just(listed)))
    expected = []
    for row, length in enumerate(lengths):
        start = row * width + (width - length if left else 0)
        if positions is None:
            chosen = range(length)
        elif isinstance(positions, int):
            chosen = range(length)[-positions:]
        else:
            chosen = [position % length for position in positions[row]]
        expected += [start + position for position in chosen]
    assert kept_tokens(mask_BT, positions).tolist() == expected


@pytest.mark.parametrize(("positions", "said"), [
    (0, "positions must be at least 1 (the last n tokens of each text), not 0"),
    (-2, "positions must be at least 1 (the last n tokens of each text), not -2"),
    ([[7], [0], [0], [0]], "position 7: the text has 7 tokens; give 0 to 6"),
    ([[0], [-4], [0], [0]], "position -4: the text has 3 tokens; give 0 to 2"),
    ([[0]], "positions are given for 1 of 4 texts; give them for each text"),
])  # fmt: skip
def test_positions_that_a_text_does_not_have_are_one_line(positions, said):
    before = hooks(MODELS["llama"])
    with pytest.raises(UsageError) as raised:
        capture(MODELS["llama"], ["hidden"], positions=positions)
    assert str(raised.value) == said
    assert hooks(MODELS["llama"]) == before


def test_masks_of_any_type_and_place_are_understood(model):
    ids_BT, mask_BT = padded(TEXTS)
    expected = capture(model, ["hidden"]).activations
    named = "gpt2" if model is MODELS["gpt2"] else "second"
    calls = {
        "bool": lambda: model(input_ids=ids_BT, attention_mask=mask_BT.bool()),
        "int": lambda: model(ids_BT, attention_mask=mask_BT.int()),
        "float": lambda: model(ids_BT, attention_mask=mask_BT.float()),
        "by place": lambda: model(ids_BT, None, mask_BT) if named == "gpt2" else model(ids_BT, mask_BT),
    }
    for call in calls.values():
        with torch.no_grad(), Capture(model) as found:
            call()
        assert torch.equal(found.activations.text_N, expected.text_N)
        torch.testing.assert_close(found.activations.of("hidden", 2), expected.of("hidden", 2))
    with torch.no_grad(), Capture(model) as found:
        model(ids_BT)
    assert len(found.activations.text_N) == ids_BT.numel()  # nothing says that there is padding
    with pytest.raises(UsageError, match=r"attention_mask: .* pass a mask of the shape of input_ids"), Capture(model):
        model(input_ids=ids_BT, attention_mask=torch.zeros(4, 1, 7, 7))
    with pytest.raises(UsageError, match="a text has no tokens; leave empty texts out"), Capture(model):
        model(input_ids=ids_BT, attention_mask=mask_BT * torch.tensor([[1], [0], [1], [1]]))


def test_a_capture_goes_on_from_nothing(model):
    ids_BT = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        cache = model(ids_BT, use_cache=True).past_key_values
    calls = {
        "past_key_values": lambda: model(ids_BT, past_key_values=cache),
        "past_key_values: ": lambda: model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=2, do_sample=False, pad_token_id=0
        ),
        "needs input_ids": lambda: model(inputs_embeds=model.get_input_embeddings()(ids_BT)),
    }
    for said, call in calls.items():
        with pytest.raises(UsageError, match=said), Capture(model):
            call()
    if model is MODELS["llama"]:  # its second argument is the mask, its fourth the cache
        with pytest.raises(UsageError, match="past_key_values"), Capture(model):
            model(ids_BT, None, None, cache)


def test_a_second_forward_replaces_the_first_and_one_that_fails_leaves_nothing(model):
    with torch.no_grad(), Capture(model) as found:
        model(torch.tensor([[5, 6, 7]]))
        first = found.activations
        model(torch.tensor([[8, 9]]))
        second = found.activations
        assert (len(first.text_N), len(second.text_N)) == (3, 2)
        with pytest.raises(IndexError):
            model(torch.tensor([[5, 6_000]]))
        with pytest.raises(RuntimeError, match="nothing was captured yet"):
            _ = found.activations
        model(torch.tensor([[8, 9]]))
    assert torch.equal(found.activations.of("hidden", 1), second.of("hidden", 1))
    assert len(first.of("hidden", 0)) == 3  # what was read stays as it was


def test_captures_nest_and_one_is_entered_again_but_not_twice(model):
    whole, ids = capture(model, ["hidden", "attention"], [TEXTS[0]]).activations, torch.as_tensor(TEXTS[0])[None]
    inner, outer = Capture(model, ["attention"], positions=1), Capture(model, ["hidden", "attention"])
    for _ in range(2):
        with torch.no_grad(), outer:
            with inner:
                model(ids)
                assert model.config._attn_implementation == "eager"
                with pytest.raises(RuntimeError, match="already active"):
                    inner.__enter__()
            assert model.config._attn_implementation == "eager"  # the outer one still reads it
        assert torch.equal(outer.activations.of("hidden", 2), whole.of("hidden", 2))
        assert torch.equal(inner.activations.of("attention", 1)[0], whole.of("attention", 1)[0][:, -1:])


def test_a_model_that_never_ran_is_an_error(model):
    found = Capture(model, ["hidden", "attention"])
    with pytest.raises(RuntimeError, match="captured 0 of 2 sites; did the model run inside the `with`"), found:
        pass
    with pytest.raises(RuntimeError, match="nothing was captured yet"):
        _ = found.activations
    again = Capture(model)
    with torch.no_grad(), again:
        model(torch.tensor([[5]]))
    with pytest.raises(RuntimeError, match="captured 0 of 1"), again:
        pass


@pytest.mark.parametrize("sites", [["hidden"], list(SITES)], ids=len)
def test_an_exception_leaves_the_model_as_it_was(model, sites):
    """The fixture counts hooks and compares the attention; a capture that cannot be set up is in the next test."""
    for fault in (KeyboardInterrupt, ValueError):
        with pytest.raises(fault), torch.no_grad(), Capture(model, sites):  # noqa: PT012
            model(torch.tensor([[5, 6]]))
            raise fault
    with pytest.raises(IndexError), Capture(model, sites):
        model(torch.tensor([[6_000]]))
    batches = captured(model, TEXTS, sites, batch_size=1, description=None)
    next(batches)  # left there


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_is_missing_leaves_no_hook(kind):
    model = tiny_model(kind)
    block = anatomy_of(model).blocks[1]
    block.other, block.mlp = block.mlp, None
    with pytest.raises(UsageError, match="has no known MLP module"):
        Capture(model, ["attention", "hidden", "mlp"]).__enter__()
    assert (hooks(model), model.config._attn_implementation) == (0, "sdpa")


def test_the_count_of_hooks_sees_one_that_was_left():
    model = tiny_model("llama")
    assert hooks(model) == 0
    found = Capture(model, ["hidden", "attention"]).__enter__()
    assert hooks(model) == 2 + 3 + 2
    found._leave()
    assert hooks(model) == 0


def test_sites_and_layers_are_chosen_and_refused(model):
    depth = anatomy_of(model).num_blocks
    found = capture(model, {"hidden": [-1, 0], "values": [-1], "mlp": None}).activations
    assert list(found.values) == [("hidden", depth), ("hidden", 0), ("values", depth - 1)] + [
        ("mlp", block) for block in range(depth)
    ]
    assert torch.equal(found.of("hidden", depth), capture(model, ["hidden"]).activations.of("hidden", depth))
    with pytest.raises(KeyError, match="keys 0 was not captured; captured are hidden"):
        found.of("keys", 0)
    for sites, said in {
        ("hiden",): "site hiden: did you mean hidden? valid: attention, ",
        ("hidden", depth + 1): f"layer {depth + 1}: it has hidden states 0 to {depth} ",
        ("mlp", depth): f"layer {depth}: it has blocks 0 to {depth - 1} ",
    }.items():
        with pytest.raises(UsageError) as raised:
            Capture(model, {sites[0]: [sites[1]]} if len(sites) > 1 else sites, name="it")
        assert str(raised.value).startswith(said)


def test_what_is_captured_is_a_copy_of_the_models_own(model):
    found = capture(model, ["hidden", "values"], [TEXTS[0]])
    before = found.activations.of("values", 0).clone()
    found.output.past_key_values.layers[0].values.zero_()
    assert torch.equal(found.activations.of("values", 0), before)
    assert before.abs().max() > 0
    assert found.activations.of("hidden", 1).dtype == torch.float32
    assert not found.activations.of("hidden", 1).requires_grad


def test_gradients_flow_past_a_capture(model):
    ids_BT = torch.as_tensor(TEXTS[0])[None]
    with Capture(model, ["hidden", "heads"]) as found:
        loss = model(ids_BT, labels=ids_BT).loss
    loss.backward()
    grad = model.get_input_embeddings().weight.grad
    assert grad.abs().max() > 0
    assert not found.activations.of("hidden", 1).requires_grad
    model.zero_grad(set_to_none=True)


def test_capturing_changes_no_logits_and_a_hook_that_does_is_seen(model, monkeypatch):
    sites = [site for site in SITES if site != "attention"]
    check = check_capture(model, TEXTS[0], sites, "it")
    assert (check.largest, check.tokens, check.sites) == (0, len(TEXTS[0]), tuple(sites))
    assert str(check) == f"capturing {', '.join(sites)} changes no log-probability (7 tokens)"
    eager = check_capture(model, TEXTS[0], ["attention"])
    assert 0 <= eager.largest < 1e-4

    keep = Capture._keep
    for site in ("hidden", "mlp", "heads"):

        def careless(self, name, layer, values_BTD, site=site):
            keep(self, name, layer, values_BTD)
            if (name, layer) == (site, 1):
                values_BTD[..., 0] += 0.01  # in place: the model goes on with it

        monkeypatch.setattr(Capture, "_keep", careless)
        with pytest.raises(RuntimeError, match=r"it: capturing .* more than rounding explains"):
            check_capture(model, TEXTS[0], [site], "it")
    monkeypatch.setattr(
        Capture, "_keep", lambda self, name, layer, values: keep(self, name, layer, values.mul_(float("nan")))
    )
    with pytest.raises(RuntimeError, match="changes log-probabilities by at most nan"):
        check_capture(model, TEXTS[0], ["hidden"])


def test_eager_attention_in_half_precision_may_round_as_it_does_but_hooks_may_change_nothing(monkeypatch):
    model = tiny_model("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # as sharp as trained models are: improbable tokens round by more than a nat
    check = check_capture(model, TEXTS[0], ["attention", "values"])
    assert 0.3 < check.largest < check.allowed
    assert model.config._attn_implementation == "sdpa"
    keep = Capture._keep

    def careless(self, name, layer, values_BTD):
        keep(self, name, layer, values_BTD)
        values_BTD.mul_(1.02)

    monkeypatch.setattr(Capture, "_keep", careless)
    with pytest.raises(RuntimeError, match=r"capturing attention, hidden .* more than rounding explains \(0.0001\)"):
        check_capture(model, TEXTS[0], ["attention", "hidden"])
    assert model.config._attn_implementation == "sdpa"


def test_a_model_in_training_is_not_read_as_the_same_model():
    model = tiny_model("gpt2").train()  # dropout: no two passes say the same
    with pytest.raises(RuntimeError, match="more than rounding explains"):
        check_capture(model, TEXTS[0], ["hidden"])


def test_an_architecture_that_adds_something_else_is_refused():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = GraniteForCausalLM(GraniteConfig(vocab_size=64, residual_multiplier=0.5, **shape)).eval()
    assert check_capture(model, TEXTS[0], ["hidden", "values", "heads"]).largest == 0
    for site in ("mlp", "attention_output"):
        with pytest.raises(UsageError, match="block 0 of a GraniteForCausalLM does not add"):
            check_capture(model, TEXTS[0], [site], "o")


def mistral(window):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "initializer_range": 0.2}
    return MistralForCausalLM(MistralConfig(vocab_size=64, sliding_window=window, **shape, **more)).eval()


def test_keys_and_values_of_layers_with_a_window_are_those_of_all_tokens():
    model, wide = mistral(4), mistral(None)
    assert check_capture(model, TEXTS[0], ["keys", "values"]).largest == 0
    found, others = (capture(which, ["keys", "values"], [TEXTS[0]]).activations for which in (model, wide))
    for site in ("keys", "values"):
        assert torch.equal(found.of(site, 0), others.of(site, 0))
        assert found.of(site, 1).shape == (7, 2, 4)
        assert torch.equal(found.of(site, 1)[:4], others.of(site, 1)[:4])  # the window reaches back to the first token
        assert not torch.allclose(found.of(site, 1)[4:], others.of(site, 1)[4:], atol=1e-3)


def test_keys_that_are_kept_in_a_window_are_refused(monkeypatch):
    monkeypatch.setattr(capture_module, "_cache_without_windows", lambda config: None)
    model = mistral(4)
    found = capture(model, ["keys"], [TEXTS[1]]).activations
    assert found.of("keys", 0).shape == (3, 2, 4)
    with pytest.raises(UsageError, match="caches only a window of its keys; use shorter texts"):
        capture(model, ["keys"], [TEXTS[0]])
    assert capture(model, ["hidden"], [TEXTS[0]]).activations.of("hidden", 2).shape == (7, 16)
