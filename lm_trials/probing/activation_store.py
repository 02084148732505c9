"""Activation stores: what a model computes on many texts, in memory while it is little, else in files.

Shape suffixes: N = kept tokens of all texts, T = tokens of a text.
"""

from __future__ import annotations

import inspect
import itertools
import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_trials.console import UsageError, progress
from lm_trials.files import finished_folder, read_object, write_json
from lm_trials.models.reference import positions_of
from lm_trials.probing.capture import Activations, Capture, Positions, Site, Sites

IN_MEMORY = 512 << 20
"""Bytes that a store may take in memory where no folder is named."""
META = "activations.json"


def captured(
    model: Any,
    documents: Sequence[np.ndarray],
    sites: Sites = ("hidden",),
    positions: Positions = None,
    batch_size: int = 16,
    description: str | None = "capturing",
    name: str = "",
) -> Generator[Activations, None, None]:
    """Yield what a model computes on texts, batch by batch; `document_B` says which texts a batch holds.

    Texts of like length go together, padded on the right; each text is in exactly one batch.  The output head is left
    out where the model can (`logits_to_keep`), as nothing here reads it.

    Args:
        documents: the (T,) ids of each text.
        positions: as for `Capture`, or for each document the positions in it.
        description: what the progress bar is called; None for no bar.

    Raises:
        UsageError: for no texts, an empty one, or one that is longer than the model's positions.
    """
    _check_documents(documents, positions)
    order = sorted(range(len(documents)), key=lambda number: -len(documents[number]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shown = progress(batches, description, "texts", len(order), len) if description else batches
    capture = Capture(model, sites, name=name)
    whole = capture.anatomy.model
    limit, longest = positions_of(whole), len(documents[order[0]])
    if limit is not None and longest > limit:
        raise UsageError(f"a text has {longest} tokens and {capture.anatomy.name} {limit} positions; give shorter ones")
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(whole.forward).parameters else {}
    for numbers in shown:
        capture.positions = _positions_of(positions, numbers)
        ids_BT, mask_BT = padded([documents[number] for number in numbers])
        # Not inference mode, whose tensors a lens or a probe could not be trained on.
        with torch.no_grad(), capture:
            model(input_ids=ids_BT.to(whole.device), attention_mask=mask_BT.to(whole.device), **fewer)
        yield replace(capture.activations, document_B=torch.tensor(numbers))


def _check_documents(documents: Sequence[np.ndarray], positions: Positions) -> None:
    if not len(documents):
        raise UsageError("no text is left to be read; give a data set with texts, or more --max_eval_samples")
    if isinstance(positions, int):
        if positions < 1:
            raise UsageError(f"the last {positions} tokens are none; give at least 1")
    elif positions is not None and len(positions) != len(documents):
        raise UsageError(f"positions for {len(positions)} texts and {len(documents)} of them; give them for each")


def _positions_of(positions: Positions, numbers: Sequence[int]) -> Positions:
    return positions if positions is None or isinstance(positions, int) else [positions[number] for number in numbers]


def padded(documents: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask of texts, padded on the right with id 0.

    >>> [tensor.tolist() for tensor in padded([np.array([5, 6]), np.array([7])])]
    [[[5, 6], [7, 0]], [[1, 1], [1, 0]]]
    """
    width = max(len(ids_T) for ids_T in documents)
    ids_BT = torch.zeros(len(documents), width, dtype=torch.long)
    mask_BT = torch.zeros(len(documents), width, dtype=torch.long)
    for row, ids_T in enumerate(documents):
        ids_BT[row, : len(ids_T)] = torch.as_tensor(np.asarray(ids_T, dtype=np.int64))
        mask_BT[row, : len(ids_T)] = 1
    return ids_BT, mask_BT


@dataclass(frozen=True)
class ActivationStore:
    """Activations of many texts, in the order of the texts: of each site and layer an array of N rows.

    Attributes:
        arrays: by (site, layer), (N, ...) float32; memory-mapped where they lie in files.
        text_N: which text each row is of.
        position_N: its position in it.
        folder: where the files lie; None in memory or in files without a name.

    >>> from lm_trials.models.shapes import build_config, build_model
    >>> config = build_config("llama", None, "hidden_size=8,num_hidden_layers=2,num_attention_heads=1,"
    ...     "intermediate_size=16", vocab_size=300, block_size=8, bos_token_id=1, eos_token_id=2)
    >>> texts = [np.array([1, 5, 6]), np.array([1, 9])]
    >>> store = ActivationStore.collect(build_model(config, seed=0), texts, ["hidden"], description=None)
    >>> store["hidden", 2].shape, store.text_N.tolist()
    ((5, 8), [0, 0, 0, 1, 1])
    """

    arrays: dict[Site, np.ndarray]
    text_N: np.ndarray
    position_N: np.ndarray
    folder: Path | None = None

    def __getitem__(self, site: Site) -> np.ndarray:
        return self.arrays[site]

    @classmethod
    def collect(
        cls,
        model: Any,
        documents: Sequence[np.ndarray],
        sites: Sites = ("hidden",),
        positions: Positions = None,
        batch_size: int = 16,
        folder: Path | None = None,
        in_memory: int = IN_MEMORY,
        description: str | None = "capturing",
    ) -> ActivationStore:
        """Run a model over texts and keep what it computes.

        Without `folder`, more than `in_memory` bytes go to temporary files that have no name and are gone with the
        store, or with the process, however it ends.  Rows are written as they come, so the memory that this takes
        does not grow with the number of texts.

        Raises:
            UsageError: for no texts, or no position in any; for attention weights, which have no common shape; for a
                folder that is in the way.
        """
        if "attention" in sites:
            raise UsageError("attention weights of texts have no common shape; read them batch by batch (`captured`)")
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder; name another")
        _check_documents(documents, positions)
        rows = _Rows.of(documents, positions)
        if not rows.total:
            raise UsageError("no position is asked for in any text; give at least one")
        # Closed at once where something fails: else the bar would end only after the error was told.
        with closing(captured(model, documents, sites, positions, batch_size, description)) as batches:
            if folder is not None:
                with finished_folder(folder) as unfinished:
                    with _Files(rows.total, unfinished) as files:
                        rows.write(batches, files.write)
                    np.save(unfinished / "text.npy", rows.text_N)
                    np.save(unfinished / "position.npy", rows.position_N)
                    write_json(unfinished / META, {"sites": [list(site) for site in files.files], "rows": rows.total})
                return cls.open(folder)
            first = next(batches)
            size = 4 * rows.total * sum(values.shape[1:].numel() for values in first.values.values())
            everything = itertools.chain([first], batches)
            if size <= in_memory:
                memory = _Memory(rows.total)
                rows.write(everything, memory.write)
                return cls(memory.arrays, rows.text_N, rows.position_N)
            with _Files(rows.total) as files:
                rows.write(everything, files.write)
                return cls(files.arrays(), rows.text_N, rows.position_N)

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        """Open a store that lies in files, memory-mapped.

        Raises:
            UsageError: for a folder that holds none, or whose files are not as they were written.
        """
        about = read_object(folder / META)
        arrays: dict[Any, np.ndarray] = {}
        try:
            names = {(site, layer): _file((site, layer)) for site, layer in about["sites"]}
            names |= {"text": "text.npy", "position": "position.npy"}
            rows = about["rows"]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{folder / META} is damaged ({error}); remove {folder} and capture anew") from None
        for key, name in names.items():
            try:
                arrays[key] = np.load(folder / name, mmap_mode="r")
                if len(arrays[key]) != rows:
                    raise ValueError(f"{len(arrays[key])} rows for {rows}")
            except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
                raise UsageError(f"{folder / name} is damaged ({error}); remove {folder} and capture anew") from None
        return cls(arrays, np.array(arrays.pop("text")), np.array(arrays.pop("position")), folder)


@dataclass(frozen=True)
class _Rows:
    """Which rows of the arrays each text has."""

    starts: np.ndarray
    text_N: np.ndarray
    position_N: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], positions: Positions) -> _Rows:
        counts = np.array([len(ids_T) for ids_T in documents], dtype=np.int64)
        if isinstance(positions, int):
            counts = np.minimum(counts, positions)
        elif positions is not None:
            counts = np.array([len(asked) for asked in positions], dtype=np.int64)
        text_N = np.repeat(np.arange(len(counts)), counts)
        return cls(np.concatenate([[0], np.cumsum(counts)]), text_N, np.zeros_like(text_N))

    @property
    def total(self) -> int:
        return len(self.text_N)

    def write(self, batches: Iterable[Activations], write: Callable[[Site, int, np.ndarray], None]) -> None:
        """Hand the rows of each text to `write`, with the place where they begin."""
        for found in batches:
            # The rows of a text lie together in a batch, text after text.
            ends = torch.bincount(found.text_N, minlength=len(found.document_B)).cumsum(0).tolist()
            for row, text in enumerate(found.document_B.tolist()):
                part, start = slice(ends[row - 1] if row else 0, ends[row]), int(self.starts[text])
                self.position_N[start : self.starts[text + 1]] = found.position_N[part].numpy()
                for site, values in found.values.items():
                    write(site, start, values[part].numpy())


def _file(site: Site) -> str:
    return f"{site[0]}-{site[1]:02d}.npy"


class _Memory:
    """Arrays in memory."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.arrays: dict[Site, np.ndarray] = {}

    def write(self, site: Site, start: int, rows: np.ndarray) -> None:
        if site not in self.arrays:
            self.arrays[site] = np.empty((self.total, *rows.shape[1:]), dtype="<f4")
        self.arrays[site][start : start + len(rows)] = rows


class _Files:
    """Arrays in `.npy` files, written row by row: a memory map's pages would count as this process's memory.

    Without a folder the files have no name, so that even a killed process leaves none behind.
    """

    def __init__(self, total: int, folder: Path | None = None) -> None:
        self.folder, self.total = folder, total
        self.files: dict[Site, _OpenFile] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for found in self.files.values():
            found.file.close()

    def write(self, site: Site, start: int, rows: np.ndarray) -> None:
        if site not in self.files:
            place = self.folder / _file(site) if self.folder else None
            file = place.open("w+b") if place else tempfile.TemporaryFile()  # noqa: SIM115 (closed on leaving)
            shape = (self.total, *rows.shape[1:])
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            self.files[site] = _OpenFile(file, file.tell(), shape)
        found = self.files[site]
        found.file.seek(found.begin + start * math.prod(found.shape[1:]) * 4)
        found.file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())

    def arrays(self) -> dict[Site, np.ndarray]:
        """Return what was written, memory-mapped; the maps outlive the open files."""
        for found in self.files.values():
            found.file.flush()
        return {site: np.memmap(found.file, "<f4", "r", found.begin, found.shape) for site, found in self.files.items()}


@dataclass(frozen=True)
class _OpenFile:
    file: Any
    begin: int
    shape: tuple[int, ...]


def reduced(
    batches: Iterator[Activations], count: int, reduce: Callable[[Activations], dict[str, torch.Tensor]]
) -> dict[str, np.ndarray]:
    """Gather one row for each text from batches of activations, in the order of the texts.

    Args:
        count: how many texts there are.
        reduce: gives, by name, (B, ...) rows, one for each text of a batch.
    """
    gathered: dict[str, np.ndarray] = {}
    for found in batches:
        for name, rows in reduce(found).items():
            array = gathered.setdefault(name, np.full((count, *rows.shape[1:]), np.nan, dtype=np.float32))
            array[found.document_B.numpy()] = rows.numpy()
    return gathered
