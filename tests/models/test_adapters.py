"""Quantized bases: the same weights on any processor."""

import pytest
import torch
from tiny_models import tiny_model

from lm_trials.models.adapters import quantization
from lm_trials.models.reference import load_model, resolve_model


@pytest.fixture
def four_bits(tmp_path, monkeypatch):
    """Return what loads a tiny Llama in 4 bits, as on a processor with or without AVX512-BF16."""
    tiny_model("llama").save_pretrained(tmp_path / "base")

    def load(avx512_bf16: bool):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: avx512_bf16)
        quantized = quantization(False, True, "cpu", torch.float32)
        return load_model(resolve_model(str(tmp_path / "base")), quantization_config=quantized)

    return load


IDS = torch.arange(3, 11)[None]


def test_a_4_bit_base_gives_the_same_logits_on_every_processor(four_bits):
    with torch.no_grad():
        old, new = (four_bits(avx512_bf16)(IDS).logits for avx512_bf16 in (False, True))
    assert torch.equal(old, new)


def test_bitsandbytes_by_itself_cannot_evaluate_small_layers_there(four_bits):
    from bitsandbytes.nn import Linear4bit

    model = four_bits(True)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    with pytest.raises((RuntimeError, AssertionError)), torch.no_grad():
        model(IDS)
