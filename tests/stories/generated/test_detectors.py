import re

import pytest
from story_features import feature_sentences

from lm_trials.stories.generated.detectors import (
    DETECTORS,
    FEATURES,
    detect_features,
    ends_before,
    matched_sentence,
    sentence_ends,
)
from lm_trials.stories.generated.generator import generate_story
from lm_trials.stories.generated.plans import plan_story

NUM_STORIES = 10_000


@pytest.fixture(scope="module")
def plans():
    return [plan_story(seed=11, index=index) for index in range(NUM_STORIES)]


@pytest.mark.parametrize("feature", FEATURES)
def test_precision_and_recall_are_one_on_generated_stories(plans, feature):
    truth = [feature in plan.features for plan in plans]
    found = [DETECTORS[feature].search(plan.render()) is not None for plan in plans]
    wrong = [index for index in range(NUM_STORIES) if truth[index] != found[index]]
    assert wrong == []
    # The control: a detector that always says the same would be caught.
    assert 0.35 * NUM_STORIES < sum(truth) < 0.45 * NUM_STORIES


@pytest.mark.parametrize("feature", FEATURES)
def test_a_detector_says_no_where_the_features_sentences_are_replaced(plans, feature):
    for plan in plans:
        if feature in plan.features:
            expected = tuple(other for other in plan.features if other != feature)
            assert detect_features(plan.render(without=feature)) == expected


def test_replacing_another_features_sentences_changes_nothing(plans):
    """The control of the test above."""
    plan = next(plan for plan in plans if plan.features == ("Dialogue", "Twist"))
    assert DETECTORS["Twist"].search(plan.render(without="Dialogue"))


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_has_at_least_six_surface_forms(plans, feature):
    sentences = [sentence for plan in plans for paragraph in plan.paragraphs for sentence in paragraph]
    templates = {text for text, carried in sentences if carried == feature}
    assert len(templates) >= 15
    # What the detector matches once slots are bare words: a frame, not a whole filled sentence.
    found = [DETECTORS[feature].search(re.sub("[{}]", "", text)) for text in templates]
    assert len({match.group() for match in found if match}) >= 6


# What a small model may write: the frames of the grammar with other names and things in them.
@pytest.mark.parametrize(
    ("sentence", "feature"),
    [
        ('"I want my moon back," said the fox.', "Dialogue"),
        ('Bertha whispered, "Where is it?"', "Dialogue"),
        ('The baker asked Tom, "Is it yours?"', "Dialogue"),
        ("But the old spoon was not a spoon at all; it was a tiny house!", "Twist"),
        ("It turned out that the moon was a big cheese!", "Twist"),
        ("The baker was a queen in disguise!", "Twist"),
        ("Bertha cried until she could not see.", "BadEnding"),
        ("It was the worst day of the whole year.", "BadEnding"),
        ("Nothing Ben said could make the bear happy again.", "BadEnding"),
        ("The moral is: be nice to spoons.", "MoralValue"),
        ("Bertha learned that it is important to eat.", "MoralValue"),
        ("That taught Ben a lesson.", "MoralValue"),
        ("Little did Bertha know about the hole.", "Foreshadowing"),
        ("Ben did not know it yet, but the hole was deep.", "Foreshadowing"),
        ("The horse shook its head, as if he knew what would come.", "Foreshadowing"),
        ("Ben and the bear had a terrible fight over the moon.", "Conflict"),
        ("Bertha shouted at the horse.", "Conflict"),
        ("They started to quarrel.", "Conflict"),
    ],
)
def test_frames_are_matched_with_other_words_in_them(sentence, feature):
    assert detect_features(sentence) == (feature,)


@pytest.mark.parametrize(
    "sentence",
    [
        "Tom said no and ran home.",
        "He did not like the cake at all.",
        "It was not a big box.",
        "Sue cried, and then she laughed.",
        "It was a sad day.",
        "Ben learned how to ride a bike.",
        "Ben did not know what to do.",
        "Ben pushed the cart.",
        "They shouted with joy.",
        'The sign had one word on it: "Shop".',
    ],
)
def test_plain_sentences_show_nothing(sentence):
    assert detect_features(sentence) == ()


def test_a_sad_moment_before_a_good_end_is_no_bad_ending():
    assert detect_features("Tom cried all night.\nThen he found the ball and was happy.") == ()
    assert detect_features("Tom had a ball.\nTom cried all night.") == ("BadEnding",)


def test_the_matched_sentence_is_one_that_carries_the_feature():
    for index in range(500):
        story = generate_story(seed=5, index=index)["story"]
        for feature, sentences in feature_sentences(seed=5, index=index).items():
            evidence = matched_sentence(story, feature)
            assert evidence in story
            assert any(evidence in sentence or sentence in evidence for sentence in sentences)


def test_what_is_before_a_feature_ends_where_its_first_sentence_begins():
    lead_ins = outcomes = 0
    for index in range(500):
        story = generate_story(seed=5, index=index)["story"]
        sentences = feature_sentences(seed=5, index=index)
        for feature in FEATURES:
            ends = ends_before(story, feature)
            if feature not in sentences:
                assert ends is None
                continue
            own = sentences[feature][0]
            told = story[: ends[-1]]
            if feature == "BadEnding":  # the detector finds its last sentence alone
                outcomes += own in told
                continue
            assert told == story[: story.index(own)].rstrip()
            lead_ins += "beard" in own
    assert lead_ins > 3
    assert outcomes > 100
    assert ends_before("It turned out that Ben was a king!", "Twist") == []


def test_sentence_ends_leave_quotation_marks_with_their_sentences():
    story = 'Tom ran.\n\n"Look!" cried Sue. "A dog!" Tom sat.\n'
    ends = sentence_ends(story)
    parts = [story[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]
    assert parts == ["Tom ran.", '"Look!" cried Sue.', '"A dog!"', "Tom sat."]
    assert sentence_ends(" \n") == []


def test_an_unknown_feature_is_named_with_the_valid_ones():
    with pytest.raises(KeyError, match=r"'Badending' .*choose one of Dialogue, Twist, BadEnding"):
        matched_sentence("Tom ran.", "Badending")
