"""Adapters: LoRA on a causal language model, quantized or not: built, counted, loaded strictly, merged.

The rank that is asked for is the rank that the adapter has: `lora_parameters` says how many parameters that makes, and
`add_lora` checks it.  (In one published system rank, alpha and dropout were flags that nothing read.)
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_trials.console import UsageError, did_you_mean

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")


@dataclass(frozen=True)
class LoraSpec:
    """What a LoRA adapter is to be; names and meaning are those of `peft.LoraConfig`."""

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    use_dora: bool = False
    use_rslora: bool = False


def quantization(
    load_in_8bit: bool, load_in_4bit: bool, device_type: str, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Return how a base is quantized, after checking that this machine can; None for neither.

    4 bits are nf4 with double quantization off; what is computed is computed in `compute_dtype`.

    Raises:
        UsageError: for both at once, or where bitsandbytes or its kernels for this device are missing.

    >>> quantization(False, False, "cpu", torch.float32) is None
    True
    >>> quantization(True, False, "mps", torch.float32)
    Traceback (most recent call last):
    lm_trials.console.UsageError: --load_in_8bit: bitsandbytes has no kernels for mps; drop --load_in_8bit
    """
    if not load_in_8bit and not load_in_4bit:
        return None
    if load_in_8bit and load_in_4bit:
        raise UsageError("--load_in_8bit and --load_in_4bit: a base has one of them; drop one")
    flag = "--load_in_8bit" if load_in_8bit else "--load_in_4bit"
    if find_spec("bitsandbytes") is None:
        raise UsageError(f"{flag} needs bitsandbytes, which is not installed; pip install bitsandbytes, or drop {flag}")
    try:
        import bitsandbytes
    except Exception as error:  # a library without its compiled part raises what it likes
        raise UsageError(f"{flag}: bitsandbytes cannot be loaded ({error}); reinstall it, or drop {flag}") from None
    if device_type not in bitsandbytes.supported_torch_devices - {"mps"}:
        raise UsageError(f"{flag}: bitsandbytes has no kernels for {device_type}; drop {flag}")
    # In evaluation mode it says at each layer that its inputs become float16, hundreds of times.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)


def keep_4bit_weights(model: PreTrainedModel) -> None:
    """Let the 4-bit layers of a model compute from their weights as they were quantized, on any processor.

    On a processor with AVX512-BF16 bitsandbytes 0.50 repacks a layer at its first evaluation on the CPU: it rounds the
    scales to bfloat16, so an evaluation differs from the training before it and from other machines, and fails for
    widths below 64.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def add_lora(model: PreTrainedModel, spec: LoraSpec, seed: int) -> PeftModel:
    """Freeze a model and put LoRA matrices beside its linear layers, in float32, drawn from `seed`.

    Raises:
        UsageError: for a module that the model does not have, its output head, or one that PEFT refuses.

    >>> from lm_trials.models.shapes import build_config, build_model
    >>> config = build_config("llama", None, "hidden_size=8,num_hidden_layers=1,num_attention_heads=1,"
    ...     "intermediate_size=16", vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> model = add_lora(build_model(config, seed=0), LoraSpec(r=2, target_modules=("q_proj",)), seed=0)
    >>> trainable_parameters(model), 2 * (8 + 8)
    (32, 32)
    """
    check_targets(model, spec.target_modules)
    targets = ALL_LINEAR if ALL_LINEAR in spec.target_modules else list(spec.target_modules)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets,
        use_dora=spec.use_dora,
        use_rslora=spec.use_rslora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), without_noise():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:  # Mamba's kernels read two of its layers' weights past any adapter
            raise UsageError(f"--lora_target_modules {' '.join(spec.target_modules)}: {error}") from None
    expected = lora_parameters(adapted, spec.r) + (_magnitudes(adapted) if spec.use_dora else 0)
    if trainable_parameters(adapted) != expected:
        raise RuntimeError(f"rank {spec.r} makes {expected} parameters and {trainable_parameters(adapted)} are trained")
    return adapted  # type: ignore[return-value]


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep quiet about what peft and trl warn of and nobody here can change."""
    with warnings.catch_warnings():
        # GPT-2's layers are Conv1D; peft sees that, does what is right, and says so for each.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # peft 0.21 and trl 1.16 read attributes that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        yield


def check_targets(model: nn.Module, names: Sequence[str]) -> None:
    """Check that each name is that of a linear layer, and none the output head.

    Raises:
        UsageError: for the first that is not; PEFT would pass over one of several names without a word.
    """
    if ALL_LINEAR in names:
        return
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    known = sorted({name.rpartition(".")[2] for name, module in layers.items() if module is not head})
    for name in names:
        found = [module for path, module in layers.items() if path == name or path.endswith(f".{name}")]
        if not found:
            raise UsageError(f"--lora_target_modules {name}: {did_you_mean(name, [*known, ALL_LINEAR])}")
        if any(module is head for module in found):
            raise UsageError(
                f"--lora_target_modules {name} is the output head, whose adapter trl's fused head would never train; "
                f"give some of {', '.join(known)}"
            )


def trainable_parameters(model: nn.Module) -> int:
    """Count the parameters that are trained."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


def total_parameters(model: nn.Module) -> int:
    """Count all parameters, packed 4-bit ones as what they stand for."""
    return sum(tensor.numel() * (2 if type(tensor).__name__ == "Params4bit" else 1) for tensor in model.parameters())


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that carry a LoRA adapter, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def lora_parameters(model: nn.Module, r: int) -> int:
    """Return how many parameters rank `r` makes on the adapted layers: r * (inputs + outputs) for each."""
    return sum(r * (layer.in_features + layer.out_features) for layer in adapted_layers(model).values())


def _magnitudes(model: nn.Module) -> int:
    """Count DoRA's magnitudes, one for each output of an adapted layer."""
    return sum(layer.out_features for layer in adapted_layers(model).values())


def describe_layers(model: nn.Module) -> str:
    """Say which layers carry adapters.

    >>> from lm_trials.models.shapes import build_config, build_model
    >>> config = build_config("llama", None, "hidden_size=8,num_hidden_layers=2,num_attention_heads=1,"
    ...     "intermediate_size=16", vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> describe_layers(add_lora(build_model(config, 0), LoraSpec(target_modules=("q_proj", "v_proj")), seed=0))
    '4 modules: q_proj (2), v_proj (2)'
    """
    names = Counter(name.rpartition(".")[2] for name in adapted_layers(model))
    return f"{sum(names.values())} modules: " + ", ".join(f"{name} ({count})" for name, count in names.items())


def check_adapter_state(model: PeftModel, folder: Path) -> None:
    """Check that a model's adapter is the one that lies in `folder`, key by key and bit by bit.

    Trainer and PEFT load what fits and only warn of the rest: keys with another prefix (`_orig_mod.`, from
    `torch.compile`) leave a fresh adapter that trains on as if it were the old one.

    Raises:
        UsageError: naming the keys that are missing or unexpected, or the first that differs.
    """
    saved = load_file(folder / ADAPTER_WEIGHTS)
    # Told and not guessed: to guess, peft looks for the base's config, here and on the Hub.
    embeddings = any(key.endswith(EMBEDDINGS) for key in saved)
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0], save_embedding_layers=embeddings)
    missing, unexpected = sorted(state.keys() - saved.keys()), sorted(saved.keys() - state.keys())
    if missing or unexpected:
        told = [
            f"{len(keys)} {word}, {keys[0]} first"
            for word, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UsageError(
            f"{folder / ADAPTER_WEIGHTS} does not fit the model ({'; '.join(told)}), so nothing of it may be used; "
            "it is of another base, rank or set of modules"
        )
    for key, tensor in saved.items():
        now = state[key].detach().to("cpu")
        if tensor.shape != now.shape or not torch.equal(tensor.to(now.dtype), now):
            raise UsageError(f"{folder / ADAPTER_WEIGHTS} was not taken over: {key} is another in the model")


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Put the weights of a saved adapter into a model that has one of the same form.

    Raises:
        UsageError: where they do not fit.
    """
    from peft import set_peft_model_state_dict

    saved = load_file(folder / ADAPTER_WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what does not fit; it is named below
            set_peft_model_state_dict(model, saved, adapter_name=model.active_adapters[0])
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder} does not fit the model ({str(error).splitlines()[0]}); name another adapter"
        ) from None
    check_adapter_state(model, folder)


def as_trained(adapted: Any) -> dict[str, torch.Tensor]:
    """Return copies of the trainable tensors by name."""
    return {name: tensor.detach().clone() for name, tensor in adapted.named_parameters() if tensor.requires_grad}


def restore_trained(adapted: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `as_trained` returned, dtype and all: trl turns adapters on a quantized base into bfloat16."""
    for name, tensor in adapted.named_parameters():
        if name in tensors:
            tensor.data = tensors[name].to(tensor.device)
