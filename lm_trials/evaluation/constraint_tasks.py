"""Constraint tasks: prompts that ask for a story with certain words and features, of records or of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, did_you_mean
from lm_trials.data.datasets import open_prepared
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.flags import read_yaml
from lm_trials.pairs.layouts import Message
from lm_trials.pairs.pairs import PairSet
from lm_trials.stories.records import record_id

COLUMNS = ("words", "features")


@dataclass(frozen=True)
class Task:
    """What a model is asked for.

    Attributes:
        record_id: of the record; of a prompt of a file, of the prompt.
        prompt: what is asked for, or the beginning that is to be completed.
        words, features: that the story is to have; none of a file's prompts.
        story: the record's own; empty where there is none.
        before: what was said before the prompt in a conversation, a system message for one.
    """

    record_id: str
    prompt: str
    words: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    story: str = ""
    before: tuple[Message, ...] = ()


def pair_tasks(name: str, data_cache_dir: Path, split: str, count: int) -> list[Task]:
    """Return the first `count` prompts of a split of a data set of pairs.

    Raises:
        UsageError: where it is none, has no such rows, or does not say what its prompts ask for.
    """
    made = "make it with prepare_tinystories.py instruct"
    pairs = open_prepared(name, data_cache_dir, "dataset_name", made).pairs()
    if split not in pairs.splits:
        raise UsageError(f"--dataset_split {split}: {did_you_mean(split, pairs.splits)}")
    rows = pairs.splits[split]
    if missing := [column for column in COLUMNS if column not in rows.column_names]:
        raise UsageError(
            f"{name} has no column {' and '.join(missing)}, so what its prompts ask for is not known; make it with "
            "prepare_tinystories.py instruct, or give --prompts FILE, of which length and end are scored"
        )
    if not len(rows):
        raise UsageError(f"the {split} split of {name} has no prompt; prepare more stories")
    return [_task(pairs, row) for row in rows.select(range(min(count, len(rows))))]


def _task(pairs: PairSet, row: dict[str, Any]) -> Task:
    words, features = tuple(row["words"] or ()), tuple(row["features"] or ())
    if pairs.kind == "pairs":
        return Task(row["record_id"], row["prompt"], words, features, row["completion"])
    if pairs.kind != "conversations":
        raise UsageError(f"{pairs.name} holds {pairs.kind} without prompts; give a data set of pairs or conversations")
    said = [message["role"] for message in row["messages"]]
    if "assistant" not in said[1:]:
        raise UsageError(f"a conversation of {pairs.name} has no answer; give one with an assistant's second message")
    answer = said.index("assistant", 1)
    *before, asked = row["messages"][:answer]
    return Task(row["record_id"], asked["content"], words, features, row["messages"][answer]["content"], tuple(before))


def file_tasks(path: Path) -> list[Task]:
    """Return the prompts of a file: a YAML list of texts, or of any other file each line.

    Raises:
        UsageError: for one that cannot be read, or has no prompt.
    """
    if path.suffix in (".yaml", ".yml"):
        try:
            texts = read_yaml(path)
        except UsageError as error:
            raise UsageError(f"--prompts {path}: {error}") from None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"--prompts {path} holds no list of texts; write each after a dash, `- One day, ...`")
    else:
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts {path} cannot be read ({error}); give a text or YAML file") from None
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"--prompts {path} has no prompt; write one a line")
    return [Task(record_id(text), text) for text in texts]


def task_prompts(teller: Storyteller, tasks: Sequence[Task]) -> list[list[int]]:
    """Return the ids that a model is given for each task."""
    if teller.mode != "chat":
        return teller.prompts([task.prompt for task in tasks])
    return [teller.conversation([*task.before, {"role": "user", "content": task.prompt}]) for task in tasks]
