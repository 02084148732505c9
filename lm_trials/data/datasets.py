"""Data sets by name: the one place that knows what `--dataset_name` may name.

A prepared name in `--data_cache_dir` comes first (a protocol set, a corpus, a data set of pairs), then a path (a file,
a folder of shards, a data set saved by `datasets`), then the Hub.  `a+b`, or a configuration `a+b`, is a mixture.  What
training, fine-tuning, evaluation and probes need of a data set, each kind answers by the same methods, or refuses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lm_trials.console import UsageError, note, progress
from lm_trials.data.contents import content_name, contents_of, hub_name
from lm_trials.data.documents import Documents, Tokenising, corpus_documents, set_documents, source_documents
from lm_trials.pairs.pairs import PairSet, is_pairs, open_pairs, prepare_pairs
from lm_trials.protocols.set_texts import SetText, resolve_set, set_texts
from lm_trials.protocols.sets import is_set
from lm_trials.stories.corpora import is_corpus, open_records, prepare_source, read_manifest
from lm_trials.stories.records import SPLITS, Record, make_record
from lm_trials.stories.sources import Source, open_source
from lm_trials.tokens.mixtures import mixed, parse_weights
from lm_trials.tokens.order import random_bits, shuffled

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Streaming = Literal["True", "CacheStream", "False"]
Watch = Callable[[Iterable[Any]], Iterable[Any]]
READ_BATCH = 1000
HELD_OUT = "validation"
"""The split of a prepared or Hub data set that is read where none is named."""


@dataclass(frozen=True)
class Selection:
    """One split of a data set, or all of a path, as a stream of records that can be read again.

    Attributes:
        name: for tables and folders.
        read: starts the stream.
        fingerprint: of the content, for the manifest of results.
        total: number of records, where it is known before reading them.
        parts: the names that the data, of a mixture each part, is known by (`contents.content_name`).
        set_texts: for a protocol set, starts the stream of its texts with their prompts.
    """

    name: str
    read: Callable[[], Iterator[Record]]
    fingerprint: str
    total: int | None = None
    parts: tuple[frozenset[str], ...] = ()
    set_texts: Callable[[], Iterator[SetText]] | None = None

    @property
    def has_prompts(self) -> bool:
        """Whether its texts have a prompt that a model can continue: those of a protocol set have."""
        return self.set_texts is not None

    def prompts(self, count: int | None = None) -> list[SetText]:
        """Return the texts of the first `count` documents, or of all, whose prompts a model can continue.

        Raises:
            UsageError: for a data set without prompts, or a split without documents.
        """
        if self.set_texts is None:
            raise UsageError(
                f"{self.name} has no prompts; name a protocol set, made with prepare_tinystories.py pretokenize "
                "--dataset_name NAME or protocol_set"
            )
        texts = list(itertools.islice(self.set_texts(), count))
        if not texts:
            raise UsageError(f"{self.name} has no story to take a prompt from; prepare more stories")
        return texts


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set that a name means.

    Attributes:
        name: as the user gave it.
        place: the folder of prepared data, `--data_cache_dir`.
        config: the configuration of a Hub data set, or the part of a folder, that was asked for.
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
        """The data sets that a mixture is made of; of any other, itself."""
        return (self,)

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of its members."""
        return (1.0,)

    @property
    def label(self) -> str:
        """A short name for tables, logs and folders."""
        return Path(self.name).name

    @property
    def full_label(self) -> str:
        """A name that tells apart two members of a mixture with one label."""
        return (self.config or self.name).replace("/", "-")

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of a split, at most `limit`; by default the validation split, of a path all.

        Raises:
            UsageError: for a split that there is not.
        """
        raise self._unfit("stories", "name a corpus, a protocol set, a file or a Hub data set")

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records of a split as they were before a protocol changed them; None for one that it refused.

        Args:
            validation_split_percentage: for a source that has no validation split and is read as it lies.
        """
        return self.select(split).read()

    def shuffled_stories(self, split: str | None, seed: int, buffer_size: int) -> Iterator[str]:
        """Yield the texts of a split in an order that follows from the seed."""
        return shuffled((record["story"] for record in self.select(split).read()), seed, 0, buffer_size)

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return the tokens of its splits, made where they are missing.

        Raises:
            UsageError: for a split without stories; for a set of another tokenizer.
        """
        raise self._unfit("documents to train on", "fine-tune on it with sft_lora.py")

    def pairs(self, watch: Watch = iter) -> PairSet:
        """Return its prompts and completions, conversations or texts, prepared where they are not yet.

        Raises:
            UsageError: for a data set without them.
        """
        advice = f"make pairs of a corpus with prepare_tinystories.py instruct --corpus {self.label}"
        raise self._unfit("prompts with completions", advice)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return batches of the texts that training on it teaches to write, and how many texts there are if known."""
        texts = (record["story"] for record in self.stories("train") if record)
        return iter(lambda: list(itertools.islice(texts, READ_BATCH)), []), None

    def corpus(self) -> Path:
        """Return the folder of the corpus that it is, or becomes once it has been read.

        Raises:
            UsageError: for a data set that is none.
        """
        raise self._unfit("a corpus", "name a corpus, a file or a Hub data set")

    def check_splits(self) -> None:
        """Check that it can be split as asked, as far as that is known before it is read.

        Raises:
            UsageError: for a source without a train split, or without validation stories.
        """

    def _unfit(self, wanted: str, advice: str) -> UsageError:
        return UsageError(f"{self.name} is {self.kind} and has no {wanted.removeprefix('a ')}; {advice}")


@dataclass(frozen=True, kw_only=True)
class ProtocolSet(DataSet):
    """What a protocol makes of a corpus; its texts have instruction lines before the story."""

    kind = "a protocol set"
    has_prompts = True

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the texts of a split as stories, so that instruction lines are scored as they are trained on."""
        split = split or HELD_OUT
        _, corpus, protocol = resolve_set(self.name, self.place)
        open_records(corpus, split)  # raises for a split that there is not
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
        """Yield the records that the filter kept, with the features of the corpus: an instruction may name others."""
        records = iter(open_records(self.corpus(), split))
        for text in set_texts(self.name, self.place, split):
            # The set is the corpus in its order, less what the filter removed.
            record = next(record for record in records if record["record_id"] == text.record_id)
            yield None if text.refused else {**record, "story": text.story}

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return the tokens of its splits, put together from those of its corpus."""
        return set_documents(self.name, self.place, tokenizer, how)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return the stories, and refusals, without instruction lines."""
        return ([text.story] for text in set_texts(self.name, self.place, "train")), None

    def corpus(self) -> Path:
        """Return the folder of the corpus that it was made of."""
        return resolve_set(self.name, self.place)[1]


@dataclass(frozen=True, kw_only=True)
class Corpus(DataSet):
    """Records prepared in a folder.

    Attributes:
        folder: where it lies.
    """

    folder: Path

    kind = "a corpus of stories"

    @property
    def label(self) -> str:
        """The configuration of the source that it was made of, else the name of its folder."""
        return self.config or self.folder.name

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
        """Yield the stories in a full shuffle: any row of a prepared corpus can be read."""
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


@dataclass(frozen=True, kw_only=True)
class PreparedPairs(DataSet):
    """Prompts with completions, conversations or texts, prepared for fine-tuning."""

    kind = "a data set of pairs"

    def pairs(self, watch: Watch = iter) -> PairSet:
        """Open it."""
        return open_pairs(self.name, self.place)

    def train_texts(self) -> tuple[Iterator[Sequence[str]], int | None]:
        """Return what the model is taught to answer: completions, the assistant's messages, or the texts."""
        opened = self.pairs()
        rows = opened.splits["train"]
        if opened.kind != "conversations":
            return _columns(rows, "completion" if opened.kind == "pairs" else "text")
        return (
            [m["content"] for messages in batch["messages"] for m in messages if m["role"] == "assistant"]
            for batch in rows.select_columns(["messages"]).iter(READ_BATCH)
        ), len(rows)


@dataclass(frozen=True, kw_only=True)
class RawSource(DataSet):
    """A file, a folder of shards, a saved data set or a Hub data set, read as it lies until it is prepared.

    Attributes:
        source: what is read.
        streaming: whether training reads it as it lies, too (`True`), or prepares a corpus of it first.
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
        return "-".join([_stem(self.name), *([self.config] if self.config else [])])

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of one of its own splits, else of a split by hash, or of all."""
        source = self._of(split or self.default_split)

        def read() -> Iterator[Record]:
            with self._naming_what_is_prepared():
                yield from itertools.islice(source.records(), limit)

        return Selection(
            self.label + (f"-{split}" if split else ""),
            read,
            source.fingerprint(),
            limit,
            (self.known_as(source),),
        )

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
        """Return its fingerprints, whichever split is read, as the manifest of a corpus made of it may have them."""
        hub = source.kind == "hub"
        splits = {source.dataset_split, None, *(SPLITS if hub else ())}
        fingerprints = frozenset(replace(source, dataset_split=split).fingerprint() for split in splits)
        # Of files, by their bytes too: a corpus may hold them read with other options, such as a split of its own.
        return fingerprints | (
            {hub_name(source.reference, source.dataset_config_name)} if hub else set(source.file_names())
        )

    def check_splits(self) -> None:
        """Check the splits of what lies on disk; those of a Hub data set are known when it is loaded."""
        if self.source.kind != "hub":
            self.source.check_splits()

    def has_own_validation(self) -> bool:
        """Whether it comes with a validation split."""
        return self.source.has_own_splits() and "validation" in self.source.own_splits.values()

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records that preparing it would put into a split of the corpus."""
        return self.source.records_of(split, None if self.has_own_validation() else validation_split_percentage)

    def shuffled_stories(self, split: str | None, seed: int, buffer_size: int) -> Iterator[str]:
        """Yield the texts of a split, by default of all, or of the Hub's train split, through a shuffle buffer."""
        texts = (record["story"] for record in self._of(split).records())
        return shuffled(texts, seed, 0, buffer_size)

    def documents(self, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
        """Return streams over what lies there, or the tokens of the corpus that is made of it."""
        if self.streaming == "True":
            return source_documents(self.config or Path(self.name).name, self.source, tokenizer, how)
        return corpus_documents(self.config or self.corpus().name, self.corpus(), tokenizer, how)

    def pairs(self, watch: Watch = iter) -> PairSet:
        """Prepare its prompts and completions, conversations or texts, once, and open them."""
        return open_pairs(prepare_pairs(self.source, self.label, self.place, watch).name, self.place, self.name)

    def corpus(self) -> Path:
        """Read it into a corpus, once; return the folder."""
        name = f"{self.name} {self.config}" if self.config else self.name

        def watch(records: Iterable[Any]) -> Iterable[Any]:
            return progress(records, f"reading {name}", "stories", length_hint(records) or None)

        with self._naming_what_is_prepared():
            return prepare_source(self.source, self.name, self.place, watch)

    @contextmanager
    def _naming_what_is_prepared(self) -> Iterator[None]:
        """Add the prepared names to an error of the Hub: one of them may have been meant."""
        try:
            yield
        except UsageError as error:
            raise _with_prepared(error, self.place) if self.source.kind == "hub" else error from None


@dataclass(frozen=True, kw_only=True)
class Mixture(DataSet):
    """Several data sets in shares."""

    several: tuple[DataSet, ...]
    shares: tuple[float, ...]

    kind = "a mixture"

    @property
    def members(self) -> tuple[DataSet, ...]:
        """The data sets that it is made of."""
        return self.several

    @property
    def weights(self) -> tuple[float, ...]:
        """Their shares."""
        return self.shares

    @property
    def label(self) -> str:
        """The name of what its configurations are of, with them, or the names of the data sets."""
        configs = [member.config for member in self.several]
        labels = [member.label for member in self.several]
        return "-".join([_stem(self.name), *configs] if all(configs) else labels)  # type: ignore[list-item]

    def select(self, split: str | None = None, limit: int | None = None) -> Selection:
        """Return the records of a split of each, in their shares, up to the first that ends."""
        selected = [member.select(split) for member in self.several]
        return Selection(
            self.label + (f"-{split}" if split else ""),
            lambda: itertools.islice(self._mixed([each.read() for each in selected]), limit),
            "+".join(each.fingerprint for each in selected),
            limit,
            tuple(names for each in selected for names in each.parts),
        )

    def stories(self, split: str, validation_split_percentage: float | None = None) -> Iterator[Record | None]:
        """Yield the records of a split of each, as they were before a protocol changed them, in their shares."""
        return self._mixed([member.stories(split, validation_split_percentage) for member in self.several])

    def _mixed(self, streams: Sequence[Iterator[Any]]) -> Iterator[Any]:
        def ended(place: int, taken: list[int]) -> None:
            member = self.several[place]
            name = member.config or member.label
            note(f"note: the part {name} of {self.name} has no more than {taken[place]:,} stories, and so the mixture "
                 f"ends after {sum(taken):,}")  # fmt: skip

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
    """Find out what `--dataset_name` names; the other arguments are the flags of the same names.

    Nothing is read yet beyond what tells the kinds apart.  Of a mixture, `validation_split_percentage` is for the
    members that have no validation split.

    Raises:
        UsageError: for a name that is nothing; for a flag that this kind of data set cannot have; for shares that do
            not fit.
    """
    if not name:
        raise UsageError("no data set is named; give --dataset_name NAME_OR_PATH")
    place = Path(data_cache_dir)
    named = _member_names(name, dataset_config_name, place)
    if len(named) == 1 and data_mix is not None:
        raise UsageError(
            f"--data_mix {data_mix}: {named[0][0]} is one data set; remove --data_mix, or name several as a+b"
        )
    weights = tuple(parse_weights(data_mix, len(named)))
    members = []
    for member, config in named:
        percent = validation_split_percentage
        found = _prepared(member, place)
        if found is None:
            options = {"text_column": text_column, "text_separator": text_separator, "num_proc": num_proc}
            found = _raw(member, place, config, streaming, {**options, "validation_split_percentage": percent})
            if len(named) > 1 and percent is not None and found.has_own_validation():
                found = replace(found, source=replace(found.source, validation_split_percentage=None))
        elif config is not None:
            raise UsageError(
                f"--dataset_config_name {config}: {member} is prepared and has no parts; remove --dataset_config_name"
            )
        elif percent is not None and len(named) == 1:
            raise UsageError(
                f"--validation_split_percentage {percent:g}: {member} is prepared and has its splits; remove "
                "--validation_split_percentage"
            )
        members.append(found)
    return members[0] if len(members) == 1 else Mixture(name=name, place=place, several=tuple(members), shares=weights)


def dataset_of(args: Any, name: str | None = None) -> DataSet:
    """Open the data set that a command's flags name; a command has some of the flags of `open_dataset`.

    Args:
        args: a dataclass of flags with `data_cache_dir`.
        name: one of several data sets; default: `args.dataset_name`.

    Raises:
        UsageError: as `open_dataset`.
    """
    given = {field.name: getattr(args, field.name) for field in fields(args) if field.name in FLAGS}
    return open_dataset(args.dataset_name if name is None else name, args.data_cache_dir, **given)


def open_prepared(
    name: str,
    data_cache_dir: str | Path,
    flag: str,
    advice: str = "prepare it with prepare_tinystories.py or cache_datasets.py",
) -> DataSet:
    """Open a data set that has to be prepared already; `flag` named it.

    Raises:
        UsageError: for a name that nothing prepared has.
    """
    place = Path(data_cache_dir)
    found = _prepared(name, place)
    if found is None:
        there = ", ".join(prepared_names(place)) or "nothing"
        raise UsageError(f"--{flag} {name} is not prepared in {place} (there: {there}); {advice}")
    return found


FLAGS = frozenset(open_dataset.__kwdefaults__ or ())


def _prepared(name: str, place: Path) -> DataSet | None:
    """Return what is prepared under a name; a corpus or pairs by their path too."""
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


def is_prepared(name: str, data_cache_dir: str | Path) -> bool:
    """Whether a name is that of a prepared set, corpus or data set of pairs."""
    return _prepared(name, Path(data_cache_dir)) is not None


def prepared_names(place: Path) -> list[str]:
    """Return the names of all that is prepared in a folder, sorted."""
    folders = sorted(place.iterdir()) if place.is_dir() else []
    return [folder.name for folder in folders if is_prepared(folder.name, place)]


def _raw(name: str, place: Path, config: str | None, streaming: Streaming, options: dict[str, Any]) -> RawSource:
    try:
        source = open_source(name, dataset_config_name=config, streaming=streaming == "True", **options)
    except UsageError as error:
        raise _with_prepared(error, place) from None
    return RawSource(name=name, place=place, config=config, source=source, streaming=streaming)


def _with_prepared(error: UsageError, place: Path) -> UsageError:
    return UsageError(f"{error}; prepared in {place}: {', '.join(prepared_names(place)) or 'nothing'}")


def _member_names(name: str, config: str | None, place: Path) -> list[tuple[str, str | None]]:
    """Return (name, configuration) of each member: of a configuration `a+b`, or of a name `a+b` that nothing has.

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
    elif "+" in name and not (is_prepared(name, place) or Path(name).exists()):
        members = [(part, None) for part in name.split("+")]
    for member in members:
        if not all(word is None or word for word in member) and len(members) > 1:
            raise UsageError(f"{config or name} has an empty part; give names with one + between them")
        if members.count(member) > 1:
            raise UsageError(
                f"the part {member[1] or member[0]} is given twice; give each once, its share with --data_mix"
            )
    return members


def _stem(name: str) -> str:
    return Path(name).name.split(".")[0]


def _columns(rows: Any, column: str) -> tuple[Iterator[Sequence[str]], int]:
    return (batch[column] for batch in rows.select_columns([column]).iter(READ_BATCH)), len(rows)
