import torch

from lm_trials.models.shapes import build_config, build_model
from lm_trials.training.throughput import flops_per_token, peak_flops

TOKENS = {"vocab_size": 300, "block_size": 16, "bos_token_id": 1, "eos_token_id": 2}


def test_flops_count_matrices_once_and_the_tied_output_too():
    config = build_config(
        "llama", None, "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64", **TOKENS
    )
    model = build_model(config, seed=0)
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32  # attention, feed-forward, norms
    multiplying = 2 * layer + 32 + 300 * 32
    assert flops_per_token(model, block_size=16) == 6 * multiplying + 12 * 2 * 32 * 16
    assert flops_per_token(model, block_size=32) > flops_per_token(model, block_size=16)


def test_a_cpu_has_no_known_peak():
    assert peak_flops(torch.device("cpu")) == 0.0
