"""The flags of `probes/embeddings.py`; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, check_subjects
from lm_trials.shared_flags import DataFolder

PROBE = "embeddings"
BUILT_IN = ("surface", "words", "continents")


@dataclass
class EmbeddingsArguments(DataFolder):
    """Which embeddings are read, and what they are set beside."""

    all_checkpoints: bool = option(False, help="Read every checkpoint of a run, and its final model.")
    which: Literal["input", "output"] = option("input", help="The embeddings that tokens come in by, or go out by.")
    categories: str = option(
        "surface",
        help="What colours tokens: surface (how they are written), words (groups of the generated stories' words), "
        "continents (of cities), or a .json or .csv file of words and categories.",
    )
    max_tokens: int = option(
        2000, least=10, help="Most tokens with a category that are looked at; of more, these are drawn."
    )
    basis: Literal["joint", "last"] = option(
        "joint", help="The picture's axes, one for all: fitted on all models together, or on the last."
    )
    projection: Literal["pca", "umap"] = option("pca", help="How the picture is made; umap needs umap-learn.")
    words: list[str] = option([], help="Words whose nearest neighbours are told.")
    neighbours: int = option(8, least=1, help="How many of them.")
    nearest: int = option(10, least=1, help="Nearest tokens that are asked whether they are of a token's category.")
    permutations: int = option(200, least=20, help="Shuffles of the categories, the control of how far they are apart.")
    dataset_name: str | None = option(
        None,
        help="What the models were trained on: categories are among tokens that occur in it, and these have moved "
        "beside those that never do.",
    )
    dataset_split: str | None = option(None, help="Its split. Default: train of a prepared one.")
    max_train_samples: int | None = option(
        None, least=1, help="Texts of it that are read, from the start; default all."
    )


ARGUMENTS = (SubjectArguments, EmbeddingsArguments)


def check_arguments(subject: SubjectArguments, args: EmbeddingsArguments) -> None:
    """Refuse values that mean nothing, before anything is loaded.

    Raises:
        UsageError: for the first of them.

    >>> check_arguments(SubjectArguments(["runs/demo"]), EmbeddingsArguments(categories="word"))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --categories word: no file of that name; give surface, words, continents or a file
    """
    check_subjects(subject, PROBE)
    if args.all_checkpoints and len(subject.model_name_or_path) > 1:
        raise UsageError(
            f"--all_checkpoints with {len(subject.model_name_or_path)} models: runs that began with other weights "
            "share no axes; name one run"
        )
    if args.categories not in BUILT_IN:
        path = Path(args.categories).expanduser()
        if not path.is_file():
            known = ", ".join(BUILT_IN)
            raise UsageError(f"--categories {args.categories}: no file of that name; give {known} or a file")
        if path.suffix not in (".json", ".csv"):
            raise UsageError(f"--categories {args.categories}: give a .json of {{word: category}} or a .csv of both")
    if args.projection == "umap" and find_spec("umap") is None:
        raise UsageError("--projection umap needs umap-learn, which is not installed; pip install 'lm_trials[umap]'")
