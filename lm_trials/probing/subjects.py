"""Subjects: the models that probes read, with their tokenizers and tokenized stories."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm_trials.console import UsageError, note
from lm_trials.data.datasets import dataset_of
from lm_trials.evaluation.checkpoints import Candidate, check_candidate, expand_models
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.evaluation.own_data import choose_dataset
from lm_trials.models.quantization import quantization
from lm_trials.models.reference import ModelReference, default_device, load_config, load_on, separator_of
from lm_trials.models.shapes import build_model, text_config
from lm_trials.probing.flags import SubjectArguments, TextArguments, short_names
from lm_trials.shared_flags import Device
from lm_trials.stories.records import Record
from lm_trials.tokens.stores import opening_of
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

SHAPE = {
    "num_hidden_layers": ("layers", "depth"),
    "num_attention_heads": ("heads", "number of heads"),
    "hidden_size": ("dimensions", "width"),
    "vocab_size": ("tokens", "vocabulary"),
}
"""Configuration values that compared models may have to share: what they count, and the name of the quantity."""
FAR_FROM_ANY_RUNS_SEED = 1 << 20


@dataclass(frozen=True)
class Subject:
    """A model to be probed, checked but not loaded.

    Attributes:
        candidate: its reference, tokenizer, longest window and `run.json`.
        label: its name in tables and figures.
    """

    candidate: Candidate
    label: str

    @property
    def reference(self) -> ModelReference:
        """The model's reference."""
        return self.candidate.reference

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.candidate.tokenizer

    @property
    def config(self) -> Any:
        """The configuration of the model's decoder."""
        return text_config(load_config(self.reference))

    @property
    def window(self) -> int:
        """Most tokens of a text: the block size, and at most the window of sliding-window attention.

        Beyond that window a cache forgets tokens, and uniform attention is no longer over all earlier tokens.
        """
        sliding = getattr(self.config, "sliding_window", None)
        return min(self.candidate.block_size, sliding or self.candidate.block_size)

    @property
    def step(self) -> int | None:
        """Update at which a checkpoint was saved; of a finished run, the last update."""
        if self.reference.step is not None or self.candidate.run is None:
            return self.reference.step
        return self.candidate.run["outcome"].get("max_steps")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """Query heads of a block; 0 without attention."""
        return int(getattr(self.config, "num_attention_heads", 0))

    def opening(self) -> list[int]:
        """Return the ids before each story, as in the model's training."""
        return opening_of(self.tokenizer, separator_of(self.candidate.run))

    def story_ids(self, stories: Sequence[str]) -> list[np.ndarray]:
        """Return the (T,) ids of each story: its opening and its text, truncated to the window."""
        encode, opening = batch_encoder(self.tokenizer), self.opening()
        return [np.array((opening + ids)[: self.window], dtype=np.int64) for ids in encode(list(stories))]


def find_subjects(
    args: SubjectArguments, all_checkpoints: bool = False, block_size: int | None = None
) -> list[Subject]:
    """Find the models, or all checkpoints of each run, and their tokenizers, without loading weights.

    Raises:
        UsageError: for a model that is missing, is not a causal language model, or does not fit its tokenizer.
    """
    quantized(args)  # refused before texts are read
    how = EvaluationArguments(tokenizer_name=args.tokenizer_name, block_size=block_size)
    names = expand_models(args.model_name_or_path, all_checkpoints)
    return [Subject(check_candidate(name, how), label) for name, label in zip(names, short_names(names), strict=True)]


def run_folder(subject: Subject) -> str:
    """Return the folder of a checkpoint's run, or the model's own folder."""
    path = Path(subject.reference.path).resolve()
    return str(path.parent if subject.reference.step is not None else path)


def run_names(subjects: Sequence[Subject]) -> list[str]:
    """Return a unique short name of each model's run."""
    folders = [run_folder(subject) for subject in subjects]
    different = list(dict.fromkeys(folders))
    names = dict(zip(different, short_names(different), strict=True))
    return [names[folder] for folder in folders]


def load_subject(subject: Subject, args: SubjectArguments) -> PreTrainedModel:
    """Load a model in evaluation mode: an adapter unmerged on its base, quantized if requested.

    Raises:
        UsageError: if it cannot be loaded, or not in this form on this machine.
    """
    return load_on(default_device(args.use_cpu), subject.reference, getattr(torch, args.dtype), quantized(args))


def quantized(args: SubjectArguments) -> BitsAndBytesConfig | None:
    """Return how the weights are quantized; None for full precision; a UsageError where this device cannot."""
    device, dtype = default_device(args.use_cpu), getattr(torch, args.dtype)
    return quantization(args.load_in_8bit, args.load_in_4bit, device.type, dtype)


def on_device(model: PreTrainedModel, args: Device) -> PreTrainedModel:
    """Move a model to the device of the flag `use_cpu`."""
    module: torch.nn.Module = model  # mypy cannot read the decorator of `PreTrainedModel.to`
    module.to(default_device(args.use_cpu))
    return model


def untrained(subject: Subject, args: SubjectArguments, seed: int | None = None) -> PreTrainedModel:
    """Return a model of a subject's shape with random weights and without adapter: the control for the shape."""
    config = load_config(subject.reference)
    model = build_model(config, args.seed if seed is None else seed, config.dtype or torch.float32)
    return with_weights_in(on_device(model, args), getattr(torch, args.dtype)).eval()


def unrelated(subject: Subject, args: SubjectArguments) -> PreTrainedModel:
    """Return an untrained model that is also the initial model of no run, and so similar to none."""
    return untrained(subject, args, FAR_FROM_ANY_RUNS_SEED + args.seed)


def with_weights_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert a model's weights to another data type in place, as `from_pretrained` does.

    `model.to(dtype)` would round the buffers too, and rotary frequencies in bfloat16 change the model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def check_alike(subjects: Sequence[Subject], same: Sequence[str] = ("num_hidden_layers",)) -> None:
    """Check that models have the same tokens and the same configuration values `same` (of `SHAPE`).

    Raises:
        UsageError: for the first model that differs.
    """
    first = subjects[0]
    for other in subjects[1:]:
        pair = f"{first.reference.name} and {other.reference.name}"
        if tokenizer_hash(first.tokenizer) != tokenizer_hash(other.tokenizer):
            raise UsageError(f"{pair} have different tokenizers; use models with the same tokenizer")
        for name in same:
            ours, theirs = (getattr(subject.config, name, None) for subject in (first, other))
            if ours != theirs:
                what, quantity = SHAPE[name]
                raise UsageError(
                    f"{first.reference.name} has {ours} {what} and {other.reference.name} {theirs}, so they cannot be "
                    f"compared; use models of the same {quantity}"
                )


def choose_texts(texts: TextArguments, models: SubjectArguments) -> None:
    """Set the default of `--dataset_name`, in place: the data of the first model's run (see `choose_dataset`)."""
    texts.dataset_name = texts.dataset_name or choose_dataset(texts, models.model_name_or_path[0])


def texts_digest(records: Sequence[Record]) -> str:
    """Return the SHA-256 of the records' texts in order.

    >>> from lm_trials.stories.records import make_record
    >>> ab, a_b = [make_record("ab")], [make_record("a"), make_record("b")]
    >>> texts_digest(ab) == texts_digest(ab), texts_digest(ab) == texts_digest(a_b)
    (True, False)
    """
    digest = hashlib.sha256()
    for record in records:
        text = record["story"].encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


def read_stories(args: TextArguments) -> list[Record]:
    """Read the texts as records, without duplicates, and set `texts_sha256` of `args`.

    A duplicate is not an independent sample, and could be in both halves of a data set that is split.

    Raises:
        UsageError: for a missing data set, or one without text.
    """
    found = dataset_of(args).select(args.dataset_split, args.max_eval_samples)
    there = [record for record in found.read() if record["story"].strip()]
    first: dict[str, Record] = {}
    for record in there:
        first.setdefault(record["story"].strip(), record)
    records = list(first.values())
    if duplicates := len(there) - len(records):
        note(f"{args.dataset_name}: {duplicates:,} of {len(there):,} texts are duplicates; each text is read once")
    if not records:
        raise UsageError(f"--dataset_name {args.dataset_name} has no text; choose a data set with text")
    args.texts_sha256 = texts_digest(records)
    return records
