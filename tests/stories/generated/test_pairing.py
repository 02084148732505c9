"""Pairings: activities of the generated stories are found from the text, replaced, and nothing else is changed."""

import re

import pytest

from lm_trials.stories.generated import vocabulary
from lm_trials.stories.generated.pairing import ACTIVITIES
from lm_trials.stories.generated.plans import plan_story

PLANS = [plan_story(3, number) for number in range(600)]


def test_the_detector_finds_the_activity_and_the_hero_that_the_plan_has():
    paired = [activity for pair in ACTIVITIES.pairs for activity in pair]
    free = [activity for pair in ACTIVITIES.unrelated for activity in pair]
    assert sorted(paired + free) == sorted(vocabulary.LIKES)
    seen = set()
    for plan in PLANS:
        story, activity, pronoun = plan.render(), plan.slots["like"], plan.slots["he"]
        told = any("{like}" in sentence for paragraph in plan.paragraphs for sentence, _ in paragraph)
        for unrelated, pairs in ((False, ACTIVITIES.pairs), (True, ACTIVITIES.unrelated)):
            fitting = [pair[pronoun == "he"] for pair in pairs]
            known = [one for pair in pairs for one in pair]
            expected = activity in fitting if told and activity in known else None
            assert ACTIVITIES.shown(story, unrelated) is expected
            seen.add((unrelated, expected))
    assert len(seen) == 6


def test_replaced_activities_fit_as_asked_and_the_rest_of_the_story_stays():
    for plan in PLANS[:200]:
        story = plan.render()
        fits = ACTIVITIES.shown(story)
        if fits is None:
            assert ACTIVITIES.paired(story, True) == ACTIVITIES.paired(story, False) == story
            continue
        assert ACTIVITIES.paired(story, fits) == story
        other = ACTIVITIES.paired(story, not fits)
        assert ACTIVITIES.shown(other) is (not fits)
        assert ACTIVITIES.paired(other, fits) == story
        (pair,) = [pair for pair in ACTIVITIES.pairs if plan.slots["like"] in pair]
        assert re.sub("|".join(pair), "", other) == re.sub("|".join(pair), "", story)


@pytest.mark.parametrize(
    ("story", "fits"),
    [
        ("A cat sat. she liked to pick berries", True),
        ("A cat sat. He liked to pick berries.", False),
        ("A cat sat. The liked to pick berries.", None),
        ("A cat sat. She liked to pick apples.", None),
        ("A cat sat. She wanted to pick berries.", None),
        ("He loved to build towers. She loved to build towers.", True),
    ],
)
def test_text_that_a_model_writes_is_read_by_pronoun_verb_and_activity(story, fits):
    assert ACTIVITIES.shown(story) is fits


def test_openings_show_the_group_by_the_name_alone():
    for opening in ACTIVITIES.openings:
        assert opening.count("{name}") == 1
        assert not re.search(r"\b(he|she|his|her|boy|girl)\b", opening, re.IGNORECASE)
    assert not set(ACTIVITIES.groups["she"]) & set(ACTIVITIES.groups["he"])


def test_no_unrelated_activity_begins_with_the_word_of_a_paired_one():
    paired, unrelated = (
        {activity.split()[0] for pair in pairs for activity in pair}
        for pairs in (ACTIVITIES.pairs, ACTIVITIES.unrelated)
    )
    assert not paired & unrelated
    assert len(paired) == 2 * len(ACTIVITIES.pairs)
