"""The words of the generated stories: names, animals, nouns, verbs, adjectives, places, helpers.

Every noun lists the verbs that it affords, and its category lists the adjectives that fit it, so that a
draw can never ask for a sentence such as "the cat opened the lake".  Sentences that use these words are in
`thing_plots.py` and `friend_plots.py` (events) and `phrases.py` (the six features); `plans.py` puts them together.

Remarks on verbs and adjectives are sentence templates.  Their slots are those of `plans.py`:
`{hero}`, `{he}`, `{him}`, `{his}`, `{He}`, `{His}`, `{hand}` (an animal has a paw), `{noun}`.
"""

import re
from typing import NamedTuple

from lm_trials.stories.generated.plots import alternatives

BOY_NAMES, GIRL_NAMES, TRAITS = (
    tuple(words.split())
    for words in (
        "Tim Tom Ben Max Sam Leo Jack Finn Billy Charlie Danny Jimmy Joe Luke Mark Oscar Peter Toby",
        "Lily Mia Anna Sue Amy Lucy Sara Emma Ella Daisy Jane Kate Lola Molly Nina Sally Zoe Clara",
        "kind brave happy shy curious clever silly quiet little friendly gentle small cheerful young eager",
    )
)

# animal -> what it holds things with
ANIMALS = {
    "cat": "paw", "dog": "paw", "rabbit": "paw", "bear": "paw", "fox": "paw", "mouse": "paw",
    "squirrel": "paw", "hedgehog": "paw", "monkey": "hand", "frog": "hand", "pig": "foot", "duck": "wing",
    "bird": "wing", "penguin": "wing",
}  # fmt: skip

LIKES = alternatives("""
  sing in the morning / look at the clouds / play in the sun / tell funny jokes / count the stars / splash in puddles
  pick berries / listen to stories / roll down the hill / look for bugs / make new friends / dance in the rain
  run with the wind / play hide and seek / watch the birds / build towers
""")

DAYS = alternatives("""
  day / morning / afternoon / sunny day / warm day / bright morning / windy day / summer day / spring morning
  fine day / quiet afternoon / cool morning
""")

JUNK = alternatives("""
  an old sock / a sleepy snail / some dry leaves / a little bug / two gray pebbles / an empty bottle / a spider
  a muddy spoon
""")

PARENTS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}

# Helpers are never of a hero's kind, so that "the owl" can only mean one animal.
HELPERS = {
    "owl": ("an old owl", "he"), "farmer": ("a kind farmer", "he"), "baker": ("a friendly baker", "she"),
    "teacher": ("a nice teacher", "she"), "goat": ("a wise goat", "he"), "cow": ("a gentle cow", "she"),
    "horse": ("a tall horse", "he"), "deer": ("a shy deer", "she"), "gardener": ("an old gardener", "he"),
    "beaver": ("a busy beaver", "she"), "neighbor": ("a cheerful neighbor", "she"),
    "sailor": ("a strong sailor", "he"),
}  # fmt: skip

BABIES = ("lamb", "chick", "kitten", "puppy", "fawn", "piglet")
CRYING_REASONS = alternatives("""
  had lost its mother / could not find its way home / was all alone / was cold and scared
""")


class Place(NamedTuple):
    """A place outside, with the spots where a thing can lie there."""

    inside: str
    toward: str
    spots: tuple[str, ...]


_PLACES = """
in the park, to the park: under a bench / behind a tree / near the gate / in the grass
in the garden, to the garden: under a bush / behind the shed / by the fence / near the roses
in the forest, to the forest: under a log / behind a tree / near a path / in the moss
at the beach, to the beach: under a towel / behind a rock / near the water / in the sand
on the farm, to the farm: behind the barn / by the fence / near the well / in the hay
in the meadow, to the meadow: under a bush / behind a rock / near a brook / in the tall grass
at the playground, to the playground: under the slide / behind the swing / by the wall / in the sand
by the lake, to the lake: under an old boat / behind a rock / near the water / in the reeds
by the pond, to the pond: under a bush / behind a log / near the ducks / in the reeds
on the hill, to the hill: under an oak / behind a rock / near the path / in the tall grass
at the market, to the market: under a table / behind a cart / near a shop / by the wall
in the village, to the village: under a bench / behind a house / near the well / by the wall
"""
PLACES = tuple(
    Place(inside, toward, alternatives(spots)) for inside, toward, spots in re.findall(r"(.+?), (.+?): (.+)", _PLACES)
)


class Verb(NamedTuple):
    """What one does with an object: `base` and `past` with their preposition, and what comes of it."""

    base: str
    past: str
    remarks: tuple[str, ...]

    @property
    def lemma(self) -> str:
        """The verb as the record names it: without the preposition."""
        return self.base.split()[0]


_VERBS = """
throw, threw: It flew high into the air. / It went up and up and came down again.
catch, caught: {He} did not drop it once. / It landed right in {his} arms.
kick, kicked: It went very far. / It rolled and rolled until it stopped.
roll, rolled: It went round and round. / It made a soft sound on the ground.
bounce, bounced: It went up and down, up and down. / It jumped like a little frog.
chase, chased: It was always a little faster than {him}. / {He} ran and ran and laughed.
push, pushed: It moved slowly over the ground. / {He} used both arms and all {his} strength.
pull, pulled: It came along behind {him}. / {He} took big, slow steps.
ride, rode: The wind blew in {his} face. / {He} went faster and faster.
hug, hugged: It made {him} feel warm and safe. / It was the best hug of all.
light, lit: It was as bright as day. / A warm light fell on everything.
carry, carried: {He} was careful with every step. / It was not easy, but it was fun.
wash, washed: There were bubbles everywhere. / Soon it was nice and clean.
clean, cleaned: Soon there was no dust on it. / {He} wiped every part of it.
paint, painted: Soon there was paint on {his} nose. / {He} made little dots and long lines.
draw, drew: The picture looked just right. / {He} used all of {his} crayons.
open, opened: {He} looked inside and smiled. / {He} did it very slowly.
fill, filled: Soon it was full to the top. / {He} put berries and pebbles in it.
shake, shook: It made a funny sound. / Something inside went click, click, click.
ring, rang: The sound was loud and clear. / Ding, dong, it went.
play, played: The music was loud and clear. / Everyone could hear the happy song.
blow, blew: It made a loud toot. / The birds sang along.
read, read: The words were fun to say. / {He} looked at every page twice.
study, studied: {He} looked at every line. / There was so much to see on it.
wear, wore: It was just the right size. / {He} felt like a star. / {He} turned around and around.
eat, ate: It was the best thing {he} had ever tasted. / {He} licked {his} lips.
share, shared: Everyone got a piece. / It tasted even better that way.
cut, cut: All the pieces were the same size. / {He} was very careful.
smell, smelled: It smelled so very sweet. / It made {his} nose happy.
plant, planted: Soon a small green leaf came up. / {He} gave it some water and a kiss.
water, watered: Every drop made it a little stronger. / It lifted its head to the sun.
fly, flew: It danced in the wind. / It went up to the clouds.
sail, sailed: It floated like a duck. / The little waves made it rock.
drive, drove: It went around every corner. / Beep, beep, it went.
spin, spun: It went round and round. / It turned so fast that {he} felt dizzy.
polish, polished: {He} rubbed it until {he} could see {his} face in it. / Soon it sparkled.
touch, touched: It felt nice under {his} {hand}. / {He} did it very gently.
wave, waved: It moved like a bird in the wind. / Everyone could see it from far away.
tie, tied: {He} made a big bow. / The knot was good and strong.
fold, folded: {He} made it as small as a book. / Every corner was neat.
squeeze, squeezed: It felt so nice. / It made a soft, funny sound.
drag, dragged: It left a long line on the ground. / It was hard work.
lift, lifted: {He} felt very strong. / {He} held it up over {his} head.
sing to, sang to: {His} song was soft and sweet. / The song had a happy end.
talk to, talked to: {He} told it all {his} secrets. / {He} had a lot to say.
dance with, danced with: {His} feet moved fast. / They went round and round.
run with, ran with: {His} feet were very fast. / The wind blew in {his} face.
jump over, jumped over: {His} feet hardly touched the ground. / {He} went higher every time.
sit on, sat on: It was a good place to rest. / {He} felt very cozy.
look at, looked at: {He} saw every little line on it. / {He} could look at it all day.
drink from, drank from: The water was cool and sweet. / {He} did not spill a drop.
"""
VERBS = {
    base: Verb(base, past, alternatives(remarks)) for base, past, remarks in re.findall(r"(.+?), (.+?): (.+)", _VERBS)
}

# Verbs that one has to learn: the plot about practice uses only these.
SKILLS = alternatives("""
  throw / catch / kick / bounce / ride / paint / draw / play / blow / read / fly / sail / drive / spin / tie / fold
  jump over
""")


class Noun(NamedTuple):
    """A thing.  `mishap` says how it gets stuck (light, heavy, small); `breaks` whether it can break."""

    word: str
    category: str
    mishap: str
    breaks: bool
    verbs: tuple[str, ...]


def _noun(word: str, category: str, mishap: str, breaks: bool, verbs: str) -> Noun:
    return Noun(word, category, mishap, breaks, tuple(verbs.split(", ")))


NOUNS = (
    _noun("ball", "toy", "light", False, "throw, catch, kick, roll, bounce, chase"),
    _noun("balloon", "toy", "light", False, "catch, chase, run with"),
    _noun("kite", "toy", "light", True, "fly, chase, paint, run with"),
    _noun("hoop", "toy", "heavy", True, "roll, spin, chase, throw"),
    _noun("top", "toy", "small", True, "spin, paint"),
    _noun("truck", "toy", "heavy", True, "push, pull, drive, wash, paint"),
    _noun("train", "toy", "heavy", True, "push, pull, drive, paint"),
    _noun("car", "toy", "heavy", True, "push, drive, wash, paint"),
    _noun("boat", "toy", "heavy", True, "sail, paint, wash, pull"),
    _noun("robot", "toy", "heavy", True, "talk to, dance with, paint, clean"),
    _noun("flag", "toy", "light", False, "wave, paint, run with"),
    _noun("rope", "tool", "light", False, "pull, jump over, tie, spin"),
    _noun("umbrella", "tool", "light", True, "open, spin, dance with"),
    _noun("doll", "cuddly", "light", True, "hug, talk to, dance with, sing to, wash"),
    _noun("teddy", "cuddly", "light", False, "hug, squeeze, talk to, sing to, carry"),
    _noun("puppet", "cuddly", "light", True, "talk to, dance with, sing to"),
    _noun("blanket", "cuddly", "light", False, "fold, wash, hug, sit on"),
    _noun("pillow", "cuddly", "light", False, "hug, squeeze, carry, sit on"),
    _noun("drum", "music", "heavy", True, "play, paint, carry"),
    _noun("flute", "music", "small", True, "play, polish, carry"),
    _noun("horn", "music", "small", True, "blow, polish, carry"),
    _noun("whistle", "music", "small", True, "blow, polish, carry"),
    _noun("bell", "music", "small", True, "ring, shake, polish"),
    _noun("wagon", "vehicle", "heavy", True, "push, pull, ride, paint"),
    _noun("bike", "vehicle", "heavy", True, "ride, wash, push, paint"),
    _noun("cart", "vehicle", "heavy", True, "push, pull, ride, drag"),
    _noun("scooter", "vehicle", "heavy", True, "ride, clean, push"),
    _noun("hat", "clothes", "light", False, "wear, throw, catch, wave"),
    _noun("coat", "clothes", "light", False, "wear, wash, fold"),
    _noun("scarf", "clothes", "light", False, "wear, wave, tie, wash, fold"),
    _noun("cape", "clothes", "light", False, "wear, wave, wash, run with"),
    _noun("mask", "clothes", "light", True, "wear, paint"),
    _noun("ribbon", "clothes", "light", False, "wave, tie, dance with"),
    _noun("mitten", "clothes", "light", False, "wear, wash, squeeze"),
    _noun("crown", "treasure", "small", True, "wear, polish"),
    _noun("necklace", "treasure", "small", True, "wear, polish, touch"),
    _noun("coin", "treasure", "small", False, "polish, spin, roll"),
    _noun("key", "treasure", "small", False, "polish, look at"),
    _noun("mirror", "treasure", "small", True, "clean, polish, look at"),
    _noun("lamp", "treasure", "small", True, "light, clean, polish"),
    _noun("clock", "treasure", "small", True, "clean, polish, look at"),
    _noun("cup", "dish", "small", True, "fill, wash, paint, drink from"),
    _noun("bowl", "dish", "small", True, "fill, wash, paint"),
    _noun("spoon", "dish", "small", False, "wash, polish, wave"),
    _noun("box", "container", "heavy", True, "open, lift, paint, shake, sit on"),
    _noun("basket", "container", "light", True, "fill, lift, carry"),
    _noun("bag", "container", "light", False, "open, fill, carry"),
    _noun("bucket", "container", "heavy", True, "fill, wash, paint, carry"),
    _noun("jar", "container", "small", True, "open, fill, shake"),
    _noun("book", "paper", "light", False, "read, open, carry"),
    _noun("letter", "paper", "light", False, "read, open, fold"),
    _noun("map", "paper", "light", False, "study, fold, draw"),
    _noun("stone", "nature", "small", False, "polish, roll, paint, throw"),
    _noun("shell", "nature", "small", True, "touch, look at, wash, draw"),
    _noun("feather", "nature", "light", False, "touch, wave, draw"),
    _noun("leaf", "nature", "light", False, "draw, wave, paint"),
    _noun("stick", "nature", "small", True, "wave, throw, drag, lift"),
    _noun("seed", "plant", "small", False, "plant, touch, look at"),
    _noun("flower", "plant", "light", False, "smell, water, draw, touch"),
    _noun("rose", "plant", "light", False, "smell, water, draw, plant"),
    _noun("cake", "food", "heavy", False, "eat, share, cut, smell"),
    _noun("pie", "food", "heavy", False, "eat, share, cut, smell"),
    _noun("cookie", "food", "small", False, "eat, share, smell"),
    _noun("muffin", "food", "small", False, "eat, share, smell"),
    _noun("sandwich", "food", "small", False, "eat, share, cut"),
    _noun("apple", "fruit", "small", False, "eat, share, wash, cut"),
    _noun("pear", "fruit", "small", False, "eat, share, wash, smell"),
    _noun("peach", "fruit", "small", False, "eat, share, smell, cut"),
    _noun("melon", "fruit", "heavy", False, "eat, share, cut, lift"),
)

_COLORS = "red blue green yellow pink purple orange white black brown"
CATEGORY_ADJECTIVES = {
    category: tuple(adjectives.split())
    for category, adjectives in {
        "toy": f"{_COLORS} big little shiny new old funny special wonderful",
        "tool": f"{_COLORS} big long new old strong special",
        "cuddly": f"{_COLORS} soft fluffy big little old new pretty lovely",
        "music": "shiny golden silver loud new old little lovely special",
        "vehicle": f"{_COLORS} big fast shiny new old strong",
        "clothes": f"{_COLORS} warm soft fancy pretty old new funny",
        "treasure": "shiny golden silver old bright tiny heavy special beautiful",
        "dish": "blue white yellow green golden silver shiny pretty old tiny",
        "container": f"{_COLORS} heavy big old little strange",
        "paper": "old new strange special wonderful long thin funny",
        "nature": "smooth tiny pretty strange white brown special unusual beautiful",
        "plant": "tiny little pretty strange special beautiful unusual",
        "food": "sweet big yummy tasty warm fresh round lovely",
        "fruit": "juicy sweet big fresh yummy round tasty",
    }.items()
}

# adjective -> what the hero notices about it; the noun is the last thing named, so "it" is clear.
ADJECTIVE_REMARKS = {
    "red": ("It was as red as a strawberry.", "Red was the color that {hero} loved most."),
    "blue": ("It was as blue as the sky.", "Blue was the color that {hero} loved most."),
    "green": ("It was as green as the grass.", "Green was the color that {hero} loved most."),
    "yellow": ("It was as yellow as the sun.", "Yellow was the color that {hero} loved most."),
    "pink": ("It was as pink as a little pig.", "Pink was the color that {hero} loved most."),
    "purple": ("It was as purple as a plum.", "Purple was the color that {hero} loved most."),
    "orange": ("It was as orange as a carrot.", "Orange was the color that {hero} loved most."),
    "white": ("It was as white as snow.", "It was white like a cloud."),
    "black": ("It was as black as the night.", "It was black like a crow."),
    "brown": ("It was as brown as a nut.", "It was brown like a bear."),
    "golden": ("It looked like a piece of the sun.", "It was as golden as honey."),
    "silver": ("It looked like a piece of the moon.", "It was as silver as a fish."),
    "big": ("It was bigger than {his} head.", "{He} had never seen one so big."),
    "little": ("It was not much bigger than a bird.", "{He} liked it because it was so little."),
    "tiny": ("It was so tiny that {he} had to look twice.", "It was not much bigger than a bee."),
    "shiny": ("It shone like a star.", "{He} could see {his} face in it."),
    "bright": ("It was as bright as a star.", "{He} had to close {his} eyes a little."),
    "new": ("There was not one scratch on it.", "It still smelled like the shop."),
    "old": ("It was older than {his} grandma.", "It had seen many summers."),
    "funny": ("It made {him} laugh every time.", "Everyone who saw it had to giggle."),
    "special": ("There was no other one like it.", "{He} knew that it was special."),
    "wonderful": ("{He} had never seen anything so nice.", "It made {his} heart jump."),
    "lovely": ("{He} smiled every time {he} saw it.", "It made the whole day better."),
    "pretty": ("{He} thought it was as pretty as a butterfly.", "Everyone looked at it."),
    "beautiful": ("It was the most beautiful thing {he} knew.", "{He} could not look away."),
    "strange": ("{He} had never seen one like it.", "Nobody knew where it came from."),
    "unusual": ("{He} had never seen one like it.", "No two were the same."),
    "soft": ("It was as soft as a kitten.", "{He} liked to put {his} cheek on it."),
    "fluffy": ("It was as fluffy as a cloud.", "It felt like a little sheep."),
    "warm": ("It was as warm as a summer day.", "It felt warm in {his} {hand}."),
    "fancy": ("It looked like something for a queen.", "It had tiny stars on it."),
    "long": ("It was so long that it had almost no end.", "{He} had never seen one so long."),
    "thin": ("It was as thin as a leaf.", "{He} could almost see through it."),
    "strong": ("It was strong like a horse.", "It looked as strong as a tree."),
    "fast": ("It was as fast as the wind.", "Nothing could catch it."),
    "loud": ("It was louder than a lion.", "Everyone could hear it from far away."),
    "heavy": ("It was as heavy as a rock.", "{His} arms got tired from it."),
    "smooth": ("It was as smooth as glass.", "{He} liked how it felt in {his} {hand}."),
    "sweet": ("It smelled like honey.", "It was sweeter than candy."),
    "yummy": ("It made {his} tummy rumble.", "It smelled so good."),
    "tasty": ("It looked so good that {he} licked {his} lips.", "It smelled so good."),
    "fresh": ("It was from that very morning.", "It smelled so good."),
    "juicy": ("It was full of sweet juice.", "The juice ran over {his} chin."),
    "round": ("It was as round as the moon.", "It was as round as a wheel."),
}

_missing = {word for words in CATEGORY_ADJECTIVES.values() for word in words} - set(ADJECTIVE_REMARKS)
assert not _missing, f"adjectives without a remark: {_missing}"
