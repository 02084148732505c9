"""Parts: one data set of a run, or of its mixture: its training documents, its validation documents, what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, progress
from lm_trials.files import damaged
from lm_trials.protocols.set_stores import SetStore, open_set
from lm_trials.protocols.sets import is_set, set_folder
from lm_trials.stories.corpora import is_corpus, open_records, read_manifest, resolve_corpus
from lm_trials.stories.records import SPLITS
from lm_trials.stories.sources import Source, open_source
from lm_trials.tokens.stores import TokenStore, document_marks, make_store, token_progress
from lm_trials.tokens.streams import RecordStream, stored
from lm_trials.tokens.tokenizers import tokenizer_hash
from lm_trials.training.flags import DataArguments

READ_BATCH = 1000
# Of what describes a data set in `run.json`: what its tokens follow from beside its texts.
TOKENS_FROM = ("tokenizer_hash", "append_eos", "document_separator")


@dataclass(frozen=True)
class TrainPart:
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


def open_part(
    name: str,
    config: str | None,
    data_args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    of_several: bool = False,
) -> TrainPart:
    """Open one data set as `--streaming` says: `False` by its token store, `CacheStream` and `True` as a stream.

    Of several `--validation_split_percentage` is for those that need it.

    Raises:
        UsageError: for a name that is nothing, a set that would be streamed, a split without stories.
    """
    place = Path(data_args.data_cache_dir)
    if is_set(place / name):
        return _set_part(name, config, data_args, tokenizer)
    if of_several and not _needs_percentage(name, config, data_args):
        data_args = replace(data_args, validation_split_percentage=None)
    if data_args.streaming == "True" and not any(map(is_corpus, (place / name, Path(name)))):
        return _streamed_part(name, config, data_args, tokenizer)
    corpus = _corpus(name, config, data_args)
    label = config or corpus.name
    manifest = read_manifest(corpus)
    described = {
        "corpus": corpus.name,
        "content": manifest["content"],
        "records": _digest(manifest.get("files", {})),
        "source_fingerprint": manifest.get("origin", {}).get("fingerprint"),
        "split_by": manifest["split_by"],
        "stories": manifest["stories"],
        **_described_tokens(data_args, tokenizer),
    }
    if data_args.streaming != "False":
        return _stream_part(label, partial(corpus_pairs, corpus), described, data_args, tokenizer, corpus)
    folder = _tokens(corpus, data_args, tokenizer)
    return TrainPart(
        label,
        TokenStore.open(folder, "train"),
        TokenStore.open(folder, "validation"),
        lambda: TokenStore.open(folder, "test"),
        described | {"tokens": read_manifest(folder)["tokens"]},
        folder,
    )


def _needs_percentage(name: str, config: str | None, data_args: DataArguments) -> bool:
    """Say whether a data set has no validation split of its own."""
    if any(map(is_corpus, (Path(data_args.data_cache_dir) / name, Path(name)))):
        return False
    source = open_source(name, text_column=data_args.text_column, dataset_config_name=config)
    return not source.has_own_splits() or "validation" not in source.own_splits.values()


def open_validation(name: str, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> TokenStore | SetStore:
    """Open the validation split of a prepared set or corpus, for `--eval_datasets`."""
    place = Path(data_args.data_cache_dir)
    if is_set(place / name):
        return open_set(name, place, tokenizer, "validation", data_args.append_eos)
    return TokenStore.open(_tokens(_corpus(name, None, data_args), data_args, tokenizer), "validation")


def _set_part(name: str, config: str | None, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> TrainPart:
    place = Path(data_args.data_cache_dir)
    for flag, usual in (("streaming", "False"), ("document_separator", "bos"), ("dataset_config_name", None)):
        if getattr(data_args, flag) != usual:
            raise UsageError(
                f"--{flag} {getattr(data_args, flag)}: {name} is a protocol's set, put together from its corpus's "
                f"tokens; leave --{flag} away"
            )

    def opened(split: str) -> SetStore:
        return open_set(name, place, tokenizer, split, data_args.append_eos)

    train, validation = opened("train"), opened("validation")
    manifest = read_manifest(set_folder(name, place, tokenizer, data_args.append_eos))
    described = {
        "corpus": manifest["corpus"]["name"],
        "content": manifest["corpus"]["content"],
        "protocol": manifest["protocol"],
        "stories": manifest["documents"],
        "tokens": manifest["tokens"],
        **_described_tokens(data_args, tokenizer),
    }
    return TrainPart(name, train, validation, lambda: opened("test"), described)


def _streamed_part(
    name: str, config: str | None, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase
) -> TrainPart:
    """Open a source that is read as it lies, on the Hub or here, and never written."""
    source = open_source(
        name,
        text_column=data_args.text_column,
        dataset_config_name=config,
        streaming=True,
        validation_split_percentage=data_args.validation_split_percentage,
    )
    source.check_splits()
    origin = source.origin()
    described = {
        "source": origin,
        "source_fingerprint": origin["fingerprint"],
        **_described_tokens(data_args, tokenizer),
    }
    return _stream_part(config or Path(name).name, partial(source_pairs, source), described, data_args, tokenizer)


def _stream_part(
    label: str,
    pairs: Callable[[str], Iterator[tuple[str, str]]],
    described: dict[str, Any],
    data_args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None = None,
) -> TrainPart:
    marks = document_marks(tokenizer, data_args.append_eos, data_args.document_separator)
    train, validation, test = (
        RecordStream(f"{label}, {split}", partial(pairs, split), tokenizer, marks) for split in SPLITS
    )
    count = data_args.max_eval_samples
    return TrainPart(label, train, stored(validation, count), lambda: stored(test, count), described, folder)


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


def _described_tokens(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "append_eos": data_args.append_eos,
        "document_separator": data_args.document_separator,
    }


def _corpus(name: str, config: str | None, data_args: DataArguments) -> Path:
    corpus = resolve_corpus(
        name,
        Path(data_args.data_cache_dir),
        watch=lambda records: progress(records, "reading stories", "stories"),
        validation_split_percentage=data_args.validation_split_percentage,
        text_column=data_args.text_column,
        dataset_config_name=config,
    )
    stories = read_manifest(corpus, "content", "stories")["stories"]
    if not stories["validation"]:
        total = sum(stories.values())
        raise UsageError(
            f"{name}: of {total:,} stories none falls into the validation split, which takes "
            f"{data_args.validation_split_percentage or 1:g} per cent by hash; give some hundred stories or more, or "
            "a larger --validation_split_percentage"
        )
    return corpus


def _tokens(corpus: Path, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Path:
    return make_store(corpus, tokenizer, data_args.append_eos, token_progress, data_args.document_separator)
