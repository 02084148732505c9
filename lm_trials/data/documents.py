"""The tokenized documents of one data set, for training, validation and test, and their description in `run.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_trials.console import UsageError
from lm_trials.data.contents import files_digest
from lm_trials.files import damaged
from lm_trials.protocols.set_stores import SetStore, open_set
from lm_trials.protocols.sets import set_folder
from lm_trials.stories.corpora import open_records, read_manifest
from lm_trials.stories.records import SPLITS, Split
from lm_trials.stories.sources import Source
from lm_trials.tokens.stores import Separator, TokenStore, document_marks, make_store, token_progress
from lm_trials.tokens.streams import RecordStream, stored
from lm_trials.tokens.tokenizers import tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Store = TokenStore | SetStore
READ_BATCH = 1000
# Fields of `run.json` that decide a data set's tokens besides its texts.
TOKENS_FROM = ("tokenizer_hash", "append_eos", "document_separator")


@dataclass(frozen=True)
class Documents:
    """One data set of a run.

    Attributes:
        test: opens its test documents.
        described: its description in `run.json`.
        folder: what it reads, with checksums in a manifest; None of a source that is streamed directly.
    """

    name: str
    train: Store | RecordStream
    validation: Store
    test: Callable[[], Store]
    described: dict[str, Any]
    folder: Path | None = None

    def check_unchanged(self) -> None:
        """Check that its files are unchanged, byte for byte, before a run is resumed.

        Raises:
            UsageError: naming the first file that differs.
        """
        if self.folder is not None and (found := damaged(self.folder, read_manifest(self.folder).get("files", {}))):
            raise UsageError(
                f"the data in {self.folder} has changed since it was prepared: {found[0]}; remove that folder and run "
                "the same command again"
            )


@dataclass(frozen=True)
class Tokenising:
    """How documents are tokenized: the flags of the same names; `max_eval_samples` is for streams."""

    append_eos: bool = False
    document_separator: Separator = "bos"
    streaming: Literal["True", "CacheStream", "False"] = "False"
    max_eval_samples: int | None = None

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return its fields of `run.json`."""
        values = (tokenizer_hash(tokenizer), self.append_eos, self.document_separator)
        return dict(zip(TOKENS_FROM, values, strict=True))


def set_documents(name: str, place: Path, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
    """Open a protocol set.

    Raises:
        UsageError: with --streaming or --document_separator, or for a set of another tokenizer or corpus.
    """
    for flag, usual in (("streaming", "False"), ("document_separator", "bos")):
        if getattr(how, flag) != usual:
            raise UsageError(
                f"--{flag} {getattr(how, flag)}: {name} is a protocol set, composed from its corpus's tokens; remove "
                "the flag"
            )

    def opened(split: str) -> Store:
        return open_set(name, place, tokenizer, split, how.append_eos)

    train, validation = opened("train"), opened("validation")
    manifest = read_manifest(set_folder(name, place, tokenizer, how.append_eos))
    described = {
        "corpus": manifest["corpus"]["name"],
        "content": manifest["corpus"]["content"],
        "protocol": manifest["protocol"],
        "stories": manifest["documents"],
        "tokens": manifest["tokens"],
        **how.describe(tokenizer),
    }
    return Documents(name, train, validation, lambda: opened("test"), described)


def corpus_documents(
    label: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, how: Tokenising, given: str | None = None
) -> Documents:
    """Open a corpus: by its token store, made if missing, or as streams, by `how.streaming`.

    `given` is what the user named, if the corpus was made of it.

    Raises:
        UsageError: for a corpus without validation stories.
    """
    manifest = read_manifest(corpus, "content", "stories")
    stories = manifest["stories"]
    if not stories["validation"]:
        advice = "add stories to it, or remove it and make one with lm-trials train --validation_split_percentage 5"
        if manifest["split_by"] == "hash":
            advice = "give more stories, or a larger share with lm-trials train --validation_split_percentage 5"
        raise UsageError(
            f"--dataset_name {given or label}: none of its {sum(stories.values()):,} stories is in the validation "
            f"split; {advice}"
        )
    described = {
        "corpus": corpus.name,
        "content": manifest["content"],
        "records": files_digest(manifest.get("files", {})),
        "source_fingerprint": manifest.get("origin", {}).get("fingerprint"),
        "split_by": manifest["split_by"],
        "stories": stories,
        **how.describe(tokenizer),
    }
    if how.streaming != "False":
        return _streamed(label, partial(corpus_pairs, corpus), described, tokenizer, how, corpus)
    folder = make_store(corpus, tokenizer, how.append_eos, token_progress, how.document_separator)
    return Documents(
        label,
        TokenStore.open(folder, "train"),
        TokenStore.open(folder, "validation"),
        lambda: TokenStore.open(folder, "test"),
        described | {"tokens": read_manifest(folder)["tokens"]},
        folder,
    )


def source_documents(label: str, source: Source, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
    """Open a source, local or on the Hub, as streams; nothing is written."""
    source.check_splits()
    origin = source.origin()
    described = {"source": origin, "source_fingerprint": origin["fingerprint"], **how.describe(tokenizer)}
    return _streamed(label, partial(source_pairs, source), described, tokenizer, how)


def _streamed(
    label: str,
    pairs: Callable[[Split], Iterator[tuple[str, str]]],
    described: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    how: Tokenising,
    folder: Path | None = None,
) -> Documents:
    marks = document_marks(tokenizer, how.append_eos, how.document_separator)
    train, validation, test = (
        RecordStream(f"{label}, {split}", partial(pairs, split), tokenizer, marks) for split in SPLITS
    )
    count = how.max_eval_samples
    return Documents(label, train, stored(validation, count), lambda: stored(test, count), described, folder)


def source_pairs(source: Source, split: Split) -> Iterator[tuple[str, str]]:
    """Yield (record id, story) of one split of a source."""
    return ((record["record_id"], record["story"]) for record in source.records_of(split))


def corpus_pairs(corpus: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yield (record id, story) of one split of a corpus, in its order."""
    columns = open_records(corpus, split).with_format("arrow").select_columns(["record_id", "story"])
    for batch in columns.iter(READ_BATCH):
        yield from zip(batch["record_id"].to_pylist(), batch["story"].to_pylist(), strict=True)
