"""Generated stories: a grammar that writes children's stories in the TinyStories record form.

Story `index` of `seed` depends on these two numbers alone, so any range, order or number of workers
writes the same stories.  The content is drawn in `plans.py`.

Randomness: one `random.Random((seed << 64) | index)` per story, of which only `.random()` is called.
Python promises both to be the same in every version ("Notes on Reproducibility", docs of `random`);
`choice`, `shuffle` and the like carry no such promise.
"""

from collections.abc import Iterator

from lm_trials.stories.generated import phrases
from lm_trials.stories.generated.plans import Plan, plan_story

GRAMMAR_VERSION = 1
SOURCE = f"generated-{GRAMMAR_VERSION}"


def _prompt(plan: Plan) -> str:
    requests = [phrases.FEATURE_REQUESTS[feature] for feature in plan.features]
    listed = " and ".join(filter(None, (", ".join(requests[:-1]), *requests[-1:])))
    verb, noun, adjective = plan.words
    asked = f" Make sure that {listed}." if requests else ""
    return plan.prompt_form.format(v=verb, n=noun, a=adjective, f=asked)


def generate_story(seed: int, index: int) -> dict:
    """Write story `index` of `seed` as a record without its id.

    `words` are a verb (base form; the text has it inflected or not), a noun and an adjective; `features`
    are those that the text shows, in the order of `detectors.FEATURES`.

    Raises:
        ValueError: if `seed` or `index` is negative.

    >>> record = generate_story(seed=0, index=7)
    >>> sorted(record)
    ['features', 'prompt', 'source', 'story', 'summary', 'words']
    >>> record["source"], len(record["words"])
    ('generated-1', 3)
    """
    plan = plan_story(seed, index)
    return {
        "story": plan.render(),
        "prompt": _prompt(plan),
        "words": list(plan.words),
        "features": list(plan.features),
        "summary": plan.plot.summaries["BadEnding" in plan.features].format_map(plan.slots),
        "source": SOURCE,
    }


def generate_stories(num_stories: int, seed: int, start: int = 0) -> Iterator[dict]:
    """Yield stories `start` to `start + num_stories - 1` of `seed`.

    Raises:
        ValueError: if any of the three numbers is negative.

    >>> list(generate_stories(2, seed=1, start=5)) == [generate_story(1, 5), generate_story(1, 6)]
    True
    >>> generate_story(1, 5) == generate_story(2, 5)
    False
    """
    if num_stories < 0:
        raise ValueError(f"num_stories is {num_stories}; ask for 0 or more stories")
    for index in range(start, start + num_stories):
        yield generate_story(seed, index)
