"""Documents of one data set, tokenised: for training, validation and test, with what identifies them in `run.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_trials.console import UsageError
from lm_trials.files import damaged
from lm_trials.protocols.set_stores import SetStore, open_set
from lm_trials.protocols.sets import set_folder
from lm_trials.stories.corpora import open_records, read_manifest
from lm_trials.stories.records import SPLITS
from lm_trials.stories.sources import Source
from lm_trials.tokens.stores import Separator, TokenStore, document_marks, make_store, token_progress
from lm_trials.tokens.streams import RecordStream, stored
from lm_trials.tokens.tokenizers import tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

READ_BATCH = 1000
# Of what describes a data set in `run.json`: what its tokens follow from beside its texts.
TOKENS_FROM = ("tokenizer_hash", "append_eos", "document_separator")


@dataclass(frozen=True)
class Documents:
    """One data set of a run.

    Attributes:
        name: for logs and tables.
        train: its training documents.
        validation: its validation documents.
        test: opens its test documents.
        described: what identifies it in `run.json`.
        folder: where what it reads lies, with sums in its manifest; None of a source that is read as it lies.
    """

    name: str
    train: TokenStore | SetStore | RecordStream
    validation: TokenStore | SetStore
    test: Callable[[], TokenStore | SetStore]
    described: dict[str, Any]
    folder: Path | None = None

    def check_unchanged(self) -> None:
        """Check that what it reads is what was written, byte for byte, before a run goes on with it.

        Raises:
            UsageError: naming the first file that is not.
        """
        if self.folder is not None and (found := damaged(self.folder, read_manifest(self.folder).get("files", {}))):
            raise UsageError(
                f"the data in {self.folder} has changed since it was prepared: {found[0]}; remove that folder and give "
                "the same command again"
            )


@dataclass(frozen=True)
class Tokenising:
    """How documents become tokens, by the flags of the same names.

    Attributes:
        max_eval_samples: validation stories that are kept of a stream; None for all.
    """

    append_eos: bool = False
    document_separator: Separator = "bos"
    streaming: Literal["True", "CacheStream", "False"] = "False"
    max_eval_samples: int | None = None

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return what `run.json` says of it."""
        values = (tokenizer_hash(tokenizer), self.append_eos, self.document_separator)
        return dict(zip(TOKENS_FROM, values, strict=True))


def set_documents(name: str, place: Path, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
    """Open a protocol set.

    Raises:
        UsageError: for a set that would be streamed, or whose tokens are of another tokenizer or corpus.
    """
    for flag, usual in (("streaming", "False"), ("document_separator", "bos")):
        if getattr(how, flag) != usual:
            raise UsageError(
                f"--{flag} {getattr(how, flag)}: {name} is a protocol set, put together from its corpus's tokens; "
                f"remove --{flag}"
            )

    def opened(split: str) -> SetStore:
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


def corpus_documents(label: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, how: Tokenising) -> Documents:
    """Open a corpus as `how.streaming` says: `False` by its token store, made where it is missing, else as a stream.

    Raises:
        UsageError: for a corpus without validation stories.
    """
    manifest = read_manifest(corpus, "content", "stories")
    stories = manifest["stories"]
    if not stories["validation"]:
        raise UsageError(
            f"{label}: none of {sum(stories.values()):,} stories is in the validation split, which by default takes 1 "
            "per cent by hash; give some hundred stories or more, or a larger --validation_split_percentage"
        )
    described = {
        "corpus": corpus.name,
        "content": manifest["content"],
        "records": _digest(manifest.get("files", {})),
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
    """Open a source that is read as it lies, on the Hub or here, and never written."""
    source.check_splits()
    origin = source.origin()
    described = {"source": origin, "source_fingerprint": origin["fingerprint"], **how.describe(tokenizer)}
    return _streamed(label, partial(source_pairs, source), described, tokenizer, how)


def _streamed(
    label: str,
    pairs: Callable[[str], Iterator[tuple[str, str]]],
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


def source_pairs(source: Source, split: str) -> Iterator[tuple[str, str]]:
    """Yield (record id, story) of one split of a source."""
    return ((record["record_id"], record["story"]) for record in source.records_of(split))


def corpus_pairs(corpus: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yield (record id, story) of one split of a corpus, in its order."""
    columns = open_records(corpus, split).with_format("arrow").select_columns(["record_id", "story"])
    for batch in columns.iter(READ_BATCH):
        yield from zip(batch["record_id"].to_pylist(), batch["story"].to_pylist(), strict=True)


def _digest(sums: Mapping[str, Mapping[str, Any]]) -> str:
    """Return 16 digits of all files' sums: what `content`, a hash of names, does not see (blanks, for one)."""
    text = json.dumps({name: entry["sha256"] for name, entry in sums.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
