"""Records: which records a run read between two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lm_trials.training.data_order import open_order

if TYPE_CHECKING:
    import pandas as pd


def records_between(run: str | Path, first: int, last: int, data_cache_dir: str | None = None) -> pd.DataFrame:
    """Return the records of updates `first` to `last`, a row for each record in each block that has tokens of it.

    Of a checkpoint, `first` is its `since` (`sums.json`, `open_snapshots`) plus 1.  The records are computed and not
    stored, as `lm-trials order` computes them: the data order follows from `run.json`.  Stored ids would take 32 bytes
    for each record that is read.

    Columns: update, block, part (of a mixture), record_id, token (position of the first of them in the record), tokens,
    and the metrics that order or filter the records of the run.

    Raises:
        UsageError: for updates that the run does not have, missing or changed data.
    """
    import pandas as pd

    order = open_order(Path(run), data_cache_dir)
    rows = [
        (update, part.block, part.corpus, part.record_id, part.first, len(part.ids), *part.values)
        for update in range(first, last + 1)
        for part in order.parts_of(update)
    ]
    return pd.DataFrame(rows, columns=["update", "block", "part", "record_id", "token", "tokens", *order.metrics])
