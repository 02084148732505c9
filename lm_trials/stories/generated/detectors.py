"""Detectors: does a story show a feature?  Decided from the text alone.

A detector matches the *frame* of a feature's sentence (`it turned out that ...`, `... learned that it is good to ...`),
not the names and things in it, so that it also recognizes what a small model writes after training on the generated
language.  On generated stories every detector has precision and recall of 1.0 (tested on 10,000); on other prose, such
as TinyStories, it is a lower bound.
"""

import re
from dataclasses import dataclass

from lm_trials.stories.features import FEATURES

_NAME = r"(?:\w+|the \w+)"
_SPEECH = r"(?:said|asked|answered|replied|told|whispered|cried|called|shouted|yelled)"


@dataclass(frozen=True)
class Detector:
    """A feature's frames as regular expressions; `ending_only` looks at the last paragraph alone."""

    pattern: re.Pattern[str]
    ending_only: bool = False

    def search(self, story: str) -> re.Match[str] | None:
        """Return the first match in `story`, or None.

        >>> DETECTORS["Twist"].search("It turned out that Ben was a king!").group()
        'It turned out that'
        """
        start = story.rstrip().rfind("\n") + 1 if self.ending_only else 0
        return self.pattern.search(story, start)


def _detector(*frames: str, ending_only: bool = False) -> Detector:
    return Detector(re.compile("|".join(f"(?:{frame})" for frame in frames)), ending_only)


DETECTORS = {
    "Dialogue": _detector(
        rf'"[^"\n]+[.,!?]" (?:{_NAME} )?{_SPEECH}\b',  # "...," said Tom.   "...," Tom told Sue.
        rf'\b{_SPEECH}(?: to| out)?(?: {_NAME})?, "[^"\n]+[.!?]"',  # Tom whispered to Sue, "..."
    ),
    "Twist": _detector(
        r"\bnot (?:[^.!?\n]+ )?at all(?:;|\. It was\b)",  # But it was not a ball at all; it was ...
        r"\bnot been \w+ at all\b",
        r"\b[Ii]t turned out that\b",
        r"\b[Tt]o everyone's surprise\b",
        r"\bNobody had guessed\b",
        r"\bThen came a (?:big )?surprise\b",
        r"\bin disguise\b",
        r"\ball along\b",
    ),
    "BadEnding": _detector(
        r"\bwent home alone and cried\b",
        r"\bwalked home in tears\b",
        r"\bcried (?:until|all night)\b",
        r"\bthe (?:saddest|worst) day\b",
        r"\bno happy end",
        r"\bNothing [^.!?\n]*could make [^.!?\n]+ (?:smile|happy|laugh)",
        r"\bdid not (?:laugh|smile|go back [^.!?\n]+) for a long,? long time",
        r"\bheavy heart\b",
        r"\ball alone in the dark and (?:wept|cried)",
        r"\bNobody came to dry \w+(?:'s)? tears\b",
        ending_only=True,
    ),
    "MoralValue": _detector(
        r"\bThe moral (?:of the story )?is\b",
        r"\blearned (?:that it is (?:good|important)|a lesson)\b",
        r"\bknew (?:that it is (?:good|important)|how good it is) to\b",
        r"\blearned one thing:",
        r"\btaught \w+ a lesson\b",
        r"\bThis story teaches us\b",
        r"\bAlways remember to\b",
        r"\bnever forget to\b",
    ),
    "Foreshadowing": _detector(
        r"\bdid not know it yet\b",
        r"\bLittle did \w+ know\b",
        r"\bhad a strange feeling that\b",
        r"\bas if (?:it|he|she|they) knew what would come\b",
        r"\bSoon \w+ would find out\b",
        r"\bNobody could guess what was going to happen\b",
        r"\ba sign of things to come\b",
        r"\bLater, (?:\w+ )?\w+ would often think of\b",
    ),
    "Conflict": _detector(
        r"\bhad a (?:\w+ )?fight\b",
        r"\b(?:began|started) to (?:fight|argue|quarrel)\b",
        r"\bargued\b",
        r"\bquarreled\b",
        r"\bshouted at\b",
        r"\bpushed \w+, and \w+ pushed \w+ back\b",
        r"\bneither would give in\b",
        r"\byelled even louder\b",
    ),
}
assert tuple(DETECTORS) == FEATURES


def detect_features(story: str) -> tuple[str, ...]:
    """Return the features that `story` shows, in the order of `FEATURES`.

    >>> detect_features('"Look at me!" cried Tom. It turned out that Tom was a king!')
    ('Dialogue', 'Twist')
    >>> detect_features("Tom had a ball.")
    ()
    """
    return tuple(feature for feature, detector in DETECTORS.items() if detector.search(story))


# A sentence ends at a mark and perhaps a quotation mark, before a space and a capital or a quotation mark;
# `"Look!" cried Tom` has a capital only in a name, which the detector's match already spans.
SENTENCE_END = re.compile(r'(?<=[.!?])"? (?=[A-Z"])|\n')
# A sentence before the frame that already tells the feature; 4 % of the twists of generated stories have it.
_LEAD_INS = {"Twist": re.compile(r"\btook off (?:his|her) beard\b")}


def sentence_ends(story: str) -> list[int]:
    """Return where each sentence of `story` ends, white space after it excluded.

    >>> [story[:end] for story in ["Tom ran.\\n\\nSue sat. "] for end in sentence_ends(story)]
    ['Tom ran.', 'Tom ran.\\n\\nSue sat.']
    """
    ends = [boundary.start() + boundary.group().startswith('"') for boundary in SENTENCE_END.finditer(story)]
    stripped = dict.fromkeys(len(story[:end].rstrip()) for end in (*ends, len(story)))
    return [end for end in stripped if end]


def ends_before(story: str, feature: str) -> list[int] | None:
    """Return where the sentences before the first that shows `feature` end; None if no sentence shows it.

    >>> story = "Tom was sad. Ben sat. It turned out that Ben was a king!"
    >>> story[: ends_before(story, "Twist")[-1]]
    'Tom was sad. Ben sat.'
    >>> ends_before(story, "Conflict") is None
    True
    """
    if (match := DETECTORS[feature].search(story)) is None:
        return None
    lead_in = _LEAD_INS[feature].search(story) if feature in _LEAD_INS else None
    start = min(found.start() for found in (match, lead_in) if found)
    return [end for end in sentence_ends(story) if end <= start]


def matched_sentence(story: str, feature: str) -> str | None:
    """Return the first sentence of `story` that shows `feature`, the evidence behind a score, or None.

    Raises:
        KeyError: if `feature` is none of `FEATURES`; the message lists them.

    >>> matched_sentence("Tom was sad. It turned out that Ben was a king! They ate.", "Twist")
    'It turned out that Ben was a king!'
    >>> matched_sentence("Tom was sad.", "Twist") is None
    True
    """
    if feature not in DETECTORS:
        raise KeyError(f"{feature!r} is not a feature; choose one of {', '.join(FEATURES)}")
    match = DETECTORS[feature].search(story)
    if match is None:
        return None
    start, end = 0, len(story)
    for boundary in SENTENCE_END.finditer(story):
        if boundary.end() <= match.start():
            start = boundary.end()
        elif boundary.start() >= match.end() - 1:
            end = boundary.start() + (boundary.group().startswith('"'))
            break
    return story[start:end].strip()
