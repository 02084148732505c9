"""Story prompts: the prompt for a record's story, and the questions of later turns.

    style prompt     the record's instruction, cleaned as for the published story-teller, then "Possible story:"
    style summary    "Write " and the record's summary

They depend on the record, the style and the seed alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lm_trials.stories.draws import draw_integers, record_keys

Style = Literal["prompt", "summary"]

ASKED_FOR = " Possible story:"
CLEANED = (
    # The archive's two wordings; the paper quotes the first sentence with "would likely understand".
    (
        r"Write a short story \(3-5 paragraphs\) which only uses very simple words that a 3 year old child would "
        r"(likely )?understand\.",
        "Write a story.",
    ),
    (r" Remember to only use simple words!", ""),
    (r"\s*Possible story:\s*$", ""),
    (r"try to at some point use", "try to use"),
    # Those of `lm-trials prepare generate`, shortened in the same places.
    (r"Write a short story with very simple words, for a child of 3 years\.", "Write a story."),
    (r"Tell a short story that a 3 year old child can follow\.", "Tell a story."),
    (r" (Keep every word simple|Only simple words, please)!", ""),
)
FEATURE_PHRASES = {
    "Dialogue": "the story should contain at least one dialogue",
    "Twist": "something unexpected happens / there is a plot twist",
    "BadEnding": "the story has a bad ending",
    "MoralValue": "the story has a moral value",
    "Foreshadowing": "the narrative uses foreshadowing or setup and payoff",
    "Conflict": "the story has some form of conflict in it",
}
"""The phrase for each feature in the archive's prompts."""

SUMMARY_QUESTIONS = ("What happens in the story?", "What is the story about?", "Can you say in short what happened?")
WORDS_TURNS = (
    ("Which words did you use?", "I used {}."),
    ("What words is the story made from?", "It is made from {}."),
    ("Can you tell me its words?", "I wrote it with {}."),
)


def cleaned_prompt(prompt: str) -> str:
    """Return an instruction as the published story-teller got it, without "Possible story:".

    >>> cleaned_prompt(
    ...     "Write a short story (3-5 paragraphs) which only uses very simple words that a 3 year old child would "
    ...     'understand. In the story, try to at some point use the verb "hang". Remember to only use simple words!'
    ... )
    'Write a story. In the story, try to use the verb "hang".'
    """
    for pattern, replacement in CLEANED:
        prompt = re.sub(pattern, replacement, prompt)
    return prompt.strip()


def written_prompt(words: Sequence[str], features: Sequence[str], source: str = "") -> str:
    """Return a cleaned instruction for a record without one; an empty text if it has no words or features.

    Three words are a verb, a noun and an adjective, as in TinyStories.  The two models that wrote TinyStories were
    prompted in different wordings.

    >>> written_prompt(["hang", "foot", "cute"], ["Dialogue"])
    'Write a story. The story should use the verb "hang", the noun "foot" and the adjective "cute". The story has the \
following features: the story should contain at least one dialogue.'
    >>> written_prompt(["hang", "foot"], [], source="GPT-3.5")
    'Write a story. In the story, try to use the words "hang" and "foot".'
    """
    asked = []
    if words:
        use = "In the story, try to use" if source == "GPT-3.5" else "The story should use"
        asked.append(f"{use} {_listed_words(words, parts_of_speech=True)}.")
    if features:
        phrases = ", ".join(FEATURE_PHRASES[feature] for feature in features)
        asked.append(f"The story has the following features: {phrases}.")
    return " ".join(["Write a story.", *asked]) if asked else ""


def _listed_words(words: Sequence[str], parts_of_speech: bool = False) -> str:
    quoted = [f'"{word}"' for word in words]
    if parts_of_speech and len(words) == 3:
        return "the verb {}, the noun {} and the adjective {}".format(*quoted)
    if len(words) == 1:
        return f"the word {quoted[0]}"
    return f"the words {', '.join(quoted[:-1])} and {quoted[-1]}"


def asked_prompt(record: Mapping[str, Any], style: Style, counts: Counter[str] | None = None) -> str:
    """Return the prompt for a record's story; an empty text if the record has none for this style.

    >>> asked_prompt({"summary": " Tom finds a cat. "}, "summary")
    'Write Tom finds a cat.'
    >>> asked_prompt({"prompt": "", "words": ["sit"], "features": [], "source": ""}, "prompt")
    'Write a story. The story should use the word "sit". Possible story:'
    """
    counts = Counter() if counts is None else counts
    if style == "summary":
        summary = record["summary"].strip()
        counts["no_summary"] += not summary
        return f"Write {summary}" if summary else ""
    cleaned, how = cleaned_prompt(record["prompt"]), "prompts_cleaned"
    if not cleaned:
        cleaned, how = written_prompt(record["words"], record["features"], record["source"]), "prompts_written"
    elif cleaned == record["prompt"].strip():
        how = "prompts_as_they_are"
    counts[how if cleaned else "no_prompt"] += 1
    return cleaned + ASKED_FOR if cleaned else ""


def later_turns(
    records: Sequence[Mapping[str, Any]], turns: int, seed: int, counts: Counter[str] | None = None
) -> list[list[tuple[str, str]]]:
    """Return the later turns of each record, as questions with answers: its summary, then its words.

    The story is the first of `turns`.  A turn for which the record has no answer is left out and counted.

    >>> record = {"record_id": "0123456789abcdef", "summary": "", "words": ["sit", "mat"]}
    >>> later_turns([record], turns=3, seed=0)
    [[('Can you tell me its words?', 'I wrote it with the words "sit" and "mat".')]]
    """
    counts = Counter() if counts is None else counts
    keys_N = record_keys(record["record_id"] for record in records)
    about_summary_N = draw_integers(keys_N, seed, "instruct: question about the summary")
    about_words_N = draw_integers(keys_N, seed, "instruct: question about the words")
    following: list[list[tuple[str, str]]] = [[] for _ in records]
    for number, record in enumerate(records):
        summary = record["summary"].strip()
        if turns >= 2 and summary:
            question = SUMMARY_QUESTIONS[int(about_summary_N[number]) % len(SUMMARY_QUESTIONS)]
            following[number].append((question, summary))
        if turns >= 3 and record["words"]:
            question, answer = WORDS_TURNS[int(about_words_N[number]) % len(WORDS_TURNS)]
            following[number].append((question, answer.format(_listed_words(record["words"]))))
        counts["turns_without_summary"] += turns >= 2 and not summary
        counts["turns_without_words"] += turns >= 3 and not record["words"]
    return following
