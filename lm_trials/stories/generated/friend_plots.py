"""Plots about what people do with a thing: learn, give, share, obey, help."""

from lm_trials.stories.generated.plots import alternatives, plots

FRIEND_PLOTS = plots("""
name: practice
categories: toy tool music vehicle paper clothes nature
setup: {friend} had {a_noun} and knew how to {do_it}. {hero} wanted to learn it too.
  There was {a_noun} {spot}, and {friend} showed {hero} how to {do_it}. It looked so easy.
  {hero} had {a_noun} from {his} {parent}, but {he} did not know how to {do_it}.
  {friend} gave {hero} {a_noun}. Now {hero} wanted to learn how to {do}.
problem: {hero} tried it, but {he} did it all wrong. / But it was too hard for {hero}.
  {hero} tried it once, and it did not work. / But when {hero} tried, everything went wrong.
  {hero} tried it, and everyone giggled.
attempt: {hero} tried again and again, all day long. / {A_helper} came by and showed {hero} how to do it.
  {friend} helped {hero} step by step. / {hero} sat down {seat} and thought about it. Then {he} tried again.
  Every day, {hero} came back {to_place} and tried it ten times.
good: Then, at last, {hero} could do it all alone. / And one day, it worked!
  Little by little, {hero} got better and better. / The last time, {hero} did everything right.
bad: In the end, {hero} could not do it, and {he} gave up. / Then the {noun} got lost before {hero} could learn it.
  Everyone else could do it, but {hero} never learned how.
  Then {friend} took the {noun} and went away, and {hero} never learned it.
twists_good: To everyone's surprise, {hero} was now much better at it than {friend}!
  It turned out that {friend} had needed a whole year to learn it!
twists_bad: It turned out that {friend} could not really do it!
  To everyone's surprise, even {friend} could not do it any more!
talk: Can you show me how to {do}? / I want to {do} like you. / I will never learn how to {do}.
  This is too hard for me! / How do you {do} so well?
quarrels: about whose turn it was / about the {noun} / about the right way to do it
morals: try again and again / never give up / be patient / learn from your friends
summaries: {hero} wants to learn how to {do_any}, tries many times and can do it in the end.
  {hero} wants to learn how to {do_any}, but it never works.

name: gift
categories: playthings edible plant
traits: no hero_acts / no parent_is_near
setup: They had {a_noun} for {hero}'s {parent}. {Phe} liked to {do_any} more than anything.
  {hero}'s {parent} had a birthday, and they had {a_noun} for {phim}. {Phe} would love to {do_it}.
  {His} {parent} was sick in bed. They wanted to bring {phim} {a_noun}, so that {phe} could {do_it}.
  {hero} took {a_noun} along for {his} {parent}, because {his} {parent} loved to {do_any}.
problem: But the way was long, and it began to rain. / But there was a river, and they saw no bridge.
  But the path was full of mud. / But soon they did not know which way to go.
  But the hill was high, and {hero} was tired.
attempt: {hero} held the {noun} tight and took small steps. / They met {a_helper}, and {helper} showed them the way.
  {friend} went first, and {hero} came behind with the {noun}. / They put the {noun} under a big leaf and walked on.
  They stopped for a while, and then they walked on.
good: At last, they came to the little house. {His} {parent} {did} right away.
  When they came to the door, {his} {parent} laughed with joy and {did}.
  Soon they were there. {His} {parent} liked the {adj} {noun} so much that {phe} hugged them both.
  They came to the house just in time. {His} {parent} took the {noun} and gave {hero} a kiss.
bad: But {hero} slipped, and the {noun} fell into the river and was gone.
  But {hero} fell down, and the {noun} was full of mud and no good any more.
  When they came to the house, {his} {parent} had gone far away.
  A hungry wolf came out of the trees, and {hero} dropped the {noun} and ran. It was gone for good.
twists_good: To everyone's surprise, {his} {parent} had {a_noun} for {hero} too!
  It turned out that {his} {parent} had wished for this {noun} for years!
twists_bad: It turned out that {his} {parent} had not wanted a gift!
  To everyone's surprise, {his} {parent} had {a_noun} already!
talk: My {parent} loves to {do_any}. / Do you think my {parent} will like the {noun}? / We must not drop the {noun}!
  We have to bring the {noun} to my {parent}. / Is it still far?
replies: Do not worry, we will get there. / I will go with you all the way. / Let us hurry!
  Should we ask {a_helper}?
quarrels: about which way to go / about who should carry the {noun} / about the {noun}
morals: give with a happy heart / think of others / be kind to your family / never give up
summaries: {hero} and {friend} bring {a_noun} to {hero}'s {parent}.
  {hero} and {friend} want to bring {a_noun} to {hero}'s {parent}, but it goes wrong.

name: share
categories: toy cuddly music vehicle clothes dish paper
traits: no hero_worries / no hero_acts
problem: {friend} wanted to {do} too, but {hero} said no.
  {friend} asked for a turn, but {hero} held the {noun} behind {his} back.
  {friend} had no {noun} and only looked on.
  {friend} looked at the {noun} with big eyes, but {hero} did not want to give it away.
  Then it was {friend}'s turn, but {hero} wanted to keep the {noun}.
attempt: So {hero} played alone {seat}, but it was not much fun. / {friend} sat down {seat} and did not say a word.
  {A_helper} saw it and shook {ahis} head. / {hero} looked at {friend} and thought about it for a long time.
  So {friend} played with {junk}, and {hero} played alone.
good: Then {hero} gave the {noun} to {friend}, and {friend} {did_it}.
  In the end, {hero} let {friend} have a turn, and they both laughed.
  Then {hero} walked over to {friend} and gave {fhim} the {adj} {noun}.
  So they took turns, and it was twice as much fun.
bad: Still, {hero} kept the {noun}, so {friend} walked away and did not come back.
  So {friend} found other friends, and {hero} had nobody to play with.
  {hero} pulled so hard at the {noun} that it came apart.
twists_good: To everyone's surprise, {friend} had {a_noun} for {hero} too!
  It turned out that {friend} had wanted to clean the {noun} for {hero}!
twists_bad: It turned out that {friend} had brought a big gift for {hero} that day!
  But {friend} had not wanted the {noun} at all; {fhe} had only wanted a friend!
talk: This is my {noun}! / You cannot have my {noun}. / I want to {do} alone. / It is still my turn to {do}.
  Why do you want my {noun}?
replies: I only want to try it once. / May I please have a turn? / I will be careful with it.
  A friend would let me try it.
quarrels: about the {noun} / about whose turn it was / about who should have the {noun}
morals: share with your friends / take turns / think of others / be kind to your friends
summaries: {hero} does not want to share {a_noun}, but then lets {friend} have a turn.
  {hero} does not want to share {a_noun} with {friend} and ends up alone.

name: rule
categories: playthings edible
traits: at_home / no hero_worries / no hero_acts
setup: On the table was {a_noun}. {His} {parent} had told them not to {do_it}.
  {His} {parent} had {a_noun}, and nobody was allowed to {do_it}.
  They saw {a_noun} on the shelf. {hero} wanted to {do_it}, but it belonged to {his} {parent}.
  {His} {parent} put {a_noun} on the table and went out. {hero} knew that {he} must not {do}.
problem: But when nobody was looking, {hero} {did}. / {hero} waited a little, and then {he} {did}.
  {hero} could not wait. {He} took the {noun} and {did_it}.
  It was only one time, {hero} thought, and then {he} {did}.
attempt: {oops} They heard steps at the door. / {oops} {hero} and {friend} hid under the table.
  {oops} {friend} wanted to run away. / {oops} {hero} felt very bad.
good: {hero} told {his} {parent} everything, and {his} {parent} was not angry.
  {hero} said sorry to {his} {parent}, and they cleaned up together.
  {His} {parent} came in, and {hero} told the truth. {Phe} gave {him} a hug.
  So they went to {his} {parent} and said sorry, and {phe} smiled.
bad: {hero} did not tell the truth, and {his} {parent} was very sad about it.
  {His} {parent} saw it and sent {friend} home. / {hero} told a lie, and nobody believed {him} any more.
twists_good: It turned out that the {noun} was a birthday gift for {hero}!
  But it was not a secret at all; {his} {parent} had seen everything!
twists_bad: It turned out that the {noun} was to be a birthday gift for {hero}!
  The {noun} had been a gift for {hero} all along!
talk: I only wanted to {do} once. / Do you think my {parent} will see it? / We should not have touched the {noun}.
  Oh no, look at the {noun}! / What should we do now?
replies: We have to tell your {parent}. / What will your {parent} say? / That was not a good idea.
  We have to be very quiet.
quarrels: about the {noun} / about what to tell {hero}'s {parent} / about who did it
morals: tell the truth / listen to your family / ask first / say sorry
summaries: {hero} must not touch {a_noun}, does it all the same and then tells the truth.
  {hero} must not touch {a_noun}, does it all the same and is sorry for it.

name: help
categories: toy tool cuddly music clothes paper nature
traits: no hero_worries
problem: Then they heard a little voice {spot}. It was a {baby} that {crying_reason}.
  {Spot}, there was a {baby}. It {crying_reason}. / A little {baby} sat {spot} and trembled. It {crying_reason}.
  They met a little {baby} that {crying_reason}.
attempt: To make the {baby} smile, {hero} showed it the {adj} {noun}. It worked!
  {friend} held the {baby}, and {hero} {did} to make it laugh.
  They gave the {baby} some milk and let it touch the {noun}.
  They asked {a_helper} where the {baby} lived, and {helper} showed them the way.
  So {hero} took the {noun} and {did_it}, and the {baby} stopped crying.
good: Then they found the mother of the {baby} {seat}. She thanked them a hundred times.
  They walked a long way, and there was the home of the {baby}.
  Soon the mother of the {baby} came, and she was so glad.
  {A_helper2} knew the mother of the {baby} and took it home.
bad: Then it got dark, and nobody came for the {baby}.
  They looked and looked, but the {baby} never found its mother.
  Then the {baby} ran away into the night, and they never saw it again.
twists_good: But the {baby} was not lost at all; it had only wanted to see the {noun}!
  It turned out that its mother had been very near!
twists_bad: It turned out that its mother had been very near! / Its mother had been behind them all along!
talk: Why is this little {baby} so sad? / We have to help this {baby}! / Maybe my {noun} will make it smile.
  Look at this poor {baby}! / I will {do} for the little {baby}.
replies: I think it wants to go home. / Poor little thing! / Where could its mother be? / We will not leave it here.
quarrels: about which way to go / about what to do / about who should hold the {baby}
morals: help others / be kind to everyone / be good to little ones / stop when someone needs you
summaries: {hero} and {friend} help a {baby} and make it smile with {a_noun}.
  {hero} has {a_noun} and wants to help a {baby}, but its mother does not come.
""")

# What goes wrong when one does what one must not do, by the noun's category.
OOPS_FOOD = alternatives(
    "Soon only crumbs were left. / Soon there was a mess on the floor. / Then the plate fell down."
)
OOPS_THINGS = alternatives("""
  Then the {noun} fell on the floor. / Then there was a big spot on the {noun}. / Soon the whole room was a mess.
""")
