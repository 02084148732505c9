"""Inflections: the forms of an English word, so that `took` in a story counts as the required word `take`.

Own rules and tables, because lemminflect, which lists a word's forms, has had no release since 2022 and ships pickles,
and simplemma gives each form one lemma, for `left`, `felt`, `broke` or `wives` not the required one.  Forms are of
number, tense, person and degree, for any part of speech; a derived word (happily, farmer) is another word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

# A verb, its past and its participle, and the regular past too if it is in use.
VERBS = """
arise arose arisen|awake awoke awoken|be am is are was were been|bear bore born borne|beat beaten|become became
begin began begun|bend bent|bet|bind bound|bite bit bitten|bleed bled|blow blew blown|break broke broken|breed bred
bring brought|build built|burn burnt burned|burst|buy bought|can could|cast|catch caught|choose chose chosen
cling clung|come came|cost|creep crept|cut|deal dealt|dig dug|dive dove dived|do did done does|draw drew drawn
dream dreamt dreamed|drink drank drunk|drive drove driven|dwell dwelt|eat ate eaten|fall fell fallen|feed fed
feel felt|fight fought|find found|fit fitted|flee fled|fling flung|fly flew flown|forbid forbade forbidden
forget forgot forgotten|forgive forgave forgiven|freeze froze frozen|get got gotten|give gave given|go went gone goes
grind ground|grow grew grown|hang hung hanged|have had has|hear heard|hide hid hidden|hit|hold held|hurt|keep kept
kneel knelt kneeled|knit knitted|know knew known|lay laid|lead led|lean leant leaned|leap leapt leaped
learn learnt learned|leave left|lend lent|let|lie lay lain lied|light lit lighted|lose lost|make made|may might
mean meant|meet met|mislead misled|misspell misspelt misspelled|mistake mistook mistaken
misunderstand misunderstood|mow mown mowed|overcome overcame|overhear overheard|oversleep overslept|pay paid
put|quit|read|rebuild rebuilt|repay repaid|retell retold|rewrite rewrote rewritten|rid|ride rode ridden
ring rang rung|rise rose risen|run ran|saw sawn sawed|say said|see saw seen|seek sought|sell sold|send sent|set
sew sewn sewed|shake shook shaken|shall should|shave shaven shaved|shed|shine shone shined|shoot shot
show shown showed|shrink shrank shrunk|shut|sing sang sung|sink sank sunk|sit sat|sleep slept|slide slid|sling slung
slink slunk|slit|smell smelt smelled|sneak snuck sneaked|sow sown sowed|speak spoke spoken|speed sped speeded
spell spelt spelled|spend spent|spill spilt spilled|spin spun|spit spat|split|spoil spoilt spoiled|spread
spring sprang sprung|stand stood|steal stole stolen|stick stuck|sting stung|stink stank stunk|stride strode
strike struck stricken|string strung|strive strove striven|swear swore sworn|sweep swept|swell swollen swelled
swim swam swum|swing swung|take took taken|teach taught|tear tore torn|tell told|think thought|throw threw thrown
thrust|tread trod trodden|understand understood|undo undid undone|unwind unwound|upset|wake woke woken waked
wear wore worn|weave wove woven|weep wept|wet wetted|will would|win won|wind wound|withdraw withdrew withdrawn
wring wrung|write wrote written
"""
NOUNS = """
calf calves|child children|deer|die dice|dwarf dwarves|elf elves|fireman firemen|fisherman fishermen|foot feet
goose geese|grandchild grandchildren|half halves|hoof hooves|knife knives|leaf leaves|life lives|loaf loaves
louse lice|man men|moose|mouse mice|ox oxen|person people|policeman policemen|postman postmen|scarf scarves|self selves
sheep|shelf shelves|bookshelf bookshelves|snowman snowmen|thief thieves|tooth teeth|wife wives|wolf wolves
woman women|werewolf werewolves|mailman mailmen|milkman milkmen|butterfly butterflies
"""
# Adjectives and adverbs with -er and -est.  A rule would derive corner from corn, dinner from din, forest from fore.
DEGREES = """
big black blue bold brave bright brief broad brown calm cheap clean clear clever close cold cool cruel cute damp dark
dear deep dense dim dirty dry dull dumb early faint fair fancy fast fat few fierce fine firm flat fond fresh full funny
gentle grand grave gray great green grey grim gross hard harsh high hot huge humble hungry keen kind lame large late
lazy lean light little long loose loud low lucky mad mean mild narrow near neat new nice noble odd old pale pink plain
polite poor proud pure purple quick quiet rare red rich ripe rough round rude sad safe scary shallow sharp short shy
sick silly simple slim slow small smart smooth soft soon sore sour stale steep stiff still strange strict strong sunny
sure sweet swift tall tame tan tasty tender thick thin tight tiny tough true ugly vague warm weak weird wet white wide
wild wise yellow young
"""
COMPARED = """
good better best|well better best|bad worse worst|ill worse worst|far farther farthest further furthest|much more most
many more most|little less least|old elder eldest
"""

_VOWEL_THEN_CONSONANT = re.compile(r".*(?:[^aeiou]|qu)[aeiou][bcdfgklmnprstvz]")


def _table(text: str) -> dict[str, frozenset[str]]:
    rows = [row.split() for row in text.replace("\n", "|").split("|") if row.strip()]
    found: dict[str, frozenset[str]] = {}
    for word, *forms in rows:
        found[word] = found.get(word, frozenset()) | frozenset(forms)
    return found


_VERBS, _NOUNS, _COMPARED = _table(VERBS), _table(NOUNS), _table(COMPARED)
_DEGREES = frozenset(DEGREES.split())
# Forms that the rules derive and that are other words.
_UNRELATED = _table("even evening|new news|rag ragged|rug rugged|to toes|wick wicked")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, so that `Tim's` is two words.

    >>> words_of("Tim's ice-cream, 3 cups!")
    ['tim', 's', 'ice', 'cream', '3', 'cups']
    """
    return re.findall(r"[^\W_]+", text.lower())


@lru_cache(maxsize=100_000)
def forms_of(word: str) -> frozenset[str]:
    """Return a word with all its inflections.

    >>> sorted(forms_of("take"))
    ['take', 'taken', 'takes', 'taking', 'took']
    >>> sorted(forms_of("hop")), sorted(forms_of("happy"))[:3]
    (['hop', 'hopped', 'hopping', 'hops'], ['happied', 'happier', 'happies'])
    """
    word = word.lower()
    doubled = _doubled(word)
    forms = {word, *_plurals(word), *_endings(word, doubled, "ing")}
    forms |= _VERBS.get(word, frozenset()) | _NOUNS.get(word, frozenset()) | _COMPARED.get(word, frozenset())
    if word not in _VERBS:  # `see` would be seed
        forms |= _endings(word, doubled, "ed")
    if word in _DEGREES or re.fullmatch(r".{2,}[^aeiou]y", word):
        forms |= _endings(word, doubled, "er") | _endings(word, doubled, "est")
    return frozenset(forms - _UNRELATED.get(word, frozenset()))


def _doubled(word: str) -> tuple[str, ...]:
    """Return a word's stems before an ending with a vowel: hopp- of hop, visit- and visitt- of visit."""
    if not _VOWEL_THEN_CONSONANT.fullmatch(word):
        return (f"{word}k",) if word.endswith("ic") else (word,)
    syllables = len(re.findall(r"[aeiouy]+", word.replace("qu", "q")))
    doubled = word + word[-1]
    if syllables == 1:
        return (doubled,)
    return (word, doubled, f"{word}k") if word.endswith("c") else (word, doubled)


def _plurals(word: str) -> set[str]:
    if re.search(r"(?:s|x|z|ch|sh)$", word):
        return {f"{word}es", f"{word}{word[-1]}es"} if word[-1] in "sz" else {f"{word}es"}
    if re.search(r"[^aeiou]y$", word):
        return {f"{word[:-1]}ies"}
    return {f"{word}s", f"{word}es"} if re.search(r"[^aeiou]o$", word) else {f"{word}s"}


def _endings(word: str, doubled: tuple[str, ...], ending: str) -> set[str]:
    """Return a word with -ed, -er, -est or -ing."""
    if ending == "ing":
        if word.endswith("ie"):
            return {f"{word[:-2]}ying"}
        kept = re.search(r"(?:ee|oe|ye)$|^be$", word)
        return {f"{word}ing"} if kept else {f"{stem.removesuffix('e')}ing" for stem in doubled}
    if word.endswith("e"):
        return {word + ending[1:]}
    if re.search(r"[^aeiou]y$", word):
        return {f"{word[:-1]}i{ending}"} | ({word + ending} if len(word) < 4 else set())  # shier and shyer
    return {stem + ending for stem in doubled}


class StoryWords:
    """The words of a text, to test which words it uses in any form.

    >>> story = StoryWords("The mice took two ice creams.")
    >>> [story.uses(word) for word in ("mouse", "Take", "ice-cream", "cream cake", "cat")]
    [True, True, True, False, False]
    """

    def __init__(self, text: str) -> None:
        self.words = words_of(text)
        self._different = frozenset(self.words)

    def uses(self, word: str) -> bool:
        """Return whether the text has a word in any form; of several parts, in sequence."""
        *first, last = words_of(word) or [""]
        if not first:
            return not forms_of(last).isdisjoint(self._different)
        places = range(len(self.words) - len(first))
        return any(
            self.words[at : at + len(first)] == first and self.words[at + len(first)] in forms_of(last) for at in places
        )

    def share_used(self, words: Sequence[str]) -> float | None:
        """Return the share of distinct words that the text uses; None without words."""
        asked = sorted({" ".join(words_of(word)) for word in words} - {""})
        return sum(map(self.uses, asked)) / len(asked) if asked else None
