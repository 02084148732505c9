"""The atlas as files: its documents as a corpus, its questions as a data set of pairs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Features, List, Value

from lm_trials.console import UsageError
from lm_trials.latent_city.atlas import ATLAS_VERSION, SOURCE, Atlas, questions, write_documents
from lm_trials.latent_city.cities import WHERE_FROM, package_cities
from lm_trials.latent_city.flags import AtlasArguments
from lm_trials.pairs.pairs import Row, write_pairs
from lm_trials.stories.corpora import write_corpus
from lm_trials.stories.records import SPLITS, Record, Split, make_record, record_id

QUESTION_COLUMNS = Features({"kind": Value("string"), "cities": List(Value("string"))})
FEWEST_CITIES = 10


def check_atlas(args: AtlasArguments) -> Atlas:
    """Return the atlas of the arguments.

    Raises:
        UsageError: for too few cities, or a name that is taken.
    """
    for name in (args.name, args.questions_name):
        folder = Path(args.data_cache_dir) / name
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"--name {args.name}: {folder} exists already; remove it, or give another --name")
    cities, _ = package_cities(args.other_cities, args.min_population)
    if len(cities) < FEWEST_CITIES:
        raise UsageError(
            f"--other_cities {args.other_cities} and --min_population {args.min_population} leave {len(cities)} "
            f"cities; lower one of them, so that there are at least {FEWEST_CITIES}"
        )
    return Atlas(cities, args.held_out_share)


def write_atlas(
    atlas: Atlas, args: AtlasArguments, place: Path, watch: Callable[[Iterable[str]], Iterable[str]] = iter
) -> dict[str, dict[str, Any]]:
    """Write the corpus and the questions atomically; returns their manifests by name."""
    _, left_out = package_cities(args.other_cities, args.min_population)
    origin = {
        "reference": "cache_datasets.py atlas",
        "fingerprint": f"{SOURCE}-{args.seed}-{args.num_documents}-{args.other_cities}-"
        f"{args.min_population}-{args.held_out_share:g}",
        "version": ATLAS_VERSION,
        "num_documents": args.num_documents,
        "seed": args.seed,
        "other_cities": args.other_cities,
        "min_population": args.min_population,
        "held_out_share": args.held_out_share,
        "cities": WHERE_FROM,
        "left_out": list(left_out),
    }
    texts = watch(write_documents(atlas, args.num_documents, args.seed))
    records: Iterator[tuple[int, Record]] = ((0, make_record(text, source=SOURCE)) for text in texts)
    corpus = write_corpus(records, place / args.name, origin, splits_needed=SPLITS)
    facts = {"source": origin | {"num_questions": args.num_questions}}
    try:
        rows = question_rows(atlas, args.num_questions, args.seed)
        asked = write_pairs(rows, place / args.questions_name, "pairs", facts, QUESTION_COLUMNS)
    except BaseException:
        shutil.rmtree(place / args.name)
        raise
    return {args.name: corpus, args.questions_name: asked}


def question_rows(atlas: Atlas, num_questions: int, seed: int) -> Iterator[tuple[Split, Row]]:
    """Yield the questions as rows of pairs with their splits."""
    for split, question in questions(atlas, num_questions, seed):
        row: Row = {
            "record_id": record_id(f"{question.prompt}\n{question.answer}"),
            "prompt": question.prompt,
            "completion": question.answer,
            "kind": question.kind,
            "cities": [city.name for city in question.cities],
        }
        yield split, row
