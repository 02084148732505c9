"""Tokens of pairs: the examples of fine-tuning, tokenized once for a tokenizer, a layout and a length.

data/<set>/examples-<hash>/   DatasetDict: record_id, input_ids, completion_mask; memory-mapped

Of preferences record_id, prompt_ids, chosen_ids, rejected_ids; of prompts that a model answers record_id, prompt_ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from lm_trials.console import UsageError, note
from lm_trials.files import MadeMeanwhileError, file_sums, finished_folder, write_json
from lm_trials.pairs import layouts
from lm_trials.pairs.layouts import Example, Layout
from lm_trials.pairs.pairs import PREFERENCES, SIDES, PairSet, side_row
from lm_trials.stories.arrow_files import ArrowFile
from lm_trials.stories.corpora import MANIFEST, load_splits, read_manifest, save_splits
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.stores import num_ids_of, store_schema
from lm_trials.tokens.tokenizers import tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
Overlong = Literal["drop", "cut"]


class Preference(NamedTuple):
    """A tokenized preference: the ids that a model answers, and those of each answer."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Prompt(NamedTuple):
    """The ids that a model answers."""

    prompt_ids: list[int]


Tokens = Example | Preference | Prompt


def choose_layout(
    pairs: PairSet, tokenizer: PreTrainedTokenizerBase, asked: Layout | Literal["auto"] = "auto"
) -> Layout:
    """Return the layout of a data set's examples: as asked, else by the kind of its rows and the tokenizer's template.

    Raises:
        UsageError: for a layout that the rows cannot have, or `chat` without a template.
    """
    if pairs.kind == "texts":
        if asked not in ("auto", "text"):
            raise UsageError(
                f"--prompt_layout {asked}: {pairs.name} has texts and no prompts; remove the flag, or give a data set "
                "with columns prompt and completion"
            )
        return "text"
    if asked == "text":
        raise UsageError(f"--prompt_layout text: {pairs.name} has prompts; give instruct or chat")
    conversations = "conversation" in pairs.kind
    if conversations and asked == "instruct":
        raise UsageError(f"--prompt_layout instruct: {pairs.name} has conversations; remove the flag, or give chat")
    is_chat = conversations or bool(tokenizer.chat_template)
    layout: Layout = asked if asked != "auto" else "chat" if is_chat else "instruct"
    if layout == "chat":
        name = tokenizer.name_or_path or "this tokenizer"
        if not tokenizer.chat_template:
            raise UsageError(
                f"--prompt_layout chat: {name} has no chat template; give one with lm-trials tune "
                "--chat_template_path, or give another layout"
            )
        layouts.check_template(tokenizer, None, f"the chat template of {name}")
        with suppress(UsageError):  # a template that begins with a system message takes none that does not
            if layouts.turn_end(tokenizer, followed=False) is None:
                note(
                    f"note: the chat template of {name} ends no answer with a token, so the model does not learn to "
                    "end; write {{ eos_token }} after an answer in a template for lm-trials tune --chat_template_path"
                )
    return layout


def make_examples(
    pairs: PairSet,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    max_length: int | None,
    overlong: Overlong,
    watch: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda rows, total, split: rows,
    prompts_only: bool = False,
) -> Path:
    """Tokenize a data set of pairs, once, and return the folder of its examples.

    Args:
        folder: of the data set, `data/<set>`.
        max_length: most tokens of an example, of a preference those of its longer side; longer ones are counted, and
            dropped or cut.  None for no limit.
        watch: may wrap the rows of a split with a progress bar.
        prompts_only: write the prompts that a model is to answer, one for each row.

    Raises:
        UsageError: if no example of the train split fits.
    """
    template = str(tokenizer.chat_template or "")
    # The tokenizer's hash has BOS and EOS; a template can render its other special tokens too.
    others = {
        name: token for name, token in tokenizer.special_tokens_map.items() if name not in ("bos_token", "eos_token")
    }
    if rendered := {name: token for name, token in others.items() if name in template}:
        template += json.dumps(rendered, sort_keys=True)
    made_from = {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "chat_template": hashlib.sha256(template.encode()).hexdigest()[:16] if layout == "chat" else None,
        "layout": layout,
        "max_length": max_length,
        "overlong": overlong,
        "content": pairs.described["content"],
        **({"prompts_only": True} if prompts_only else {}),
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"examples-{name}"
    if (place / MANIFEST).is_file():
        return place
    ids = store_schema(num_ids_of(tokenizer))["input_ids"]
    kind = Prompt if prompts_only else Preference if pairs.kind in PREFERENCES else Example
    columns = {name: List(Value("uint8")) if name == "completion_mask" else ids for name in kind._fields}
    schema = Features({"record_id": Value("string"), **columns})
    tokenized: Any = {Prompt: _prompts, Preference: _preferences, Example: _examples}[kind]
    counts: dict[str, dict[str, int]] = {}
    digest = hashlib.sha256()
    with suppress(MadeMeanwhileError), finished_folder(place) as unfinished:
        for split in SPLITS:
            batches = pairs.splits[split].with_format("arrow").iter(BATCH)
            rows = watch(chain.from_iterable(map(pa.Table.to_pylist, batches)), len(pairs.splits[split]), split)
            with ArrowFile(unfinished / f"{split}.arrow", schema) as file:
                counts[split] = _write(file, tokenized(rows, tokenizer, layout), max_length, overlong, digest)
        if not counts["train"]["examples"]:
            shortest = counts["train"]["shortest"]
            raise UsageError(
                f"--max_length {max_length}: no example of {pairs.name} fits; the shortest has {shortest} tokens"
            )
        save_splits(unfinished, unfinished)
        token_ids = digest.hexdigest()[:16]
        manifest = {**made_from, "token_ids": token_ids, "counts": counts, "files": file_sums(unfinished)}
        write_json(unfinished / MANIFEST, manifest)
    return place


def _write(
    file: ArrowFile, examples: Iterable[tuple[str, Tokens]], max_length: int | None, overlong: Overlong, digest: Any
) -> dict[str, int]:
    names = ("examples", "tokens", "completion_tokens", "overlong", "dropped", "cut", "shortest")
    counts = dict.fromkeys(names, 0)
    for identifier, example in examples:
        length = _length(example)
        counts["shortest"] = min(counts["shortest"] or length, length)
        kept = example if max_length is None else _fitted(example, max_length, overlong)
        if kept is not example:
            counts["overlong"] += 1
            counts["dropped" if kept is None else "cut"] += 1
        if kept is None:
            continue
        counts["examples"] += 1
        counts["tokens"] += sum(map(len, _sequences(kept)))
        counts["completion_tokens"] += _num_completion(kept)
        digest.update(np.fromiter(chain(map(len, kept[:-1]), *kept), dtype="<i4").tobytes())
        file.write({"record_id": identifier, **kept._asdict()})
    return counts


def _sequences(example: Tokens) -> list[list[int]]:
    """Return what a model reads of an example, of a preference each side after the prompt."""
    if isinstance(example, Preference):
        return [example.prompt_ids + example.chosen_ids, example.prompt_ids + example.rejected_ids]
    return [example[0]]


def _length(example: Tokens) -> int:
    return max(map(len, _sequences(example)))


def _num_completion(example: Tokens) -> int:
    if isinstance(example, Example):  # its first token is predicted from nothing and counts in no loss
        return sum(example.completion_mask[1:])
    return sum(map(len, example[1:]))


def _fitted(example: Tokens, max_length: int, overlong: Overlong) -> Tokens | None:
    """Return an example as `layouts.fitted`; a preference is dropped if a side is, or if its sides are equal then."""
    if isinstance(example, Example):
        return layouts.fitted(example, max_length, overlong)
    if _length(example) <= max_length:
        return example
    room = max_length - len(example.prompt_ids)
    if overlong == "drop" or room < 1 or not isinstance(example, Preference):
        return None
    cut = Preference(example.prompt_ids, example.chosen_ids[:room], example.rejected_ids[:room])
    return None if cut.chosen_ids == cut.rejected_ids else cut


def _prompts(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> Iterator[tuple[str, Prompt]]:
    """Yield the name and the prompt of each row; a conversation's is all before its last answer."""
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        names = [row["record_id"] for row in batch]
        if layout == "instruct":
            prompts = layouts.instruct_prompts(tokenizer, [row["prompt"] for row in batch])
        else:
            asked = map(asked_of, batch)
            prompts = [layouts.chat_prompt(tokenizer, messages, **options) for messages, options in asked]
        yield from zip(names, map(Prompt, prompts), strict=True)


def asked_of(row: dict[str, Any]) -> tuple[list[layouts.Message], layouts.Options]:
    """Return the messages that a model is to answer, of a row of any kind with prompts, and their options.

    >>> asked_of({"record_id": "a", "prompt": "How far?", "chosen": "12 km", "rejected": "Far."})
    ([{'role': 'user', 'content': 'How far?'}], {})
    """
    if "columns" in row:
        if isinstance(row["prompt"], str):
            return [{"role": "user", "content": row["prompt"]}], {}
        further = json.loads(row.get("further") or "{}")
        fields = further.pop("messages", [{}] * len(row["prompt"]))
        return [{**text, **more} for text, more in zip(row["prompt"], fields, strict=False)], further
    if "rejected" in row:
        row = side_row(row, "chosen")
    messages, num_prompt, options = layouts.as_conversation(row)
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[: num_prompt or last]), options


def _preferences(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> Iterator[tuple[str, Preference]]:
    """Yield the name of each preference, and its ids as those of two examples that share the prompt's."""
    first, *others = tee(rows, 3)
    sides = [
        _examples(map(partial(side_row, side=side), each), tokenizer, layout)
        for side, each in zip(SIDES, others, strict=True)
    ]
    for (name, (prompt,)), *answered in zip(_prompts(first, tokenizer, layout), *sides, strict=True):
        preference = Preference(prompt, *(example.input_ids[len(prompt) :] for _, example in answered))
        if preference.chosen_ids == preference.rejected_ids:  # texts that a template trims, for example
            raise UsageError(
                f"chosen and rejected have the same tokens in the layout {layout}, and nothing is preferred, after the "
                f"prompt {str(tokenizer.decode(prompt, skip_special_tokens=True))[:60]!r}; remove such rows"
            )
        yield name, preference


def _examples(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> Iterator[tuple[str, Example]]:
    """Yield the name and the example of each row; a UsageError names the row that a chat template does not take."""
    rows = iter(rows)
    checked: set[tuple[Any, ...]] = set()
    while batch := list(islice(rows, BATCH)):
        names = [row["record_id"] for row in batch]
        if layout == "text":
            yield from zip(names, layouts.text_examples(tokenizer, [row["text"] for row in batch]), strict=True)
        elif layout == "instruct":
            prompts, completions = ([row[column] for row in batch] for column in ("prompt", "completion"))
            ended = [row.get("ended") is not False for row in batch]
            yield from zip(names, layouts.instruct_examples(tokenizer, prompts, completions, ended), strict=True)
        else:
            conversations = [layouts.as_conversation(row) for row in batch]
            try:
                examples = _chat_examples(tokenizer, conversations, checked)
            except UsageError:
                for conversation in conversations:  # which of them
                    try:
                        _chat_examples(tokenizer, [conversation], checked)
                    except UsageError as error:
                        first = conversation[0][0].get("content")
                        raise UsageError(f"the conversation {first!r:.60}: {error}") from None
                raise
            yield from zip(names, examples, strict=True)


def _chat_examples(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[layouts.Conversation], checked: set[tuple[Any, ...]]
) -> list[Example]:
    for messages, _, options in conversations:
        # What a template renders depends on which roles and fields there are, and hardly on their texts.
        shape = (*((message["role"], *sorted(message)) for message in messages), *options)
        if shape not in checked:
            layouts.check_conversation(tokenizer, messages, options)
            checked.add(shape)
    return layouts.chat_examples(tokenizer, conversations)


class ExampleStore:
    """The examples of one split, in the order of the data set; memory-mapped.

    >>> import tempfile
    >>> from lm_trials.pairs.pairs import open_pairs, write_pairs
    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["How far is Rome? 12 km"] * 9, vocab_size=330)
    >>> data = Path(tempfile.mkdtemp())
    >>> row = {"record_id": "a", "prompt": "How far?", "completion": "12 km"}
    >>> manifest = write_pairs([("train", row)], data / "far", "pairs", {})
    >>> folder = make_examples(open_pairs("far", data), data / "far", tokenizer, "instruct", 64, "drop")
    >>> store = ExampleStore(folder, "train")
    >>> len(store), tokenizer.decode(store.input_ids(0)[store.completion_mask(0) == 1])
    (1, '<s> 12 km</s>')
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.counts: dict[str, int] = read_manifest(folder, "counts")["counts"][split]
        self.rows: Dataset = load_splits(folder)[split].with_format("numpy")

    def __len__(self) -> int:
        return len(self.rows)

    def record_id(self, number: int) -> str:
        """Return the name of an example."""
        return str(self.rows[number]["record_id"])

    def record_ids(self) -> pa.ChunkedArray:
        """Return the names of all examples."""
        return self.rows.data.column("record_id")

    def input_ids(self, number: int) -> np.ndarray:
        """Return the (n,) ids of an example, int64."""
        return np.asarray(self.rows[number]["input_ids"], dtype=np.int64)

    def completion_mask(self, number: int) -> np.ndarray:
        """Return its (n,) mask: 1 for tokens of the completion."""
        return np.asarray(self.rows[number]["completion_mask"], dtype=np.int64)

    def lengths(self, completion_only: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the (N,) number of tokens of each example, and the (N,) number of those that count in the loss."""
        table = self.rows.with_format("arrow")[:]
        lengths_N = pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
        if not completion_only or not len(lengths_N):
            return lengths_N, np.maximum(lengths_N - 1, 0)
        return lengths_N, np.concatenate([_counted(chunk) for chunk in table["completion_mask"].chunks])

    def labelled(self, completion_only: bool) -> Dataset:
        """Return a Dataset of `input_ids` and `labels`, -100 for tokens that count in no loss, computed when read."""
        # From a column named `completion_mask`, trl would compute labels of its own.
        rows = self.rows.with_format(None).rename_column("completion_mask", "of_completion")
        return rows.with_transform(partial(with_labels, completion_only=completion_only))


class PromptStore:
    """The prompts, or the preferences, of one split, in the order of the data set; memory-mapped."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.counts: dict[str, int] = read_manifest(folder, "counts")["counts"][split]
        self.rows: Dataset = load_splits(folder)[split]

    def __len__(self) -> int:
        return len(self.rows)

    def record_id(self, number: int) -> str:
        """Return the name of a row."""
        return str(self.rows[number]["record_id"])

    def tokens(self, number: int) -> Preference | Prompt:
        """Return the ids of a row."""
        row = self.rows[number]
        kind = Preference if "chosen_ids" in row else Prompt
        return kind(**{name: row[name] for name in kind._fields})

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the (N,) tokens of each prompt, and the (N,) tokens of its answers: 0 without any."""
        table = self.rows.with_format("arrow")[:]
        of = {
            name: pc.list_value_length(table[name]).to_numpy().astype(np.int64)
            for name in self.rows.column_names
            if name != "record_id"
        }
        return of.pop("prompt_ids"), np.array(sum(of.values(), np.zeros(len(self), dtype=np.int64)))


def _counted(masks: pa.ListArray) -> np.ndarray:
    """Return the number of ones in each mask, without the first token; no example is empty."""
    counted = [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(masks), BATCH):  # a part at a time: numpy copies bytes to int64 before it sums them
        some = masks.slice(first, BATCH)
        flat_T = some.flatten().to_numpy()
        starts_N = np.concatenate([[0], np.cumsum(pc.list_value_length(some).to_numpy())[:-1]])
        counted.append(np.add.reduceat(flat_T, starts_N, dtype=np.int64) - flat_T[starts_N])
    return np.concatenate(counted)


def with_labels(batch: dict[str, list], completion_only: bool) -> dict[str, list]:
    """Return ids and labels of a batch of examples; the first token of each is not predicted.

    >>> with_labels({"input_ids": [[2, 5, 1, 6]], "of_completion": [[0, 0, 1, 1]]}, completion_only=True)["labels"]
    [[-100, -100, 1, 6]]
    """
    labels = []
    for ids, mask in zip(batch["input_ids"], batch["of_completion"], strict=True):
        counted_N = np.asarray(mask) == 1 if completion_only else np.ones(len(ids), dtype=bool)
        counted_N[:1] = False
        labels.append(np.where(counted_N, np.asarray(ids, dtype=np.int64), -100).tolist())
    return {"input_ids": [list(ids) for ids in batch["input_ids"]], "labels": labels}
