"""Outputs: what each checkpoint writes, and its losses on common stories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lm_trials.estimates import Estimate
from lm_trials.evaluation.example_losses import example_sums, loss_estimates
from lm_trials.evaluation.feature_scores import cut_story, next_example_begins
from lm_trials.evaluation.losses import StoryLoss, story_losses
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller, trained_mode
from lm_trials.evaluation.summary import LossSummary, record_documents
from lm_trials.models.reference import separator_of
from lm_trials.pairs.examples import ExampleStore
from lm_trials.probing.subjects import Subject
from lm_trials.stories.records import Record
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder
from lm_trials.training.data_order import DataOrder

BATCH = 64  # texts generated at once; does not change them


@dataclass(frozen=True)
class Prompts:
    """What the checkpoints of a run are asked to continue; an empty text is the beginning of a story."""

    texts: Sequence[str]
    keys: Sequence[str]


def find_prompts(order: DataOrder, run: dict[str, Any], count: int) -> Prompts:
    """Return prompts as in the run's training: of its validation records, else of its training records.

    Those of a mixture are its first part's.  With fewer records than `count` they repeat, with other random numbers.  A
    pretraining on plain stories has none: each text begins like a story.
    """
    member, mode = order.members[0], trained_mode(run) or "completion"
    texts: list[str] = []
    if member.has_prompts or mode != "completion":
        prepared = member.as_prepared().texts()
        for split in ("validation", "train"):
            if not texts:
                rows = min(count, prepared.num_rows[split])
                texts = [text.prompt for text in prepared.read(split, 0, rows)]
    return Prompts(list(islice(cycle(texts or [""]), count)), [str(number) for number in range(count)])


def write_texts(
    model: PreTrainedModel, subject: Subject, prompts: Prompts, max_new_tokens: int, sampling: Sampling
) -> list[str]:
    """Return the texts of a checkpoint; their random numbers depend on the seed and the key of the prompt alone."""
    run = subject.candidate.run
    mode = trained_mode(run) or "completion"
    teller = Storyteller(subject.reference.name, model, subject.tokenizer, mode, separator_of(run))
    ids = teller.prompts(prompts.texts)
    length = min(max_new_tokens, teller.room(ids))
    stories = teller.write(
        ids, prompts.keys, length, sampling, BATCH, ended=next_example_begins, by_length=True,
        description=f"{subject.label}: texts",
    )  # fmt: skip
    return [cut_story(str(subject.tokenizer.decode(story, skip_special_tokens=True))) for story in stories]


@dataclass(frozen=True)
class Losses:
    """The losses of a checkpoint on N stories or completions.

    Attributes:
        estimates: by slice and metric.
        sums_NK: nats, tokens and correct tokens of each, and perhaps more.
        slices: those that each belongs to.
    """

    estimates: dict[tuple[str, str], Estimate]
    sums_NK: np.ndarray
    slices: list[tuple[str, ...]]


def story_sums(
    model: PreTrainedModel, subject: Subject, records: Sequence[Record], by: Sequence[str], batch_size: int, seed: int
) -> Losses:
    """Return the losses of stories, as `lm-trials evaluate` computes them."""
    candidate = subject.candidate
    marks = document_marks(subject.tokenizer, candidate.append_eos, separator_of(candidate.run))
    documents = record_documents(records, batch_encoder(subject.tokenizer), marks, by)
    summary, scored = LossSummary(seed), list[StoryLoss]()
    for story in story_losses(model, documents, candidate.block_size, batch_size=batch_size):
        summary.add(story)
        if story.tokens:
            scored.append(story)
    summary.drop_unknown_features()
    found = {(name, metric): one for name in summary.tokens for metric, one in summary.estimates(name).items()}
    sums_NK = np.array([(story.nats, story.tokens, story.correct) for story in scored], dtype=np.float64)
    return Losses(found, sums_NK, [story.document.groups for story in scored])


def completion_sums(
    model: PreTrainedModel, store: ExampleStore, limit: int | None, batch_size: int, seed: int
) -> Losses:
    """Return the losses of the completions of a fine-tuning's examples, as its training evaluates them."""
    sums_NK = example_sums(model, store, limit, batch_size)
    found = {("all", metric): one for metric, one in loss_estimates(sums_NK, seed)["completion"].items()}
    return Losses(found, sums_NK[:, :3], [("all",)] * len(sums_NK))
