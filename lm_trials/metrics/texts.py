"""Metrics of one text: its length, readability, vocabulary, sentiment, flagged words, and overlap with a prompt.

Readability is textstat's and BLEU is NLTK's, number for number.  The libraries themselves take several times as long
(`benchmarks/metadata.py`).  textstat also downloads CMUdict at its first call, and its wheel installs a package called
`tests`.  Syllables are counted in the CMUdict of `words/`, and of other words by pyphen's hyphenation, as in textstat.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import re
import runpy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError
from lm_trials.data.datasets import Text
from lm_trials.files import readable
from lm_trials.stories.features import FEATURES

VERSION = 1  # of the metrics below; a change of any number is a new version
SENTIMENT = ("sentiment_score", "subjectivity_score")
NAMES = (
    *("words", "sentences", "sentence_length", "flesch_kincaid_grade", "gunning_fog", "vocabulary_diversity"),
    *("flagged_words", "bleu_score"),
    *SENTIMENT,
    *(f"feature_{feature}" for feature in FEATURES),
)
FEATURE = "feature_"
TAKEN = {*NAMES, "loss", "perplexity", "id", "split", "record_id"}
"""Names of columns that a user's metric cannot have."""
WORDS = Path(__file__).with_name("words")
COMPLEX = 3  # syllables of a complex word, for Gunning's fog index
ORDERS = 4  # BLEU counts n-grams of 1 to 4 words
EPSILON = 0.1  # matches of an order without any, as NLTK's smoothing method 1
# Punctuation, without the apostrophe in "don't", and without what ends a sentence.
PUNCTUATION = re.compile(r"'(?![tsd]|ve|ll|re)|[^\w\s'.!?]")
SENTENCE_END = re.compile(r"[.!?]+")
SHORTEST = 3  # words of a sentence; shorter ones are not counted, as in textstat


class SyllableCounts(dict[str, int]):
    """Syllables of lower-case words: in CMUdict the first pronunciation's, else one more than pyphen's hyphens."""

    def __init__(self) -> None:
        from pyphen import Pyphen

        lines = lzma.decompress((WORDS / "syllables.txt.xz").read_bytes()).decode().split("\n")
        super().__init__({word: count for count, line in enumerate(lines) for word in line.split()})
        self.hyphenation = Pyphen(lang="en_US")

    def __missing__(self, word: str) -> int:
        self[word] = len(self.hyphenation.positions(word)) + 1
        return self[word]


class ComplexWords(dict[str, bool]):
    """Whether a lower-case word has three syllables and is not in the Dale-Chall list of easy words."""

    def __init__(self, syllables: SyllableCounts) -> None:
        super().__init__()
        self.syllables = syllables
        self.easy = read_words(WORDS / "easy_words.txt")

    def __missing__(self, word: str) -> bool:
        self[word] = self.syllables[word] >= COMPLEX and word not in self.easy
        return self[word]


@cache
def syllable_counts() -> SyllableCounts:
    """Return the table of this process."""
    return SyllableCounts()


@cache
def complex_words() -> ComplexWords:
    """Return the table of this process."""
    return ComplexWords(syllable_counts())


def read_words(path: str | Path, flag: str = "") -> frozenset[str]:
    """Read a list of words, one a line, in lower case; lines that begin with # are comments.

    Raises:
        UsageError: for a file that cannot be read or has no word; `flag` names it.
    """
    with readable(f"{flag} {path}".strip(), "give a text file with one word a line"):
        lines = [line.strip().lower() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    words = frozenset(line for line in lines if line and not line.startswith("#"))
    if not words or (several := next((word for word in sorted(words) if len(word.split()) > 1), None)):
        fault = f"has {several!r}, which is not one word" if words else "has no word"
        raise UsageError(f"{flag} {path} {fault}; give one word a line")
    return words


def words_and_sentences(text: str) -> tuple[list[str], int]:
    """Return the lower-case words of a text without punctuation, and the number of its sentences.

    >>> words_and_sentences('"I don\\'t know," said Tom. Oh no! He ran to the well-lit house.')
    (['i', "don't", 'know', 'said', 'tom', 'oh', 'no', 'he', 'ran', 'to', 'the', 'welllit', 'house'], 2)
    """
    text = PUNCTUATION.sub("", text)
    sentences = sum(len(part.split()) >= SHORTEST for part in SENTENCE_END.split(text))
    words = text.replace(".", "").replace("!", "").replace("?", "").lower().split()
    return words, max(1, sentences)


@lru_cache(maxsize=256)
def reference_ngrams(reference: str) -> tuple[list[str], frozenset[str], list[Counter[tuple[str, ...]]]]:
    """Return the words of a reference, as list and set, and the n-grams of each order."""
    words = reference.split()
    orders = range(1, ORDERS + 1)
    grams = [Counter(zip(*(words[start:] for start in range(order)), strict=False)) for order in orders]
    return words, frozenset(words), grams


def bleu(reference: str, text: str) -> float:
    """Return NLTK's sentence BLEU of a text, with smoothing method 1, words being what blanks separate.

    Raises:
        ZeroDivisionError: for a text without words.

    >>> round(bleu("the cat sat on the mat", "the cat sat on a mat"), 6)
    0.537285
    """
    words = text.split()
    expected, known, wanted_O = reference_ngrams(reference)
    places = [place for place, word in enumerate(words) if word in known]
    if not places:
        return 0.0
    logs = []
    for order, wanted in enumerate(wanted_O, start=1):
        # Each n-gram of the reference begins with a shorter one of it, so few places are left for the longer ones.
        grams = [(place, gram) for place in places if (gram := tuple(words[place : place + order])) in wanted]
        places = [place for place, _ in grams]
        found = Counter(gram for _, gram in grams)
        matches = sum(min(count, wanted[gram]) for gram, count in found.items())
        logs.append(math.log((matches or EPSILON) / max(1, len(words) - order + 1)))
    brevity = 1.0 if len(words) > len(expected) else math.exp(1 - len(expected) / len(words))
    return brevity * math.exp(math.fsum(log / ORDERS for log in logs))


@dataclass(frozen=True)
class UserMetric:
    """A user's function from a text to a number, as `FILE.py:function`."""

    file: str
    function: str
    sha256: str

    @classmethod
    def parse(cls, given: str) -> UserMetric:
        """Read `--metric FILE.py:function`.

        Raises:
            UsageError: for a file that cannot be read, or has no such function.
        """
        file, colon, function = given.rpartition(":")
        if not colon or not function.isidentifier() or function in TAKEN:
            fault = f"the name {function} is taken" if function in TAKEN else "it is not FILE.py:function"
            raise UsageError(f"--metric {given}: {fault}; give a Python file and the name of a function in it")
        with readable(f"--metric {file}", "give a Python file"):
            source = Path(file).read_bytes()
        metric = cls(file, function, hashlib.sha256(source).hexdigest())
        if not callable(_module(metric).get(function)):
            raise UsageError(f"--metric {given}: {file} has no function {function}; define it in this file")
        return metric

    def measure(self, texts: Sequence[Text]) -> np.ndarray:
        """Return its number for each text.

        Raises:
            UsageError: naming the record, for an error of the function, or a result that is not a finite number.
        """
        function = _module(self)[self.function]
        values = np.zeros(len(texts))
        for place, text in enumerate(texts):
            try:
                values[place] = value = function(text.text)
                fault = "" if math.isfinite(values[place]) else f"returns {value!r}"
            except Exception as error:  # whatever the user's code raises
                fault = f"raises {type(error).__name__}: {error}"
            if fault:
                raise UsageError(
                    f"--metric {self.file}:{self.function} {fault} for record {text.record_id} ({text.text[:40]!r} "
                    "...); let it return a finite number for each text"
                )
        return values


def parse_metrics(given: Sequence[str]) -> tuple[UserMetric, ...]:
    """Read the values of `--metric`.

    Raises:
        UsageError: as `UserMetric.parse`, and for two functions of one name.
    """
    metrics = [UserMetric.parse(each) for each in given]
    names = [metric.function for metric in metrics]
    for metric in metrics:
        if names.count(metric.function) > 1:
            raise UsageError(f"--metric: two functions are called {metric.function}; rename one")
    return tuple(metrics)


@cache
def _module(metric: UserMetric) -> dict[str, Any]:
    """Run a user's file once in each process; return what it defines."""
    try:
        return runpy.run_path(metric.file)
    except Exception as error:
        raise UsageError(f"--metric {metric.file} raises {type(error).__name__}: {error}; correct it") from None


@dataclass(frozen=True)
class Measures:
    """The metrics of a text that need no model.

    Attributes:
        flagged: the words that `flagged_words` counts, in lower case.
        reference: what BLEU compares each text with; None: its prompt.
        sentiment: whether to measure sentiment and subjectivity, which take most of the time.
        functions: the user's metrics.
    """

    flagged: frozenset[str] = field(default_factory=lambda: read_words(WORDS / "flagged_words.txt"))
    reference: str | None = None
    sentiment: bool = True
    functions: tuple[UserMetric, ...] = ()

    def described(self) -> dict[str, dict[str, Any]]:
        """Return what determines each metric: version, libraries, word list, reference, source of the function."""
        flagged = hashlib.sha256("\n".join(sorted(self.flagged)).encode()).hexdigest()[:16]
        more: dict[str, dict[str, Any]] = {
            **{name: {"pyphen": version("pyphen")} for name in ("flesch_kincaid_grade", "gunning_fog")},
            **{name: {"textblob": version("textblob")} for name in SENTIMENT},
            "flagged_words": {"list": flagged, "words": len(self.flagged)},
            "bleu_score": {"reference": "the prompt" if self.reference is None else self.reference},
        }
        names = [name for name in NAMES if self.sentiment or name not in SENTIMENT]
        own = {
            each.function: {"function": f"{Path(each.file).name}:{each.function}", "sha256": each.sha256}
            for each in self.functions
        }
        return {name: {"version": VERSION, **more.get(name, {})} for name in names} | own

    def measure(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """Return the metrics of N texts, each (N,): int32 counts, int8 features, else float64; NaN without a value.

        Raises:
            UsageError: for a user's function that fails.

        >>> text = Text("a", "Tom saw a big cat. The cat saw Tom!", prompt="", features=["Twist"])
        >>> found = Measures(sentiment=False).measure([text])
        >>> [found[name].tolist() for name in ("words", "sentences", "vocabulary_diversity", "feature_Twist")]
        [[9], [2], [0.6666666666666666], [1]]
        """
        syllables, complex_ = syllable_counts(), complex_words()
        counts_N6 = np.zeros((len(texts), 6))
        for place, (_, text, _, _) in enumerate(texts):
            words, sentences = words_and_sentences(text)
            counts_N6[place] = (
                len(words),
                sentences,
                sum(map(syllables.__getitem__, words)),
                sum(map(complex_.__getitem__, words)),
                len(set(words)),
                sum(map(self.flagged.__contains__, words)),
            )
        num_words, sentences_N, syllables_N, complex_N, distinct_N, flagged_N = counts_N6.T
        words_N = np.where(num_words, num_words, np.nan)  # no word, no ratio
        length_N = words_N / sentences_N
        found: dict[str, np.ndarray] = {
            "words": num_words.astype(np.int32),
            "sentences": sentences_N.astype(np.int32),
            "sentence_length": length_N,
            "flesch_kincaid_grade": (0.39 * length_N) + (11.8 * (syllables_N / words_N)) - 15.59,
            "gunning_fog": 0.4 * (length_N + 100 * complex_N / words_N),
            "vocabulary_diversity": distinct_N / words_N,
            "flagged_words": flagged_N / words_N,
            "bleu_score": np.array([self._bleu(text) for text in texts]),
        }
        if self.sentiment:
            from textblob.en import sentiment

            scores_N2 = np.array([sentiment(text.text) for text in texts]).reshape(-1, 2)
            found |= {"sentiment_score": scores_N2[:, 0], "subjectivity_score": scores_N2[:, 1]}
        for feature in FEATURES:
            found[FEATURE + feature] = np.array([feature in text.features for text in texts], dtype=np.int8)
        return found | {each.function: each.measure(texts) for each in self.functions}

    def _bleu(self, text: Text) -> float:
        reference = text.prompt if self.reference is None else self.reference
        return bleu(reference, text.text) if reference.strip() and text.text.strip() else math.nan


def text_metrics(texts: Sequence[str], prompts: Sequence[str] = (), measures: Measures | None = None) -> dict[str, Any]:
    """Return the metrics of texts that are in no data set, each (N,), without those of features.

    >>> text_metrics(["The cat saw Tom."], ["Write about the cat."])["sentence_length"].tolist()
    [4.0]
    """
    rows = [Text("", text, prompt, []) for text, prompt in zip_longest(texts, prompts, fillvalue="")]
    found = (measures or Measures()).measure(rows)
    return {name: values for name, values in found.items() if not name.startswith(FEATURE)}
