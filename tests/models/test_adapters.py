"""Adapters: targets that get gradients in every family, adapters made with PEFT alone, quantized bases."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import family
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from lm_trials.console import UsageError
from lm_trials.models.adapters import (
    ALL_LINEAR,
    LoraSpec,
    adapted_layers,
    add_lora,
    describe_layers,
    load_adapter_weights,
    merged,
    without_noise,
)
from lm_trials.models.quantization import quantization
from lm_trials.models.reference import load_config, load_model, resolve_model
from lm_trials.probing.capture import check_capture
from lm_trials.training.fine_tuning import choose_start, load_base
from lm_trials.training.tuning_flags import AdapterArguments

IDS = torch.arange(3, 11)[None]
TOKENS = 330  # as many as tiny_tokenizer has at most


@pytest.fixture
def four_bits(tmp_path, monkeypatch):
    """Return what loads a tiny Llama in 4 bits, as on a processor with or without AVX512-BF16."""
    tiny_model("llama").save_pretrained(tmp_path / "base")

    def load(avx512_bf16: bool):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: avx512_bf16)
        quantized = quantization(False, True, "cpu", torch.float32)
        return load_model(resolve_model(str(tmp_path / "base")), quantization_config=quantized)

    return load


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


ADAPTED = {
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj", "gate", "gate_up_proj", "down_proj"},
    "phimoe": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mamba": {"in_proj", "x_proj"},
    "bart": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "jamba": {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "in_proj",
        "x_proj",
        "out_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    },
}


SLOW = dict.fromkeys(("qwen2_moe", "olmoe", "gpt_oss", "mamba2", "falcon_mamba", "bamba", "recurrent_gemma"))


def moved(adapted, seed=1):
    """Change all trained tensors at random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return adapted.eval()


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in SLOW else []) for k in SLOW | ADAPTED])
def test_the_default_targets_get_a_gradient_and_are_saved_loaded_and_merged(kind, tmp_path):
    base = family(kind)
    base.save_pretrained(tmp_path / "base")
    model = load_model(resolve_model(str(tmp_path / "base")))
    plain, random_state = logits(base), torch.get_rng_state()
    adapted = add_lora(model, LoraSpec(r=2), seed=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not adapted.get_base_model().training
    assert all(tensor.grad is None for tensor in adapted.parameters())
    kinds = {part.split()[0] for part in describe_layers(adapted).partition(": ")[2].split(", ")}
    assert kinds == ADAPTED.get(kind, kinds)
    torch.testing.assert_close(logits(adapted), plain)

    adapted.train()
    adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(tensor.grad is not None for tensor in adapted.parameters() if tensor.requires_grad)

    wanted = logits(moved(adapted))
    assert not torch.allclose(wanted, plain, atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(resolve_model(str(tmp_path / "adapter")))
    torch.testing.assert_close(logits(loaded), wanted)
    fresh = add_lora(load_model(resolve_model(str(tmp_path / "base"))), LoraSpec(r=2), seed=3)
    load_adapter_weights(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(fresh.eval()), wanted)
    merged(loaded, "it").save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(load_model(resolve_model(str(tmp_path / "merged")))), wanted, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("kind", "spec", "working"),
    [
        ("mamba", LoraSpec(target_modules=("dt_proj", "in_proj")), "in_proj"),
        ("mamba", LoraSpec(target_modules=("dt_proj",)), ALL_LINEAR),
        ("mamba", LoraSpec(target_modules=("out_proj", "in_proj")), ALL_LINEAR),
        ("jamba", LoraSpec(target_modules=("dt_proj", "x_proj")), "x_proj"),
        ("bart", LoraSpec(target_modules=("fc1", "encoder_attn.q_proj")), "fc1"),
        ("mixtral", LoraSpec(lora_dropout=0.1), "k_proj o_proj q_proj v_proj"),
        ("mixtral", LoraSpec(use_dora=True), "k_proj o_proj q_proj v_proj"),
        ("phimoe", LoraSpec(target_modules=("router",)), None),
    ],
)
def test_targets_without_a_gradient_are_refused_with_some_that_work(kind, spec, working):
    with pytest.raises(UsageError, match=r"^--lora_target_modules ") as refused:
        add_lora(family(kind), spec, seed=0)
    if working is not None:
        assert str(refused.value).endswith(f"; give --lora_target_modules {working}")
        given = LoraSpec(2, 16.0, spec.lora_dropout, tuple(working.split()), spec.use_dora)
        assert adapted_layers(add_lora(family(kind), given, seed=0))


# Adapters as people make them with PEFT: (settings, whether it can be merged where the embeddings are tied).
SETTINGS = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
QV, EMB, HEAD = ["q_proj", "v_proj"], "embed_tokens", "lm_head"


def lora(targets=QV, **more):
    return LoraConfig(**SETTINGS, target_modules=targets, **more), True


MADE = {
    "whole head": lora(modules_to_save=[HEAD]),
    "whole embeddings": lora(modules_to_save=[EMB]),
    "both whole": lora(modules_to_save=[HEAD, EMB]),
    "whole norm": lora(modules_to_save=["norm"]),
    "LoRA on embeddings": (lora([*QV, EMB])[0], False),
    "LoRA on the head": (lora([*QV, HEAD])[0], False),
    "LoRA on both": (lora([*QV, EMB, HEAD])[0], False),
    "some tokens": lora(trainable_token_indices=[1, 5, 7]),
    "rank patterns": lora([*QV, "down_proj"], rank_pattern={"down_proj": 2}, alpha_pattern={"down_proj": 32}),
    "rsLoRA": lora(use_rslora=True),
    "DoRA": lora(use_dora=True),
    "biases": lora(bias="all"),
    "some layers": lora(layers_to_transform=[1]),
    "parameters": lora([], target_parameters=["q_proj.weight"]),
    "a pattern": lora(".*q_proj"),
    "PiSSA": lora(init_lora_weights="pissa"),
    "no task": (LoraConfig(r=4, target_modules=QV), True),
    "IA3": (peft.IA3Config(task_type="CAUSAL_LM", target_modules=QV, feedforward_modules=[]), True),
    "VeRA": (peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4), True),
    "LoKr": (peft.LoKrConfig(task_type="CAUSAL_LM", target_modules=QV, r=4), True),
    "OFT": (peft.OFTConfig(task_type="CAUSAL_LM", target_modules=QV, oft_block_size=4), True),
    "AdaLoRA": (peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=QV, total_step=9), True),
    "norms": (peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]), True),
    "tokens alone": (peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[1, 9]), True),
}

TIED = [name for name in MADE if "head" in name or "embeddings" in name or "both" in name or name == "some tokens"]


def save_base(folder: Path, tied: bool) -> Path:
    """Save a tiny Llama, with one tensor for embeddings and head or with two."""
    model = tiny_model("llama", vocab_size=TOKENS)
    model.config.tie_word_embeddings = tied
    torch.manual_seed(3)
    type(model)(model.config).save_pretrained(folder)
    return folder


def made_with_peft(folder: Path, config, tied: bool, tokens: int = TOKENS):
    """Save an adapter with PEFT alone; returns its folder and the model that PEFT itself reads from it."""
    base = save_base(folder / "base", tied)

    def its_base():
        model = AutoModelForCausalLM.from_pretrained(base)
        if tokens != TOKENS:
            model.resize_token_embeddings(tokens)
        return model

    with warnings.catch_warnings(), without_noise():
        warnings.simplefilter("ignore")  # PEFT's, about tied and resized embeddings
        moved(get_peft_model(its_base(), config)).save_pretrained(folder / "adapter")
        return folder / "adapter", PeftModel.from_pretrained(its_base(), folder / "adapter").eval()


@pytest.mark.filterwarnings("ignore:.*tied", "ignore:.*tie_word_embeddings", "ignore:Unsupported layer type")
@pytest.mark.parametrize(
    ("name", "tied"), [*((name, name in TIED) for name in MADE), *((name, False) for name in TIED)]
)
def test_an_adapter_made_with_peft_is_read_as_peft_reads_it(name, tied, tmp_path):
    config, merges = MADE[name]
    folder, its_own = made_with_peft(tmp_path, config, tied)
    wanted = logits(its_own)
    assert not torch.allclose(wanted, logits(load_model(resolve_model(str(tmp_path / "base")))), atol=1e-3)
    model = load_model(resolve_model(str(folder)))
    assert torch.equal(logits(model), wanted)
    if name == "AdaLoRA":
        with pytest.raises(UsageError, match="AdaLoRA"):
            check_capture(model, IDS[0].tolist(), ["hidden"])
    else:
        check_capture(model, IDS[0].tolist(), ["hidden", "normed", "values"])
    if tied and not merges:
        with pytest.raises(UsageError, match="tied embeddings; use it unmerged"):
            merged(model, "it")
        return
    merged(model, "it").save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(load_model(resolve_model(str(tmp_path / "merged")))), wanted, atol=1e-4, rtol=1e-4
    )


NEW = torch.tensor([[3, TOKENS, TOKENS + 1, TOKENS + 2, 5]])


@pytest.mark.filterwarnings("ignore:.*tied:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("more", [{}, {"modules_to_save": [EMB, HEAD]}, {"modules_to_save": [EMB]}], ids=str)
def test_added_tokens_are_read_from_the_adapter(more, tied, tmp_path):
    folder, its_own = made_with_peft(tmp_path, lora(**more)[0], tied, tokens=TOKENS + 3)
    reference = resolve_model(str(folder))
    assert load_config(reference).vocab_size == TOKENS + 3
    assert torch.equal(logits(load_model(reference), NEW), logits(its_own, NEW))


def test_added_tokens_without_all_their_rows_are_refused(tmp_path):
    folder, _ = made_with_peft(tmp_path, lora([*QV, EMB])[0], tied=False, tokens=TOKENS + 3)
    with pytest.raises(UsageError, match=r"adds 3 tokens .* in embed_tokens only; add the tokens to the base"):
        load_model(resolve_model(str(folder)))


@pytest.mark.parametrize(
    "config",
    [
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_an_adapter_that_adds_inputs_is_refused_before_anything_is_loaded(config, tmp_path):
    folder, _ = made_with_peft(tmp_path, config, tied=False)
    with pytest.raises(UsageError, match=f"is a {config.peft_type.value} adapter"):
        resolve_model(str(folder))


def test_the_revision_of_a_base_on_the_hub_is_part_of_its_name(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for revision, name in (("v2", "owner/base@v2"), (None, "owner/base")):
        config = {"base_model_name_or_path": "owner/base", "revision": revision}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert resolve_model(str(tmp_path)).base == name


def tuned_further(tmp_path, config, **more):
    """The logits at the start of a fine-tuning that continues an adapter, and those that PEFT reads from it."""
    folder, its_own = made_with_peft(tmp_path, config, tied=False)
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    flags = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": QV, "adapter_name_or_path": str(folder)}
    args = AdapterArguments(model_name_or_path=str(tmp_path / "base"), **(flags | more))
    run = SimpleNamespace(seed=0, device=torch.device("cpu"), bf16=False, fp16=False, model_init_kwargs=None)
    return logits(load_base(choose_start(args), run, args).eval()), logits(its_own)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (lora()[0], {}),
        (lora(use_rslora=True)[0], {"use_rslora": True}),
        (lora(use_dora=True)[0], {"use_dora": True}),
        (lora(init_lora_weights="gaussian", lora_dropout=0.1)[0], {}),
    ],
    ids=["plain", "rsLoRA", "DoRA", "gaussian"],
)
def test_training_continues_an_adapter_made_with_peft(config, more, tmp_path):
    begun, wanted = tuned_further(tmp_path, config, **more)
    assert torch.equal(begun, wanted)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(alpha_pattern={"q_proj": 32})[0], "has alpha_pattern"),
        (lora(init_lora_weights="pissa")[0], "has init_lora_weights pissa"),
        (lora(init_lora_weights="olora")[0], "has init_lora_weights olora"),
        (lora(rank_pattern={"q_proj": 2})[0], "does not fit the model"),
        (lora(lora_bias=True)[0], "does not fit the model"),
        (lora(modules_to_save=[HEAD])[0], "does not fit the model"),
        (lora([*QV, EMB])[0], "does not fit the model"),
        (lora(trainable_token_indices=[1, 5])[0], "does not fit the model"),
        (lora(layers_to_transform=[1])[0], "does not fit the model"),
        (MADE["VeRA"][0], "is a VERA adapter"),
        (MADE["AdaLoRA"][0], "is a ADALORA adapter"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_adapter_that_training_cannot_continue_is_refused(config, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        tuned_further(tmp_path, config)
