"""Attention: what the heads of a model attend to, as maps of one text and as statistics over many.

A query attends to keys: itself and the tokens before it.  The first token attends only to itself, so it is left out as
a query.

Shape suffixes: N = texts, L = layers (blocks), H = heads, T = tokens, Q = queries (T - 1), S = statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, note
from lm_trials.probing.activation_store import captured, reduced
from lm_trials.probing.anatomy import anatomy_of, check_blocks, check_heads
from lm_trials.probing.attention.flags import LEAST_STORIES, OF_STORIES, AttentionArguments
from lm_trials.probing.capture import Activations
from lm_trials.probing.flags import short_names
from lm_trials.probing.subjects import Subject
from lm_trials.tokens.tokenizers import batch_encoder

AT_ONCE = 64 << 20
"""Bytes of attention weights in memory at a time (they grow with the square of a text's length); more is slower."""


def head_statistics(weights_HTT: torch.Tensor) -> torch.Tensor:
    """Return the statistics of each head on one text, each a mean over its queries, -> (H, S) as `OF_STORIES`.

    previous, first and self are shares of attention; distance is in tokens, entropy in nats; relative entropy is
    divided by the log of the number of tokens that a query attends to.

    >>> even = torch.ones(1, 3, 3).tril() / torch.tensor([1.0, 2.0, 3.0])[:, None]
    >>> [round(value, 3) for value in head_statistics(even)[0].tolist()]
    [0.417, 0.417, 0.417, 0.75, 0.896, 1.0]
    """
    # Without the first query, which can attend to itself only: it would add 1 / T to `first` and `self` in every
    # head, more in short stories.
    weights_HQT = weights_HTT[:, 1:].double()
    places = torch.arange(weights_HTT.shape[1], dtype=torch.float64)
    queries_Q = places[1:]
    entropy_HQ = torch.special.entr(weights_HQT).sum(dim=-1)
    found = {
        "previous": weights_HQT.diagonal(offset=0, dim1=1, dim2=2),
        "first": weights_HQT[:, :, 0],
        "self": weights_HQT.diagonal(offset=1, dim1=1, dim2=2),
        "distance": (weights_HQT * (queries_Q[:, None] - places)).sum(dim=-1),
        "entropy": entropy_HQ,
        "relative_entropy": entropy_HQ / torch.log(queries_Q + 1),
    }
    return torch.stack([found[name].mean(dim=-1) for name in OF_STORIES], dim=-1)


def even_statistics(length: int) -> np.ndarray:
    """Return the statistics of a head with even attention on a text of `length` tokens, -> (S,).

    >>> even_statistics(3).round(3).tolist()
    [0.417, 0.417, 0.417, 0.75, 0.896, 1.0]
    """
    seen_Q = np.arange(2, length + 1, dtype=np.float64)
    share = float(np.mean(1 / seen_Q))
    distance, entropy = float(np.mean((seen_Q - 1) / 2)), float(np.mean(np.log(seen_Q)))
    found = {"previous": share, "first": share, "self": share, "distance": distance, "entropy": entropy}
    return np.array([{**found, "relative_entropy": 1.0}[name] for name in OF_STORIES])


def induction_scores(weights_HTT: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Return the share of attention of a repetition to the token that followed the first time, -> (H, 1).

    The prefix-matching score of Olsson et al. (2022, arXiv 2209.11895): a sequence of `length` tokens begins at `start`
    and is repeated; the mean is over the tokens of the repetition.
    """
    # Random tokens, so that only copying predicts them: in stories a head may attend to a repeated word for its
    # meaning.
    rows = torch.arange(start + length, start + 2 * length)
    return weights_HTT[:, rows, rows - length + 1].double().mean(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Repeats:
    """Sequences of random tokens for the induction score.

    Attributes:
        repeated: each an opening, a sequence and the same sequence again.
        unrepeated: with another sequence before the last: the control for heads that always look so far back.
        start: where the sequences begin.
        length: their tokens.
    """

    repeated: list[np.ndarray]
    unrepeated: list[np.ndarray]
    start: int
    length: int

    @property
    def even(self) -> float:
        """The score of a head with even attention."""
        seen = np.arange(self.start + self.length + 1, self.start + 2 * self.length + 1)
        return float(np.mean(1 / seen))


def repeats(ids: np.ndarray, opening: Sequence[int], length: int, count: int, seed: int) -> Repeats:
    """Draw sequences in which no token occurs twice, except by the repetition.

    >>> drawn = repeats(np.arange(5, 11), [1], length=2, count=1, seed=0)
    >>> drawn.repeated[0].tolist(), drawn.unrepeated[0].tolist()
    ([1, 10, 6, 10, 6], [1, 5, 7, 10, 6])
    """
    generator = np.random.default_rng([seed, length])
    pairs = [generator.choice(ids, (2, length), replace=False) for _ in range(count)]
    whole = [[np.array([*opening, *first, *second]) for first, second in ((a, a), (b, a))] for a, b in pairs]
    return Repeats([twice for twice, _ in whole], [once for _, once in whole], len(opening), length)


@dataclass(frozen=True)
class AttentionTexts:
    """What every model reads: the stories, the text of the maps and its tokens, sequences for the induction score."""

    documents: list[np.ndarray]
    map_ids_T: np.ndarray
    tokens: list[str]
    repeats: Repeats | None


def head_to_draw(subject: Subject, args: AttentionArguments) -> tuple[int, int] | None:
    """Return layer and head of the large map, negative ones counted from the end; None without the flags.

    Raises:
        UsageError: for a layer or head that the model does not have.
    """
    if args.layer is None or args.head is None:
        return None
    (layer,) = check_blocks([args.layer], subject.depth, subject.reference.name, "--layer")
    (head,) = check_heads([args.head], subject.num_heads, subject.reference.name, "--head")
    return layer, head


def run_of(subject: Subject, names: Sequence[str]) -> str:
    """Return the short name of the run that a checkpoint is of; of a model that was named itself, its label."""
    path = Path(subject.reference.path)
    for name, label in zip(names, short_names(names), strict=True):
        if Path(name) in (path, path.parent):
            return label
    return subject.label


def plan_texts(
    subjects: Sequence[Subject], stories: Sequence[str], args: AttentionArguments, seed: int
) -> AttentionTexts:
    """Tokenize all texts; prints which are left out or truncated.

    Raises:
        UsageError: for too few stories of at least two tokens.
    """
    first, window = subjects[0], min(subject.window for subject in subjects)
    if other := next((subject for subject in subjects if subject.opening() != first.opening()), None):
        note(
            f"{other.label} was trained with another document separator; all models read stories as {first.label} does"
        )
    whole = [ids_T[:window] for ids_T in first.story_ids(stories)]
    documents = [ids_T for ids_T in whole if len(ids_T) > 1]
    if len(documents) < len(whole):
        note(f"left out: {len(whole) - len(documents)} of {len(whole)} stories, as they have one token")
    if len(documents) < LEAST_STORIES:
        raise UsageError(
            f"--dataset_name: {len(documents)} stories of two tokens or more are too few, as a head is selected on one "
            f"half of them and reported on the other; give at least {LEAST_STORIES}"
        )
    map_ids_T = documents[0][: args.map_tokens]
    if args.text is not None:
        (ids,) = batch_encoder(first.tokenizer)([args.text])
        ids = first.opening() + ids
        if len(ids) < 2:
            raise UsageError(f"--text {args.text!r} is one token, which attends only to itself; give a longer text")
        if len(ids) > (shown := min(args.map_tokens, window)):
            why = "--map_tokens" if shown == args.map_tokens else "the models' window"
            note(f"--text has {len(ids)} tokens with its separator; the maps show the first {shown} ({why})")
        map_ids_T = np.array(ids[:shown], dtype=np.int64)
    drawn = _plan_repeats(first, documents, window, args, seed)
    return AttentionTexts(documents, map_ids_T, token_labels(first.tokenizer, map_ids_T.tolist()), drawn)


def _plan_repeats(
    subject: Subject, documents: Sequence[np.ndarray], window: int, args: AttentionArguments, seed: int
) -> Repeats | None:
    """Draw from the tokens of the stories: a tokenizer may have tokens that the models were never trained on."""
    if not args.induction_sequences:
        return None
    ids = np.setdiff1d(np.unique(np.concatenate(documents)), subject.tokenizer.all_special_ids)
    length = min(args.induction_tokens, (window - len(subject.opening())) // 2, len(ids) // 2)
    if length < 2:
        what = (
            f"a window of {window} tokens and {len(ids)} different tokens in the stories are too few for a repetition"
        )
        if args.statistic == "induction":
            raise UsageError(f"--statistic induction: {what}; give another statistic")
        note(f"no induction score: {what}")
        return None
    if length < args.induction_tokens:
        note(
            f"--induction_tokens {args.induction_tokens}: the window or the number of different tokens allows {length}"
        )
    return repeats(ids, subject.opening(), length, args.induction_sequences, seed)


def token_labels(tokenizer: PreTrainedTokenizerBase, ids_T: Sequence[int]) -> list[str]:
    """Return the text of each token with its leading space; part of a character as the tokenizer writes it."""
    labels = []
    for number in ids_T:
        token = str(tokenizer.convert_ids_to_tokens(number))
        text = str(tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if token.startswith("▁") and not text.startswith(" "):  # SentencePiece's decoder drops the first space
            text = f" {text}"
        labels.append(token if not text or "\N{REPLACEMENT CHARACTER}" in text else text)
    return labels


@dataclass(frozen=True)
class Measured:
    """The measurements of one model.

    Attributes:
        label: its name in tables.
        run: the run that it is a checkpoint of, or its own name.
        step, seed: its update and its training seed, where known.
        stories_NLHS: statistics of each head on each story, as `OF_STORIES`.
        repeated_NLH, unrepeated_NLH: induction scores on repeated sequences and on their control; None without them.
        maps_LHTT: attention weights on the text of the maps.
    """

    label: str
    run: str
    step: int | None
    seed: int | None
    stories_NLHS: np.ndarray
    repeated_NLH: np.ndarray | None
    unrepeated_NLH: np.ndarray | None
    maps_LHTT: np.ndarray

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics."""
        return OF_STORIES + (["induction"] if self.repeated_NLH is not None else [])

    def values(self, statistic: str) -> np.ndarray:
        """Return one statistic of each head on each text, -> (N, L, H)."""
        if statistic == "induction":
            assert self.repeated_NLH is not None
            return self.repeated_NLH
        return self.stories_NLHS[..., OF_STORIES.index(statistic)]


def measure(
    model: Any, texts: AttentionTexts, batch_size: int, subject: Subject | None = None, run: str | None = None
) -> Measured:
    """Measure a model's attention on all texts; without a subject, an untrained model's."""
    label = subject.label if subject else "an untrained model"
    repeated = unrepeated = None
    if texts.repeats is not None:
        start, length = texts.repeats.start, texts.repeats.length
        repeated, unrepeated = (
            over_heads(model, sequences, lambda weights: induction_scores(weights, start, length), batch_size)[..., 0]
            for sequences in (texts.repeats.repeated, texts.repeats.unrepeated)
        )
    stories_NLHS = over_heads(model, texts.documents, head_statistics, batch_size, f"attention of {label}")
    maps_LHTT = attention_maps(model, texts.map_ids_T)
    step, seed = (subject.step, subject.candidate.seed) if subject else (None, None)
    return Measured(label, run or label, step, seed, stories_NLHS, repeated, unrepeated, maps_LHTT)


def over_heads(
    model: Any,
    documents: Sequence[np.ndarray],
    reduce: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int,
    description: str | None = None,
    at_once: int = AT_ONCE,
) -> np.ndarray:
    """Return `reduce(weights_HTT) -> (H, S)` of each layer and text, -> (N, L, H, S).

    About `at_once` bytes of weights are in memory: batches are made smaller, and where one text is too much, layers are
    captured in groups.
    """
    anatomy = anatomy_of(model)
    longest = max((len(ids_T) for ids_T in documents), default=1)
    # 4 bytes: attention weights are read in float32. All layers of GPT-2 at 1,024 tokens are 604 MB a story.
    of_a_layer = 4 * anatomy.num_heads * longest**2
    width = min(anatomy.num_blocks, max(1, at_once // of_a_layer))
    batch_size = min(batch_size, max(1, at_once // (of_a_layer * width)))
    rows: dict[str, np.ndarray] = {}
    for start in range(0, anatomy.num_blocks, width):
        layers = list(range(start, min(start + width, anatomy.num_blocks)))

        def of_batch(found: Activations, layers: Sequence[int] = layers) -> dict[str, torch.Tensor]:
            return {
                str(layer): torch.stack([reduce(weights_HTT) for weights_HTT in found.of("attention", layer)])
                for layer in layers
            }

        more = f" (layers {layers[0]} to {layers[-1]})" if description and width < anatomy.num_blocks else ""
        shown = description and description + more
        batches = captured(model, documents, {"attention": layers}, batch_size=batch_size, description=shown)
        rows |= reduced(batches, len(documents), of_batch)
    return np.stack([rows[str(layer)] for layer in range(anatomy.num_blocks)], axis=1)


def attention_maps(model: Any, ids_T: np.ndarray) -> np.ndarray:
    """Return the attention weights of every head on one text, -> (L, H, T, T); rows are queries."""
    (found,) = captured(model, [ids_T], ["attention"], description=None)
    return np.stack([found.of("attention", layer)[0].numpy() for layer in found.layers("attention")])
