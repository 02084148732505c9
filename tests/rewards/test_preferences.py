"""Preference pairs: the best and the worst of several stories, in their record's split, whatever the batch."""

import json

import numpy as np
import pytest
from datasets import Features, List, Value
from refusals import usage_error
from tiny_models import tiny_model

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.evaluation.inflections import words_of
from lm_trials.pairs.pairs import open_pairs, write_pairs
from lm_trials.rewards import preferences
from lm_trials.rewards.flags import PreferenceArguments
from lm_trials.rewards.preferences import make_preferences
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import SPLITS
from lm_trials.tokens.tokenizers import load_tokenizer

SPLIT_OF = {"train": range(8), "validation": range(8, 12), "test": range(12, 15)}


def rows():
    for split, numbers in SPLIT_OF.items():
        for number in numbers:
            # Record 11 has the prompt of a train record.
            prompt = f"Write about {0 if number == 11 else number} cats."
            row = {"record_id": f"{number:032x}", "prompt": prompt, "completion": "The cat sat."}
            yield split, {**row, "words": ["cat"], "features": []}


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """A model that writes random tokens, another, and a data set of 15 prompts."""
    folder = tmp_path_factory.mktemp("preferences")
    for seed, name in enumerate(("model", "other")):
        tiny_model("llama", vocab_size=400, positions=128, seed=seed).save_pretrained(folder / name)
        load_tokenizer(tiny_data / "tok400").save_pretrained(folder / name)
    more = Features({"words": List(Value("string")), "features": List(Value("string"))})
    write_pairs(rows(), folder / "data/made", "pairs", {"source": "test"}, more)
    (folder / "mine.py").write_text(
        "def vowels(completions, **_): return [sum(map(text.count, 'aeiou')) / 100 for text in completions]\n"
        "def broken(prompts, **_): return [1.0 / (len(prompts) - 1)] * len(prompts)\n"
        "def same(prompts, **_): return [0.5] * len(prompts)\n"
    )
    return folder


def made(data, name, **more):
    flags = {"reward_funcs": ["length:10", f"{data}/mine.py:vowels"], "margin": 0.1, "max_new_tokens": 16}
    flags |= {"model_name_or_path": str(data / "model"), "dataset_name": "made", "temperature": 1.0, "num_samples": 3}
    flags |= {"data_cache_dir": str(data / "data"), "use_cpu": True, "output_name": name, **more}
    manifest = make_preferences(PreferenceArguments(**flags))
    opened = open_pairs(name, data / "data")
    return manifest, {split: list(of) for split, of in opened.splits.items()}


def test_each_pair_is_the_best_and_the_worst_and_differs_by_the_margin(data):
    manifest, splits = made(data, "all", reward_weights=[1.0, 0.5])
    pairs = [row for of in splits.values() for row in of]
    assert manifest["kind"] == "preferences"
    assert len(pairs) == sum(of["pairs"] for of in manifest["counts"].values()) > 8
    for row in pairs:
        for side in ("chosen", "rejected"):
            length = len(words_of(row[side]))
            by_hand = {
                "length:10": min(length, 10) / max(length, 10),
                "vowels": sum(map(row[side].count, "aeiou")) / 100,
            }
            assert row[f"rewards_{side}"] == pytest.approx(by_hand)
            assert row[f"score_{side}"] == pytest.approx(by_hand["length:10"] + 0.5 * by_hand["vowels"])
        assert row["score_chosen"] - row["score_rejected"] >= 0.1 - 1e-9
    wider, _ = made(data, "wide", reward_weights=[1.0, 0.5], margin=0.3)
    counts, fewer = manifest["counts"]["train"], wider["counts"]["train"]
    assert fewer["pairs"] < counts["pairs"]
    for of in (counts, fewer):
        assert of["pairs"] + sum(of[name] for name in preferences.REASONS) == of["prompts"] == 8


def test_no_prompt_is_in_two_splits_and_each_keeps_its_records_split(data):
    manifest, splits = made(data, "splits", margin=1e-6)
    for split, numbers in SPLIT_OF.items():
        assert {int(row["record_id"], 16) for row in splits[split]} <= set(numbers)
    prompts = {split: {row["prompt"] for row in of} for split, of in splits.items()}
    assert prompts["train"].isdisjoint(prompts["validation"] | prompts["test"])
    assert manifest["counts"]["validation"]["in_another_split"] == 1
    assert "Write about 0 cats." in prompts["train"]


def test_the_stories_depend_on_seed_and_record_not_on_batches_or_other_prompts(data):
    _, one = made(data, "one", margin=1e-6)
    _, again = made(data, "again", margin=1e-6, batch_size=2)
    _, few = made(data, "few", margin=1e-6, num_prompts=3)
    _, other = made(data, "other", margin=1e-6, seed=1)
    assert one == again
    assert few["train"] == [row for row in one["train"] if int(row["record_id"], 16) < 3]
    assert {row["chosen"] for row in one["train"]}.isdisjoint(row["chosen"] for row in other["train"])


def test_the_manifest_says_what_made_them(data):
    manifest, _ = made(data, "facts")
    other, _ = made(data, "facts-other", model_name_or_path=str(data / "other"))
    on_disk = json.loads((data / "data/facts/manifest.json").read_text())
    assert on_disk["model"]["weights"] == manifest["model"]["weights"] != other["model"]["weights"]
    assert on_disk["content"] != json.loads((data / "data/facts-other/manifest.json").read_text())["content"]
    assert [(reward["reward"], reward["weight"]) for reward in on_disk["rewards"]] == [("length:10", 1), ("vowels", 1)]
    assert len(on_disk["rewards"][1]["sha256"]) == 64
    assert on_disk["sampling"] == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert on_disk["seed"] == 0
    assert (on_disk["num_samples"], on_disk["margin"], on_disk["max_new_tokens"]) == (3, 0.1, 16)
    assert on_disk["source"]["dataset"] == "made"


class Scripted:
    """Stories without a model: one blank, one of each length."""

    texts = ("", "one two", "one two three four", "one two")


def test_a_blank_story_is_in_no_pair_and_of_equal_ones_the_first_is_taken(data, monkeypatch):
    tokenizer = load_tokenizer(data / "model")
    monkeypatch.setattr(
        "lm_trials.evaluation.storytellers.Storyteller.write",
        lambda self, prompts, keys, *_, **__: [
            tokenizer.encode(Scripted.texts[int(key.rpartition(":")[2])], add_special_tokens=False) for key in keys
        ],
    )
    _, splits = made(data, "scripted", reward_funcs=["length:4"], num_samples=4)
    assert {(row["chosen"], row["rejected"]) for row in splits["train"]} == {("one two three four", "one two")}
    monkeypatch.setattr(Scripted, "texts", ("", "one two"))
    with pytest.raises(UsageError, match="largest difference is 0;"):
        made(data, "never", reward_funcs=["length:4"], num_samples=2)


def test_a_story_without_any_reward_is_in_no_pair(data, monkeypatch):
    """Counted as 0 it would be the worst story of each prompt."""
    texts = {0: "The cat ran.", 1: "A fox.", 2: "A dog sat down."}
    monkeypatch.setattr(
        preferences,
        "stories_of_others",
        lambda asked, args: preferences.Candidates(
            list(asked),
            [list(texts.values())] * len(asked),
            [[[0]] * 3] * len(asked),
            [[True] * 3] * len(asked),
            {"model": None},
        ),
    )
    (data / "some.py").write_text(
        "def some(completions, **_): return [None if 'fox' in text else len(text) / 99 for text in completions]\n"
    )
    more = {"reward_funcs": [f"{data}/some.py:some"], "margin": 0.01, "model_name_or_path": None}
    _, splits = made(data, "some", **more, max_new_tokens=None)
    assert {(row["chosen"], row["rejected"]) for row in splits["train"]} == {(texts[2], texts[0])}
    monkeypatch.setitem(texts, 0, "The fox ran.")
    assert "largest difference is 0;" in usage_error(made, data, "none", **more, max_new_tokens=None)


def test_without_a_model_a_records_own_story_is_paired_with_one_of_its_split(data):
    columns = ("prompt", "words", "features")
    made_of = [
        (
            split,
            {"record_id": f"{9 * seed + place:016x}" + "0" * 16, "completion": record["story"]}
            | {name: record[name] for name in columns},
        )
        for seed, split in enumerate(SPLITS)
        for place, record in enumerate(generate_stories(9, seed=seed))
    ]
    stories = {split: [row["completion"] for of, row in made_of if of == split] for split in SPLITS}
    more = Features({"words": List(Value("string")), "features": List(Value("string"))})
    write_pairs(made_of, data / "data/generated", "pairs", {"source": "test"}, more)
    flags = {"dataset_name": "generated", "model_name_or_path": None, "max_new_tokens": None, "reward_funcs": ["words"]}
    manifest, splits = made(data, "of-others", **flags, num_samples=3, margin=0.5)
    again, _ = made(data, "of-others-again", **flags, num_samples=3, margin=0.5)
    other, _ = made(data, "of-others-other", **flags, num_samples=3, margin=0.5, seed=1)
    assert manifest["content"] == again["content"] != other["content"]
    assert manifest["model"] is None
    for split in SPLITS:
        assert len(splits[split]) > 4
        for row in splits[split]:
            assert row["chosen"] in stories[split]
            assert row["rejected"] in stories[split]
            assert row["score_chosen"] == 1
            assert row["chosen"] == made_of[int(row["record_id"][:16], 16)][1]["completion"]


def test_a_story_that_was_cut_is_marked(data):
    _, splits = made(data, "cut", max_new_tokens=4, margin=1e-6)
    ended = [row["ended_chosen"] for row in splits["train"]] + [row["ended_rejected"] for row in splits["train"]]
    assert False in ended


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--reward_funcs words --margin 9", "--margin 9: no prompt of the train split has two stories whose rewards"),
        ("--reward_funcs {data}/mine.py:same", "the largest difference is 0; give a smaller --margin, more"),
        ("--reward_funcs {data}/mine.py:broken", "broken raises ZeroDivisionError: float division by zero, for the"),
        ("--reward_funcs word", "--reward_funcs word: unknown reward; did you mean words?"),
        ("--reward_funcs words ends --reward_weights 1", "--reward_weights has 1 weights and --reward_funcs 2"),
        ("--reward_funcs words --margin 0", "--margin 0 must be above 0"),
        ("--reward_funcs words --num_samples 1", "--num_samples 1 must be at least 2"),
        ("--reward_funcs words --output_name made", "made already"),
        ("--reward_funcs words --model_name_or_path ./nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(flags, message, data, capsys):
    before = sorted(data.rglob("*"))
    given = f"--data_cache_dir {data}/data --dataset_name made --model_name_or_path {data}/model --use_cpu"
    words = f"preferences {given} --max_new_tokens 8 {flags}".format(data=data).split()
    with pytest.raises(SystemExit) as left:
        prepare_tinystories.main(words)
    assert left.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(data.rglob("*")) == before


def test_the_command_prints_counts_and_pairs(data, capsys):
    flags = f"--data_cache_dir {data}/data --dataset_name made --model_name_or_path {data}/model --use_cpu"
    prepare_tinystories.main(
        f"preferences {flags} --reward_funcs length:10 --margin 0.2 --max_new_tokens 16 --temperature 1".split()
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "prompts 8 train, 4 validation, 3 test" in shown
    assert "1 prompt is in another split" in shown
    assert np.all([side in shown for side in ("chosen", "rejected")])
    assert (data / "data/made-preferences/pairs").is_dir()
