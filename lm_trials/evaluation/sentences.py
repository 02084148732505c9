"""Sentences that show a feature: which tokens of a story lie in them, for any tokenizer."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_trials.protocols.instructions import story_start
from lm_trials.stories.generated.detectors import DETECTORS, SENTENCE_END


def feature_sentences(story: str, feature: str) -> list[tuple[int, int]]:
    """Return start and end of each sentence that the detector's matches lie in, in characters.

    >>> story = "Tom sat. It turned out that he was a king! He ran.\\nHe was in disguise. "
    >>> [story[start:end] for start, end in feature_sentences(story, "Twist")]
    ['It turned out that he was a king!', 'He was in disguise.']
    """
    first = DETECTORS[feature].search(story)
    if first is None:
        return []
    matches = list(DETECTORS[feature].pattern.finditer(story, first.start()))
    boundaries = list(SENTENCE_END.finditer(story))
    starts = [0, *(boundary.end() for boundary in boundaries)]
    ends = [*(boundary.start() + boundary[0].startswith('"') for boundary in boundaries), len(story)]
    sentences = []
    for start, end in zip(starts, ends, strict=True):
        if any(match.start() < end and match.end() > start for match in matches):
            sentence = story[start:end]
            start += len(sentence) - len(sentence.lstrip())
            sentences.append((start, start + len(sentence.strip())))
    return sentences


class SentenceTokens:
    """Finds the tokens of a document that lie in the sentences which show a feature, for each of `features`.

    The text is what the tokens decode to, without instruction lines, so that records and token stores give the same.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, features: Sequence[str]) -> None:
        self.features = features
        if features:
            self._decode = partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)

    def parts(self, input_ids: np.ndarray) -> dict[str, tuple[np.ndarray, int]]:
        """Return `Document.parts`: for each feature which of the (n,) ids, and the sentences' bytes."""
        if not self.features:
            return {}
        ids = input_ids.tolist()
        text = self._decode(ids)
        begin, parts = story_start(text), {}
        for feature in self.features:
            tokens, num_bytes = np.zeros(len(ids), dtype=bool), 0
            for start, end in feature_sentences(text[begin:], feature):
                tokens[self._tokens(ids, text, begin + start, begin + end)] = True
                num_bytes += len(text[begin + start : begin + end].encode())
            parts[feature] = tokens, num_bytes
        return parts

    def _tokens(self, ids: list[int], text: str, start: int, end: int) -> slice:
        """Return the tokens from the one with the first character of `text[start:end]` to the one with its last."""

        def spelled(count: int, begun: bool = False) -> int:
            """Return how many characters `count` tokens spell, with the one of which they spell a part if `begun`."""
            whole = count
            while not text.startswith(decoded := self._decode(ids[:whole])):  # after a part of a character's bytes
                whole -= 1
            return len(decoded) + (begun and whole < count)

        counts = range(len(ids) + 1)
        first = bisect_right(counts, start, key=partial(spelled, begun=True)) - 1
        return slice(first, bisect_left(counts, end, key=spelled))
