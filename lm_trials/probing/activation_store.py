"""Activations of many texts: batch by batch (`captured`), or stored in memory or in files (`ActivationStore`).

Shape suffixes: N = kept tokens of all texts, T = tokens of a text.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
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
"""Bytes that a store without a folder may take in memory; larger ones go to temporary files, which cost no time (for
1,000 stories by base8M 35.2 s and a peak of 535 MB, in memory 39.8 s and 1,705 MB)."""
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
    """Yield what a model computes on texts, batch by batch; `document_B` has the indices of the texts of a batch.

    Texts of similar length are batched together, padded on the right; each text is in exactly one batch.  Logits are
    computed for the last token only, if the model supports `logits_to_keep`.

    Args:
        documents: the (T,) ids of each text.
        positions: as for `Capture`; positions by text are those of all `documents`.
        description: label of the progress bar; None for no bar.

    Raises:
        UsageError: for no texts, an empty one, or one that is longer than the model's positions.
    """
    if not len(documents):
        raise UsageError("no texts to read; choose a data set with texts, or more of them")
    if not isinstance(positions, int | None) and len(positions) != len(documents):
        raise UsageError(f"positions are given for {len(positions)} of {len(documents)} texts; give them for each text")
    order = sorted(range(len(documents)), key=lambda number: -len(documents[number]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shown = progress(batches, description, "texts", len(order), len) if description else batches
    capture = Capture(model, sites, positions, name)
    whole = capture.anatomy.model
    limit, longest = positions_of(whole), len(documents[order[0]])
    if limit is not None and longest > limit:
        raise UsageError(
            f"a text has {longest} tokens, but {capture.anatomy.name} has {limit} positions; give shorter texts"
        )
    # The output head is a third of base8M's forward pass: 34.0 s without it for 1,000 stories, 48.5 s with it.
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(whole.forward).parameters else {}
    for numbers in shown:
        if not isinstance(positions, int | None):
            capture.positions = [positions[number] for number in numbers]
        ids_BT, mask_BT = padded([documents[number] for number in numbers])
        # Not inference_mode: a lens or a probe cannot be trained on its tensors.
        with torch.no_grad(), capture:
            model(input_ids=ids_BT.to(whole.device), attention_mask=mask_BT.to(whole.device), **fewer)
        yield replace(capture.activations, document_B=torch.tensor(numbers))


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
    """Activations of many texts, in the order of the texts: an array of N rows for each site and layer.

    Attributes:
        arrays: by (site, layer), (N, ...) float32; memory-mapped when stored in files.
        text_N: the text of each row.
        position_N: its position in that text.
        folder: folder of the files; None in memory or in temporary files.

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
        """Run a model over texts and keep what it computes; arguments as for `captured`.

        Args:
            folder: where to store the activations; None for memory.
            in_memory: without `folder`, more bytes than this go to unnamed temporary files, which disappear with the
                store or with the process, however it ends.

        Raises:
            UsageError: for no texts, or no position in any; for attention weights, which have no common shape; for a
                folder that is not empty.
        """
        if "attention" in sites:
            raise UsageError("attention weights of texts have no common shape; read them batch by batch (`captured`)")
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder; choose another")
        asked: Sequence[Any] = documents if isinstance(positions, int | None) else positions
        counts = np.array([len(each) for each in asked], dtype=np.int64)
        if isinstance(positions, int):
            counts = np.minimum(counts, max(positions, 0))
        ends, total = np.cumsum(counts), int(counts.sum())
        text_N, position_N = np.repeat(np.arange(len(counts)), counts), np.zeros(total, dtype=np.int64)
        arrays: dict[Site, np.ndarray] = {}
        files: dict[Site, tuple[Any, int, tuple[int, ...]]] = {}
        with ExitStack() as opened:
            unfinished = opened.enter_context(finished_folder(folder)) if folder else None
            # Closed at once if something fails: otherwise the progress bar would end only after the error message.
            batches = captured(model, documents, sites, positions, batch_size, description)
            for found in opened.enter_context(closing(batches)):
                if not total:
                    raise UsageError("positions name no token of any text; give at least one")
                if not arrays and not files:
                    shapes = {site: (total, *values.shape[1:]) for site, values in found.values.items()}
                    if folder is None and 4 * sum(map(math.prod, shapes.values())) <= in_memory:
                        arrays = {site: np.empty(shape, dtype="<f4") for site, shape in shapes.items()}
                    else:
                        files = {site: _new_file(opened, unfinished, site, shape) for site, shape in shapes.items()}
                # The rows of a text are contiguous in a batch, text after text.
                texts = found.document_B.tolist()
                sizes = counts[texts].tolist()
                starts = (ends[texts] - counts[texts]).tolist()
                for start, own in zip(starts, found.position_N.split(sizes), strict=True):
                    position_N[start : start + len(own)] = own.numpy()
                for site, values in found.values.items():
                    for start, rows in zip(starts, values.split(sizes), strict=True):
                        if arrays:
                            arrays[site][start : start + len(rows)] = rows.numpy()
                            continue
                        # Not through a memory map: its pages would count as this process's memory, and a full disk
                        # would kill the process instead of raising an OSError.
                        file, begin, shape = files[site]
                        file.seek(begin + start * math.prod(shape[1:]) * 4)
                        file.write(rows.numpy().astype("<f4").tobytes())
            if unfinished is not None:
                np.save(unfinished / "text.npy", text_N)
                np.save(unfinished / "position.npy", position_N)
                write_json(unfinished / META, {"sites": [list(site) for site in files], "rows": total})
            else:
                for site, (file, begin, shape) in files.items():
                    file.flush()
                    arrays[site] = np.memmap(file, "<f4", "r", begin, shape)  # outlives the open file
        return cls.open(folder) if folder else cls(arrays, text_N, position_N)

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        """Open a stored folder, memory-mapped.

        Raises:
            UsageError: for a folder without a store, or whose files are damaged.
        """
        about = read_object(folder / META)
        try:
            sites, rows = [(site, layer) for site, layer in about["sites"]], about["rows"]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder, META, error) from None

        def load(name: str) -> np.ndarray:
            try:
                array = np.load(folder / name, mmap_mode="r")
                if len(array) != rows:
                    raise ValueError(f"{len(array)} rows instead of {rows}")
            except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
                raise _damaged(folder, name, error) from None
            return array

        arrays = {site: load(_file(site)) for site in sites}
        return cls(arrays, np.array(load("text.npy")), np.array(load("position.npy")), folder)


def _file(site: Site) -> str:
    return f"{site[0]}-{site[1]:02d}.npy"


def _new_file(
    opened: ExitStack, folder: Path | None, site: Site, shape: tuple[int, ...]
) -> tuple[Any, int, tuple[int, ...]]:
    """Return an open `.npy` file (without `folder` an unnamed one), where its rows begin, and its shape."""
    unopened = (folder / _file(site)).open("w+b") if folder else tempfile.TemporaryFile()  # noqa: SIM115 (on exit)
    file = opened.enter_context(unopened)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file, file.tell(), shape


def _damaged(folder: Path, name: str, error: Exception) -> UsageError:
    return UsageError(f"{folder / name} is damaged ({error}); remove {folder} and capture again")


def reduced(
    batches: Iterator[Activations], count: int, reduce: Callable[[Activations], dict[str, torch.Tensor]]
) -> dict[str, np.ndarray]:
    """Gather one row for each of `count` texts from batches of activations, in the order of the texts.

    Args:
        reduce: returns, by name, (B, ...) rows, one for each text of a batch.
    """
    gathered: dict[str, np.ndarray] = {}
    for found in batches:
        for name, rows in reduce(found).items():
            array = gathered.setdefault(name, np.full((count, *rows.shape[1:]), np.nan, dtype=np.float32))
            array[found.document_B.numpy()] = rows.numpy()
    return gathered
