"""Pairs: prompts with completions, conversations, plain texts, or preferences, prepared for fine-tuning.

    data/<name>/pairs/          DatasetDict with train, validation and test
    data/<name>/manifest.json   kind, counts, content, source

A data set of pairs is made here (`lm-trials prepare instruct`, `lm-trials cache distances`) or read from any
file, folder, saved data set or the Hub.  Its columns determine its kind: `prompt` and `completion` (texts, or lists of
messages), `messages`, `text`, or `prompt`, `chosen` and `rejected` (texts, or lists of messages).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import DatasetDict, Features, List, Value

from lm_trials.console import UsageError, did_you_mean, note
from lm_trials.files import file_sums, finished_folder, plain_name, write_json
from lm_trials.pairs.layouts import as_conversation
from lm_trials.stories.arrow_files import ArrowFile, load_splits, save_splits
from lm_trials.stories.corpora import MANIFEST, check_free, read_manifest
from lm_trials.stories.records import SPLITS, Split, check_unicode, record_id
from lm_trials.stories.shards import kind_of
from lm_trials.stories.sources import Source
from lm_trials.stories.splits import split_for

Kind = Literal[
    "pairs", "conversations", "texts", "preferences", "conversation_preferences", "prompts", "conversation_prompts"
]
Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, Side] = ("chosen", "rejected")
PREFERENCES = ("preferences", "conversation_preferences")
"""The kinds with two completions of each prompt."""
PROMPTS = ("prompts", "conversation_prompts")
"""The kinds of a source that is read for its prompts, with all its columns for rewards."""
FOLDER = "pairs"
ROLES = ("system", "user", "assistant", "tool")
MESSAGES = List({"role": Value("string"), "content": Value("string")})
COLUMNS: dict[Kind, Features] = {
    "pairs": Features({"record_id": Value("string"), "prompt": Value("string"), "completion": Value("string")}),
    # num_prompt: the number of messages that are the prompt, whose answers count in no loss.
    "conversations": Features({"record_id": Value("string"), "messages": MESSAGES, "num_prompt": Value("int32")}),
    "texts": Features({"record_id": Value("string"), "text": Value("string")}),
    "preferences": Features({name: Value("string") for name in ("record_id", "prompt", *SIDES)}),
    "conversation_preferences": Features(
        {"record_id": Value("string"), **{name: MESSAGES for name in ("prompt", *SIDES)}}
    ),
    # columns: JSON of the row's other columns.
    "prompts": Features({name: Value("string") for name in ("record_id", "prompt", "columns")}),
    "conversation_prompts": Features({"record_id": Value("string"), "prompt": MESSAGES, "columns": Value("string")}),
}
"""Columns of each kind; rows may have more, such as `ended`, or `ended_chosen` (bool): whether EOS follows."""
OPTIONS = ("tools", "documents")
"""Columns beside messages that chat templates can render."""
FURTHER = Features({"further": Value("string")})
"""JSON of what messages and chat templates have beside roles and texts: the messages' own fields, and `OPTIONS`."""
TAKEN: dict[Kind, set[str]] = {
    "pairs": {"prompt", "completion"},
    "conversations": {"prompt", "completion", "messages", *OPTIONS},
    "texts": {"text"},
    "preferences": {"prompt", *SIDES},
    "conversation_preferences": {"prompt", *SIDES, *OPTIONS},
}

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
    folder: Path
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
    return PairSet(called or name, folder, manifest["kind"], load_splits(folder / FOLDER), described, manifest)


def holds_pairs(source: Source) -> bool:
    """Whether the first row of a source is a pair or a conversation, and not a text."""
    for part in source.parts_of():
        for _, _, rows in source.rows(part):
            for _, row in rows:
                columns = row.keys() if isinstance(row, Mapping) and not source.text_column else set()
                is_pair = any(of <= columns for of in ({"messages"}, {"prompt", "completion"}, {"prompt", *SIDES}))
                return is_pair and columns.isdisjoint({"story", "text"})
    return False


def prepare_pairs(
    source: Source,
    label: str,
    data_cache_dir: Path,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    prompts: bool = False,
) -> Path:
    """Read a source into `data_cache_dir`, once; return the folder, whose name contains its fingerprint.

    Rows with an empty prompt, answer or text are left out.  Notes count them and name the columns that are not used.

    Args:
        prompts: read the prompts of the rows, with all other columns, instead of pairs.

    Raises:
        UsageError: for rows that are not pairs, naming their columns; for preferences whose two sides are equal.
    """
    what = "prompts" if prompts else FOLDER
    folder = data_cache_dir / f"{plain_name(label)}-{what}-{source.fingerprint()[:8]}"
    if not is_pairs(folder):
        source.check_splits()
        facts: dict[str, Any] = {"source": source.origin(), "left_out": {"rows": 0}, "unused_columns": []}
        facts |= {"columns": []} if prompts else {}
        rows = _source_rows(source, watch, facts)
        kind = next(rows)
        try:
            write_pairs(rows, folder, kind, facts, FURTHER if "conversation" in kind else None)
        except UsageError:
            if not is_pairs(folder):  # else another process was faster
                raise
    manifest = read_manifest(folder, "kind")
    if (left_out := manifest.get("left_out", {"rows": 0}))["rows"]:
        note(
            f"note: {source.reference}: left out for an empty prompt, answer or text: {left_out['rows']:,} rows, the "
            f"first is {left_out['first']}"
        )
    if unused := manifest.get("unused_columns"):
        note(f"note: {source.reference}: columns that are not used: {', '.join(unused)}")
    return folder


def _source_rows(
    source: Source, watch: Callable[[Iterable[Any]], Iterable[Any]], facts: Mapping[str, Any]
) -> Iterator[Any]:
    """Yield first the kind of a source's rows, then each with its split; complete `left_out` and `unused_columns`."""
    kind: Kind | None = None
    equal: list[str] = []
    percent, own = source.validation_split_percentage, source.has_own_splits()
    for part in source.parts_of():
        for name, _, rows in source.rows(part):
            for place, row in watch(rows):
                if part.path is not None and kind_of(part.path) == "text":
                    if not row["story"].strip():  # after the last separator
                        continue
                    row = {"text": row["story"].strip()}
                if part.path is None or kind_of(part.path) == "parquet":
                    row = _without_nulls(row)
                try:
                    this, pair = read_prompt(row) if "columns" in facts else read_row(row)
                except UsageError as error:
                    raise UsageError(f"{name}: {place}: {error}") from None
                found, known = facts["unused_columns"], TAKEN.get(this, set())
                if this in PROMPTS:
                    found, known = facts["columns"], {"prompt", "record_id"}
                others = [column for column in row if column not in known and row[column] is not None]
                found.extend(sorted(set(others) - set(found)))
                if _is_empty(pair):
                    facts["left_out"]["rows"] += 1
                    facts["left_out"].setdefault("first", f"{name}: {place}")
                    continue
                if kind is None:
                    kind = this
                    yield kind
                if this != kind:
                    raise UsageError(f"{name}: {place}: a row of {this} after rows of {kind}; give one kind")
                if this in PREFERENCES and side_row(pair, "chosen") == side_row(pair, "rejected"):
                    equal.append(f"{name}: {place}")
                split = split_for(part.split if own else None, pair["record_id"], percent)
                if split is not None:
                    yield split, pair
    if equal:
        raise UsageError(
            f"{equal[0]}: chosen and rejected are equal, and nothing is preferred; {len(equal):,} such "
            f"row{'s' if len(equal) > 1 else ''}: remove them"
        )
    if kind is None:
        empty = "only rows with an empty prompt, answer or text" if facts["left_out"]["rows"] else "no rows"
        raise UsageError(f"{source.reference} has {empty}; give another data set")


def _without_nulls(value: Any) -> Any:
    """Return a value of Arrow without the nulls that it puts where other rows have a field."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def is_blank(text: str | None) -> bool:
    """Whether a text has nothing to read: no character, or only blanks and invisible characters.

    >>> is_blank("\\n \\u200b"), is_blank(".")
    (True, False)
    """
    return not any(character.isprintable() and character != " " for character in text or "")


def _is_empty(row: Row) -> bool:
    """Whether a text, a prompt or an answer is blank; an answer may consist of other fields, such as tool calls."""
    if "columns" in row:
        asked = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        return is_blank(asked)
    if isinstance(row.get("prompt"), list):
        return any(_is_empty(side_row(row, side)) for side in SIDES)
    if "messages" not in row:
        return any(is_blank(row[column]) for column in row if column != "record_id")
    messages = [message for message in as_conversation(row)[0] if message["role"] in ("user", "assistant")]
    return any(message.keys() <= {"role", "content"} and is_blank(message.get("content")) for message in messages)


def side_row(row: Row, side: Side) -> Row:
    """Return one side of a preference as a row of pairs or of conversations.

    >>> side_row({"record_id": "a", "prompt": "How far?", "chosen": "12 km", "rejected": "Far."}, "chosen")
    {'record_id': 'a', 'prompt': 'How far?', 'completion': '12 km', 'ended': None}
    """
    if isinstance(row["prompt"], str):
        own = {"completion": row[side], "ended": row.get(f"ended_{side}")}
        return {"record_id": row["record_id"], "prompt": row["prompt"], **own}
    further = json.loads(row.get("further") or "{}").get(side)
    messages = row["prompt"] + row[side]
    return {
        "record_id": row["record_id"], "messages": messages, "num_prompt": len(row["prompt"]), "further": further,
    }  # fmt: skip


def read_row(row: Any) -> tuple[Kind, Row]:
    """Return the kind of a row of any data set, and its columns in one form.

    Raises:
        UsageError: for a row without prompt and completion, messages, text, or chosen and rejected, or with one of
            another type.

    >>> read_row({"prompt": "How far?", "completion": "12 km", "city": "Rome"})[1]["completion"]
    '12 km'
    """
    if not isinstance(row, Mapping):
        raise UsageError(f"{row!r:.60} is not an object; give rows with prompt and completion")
    known = [column for column in ("prompt", "completion", "messages", "text", *SIDES) if column in row]
    given = [column for column in known if row[column] is not None]
    if {"prompt", *SIDES} <= set(given):
        return _preference(row)
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
        return "conversations", _conversation(prompt + completion, len(prompt), row)
    if "messages" in given:
        return "conversations", _conversation(_messages(row["messages"], "messages"), 0, row)
    if "text" in given:
        if not isinstance(row["text"], str):
            raise UsageError(f"column text is {type(row['text']).__name__}; it must be text")
        return "texts", _named({"text": row["text"]})
    if missing := [column for column in known if row[column] is None]:
        raise UsageError(f"{' and '.join(missing)} is missing a value; add it, or remove the row")
    advice = "rename them"
    if isinstance(row.get("conversations"), (list, tuple)):  # ShareGPT's, with from and value
        advice = f"rename it to messages, each with role ({', '.join(ROLES)}) and content"
    if "story" in row:
        advice = "make pairs of stories with lm-trials prepare ingest and instruct"
    if set(SIDES) <= set(given):
        advice = "move what both sides share to a column prompt"
    columns = ", ".join(map(str, row)) or "none"
    raise UsageError(
        f"no columns prompt and completion, messages, text, or prompt, chosen and rejected; the columns are {columns}; "
        f"{advice}"
    )


def read_prompt(row: Any) -> tuple[Kind, Row]:
    """Return the kind of a row that is read for its prompt, and its prompt; `columns` is JSON of all others.

    Raises:
        UsageError: for a row without a prompt, or with one of another type.

    >>> read_prompt({"prompt": "Use cat.", "words": ["cat"]})[1]["columns"]
    '{"words": ["cat"]}'
    """
    if not isinstance(row, Mapping) or row.get("prompt") is None:
        kind, pair = read_row(row)  # raises where there are no messages either
        if kind != "conversations":
            raise UsageError(f"no column prompt, or messages; the columns are {', '.join(map(str, row))}; rename them")
        last = max(place for place, message in enumerate(pair["messages"]) if message["role"] == "assistant")
        asked = {"prompt": pair["messages"][:last], "further": pair.get("further")}
        kind = "conversation_prompts"
    elif isinstance(row["prompt"], str):
        kind, asked = "prompts", {"prompt": row["prompt"]}
    else:
        # An answer, which is none of the prompt, lets `tools` and fields of messages be read as in a conversation.
        messages = _messages(row["prompt"], "prompt")
        whole = _conversation([*messages, {"role": "assistant", "content": ""}], len(messages), row)
        kind, asked = "conversation_prompts", {"prompt": _texts(messages), "further": whole.get("further")}
    others = {name: row[name] for name in row if name not in ("prompt", "record_id") and row[name] is not None}
    columns = json.dumps(others, ensure_ascii=False, default=str)
    return kind, _named({**{name: value for name, value in asked.items() if value is not None}, "columns": columns})


def _preference(row: Mapping[str, Any]) -> tuple[Kind, Row]:
    columns = ("prompt", *SIDES)
    texts = [column for column in columns if isinstance(row[column], str)]
    if len(texts) == len(columns):
        return "preferences", _named({column: row[column] for column in columns})
    if texts:
        other = next(column for column in columns if column not in texts)
        raise UsageError(
            f"{texts[0]} is text and {other} is {type(row[other]).__name__}; prompt, chosen and rejected must all be "
            "text, or all messages"
        )
    prompt = _messages(row["prompt"], "prompt")
    found: Row = {"prompt": _texts(prompt)}
    further = {}
    for side in SIDES:
        messages = _messages(row[side], side)
        if others := [message["role"] for message in messages if message["role"] != "assistant"]:
            raise UsageError(
                f"{side} has a message of role {others[0]}; move what both sides share to prompt, and leave the "
                "assistant's messages"
            )
        found[side] = _texts(messages)
        further[side] = _conversation(prompt + messages, len(prompt), row).get("further")
    if any(further.values()):
        found["further"] = json.dumps(further, ensure_ascii=False)
    return "conversation_preferences", _named(found)


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _named(row: Row) -> Row:
    """Add a row's name, which follows from its content, as for a story."""
    check_unicode(json.dumps(row, ensure_ascii=False))
    return {"record_id": record_id(json.dumps(row, sort_keys=True)), **row}


def _conversation(messages: list[dict[str, Any]], num_prompt: int, row: Mapping[str, Any]) -> Row:
    """Return a row of messages; `further` has what they and the row have beside roles and texts."""
    if all(message["role"] != "assistant" for message in messages[num_prompt:]):
        raise UsageError("a conversation has no answer; add a last message of role assistant")
    fields = [{name: message[name] for name in message if name not in ("role", "content")} for message in messages]
    options = {name: _objects(row[name], name) for name in OPTIONS if row.get(name)}
    named: Row = {"messages": _texts(messages), "num_prompt": num_prompt}
    if options or any(fields):
        named["further"] = json.dumps({"messages": fields, **options}, ensure_ascii=False, default=str)
    return _named(named)


def _objects(value: Any, column: str) -> list[Any]:
    """Return a list of objects, which may be given as JSON."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, Mapping) for each in found):
        raise UsageError(f"{column} is {value!r:.60}; it must be a list of objects, or its JSON")
    return list(found)


def _messages(value: Any, column: str) -> list[dict[str, Any]]:
    """Return messages with role, content and their other fields that are not empty."""
    if not isinstance(value, (list, tuple)) or not value:
        text = "" if column == "messages" else "text, or "
        raise UsageError(f"{column} is {value!r:.40}; it must be {text}a list of messages with role and content")
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message:
            raise UsageError(f"{column} contains {message!r:.60}; a message has role and content")
        if (role := message["role"]) not in ROLES:
            raise UsageError(f"a message of {column} has the role {role!r}; {did_you_mean(role, ROLES)}")
        more = {name: message[name] for name in message if name not in ("role", "content")}
        more = {name: field for name, field in more.items() if field not in (None, "", [], {})}
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            content = _text_of(content, column)
        if content is None and not (more and role == "assistant"):
            raise UsageError(f"{column} contains {message!r:.60}; a message has role and content")
        if not isinstance(content, str | None):
            raise UsageError(f"content of a message of {column} is {type(content).__name__}; it must be text")
        if "tool_calls" in more:
            more["tool_calls"] = [_called(call) for call in _objects(more["tool_calls"], "tool_calls")]
        messages.append({"role": role, "content": content, **more})
    return messages


def _text_of(parts: Any, column: str) -> str:
    """Return the text of a content that is a list of one text part."""
    kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in parts]
    if kinds != ["text"] or not isinstance(parts[0].get("text"), str):
        raise UsageError(
            f"content of a message of {column} has the parts {', '.join(map(str, kinds)) or 'none'}; only one part of "
            "type text is supported, so join the texts and remove the others"
        )
    return parts[0]["text"]


def _called(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool call with its arguments as an object: chat templates would quote JSON a second time."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        raise UsageError(f"arguments of a tool call are {function['arguments']!r:.60}; they must be JSON") from None
