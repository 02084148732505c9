"""Contexts: the texts in which a pairing is looked for, the same for each group but its name and pronoun."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm_trials.console import UsageError
from lm_trials.files import readable
from lm_trials.stories.generated.pairing import ACTIVITIES, Pairing


@dataclass(frozen=True)
class Context:
    """One context.

    Attributes:
        openings: the first sentence for each group; they differ in the name.
        leads: for each group the text just before the attribute, which shows the group alone.
        elsewhere: for each group a text just before something that is not paired.
    """

    openings: tuple[str, ...]
    leads: tuple[str, ...]
    elsewhere: tuple[str, ...]


def draw_contexts(pairing: Pairing, count: int, seed: int, half: int | None = None) -> list[Context]:
    """Draw contexts: an opening, a verb, and a name of each group.

    Args:
        half: 0 or 1: draw names of this half of each group only, so that two sets of contexts share no name.

    >>> context = draw_contexts(ACTIVITIES, count=1, seed=0)[0]
    >>> context.openings[1]
    'Once upon a time, there lived a shy dog whose name was Sam.'
    >>> context.leads[0], context.elsewhere[0][-9:]
    ('Once upon a time, there lived a shy dog whose name was Zoe. She liked to', 'She had a')
    """
    generator = np.random.Generator(np.random.Philox(seed))
    contexts = []
    for _ in range(count):
        opening, verb, other = (
            options[generator.integers(len(options))]
            for options in (pairing.openings, pairing.verbs, pairing.elsewhere)
        )
        names = [
            mine[generator.integers(len(mine))]
            for mine in (names if half is None else names[half::2] for names in pairing.groups.values())
        ]
        openings = tuple(opening.replace("{name}", name) for name in names)
        leads, elsewhere = (
            tuple(
                f"{first} {pronoun.capitalize()} {then}"
                for first, pronoun in zip(openings, pairing.groups, strict=True)
            )
            for then in (verb, other)
        )
        contexts.append(Context(openings, leads, elsewhere))
    return contexts


def read_pairing(name: str | None) -> Pairing:
    """Read the file of `--pairing`; None is the pairing of the generated stories.

    Raises:
        UsageError: for a file that cannot be read or does not describe a pairing.
    """
    if name is None:
        return ACTIVITIES
    path = Path(name)
    with readable(f"--pairing {path}", "give a JSON file"):
        found = json.loads(path.read_text(encoding="utf-8"))
    try:
        pairing = Pairing(
            groups={group: tuple(names) for group, names in found["groups"].items()},
            verbs=tuple(found["verbs"]),
            elsewhere=tuple(found["elsewhere"]),
            pairs=tuple((one, other) for one, other in found["pairs"]),
            unrelated=tuple((one, other) for one, other in found["unrelated"]),
            openings=tuple(found["openings"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"--pairing {path} is not a pairing ({error}); give groups (two pronouns, each with names), verbs, "
            "elsewhere, pairs, unrelated and openings"
        ) from None
    if len(pairing.groups) != 2 or min(map(len, pairing.groups.values())) < 2:
        raise UsageError(f"--pairing {path} needs two groups with two or more names each; correct groups")
    for field in ("verbs", "elsewhere", "pairs", "unrelated", "openings"):
        if not getattr(pairing, field):
            raise UsageError(f"--pairing {path} has no {field}; add at least one")
    if without := [opening for opening in pairing.openings if "{name}" not in opening]:
        raise UsageError(f"--pairing {path}: the opening {without[0]!r} has no {{name}}; add it")
    return pairing
