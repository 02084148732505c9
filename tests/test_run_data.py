"""The data set of a run, as flags that read its validation split."""

import pytest

from lm_trials.run_data import own_data

STORIES, TALES = {"corpus": "stories-0a1b2c3d", "content": "c"}, {"corpus": "tales", "content": "d"}


def run_of(dataset_name, data, **outcome):
    return {
        "outcome": {"dataset_name": dataset_name, "data": data, **outcome},
        "logistics": {"data_cache_dir": "there"},
    }


@pytest.mark.parametrize(
    ("given", "data", "name"),
    [
        ("stories.jsonl", STORIES, "stories-0a1b2c3d"),
        ("owner/stories", STORIES, "stories-0a1b2c3d"),
        ("tales", TALES, "tales"),
        ("elsewhere/tales", TALES, "elsewhere/tales"),
        ("filter-Twist", {**TALES, "protocol": {"seed": 0}}, "filter-Twist"),
    ],
)
def test_prepared_data_has_its_prepared_name(given, data, name):
    assert own_data(run_of(given, data)) == {"dataset_name": name, "data_cache_dir": "there"}


def test_the_parts_of_a_mixture_keep_the_order_of_the_flag():
    parts = {"stories-0a1b2c3d": STORIES, "tales": TALES}  # `run.json` sorts them
    mixture = run_of("tales+stories.jsonl", {"parts": parts}, data_mix=".3,.7")
    assert own_data(mixture) == {
        "dataset_name": "tales+stories-0a1b2c3d",
        "data_mix": ".3,.7",
        "data_cache_dir": "there",
    }
    configs = run_of("pile", {"parts": {"b": {"corpus": "pile-b-1"}, "a": {"corpus": "pile-a-2"}}})
    configs["outcome"]["dataset_config_name"] = "b+a"
    assert own_data(configs)["dataset_name"] == "pile-b-1+pile-a-2"
    assert own_data(run_of("tales+other", {"parts": parts})) is None


def test_a_stream_is_read_as_a_stream_and_not_with_another_validation_share():
    stream = {"source": {"reference": "stories.jsonl", "fingerprint": "f"}}
    flags = own_data(run_of("stories.jsonl", stream, text_column="body"))
    assert (flags["streaming"], flags["dataset_split"]) == ("True", "validation")
    assert flags["text_column"] == "body"
    assert own_data(run_of("stories.jsonl", stream, validation_split_percentage=5)) is None


def test_pairs_and_a_run_without_data_have_no_stories():
    assert own_data(run_of("pairs.jsonl", {"examples": "instruct-1", "content": "c"})) is None
    assert own_data(None) is own_data({"outcome": {}}) is None
