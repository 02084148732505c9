"""Plots about what happens to a thing: it is lost, found, stuck or broken."""

from lm_trials.stories.generated.plots import alternatives, plots

THING_PLOTS = plots("""
name: lost
categories: playthings
problem: {hero} put the {noun} down for a moment. When {he} looked again, it was gone.
  They played hide and seek, and {hero} forgot the {noun}. Then {he} could not find it.
  After a while, {hero} saw that the {noun} was missing.
  They heard a loud noise and ran to look. When they came back, the {noun} was gone.
  {hero} wanted to get the {noun}, but it was not where {he} had left it.
  Then {hero} turned around, and the {noun} was not there.
attempt: They looked {spot2} and {spot3}, but the {noun} was not there.
  {friend} looked {spot2}, and {hero} looked {spot3}. They only found {junk}.
  They asked {a_helper}, and {helper} looked {spot2}. / First they looked {spot2}. Then they looked {spot3}.
  {hero} looked {spot2}, but there was only {junk}.
good: At last, {friend} found the {noun} {spot}. / Then {hero} saw something {spot}. It was the {adj} {noun}!
  {A_helper2} came by and pointed at something {spot}. It was the {noun}!
  Then {friend} looked {spot}, and there was the {adj} {noun}.
  {A_helper2} had found the {noun} {spot} and gave it back to {hero}.
bad: They looked all day, but they never found the {noun}. / Then it got dark, and the {noun} was gone for good.
  They saw that the {noun} had fallen into a river, and the water took it away.
  At last they found it {spot}, but it was all ruined.
twists_good: But it was not lost at all; {friend} had hidden it for a game!
  It turned out that a baby bird had taken it to play with it! / Nobody had guessed that a mouse had used it as a bed!
twists_bad: But the {noun} was not lost at all; {friend} had sold it!
  It turned out that {friend} had taken the {noun}!
talk: Have you seen my {noun}? / Where is my {adj} {noun}? / Oh no, my {noun} is gone! / I cannot find my {noun}.
  Can you help me look for the {noun}?
quarrels: about the {noun} / about where to look / about who had lost the {noun}
morals: take care of your things / ask for help / never give up / help a friend who is sad
summaries: {hero} loses {a_noun} {in_place} and finds it again with {friend}.
  {hero} loses {a_noun} {in_place} and never gets it back.

name: found
categories: playthings plant
traits: no hero_worries
setup: There {hero} saw {a_noun} {spot}. {He} wanted to {do_it} right away.
  {friend} stopped and pointed at {a_noun} {spot}. {hero} wanted to {do} at once.
  {hero} looked {spot} and found {a_noun}. {He} could not wait to {do_it}.
  Suddenly {hero} found {a_noun} {spot}. How {he} wanted to {do_it}!
  Someone had left {a_noun} {spot}. {hero} wanted to take it home and {do_it}.
problem: But whose {noun} was it? / But the {noun} did not belong to {him}.
  But {he} knew that someone must be missing it. / But {he} did not know who had left it there.
  But was it right to take it?
attempt: They went from house to house and showed the {noun} to everyone.
  They asked {a_helper}, but {helper} had never seen the {noun} before.
  They waited {seat} the whole morning, but nobody came. / They sat down {seat} and waited for someone to come.
  {hero} made a big sign, and {friend} put it {spot2}.
good: Then they met {a_helper2}, who had lost the {noun}. {Helper2} let {hero} keep it.
  The {noun} belonged to {a_helper2}, who thanked them and gave it to {hero} as a gift.
  Nobody came for the {noun}, so {hero} was allowed to keep it.
  At last, {a_helper2} came and thanked them. {Helper2} let {hero} keep the {noun}.
bad: Then {hero} tripped, and the {noun} fell into a deep river and was gone.
  In the end, a big dog grabbed the {noun} and ran away with it. / Then a thief came by, took the {noun} and ran away.
  They waited too long. It began to rain hard, and the water took the {noun} away.
twists_good: It turned out that {friend} had put it there for {hero}!
  But it was not lost at all; {his} {parent} had left it there for {him}!
twists_bad: It turned out that the {noun} had been a gift for {hero}!
  The {noun} had been a gift for {hero} all along!
talk: Look at this {noun}! / Whose {noun} is this? / I want to {do}. / Can we keep the {noun}?
  Someone must be sad without this {noun}.
replies: I have never seen one like it. / We have to find out who lost it. / Someone must have forgotten it.
  Who could have left it there? / I saw it too!
quarrels: about who should keep the {noun} / about who saw the {noun} first / about what to do
morals: give back what is not yours / be honest / think of others / tell the truth
summaries: {hero} and {friend} find {a_noun} {in_place}, look for its owner and are allowed to keep it.
  {hero} and {friend} find {a_noun} {in_place}, but soon it is gone.

name: stuck
categories: playthings vehicle
problem: {mishap}
attempt: {hero} tried and tried, but {he} could not get it back.
  First {hero} tried alone. Then {friend} tried too, but it was too hard.
  {friend} brought a long pole, but it was no use. / They asked {a_helper} for help, and {helper} brought some tools.
  They made a plan, and {friend} ran to get a ladder and a net.
good: They all worked together, and at last {hero} had the {noun} back.
  {A_helper2} came to help, and soon {hero} had the {adj} {noun} back.
  They tried one more time, and {friend} got the {noun} out.
  Then {hero} had a clever idea, and it worked! The {noun} was free.
bad: They tried until it was dark, but the {noun} stayed where it was.
  When it came free at last, it was ruined, and nobody could help.
  In the end, they had to leave the {noun} there for good.
twists_good: It turned out that a magic wind had played with the {noun}!
  And to everyone's surprise, there was a gold coin under it!
twists_bad: It turned out that {friend} had wanted it to get stuck!
  But it had not been stuck at all; a mean troll was holding it!
talk: Oh no, my {noun} is stuck! / How can I get my {noun} back? / Can you reach the {noun}?
  I am too small to get it. / Help me get my {adj} {noun}!
quarrels: about how to get the {noun} back / about who should try first / about the {noun}
morals: work together / ask for help / never give up / be careful with your things
summaries: {hero}'s {noun} gets stuck, and {friend} helps to get it back.
  {hero}'s {noun} gets stuck, and nobody can get it back.

name: broken
categories: playthings vehicle
problem: Then there was a loud crack, and the {noun} was broken. / But {friend} tripped over the {noun}, and it broke.
  Then the {noun} hit a rock and broke. / Suddenly {hero} heard a snap. The {noun} was broken!
  But {friend} took the {noun} too fast, and a part of it came off.
attempt: They tried to fix it with some glue, but it did not hold.
  {hero} tried to fix it with string, but it fell apart again.
  They took the {noun} to {a_helper}, and {helper} looked at it for a long time.
  {friend} ran to get some tape, and {hero} held the pieces. / They sat down {seat} and looked at all the pieces.
good: Piece by piece, they put it together, and the {noun} was as good as before.
  {A_helper2} had the right tools and fixed the {adj} {noun} for them.
  They worked all afternoon, and then the {noun} was whole again.
  With a lot of glue and a lot of time, they fixed the {noun}.
bad: Too many pieces were missing, so the {noun} stayed broken.
  In the end, nobody could fix it, and they had to throw the {noun} away.
  The more they tried, the more it fell apart. The {noun} was gone for good.
twists_good: It turned out that there was a gold coin inside the {noun}!
  To everyone's surprise, a tiny letter from a king fell out of the {noun}!
twists_bad: It turned out that {friend} had broken it already the day before!
  Nobody had guessed that {friend} had wanted to break it!
talk: Oh no, my {noun} is broken! / Can we fix my {noun}? / What happened to my {adj} {noun}?
  Now I cannot {do} any more. / Look at my poor {noun}!
quarrels: about who broke the {noun} / about how to fix the {noun} / about the {noun}
morals: be careful with your things / say sorry / forgive your friends / be patient
summaries: {hero}'s {noun} breaks, and {hero} and {friend} get it fixed.
  {hero}'s {noun} breaks, and nobody can fix it.
""")

# How an object gets stuck, by the noun's `mishap`.
MISHAPS = {
    "light": alternatives("""
  Then a strong wind blew the {noun} into a tall tree. / A crow took the {noun} and left it high up in a tree.
  The wind took the {noun}, and it got stuck on a roof.
"""),
    "heavy": alternatives("""
  But the {noun} slid down a hill and got stuck in deep mud. / Then the {noun} got stuck between two trees.
  But then the {noun} was stuck in the mud and did not move.
"""),
    "small": alternatives("""
  But {hero} dropped the {noun}, and it fell into a deep hole. / Then the {noun} fell between two big rocks.
  The {noun} slipped out of {his} {hand} and fell into a well.
"""),
}
