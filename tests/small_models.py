"""Small random models of other architectures than `tiny_models` has, and adapters that change what a model says."""

import warnings

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from lm_trials.models.adapters import LoraSpec, add_lora
from lm_trials.models.shapes import build_config, build_model

SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}

WIDTH = "hidden_size=32,num_hidden_layers=2"
HEADS = f"{WIDTH},num_attention_heads=4"
MAMBA_HEADS = f"{HEADS},mamba_n_heads=4,mamba_d_head=16"
EXPERTS = "num_experts=4,num_experts_per_tok=2"
# Families whose parts differ: experts in one tensor, a router that returns a tuple, sinks in attention, blocks without
# attention, layers whose weights are read without calling them, logits that are capped or scaled, several streams.
SHAPES = {
    "gpt2": "n_embd=32,n_layer=2,n_head=4",
    "mixtral": f"{HEADS},num_local_experts=4",
    "qwen2_moe": f"{HEADS},{EXPERTS},moe_intermediate_size=16,shared_expert_intermediate_size=16",
    "olmoe": f"{HEADS},{EXPERTS}",
    "phimoe": HEADS,
    "gpt_oss": f"{HEADS},num_local_experts=4,num_experts_per_tok=2",
    "mamba": WIDTH,
    "mamba2": f"{WIDTH},num_heads=8,head_dim=8,n_groups=2",
    "falcon_mamba": WIDTH,
    "jamba": f"{HEADS},num_experts=2,attn_layer_period=2,attn_layer_offset=1",
    "bamba": MAMBA_HEADS,
    "falcon_h1": f"{HEADS},mamba_d_ssm=64,mamba_n_heads=4,mamba_d_head=16",
    "qwen3_next": f"hidden_size=32,num_hidden_layers=4,num_attention_heads=4,{EXPERTS},moe_intermediate_size=16,"
    "shared_expert_intermediate_size=16,linear_num_key_heads=2,linear_num_value_heads=2,linear_key_head_dim=8,"
    "linear_value_head_dim=8",
    "recurrent_gemma": "hidden_size=32,num_hidden_layers=3,num_attention_heads=4",
    "bart": "d_model=32,decoder_layers=2,decoder_attention_heads=4",
    "gemma2": f"{HEADS},final_logit_softcapping=2.0",
    "gemma3n_text": f"{HEADS},num_kv_shared_layers=0,vocab_size_per_layer_input=64",
    "cohere": f"{HEADS},logit_scale=0.25",
    "granite": f"{HEADS},logits_scaling=4.0",
    "hyperclovax": f"{HEADS},logits_scaling=4.0",
    "llama": HEADS,
}


def family(kind, seed=0):
    """A small random model of a type of `SHAPES`, with weights large enough to matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-OSS's rotary scaling does not fit so few positions
        tokens = {"vocab_size": 64, "block_size": 32, "bos_token_id": 1, "eos_token_id": 2}
        model = build_model(build_config(kind, None, SHAPES[kind], **tokens), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() > 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


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
