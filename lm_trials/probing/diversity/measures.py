"""Text measures: how varied batches of text are, without a model.

All measures depend on the amount of text, so each gets the same number of words of every batch.  Words are separated by
white space; n-grams are of words in lower case without surrounding punctuation, and do not cross texts.
"""

from __future__ import annotations

import lzma
import string
from collections.abc import Sequence

import numpy as np

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate, bootstrap_mean
from lm_trials.probing.diversity.batches import TextSet
from lm_trials.probing.tables import ProbeTable
from lm_trials.stories.variety import LZMA_PRESET

# These measures do not rank data sets as the coefficient does: PubMed has more distinct n-grams than patents, but a
# lower coefficient.
NGRAMS = (1, 2, 3)


def first_words(texts: Sequence[str], num_words: int) -> list[list[str]]:
    """Return the first `num_words` words of a batch, text by text.

    >>> first_words(["a b c", "d e"], num_words=4)
    [['a', 'b', 'c'], ['d']]
    """
    taken: list[list[str]] = []
    for text in texts:
        if num_words <= 0:
            break
        taken.append(text.split()[:num_words])
        num_words -= len(taken[-1])
    return taken


def distinct_share(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return distinct over all n-grams (distinct-n; Li et al. 2016, arXiv 1510.03055); NaN where there are none.

    >>> distinct_share([["A", "cat", "a", "cat."]], n=2)
    0.6666666666666666
    """
    ngrams: list[tuple[str, ...]] = []
    for words in texts:
        plain = [word.lower().strip(string.punctuation) or word for word in words]
        ngrams += zip(*(plain[start:] for start in range(n)), strict=False)
    return len(set(ngrams)) / len(ngrams) if ngrams else float("nan")


def compression_ratio(texts: Sequence[Sequence[str]]) -> float:
    """Return bytes over bytes after xz (preset as in `lm-trials prepare describe`); higher means more repetition.

    >>> compression_ratio([["no", "two", "words"]]) < 1 < compression_ratio([["again"] * 1000])
    True
    """
    text = "\n\n".join(" ".join(words) for words in texts).encode()
    return len(text) / len(lzma.compress(text, preset=LZMA_PRESET))


def common_length(sets: Sequence[TextSet], asked: int | None) -> int:
    """Return the number of words per batch: the number asked for, else that of the shortest batch.

    Raises:
        UsageError: for a batch with fewer words than that, or than the longest n-gram.
    """
    shortest, number, name = min(
        (sum(len(text.split()) for text in batch), number, texts.name)
        for texts in sets
        for number, batch in enumerate(texts.batches)
    )
    if shortest < max(NGRAMS) or (asked or 0) > shortest:
        raise UsageError(
            f"--words_per_batch {asked or max(NGRAMS):,}: batch {number} of {name} has {shortest:,} words; "
            "lower it or raise --batch_size"
        )
    return asked or shortest


def text_measures(texts: TextSet, num_words: int, seed: int = 0) -> dict[str, Estimate]:
    """Return each measure's mean over the batches, with a bootstrap-t interval over them."""
    samples = [first_words(batch, num_words) for batch in texts.batches]
    values = {"compression ratio": ("bytes per xz byte", [compression_ratio(sample) for sample in samples])}
    for n in NGRAMS:
        values[f"distinct {n}-grams"] = (f"share of {n}-grams", [distinct_share(sample, n) for sample in samples])
    return {
        measure: bootstrap_mean(np.array(by_batch), f"{unit}, {num_words:,} words a batch", seed)
        for measure, (unit, by_batch) in values.items()
    }


def text_rows(sets: Sequence[TextSet], num_words: int, seed: int = 0) -> ProbeTable:
    """Return a row for each measure of each data set."""
    rows = ProbeTable()
    for texts in sets:
        about = {"data_set": texts.name, "kind": "data set", "probe": "", "layers": "", "noise": ""}
        for measure, estimate in text_measures(texts, num_words, seed).items():
            rows.add(estimate, {"measure": measure} | about)
    return rows
