"""Weights in 8 and 4 bits, and how exact a model's arithmetic is; no peft, which takes two seconds to import."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from lm_trials.console import UsageError


def quantization(
    load_in_8bit: bool, load_in_4bit: bool, device_type: str, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Return the quantization of a base model (4 bits: nf4, no double quantization); None for neither flag.

    Raises:
        UsageError: where bitsandbytes or its kernels for this device are missing.

    >>> quantization(True, False, "mps", torch.float32)
    Traceback (most recent call last):
    lm_trials.console.UsageError: --load_in_8bit: bitsandbytes has no kernels for mps; remove it, or add --use_cpu
    """
    if not load_in_8bit and not load_in_4bit:
        return None
    flag = "--load_in_8bit" if load_in_8bit else "--load_in_4bit"
    if find_spec("bitsandbytes") is None:
        raise UsageError(f"{flag}: bitsandbytes is not installed; pip install bitsandbytes, or remove {flag}")
    try:
        import bitsandbytes
    except Exception as error:  # a build without its compiled library may raise anything
        raise UsageError(f"{flag}: bitsandbytes cannot be imported ({error}); reinstall it, or remove {flag}") from None
    if device_type not in bitsandbytes.supported_torch_devices - {"mps"}:
        or_cpu = "" if device_type == "cpu" else ", or add --use_cpu"
        raise UsageError(f"{flag}: bitsandbytes has no kernels for {device_type}; remove it{or_cpu}")
    # In evaluation mode each layer warns at each call that its inputs are cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    # nf4: QLoRA's format (Dettmers et al. 2023). Double quantization is left off; it would save 0.4 bits a weight.
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)


def keep_4bit_weights(model: PreTrainedModel) -> None:
    """Keep the scales of 4-bit layers as they were quantized, on any processor.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 repacks a layer at its first evaluation and rounds the scales to
    bfloat16: evaluations differ between machines and from training, and widths below 64 fail.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def is_exact(model: Any) -> bool:
    """Whether a model computes in float32 or float64.

    Eight bits of a mantissa (bfloat16), and 8-bit activations, round by about 1 % in each layer.
    """
    return model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
