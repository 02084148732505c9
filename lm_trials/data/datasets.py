"""Data sets by name: the one place that resolves `--dataset_name`.

A prepared name in `--data_cache_dir` comes first (a protocol set, a corpus, a data set of pairs), then a path (a file,
a folder of shards, a data set saved by `datasets`), then the Hub.  `a+b`, or a configuration `a+b`, is a mixture.  All
kinds have the same methods for training, fine-tuning, evaluation and probes; a kind refuses those that it cannot have.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np

from lm_trials.console import UsageError, note, progress
from lm_trials.data.contents import content_name, contents_of, files_digest, hub_name
from lm_trials.data.documents import Documents, Tokenising, corpus_documents, set_documents, source_documents
from lm_trials.files import plain_name
from lm_trials.pairs.layouts import as_conversation
from lm_trials.pairs.pairs import (
    PREFERENCES,
    PROMPTS,
    PairSet,
    holds_pairs,
    is_pairs,
    open_pairs,
    prepare_pairs,
    side_row,
)
from lm_trials.protocols.set_texts import SetText, resolve_set, set_texts
from lm_trials.protocols.sets import is_set
from lm_trials.stories.corpora import is_corpus, open_records, prepare_source, read_manifest
from lm_trials.stories.records import SPLITS, Record, Split, make_record
from lm_trials.stories.sources import Source, open_source
from lm_trials.tokens.mixtures import mixed, parse_weights
from lm_trials.tokens.order import random_bits, shuffled

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Streaming = Literal["True", "CacheStream", "False"]
Watch = Callable[[Iterable[Any]], Iterable[Any]]
READ_BATCH = 1000
HELD_OUT = "validation"  # the default split of a prepared or Hub data set


@dataclass(frozen=True)
class Selection:
    """One split of a data set, or all of a path, as a stream of records.

    Attributes:
        name: for tables and folders.
        read: starts the stream; can be called again.
        fingerprint: of the content.
        total: number of records; None if not known before reading.
        parts: the names of the data's content (`contents.content_name`), for each part of a mixture.
        set_texts: of a protocol set, starts the stream of its texts with their prompts.
        title: its name at the terminal, if another: of a path the file's, with its suffix.
    """

    name: str
    read: Callable[[], Iterator[Record]]
    fingerprint: str
    total: int | None = None
    parts: tuple[frozenset[str], ...] = ()
    set_texts: Callable[[], Iterator[SetText]] | None = None
    title: str | None = None

    def prompts(self, count: int | None = None) -> list[SetText]:
        """Return the texts, with their prompts, of the first `count` documents, or of all.

        Raises:
            UsageError: for a data set without prompts, or a split without documents.
        """
        if self.set_texts is None:
            raise UsageError(
                f"--dataset_name: {self.name} has no prompts; name a protocol set, made with lm-trials prepare "
                "pretokenize --dataset_name NAME or lm-trials prepare protocol_set"
            )
        texts = list(itertools.islice(self.set_texts(), count))
        if not texts:
            raise UsageError(f"--dataset_name: {self.name} has no story and so no prompt; prepare more stories")
        return texts


class Text(NamedTuple):
    """One text of a prepared data set, and what asks for it."""

    record_id: str
    text: str
    prompt: str
    features: list[str]


@dataclass(frozen=True)
class PreparedTexts:
    """The texts of a prepared data set, readable from any row.

    Attributes:
        folder: of the data set.
        content: changes with any byte of the texts, prompts and features.
        num_rows: rows of each split.
        read: yields the texts of rows `start` to `stop` of a split, without those that a protocol filtered out.
    """

    folder: Path
    content: str
    num_rows: dict[Split, int]
    read: Callable[[Split, int, int], Iterator[Text]]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set.

    Attributes:
        name: as the user gave it.
        place: the folder of prepared data, `--data_cache_dir`.
        config: the configuration of a Hub data set, or the part of a folder.
    """

    name: str
    place: Path
    config: str | None = None

    kind: ClassVar[str]
    prepared: ClassVar[bool] = True
    has_prompts: ClassVar[bool] = False
    default_split: ClassVar[str | None] = HELD_OUT

    @property
    def members(self) -> tuple[DataSet, ...]:
        """The data sets of a mixture; of any other data set, itself."""
        return (self,)

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of the members."""
        return (1.0,)

    @property
    def label(self) -> str:
        """A short name for tables, logs and folders."""
        return Path(self.name).name

    @property
    def full_label(self) -> str:
        """A longer name, for two members of a mixture with one label."""
        return (self.config or self.name).replace("/", "-")

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of a split, at most `limit`; default: the validation split, of a path all.

        Raises:
            UsageError: for a split that does not exist.
        """
        raise self._unfit("stories", "name a corpus, a protocol set, a file or a Hub data set")

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records of a split as they were before a protocol changed them; None for one that it refused.

        `validation_split_percentage` is for a source without a validation split that is not prepared.
        """
        return self.select(split).read()

    def shuffled_stories(self, split: str | None, seed: int, buffer_size: int) -> Iterator[str]:
        """Yield the texts of a split, shuffled by the seed."""
        return shuffled((record["story"] for record in self.select(split).read()), seed, 0, buffer_size)

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return the tokens of its splits; they are made if missing.

        Raises:
            UsageError: for a split without stories; for a set of another tokenizer.
        """
        raise self._unfit("documents to train on", "fine-tune on it with lm-trials tune")

    def pairs(self, watch: Watch = iter) -> PairSet:
        """Return its prompts and completions, conversations or texts; they are prepared if they are not yet.

        Raises:
            UsageError: for a data set without them.
        """
        name = shlex.quote(self.label) if isinstance(self, Corpus) else "CORPUS"
        advice = f"make pairs of a corpus with lm-trials prepare instruct --corpus {name}"
        raise self._unfit("prompts with completions", advice)

    def prompts(self, watch: Watch = iter) -> PairSet:
        """Return its prompts with all its other columns, prepared if they are not yet; raises as `pairs`."""
        return self.pairs(watch)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return batches of the texts that a model trained on it learns to write, and their number if known."""
        texts = (record["story"] for record in self.stories("train") if record)
        return iter(lambda: list(itertools.islice(texts, READ_BATCH)), []), None

    def corpus(self) -> Path:
        """Return its corpus folder; a source is read into one first.

        Raises:
            UsageError: for a data set that is not a corpus.
        """
        raise self._unfit("corpus", "name a corpus, a file or a Hub data set")

    def as_prepared(self) -> DataSet:
        """Return the data set itself, or of a source what is prepared of it: a corpus, or pairs."""
        return self

    def texts(self) -> PreparedTexts:
        """Return its texts, each with its prompt.

        Raises:
            UsageError: for a data set that is not prepared, and for a mixture.
        """
        raise self._unfit("texts of its own", "name each of its data sets")

    def check_splits(self) -> None:
        """Check its splits as far as they are known before it is read.

        Raises:
            UsageError: for a source without a train split or validation stories.
        """

    def _unfit(self, wanted: str, advice: str) -> UsageError:
        return UsageError(f"--dataset_name: {self.name} is {self.kind} and has no {wanted}; {advice}")


@dataclass(frozen=True, kw_only=True)
class ProtocolSet(DataSet):
    """A corpus changed by a protocol; its texts have instruction lines before the story."""

    kind = "a protocol set"
    has_prompts = True

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the texts of a split as stories, so that instruction lines are scored, as they are trained on."""
        split = split or HELD_OUT
        _, corpus, protocol = resolve_set(self.name, self.place)
        open_records(corpus, split)  # raises for a split that does not exist
        content = content_name(read_manifest(corpus, "content")["content"], protocol.as_dict())
        return Selection(
            f"{self.name}-{split}",
            lambda: itertools.islice(self._records(split), limit),
            content,
            parts=(frozenset({content}),),
            set_texts=lambda: set_texts(self.name, self.place, split),
        )

    def _records(self, split: str) -> Iterator[Record]:
        for text in set_texts(self.name, self.place, split):
            yield make_record(text.text, words=text.words, features=text.features) | {"record_id": text.record_id}

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records that the filter kept, with the corpus's features, as instructions may name others."""
        records: Iterator[Any] = iter(open_records(self.corpus(), split))
        for text in set_texts(self.name, self.place, split):
            # The set has the corpus's order, without the records that the filter removed.
            record = next(record for record in records if record["record_id"] == text.record_id)
            yield None if text.refused else record | {"story": text.story}

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return the tokens of its splits, composed from those of its corpus."""
        return set_documents(self.name, self.place, tokenizer, how)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return the stories, and refusals, without instruction lines."""
        return ([text.story] for text in set_texts(self.name, self.place, "train")), None

    def corpus(self) -> Path:
        """Return the corpus that it was made of."""
        return resolve_set(self.name, self.place)[1]

    def texts(self) -> PreparedTexts:
        """Return its stories, or refusals; the prompt is the instruction lines.  Its rows are those of the corpus."""
        folder, corpus, protocol = resolve_set(self.name, self.place)

        def read(split: Split, start: int, stop: int) -> Iterator[Text]:
            for text in set_texts(self.name, self.place, split, start, stop):
                yield Text(text.record_id, text.story, text.prompt, text.features)

        manifest = read_manifest(corpus)
        content = content_name(files_digest(manifest.get("files", {})), protocol.as_dict())
        return PreparedTexts(folder, content, manifest["stories"], read)


@dataclass(frozen=True, kw_only=True)
class Corpus(DataSet):
    """Records prepared in `folder`."""

    folder: Path

    kind = "a corpus of stories"

    @property
    def label(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of a split."""
        split = split or HELD_OUT
        records = open_records(self.folder, split)
        manifest = read_manifest(self.folder, "content")
        names = contents_of({"content": manifest["content"], "source": manifest.get("origin")}, self.place)
        return Selection(
            f"{self.folder.name}-{split}",
            lambda: itertools.islice(records, limit),
            manifest["content"],
            min(len(records), limit or len(records)),
            (frozenset(names),),
        )

    def shuffled_stories(self, split: str | None, seed: int, buffer_size: int) -> Iterator[str]:
        """Yield the stories in a full shuffle, as a prepared corpus has random access."""
        records = open_records(self.folder, split or HELD_OUT).select_columns(["story"])
        order_N = np.argsort(random_bits(seed, 0).random_raw(len(records)), kind="stable")
        return (records[number]["story"] for number in order_N.tolist())

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return the tokens of its splits: its token store, or streams over its records."""
        return corpus_documents(self.label, self.folder, tokenizer, how)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return the stories."""
        return _columns(open_records(self.folder, "train"), "story")

    def corpus(self) -> Path:
        """Return its folder."""
        return self.folder

    def texts(self) -> PreparedTexts:
        """Return its stories."""
        splits = open_records(self.folder).select_columns(["record_id", "story", "prompt", "features"])

        def read(split: Split, start: int, stop: int) -> Iterator[Text]:
            return map(Text._make, zip(*splits[split][start:stop].values(), strict=True))

        manifest = read_manifest(self.folder)
        return PreparedTexts(self.folder, files_digest(manifest.get("files", {})), manifest["stories"], read)


@dataclass(frozen=True, kw_only=True)
class PreparedPairs(DataSet):
    """Prompts with completions, conversations or texts, prepared for fine-tuning."""

    kind = "a data set of pairs"

    def pairs(self, watch: Watch = iter) -> PairSet:
        """Open it."""
        return open_pairs(self.name, self.place)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return what a model learns to write: completions, the assistant's messages, or the texts."""
        opened = self.pairs()
        rows = opened.splits["train"]
        if opened.kind in PREFERENCES + PROMPTS:
            return ([text.text] for text in self.texts().read("train", 0, len(rows))), len(rows)
        if opened.kind != "conversations":
            return _columns(rows, "completion" if opened.kind == "pairs" else "text")
        return (
            [m["content"] for messages in batch["messages"] for m in messages if m["role"] == "assistant"]
            for batch in rows.select_columns(["messages"]).iter(READ_BATCH)
        ), len(rows)

    def texts(self) -> PreparedTexts:
        """Return its completions (of preferences the chosen), texts, or answers; the prompt is all else."""
        opened = self.pairs()

        def read(split: Split, start: int, stop: int) -> Iterator[Text]:
            for number in range(start, stop):
                row = opened.splits[split][number]
                if opened.kind == "texts":
                    yield Text(row["record_id"], row["text"], "", [])
                    continue
                if opened.kind in PROMPTS:
                    messages = [{"content": row["prompt"]}] if opened.kind == "prompts" else row["prompt"]
                    yield Text(row["record_id"], "", "\n".join(m["content"] or "" for m in messages), [])
                    continue
                pair = side_row(row, "chosen") if opened.kind in PREFERENCES else row
                messages, num_prompt, _ = as_conversation(pair)
                answers = [m for m in messages[num_prompt:] if m["role"] == "assistant"]
                others = [m for m in messages if m not in answers]
                text, prompt = ("\n".join(m.get("content") or "" for m in part) for part in (answers, others))
                yield Text(row["record_id"], text, prompt, [])

        return PreparedTexts(opened.folder, opened.manifest["content"], opened.manifest["rows"], read)


@dataclass(frozen=True, kw_only=True)
class RawSource(DataSet):
    """A file, a folder of shards, a saved data set or a Hub data set that is not prepared.

    With `streaming` True training reads it directly; otherwise a corpus is prepared of it first.
    """

    source: Source
    streaming: Streaming = "False"

    kind = "a source of stories"
    prepared = False

    @property
    def default_split(self) -> str | None:  # type: ignore[override]
        """A path is read whole."""
        return HELD_OUT if self.source.kind == "hub" else None

    @property
    def label(self) -> str:
        """The name of the file or folder, and the configuration."""
        return plain_name("-".join([_stem(self.name), *([self.config] if self.config else [])]))

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of its own split, else of a split by hash, or all."""
        source = self._of(split or self.default_split)

        def read() -> Iterator[Record]:
            with _naming_what_is_prepared(self.place, self.source.kind == "hub"):
                yield from itertools.islice(source.records(), limit)

        end = f"-{split}" if split else ""
        file = Path(self.name).name if self.source.kind == "files" and not self.config else self.label
        known = (self.known_as(source),)
        return Selection(self.label + end, read, source.fingerprint(), limit, known, title=file + end)

    def _of(self, split: str | None) -> Source:
        own = self.source
        if split == own.dataset_split:
            return own
        return open_source(
            self.name,
            text_column=own.text_column,
            text_separator=own.text_separator,
            dataset_config_name=self.config,
            dataset_split=split,
            streaming=own.streaming,
        )

    @staticmethod
    def known_as(source: Source) -> frozenset[str]:
        """Return the fingerprints of all its splits, as a corpus made of it may have them in its manifest."""
        hub = source.kind == "hub"
        splits = {source.dataset_split, None, *(SPLITS if hub else ())}
        fingerprints = frozenset(replace(source, dataset_split=split).fingerprint() for split in splits)
        # Files also by their bytes: a corpus may have read them with other options, such as another split.
        return fingerprints | (
            {hub_name(source.reference, source.dataset_config_name)} if hub else set(source.file_names())
        )

    def check_splits(self) -> None:
        """Check the splits of local files; those of a Hub data set are known when it is loaded."""
        if self.source.kind != "hub":
            self.source.check_splits()

    def has_own_validation(self) -> bool:
        """Whether it comes with a validation split."""
        return self.source.has_own_splits() and "validation" in self.source.own_splits.values()

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records that preparing it would put into a split of the corpus."""
        return self.source.records_of(
            cast(Split, split), None if self.has_own_validation() else validation_split_percentage
        )

    def shuffled_stories(self, split: str | None, seed: int, buffer_size: int) -> Iterator[str]:
        """Yield the texts of a split (default: all, or the Hub's train split) through a shuffle buffer."""
        texts = (record["story"] for record in self._of(split).records())
        return shuffled(texts, seed, 0, buffer_size)

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return streams over the source, or the tokens of the corpus made of it."""
        if self.streaming == "True":
            return source_documents(self.config or Path(self.name).name, self.source, tokenizer, how)
        corpus, given = self.corpus(), f"{self.name} {self.config or ''}".strip()
        return corpus_documents(self.config or corpus.name, corpus, tokenizer, how, given)

    def pairs(self, watch: Watch = iter) -> PairSet:
        """Prepare its prompts and completions, conversations or texts once, and open them."""
        return open_pairs(prepare_pairs(self.source, self.label, self.place, watch).name, self.place, self.name)

    def prompts(self, watch: Watch = iter) -> PairSet:
        """Prepare its prompts with all its other columns once, and open them."""
        folder = prepare_pairs(self.source, self.label, self.place, watch, prompts=True)
        return open_pairs(folder.name, self.place, self.name)

    def as_prepared(self) -> DataSet:
        """Prepare it once, as pairs if its rows are pairs or conversations, else as a corpus."""
        if holds_pairs(self.source):
            folder = prepare_pairs(self.source, self.label, self.place)
            return PreparedPairs(name=folder.name, place=self.place)
        folder = self.corpus()
        return Corpus(name=folder.name, place=self.place, folder=folder)

    def corpus(self) -> Path:
        """Read it into a corpus once; return the folder."""
        name = f"{self.name} {self.config}" if self.config else self.name

        def watch(records: Iterable[Any]) -> Iterable[Any]:
            return progress(records, f"reading {name}", "stories", length_hint(records) or None)

        with _naming_what_is_prepared(self.place, self.source.kind == "hub"):
            return prepare_source(self.source, self.name, self.place, watch)


@dataclass(frozen=True, kw_only=True)
class Mixture(DataSet):
    """Several data sets mixed by shares."""

    several: tuple[DataSet, ...]
    shares: tuple[float, ...]

    kind = "a mixture"

    @property
    def members(self) -> tuple[DataSet, ...]:
        """Its data sets."""
        return self.several

    @property
    def weights(self) -> tuple[float, ...]:
        """Their shares."""
        return self.shares

    @property
    def label(self) -> str:
        """The common name with the configurations, or the names of the data sets."""
        configs = [member.config for member in self.several if member.config]
        same = len(configs) == len(self.several)
        return "-".join([_stem(self.name), *configs] if same else [member.label for member in self.several])

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of a split of each member, mixed by shares, until the first member ends."""
        selected = [member.select(split) for member in self.several]
        return Selection(
            self.label + (f"-{split}" if split else ""),
            lambda: itertools.islice(self._mixed([each.read() for each in selected]), limit),
            "+".join(each.fingerprint for each in selected),
            limit,
            tuple(names for each in selected for names in each.parts),
        )

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records of a split of each member as they were before a protocol changed them, mixed by shares."""
        return self._mixed([member.stories(split, validation_split_percentage) for member in self.several])

    def _mixed(self, streams: Sequence[Iterator[Any]]) -> Iterator[Any]:
        def ended(place: int, taken: list[int]) -> None:
            member = self.several[place]
            name = member.config or member.label
            note(f"note: {self.name} ends after {sum(taken):,} stories: its part {name} has only {taken[place]:,}")

        return mixed(streams, list(self.shares), ended)


def open_dataset(
    name: str,
    data_cache_dir: str | Path,
    *,
    dataset_config_name: str | None = None,
    data_mix: str | None = None,
    text_column: str | None = None,
    text_separator: str = "<|endoftext|>",
    streaming: Streaming = "False",
    validation_split_percentage: float | None = None,
    num_proc: int = 1,
) -> DataSet:
    """Resolve `--dataset_name`; the other arguments are the flags of the same names.

    Only what identifies the kind of data set is read.  In a mixture, `validation_split_percentage` is for the members
    without a validation split.

    Raises:
        UsageError: for an unknown name; for a flag that this kind of data set cannot have; for wrong shares.
    """
    if not name:
        raise UsageError("no data set is named; give --dataset_name NAME_OR_PATH")
    place = Path(data_cache_dir)
    named = _member_names(name, dataset_config_name, place)
    if len(named) == 1 and data_mix is not None:
        raise UsageError(
            f"--data_mix {data_mix}: {named[0][0]} is one data set; remove the flag, or name several as a+b"
        )
    weights = tuple(parse_weights(data_mix, len(named)))
    members = []
    for member, config in named:
        percent = validation_split_percentage
        found = find_prepared(member, place)
        if found is None:
            with _naming_what_is_prepared(place):
                source = open_source(
                    member,
                    dataset_config_name=config,
                    streaming=streaming == "True",
                    text_column=text_column,
                    text_separator=text_separator,
                    num_proc=num_proc,
                    validation_split_percentage=percent,
                )
            found = raw = RawSource(name=member, place=place, config=config, source=source, streaming=streaming)
            if len(named) > 1 and percent is not None and raw.has_own_validation():
                found = replace(raw, source=replace(source, validation_split_percentage=None))
        elif config is not None:
            raise UsageError(
                f"--dataset_config_name {config}: {member} is prepared and has no configurations; remove the flag"
            )
        elif percent is not None and len(named) == 1:
            raise UsageError(
                f"--validation_split_percentage {percent:g}: {member} is prepared and has its splits; remove the flag"
            )
        members.append(found)
    return members[0] if len(members) == 1 else Mixture(name=name, place=place, several=tuple(members), shares=weights)


def dataset_of(args: Any, name: str | None = None) -> DataSet:
    """Open the data set that a command's flags name, or `name` with these flags (see `open_dataset`)."""
    given = {field.name: getattr(args, field.name) for field in fields(args) if field.name in FLAGS}
    return open_dataset(args.dataset_name if name is None else name, args.data_cache_dir, **given)


def open_prepared(
    name: str,
    data_cache_dir: str | Path,
    flag: str,
    advice: str = "prepare it with lm-trials prepare or lm-trials cache",
) -> DataSet:
    """Open a prepared data set, named by `flag`.

    Raises:
        UsageError: for a name that is not prepared.
    """
    place = Path(data_cache_dir)
    found = find_prepared(name, place)
    if found is None:
        raise UsageError(f"--{flag} {name} is not prepared in {place} (there: {_prepared_names(place)}); {advice}")
    return found


FLAGS = frozenset(open_dataset.__kwdefaults__ or ())


def find_prepared(name: str, place: Path) -> DataSet | None:
    """Return the prepared data set of a name, or of a path; None if it is not prepared."""
    if not name:
        return None
    for folder in (place / name, Path(name)):
        if is_set(folder):
            return ProtocolSet(name=folder.name, place=folder.parent)
        if is_pairs(folder):
            return PreparedPairs(name=name, place=place)
        if is_corpus(folder):
            return Corpus(name=name, place=place, folder=folder)
    return None


def _prepared_names(place: Path) -> str:
    folders = sorted(place.iterdir()) if place.is_dir() else []
    return ", ".join(folder.name for folder in folders if find_prepared(folder.name, place)) or "nothing"


@contextmanager
def _naming_what_is_prepared(place: Path, wanted: bool = True) -> Iterator[None]:
    """Add the prepared names to an error, if `wanted`: one of them may have been meant."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{error}; prepared in {place}: {_prepared_names(place)}") if wanted else error from None


def _member_names(name: str, config: str | None, place: Path) -> list[tuple[str, str | None]]:
    """Return (name, configuration) of each member: of a configuration `a+b`, or of a name `a+b` that does not exist.

    Raises:
        UsageError: for an empty member, or one given twice.

    >>> _member_names("pile", "pubmed+uspto", Path("data"))
    [('pile', 'pubmed'), ('pile', 'uspto')]
    >>> _member_names("generated+mine", None, Path("data"))
    [('generated', None), ('mine', None)]
    """
    members: list[tuple[str, str | None]] = [(name, None)]
    if config:
        members = [(name, part) for part in config.split("+")]
    elif "+" in name and not (find_prepared(name, place) or Path(name).exists()):
        members = [(part, None) for part in name.split("+")]
    for member in members:
        if not all(word is None or word for word in member) and len(members) > 1:
            raise UsageError(f"--dataset_name {config or name} has an empty part; give names with one + between them")
        if members.count(member) > 1:
            raise UsageError(f"--dataset_name: {member[1] or member[0]} is given twice; give each once")
    return members


def _stem(name: str) -> str:
    return Path(name).name.split(".")[0] or Path(name).resolve().name  # of a hidden file, or of `..`


def _columns(rows: Any, column: str) -> tuple[Iterator[Sequence[str]], int]:
    return (batch[column] for batch in rows.select_columns([column]).iter(READ_BATCH)), len(rows)
