"""Embeddings: input or output embeddings of models on common axes, and how far training moved them.

All models share one basis: with one PCA for each checkpoint, axes rotate and flip from one to the next, so that points
move in the figure although their embeddings did not change.

Shape suffixes: V = tokens, D = width, N = tokens shown, 2 = the figure's axes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch import nn
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, progress
from lm_trials.data.datasets import dataset_of
from lm_trials.estimates import LEAST_STORIES, NO_INTERVAL, Estimate, StoryBootstrap, bootstrap_mean
from lm_trials.models.reference import separator_of
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import CaptureCheck, check_capture
from lm_trials.probing.embeddings.flags import EmbeddingsArguments
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.subjects import Subject, load_subject
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder

BATCH = 512  # texts tokenized at once
LEAST_TOKENS = LEAST_STORIES
"""Tokens of the smaller group from which on a difference of groups has an interval: the spread of one token is 0."""


@dataclass(frozen=True)
class Embeddings:
    """The (V, D) float64 embeddings of one model, with the changes by its adapter.

    Attributes:
        step: update at which the model was saved, if known.
        seed: of its training, if known.
        note: a message to print, or empty.
    """

    label: str
    table_VD: np.ndarray
    step: int | None = None
    seed: int | None = None
    note: str = ""


def embeddings_of(model: Any, which: str, vocab_size: int, name: str = "") -> np.ndarray:
    """Return the (V, D) embeddings from the layer's outputs, because an adapter is not part of its weights."""
    parts = anatomy_of(model, name)
    whole = parts.model
    with torch.no_grad():
        if which == "input":
            table_VD = whole.get_input_embeddings()(torch.arange(vocab_size, device=whole.device)[None])[0]
        else:
            units_DD = torch.eye(parts.width, device=whole.device, dtype=whole.dtype)
            table_VD = (parts.head(units_DD) - parts.head(0 * units_DD[:1])).T[:vocab_size]  # minus the bias, if any
    return table_VD.cpu().double().numpy()


def read_embeddings(
    subjects: Sequence[Subject], args: SubjectArguments, which: str
) -> tuple[list[Embeddings], dict[str, CaptureCheck]]:
    """Load models one by one and return their embeddings and the checks that capturing does not change them.

    Raises:
        UsageError: for models of different widths.
    """
    found: list[Embeddings] = []
    checks: dict[str, CaptureCheck] = {}
    for subject in progress(subjects, "reading embeddings", "models", len(subjects)):
        model = load_subject(subject, args)
        table_VD = embeddings_of(model, which, vocab_of(subject.tokenizer), subject.reference.name)
        note = ""
        if subject.reference.base is not None:
            layer = model.get_input_embeddings() if which == "input" else anatomy_of(model).head
            plain = isinstance(layer, (nn.Embedding, nn.Linear)) and not hasattr(layer, "base_layer")
            note = f"the {which} embeddings of {subject.label} are those of its base" if plain else ""
        if found and found[0].table_VD.shape != table_VD.shape:
            raise UsageError(
                f"{subjects[0].reference.name} has embeddings of {found[0].table_VD.shape[1]} dimensions and "
                f"{subject.reference.name} of {table_VD.shape[1]}, so they share no axes; use models of one width"
            )
        ids_T = subject.story_ids(["Once upon a time"])[0]
        sites = ["hidden"] if which == "input" else ["normed"]
        checks[subject.label] = check_capture(model, ids_T, sites, subject.reference.name)
        found.append(Embeddings(subject.label, table_VD, subject.step, subject.candidate.seed, note))
    run, last = (Path(subject.reference.path) for subject in (subjects[-1], subjects[-2 % len(subjects)]))
    if last.parent == run and np.array_equal(found[-1].table_VD, found[-2].table_VD):
        # A point drawn twice would hide the last movement.
        found.pop()  # a run's final model equals its last checkpoint
    return found, {embeddings.label: checks[embeddings.label] for embeddings in found}


def vocab_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids that can occur in a text; a pad token above them cannot."""
    ids = set(tokenizer.get_vocab().values()) - {tokenizer.pad_token_id}
    return max(ids) + 1


class Words:
    """The tokens of words that consist of one token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.encode = batch_encoder(tokenizer)

    def token(self, word: str) -> int | None:
        """Return a word's token after a space, else without one, or None for a word of several tokens.

        >>> from lm_trials.tokens.tokenizers import train_tokenizer
        >>> words = Words(train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320))
        >>> words.tokenizer.decode([words.token("cat")]), words.token("unheard of")
        ('cat', None)
        """
        return next((ids[0] for ids in self.encode([f" {word}", word]) if len(ids) == 1), None)

    def examples(self) -> Iterator[str]:
        """Yield the words of the vocabulary that are one token each, of four letters or more."""
        for token in range(vocab_of(self.tokenizer)):
            word = str(self.tokenizer.decode([token])).strip()
            if len(word) > 3 and word.isalpha() and self.token(word) == token:
                yield word

    def check(self, words: Sequence[str]) -> dict[str, int]:
        """Return the tokens of words.

        Raises:
            UsageError: for a word of several tokens.
        """
        found = {}
        for word in words:
            token = self.token(word)
            if token is None:
                pieces = min(map(len, self.encode([f" {word}", word])))
                others = ", ".join(itertools.islice(self.examples(), 3)) or "none of four letters or more"
                raise UsageError(
                    f"--words {word} consists of {pieces} tokens; use words of one token, such as {others}"
                )
            found[word] = token
        return found


def nearest_tokens(table_VD: np.ndarray, token: int, count: int) -> list[tuple[int, float]]:
    """Return the other tokens with the largest cosine similarity to one, and the similarity.

    >>> nearest_tokens(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]), 0, 2)[0][0]
    1
    """
    unit_VD = normalize(table_VD)
    cosines_V = unit_VD @ unit_VD[token]
    cosines_V[token] = -np.inf
    order = np.argsort(-cosines_V, kind="stable")[:count]
    return [(int(other), float(cosines_V[other])) for other in order if np.isfinite(cosines_V[other])]


@dataclass(frozen=True)
class Picture:
    """Points of tokens on axes that all models share.

    Attributes:
        points: by model, (N, 2).
        explained: share of variance along each axis, in the models that the basis was fitted on; () for UMAP.
        explained_of: by model, the share of its variance that the two axes show; empty for UMAP.
    """

    points: dict[str, np.ndarray]
    explained: tuple[float, ...]
    explained_of: dict[str, float]


def project(models: Sequence[Embeddings], tokens_N: np.ndarray, basis: str, how: str, seed: int) -> Picture:
    """Project the embeddings of tokens on one basis for all models; a PCA axis has its largest loading positive."""
    tables = {model.label: model.table_VD[tokens_N] for model in models}
    fitted_ND = np.concatenate(list(tables.values())) if basis == "joint" else tables[models[-1].label]
    if how == "umap":
        return Picture(_umap(tables, fitted_ND, seed), (), {})
    # The exact solver: the randomized one gives approximate axes.
    pca = PCA(2, svd_solver="full").fit(fitted_ND)
    points = {label: pca.transform(table_ND) for label, table_ND in tables.items()}
    own = {label: float(points[label].var(axis=0).sum() / table.var(axis=0).sum()) for label, table in tables.items()}
    return Picture(points, tuple(pca.explained_variance_ratio_.tolist()), own)


def _umap(tables: Mapping[str, np.ndarray], fitted_ND: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    import warnings

    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that a seed makes it use one thread
        reducer = umap.UMAP(n_components=2, n_neighbors=min(15, len(fitted_ND) - 1), metric="cosine", random_state=seed)
        reducer.fit(fitted_ND)
        if len(fitted_ND) == sum(map(len, tables.values())):
            ends = np.cumsum([len(table) for table in tables.values()])[:-1]
            return dict(zip(tables, np.split(np.asarray(reducer.embedding_), ends), strict=True))
        return {label: np.asarray(reducer.transform(table_ND)) for label, table_ND in tables.items()}


def movement(before_VD: np.ndarray, after_VD: np.ndarray) -> dict[str, np.ndarray]:
    """Return how far each token moved between models: cosine distance (0 to 2), and move over the norm before.

    >>> moved = movement(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]]))
    >>> moved["cosine_distance"].tolist(), moved["relative_move"].round(2).tolist()
    ([1.0, 0.0], [2.24, 0.0])
    """
    norms_V = np.linalg.norm(before_VD, axis=1)
    moved_V = np.linalg.norm(after_VD - before_VD, axis=1)
    relative_V = np.divide(moved_V, norms_V, out=np.full(len(norms_V), np.nan), where=norms_V > 0)
    distance_V = np.maximum(1 - (normalize(before_VD) * normalize(after_VD)).sum(axis=1), 0.0)
    # A row of zeros, such as that of a pad token, has no direction.
    known_V = (norms_V > 0) & (np.linalg.norm(after_VD, axis=1) > 0)
    return {"cosine_distance": np.where(known_V, distance_V, np.nan), "relative_move": relative_V}


def mean_of(values_V: np.ndarray, tokens_V: np.ndarray, unit_name: str, seed: int) -> Estimate | None:
    """Return the mean over the chosen tokens, with an interval over tokens; None for no tokens."""
    chosen = values_V[tokens_V & np.isfinite(values_V)]
    return bootstrap_mean(chosen, unit_name, seed) if len(chosen) else None


def difference_of(values_V: np.ndarray, seen_V: np.ndarray, unit_name: str, seed: int) -> Estimate:
    """Return how much farther the tokens seen have moved than the others, with an interval over the tokens of both.

    `n` is the size of the smaller group; below `LEAST_TOKENS` there is no interval.
    """
    finite_V = np.isfinite(values_V)
    values_V, seen_V = values_V[finite_V], seen_V[finite_V].astype(np.float64)
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.stack([values_V * seen_V, seen_V, values_V * (1 - seen_V), 1 - seen_V], axis=1))
    apart = bootstrap.estimate(lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3], unit_name)
    fewer = int(min(seen_V.sum(), len(seen_V) - seen_V.sum()))
    bounds = (apart.lower, apart.upper) if fewer >= LEAST_TOKENS else NO_INTERVAL
    return Estimate(apart.estimate, *bounds, fewer, apart.unit)


def tokens_seen(subject: Subject, args: EmbeddingsArguments) -> np.ndarray:
    """Return how often each token occurs in the training data, (V,).

    Raises:
        UsageError: for a data set that is missing or has no text.
    """
    dataset = dataset_of(args)
    split = args.dataset_split or (None if dataset.default_split is None else "train")
    found = dataset.select(split, args.max_train_samples)
    encode = batch_encoder(subject.tokenizer)
    counts: Counter[int] = Counter()
    texts = (record["story"] for record in progress(found.read(), "counting tokens", "texts", found.total))
    while batch := list(itertools.islice(texts, BATCH)):
        counts.update(itertools.chain.from_iterable(encode(batch)))
    if not counts:
        raise UsageError(f"--dataset_name {args.dataset_name} has no text; name the training data")
    # The tokens before and after each text in training, which are not part of the text.
    marks = document_marks(subject.tokenizer, subject.candidate.append_eos, separator_of(subject.candidate.run))
    counts.update(token for part in marks for token in part)
    return np.array([counts[token] for token in range(vocab_of(subject.tokenizer))])
