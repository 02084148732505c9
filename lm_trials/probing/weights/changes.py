"""Changes of weights from one model to another, matrix by matrix, in float64.

Shape suffixes: O = outputs, I = inputs of a matrix, R = the smaller of both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_trials.console import UsageError
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.subjects import Subject, load_subject, on_device, with_weights_in

Weights = dict[str, torch.Tensor]
BLOCK = re.compile(r"\.(\d+)\.")
QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Matrix:
    """One matrix of a model, outputs by inputs, which may be stored transposed or as a part of a larger parameter.

    Attributes:
        name: of the parameter, without `.weight`; the parts of GPT-2's c_attn end with .q, .k, .v.
        parameter: that it is, or is part of.
        transposed: stored as inputs by outputs, as in GPT-2's Conv1D.
        first, last: its rows (outputs) of the parameter; None for all.
        expert: its number in a parameter of several matrices, as of a mixture of experts.
    """

    name: str
    parameter: str
    transposed: bool = False
    first: int | None = None
    last: int | None = None
    expert: int | None = None

    @property
    def block(self) -> int | None:
        """Its decoder block; None for embeddings and the output head."""
        found = BLOCK.search(self.name)
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """Its name within its block.

        >>> Matrix("model.layers.3.self_attn.q_proj", "").kind, Matrix("model.embed_tokens", "").kind
        ('self_attn.q_proj', 'embed_tokens')
        """
        found = BLOCK.search(self.name)
        name = self.name if self.expert is None else self.name.rpartition(".")[0]
        return name[found.end() :] if found else name.rpartition(".")[2]

    def of(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return a view of it, (O, I)."""
        values = weights[self.parameter]
        values = values if self.expert is None else values[self.expert]
        return (values.T if self.transposed else values)[self.first : self.last]


def matrices_of(model: PreTrainedModel) -> list[Matrix]:
    """Return all two-dimensional parameters and those of experts as matrices, tied ones once.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> [m.kind for m in matrices_of(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)))]
    ['wte', 'wpe', 'attn.c_attn.q', 'attn.c_attn.k', 'attn.c_attn.v', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj']
    """
    found = []
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 and parameter.shape[1] > 1:  # 1 in a convolution along the text
            experts = model.get_submodule(name.rpartition(".")[0])
            turned = getattr(experts, "is_transposed", False)
            found += [Matrix(f"{name}.{n}", name, turned, expert=n) for n in range(len(parameter))]
        if parameter.dim() != 2:
            continue
        path = name.removesuffix(".weight")
        conv = isinstance(model.get_submodule(path) if path != name else None, Conv1D)
        if conv and path.endswith(".c_attn") and parameter.shape[1] == 3 * parameter.shape[0]:
            width = parameter.shape[0]
            found += [
                Matrix(f"{path}.{part}", name, True, place * width, (place + 1) * width)
                for place, part in enumerate(QKV)
            ]
        else:
            found.append(Matrix(path, name, conv))
    return found


def read_weights(subject: Subject, args: SubjectArguments) -> tuple[PreTrainedModel, Weights]:
    """Load a model, an adapter merged into its base, and return it with float64 copies of its parameters.

    The adapter is merged in float64: float32 rounds its change where the base's weights are large, and a change of
    rank 8 would have full rank.

    Raises:
        UsageError: for a model with quantized weights.
    """
    model: Any = load_subject(subject, args)
    if getattr(model, "is_quantized", False):
        raise UsageError(
            f"--model_name_or_path {subject.reference.name} has quantized weights, whose difference is rounding; name "
            "the model that was quantized"
        )
    if subject.reference.base is not None:
        from lm_trials.models.adapters import merged  # peft takes two seconds to import

        with_weights_in(model.cpu(), torch.float64)
        model = merged(model, f"--model_name_or_path {subject.reference.name}")
    weights = weights_of(model)
    return on_device(with_weights_in(model, getattr(torch, args.dtype)), args).eval(), weights


def weights_of(model: PreTrainedModel) -> Weights:
    """Return float64 copies of a model's parameters."""
    return {name: tensor.detach().cpu().to(torch.float64, copy=True) for name, tensor in model.named_parameters()}


def check_same_shape(name: str, weights: Weights, other: str, theirs: Weights) -> None:
    """Check that two models have the same parameters.

    Raises:
        UsageError: with the first parameter in which they differ.
    """
    alone = [key for key in [*weights, *theirs] if (key in weights) != (key in theirs)]
    shaped = [key for key in weights if key in theirs and weights[key].shape != theirs[key].shape]
    if differing := shaped or alone:
        key = differing[0]
        ours, its = (str(tuple(part[key].shape)) if key in part else "none" for part in (weights, theirs))
        raise UsageError(
            f"--model_name_or_path {name} and {other} have different shapes ({key}: {ours} and {its}); name a base and "
            "models that were fine-tuned from it"
        )


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix, largest first, and its ranks.

    >>> spectrum = Spectrum(np.array([4.0, 3.0, 0.0]))
    >>> spectrum.share(1), round(spectrum.effective_rank, 3), spectrum.stable_rank
    (0.64, 1.98, 1.5625)
    """

    values_R: np.ndarray
    rounding: float = 0.0

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(np.sqrt((self.values_R**2).sum()))

    @property
    def rank(self) -> int:
        """Number of singular values above the float64 rounding of the two subtracted matrices."""
        return int((self.values_R > self.rounding).sum())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values' shares (Roy and Vetterli 2007); NaN for a zero matrix."""
        total = self.values_R.sum()
        if not total:
            return float("nan")
        shares = self.values_R[self.values_R > 0] / total
        return float(np.exp(-(shares * np.log(shares)).sum()))

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over the squared largest singular value; NaN for a zero matrix."""
        return float((self.values_R**2).sum() / self.values_R[0] ** 2) if self.values_R[0] else float("nan")

    def share(self, top: int) -> float:
        """Return the share of the squared norm in the largest singular directions; NaN for a zero matrix."""
        return float((self.values_R[:top] ** 2).sum() / self.norm**2) if self.norm else float("nan")


@dataclass(frozen=True)
class MatrixChange:
    """The change of one matrix, decomposed: U (O, R), S (R), V (R, I), and the norm of the matrix before."""

    matrix: Matrix
    u_OR: torch.Tensor
    s_R: torch.Tensor
    v_RI: torch.Tensor
    norm_before: float

    @cached_property
    def spectrum(self) -> Spectrum:
        """Its singular values."""
        size = self.norm_before + float(self.s_R.norm())
        return Spectrum(self.s_R.numpy(), rounding=max(self.shape) * np.finfo(np.float64).eps * size)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.u_OR.shape[0], self.v_RI.shape[1]

    @property
    def relative(self) -> float:
        """Its Frobenius norm over that of the matrix before; NaN for a zero matrix."""
        return self.spectrum.norm / self.norm_before if self.norm_before else float("nan")


def change_of(matrix: Matrix, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> MatrixChange:
    """Return the singular value decomposition of the change of a matrix.

    >>> before = {"w": torch.eye(3, dtype=torch.float64)}
    >>> change = change_of(Matrix("w", "w"), before, {"w": before["w"] * 3})
    >>> change.spectrum.values_R.tolist(), change.relative
    ([2.0, 2.0, 2.0], 2.0)
    """
    old, new = matrix.of(before), matrix.of(after)
    u, s, v = torch.linalg.svd(new - old, full_matrices=False)
    return MatrixChange(matrix, u, s, v, float(old.norm()))


def overlap(first: MatrixChange, second: MatrixChange, top: int) -> tuple[float, float]:
    """Return the overlap of the largest directions of two changes: of outputs, and of inputs.

    The overlap is the mean squared cosine of the principal angles: 1 for the same span, top / O and top / I for random
    directions; NaN where a change has fewer directions.
    """
    if min(first.spectrum.rank, second.spectrum.rank) < top:
        return float("nan"), float("nan")
    outputs = first.u_OR[:, :top].T @ second.u_OR[:, :top]
    inputs = first.v_RI[:top] @ second.v_RI[:top].T
    return float((outputs**2).sum() / top), float((inputs**2).sum() / top)


@dataclass(frozen=True)
class Turning:
    """Two successive changes of n weights, compared.

    Attributes:
        cosine: -1 where the second undoes the first, 1 where it continues in its direction.
        taken_back: share of the first change that the second undoes.
        n: number of weights.
        spread: standard deviation of the cosine for second changes in random directions.
    """

    cosine: float
    taken_back: float
    n: int
    spread: float

    @property
    def by_chance(self) -> float:
        """Half the width of the 95 % interval of random changes' cosines."""
        # Normal: a cosine over thousands of weights is a sum of as many small products.
        return 1.96 * self.spread


def turning(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> Turning:
    """Compare two changes, each given as its tensors.

    The random changes have the norm of the second in each tensor: a tensor of n weights adds (|a| |b|) ** 2 / n to the
    variance of the product.  With one norm over all weights, 72 % of independent changes by adapters, which change few
    matrices, were beyond chance.

    >>> turning([torch.tensor([2.0, 0.0])], [torch.tensor([-1.0, 0.0])]).cosine
    -1.0
    >>> four = torch.ones(4)
    >>> [turning([four, unchanged], [four, unchanged]).spread for unchanged in (torch.zeros(0), torch.zeros(96))]
    [0.5, 0.5]
    """
    dot = sum(float((a * b).sum()) for a, b in zip(first, second, strict=True))
    squares = [[float((tensor**2).sum()) for tensor in side] for side in (first, second)]
    one, other = map(sum, squares)
    nan, scale = float("nan"), (one * other) ** 0.5
    variance = sum(a * b / t.numel() for a, b, t in zip(*squares, first, strict=True) if t.numel())
    n = sum(tensor.numel() for tensor in first)
    return Turning(
        dot / scale if scale else nan, -dot / one if one else nan, n, variance**0.5 / scale if scale else nan
    )


def random_spectra(shape: tuple[int, int], draws: int, seed: int) -> list[Spectrum]:
    """Return the spectra of random matrices of a shape; their norm changes neither effective rank nor shares."""
    generator = np.random.default_rng([seed, *shape])
    return [Spectrum(np.linalg.svd(generator.standard_normal(shape), compute_uv=False)) for _ in range(draws)]
