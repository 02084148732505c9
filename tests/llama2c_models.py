"""llama2.c's models and checkpoints, small, and their logits computed as llama2.c does."""

import math
import sys
from types import SimpleNamespace

import torch
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM

from lm_trials.models.llama2c_files import from_llama, write_llama2c

PROMPT = [1, 7, 3, 9, 9, 4]


def llama(heads=4, kv_heads=2, tied=True, seed=0, vocab_size=40, hidden=32, dim=16, layers=2, **more):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=24, rms_norm_eps=1e-5,
        tie_word_embeddings=tied, initializer_range=0.3, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def logits(model, ids=PROMPT):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def as_llama2c_does(found, ids=PROMPT, scale=0.0):
    """Logits from llama2.c's tensors in float64: neighbouring dimensions rotate, LoRA is added to the weights."""
    shape, lora = found.shape, found.lora.matrices if found.lora else {}

    def weight(name):
        whole = found.tensors[f"{name}.weight"].double()
        return whole + scale * lora[name][1].double() @ lora[name][0].double() if name in lora else whole

    def norm(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight(name)

    def heads_of(x, heads, rotates):
        x = x.reshape(len(ids), heads, -1)
        if rotates:
            width = x.shape[-1]
            angles = torch.tensor([[p * 10000 ** (-2 * i / width) for i in range(width // 2)] for p in range(len(ids))])
            turned = torch.view_as_complex(x.reshape(*x.shape[:2], -1, 2)) * torch.polar(
                torch.ones_like(angles).double(), angles.double()
            ).unsqueeze(1)
            x = torch.view_as_real(turned).flatten(-2)
        return x.repeat_interleave(shape.n_heads // heads, dim=1).transpose(0, 1)

    x = weight("tok_embeddings")[ids]
    for layer in (f"layers.{number}" for number in range(shape.n_layers)):
        h = norm(x, f"{layer}.attention_norm")
        q = heads_of(h @ weight(f"{layer}.attention.wq").T, shape.n_heads, True)
        k = heads_of(h @ weight(f"{layer}.attention.wk").T, shape.n_kv_heads, True)
        v = heads_of(h @ weight(f"{layer}.attention.wv").T, shape.n_kv_heads, False)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        scores += torch.full((len(ids), len(ids)), -math.inf).triu(1)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ weight(f"{layer}.attention.wo").T
        h = norm(x, f"{layer}.ffn_norm")
        gate = silu(h @ weight(f"{layer}.feed_forward.w1").T) * (h @ weight(f"{layer}.feed_forward.w3").T)
        x = x + gate @ weight(f"{layer}.feed_forward.w2").T
    return norm(x, "norm") @ weight("tok_embeddings" if shape.tied else "output").T


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def written(model, path, version):
    write_llama2c(from_llama(model), path, version)
    return path


def checkpoint(model, path, **more):
    """A checkpoint of llama2.c's trainer, as torch.compile names its weights."""
    found = from_llama(model)
    state = {f"_orig_mod.{name}": tensor for name, tensor in found.tensors.items()}
    state.setdefault("_orig_mod.output.weight", found.tensors["tok_embeddings.weight"])
    args = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 24, "dropout": 0.0}
    saved = {"model": state, "model_args": args, "iter_num": 3, "best_val_loss": torch.tensor(1.5), "config": {"a": 1}}
    torch.save(saved | more, path)
    return saved | more


def lora_checkpoint(model, path, rank, named, monkeypatch):
    """As the instruct story-teller saves it: parametrized weights, and an instance of its class of arguments."""
    saved = checkpoint(model, path)
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in saved["model"].items()}
    for layer in (f"layers.{number}.attention.w{part}" for number in range(2) for part in "qkvo"):
        whole = state.pop(f"{layer}.weight")
        place = f"{layer}.parametrizations.weight"
        state |= {f"{place}.original": whole, f"{place}.0.lora_a": torch.randn(rank, 16)}
        state[f"{place}.0.lora_b"] = torch.randn(len(whole), rank)
    args = type("ModelArgs", (), {"__module__": "model"})()
    vars(args).update(saved["model_args"])
    monkeypatch.setitem(sys.modules, "model", SimpleNamespace(ModelArgs=type(args)))
    given = {"lora_finetune": True, "lora_rank": named, "lora_alpha": 3.0, "lora_dropout": 0.1}
    torch.save({"model": state, "model_args": args, "iter_num": 1, "lora_targets": ["wq"], **given}, path)
    return path
