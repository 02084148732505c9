"""The plots of the generated stories: what happens to a hero, a friend and one object.

Each field of a `Plot` is a tuple of alternatives, and each alternative a template of one or more
sentences; slots are listed in `plans.py`.  A plot is told as setup, problem, attempt and one of two
outcomes, so that every field can be drawn independently of the others and still follow from them.
`setup` and `wish` together always name the object with its adjective and the action with its verb.
"""

from dataclasses import dataclass

PLAYTHINGS = ("toy", "tool", "cuddly", "music", "clothes", "treasure", "paper", "nature", "dish", "container")
EDIBLE = ("food", "fruit")


@dataclass(frozen=True)
class Plot:
    """One kind of story.  `categories` of objects that fit; `at_home` tells of a visit, not an outing."""

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
    talk: tuple[tuple[str, str], ...]  # (end mark, what the hero says to the friend)
    quarrels: tuple[str, ...]
    morals: tuple[str, ...]
    summaries: tuple[str, str]  # of the good and the bad outcome
    replies: tuple[tuple[str, str], ...] = ()  # of the friend, if the general ones do not fit
    at_home: bool = False
    hero_worries: bool = True  # the problem is the hero's own, and came unbidden
    hero_acts: bool = True  # it is the hero, not somebody else, who does the action in the end
    parent_is_near: bool = True


OWNING = (
    "{He} had {a_noun} and loved to {do_it}.",
    "{His} {parent} had given {him} {a_noun}, and {he} loved to {do_it}.",
    "The thing that {he} loved most was {a_noun}. {He} liked to {do_it}.",
    "{He} had {a_noun}. Most of all, {he} liked to {do_it}.",
    "For {his} birthday, {he} got {a_noun}, and {he} wanted to {do_it} every day.",
)
