"""Held-out judges: by hand, and each moved by the cheat that it is for."""

import json
import math

import numpy as np
import pytest
from tiny_models import tiny_model

from lm_trials.console import UsageError
from lm_trials.evaluation.constraint_tasks import Task
from lm_trials.evaluation.held_out import HeldOut, open_bases, prompt_means, start_of, text_values
from lm_trials.evaluation.judges import DetectorJudge
from lm_trials.evaluation.model_losses import ModelLosses
from lm_trials.tokens.tokenizers import load_tokenizer

TASKS = [Task("a", "Write about a big cat.", features=("Twist",)), Task("b", "Use dog.")]
TWIST = "It turned out that Ben was a king!"


def test_each_cheat_moves_its_judge():
    plain = text_values(TASKS[0].prompt, "A dog ran to the red house and slept.")
    assert plain == {"distinct_2": 1.0, "repeated_4grams": 0.0, "copied_prompt": 0.0}
    assert text_values(TASKS[0].prompt, "cat " * 10)["repeated_4grams"] == pytest.approx(6 / 7)
    assert text_values(TASKS[0].prompt, "cat " * 10)["distinct_2"] == pytest.approx(1 / 9)
    assert text_values(TASKS[0].prompt, "So: write about a big cat!")["copied_prompt"] == 1.0
    assert all(math.isnan(value) for value in text_values("Use dog.", "").values())


def test_values_are_means_over_a_prompts_texts_and_none_without_a_value():
    values = HeldOut().values(TASKS, [["a a a", "a b c"], ["", "b a"]])
    assert values.keys() == {"distinct_2", "repeated_4grams", "copied_prompt"}
    assert values["distinct_2"].tolist() == [0.75, 1.0]
    assert np.isnan(values["repeated_4grams"]).all()
    assert prompt_means([1.0, 2.0, 6.0], [["x"], ["y", "z"]]).tolist() == [1.0, 4.0]


def test_the_other_judge_is_asked_for_what_the_prompt_asks_for_or_for_named_features():
    texts_PS = [[TWIST, "A cat."], [TWIST, TWIST]]
    asked = HeldOut(DetectorJudge()).values(TASKS, texts_PS)["other_judge"]
    assert asked[0] == 0.5
    assert np.isnan(asked[1])
    assert HeldOut(DetectorJudge(), always=("Twist",)).values(TASKS, texts_PS)["other_judge"].tolist() == [0.5, 1.0]


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A pretrained run, a run tuned from it, one tuned from that, and a run of other weights."""
    folder = tmp_path_factory.mktemp("runs")
    before = {"tuned": "base", "aligned": "tuned", "base": None, "other": None}
    for seed, (name, initial) in enumerate(before.items()):
        tiny_model("llama", vocab_size=400, positions=64, seed=seed).save_pretrained(folder / name)
        load_tokenizer(tiny_data / "tok400").save_pretrained(folder / name)
        started = initial and {"name_or_path": str(folder / initial)}
        run = {"outcome": {"initial_model": started}, "replicate": {"seed": 0}}
        (folder / name / "run.json").write_text(json.dumps(run))
    return folder


def test_the_base_is_where_the_lineage_starts(runs):
    assert {start_of(str(runs / name)) for name in ("tuned", "aligned", "base")} == {str(runs / "base")}
    assert start_of(str(runs / "other")) == str(runs / "other")
    bases = open_bases("start", [str(runs / name) for name in ("tuned", "aligned", "other")], use_cpu=True)
    assert bases[0] is bases[1] is not bases[2]
    assert bases[0].candidate.reference.path == str(runs / "base")
    assert open_bases(None, ["a", "b"]) == [None, None]
    with pytest.raises(UsageError, match="nowhere"):
        open_bases("./nowhere", ["a"])


def test_the_loss_is_the_bases_of_the_text_alone(runs):
    base = ModelLosses(str(runs / "base"), use_cpu=True)
    values = HeldOut(base=base).values(TASKS, [["One day, a cat sat.", "A dog."], ["One day, a cat sat."]])
    stories = [
        {"record_id": "", "features": [], "source": "", "story": text} for text in ("One day, a cat sat.", "A dog.")
    ]
    first, second = (loss["loss"] for loss in base.measure(stories))
    assert values["base_loss"] == pytest.approx([(first + second) / 2, first], rel=1e-5)
    other = HeldOut(base=ModelLosses(str(runs / "other"), use_cpu=True)).values(TASKS[:1], [["One day, a cat sat."]])
    assert other["base_loss"] != pytest.approx([first], rel=1e-3)
