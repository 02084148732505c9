"""Tables of metrics: rows in the order of the data set, the same bytes however they are made, mistakes in one line."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_evaluations import write_stories

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.data.inventory import faults_of
from lm_trials.metrics import tables
from lm_trials.metrics.tables import TABLE, make_metrics, open_metrics, write_table
from lm_trials.metrics.texts import Measures, UserMetric, parse_metrics, text_metrics
from lm_trials.pairs.pairs import open_pairs
from lm_trials.protocols.set_texts import set_texts
from lm_trials.stories.corpora import open_records
from lm_trials.stories.workers import StoppedError

pytestmark = pytest.mark.end_to_end

FAST = Measures(sentiment=False)


@pytest.fixture
def data(tiny_data, tmp_path, monkeypatch):
    """A data folder with the corpus `tiny`; pieces are of 50 rows."""
    monkeypatch.setattr(tables, "PIECE_ROWS", 50)
    made_of_it = shutil.ignore_patterns("tokens-*", "instructions-*", "metrics-*")
    shutil.copytree(tiny_data / "tiny", tmp_path / "data/tiny", ignore=made_of_it)
    return tmp_path / "data"


def made(name, data, measures=FAST, **options):
    dataset = open_dataset(str(name), data).as_prepared()
    make_metrics(dataset, measures, **options)
    return dataset


def assert_rows(dataset, split, expected):
    """Compare a table with texts and prompts that were read another way."""
    table = open_metrics(dataset, split).table
    assert table["record_id"].to_pylist() == [record_id for record_id, _, _ in expected]
    for row, (_, text, prompt) in zip(table.to_pylist(), expected, strict=True):
        metrics = text_metrics([text], [prompt], FAST)
        for name in ("words", "gunning_fog", "vocabulary_diversity", "bleu_score"):
            assert row.get(name, np.nan) == pytest.approx(metrics[name][0], abs=0, nan_ok=True)


def test_the_rows_of_a_corpus_are_its_records(data):
    dataset = made("tiny", data)
    for split in ("train", "validation", "test"):
        records = open_records(data / "tiny", split)
        assert_rows(dataset, split, [(row["record_id"], row["story"], row["prompt"]) for row in records])
    found = open_metrics(dataset, "train", ["gunning_fog", "words"])
    assert found.table.column_names == ["record_id", "gunning_fog", "words"]
    assert found.values("words").dtype == np.float64
    assert len({*found.values("gunning_fog")}) > 50
    assert found.described["words"] == {"version": 1}
    features = open_metrics(dataset).values("feature_Twist")
    assert features.tolist() == ["Twist" in row["features"] for row in open_records(data / "tiny", "train")]


def test_the_rows_of_a_protocol_set_are_its_documents(data, tiny_data):
    words = ["--filtering", "features!=Twist", "--refusal", "features=BadEnding:0.5", "--dataset_name", "set"]
    flags = ["--corpus", "tiny", "--tokenizer_name", str(tiny_data / "tok400"), "--data_cache_dir", str(data)]
    prepare_tinystories.main(["pretokenize", *flags, *words])
    dataset = made("set", data)
    texts = list(set_texts("set", data, "train"))
    assert_rows(dataset, "train", [(text.record_id, text.story, text.prompt) for text in texts])
    assert any(text.refused for text in texts)
    assert len(texts) < len(open_records(data / "tiny", "train"))
    with pytest.raises(UsageError, match="tiny has no metrics"):  # the set's are not those of its corpus
        open_metrics(open_dataset("tiny", data))


def test_files_of_stories_and_of_pairs_are_prepared_first(data, tiny_pairs, tmp_path):
    write_stories(tmp_path / "mine.jsonl", 60)
    corpus = made(tmp_path / "mine.jsonl", data)
    records = open_records(data / corpus.label, "train")
    assert_rows(corpus, "train", [(row["record_id"], row["story"], "") for row in records])
    again = open_metrics(open_dataset(str(tmp_path / "mine.jsonl"), data))  # by the path
    assert again.table == open_metrics(corpus).table
    assert "bleu_score" not in again.described  # no text has a prompt
    pairs = made(tiny_pairs, data)
    rows = open_pairs(pairs.label, data).splits["train"]
    assert_rows(pairs, "train", [(row["record_id"], row["completion"], row["prompt"]) for row in rows])
    assert "feature_Twist" in again.described
    assert "feature_Twist" not in open_metrics(pairs).described


def test_a_conversation_is_measured_by_its_answers(data, tmp_path):
    turns = [("system", "Be kind."), ("user", "Tell me a story."), ("assistant", "A cat sat."), ("user", "And?")]
    messages = [{"role": role, "content": content} for role, content in [*turns, ("assistant", "It slept.")]]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    texts = open_dataset(str(tmp_path / "chat.jsonl"), data).as_prepared().texts()
    ((_, text, prompt, _),) = (row for split, count in texts.num_rows.items() for row in texts.read(split, 0, count))
    assert text == "A cat sat.\nIt slept."
    assert prompt == "Be kind.\nTell me a story.\nAnd?"


def files(data):
    (folder,) = (data / "tiny").glob("metrics-*")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_workers_makes_the_same_bytes(data):
    made("tiny", data)
    one = files(data)
    shutil.rmtree(next((data / "tiny").glob("metrics-*")))
    made("tiny", data, num_workers=2)
    assert files(data) == one
    assert {*one} == {TABLE, "manifest.json"}
    assert list(data.glob("tiny/.*")) == []


def test_an_interrupted_call_resumes_with_the_same_bytes(data, monkeypatch):
    made("tiny", data)
    whole = files(data)
    shutil.rmtree(next((data / "tiny").glob("metrics-*")))
    measured = []
    measure = Measures.measure

    def counted(self, texts):
        measured.extend(text.record_id for text in texts)
        if len(measured) == 300:
            raise StoppedError("the disk is full")
        return measure(self, texts)

    monkeypatch.setattr(Measures, "measure", counted)
    with pytest.raises(StoppedError):
        made("tiny", data)
    assert list(data.glob("tiny/metrics-*")) == []
    first = len(measured)
    made("tiny", data)
    assert files(data) == whole
    assert first == 300
    assert len(measured) == 400 + 50  # the piece that was not written again, and no other
    made("tiny", data)
    assert len(measured) == 450  # the table is there


def test_a_change_of_what_determines_a_metric_makes_another_table(data):
    made("tiny", data)
    made("tiny", data, Measures(sentiment=False, flagged=frozenset(["dog"])))
    assert len(list(data.glob("tiny/metrics-*"))) == 2
    dataset = open_dataset("tiny", data)
    assert open_metrics(dataset, names=["words"], named_by="--order_by").described == {"words": {"version": 1}}
    with pytest.raises(UsageError, match=r"--order_by flagged_words: it is .*; remove one of these folders"):
        open_metrics(dataset, names=["flagged_words"], named_by="--order_by")


def test_tables_with_other_metrics_are_read_together(data, tmp_path):
    made("tiny", data)
    (tmp_path / "mine.py").write_text("def length(text):\n    return len(text)\n")
    made("tiny", data, Measures(sentiment=False, functions=parse_metrics([f"{tmp_path / 'mine.py'}:length"])))
    found = open_metrics(open_dataset("tiny", data), names=["length", "words"])
    assert found.values("length").tolist() == [len(row["story"]) for row in open_records(data / "tiny", "train")]
    assert "sha256" in found.described["length"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gunnin_fog", "--keep gunnin_fog: tiny has no such metric; did you mean gunning_fog"),
        ("loss", "--keep loss: tiny has no such metric"),
    ],
)
def test_an_unknown_metric_is_named(data, name, message):
    with pytest.raises(UsageError, match=message):
        open_metrics(made("tiny", data), names=[name], named_by="--keep")


def test_a_data_set_without_metrics_has_the_command_that_makes_them(data):
    with pytest.raises(UsageError, match="tiny has no metrics; make them with: lm-trials prepare metadata"):
        open_metrics(open_dataset("tiny", data))


def test_a_changed_corpus_has_no_metrics(data):
    dataset = made("tiny", data)
    manifest = json.loads((data / "tiny/manifest.json").read_text())
    manifest["files"] = {**manifest["files"], "more": {"sha256": "0", "bytes": 0}}
    (data / "tiny/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="tiny has no metrics"):
        open_metrics(dataset)


def test_a_damaged_table_is_refused(data):
    dataset = made("tiny", data)
    (folder,) = data.glob("tiny/metrics-*")
    assert list(faults_of(data / "tiny")) == []
    content = (folder / TABLE).read_bytes()
    (folder / TABLE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert list(faults_of(data / "tiny")) == [
        f"{folder.name}/metrics.parquet has other content than when it was written (sha256)"
    ]
    with pytest.raises(UsageError, match=r"is damaged: metrics.parquet has other .*; remove it and make it again"):
        open_metrics(dataset)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match=r"manifest.json cannot be read"):
        open_metrics(dataset)


def test_a_mixture_has_no_metrics_of_its_own(data):
    shutil.copytree(data / "tiny", data / "other")
    with pytest.raises(UsageError, match=r"tiny\+other is a mixture and has no texts of its own; name each"):
        open_metrics(open_dataset("tiny+other", data))


def test_a_function_that_fails_leaves_nothing(data, tmp_path):
    (tmp_path / "mine.py").write_text("def f(text):\n    return 1 / 0\n")
    with pytest.raises(UsageError, match="raises ZeroDivisionError"):
        made("tiny", data, Measures(sentiment=False, functions=(UserMetric(str(tmp_path / "mine.py"), "f", ""),)))
    assert {path.name for path in (data / "tiny").iterdir()} == {"manifest.json", "records"}


def test_the_csv_has_each_row_of_the_table(data, tmp_path):
    made("tiny", data, Measures(sentiment=False, reference=" "))
    (folder,) = data.glob("tiny/metrics-*")
    table = write_table(folder, tmp_path / "out/batch_metrics.csv")
    rows = list(csv.DictReader((tmp_path / "out/batch_metrics.csv").read_text().splitlines()))
    assert [int(row["id"]) for row in rows] == list(range(400))
    assert [float(row["gunning_fog"]) for row in rows] == table["gunning_fog"].to_pylist()
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert pq.read_table(folder / TABLE)["record_id"].to_pylist() == [row["record_id"] for row in rows]
