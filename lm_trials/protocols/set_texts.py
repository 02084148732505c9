"""Set texts: the texts of a set's documents, rendered from the records, for any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError, did_you_mean
from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import VERSION, Protocol, protocol_from_dict
from lm_trials.protocols.sets import describe_origin, is_set
from lm_trials.stories.corpora import open_records, read_manifest

BATCH = 1000


@dataclass(frozen=True)
class SetText:
    """One document of a set: the whole text and its parts, after the protocol.

    Attributes:
        prompt: the instruction lines and "Story:".
        story: the text after the prompt and a space: the story or a refusal.
        words, features: those of the instruction.
        refused: whether a refusal replaces the story.
    """

    record_id: str
    text: str
    prompt: str
    story: str
    words: list[str]
    features: list[str]
    refused: bool


def resolve_set(name: str, data_cache_dir: Path) -> tuple[Path, Path, Protocol]:
    """Return a set's folder, its corpus's folder and its protocol.

    Raises:
        UsageError: for a name that is not a set, or a set whose corpus or transforms have changed.
    """
    folder = data_cache_dir / name
    if not is_set(folder):
        known = [path.name for path in data_cache_dir.iterdir() if is_set(path)] if data_cache_dir.is_dir() else []
        near = did_you_mean(name, known) if known else f"{data_cache_dir} has none; prepare it with pretokenize"
        raise UsageError(f"{name} is not a prepared set; {near}")
    manifest = read_manifest(folder)
    corpus = data_cache_dir / manifest["corpus"]["name"]
    current = manifest["protocol"]["version"] == VERSION and (corpus / "records").is_dir()
    if not current or describe_origin(corpus) != manifest["corpus"]:
        raise UsageError(
            f"{name} was prepared from an earlier {manifest['corpus']['name']}, which has changed or gone; remove "
            f"{folder} and prepare it again"
        )
    protocol = protocol_from_dict(manifest["protocol"])
    if protocol.as_dict().get("transform_versions") != manifest["protocol"].get("transform_versions"):
        raise UsageError(
            f"{name} was prepared with another version of a transform ({', '.join(map(str, protocol.transforms))}); "
            f"remove {folder} and prepare it again"
        )
    return folder, corpus, protocol


def set_texts(
    name: str, data_cache_dir: Path, split: str, start: int = 0, stop: int | None = None
) -> Iterator[SetText]:
    """Yield the documents of one split of a set, in the order of the corpus; of its rows `start` to `stop` alone.

    Raises:
        UsageError: as `resolve_set`, or for a split that does not exist.
    """
    _, corpus, protocol = resolve_set(name, data_cache_dir)
    records = open_records(corpus, split)
    stop = len(records) if stop is None else stop
    for place in range(start, stop, BATCH):
        texts = apply_protocol(records[place : min(place + BATCH, stop)], protocol)
        for row in zip(*texts.values(), strict=True):
            yield SetText(**dict(zip(texts, row, strict=True)))
