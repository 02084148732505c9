"""Flags of the embeddings probe; no torch."""

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
    """Which embeddings are read, and what they are compared with."""

    all_checkpoints: bool = option(False, help="Read all checkpoints of a run and its final model.")
    which: Literal["input", "output"] = option("input", help="Read the input or the output embeddings.")
    categories: str = option(
        "surface",
        help="Categories of tokens: surface (written form), words (word groups of the generated stories), continents "
        "(of cities), or a .json or .csv file of words and categories.",
    )
    max_tokens: int = option(
        2000, least=10, help="Maximum number of tokens with a category; of more, a random sample is taken."
    )
    basis: Literal["joint", "last"] = option(
        "joint", help="Fit the axes, shared by all models, on all of them (joint) or on the last model."
    )
    projection: Literal["pca", "umap"] = option("pca", help="Projection of the figure; umap needs umap-learn.")
    words: list[str] = option([], help="Words whose nearest neighbours are listed.")
    neighbours: int = option(8, least=1, help="Nearest neighbours of each of --words.")
    nearest: int = option(10, least=1, help="Nearest tokens of each token whose categories are compared with its own.")
    permutations: int = option(200, least=20, help="Shuffles of the categories, the control of their separation.")
    dataset_name: str | None = option(
        None,
        help="Training data of the models: only tokens that occur in it have categories; their movement is compared "
        "with that of the other tokens.",
    )
    dataset_split: str | None = option(None, help="Split of the training data. Default: train, if prepared.")
    max_train_samples: int | None = option(None, least=1, help="Number of its texts, from the start. Default: all.")


ARGUMENTS = (SubjectArguments, EmbeddingsArguments)


def check_arguments(subject: SubjectArguments, args: EmbeddingsArguments) -> None:
    """Raise a UsageError for the first invalid value, before anything is loaded.

    >>> check_arguments(SubjectArguments(["runs/demo"]), EmbeddingsArguments(categories="word"))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --categories word: no such file; give surface, words, continents or a file
    """
    check_subjects(subject, PROBE)
    if args.all_checkpoints and len(subject.model_name_or_path) > 1:
        raise UsageError(
            f"--all_checkpoints: {len(subject.model_name_or_path)} models are given, and runs with different initial "
            "weights have no common axes; name one run"
        )
    if args.categories not in BUILT_IN:
        path = Path(args.categories)
        if not path.is_file():
            known = ", ".join(BUILT_IN)
            raise UsageError(f"--categories {args.categories}: no such file; give {known} or a file")
        if path.suffix not in (".json", ".csv"):
            raise UsageError(f"--categories {args.categories}: give a .json of {{word: category}} or a .csv of both")
    if args.projection == "umap" and find_spec("umap") is None:
        raise UsageError("--projection umap needs umap-learn, which is not installed; pip install 'lm_trials[umap]'")
