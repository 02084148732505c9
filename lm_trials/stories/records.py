"""The record: one story with its metadata, the unit of every later stage."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from datasets import Features, List, Value

from lm_trials.console import UsageError
from lm_trials.stories.features import FEATURES, canonical_feature

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# The test split is the last 1% of the range of a 32-bit hash, whatever the size of the validation split before it.
TEST_FROM = int(0.99 * 2**32)
# Beside NUL, which is refused, and white space.
CONTROL = re.compile("[\x01-\x08\x0e-\x1f\x7f-\x9f]")


class Record(TypedDict):
    """One story with its metadata; unknown fields are empty, never missing."""

    record_id: str
    story: str
    prompt: str
    words: list[str]
    features: list[str]
    summary: str
    source: str


RECORD_SCHEMA = Features(
    {
        name: List(Value("string")) if name in ("words", "features") else Value("string")
        for name in Record.__annotations__
    }
)


def record_id(story: str) -> str:
    """Name a story by its content: 32 hexadecimal digits of a SHA-256.

    Whitespace is collapsed first, because the published forms of one story differ in leading blanks and in the empty
    lines between paragraphs; the same story has the same name in every form.

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
    """Make a record of `story`; features are checked and put in the project's spelling.

    Raises:
        UsageError: for a feature that TinyStories does not have, or text that is not Unicode.

    >>> make_record(" One day. ", features=["Badending"])["features"]
    ['BadEnding']
    """
    story, words = story.strip(), list(words)
    check_unicode("".join([story, prompt, summary, source, *words]))
    return Record(
        record_id=record_id(story),
        story=story,
        prompt=prompt,
        words=words,
        features=[canonical_feature(feature) for feature in features],
        summary=summary,
        source=source,
    )


def check_unicode(text: str) -> None:
    """Raise a UsageError for a text with half of a surrogate pair, which UTF-8 cannot encode, or with NUL."""
    if "\0" in text:
        raise UsageError("the text has the control character '\\x00', as in UTF-16 or a binary file; convert it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{text[error.start]!r} is half of a surrogate pair, which UTF-8 cannot encode; correct the text"
        ) from None


def record_from_row(
    row: Any, text_column: str | None = None, tell: Callable[[str], None] = lambda what: None
) -> Record:
    """Read a record from a row of any of the published forms.

    The TinyStories archive nests `{"instruction": {"prompt:": ..., "words": ..., "features": ...}}`; the key really
    ends with a colon, and is accepted without it too.  Flat rows have the fields beside the story.  The story is
    in `text_column`, else in `story`, else in `text`.

    Other data sets have columns of the same names that mean something else, such as a count in `words`: a column
    without text, words or features, as its name says, is left out, and `tell` gets a line about it.

    Raises:
        UsageError: for a row that is not an object or has no story (names the columns), or an unknown feature.

    >>> row = {"story": "Hi.", "instruction": {"prompt:": "Write.", "words": ["hi"], "features": ["Twist"]}}
    >>> record_from_row(row)["prompt"], record_from_row(row)["features"]
    ('Write.', ['Twist'])
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"{row!r:.60} is not an object with a story; write one JSON object for each record")
    names = [text_column] if text_column else ["story", "text"]
    column = next((name for name in names if name in row), None)
    if column is None:
        raise UsageError(
            f"no column {' or '.join(map(repr, names))}; the columns are {', '.join(map(str, row))}; "
            "name the column of the text with --text_column"
        )
    story = row[column]
    if not isinstance(story, str):
        raise UsageError(f"column {column!r} is {type(story).__name__} {story!r:.40}; it must be text")
    details = row.get("instruction")
    if not isinstance(details, Mapping):
        details = row
    for character in set(CONTROL.findall(story)):
        tell(f"stories have the control character {character!r}; it is kept")

    def field(among: Mapping[str, Any], name: str, read: Callable[[Any], Any], wanted: str) -> Any:
        value = among.get(name)
        found = read("" if value is None else value)
        if found is None:
            tell(f"column {name!r} has {type(value).__name__} that is not {wanted}; it is left out")
        return found or read("")

    try:
        features = list(map(canonical_feature, field(details, "features", _features, "a list of features")))
    except UsageError as error:
        raise UsageError(f"{error}; if 'features' means something else, rename the column") from None
    return make_record(
        story,
        prompt=field(details, "prompt:", _text, "text") or field(details, "prompt", _text, "text"),
        words=field(details, "words", _words, "a list of words"),
        features=features,
        summary=field(row, "summary", _text, "text"),
        source=field(row, "source", _text, "text"),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _words(value: Any) -> list[str] | None:
    """Read a list of words, which CSV files and TinyStories-Instruct write as `a, b, c` or `['a', "b"]`.

    >>> _words("quit, don't"), _words("['quit', 'oak']"), _words("512"), _words([1, 2])
    (['quit', "don't"], ['quit', 'oak'], None, None)
    """
    if isinstance(value, str):
        parts = value.split(",")
        if value.strip().startswith("[") and value.strip().endswith("]"):
            parts = [part.strip().strip("'\"") for part in value.strip().strip("[]").split(",")]
        words = [part.strip() for part in parts if part.strip()]
        return words if not words or re.search(r"[^\W\d_]", value) else None
    return list(value) if isinstance(value, Sequence) and all(isinstance(part, str) for part in value) else None


def _features(value: Any) -> list[str] | None:
    """Read a list of features; a text is one if it names a feature.

    >>> _features("Dialogue, Twist"), _features("3 rooms, garage"), _features(["garage"])
    (['Dialogue', 'Twist'], None, ['garage'])
    """
    words = _words(value)
    names_one = words and not {feature.lower() for feature in FEATURES}.isdisjoint(map(str.lower, words))
    return words if names_one or not words or not isinstance(value, str) else None


def split_of(identifier: str, validation_percent: float = 1.0) -> Split:
    """Return the split of a record, 98%, 1% and 1%, from its name alone.

    Another `validation_percent` moves the border between train and validation; the test split stays the same.

    Raises:
        UsageError: for a percentage that is not above 0 and at most 50.

    >>> [split_of(f"{n:08x}") for n in (0, int(0.985 * 2**32), 2**32 - 1)]
    ['train', 'validation', 'test']
    >>> [split_of(f"{n:08x}", validation_percent=50) for n in (0, int(0.5 * 2**32), 2**32 - 1)]
    ['train', 'validation', 'test']
    """
    # By content and not by position: the same story is in the same split of a corpus of any size or order, and a copy
    # never lies in two splits.
    place = int(identifier[:8], 16)
    if place >= TEST_FROM:
        return "test"
    return "validation" if place >= validation_from(validation_percent) else "train"


def validation_from(percent: float) -> int:
    """Return the first 32-bit hash of a validation split of `percent`, which must be above 0 and at most 50.

    >>> validation_from(1) == int(0.98 * 2**32)
    True
    """
    if not 0 < percent <= 50:
        raise UsageError(f"--validation_split_percentage {percent:g}: must be above 0 and at most 50")
    return int((99 - percent) / 100 * 2**32)
