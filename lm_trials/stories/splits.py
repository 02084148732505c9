"""Splits of a source: its own where it has them, else by the hash of a story; never a story in two by hash."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lm_trials.console import UsageError, did_you_mean
from lm_trials.stories.records import SPLITS, Split, split_of, validation_from

NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""How splits are called in published data sets, as Hugging Face's own rules for file names have it."""

_OPENING = re.compile(rf"({'|'.join(sorted(NAMES, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)


def file_split(name: str) -> Split | None:
    """Return the split that a file's name begins with, a word of its own as for Hugging Face.

    >>> [file_split(name) for name in ("train-000.parquet", "valid.jsonl", "test2.txt", "testament.txt", "a-train.csv")]
    ['train', 'validation', 'test', None, None]
    """
    opening = _OPENING.match(name)
    return NAMES[opening[1].lower()] if opening else None


def named_splits(names: Iterable[str]) -> dict[str, Split]:
    """Return which of a data set's own splits is train, validation or test; others are in none.

    >>> named_splits(["train", "dev", "unsupervised"])
    {'train': 'train', 'dev': 'validation'}
    """
    return {name: NAMES[name.lower()] for name in names if name.lower() in NAMES}


def own_names(wanted: str, names: Mapping[str, Split | None], reference: str) -> list[str]:
    """Return which of a source's own splits `--dataset_split` means: that name itself, or another for the same split.

    Raises:
        UsageError: if it is none of them.

    >>> own_names("validation", {"train": "train", "dev": "validation"}, "tales")
    ['dev']
    """
    if wanted in names:
        return [wanted]
    found = [name for name, split in names.items() if split == NAMES.get(wanted.lower(), wanted)]
    if not found:
        raise UsageError(f"{reference} has no split {wanted!r}; --dataset_split can be: {', '.join(names)}")
    return found


def check_own_splits(reference: str, names: Mapping[str, Split | None], percent: float | None) -> None:
    """Check that a source with splits of its own has what a corpus needs, with `--validation_split_percentage` or not.

    Raises:
        UsageError: without a train split; without a validation split and a percentage, or with both.
    """
    there, own = ", ".join(names), set(names.values())
    if "train" not in own:
        raise UsageError(
            f"{reference} has no train split; it has {there}; name one of them with --dataset_split, or its file, to "
            "have it split by hash"
        )
    if "validation" not in own and percent is None:
        raise UsageError(
            f"{reference} has no validation split; it has {there}; take one per cent of its train split, by hash, with "
            "--validation_split_percentage 1"
        )
    if "validation" in own and percent is not None:
        raise UsageError(
            f"--validation_split_percentage {percent:g}: {reference} has a validation split of its own; remove it"
        )


def split_for(own: Split | None, identifier: str, percent: float | None) -> Split:
    """Return the split of a record that stands in the source's `own` split; None where the source has none.

    Of a train split, `percent` of the stories are validation, by hash; no test split is made of it.

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


def check_percentage(percent: float | None) -> None:
    """Refuse a `--validation_split_percentage` that is none.

    Raises:
        UsageError: unless it is above 0 and at most 50, or None.
    """
    if percent is not None:
        validation_from(percent)


def check_hash_split(wanted: str | None) -> None:
    """Refuse a `--dataset_split` that a source without splits of its own cannot have.

    Raises:
        UsageError: unless it is one of the three, or None.
    """
    if wanted not in (None, *SPLITS):
        raise UsageError(f"--dataset_split {wanted}: {did_you_mean(wanted, SPLITS)}")
