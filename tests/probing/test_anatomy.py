"""Where the parts of a decoder are, and what is said of layers and heads that it does not have."""

import pytest
from refusals import usage_error as refused
from small_models import neox, opt, with_lora
from tiny_models import KINDS, tiny_model
from transformers import BertConfig, BertLMHeadModel, CTRLConfig, CTRLLMHeadModel

from lm_trials.probing.anatomy import anatomy_of, check_sites


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_model_are_its_own(kind):
    model = tiny_model(kind)
    anatomy = anatomy_of(model, "it")
    assert (anatomy.num_blocks, anatomy.width, anatomy.num_heads) == (2, 16, 2 if kind == "gpt2" else 4)
    body = model.base_model
    if kind == "gpt2":
        expected = body.ln_f, body.h[1].attn, body.h[1].mlp, body.h[1].attn.c_proj
    else:
        block = body.layers[1]
        expected = body.norm, block.self_attn, block.mlp, block.self_attn.o_proj
    found = anatomy.final_norm, anatomy.attention(1), anatomy.mlp(1), anatomy.projection(1)
    assert all(part is other for part, other in zip(found, expected, strict=True))
    assert anatomy.projection(0) is not expected[3]
    assert anatomy.head is model.lm_head


@pytest.mark.parametrize("build", [neox, opt])
def test_other_decoders_are_understood(build):
    model = build()
    anatomy = anatomy_of(model)
    assert (anatomy.num_blocks, anatomy.name) == (2, type(model).__name__)
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(part)] for part in (anatomy.attention(1), anatomy.projection(1), anatomy.mlp(1))]
    assert all(".layers.1." in name for name in found)
    assert anatomy.head.weight.shape == (64, 16)


def test_of_an_adapter_the_parts_carry_it():
    model = with_lora(tiny_model("gpt2"), "c_proj")
    anatomy = anatomy_of(model)
    assert anatomy.model is model.base_model.model
    assert type(anatomy.projection(0)).__name__ == "Linear"
    assert type(anatomy.projection(0)).__module__.startswith("peft.")


def test_layers_heads_and_sites_that_are_not_there_are_one_line():
    anatomy = anatomy_of(tiny_model("llama"), "it")
    assert anatomy.check_hidden([0, 2, -1, -3]) == [0, 2, 2, 0]
    assert anatomy.check_blocks([0, 1, -1, -2]) == [0, 1, 1, 0]
    assert anatomy.check_heads([3, -1]) == [3, 3]
    for wrong in (3, -4):
        said = refused(anatomy.check_hidden, [0, wrong])
        assert said == f"layer {wrong}: it has hidden states 0 to 2 (the embeddings are 0); give one of them"
    for wrong in (2, -3):
        said = refused(anatomy.check_blocks, [wrong])
        assert said == f"layer {wrong}: it has blocks 0 to 1 (the first is 0); give one of them"
    assert refused(anatomy.check_heads, [4]) == "head 4: it has heads 0 to 3 (the first is 0); give one of them"
    assert refused(check_sites, ["value"], ["keys", "values"]) == "site value: did you mean values? valid: keys, values"
    check_sites(["keys"], ["keys", "values"])


def test_what_is_no_such_decoder_is_one_line():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertLMHeadModel(BertConfig(vocab_size=64, is_decoder=True, **shape))
    assert refused(anatomy_of, bert, "b") == (
        "b: no decoder blocks and final norm found in a BertLMHeadModel; use a GPT-2, Llama or GPT-NeoX model"
    )
    ctrl = CTRLLMHeadModel(CTRLConfig(vocab_size=64, n_embd=16, n_head=2, n_layer=2, dff=32, n_positions=16))
    assert "found in a CTRLLMHeadModel" in refused(anatomy_of, ctrl)
    anatomy = anatomy_of(tiny_model("gpt2"), "g")
    anatomy.blocks[0].attn = None
    assert refused(anatomy.attention, 0).startswith("g: a GPT2LMHeadModel has no known attention module; use a GPT-2,")
    assert anatomy.attention(1)
