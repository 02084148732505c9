"""Subjects: the models that probes read, with their tokenizers and the stories in their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from lm_trials.console import UsageError, note
from lm_trials.data.datasets import dataset_of
from lm_trials.evaluation.checkpoints import Candidate, check_candidate, expand_models
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.models.reference import ModelReference, load_config, load_model, separator_of
from lm_trials.probing.flags import SubjectArguments, TextArguments, short_names
from lm_trials.stories.records import Record
from lm_trials.tokens.stores import opening_of
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

SHAPE = {
    "num_hidden_layers": ("layers", "depth"),
    "num_attention_heads": ("heads", "number of heads"),
    "hidden_size": ("dimensions", "width"),
    "vocab_size": ("tokens", "vocabulary"),
}
"""Numbers of a configuration that models set side by side may have to share: what they count, and one of what."""


@dataclass(frozen=True)
class Subject:
    """A model to be read, checked but not loaded.

    Attributes:
        candidate: what it is: reference, tokenizer, longest window, its `run.json`.
        label: what tables and figures call it.
    """

    candidate: Candidate
    label: str

    @property
    def reference(self) -> ModelReference:
        """Which model."""
        return self.candidate.reference

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What it reads with."""
        return self.candidate.tokenizer

    @property
    def config(self) -> Any:
        """The configuration of its decoder."""
        return load_config(self.reference).get_text_config()

    @property
    def window(self) -> int:
        """Most tokens that it is given; of a model whose layers slide a window over the text, no more than that holds.

        Beyond it a cache forgets, and an even look is another than at all tokens before.
        """
        sliding = getattr(self.config, "sliding_window", None)
        return min(self.candidate.block_size, sliding or self.candidate.block_size)

    @property
    def step(self) -> int | None:
        """Update at which a checkpoint was saved; of a finished run the last."""
        if self.reference.step is not None or self.candidate.run is None:
            return self.reference.step
        return self.candidate.run["outcome"].get("max_steps")

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return int(self.config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """Query heads of a block."""
        return int(self.config.num_attention_heads)

    def opening(self) -> list[int]:
        """Return the ids that a story begins with, as in its training."""
        return opening_of(self.tokenizer, separator_of(self.candidate.run))

    def story_ids(self, stories: Sequence[str]) -> list[np.ndarray]:
        """Return the (T,) ids of each story: its opening mark and its text, cut to the window."""
        encode, opening = batch_encoder(self.tokenizer), self.opening()
        return [np.array((opening + ids)[: self.window], dtype=np.int64) for ids in encode(list(stories))]


def find_subjects(
    args: SubjectArguments, all_checkpoints: bool = False, block_size: int | None = None
) -> list[Subject]:
    """Find the models and their tokenizers, without loading weights; the checkpoints of each run, if asked.

    Raises:
        UsageError: for a model that is not there, no causal language model, or one whose tokenizer is another's.
    """
    how = EvaluationArguments(tokenizer_name=args.tokenizer_name, block_size=block_size)
    names = expand_models(args.model_name_or_path, all_checkpoints)
    return [Subject(check_candidate(name, how), label) for name, label in zip(names, short_names(names), strict=True)]


def run_folder(subject: Subject) -> str:
    """Return the folder of the run that a checkpoint is of; of another model its own."""
    path = Path(subject.reference.path).resolve()
    return str(path.parent if subject.reference.step is not None else path)


def run_names(subjects: Sequence[Subject]) -> list[str]:
    """Return the run that each model or checkpoint is of: its folder, by a name that tells it from the others."""
    folders = [run_folder(subject) for subject in subjects]
    different = list(dict.fromkeys(folders))
    names = dict(zip(different, short_names(different), strict=True))
    return [names[folder] for folder in folders]


def load_subject(subject: Subject, args: SubjectArguments) -> torch.nn.Module:
    """Load a model as it is to be read: an adapter unmerged on its base, quantized if asked, in evaluation mode.

    Raises:
        UsageError: where it cannot be had, or not so on this machine.
    """
    device, dtype = device_of(args), getattr(torch, args.dtype)
    if not args.load_in_8bit and not args.load_in_4bit:
        return load_model(subject.reference, dtype).to(device)
    from lm_trials.models.adapters import quantization  # peft takes two seconds to import

    how = quantization(args.load_in_8bit, args.load_in_4bit, device.type, dtype)
    return load_model(subject.reference, dtype, how, device_map={"": device})


def device_of(args: Any) -> torch.device:
    """Return where models run, by the flag `use_cpu`."""
    if args.use_cpu or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator()  # type: ignore[return-value]


def untrained(subject: Subject, args: SubjectArguments, seed: int | None = None) -> torch.nn.Module:
    """Return a model of a subject's shape with random weights, the control that shows what the shape alone does.

    An adapter's has the base's shape and no adapter.
    """
    model = random_weights(load_config(subject.reference), args.seed if seed is None else seed)
    return with_weights_in(model.to(device_of(args)), getattr(torch, args.dtype)).eval()


def random_weights(config: PretrainedConfig, seed: int) -> torch.nn.Module:
    """Return a model of a configuration with random weights; torch's own generator stays as it is."""
    verbosity = transformers_logging.get_verbosity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers_logging.set_verbosity_error()
        try:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        finally:
            transformers_logging.set_verbosity(verbosity)


def with_weights_in(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Give a model's weights another type, in place, as `from_pretrained` does.

    `model.to(dtype)` rounds its buffers too: rotary frequencies in bfloat16 are another model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def check_alike(subjects: Sequence[Subject], same: Sequence[str] = ("num_hidden_layers",)) -> None:
    """Check that models can be set side by side: tokens one by one, and what `same` names of their configurations.

    Args:
        same: of `SHAPE`.

    Raises:
        UsageError: naming two models that cannot.
    """
    first = subjects[0]
    for other in subjects[1:]:
        pair = f"{first.reference.name} and {other.reference.name}"
        if tokenizer_hash(first.tokenizer) != tokenizer_hash(other.tokenizer):
            raise UsageError(
                f"{pair} have different tokenizers, so their tokens are not the same; name models of one tokenizer"
            )
        for name in same:
            ours, theirs = (getattr(subject.config, name) for subject in (first, other))
            if ours != theirs:
                what, one = SHAPE[name]
                raise UsageError(
                    f"{first.reference.name} has {ours} {what} and {other.reference.name} {theirs}, so none stands "
                    f"beside another; name models of one {one}"
                )


def texts_digest(records: Sequence[Record]) -> str:
    """Return the SHA-256 of the records' texts, in their order.

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
    """Read the texts, as records with their features, each once: a copy is no second sample, and would stand in both
    halves of a data set that is split.  Sets `texts_sha256` of `args`.

    Raises:
        UsageError: for a data set that is not there, or has no text.
    """
    found = dataset_of(args).select(args.dataset_split, args.max_eval_samples)
    there = [record for record in found.read() if record["story"].strip()]
    first: dict[str, Record] = {}
    for record in there:
        first.setdefault(record["story"].strip(), record)
    records = list(first.values())
    if len(records) < len(there):
        copies = f"{len(there) - len(records):,} of {len(there):,} texts of {args.dataset_name}"
        note(f"{copies} are copies; each is read once")
    if not records:
        raise UsageError(f"--dataset_name {args.dataset_name} has no text; give a data set with at least one")
    args.texts_sha256 = texts_digest(records)
    return records
