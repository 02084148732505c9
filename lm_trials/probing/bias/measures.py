"""Measures of a pairing: what a model writes, what its probabilities prefer, and what its hidden states contain.

Shape suffixes: C = contexts, G = the two groups, K = attributes, D = width, S = the fit and its shuffles, N = texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from transformers import PreTrainedModel

from lm_trials.estimates import Estimate, proportion
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.losses import Window, quiet, token_losses
from lm_trials.probing.activation_store import captured, reduced
from lm_trials.probing.bias.contexts import Context
from lm_trials.probing.feature_probe.fits import fit_probe
from lm_trials.probing.subjects import Subject

NORMED = "normed"
L2 = 10.0
"""The middle of the feature probe's penalties; not tuned."""


# --- Overt: what it writes


def sampled_stories(
    subject: Subject, model: PreTrainedModel, contexts: Sequence[Context], max_new_tokens: int, seed: int, batch: int
) -> list[str]:
    """Sample a story after the opening of each context, for each group; returns the stories with their openings."""
    openings = [opening for context in contexts for opening in context.openings]
    prompts = [ids_T.tolist() for ids_T in subject.story_ids(openings)]
    written = write_stories(
        model, subject.tokenizer, prompts, max_new_tokens, seed=seed, batch_size=batch, description="sampling"
    )
    texts = subject.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [f"{opening} {text.strip()}" for opening, text in zip(openings, texts, strict=True)]


def share_difference(first: int, second: int, n: int, unit: str) -> Estimate:
    """Estimate the difference of the shares of two outcomes that exclude each other, of `n` stories, 95 %.

    From Wilson's intervals of both shares and their correlation (Zou and Donner 2008), so that it has a width even
    where neither outcome occurs.

    >>> print(share_difference(0, 0, 512, "share of stories"))
    0.000 [-0.007, 0.007] share of stories (n=512)
    """
    one, other = proportion(first, n, unit), proportion(second, n, unit)
    p, q = one.estimate, other.estimate
    joint = -math.sqrt(p * q / ((1 - p) * (1 - q))) if 0 < p < 1 and 0 < q < 1 else -float(p + q == 1)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a + b * b - 2 * joint * a * b, 0.0))

    lower = p - q - reach(p - one.lower, other.upper - q)
    return Estimate(p - q, max(lower, -1.0), min(p - q + reach(one.upper - p, q - other.lower), 1.0), n, unit)


# --- Covert: what its probabilities prefer


def preferences(
    subject: Subject, model: PreTrainedModel, contexts: Sequence[Context], pairs: Sequence[tuple[str, str]], batch: int
) -> np.ndarray:
    """Return the (C,) log odds ratios, in nats: of an attribute of the first group over one of the second, by group.

    The probability of a group's attributes is the sum over them, each the exact probability of all its tokens.
    """
    attributes = [attribute for column in zip(*pairs, strict=True) for attribute in column]
    texts = [f"{lead} {attribute}" for context in contexts for lead in context.leads for attribute in attributes]
    # The probability of the lead is in all numbers of a group, and cancels.
    nats_N = text_nats(model, subject.story_ids(texts), batch)
    nats_CGK = nats_N.reshape(len(contexts), 2, len(attributes))
    odds_CG = logsumexp(nats_CGK[..., : len(pairs)], axis=-1) - logsumexp(nats_CGK[..., len(pairs) :], axis=-1)
    return odds_CG[:, 0] - odds_CG[:, 1]


def text_nats(model: PreTrainedModel, documents: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """Return the (N,) log-probabilities of texts after their first token."""
    windows = [Window(ids_T[:-1], ids_T[1:], np.zeros(len(ids_T) - 1)) for ids_T in documents]
    with quiet(model):
        found = [
            losses
            for start in range(0, len(windows), batch)
            for losses in token_losses(model, windows[start : start + batch])
        ]
    return np.array([-nats_T.sum() for nats_T, _ in found])


# --- Covert: what its hidden states contain


def last_states(model: PreTrainedModel, documents: Sequence[np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """Return the (N, D) hidden states at the last token of each text, by layer without the embeddings."""

    def of_batch(found: Any) -> dict[str, Any]:
        return {
            NORMED if site == NORMED else str(layer): states for (site, layer), states in found.values.items() if layer
        }

    sites = ["hidden", NORMED]
    return reduced(captured(model, documents, sites, 1, batch, description=None), len(documents), of_batch)


@dataclass(frozen=True)
class Shifts:
    """How far the group moves states along the direction of the attribute, of length 1 in standardised states.

    Attributes:
        shifts_SC: from the second group to the first where only the group is given: of the fit, then of shuffled
            labels.
        separations_C: distance of the two attributes along the fit's direction where they are named.
        right_N: whether the fit tells each named attribute from the other.
    """

    shifts_SC: np.ndarray
    separations_C: np.ndarray
    right_N: np.ndarray


def attribute_shifts(
    subject: Subject,
    model: PreTrainedModel,
    fitted: Sequence[Context],
    read: Sequence[Context],
    pairs: Sequence[tuple[str, str]],
    num_shuffles: int,
    seed: int,
    batch: int,
) -> dict[str, Shifts]:
    """Fit the direction of the attribute, and return by layer how far the group moves states along it.

    A probe that decodes the attribute where only the group is given would decode the group, which its name shows in any
    model.  So the direction is fitted where another sentence names the attribute, on states from which each group's
    mean is subtracted: the probe has neither use for the group nor a reason to avoid it.  It is then read in contexts
    that no fit has seen, with other names.
    """
    generator = np.random.Generator(np.random.Philox(seed))

    def cued(contexts: Sequence[Context]) -> list[str]:
        """Name an attribute of each group in each context, for each group: C x G x 2 texts."""
        chosen = [pairs[number] for number in generator.integers(len(pairs), size=len(contexts))]
        return [
            text.replace("{attribute}", attribute)
            for context, pair in zip(contexts, chosen, strict=True)
            for text in context.cued
            for attribute in pair
        ]

    texts = [cued(fitted), cued(read), [lead for context in read for lead in context.leads]]
    ends = np.cumsum([len(part) for part in texts])[:-1]
    states = last_states(model, subject.story_ids([text for part in texts for text in part]), batch)
    first_N = np.tile([True, False], 2 * len(fitted))
    group_N = np.arange(len(first_N)) // 2 % 2
    labels_SN = [first_N, *(generator.permutation(first_N) for _ in range(num_shuffles))]
    return {
        layer: read_shifts(*np.split(states_ND.astype(np.float64), ends), labels_SN, group_N)
        for layer, states_ND in states.items()
    }


def read_shifts(
    train_ND: np.ndarray, cued_ND: np.ndarray, bare_ND: np.ndarray, labels_SN: Sequence[np.ndarray], group_N: np.ndarray
) -> Shifts:
    """Fit the direction of the attribute to states of `train_ND`, and read it in those of other contexts.

    Args:
        cued_ND: for each context, group and attribute, the first group and the first attribute first.
        bare_ND: for each context and group.
        labels_SN: which states of `train_ND` are of the first attribute, then shuffles of it.
        group_N: 0 or 1, the group of each state of `train_ND`.
    """
    centred_ND = train_ND - np.stack([train_ND[group_N == group].mean(axis=0) for group in (0, 1)])[group_N]
    directions = []
    for labels_N in labels_SN:
        scaler, regression = fit_probe(centred_ND, labels_N, L2)[0]
        (weights_D,) = regression.coef_
        directions.append(weights_D / np.linalg.norm(weights_D) / scaler.scale_)
    directions_SD = np.stack(directions)
    cued_CG2 = (cued_ND @ directions_SD[0]).reshape(-1, 2, 2)
    middle_G = cued_CG2.mean(axis=(0, 2))[:, None]
    return Shifts(
        shifts_SC=directions_SD @ (bare_ND[::2] - bare_ND[1::2]).T,
        separations_C=(cued_CG2[..., 0] - cued_CG2[..., 1]).mean(axis=1),
        right_N=((cued_CG2 > middle_G) == np.array([True, False])).reshape(-1),
    )
