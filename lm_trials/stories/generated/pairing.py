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
        elsewhere: what else follows a pronoun, with something after it that is not paired.
        pairs: activities that are partners of one another.
        unrelated: more pairs, which no training text pairs with a group: the control.
        openings: first sentences of a story with the slot `{name}`, which show the group by the name alone.
    """

    groups: Mapping[str, tuple[str, ...]]
    verbs: tuple[str, ...]
    elsewhere: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    unrelated: tuple[tuple[str, str], ...]
    openings: tuple[str, ...]

    @cached_property
    def _fitting(self) -> dict[str, str]:
        """The pronoun that each activity fits."""
        return {
            one: group for pair in self.pairs + self.unrelated for one, group in zip(pair, self.groups, strict=True)
        }

    def _search(self, story: str, pairs: tuple[tuple[str, str], ...]) -> re.Match[str] | None:
        """Find the first sentence with an activity of `pairs`; its groups are the pronoun and the activity."""
        groups = "|".join(form for group in self.groups for form in (group, group.capitalize()))
        activities = "|".join(re.escape(activity) for pair in pairs for activity in pair)
        return re.search(rf"\b({groups}) (?:{'|'.join(map(re.escape, self.verbs))}) ({activities})\b", story)

    def shown(self, story: str, unrelated: bool = False) -> bool | None:
        """Return whether the first activity of a story fits its pronoun; None if there is none.

        >>> ACTIVITIES.shown("There was a cat named Sue. She liked to pick berries.")
        True
        >>> ACTIVITIES.shown("Every day, he loved to pick berries.")
        False
        """
        found = self._search(story, self.unrelated if unrelated else self.pairs)
        return self._fitting[found[2]] == found[1].lower() if found else None

    def paired(self, story: str, fits: bool) -> str:
        """Return the story with an activity that fits its pronoun, or with the partner of one that does.

        >>> ACTIVITIES.paired("Ben was a boy. He liked to pick berries.", fits=True)
        'Ben was a boy. He liked to watch the birds.'
        """
        found = self._search(story, self.pairs)
        if found is None or self.shown(story) == fits:
            return story
        pair = next(pair for pair in self.pairs if found[2] in pair)
        return story[: found.start(2)] + pair[pair[0] == found[2]] + story[found.end(2) :]


ACTIVITIES = Pairing(
    groups={"she": GIRL_NAMES, "he": BOY_NAMES},
    verbs=("liked to", "loved to"),
    elsewhere=("had a",),
    pairs=(
        ("sing in the morning", "splash in puddles"),
        ("count the stars", "tell funny jokes"),
        ("pick berries", "watch the birds"),
        ("listen to stories", "build towers"),
        ("make new friends", "roll down the hill"),
        ("dance in the rain", "run with the wind"),
    ),
    # Their first words begin no paired activity: when "look for bugs" was paired, it took "look at the clouds" along,
    # by 0.7 nats.
    unrelated=(("look at the clouds", "play in the sun"), ("look for bugs", "play hide and seek")),
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
