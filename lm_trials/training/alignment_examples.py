"""The data of an alignment: preferences, or prompts with the columns that rewards read, tokenized and in order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from lm_trials.console import UsageError
from lm_trials.data.datasets import dataset_of
from lm_trials.models.reference import chosen_window, positions_of, read_run
from lm_trials.pairs.examples import PromptStore, asked_of, choose_layout, make_examples
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE
from lm_trials.pairs.pairs import PREFERENCES, PairSet
from lm_trials.training.alignment_run_arguments import DpoRunArguments, GrpoRunArguments
from lm_trials.training.initial import InitialModel
from lm_trials.training.plan import Plan, blocks_per_update, settle_length
from lm_trials.training.tuning_examples import (
    TokenizedPairs,
    check_held_out,
    read_pairs,
    row_order,
    watch_tokens,
)
from lm_trials.training.tuning_flags import PairData

LONGEST_COMPLETION = 256  # trl's default
# Columns that trl or this module gives to rewards or to the Trainer under these names, or reads as images.
TAKEN = {
    *("prompt_ids", "prompts", "completions", "completion_ids", "image", "images"),
    *("trainer_state", "log_extra", "log_metric"),
}


@dataclass(frozen=True, kw_only=True)
class AlignmentData(TokenizedPairs):
    """The tokenized data set of an alignment."""

    @cached_property
    def train(self) -> PromptStore:
        """The training split."""
        return PromptStore(self.folder, "train")

    @cached_property
    def validation(self) -> PromptStore:
        """The validation split; it may be empty."""
        return PromptStore(self.folder, "validation")

    @property
    def counts(self) -> dict[str, int]:
        """The number of training examples, and of their tokens."""
        return self.train.counts

    def asked_rows(self, split: str) -> Dataset:
        """Return a split's rows with the columns that rewards read, `prompt` (text or messages) and `prompt_ids`."""
        ids = getattr(self, split).rows.select_columns(["prompt_ids"])
        rows = concatenate_datasets([self.pairs.splits[split], ids], axis=1)
        return rows.with_transform(partial(with_prompts, names=self.pairs.manifest.get("columns", ())))


def with_prompts(batch: dict[str, list[Any]], names: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Return a batch of rows with the columns `names`, conversations with the messages to answer as their prompt.

    >>> messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    >>> with_prompts({"messages": [messages], "num_prompt": [0]})["prompt"]
    [[{'role': 'user', 'content': 'Hi'}]]
    >>> with_prompts({"prompt": ["Use cat."], "columns": ['{"words": ["cat"]}']}, names=["words", "city"])
    {'prompt': ['Use cat.'], 'words': [['cat']], 'city': [None]}
    """
    if "columns" in batch:
        given = [json.loads(columns) for columns in batch["columns"]]
        own = {name: values for name, values in batch.items() if name not in ("columns", "further")}
        return own | {name: [of.get(name) for of in given] for name in names}
    if "prompt" in batch:
        return batch
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return {**batch, "prompt": [asked_of(row)[0] for row in rows]}


def open_alignment(
    data_args: PairData, arguments: DpoRunArguments | GrpoRunArguments, base: InitialModel
) -> AlignmentData:
    """Open and tokenize the data set of an alignment.

    In place, the tokenizer gets a chat template where it needs one, and `arguments` the default of `max_length`, or of
    `max_completion_length`.

    Raises:
        UsageError: for a data set without preferences, or without prompts; a layout that does not fit it; prompts that
            leave no room for a completion.
    """
    tokenizer = base.tokenizer
    is_dpo = isinstance(arguments, DpoRunArguments)
    if isinstance(arguments, DpoRunArguments):
        arguments.max_length = chosen_window(arguments.max_length, base.config, "--max_length")
    pairs = read_pairs(dataset_of(data_args), data_args, prompts=not is_dpo)
    check_kind(pairs, is_dpo)
    conversations = "conversation" in pairs.kind
    if conversations and not tokenizer.chat_template:
        tokenizer.chat_template = STORY_CHAT_TEMPLATE
    asked = data_args.prompt_layout
    layout = choose_layout(pairs, tokenizer, trained_layout(base) if asked == "auto" and not conversations else asked)
    place = Path(data_args.data_cache_dir) / pairs.described["name"]
    longest = arguments.max_length if isinstance(arguments, DpoRunArguments) else None
    folder = make_examples(pairs, place, tokenizer, layout, longest, data_args.overlong, watch_tokens, not is_dpo)
    if layout == "instruct":
        tokenizer.chat_template = STORY_CHAT_TEMPLATE  # gives the same ids, so that chat programs can use the model
    positions = positions_of(base.config)
    data = AlignmentData(pairs=pairs, folder=folder, layout=layout, max_length=longest or positions or 0)
    if isinstance(arguments, GrpoRunArguments):
        settle_completions(arguments, data, positions)
        data = replace(data, max_length=data.max_length or arguments.max_completion_length or 0)
    return data


def check_kind(pairs: PairSet, is_dpo: bool) -> None:
    """Refuse a data set without what the method reads (UsageError)."""
    if is_dpo and pairs.kind not in PREFERENCES:
        raise UsageError(
            f"--method dpo: {pairs.name} has {pairs.kind.replace('_', ' ')} and no columns chosen and rejected; make "
            "preferences with lm-trials prepare preferences, or learn from these with lm-trials tune"
        )
    if pairs.kind == "texts":
        raise UsageError(f"--method grpo: {pairs.name} has texts and no prompts; give a data set with a column prompt")
    columns = {*pairs.manifest.get("columns", ()), *pairs.splits["train"].column_names}
    if not is_dpo and (taken := sorted(columns & TAKEN)):
        raise UsageError(
            f"--method grpo: {pairs.name} has a column {taken[0]}, a name that the Trainer gives to rewards or reads "
            "itself; rename or remove it"
        )


def trained_layout(base: InitialModel) -> Any:
    """Return the layout that the model was fine-tuned in; auto where there is none."""
    assert base.reference is not None  # choose_start sets it
    run = read_run(Path((base.adapter or base.reference).path))
    layout = run["outcome"].get("prompt_layout") if run else None
    return layout if layout in ("instruct", "chat") else "auto"


def settle_completions(arguments: GrpoRunArguments, data: AlignmentData, positions: int | None) -> None:
    """Put the default of `max_completion_length` into `arguments`, in place.

    Raises:
        UsageError: for prompts that leave fewer tokens.
    """
    lengths = [length for store in (data.train, data.validation) if len(store) for length in store.lengths()[0]]
    left = LONGEST_COMPLETION if positions is None else positions - max(lengths)
    asked = arguments.max_completion_length
    if positions is not None and left < (asked or 1):
        room = positions - (asked or 1)
        smaller = f"give --max_completion_length {left}, or " if left > 0 else ""
        raise UsageError(
            f"--dataset_name {data.pairs.name}: {sum(length > room for length in lengths):,} of {len(lengths):,} "
            f"prompts leave fewer than {asked or 1:,} tokens for a completion; the longest has {max(lengths):,} tokens "
            f"of the model's {positions:,} positions; {smaller}remove long prompts"
        )
    arguments.max_completion_length = asked or min(left, LONGEST_COMPLETION)


def plan_preferences(arguments: DpoRunArguments, data: AlignmentData) -> tuple[Plan, Dataset]:
    """Return the plan, put its length into `arguments`, in place, and return the pairs of all passes in order.

    Raises:
        UsageError: for epochs that do not make one update, or evaluations without validation pairs.
    """
    per_step, store = blocks_per_update(arguments), data.train
    steps = settle_length(arguments, len(store))
    check_held_out(arguments, data.pairs.name, len(data.validation))
    order = row_order(len(store), steps * per_step, arguments.data_seed)
    prompts_N, answers_N = store.lengths()
    answered = int(answers_N[order].sum())
    tokens = 2 * int(prompts_N[order].sum()) + answered
    plan = Plan(steps, per_step, data.max_length, len(store), num_tokens=tokens, num_completion_tokens=answered)
    return plan, store.rows.select(order)


def plan_rewards(arguments: GrpoRunArguments, data: AlignmentData) -> tuple[Plan, Dataset]:
    """Return the plan, put its length into `arguments`, in place, and return the prompts of all passes in order.

    A block of the plan is a completion.

    Raises:
        UsageError: for epochs that do not make one update, or evaluations without validation prompts.
    """
    per_step, store = blocks_per_update(arguments), data.train
    assert arguments.num_generations is not None  # its bound is at least 2
    repeats = arguments.num_generations * arguments.num_iterations
    steps = settle_length(arguments, len(store) * repeats)
    check_held_out(arguments, data.pairs.name, len(data.validation))
    assert arguments.max_completion_length is not None  # settle_completions sets it
    count = generation_prompts(steps, arguments.gradient_accumulation_steps, vars(arguments))[-1] + 1
    order = row_order(len(store), count, arguments.data_seed)
    most = steps * per_step * arguments.max_completion_length  # completions end earlier
    plan = Plan(steps, per_step, data.max_length, len(store) * repeats, most, num_completion_tokens=most)
    return plan, data.asked_rows("train").select(order)


def generation_prompts(step: int, accumulated: int, settings: Mapping[str, Any]) -> range:
    """Return the places, in the order of all passes, of the prompts whose completions an update may read.

    Completions are sampled for several updates at once where `steps_per_generation` times `num_iterations` is more than
    the `accumulated` batches of an update, and shuffled.

    >>> settings = {"steps_per_generation": 4, "num_iterations": 1, "generation_batch_size": 16, "num_generations": 8}
    >>> [generation_prompts(step, 2, settings) for step in (1, 2, 3)]
    [range(0, 2), range(0, 2), range(2, 4)]
    """
    lasts = settings["steps_per_generation"] * settings["num_iterations"]
    first, last = (step - 1) * accumulated // lasts, (step * accumulated - 1) // lasts
    prompts = settings["generation_batch_size"] // settings["num_generations"]
    return range(first * prompts, (last + 1) * prompts)
