"""Token stores: the records' tokens, made once per tokenizer, memory-mapped, one row a document."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, List, Value

from lm_trials.console import UsageError, did_you_mean, progress
from lm_trials.files import file_sums, finished_folder, write_json
from lm_trials.stories.corpora import MANIFEST, load_splits, open_records, read_manifest, save_splits
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

ENCODE_BATCH = 1000
Separator = Literal["bos", "eos", "none"]


def store_schema(vocab_size: int) -> Features:
    """Return the columns of a token store; ids take two bytes where the vocabulary fits.

    >>> [store_schema(size)["input_ids"].feature.dtype for size in (1 << 16, (1 << 16) + 1)]
    ['uint16', 'int32']
    """
    token = Value("uint16" if vocab_size <= 1 << 16 else "int32")
    return Features(
        {
            "record_id": Value("string"),
            "length": Value("int32"),
            "num_bytes": Value("int32"),
            "input_ids": List(token),
        }
    )


def store_folder(
    corpus: Path, tokenizer: PreTrainedTokenizerBase, append_eos: bool, separator: Separator = "bos"
) -> Path:
    """Return where the token store of a corpus lies for this tokenizer and these marks."""
    usual, _ = document_marks(tokenizer, append_eos)
    opening, _ = document_marks(tokenizer, append_eos, separator)
    other = "" if opening == usual else f"-separator_{separator}"
    return corpus / f"tokens-{tokenizer_hash(tokenizer)}{other}{'-eos' if append_eos else ''}"


def make_store(
    corpus: Path,
    tokenizer: PreTrainedTokenizerBase,
    append_eos: bool = False,
    watch: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda batches, total, name: batches,
    separator: Separator = "bos",
) -> Path:
    """Tokenise a corpus, `separator` before each story and EOS after it if asked, and return the store's folder.

    A store that is there already is returned as it is.  `watch(batches, number_of_stories, split)` may wrap the
    stream of batches with a progress bar.

    Raises:
        UsageError: for a tokenizer without BOS (or EOS, if asked), or a corpus without records.
    """
    folder = store_folder(corpus, tokenizer, append_eos, separator)
    if (folder / MANIFEST).is_file():
        return folder
    bos, eos = document_marks(tokenizer, append_eos, separator)
    records = open_records(corpus)
    # The highest id, not the count, says what an id needs: some vocabularies have gaps.
    schema = store_schema(max(tokenizer.get_vocab().values()) + 1)
    counts: dict[str, dict[str, int]] = {}
    with finished_folder(folder) as unfinished:
        for split in SPLITS:
            batches = watch(_encoded(records[split], tokenizer, bos, eos, schema), len(records[split]), split)
            counts[split] = _write_split(unfinished / f"{split}.arrow", batches, schema)
        save_splits(unfinished, unfinished)
        manifest = {
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "vocab_size": len(tokenizer),
            "append_eos": append_eos,
            "document_separator": separator,
            "documents": {split: count["documents"] for split, count in counts.items()},
            "tokens": {split: count["tokens"] for split, count in counts.items()},
            "files": file_sums(unfinished),
        }
        write_json(unfinished / MANIFEST, manifest)
    return folder


def token_progress(batches: Iterable[pa.RecordBatch], total: int, split: str) -> Iterator[pa.RecordBatch]:
    """Show how many stories of a split are tokenised; for `make_store`."""
    return progress(batches, f"tokenising {split}", "stories", total, size=lambda batch: batch.num_rows)


def document_marks(
    tokenizer: PreTrainedTokenizerBase, append_eos: bool, separator: Separator = "bos"
) -> tuple[list[int], list[int]]:
    """Return the ids before and after each document.

    The separator stands before each document, the first too, so that a document's first token is predicted from
    something.  `bos` of a tokenizer without BOS (GPT-2's) is its EOS; `none` is how the fifth seed joins documents.

    Raises:
        UsageError: for a tokenizer without the token.
    """
    eos = tokenizer.eos_token_id
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None and separator == "bos" else eos
    if separator == "none" and (eos is not None or not append_eos):
        return [], [eos] if append_eos else []
    if opening is None or (append_eos and eos is None):
        raise UsageError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no BOS or EOS token to put between stories; "
            "use one made by prepare_tinystories.py train_vocab, or GPT-2's or Llama's"
        )
    return [opening], [eos] if append_eos else []


def opening_of(tokenizer: PreTrainedTokenizerBase, separator: Separator = "bos") -> list[int]:
    """Return the ids that a model is given to begin a story: what stood before each, or BOS where nothing did."""
    opening, _ = document_marks(tokenizer, False, "bos" if separator == "none" else separator)
    return opening


def _encoded(
    records: Dataset, tokenizer: PreTrainedTokenizerBase, bos: list[int], eos: list[int], schema: Features
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a split; the next ones are encoded in threads while one is laid out and written.

    Encoding lets go of Python's lock, handing its ids over holds it.  With two batches under way the cores have one to
    encode while the other is handed over; order and ids are those of one thread.
    """
    encode = batch_encoder(tokenizer)
    arrow_schema = schema.arrow_schema

    def lay_out(batch: pa.Table, ids: Future[list[list[int]]]) -> pa.RecordBatch:
        return encoded_batch(batch["record_id"], batch["story"], ids.result(), bos, eos, arrow_schema)

    under_way: deque[tuple[pa.Table, Future[list[list[int]]]]] = deque()
    with ThreadPoolExecutor(max_workers=2) as threads:
        for batch in records.with_format("arrow").select_columns(["record_id", "story"]).iter(ENCODE_BATCH):
            under_way.append((batch, threads.submit(encode, batch["story"].to_pylist())))
            if len(under_way) > 2:
                yield lay_out(*under_way.popleft())
        while under_way:
            yield lay_out(*under_way.popleft())


def encoded_batch(
    record_ids: pa.ChunkedArray,
    stories: pa.ChunkedArray,
    ids: list[list[int]],
    bos: list[int],
    eos: list[int],
    schema: pa.Schema,
) -> pa.RecordBatch:
    """Lay the ids of N stories out as one Arrow batch, between `bos` and `eos`."""
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


def _write_split(path: Path, batches: Iterable[pa.RecordBatch], schema: Features) -> dict[str, int]:
    documents = tokens = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema.arrow_schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
            documents += batch.num_rows
            tokens += int(pa.compute.sum(batch.column("length")).as_py())
    return {"documents": documents, "tokens": tokens}


class RowViews:
    """The rows of a memory-mapped column of lists, each a view: some microseconds a row, where Arrow's own take 50.

    >>> RowViews(pa.chunked_array([[[1, 2], [3]], [], [[4, 5]]], pa.list_(pa.uint16())))[2]
    array([4, 5], dtype=uint16)
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        # One flat view for each Arrow batch, and where each row starts in it.
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._starts = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._first = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._first, row, side="right")) - 1
        place = row - int(self._first[chunk])
        starts = self._starts[chunk]
        return self._values[chunk][starts[place] : starts[place + 1]]


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
            UsageError: for a folder that is no store or is damaged, or a split that is not there or is empty.
        """
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} holds no tokens; make them with prepare_tinystories.py pretokenize")
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
        """Return the (length,) ids of one document, a view on the memory map."""
        return self._ids[document]

    def record_id(self, document: int) -> str:
        """Return the name of the record that a document holds."""
        return self.dataset.data.table.column("record_id")[document].as_py()
