"""Sums by slice, and the Parquet file of stories."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.evaluation.losses import Document, StoryLoss
from lm_trials.evaluation.results import ROWS_AT_ONCE, StoryTable
from lm_trials.evaluation.summary import BATCH, LossSummary, record_documents, store_documents
from lm_trials.files import write_csv, write_json
from lm_trials.stories.records import make_record
from lm_trials.tokens.blocks import tiny_store
from lm_trials.tokens.tokenizers import batch_encoder


def story(number, nats=2.0, tokens=1, correct=0, num_bytes=4, groups=("all",)):
    document = Document(f"r{number}", np.zeros(tokens + 1, dtype=int), num_bytes, groups)
    return StoryLoss(document, nats, tokens, correct)


def summary_of(stories, seed=0):
    summary = LossSummary(seed)
    for one in stories:
        summary.add(one)
    return summary


def test_means_are_over_tokens_and_bytes_not_over_stories():
    metrics = summary_of([story(0, nats=1.0, tokens=1, correct=1, num_bytes=2), story(1, 9.0, 3, 0, 8)]).metrics()
    assert metrics["eval_loss"] == 10 / 4  # the mean of the stories' means is 2
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(2.5))
    assert metrics["eval_accuracy"] == 1 / 4
    assert metrics["eval_bits_per_byte"] == pytest.approx(1 / math.log(2))
    assert (metrics["eval_samples"], metrics["eval_tokens"]) == (2, 4)
    assert summary_of([story(0)]).metrics("test")["test_loss"] == 2.0


def test_a_story_without_a_target_is_counted_apart():
    summary = summary_of([story(0), story(1, 0.0, 0), story(2)])
    assert (summary.unscored, summary.metrics()["eval_samples"]) == (1, 2)
    with pytest.raises(UsageError, match="no story has a token to predict; give stories of at least two tokens"):
        summary_of([story(0, 0.0, 0)]).metrics()


def test_asking_in_between_changes_nothing_and_memory_holds_a_batch():
    generator = np.random.default_rng(0)
    stories = [story(n, generator.gamma(5), int(generator.integers(1, 9))) for n in range(BATCH + 100)]
    asked = LossSummary()
    for one in stories:
        asked.add(one)
        if one.document.record_id in ("r7", f"r{BATCH}"):
            asked.metrics()
        assert len(asked._waiting) < BATCH
    assert asked.metrics() == summary_of(stories).metrics()
    assert asked.metrics() != summary_of(stories, seed=1).metrics()


def test_slices_have_their_own_rows_and_all_comes_first():
    rows = summary_of(
        [story(0, 1.0, groups=("all", "features=Twist")), story(1, 3.0, groups=("all", "features!=Twist"))]
    ).rows()
    assert [row["slice"] for row in rows[::4]] == ["all", "features=Twist", "features!=Twist"]
    assert [row["estimate"] for row in rows[::4]] == [2.0, 1.0, 3.0]
    assert [row["tokens"] for row in rows[::4]] == [2, 1, 1]


def test_parts_of_stories_have_rows_of_their_own_and_the_rest_keeps_its_draws():
    stories = [story(number, float(number), 4) for number in range(40)]
    plain = summary_of(stories)
    for number, one in enumerate(stories):
        one.parts["Twist"] = story(number, number / 2, number % 2, num_bytes=3)
        one.parts["Dialogue"] = story(number, 0.0, 0)
    summary = summary_of(stories)
    assert summary.rows()[:4] == plain.rows()
    assert [row["slice"] for row in summary.rows()[4:]] == ["sentences=Twist"] * 4
    metrics = summary.metrics("eval_set")
    assert plain.metrics("eval_set").items() <= metrics.items()
    odd = summary_of([story(number, number / 2, 1, num_bytes=3) for number in range(1, 40, 2)])
    expected = odd.metrics("eval_set_sentences_Twist")
    assert expected.items() <= metrics.items()
    assert expected["eval_set_sentences_Twist_loss_lower"] < 10 < expected["eval_set_sentences_Twist_loss_upper"]
    assert metrics["eval_set_sentences_Twist_stories_without"] == 20
    of_dialogue = {name: value for name, value in metrics.items() if "Dialogue" in name}
    under = "eval_set_sentences_Dialogue"
    assert of_dialogue == {f"{under}_samples": 0, f"{under}_stories_without": 40}


def test_documents_of_records_and_of_a_store_are_the_same():
    tokenizer = tiny_tokenizer()
    encode = batch_encoder(tokenizer)
    records = [make_record(f"a cat sat {'on a mat ' * (number % 7)}") for number in range(BATCH + 3)]
    documents = list(record_documents(records, encode, ([1], [2])))
    assert [d.record_id for d in documents] == [r["record_id"] for r in records]
    assert all(
        d.input_ids.tolist() == [1, *encode([r["story"]])[0], 2] for d, r in zip(documents, records, strict=True)
    )
    store = tiny_store([d.input_ids.tolist() for d in documents[:5]])
    assert [d.input_ids.tolist() for d in store_documents(store)] == [d.input_ids.tolist() for d in documents[:5]]
    assert len(list(store_documents(store, limit=2))) == 2
    assert len(list(store_documents(store, limit=99))) == 5


def test_bytes_are_of_the_story_as_utf_8():
    (document,) = record_documents([make_record("a café")], batch_encoder(tiny_tokenizer()), ([1], []))
    assert document.num_bytes == 7


def test_a_story_table_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new/folder/per_story.parquet"
    with StoryTable(path) as table:
        for number in range(ROWS_AT_ONCE + 5):
            table.add(story(number, nats=number / 3, groups=("all", "source=x")))
            assert len(table._rows) < ROWS_AT_ONCE
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["per_story.parquet"]
    rows = pq.read_table(path).to_pylist()
    assert [row["nats"] for row in rows] == [number / 3 for number in range(ROWS_AT_ONCE + 5)]
    assert rows[0]["slices"] == ["source=x"]


@pytest.mark.parametrize("count", [3, ROWS_AT_ONCE + 5])
def test_a_story_table_of_a_failed_evaluation_is_gone_with_its_folders(tmp_path, count):
    def fail():
        with StoryTable(tmp_path / "new/folder/per_story.parquet") as table:
            for number in range(count):
                table.add(story(number))
            raise UsageError("the next story is broken")

    with pytest.raises(UsageError, match="broken"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [3, ROWS_AT_ONCE + 5])
@pytest.mark.parametrize("method", ["__init__", "write_table", "close"])
def test_a_full_disk_names_the_story_table_and_leaves_nothing(tmp_path, monkeypatch, method, count):
    def full(self, *rows):
        self.is_open = False  # else its destructor closes it again
        raise OSError(28, "No space left on device")

    def write():
        with StoryTable(path) as table:
            for number in range(count):
                table.add(story(number))

    path = tmp_path / "new/per_story.parquet"
    monkeypatch.setattr(pq.ParquetWriter, method, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*new/per_story.parquet'"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_json_has_null_for_what_is_not_finite_and_csv_all_columns(tmp_path):
    write_json(tmp_path / "a/b.json", {"x": float("nan"), "y": float("inf"), "z": 1.5, "n": None})
    assert json.loads((tmp_path / "a/b.json").read_text()) == {"x": None, "y": None, "z": 1.5, "n": None}
    write_csv(tmp_path / "a/b.csv", [{"x": 1}, {"x": "a,\nb", "y": 2}])
    assert (tmp_path / "a/b.csv").read_bytes() == b'x,y\r\n1,\r\n"a,\nb",2\r\n'
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.csv", "b.json"]


def test_features_that_no_story_names_are_unknown_and_not_absent():
    unknown = summary_of([story(n, groups=("all", "features!=Twist")) for n in range(3)])
    assert unknown.drop_unknown_features()
    assert {row["slice"] for row in unknown.rows()} == {"all"}
    known = summary_of([story(0, groups=("all", "features=Twist")), story(1, groups=("all", "features!=Twist"))])
    assert not known.drop_unknown_features()
    assert {row["slice"] for row in known.rows()} == {"all", "features=Twist", "features!=Twist"}
