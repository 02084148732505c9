"""CKA: how alike the layers of two models arrange the same stories, whatever the directions that they use for it.

Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414), debiased: HSIC is estimated without bias as
by Song et al. (2012, JMLR 13), which Nguyen et al. (2021, arXiv 2010.15327) brought to CKA.  The plain estimate is far
above 0 for unrelated layers wherever the width is not small beside the number of stories; the debiased one is 0 there.

A story is one sample: its mean over tokens, or its last token.  Tokens of one story are no independent samples.

All that HSIC needs of N stories are sums over them, the cross-covariance of the features first of all.  They are added
up in pieces, in float64, so beside the pooled stories no more than the larger D^2 is held, never N^2.

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
from scipy.stats import t as student

from lm_trials.console import UsageError, progress
from lm_trials.estimates import NO_INTERVAL, Estimate
from lm_trials.probing.activation_store import IN_MEMORY, captured
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.findings import Finding
from lm_trials.probing.tables import ProbeTable, Row, interval, sign

UNIT = "CKA, debiased"
UNTRAINED = "untrained"
FEWEST_STORIES = 8
"""Without one of them the estimate needs 4; with fewer than 8 an interval means nothing."""
PIECE = 1024
LARGEST = 1 - 1e-12


def pooled_stories(
    model: Any, documents: Sequence[np.ndarray], pooling: str, batch_size: int, label: str
) -> list[np.ndarray]:
    """Return (N, D) float32 for each hidden layer 0 to L: one row a story, its mean or its last token.

    More than `IN_MEMORY` bytes lie in temporary files as long as they are used.

    Raises:
        UsageError: for too few stories.
    """
    if len(documents) < FEWEST_STORIES:
        raise UsageError(f"{len(documents)} stories are too few for CKA; give at least {FEWEST_STORIES}")
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
    """The stories in one layer, ready for CKA: centred, in float64 piece by piece.

    Attributes:
        rows_ND: as they were pooled.
        mean_D: over the stories; HSIC does not depend on it, but sums of large numbers lose digits.
        squares_N: squared length of each centred row.
    """

    rows_ND: np.ndarray
    mean_D: np.ndarray
    squares_N: np.ndarray

    @classmethod
    def of(cls, rows_ND: np.ndarray) -> Features:
        """Prepare a layer; with more features than stories it is turned into as many features as stories.

        A rotation leaves all products of rows as they are, and they are all that CKA sees.
        """
        if rows_ND.shape[1] > len(rows_ND):
            rows_ND = np.linalg.qr((rows_ND - rows_ND.mean(axis=0, dtype=np.float64)).T, mode="r").T
        mean_D = rows_ND.mean(axis=0, dtype=np.float64)
        features = cls(rows_ND, mean_D, np.empty(len(rows_ND)))
        for part, piece_BD in features.pieces():
            features.squares_N[part] = (piece_BD**2).sum(axis=1)
        return features

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the centred rows, some at a time, each with its place."""
        for start in range(0, len(self.rows_ND), PIECE):
            part = slice(start, start + PIECE)
            yield part, self.rows_ND[part].astype(np.float64) - self.mean_D


@dataclass(frozen=True)
class Hsic:
    """HSIC of two layers over N stories, and over all but each one of them; up to a factor that CKA does not see."""

    value: float
    without_N: np.ndarray


def hsic(x: Features, y: Features) -> Hsic:
    """Estimate HSIC with linear kernels without bias, from sums over stories alone, and without each story in turn.

    With K = XX' and L = YY', both without their diagonals, Song's estimate is
    (tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)) / (n(n-3)); each of the three is a function of X'Y, the sums of
    rows and of rows times squared lengths.  Taking one story out changes each by terms of that story's row alone.
    """
    n = len(x.squares_N)
    cross_DE = np.zeros((len(x.mean_D), len(y.mean_D)))
    sum_D, sum_E = np.zeros(len(x.mean_D)), np.zeros(len(y.mean_D))
    for (_, x_BD), (_, y_BE) in zip(x.pieces(), y.pieces(), strict=True):
        cross_DE += x_BD.T @ y_BE
        sum_D += x_BD.sum(axis=0)
        sum_E += y_BE.sum(axis=0)
    # Row sums of K and L, then what taking a story out needs: K's and L's products with them, and those of K and L.
    rows_k_N, rows_l_N, products_N = np.empty(n), np.empty(n), np.empty(n)
    for (part, x_BD), (_, y_BE) in zip(x.pieces(), y.pieces(), strict=True):
        rows_k_N[part] = x_BD @ sum_D - x.squares_N[part]
        rows_l_N[part] = y_BE @ sum_E - y.squares_N[part]
        products_N[part] = ((x_BD @ cross_DE) * y_BE).sum(axis=1) - x.squares_N[part] * y.squares_N[part]
    weighted_D, weighted_E = np.zeros(len(x.mean_D)), np.zeros(len(y.mean_D))
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
    """CKA of two layers: over all stories, and without each one of them."""

    value: float
    without_N: np.ndarray

    @classmethod
    def of(cls, cross: Hsic, x: Hsic, y: Hsic) -> Cka:
        """Put three HSICs together; not defined where a layer says the same of all stories."""
        scale, scale_N = x.value * y.value, x.without_N * y.without_N
        with np.errstate(divide="ignore", invalid="ignore"):
            value = cross.value / math.sqrt(scale) if scale > 0 else math.nan
            without_N = np.where(scale_N > 0, cross.without_N / np.sqrt(np.maximum(scale_N, 0)), np.nan)
        return cls(value, without_N)

    def estimate(self) -> Estimate:
        """Return it with its interval over stories.

        A bootstrap would draw stories twice, and a story beside its own copy is the very bias that the estimate is rid
        of; the jackknife leaves each story out once.  It works on Fisher's scale, as CKA is a correlation (of pairs of
        stories) and may be near 1.
        """
        z_N = np.arctanh(np.clip(self.without_N, -LARGEST, LARGEST))
        centre = float(np.arctanh(np.clip(self.value, -LARGEST, LARGEST)))
        lower, upper = np.tanh(_jackknife(centre, z_N)).tolist()
        # `min` and `max`: of two equal layers it is 1, which Fisher's scale has no place for.
        return Estimate(self.value, min(lower, self.value), max(upper, self.value), len(z_N), UNIT)

    def minus(self, other: Cka, confidence: float = 0.95) -> Estimate:
        """Return the difference to another CKA over the same stories, with its interval."""
        difference = self.value - other.value
        lower, upper = _jackknife(difference, self.without_N - other.without_N, confidence)
        return Estimate(difference, lower, upper, len(self.without_N), f"difference of {UNIT}")


def _jackknife(centre: float, without_N: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    n = len(without_N)
    if not (math.isfinite(centre) and np.isfinite(without_N).all()):
        return NO_INTERVAL
    error = math.sqrt((n - 1) / n * ((without_N - without_N.mean()) ** 2).sum())
    half = float(student.ppf(0.5 + confidence / 2, n - 1)) * error
    return centre - half, centre + half


def cka_matrix(
    one: Sequence[Features], other: Sequence[Features], description: str, diagonal: bool = False
) -> dict[tuple[int, int], Cka]:
    """Return the CKA of each layer of one model with each of another, over the same stories in the same order.

    Args:
        diagonal: only of equal layers.
    """
    own = [hsic(layer, layer) for layer in one]
    others = own if other is one else [hsic(layer, layer) for layer in other]
    pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if i == j or not diagonal]
    shown = progress(pairs, description, "pairs of layers", len(pairs))
    return {(i, j): Cka.of(hsic(one[i], other[j]), own[i], others[j]) for i, j in shown}


def shuffled(layers: Sequence[Features], seed: int) -> list[Features]:
    """Return the layers with their stories in another order, the same for all: nothing is paired any more.

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
    """Say where two models are least alike, if one layer is, beside a model never trained and stories mixed up.

    Args:
        found: by model, untrained among them, the CKA of pairs of layers with the base.
        shuffled: by layer, of the first trained model with its stories in another order.
    """
    told, controls = [], []
    untrained = found[UNTRAINED]
    depth = 1 + max(layer for layer, _ in untrained)
    for label, pairs in found.items():
        if label == UNTRAINED:
            continue
        diagonal = [pairs[layer, layer] for layer in range(depth)]
        # A layer that says the same of all stories has no CKA.
        there = [n for n in range(depth) if math.isfinite(diagonal[n].value)] or [0]
        layer, most = (choose(there, key=lambda n: diagonal[n].value) for choose in (min, max))
        least, ahead = diagonal[layer].estimate(), diagonal[layer].minus(untrained[layer, layer])
        nearer = sum(sign(diagonal[n].minus(untrained[n, n])) > 0 for n in range(depth))
        verdict = (
            f"nearer to it than an untrained model in {nearer} of {depth} layers"
            if nearer
            else "nothing is shown: in no layer nearer to it than an untrained model"
        )
        told.append(
            f"{label} and {base}: the lowest CKA is in layer {layer}, {interval(least)} (n={least.n} stories), "
            f"{interval(ahead)} above an untrained model's there; "
            f"{_least_alike(diagonal, there, layer, most)}; {verdict}"
        )
        controls.append(f"untrained, layer {layer}: {interval(untrained[layer, layer].estimate())}")
    mixed = [cka.estimate() for cka in shuffled.values()]
    off = sum(not estimate.lower <= 0 <= estimate.upper for estimate in mixed)
    largest = max(mixed, key=lambda estimate: abs(estimate.estimate))
    controls.append(
        f"stories mixed up: at most {interval(largest)} in any layer, the interval without 0 in {off} of {len(mixed)}"
    )
    return Finding.of(told, controls)


def _least_alike(diagonal: Sequence[Cka], there: Sequence[int], least: int, most: int) -> str:
    """Say whether the layer of the lowest CKA is below all others: the intervals of all differences are to be.

    The layer was chosen for being lowest, so the intervals are those of all pairs of layers (Bonferroni).
    """
    pairs = max(1, len(there) * (len(there) - 1) // 2)
    below = [n for n in there if n != least and diagonal[least].minus(diagonal[n], 1 - 0.05 / pairs).upper < 0]
    if len(there) > 1 and len(below) == len(there) - 1:
        apart = interval(diagonal[most].minus(diagonal[least]))
        return f"they are less alike there than in each other layer (than in layer {most} by {apart})"
    if below:
        return (
            f"less alike there than in layer{'s' * (len(below) > 1)} {', '.join(map(str, below))}, not shown of others"
        )
    return "no layer is shown to be less alike than another"
