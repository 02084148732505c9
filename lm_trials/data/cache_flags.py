"""Flags of `lm-trials cache`'s commands; without heavy imports, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass

from lm_trials.flags import option
from lm_trials.shared_flags import DataFolder


@dataclass
class FetchArguments(DataFolder):
    """Fetch and prepare a data set once, for `lm-trials train` with the same flags.

    After an interruption the same command resumes.
    """

    dataset_name: str | None = option(None, help="A Hub data set, a file, a folder of shards or a saved data set.")
    dataset_config_name: str | None = option(
        None, help="Configuration of a Hub data set or part of a folder; a+b makes one corpus of each."
    )
    num_proc: int = option(1, least=1, help="Processes that download and read; no effect on results.")
    text_column: str | None = option(None, help="Column with the text. Default: story, else text.")
    validation_split_percentage: float | None = option(
        None,
        above=0,
        most=50,
        help="Percentage of the train split that becomes validation, by hash, if there is no such split.",
    )
    vocab_size: int | None = option(None, least=0, help="Tokenize too, with the tokenizer trained with this size.")
    tokenizer_name: str | None = option(None, help="Tokenize too, with a folder, a .model file or a Hub name.")
    append_eos: bool = option(False, help="Add EOS after each story.")

    def wants_tokens(self) -> bool:
        """Whether to make a token store."""
        return self.vocab_size is not None or self.tokenizer_name is not None


@dataclass
class ListArguments(DataFolder):
    """List what is prepared: stories, size on disk, content, source, token stores."""

    json: str | None = option(None, filled=True, help="JSON file to write the list to.")


@dataclass
class VerifyArguments(DataFolder):
    """Compare what is prepared (all, or `verify NAME ...`) with its checksums."""

    names: list[str] = option([], help="Names of corpora and sets. Default: all.")


@dataclass
class RecipeArguments:
    """Fetch all data sets of a YAML list (`recipe FILE.yaml`) with fetch's flags."""

    file: str | None = option(None, help="YAML list; all entries are checked before the first is fetched.")
