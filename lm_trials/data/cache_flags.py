"""Arguments of `cache_datasets.py`'s commands; nothing heavy is imported, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from lm_trials.flags import option
from lm_trials.shared_flags import DataFolder


@dataclass
class FetchArguments(DataFolder):
    """Fetch a data set and prepare it, so that train_gpt2.py with the same flags finds it and reads nothing again.

    Stopped or killed, the same command goes on where it was.
    """

    dataset_name: str | None = option(None, help="A Hub data set, a file, a folder of shards or a saved data set.")
    dataset_config_name: str | None = option(
        None, help="Configuration of a Hub data set or part of a folder; of a+b each is a corpus of its own."
    )
    num_proc: int = option(1, least=1, help="Processes that download and read; the result does not depend on them.")
    text_column: str | None = option(None, help="Column that holds the text. Default: story, else text.")
    validation_split_percentage: float | None = option(
        None,
        above=0,
        most=50,
        help="Share of a train split without a validation split that becomes one, by hash of the document.",
    )
    vocab_size: int | None = option(
        None, least=0, help="Make the tokens too, with the tokenizer trained with this size."
    )
    tokenizer_name: str | None = option(None, help="Make the tokens too: a folder, a .model file or a Hub name.")
    append_eos: bool = option(False, help="Close each story with EOS in those tokens.")

    def wants_tokens(self) -> bool:
        """Whether a token store is asked for."""
        return self.vocab_size is not None or self.tokenizer_name is not None


@dataclass
class ListArguments(DataFolder):
    """List what is prepared: stories, size on disk, content, source, token stores."""

    json: str | None = option(None, help="File that the same goes to as JSON.")


@dataclass
class VerifyArguments(DataFolder):
    """Compare what is prepared (all, or `verify NAME ...`) with the checksums and counts of its manifest."""

    names: list[str] = option([], help="Names of corpora and sets. Default: all.")


@dataclass
class RecipeArguments:
    """Fetch the data sets of a list (`recipe FILE.yaml`), whose keys are the flags of fetch."""

    file: str | None = option(None, help="A YAML list; every entry is checked before the first is fetched.")
