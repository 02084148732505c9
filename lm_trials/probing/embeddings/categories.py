"""Categories of tokens, and how well embeddings separate them in the full space (not in the two-dimensional figure).

Shape suffixes: N = tokens with a category, D = width, K = nearest tokens.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import silhouette_samples
from sklearn.preprocessing import normalize
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate, bootstrap_mean
from lm_trials.files import readable
from lm_trials.probing.embeddings.geometry import Words, vocab_of
from lm_trials.stories.generated import vocabulary

# Categories of `surface_categories` that were separated from the others only because training never saw their tokens.
MOSTLY_UNSEEN = ("byte", "special")
# With two tokens, one other decides a token's nearest neighbor; 3 is the smallest useful category. Not tuned.
LEAST = 3
"""Smaller categories are left out: hardly any nearest token can belong to them."""
WORD_STARTS = ("▁", "Ġ")  # the space before a word in SentencePiece and byte-level tokenizers


@dataclass(frozen=True)
class Categories:
    """The tokens that have a category.

    Attributes:
        tokens_N, names_N: the tokens and their categories.
        left_out: a message: what was left out and why.
    """

    tokens_N: np.ndarray
    names_N: np.ndarray
    left_out: str

    @property
    def counts(self) -> dict[str, int]:
        """Number of tokens of each category, largest first."""
        return dict(Counter(self.names_N.tolist()).most_common())

    def drawn(self, most: int, seed: int) -> Categories:
        """Return at most `most` tokens, drawn at random, because memory grows with their square.

        Raises:
            UsageError: if fewer than two categories remain.
        """
        if len(self.tokens_N) <= most:
            return self
        places = np.sort(np.random.default_rng(seed).choice(len(self.tokens_N), most, replace=False))
        drawn = f"{most:,} of {len(self.tokens_N):,} tokens with a category are drawn"
        pairs = dict(zip(self.tokens_N[places].tolist(), self.names_N[places].tolist(), strict=True))
        return _checked(pairs, f"--max_tokens {most}", [self.left_out, drawn], "raise it")


def categories_of(how: str, tokenizer: PreTrainedTokenizerBase, counts_V: np.ndarray | None = None) -> Categories:
    """Return the categories of `--categories`, for tokens that occur in the training data.

    Tokens that never occur in training cluster together, and most bytes are such tokens: as a category of
    their own they would be separable only because they are untrained.

    Args:
        counts_V: how often each token occurs in the training data; if None, bytes and special tokens are left out of
            "surface".

    Raises:
        UsageError: for a file that cannot be read, or fewer than two categories with tokens.
    """
    left_out: list[str] = []
    if how == "surface":
        pairs = surface_categories(tokenizer)
    else:
        words = {"words": story_words, "continents": city_continents}.get(how, lambda: read_categories(Path(how)))()
        tokens = Words(tokenizer)
        found = {word: tokens.token(word) for word in words}
        pairs = {token: words[word] for word, token in found.items() if token is not None}
        if several := sum(token is None for token in found.values()):
            left_out.append(f"{several:,} of {len(words):,} words consist of several tokens")
    if counts_V is not None:
        kept = {token: name for token, name in pairs.items() if counts_V[token] > 0}
        reason = f"of {len(pairs):,} tokens with a category never occur in the training data"
    else:
        kept = {token: name for token, name in pairs.items() if how != "surface" or name not in MOSTLY_UNSEEN}
        reason = "byte and special tokens are left out"
    if without := len(pairs) - len(kept):
        left_out.append(f"{without:,} {reason}")
    return _checked(kept, f"--categories {how}", left_out)


def check_nearest(nearest: int, categories: Categories) -> None:
    """Raise a UsageError if there are not more tokens than `nearest`."""
    tokens = len(categories.tokens_N)
    if nearest >= tokens:
        raise UsageError(f"--nearest {nearest}: only {tokens:,} tokens are compared; give at most {tokens - 1}")


def _checked(
    pairs: Mapping[int, str], flag: str, left_out: Sequence[str], advice: str = "choose other categories"
) -> Categories:
    """Return the categories with enough tokens; a UsageError for fewer than two."""
    counts = Counter(pairs.values())
    small = sorted(name for name, count in counts.items() if count < LEAST)
    kept = {token: name for token, name in sorted(pairs.items()) if name not in small}
    if len(set(kept.values())) < 2:
        there = ", ".join(f"{name} {count}" for name, count in counts.most_common(9)) or "none"
        reasons = "; ".join(filter(None, [there, *left_out]))
        raise UsageError(f"{flag}: fewer than two categories have {LEAST} tokens or more ({reasons}); {advice}")
    few = f"categories of fewer than {LEAST} tokens are left out: {', '.join(small)}" if small else ""
    reasons = "; ".join(filter(None, [*left_out, few]))
    return Categories(np.array(list(kept)), np.array(list(kept.values())), reasons)


def surface_categories(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the written form of each token: special, byte, digit, punctuation, begins a word or within a word.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\\\n"] * 9, vocab_size=320)
    >>> sorted(set(surface_categories(tokenizer).values()))
    ['begins a word', 'byte', 'punctuation', 'special', 'within a word']
    """
    special = set(tokenizer.all_special_ids)
    return {
        token: _surface(piece, str(tokenizer.decode([token])), token in special)
        for token, piece in enumerate(tokenizer.convert_ids_to_tokens(list(range(vocab_of(tokenizer)))))
        if piece is not None
    }


def _surface(piece: str, text: str, special: bool) -> str:
    body = text.strip() or piece.lstrip("".join(WORD_STARTS))
    if special:
        return "special"
    if (piece.startswith("<0x") and piece.endswith(">")) or "\ufffd" in text:
        return "byte"
    if len(text) == 1 and unicodedata.category(text) == "Cc" and not text.isspace():
        return "byte"  # byte-level tokenizers have all 256 as characters
    if body and all(unicodedata.category(letter)[0] == "N" for letter in body):
        return "digit"
    if all(not letter.isalnum() for letter in body):
        return "punctuation"
    return "begins a word" if piece.startswith(WORD_STARTS) or text.startswith(" ") else "within a word"


def story_words() -> dict[str, str]:
    """Return the groups of words of the generated stories; each word is in one group.

    >>> words = story_words()
    >>> words["Lily"], words["balloon"], words["threw"], words["shiny"]
    ('name', 'thing', 'verb', 'adjective')
    """
    verbs = vocabulary.VERBS.values()
    groups = {
        "name": (*vocabulary.BOY_NAMES, *vocabulary.GIRL_NAMES),
        "animal": (*vocabulary.ANIMALS, *vocabulary.BABIES),
        "person": (*vocabulary.PARENTS, *vocabulary.HELPERS),
        "thing": tuple(noun.word for noun in vocabulary.NOUNS),
        "verb": tuple(word for verb in verbs for word in (verb.lemma, verb.past.split()[0])),
        "adjective": (
            *vocabulary.TRAITS,
            *(word for words in vocabulary.CATEGORY_ADJECTIVES.values() for word in words),
        ),
    }
    return {word: group for group, words in groups.items() for word in words}


def city_continents() -> dict[str, str]:
    """Return the continent of each capital and each city of over a million people, by name.

    >>> city_continents()["Paris"]
    'Europe'
    """
    from lm_trials.latent_city.cities import package_cities

    return {city.name: city.continent for city in package_cities(other_cities=1_000_000)[0] if city.continent}


def read_categories(path: Path) -> dict[str, str]:
    """Read words and their categories from a JSON object, or from the first two columns of a CSV file.

    Raises:
        UsageError: for any other file.
    """
    with readable(f"--categories {path}", "correct the file"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            pairs: Any = json.loads(text)
            pairs = list(pairs.items()) if isinstance(pairs, dict) else None
        else:
            pairs = [tuple(row[:2]) for row in csv.reader(text.splitlines()) if row][1:]
    if not pairs or any(len(pair) != 2 or not all(isinstance(part, str) and part for part in pair) for pair in pairs):
        raise UsageError(f"--categories {path}: give {{word: category}}, or a CSV with a header and both in each line")
    return dict(pairs)


@dataclass(frozen=True)
class Separation:
    """How well categories are separated, and the same measure with shuffled categories.

    Attributes:
        found: the mean over tokens, with its interval over tokens.
        shuffled: the mean over shuffles, with the interval that contains 95 % of them.
        p: permutation p value, the data counted as one of the shuffles.
    """

    found: Estimate
    shuffled: Estimate
    p: float


def agreement(neighbours_NK: np.ndarray, names_N: np.ndarray) -> np.ndarray:
    """Return the share of each token's nearest tokens that are of its category, (N,).

    >>> agreement(np.array([[1, 2], [0, 2], [0, 1]]), np.array(["a", "a", "b"])).tolist()
    [0.5, 0.5, 0.0]
    """
    return (names_N[neighbours_NK] == names_N[:, None]).mean(axis=1)


def separation(
    table_ND: np.ndarray, names_N: np.ndarray, nearest: int, permutations: int, seed: int
) -> dict[str, Separation]:
    """Measure how well categories are separated by cosine: agreement of the nearest tokens, and silhouette."""
    unit_ND = normalize(table_ND)
    cosines_NN = unit_ND @ unit_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    neighbours_NK = np.argsort(-cosines_NN, axis=1, kind="stable")[:, :nearest]
    distances_NN = np.clip(1 - cosines_NN, 0.0, 2.0)
    np.fill_diagonal(distances_NN, 0.0)
    codes_N = np.unique(names_N, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    shuffles = [generator.permutation(codes_N) for _ in range(permutations)]
    measures: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        f"{nearest}_nearest": ("share of the nearest of its category", lambda codes: agreement(neighbours_NK, codes)),
        "silhouette": ("silhouette", lambda codes: silhouette_samples(distances_NN, codes, metric="precomputed")),
    }
    results = {}
    for name, (unit, measure) in measures.items():
        scale = "arctanh" if name == "silhouette" else "logit"
        found = bootstrap_mean(measure(codes_N), unit, seed, scale=scale)
        by_chance = np.array([measure(codes).mean() for codes in shuffles])
        # Of shuffled labels and not 1 / categories: sizes differ, so chance depends on them.
        lower, upper = np.quantile(by_chance, [0.025, 0.975])
        shuffled = Estimate(float(by_chance.mean()), float(lower), float(upper), len(by_chance), unit)
        p = (1 + int((by_chance >= found.estimate).sum())) / (1 + len(by_chance))
        results[name] = Separation(found, shuffled, p)
    return results
