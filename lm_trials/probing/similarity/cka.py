"""CKA: how similar the layers of two models are over the same stories, up to rotation and scale of the features.

Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414), debiased: HSIC is estimated without bias by
Song et al. (2012, JMLR 13), as Nguyen et al. (2021, arXiv 2010.15327) did for CKA.  The plain estimate is far above 0
for unrelated layers unless the width is small compared to the number of stories; the debiased one is 0 there.

A story is one sample: its mean over tokens, or its last token.  Tokens of one story are not independent samples.

HSIC of N stories needs only sums over them, such as the cross-covariance of the features.  They are added up in pieces
in float64, so memory is that of the pooled stories and D^2, never N^2.

Shape suffixes: N = stories, B = stories of a piece, D, E = features of two layers.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_trials.console import UsageError, progress
from lm_trials.estimates import NO_INTERVAL, Estimate, t_interval
from lm_trials.probing.activation_store import IN_MEMORY, captured
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.findings import Finding
from lm_trials.probing.tables import ProbeTable, Row, interval, sign

UNIT = "CKA, debiased"
UNTRAINED = "untrained"
# The unbiased HSIC needs 4 stories and the jackknife one more; below 8 intervals are too wide to use. Convention.
FEWEST_STORIES = 8
"""The estimate needs 4 stories, the jackknife one more; with fewer than 8 the interval is meaningless."""
PIECE = 1024
"""Stories of a piece: 32 MB in float64 at a width of 4,096."""
LARGEST = 1 - 1e-12
"""Fisher's scale is infinite at 1, which CKA reaches for equal layers."""


def pooled_stories(
    model: Any, documents: Sequence[np.ndarray], pooling: str, batch_size: int, label: str
) -> list[np.ndarray]:
    """Return (N, D) float32 for each hidden layer 0 to L: a row per story, its mean or its last token.

    More than `IN_MEMORY` bytes are kept in a temporary file.

    Raises:
        UsageError: for too few stories.
    """
    if len(documents) < FEWEST_STORIES:
        raise UsageError(
            f"--dataset_name: {len(documents)} stories are too few for CKA; give at least {FEWEST_STORIES}"
        )
    anatomy = anatomy_of(model, label)
    shape = anatomy.num_blocks + 1, len(documents), anatomy.width
    rows_LND = _room(shape)
    for found in captured(model, documents, ["hidden"], None if pooling == "mean" else 1, batch_size, label, label):
        for layer in found.layers("hidden"):
            rows_LND[layer, found.document_B.numpy()] = found.means("hidden", layer).to(torch.float32).numpy()
    return list(rows_LND)


def _room(shape: tuple[int, ...]) -> np.ndarray:
    if 4 * math.prod(shape) <= IN_MEMORY:
        return np.zeros(shape, dtype=np.float32)
    folder = tempfile.TemporaryDirectory(prefix="pooled-")
    rows = np.lib.format.open_memmap(Path(folder.name) / "rows.npy", mode="w+", dtype=np.float32, shape=shape)
    weakref.finalize(rows, folder.cleanup)
    return rows


@dataclass(frozen=True)
class Features:
    """The pooled stories of one layer, with what CKA needs of them.

    Attributes:
        rows_ND: as they were pooled.
        mean_D: over the stories; subtracted because sums of large numbers lose digits.
        squares_N: squared length of each centred row.
    """

    rows_ND: np.ndarray
    mean_D: np.ndarray
    squares_N: np.ndarray

    @classmethod
    def of(cls, rows_ND: np.ndarray) -> Features:
        """Prepare a layer; more features than stories are rotated into as many features as stories.

        CKA depends on the products of rows only, which a rotation does not change.
        """
        if rows_ND.shape[1] > len(rows_ND):
            rows_ND = np.asarray(np.linalg.qr((rows_ND - rows_ND.mean(axis=0, dtype=np.float64)).T, mode="r")).T
        mean_D = rows_ND.mean(axis=0, dtype=np.float64)
        features = cls(rows_ND, mean_D, np.empty(len(rows_ND)))
        for part, piece_BD in features.pieces():
            features.squares_N[part] = (piece_BD**2).sum(axis=1)
        return features

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the centred rows in float64, `PIECE` at a time, with their places."""
        for start in range(0, len(self.rows_ND), PIECE):
            part = slice(start, start + PIECE)
            yield part, self.rows_ND[part].astype(np.float64) - self.mean_D


@dataclass(frozen=True)
class Hsic:
    """HSIC of two layers over N stories, and without each story; up to a factor that cancels in CKA."""

    value: float
    without_N: np.ndarray


def hsic(x: Features, y: Features) -> Hsic:
    """Estimate HSIC with linear kernels without bias, over all stories and without each story in turn.

    With K = XX' and L = YY', both without their diagonals, Song's estimate is
    (tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)) / (n(n-3)).  Each term is a function of X'Y, the sums of rows
    and the sums of rows times squared lengths.  Leaving a story out changes each term by that story's row only.
    """
    n, width_d, width_e = len(x.squares_N), len(x.mean_D), len(y.mean_D)
    cross_DE, sum_D, sum_E = np.zeros((width_d, width_e)), np.zeros(width_d), np.zeros(width_e)
    for (_, x_BD), (_, y_BE) in zip(x.pieces(), y.pieces(), strict=True):
        cross_DE += x_BD.T @ y_BE
        sum_D += x_BD.sum(axis=0)
        sum_E += y_BE.sum(axis=0)
    # Row sums of K and L and of their elementwise product; then, for leaving a story out, K and L times those sums.
    rows_k_N, rows_l_N, products_N = np.empty(n), np.empty(n), np.empty(n)
    for (part, x_BD), (_, y_BE) in zip(x.pieces(), y.pieces(), strict=True):
        rows_k_N[part] = x_BD @ sum_D - x.squares_N[part]
        rows_l_N[part] = y_BE @ sum_E - y.squares_N[part]
        products_N[part] = ((x_BD @ cross_DE) * y_BE).sum(axis=1) - x.squares_N[part] * y.squares_N[part]
    weighted_D, weighted_E = np.zeros(width_d), np.zeros(width_e)
    for (part, x_BD), (_, y_BE) in zip(x.pieces(), y.pieces(), strict=True):
        weighted_D += rows_l_N[part] @ x_BD
        weighted_E += rows_k_N[part] @ y_BE
    k_times_l_N, l_times_k_N = np.empty(n), np.empty(n)
    for (part, x_BD), (_, y_BE) in zip(x.pieces(), y.pieces(), strict=True):
        k_times_l_N[part] = x_BD @ weighted_D - x.squares_N[part] * rows_l_N[part]
        l_times_k_N[part] = y_BE @ weighted_E - y.squares_N[part] * rows_k_N[part]
    total_k, total_l = rows_k_N.sum(), rows_l_N.sum()
    trace, both = products_N.sum(), (rows_k_N * rows_l_N).sum()
    value = _song(n, trace, total_k * total_l, both)
    without_N = _song(
        n - 1,
        trace - 2 * products_N,
        (total_k - 2 * rows_k_N) * (total_l - 2 * rows_l_N),
        both - rows_k_N * rows_l_N - k_times_l_N - l_times_k_N + products_N,
    )
    return Hsic(float(value), without_N)


def _song(n: int, trace: Any, totals: Any, both: Any) -> Any:
    return (trace + totals / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3))


@dataclass(frozen=True)
class Cka:
    """CKA of two layers: over all stories, and without each story."""

    value: float
    without_N: np.ndarray

    @classmethod
    def of(cls, cross: Hsic, x: Hsic, y: Hsic) -> Cka:
        """Normalize an HSIC by those of both layers; NaN where a layer is the same for all stories."""
        scale, scale_N = x.value * y.value, x.without_N * y.without_N
        with np.errstate(divide="ignore", invalid="ignore"):
            value = cross.value / math.sqrt(scale) if scale > 0 else math.nan
            without_N = np.where(scale_N > 0, cross.without_N / np.sqrt(np.maximum(scale_N, 0)), np.nan)
        return cls(value, without_N)

    def estimate(self) -> Estimate:
        """Return it with its jackknife interval over stories.

        A bootstrap draws stories twice, and a story paired with its own copy is the bias that the debiased estimate
        removes.  The interval is computed on Fisher's scale, because CKA is a correlation and may be near 1.
        """
        z_N = np.arctanh(np.clip(self.without_N, -LARGEST, LARGEST))
        centre = float(np.arctanh(np.clip(self.value, -LARGEST, LARGEST)))
        lower, upper = np.tanh(_jackknife(centre, z_N)).tolist()
        # `min` and `max`: the CKA of two equal layers is 1, beyond the clipped interval.
        return Estimate(self.value, min(lower, self.value), max(upper, self.value), len(z_N), UNIT)

    def minus(self, other: Cka, confidence: float = 0.95) -> Estimate:
        """Return the difference from another CKA over the same stories, with its interval."""
        difference = self.value - other.value
        lower, upper = _jackknife(difference, self.without_N - other.without_N, confidence)
        return Estimate(difference, lower, upper, len(self.without_N), f"difference of {UNIT}")


def _jackknife(centre: float, without_N: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    n = len(without_N)
    if not (math.isfinite(centre) and np.isfinite(without_N).all()):
        return NO_INTERVAL
    # Jackknife: a bootstrap sample has a story beside its own copy, which brings back the bias that the estimator
    # removes.
    error = math.sqrt((n - 1) / n * ((without_N - without_N.mean()) ** 2).sum())
    if error == 0:  # two equal layers: without a spread there is nothing to measure it by
        return NO_INTERVAL
    return t_interval(centre, error, n - 1, confidence=confidence)


def cka_matrix(
    one: Sequence[Features], other: Sequence[Features], description: str, diagonal: bool = False
) -> dict[tuple[int, int], Cka]:
    """Return the CKA of each layer of one model with each layer (`diagonal`: the same layer) of another.

    Both must have the same stories in the same order.
    """
    own = [hsic(layer, layer) for layer in one]
    others = [hsic(layer, layer) for layer in other]
    pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if i == j or not diagonal]
    shown = progress(pairs, description, "pairs of layers", len(pairs))
    return {(i, j): Cka.of(hsic(one[i], other[j]), own[i], others[j]) for i, j in shown}


def shuffled(layers: Sequence[Features], seed: int) -> list[Features]:
    """Return the layers with their stories in another order, the same in all layers: the control without pairing.

    >>> (layer,) = shuffled([Features.of(np.arange(4.0).reshape(4, 1))], seed=0)
    >>> sorted(layer.rows_ND[:, 0].tolist()) == [0, 1, 2, 3], layer.rows_ND[:, 0].tolist() == [0, 1, 2, 3]
    (True, False)
    """
    order = np.random.default_rng(seed).permutation(len(layers[0].squares_N))
    return [Features(layer.rows_ND[order], layer.mean_D, layer.squares_N[order]) for layer in layers]


def cka_rows(found: Mapping[tuple[int, int], Cka], about: Row, role: str) -> ProbeTable:
    """Return a row for each pair of layers."""
    rows = ProbeTable()
    for (i, j), cka in found.items():
        where = {"measure": "CKA", "role": role, "site": "hidden", "layer": j, "layer_of_other": i}
        rows.add(cka.estimate(), about | where)
    return rows


def cka_finding(base: str, found: Mapping[str, Mapping[tuple[int, int], Cka]], shuffled: Mapping[int, Cka]) -> Finding:
    """Return in which layer each model differs most from the base, and the controls.

    Args:
        found: by model, untrained among them, the CKA of pairs of layers with the base.
        shuffled: by layer, of the first trained model with its stories in another order.
    """
    sentences, controls = [], []
    untrained = found[UNTRAINED]
    depth = 1 + max(layer for layer, _ in untrained)
    for label, pairs in found.items():
        if label == UNTRAINED:
            continue
        diagonal = [pairs[layer, layer] for layer in range(depth)]
        # CKA is NaN in a layer that is the same for all stories.
        there = [n for n in range(depth) if math.isfinite(diagonal[n].value)] or [0]
        layer, most = (choose(there, key=lambda n: diagonal[n].value) for choose in (min, max))
        least, ahead = diagonal[layer].estimate(), diagonal[layer].minus(untrained[layer, layer])
        nearer = sum(sign(diagonal[n].minus(untrained[n, n])) > 0 for n in range(depth))
        sentences.append(
            f"{label} and {base}: the lowest CKA is in layer {layer}, {interval(least)} (n={least.n} stories), "
            f"{interval(ahead)} above an untrained model's; {_least_alike(diagonal, there, layer, most)}; "
            f"more similar to {base} than an untrained model in {nearer or 'none'} of {depth} layers"
        )
        controls.append(f"untrained, layer {layer}: {interval(untrained[layer, layer].estimate())}")
    mixed = [cka.estimate() for cka in shuffled.values()]
    off = sum(not estimate.lower <= 0 <= estimate.upper for estimate in mixed)
    largest = max(mixed, key=lambda estimate: abs(estimate.estimate))
    controls.append(
        f"stories mixed up: at most {interval(largest)} in any layer, the interval excludes 0 in {off} of {len(mixed)}"
    )
    return Finding.of(sentences, controls)


def _least_alike(diagonal: Sequence[Cka], there: Sequence[int], least: int, most: int) -> str:
    """Return whether the CKA of the lowest layer is significantly below that of the others.

    The layer was chosen because it is the lowest, so the intervals are corrected for all pairs of layers (Bonferroni).
    """
    pairs = max(1, len(there) * (len(there) - 1) // 2)
    below = [n for n in there if n != least and diagonal[least].minus(diagonal[n], 1 - 0.05 / pairs).upper < 0]
    if len(there) > 1 and len(below) == len(there) - 1:
        apart = interval(diagonal[most].minus(diagonal[least]))
        return f"significantly below every other layer (below layer {most} by {apart})"
    if below:
        return f"significantly below layer{'s' * (len(below) > 1)} {', '.join(map(str, below))} only"
    return "not significantly below another layer"
