"""The losses of a table are those of an evaluation, story for story, and of a plain forward pass."""

import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval_checkpoint
import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.evaluation.model_losses import ModelLosses
from lm_trials.metrics.tables import open_metrics
from lm_trials.stories.corpora import open_records


@pytest.fixture
def data(tiny_data, tmp_path):
    shutil.copytree(tiny_data / "tiny", tmp_path / "data/tiny")
    return tmp_path / "data"


def test_losses_are_those_of_an_evaluation(data, tiny_base, tmp_path):
    flags = ["--model_name_or_path", str(tiny_base), "--data_cache_dir", str(data), "--dataset_name", "tiny"]
    output = ["--output_dir", str(tmp_path / "out"), "--use_cpu"]
    prepare_tinystories.main(["metadata", *flags, *output, "--no_sentiment"])
    found = open_metrics(open_dataset("tiny", data), "validation", ["loss", "perplexity"])
    eval_checkpoint.main([*flags, "--output_dir", str(tmp_path / "eval"), "--use_cpu"])
    stories = pq.read_table(tmp_path / "eval/per_story.parquet").to_pylist()
    expected = {story["record_id"]: story["nats"] / story["tokens"] for story in stories}
    assert found.table["record_id"].to_pylist() == list(expected)
    assert found.values("loss") == pytest.approx(list(expected.values()), rel=1e-6)
    assert found.values("perplexity").tolist() == [math.exp(loss) for loss in found.values("loss")]
    assert len({*found.values("loss")}) > 1
    assert (tmp_path / "out/batch_metrics.csv").read_text().count("\n") == 401
    assert found.described["loss"] == found.described["perplexity"]

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    story = open_records(data / "tiny", "validation")[0]["story"]
    ids = [tokenizer.bos_token_id, *tokenizer(story, add_special_tokens=False)["input_ids"]][:64]
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        plain = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    scorer = ModelLosses(str(tiny_base), use_cpu=True)
    cut = {"record_id": "", "features": [], "source": "", "story": tokenizer.decode(ids[1:])}
    (scores,) = scorer.measure([cut])
    assert scores["loss"] == pytest.approx(float(plain), rel=1e-5)
    with torch.no_grad():
        scorer.model.lm_head.weight.add_(torch.randn_like(scorer.model.lm_head.weight))
    assert next(scorer.measure([cut]))["loss"] != pytest.approx(float(plain), rel=1e-2)


def test_a_text_of_no_token_has_no_loss(tiny_base):
    scorer = ModelLosses(str(tiny_base), use_cpu=True)
    scorer.candidate = scorer.candidate.__class__(**{**vars(scorer.candidate), "append_eos": False})
    (scores,) = scorer.measure([{"record_id": "", "features": [], "source": "", "story": ""}])
    assert np.isnan([scores["loss"], scores["perplexity"]]).all()


def test_a_model_is_named_by_its_weights(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "copy")
    assert ModelLosses(str(tmp_path / "copy"), True).described() == ModelLosses(str(tiny_base), True).described()
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.lm_head.weight.data[0] = 0
    model.save_pretrained(tmp_path / "copy")
    (tmp_path / "copy/finished.json").unlink()
    assert ModelLosses(str(tmp_path / "copy"), True).described() != ModelLosses(str(tiny_base), True).described()


def test_pairs_have_no_loss(data, tiny_base, tiny_pairs, tmp_path):
    flags = ["--model_name_or_path", str(tiny_base), "--data_cache_dir", str(data), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        prepare_tinystories.main(["metadata", "--dataset_name", str(tiny_pairs), *flags, "--use_cpu"])
    (folder,) = data.glob("rows-pairs-*")
    assert list(folder.glob("metrics-*")) == []
    with pytest.raises(UsageError, match="is a data set of pairs and has no stories"):
        open_dataset(folder.name, data).select()
