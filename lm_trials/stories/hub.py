"""Hub data sets and saved data sets: the two kinds of source that `datasets` itself reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_trials.console import UsageError
from lm_trials.hub_errors import network_errors
from lm_trials.stories.shards import first_line, reading

TIMEOUT = 30.0  # seconds without an answer; the client of huggingface_hub has no limit of its own


def hub_revision(reference: str) -> str | None:
    """Return the current commit of a Hub data set; None without a network, where the data set comes from the cache.

    Raises:
        UsageError: for a name that does not exist on the Hub, or needs rights.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().dataset_info(reference, timeout=TIMEOUT).sha
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        raise not_from_hub(reference, error) from None
    except network_errors():
        return None


def load_hub(
    reference: str, config: str | None, split: str | None, streaming: bool, revision: str | None, num_proc: int = 1
) -> Any:
    """Load a split of a Hub data set, or for None the dictionary of all; without `streaming` all of it is downloaded.

    Raises:
        UsageError: if it cannot be loaded.
    """
    from datasets import load_dataset
    from huggingface_hub import constants

    # Without a network only the cache is asked; the client would try for 24 s.
    offline = patch.object(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE or revision is None)
    # No effect on records or order: `datasets` joins the parts in the order of the files.
    processes = None if streaming or num_proc == 1 else num_proc  # a stream refuses `num_proc`
    with reading_hub(reference), offline:
        return load_dataset(reference, config, split=split, streaming=streaming, revision=revision, num_proc=processes)


@contextmanager
def reading_hub(reference: str) -> Iterator[None]:
    """Turn the exceptions for a wrong name, split or network, which have no common base, into one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except UsageError:
        raise
    except (ValueError, RuntimeError, DatasetsError, *network_errors()) as error:
        raise not_from_hub(reference, error) from None


def not_from_hub(reference: str, error: Exception) -> UsageError:
    """Return the one line for a Hub data set that cannot be loaded."""
    return UsageError(
        f"{reference} is not a local path and cannot be loaded from the Hub ({first_line(error)}); "
        "check the name, the split and the network, or give a path"
    )


def saved_split_names(folder: Path) -> list[str]:
    """Return the splits of a saved data set in their order, none for one that was saved without splits.

    Raises:
        UsageError: if `dataset_dict.json` is broken.
    """
    listed = folder / "dataset_dict.json"
    if not listed.is_file():
        return []
    with reading(str(listed)):
        try:
            return list(json.loads(listed.read_text(encoding="utf-8"))["splits"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{listed} is broken ({first_line(error)}); write the data set again") from None


def load_saved(folder: Path) -> Any:
    """Load what `save_to_disk` wrote, memory-mapped: one data set, or the dictionary of its splits.

    Raises:
        UsageError: if it is incomplete; names the broken file if there is one.
    """
    import pyarrow
    from datasets import load_from_disk

    with reading(str(folder)):
        try:
            return load_from_disk(str(folder))
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            named = _broken_arrow_file(folder) or f"{folder} is not a complete saved data set"
            raise UsageError(f"{named} ({first_line(error)}); write the data set again") from None


def _broken_arrow_file(folder: Path) -> str | None:
    """Describe the Arrow file that is truncated or broken, and its last complete record."""
    import pyarrow as pa

    for path in sorted(folder.rglob("*.arrow")):
        num_rows = 0
        try:
            with pa.memory_map(str(path)) as stream, pa.ipc.open_stream(stream) as batches:
                for batch in batches:
                    num_rows += batch.num_rows
        except (pa.ArrowException, OSError):
            return f"{path} is truncated or broken after record {num_rows}"
    return None
