"""Recipes: lists of data sets to fetch, each entry checked like typed flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.data.cache_flags import FetchArguments
from lm_trials.data.datasets import dataset_of
from lm_trials.flags import parse_mapping, read_yaml
from lm_trials.tokens.tokenizers import resolve_vocab


def read_recipe(path: Path) -> list[FetchArguments]:
    """Read a recipe: a YAML list with an entry of fetch's flags for each data set.

    Raises:
        UsageError: for a file that is not such a list; for an invalid key or value, naming the entry.
    """
    try:
        entries = read_yaml(path)
        if not isinstance(entries, list) or not entries:
            raise UsageError("the file must be a list of entries such as `- dataset_name: wikitext`")
        return [_entry(number, entry) for number, entry in enumerate(entries, start=1)]
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _entry(number: int, entry: Any) -> FetchArguments:
    try:
        if not isinstance(entry, dict):
            raise UsageError(f"{entry!r:.40} is not an entry; write `dataset_name: {entry!s:.40}`")
        args = parse_mapping(entry, FetchArguments)
        check_fetch(args)
        return args
    except UsageError as error:
        name = f" ({entry['dataset_name']})" if isinstance(entry, dict) and "dataset_name" in entry else ""
        raise UsageError(f"entry {number}{name}: {error}") from None


def check_fetch(args: FetchArguments) -> None:
    """Check a fetch's flags, splits and tokenizer before anything is read or downloaded.

    Raises:
        UsageError: for an invalid name, number or tokenizer.
    """
    for member in dataset_of(args).members:
        member.check_splits()
    if args.wants_tokens():
        resolve_vocab(args.vocab_size, args.tokenizer_name, args.data_cache_dir)
