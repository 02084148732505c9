"""The record: one story with what is known about it, the unit that every later stage counts in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from datasets import Features, List, Value

from lm_trials.console import UsageError
from lm_trials.stories.features import canonical_feature

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

RECORD_SCHEMA = Features(
    {
        "record_id": Value("string"),
        "story": Value("string"),
        "prompt": Value("string"),
        "words": List(Value("string")),
        "features": List(Value("string")),
        "summary": Value("string"),
        "source": Value("string"),
    }
)

# The last per cent of the range of a 32-bit hash, whatever part before it is the validation split.
TEST_FROM = int(0.99 * 2**32)


class Record(TypedDict):
    """One story with its metadata; unknown fields are empty, never missing."""

    record_id: str
    story: str
    prompt: str
    words: list[str]
    features: list[str]
    summary: str
    source: str


def record_id(story: str) -> str:
    """Name a story by its content: 32 hexadecimal digits of a SHA-256.

    Blanks are collapsed first, because the published forms of one story differ in leading blanks and in the empty
    lines between paragraphs; the same story has the same name whichever file it came from.

    >>> record_id(" \\nOne day.\\n\\nThe end.") == record_id("One day.\\nThe end.")
    True
    >>> record_id("One day.") == record_id("One night.")
    False
    """
    return hashlib.sha256(" ".join(story.split()).encode()).hexdigest()[:32]


def make_record(
    story: str,
    prompt: str = "",
    words: Iterable[str] = (),
    features: Iterable[str] = (),
    summary: str = "",
    source: str = "",
) -> Record:
    """Complete a record around `story`; features are checked and put in the project's spelling.

    Raises:
        UsageError: for a feature that TinyStories does not have, or text that is no Unicode text.

    >>> make_record(" One day. ", features=["Badending"])["features"]
    ['BadEnding']
    """
    story = story.strip()
    words = list(words)
    try:
        "".join([story, prompt, summary, source, *words]).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{error.object[error.start]!r} is half of a surrogate pair, which no UTF-8 file can hold; mend the text"
        ) from None
    return Record(
        record_id=record_id(story),
        story=story,
        prompt=prompt,
        words=words,
        features=[canonical_feature(feature) for feature in features],
        summary=summary,
        source=source,
    )


def record_from_row(row: Any, text_column: str | None = None) -> Record:
    """Read a record from a row of any of the published forms.

    The TinyStories archive nests `{"instruction": {"prompt:": ..., "words": ..., "features": ...}}`, and the key
    really ends with a colon; without it is accepted too.  Flat rows have the fields beside the story.  The story is
    in `text_column`, else in `story`, else in `text`.

    Raises:
        UsageError: for a row that is no object or has no story, naming the columns there are, or for a field that
            holds something else than it should.

    >>> row = {"story": "Hi.", "instruction": {"prompt:": "Write.", "words": ["hi"], "features": ["Twist"]}}
    >>> record_from_row(row)["prompt"], record_from_row(row)["features"]
    ('Write.', ['Twist'])
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"{row!r:.60} is no object with a story; give records as objects")
    names = [text_column] if text_column else ["story", "text"]
    column = next((name for name in names if name in row), None)
    if column is None:
        raise UsageError(
            f"no column {' or '.join(map(repr, names))}; the columns are {', '.join(map(str, row))}; "
            "name the one that holds the text with --text_column"
        )
    story = row[column]
    if not isinstance(story, str):
        raise UsageError(f"column {column!r} holds {type(story).__name__} {story!r:.40}; it must hold text")
    details = row.get("instruction")
    if not isinstance(details, Mapping):
        details = row
    return make_record(
        story,
        prompt=_text(details, "prompt:") or _text(details, "prompt"),
        words=_listed(details, "words"),
        features=_listed(details, "features"),
        summary=_text(row, "summary"),
        source=_text(row, "source"),
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    raise UsageError(f"{name!r} holds {type(value).__name__} {value!r:.40}; it must hold text or nothing")


# A list as CSV files hold it, written by Python or JSON: ['a', "b"].
_WRITTEN_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)


def _listed(row: Mapping[str, Any], name: str) -> list[str]:
    """Read a list of words, which a CSV file or TinyStories-Instruct writes as `a, b, c` or `['a', 'b']`.

    >>> _listed({"words": "quit, don't"}, "words"), _listed({"words": "['quit', 'oak']"}, "words")
    (['quit', "don't"], ['quit', 'oak'])
    """
    value = row.get(name)
    if value is None:
        return []
    if isinstance(value, str):
        parts = value.split(",")
        if _WRITTEN_LIST.fullmatch(value):
            parts = [part.strip().strip("'\"") for part in value.strip().strip("[]").split(",")]
        return [part.strip() for part in parts if part.strip()]
    if isinstance(value, Sequence) and all(isinstance(part, str) for part in value):
        return list(value)
    raise UsageError(f"{name!r} holds {type(value).__name__} {value!r:.40}; it must hold a list of words")


def split_of(identifier: str, validation_percent: float = 1.0) -> Split:
    """Return the split of a record: 98, 1 and 1 per cent by its name alone, whatever the order of the source.

    Another `validation_percent` moves the border of train and validation; the test split stays what it is.

    Raises:
        UsageError: for a share that is not above 0 and at most 50 per cent.

    >>> [split_of(f"{n:08x}") for n in (0, int(0.985 * 2**32), 2**32 - 1)]
    ['train', 'validation', 'test']
    >>> [split_of(f"{n:08x}", validation_percent=50) for n in (0, int(0.5 * 2**32), 2**32 - 1)]
    ['train', 'validation', 'test']
    """
    place = int(identifier[:8], 16)
    if place >= TEST_FROM:
        return "test"
    return "validation" if place >= validation_from(validation_percent) else "train"


def validation_from(percent: float) -> int:
    """Return the first 32-bit hash of a validation split of that many per cent.

    Raises:
        UsageError: for a share that is not above 0 and at most 50 per cent.

    >>> validation_from(1) == int(0.98 * 2**32)
    True
    """
    if not 0 < percent <= 50:
        raise UsageError(f"--validation_split_percentage {percent:g} is no share; give more than 0 and at most 50")
    return int((99 - percent) / 100 * 2**32)


def count_duplicates(identifiers_64: np.ndarray) -> int:
    """Count the stories that repeat an earlier one, from (N,) 64-bit prefixes of their names.

    Prefixes keep the memory at 8 bytes a story; among five million, two different stories share one with a
    probability below one in a million.

    >>> count_duplicates(np.array([7, 8, 7, 7], dtype=np.uint64))
    2
    """
    return len(identifiers_64) - len(np.unique(identifiers_64))
