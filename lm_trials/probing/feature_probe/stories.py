"""Stories for the feature probes: some to fit on, others to score on, with labels, and what the text alone gives.

Shape suffixes: N = stories.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, progress
from lm_trials.evaluation.judges import FEWEST
from lm_trials.probing.feature_probe.flags import FeatureProbeArguments
from lm_trials.probing.flags import TextArguments
from lm_trials.probing.subjects import Subject, texts_digest
from lm_trials.protocols.protocols import LINES
from lm_trials.protocols.set_texts import resolve_set, set_texts
from lm_trials.protocols.sets import is_set
from lm_trials.stories.corpora import is_corpus, open_records
from lm_trials.stories.generated.detectors import detect_features
from lm_trials.stories.records import Record, record_id
from lm_trials.stories.shards import INSTRUCT_FIELDS
from lm_trials.stories.sources import open_source
from lm_trials.stories.variety import split_sentences
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

CHUNK = 256
CHOICE_SHARE = 0.25
"""Of the training stories, those that layers and penalties are chosen on."""
_INSTRUCTION = re.compile("|".join(sorted({*INSTRUCT_FIELDS, *(f"{line}:" for line in LINES)})))


@dataclass(frozen=True)
class ProbeStories:
    """Stories to fit on and stories to score on; none is in both.

    Attributes:
        train, test: the records, their `story` alone without instruction lines, their `features` the labels.
        labels_from: who says which features a story has: "records" or "detectors".
        left_out: how many stories were left out, by reason.

    Raises:
        ValueError: for a story in both.

    >>> from lm_trials.stories.records import make_record
    >>> ProbeStories([make_record("One day.")], [make_record("One  day.")], "detectors")
    Traceback (most recent call last):
    ValueError: 1 story is in both parts; a probe is scored on stories that it was not fitted on
    """

    train: list[Record]
    test: list[Record]
    labels_from: str
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = {record["record_id"] for record in self.train} & {record["record_id"] for record in self.test}
        if both:
            stories = "1 story is" if len(both) == 1 else f"{len(both)} stories are"
            raise ValueError(f"{stories} in both parts; a probe is scored on stories that it was not fitted on")

    @property
    def texts(self) -> list[str]:
        """All stories, those to fit on first."""
        return [record["story"] for record in (*self.train, *self.test)]

    def has(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which stories have a feature, (N,) of those to fit on and of those to score on."""
        train_N, test_N = (
            np.array([feature in record["features"] for record in part], dtype=bool) for part in (self.train, self.test)
        )
        return train_N, test_N

    def parted(self, features: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the features of which there are enough stories, and why each other one is left out.

        Raises:
            UsageError: where none is left.
        """
        enough, without = [], {}
        for feature in features:
            train_N, test_N = self.has(feature)
            fewest = {"test": FEWEST, "training": int(FEWEST / CHOICE_SHARE)}  # the part for choosing has FEWEST too
            counts = {"test": test_N, "training": train_N}
            short = [
                f"{int(has_N.sum())} of {len(has_N)} {part} stories have it (at least {fewest[part]} with it and "
                f"{fewest[part]} without are needed)"
                for part, has_N in counts.items()
                if not fewest[part] <= has_N.sum() <= len(has_N) - fewest[part]
            ]
            if short:
                without[feature] = short[0]
            else:
                enough.append(feature)
        if not enough:
            told = "; ".join(f"{feature}: {reason}" for feature, reason in without.items())
            raise UsageError(
                f"no feature can be probed: {told}; give more stories (--num_train_stories, --max_eval_samples), "
                "other --features, or another --dataset_name"
            )
        return enough, without


def read_probe_stories(
    texts: TextArguments, args: FeatureProbeArguments, fits: Callable[[Sequence[str]], Sequence[bool]]
) -> ProbeStories:
    """Read the stories to fit on and to score on, each once, none in both.

    Args:
        fits: says of each story whether every model can read it whole.

    Raises:
        UsageError: for a data set that is not there, one without stories in either part, or without the labels asked.
    """
    left_out: Counter[str] = Counter()
    scored, fitted = _streams(texts, args, left_out)
    test = _taken(scored, texts.max_eval_samples, set(), fits, left_out, "reading test stories")
    seen = {record["record_id"] for record in test}
    train = _taken(fitted, args.num_train_stories, seen, fits, left_out, "reading training stories")
    for name, part in (("test", test), ("training", train)):
        if not part:
            why = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise UsageError(
                f"--dataset_name {texts.dataset_name} leaves no {name} story{f' ({why})' if why else ''}; give another "
                "data set, or --long_stories cut where stories are longer than the model reads"
            )
    texts.texts_sha256 = texts_digest([*test, *train])
    named = any(record["features"] for record in (*train, *test))
    if args.labels == "records" and not named:
        raise UsageError(
            f"--labels records: no record of {texts.dataset_name} names a feature; give --labels detectors, or records "
            "that do"
        )
    if named and args.labels != "detectors":
        return ProbeStories(train, test, "records", dict(left_out))
    train, test = ([{**r, "features": [*detect_features(r["story"])]} for r in part] for part in (train, test))
    return ProbeStories(train, test, "detectors", dict(left_out))


def whole_in(subjects: Sequence[Subject], long_stories: str) -> Callable[[Sequence[str]], list[bool]]:
    """Return what says of each story whether all models read it whole; with `cut` it always says so."""
    readers = {(tokenizer_hash(s.tokenizer), len(s.opening()), s.window): s for s in subjects}

    def fits(stories: Sequence[str]) -> list[bool]:
        whole = [True] * len(stories)
        if long_stories == "cut" or not stories:
            return whole
        for (_, opening, window), subject in readers.items():
            lengths = map(len, batch_encoder(subject.tokenizer)(list(stories)))
            whole = [fit and opening + length <= window for fit, length in zip(whole, lengths, strict=True)]
        return whole

    return fits


def _taken(
    records: Iterable[Record],
    count: int | None,
    seen: set[str],
    fits: Callable[[Sequence[str]], Sequence[bool]],
    left_out: Counter[str],
    description: str,
) -> list[Record]:
    """Take the first records that fit, each story once, until there are `count`."""
    seen, taken = set(seen), []
    stream = iter(progress(records, description, "records"))
    while chunk := list(itertools.islice(stream, CHUNK)):
        new: dict[str, Record] = {}
        for record in map(story_alone, chunk):
            if not record["story"].strip():
                left_out["without text"] += 1
            elif record["record_id"] in seen or record["record_id"] in new:
                left_out["repeating another"] += 1
            else:
                new[record["record_id"]] = record
        for record, whole in zip(new.values(), fits([r["story"] for r in new.values()]), strict=True):
            if len(taken) == count:
                return taken
            seen.add(record["record_id"])
            if whole:
                taken.append(record)
            else:
                left_out["longer than a model reads"] += 1
        if len(taken) == count:
            break
    return taken


def _streams(
    texts: TextArguments, args: FeatureProbeArguments, left_out: Counter[str]
) -> tuple[Iterator[Record], Iterator[Record]]:
    """Return the records to score on and those to fit on, each as a stream."""
    name, place = texts.dataset_name, Path(texts.data_cache_dir)
    scored = (texts.dataset_split or "validation").split("+")
    if is_set(place / name):
        return tuple(
            itertools.chain.from_iterable(_set_records(name, place, split, left_out) for split in splits)
            for splits in (scored, ["train"])
        )  # type: ignore[return-value]
    corpus = next((folder for folder in (place / name, Path(name)) if is_corpus(folder)), None)
    if corpus is not None:
        parts = {split: open_records(corpus, split) for split in (*scored, "train")}
        return itertools.chain.from_iterable(parts[split] for split in scored), iter(parts["train"])
    source = open_source(name, text_column=texts.text_column, dataset_config_name=texts.dataset_config_name)
    own = source.has_own_splits() and "validation" in source.own_splits.values()
    percent = None if own else args.validation_split_percentage
    return (
        itertools.chain.from_iterable(source.records_of(split, percent) for split in scored),
        source.records_of("train", percent),
    )


def _set_records(name: str, place: Path, split: str, left_out: Counter[str]) -> Iterator[Record]:
    """Yield the stories of a set with the features of their records: those of an instruction may not be true.

    A refusal is no story, and is left out.
    """
    _, corpus, _ = resolve_set(name, place)
    records = iter(open_records(corpus, split))
    for text in set_texts(name, place, split):
        # The set is the corpus in its order, less what the protocol removed.
        record = next(record for record in records if record["record_id"] == text.record_id)
        if text.refused:
            left_out["refusals"] += 1
        else:
            yield {**record, "story": text.story}


def story_alone(record: Record) -> Record:
    """Return a record without the instruction lines that its story begins with, if it does.

    >>> from lm_trials.stories.records import make_record
    >>> story_alone(make_record("Features: Twist\\nWords: cat\\nStory: One day."))["story"]
    'One day.'
    """
    head, mark, story = record["story"].strip().partition("\nStory:")
    if not (mark and _INSTRUCTION.match(head)):
        return record
    story = story.strip()
    return {**record, "story": story, "record_id": record_id(story)}


def text_statistics(stories: Sequence[str]) -> np.ndarray:
    """Return twelve numbers of each text that a reader could count, (N, 12).

    >>> text_statistics(['"Hi!" said Tom. Tom ran.'])[0, :4].tolist()
    [24.0, 5.0, 2.0, 2.0]
    """
    rows = []
    for story in stories:
        words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", story.lower())
        count = max(len(words), 1)
        sentences = max(len(split_sentences(story)), 1)
        rows.append(
            [
                len(story),
                len(words),
                sentences,
                sum(story.count(mark) for mark in '"“”'),
                *(story.count(mark) for mark in ",.!?'\n"),
                sum(map(len, words)) / count,
                len(set(words)) / count,
            ]
        )
    return np.array(rows, dtype=np.float64)


def bag_of_words(stories: Sequence[str], num_train: int) -> Any:
    """Return TF-IDF weights of the words and pairs of words of each text, (N, words), sparse; fitted on the first ones.

    Quotation and end marks are words too: a feature can hang on them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"
    )
    return vectorizer.fit(stories[:num_train]).transform(stories)
