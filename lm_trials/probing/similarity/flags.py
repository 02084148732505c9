"""The flags of the similarity probe; no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.files import readable
from lm_trials.flags import option
from lm_trials.probing.flags import SubjectArguments, TextArguments, check_subjects

TERM, QUERY = "{term}", "{city}"
FEWEST = 20
"""Fewest candidates, the true term among them, with which a permutation test can reach p = 0.05."""


@dataclass
class SimilarityArguments:
    """What is compared. Of several models the first is the base, the others were trained from it."""

    measure: Literal["terms", "cka", "both"] = option(
        "terms", help="terms: prompts that differ in one term; cka: the layers of two models over a data set."
    )
    term_a: str = option("foo", aliases=["--placeholder"], filled=True, help="The term whose similarity is measured.")
    term_b: str = option(
        "Paris", aliases=["--true", "--true_term"], filled=True, help="The true term that --term_a should be near to."
    )
    template: list[str] = option(
        ["What is the distance between {city} and {term}?"],
        aliases=["--templates", "--prompt", "--prompts"],
        help="Prompts with {term} (or --term_a itself) where the term goes; {city} is filled with the query words.",
    )
    query: list[str] = option(
        [],
        aliases=["--queries"],
        help="Words for {city}, or a file with one per line. Default: capitals drawn at random.",
    )
    num_queries: int = option(24, least=1, help="Number of capitals drawn for {city}; they are not candidates.")
    candidates: list[str] = option(
        [], help="Words to rank the true term among, or a file with one per line. Default: the other capitals."
    )
    min_population: int = option(500_000, least=0, help="Smaller capitals are neither queries nor candidates.")
    candidate_tokens: Literal["same", "any"] = option(
        "same", help="same: keep only candidates with as many tokens as the true term."
    )
    vocabulary_sample: int = option(
        0,
        least=FEWEST - 1,
        unless=0,
        why="for p = 0.05",
        help="Words of one token, drawn from the vocabulary as further candidates.",
    )
    align: Literal["last", "mean", "first"] = option(
        "last", help="Token of a term whose vector is compared, or the mean over its tokens."
    )
    prompt_layout: Literal["auto", "instruct", "chat", "completion"] = option(
        "auto", help="Prompt format; auto: the one that the first trained model was trained with."
    )
    control_model: list[str] = option(
        [], distinct=True, help="Models trained on data without information on the true term (scrambled distances)."
    )
    cka_pooling: Literal["mean", "last"] = option(
        "mean", help="Vector of a story in CKA: the mean over its tokens, or its last token."
    )

    @property
    def of_terms(self) -> bool:
        """Whether terms are compared."""
        return self.measure != "cka"

    @property
    def of_layers(self) -> bool:
        """Whether layers are compared over a data set."""
        return self.measure != "terms"


ARGUMENTS = (SubjectArguments, TextArguments, SimilarityArguments)


def check_arguments(subject_args: SubjectArguments, text_args: TextArguments, args: SimilarityArguments) -> None:
    """Check the flags before anything is loaded.

    Raises:
        UsageError: for the first flag that is wrong.

    >>> models = SubjectArguments(["runs/foo"], output_dir="/tmp/a")
    >>> check_arguments(models, TextArguments(), SimilarityArguments(template=["How far is {city}?"]))
    Traceback (most recent call last):
    lm_trials.console.UsageError: --template 'How far is {city}?' has neither {term} nor foo; write {term} where the \
term goes
    """
    check_subjects(subject_args, "similarity")
    for name in args.control_model:
        if not name or name in subject_args.model_name_or_path:
            raise UsageError(
                f"--control_model {name or '(empty)'} is also in --model_name_or_path; name each model once"
            )
    if not args.of_layers and text_args.dataset_name:
        raise UsageError(
            f"--dataset_name {text_args.dataset_name} is used by CKA only; add --measure cka, or --measure both"
        )
    if not args.of_terms:
        return
    if args.term_a.strip() == args.term_b.strip():
        raise UsageError(f"--term_a and --term_b are both {args.term_a}, so the prompts are the same; give two terms")
    templates(args)
    words(args.query, "--query")
    words(args.candidates, "--candidates")


def templates(args: SimilarityArguments) -> list[str]:
    """Return the templates, each with one `{term}`; all or none with `{city}`.

    Raises:
        UsageError: for a template without a place for the term, with two, or with an unknown field; for one given
            twice; for templates of which only some have `{city}`.

    >>> templates(SimilarityArguments(template=["How far is foo?"]))
    ['How far is {term}?']
    """
    found = []
    for template in args.template:
        whole_word = re.compile(rf"(?<!\w){re.escape(args.term_a)}(?!\w)")
        marked = template if TERM in template else whole_word.sub(lambda _: TERM, template)
        if TERM not in marked:
            raise UsageError(
                f"--template {template!r} has neither {TERM} nor {args.term_a}; write {TERM} where the term goes"
            )
        if marked.count(TERM) > 1:
            raise UsageError(f"--template {template!r} has the term {marked.count(TERM)} times; write {TERM} once")
        if other := [name for name in re.findall(r"\{\w*\}", marked) if name not in (TERM, QUERY)]:
            raise UsageError(f"--template {template!r} has {other[0]}; the fields are {TERM} and {QUERY}")
        if marked in found:
            raise UsageError(f"--template {template!r} is given twice; give each once")
        found.append(marked)
    if not found:
        raise UsageError("--template is empty; give a prompt, for example 'Where is {term}?'")
    if len({QUERY in template for template in found}) > 1:
        raise UsageError(
            f"--template: only some have {QUERY}, so their results cannot be averaged; write it into all or none"
        )
    return found


def words(given: Sequence[str], flag: str) -> list[str]:
    """Return the words of a flag, or the lines of the file that it names; each once.

    Raises:
        UsageError: for a file that cannot be read or has no words.

    >>> words(["Rome", " Oslo ", "Rome"], "--query")
    ['Rome', 'Oslo']
    """
    lines: Sequence[str] = given
    if len(given) == 1 and (Path(given[0]).is_file() or Path(given[0]).suffix in (".txt", ".csv")):
        with readable(f"{flag} {given[0]}", "give a file with one word per line"):
            lines = Path(given[0]).read_text(encoding="utf-8-sig").splitlines()
    found = list(dict.fromkeys(word for line in lines if (word := line.strip())))
    if given and not found:
        raise UsageError(f"{flag} {given[0]} contains no words; give one word per line")
    return found
