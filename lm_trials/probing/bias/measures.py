"""Measures of a pairing: what a model writes, what its probabilities prefer, and what its hidden states contain.

Shape suffixes: C = contexts, G = the two groups, K = attributes, D = width, S = a fit and those of shuffles, N = texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp
from transformers import PreTrainedModel

from lm_trials.estimates import Estimate, StoryBootstrap, proportion
from lm_trials.evaluation.generation import write_stories
from lm_trials.evaluation.losses import Window, quiet, token_losses
from lm_trials.probing.activation_store import captured, reduced
from lm_trials.probing.bias.contexts import Context
from lm_trials.probing.feature_probe.fits import fit_probe
from lm_trials.probing.subjects import Subject

NORMED = "normed"
UNIT = "standard deviations"
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


def group_projections(
    model: PreTrainedModel,
    fitted: Sequence[np.ndarray],
    read: Sequence[np.ndarray],
    num_shuffles: int,
    seed: int,
    batch: int,
) -> dict[str, np.ndarray]:
    """Fit a probe of the group on the last states of texts, and read it on those of others; (S, C, G) by layer.

    A name shows its group in any model, so that the group can be decoded says nothing about a bias.  But a model with
    a bias has to bring the group to the place where the attribute is chosen, and a model without need not: how far
    apart the groups are there (`distance`) is compared with another place, and with a model without the bias.

    Args:
        fitted, read: texts of the first and the second group in turn, without a name in common.
        num_shuffles: probes of shuffled labels, which follow the first in S.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    first_N = np.tile([True, False], len(fitted) // 2)
    labels_SN = [first_N, *(generator.permutation(first_N) for _ in range(num_shuffles))]
    found = {}
    for layer, states_ND in last_states(model, [*fitted, *read], batch).items():
        train_ND, read_ND = np.split(states_ND.astype(np.float64), [len(fitted)])
        projected = [fit_probe(train_ND, labels_N, L2)[0].decision_function(read_ND) for labels_N in labels_SN]
        found[layer] = np.stack(projected).reshape(len(labels_SN), -1, 2)
    return found


def distance(projections_CG: np.ndarray, seed: int) -> Estimate:
    """Estimate the distance of two groups' means in standard deviations within the groups (d').

    Unlike the accuracy of the probe, it has no largest value.  The interval is over contexts.

    >>> projections_CG = np.random.default_rng(0).normal(size=(400, 2)) + [3.0, 0.0]
    >>> print(distance(projections_CG, seed=0))
    2.912 [2.693, 3.098] standard deviations (n=400)
    """

    def statistic(sums: np.ndarray) -> np.ndarray:
        means = sums[..., :4] / sums[..., 4:]
        variances = means[..., 2:] - means[..., :2] ** 2
        return (means[..., 0] - means[..., 1]) / np.sqrt(variances.mean(axis=-1))

    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.concatenate([projections_CG, projections_CG**2, np.ones((len(projections_CG), 1))], axis=1))
    return bootstrap.estimate(statistic, UNIT)
