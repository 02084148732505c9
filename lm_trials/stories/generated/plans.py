"""Plans of generated stories: the plot, the cast, the three words, and every sentence as a template.

A plan is a list of sentence templates per paragraph, each marked with the feature that it carries (or none); rendering
fills all slots at once.

Slots (He, His, The ... capitalized where a sentence begins):

    hero he him his hand kind a_kind like      friend fhe fhim fhis pal a_friend_kind a_royal
    noun adj a_noun a_bare_noun really          do do_it do_any did did_it
    in_place to_place spot spot2 spot3 seat     junk day weather time
    parent phe phim                             helper a_helper ahis helper2 a_helper2 baby crying_reason
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol, TypeVar

from lm_trials.stories.generated import phrases
from lm_trials.stories.generated import vocabulary as words
from lm_trials.stories.generated.detectors import FEATURES
from lm_trials.stories.generated.friend_plots import FRIEND_PLOTS, OOPS_FOOD, OOPS_THINGS
from lm_trials.stories.generated.plots import EDIBLE, Plot
from lm_trials.stories.generated.thing_plots import MISHAPS, THING_PLOTS

# Each feature is in a story with this probability, independently of the others: all 64 subsets occur,
# the rarest (all six) in 0.4 % of stories, the most common (none) in 4.7 %.
FEATURE_PROBABILITY = 0.4

Sentence = tuple[str, str | None]  # template, and the feature that it carries
Option = TypeVar("Option")


class Pick(Protocol):
    """Draws one of some options, each as likely as the others."""

    def __call__(self, options: Sequence[Option]) -> Option: ...  # noqa: D102


class Slots(dict[str, str]):
    """Values of the slots by name; a name with a capital, as at the beginning of a sentence, gives one to the value.

    >>> "{He} sat. {A_helper} came.".format_map(Slots(he="she", a_helper="an old owl"))
    'She sat. An old owl came.'
    """

    def __missing__(self, name: str) -> str:
        if name.islower():
            raise KeyError(name)
        value = self[name.lower()]
        return value[0].upper() + value[1:]  # `str.capitalize` would make the rest lower case


@dataclass(frozen=True)
class Plan:
    """A story before its slots are filled: templates by paragraph, the slots, and what was asked for."""

    plot: Plot
    paragraphs: tuple[tuple[Sentence, ...], ...]
    slots: Slots
    words: tuple[str, str, str]  # verb, noun, adjective
    features: tuple[str, ...]
    prompt_form: str

    def render(self, without: str | None = None, instead: str = "The sun was in the sky.") -> str:
        """Return the story's text; the sentences of the feature `without` are replaced by `instead`."""
        return "\n".join(
            " ".join(instead if feature and feature == without else text for text, feature in paragraph)
            for paragraph in self.paragraphs
        ).format_map(self.slots)


def article(phrase: str) -> str:
    """Put "a" or "an" before `phrase` by its first letter; the vocabulary has no word that needs its sound.

    >>> article("old red hat"), article("hat"), article("unusual shell")
    ('an old red hat', 'a hat', 'an unusual shell')
    """
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


# --- Tables made once, so that a story costs little more than its draws and one `format_map`.

_PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}


_PEOPLE = tuple((name, "he") for name in words.BOY_NAMES) + tuple((name, "she") for name in words.GIRL_NAMES)
_HEROES, _FRIENDS = (
    {name: dict(zip(slots, (name, *_PRONOUNS[he]), strict=True)) for name, he in _PEOPLE}
    for slots in (("hero", "he", "him", "his"), ("friend", "fhe", "fhim", "fhis"))
)
_CHILD = {"he": "boy", "she": "girl"}
_ANIMAL_KINDS = tuple(words.ANIMALS)
_PARENTS = tuple({"parent": parent, "phe": he, "phim": _PRONOUNS[he][1]} for parent, he in words.PARENTS.items())
_HELPER_PAIRS = tuple(
    {"helper": f"the {one}", "a_helper": a_one, "ahis": _PRONOUNS[he][2], "helper2": f"the {two}", "a_helper2": a_two}
    for (one, (a_one, he)), (two, (a_two, _)) in permutations(words.HELPERS.items(), 2)
)
_SITES = tuple(
    tuple(
        {
            "in_place": place.inside, "to_place": place.toward, "spot": one, "spot2": two, "spot3": three,
            # People sit near a bench, not under it, and not where the lost thing is.
            "seat": next(spot for spot in (two, three, four) if spot.startswith(("near", "by", "in"))),
        }
        for one, two, three, four in permutations(place.spots)
    )
    for place in words.PLACES
)  # fmt: skip


def _objects(plot: Plot) -> tuple[tuple[words.Noun, tuple[words.Verb, ...]], ...]:
    """Return the nouns that fit `plot`, each with the verbs that fit both."""
    fitting = []
    for noun in words.NOUNS:
        if noun.category not in plot.categories or (plot.name == "broken" and not noun.breaks):
            continue
        verbs = tuple(words.VERBS[verb] for verb in noun.verbs if plot.name != "practice" or verb in words.SKILLS)
        if verbs:
            fitting.append((noun, verbs))
    return tuple(fitting)


def _fitting(plot: Plot, templates: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the templates that need a place outside or a parent near by where the plot has none."""
    unfit: tuple[str, ...] = ("_place}", "home") if plot.at_home else ()
    unfit += () if plot.parent_is_near else ("{parent}",)
    return tuple(template for template in templates if not any(word in template for word in unfit))


def _speech(lines: tuple[str, ...], speaker: str, listener: str | None) -> tuple[str, ...]:
    """Put every line into every frame of its end mark; frames that name a listener only if there is one."""
    return tuple(
        frame.replace("<U>", line[:-1]).replace("<S>", speaker).replace("<L>", listener or "")
        for line in lines
        for frame in phrases.SPEECH_FRAMES[line[-1]]
        if listener or "<L>" not in frame
    )


def _expand(frames: tuple[str, ...], slot: str, fillers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(frame.replace(slot, filler) for frame in frames for filler in fillers)


class _Tables:
    """Everything that a plot can draw from, expanded and filtered once; dictionaries are by "the end is bad"."""

    def __init__(self, plot: Plot) -> None:
        anywhere = _fitting(plot, phrases.TWISTS_ANYWHERE)
        good_remarks, bad_remarks = (
            tuple(line for line in lines if not (plot.at_home and "home" in line))
            for lines in (phrases.GOOD_REMARKS, phrases.BAD_REMARKS)
        )
        self.objects = _objects(plot)
        self.openings = _fitting(plot, phrases.OPENINGS)
        self.start = phrases.VISITS if plot.at_home else phrases.OUTINGS
        self.foreshadowing = _fitting(plot, phrases.FORESHADOWING)
        self.talk = _speech(plot.talk, "{hero}", "{friend}")
        self.replies = _speech(plot.replies or phrases.REPLIES, "{friend}", "{hero}")
        self.quarrels = _expand(phrases.QUARREL_FRAMES, "<A>", plot.quarrels)
        self.outcomes = {False: plot.good, True: plot.bad}
        # A plot's own twists explain it best, so they are drawn as often as all the others together.
        self.twists = {False: plot.twists_good * 3 + anywhere, True: plot.twists_bad * 3 + anywhere}
        self.remarks = {False: _speech(good_remarks, "{hero}", "{friend}"), True: _speech(bad_remarks, "{hero}", None)}
        self.closings = {False: _fitting(plot, phrases.HAPPY_CLOSINGS), True: _fitting(plot, phrases.SAD_CLOSINGS)}
        self.morals = _expand(phrases.MORAL_FRAMES, "<M>", plot.morals)


_PLOTS = THING_PLOTS + FRIEND_PLOTS
_TABLES = {plot.name: _Tables(plot) for plot in _PLOTS}


def _picker(seed: int, index: int) -> tuple[Pick, Callable[[], float]]:
    if seed < 0 or not 0 <= index < 1 << 64:
        raise ValueError(f"seed {seed} and index {index} must not be negative, and the index below 2**64")
    # A story has its own generator, so story i is the same in a corpus of any size. Of `random.Random` only
    # `.random()` is stable between Python versions.
    draw = random.Random((seed << 64) | index).random

    def pick(options: Sequence[Option]) -> Option:
        return options[int(draw() * len(options))]

    return pick, draw


def _cast_slots(pick: Pick, draw: Callable[[], float]) -> dict[str, str]:
    """Draw hero, friend, parent, helpers and place."""
    name, he = pick(_PEOPLE)
    friend, friend_he = pick(_PEOPLE)
    while friend == name:
        friend, friend_he = pick(_PEOPLE)
    kind = pick(_ANIMAL_KINDS) if draw() < 0.5 else _CHILD[he]
    friend_kind = pick(_ANIMAL_KINDS) if draw() < 0.5 else _CHILD[friend_he]
    slots = _HEROES[name] | _FRIENDS[friend] | pick(_PARENTS) | pick(_HELPER_PAIRS) | pick(pick(_SITES))
    return slots | {
        "kind": kind,
        "hand": words.ANIMALS.get(kind, "hand"),
        "a_kind": article(f"{pick(words.TRAITS)} {kind}"),
        "a_friend_kind": article(f"{pick(words.TRAITS)} {friend_kind}"),
        "a_royal": pick(phrases.ROYALS[friend_he]),
    }


def _object_slots(pick: Pick, noun: words.Noun, verb: words.Verb, adjective: str) -> dict[str, str]:
    """Fill what depends on the three words of the record, and the small change of the scene."""
    return {
        "noun": noun.word,
        "adj": adjective,
        "a_noun": article(f"{adjective} {noun.word}"),
        "a_bare_noun": article(noun.word),
        "really": pick(phrases.REALLY[noun.category]),
        "do": f"{verb.base} the {noun.word}",
        "do_it": f"{verb.base} it",
        "did": f"{verb.past} the {noun.word}",
        "did_it": f"{verb.past} it",
        "do_any": f"{verb.base} {article(noun.word)}",
        "like": pick(words.LIKES),
        "day": pick(words.DAYS),
        "weather": pick(phrases.WEATHER),
        "time": pick(phrases.TIMES),
        "junk": pick(words.JUNK),
        "baby": pick(words.BABIES),
        "crying_reason": pick(words.CRYING_REASONS),
        "a_crow": pick(phrases.OMEN_ANIMALS),
        "a_thing": pick(phrases.SMALL_THINGS),
    }


def plan_story(seed: int, index: int) -> Plan:
    """Plan story `index` of `seed`: draw the plot, the features, the words and every sentence.

    Raises:
        ValueError: if `seed` or `index` is negative.

    >>> plan_story(seed=0, index=3) == plan_story(seed=0, index=3)
    True
    """
    scene = _Scene(seed, index)
    paragraphs = scene.paragraphs()
    asked_for = (scene.verb.lemma, scene.noun.word, scene.adjective)
    return Plan(scene.plot, paragraphs, scene.slots, asked_for, scene.features, scene.pick(phrases.PROMPTS))


class _Scene:
    """The draws of one story, with one method per paragraph."""

    def __init__(self, seed: int, index: int) -> None:
        self.pick, self.draw = pick, draw = _picker(seed, index)
        self.plot = pick(_PLOTS)
        self.tables = _TABLES[self.plot.name]
        self.features = tuple(feature for feature in FEATURES if draw() < FEATURE_PROBABILITY)
        self.noun, verbs = pick(self.tables.objects)
        self.verb = pick(verbs)
        self.adjective = pick(words.CATEGORY_ADJECTIVES[self.noun.category])
        self.slots = Slots(_cast_slots(pick, draw) | _object_slots(pick, self.noun, self.verb, self.adjective))
        oops = OOPS_FOOD if self.noun.category in EDIBLE else OOPS_THINGS
        self.slots["mishap"] = pick(MISHAPS[self.noun.mishap]).format_map(self.slots)
        self.slots["oops"] = pick(oops).format_map(self.slots)
        # The probability of a sentence that the story could do without.  Every feature brings a sentence or two, so
        # that the length of a story (80 to 160 words) tells little about its features.
        # Both numbers were chosen by hand.
        self.optional = 0.85 - 0.13 * len(self.features)

    def paragraphs(self) -> tuple[tuple[Sentence, ...], ...]:
        """Return two to four paragraphs: the first two and the last two are sometimes one."""
        parts = self.opening(), self.event(), self.outcome(), self.end()
        opening, event, outcome, end = map(tuple, parts)  # drawn here, in this order
        first = (opening + event,) if self.draw() < 0.3 else (opening, event)
        last = (outcome + end,) if self.draw() < 0.4 else (outcome, end)
        return first + last

    def opening(self) -> list[Sentence]:
        """Who it is about; what the hero owns; a hint of what comes."""
        pick, draw, plot = self.pick, self.draw, self.plot
        sentences: list[Sentence] = [(pick(self.tables.openings), None)]
        if not plot.owns_object or draw() < self.optional - 0.3:
            sentences.append((pick(phrases.LIKES), None))
        if draw() < self.optional - 0.2:
            sentences.append((pick(phrases.FRIEND_INTRODUCTIONS), None))
            self.slots["pal"] = self.slots["friend"]
        else:
            self.slots["pal"] = f"{self.slots['his']} friend {self.slots['friend']}"
        if plot.owns_object:
            # After the friend's introduction "he" could be the friend, so the object comes first.
            sentences[1:1] = self.object_sentences()
        if "Foreshadowing" in self.features:
            sentences.append((pick(self.tables.foreshadowing), "Foreshadowing"))
        return sentences

    def object_sentences(self) -> Iterator[Sentence]:
        """Name the object with its adjective and the action, and often remark on the adjective."""
        yield self.pick(self.plot.setup), None
        # In the other plots the last thing named is not the object, and "it" would go astray.
        if (self.plot.owns_object or self.plot.name == "found") and self.draw() < self.optional:
            yield self.pick(words.ADJECTIVE_REMARKS[self.adjective]), None

    def event(self) -> Iterator[Sentence]:
        """What happens one day: the problem, what is said about it, the quarrel about it."""
        pick, draw, plot = self.pick, self.draw, self.plot
        yield pick(self.tables.start), None
        if not plot.owns_object:
            yield from self.object_sentences()
        elif draw() < self.optional - 0.1:
            yield pick(phrases.PLAYING), None
            if draw() < self.optional:
                yield self.verb.remarks[0], None
        yield pick(plot.problem), None
        if plot.hero_worries and draw() < self.optional - 0.15:
            yield pick(phrases.WORRIES), None
        if "Dialogue" in self.features:
            yield pick(self.tables.talk), "Dialogue"
            if draw() < 0.95 - 0.1 * len(self.features):
                yield pick(self.tables.replies), "Dialogue"
        if "Conflict" in self.features:
            yield pick(self.tables.quarrels), "Conflict"
            if draw() < 0.5:
                yield pick(phrases.PEACE), "Conflict"

    def outcome(self) -> Iterator[Sentence]:
        """The attempt, how it ends, and the twist."""
        pick, draw, plot = self.pick, self.draw, self.plot
        bad = "BadEnding" in self.features
        yield pick(plot.attempt), None
        yield pick(self.tables.outcomes[bad]), "BadEnding" if bad else None
        twist = "Twist" in self.features
        # Only an object that is there, and not eaten, can turn out to be something else.
        of_object = twist and not bad and self.noun.category not in EDIBLE and draw() < 0.5
        if twist and not of_object:
            yield pick(self.tables.twists[bad]), "Twist"
        if not bad and plot.hero_acts and (of_object or draw() < self.optional):
            celebration = pick(phrases.CELEBRATIONS)
            yield celebration, None
            # After "and Sue clapped", the remark's "she" would be Sue.
            if not of_object and "{friend}" not in celebration and draw() < self.optional:
                yield pick(self.verb.remarks[1:]), None  # the first may stand above
        if of_object:
            yield pick(phrases.TWISTS_WITH_OBJECT), "Twist"

    def end(self) -> Iterator[Sentence]:
        """A last word, the closing sentence and the moral."""
        bad = "BadEnding" in self.features
        if "Dialogue" in self.features and self.draw() < 0.4:
            yield self.pick(self.tables.remarks[bad]), "Dialogue"
        yield self.pick(self.tables.closings[bad]), "BadEnding" if bad else None
        if "MoralValue" in self.features:
            yield self.pick(self.tables.morals), "MoralValue"
