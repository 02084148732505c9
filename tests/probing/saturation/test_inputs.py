"""Which records of a window are read: each once, all of them or those of random updates."""

from types import SimpleNamespace

import numpy as np

from lm_trials.data.datasets import PreparedTexts, Text
from lm_trials.probing.saturation.inputs import record_metrics, records_read


class Order:
    """Ten updates of two blocks; update u reads record u of the first part, and record u // 2 of the second."""

    names = ("a", "b")

    def parts_of(self, update):
        found = [("a", f"a{update}"), ("b", f"b{update // 2}"), ("b", f"b{update // 2}")]
        return [SimpleNamespace(corpus=corpus, record_id=record) for corpus, record in found]


def test_a_record_counts_once():
    found = records_read(Order(), 3, 6, most=100, seed=0)
    assert {name: sorted(ids) for name, ids in found.items()} == {
        "a": ["a3", "a4", "a5", "a6"],
        "b": ["b1", "b2", "b3"],
    }


def test_of_more_records_those_of_random_updates_are_read():
    read = [records_read(Order(), 1, 10, most=4, seed=seed)["a"] for seed in range(20)]
    assert {len(ids) for ids in read} <= {2, 3}  # as many updates as have four records
    assert {each for ids in read for each in ids} == {f"a{update}" for update in range(1, 11)}
    assert read[0] == records_read(Order(), 1, 10, most=4, seed=0)["a"]


def test_a_record_that_is_not_there_has_no_value(tmp_path):
    texts = [Text("x", "One two three.", "", []), Text("y", "One.", "", [])]
    prepared = PreparedTexts(tmp_path, "", {"train": 2}, lambda split, start, stop: iter(texts[start:stop]))
    dataset = SimpleNamespace(texts=lambda: prepared, name="none")
    dataset.as_prepared = lambda: dataset
    dataset.label = "none"
    found = record_metrics(dataset, ["y", "gone", "x"], ["words"])["words"]
    assert np.array_equal(found, [1, np.nan, 3], equal_nan=True)
