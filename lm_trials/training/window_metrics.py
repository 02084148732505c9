"""Window metrics: means of text metrics over the records that were read since the last log line."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from lm_trials.data.datasets import DataSet
from lm_trials.training.arrangements import Part, read_table
from lm_trials.training.data_order import DataOrder, open_order
from lm_trials.training.throughput import WINDOW


class WindowMetrics(TrainerCallback):
    """Adds `window_<metric>` to each line of the training log, before the other callbacks show it.

    The values follow from the updates of the line and of the one before, and the data order of `run.json`.  So they are
    the same after a resume and for any number of processes, and training is not changed.  A record counts once, and not
    where it has no value.

    Args:
        names: the metrics, of `lm-trials prepare metadata`, or `tokens`.
        members: the data sets that are trained on.

    Raises:
        UsageError: for a metric that does not exist.
    """

    def __init__(self, names: Sequence[str], members: Sequence[DataSet]) -> None:
        self.names = names
        self.tables = [read_table(dict.fromkeys(names, "window_metrics"), member) for member in members]
        self.order: DataOrder | None = None
        self.parts: dict[str, Part] = {}

    def add_to(self, trainer: Any) -> None:
        """Call this callback before those that show the log."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the data order of the run, in the main process."""
        if state.is_world_process_zero:
            self.order = open_order(Path(args.output_dir))
            self.parts = self.order.with_metrics(self.tables)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the means to a line with the training loss."""
        if self.order is None or not logs or "loss" not in logs:
            return
        last = max((row["step"] for row in state.log_history[:-1] if "loss" in row), default=0)
        found = self.means(last + 1, state.global_step)
        logs |= found  # for the callbacks after this one
        state.log_history[-1] |= found

    def means(self, first: int, last: int) -> dict[str, float]:
        """Return the mean of each metric over the records of updates `first` to `last`."""
        assert self.order is not None
        read = dict.fromkeys(
            (document.corpus, document.document)
            for update in range(first, last + 1)
            for document in self.order.parts_of(update)
        )
        found = {}
        for name in self.names:
            values = [self.parts[corpus].values[name][row] for corpus, row in read]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # no record has a value: the mean is nan
                found[WINDOW + name] = float(np.nanmean(values))
        return found


def choose_window_metrics(names: Sequence[str], members: Sequence[DataSet]) -> WindowMetrics | None:
    """Return what `--window_metrics` asks for; None without it.

    Raises:
        UsageError: for a metric that does not exist.
    """
    return WindowMetrics(names, members) if names else None
