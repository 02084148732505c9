"""Categories of tokens, and whether embeddings know them: in the full space, never in the picture of two axes.

Shape suffixes: N = tokens with a category, D = width, K = nearest ones, S = shuffles.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import silhouette_samples
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate, bootstrap_mean
from lm_trials.probing.embeddings.geometry import Words, unit, vocab_of
from lm_trials.stories.generated import vocabulary

MOSTLY_UNSEEN = ("byte", "special")  # of `surface_categories`
LEAST = 3
"""A category of fewer tokens is left out: hardly any nearest token can be of it."""
WORD_STARTS = ("▁", "Ġ")  # how SentencePiece and byte-level tokenizers write the blank before a word


@dataclass(frozen=True)
class Categories:
    """Which tokens have a category.

    Attributes:
        tokens_N, names_N: the tokens and their categories.
        left_out: what was left out and why, for people.
    """

    tokens_N: np.ndarray
    names_N: np.ndarray
    left_out: str

    @property
    def counts(self) -> dict[str, int]:
        """Tokens of each category, the largest first."""
        return dict(Counter(self.names_N.tolist()).most_common())

    def drawn(self, most: int, seed: int) -> Categories:
        """Return at most so many of them, drawn at random: what follows takes memory by their square.

        Raises:
            UsageError: where fewer than two categories are left.
        """
        if len(self.tokens_N) <= most:
            return self
        places = np.sort(np.random.default_rng(seed).choice(len(self.tokens_N), most, replace=False))
        told = f"{most:,} of {len(self.tokens_N):,} tokens with a category are drawn"
        left_out = "; ".join(filter(None, [self.left_out, told]))
        pairs = dict(zip(self.tokens_N[places].tolist(), self.names_N[places].tolist(), strict=True))
        return _enough(pairs, "", left_out, f"--max_tokens {most}")


def categories_of(how: str, tokenizer: PreTrainedTokenizerBase, counts_V: np.ndarray | None = None) -> Categories:
    """Return the categories that `--categories` names, among tokens that training saw.

    Tokens that it never saw stay together whatever they are, and most bytes are such: as a category of their own they
    would be told apart for being new.

    Args:
        counts_V: how often each token occurs in the training data; without it, bytes and special tokens are left out
            of "surface".

    Raises:
        UsageError: for a file that cannot be read, or fewer than two categories with tokens.
    """
    if how == "surface":
        pairs = surface_categories(tokenizer)
        if counts_V is not None:
            return _seen(pairs, counts_V, how, "")
        kept = {token: name for token, name in pairs.items() if name not in MOSTLY_UNSEEN}
        return _enough(kept, how, f"{len(pairs) - len(kept):,} byte and special tokens are left out")
    words = {"words": story_words, "continents": city_continents}.get(how, lambda: read_categories(Path(how)))()
    tokens = Words(tokenizer)
    found = {word: tokens.token(word) for word in words}
    pairs = {token: words[word] for word, token in found.items() if token is not None}
    several = sum(token is None for token in found.values())
    left_out = f"{several:,} of {len(words):,} words are of several tokens" if several else ""
    return _enough(pairs, how, left_out) if counts_V is None else _seen(pairs, counts_V, how, left_out)


def _seen(pairs: Mapping[int, str], counts_V: np.ndarray, how: str, left_out: str) -> Categories:
    kept = {token: name for token, name in pairs.items() if counts_V[token] > 0}
    told = f"{len(pairs) - len(kept):,} of {len(pairs):,} tokens with a category never occur in the training data"
    return _enough(kept, how, "; ".join(filter(None, [left_out, told if len(kept) < len(pairs) else ""])))


def check_nearest(nearest: int, categories: Categories) -> None:
    """Refuse more nearest tokens than there are others.

    Raises:
        UsageError: for them.
    """
    tokens = len(categories.tokens_N)
    if nearest >= tokens:
        raise UsageError(
            f"--nearest {nearest} is not below the {tokens:,} tokens that are compared; give at most {tokens - 1}"
        )


def _enough(pairs: Mapping[int, str], how: str, left_out: str, flag: str = "") -> Categories:
    counts = Counter(pairs.values())
    small = sorted(name for name, count in counts.items() if count < LEAST)
    kept = {token: name for token, name in sorted(pairs.items()) if name not in small}
    if len(set(kept.values())) < 2:
        there = ", ".join(f"{name} {count}" for name, count in counts.most_common(9)) or "none"
        raise UsageError(
            f"{flag or f'--categories {how}'}: fewer than two categories have {LEAST} tokens or more ({there}"
            + (f"; {left_out}" if left_out else "")
            + (f"); give more than {flag.split()[-1]}" if flag else "); give other categories")
        )
    if small:
        left_out = "; ".join(filter(None, [left_out, f"fewer than {LEAST} tokens have {', '.join(small)}"]))
    return Categories(np.array(list(kept)), np.array(list(kept.values())), left_out)


def surface_categories(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return how each token is written: special, byte, digit, punctuation, or a piece that begins a word or goes on.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\\\n"] * 9, vocab_size=320)
    >>> sorted(set(surface_categories(tokenizer).values()))
    ['begins a word', 'byte', 'punctuation', 'special', 'within a word']
    """
    special = set(tokenizer.all_special_ids)
    return {
        token: _surface(piece, tokenizer.decode([token]), token in special)
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
        return "byte"  # as of byte-level tokenizers, which have all 256
    if body and all(unicodedata.category(letter)[0] == "N" for letter in body):
        return "digit"
    if all(not letter.isalnum() for letter in body):
        return "punctuation"
    return "begins a word" if piece.startswith(WORD_STARTS) or text.startswith(" ") else "within a word"


def story_words() -> dict[str, str]:
    """Return the groups of words of the generated stories; no word is in two.

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
    """Return the continent of each capital and city of a million people, by its name.

    >>> city_continents()["Paris"]
    'Europe'
    """
    from lm_trials.latent_city.cities import package_cities

    return {city.name: city.continent for city in package_cities(other_cities=1_000_000)[0] if city.continent}


def read_categories(path: Path) -> dict[str, str]:
    """Read words and their categories: a JSON object, or a CSV file whose first two columns they are.

    Raises:
        UsageError: for a file that is neither.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        if path.suffix == ".json":
            pairs: Any = json.loads(text)
            pairs = list(pairs.items()) if isinstance(pairs, dict) else None
        else:
            pairs = [tuple(row[:2]) for row in csv.reader(text.splitlines()) if row][1:]
    except (OSError, ValueError) as error:
        raise UsageError(f"--categories {path} cannot be read ({error}); correct it") from None
    if not pairs or any(len(pair) != 2 or not all(isinstance(part, str) and part for part in pair) for pair in pairs):
        raise UsageError(f"--categories {path}: give {{word: category}}, or a CSV with a header and both in each line")
    return dict(pairs)


@dataclass(frozen=True)
class Separation:
    """How well categories can be told apart, and what the same is worth with the categories shuffled.

    Attributes:
        found: the mean over tokens, with its interval over tokens.
        shuffled: the mean over shuffles, with the interval that 95 % of them lie in.
        p: the share of shuffles that do as well, the data counted among them.
    """

    found: Estimate
    shuffled: Estimate
    p: float


def agreement(neighbours_NK: np.ndarray, names_N: np.ndarray) -> np.ndarray:
    """Return for each token the share of its nearest that are of its category, (N,).

    >>> agreement(np.array([[1, 2], [0, 2], [0, 1]]), np.array(["a", "a", "b"])).tolist()
    [0.5, 0.5, 0.0]
    """
    return (names_N[neighbours_NK] == names_N[:, None]).mean(axis=1)


def separation(
    table_ND: np.ndarray, names_N: np.ndarray, nearest: int, permutations: int, seed: int
) -> dict[str, Separation]:
    """Measure how well categories can be told apart by cosine: agreement of the nearest tokens, and silhouette."""
    unit_ND = unit(table_ND)
    cosines_NN = unit_ND @ unit_ND.T
    np.fill_diagonal(cosines_NN, -np.inf)
    neighbours_NK = np.argsort(-cosines_NN, axis=1, kind="stable")[:, :nearest]
    distances_NN = np.clip(1 - cosines_NN, 0.0, 2.0)
    np.fill_diagonal(distances_NN, 0.0)
    codes_N = np.unique(names_N, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    shuffles = [generator.permutation(codes_N) for _ in range(permutations)]
    measures = {
        f"{nearest}_nearest": (lambda codes: agreement(neighbours_NK, codes), "share of the nearest of its category"),
        "silhouette": (lambda codes: silhouette_samples(distances_NN, codes, metric="precomputed"), "silhouette"),
    }
    return {
        name: _against(measure, codes_N, shuffles, unit_name, seed) for name, (measure, unit_name) in measures.items()
    }


def _against(
    measure: Any, codes_N: np.ndarray, shuffles: Sequence[np.ndarray], unit_name: str, seed: int
) -> Separation:
    found = bootstrap_mean(measure(codes_N), unit_name, seed)
    by_chance = np.array([measure(codes).mean() for codes in shuffles])
    lower, upper = np.quantile(by_chance, [0.025, 0.975])
    shuffled = Estimate(float(by_chance.mean()), float(lower), float(upper), len(by_chance), unit_name)
    p = (1 + int((by_chance >= found.estimate).sum())) / (1 + len(by_chance))
    return Separation(found, shuffled, p)
