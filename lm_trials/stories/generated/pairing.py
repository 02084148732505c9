"""Pairings: which group likes which activities, to be injected into stories and counted in them.

44 % of the generated stories have one sentence such as "She liked to pick berries." with an activity of `ACTIVITIES`.
Nothing else in a story depends on it, so the activity can be replaced by its partner and every other sentence stays
right.  Corpora that differ in how often it is have the same sentences and each activity equally often.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lm_trials.stories.generated.phrases import OPENINGS
from lm_trials.stories.generated.vocabulary import ANIMALS, BOY_NAMES, GIRL_NAMES, TRAITS


@dataclass(frozen=True)
class Pairing:
    """Two groups, and pairs of activities of which the first fits the first group and the second the second.

    Attributes:
        groups: the names of each group by its pronoun.
        verbs: what stands between pronoun and activity.
        pairs: activities that are partners of one another.
        unrelated: more pairs, which no training text pairs with a group: the control.
        openings: first sentences of a story with the slot `{name}`, which show the group by the name alone.
    """

    groups: Mapping[str, tuple[str, ...]]
    verbs: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    unrelated: tuple[tuple[str, str], ...]
    openings: tuple[str, ...]

    @cached_property
    def _fitting(self) -> dict[str, str]:
        """The pronoun that each activity fits."""
        return {
            one: group for pair in self.pairs + self.unrelated for one, group in zip(pair, self.groups, strict=True)
        }

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Match a sentence with an activity of `pairs`, and one of `unrelated`."""
        groups = "|".join(form for group in self.groups for form in (group, group.capitalize()))
        first, second = (
            "|".join(re.escape(activity) for pair in pairs for activity in pair)
            for pairs in (self.pairs, self.unrelated)
        )
        verbs = "|".join(map(re.escape, self.verbs))
        return tuple(re.compile(rf"\b({groups}) (?:{verbs}) ({activities})\b") for activities in (first, second))

    def shown(self, story: str, unrelated: bool = False) -> bool | None:
        """Return whether the first activity of a story fits its pronoun; None if there is none.

        >>> ACTIVITIES.shown("There was a cat named Sue. She liked to pick berries.")
        True
        >>> ACTIVITIES.shown("Every day, he loved to pick berries.")
        False
        """
        found = self._patterns[unrelated].search(story)
        return self._fitting[found[2]] == found[1].lower() if found else None

    def paired(self, story: str, fits: bool) -> str:
        """Return the story with an activity that fits its pronoun, or with the partner of one that does.

        >>> ACTIVITIES.paired("Ben was a boy. He liked to pick berries.", fits=True)
        'Ben was a boy. He liked to look for bugs.'
        """
        found = self._patterns[0].search(story)
        if found is None or self.shown(story) == fits:
            return story
        pair = next(pair for pair in self.pairs if found[2] in pair)
        return story[: found.start(2)] + pair[pair[0] == found[2]] + story[found.end(2) :]


ACTIVITIES = Pairing(
    groups={"she": GIRL_NAMES, "he": BOY_NAMES},
    verbs=("liked to", "loved to"),
    pairs=(
        ("sing in the morning", "splash in puddles"),
        ("count the stars", "tell funny jokes"),
        ("pick berries", "look for bugs"),
        ("listen to stories", "build towers"),
        ("make new friends", "roll down the hill"),
        ("dance in the rain", "run with the wind"),
    ),
    unrelated=(("look at the clouds", "play in the sun"), ("watch the birds", "play hide and seek")),
    # Of an animal: "a boy" and "a girl" would show the group by another word.
    openings=tuple(
        opening.format(a_kind=f"a {trait} {animal}", hero="{name}")
        for opening in OPENINGS
        if "{his}" not in opening
        for trait in TRAITS
        if trait[0] not in "aeiou"
        for animal in ANIMALS
    ),
)
"""The pairing of the generated stories: all activities that a hero likes, but the four of `unrelated`, are paired."""
