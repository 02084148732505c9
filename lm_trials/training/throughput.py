"""Throughput: floating-point work of a token, and what the device could do."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

# Dense bf16 peak, FLOP/s, from the makers' data sheets (without sparsity).  A device not listed gets no MFU.
PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float:
    """Return the dense bf16 peak of one device in FLOP/s; 0 where it is not known (a CPU among them)."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16.items() if part in name), 0.0)


def flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Return the floating-point operations of one trained token: 6N + 12LDT (Chowdhery et al. 2022, appendix B).

    N counts the parameters that multiply: all without embeddings, and the output matrix, tied or not.  L layers of
    width D attend to T = `block_size` places; causal masking is not discounted, as in that paper.
    """
    config = model.config
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    multiplying = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    output = model.get_output_embeddings()
    if output is not None and id(output.weight) in embeddings:
        multiplying += output.weight.numel()
    return 6 * multiplying + 12 * config.num_hidden_layers * config.hidden_size * block_size
