"""Losses: the cross-entropy of a causal language model per token, summed over each story.

Trainer's `eval_loss` is a mean of batch means, so it changes with the batch size if documents differ in length.  Here
each story's loss is a float64 sum over its tokens, for any batch size, padding and number of processes.

Shape suffixes: B = windows, T = tokens of a window, V = vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lm_trials.console import UsageError
from lm_trials.models.quantization import is_exact

Layout = Literal["per_story", "packed"]
Sums = TypeVar("Sums")
IGNORED = -100  # cross_entropy's default ignore_index
# Windows of this many batches are sorted by length before they are batched, which saves most of the padding.
SORTED_BATCHES = 16
ROUNDING = 1e-4  # of the largest logit, in float32: kernels of other shapes round differently


class NotFiniteError(UsageError):
    """A loss that is nan or infinite, of a model with finite weights."""


@dataclass(frozen=True)
class Document:
    """One story: its (n,) ids, BOS first, its size in bytes, and the slices that its loss is reported for.

    `parts` are also summed by themselves, by name: which of the n ids, as booleans, and their size in bytes.
    """

    record_id: str
    input_ids: np.ndarray
    num_bytes: int
    groups: tuple[str, ...] = ("all",)
    parts: Mapping[str, tuple[np.ndarray, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """A piece of one or more documents that fits the model.

    Attributes:
        input_ids_T: input tokens.
        targets_T: the token after each, or `IGNORED` if another window scores it.
        owners_T: number of the document that each input token, and the prediction made at it, belongs to.
        position_ids_T: positions within the document if documents must not attend to one another, else None.
        parts: which targets belong to each of the document's parts.
    """

    input_ids_T: np.ndarray
    targets_T: np.ndarray
    owners_T: np.ndarray
    position_ids_T: np.ndarray | None = None
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class StoryLoss:
    """The summed loss of one story.

    Attributes:
        nats: sum of the negative log-likelihoods of its scored tokens.
        tokens: number of scored tokens.
        correct: number of scored tokens that were the model's most likely token.
        parts: the same of each part of the document.
    """

    document: Document
    nats: float = 0.0
    tokens: int = 0
    correct: int = 0
    parts: dict[str, StoryLoss] = field(default_factory=dict)


@dataclass(frozen=True)
class Processes:
    """This process's index among `count`, and how lists of all processes are concatenated (`gather_object`)."""

    index: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = field(default=lambda objects: objects)


def per_story_windows(documents: Iterable[tuple[int, Document]], block_size: int) -> Iterator[Window]:
    """Yield each document by itself; one longer than a block in windows that overlap by half a block.

    Every token after the first is scored once; in later windows with at least half a block of context.

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
            parts = {name: tokens[start + 1 : start + 1 + len(inputs)] for name, (tokens, _) in document.parts.items()}
            yield Window(inputs, targets, np.full(len(inputs), number), parts=parts)
            scored_to = start + 1 + len(inputs)
            # Half a block of overlap: every scored token after the first window has at least that much context, at
            # twice the cost. A stride of 1 would be exact and block_size / 2 times as slow; the effect of the stride
            # was not measured.
            start += max(block_size // 2, 1)


def packed_windows(
    documents: Iterable[tuple[int, Document]], block_size: int, attention_across_documents: bool = True
) -> Iterator[Window]:
    """Yield the documents joined into one stream and cut into windows of `block_size`, as in pretraining.

    Each window's last target is the first token of the next, so every token but the stream's first is scored once;
    the last window may be shorter.  A document's first token (BOS) is predicted by, and counted to, the one before.

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
        # A document that began in an earlier window starts at position 0 here: it cannot attend to that window.
        first = np.argmax(owners != owners[0]) if (owners[:length] != owners[0]).any() else length
        positions = places[:length].copy()
        positions[:first] -= places[0]
    return Window(ids[:length], ids[1 : length + 1], owners[:length], positions)


@torch.no_grad()
def token_losses(model: PreTrainedModel, windows: list[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each window its (T,) losses in nats, float64, and whether each target was the most likely token.

    Ignored targets have loss 0.  Windows are padded on the right, which a causal model does not attend to.  There is
    no attention mask and no cache: with either, transformers does not separate documents by their positions.
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
    positions = [w.position_ids_T for w in windows if w.position_ids_T is not None]
    extra = {"position_ids": padded(positions, 0)} if positions else {}  # either all windows have them or none
    logits_BTV = model(input_ids=inputs_BT, use_cache=False, **extra).logits
    scored = []
    for logits_TV, targets_T, window in zip(logits_BTV, targets_BT, windows, strict=True):
        length = len(window.input_ids_T)
        # Half precision is scored in float32; double precision stays double.
        dtype = torch.promote_types(logits_TV.dtype, torch.float32)
        logits_TV, targets_T = logits_TV[:length].to(dtype), targets_T[:length]
        # Window by window: the float32 copy of a batch of 16 x 1,024 tokens at a vocabulary of 50,257 would take 3
        # GB.
        nats_T = nn.functional.cross_entropy(logits_TV, targets_T, ignore_index=IGNORED, reduction="none")
        correct_T = logits_TV.argmax(dim=-1) == targets_T
        scored.append((nats_T.cpu().double().numpy(), correct_T.cpu().numpy()))  # MPS has no float64
    return scored


def _sums_by_owner(window: Window, nats_T: np.ndarray, correct_T: np.ndarray) -> list[tuple[int, str, float, int, int]]:
    """Return (owner, part, nats, tokens, correct) of each document of a window, with part "", and of its parts."""
    scored_T = window.targets_T != IGNORED
    rows = []
    # `nats_T` is float64: in float32 the last digits of a story's sum would depend on its split into windows.
    for owner in np.unique(window.owners_T[scored_T]):
        of_owner_T = scored_T & (window.owners_T == owner)
        for part, of_part_T in {"": of_owner_T, **window.parts}.items():
            of_T = of_owner_T & of_part_T
            rows.append((int(owner), part, float(nats_T[of_T].sum()), int(of_T.sum()), int(correct_T[of_T].sum())))
    return rows


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


def window_sums(
    model: PreTrainedModel,
    windows: Sequence[Window],
    batch_size: int,
    processes: Processes,
    sums: Callable[[Window, np.ndarray, np.ndarray], Sums],
) -> list[Sums]:
    """Return `sums(window, nats_T, correct_T)` of each window, in order; the processes share the batches.

    The model is in evaluation mode only inside this function: a caller that yields in between may train it.

    Raises:
        NotFiniteError: in every process, for a loss that is not finite.
    """
    # A stable sort, so that every process makes the same batches.
    by_length = sorted(range(len(windows)), key=lambda place: len(windows[place].input_ids_T))
    batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    scored: list[tuple[int, Sums, bool]] = []
    with quiet(model):
        for first in range(0, len(batches), processes.count):
            # Each forward pass gathers a sharded model from all processes, so all make as many: without a batch of its
            # own a process scores the last one again. Otherwise ZeRO-3 and FSDP abort (gloo) or hang (NCCL).
            own = first + processes.index
            batch = batches[min(own, len(batches) - 1)]
            losses = token_losses(model, [windows[place] for place in batch])
            if own < len(batches):
                for place, (nats_T, correct_T) in zip(batch, losses, strict=True):
                    found = sums(windows[place], nats_T, correct_T)
                    scored.append((place, found, bool(np.isfinite(nats_T).all())))
    # In the order of the windows, so that the parts of a story are added in one order only.
    scored = sorted(processes.gather(scored), key=itemgetter(0))
    if infinite := sum(not finite for _, _, finite in scored):
        raise NotFiniteError(
            f"the loss of {infinite:,} of {len(scored):,} windows is nan or infinite, as the model's activations "
            "overflow; give an earlier checkpoint, or float32 or bfloat16 instead of float16"
        )
    return [found for _, found, _ in scored]


def rounding_of(model: PreTrainedModel) -> float:
    """Return the change of logits, relative to the largest, that other kernels or batches explain."""
    return ROUNDING if is_exact(model) else 0.1


def _depend(model: PreTrainedModel, ids: Sequence[int], changed: slice, predictions: slice, **inputs: Any) -> bool:
    """Whether the logits at `predictions` depend on the tokens at `changed`.

    A small random Jamba changes its logits by less than `ROUNDING`, but the gradient of what is masked is exactly zero.
    """
    device = next(model.parameters()).device
    embedded: list[torch.Tensor] = []

    def embed(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # CTRL scales its embeddings in place

    # Run on 8 tokens and not read from the configuration: of 189 model types, about 145 have the next-token loss, and
    # no field tells which.
    first_BT = torch.tensor([ids], device=device)
    second_BT = first_BT.clone()
    second_BT[0, changed] = 0
    extra = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with quiet(model):
        second_TV = model(input_ids=second_BT, use_cache=False, **extra).logits[0, predictions]
        hook = model.get_input_embeddings().register_forward_hook(embed)
        try:
            with torch.enable_grad():
                first_TV = model(input_ids=first_BT, use_cache=False, **extra).logits[0, predictions]
        finally:
            hook.remove()
        largest = max(1.0, float(first_TV.abs().max()))
        if not (first_TV - second_TV).abs().max() <= rounding_of(model) * largest:
            return True
    weights_TV = torch.arange(first_TV.numel(), device=device).to(first_TV).cos().view_as(first_TV)
    try:
        (gradient_BTD,) = torch.autograd.grad((first_TV * weights_TV).sum(), embedded[:1])
    except RuntimeError:  # kernels of some quantized models have no backward pass
        return False
    return bool((gradient_BTD[0, changed] != 0).any())


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose predictions depend on later tokens, as BERT's do: its next-token loss is meaningless.

    Raises:
        UsageError: for such a model.
    """
    if _depend(model, range(1, 9), slice(-1, None), slice(None, -1)):
        raise UsageError(f"{name} attends to later tokens, so it has no next-token loss; give a causal language model")


def check_loss(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose own loss, which Trainer minimises, is not the cross-entropy of the next token.

    transformers does not shift the labels of Bart's decoder and similar models, which would learn to copy.

    Raises:
        UsageError: for such a model.
    """
    ids_BT = torch.arange(1, 9, device=next(model.parameters()).device)[None]
    with quiet(model):
        output = model(input_ids=ids_BT, labels=ids_BT, use_cache=False)
        # Eight decoders of transformers 5.23 (Bart and related) do not shift their labels.
        expected = nn.functional.cross_entropy(output.logits[0, :-1].float(), ids_BT[0, 1:])
    if abs(float(output.loss - expected)) > ROUNDING * max(1.0, float(expected)):
        raise UsageError(
            f"{name}: its loss in transformers is not that of the next token ({float(output.loss):.4f} instead of "
            f"{float(expected):.4f} nats), so it cannot be trained here; give another model type"
        )


def check_documents_apart(model: PreTrainedModel, name: str) -> None:
    """Refuse a model that attends to the previous document of a block although positions restart.

    Raises:
        UsageError: for such a model.
    """
    if not documents_apart(model, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])):
        raise UsageError(
            f"--attention_across_documents False has no effect on a {name}, whose tokens attend to the documents "
            "before theirs in a block; remove the flag or give another model type"
        )


def documents_apart(model: PreTrainedModel, **inputs: Any) -> bool:
    """Return whether a model, given the positions of two documents of 4 tokens, keeps the second from the first.

    transformers finds the documents of a block by their positions, but only in model types that build their masks with
    `masking_utils`; others, such as Bloom, OPT and Mamba, ignore them.
    """
    try:
        # Of the 189 types of transformers 5.23, about 40 failed this check: state-space and hybrid models, and those
        # with masks of their own.
        return not _depend(model, [1, 2, 3, 4, 1, 5, 6, 7], slice(0, 4), slice(4, None), **inputs)
    except (TypeError, ValueError):  # the model takes no positions, or its kernels no boundaries between documents
        return False


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

    Every process reads all documents and scores its share of the batches.  A document of one token has no prediction:
    its loss has 0 tokens.

    Args:
        documents: read as needed; only those of the current windows are kept.
        block_size: longest window, in tokens.
        batch_size: windows per forward pass.
        attention_across_documents: in packed layout, whether a story attends to those before it in the window.
        processes: the processes that evaluate together; default: this one alone.
    """
    processes = processes or Processes()
    waiting: dict[int, StoryLoss] = {}

    def numbered() -> Iterator[tuple[int, Document]]:
        for number, document in enumerate(documents):
            whole = replace(document, groups=("all",), parts={})
            parts = {name: StoryLoss(replace(whole, num_bytes=size)) for name, (_, size) in document.parts.items()}
            waiting[number] = StoryLoss(document, parts=parts)
            yield number, document

    if layout == "packed":
        windows = packed_windows(numbered(), block_size, attention_across_documents)
    else:
        windows = per_story_windows(numbered(), block_size)
    # Not a multiple of the process count: batches, and so every sum to the last bit, are the same for any number of
    # processes up to `SORTED_BATCHES`.
    group_size = batch_size * max(SORTED_BATCHES, processes.count)
    while group := list(itertools.islice(windows, group_size)):
        for sums in window_sums(model, group, batch_size, processes, _sums_by_owner):
            for owner, part, nats, tokens, correct in sums:
                story = waiting[owner].parts[part] if part else waiting[owner]
                story.nats += nats
                story.tokens += tokens
                story.correct += correct
        # The last document may continue in the next window; all before it are complete.
        last = int(group[-1].owners_T[-1])
        for number in [number for number in waiting if number < last]:  # a dict keeps the documents' order
            yield waiting.pop(number)
    yield from waiting.values()
