"""Pairs: prompts with completions, conversations, or plain texts, prepared for fine-tuning.

    data/<name>/pairs/          DatasetDict with train, validation and test
    data/<name>/manifest.json   kind, counts, content, source

A data set of pairs is made here (`lm-trials prepare instruct`, `lm-trials cache distances`) or read from any
file, folder, saved data set or the Hub.  Its columns determine its kind: `prompt` and `completion` (texts, or lists of
messages), `messages`, or `text`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import DatasetDict, Features, List, Value

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import file_sums, finished_folder, write_json
from lm_trials.stories.arrow_files import ArrowFile, load_splits, save_splits
from lm_trials.stories.corpora import MANIFEST, check_free, read_manifest
from lm_trials.stories.records import SPLITS, Split, check_unicode, record_id
from lm_trials.stories.shards import kind_of
from lm_trials.stories.sources import Source
from lm_trials.stories.splits import split_for

Kind = Literal["pairs", "conversations", "texts"]
FOLDER = "pairs"
ROLES = ("system", "user", "assistant", "tool")
MESSAGES = List({"role": Value("string"), "content": Value("string")})
COLUMNS: dict[Kind, Features] = {
    "pairs": Features({"record_id": Value("string"), "prompt": Value("string"), "completion": Value("string")}),
    # num_prompt: the number of messages that are the prompt, whose answers count in no loss.
    "conversations": Features({"record_id": Value("string"), "messages": MESSAGES, "num_prompt": Value("int32")}),
    "texts": Features({"record_id": Value("string"), "text": Value("string")}),
}
"""Columns of each kind; rows may have more, such as `ended` (bool): whether EOS follows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class PairSet:
    """An opened data set of pairs.

    Attributes:
        name: as the user called it.
        splits: memory-mapped; the columns of `COLUMNS[kind]` at least.
        described: its identity in `run.json`.
    """

    name: str
    kind: Kind
    splits: DatasetDict
    described: dict[str, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict)


def write_pairs(
    rows: Iterable[tuple[Split, Row]], folder: Path, kind: Kind, facts: Mapping[str, Any], more: Features | None = None
) -> dict[str, Any]:
    """Write rows, each with its split, as a prepared data set; returns its manifest.

    Args:
        facts: further entries of the manifest, such as `source`.
        more: further columns, beside those of the kind.

    Raises:
        UsageError: if the folder exists, or the train split has no row.
    """
    check_free(folder)
    schema = Features({**COLUMNS[kind], **(more or {})})
    counts, digests = dict.fromkeys(SPLITS, 0), {split: hashlib.sha256() for split in SPLITS}
    with finished_folder(folder) as unfinished:
        with ExitStack() as stack:
            files = {s: stack.enter_context(ArrowFile(unfinished / f"{s}.arrow", schema)) for s in SPLITS}
            for split, row in rows:
                files[split].write(row)
                counts[split] += 1
                digests[split].update(json.dumps(row, sort_keys=True).encode())
        if not counts["train"]:
            raise UsageError(f"{folder.name} has no row for the train split; give more rows")
        save_splits(unfinished, unfinished / FOLDER)
        content = hashlib.sha256("".join(digests[split].hexdigest() for split in SPLITS).encode()).hexdigest()[:16]
        manifest = {"kind": kind, **facts, "rows": counts, "content": content, "files": file_sums(unfinished)}
        write_json(unfinished / MANIFEST, manifest)
    return manifest


def is_pairs(folder: Path) -> bool:
    """Whether a folder is a prepared data set of pairs."""
    return (folder / MANIFEST).is_file() and (folder / FOLDER).is_dir()


def open_pairs(name: str, data_cache_dir: Path, called: str | None = None) -> PairSet:
    """Open a prepared data set of pairs by its name or its path; `called` is its name in messages, if another.

    Raises:
        UsageError: for a name that does not exist.
    """
    folder = next((place for place in (data_cache_dir / name, Path(name)) if name and is_pairs(place)), None)
    if folder is None:
        known = sorted(place.name for place in data_cache_dir.glob("*") if is_pairs(place))
        raise UsageError(f"{name} is not a prepared data set of pairs; prepared: {', '.join(known) or 'none'}")
    manifest = read_manifest(folder, "kind", "rows", "content")
    described = {"name": folder.name, **{key: manifest[key] for key in ("kind", "content", "rows")}}
    return PairSet(called or name, manifest["kind"], load_splits(folder / FOLDER), described, manifest)


def prepare_pairs(
    source: Source, label: str, data_cache_dir: Path, watch: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> Path:
    """Read a source of pairs into `data_cache_dir`, once; return the folder, whose name contains its fingerprint.

    Raises:
        UsageError: for rows that are not pairs, naming their columns.
    """
    folder = data_cache_dir / f"{label}-{FOLDER}-{source.fingerprint()[:8]}"
    if not is_pairs(folder):
        source.check_splits()
        rows = _source_rows(source, watch)
        kind = next(rows)
        try:
            write_pairs(rows, folder, kind, {"source": source.origin()})
        except UsageError:
            if not is_pairs(folder):  # else another process was faster
                raise
    return folder


def _source_rows(source: Source, watch: Callable[[Iterable[Any]], Iterable[Any]]) -> Iterator[Any]:
    """Yield first the kind of a source's rows, then each with its split."""
    kind: Kind | None = None
    percent, own = source.validation_split_percentage, source.has_own_splits()
    for part in source.parts_of():
        for name, _, rows in source.rows(part):
            for place, row in watch(rows):
                if part.path is not None and kind_of(part.path) == "text":
                    if not row["story"].strip():  # after the last separator
                        continue
                    row = {"text": row["story"].strip()}
                try:
                    this, pair = read_row(row)
                except UsageError as error:
                    raise UsageError(f"{name}: {place}: {error}") from None
                if kind is None:
                    kind = this
                    yield kind
                if this != kind:
                    raise UsageError(f"{name}: {place}: a row of {this} after rows of {kind}; give one kind")
                split = split_for(part.split if own else None, pair["record_id"], percent)
                if split is not None:
                    yield split, pair
    if kind is None:
        raise UsageError(f"{source.reference} has no rows; give another data set")


def read_row(row: Any) -> tuple[Kind, Row]:
    """Return the kind of a row of any data set, and its columns in one form.

    Raises:
        UsageError: for a row without prompt and completion, messages or text, or with one of another type.

    >>> read_row({"prompt": "How far?", "completion": "12 km", "city": "Rome"})[1]["completion"]
    '12 km'
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"{row!r:.60} is not an object; give rows with prompt and completion")
    known = [column for column in ("prompt", "completion", "messages", "text") if column in row]
    given = [column for column in known if row[column] is not None]
    if {"prompt", "completion"} <= set(given):
        texts = [column for column in ("prompt", "completion") if isinstance(row[column], str)]
        if len(texts) == 2:
            return "pairs", _named({"prompt": row["prompt"], "completion": row["completion"]})
        if texts:
            (other,) = {"prompt", "completion"} - set(texts)
            raise UsageError(
                f"{texts[0]} is text and {other} is {type(row[other]).__name__}; both must be text, or both messages"
            )
        prompt, completion = _messages(row["prompt"], "prompt"), _messages(row["completion"], "completion")
        return "conversations", _named({"messages": prompt + completion, "num_prompt": len(prompt)})
    if "messages" in given:
        return "conversations", _named({"messages": _messages(row["messages"], "messages"), "num_prompt": 0})
    if "text" in given:
        if not isinstance(row["text"], str):
            raise UsageError(f"column text is {type(row['text']).__name__}; it must be text")
        return "texts", _named({"text": row["text"]})
    if missing := [column for column in known if row[column] is None]:
        raise UsageError(f"{' and '.join(missing)} is missing a value; add it, or remove the row")
    advice = "rename them"
    if "story" in row:
        advice = "make pairs of stories with lm-trials prepare ingest and instruct"
    columns = ", ".join(map(str, row)) or "none"
    raise UsageError(f"no columns prompt and completion, messages, or text; the columns are {columns}; {advice}")


def _named(row: Row) -> Row:
    """Add a row's name, which follows from its content, as for a story."""
    check_unicode(json.dumps(row, ensure_ascii=False))
    return {"record_id": record_id(json.dumps(row, sort_keys=True)), **row}


def _messages(value: Any, column: str) -> list[dict[str, str]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise UsageError(f"{column} is {value!r:.40}; it must be text, or a list of messages with role and content")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UsageError(f"{column} contains {message!r:.60}; a message has role and content")
        if (role := message["role"]) not in ROLES:
            raise UsageError(f"a message of {column} has the role {role!r}; {did_you_mean(role, ROLES)}")
        if not isinstance(message["content"], str):
            raise UsageError(
                f"content of a message of {column} is {type(message['content']).__name__}; it must be text"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]
