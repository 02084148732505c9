"""Lenses: the next token that a model's hidden states predict at each layer.

The *logit lens* (nostalgebraist 2020) puts a layer's hidden states through the model's own final norm and output head.
The *tuned lens* (Belrose et al. 2023, arXiv 2303.08112) first applies an affine map, trained for each layer, that
approximates the last layer's hidden states: h + A h + b.

Each position of a story but its last is scored against the token after it, as in `evaluation.losses`, so that the last
layer's loss is the model's.  Sums are kept by story.

Shape suffixes: S = stories, N = positions of a batch, D = width, V = vocabulary, L = blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lm_trials.console import UsageError, progress
from lm_trials.evaluation.losses import Document, quiet, story_losses
from lm_trials.models.quantization import is_exact
from lm_trials.models.shapes import text_config
from lm_trials.probing.activation_store import captured
from lm_trials.probing.anatomy import Anatomy, anatomy_of
from lm_trials.probing.capture import Activations, Capture

SITES = ("hidden", "normed")
SUMS = ("loss", "kl", "agreement", "accuracy")
"""What is summed for each story."""
LOGITS = 1 << 25
"""Logits computed at once: 128 MB in float32.  All logits of a batch at a vocabulary of 50,257 would be gigabytes."""


@dataclass(frozen=True)
class Translators:
    """The affine maps of a tuned lens: for each layer A (D, D) and b (D,), in float32; the last layer has none."""

    weights: Mapping[int, torch.Tensor]
    biases: Mapping[int, torch.Tensor]

    @classmethod
    def identity(cls, layers: Sequence[int], width: int, device: Any = None) -> Translators:
        """Return maps that change nothing, the start of training: a tuned lens equal to the logit lens."""
        return cls(
            {layer: torch.zeros(width, width, device=device) for layer in layers},
            {layer: torch.zeros(width, device=device) for layer in layers},
        )

    def of(self, layer: int) -> list[torch.Tensor]:
        """Return a layer's A and b."""
        return [self.weights[layer], self.biases[layer]]

    def __call__(self, layer: int, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Map a layer's hidden states to the last layer's.

        >>> maps = Translators({0: torch.eye(2)}, {0: torch.tensor([0.0, 1.0])})
        >>> maps(0, torch.tensor([[1.0, 2.0]])).tolist(), maps(1, torch.tensor([[1.0, 2.0]])).tolist()
        ([[2.0, 5.0]], [[1.0, 2.0]])
        """
        if layer not in self.weights:
            return hidden_ND
        return hidden_ND + hidden_ND @ self.weights[layer].T + self.biases[layer]

    def to(self, device: Any) -> Translators:
        """Return the same maps on another device."""
        weights, biases = ({n: values.to(device) for n, values in part.items()} for part in (self.weights, self.biases))
        return Translators(weights, biases)


def after_head(config: Any) -> tuple[float | None, float]:
    """Return the cap of a model's logits and their factor after the output head; `check_head` tests them.

    >>> from transformers import AutoConfig
    >>> [after_head(AutoConfig.for_model(kind)) for kind in ("llama", "gemma2", "cohere")]
    [(None, 1.0), (30.0, 1.0), (None, 0.0625)]
    """
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    return cap, float(factor / scaling if "granite" in config.model_type else factor * scaling)


class Decoder:
    """Decodes hidden states with a model's final norm and output head, in the model's dtype; logits in float32.

    Attributes:
        device: of the model.
        places: how many positions are decoded at once, so that their logits fit in memory.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.norm, self.head = anatomy.final_norm, anatomy.head
        self.cap, self.factor = after_head(text_config(anatomy.model))
        self.device, self.dtype = anatomy.model.device, anatomy.model.dtype
        self.vocab_size = int(text_config(anatomy.model).vocab_size)
        self.places = max(LOGITS // self.vocab_size, 1)

    def __call__(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of the next token, (N, V), of hidden states before the final norm."""
        return self.logits(hidden_ND).log_softmax(-1)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, V), of hidden states before the final norm."""
        return self._headed(self.norm(hidden_ND.to(self.dtype)))

    def of_normed(self, normed_ND: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities, (N, V), of hidden states after the final norm."""
        return self._headed(normed_ND).log_softmax(-1)

    def _headed(self, normed_ND: torch.Tensor) -> torch.Tensor:
        logits_NV = self.head(normed_ND.to(self.dtype))
        if self.cap:
            logits_NV = torch.tanh(logits_NV / self.cap) * self.cap
        logits_NV = logits_NV * self.factor if self.factor != 1 else logits_NV
        return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))


def kl_divergence(final_NV: torch.Tensor, lens_NV: torch.Tensor) -> torch.Tensor:
    """Return KL(final || lens) of log-probabilities in nats, -> (N,).

    >>> round(float(kl_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())), 4)
    0.1438
    """
    return (final_NV.exp() * (final_NV - lens_NV)).sum(-1)


def scores(final_NV: torch.Tensor, lens_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return the values that `SUMS` names for each position, -> (N, 4) in float64, of log-probabilities (N, V).

    >>> final, lens = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log()
    >>> [round(value, 3) for value in scores(final, lens, torch.tensor([1]))[0].tolist()]
    [0.223, 1.146, 0.0, 1.0]
    """
    top_N = lens_NV.argmax(-1)
    columns = (
        -lens_NV.gather(-1, targets_N[:, None])[:, 0],
        kl_divergence(final_NV, lens_NV),
        top_N == final_NV.argmax(-1),
        top_N == targets_N,
    )
    return torch.stack([column.cpu().double() for column in columns], dim=1)


@dataclass(frozen=True)
class Places:
    """The positions of a batch of stories that are scored: all but the last of each.

    Attributes:
        hidden: by layer, (N, D).
        normed_ND: the last layer's, after the model's final norm.
        targets_N: the token after each.
        story_N: the number of each one's story in the whole data set.
    """

    hidden: Mapping[int, torch.Tensor]
    normed_ND: torch.Tensor
    targets_N: torch.Tensor
    story_N: torch.Tensor

    @classmethod
    def of(cls, found: Activations, documents: Sequence[np.ndarray], layers: Sequence[int]) -> Places:
        """Take them from the captured activations of some of the documents."""
        scored_N = found.position_N < found.lengths_B[found.text_N] - 1
        targets = [documents[number][1:] for number in found.document_B.tolist()]
        [last] = found.layers("normed")
        return cls(
            {layer: found.of("hidden", layer)[scored_N] for layer in layers},
            found.of("normed", last)[scored_N],
            torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            found.document_B[found.text_N[scored_N]],
        )

    def chunks(self, size: int, device: torch.device) -> Iterator[Places]:
        """Yield them in pieces of at most `size`, on a device."""
        for start in range(0, len(self.targets_N), size):
            part = slice(start, start + size)
            yield Places(
                {layer: values_ND[part].to(device) for layer, values_ND in self.hidden.items()},
                self.normed_ND[part].to(device),
                self.targets_N[part].to(device),
                self.story_N[part],
            )


@dataclass(frozen=True)
class LensSums:
    """For each story the sums of `SUMS`, (S, 4) by (lens, layer), and its number of scored positions."""

    sums: dict[tuple[str, int | None], np.ndarray]
    tokens_S: np.ndarray


@torch.no_grad()
def lens_sums(
    model: Any,
    documents: Sequence[np.ndarray],
    layers: Sequence[int],
    tuned: Translators | None = None,
    log_frequencies_V: torch.Tensor | None = None,
    batch_size: int = 16,
    description: str | None = "lenses",
) -> LensSums:
    """Score stories at each layer with the logit lens and, if given, with a tuned lens and the token frequencies.

    Args:
        documents: the (T,) ids of each story, at least two.
        layers: hidden-state layers, 0 to L.
        log_frequencies_V: log-probabilities of a constant prediction, summed under ("frequencies", None).
        description: of the progress bar; None for no bar.
    """
    decode = Decoder(anatomy_of(model))
    tuned = tuned.to(decode.device) if tuned is not None else None
    sums: dict[tuple[str, int | None], np.ndarray] = {}

    def add(lens: str, layer: int | None, part: Places, final_NV: torch.Tensor, lens_NV: torch.Tensor) -> None:
        values_N4 = scores(final_NV, lens_NV, part.targets_N).numpy()
        table_S4 = sums.setdefault((lens, layer), np.zeros((len(documents), len(SUMS))))
        np.add.at(table_S4, part.story_N.numpy(), values_N4)

    sites = {"hidden": list(layers), "normed": None}
    for found in captured(model, documents, sites, None, batch_size, description):
        for part in Places.of(found, documents, layers).chunks(decode.places, decode.device):
            final_NV = decode.of_normed(part.normed_ND)
            if log_frequencies_V is not None:
                add("frequencies", None, part, final_NV, log_frequencies_V.to(final_NV).expand_as(final_NV))
            for layer, hidden_ND in part.hidden.items():
                add("logit", layer, part, final_NV, decode(hidden_ND))
                if tuned is not None and layer in tuned.weights:
                    add("tuned", layer, part, final_NV, decode(tuned(layer, hidden_ND)))
    if tuned is not None:  # at a layer without a map, as the last, both lenses are the same
        sums |= {("tuned", layer): sums["logit", layer] for layer in layers if layer not in tuned.weights}
    ordered = sorted(sums, key=lambda key: (key[0], key[1] or 0))
    return LensSums({key: sums[key] for key in ordered}, np.array([len(ids_T) - 1 for ids_T in documents]))


@torch.no_grad()
def mean_prediction(
    model: Any, documents: Sequence[np.ndarray], batch_size: int = 16, description: str | None = "token frequencies"
) -> torch.Tensor:
    """Return the log of a model's mean prediction over all scored positions, (V,) in float64.

    It is the constant prediction nearest to the model's in KL: any further gain of a lens comes from the hidden states.
    """
    decode = Decoder(anatomy_of(model))
    total_V, places = torch.zeros(decode.vocab_size, dtype=torch.float64), 0
    for found in captured(model, documents, ("normed",), None, batch_size, description):
        for part in Places.of(found, documents, ()).chunks(decode.places, decode.device):
            total_V += decode.of_normed(part.normed_ND).exp().cpu().sum(0, dtype=torch.float64)
            places += len(part.targets_N)
    # A token whose probability is 0 in float32 at every position gets the smallest one: 0 times infinity would be NaN.
    return (total_V / places).clamp_min(torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True)
class LastLayerCheck:
    """The control of every measurement: the lens at the last layer against the model itself.

    Attributes:
        kl: largest KL at one position of a story, in nats.
        loss: mean loss of all stories by `story_losses`, in nats per token.
        apart: how far the lens' loss is from it.
    """

    kl: float
    loss: float
    apart: float

    def __str__(self) -> str:
        return (
            f"the lens at the last layer equals the model: largest KL {max(self.kl, 0):.1e} nats, difference in loss "
            f"{self.apart:.1e} nats per token"
        )


@torch.no_grad()
def check_head(model: Any, ids_T: np.ndarray, name: str = "") -> float:
    """Check that the lens at the last layer gives a model's logits of a text; returns the largest KL in nats.

    Raises:
        UsageError: for a model that changes its logits after the output head in an unknown way.
    """
    anatomy = anatomy_of(model, name)
    last, whole = anatomy.num_blocks, anatomy.model
    ids_BT = torch.from_numpy(np.asarray(ids_T, dtype=np.int64))[None].to(whole.device)
    with quiet(whole), Capture(model, {"hidden": [last]}) as capture:
        logits_TV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits[0]
        hidden_TD = capture.activations.of("hidden", last).to(whole.device)
        kl = float("inf")  # where the head reads a projection of them (OPT 350M)
        if whole.get_output_embeddings().weight.shape[1] == hidden_TD.shape[1]:
            lens_TV = Decoder(anatomy)(hidden_TD)
            kl = float(kl_divergence(logits_TV.to(lens_TV.dtype).log_softmax(-1), lens_TV).max())
    if not kl <= _allowed(whole):
        raise UsageError(
            f"{anatomy.name}: its logits are not those of its final norm and output head (KL {kl:.2g} nats), as in a "
            "model that projects its hidden states before them or changes its logits after them; name another model"
        )
    return kl


def _allowed(model: Any) -> float:
    # Two ways to one number differ by rounding: by far less than 1e-3 nats in float32, by more in 16 or 8 bits.
    return 1e-3 if is_exact(model) else 0.1


@torch.no_grad()
def check_last_layer(
    model: Any, documents: Sequence[np.ndarray], sums: LensSums, window: int, batch_size: int = 16, name: str = ""
) -> LastLayerCheck:
    """Check that the lens at the last layer is the model: its logits on the first story, its loss on all stories.

    Raises:
        UsageError: as `check_head`.
        RuntimeError: where the losses are not those of `story_losses`.
    """
    anatomy = anatomy_of(model, name)
    last, allowed = anatomy.num_blocks, _allowed(anatomy.model)
    kl = check_head(model, documents[0], name)
    stories = (Document(str(number), ids_T, 0) for number, ids_T in enumerate(documents))
    losses = story_losses(model, stories, window, batch_size=batch_size)
    scored = list(progress(losses, "checking the loss", "stories", len(documents)))
    tokens, expected = int(sums.tokens_S.sum()), sum(story.tokens for story in scored)
    loss = sum(story.nats for story in scored) / expected
    apart = abs(float(sums.sums["logit", last][:, 0].sum()) / tokens - loss)
    if tokens != expected or not apart <= allowed:
        raise RuntimeError(
            f"{anatomy.name}: the lens' loss at the last layer is {apart:.2g} nats per token from the model's over "
            f"{tokens} and {expected} tokens; more than rounding explains ({allowed:g})"
        )
    return LastLayerCheck(kl, loss, apart)


@torch.no_grad()
def read_text(
    model: Any, ids_T: np.ndarray, layers: Sequence[int], tuned: Translators | None = None
) -> list[dict[str, Any]]:
    """Return each lens' most likely next token after each token of a text.

    Returns:
        Rows with lens, layer, position, after (the id there), prediction (the most likely next id) and its probability.
    """
    decode = Decoder(anatomy_of(model))
    [found] = captured(model, [ids_T], {"hidden": list(layers)}, description=None)
    lenses = {"logit": Translators({}, {})} | ({"tuned": tuned.to(decode.device)} if tuned is not None else {})
    rows = []
    for lens, maps in lenses.items():
        for layer in layers:
            best = decode(maps(layer, found.of("hidden", layer).to(decode.device))).max(-1)
            predicted = zip(ids_T.tolist(), best.indices.tolist(), best.values.exp().tolist(), strict=True)
            rows += [
                {"lens": lens, "layer": layer, "position": place, "after": after, "prediction": token, "probability": p}
                for place, (after, token, p) in enumerate(predicted)
            ]
    return rows


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 of a loaded model's parameters and buffers, which a lens file stores.

    >>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> weights_sha256(first) == weights_sha256(first), weights_sha256(first) == weights_sha256(second)
    (True, False)
    """
    digest = hashlib.sha256()
    for name, values in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
