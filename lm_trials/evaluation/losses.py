"""Losses: the cross-entropy of a causal language model, token by token, summed by story.

Trainer's own `eval_loss` is a mean of batch means, so it moves with the batch size wherever documents differ in
length.  Here a story's loss is a float64 sum over its tokens, whatever the batch, its padding or the
number of processes; every mean is taken afterwards, over all tokens.

Shape suffixes: B = windows, T = tokens of a window, V = vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lm_trials.console import UsageError

Layout = Literal["per_story", "packed"]
IGNORED = -100
# Windows of this many batches are sorted by length before they are batched, which saves most of the padding.
SORTED_BATCHES = 16


@dataclass(frozen=True)
class Document:
    """One story as the model sees it: its (n,) ids, BOS first, and what its loss is reported by."""

    record_id: str
    input_ids: np.ndarray
    num_bytes: int
    groups: tuple[str, ...] = ("all",)


@dataclass(frozen=True)
class Window:
    """A piece of one or more documents that fits the model.

    Attributes:
        input_ids_T: what the model sees.
        targets_T: the token after each, or `IGNORED` where another window scores it.
        owners_T: number of the document that each input token belongs to, and its prediction with it.
        position_ids_T: places within the document, where documents must not see one another; else None.
    """

    input_ids_T: np.ndarray
    targets_T: np.ndarray
    owners_T: np.ndarray
    position_ids_T: np.ndarray | None = None


@dataclass
class StoryLoss:
    """The summed loss of one story.

    Attributes:
        document: the story.
        nats: sum of the negative log-likelihoods of its scored tokens.
        tokens: how many were scored.
        correct: for how many the likeliest token was the right one.
    """

    document: Document
    nats: float = 0.0
    tokens: int = 0
    correct: int = 0


@dataclass(frozen=True)
class Processes:
    """Who evaluates: this process, of how many, and how Python objects of all of them are put together."""

    index: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = field(default=lambda objects: objects)


def per_story_windows(documents: Iterable[tuple[int, Document]], block_size: int) -> Iterator[Window]:
    """Yield each document by itself; one longer than a block in pieces that overlap by half a block.

    Every token after the first is scored once; in a later piece each has at least half a block before it.

    >>> story = Document("a", np.arange(6), num_bytes=6)
    >>> [(w.input_ids_T.tolist(), w.targets_T.tolist()) for w in per_story_windows([(0, story)], block_size=4)]
    [([0, 1, 2, 3], [1, 2, 3, 4]), ([2, 3, 4], [-100, -100, 5])]
    """
    for number, document in documents:
        ids = document.input_ids.astype(np.int64)
        scored_to, start = 1, 0
        while scored_to < len(ids):
            inputs = ids[start : min(start + block_size, len(ids) - 1)]
            targets = ids[start + 1 : start + 1 + len(inputs)].copy()
            targets[: scored_to - start - 1] = IGNORED
            yield Window(inputs, targets, np.full(len(inputs), number))
            scored_to = start + 1 + len(inputs)
            start += max(block_size // 2, 1)


def packed_windows(
    documents: Iterable[tuple[int, Document]], block_size: int, attention_across_documents: bool = True
) -> Iterator[Window]:
    """Yield the documents joined into one stream and cut into windows of `block_size`, as in pretraining.

    Each window's last target is the first token of the next, so that every token but the stream's first is scored
    once; the end of the stream makes a shorter window instead of being dropped.  The prediction of a document's first
    token (its BOS) is made by, and counted to, the document before.

    >>> stories = [(0, Document("a", np.array([1, 5]), 1)), (1, Document("b", np.array([1, 6, 7]), 2))]
    >>> [(w.input_ids_T.tolist(), w.targets_T.tolist()) for w in packed_windows(stories, block_size=3)]
    [([1, 5, 1], [5, 1, 6]), ([6], [7])]
    """
    ids, owners, places = (np.zeros(0, dtype=np.int64) for _ in range(3))
    for number, document in documents:
        length = len(document.input_ids)
        ids = np.concatenate([ids, document.input_ids.astype(np.int64)])
        owners = np.concatenate([owners, np.full(length, number)])
        places = np.concatenate([places, np.arange(length)])
        while len(ids) > block_size:
            yield _packed_window(ids, owners, places, block_size, attention_across_documents)
            ids, owners, places = ids[block_size:], owners[block_size:], places[block_size:]
    if len(ids) > 1:
        yield _packed_window(ids, owners, places, len(ids) - 1, attention_across_documents)


def _packed_window(ids: np.ndarray, owners: np.ndarray, places: np.ndarray, length: int, across: bool) -> Window:
    positions = None
    if not across:
        # A document that began in an earlier window begins anew here: what it cannot see has no place.
        first = np.argmax(owners != owners[0]) if (owners[:length] != owners[0]).any() else length
        positions = places[:length].copy()
        positions[:first] -= places[0]
    return Window(ids[:length], ids[1 : length + 1], owners[:length], positions)


@torch.no_grad()
def token_losses(model: PreTrainedModel, windows: list[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each window its (T,) losses in nats, float64, and whether each target was the likeliest token.

    Windows are padded on the right, where a causal model cannot see; ignored targets have loss 0.  There is no
    attention mask and no cache: with either, transformers would not keep documents apart by their positions.
    """
    longest = max(len(window.input_ids_T) for window in windows)
    device = next(model.parameters()).device

    def padded(rows: Iterable[np.ndarray], fill: int) -> torch.Tensor:
        out = np.full((len(windows), longest), fill, dtype=np.int64)
        for row, values in zip(out, rows, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(out).to(device)

    inputs_BT = padded((w.input_ids_T for w in windows), int(windows[0].input_ids_T[0]))
    targets_BT = padded((w.targets_T for w in windows), IGNORED)
    positions = [w.position_ids_T for w in windows]
    extra = {}
    if all(p is not None for p in positions):
        extra["position_ids"] = padded(positions, 0)  # type: ignore[arg-type]
    logits_BTV = model(input_ids=inputs_BT, use_cache=False, **extra).logits
    scored = []
    for logits_TV, targets_T, window in zip(logits_BTV, targets_BT, windows, strict=True):
        length = len(window.input_ids_T)
        # A model in half precision is scored in single; one in double precision stays in double.
        dtype = torch.promote_types(logits_TV.dtype, torch.float32)
        logits_TV, targets_T = logits_TV[:length].to(dtype), targets_T[:length]
        nats_T = nn.functional.cross_entropy(logits_TV, targets_T, ignore_index=IGNORED, reduction="none")
        correct_T = logits_TV.argmax(dim=-1) == targets_T
        scored.append((nats_T.double().cpu().numpy(), correct_T.cpu().numpy()))
    return scored


def _window_sums(model: PreTrainedModel, windows: list[Window]) -> list[list[tuple[int, float, int, int]]]:
    """Return for each window (owner, nats, tokens, correct) of each document in it."""
    sums = []
    for window, (nats_T, correct_T) in zip(windows, token_losses(model, windows), strict=True):
        scored_T = window.targets_T != IGNORED
        rows = []
        for owner in np.unique(window.owners_T[scored_T]):
            of_owner_T = scored_T & (window.owners_T == owner)
            rows.append(
                (int(owner), float(nats_T[of_owner_T].sum()), int(of_owner_T.sum()), int(correct_T[of_owner_T].sum()))
            )
        sums.append(rows)
    return sums


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluate without dropout and gradients, and leave each module in the mode it was found in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _group_sums(
    model: PreTrainedModel, group: list[Window], batch_size: int, processes: Processes
) -> list[tuple[int, list[tuple[int, float, int, int]]]]:
    """Score a group of windows together with the other processes; (place in the group, sums), in order of the places.

    The model is in evaluation mode only in here, and not while `story_losses` has yielded: its caller may train.
    """
    # Stable, so that every process makes the same batches.
    by_length = sorted(range(len(group)), key=lambda place: len(group[place].input_ids_T))
    batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    scored: list[tuple[int, list[tuple[int, float, int, int]]]] = []
    with quiet(model):
        for batch in batches[processes.index :: processes.count]:
            scored += zip(batch, _window_sums(model, [group[place] for place in batch]), strict=True)
    # In the order of the windows, so that a story's pieces are added in one order only.
    return sorted(processes.gather(scored), key=lambda item: item[0])


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose predictions depend on tokens that come later, as BERT's do: its loss would mean nothing.

    Everything here rests on it: the targets are the inputs moved by one place, and padding stands on the right.

    Raises:
        UsageError: for such a model.
    """
    device = next(model.parameters()).device
    first_BT = torch.arange(1, 9, device=device)[None]
    second_BT = first_BT.clone()
    second_BT[0, -1] = 0
    with quiet(model):
        first_TV, second_TV = (model(input_ids=ids, use_cache=False).logits[0, :-1] for ids in (first_BT, second_BT))
    if (first_TV - second_TV).abs().max() > 1e-4 * max(1.0, float(first_TV.abs().max())):
        raise UsageError(
            f"{name} lets a token see those after it, so next-token losses say nothing about it; "
            "give a causal language model"
        )


def check_loss(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose own loss, which Trainer minimises, is not the cross-entropy of the next token.

    transformers moves the labels of Bart's decoder and its kin by no place, so that they would learn to copy.

    Raises:
        UsageError: for such a model.
    """
    ids_BT = torch.arange(1, 9, device=next(model.parameters()).device)[None]
    with quiet(model):
        output = model(input_ids=ids_BT, labels=ids_BT, use_cache=False)
        expected = nn.functional.cross_entropy(output.logits[0, :-1].float(), ids_BT[0, 1:])
    if abs(float(output.loss - expected)) > 1e-4 * max(1.0, float(expected)):
        raise UsageError(
            f"{name}: its loss in transformers is not that of the next token ({float(output.loss):.4f} instead of "
            f"{float(expected):.4f} nats), so training it would mean nothing; give another model type"
        )


def check_documents_apart(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose predictions depend on the document before, although positions start anew.

    transformers finds the documents of a block by their positions, but only in the model types that build their masks
    with its `masking_utils`; others, as Bloom, OPT and Mamba, ignore them.

    Raises:
        UsageError: for such a model.
    """
    device = next(model.parameters()).device
    first_BT = torch.tensor([[1, 2, 3, 4, 1, 5, 6, 7]], device=device)
    second_BT = first_BT.clone()
    second_BT[0, 1:4] = 0
    places = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=device), "use_cache": False}
    with quiet(model):
        try:
            first_TV, second_TV = (model(input_ids=ids, **places).logits[0, 4:] for ids in (first_BT, second_BT))
        except TypeError:  # no such argument
            first_TV, second_TV = torch.zeros(1), torch.ones(1)
    if (first_TV - second_TV).abs().max() > 1e-4 * max(1.0, float(first_TV.abs().max())):
        raise UsageError(
            f"--attention_across_documents False has no effect on a {name}, whose tokens attend to the documents "
            "before theirs in a block; remove the flag or give another model type"
        )


def story_losses(
    model: PreTrainedModel,
    documents: Iterable[Document],
    block_size: int,
    layout: Layout = "per_story",
    batch_size: int = 8,
    attention_across_documents: bool = True,
    processes: Processes | None = None,
) -> Iterator[StoryLoss]:
    """Yield the loss of each document, in order; the same in every process, for any batch size and process count.

    Every process reads all documents and scores its share of the batches.  A document of one token has nothing to
    predict: its loss has 0 tokens.

    Args:
        documents: read as they are needed; only those of the windows at hand are kept.
        block_size: longest window, in tokens.
        batch_size: windows that the model sees at once.
        attention_across_documents: in packed layout, whether a story sees the one before it in the window.
        processes: this process among those that evaluate together; default alone.
    """
    processes = processes or Processes()
    waiting: dict[int, StoryLoss] = {}

    def numbered() -> Iterator[tuple[int, Document]]:
        for number, document in enumerate(documents):
            waiting[number] = StoryLoss(document)
            yield number, document

    if layout == "packed":
        windows = packed_windows(numbered(), block_size, attention_across_documents)
    else:
        windows = per_story_windows(numbered(), block_size)
    # Not a multiple of the process count: the batches are the same for any number of processes up to
    # `SORTED_BATCHES`, and with them every sum to the last bit.
    group_size = batch_size * max(SORTED_BATCHES, processes.count)
    while group := list(itertools.islice(windows, group_size)):
        for _, sums in _group_sums(model, group, batch_size, processes):
            for owner, nats, tokens, correct in sums:
                story = waiting[owner]
                story.nats += nats
                story.tokens += tokens
                story.correct += correct
        # The last document seen may go on in the next window; all before it are complete.
        last = int(group[-1].owners_T[-1])
        for number in sorted(number for number in waiting if number < last):
            yield waiting.pop(number)
    for number in sorted(waiting):
        yield waiting.pop(number)
