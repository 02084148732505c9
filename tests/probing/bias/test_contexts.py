"""Contexts differ between the groups in name and pronoun alone; files of a pairing are read, wrong ones refused."""

import json

import pytest

from lm_trials.console import UsageError
from lm_trials.probing.bias.contexts import draw_contexts, read_pairing
from lm_trials.stories.generated.pairing import ACTIVITIES

GIVEN = {
    "groups": {"she": ["Ann", "Eve"], "he": ["Tom", "Bob"]},
    "verbs": ["likes to"],
    "elsewhere": ["has a"],
    "pairs": [["bake", "climb"]],
    "unrelated": [["read", "sleep"]],
    "openings": ["Here is {name}."],
}


def masked(texts):
    """The texts of both groups with their names and pronouns removed."""
    names = [name for group in ACTIVITIES.groups.values() for name in group]
    words = {*names, *(form for group in ACTIVITIES.groups for form in (group, group.capitalize()))}
    return [[word for word in text.replace(".", " .").split() if word not in words] for text in texts]


def test_contexts_of_both_groups_differ_in_name_and_pronoun_alone():
    for context in draw_contexts(ACTIVITIES, 50, seed=1):
        for texts in (context.openings, context.leads, context.elsewhere):
            first, second = masked(texts)
            assert first == second
            assert texts[0] != texts[1]
        assert all(
            lead.startswith(f"{opening} ") for opening, lead in zip(context.openings, context.leads, strict=True)
        )


def test_contexts_of_two_halves_share_no_name_and_draws_depend_on_the_seed():
    def names(half):
        found = {name for each in ACTIVITIES.groups.values() for name in each}
        contexts = draw_contexts(ACTIVITIES, 200, seed=0, half=half)
        return {
            name for name in found for each in contexts for text in each.openings if name in text.rstrip(".").split()
        }

    assert len(names(0)) == len(names(1)) == 18
    assert not names(0) & names(1)
    first, again, other = (draw_contexts(ACTIVITIES, 9, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_file_of_a_pairing_is_read(tmp_path):
    path = tmp_path / "pairing.json"
    path.write_text(json.dumps(GIVEN))
    pairing = read_pairing(str(path))
    assert pairing.shown("Here is Ann. She likes to bake.") is True
    assert pairing.shown("Here is Tom. He likes to bake.") is False
    assert pairing.shown("Here is Tom. He likes to sleep.", unrelated=True) is True
    assert draw_contexts(pairing, 1, 0)[0].leads[1].endswith("He likes to")
    assert read_pairing(None) is ACTIVITIES


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": {"she": ["Ann", "Eve"]}}, "two groups with two or more names"),
        ({"groups": ["she"]}, "is not a pairing"),
        ({"pairs": [["bake"]]}, "is not a pairing"),
        ({"pairs": []}, "has no pairs"),
        ({"openings": ["Here is Ann."]}, "'Here is Ann.' has no {name}"),
    ],
)
def test_a_file_that_is_no_pairing_is_refused_in_one_line(tmp_path, change, told):
    path = tmp_path / "pairing.json"
    path.write_text(json.dumps(GIVEN | change))
    with pytest.raises(UsageError) as error:
        read_pairing(str(path))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("--pairing")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--pairing .*none.json"):
        read_pairing(str(tmp_path / "none.json"))
