"""Hub data sets and saved ones: the two kinds of source that `datasets` itself reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.stories.shards import first_line, reading

# A Hub that says nothing for so long has gone.
TIMEOUT = 30.0  # seconds


def hub_revision(reference: str) -> str | None:
    """Return the commit that a Hub data set is at now; None without a network, where it comes from the cache.

    Raises:
        UsageError: for a name that the Hub does not have, or does not show.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().dataset_info(reference, timeout=TIMEOUT).sha
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        raise not_from_hub(reference, error) from None
    except HfHubHTTPError.__bases__:  # the HTTP client's own error and OSError: no network, a Hub that is down
        return None


def load_hub(
    reference: str, config: str | None, split: str | None, streaming: bool, revision: str | None, num_proc: int = 1
) -> Any:
    """Load a split of a Hub data set, or for None the dictionary of all; without `streaming` all of it is downloaded.

    Raises:
        UsageError: where it cannot be had.
    """
    from datasets import load_dataset

    processes = {} if streaming or num_proc == 1 else {"num_proc": num_proc}  # a stream takes no number of them
    with reading_hub(reference):
        return load_dataset(reference, config, split=split, streaming=streaming, revision=revision, **processes)


@contextmanager
def reading_hub(reference: str) -> Iterator[None]:
    """Turn what is raised for a wrong name, split or network into one line."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # What is raised for a wrong name, split, or network has no common base; the bases of HfHubHTTPError are the HTTP
    # client's own error and OSError.
    except (ValueError, RuntimeError, DatasetsError, *HfHubHTTPError.__bases__) as error:
        if isinstance(error, UsageError):
            raise
        raise not_from_hub(reference, error) from None


def not_from_hub(reference: str, error: Exception) -> UsageError:
    """Return the one line for a Hub data set that cannot be had."""
    return UsageError(
        f"{reference} is no path here and cannot be had from the Hub ({first_line(error)}); "
        "check the name, the split and the network, or give a path"
    )


def saved_split_names(folder: Path) -> list[str]:
    """Return the splits of a saved data set in their order; none for one that was saved without splits.

    Raises:
        UsageError: if what lists them is broken.
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
        UsageError: if it is not whole; the file is named where one is to blame.
    """
    import pyarrow
    from datasets import load_from_disk

    with reading(str(folder)):
        try:
            return load_from_disk(str(folder))
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            named = _broken_arrow_file(folder) or folder
            raise UsageError(f"{named} is no whole saved data set ({first_line(error)}); write it again") from None


def _broken_arrow_file(folder: Path) -> str | None:
    """Find the Arrow file that ends before it should, and after which of its records."""
    import pyarrow as pa

    for path in sorted(folder.rglob("*.arrow")):
        num_rows = 0
        try:
            with pa.memory_map(str(path)) as stream, pa.ipc.open_stream(stream) as batches:
                for batch in batches:
                    num_rows += batch.num_rows
        except (pa.ArrowException, OSError):
            return f"{path} is cut off or broken after record {num_rows}, so that {folder}"
    return None
