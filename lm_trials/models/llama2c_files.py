"""llama2.c's files: `.bin` models of versions 0, 1 and 2, `tokenizer.bin`, and checkpoints of its trainers.

llama2.c rotates neighbouring dimensions of queries and keys as pairs; transformers rotates dimension i with i + half.
The rows of wq and wk are therefore permuted, head by head, which changes no logit.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from lm_trials.console import UsageError, is_out_of_memory
from lm_trials.models.adapters import ADAPTER_WEIGHTS
from lm_trials.tokens.sentencepiece_models import SPACE_MARK
from lm_trials.tokens.tokenizers import BYTE_TOKENS

MAGIC, HEADER_BYTES, GROUP_SIZE = 0x616B3432, 256, 64
NORM_EPS, ROPE_THETA = 1e-5, 10000.0  # run.c's constants
PICKLES = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # torch.save's two formats
# Names in a layer; those of `ATTENTION` and `MLP` have a matrix each.
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ATTENTION = {f"attention.w{part}": f"self_attn.{part}_proj" for part in "qkvo"}
MLP = {"feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj"}
LAYER = NORMS | ATTENTION | MLP
LORA = re.compile(r"(.+)\.parametrizations\.weight\.(original|0\.lora_a|0\.lora_b)$")
BUFFERS = re.compile(r"freqs_(cos|sin|cis)$|\.attention\.mask$")  # that some torch versions save
READ_BESIDE = re.compile(r"(lenses|probes)\.")  # tinystories-wrappers' probes


@dataclass(frozen=True)
class Shape:
    """The numbers of llama2.c's header, in its order, and whether embeddings and output head are one matrix."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    tied: bool
    norm_eps: float = NORM_EPS

    @property
    def header(self) -> tuple[int, ...]:
        """The seven numbers."""
        return (
            self.dim,
            self.hidden_dim,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.vocab_size,
            self.max_seq_len,
        )

    def is_possible(self) -> bool:
        """Whether there can be a model of this shape."""
        return (
            min(self.header) > 0
            and self.dim % (2 * self.n_heads) == 0  # pairs of dimensions are rotated
            and self.n_heads % self.n_kv_heads == 0
        )

    def size(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor by its name."""
        part = re.sub(r"layers\.\d+\.", "", name).removesuffix(".weight")
        kv_dim = self.dim // self.n_heads * self.n_kv_heads
        sizes = {
            "tok_embeddings": (self.vocab_size, self.dim),
            "output": (self.vocab_size, self.dim),
            "attention.wk": (kv_dim, self.dim),
            "attention.wv": (kv_dim, self.dim),
            "feed_forward.w1": (self.hidden_dim, self.dim),
            "feed_forward.w2": (self.dim, self.hidden_dim),
            "feed_forward.w3": (self.hidden_dim, self.dim),
        }
        return sizes.get(part, (self.dim,) if part.endswith("norm") else (self.dim, self.dim))

    def order(self, version: int) -> list[str]:
        """Return the names of all tensors in a file's order; version 0 has tables after `norm`, which is no tensor."""
        first = ["tok_embeddings"]
        norms, attention, mlp = ([self._each(part) for part in kind] for kind in (NORMS, ATTENTION, MLP))
        if version == 0:
            parts = [first, norms[0], *attention, norms[1], *mlp, ["norm"]]
        else:
            parts = [*norms, ["norm"], first, *attention, *mlp]
        return [f"{name}.weight" for part in [*parts, [] if self.tied else ["output"]] for name in part]

    def _each(self, part: str) -> list[str]:
        return [f"layers.{layer}.{part}" for layer in range(self.n_layers)]


@dataclass(frozen=True)
class Lora:
    """An adapter's settings, and its matrices by the name of the layer: A (rank, in) and B (out, rank)."""

    rank: int
    alpha: float
    dropout: float
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Llama2c:
    """A model as llama2.c has it: float32 tensors by its names, and what is to be said of it."""

    shape: Shape
    tensors: dict[str, torch.Tensor]
    lora: Lora | None = None
    notes: list[str] = field(default_factory=list)


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the rows of each head in transformers' order: first those of even places, then those of odd ones.

    >>> halves(torch.arange(8)[:, None], heads=2).flatten().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the rows of each head in llama2.c's order: the inverse of `halves`.

    >>> pairs(halves(torch.arange(12)[:, None], heads=2), heads=2).flatten().tolist() == list(range(12))
    True
    """
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def quantize(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to int8 in groups, symmetrically: returns the numbers, (groups, group_size), and each group's scale.

    >>> numbers, scales = quantize(torch.tensor([1.0, -0.5, 0.0, 0.0]), 2)
    >>> numbers.tolist(), [round(127 * scale, 6) for scale in scales.tolist()]
    ([[127, -64], [0, 0]], [1.0, 0.0])
    """
    groups = weight.float().reshape(-1, group_size)
    scales = groups.abs().amax(dim=1) / 127.0
    numbers = torch.where(scales[:, None] > 0, groups / scales[:, None], 0.0)  # of a group of zeros 0/0
    return numbers.round().to(torch.int8), scales


def read_llama2c(path: Path) -> Llama2c:
    """Read a `.bin` file or a checkpoint.

    Raises:
        UsageError: for another file, or one that is truncated.
    """
    with path.open("rb") as stream:
        is_pickle = stream.read(4) in PICKLES
    return read_checkpoint(path) if is_pickle else read_bin(path)


def read_bin(path: Path) -> Llama2c:
    """Read a `.bin` file; int8 numbers become the float32 numbers that they stand for."""
    data = np.fromfile(path, np.uint8)
    head = data[:HEADER_BYTES].tobytes().ljust(HEADER_BYTES, b"\0")
    version, group, at = 0, 0, 28
    numbers = list(struct.unpack_from("<7i", head))
    tied = numbers[5] > 0
    if struct.unpack_from("<I", head)[0] == MAGIC:
        version, *numbers, tied, group = struct.unpack_from("<i7iBi", head, 4)
        at = HEADER_BYTES
        if version not in (1, 2):
            raise UsageError(f"{path} has version {version}; give a file of version 0, 1 or 2")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = numbers
    shape = Shape(dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(vocab_size), max_seq_len, bool(tied))
    if not shape.is_possible() or (version == 2 and group < 1):
        raise UsageError(f"{path} is no llama2.c model: its header cannot be one; give a .bin file or a checkpoint")
    names = shape.order(version)
    counts = {name: int(np.prod(shape.size(name), dtype=object)) for name in names}
    tables = shape.max_seq_len * shape.dim // shape.n_heads if version == 0 else 0  # cosines and sines
    is_int8 = {name: version == 2 and len(shape.size(name)) == 2 for name in names}
    sizes = {name: count + 4 * (count // group) if is_int8[name] else 4 * count for name, count in counts.items()}
    if len(data) != (expected := at + 4 * tables + sum(sizes.values())):
        raise UsageError(
            f"{path} has {len(data):,} bytes instead of the {expected:,} that its header means: it is truncated, or no "
            "llama2.c model; fetch or export it again"
        )

    tensors = {}
    for name in names:
        part = data[at : at + sizes[name]]
        if is_int8[name]:
            whole = torch.from_numpy(part[: counts[name]].view(np.int8).copy()).float().reshape(-1, group)
            scales = torch.from_numpy(part[counts[name] :].copy().view("<f4"))
            values = whole * scales[:, None]
        else:
            values = torch.from_numpy(part.view("<f4").copy())
        tensors[name] = values.reshape(shape.size(name))
        at += sizes[name] + (4 * tables if name == "norm.weight" else 0)
    note = f"its weights are int8, rounded in groups of {group}; the model has the float32 numbers they stand for"
    return Llama2c(shape, tensors, notes=[note] if version == 2 else [])


class ModelArgs:
    """What the instruct story-teller's checkpoints call `model.ModelArgs`: only its attributes are read."""


def read_checkpoint(path: Path) -> Llama2c:
    """Read a checkpoint of llama2.c's trainer or one derived from it; no code of the file is run."""
    try:
        with torch.serialization.safe_globals([(ModelArgs, "model.ModelArgs")]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the unpickler, the archive, or the tensors
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{path} cannot be read as a checkpoint of tensors ({reason[:200]}); fetch it again, or save its `model` "
            "and `model_args` alone"
        ) from None
    given = saved.get("model_args") if isinstance(saved, dict) else None
    args = vars(given) if isinstance(given, ModelArgs) else given
    state = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(args, dict) or not isinstance(state, dict) or not {"n_heads", "max_seq_len"} <= args.keys():
        raise UsageError(
            f"{path} is no llama2.c checkpoint: it has no `model` beside `model_args` with n_heads and max_seq_len; "
            "give a ckpt.pt of its trainer"
        )
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}  # of torch.compile
    parts = {name: match for name in state if (match := LORA.fullmatch(name))}
    lora = {(match[1], match[2]): state.pop(name) for name, match in parts.items()}
    state |= {f"{layer}.weight": tensor for (layer, part), tensor in lora.items() if part == "original"}
    left_out = [name for name in state if READ_BESIDE.match(name)]
    state = {name: tensor for name, tensor in state.items() if name not in left_out and not BUFFERS.search(name)}
    shape = _checkpoint_shape(path, args, state)
    tensors = {name: tensor.float() for name, tensor in state.items() if name != "output.weight" or not shape.tied}
    notes = [f"{len(left_out)} weights of its probes and lenses are left out"] if left_out else []
    return Llama2c(shape, tensors, _lora(path, saved, lora, notes) if lora else None, notes)


def _checkpoint_shape(path: Path, args: dict[str, Any], state: dict[str, torch.Tensor]) -> Shape:
    """Return the shape of a checkpoint's tensors, all of which must be there and none besides."""
    layers = {int(match[1]) for name in state if (match := re.match(r"layers\.(\d+)\.", name))}
    embeddings, gate = state.get("tok_embeddings.weight"), state.get("layers.0.feed_forward.w1.weight")
    if embeddings is None or gate is None:
        raise UsageError(f"{path} lacks tok_embeddings.weight or layers.0; give a ckpt.pt of llama2.c's trainer")
    output = state.get("output.weight", embeddings)
    shape = Shape(
        dim=embeddings.shape[1],
        hidden_dim=gate.shape[0],
        n_layers=max(layers) + 1,
        n_heads=args["n_heads"],
        n_kv_heads=args.get("n_kv_heads") or args["n_heads"],
        vocab_size=embeddings.shape[0],
        max_seq_len=args["max_seq_len"],
        tied=torch.equal(embeddings, output),
        norm_eps=args.get("norm_eps", NORM_EPS),
    )
    wanted = {name: shape.size(name) for name in [*shape.order(0), "output.weight"]} if shape.is_possible() else {}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()} | {"output.weight": tuple(output.shape)}
    if wrong := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise UsageError(
            f"{path} is no checkpoint of llama2.c's model: {len(wrong)} weights are missing, unknown or of another "
            f"shape, for example {wrong[0]}; give a ckpt.pt of its trainer"
        )
    return shape


def _lora(path: Path, saved: dict[str, Any], found: dict[tuple[str, str], torch.Tensor], notes: list[str]) -> Lora:
    """Return a checkpoint's adapter, of the rank that its matrices have.

    The instruct story-teller saves the rank, alpha and dropout that it was given, and trains with rank 4, alpha 1 and
    no dropout whatever they are.  So they count only where the rank is that of the matrices.
    """
    layers = sorted({layer for layer, part in found})
    if wrong := [layer for layer in layers if re.sub(r"layers\.\d+\.", "", layer) not in ATTENTION | MLP]:
        raise UsageError(f"{path} has LoRA on {wrong[0]}; only that of attention and feed-forward layers is imported")
    try:
        matrices = {layer: (found[layer, "0.lora_a"].float(), found[layer, "0.lora_b"].float()) for layer in layers}
        (rank,) = {number for a, b in matrices.values() for number in (a.shape[0], b.shape[1])}
    except (KeyError, ValueError):
        raise UsageError(f"{path} has LoRA matrices of several ranks, or not all; give a complete checkpoint") from None
    alpha, dropout = saved.get("lora_alpha", 1.0), saved.get("lora_dropout", 0.0)
    if saved.get("lora_rank", rank) != rank:
        notes.append(
            f"its matrices have rank {rank}, not the {saved['lora_rank']} that it names: its trainer ignored its "
            "settings, so that alpha is 1 and dropout 0"
        )
        alpha, dropout = 1.0, 0.0
    return Lora(rank, alpha, dropout, matrices)


def build_llama(found: Llama2c, bos_token_id: int | None, eos_token_id: int | None) -> LlamaForCausalLM:
    """Return the model for transformers, in float32."""
    shape = found.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        intermediate_size=shape.hidden_dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.max_seq_len,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=shape.tied,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
    )
    model = LlamaForCausalLM(config)
    head = found.tensors["tok_embeddings.weight" if shape.tied else "output.weight"]
    state = {"model.embed_tokens.weight": found.tensors["tok_embeddings.weight"], "lm_head.weight": head}
    state["model.norm.weight"] = found.tensors["norm.weight"]
    for layer in range(shape.n_layers):
        for part, name in LAYER.items():
            tensor = found.tensors[f"layers.{layer}.{part}.weight"]
            state[f"model.layers.{layer}.{name}.weight"] = (
                halves(tensor, _heads(shape, part)) if _heads(shape, part) else tensor
            )
    model.load_state_dict(state)
    return model.eval()


def _heads(shape: Shape, part: str) -> int:
    """Return the number of heads whose rows are permuted; 0 for a layer without rotation."""
    return {"attention.wq": shape.n_heads, "attention.wk": shape.n_kv_heads}.get(part, 0)


def write_adapter(found: Llama2c, folder: Path, base: Path) -> None:
    """Write the LoRA matrices as a PEFT adapter on `base`."""
    lora = found.lora
    assert lora is not None
    weights, names = {}, set()
    for layer, (a, b) in lora.matrices.items():
        _, number, part = layer.split(".", 2)
        names.add(LAYER[part].rpartition(".")[2])
        place = f"base_model.model.model.layers.{number}.{LAYER[part]}"
        heads = _heads(found.shape, part)
        weights[f"{place}.lora_A.weight"] = a.contiguous()
        weights[f"{place}.lora_B.weight"] = (halves(b, heads) if heads else b).contiguous()
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int; PEFT only divides it by r
        lora_dropout=lora.dropout,
        target_modules=sorted(names),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def check_llama(config: PretrainedConfig, name: str) -> None:
    """Raise a UsageError for a model that run.c would compute otherwise, or cannot have."""
    if config.model_type != "llama":
        raise UsageError(f"{name} is a {config.model_type} model; llama2.c runs Llama alone: give a model of that type")
    config_: Any = config
    rope = config_.rope_parameters or {}
    head_dim = config_.hidden_size // config_.num_attention_heads
    needed = {
        "hidden_act": (config_.hidden_act, "silu"),
        "attention_bias": (bool(config_.attention_bias), False),
        "mlp_bias": (bool(config_.mlp_bias), False),
        "rms_norm_eps": (config_.rms_norm_eps, NORM_EPS),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "rope_theta": (rope.get("rope_theta", ROPE_THETA), ROPE_THETA),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), 1.0),
        "head_dim": (getattr(config_, "head_dim", None) or head_dim, head_dim),
    }
    for setting, (value, wanted) in needed.items():
        if value != wanted:
            raise UsageError(f"{name} has {setting} {value}, and llama2.c {wanted}: it would compute another model")


def from_llama(model: Any) -> Llama2c:
    """Return a model of transformers as llama2.c has it; `check_llama` has checked its configuration."""
    config, state = model.config, model.state_dict()
    embeddings, head = state["model.embed_tokens.weight"], state["lm_head.weight"]
    shape = Shape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.max_position_embeddings,
        tied=torch.equal(embeddings, head),
    )
    tensors = {"tok_embeddings.weight": embeddings, "norm.weight": state["model.norm.weight"]}
    tensors |= {} if shape.tied else {"output.weight": head}
    for layer in range(shape.n_layers):
        for part, name in LAYER.items():
            tensor = state[f"model.layers.{layer}.{name}.weight"]
            heads = _heads(shape, part)
            tensors[f"layers.{layer}.{part}.weight"] = pairs(tensor, heads) if heads else tensor
    return Llama2c(shape, {name: tensor.float() for name, tensor in tensors.items()})


def write_llama2c(found: Llama2c, path: Path, version: int) -> None:
    """Write a `.bin` file; version 2 in int8."""
    shape, group = found.shape, 0
    if version == 0:
        numbers = list(shape.header)
        numbers[5] *= 1 if shape.tied else -1
        head = struct.pack("<7i", *numbers)
    else:
        head = struct.pack("<Ii7iB", MAGIC, version, *shape.header, shape.tied)
    if version == 2:
        # export.py looks at dim alone; runq.c leaves out what of a row is no whole group.
        group = GROUP_SIZE
        while shape.dim % group or shape.hidden_dim % group:
            group //= 2
        head += struct.pack("<i", group)
    with path.open("wb") as file:
        file.write(head if version == 0 else head.ljust(HEADER_BYTES, b"\0"))
        for name in shape.order(version):
            tensor = found.tensors[name]
            if version == 2 and tensor.ndim == 2:
                numbers_8, scales = quantize(tensor, group)
                file.write(numbers_8.numpy().tobytes())
                tensor = scales
            file.write(tensor.contiguous().numpy().astype("<f4").tobytes())
            if version == 0 and name == "norm.weight":
                file.write(_rotary_tables(shape))


def _rotary_tables(shape: Shape) -> bytes:
    """Return the cosines and sines that version 0 has and run.c skips, computed in float32 as llama2.c does."""
    head_dim = shape.dim // shape.n_heads
    frequencies = 1.0 / (ROPE_THETA ** (torch.arange(0, head_dim, 2).float() / head_dim))
    angles = torch.outer(torch.arange(shape.max_seq_len), frequencies)
    return b"".join(table.numpy().astype("<f4").tobytes() for table in (angles.cos(), angles.sin()))


def tokenizer_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name: str) -> bytes:
    """Return `tokenizer.bin`: the bytes of each token and a score that is higher the earlier its merge.

    Raises:
        UsageError: for a tokenizer that run.c cannot have, or of another size than the model.
    """
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    in_place = tuple(tokens[3 : 3 + len(BYTE_TOKENS)]) == BYTE_TOKENS and tokenizer.bos_token_id == 1
    if backend["type"] != "BPE" or not in_place:
        raise UsageError(
            f"{name}: run.c needs BOS as token 1 and the bytes as tokens 3 to 258, which this tokenizer has not; train "
            "with a tokenizer of lm-trials prepare train_vocab or a SentencePiece model"
        )
    if len(tokens) != vocab_size or vocab[tokens[-1]] != vocab_size - 1:
        raise UsageError(
            f"{name} has {vocab_size:,} embeddings and its tokenizer {len(tokens):,} tokens; run.c needs as many"
        )
    special = {*tokenizer.all_special_tokens, *BYTE_TOKENS}
    # SentencePiece numbers its pieces in the order of merges, then the characters, and so gives each its score.
    merges = ("".join(pair) for pair in backend["merges"])
    ranked = dict.fromkeys([*merges, *(token for token in tokens if token not in special)])
    scores = {token: -float(rank) for rank, token in enumerate(ranked)}
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    spelled = [f"\n{token}\n" if token in ends else token.replace(SPACE_MARK, " ") for token in tokens]
    written = [text.encode() for text in spelled]
    entries = [
        struct.pack("<fI", scores.get(token, 0.0), len(text)) + text
        for token, text in zip(tokens, written, strict=True)
    ]
    return struct.pack("<I", max(map(len, written))) + b"".join(entries)
