"""The description of a data set's metrics: quantiles, rank correlations, and what a protocol changed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from tiny_evaluations import table_in

import prepare_tinystories
from lm_trials.metrics.describe import changes_of, correlations_of, quantiles_of
from lm_trials.stories.corpora import open_records

pytestmark = pytest.mark.end_to_end

VALUES = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=["a", "b", "c"])
VALUES["c"] += VALUES["a"]
VALUES.loc[:20, "b"] = np.nan


def test_quantiles_are_those_of_the_texts_with_a_value():
    (row,) = (row for row in quantiles_of(VALUES) if row["metric"] == "b")
    known = VALUES["b"].to_numpy()[21:]
    assert row["texts"] == 179
    assert [row["5 %"], row["50 %"], row["95 %"]] == pytest.approx(np.quantile(known, [0.05, 0.5, 0.95]))
    assert row["SD"] == pytest.approx(np.std(known, ddof=1))
    assert row["mean"] != pytest.approx(VALUES["b"].fillna(0).mean())


def test_correlations_are_spearmans_over_the_texts_that_have_both():
    found = {(row["metric"], row["other"]): row["correlation"] for row in correlations_of(VALUES)}
    assert found["a", "c"] == pytest.approx(spearmanr(VALUES["a"], VALUES["c"]).statistic)
    assert found["a", "b"] == pytest.approx(spearmanr(VALUES["a"][21:], VALUES["b"][21:]).statistic)
    assert found["a", "c"] > 0.5 > abs(found["a", "b"])
    assert ("a", "d") not in {(row["metric"], row["other"]) for row in correlations_of(VALUES.assign(d=1.0))}


def test_changes_compare_the_same_texts():
    before = pd.DataFrame({"words": [1.0, 2.0, 3.0, 4.0], "bleu": [np.nan] * 4}, index=["a", "b", "b", "c"])
    after = pd.DataFrame({"words": [2.0, 5.0, 4.0], "bleu": [np.nan] * 3}, index=["b", "b", "c"])
    words, bleu = changes_of(before, after)
    assert words == {"metric": "words", "corpus": 2.5, "kept": 3.0, "after": 11 / 3, "texts changed": 1 / 3}
    assert bleu["texts changed"] == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("described")


@pytest.fixture(scope="module")
def described(tiny_data, folder):
    """Return the command that describes `tiny`, or `short`, a set of its stories without a Twist and cut."""
    shutil.copytree(tiny_data / "tiny", folder / "data/tiny")
    data = ["--data_cache_dir", str(folder / "data")]
    protocol = ["--filtering", "features!=Twist", "--transform", "truncate_story:3", "--dataset_name", "short"]
    tokenizer = ["--tokenizer_name", str(tiny_data / "tok400")]
    prepare_tinystories.main(["pretokenize", "--corpus", "tiny", *tokenizer, *protocol, *data])
    output = ["--output_dir", str(folder / "out")]
    for name in ("tiny", "short"):
        prepare_tinystories.main(["metadata", "--dataset_name", name, "--no_sentiment", *data, *output])
    return lambda *name: prepare_tinystories.main(["describe", *name, "--metrics", *data, *output])


def test_a_set_is_described_with_its_corpus(described, folder, capsys):
    report = described("short", "--json", str(folder / "report.json"))
    records = open_records(folder / "data/tiny", "train")
    kept = [row for row in records if "Twist" not in row["features"]]
    (words,) = (row for row in report["metric_changes"] if row["metric"] == "words")
    assert report["texts"] == len(kept) < len(records)
    assert words["corpus"] > words["after"]
    assert words["kept"] == pytest.approx(np.mean([len(row["story"].split()) for row in kept]), rel=0.01)
    assert words["texts changed"] == 1
    assert table_in(folder / "out/short/metric_changes.csv")[0]["metric"] == "words"
    assert (folder / "out/short/metrics.png").stat().st_size > 10_000
    assert json.loads((folder / "report.json").read_text())["metric_changes"] == report["metric_changes"]
    out = capsys.readouterr().out
    assert "before and after the protocol of short" in out
    assert "Strongest rank correlations" in out


def test_a_corpus_has_no_changes(described, folder, capsys):
    report = described("--corpus", "tiny")
    assert "metric_changes" not in report
    assert {path.name for path in (folder / "out/tiny").iterdir()} == {
        "metric_quantiles.csv",
        "metric_correlations.csv",
        "metrics.png",
        "metrics.svg",
    }
    assert "before and after" not in capsys.readouterr().out
