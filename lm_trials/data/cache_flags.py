"""Arguments of `cache_datasets.py`'s commands; nothing heavy is imported, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError
from lm_trials.flags import option


@dataclass
class FetchArguments:
    """Fetch a data set and prepare it, so that train_gpt2.py with the same flags finds it and reads nothing again.

    Stopped or killed, the same command goes on where it was.
    """

    dataset_name: str | None = option(None, help="A Hub data set, a file, a folder of shards or a saved data set.")
    dataset_config_name: str | None = option(
        None, help="Configuration of a Hub data set or part of a folder; of a+b each is a corpus of its own."
    )
    num_proc: int = option(1, help="Processes that download and read; the result does not depend on them.")
    text_column: str | None = option(None, help="Column that holds the text. Default: story, else text.")
    validation_split_percentage: float | None = option(
        None, help="Share of a train split without a validation split that becomes one, by hash of the document."
    )
    data_cache_dir: str = option("data", help="Folder of prepared corpora, token stores and tokenizers.")
    vocab_size: int | None = option(None, help="Make the tokens too, with the tokenizer trained with this size.")
    tokenizer_name: str | None = option(None, help="Make the tokens too: a folder, a .model file or a Hub name.")
    append_eos: bool = option(False, help="Close each story with EOS in those tokens.")

    def wants_tokens(self) -> bool:
        """Whether a token store is asked for."""
        return self.vocab_size is not None or self.tokenizer_name is not None

    def parts(self) -> list[tuple[str, str | None]]:
        """Return (data set, configuration) of each part: of `--dataset_config_name a+b`, or of `--dataset_name a+b`.

        Raises:
            UsageError: without a data set, or for an empty part.

        >>> FetchArguments(dataset_name="pile", dataset_config_name="pubmed+uspto").parts()
        [('pile', 'pubmed'), ('pile', 'uspto')]
        """
        if not self.dataset_name:
            raise UsageError("no data set is named; give --dataset_name NAME_OR_PATH")
        name, parts = self.dataset_name, [(self.dataset_name, None)]
        if self.dataset_config_name:
            parts = [(name, config) for config in self.dataset_config_name.split("+")]
        elif "+" in name and not (Path(name).exists() or (Path(self.data_cache_dir) / name).exists()):
            parts = [(part, None) for part in name.split("+")]
        if not all(word is None or word for part in parts for word in part):
            raise UsageError(
                f"{self.dataset_config_name or name} has an empty part; give names with one + between them"
            )
        return parts


@dataclass
class CacheArguments:
    """Where to look."""

    data_cache_dir: str = option("data", help="Folder of prepared corpora, token stores and tokenizers.")


@dataclass
class ListArguments(CacheArguments):
    """List what is prepared: stories, size on disk, content, source, token stores."""

    json: str | None = option(None, help="File that the same goes to as JSON.")


@dataclass
class VerifyArguments(CacheArguments):
    """Compare what is prepared (all, or `verify NAME ...`) with the checksums and counts of its manifest."""

    names: list[str] = option([], help="Names of corpora and sets. Default: all.")


@dataclass
class RecipeArguments:
    """Fetch the data sets of a list (`recipe FILE.yaml`), whose keys are the flags of fetch."""

    file: str | None = option(None, help="A YAML list; every entry is checked before the first is fetched.")
