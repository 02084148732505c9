"""The data of a run, for training and evaluation: token stores, protocol sets or streams."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, note
from lm_trials.data.datasets import DataSet, dataset_of, open_prepared
from lm_trials.data.documents import TOKENS_FROM, Documents, Tokenising
from lm_trials.protocols.set_stores import SetStore
from lm_trials.tokens.blocks import JoinedStores, RunBlocks, TrainingBlocks
from lm_trials.tokens.mixtures import Mix, mixed
from lm_trials.tokens.phases import Phase
from lm_trials.tokens.stores import TokenStore
from lm_trials.tokens.streams import STREAM_BUFFER, RecordStream, StreamBlocks
from lm_trials.training.arrangements import Part, arrange, open_table, part_of
from lm_trials.training.flags import DataArguments

Store = TokenStore | SetStore | JoinedStores


@dataclass(frozen=True)
class RunStores:
    """The data of a run.

    Attributes:
        parts: training data, one part or those of a mixture.
        mix: shares of the parts; None for one part.
        validation: validation documents, of a mixture in its proportions.
        named: further stores to evaluate: the parts of a mixture, and the training records of a part after the first
            that a phase leaves out; or, with `--eval_datasets`, the train and test splits and each of those data sets.
        described: fields for `run.json` that identify the training data.
        sets: names of data sets whose validation records have prompts.
        phases: which training records are read when, and in which order; none: all, in the seeded order.
        metrics: the metrics of the parts' training records, where they order or filter them.
    """

    parts: tuple[Documents, ...]
    mix: Mix | None
    validation: Store
    named: dict[str, Store] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    metrics: tuple[Part, ...] = ()

    def check_unchanged(self) -> None:
        """Check that the prepared data is unchanged; see `Documents.check_unchanged`."""
        for part in self.parts:
            part.check_unchanged()

    @property
    def streamed(self) -> bool:
        """Whether a part is a stream, of unknown length."""
        return any(isinstance(part.train, RecordStream) for part in self.parts)

    @property
    def num_documents(self) -> int | None:
        """Documents of the training splits that are read; None for a stream."""
        return None if self.streamed else sum(map(len, self._lengths()))

    @property
    def num_tokens(self) -> int | None:
        """Tokens of these documents; None for a stream."""
        return None if self.streamed else sum(int(lengths_K.sum(dtype=np.int64)) for lengths_K in self._lengths())

    def _lengths(self) -> list[np.ndarray]:
        """Return the lengths of the documents that a filter keeps of each part; the filters of a schedule vary."""
        stores: list[Any] = [part.train for part in self.parts]
        if len(self.phases) != 1:
            return [store.lengths_N for store in stores]
        arrangements = zip(stores, self.phases[0].arrangements, strict=True)
        return [store.lengths_N if (K := each.kept_K) is None else store.lengths_N[K] for store, each in arrangements]

    def blocks(
        self, data_args: DataArguments, num_blocks: int, data_seed: int, blocks_per_update: int = 1
    ) -> RunBlocks:
        """Return the blocks of a whole run, in its order.

        Raises:
            UsageError: if a pass does not fill one block.
        """
        stores = [part.train for part in self.parts]
        size: Any = data_args.block_size
        how = data_args.shuffle_buffer_size, data_args.attention_across_documents, self.mix
        if self.streamed:
            return StreamBlocks(stores, size, num_blocks, data_seed, *how)
        return TrainingBlocks(stores, size, num_blocks, data_seed, *how, self.phases, blocks_per_update)


def open_stores(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, num_workers: int = 0) -> RunStores:
    """Open `--dataset_name` and `--eval_datasets`, tokenizing them where needed.

    For a stream, `data_args.shuffle_buffer_size` gets its default, in place.

    Raises:
        UsageError: for an unknown name; a protocol set of another tokenizer or an older corpus; an empty split;
            shares that do not match the parts; an unknown metric, or a filter that keeps nothing.
    """
    dataset = dataset_of(data_args)
    tables = [open_table(data_args, member) for member in dataset.members]  # before anything is tokenized
    named_sets = _named_sets(data_args, dataset)
    if data_args.streaming != "False":
        data_args.shuffle_buffer_size = data_args.shuffle_buffer_size or STREAM_BUFFER
        if num_workers:  # workers are forked, and tokenizers warns about threads used before
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    marks = data_args.append_eos, data_args.document_separator
    how = Tokenising(*marks, data_args.streaming, data_args.max_eval_samples)
    parts = tuple(member.documents(tokenizer, how) for member in dataset.members)
    if len({part.name for part in parts}) < len(parts):  # files of one name in several folders
        members = zip(parts, dataset.members, strict=True)
        parts = tuple(replace(part, name=member.full_label) for part, member in members)
    mix = Mix(dataset.weights, data_args.data_mix_unit, data_args.stop_when) if len(parts) > 1 else None
    named: dict[str, Any] = {part.name: part.validation for part in parts} if mix else {}
    if named_sets:
        named |= {"train": parts[0].train, "test": parts[0].test()}
        named |= {name: other.documents(tokenizer, how).validation for name, other in named_sets.items()}
    validation: Store = parts[0].validation
    described = dict(parts[0].described)
    if mix:  # all parts are tokenized in the same way
        shared = {key: described[key] for key in TOKENS_FROM}
        own = {p.name: {k: v for k, v in p.described.items() if k not in TOKENS_FROM} for p in parts}
        described = {**shared, "parts": own}
        validation = _in_proportion([part.validation for part in parts], mix)
    metrics: list[Part] = []
    if data_args.phases:
        trained: list[Any] = [part.train for part in parts]
        of_part = zip(parts, trained, tables, strict=True)
        metrics = [part_of(part.name, train.record_ids(), train.lengths_N, table) for part, train, table in of_part]
        found = {part.name: table.described for part, table in zip(parts, tables, strict=True) if table.described}
        described |= {"metrics": found if mix else found[parts[0].name]} if found else {}
    phases = arrange(data_args, metrics, dataset.weights, mix)
    # What is read in some updates only, as facts, is learned and forgotten: its own records show it.
    left_out = [place for place in range(1, len(parts)) if any(place not in phase.places for phase in phases)]
    named |= {f"{parts[place].name}-train": parts[place].train for place in left_out}
    sets = tuple(name for name, other in {dataset.name: dataset, **named_sets}.items() if other.has_prompts)
    return RunStores(parts, mix, validation, named, described, sets, phases, tuple(metrics))


def _named_sets(data_args: DataArguments, dataset: DataSet) -> dict[str, DataSet]:
    """Return the data sets of `--eval_datasets` by name."""
    place = data_args.data_cache_dir
    names = [name.strip() for name in (data_args.eval_datasets or "").split(",") if name.strip()]
    for name in names:
        if Path(name).name != name or name in ("train", "test"):
            raise UsageError(f"--eval_datasets {name}: give names of data sets in {place}, not paths or splits")
    named = {name: open_prepared(name, place, "eval_datasets") for name in names}
    if named and (data_args.streaming != "False" or len(dataset.members) > 1):
        raise UsageError(
            f"--eval_datasets {data_args.eval_datasets} needs one prepared data set and --streaming False; remove it: "
            "each part of a mixture is evaluated anyway"
        )
    return named


def _in_proportion(stores: list[Any], mix: Mix) -> JoinedStores:
    """Return the documents of several stores in the mixture's proportions, until the first store ends."""
    firsts = np.cumsum([0, *map(len, stores)])
    numbers = [range(first, first + len(store)) for first, store in zip(firsts, stores, strict=False)]
    lengths = np.concatenate([store.lengths_N for store in stores]).tolist()
    size = lengths.__getitem__ if mix.unit == "tokens" else None
    return JoinedStores(stores, np.array(list(mixed(numbers, mix.weights, size=size))))


def sets_to_write_for(stores: RunStores, data_args: DataArguments, positions: int | None) -> tuple[str, ...]:
    """Return the data sets whose prompts are shorter than the model's positions, and warn about the others."""
    if not data_args.generate_every or positions is None:
        return stores.sets
    chosen = []
    for name in stores.sets:
        store: Any = stores.named.get(name, stores.validation)  # a protocol set's, with prompts
        longest = max(len(store.prompt(n)) for n in range(min(len(store), data_args.num_generations)))
        if longest < positions:
            chosen.append(name)
        else:
            note(
                f"note: no stories are generated for {name}: a prompt has {longest} tokens, as many as the model has "
                f"positions ({positions}) or more"
            )
    return tuple(chosen)
