"""Stories for the feature probes: training and test stories with labels, and numbers of the text alone.

Shape suffixes: N = stories.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_trials.console import UsageError, progress
from lm_trials.data.datasets import dataset_of
from lm_trials.evaluation.judges import FEWEST
from lm_trials.probing.feature_probe.flags import FeatureProbeArguments
from lm_trials.probing.flags import TextArguments
from lm_trials.probing.subjects import Subject, texts_digest
from lm_trials.protocols.protocols import LINES
from lm_trials.stories.generated.detectors import detect_features, ends_before, sentence_ends
from lm_trials.stories.records import Record, record_id
from lm_trials.stories.shards import INSTRUCT_FIELDS
from lm_trials.stories.variety import split_sentences
from lm_trials.tokens.tokenizers import batch_encoder, tokenizer_hash

CHUNK = 256
WORD = r"\w+|[^\w\s]"
"""A word or a punctuation mark."""
CHOICE_SHARE = 0.25
"""Share of the training stories that layer, pooling and penalty are selected on."""
_INSTRUCTION = re.compile("|".join(sorted({*INSTRUCT_FIELDS, *(f"{line}:" for line in LINES)})))


@dataclass(frozen=True)
class ProbeStories:
    """Training and test stories; none is in both.

    Attributes:
        train, test: the records; `story` has no instruction lines, `features` are the labels.
        labels_from: "records" or "detectors".
        left_out: number of stories left out, by reason.

    Raises:
        ValueError: for a story in both.

    >>> from lm_trials.stories.records import make_record
    >>> ProbeStories([make_record("One day.")], [make_record("One  day.")], "detectors")
    Traceback (most recent call last):
    ValueError: 1 of the training stories are also test stories; a probe must be scored on others
    """

    train: list[Record]
    test: list[Record]
    labels_from: str
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = {record["record_id"] for record in self.train} & {record["record_id"] for record in self.test}
        if both:
            raise ValueError(
                f"{len(both)} of the training stories are also test stories; a probe must be scored on others"
            )

    @property
    def texts(self) -> list[str]:
        """All stories, training stories first."""
        return [record["story"] for record in (*self.train, *self.test)]

    def has(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which training stories (N,) and test stories (M,) have a feature."""
        train, test = ([feature in record["features"] for record in part] for part in (self.train, self.test))
        return np.array(train, dtype=bool), np.array(test, dtype=bool)

    def shortage(self, feature: str) -> str | None:
        """Return why there are too few stories to probe a feature, or None."""
        train_N, test_N = self.has(feature)
        counts = ", ".join(f"{count:,} {why}" for why, count in self.left_out.items())
        # FEWEST in the part for selection too.
        for part, has_N, fewest in (("test", test_N, FEWEST), ("training", train_N, int(FEWEST / CHOICE_SHARE))):
            if not fewest <= has_N.sum() <= len(has_N) - fewest:
                return (
                    f"{int(has_N.sum())} of {len(has_N)} {part} stories have it, where at least {fewest} with and "
                    f"{fewest} without it are needed" + f" (stories left out: {counts})" * bool(counts)
                )
        return None


def parted(stories: Mapping[str, ProbeStories]) -> tuple[dict[str, ProbeStories], dict[str, str]]:
    """Return the features that have enough stories, with these, and why each other feature is left out.

    Raises:
        UsageError: where none is left.
    """
    without = {feature: short for feature, own in stories.items() if (short := own.shortage(feature))}
    if len(without) == len(stories):
        told = "; ".join(f"{feature}: {reason}" for feature, reason in without.items())
        raise UsageError(
            f"no feature can be probed: {told}; give more stories (--num_train_stories, --max_eval_samples), "
            "other --features, or another --dataset_name"
        )
    return {feature: own for feature, own in stories.items() if feature not in without}, without


def before_marker(stories: ProbeStories, feature: str) -> ProbeStories:
    """Cut stories before the first sentence that shows a feature, and stories without it at the same length.

    Each story with the feature is paired with one without it, in the same part, that has a sentence end after as many
    words, in the same paragraph and after as many of its sentences; of several, with the one nearest in characters.
    """
    left_out: Counter[str] = Counter()
    train, test = (_beginnings(part, feature, left_out) for part in (stories.train, stories.test))
    return ProbeStories(train, test, stories.labels_from, dict(left_out))


def _beginnings(records: Sequence[Record], feature: str, left_out: Counter[str]) -> list[Record]:
    having, without = list[Record](), defaultdict[tuple[int, int, int], list[Record]](list)
    for record in records:
        story, labelled = record["story"], feature in record["features"]
        ends = ends_before(story, feature)
        if labelled != (ends is not None):
            left_out["whose label and detector differ"] += 1
        elif ends is None:
            for cut in (_cut(record, end) for end in sentence_ends(story)):
                without[_size(cut["story"])].append(cut)
        elif ends:
            having.append(_cut(record, ends[-1]))
        else:
            left_out["whose first sentence shows it"] += 1
    pairs, used = list[Record](), set[str]()
    for record in having:
        length = len(record["story"])
        free = [other for other in without[_size(record["story"])] if other["record_id"] not in used]
        if free:
            nearest = min(free, key=lambda other: abs(len(other["story"]) - length))
            used.add(nearest["record_id"])
            pairs += [record, nearest]
        else:
            left_out["without a partner of the same length and place"] += 1
    return pairs


def _cut(record: Record, end: int) -> Record:
    return {**record, "story": record["story"][:end]}


# The place in the paragraph as well: without it the words of the last sentence alone reached 0.85 for Twist, because
# they show which part of a generated story has ended; with it 0.63.
def _size(text: str) -> tuple[int, int, int]:
    """Return the number of words and marks, of paragraphs, and of sentences of the last paragraph."""
    lines = text.splitlines()
    return len(re.findall(WORD, text)), len(lines), len(sentence_ends(lines[-1]))


def read_probe_stories(
    texts: TextArguments, args: FeatureProbeArguments, fits: Callable[[Sequence[str]], Sequence[bool]]
) -> ProbeStories:
    """Read training and test stories, each once, none in both.

    Args:
        fits: from `whole_in`.

    Raises:
        UsageError: for a missing data set, or one without stories in either part or without the requested labels.
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
                f"--dataset_name {texts.dataset_name} has no {name} story{f' (left out: {why})' if why else ''}; give "
                "another data set, or --long_stories cut where stories are longer than the window"
            )
    texts.texts_sha256 = texts_digest([*test, *train])
    named = any(record["features"] for record in (*train, *test))
    if args.labels == "records" and not named:
        raise UsageError(
            f"--labels records: no record of {texts.dataset_name} names a feature; give --labels detectors, or a data "
            "set whose records do"
        )
    if named and args.labels != "detectors":
        return ProbeStories(train, test, "records", dict(left_out))
    return ProbeStories(_detected(train), _detected(test), "detectors", dict(left_out))


def _detected(records: Sequence[Record]) -> list[Record]:
    return [{**record, "features": [*detect_features(record["story"])]} for record in records]


def whole_in(subjects: Sequence[Subject], long_stories: str) -> Callable[[Sequence[str]], list[bool]]:
    """Return a function from stories to whether each fits the window of all models; always with `cut`."""
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
    seen, taken = set(seen), list[Record]()
    stream = iter(progress(records, description, "records"))
    while chunk := list(itertools.islice(stream, CHUNK)):
        new: dict[str, Record] = {}
        for record in map(story_alone, chunk):
            if not record["story"].strip():
                left_out["without text"] += 1
            elif record["record_id"] in seen or record["record_id"] in new:
                left_out["that repeat another"] += 1
            else:
                new[record["record_id"]] = record
        for record, whole in zip(new.values(), fits([r["story"] for r in new.values()]), strict=True):
            if len(taken) == count:
                return taken
            seen.add(record["record_id"])
            if whole:
                taken.append(record)
            else:
                left_out["longer than the window"] += 1
        if len(taken) == count:
            break
    return taken


def _streams(
    texts: TextArguments, args: FeatureProbeArguments, left_out: Counter[str]
) -> tuple[Iterator[Record], Iterator[Record]]:
    """Return the records for testing and those for training, each as a stream."""
    dataset = dataset_of(texts)

    def read(splits: Sequence[str]) -> Iterator[Record]:
        for split in splits:
            for record in dataset.stories(split, args.validation_split_percentage):
                if record is None:
                    left_out["that are refusals"] += 1
                else:
                    yield record

    return read((texts.dataset_split or "validation").split("+")), read(["train"])


def story_alone(record: Record) -> Record:
    """Return a record without the instruction lines before its story, if it has them.

    >>> from lm_trials.stories.records import make_record
    >>> story_alone(make_record("Features: Twist\\nWords: cat\\nStory: One day."))["story"]
    'One day.'
    """
    head, mark, story = record["story"].strip().partition("\nStory:")
    if not (mark and _INSTRUCTION.match(head)):
        return record
    story = story.strip()
    return {**record, "story": story, "record_id": record_id(story)}


def text_length(stories: Sequence[str]) -> np.ndarray:
    """Return the number of characters of each text, (N, 1)."""
    return np.array([[len(story)] for story in stories], dtype=np.float64)


def text_statistics(stories: Sequence[str]) -> np.ndarray:
    """Return twelve numbers of each text: lengths, counts of punctuation, mean word length, vocabulary, (N, 12).

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
    """Return TF-IDF weights of the words and word pairs of each text, (N, words), sparse; fitted on the training texts.

    Punctuation marks are words too, as features such as dialogue depend on them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, token_pattern=WORD
    )
    return vectorizer.fit(stories[:num_train]).transform(stories)
