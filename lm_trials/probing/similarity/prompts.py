"""Term prompts: prompts that differ in one term, in the model's prompt format, and which tokens are the term's.

A term's tokens are found by the characters that each token covers.  So a token of the term's end and the punctuation
after it counts as the term's, and terms with a common beginning (Paris, Parma) are handled; a comparison of the ids of
two prompts would get both wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_trials.console import UsageError, progress
from lm_trials.evaluation.sampling import Mode
from lm_trials.evaluation.storytellers import trained_mode
from lm_trials.latent_city.cities import folded, known_places, package_cities
from lm_trials.latent_city.distances import draw
from lm_trials.models.reference import separator_of
from lm_trials.pairs.layouts import chat_prompt, check_chat, completion_prompts, instruct_prompts
from lm_trials.probing.similarity.flags import FEWEST, QUERY, TERM, SimilarityArguments, templates, words
from lm_trials.probing.subjects import Subject
from lm_trials.tokens.stores import Separator, document_marks, opening_of

CITIES, VOCABULARY = "other cities", "words of the vocabulary"
GIVEN = "other candidates"


@dataclass(frozen=True)
class TermPrompt:
    """A prompt in the model's format.

    Attributes:
        ids: (T,) token ids.
        positions: of the term's tokens.
        beyond: whether the first or last of them covers more of the text than the term and a space.
    """

    ids: np.ndarray
    positions: tuple[int, ...]
    beyond: bool

    def compared(self, align: str) -> tuple[int, ...]:
        """Return the positions that are compared.

        >>> [TermPrompt(np.arange(5), (2, 3), False).compared(align) for align in ("last", "first", "mean")]
        [(3,), (2,), (2, 3)]
        """
        return {"last": self.positions[-1:], "first": self.positions[:1], "mean": self.positions}[align]


class PromptLayout:
    """Brings prompts into a model's format and finds a term in them.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320)
    >>> (prompt,) = PromptLayout(tokenizer, "instruct").prompts(["One day, a {term}."], ["cat"])
    >>> tokenizer.convert_ids_to_tokens(prompt.ids[list(prompt.positions)]), len(prompt.ids) - prompt.positions[-1]
    (['▁cat'], 3)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mode: Mode, separator: Separator = "bos") -> None:
        self.tokenizer, self.mode, self.separator = tokenizer, mode, separator
        self.backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = mode != "chat"  # as `batch_encoder`: a text's "</s>" is text

    def prompts(self, asked: Sequence[str], terms: Sequence[str]) -> list[TermPrompt]:
        """Return each prompt, which has one `{term}`, with its term filled in.

        Raises:
            UsageError: for a term without a token, or a prompt that contains a control token.
        """
        parts = [prompt.split(TERM) for prompt in asked]
        texts = [before + term + after for (before, after), term in zip(parts, terms, strict=True)]
        starts = [len(before) for before, _ in parts]
        if self.mode == "chat":
            # Chat templates are rendered one by one: some thousand prompts take seconds.
            shown = progress(texts, "tokenizing", "prompts", len(texts)) if len(texts) > 1000 else texts
            ids = [chat_prompt(self.tokenizer, [{"role": "user", "content": text}]) for text in shown]
            rendered = [self._rendered(text) for text in texts]
            starts = [start + at for start, (_, at) in zip(starts, rendered, strict=True)]
            texts, lead = [text for text, _ in rendered], 0
        elif self.mode == "instruct":
            ids, lead = instruct_prompts(self.tokenizer, texts), len(document_marks(self.tokenizer, True)[1])
        else:
            ids = completion_prompts(self.tokenizer, texts, self.separator)
            lead = len(opening_of(self.tokenizer, self.separator))
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        return [
            _found(row, encoding, lead, text, start, term)
            for row, encoding, text, start, term in zip(ids, encodings, texts, starts, terms, strict=True)
        ]

    def _rendered(self, text: str) -> tuple[str, int]:
        """Return the conversation as text and the place of `text` in it, as if the template stripped no spaces."""
        message = {"role": "user", "content": text}
        whole = str(self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
        at = whole.rfind(text.strip())
        if at < 0:
            raise UsageError(
                f"--template: the chat template changes {text!r}; give --prompt_layout instruct or completion"
            )
        return whole, at - (len(text) - len(text.lstrip()))


def _found(ids: Sequence[int], encoding: Any, lead: int, text: str, start: int, term: str) -> TermPrompt:
    """Find a term's tokens by the characters that they cover."""
    if list(ids[lead : lead + len(encoding.ids)]) != encoding.ids:
        raise UsageError(f"--template: {text!r} contains a control token of the tokenizer; remove it")
    end, covers = start + len(term), encoding.offsets
    inside = [place for place, (first, last) in enumerate(covers) if first < end and last > start and first < last]
    if not inside:
        raise UsageError(f"--term_a: {term!r} has no token in {text!r}; give a term that the tokenizer knows")
    beyond = text[covers[inside[0]][0] : start].strip() or text[end : covers[inside[-1]][1]].strip()
    return TermPrompt(np.asarray(ids, dtype=np.int64), tuple(lead + place for place in inside), bool(beyond))


@dataclass(frozen=True)
class TermPlan:
    """All prompts of a comparison: for each pair of query and template one with the term and one per candidate.

    Attributes:
        term: the term to measure.
        candidates: the terms it is compared with, the true term first.
        families: by name, the indices of candidates that the true term is ranked among.
        queries: words for `{city}`; the templates themselves where they have none.
        pairs: index of the query, and template without `{city}`.
        own: for each pair the prompt with the term.
        others: for each pair, candidate by candidate, the prompt with it.
        mode: the prompt format.
        left_out: number of candidates with another number of tokens than the true term.
    """

    term: str
    candidates: tuple[str, ...]
    families: dict[str, tuple[int, ...]]
    queries: tuple[str, ...]
    pairs: tuple[tuple[int, str], ...]
    own: tuple[TermPrompt, ...]
    others: tuple[TermPrompt, ...]
    mode: Mode
    left_out: int

    @property
    def sampled(self) -> str:
        """The samples of the intervals, with their number."""
        kind = "queries" if self.queries[0] not in (text for _, text in self.pairs) else "prompts"
        return f"{len(self.queries)} {kind}"

    @property
    def true(self) -> str:
        """The true term."""
        return self.candidates[0]

    def tokens(self, tokenizer: PreTrainedTokenizerBase, align: str) -> list[dict[str, Any]]:
        """Return a row for the term and each candidate: its tokens in the first pair, and those compared."""
        names = (self.term, *self.candidates)
        family = {place: name for name, places in self.families.items() for place in places}
        rows = []
        for place, (name, prompt) in enumerate(zip(names, (self.own[0], *self.others[: len(names) - 1]), strict=True)):
            tokens = tokenizer.convert_ids_to_tokens(prompt.ids.tolist())
            compared = prompt.compared(align)
            rows.append(
                {
                    "term": name,
                    "kind": {0: "term", 1: "true term"}.get(place) or family[place - 1],
                    "tokens": " ".join(tokens[position] for position in prompt.positions),
                    "positions": " ".join(map(str, prompt.positions)),
                    "compared": " ".join(tokens[position] for position in compared),
                    "compared_positions": " ".join(map(str, compared)),
                    "holds_more_than_the_term": "yes" if prompt.beyond else "no",
                    "prompt": " ".join(tokens),
                }
            )
        return rows


def find_layout(subject: Subject, layout: str) -> PromptLayout:
    """Return the prompt format that a model was trained with, or the one of `--prompt_layout`.

    Raises:
        UsageError: for `chat` with a model without a chat template.
    """
    tokenizer, run = subject.tokenizer, subject.candidate.run
    template = getattr(tokenizer, "chat_template", None)
    mode: Any = layout
    if layout == "auto":
        mode = trained_mode(run) or ("chat" if template and run is None else "completion")
    if mode == "chat":
        check_chat(tokenizer, subject.reference.name)
    return PromptLayout(tokenizer, mode, separator_of(run))


def plan_terms(layout: PromptLayout, args: SimilarityArguments, seed: int, window: int) -> TermPlan:
    """Return the prompts to compare.

    Raises:
        UsageError: for too few queries or candidates, a prompt longer than the window, or terms with the same tokens.
    """
    asked = templates(args)
    term, true = args.term_a.strip(), args.term_b.strip()
    taken = {folded(term), folded(true)}
    if QUERY in asked[0]:
        queries = _queries(args, seed, taken)
        pairs = [(number, text.replace(QUERY, query)) for number, query in enumerate(queries) for text in asked]
        first = [text for number, text in pairs if number == 0]
    elif args.query:
        raise UsageError(f"--query {args.query[0]}: no --template has {QUERY}; write it where the query goes")
    else:
        queries, pairs, first = tuple(asked), list(enumerate(asked)), list(asked)
    taken |= {folded(query) for query in queries}
    wanted = _num_tokens(layout, first, [true])[0]
    candidates, families, left_out = [true], {}, 0
    name, cities = _candidates(args, true, taken)
    if cities or args.candidates:
        counts = _num_tokens(layout, first, cities)
        kept = [c for c, n in zip(cities, counts, strict=True) if args.candidate_tokens == "any" or n == wanted]
        left_out = len(cities) - len(kept)
        if len(kept) < FEWEST - 1:
            lengths = f", {left_out} more have another number of tokens than {true}" if left_out else ""
            advice = ", or --candidate_tokens any" if left_out else ""
            raise UsageError(
                f"--candidates: {len(kept)} {name} are too few for p = 0.05{lengths}; give {FEWEST - 1} or more{advice}"
            )
        families[name] = tuple(range(1, 1 + len(kept)))
        candidates += kept
    if args.vocabulary_sample:
        drawn = _vocabulary(layout, first, args.vocabulary_sample, seed, {*taken, *map(folded, candidates)})
        families[VOCABULARY] = tuple(range(len(candidates), len(candidates) + len(drawn)))
        candidates += drawn
    texts = [text for _, text in pairs]
    own = layout.prompts(texts, [term] * len(texts))
    others = layout.prompts([t for t in texts for _ in candidates], [c for _ in texts for c in candidates])
    if np.array_equal(own[0].ids, others[0].ids):
        raise UsageError(f"--term_a {term} and --term_b {true} have the same tokens, so the prompts are the same")
    if (longest := max(len(prompt.ids) for prompt in (*own, *others))) > window:
        raise UsageError(f"--template: a prompt has {longest} tokens and the model reads {window}; give a shorter one")
    return TermPlan(
        term, tuple(candidates), families, queries, tuple(pairs), tuple(own), tuple(others), layout.mode, left_out
    )


def _queries(args: SimilarityArguments, seed: int, taken: set[str]) -> tuple[str, ...]:
    """Return the words for `{city}`, none of them a term."""
    if args.query:
        given = words(args.query, "--query")
        if not (found := [query for query in given if folded(query) not in taken]):
            raise UsageError(f"--query {' '.join(given)} contains only the terms themselves; give other words")
        return tuple(found)
    cities = [city.name for city in package_cities(None, args.min_population)[0] if folded(city.name) not in taken]
    if len(cities) < args.num_queries:
        raise UsageError(
            f"--num_queries {args.num_queries}: only {len(cities)} capitals have {args.min_population:,} people; lower "
            "it, or lower --min_population"
        )
    return tuple(sorted(cities, key=lambda city: draw(seed, "query", city))[: args.num_queries])


def _candidates(args: SimilarityArguments, true: str, taken: set[str]) -> tuple[str, list[str]]:
    """Return the words that the true term is ranked among, and their name; none with `--vocabulary_sample` alone."""
    if args.candidates:
        given = words(args.candidates, "--candidates")
        return GIVEN, [word for word in given if folded(word) not in taken]
    if folded(true) not in known_places():
        if args.vocabulary_sample:
            return CITIES, []
        raise UsageError(
            f"--term_b {true} is not a known city, so other cities are not a control for it; give --candidates of the "
            "same kind, or --vocabulary_sample 100"
        )
    cities = package_cities(None, args.min_population)[0]
    return CITIES, [city.name for city in cities if folded(city.name) not in taken]


def _num_tokens(layout: PromptLayout, asked: Sequence[str], terms: Sequence[str]) -> list[tuple[int, ...]]:
    """Return how many tokens each term has, in each of the prompts."""
    found = layout.prompts([text for _ in terms for text in asked], [term for term in terms for _ in asked])
    counts = [len(prompt.positions) for prompt in found]
    return [tuple(counts[start : start + len(asked)]) for start in range(0, len(counts), len(asked))]


def _vocabulary(layout: PromptLayout, asked: Sequence[str], wanted: int, seed: int, taken: set[str]) -> list[str]:
    """Draw words that are one token in each of the prompts."""
    tokenizer = layout.tokenizer
    special = set(tokenizer.all_special_ids)
    ids = [number for number in sorted(tokenizer.get_vocab().values()) if number not in special]
    found: list[str] = []
    order = np.random.default_rng(seed).permutation(ids).tolist()
    for start in range(0, len(order), 4 * wanted):
        texts = dict.fromkeys(str(tokenizer.decode([id_])).strip() for id_ in order[start : start + 4 * wanted])
        tried = [word for word in texts if len(word) > 2 and word.isalpha() and folded(word) not in taken]
        counts = _num_tokens(layout, asked, tried) if tried else []
        for word, tokens in zip(tried, counts, strict=True):
            if set(tokens) == {1} and folded(word) not in taken:
                taken.add(folded(word))
                found.append(word)
        if len(found) >= wanted:
            return found[:wanted]
    raise UsageError(f"--vocabulary_sample {wanted}: the vocabulary has only {len(found)} words of one token; lower it")
