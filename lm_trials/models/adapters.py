"""LoRA adapters on a causal language model, quantized or not: add, describe, load strictly."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled
from transformers.pytorch_utils import Conv1D

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import check_sums
from lm_trials.models.shapes import text_config

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
# Types whose kernels multiply with out_proj's weight themselves; peft 0.21 refuses to adapt it.
MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


@dataclass(frozen=True)
class LoraSpec:
    """Settings of a LoRA adapter, named as in `peft.LoraConfig`."""

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    use_dora: bool = False
    use_rslora: bool = False


def add_lora(model: PreTrainedModel, spec: LoraSpec, seed: int, device: torch.device | None = None) -> PeftModel:
    """Freeze a model and add float32 LoRA matrices, initialized from `seed`, to its linear layers.

    all-linear means the layers that PEFT adapts (in Mixtral also its experts) and whose matrices get a gradient:
    Mamba's blocks read the weights of some layers directly, past their adapters.

    Args:
        device: that the model is trained on, where another kernel may read other weights directly; None: where it is.

    Raises:
        UsageError: for a module that the model does not have, its output head, one that PEFT refuses, or one whose
            adapter gets no gradient.

    >>> from lm_trials.models.shapes import build_config, build_model
    >>> config = build_config("llama", None, "hidden_size=8,num_hidden_layers=1,num_attention_heads=1,"
    ...     "intermediate_size=16", vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> model = add_lora(build_model(config, seed=0), LoraSpec(r=2, target_modules=("q_proj",)), seed=0)
    >>> model.num_parameters(only_trainable=True), 2 * (8 + 8)
    (32, 32)
    """
    names = spec.target_modules
    check_targets(model, names)
    left_out = []
    if ALL_LINEAR in names:
        left_out = ["out_proj"] if model.config.model_type in MAMBAS else []
        left_out += [name for name, module in model.named_modules() if _is_router(module)]
    with torch.random.fork_rng(devices=[]), without_noise():
        adapted = _with_lora(model, spec, seed, left_out)
        idle = idle_adapters(adapted, device)
        if idle and ALL_LINEAR in names:
            adapted = _with_lora(adapted.unload(), spec, seed, left_out + idle)
    if idle and ALL_LINEAR not in names:
        wrong = list(dict.fromkeys(path.rpartition(".")[2] for path in idle))
        others = [name for name in names if name.rpartition(".")[2] not in wrong] or [ALL_LINEAR]
        raise UsageError(
            f"--lora_target_modules {' '.join(wrong)}: a {type(model).__name__} does not call {idle[0]}, so its "
            f"adapter would get no gradient; give --lora_target_modules {' '.join(others)}"
        )
    # In one of the source systems no code read --lora_r, so the rank that was built is counted.
    layers = adapted_layers(adapted).values()
    expected = sum(_rank(layer, spec.r) * (layer.in_features + layer.out_features) for layer in layers)
    expected += sum(layer.out_features for layer in layers) if spec.use_dora else 0  # DoRA's magnitudes
    if (trained := adapted.num_parameters(only_trainable=True)) != expected:
        raise RuntimeError(f"rank {spec.r} has {expected} parameters, but {trained} are trained")
    return adapted


def _with_lora(model: Any, spec: LoraSpec, seed: int, left_out: list[str]) -> Any:
    """Return `model` with new adapters, or raise a UsageError for layers or settings that PEFT refuses."""
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]  # annotated int; PEFT only divides it by r
        lora_dropout=spec.lora_dropout,
        target_modules=ALL_LINEAR if ALL_LINEAR in spec.target_modules else list(spec.target_modules),
        exclude_modules=left_out or None,
        use_dora=spec.use_dora,
        use_rslora=spec.use_rslora,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        # Experts, which are no modules, have neither dropout nor DoRA; PEFT has replaced the names by those of modules.
        why = str(error).partition(". ")[0].rstrip(".").replace("lora.ParamWrapper", "LoRA on experts")
        others = sorted({*(config.target_modules or ())} - {*left_out}) if config.target_parameters else [ALL_LINEAR]
        raise UsageError(
            f"--lora_target_modules {' '.join(spec.target_modules)}: {why}; "
            f"give --lora_target_modules {' '.join(others)}"
        ) from None


def _is_router(module: nn.Module) -> bool:
    """Return whether a linear layer returns a tuple (Llama 4, PhiMoE), at which PEFT's adapters fail."""
    return isinstance(module, nn.Linear) and type(module).__name__.endswith("Router")


def _rank(layer: Any, r: int) -> int:
    """Return the rank of an adapter of rank `r`: of experts, the sum over them, of two fused matrices, of both."""
    fused = 2 if getattr(layer, "parameter_name", "") == "gate_up_proj" else 1
    return r * fused * getattr(layer, "num_experts", 1)


def idle_adapters(adapted: PeftModel, device: torch.device | None = None) -> list[str]:
    """Return the base's names of the layers whose adapters get no gradient in a forward and backward pass on 4 tokens.

    A sharded model is not tested: one process has only parts of it.
    """
    if is_fsdp_enabled() or is_deepspeed_zero3_enabled():
        return []
    module: nn.Module = adapted
    if device is not None and not hasattr(adapted, "hf_device_map"):
        module.to(device)
    tokens_BT = torch.zeros(1, 4, dtype=torch.long, device=adapted.device)
    modes = {part: part.training for part in module.modules()}
    module.train()  # Mamba's kernels for training read other weights directly than those for evaluation
    logits = module(input_ids=tokens_BT, use_cache=False).logits
    if logits.requires_grad:
        logits.float().mean().backward()
    for part, training in modes.items():
        part.training = training
    layers = adapted_layers(adapted.get_base_model()).items()
    idle = [name for name, layer in layers if any(p.requires_grad and p.grad is None for p in layer.parameters())]
    module.zero_grad(set_to_none=True)
    return idle


@contextmanager
def without_noise() -> Iterator[None]:
    """Silence warnings of peft and trl that no flag of ours can avoid."""
    with warnings.catch_warnings():
        # GPT-2's layers are Conv1D; peft sets the option by itself and warns for each layer.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # Where peft fuses the adapters of experts, it looks for their rank among modules only.
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match any targeted module")
        # peft 0.21 and trl 1.16 read attributes that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        yield


def check_targets(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Check that each name is that of a linear layer other than the output head.

    Raises:
        UsageError: for the first that is not; PEFT silently skips a name that matches nothing beside one that does.
    """
    if ALL_LINEAR in names:
        return
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not _is_router(module)
    }
    known = sorted({name.rpartition(".")[2] for name, module in layers.items() if module is not head})
    for name in names:
        found = [module for path, module in layers.items() if path == name or path.endswith(f".{name}")]
        if not found:
            raise UsageError(f"--lora_target_modules {name}: {did_you_mean(name, [*known, ALL_LINEAR])}")
        if any(module is head for module in found):
            raise UsageError(
                f"--lora_target_modules {name} is the output head, whose adapter trl's fused loss would not train; "
                f"valid: {', '.join(known)}"
            )


def default_layers(config: PretrainedConfig) -> list[str]:
    """Return the names of the layers that PEFT adapts in a model type where none are named.

    Raises:
        UsageError: for a type of which PEFT names none.

    >>> from transformers import OlmoConfig, PhiConfig
    >>> default_layers(PhiConfig())
    ['q_proj', 'v_proj', 'fc1', 'fc2']
    >>> default_layers(OlmoConfig())
    Traceback (most recent call last):
    lm_trials.console.UsageError: --lora_target_modules default: PEFT has no default layers for the model type olmo; \
give all-linear, or layers, for example q_proj v_proj
    """
    kind = text_config(config).model_type
    if kind not in PEFT_DEFAULTS:
        raise UsageError(
            f"--lora_target_modules default: PEFT has no default layers for the model type {kind}; give all-linear, or "
            "layers, for example q_proj v_proj"
        )
    return list(PEFT_DEFAULTS[kind])


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the `LoraLayer` modules of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def describe_layers(model: nn.Module) -> str:
    """Return the kinds of layers with adapters and how many there are of each.

    >>> from lm_trials.models.shapes import build_config, build_model
    >>> config = build_config("llama", None, "hidden_size=8,num_hidden_layers=2,num_attention_heads=1,"
    ...     "intermediate_size=16", vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> describe_layers(add_lora(build_model(config, 0), LoraSpec(target_modules=("q_proj", "v_proj")), seed=0))
    '4 modules: q_proj (2), v_proj (2)'
    """
    names = Counter(
        part if (part := getattr(layer, "parameter_name", "weight")) != "weight" else name.rpartition(".")[2]
        for name, layer in adapted_layers(model).items()
    )
    return f"{sum(names.values())} modules: " + ", ".join(f"{name} ({count})" for name, count in names.items())


def check_adapter_state(
    model: PeftModel, folder: Path, embeddings: bool = False, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Check that a model's adapter equals the one saved in `folder`, key by key and bit by bit.

    Trainer and PEFT load the keys that match and only warn about the rest: with another prefix (`_orig_mod.`, from
    `torch.compile`) training would continue with a fresh adapter.

    Args:
        embeddings: whether the folder may have the base's embeddings too, which PEFT saves where tokens were added.
        weights: the model's, gathered from all processes, of a sharded model.

    Raises:
        UsageError: naming the keys that are missing or unexpected, or the first that differs.
    """
    saved, name = load_file(folder / ADAPTER_WEIGHTS), model.active_adapters[0]
    # The default, "auto", looks up the base's config, on the Hub too.
    state = get_peft_model_state_dict(model, weights, adapter_name=name, save_embedding_layers=False)
    if embeddings:
        whole = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=True)
        state |= {key: tensor for key, tensor in whole.items() if key in saved}
    missing, unexpected = sorted(state.keys() - saved.keys()), sorted(saved.keys() - state.keys())
    if missing or unexpected:
        named = [
            f"{len(keys)} {word} keys, for example {keys[0]}"
            for word, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UsageError(
            f"{folder / ADAPTER_WEIGHTS} does not fit the model ({'; '.join(named)}); it was trained with another "
            "base, rank or set of modules: give an adapter with this model's"
        )
    for key, tensor in saved.items():
        now = state[key].detach().to("cpu")
        if tensor.shape != now.shape or not torch.equal(tensor.to(now.dtype), now):
            raise UsageError(f"{folder / ADAPTER_WEIGHTS} was not loaded exactly: {key} differs in the model")


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Load the weights of a saved adapter into a model with one of the same shape, or raise a UsageError."""
    check_sums(folder, ADAPTER_WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys that do not fit; check_adapter_state reports them
            set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS), model.active_adapters[0])
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder} does not fit the model ({str(error).splitlines()[0]}); give another adapter"
        ) from None
    check_adapter_state(model, folder)


@torch.no_grad()
def merged(model: Any, name: str) -> Any:
    """Merge an adapter into its base and return that model, whose logits are the same up to rounding.

    Args:
        name: of the adapter in error messages.

    Raises:
        UsageError: where PEFT cannot merge it, or merges it wrongly, as into one of two tied embeddings.
    """
    tokens_BT = torch.arange(min(4, text_config(model).vocab_size), device=model.device)[None]
    before = model(input_ids=tokens_BT, use_cache=False).logits.cpu().double()
    try:
        model = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{name} cannot be merged into its base ({str(error).rstrip('.')}); use it unmerged") from None
    apart = (model(input_ids=tokens_BT, use_cache=False).logits.cpu().double() - before).abs().max()
    rounding = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)  # norms are in float32
    if not getattr(model, "is_quantized", False) and not apart <= rounding**0.5 * before.abs().max():
        raise UsageError(
            f"{name} cannot be merged into its base: PEFT changes logits by {float(apart):.2g}, as where it adapts one "
            "of two tied embeddings; use it unmerged"
        )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:  # saving tied ones would lose one
        model.config.tie_word_embeddings = text_config(model).tie_word_embeddings = False
    return model


def as_trained(adapted: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trainable tensors by name."""
    return {name: tensor.detach().clone() for name, tensor in adapted.named_parameters() if tensor.requires_grad}


def restore_trained(adapted: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Restore what `as_trained` returned, dtype included: trl casts adapters on a quantized base to bfloat16.

    With float32 adapters the losses on an 8-bit and a float32 base differ by -0.0001 [-0.0035, +0.0033] over two seeds.
    """
    for name, tensor in adapted.named_parameters():
        if name in tensors:
            tensor.data = tensors[name].to(tensor.device)
