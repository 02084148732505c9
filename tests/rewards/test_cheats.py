"""Each reward has a cheat that it pays for, and a judge that the cheat moves."""

import pytest

from lm_trials.evaluation.held_out import HeldOut
from lm_trials.evaluation.judges import DetectorJudge
from lm_trials.rewards.cheats import END, OWN, cheats, reward_rows
from lm_trials.rewards.functions import open_rewards
from lm_trials.stories.generated.generator import generate_stories

ROWS = [{**record, "completion": record["story"]} for record in generate_stories(30, seed=3)]


def scored(text, *names):
    texts_PS = [[each] for each in cheats(ROWS)[text]]
    found = reward_rows(open_rewards(names, ends=[END]), ROWS, texts_PS, [[[END]]] * 30, HeldOut(DetectorJudge()))
    return {row["metric"]: row["estimate"] for row in found}


@pytest.mark.parametrize(
    ("name", "cheat", "judge"),
    [
        ("words", "required words alone", None),
        ("words", "copy of the prompt", "copied_prompt"),
        ("features", "phrases of all features", None),
        ("feature:Twist", "phrases of all features", None),
        ("ends", "two words", None),
    ],
)
def test_a_cheat_is_paid_as_the_stories_are_or_better(name, cheat, judge):
    own, cheated = scored(OWN, name, "length:120"), scored(cheat, name, "length:120")
    assert cheated[name] >= own[name] > 0.2
    assert cheated["length:120"] < own["length:120"]  # a second reward that this cheat does not raise
    if judge:
        assert cheated[judge] > own[judge] + 0.5


def test_repetition_raises_the_length_and_is_seen_by_the_judges():
    own, cheated = scored(OWN, "length:120"), scored("one word repeated", "length:120")
    assert cheated["length:120"] == pytest.approx(own["length:120"], abs=0.02)
    assert cheated["repeated_4grams"] > 0.9 > 0.1 > own["repeated_4grams"]
    assert cheated["distinct_2"] < 0.1 < 0.8 < own["distinct_2"]


def test_shuffled_words_pass_all_judges_of_the_text():
    """Only a model's loss sees them, or a judge of features."""
    own, cheated = scored(OWN, "words", "length:120"), scored("own words shuffled", "words", "length:120")
    assert cheated["words"] == own["words"] == 1
    assert cheated["length:120"] == pytest.approx(own["length:120"], abs=0.02)
    assert cheated["distinct_2"] > own["distinct_2"]
    assert cheated["other_judge"] < 0.2 < 0.9 < own["other_judge"]
    assert cheats(ROWS, seed=0)["own words shuffled"] != cheats(ROWS, seed=1)["own words shuffled"]


def test_stories_of_others_are_of_others():
    texts = cheats(ROWS[:3])["stories of others"]
    assert texts[0] == f"{ROWS[1]['story']}\n{ROWS[2]['story']}"
    assert cheats(ROWS)["stories of others"][29] == "\n".join(row["story"] for row in ROWS[:10])


def test_rows_have_means_over_prompts_and_the_weighted_sum():
    rewards = open_rewards(["words", "length:3"], [1, 0.5])
    rows = [
        {"prompt": "Use cat.", "words": ["cat"]},
        {"prompt": "Use dog.", "words": ["dog"]},
        {"prompt": "x", "words": []},
    ]
    texts_PS = [["a cat sat", "a hat"], ["one two three"], ["it is so"]]
    found = {row["metric"]: row for row in reward_rows(rewards, rows, texts_PS, [[[], []], [[]], [[]]])}
    assert found["words"]["estimate"] == 0.25  # of 1/2 and 0; the last asks for none
    assert found["words"]["n"] == 2
    assert found["length:3"]["estimate"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert found["rewards"]["estimate"] == pytest.approx((0.5 + 5 / 12 + 0.5 + 0.5) / 3)
    assert [found[name]["role"] for name in ("words", "rewards", "distinct_2")] == ["reward", "sum", "judge"]
