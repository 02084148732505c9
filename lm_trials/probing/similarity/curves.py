"""Similarity of one term to others in a model's layers, and how training changed it.

A cosine alone means little: all hidden states of a layer have similar directions, and training may bring a placeholder
nearer to every city.  (Trained on distances, the cosine of foo and Paris rose from 0.415 to 0.690, and that of half of
the other cities as much: p = 0.495.)  So the true term is one of many candidates, each in the same prompts.  Reported
are its rank among them and how much more the similarity to it grew than to the others.

Shape suffixes: Q = queries, C = candidates (the true one first), L = layers, K = columns of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lm_trials.estimates import LEAST_STORIES, Estimate, bootstrap_means
from lm_trials.probing.activation_store import captured, reduced
from lm_trials.probing.capture import Activations, Site
from lm_trials.probing.similarity.prompts import TermPlan, TermPrompt
from lm_trials.probing.tables import ProbeTable, Row

SITES = ("hidden", "normed", "values")
CURVES = {"hidden": "hidden states", "values": "values"}
"""The sites with a curve over layers; `normed` is one layer on another scale."""
COSINE = "cosine similarity"
FLAT = 1e-6
"""Candidates or queries that differ by less than this differ by rounding only."""
# Convention. With fewer than 19 other candidates, p cannot reach it.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class TermSimilarities:
    """How similar the term is to each candidate in one model.

    Attributes:
        label: the model.
        role: "base", "trained" or "control".
        seed: of its training, where known.
        similar: by (site, layer), (Q, C) cosines, averaged over the templates.
    """

    label: str
    role: str
    seed: int | None
    similar: dict[Site, np.ndarray]

    @property
    def about(self) -> Row:
        """The columns that name the model of a row."""
        return {"model": self.label, "model_role": self.role, "seed": self.seed}

    def layers(self, site: str) -> list[int]:
        """Return the layers of a site."""
        return [layer for name, layer in self.similar if name == site]


def read_similarities(model: Any, plan: TermPlan, align: str, batch_size: int, label: str) -> dict[Site, np.ndarray]:
    """Return the cosine of the term's vector with each candidate's in the same prompt, (Q, C) by site and layer.

    A vector is that of the compared token, or the mean over the term's tokens; values are those of all heads.
    """

    def rows(found: Activations) -> dict[str, torch.Tensor]:
        return {f"{site} {layer}": found.means(site, layer).flatten(1) for site, layer in found.values}

    def batches(prompts: Sequence[TermPrompt], what: str) -> Iterator[Activations]:
        positions, documents = [prompt.compared(align) for prompt in prompts], [prompt.ids for prompt in prompts]
        return captured(model, documents, SITES, positions, batch_size, f"{label}: {what}", label)

    vectors = reduced(batches(plan.own, plan.term), len(plan.own), rows)
    own = {name: torch.from_numpy(vectors_QD).double() for name, vectors_QD in vectors.items()}

    def cosines(found: Activations) -> dict[str, torch.Tensor]:
        pair_B = found.document_B // len(plan.candidates)
        return {
            name: torch.cosine_similarity(own[name][pair_B], vectors.double(), dim=1)
            for name, vectors in rows(found).items()
        }

    # The templates of a query are neighbours, so their mean is over one axis.
    shape = len(plan.queries), -1, len(plan.candidates)
    result = {}
    for name, found in reduced(batches(plan.others, "candidates"), len(plan.others), cosines).items():
        site, layer = name.split()
        result[site, int(layer)] = found.astype(np.float64).reshape(shape).mean(axis=1)
    return result


def ranks(values_QC: np.ndarray) -> np.ndarray:
    """Return the rank of the first column in each row, 1 for the largest; equal values share their mean rank.

    >>> ranks(np.array([[3.0, 1, 2], [1, 2, 3], [0, 0, 0]]))
    array([1., 3., 2.])
    """
    first_Q1, others = values_QC[:, :1], values_QC[:, 1:]
    # Ties share the middle rank: two candidates with the same tokens must not favor the true term.
    return 1 + (others > first_Q1).sum(axis=1) + 0.5 * (others == first_Q1).sum(axis=1)


@dataclass(frozen=True)
class Permutation:
    """Test of the first candidate over a curve of layers; all p are exact, over the candidates.

    Attributes:
        p: share of candidates whose highest peak over all layers is as high as the true one's.
        p_L: at each layer, uncorrected: share of candidates whose value is as high as the true one's.
        corrected_L: the same, of a candidate's highest peak over all layers.
        peak: index of the layer where the true one exceeds the others most; None where candidates differ at no layer.
    """

    p: float
    p_L: np.ndarray
    corrected_L: np.ndarray
    peak: int | None


def permutation_test(values_LC: np.ndarray) -> Permutation:
    """Test whether the first of C candidates exceeds the others, at L layers together.

    Under the null hypothesis the true candidate is exchangeable with the others.  Each layer is standardized by the
    mean and spread of all candidates, and the statistic of a candidate is its highest peak over the layers (Westfall
    and Young's max statistic, 1993), so one p holds for the whole curve and layers' p are corrected for their number.

    >>> test = permutation_test(np.array([[0.0, 1, 2, 3, 4], [9, 1, 2, 0, 3]]))
    >>> test.p, test.p_L.tolist(), test.peak
    (0.2, [1.0, 0.2], 1)
    """
    spread_L = values_LC.std(axis=1)
    differing_L = spread_L > FLAT
    p_L = (values_LC >= values_LC[:, :1]).mean(axis=1)
    if not differing_L.any():
        return Permutation(1.0, p_L, np.ones(len(values_LC)), None)
    z_LC = np.full(values_LC.shape, -np.inf)
    centred_LC = values_LC - values_LC.mean(axis=1, keepdims=True)
    z_LC[differing_L] = (centred_LC[differing_L].T / spread_L[differing_L]).T
    peaks_C = z_LC.max(axis=0)
    corrected_L = (peaks_C >= z_LC[:, :1]).mean(axis=1)
    # The maximum over layers, because one of several layers is high by chance: foo and Paris rose from 0.415 to 0.690
    # in layer 1, and half of 95 cities stood out as much in some layer (p = 0.495).
    return Permutation(float((peaks_C >= peaks_C[0]).mean()), p_L, corrected_L, int(z_LC[:, 0].argmax()))


@dataclass(frozen=True)
class Curve:
    """How far the true term is ahead of the others at each layer of a site, and the test of it.

    Attributes:
        ahead: true term minus the mean of the others, at each layer, over the queries.
        ranks: of the true term.
        candidates: their number, with the true term.
        equal: whether all queries agree at each layer but for rounding, as they do on embeddings: no interval there.
        p_both: share of candidates whose highest peak in hidden states or values is as high as the true one's here.
    """

    site: str
    layers: tuple[int, ...]
    ahead: tuple[Estimate, ...]
    ranks: tuple[Estimate, ...]
    test: Permutation
    candidates: int
    equal: tuple[bool, ...]
    p_both: float | None = None

    @property
    def peak(self) -> int:
        """Index of the layer where the true term exceeds the others most."""
        return self.test.peak if self.test.peak is not None else len(self.layers) - 1

    @property
    def p(self) -> float:
        """That of the permutation test, over the layers of both curves where both were tested."""
        return self.test.p if self.p_both is None else self.p_both

    @property
    def significant(self) -> bool:
        """Whether the true term is ahead, by the permutation test and at the peak by the interval or in every query."""
        ahead = self.ahead[self.peak]
        surely = ahead.lower > 0 or (self.equal[self.peak] and ahead.n >= LEAST_STORIES and ahead.estimate > 0)
        return self.test.peak is not None and self.p <= SIGNIFICANT and surely

    def tested(self, place: int) -> Row:
        """Return the columns of the test at one of the layers."""
        own = {"p": float(self.test.p_L[place]), "p_corrected": float(self.test.corrected_L[place])}
        return {**own, "p_curve": self.test.p, "p_both": self.p, "candidates": self.candidates}


def curve(values: Mapping[Site, np.ndarray], site: str, places: Sequence[int], seed: int) -> Curve:
    """Compare the true term, the first column, with the candidates at `places`, at each layer of a site."""
    layers = tuple(layer for name, layer in values if name == site)
    columns = [values[site, layer][:, [0, *places]] for layer in layers]
    ahead_QL = np.stack([c[:, 0] - c[:, 1:].mean(axis=1) for c in columns], axis=1)
    ahead, equal = bootstrap_means(ahead_QL, COSINE, seed), np.ptp(ahead_QL, axis=0) < FLAT
    ranked = bootstrap_means(np.stack([ranks(c) for c in columns], axis=1), f"rank of {len(places) + 1}", seed)
    test = permutation_test(np.stack([c.mean(axis=0) for c in columns]))
    return Curve(site, layers, tuple(ahead), tuple(ranked), test, len(places) + 1, tuple(equal.tolist()))


def ahead_curves(values: Mapping[Site, np.ndarray], plan: TermPlan, seed: int) -> dict[tuple[str, str], Curve]:
    """Return the curve of each site and family of candidates; hidden states and values are tested as one curve."""
    curves = {}
    for family, places in plan.families.items():
        keys = [(site, layer) for site, layer in values if site in CURVES]
        both = permutation_test(np.stack([values[key][:, [0, *places]].mean(axis=0) for key in keys]))
        for site in SITES:
            found = curve(values, site, places, seed)
            own = [p for (name, _), p in zip(keys, both.corrected_L, strict=True) if name == site]
            curves[site, family] = replace(found, p_both=float(min(own))) if own else found
    return curves


def _cosines(values_QK: np.ndarray, seed: int) -> list[Estimate]:
    return bootstrap_means(values_QK, COSINE, seed, scale="arctanh")


def _where(measure: str, role: str, site: str, layer: int, against: str) -> Row:
    return {"measure": measure, "role": role, "site": site, "layer": layer, "against": against}


def similarity_rows(reading: TermSimilarities, plan: TermPlan, seed: int) -> ProbeTable:
    """Return a model's rows: similarity to the true term and to the others, with their spread; the true term's rank."""
    rows, role = ProbeTable(), "control" if reading.role == "control" else "finding"
    curves = ahead_curves(reading.similar, plan, seed)
    for site in SITES:
        layers = reading.layers(site)
        similar_QLC = np.stack([reading.similar[site, layer] for layer in layers], axis=1)
        for layer, true in zip(layers, _cosines(similar_QLC[..., 0], seed), strict=True):
            rows.add(true, reading.about | _where("similarity", role, site, layer, plan.true))
        for family, places in plan.families.items():
            found, means_QLC = curves[site, family], similar_QLC[..., list(places)]
            others = _cosines(means_QLC.mean(axis=2), seed)
            spread = np.quantile(means_QLC.mean(axis=0), [0.05, 0.95], axis=1).T.tolist()
            for place, (layer, (low, high)) in enumerate(zip(layers, spread, strict=True)):
                of_others = _where("similarity", "control", site, layer, family)
                rows.add(others[place], reading.about | of_others, low=low, high=high, candidates=len(places) + 1)
                ranked = _where("rank", role, site, layer, family)
                rows.add(found.ranks[place], reading.about | ranked, **found.tested(place))
    return rows


def gain_rows(
    reading: TermSimilarities, other: TermSimilarities, plan: TermPlan, seed: int
) -> tuple[ProbeTable, dict[tuple[str, str], Curve]]:
    """Return how much more similar the term is than in another model: rows, and the curves by site and family."""
    rows, role = ProbeTable(), "control" if reading.role == "control" else "finding"
    gained = {key: similar_QC - other.similar[key] for key, similar_QC in reading.similar.items()}
    about = {"model": reading.label, "model_role": reading.role, "minus": other.label, "seed": reading.seed}
    curves = ahead_curves(gained, plan, seed)
    for site in SITES:
        layers = reading.layers(site)
        true = bootstrap_means(np.stack([gained[site, n][:, 0] for n in layers], axis=1), COSINE, seed)
        for layer, estimate in zip(layers, true, strict=True):
            rows.add(estimate, about | _where("gain", role, site, layer, plan.true))
        for family in plan.families:
            found = curves[site, family]
            for place, layer in enumerate(layers):
                where = _where("gain over others", role, site, layer, family)
                rows.add(found.ahead[place], about | where, **found.tested(place))
    return rows, curves


def candidate_rows(reading: TermSimilarities, plan: TermPlan, seed: int) -> ProbeTable:
    """Return how similar each candidate is, by layer, averaged over the queries, with its rank in its family."""
    kinds = {place: family for family, places in plan.families.items() for place in places}
    rows = ProbeTable()
    for (site, layer), similar_QC in reading.similar.items():
        means, mean_C = _cosines(similar_QC, seed), similar_QC.mean(axis=0)
        for place, name in enumerate(plan.candidates):
            kind = kinds.get(place, "true term")
            rivals = [0, *plan.families.get(kind, next(iter(plan.families.values())))]
            role = "control" if reading.role == "control" or place else "finding"
            about = {"model": reading.label, "role": role, "seed": reading.seed, "site": site, "layer": layer}
            rank = 1 + int((mean_C[rivals] > mean_C[place]).sum())
            rows.add(means[place], about | {"candidate": name, "kind": kind}, rank=rank, of=len(rivals))
    return rows
