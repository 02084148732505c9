"""Models and tokenizers small enough for a test, each asserted to be so (unknown config names are taken in silence)."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lm_trials.models.shapes import build_config, build_model
from lm_trials.tokens.tokenizers import train_tokenizer

# A pangram in the tiny vocabulary's training text: every letter is a token, so any of these stories can be written.
TEXT = "One day, a cat sat on a mat. The quick brown fox jumps over the lazy dog!\n"
KINDS = ("gpt2", "llama")


def tiny_model(kind, vocab_size=64, positions=64, attention="sdpa", dropout=0.1, seed=0, dtype=torch.float32):
    """A random model with weights large enough for what a token sees to matter, dropout on unless evaluated."""
    shape = {"vocab_size": vocab_size, "initializer_range": 0.2, "attn_implementation": attention}
    torch.manual_seed(seed)
    if kind == "gpt2":
        drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        model = GPT2LMHeadModel(GPT2Config(**shape, n_embd=16, n_layer=2, n_head=2, n_positions=positions, **drop))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                **shape,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=positions,
                attention_dropout=dropout,
            )
        )
    assert model.num_parameters() < 25_000
    return model.to(dtype).eval()


def tiny_tokenizer(vocab_size=330):
    """A byte-fallback BPE of some hundred tokens."""
    tokenizer = train_tokenizer([TEXT] * 9, vocab_size)
    assert len(tokenizer) <= vocab_size
    return tokenizer


# Model types beside GPT-2 and Llama, which differ in their parts: norms on queries and keys (Qwen 3), windows and norms
# before and behind attention and MLP (Gemma 3), norms behind alone (OLMo 2), attention and MLP side by side with
# rotations of a quarter of a head (GPT-NeoX), layers without rotations (SmolLM3).
FAMILIES = ("qwen3", "gemma3_text", "olmo2", "gpt_neox", "smollm3")
TINY_FAMILY = "hidden_size=16,num_hidden_layers=2,num_attention_heads=4"


def tiny_family(model_type, overrides="", vocab_size=64, block_size=32, seed=0):
    """A random model of any type, as training from scratch begins with it, but with weights large enough to matter."""
    more = f"{TINY_FAMILY},initializer_range=0.2" + (f",{overrides}" if overrides else "")
    tokens = {"vocab_size": vocab_size, "block_size": block_size, "bos_token_id": 1, "eos_token_id": 2}
    model = build_model(build_config(model_type, None, more, **tokens), seed)
    assert model.num_parameters() < 25_000
    return model.eval()
