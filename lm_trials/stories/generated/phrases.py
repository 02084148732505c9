"""Sentences of the generated stories that belong to no single plot: frames, feelings, the six features.

Slots in braces are filled for each story (listed in `plans.py`).  Slots in angle brackets are filled
once, at import: `<U>` an utterance, `<S>` and `<L>` speaker and listener, `<A>` what a quarrel is about,
`<M>` a moral.  `detectors.py` recognizes the frames of the features, whatever fills their slots.
"""

from lm_trials.stories.generated.plots import alternatives

OPENINGS = alternatives("""
  Once upon a time, there was {a_kind} named {hero}. / Once upon a time, there lived {a_kind} whose name was {hero}.
  There once was {a_kind} named {hero}. / {hero} was {a_kind}. / {hero} was {a_kind} who lived in a cozy house.
  Long ago, {a_kind} named {hero} lived near a big forest. / In a little town, there lived {a_kind} called {hero}.
  Once there was {a_kind} called {hero}. / Far away, behind the hills, there lived {a_kind} named {hero}.
  {hero} was {a_kind} who lived with {his} {parent}.
""")
LIKES = alternatives("""
  {He} liked to {like}. / {He} loved to {like}. / {He} liked to {like} all day long. / Every day, {he} liked to {like}.
  In the summer, {he} loved to {like}.
""")
FRIEND_INTRODUCTIONS = alternatives("""
  {His} best friend was {a_friend_kind} named {friend}. / {He} had a good friend, {a_friend_kind} called {friend}.
  {friend}, {a_friend_kind}, was {his} best friend.
""")
OUTINGS = alternatives("""
  One {day}, {hero} went {to_place} with {pal}. / One {day}, {hero} and {pal} went {to_place}.
  One {day}, {hero} and {pal} were {in_place}. / One {day}, {hero} took {pal} {to_place}.
  One {day}, {hero} met {pal} {in_place}. / One {day}, {hero} and {pal} walked {to_place}.
  It was a {weather} {time}, so {hero} and {pal} went {to_place}.
  It was a {weather} {time}, and {hero} was {in_place} with {pal}.
""")
VISITS = alternatives("""
  One {day}, {pal} came to play with {hero}. / One {day}, {hero} was at home with {pal}.
  One {day}, {hero} and {pal} played in the kitchen.
  It was a {weather} {time}, and {hero} and {pal} were alone in the house.
  One {day}, {hero} asked {pal} to come to {his} house.
""")
WEATHER = ("sunny", "warm", "windy", "bright", "cool", "quiet", "lovely")
TIMES = ("day", "morning", "afternoon")
PLAYING = ("There {hero} {did}.", "First, {hero} {did}.", "{hero} {did} for a while.")
WORRIES = alternatives("""
  {hero} felt sad. / {hero} did not know what to do. / {hero} felt a lump in {his} throat. / {hero} was very worried.
  A tear rolled down {hero}'s cheek. / {hero} took a deep breath. / {hero} looked at the ground.
""")
CELEBRATIONS = alternatives("""
  At last, {hero} {did}. / {hero} smiled and {did}. / {hero} {did}, and {friend} clapped.
  Then {hero} {did}, and it was a lot of fun. / With a happy heart, {hero} {did}. / {hero} laughed and {did}.
""")
HAPPY_CLOSINGS = alternatives("""
  {hero} and {friend} went home with big smiles. / {hero} was the happiest {kind} in the whole town.
  It was the best day of all. / {hero} hugged {friend}, and they were both very happy.
  That night, {hero} fell asleep with a smile. / {hero} told {his} {parent} about it, and {his} {parent} was proud.
  They laughed and played until the sun went down. / From then on, {hero} and {friend} were the best of friends.
  And they lived happily ever after. / {hero} smiled all the way home.
  Then they all sat down and had warm milk and cookies. / {hero} thanked {friend} and danced all the way home.
  {hero} could not wait to come back {to_place}.
""")

# --- BadEnding: the plot says what goes wrong, one of these closes the story.
SAD_CLOSINGS = alternatives("""
  {hero} went home alone and cried all night. / {hero} walked home in tears.
  That night, {hero} cried until {he} fell asleep. / It was the saddest day of {his} life.
  It was the worst day that {hero} and {friend} ever had. / There was no happy end for {hero} and {friend}.
  So the story of {hero} has no happy end. / Nothing could make {hero} smile after that.
  Nothing {his} {parent} did could make {hero} happy again. / {hero} did not laugh for a long, long time.
  {hero} did not go back {to_place} for a long, long time. / {hero} went to bed with a heavy heart.
  With a heavy heart, {hero} and {friend} went home. / {hero} sat all alone in the dark and wept.
  Nobody came to dry {hero}'s tears.
""")

# --- MoralValue: frame x the morals of the plot.
MORAL_FRAMES = alternatives("""
  The moral of the story is to <M>. / The moral is that you should <M>. / {hero} learned that it is good to <M>.
  {hero} had learned one thing: <M>. / From that day on, {hero} knew that it is important to <M>.
  From that day on, {hero} knew how good it is to <M>. / And so they all learned a lesson: <M>.
  That day taught {hero} a lesson: <M>. / This story teaches us to <M>. / Always remember to <M>.
  So, little one, never forget to <M>.
""")

# --- Foreshadowing: the end of the first paragraph hints at what comes.
FORESHADOWING = alternatives("""
  {hero} did not know it yet, but this day would be like no other.
  {hero} did not know it yet, but something was about to happen. / Little did {hero} know what was waiting {in_place}.
  Little did {hero} know that everything would soon change.
  {hero} had a strange feeling that something was about to happen.
  {His} {parent} had a strange feeling that this day would not be like the others.
  {a_crow} looked at {hero} and shook its head, as if it knew what would come.
  The wind whispered in the trees, as if it knew what would come.
  Soon {hero} would find out that {a_thing} can change a whole day.
  Soon {hero} would find out how much can happen in one day. / Nobody could guess what was going to happen {in_place}.
  Far away, dark clouds came together, like a sign of things to come.
  A single black feather fell on the path, like a sign of things to come.
  Later, {hero} would often think of this quiet moment. / Later, {his} {parent} would often think of this quiet moment.
""")
OMEN_ANIMALS = ("A crow", "A big black crow", "An old toad", "A gray cat", "A wise raven")
SMALL_THINGS = ("one small thing", "a little mistake", "a single step", "one small choice")

# --- Conflict: a quarrel over what the plot is about, and sometimes peace.
QUARREL_FRAMES = alternatives("""
  Then {hero} and {friend} had a big fight <A>. / Soon {hero} and {friend} began to fight <A>.
  But {hero} and {friend} began to argue <A>. / They argued <A> for a long time.
  {hero} shouted at {friend}, and {friend} shouted at {hero}, all <A>.
  Then they quarreled <A>, and their faces turned red.
  {friend} got angry <A> and pushed {hero}, and {hero} pushed {friend} back.
  {hero} and {friend} could not agree <A>, and neither would give in.
  {friend} stamped {fhis} foot and yelled <A>, and {hero} yelled even louder.
  {hero} called {friend} a bad name, and they started to fight <A>.
""")
PEACE = alternatives("""
  After a while, they were both sorry and made peace. / Then they were tired of being angry and shook hands.
  For a long time, they did not look at each other. / Then {friend} said sorry, and {hero} said sorry too.
""")

# --- Twist: these fit any plot.  The first set needs the object at hand.
TWISTS_WITH_OBJECT = alternatives("""
  But the {noun} was not {a_bare_noun} at all; it was {really}!
  Then they saw that the {noun} was not really {a_bare_noun} at all. It was {really}!
  It turned out that the {noun} was really {really}!
  To everyone's surprise, the {noun} opened two tiny eyes and yawned!
  To everyone's surprise, the {noun} began to glow, and a tiny fairy flew out!
  Nobody had guessed that the {noun} was magic, but now it began to float! / The {noun} had been {really} all along!
""")
TWISTS_ANYWHERE = alternatives("""
  Then came a big surprise: {friend} was {a_royal} in disguise!
  It turned out that {friend} was {a_royal} who wanted to have a real friend!
  It turned out that the {noun} had once belonged to {a_royal}! / Nobody had guessed that {friend} was {a_royal}!
  Then an old man took off his beard. It was {his} {parent} in disguise!
  A stranger in a long coat came closer, but it was not a stranger at all; it was {his} {parent}!
  To everyone's surprise, {his} {parent} came around the corner. {Phe} had seen it all!
  {His} {parent} had been watching them all along!
""")
REALLY = {
    "toy": ("a gift from a wizard", "a sleeping baby dragon", "a ship from the moon"),
    "tool": ("a magic wand", "a very long snake", "a gift from a wizard"),
    "cuddly": ("a sleeping cat", "a shy little monster", "a baby cloud"),
    "music": ("a wizard's toy", "a house for three crickets", "a magic lamp"),
    "vehicle": ("a magic carpet", "a robot from the moon", "a king's lost carriage"),
    "clothes": ("a sleeping cat", "a magic carpet", "a bird with closed wings"),
    "treasure": ("a piece of a star", "a dragon's tooth", "a gift from a wizard"),
    "dish": ("a giant's ring", "a boat for a mouse", "a piece of the moon"),
    "container": ("a house for a mouse", "a door to another land", "a turtle in its shell"),
    "paper": ("a note from a king", "a magic carpet for a mouse", "a butterfly with big wings"),
    "nature": ("a dragon egg", "a fairy's bed", "a piece of a star"),
    "plant": ("a sleeping fairy", "a tiny green frog", "a magic lamp"),
    "food": ("a hat that looked like food", "a big bar of soap", "a painted pillow"),
    "fruit": ("a toy from the shop", "a painted stone", "a candle"),
}
ROYALS = {
    "he": ("a prince", "a real king", "a young wizard", "the son of a giant"),
    "she": ("a princess", "a real queen", "a young fairy", "the daughter of a giant"),
}

# --- Dialogue: frames by the kind of sentence that is spoken.
SPEECH_FRAMES = {
    ".": ('"<U>," said <S>.', '<S> said, "<U>."', '"<U>," <S> told <L>.', '<S> whispered to <L>, "<U>."'),
    "?": ('"<U>?" asked <S>.', '<S> asked <L>, "<U>?"', '"<U>?" <S> asked softly.'),
    "!": ('"<U>!" cried <S>.', '<S> shouted, "<U>!"', '"<U>!" <S> called.', '<S> cried out, "<U>!"'),
}
REPLIES = alternatives("""
  I will help you. / I am not sure, but we can try. / Do not be scared, I am with you. / We will find a way.
  Yes, let us try it! / I have an idea! / Why do you not ask {a_helper}? / Let us start right now!
""")
GOOD_REMARKS = alternatives("""
  This is the best day ever! / Thank you, my friend! / What a wonderful day! / I am so happy that you are my friend.
  I will never forget this day. / Can we play again tomorrow?
""")
BAD_REMARKS = alternatives("""
  I am so sorry. / I want to go home. / It is all my fault. / Oh no, what have we done! / This is not fair!
  Why did this happen to me?
""")

# --- The record's prompt, in our own words.
PROMPTS = (
    "Write a short story with very simple words, for a child of 3 years. Use the verb "
    '"{v}", the noun "{n}" and the adjective "{a}" somewhere in it.{f} Keep every word simple!',
    'Tell a short story that a 3 year old child can follow. The verb "{v}", the noun "{n}" and the '
    'adjective "{a}" have to be in it.{f} Only simple words, please!',
)
FEATURE_REQUESTS = {
    "Dialogue": "somebody speaks",
    "Twist": "there is a twist",
    "BadEnding": "the end is a bad one",
    "MoralValue": "there is a moral",
    "Foreshadowing": "something is foreshadowed",
    "Conflict": "there is a conflict",
}
