"""How varied a corpus is, and how much of a held-out story occurs word for word in training.

A low loss shows learned structure only if the training set does not contain the held-out sentences.  Words are
separated by white space and include their punctuation.
"""

import lzma
import re
import statistics
from collections.abc import Iterable

import numpy as np

from lm_trials.stories.generated.detectors import SENTENCE_END

LZMA_PRESET = 1  # a dictionary of 1 MiB, so some 1,500 stories are seen at once; preset 6 takes 5 times as long


def split_sentences(story: str) -> list[str]:
    """Split at end marks before a capital or a quotation mark, and at line ends.

    >>> split_sentences('Tom ran. Sue ran too!\\nThe end.')
    ['Tom ran.', 'Sue ran too!', 'The end.']
    """
    pieces, start = [], 0
    for boundary in SENTENCE_END.finditer(story):
        pieces.append(story[start : boundary.start() + boundary.group().startswith('"')])
        start = boundary.end()
    return [piece for piece in (*pieces, story[start:]) if piece]


def _word_ids(train: list[str], held_out: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Number the words of all stories; each story ends with a number of its own, so that no match crosses its end."""
    numbers: dict[str, int] = {}
    stories = [[numbers.setdefault(word, len(numbers)) for word in story.split()] for story in train + held_out]
    lengths = np.array([len(story) + 1 for story in stories])
    ids_N = np.concatenate([np.array([*story, 0], dtype=np.int64) for story in stories])
    ends = np.cumsum(lengths) - 1
    ids_N[ends] = len(numbers) + np.arange(len(stories))
    return ids_N, np.repeat(np.arange(len(stories)), lengths)


def _rank_tables(ids_N: np.ndarray, max_length: int) -> list[np.ndarray]:
    """Rank all windows of 1, 2, 4, ... words in lexicographic order (prefix doubling, Manber and Myers 1993).

    Equal ranks mean equal words, without the false matches of a hash.
    """
    ranks_N = np.unique(ids_N, return_inverse=True)[1].astype(np.int64)
    tables, width = [ranks_N], 1
    while width < max_length:
        following_N = np.zeros_like(ranks_N)
        following_N[:-width] = ranks_N[width:] + 1
        keys_N = ranks_N * (len(ids_N) + 1) + following_N
        ranks_N = np.unique(keys_N, return_inverse=True)[1].astype(np.int64)
        tables.append(ranks_N)
        width *= 2
    return tables


def _common_words(tables: list[np.ndarray], first_M: np.ndarray, second_M: np.ndarray) -> np.ndarray:
    """Return how many words two positions have in common from there on, for each pair."""
    first_M, second_M, common_M = first_M.copy(), second_M.copy(), np.zeros(len(first_M), dtype=np.int64)
    last = len(tables[0]) - 1
    for power in range(len(tables) - 1, -1, -1):
        ranks_N = tables[power]
        step_M = np.where(ranks_N[first_M] == ranks_N[second_M], 1 << power, 0)
        common_M += step_M
        first_M = np.minimum(first_M + step_M, last)
        second_M = np.minimum(second_M + step_M, last)
    return common_M


def longest_overlaps(train: Iterable[str], held_out: Iterable[str]) -> list[int]:
    """Return, for each held-out story, the length in words of its longest run that occurs in a training story.

    Exact: in the suffix array of all words, the best partner of a held-out position is the nearest training position
    above or below.  20,000 training stories take a few seconds.

    Raises:
        ValueError: if either side has no stories.

    >>> longest_overlaps(["a big red ball", "b c"], ["the big red hat", "x", "big b c"])
    [2, 0, 2]
    """
    train, held_out = list(train), list(held_out)
    if not train or not held_out:
        raise ValueError(f"{len(train)} training and {len(held_out)} held-out stories; give at least one of each")
    ids_N, story_N = _word_ids(train, held_out)
    longest = max(len(story.split()) for story in held_out) + 1
    tables = _rank_tables(ids_N, longest)
    order_N = np.argsort(tables[-1], kind="stable")
    is_train_N = story_N[order_N] < len(train)
    rows_N = np.arange(len(order_N))
    above_N = np.maximum.accumulate(np.where(is_train_N, rows_N, -1))
    below_N = np.minimum.accumulate(np.where(is_train_N, rows_N, len(rows_N))[::-1])[::-1]

    overlaps = np.zeros(len(held_out), dtype=np.int64)
    for partner_N in (above_N, below_N):
        rows_M = np.flatnonzero(~is_train_N & (partner_N >= 0) & (partner_N < len(rows_N)))
        positions_M = order_N[rows_M]
        common_M = _common_words(tables, positions_M, order_N[partner_N[rows_M]])
        np.maximum.at(overlaps, story_N[positions_M] - len(train), common_M)
    return overlaps.tolist()


def describe_variety(train: Iterable[str], held_out: Iterable[str]) -> dict[str, float]:
    """Describe how varied `train` is, and how far `held_out` stories repeat it.

    Shares are of all stories or sentences of `train`; `compression_ratio` is bytes over bytes after xz (preset 1);
    overlaps are in words, to be compared with `held_out_words_median`.

    Raises:
        ValueError: if either side has no stories.

    >>> report = describe_variety(["Tom ran. Sue sat.", "Tom ran. Ben ate."], ["Sue sat. Tom ate."])
    >>> report["distinct_stories_share"], report["distinct_sentences_share"], report["overlap_max"]
    (1.0, 0.75, 2)
    """
    train, held_out = list(train), list(held_out)
    overlaps = longest_overlaps(train, held_out)
    sentences = [sentence for story in train for sentence in split_sentences(story)]
    text = "\n\n".join(train).encode()
    return {
        "num_stories": len(train),
        "num_held_out": len(held_out),
        "distinct_words": len({word.lower() for story in train for word in re.findall(r"[A-Za-z']+", story)}),
        "distinct_stories_share": len(set(train)) / len(train),
        "num_sentences": len(sentences),
        "distinct_sentences_share": len(set(sentences)) / len(sentences),
        "compression_ratio": len(text) / len(lzma.compress(text, preset=LZMA_PRESET)),
        "overlap_median": statistics.median(overlaps),
        "overlap_max": max(overlaps),
        "held_out_words_median": statistics.median(len(story.split()) for story in held_out),
        "held_out_seen_whole": sum(n == len(story.split()) for n, story in zip(overlaps, held_out, strict=True)),
    }
