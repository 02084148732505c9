"""Snapshots: what a model computed on the same stories at each checkpoint of a run, read without torch.

    runs/<name>/checkpoint-<N>/snapshot/
        texts.json               the stories: record id, token ids, tokens, loss
        attention.safetensors    "0", "1", ...: (L, H, T, T) attention probabilities in each story
        activations.safetensors  "0", "1", ...: (L + 1, T, D) hidden states of each story
        embeddings.safetensors   "weight": (V, D) token embeddings
        gradients.safetensors    by parameter: the gradient of the mean loss per token over all these stories

`training.snapshots` writes them with the checkpoint.

Shape suffixes: C = checkpoints, L = layers, H = heads, T = tokens of a story, D = width, V = vocabulary, K = axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError
from lm_trials.files import SEALS, check_sums, read_object

SNAPSHOTS = ("attention", "embeddings", "gradients", "activations")
FOLDER, TEXTS = "snapshot", "texts.json"


def saved_updates(num_steps: int, every: float, ladder: bool) -> list[int]:
    """Return the updates after which a run saves a checkpoint.

    Args:
        every: `--save_steps`; below 1 a share of all updates.
        ladder: `--checkpoint_ladder`: update 0 and powers of two, too.

    >>> saved_updates(20, 8, ladder=False), saved_updates(20, 8, ladder=True)
    ([8, 16, 20], [0, 1, 2, 4, 8, 16, 20])
    """
    step = int(np.ceil(every * num_steps)) if every < 1 else int(every)
    powers = {0, *(1 << n for n in range(num_steps.bit_length()))} if ladder else set()
    return sorted({*range(step, num_steps + 1, step), num_steps} | powers)


@dataclass(frozen=True)
class Snapshot:
    """The snapshot of one checkpoint.

    Attributes:
        checkpoint: its folder.
        step: its update.
        since: the update of the checkpoint before it; None for the first.
        texts: record_id, input_ids, tokens and loss (nats per token) of each story.
    """

    checkpoint: Path
    step: int
    since: int | None
    texts: list[dict[str, Any]]

    @cached_property
    def names(self) -> list[str]:
        """What was saved, of `SNAPSHOTS`."""
        return [name for name in SNAPSHOTS if self._file(name).is_file()]

    def _file(self, name: str) -> Path:
        return self.checkpoint / FOLDER / f"{name}.safetensors"

    def megabytes(self, name: str) -> float:
        """Return the size of a file."""
        return self._file(name).stat().st_size / 1e6

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Return the float32 arrays of one of `SNAPSHOTS`; a UsageError for one that was not saved or is damaged."""
        from safetensors.numpy import load_file

        if name not in self.names:
            raise UsageError(f"{self.checkpoint} has no snapshot of {name}; it has {', '.join(self.names)}")
        check_sums(self.checkpoint, f"{FOLDER}/{name}.safetensors")
        return load_file(self._file(name))


@dataclass(frozen=True)
class RunSnapshots:
    """The snapshots of a run, in the order of their updates."""

    run: Path
    all: Sequence[Snapshot]

    @property
    def steps(self) -> list[int]:
        """The updates of the checkpoints with a snapshot."""
        return [snapshot.step for snapshot in self.all]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each snapshot: step, since, number of texts, their loss, and the MB of each file."""
        rows = []
        for one in self.all:
            scored = [text for text in one.texts if text["num_scored"]]
            tokens = sum(text["num_scored"] for text in scored)
            loss = sum(text["loss"] * text["num_scored"] for text in scored) / tokens
            sizes = {f"{name}_mb": one.megabytes(name) for name in one.names}
            rows.append({"step": one.step, "since": one.since, "texts": len(one.texts), "loss": loss, **sizes})
        return rows

    def attention(self, text: int = 0) -> np.ndarray:
        """Return the (C, L, H, T, T) attention probabilities in one story, by its number in `texts`."""
        return np.stack([snapshot.read("attention")[str(text)] for snapshot in self.all])

    def activations(self, text: int = 0) -> np.ndarray:
        """Return the (C, L + 1, T, D) hidden states of one story."""
        return np.stack([snapshot.read("activations")[str(text)] for snapshot in self.all])

    def embeddings(self, num_axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """Return the (C, V, K) token embeddings on the principal axes of all checkpoints, and the axes' (K,) shares.

        Axes that are fitted for each checkpoint rotate and flip from one to the next.
        """
        from sklearn.decomposition import PCA

        table_CVD = np.stack([snapshot.read("embeddings")["weight"] for snapshot in self.all])
        pca = PCA(num_axes, svd_solver="covariance_eigh")
        points = pca.fit_transform(table_CVD.reshape(-1, table_CVD.shape[-1]).astype(np.float64))
        return points.reshape(*table_CVD.shape[:2], num_axes), pca.explained_variance_ratio_


def open_snapshots(run: str | Path) -> RunSnapshots:
    """Return the snapshots of a run's checkpoints.

    Raises:
        UsageError: for a folder without any.
    """
    found = []
    for file in Path(run).glob(f"checkpoint-*/{FOLDER}/{TEXTS}"):
        checkpoint = file.parent.parent
        check_sums(checkpoint, f"{FOLDER}/{TEXTS}")
        since = read_object(checkpoint / SEALS[1])["since"]
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        found.append(Snapshot(checkpoint, step, since, read_object(file)["texts"]))
    if not found:
        raise UsageError(f"{run} has no snapshots; give the folder of a run that was trained with --snapshot")
    return RunSnapshots(Path(run), sorted(found, key=lambda snapshot: snapshot.step))
