"""Rewards by hand, called as trl calls them, and every way in which a user's function can fail."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from refusals import usage_error
from trl import GRPOTrainer
from trl.trainer.utils import get_callable_name

from lm_trials.console import UsageError
from lm_trials.evaluation.judges import DetectorJudge
from lm_trials.rewards.functions import open_rewards, reward_values, totals
from lm_trials.stories.features import FEATURES

TWIST = "It turned out that Ben was a king!"
ROWS = [
    {"prompt": "Use take and cat.", "completion": "x", "words": ["take", "cat"], "features": ["Twist", "Conflict"]},
    {"prompt": "Use dog.", "completion": "y", "words": [], "features": []},
]


def test_values_by_hand():
    rewards = open_rewards(["words", "features", "feature:twist", "length:4", "ends"], ends=[2])
    values = reward_values(rewards, ROWS, [f"He took it. {TWIST}", "A dog."], [[5, 2], [5]])
    assert values[0].tolist() == [0.5, 0.5, 1.0, 4 / 11, 1.0]
    assert values[1, 2:].tolist() == [0.0, 0.5, 0.0]
    assert np.isnan(values[1, :2]).all()  # the prompt asks for none
    assert totals(rewards, values) == pytest.approx([3 + 4 / 11, 0.5])
    weighted = open_rewards(["words", "features", "feature:twist", "length:4", "ends"], [2, 0, 0, 0, -1], ends=[2])
    assert totals(weighted, values).tolist() == [0.0, 0.0]


def test_messages_are_read_as_texts():
    rewards = open_rewards(["words", "feature:Twist", "length:3"])
    said = [{"role": "assistant", "content": f"The cat sat. {TWIST}"}]
    asked = [{"role": "user", "content": "Use a cat."}]
    columns = {"words": [["cat"]], "features": [["Twist"]], "completion_ids": [[1]]}
    as_messages = [reward(prompts=[asked], completions=[said], **columns) for reward in rewards]
    as_texts = [reward(prompts=["p"], completions=[said[0]["content"]], **columns) for reward in rewards]
    assert as_messages == as_texts == [[1.0], [1.0], [3 / 11]]


def test_trl_calls_them_with_these_arguments_and_logs_these_names(tmp_path):
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs" in source
    (tmp_path / "mine.py").write_text("def rhymes(prompts, **_): return [0.5 for _ in prompts]\n")
    rewards = open_rewards(["words", "feature:badending", f"{tmp_path}/mine.py:rhymes"])
    assert [get_callable_name(reward) for reward in rewards] == ["words", "feature:BadEnding", "rhymes"]
    more = {"trainer_state": None, "log_extra": print, "log_metric": print}
    call = {"prompts": ["p", "q"], "completions": ["a", "b"], "completion_ids": [[1], [2]], "words": [["a"], ["a"]]}
    assert [reward(**call, **more) for reward in rewards] == [[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("raise KeyError('moon')", "raises KeyError: 'moon', for the prompt 'Use take and cat.'"),
        ("return [1.0]", "returns 1 values for 2 completions, for the prompt 'Use take"),
        ("return [0.0, float('nan')]", "returns nan, for the prompt 'Use dog.'"),
        ("return [float('-inf'), 0.0]", "returns -inf, for the prompt 'Use take"),
        ("return ['high', 'low']", "raises ValueError: could not convert string to float: 'high', for"),
        ("return 1.0", "raises TypeError: 'float' object is not iterable, for"),
        ("return [0.0, 1e39]", "returns 1e+39, for the prompt 'Use dog.'"),  # infinite in float32
        ("raise SystemExit(3)", "raises SystemExit: 3, for the prompt 'Use take"),
    ],
)
def test_a_function_that_fails_is_named_with_the_first_prompt(body, fault, tmp_path):
    (tmp_path / "mine.py").write_text(f"def score(prompts, completions, **_):\n    {body}\n")
    rewards = open_rewards([f"{tmp_path}/mine.py:score"])
    with pytest.raises(UsageError) as raised:
        reward_values(rewards, ROWS, ["a", "b"], [[], []])
    assert str(raised.value).startswith(f"--reward_funcs {tmp_path}/mine.py:score {fault}")


def test_where_no_reward_applies_there_is_no_sum_as_in_trl(tmp_path):
    (tmp_path / "mine.py").write_text("def score(prompts, completions, **_):\n    return [None, 2]\n")
    for names, sums in (([], [np.nan, 2]), (["length:1"], [1, 3])):
        rewards = open_rewards([f"{tmp_path}/mine.py:score", *names])
        found = totals(rewards, reward_values(rewards, ROWS, ["a", "b"], [[], []]))
        assert found.tolist() == pytest.approx(sums, nan_ok=True)


@pytest.mark.parametrize("name", ["words", "features"])
def test_a_column_with_text_in_place_of_a_list_is_refused(name):
    """Of "cat", the letters would be the required words."""
    rows = [ROWS[0], {**ROWS[1], name: "cat"}]
    line = usage_error(reward_values, open_rewards([name]), rows, ["a", "b"], [[], []])
    assert line == (
        f"--reward_funcs {name} reads the column {name}, which is 'cat' for the prompt 'Use dog.'; it must be a list "
        "of texts"
    )
    assert len(reward_values(open_rewards([name]), ROWS, ["a", "b"], [[], []])) == 2


class OneFeature(DetectorJudge):
    known = ("Conflict",)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["word"], None, "--reward_funcs word: unknown reward; did you mean words\\? valid: FILE.py:NAME, ends, "),
        (["feature:Twits"], None, "feature:Twits: unknown feature 'Twits'; did you mean Twist\\?"),
        (["feature:Twist"], None, "feature:Twist: the judge does not know it; valid: Conflict"),
        (["length:0"], None, "length:0: give a number of words, such as length:120"),
        (["length:many"], None, "length:many: give a number of words"),
        (["words", "length:9", "length:09"], None, "two rewards are called length:9; remove or rename one"),
        (["words", "ends"], [1.0], "--reward_weights has 1 weights and --reward_funcs 2 rewards"),
        (["nowhere.py:f"], None, "--reward_funcs nowhere.py cannot be read"),
        (["{tmp}/mine.py:g"], None, "mine.py has no function g; define it in this file"),
        (["{tmp}/broken.py:f"], None, "broken.py raises ZeroDivisionError: division by zero; correct it"),
    ],
)
def test_what_is_no_reward_is_refused(names, weights, message, tmp_path):
    (tmp_path / "mine.py").write_text("def f(**_): return []\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=message):
        open_rewards([name.format(tmp=tmp_path) for name in names], weights, OneFeature())


def test_a_data_set_without_the_column_is_refused():
    (reward,) = open_rewards(["words"])
    with pytest.raises(UsageError, match="--reward_funcs words reads the column words, which the data set does not"):
        reward(prompts=["p"], completions=["c"])
    assert reward(prompts=["p"], completions=["c"], words=[["c"]]) == [1.0]


def test_a_judge_that_does_not_know_a_feature_leaves_it_out():
    (reward,) = open_rewards(["features"], judge=OneFeature())
    columns = {"features": [["Twist", "Conflict"], ["Twist"]]}
    assert reward(prompts=["p"] * 2, completions=["They had a fight."] * 2, **columns) == [1.0, None]
    assert open_rewards(["features"])[0](prompts=["p"] * 2, completions=[TWIST] * 2, **columns) == [0.5, 1.0]
    assert set(FEATURES) >= {"Twist", "Conflict"}


def test_the_function_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs/rewards.md").read_text()
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    (reward,) = open_rewards([f"{tmp_path}/mine.py:questions"])
    assert reward_values([reward], ROWS, ["Who?", "Me."], [[], []]).tolist() == [[1.0], [0.0]]
