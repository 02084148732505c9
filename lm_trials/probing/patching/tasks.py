"""Patching tasks: which tokens two runs read, which of them are swapped, and how well the next tokens are predicted.

A task is stories that two models read, or pairs of prompts.  Its scores are log-likelihoods of the right tokens, so
larger is better; each is a sum with a weight, and a measure is the ratio of sums.

Shape suffixes: N = stories or pairs, B = those of a batch, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import copy
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lm_trials.console import UsageError, note
from lm_trials.files import readable
from lm_trials.pairs.layouts import instruct_prompts
from lm_trials.probing.patching.flags import PatchingArguments, check_pair
from lm_trials.probing.subjects import Subject
from lm_trials.protocols.instructions import story_start
from lm_trials.stories.generated.detectors import matched_sentence
from lm_trials.stories.records import Record
from lm_trials.tokens.tokenizers import batch_encoder

STORY, DIFFERENCE, LOG_PROBABILITY, PROBABILITY = "story", "answer difference", "answer", "answer probability"


@dataclass(frozen=True)
class Spot:
    """Tokens that are swapped together: by name, and for each text their positions, in the donor and the recipient."""

    name: str
    donor_N: list[list[int]]
    recipient_N: list[list[int]]


@dataclass(frozen=True)
class Task(ABC):
    """What two runs read, and what is measured.

    Attributes:
        donor_ids, recipient_ids: (T,) ids of each text as donor and recipient read it; of stories the same.
        weights: by measure, the (N,) weights of the texts; 0 where a text has nothing to measure.
        units: by measure.
        spots: which tokens are swapped together.
    """

    donor_ids: list[np.ndarray]
    recipient_ids: list[np.ndarray]
    weights: dict[str, np.ndarray]
    units: dict[str, str]
    spots: list[Spot]

    def __len__(self) -> int:
        return len(self.donor_ids)

    def reversed(self) -> Task:
        """Return the task with donor and recipient exchanged."""
        spots = [Spot(spot.name, spot.recipient_N, spot.donor_N) for spot in self.spots]
        return replace(self, donor_ids=self.recipient_ids, recipient_ids=self.donor_ids, spots=spots)

    @abstractmethod
    def scores(self, numbers: Sequence[int], logits_BTV: torch.Tensor, lengths: Sequence[int]) -> dict[str, np.ndarray]:
        """Return by measure the (B,) scores of the texts with these numbers and lengths, padded on the right."""


@dataclass(frozen=True)
class StoryTask(Task):
    """Stories: log-likelihoods, in nats, of the story's tokens and of those of a sentence.

    Attributes:
        regions: by measure, for each text the (T,) tokens that count.
    """

    regions: dict[str, list[np.ndarray]]

    def scores(self, numbers: Sequence[int], logits_BTV: torch.Tensor, lengths: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the sums over the tokens that count."""
        found = {measure: np.zeros(len(numbers)) for measure in self.regions}
        for row, number in enumerate(numbers):
            ids_T = torch.as_tensor(self.recipient_ids[number], device=logits_BTV.device)
            logits_TV = logits_BTV[row, : len(ids_T) - 1]
            logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
            nats_T = nn.functional.cross_entropy(logits_TV, ids_T[1:], reduction="none").cpu().double().numpy()
            for measure, regions in self.regions.items():
                found[measure][row] = -nats_T[regions[number][1:]].sum()
        return found


@dataclass(frozen=True)
class PromptTask(Task):
    """Prompts: the log-probability of an answer as the next token, by itself or minus another's.

    Attributes:
        answers, others: the ids of each pair's answer and other answer, -1 for none.
    """

    answers: np.ndarray
    others: np.ndarray

    def scores(self, numbers: Sequence[int], logits_BTV: torch.Tensor, lengths: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the answer's log-probability, minus the other's where there is one, and its probability."""
        rows = torch.arange(len(numbers))
        nats_BV = logits_BTV[rows, torch.as_tensor(lengths) - 1].cpu().double().log_softmax(-1).numpy()
        answer_B = nats_BV[rows, self.answers[numbers]]
        first = next(iter(self.weights))
        against_B = nats_BV[rows, self.others[numbers]] if first == DIFFERENCE else 0.0
        return {first: answer_B - against_B, PROBABILITY: np.exp(answer_B)}


def story_task(subject: Subject, records: Sequence[Record], args: PatchingArguments) -> Task:
    """Return the task of stories that two models of one tokenizer read.

    Raises:
        UsageError: where nothing is left to measure.
    """
    texts = [record["story"] for record in records]
    backend = copy.deepcopy(subject.tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # as `batch_encoder`, which returns no offsets
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    documents, opening = subject.story_ids(texts), len(subject.opening())
    sentence = f"{args.feature} sentence"
    # The sentence first: it is the sharper measure, and the finding is about the first.
    regions: dict[str, list[np.ndarray]] = {measure: [] for measure in ([sentence] if args.feature else []) + [STORY]}
    for text, ids_T, encoding in zip(texts, documents, encodings, strict=True):
        if encoding.ids[: len(ids_T) - opening] != ids_T[opening:].tolist():
            raise RuntimeError("the offsets are those of other tokens than the model reads")
        offsets = [(0, 0)] * opening + encoding.offsets[: len(ids_T) - opening]
        begin = story_start(text)
        spans = {STORY: (begin, len(text))}
        if args.feature:
            shown = matched_sentence(text[begin:], args.feature)
            at = text.index(shown, begin) if shown else 0
            spans[sentence] = (at, at + len(shown or ""))
        for measure, (start, end) in spans.items():
            counts_T = np.array([first < end and last > start for first, last in offsets])
            counts_T[0] = False  # no token before it predicts it
            regions[measure].append(counts_T)
    kept = [number for number, counts_T in enumerate(regions[STORY]) if counts_T.any()]
    if not kept:
        raise UsageError(
            f"--dataset_name: no text has two tokens of its story within {subject.window} tokens; give longer texts or "
            "a larger --block_size"
        )
    if len(kept) < len(texts):
        note(f"note: {len(texts) - len(kept)} texts have no story within {subject.window} tokens and are left out")
    regions = {measure: [rows[number] for number in kept] for measure, rows in regions.items()}
    weights = {measure: np.array([float(r.sum()) for r in rows]) for measure, rows in regions.items()}
    if args.feature and not weights[sentence].any():
        raise UsageError(f"--feature {args.feature}: no text shows it; give stories that do, or remove the flag")
    ids = [documents[number] for number in kept]
    spot = _story_spot(ids, regions[STORY], opening, args)
    return StoryTask(ids, ids, weights, dict.fromkeys(regions, "nats per token"), [spot], regions)


def _story_spot(ids: Sequence[np.ndarray], story: Sequence[np.ndarray], opening: int, args: PatchingArguments) -> Spot:
    """Return which tokens of each story are swapped: all, those before the story, those from its start, or indices."""
    if args.numbers is not None:
        places = [args.numbers for _ in ids]
    else:
        starts = [int(counts_T.argmax()) for counts_T in story]
        if args.where == "prompt" and min(starts) <= opening:
            raise UsageError(
                "--positions prompt: a text has no instruction lines before its story; give a set that has them"
            )
        places = [
            list(range(start if args.where == "story" else 0, start if args.where == "prompt" else len(ids_T)))
            for ids_T, start in zip(ids, starts, strict=True)
        ]
    return Spot(args.where, places, places)


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Read pairs of prompts from a CSV or JSONL file.

    Raises:
        UsageError: for a file that is not there, cannot be read, or has no pair.
    """
    with readable(f"--pairs {path}", "give a CSV or JSONL file"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            pairs: list[Any] = list(csv.DictReader(text.splitlines()))
        else:
            pairs = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not pairs or not all(isinstance(pair, Mapping) for pair in pairs):
        raise UsageError(f"--pairs {path} has no pairs; give columns prompt, other_prompt, answer, other_answer")
    return pairs


def prompt_task(subject: Subject, args: PatchingArguments, several: bool) -> Task:
    """Return the task of prompts: two that one model reads, or one that two models read.

    Raises:
        UsageError: for an answer of several tokens, prompts of different lengths where positions must match, or a pair
            that leaves nothing to swap.
    """
    if args.pairs is None:
        pairs = [{key: getattr(args, key) for key in ("prompt", "other_prompt", "answer", "other_answer")}]
    else:
        pairs = read_pairs(Path(args.pairs))
        for number, pair in enumerate(pairs, start=1):
            check_pair(pair, several, f"--pairs {args.pairs}, pair {number}: ")
    with_other = [bool(pair.get("other_answer")) for pair in pairs]
    if any(with_other) != all(with_other):
        raise UsageError(
            f"--pairs {args.pairs}: {sum(with_other)} of {len(pairs)} pairs have an other_answer; give all or none"
        )
    firsts = [str(pair["prompt"]) for pair in pairs]
    seconds = [str(pair.get("other_prompt") or pair["prompt"]) for pair in pairs]
    stories = [str(pair.get("story") or "") for pair in pairs]
    donor_ids, recipient_ids = _prompt_ids(subject, firsts, stories), _prompt_ids(subject, seconds, stories)
    if max(map(len, [*donor_ids, *recipient_ids])) >= subject.window:
        raise UsageError(f"a prompt fills the window of {subject.window} tokens; give a shorter prompt")

    def answer_ids(prompts: Sequence[str], column: str) -> np.ndarray:
        return np.array(
            [_answer_id(subject, s or p, str(pair[column])) for p, s, pair in zip(prompts, stories, pairs, strict=True)]
        )

    first = DIFFERENCE if all(with_other) else LOG_PROBABILITY
    return PromptTask(
        donor_ids,
        recipient_ids,
        dict.fromkeys((first, PROBABILITY), np.ones(len(pairs))),
        {first: "nats", PROBABILITY: "probability"},
        _prompt_spots(donor_ids, recipient_ids, args),
        answers=answer_ids(firsts, "answer"),
        others=answer_ids(seconds, "other_answer") if all(with_other) else np.full(len(pairs), -1),
    )


def _prompt_ids(subject: Subject, prompts: Sequence[str], stories: Sequence[str]) -> list[np.ndarray]:
    """Return the ids of prompts; before the beginning of a story a prompt is an instruction, as in fine-tuning."""
    ids = subject.story_ids(prompts)
    if any(stories):
        asked, begun = instruct_prompts(subject.tokenizer, prompts), batch_encoder(subject.tokenizer)(list(stories))
        ids = [np.array([*a, *b]) if b else ids_T for ids_T, a, b in zip(ids, asked, begun, strict=True)]
    return ids


def _answer_id(subject: Subject, prompt: str, answer: str) -> int:
    """Return the one token that an answer is, directly after its prompt."""
    before, whole = batch_encoder(subject.tokenizer)([prompt, prompt + answer])
    if len(whole) == len(before) + 1 and whole[:-1] == before:
        if prompt[-1].isalnum() and answer[0].isalnum():
            word = prompt.split()[-1]
            note(f"note: {answer!r} continues the word {word!r}; for the next word give {' ' + answer!r}")
        return whole[-1]
    shared = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    tokens = ", ".join(repr(subject.tokenizer.decode([token])) for token in whole[shared:])
    hint = "" if answer.startswith(" ") else f", perhaps with the space before it ({' ' + answer!r})"
    raise UsageError(
        f"answer {answer!r} is not one token after {prompt[-20:]!r} but {len(whole) - shared} ({tokens}); "
        f"give an answer of one token{hint}"
    )


def _prompt_spots(
    donor_ids: Sequence[np.ndarray], recipient_ids: Sequence[np.ndarray], args: PatchingArguments
) -> list[Spot]:
    """Return the tokens that are swapped together: all or some of a prompt's, or each of them by itself."""
    count, lengths = len(donor_ids), [len(ids_T) for ids_T in donor_ids]
    if args.where == "last":
        return [Spot("last", [[-1]] * count, [[-1]] * count)]
    for number, (length, other) in enumerate(zip(lengths, map(len, recipient_ids), strict=True), start=1):
        if length != other:
            which = f" of pair {number}" if count > 1 else ""
            raise UsageError(
                f"--positions {args.where}: the prompts{which} have {length} and {other} tokens, so their positions do "
                "not match; give prompts of equal length, or --positions last"
            )
    if args.where == "different":
        both = zip(donor_ids, recipient_ids, strict=True)
        places = [np.flatnonzero(donor_T != recipient_T).tolist() for donor_T, recipient_T in both]
        if [] in places:
            raise UsageError(
                "--positions different: the prompts of a pair have the same tokens; give two prompts, or other "
                "positions"
            )
        return [Spot("different", places, places)]
    if args.where == "all":
        places = [list(range(length)) for length in lengths]
        return [Spot("all", places, places)]
    if args.numbers is not None:
        return [Spot(args.where, [args.numbers] * count, [args.numbers] * count)]
    if len(set(lengths)) > 1:
        raise UsageError(
            f"--positions each: the pairs have {min(lengths)} to {max(lengths)} tokens, so their positions do not "
            "match; give pairs of one length, or --positions last"
        )
    return [Spot(str(place), [[place]] * count, [[place]] * count) for place in range(lengths[0])]
