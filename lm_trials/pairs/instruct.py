"""Instruct sets: the stories of a corpus, each with a prompt, as pairs or as conversations.

A row depends on its record, the style and the seed alone.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datasets import Features, List, Value

from lm_trials.console import UsageError, show_facts, show_pairs
from lm_trials.pairs.layouts import chat_length, instruct_examples, story_template
from lm_trials.pairs.pairs import Kind, Row, check_free, write_pairs
from lm_trials.pairs.prompts import Style, asked_prompt, later_turns
from lm_trials.stories.corpora import open_records, read_manifest
from lm_trials.stories.records import SPLITS, Split
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]
BATCH = 1000
MAX_LENGTH = 350  # tokens of an example at most, as published
COLUMNS = Features({"words": List(Value("string")), "features": List(Value("string")), "ended": Value("bool")})
"""Columns beside those of the rows' kind."""


@dataclass(frozen=True)
class Recipe:
    """How records become rows.

    Attributes:
        turns: most turns of a conversation: the story, its summary, its words.
        seed: of the wording of the questions in later turns.
        tokenizer: counts the tokens; without one nothing is counted, dropped or cut.
        max_length: most tokens of an example; longer ones are dropped or cut.
    """

    style: Style
    conversational: bool = False
    turns: int = 1
    seed: int = 0
    tokenizer: PreTrainedTokenizerFast | None = None
    max_length: int = MAX_LENGTH
    overlong: Literal["drop", "cut"] = "drop"

    @property
    def kind(self) -> Kind:
        """The kind of the rows."""
        return "conversations" if self.conversational else "pairs"

    def described(self) -> dict[str, Any]:
        """Return the recipe's entries in the manifest."""
        described: dict[str, Any] = {"style": self.style, "turns": self.turns, "seed": self.seed}
        if self.tokenizer is not None:
            described |= {"tokenizer_hash": tokenizer_hash(self.tokenizer), "max_length": self.max_length}
            described["overlong"] = self.overlong
            if self.conversational:
                described["chat_template"] = hashlib.sha256(story_template(self.tokenizer).encode()).hexdigest()[:16]
        return described


@dataclass
class Tally:
    """Counts of one split, and the length of its shortest measured example, in tokens."""

    counts: Counter[str] = field(default_factory=Counter)
    shortest: int | None = None

    def measured(self, length: int) -> None:
        """Count the length of an example."""
        self.counts["measured"] += 1
        self.shortest = length if self.shortest is None else min(length, self.shortest)


def make_instruct_set(
    corpus: Path, folder: Path, recipe: Recipe, watch: Watch = lambda batches, total, split: batches, keep: bool = True
) -> dict[str, Any]:
    """Write the stories of a corpus as the data set `folder`; returns its manifest, and two rows as `examples`.

    Args:
        watch: `watch(batches, number_of_records, split)` may wrap the stream of batches with a progress bar.
        keep: False only counts and writes nothing.

    Raises:
        UsageError: if the folder exists, the corpus does not, or the train split has no row.
    """
    check_free(folder)
    records = open_records(corpus)
    counts: dict[str, Counter[str]] = {}
    facts = {
        "source": {"corpus": corpus.name, "content": read_manifest(corpus, "content")["content"]},
        **recipe.described(),
        "counts": counts,  # filled while the rows are made, which is before the manifest is written
    }
    examples: list[Row] = []

    def rows() -> Iterator[tuple[Split, Row]]:
        for split in SPLITS:
            tally = Tally()
            counts[split] = tally.counts
            for batch in watch(records[split].iter(BATCH), len(records[split]), split):
                taken = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
                for row in instruct_rows(taken, recipe, tally):
                    tally.counts["rows"] += 1
                    if len(examples) < 2:
                        examples.append(row)
                    elif examples[1]["ended"] and not row["ended"]:
                        examples[1] = row  # show one that was cut, if there is one
                    yield split, row
            if split == "train" and not tally.counts["rows"]:
                raise _nothing_left(corpus.name, recipe, tally)

    if keep:
        manifest = write_pairs(rows(), folder, recipe.kind, facts, COLUMNS)
    else:
        made = Counter(split for split, _ in rows())
        manifest = {"kind": recipe.kind, **facts, "rows": {split: made[split] for split in SPLITS}}
    return {**manifest, "examples": examples}


def instruct_rows(records: Iterable[Mapping[str, Any]], recipe: Recipe, tally: Tally) -> Iterator[Row]:
    """Yield the rows of some records, in their order; count those that are left out."""
    asked = []
    for record in records:
        tally.counts["records"] += 1
        if not (story := record["story"].strip()):
            tally.counts["no_story"] += 1
        elif prompt := asked_prompt(record, recipe.style, tally.counts):
            asked.append((record, prompt, story))
    if not asked:
        return
    texts: list[Row] = [{"prompt": prompt, "completion": story} for _, prompt, story in asked]
    if recipe.conversational:
        following = later_turns([record for record, _, _ in asked], recipe.turns, recipe.seed, tally.counts)
        turns = [[(prompt, story), *more] for (_, prompt, story), more in zip(asked, following, strict=True)]
        texts = [{"messages": _messages(conversation), "num_prompt": 0} for conversation in turns]
    rows = [
        {"record_id": record["record_id"], **text}
        | {"words": list(record["words"]), "features": list(record["features"]), "ended": True}
        for (record, _, _), text in zip(asked, texts, strict=True)
    ]
    short = _short_conversations if recipe.conversational else _short_pairs
    yield from short(rows, recipe, tally)


def _messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _short_conversations(rows: Sequence[Row], recipe: Recipe, tally: Tally) -> Iterator[Row]:
    for row in rows:
        if recipe.tokenizer is not None:
            length = chat_length(recipe.tokenizer, row["messages"])
            tally.measured(length)
            if length > recipe.max_length:
                tally.counts["overlong"] += 1
                tally.counts["dropped"] += 1
                continue
        yield row


def _short_pairs(rows: Sequence[Row], recipe: Recipe, tally: Tally) -> Iterator[Row]:
    if recipe.tokenizer is None:
        yield from rows
        return
    prompts, stories = ([row[column] for row in rows] for column in ("prompt", "completion"))
    cut = None
    for row, example in zip(rows, instruct_examples(recipe.tokenizer, prompts, stories), strict=True):
        opening = example.completion_mask.index(1) + 1  # [EOS] prompt [BOS]
        tally.measured(opening + 1 if recipe.overlong == "cut" else len(example.input_ids))
        if len(example.input_ids) <= recipe.max_length:
            yield row
            continue
        tally.counts["overlong"] += 1
        if recipe.overlong == "cut":
            cut = cut or story_cutter(recipe.tokenizer)
            if story := cut(row["completion"], recipe.max_length - opening):
                tally.counts["cut"] += 1
                yield {**row, "completion": story, "ended": False}
                continue
        tally.counts["dropped"] += 1


def story_cutter(tokenizer: PreTrainedTokenizerFast) -> Callable[[str, int], str]:
    """Return a function that cuts a text after some number of tokens; the cut text has no more when tokenized again.

    A character of several tokens is never split.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=330)
    >>> cut = story_cutter(tokenizer)
    >>> cut("a cat sat\\non a mat", 4), cut("a cat \U0001f600", 4), cut("a cat", 0)
    ('a cat sat', 'a cat', '')
    """
    encode = batch_encoder(tokenizer)
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # as in `batch_encoder`, which does not return where tokens end

    def cut(text: str, num_tokens: int) -> str:
        ends = [end for _, end in backend.encode(text, add_special_tokens=False).offsets]
        end = ends[min(num_tokens, len(ends)) - 1] if num_tokens > 0 and ends else 0
        while end > 0:
            text = text[:end].rstrip()
            if len(encode([text])[0]) <= num_tokens:
                return text
            end = len(text) - 1
        return ""

    return cut


def _nothing_left(corpus: str, recipe: Recipe, tally: Tally) -> UsageError:
    """Return the error for a train split without a row."""
    if tally.shortest is not None and recipe.overlong == "cut":
        advice = f"the prompts of {corpus} leave no room for a story; give at least {tally.shortest}"
    elif tally.shortest is not None:
        advice = f"nothing of {corpus} fits; give at least {tally.shortest}, the tokens of the shortest example"
        advice += "" if recipe.conversational else ", or --overlong cut"
    elif recipe.style == "summary":
        return UsageError(f"--style summary: no story of {corpus} has a summary; give --style prompt")
    else:
        return UsageError(f"--style prompt: no story of {corpus} has a prompt, words or features; give --style summary")
    return UsageError(f"--max_length {recipe.max_length}: {advice}")


def show_instruct_set(manifest: Mapping[str, Any], recipe: Recipe, facts: Mapping[str, str]) -> None:
    """Print the counts, the reasons for what was left out, two examples, and further `facts`."""
    total: Counter[str] = sum(manifest["counts"].values(), Counter())
    names = {
        "no_story": "without a story",
        "no_prompt": "without prompt, words or features",
        "no_summary": "without a summary",
        "dropped": "over-long",
    }
    left_out = [f"{total[name]:,} {words}" for name, words in names.items() if total[name]]
    shown = {
        recipe.kind: ", ".join(f"{count:,} {split}" for split, count in manifest["rows"].items()),
        "left out": ", ".join(left_out) or f"none of {total['records']:,} records",
        "over-long": _overlong_shown(recipe, total),
    }
    if recipe.style == "prompt":
        kinds = {"cleaned": "cleaned", "as_they_are": "as they are", "written": "written from words and features"}
        shown["prompts"] = ", ".join(f"{total[f'prompts_{kind}']:,} {words}" for kind, words in kinds.items())
    missing = {"turns_without_summary": "the summary", "turns_without_words": "the words"}
    for turn, (name, what) in enumerate(missing.items(), start=2):
        if recipe.turns >= turn:
            shown[f"turn {turn}"] = f"{what}; left out for {total[name]:,} records that have none"
    show_facts(f"{manifest['source']['corpus']}, style {recipe.style}", {**shown, **facts})
    columns = ("prompt", "completion") if recipe.kind == "pairs" else ("first message", "next messages")
    show_pairs("two examples", columns, [_sides(row) for row in manifest["examples"]])


def _overlong_shown(recipe: Recipe, total: Mapping[str, int]) -> str:
    if recipe.tokenizer is None:
        return "not counted and nothing cut; --vocab_size N or --tokenizer_name NAME counts them"
    what = f"{total['overlong']:,} of {total['measured']:,} have more than {recipe.max_length} tokens"
    if recipe.overlong == "drop" or not total["overlong"]:
        return f"{what}; left out" if total["overlong"] else what
    dropped = f", {total['dropped']:,} left out because of long prompts" if total["dropped"] else ""
    return f"{what}; {total['cut']:,} cut, and no EOS after them{dropped}"


def _sides(row: Row) -> tuple[str, str]:
    """Return an example's prompt and completion as text."""
    if "messages" not in row:
        return row["prompt"], row["completion"] + ("" if row["ended"] else " [cut here]")
    first, *rest = row["messages"]
    return first["content"], "\n\n".join(f"{message['role']}: {message['content']}" for message in rest)
