"""Token stores: the records' tokens, made once per tokenizer, memory-mapped, one row a document."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, List, Value

from lm_trials.console import UsageError, did_you_mean, progress
from lm_trials.files import MadeMeanwhileError, file_sums, finished_folder, write_json
from lm_trials.stories.arrow_files import ArrowFile, load_splits, save_splits
from lm_trials.stories.corpora import MANIFEST, open_records, read_manifest
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.tokenizers import Encoder, batch_encoder, tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
ENCODE_BATCH = 1000  # stories; batches of 4,000 were 7 % slower, of 250 no faster (LOG.md)
Separator = Literal["bos", "eos", "none"]
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (batches, number of stories, name) -> batches


def store_schema(num_ids: int) -> Features:
    """Return the columns of a token store; ids take two bytes where the vocabulary fits.

    >>> [store_schema(size)["input_ids"].feature.dtype for size in (1 << 16, (1 << 16) + 1)]
    ['uint16', 'int32']
    """
    # uint16 halves the disk and page cache of vocabularies up to 65,536; larger ones need int32.
    ids = List(Value("uint16" if num_ids <= 1 << 16 else "int32"))
    return Features(
        {"record_id": Value("string"), "length": Value("int32"), "num_bytes": Value("int32"), "input_ids": ids}
    )


def num_ids_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the highest id plus one: some vocabularies have gaps, so it is not their number of tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def store_folder(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, append_eos: bool, separator: Separator = "bos"
) -> Path:
    """Return the folder of a corpus's token store for this tokenizer and these marks."""
    usual, _ = document_marks(tokenizer, append_eos)
    opening, _ = document_marks(tokenizer, append_eos, separator)
    other = "" if opening == usual else f"-separator_{separator}"
    return corpus / f"tokens-{tokenizer_hash(tokenizer)}{other}{'-eos' if append_eos else ''}"


def make_store(
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    append_eos: bool = False,
    watch: Watch = lambda batches, total, name: batches,
    separator: Separator = "bos",
) -> Path:
    """Tokenize a corpus, with `separator` before each story and optionally EOS after it; return the store's folder.

    An existing store is returned as it is.  `watch` may show a progress bar.

    Raises:
        UsageError: for a tokenizer without BOS (or EOS, with `append_eos`), or a corpus without records.
    """
    folder = store_folder(corpus, tokenizer, append_eos, separator)
    if (folder / MANIFEST).is_file():
        return folder
    bos, eos = document_marks(tokenizer, append_eos, separator)
    records = open_records(corpus)
    schema = store_schema(num_ids_of(tokenizer))
    documents, tokens = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    advice = "copy the corpus into a folder of your own, or stream it with lm-trials train --streaming True"
    with suppress(MadeMeanwhileError), finished_folder(folder, advice) as unfinished:
        for split in SPLITS:
            batches = _encoded(records[split], tokenizer, bos, eos, schema)
            with ArrowFile(unfinished / f"{split}.arrow", schema) as file:
                for batch in watch(batches, len(records[split]), split):
                    file.write_batch(batch)
                    documents[split] += batch.num_rows
                    tokens[split] += pa.compute.sum(batch.column("length")).as_py()
        save_splits(unfinished, unfinished)
        manifest = {
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "vocab_size": len(tokenizer),
            "append_eos": append_eos,
            "document_separator": separator,
            "documents": documents,
            "tokens": tokens,
            "files": file_sums(unfinished),
        }
        write_json(unfinished / MANIFEST, manifest)
    return folder


def token_progress(batches: Iterable[pa.RecordBatch], total: int, split: str) -> Iterator[pa.RecordBatch]:
    """Show how many stories of a split are tokenized; for `make_store`."""
    return progress(batches, f"tokenizing {split}", "stories", total, size=len)


def document_marks(
    tokenizer: PreTrainedTokenizerBase, append_eos: bool, separator: Separator = "bos"
) -> tuple[list[int], list[int]]:
    """Return the ids before and after each document.

    The separator precedes each document, so that a document's first token is predicted from a token.  `bos` of a
    tokenizer without BOS (GPT-2's) is its EOS; `none` is for documents joined as in beyond-scale.

    Raises:
        UsageError: for a tokenizer without the token.
    """
    eos = tokenizer.eos_token_id
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None and separator == "bos" else eos
    if separator == "none" and (eos is not None or not append_eos):
        return [], [eos] if append_eos else []
    if opening is None or (append_eos and eos is None):
        raise UsageError(
            f"the tokenizer {tokenizer.name_or_path} has no BOS or EOS token to put between stories; use one of "
            "lm-trials prepare train_vocab, or GPT-2's or Llama's"
        )
    return [opening], [eos] if append_eos else []


def opening_of(tokenizer: PreTrainedTokenizerBase, separator: Separator = "bos") -> list[int]:
    """Return the ids that a model is prompted with to begin a story: the separator, or BOS where there was none."""
    opening, _ = document_marks(tokenizer, False, "bos" if separator == "none" else separator)
    return opening


def _encoded(
    records: Dataset, tokenizer: PreTrainedTokenizerBase, bos: list[int], eos: list[int], schema: Features
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a split, encoded."""
    columns = records.with_format("arrow").select_columns(["record_id", "story"])
    batches = ((batch, batch["story"].to_pylist()) for batch in columns.iter(ENCODE_BATCH))
    for batch, ids in encoded_ahead(batches, batch_encoder(tokenizer)):
        yield encoded_batch(batch["record_id"], batch["story"], ids, bos, eos, schema.arrow_schema)


def encoded_ahead(
    batches: Iterable[tuple[Item, list[str]]], encode: Encoder, ahead: int = 2
) -> Iterator[tuple[Item, list[list[int]]]]:
    """Yield each item with the ids of its texts, in order, while the texts of the next items are encoded in threads.

    Encoding releases Python's lock, converting ids to lists does not; two batches ahead keep the cores busy.
    """
    under_way: deque[tuple[Item, Future[list[list[int]]]]] = deque()
    # Two, because the conversion of one batch hides behind the encoding of the next; more only hold memory. The whole
    # of pretokenize takes 0.90 of the time of `encode_batch_fast` alone (40,000 stories, two threads).
    with ThreadPoolExecutor(max_workers=ahead) as threads:
        for item, texts in batches:
            under_way.append((item, threads.submit(encode, texts)))
            if len(under_way) > ahead:
                item, ids = under_way.popleft()
                yield item, ids.result()
        for item, ids in under_way:
            yield item, ids.result()


def encoded_batch(
    record_ids: pa.ChunkedArray,
    stories: pa.ChunkedArray,
    ids: list[list[int]],
    bos: list[int],
    eos: list[int],
    schema: pa.Schema,
) -> pa.RecordBatch:
    """Return the ids of N stories as one Arrow batch, between `bos` and `eos`."""
    lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids)) + np.int32(len(bos) + len(eos))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    token = schema.field("input_ids").type.value_type.to_pandas_dtype()
    flat = array(np.dtype(token).char)  # twice as fast as a list that NumPy converts, and it refuses an id too large
    for row in ids:
        flat.fromlist(bos)
        flat.fromlist(row)
        flat.fromlist(eos)
    columns = [
        record_ids.combine_chunks(),
        pa.array(lengths),
        pyarrow.compute.binary_length(stories).combine_chunks(),  # of a string: its UTF-8 bytes
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.frombuffer(flat, dtype=token))),
    ]
    return pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


class RowViews:
    """The rows of a memory-mapped column of lists, as views: some microseconds a row, where Arrow's own take 50.

    >>> RowViews(pa.chunked_array([[[1, 2], [3]], [], [[4, 5]]], pa.list_(pa.uint16())))[2]
    array([4, 5], dtype=uint16)
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        # One flat view for each Arrow batch, and where each row starts in it.
        # Views of the memory-mapped file: a `datasets` row access copies and converts, for each document of each
        # block.
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._starts = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._first = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._first, row, side="right")) - 1
        place = row - int(self._first[chunk])
        starts = self._starts[chunk]
        return self._values[chunk][starts[place] : starts[place + 1]]


class DocumentStore(Protocol):
    """What blocks, training and evaluation read: `TokenStore`, and stores with its attributes and methods."""

    lengths_N: np.ndarray
    num_bytes_N: np.ndarray
    num_tokens: int

    def __len__(self) -> int: ...

    def tokens(self, document: int) -> np.ndarray:
        """Return the (length,) ids of one document."""

    def record_id(self, document: int) -> str:
        """Return the id of a document's record."""


class TokenStore:
    """The tokens of one split, memory-mapped.

    Attributes:
        lengths_N: tokens of each document, BOS and EOS counted.
        num_bytes_N: UTF-8 bytes of each story, for bits per byte.
        num_tokens: their sum.
    """

    def __init__(self, dataset: Dataset, manifest: dict[str, Any]) -> None:
        self.dataset = dataset
        self.manifest = manifest
        table = dataset.data.table
        self.lengths_N = table.column("length").to_numpy()
        self.num_bytes_N = table.column("num_bytes").to_numpy()
        self.num_tokens = int(self.lengths_N.sum(dtype=np.int64))
        self._ids = RowViews(table.column("input_ids"))

    @classmethod
    def open(cls, folder: Path, split: str) -> TokenStore:
        """Open one split of a store's folder.

        Raises:
            UsageError: for a missing or damaged store, or a split that is missing or empty.
        """
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} has no tokens; make them with lm-trials prepare pretokenize")
        splits = load_splits(folder)
        if split not in splits:
            raise UsageError(f"{folder} has no split {split!r}; {did_you_mean(split, splits)}")
        store = cls(splits[split], read_manifest(folder))
        if not len(store):
            raise UsageError(f"the {split} split of {folder.parent} has no story; prepare more stories")
        return store

    def __len__(self) -> int:
        return len(self.lengths_N)

    def tokens(self, document: int) -> np.ndarray:
        """Return the (length,) ids of one document, a view of the memory map."""
        return self._ids[document]

    def record_id(self, document: int) -> str:
        """Return the id of a document's record."""
        return self.record_ids()[document].as_py()

    def record_ids(self) -> pa.ChunkedArray:
        """Return the ids of all documents' records."""
        return self.dataset.data.table.column("record_id")
