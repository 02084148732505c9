"""Small random models of other architectures than `tiny_models` has, and adapters that change what a model says."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from lm_trials.models.adapters import LoraSpec, add_lora

SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


def neox(seed=0):
    """A GPT-NeoX, whose attention and MLP stand side by side."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(**SHAPE, intermediate_size=32, max_position_embeddings=64, initializer_range=0.2)
    return GPTNeoXForCausalLM(config).eval()


def opt(seed=0):
    """An OPT, which has no module for its MLP and its blocks one deeper."""
    torch.manual_seed(seed)
    config = OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64, init_std=0.2)
    return OPTForCausalLM(config).eval()


def with_lora(model, *targets, scale=0.5):
    """A PEFT adapter on a model, unmerged, that changes what it says."""
    adapted = add_lora(model, LoraSpec(r=2, target_modules=targets), seed=0)
    torch.manual_seed(1)
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=scale)
    return adapted.eval()


def hooks(*models):
    """Number of forward hooks in models."""
    modules = [module for model in models for module in model.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
