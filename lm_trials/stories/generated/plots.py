"""The plots of the generated stories: what happens to a hero, a friend and one object.

A plot consists of setup, problem, attempt and one of two outcomes.  Each part is a tuple of alternatives, which are
templates of one or more sentences (slots: `plans.py`), so that every part can be drawn independently of the others.
`setup` always names the object with its adjective and the action with its verb.
"""

import re
from dataclasses import dataclass
from typing import Any

PLAYTHINGS = ("toy", "tool", "cuddly", "music", "clothes", "treasure", "paper", "nature", "dish", "container")
EDIBLE = ("food", "fruit")


@dataclass(frozen=True)
class Plot:
    """One kind of story: the `categories` of objects that fit, and the alternatives of its parts."""

    name: str
    categories: tuple[str, ...]
    owns_object: bool  # the hero has the object from the first paragraph on
    setup: tuple[str, ...]  # first paragraph if the hero owns the object, else second
    problem: tuple[str, ...]
    attempt: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    twists_good: tuple[str, ...]
    twists_bad: tuple[str, ...]
    talk: tuple[str, ...]  # what the hero says to the friend, with its end mark
    quarrels: tuple[str, ...]
    morals: tuple[str, ...]
    summaries: tuple[str, str]  # of the good and the bad outcome
    replies: tuple[str, ...] = ()  # of the friend, if the general ones do not fit
    at_home: bool = False  # a visit, not an outing
    hero_worries: bool = True  # the problem is the hero's own, and came unbidden
    hero_acts: bool = True  # it is the hero, not somebody else, who does the action in the end
    parent_is_near: bool = True


def alternatives(text: str) -> tuple[str, ...]:
    """Split a text at line ends and slashes.

    >>> alternatives("Tom ran. / Tom sat.\\n  Tom ate.")
    ('Tom ran.', 'Tom sat.', 'Tom ate.')
    """
    return tuple(part.strip() for part in re.split(" / |\n", text) if part.strip())


OWNING = alternatives("""
  {He} had {a_noun} and loved to {do_it}.
  {His} {parent} had given {him} {a_noun}, and {he} loved to {do_it}.
  The thing that {he} loved most was {a_noun}. {He} liked to {do_it}.
  {He} had {a_noun}. Most of all, {he} liked to {do_it}.
  For {his} birthday, {he} got {a_noun}, and {he} wanted to {do_it} every day.
""")


def plots(text: str) -> tuple[Plot, ...]:
    """Read plots from a text with blank lines between them, in which each part of a plot begins with its name.

    Without a setup the hero owns the object.  `traits` are the fields with a default; "no" makes one False.
    """
    return tuple(map(_plot, text.strip().split("\n\n")))


def _plot(text: str) -> Plot:
    parts = dict(part.split(":", 1) for part in re.split(r"\n(?=\w+:)", text))
    name, categories = parts.pop("name").strip(), parts.pop("categories").split()
    groups = {"playthings": PLAYTHINGS, "edible": EDIBLE}
    traits = alternatives(parts.pop("traits", ""))
    fields: dict[str, Any] = {trait.removeprefix("no "): not trait.startswith("no ") for trait in traits}
    fields |= {"setup": OWNING} | {field: alternatives(content) for field, content in parts.items()}
    fitting = tuple(one for category in categories for one in groups.get(category, (category,)))
    return Plot(name, fitting, owns_object="setup" not in parts, **fields)
