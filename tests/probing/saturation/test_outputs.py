"""What checkpoints are asked to continue: nothing in pretraining on stories, else the prompts of the run's data."""

from types import SimpleNamespace

import pytest

from lm_trials.data.datasets import PreparedTexts, Text
from lm_trials.probing.saturation.outputs import find_prompts

SPLITS = {"train": ["t1"], "validation": ["v1", "v2"]}


def prompts(tmp_path, has_prompts, layout=None, splits=SPLITS, count=5):
    def read(split, start, stop):
        return iter([Text(name, "a story", f"of {name}", []) for name in splits[split][start:stop]])

    texts = PreparedTexts(tmp_path, "", {name: len(rows) for name, rows in splits.items()}, read)
    member = SimpleNamespace(has_prompts=has_prompts, as_prepared=lambda: SimpleNamespace(texts=lambda: texts))
    run = {"outcome": {"prompt_layout": layout}}
    return find_prompts(SimpleNamespace(members=[member]), run, count)


def test_a_pretraining_on_stories_begins_them(tmp_path):
    found = prompts(tmp_path, has_prompts=False)
    assert (found.texts, found.keys) == ([""] * 5, ["0", "1", "2", "3", "4"])


@pytest.mark.parametrize(("has_prompts", "layout"), [(True, None), (False, "instruct"), (False, "chat")])
def test_others_get_the_prompts_of_their_validation_records(tmp_path, has_prompts, layout):
    assert prompts(tmp_path, has_prompts, layout).texts == ["of v1", "of v2", "of v1", "of v2", "of v1"]
    assert prompts(tmp_path, has_prompts, layout, SPLITS | {"validation": []}, count=2).texts == ["of t1", "of t1"]


def test_a_fine_tuning_on_texts_has_no_prompts(tmp_path):
    assert prompts(tmp_path, has_prompts=False, layout="text").texts == [""] * 5
