"""The examples of a fine-tuning: tokenized, packed if asked, in the order of all passes, with the run's plan."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from lm_trials.console import UsageError, note, progress
from lm_trials.data.datasets import DataSet, RawSource, dataset_of, find_prepared
from lm_trials.files import readable
from lm_trials.models.reference import chosen_window
from lm_trials.pairs.examples import ExampleStore, asked_of, choose_layout, make_examples
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, Layout, check_template, turn_end
from lm_trials.pairs.pairs import PREFERENCES, PROMPTS, PairSet
from lm_trials.stories.corpora import read_manifest
from lm_trials.tokens.phases import Passes, Phase
from lm_trials.tokens.tokenizers import load_tokenizer
from lm_trials.training.arrangements import arrange, example_part, open_table
from lm_trials.training.plan import Plan, blocks_per_update, settle_length, settle_schedule
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.tuning_flags import PairArguments, PairData
from lm_trials.training.tuning_run_arguments import SftRunArguments

PROMPT_WIDTH = 60
LARGEST_SHARE = 20  # percent; more would cost too many training examples
FEW_EXAMPLES = 20  # an interval over fewer is wide, and that over one does not exist
PACKED_TOGETHER = 1000  # trl packs each 1,000 examples by themselves; another number gives other rows
PACKED_AT_ONCE = 16 * PACKED_TOGETHER  # bounds the memory


@dataclass(frozen=True, kw_only=True)
class TokenizedPairs(ABC):
    """A data set of pairs and its tokens.

    Attributes:
        folder: of the tokens.
        max_length: most tokens of an example; of prompts that are answered, the model's positions.
    """

    pairs: PairSet
    folder: Path
    layout: Layout
    max_length: int

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The number of training examples, and of their tokens."""

    def prompt(self) -> str:
        """Return the first validation prompt, else training prompt, as one short line for a command."""
        splits = self.pairs.splits
        row = splits["validation" if len(splits["validation"]) else "train"][0]
        messages = [] if "text" in row else asked_of(row)[0]
        text = row["text"] if "text" in row else next((m["content"] for m in messages if m["role"] == "user"), "Hello")
        return shorten(text, PROMPT_WIDTH, placeholder="") or text.strip()[:PROMPT_WIDTH]

    def describe(self) -> dict[str, Any]:
        """Return the fields for `run.json` that identify the data."""
        manifest = read_manifest(self.folder, "chat_template")
        # The hash of all ids and masks: whatever determines them, it is seen. Examples of older versions have none.
        tokens = {"chat_template": manifest["chat_template"], "token_ids": manifest.get("token_ids")}
        return {**self.pairs.described, "examples": self.folder.name, "counts": self.counts, **tokens}


@dataclass(frozen=True, kw_only=True)
class Examples(TokenizedPairs):
    """The tokenized data set of a fine-tuning.

    Attributes:
        completion_only: leave prompts out of the loss.
        phases: which training examples are read when, and in which order; none: all, in the seeded order.
        metrics: what determines the metrics of these examples.
    """

    completion_only: bool
    phases: tuple[Phase, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def train(self) -> ExampleStore:
        """The training split."""
        return ExampleStore(self.folder, "train")

    @cached_property
    def validation(self) -> ExampleStore:
        """The validation split; it may be empty."""
        return ExampleStore(self.folder, "validation")

    @property
    def counts(self) -> dict[str, int]:
        """The number of training examples, and of their tokens."""
        return self.train.counts

    def describe(self) -> dict[str, Any]:
        """Return the fields for `run.json` that identify the data."""
        return {**super().describe(), **({"metrics": self.metrics} if self.metrics else {})}

    def rows(self, arguments: SftRunArguments) -> Rows:
        """Return the rows that batches are made of: labelled examples, or packed rows of them."""
        examples = self.train.labelled(self.completion_only)
        lengths_N, counted_N = self.train.lengths(self.completion_only)
        if not arguments.packing:
            return Rows(examples, lengths_N, counted_N)
        # Packed once: another order in each pass would change which examples share a row, and so the number of
        # updates.
        kept_K = self.phases[0].arrangements[0].kept_K if self.phases else None
        bins = pack_examples(lengths_N, self.max_length, arguments.packing_strategy, kept_K)
        numbers_N, starts_R = bins.values.to_numpy(), bins.offsets.to_numpy()[:-1]
        # The tokens stay on disk until a row is read: 31 MB of memory instead of 125 MB for 742,424 tokens.
        packed = Dataset(pa.table({"examples": bins})).with_transform(partial(packed_rows, examples=examples))
        return Rows(packed, *(np.add.reduceat(each_N[numbers_N], starts_R) for each_N in (lengths_N, counted_N)))


class Rows(NamedTuple):
    """N examples or packed rows, with their tokens and their tokens in the loss."""

    data: Dataset
    lengths_N: np.ndarray
    counted_N: np.ndarray


def pack_examples(
    lengths_N: np.ndarray, max_length: int, strategy: str, kept_K: np.ndarray | None = None
) -> pa.ListArray:
    """Return the example numbers in each packed row, by best fit up to `max_length` tokens; of `kept_K` or all.

    trl packs each example's number, repeated once per token, so that the tokens stay on disk: 742,424 tokens take 31 MB
    and 0.2 s instead of 125 MB and 1.9 s, with the same rows.

    >>> pack_examples(np.array([2, 3, 4, 2]), 5, "bfd").to_pylist()
    [[2], [1, 0], [3]]
    """
    numbers, sizes = [], []
    kept_K = np.arange(len(lengths_N)) if kept_K is None else kept_K
    lengths_N = lengths_N[kept_K]
    for first in range(0, len(lengths_N), PACKED_AT_ONCE):
        some_N = lengths_N[first : first + PACKED_AT_ONCE]
        tokens = np.repeat(np.arange(first, first + len(some_N), dtype=np.int32), some_N)
        ends = np.concatenate([[0], np.cumsum(some_N)]).astype(np.int32)
        rows = Dataset(pa.table({"input_ids": pa.ListArray.from_arrays(ends, tokens)}), fingerprint=f"numbers{first}")
        how = {"batch_size": PACKED_TOGETHER, "desc": "packing"}
        packed = pack_dataset(rows, max_length, strategy, how).with_format("arrow")[:]
        lengths = packed["seq_lengths"].combine_chunks()
        lengths_E = lengths.flatten().to_numpy()
        tokens = packed["input_ids"].combine_chunks().flatten().to_numpy()
        numbers.append(tokens[np.cumsum(lengths_E) - lengths_E])
        sizes.append(pc.list_value_length(lengths).to_numpy())
    ends = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, kept_K[np.concatenate(numbers)].astype(np.int32))


def packed_rows(batch: dict[str, list], examples: Dataset) -> dict[str, list]:
    """Return ids and labels of packed rows, and the lengths of their examples, which keep attention within each.

    >>> examples = Dataset.from_dict({"input_ids": [[2, 5], [2, 6, 7]], "labels": [[-100, 5], [-100, 6, 7]]})
    >>> packed_rows({"examples": [[1, 0]]}, examples)
    {'input_ids': [[2, 6, 7, 2, 5]], 'labels': [[-100, 6, 7, -100, 5]], 'seq_lengths': [[3, 2]]}
    """
    found = examples[list(chain.from_iterable(batch["examples"]))]
    rows: dict[str, list] = {"input_ids": [], "labels": [], "seq_lengths": []}
    parts = zip(found["input_ids"], found["labels"], strict=True)
    for numbers in batch["examples"]:
        ids, labels = zip(*islice(parts, len(numbers)), strict=True)
        rows["input_ids"].append(list(chain.from_iterable(ids)))
        rows["labels"].append(list(chain.from_iterable(labels)))
        rows["seq_lengths"].append([len(each) for each in ids])
    return rows


def open_examples(
    pair_args: PairArguments, arguments: SftRunArguments, tokenizer: PreTrainedTokenizerBase, config: Any
) -> Examples:
    """Open and tokenize the data set of a fine-tuning.

    In place, the tokenizer gets a chat template where it needs one, and `arguments.max_length` its default, so that
    a default and the same number given are one arm.

    Raises:
        UsageError: for a data set without pairs, conversations or texts; a layout that does not fit it; an example
            length beyond the model's positions, or too short for all examples; an order of packed rows; an unknown
            metric, or a filter that keeps nothing.
    """
    sorts = next((name for name in ("order_by", "order", "order_schedule") if getattr(pair_args, name)), None)
    if arguments.packing and sorts:
        raise UsageError(
            f"--packing True and --{sorts}: packing joins examples into rows by their lengths, and such rows have no "
            "order by a metric; remove one of them"
        )
    arguments.max_length = max_length = chosen_window(arguments.max_length, config, "--max_length")
    if arguments.chat_template_path:
        _check_layout_of_template(arguments.chat_template_path, pair_args.prompt_layout)
        template = _template(arguments.chat_template_path)
        check_template(tokenizer, template, f"--chat_template_path {arguments.chat_template_path}")
    dataset = dataset_of(pair_args)
    pairs = read_pairs(dataset, pair_args)
    if pairs.kind in PREFERENCES + PROMPTS:
        method = "dpo" if pairs.kind in PREFERENCES else "grpo"
        raise UsageError(
            f"--dataset_name {pairs.name} has {pairs.kind.replace('_', ' ')} and no completions; learn from them with "
            f"lm-trials align --method {method}, or give columns prompt and completion"
        )
    if arguments.chat_template_path:
        tokenizer.chat_template = template
    if pairs.kind == "conversations" and not tokenizer.chat_template:
        tokenizer.chat_template = STORY_CHAT_TEMPLATE
    layout = choose_layout(pairs, tokenizer, pair_args.prompt_layout)
    if arguments.chat_template_path:
        _check_layout_of_template(arguments.chat_template_path, layout)

    place = Path(pair_args.data_cache_dir) / pairs.described["name"]
    prepared = find_prepared(pairs.described["name"], place.parent) if isinstance(dataset, RawSource) else dataset
    table = open_table(pair_args, prepared or dataset)
    folder = make_examples(pairs, place, tokenizer, layout, max_length, pair_args.overlong, watch_tokens)
    if layout == "instruct":
        tokenizer.chat_template = STORY_CHAT_TEMPLATE  # gives the same ids, so that chat programs can use the model
    completion_only = arguments.completion_only_loss
    if completion_only and layout == "text":
        raise UsageError(
            f"--completion_only_loss True: {pairs.name} has texts without prompts; remove it, or give columns prompt "
            "and completion"
        )
    completion_only = layout != "text" if completion_only is None else completion_only
    examples = Examples(
        pairs=pairs, folder=folder, layout=layout, max_length=max_length, completion_only=completion_only
    )
    if not pair_args.phases:
        return examples
    part = example_part(pairs.name, examples.train, table)
    return replace(examples, phases=arrange(pair_args, [part], [1.0]), metrics=table.described)


def read_pairs(dataset: DataSet, pair_args: PairData, prompts: bool = False) -> PairSet:
    """Return the pairs of a data set, or its prompts with all columns; a note if few of a file are held out."""
    read = dataset.prompts if prompts else dataset.pairs
    pairs = read(lambda rows: progress(rows, f"reading {pair_args.dataset_name}", "rows"))
    if isinstance(dataset, RawSource) and dataset.source.kind != "hub" and not dataset.has_own_validation():
        note_few_examples(pairs.described["rows"], pair_args.validation_split_percentage)
    return pairs


def watch_tokens(rows: Iterable[Any], total: int, split: str) -> Iterable[Any]:
    """Show the progress of `make_examples`."""
    return progress(rows, f"tokenizing {split}", "examples", total)


def note_few_examples(rows: Mapping[str, int], percent: float | None) -> None:
    """Print a note if few rows of a file are held out and a larger share than `percent` (None: 1) would be better."""
    held_out, total = rows["validation"], sum(rows.values())
    better = min(math.ceil(100 * FEW_EXAMPLES / total), LARGEST_SHARE)
    if held_out < FEW_EXAMPLES and better > (percent or 1):
        note(
            f"note: {held_out} of {total:,} examples {'is' if held_out == 1 else 'are'} held out for validation; for "
            f"about {max(better * total // 100, 1)}, give --validation_split_percentage {better}"
        )


def _check_layout_of_template(path: str, layout: str) -> None:
    if layout not in ("auto", "chat"):
        raise UsageError(
            f"--chat_template_path {path} has no effect on the layout {layout}; remove it, or give --prompt_layout "
            "chat and prompts or messages"
        )


def _template(path: str) -> str:
    if path.endswith((".jinja", ".j2")):
        with readable(f"--chat_template_path {path}", "give a file"):
            template = Path(path).read_text(encoding="utf-8-sig")  # a byte order mark would be rendered
        if not template.strip():
            raise UsageError(f"--chat_template_path {path} is empty; write the template again")
        return template
    template = load_tokenizer(path).chat_template
    if not template:
        raise UsageError(f"--chat_template_path {path}: that tokenizer has no chat template; give another")
    return template


def choose_padding(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Set the pad token of a tokenizer and of the model's configuration, in place.

    Its own, else the unknown token (Llama), else EOS (GPT-2), which is trained all the same because labels are set by
    position.  No token is added: one more row of the embeddings would be another model, and adapters would not fit.
    """
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        spare = tokenizer.unk_token_id not in {*ends, None}
        tokenizer.pad_token = tokenizer.unk_token if spare else tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def end_at_turns(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Let a model end its texts, in transformers too, where its chat template ends an answer; in place.

    Gemma's `<end_of_turn>` is not EOS, and the generation settings of a pretrained Gemma name EOS alone.
    """
    if not tokenizer.chat_template:
        return
    with suppress(UsageError):  # a template that takes no question and answer
        named, end = model.generation_config.eos_token_id, turn_end(tokenizer)
        ends = named if isinstance(named, list) else [named]
        if end is not None and end not in ends:
            model.generation_config.eos_token_id = [*(number for number in ends if number is not None), end]


def plan_fine_tuning(
    arguments: SftRunArguments, pair_args: PairArguments, examples: Examples, rows: Rows
) -> tuple[Plan, Dataset]:
    """Return the plan, put its length into `arguments`, in place, and return the rows of all passes in order.

    Without other flags, each pass is a full shuffle by (data seed, pass).  The passes are one data set, read in
    sequence, so that a resumed run, or one with more processes, has the same examples in each update.

    Raises:
        UsageError: for epochs that do not make one update, or evaluations without validation examples.
    """
    per_step = blocks_per_update(arguments)
    passes = row_passes(len(rows.data), () if arguments.packing else examples.phases, per_step)
    if pair_args.order_schedule:
        settle_schedule(arguments, pair_args, passes)
    per_pass: int | None = int(passes.blocks_in(1))
    steps = settle_length(arguments, per_pass)
    check_held_out(arguments, examples.pairs.name, len(examples.validation))
    order = row_order(len(rows.data), steps * per_step, arguments.data_seed, passes)
    tokens, counted = (int(values_N[order].sum()) for values_N in (rows.lengths_N, rows.counted_N))
    per_pass = None if pair_args.order_schedule else per_pass
    plan = Plan(steps, per_step, examples.max_length, per_pass, num_tokens=tokens, num_completion_tokens=counted)
    return plan, rows.data.select(order)


def check_held_out(arguments: RunArguments, name: str, count: int) -> None:
    """Refuse evaluations during training of a data set without validation examples (UsageError)."""
    if not count and (arguments.eval_strategy != "no" or arguments.load_best_model_at_end):
        raise UsageError(
            f"--eval_strategy {arguments.eval_strategy.value}: {name} has no validation examples; give "
            "--validation_split_percentage 5, or remove it"
        )


def row_passes(num_rows: int, phases: tuple[Phase, ...] = (), rows_per_update: int = 1) -> Passes:
    """Return the passes of a fine-tuning over its rows; no phases: all rows, shuffled."""
    phases = phases or (Phase(),)
    sizes = [phase.arrangements[0].size(num_rows) for phase in phases]
    return Passes(phases, rows_per_update, lambda phase, number: sizes[phase])


def row_order(num_rows: int, count: int, data_seed: int, passes: Passes | None = None) -> np.ndarray:
    """Return the first `count` rows of as many passes as they take; by default each pass is shuffled anew.

    >>> order = row_order(3, 6, data_seed=0)
    >>> sorted(order[:3].tolist()) == sorted(order[3:].tolist()) == [0, 1, 2]
    True
    """
    passes = passes or row_passes(num_rows)
    orders = []
    for seed, read in passes.read(count):
        arrangement = passes.phases[seed.phase].arrangements[0]
        orders.append(arrangement.order(num_rows, data_seed, seed.number, 0, 0, *seed.of)[:read])
    return np.concatenate(orders)
