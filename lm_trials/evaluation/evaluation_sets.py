"""Evaluation sets: which stories a model is evaluated on, read as a stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lm_trials.console import UsageError, note
from lm_trials.evaluation.domains import content_name, contents_of, hub_name
from lm_trials.evaluation.flags import EvaluationArguments
from lm_trials.protocols.set_texts import SetText, resolve_set, set_texts
from lm_trials.protocols.sets import is_set
from lm_trials.stories.corpora import is_corpus, open_records, read_manifest
from lm_trials.stories.records import SPLITS, Record, make_record
from lm_trials.stories.sources import Source, open_source
from lm_trials.tokens.mixtures import mixed, parse_weights


@dataclass(frozen=True)
class EvaluationSet:
    """A named stream of records that can be read again.

    Attributes:
        name: for tables and folders.
        read: starts the stream.
        fingerprint: of the content, for the manifest of the results.
        total: how many stories there are, where that is known before reading them.
        parts: the names that its data, of a mixture each part's, is known by (`domains.content_name`).
    """

    name: str
    read: Callable[[], Iterator[Record]]
    fingerprint: str
    total: int | None = None
    parts: tuple[frozenset[str], ...] = ()


def open_evaluation_set(name: str, args: EvaluationArguments) -> EvaluationSet:
    """Find the stories that `--dataset_name` means: a prepared corpus first, then a path, then the Hub.

    Raises:
        UsageError: for a name that is none of them, a split or part that is not there, weights that do not fit.
    """
    place = Path(args.data_cache_dir)
    prepared = is_set(place / name) or is_corpus(place / name) or is_corpus(Path(name))
    if prepared and (args.data_mix or args.dataset_config_name):
        flag = "data_mix" if args.data_mix else "dataset_config_name"
        raise UsageError(f"--{flag} {getattr(args, flag)}: {name} is prepared and has no parts; leave it away")
    if is_set(place / name):
        split = args.dataset_split or "validation"
        _, corpus, protocol = resolve_set(name, place)
        open_records(corpus, split)  # raises for a split there is not
        content = content_name(read_manifest(corpus, "content")["content"], protocol.as_dict())
        return EvaluationSet(
            f"{name}-{split}",
            lambda: _limited(_as_records(set_texts(name, place, split)), args),
            content,
            parts=(frozenset({content}),),
        )
    folder = next((f for f in (place / name, Path(name)) if is_corpus(f)), None)
    if folder is not None:
        split = args.dataset_split or "validation"
        records = open_records(folder, split)
        manifest = read_manifest(folder, "content")
        fingerprint = manifest["content"]
        names = contents_of({"content": fingerprint, "source": manifest.get("origin")}, place)
        total = min(len(records), args.max_eval_samples or len(records))
        return EvaluationSet(
            f"{folder.name}-{split}",
            lambda: _limited(iter(records), args),
            fingerprint,
            total,
            (frozenset(names),),
        )
    parts = (args.dataset_config_name or "").split("+")
    sources = [_source(name, part or None, args) for part in parts]
    weights = parse_weights(args.data_mix, len(sources))
    label = "-".join([Path(name).name.split(".")[0], *(part for part in parts if part)])

    def ended(part: int, taken: list[int]) -> None:
        if len(parts) > 1:
            note(f"note: the part {parts[part]} of {name} has no more than {taken[part]:,} stories, and so the mixture "
                 f"ends after {sum(taken):,}")  # fmt: skip

    return EvaluationSet(
        label + (f"-{args.dataset_split}" if args.dataset_split else ""),
        lambda: _limited(mixed([source.records() for source in sources], weights, ended), args),
        "+".join(source.fingerprint() for source in sources),
        args.max_eval_samples,
        tuple(_names(source) for source in sources),
    )


def _names(source: Source) -> frozenset[str]:
    """Return what a source's data is known by: its fingerprints whichever split is read, as a corpus may hold them."""
    hub = source.kind == "hub"
    splits = {source.dataset_split, None, *(SPLITS if hub else ())}
    fingerprints = frozenset(replace(source, dataset_split=split).fingerprint() for split in splits)
    # Of files, by their bytes too: a corpus may hold them read with other options, such as a split of its own.
    return fingerprints | (
        {hub_name(source.reference, source.dataset_config_name)} if hub else set(source.file_names())
    )


def _as_records(texts: Iterable[SetText]) -> Iterator[Record]:
    """Give the texts of a set as stories, so that instruction lines are scored as they are trained on."""
    for text in texts:
        yield make_record(text.text, words=text.words, features=text.features) | {"record_id": text.record_id}


def _source(name: str, part: str | None, args: EvaluationArguments) -> Source:
    source = open_source(
        name,
        text_column=args.text_column,
        dataset_config_name=part,
        dataset_split=args.dataset_split,
        streaming=args.streaming == "True",
    )
    if source.kind == "hub" and args.dataset_split is None:
        source = open_source(
            name, text_column=args.text_column, dataset_config_name=part, dataset_split="validation",
            streaming=args.streaming == "True",
        )  # fmt: skip
    return source


def _limited(records: Iterator[Record], args: EvaluationArguments) -> Iterator[Record]:
    return itertools.islice(records, args.max_eval_samples)
