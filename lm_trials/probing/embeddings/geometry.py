"""Embeddings: what a model's tokens come in or go out by, on common axes, and how far training moved them.

Separately fitted axes (one PCA for each checkpoint) turn and flip from one to the next, and move points that did not
move.  Here one basis serves all.

Shape suffixes: V = tokens, D = width, P = models, 2 = the picture's axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, progress
from lm_trials.data.datasets import dataset_of
from lm_trials.estimates import NO_INTERVAL, Estimate, StoryBootstrap, bootstrap_mean
from lm_trials.models.reference import separator_of
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.probing.capture import CaptureCheck, check_capture
from lm_trials.probing.embeddings.flags import EmbeddingsArguments
from lm_trials.probing.flags import SubjectArguments
from lm_trials.probing.subjects import Subject, load_subject
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder

BATCH = 512
LEAST_TOKENS = 8
"""Tokens of a group, from which on a difference to another group has an interval: the spread of one is not 0."""


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one model, (V, D) float64, as it uses them: an adapter's change of them included.

    Attributes:
        step: update that the model was saved at, where known.
        seed: of its training, where known.
        note: what is to be said of them; empty for nothing.
    """

    label: str
    table_VD: np.ndarray
    step: int | None = None
    seed: int | None = None
    note: str = ""


def embeddings_of(model: Any, which: str, vocab_size: int, name: str = "") -> np.ndarray:
    """Return the (V, D) embeddings by what the layer does, not by its weights, which an adapter may add to.

    Raises:
        UsageError: for a model with fewer rows than there are tokens.
    """
    parts = anatomy_of(model, name)
    with torch.no_grad():
        if which == "input":
            layer = parts.model.get_input_embeddings()
            rows = min(vocab_size, _rows(layer))
            table = layer(torch.arange(rows, device=parts.model.device)[None])[0]
        else:
            zero_D = torch.zeros(parts.width, device=parts.model.device, dtype=parts.model.dtype)
            units_DD = torch.eye(parts.width, device=parts.model.device, dtype=parts.model.dtype)
            table = (parts.head(units_DD) - parts.head(zero_D[None])).T[:vocab_size]  # less the bias, if there is one
    if len(table) < vocab_size:
        raise UsageError(
            f"{parts.name} has {len(table):,} embeddings and its tokenizer {vocab_size:,} tokens; give the tokenizer "
            "that it was trained with by --tokenizer_name"
        )
    return table.to("cpu", torch.float64).numpy()


def _rows(layer: nn.Module) -> int:
    """Return how many rows an embedding has, inside an adapter too."""
    return int(next(part for part in layer.modules() if isinstance(part, nn.Embedding)).num_embeddings)


def read_embeddings(
    subjects: Sequence[Subject], args: SubjectArguments, which: str
) -> tuple[list[Embeddings], dict[str, CaptureCheck]]:
    """Load models one after the other and keep their embeddings, with the check that reading changes nothing.

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
            note = f"the {which} embeddings of {subject.label} are its base's" if plain else ""
        if found and found[0].table_VD.shape != table_VD.shape:
            raise UsageError(
                f"{subjects[0].reference.name} has embeddings of {found[0].table_VD.shape[1]} dimensions and "
                f"{subject.reference.name} of {table_VD.shape[1]}, so they share no axes; name models of one width"
            )
        ids_T = subject.story_ids(["Once upon a time"])[0]
        sites = ["hidden"] if which == "input" else ["normed"]
        checks[subject.label] = check_capture(model, ids_T, sites, subject.reference.name)
        found.append(Embeddings(subject.label, table_VD, subject.step, subject.candidate.seed, note))
    run, last = (Path(subject.reference.path) for subject in (subjects[-1], subjects[-2 % len(subjects)]))
    if last.parent == run and np.array_equal(found[-1].table_VD, found[-2].table_VD):
        found.pop()  # a run's final model is its last checkpoint
    return found, {embeddings.label: checks[embeddings.label] for embeddings in found}


def vocab_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many ids a text can have; a pad token above them is none."""
    ids = set(tokenizer.get_vocab().values()) - {tokenizer.pad_token_id}
    return max(ids) + 1


class Words:
    """Which token a word is, in this tokenizer; words of several tokens are none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.encode = batch_encoder(tokenizer)

    def token(self, word: str) -> int | None:
        """Return a word's token, as it stands after a blank if it has one there.

        >>> from lm_trials.tokens.tokenizers import train_tokenizer
        >>> words = Words(train_tokenizer(["One day, a cat sat on a mat.\\\\n"] * 9, vocab_size=320))
        >>> words.token("cat") == words.token("cat "[:3]), words.token("unheard of")
        (True, None)
        """
        for ids in self.encode([f" {word}", word]):
            if len(ids) == 1:
                return ids[0]
        return None

    def examples(self, count: int = 3) -> list[str]:
        """Return the first words of the vocabulary that are one token each, of four letters or more."""
        found: list[str] = []
        for token in range(vocab_of(self.tokenizer)):
            word = self.tokenizer.decode([token]).strip()
            if len(word) > 3 and word.isalpha() and self.token(word) == token:
                found.append(word)
                if len(found) == count:
                    break
        return found

    def check(self, words: Sequence[str]) -> dict[str, int]:
        """Return the tokens of words.

        Raises:
            UsageError: for one that is none.
        """
        found = {}
        for word in words:
            token = self.token(word)
            if token is None:
                pieces = min(map(len, self.encode([f" {word}", word])))
                raise UsageError(
                    f"--words {word} is not in the vocabulary (it is written with {pieces} tokens); give a word of one"
                    + (f", as {', '.join(others)}" if (others := self.examples()) else "")
                )
            found[word] = token
        return found


def nearest_tokens(table_VD: np.ndarray, token: int, count: int) -> list[tuple[int, float]]:
    """Return the tokens with the largest cosine similarity to one, itself left out.

    >>> nearest_tokens(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]), 0, 2)[0][0]
    1
    """
    unit_VD = unit(table_VD)
    cosines_V = unit_VD @ unit_VD[token]
    cosines_V[token] = -np.inf
    order = np.argsort(-cosines_V, kind="stable")[:count]
    return [(int(other), float(cosines_V[other])) for other in order if np.isfinite(cosines_V[other])]


def unit(table_VD: np.ndarray) -> np.ndarray:
    """Return rows of length 1; a row of zeros stays as it is."""
    norms_V = np.linalg.norm(table_VD, axis=1, keepdims=True)
    return table_VD / np.where(norms_V > 0, norms_V, 1.0)


@dataclass(frozen=True)
class Picture:
    """Points of tokens on axes that all models share.

    Attributes:
        points: by model, (V, 2) for the tokens shown.
        explained: shares of the variance along the axes, of the models that the basis was fitted on; () for UMAP.
        explained_of: by model, the share of its own tokens' variance that the picture shows; empty for UMAP.
    """

    points: dict[str, np.ndarray]
    explained: tuple[float, ...]
    explained_of: dict[str, float]


def project(models: Sequence[Embeddings], tokens_N: np.ndarray, basis: str, how: str, seed: int) -> Picture:
    """Project the embeddings of tokens with one basis for all models.

    The sign of a principal axis is nobody's: here its largest loading is positive.
    """
    tables = {model.label: model.table_VD[tokens_N] for model in models}
    fitted_ND = np.concatenate(list(tables.values())) if basis == "joint" else tables[models[-1].label]
    if how == "umap":
        return Picture(_umap(tables, fitted_ND, seed), (), {})
    centre_D = fitted_ND.mean(axis=0)
    _, s, axes_RD = np.linalg.svd(fitted_ND - centre_D, full_matrices=False)
    axes_2D = axes_RD[:2]
    axes_2D = axes_2D * np.sign(axes_2D[np.arange(len(axes_2D)), np.abs(axes_2D).argmax(axis=1)])[:, None]
    points = {label: (table_ND - centre_D) @ axes_2D.T for label, table_ND in tables.items()}
    own = {
        label: float(points[label].var(axis=0).sum() / table_ND.var(axis=0).sum()) if table_ND.var() else float("nan")
        for label, table_ND in tables.items()
    }
    total = (s**2).sum()
    return Picture(points, tuple(float(value) for value in s[:2] ** 2 / total) if total else (0.0, 0.0), own)


def _umap(tables: Mapping[str, np.ndarray], fitted_ND: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    import warnings

    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with a seed it says that it uses one thread
        reducer = umap.UMAP(n_components=2, n_neighbors=min(15, len(fitted_ND) - 1), metric="cosine", random_state=seed)
        reducer.fit(fitted_ND)
        if len(fitted_ND) == sum(map(len, tables.values())):
            ends = np.cumsum([len(table) for table in tables.values()])[:-1]
            return dict(zip(tables, np.split(np.asarray(reducer.embedding_), ends), strict=True))
        return {label: np.asarray(reducer.transform(table_ND)) for label, table_ND in tables.items()}


@dataclass(frozen=True)
class Movement:
    """How far tokens moved from one model to another: cosine distance (0 to 2), and the move over the norm before."""

    distance_V: np.ndarray
    relative_V: np.ndarray

    @classmethod
    def between(cls, before_VD: np.ndarray, after_VD: np.ndarray) -> Movement:
        """Compare two tables.

        >>> moved = Movement.between(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]]))
        >>> moved.distance_V.tolist(), moved.relative_V.round(2).tolist()
        ([1.0, 0.0], [2.24, 0.0])
        """
        norms_V = np.linalg.norm(before_VD, axis=1)
        moved_V = np.linalg.norm(after_VD - before_VD, axis=1)
        relative_V = np.divide(moved_V, norms_V, out=np.full(len(norms_V), np.nan), where=norms_V > 0)
        distance_V = np.maximum(1 - (unit(before_VD) * unit(after_VD)).sum(axis=1), 0.0)
        # A row of zeros, as of a pad token, has no direction.
        known_V = (norms_V > 0) & (np.linalg.norm(after_VD, axis=1) > 0)
        return cls(np.where(known_V, distance_V, np.nan), relative_V)


def mean_of(values_V: np.ndarray, tokens_V: np.ndarray, unit_name: str, seed: int) -> Estimate | None:
    """Return a mean over tokens, which are the sample here; None for no tokens."""
    chosen = values_V[tokens_V & np.isfinite(values_V)]
    return bootstrap_mean(chosen, unit_name, seed) if len(chosen) else None


def difference_of(values_V: np.ndarray, seen_V: np.ndarray, unit_name: str, seed: int) -> Estimate:
    """Return how much farther the tokens seen have moved than the others, with an interval over the tokens of both.

    Without one where either are fewer than `LEAST_TOKENS`; `n` counts the fewer of the two.
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
        UsageError: for a data set that is not there, or has no text.
    """
    dataset = dataset_of(args)
    split = args.dataset_split or (None if dataset.default_split is None else "train")
    found = dataset.select(split, args.max_train_samples)
    encode = batch_encoder(subject.tokenizer)
    counts: Counter[int] = Counter()
    batch: list[str] = []
    texts = 0
    for record in progress(found.read(), "counting tokens", "texts", found.total):
        texts += 1
        batch.append(record["story"])
        if len(batch) == BATCH:
            counts.update(_flat(encode(batch)))
            batch = []
    counts.update(_flat(encode(batch)))
    if not counts:
        raise UsageError(f"--dataset_name {args.dataset_name} has no text ({texts} read); give what was trained on")
    # What stood before and after each text in training, which its text does not show.
    marks = document_marks(subject.tokenizer, subject.candidate.append_eos, separator_of(subject.candidate.run))
    counts.update(token for part in marks for token in part)
    return np.array([counts[token] for token in range(vocab_of(subject.tokenizer))])


def _flat(lists: Iterable[Sequence[int]]) -> Iterable[int]:
    return (token for ids in lists for token in ids)
