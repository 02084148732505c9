"""The loss and perplexity of each text under a model, as two more metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm_trials.evaluation.checkpoints import check_candidate
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.losses import check_causal, story_losses
from lm_trials.evaluation.summary import record_documents
from lm_trials.files import weights_digest
from lm_trials.models.reference import ModelReference, default_device, load_on, separator_of
from lm_trials.stories.records import Record
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

VERSION = 1


def weights_of(reference: ModelReference) -> list[str] | str:
    """Return the digests of a local model's weights, of an adapter also its base's; of a Hub model, its name."""
    folders = [Path(place) for place in (reference.path, reference.base) if place and Path(place).is_dir()]
    return [weights_digest(folder) for folder in folders] or reference.name


class ModelLosses:
    """A model and its tokenizer, which score texts as `lm-trials evaluate` does, each text alone.

    Raises:
        UsageError: for a model that cannot be loaded, or has no next-token loss.
    """

    def __init__(self, name: str, use_cpu: bool = False, batch_size: int = 16) -> None:
        self.candidate = check_candidate(name, EvaluationArguments(model_name_or_path=[name]))
        self.batch_size = batch_size
        self.model = load_on(default_device(use_cpu), self.candidate.reference)
        check_causal(self.model, name)

    def described(self) -> dict[str, dict[str, Any]]:
        """Return what determines the losses; a local model is named by its weights, whatever its folder."""
        reference, candidate = self.candidate.reference, self.candidate
        settings = {
            "version": VERSION,
            "weights": weights_of(reference),
            "tokenizer_hash": tokenizer_hash(candidate.tokenizer),
            "block_size": candidate.block_size,
            "append_eos": candidate.append_eos,
            "document_separator": separator_of(candidate.run),
        }
        return {"loss": settings, "perplexity": settings}

    def measure(self, records: Iterable[Record]) -> Iterator[dict[str, float]]:
        """Yield the loss (nats per token) and the perplexity of each record; nan for a text of no scored token."""
        candidate = self.candidate
        marks = document_marks(candidate.tokenizer, candidate.append_eos, separator_of(candidate.run))
        documents = record_documents(records, batch_encoder(candidate.tokenizer), marks)
        for story in story_losses(self.model, documents, candidate.block_size, batch_size=self.batch_size):
            loss = story.nats / story.tokens if story.tokens else math.nan
            yield {"loss": loss, "perplexity": math.exp(loss)}
