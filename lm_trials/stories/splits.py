"""Splits of a source: its own where it has them, else by hash of the story, so that no story is in two splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from datasets.data_files import (
    DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME,
    DEFAULT_PATTERNS_SPLIT_IN_FILENAME,
    SPLIT_KEYWORDS,
)
from fsspec.utils import glob_translate

from lm_trials.console import UsageError
from lm_trials.stories.records import SPLITS, Split, split_of

NAMES: dict[str, Split] = {keyword: split for split in SPLITS for keyword in SPLIT_KEYWORDS[split]}
"""Names of splits in published data sets, as `datasets` reads them."""


def file_splits(names: Sequence[str]) -> list[list[Split]]:
    """Return the splits that each file of a folder is named after, by `datasets`' rules: by its folders, else itself.

    Names are relative to the folder.  A name can mean two splits, as `train-test.txt`.

    >>> file_splits(["Tales-train.txt", "Tales-valid.txt", "attest.txt"])
    [['train'], ['validation'], []]
    >>> file_splits(["train/1.txt", "dev/test-1.txt", "valid.txt"])
    [['train'], ['validation'], []]
    """
    # `datasets` compares names as they are written; "Valid" and "(train)" mean the same.  Its own function for folders
    # reads the whole disk above a folder with brackets in its name.
    plain = [re.sub(r"[^\w./]", "-", name.lower()) for name in names]
    found: list[list[Split]] = [[] for _ in names]
    for patterns in (DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME, DEFAULT_PATTERNS_SPLIT_IN_FILENAME):
        if not any(found):
            rules = {split: re.compile("|".join(map(glob_translate, patterns[split]))) for split in SPLITS}
            found = [[split for split, rule in rules.items() if rule.match(name)] for name in plain]
    return found


def named_splits(names: Iterable[str]) -> dict[str, Split]:
    """Return which of a data set's own splits is train, validation or test; others are left out.

    >>> named_splits(["train", "dev", "unsupervised"])
    {'train': 'train', 'dev': 'validation'}
    """
    return {name: NAMES[name.lower()] for name in names if name.lower() in NAMES}


def own_names(wanted: str, names: Mapping[str, Split | None], reference: str) -> list[str]:
    """Return the splits of a source that `--dataset_split` means: that name, or other names for the same split.

    Raises:
        UsageError: if it means none of them.

    >>> own_names("validation", {"train": "train", "dev": "validation"}, "tales")
    ['dev']
    """
    if wanted in names:
        return [wanted]
    found = [name for name, split in names.items() if split == NAMES.get(wanted.lower(), wanted)]
    if not found:
        raise UsageError(f"--dataset_split {wanted}: {reference} has no such split; valid: {', '.join(names)}")
    return found


def check_own_splits(reference: str, names: Mapping[str, Split | None], percent: float | None) -> None:
    """Check that a source with splits of its own has those that a corpus needs.

    Raises:
        UsageError: without a train split; without a validation split and a percentage, or with both.
    """
    there, own = ", ".join(names), set(names.values())
    if "train" not in own:
        raise UsageError(
            f"{reference} has no train split, only {there}; give the file of one of them (to_parquet of datasets "
            "writes it), or make a corpus of one with lm-trials prepare ingest --dataset_split NAME"
        )
    if "validation" not in own and percent is None:
        raise UsageError(
            f"{reference} has no validation split, only {there}; to take 1% of its train split, give "
            "lm-trials train or tune or cache or prepare ingest --validation_split_percentage 1"
        )
    if "validation" in own and percent is not None:
        raise UsageError(
            f"--validation_split_percentage {percent:g}: {reference} has a validation split of its own; remove the flag"
        )


def split_for(own: Split | None, identifier: str, percent: float | None) -> Split:
    """Return the split of a record from the source's `own` split, None for a source without splits.

    `percent` of the stories of a train split are validation, by hash; a test split is never taken from it.

    >>> late = f"{2**32 - 1:08x}"
    >>> split_for(None, late, None), split_for("train", late, 1.0), split_for("validation", late, None)
    ('test', 'train', 'validation')
    >>> split_for("train", f"{int(0.985 * 2**32):08x}", 1.0)
    'validation'
    """
    if own is None:
        return split_of(identifier, 1.0 if percent is None else percent)
    taken = own == "train" and percent is not None and split_of(identifier, percent) == "validation"
    return "validation" if taken else own
