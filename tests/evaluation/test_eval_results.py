"""`eval_checkpoint.py` from its command line to its files, on tiny models and stories made here."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_evaluations import numbers, results_in, stories_in, table_in
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from lm_trials.stories.records import FEATURES
from lm_trials.tokens.tokenizers import batch_encoder

SHARED_COLUMNS = {"estimate", "lower", "upper", "n", "unit"}


def manual_loss(model_dir, rows):
    """Nats per token of the stories, one forward at a time, in float64, with nothing of ours but the tokenizer."""
    kind = "gpt2" if "gpt2" in str(model_dir) else "llama"
    model = tiny_model(kind, vocab_size=330, dtype=torch.float64)
    encode = batch_encoder(AutoTokenizer.from_pretrained(model_dir))
    nats = tokens = 0
    for row in rows:
        (ids,) = encode([row["story"]])
        assert len(ids) < 64
        ids = torch.tensor([[1, *ids]])
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return nats / tokens, tokens


# What comes out


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_per_story_is_the_mean_over_all_tokens_of_a_manual_loop(run, tmp_path, kind, capsys):
    short = [
        row
        for row in (json.loads(line) for line in (tmp_path / "stories.jsonl").read_text().splitlines())
        if len(row["story"]) < 60
    ]
    assert 4 <= len(short) < 30
    Path("short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    rows = run(model=kind, data="short.jsonl")
    loss, tokens = manual_loss(tmp_path / kind, short)
    metrics = results_in(tmp_path / "out")
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["eval_perplexity"] == metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    num_bytes = sum(len(row["story"].encode()) for row in short)
    assert metrics["eval_bits_per_byte"] == pytest.approx(loss * tokens / math.log(2) / num_bytes, rel=1e-6)
    assert (metrics["eval_samples"], metrics["eval_tokens"]) == (len(short), tokens)
    assert metrics["eval_loss_lower"] < loss < metrics["eval_loss_upper"]
    assert [row["metric"] for row in rows] == ["loss", "perplexity", "accuracy", "bits_per_byte"]
    assert f"{metrics['eval_loss']:.3f}" in capsys.readouterr().out


def test_the_files_are_named_as_the_seeds_are_and_say_the_same(run, tmp_path):
    rows = run("--seed", 3)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "all_results.json",
        "data_args.json",
        "eval_results.csv",
        "eval_results.json",
        "per_story.parquet",
    ]
    assert (out / "all_results.json").read_text() == (out / "eval_results.json").read_text()
    table = table_in(out / "eval_results.csv")
    assert set(table[0]) >= {*SHARED_COLUMNS, "seed", "model", "dataset", "slice", "metric", "tokens"}
    assert [float(row["estimate"]) for row in table] == [row["estimate"] for row in rows]
    settings = json.loads((out / "data_args.json").read_text())
    assert (settings["model_dir"], settings["dataset"], settings["seed"]) == ("llama", "stories", 3)
    assert (settings["block_size"], settings["append_eos"]) == (64, False)
    assert re.fullmatch("[0-9a-f]+", settings["dataset_fingerprint"] + settings["tokenizer_hash"])
    stories = pq.read_table(out / "per_story.parquet").to_pylist()
    metrics = results_in(out)
    assert math.fsum(row["nats"] for row in stories) / sum(row["tokens"] for row in stories) == pytest.approx(
        metrics["eval_loss"], rel=1e-12
    )
    assert len({row["record_id"] for row in stories}) == 30


def test_again_gives_the_same_numbers_and_another_batch_size_the_same_within_rounding(run, tmp_path):
    for name, flags in (("a", []), ("b", []), ("c", ["--per_device_eval_batch_size", 3])):
        run(*flags, output=name)
    a, b, c = (numbers(results_in(tmp_path / name)) for name in "abc")
    assert a == b
    assert c == pytest.approx(a, rel=1e-6)
    run("--seed", 1, output="d")
    d = numbers(results_in(tmp_path / "d"))
    assert d["eval_loss"] == a["eval_loss"]
    assert d["eval_loss_lower"] != a["eval_loss_lower"]


def test_packed_counts_every_token_but_one_and_is_another_number(run, tmp_path):
    run(output="per_story")
    run("--layout", "packed", "--block_size", 32, output="packed")
    run("--layout", "packed", "--block_size", 32, "--no_attention_across_documents", output="apart")
    per_story, packed, apart = (results_in(tmp_path / name) for name in ("per_story", "packed", "apart"))
    assert packed["eval_tokens"] == apart["eval_tokens"] == per_story["eval_tokens"] + 30 - 1
    assert packed["eval_samples"] == 30
    assert len({round(r["eval_loss"], 4) for r in (per_story, packed, apart)}) == 3


def test_slices_by_feature_and_source_add_up(run, tmp_path):
    rows = run("--by", "features", "source")
    losses = {row["slice"]: row for row in rows if row["metric"] == "loss"}
    assert next(iter(losses)) == "all"
    everything = losses.pop("all")
    # Of a feature that no story has there is no slice with it, only one without it.
    assert {name for name in losses if "!=" not in name} == {
        "features=Twist", "features=Dialogue", "source=GPT-4", "source=GPT-3.5",
    }  # fmt: skip
    assert (losses["features=Twist"]["n"], losses["features=Dialogue"]["n"]) == (15, 10)
    pairs = [(f"features={name}", f"features!={name}") for name in FEATURES] + [("source=GPT-4", "source=GPT-3.5")]
    for pair in pairs:
        present = [losses[name] for name in pair if name in losses]
        assert sum(row["n"] for row in present) == everything["n"] == 30
        assert sum(row["tokens"] for row in present) == everything["tokens"]
        nats = sum(row["estimate"] * row["tokens"] for row in present)
        assert nats == pytest.approx(everything["estimate"] * everything["tokens"], rel=1e-12)
    assert losses["features=Twist"]["estimate"] != losses["features!=Twist"]["estimate"]
    twist = [
        row
        for row in pq.read_table(tmp_path / "out/per_story.parquet").to_pylist()
        if "features=Twist" in row["slices"]
    ]
    assert len(twist) == 15


def test_a_matrix_of_models_and_data_sets_has_a_folder_for_each(run, tmp_path, capsys):
    rows = run("--model_dir", "gpt2", "--dataset_name", "more.jsonl")
    cells = {(row["model"], row["dataset"]): row["estimate"] for row in rows if row["metric"] == "loss"}
    assert set(cells) == {(model, data) for model in ("llama", "gpt2") for data in ("stories", "more")}
    assert len(set(cells.values())) == 4
    for (model, data), loss in cells.items():
        assert results_in(tmp_path / "out" / model / data)["eval_loss"] == loss
    shown = capsys.readouterr().out
    assert all(f"{model} on {data}" in shown for model, data in cells)


def test_results_lie_beside_a_local_model_by_default(run, tmp_path):
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "llama").iterdir():
        (tmp_path / "mine" / path.name).write_bytes(path.read_bytes())
    run("--max_eval_samples", 3, model="mine", output=None)
    run("--max_eval_samples", 3, "--layout", "packed", model="mine", output=None)
    assert results_in(tmp_path / "mine/eval/stories")["eval_samples"] == 3
    assert results_in(tmp_path / "mine/eval/stories-packed")["eval_samples"] == 3


def make_run(folder, steps=(2, 10), append_eos=True):
    """A run folder: checkpoints with weights of their own, a final model and its run.json."""
    for seed, name in enumerate([*(f"checkpoint-{step}" for step in steps), "."]):
        tiny_model("llama", vocab_size=330, seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "run.json").write_text(json.dumps({"outcome": {"append_eos": append_eos}, "replicate": {"seed": 41}}))


def test_all_checkpoints_are_evaluated_in_order_and_as_they_were_trained(run, tmp_path):
    make_run(tmp_path / "run")
    rows = [row for row in run("--all_checkpoints", model="run") if row["metric"] == "loss"]
    assert [(row["model"], row["step"], row["seed"]) for row in rows] == [
        ("run/checkpoint-2", 2, 41), ("run/checkpoint-10", 10, 41), ("run", None, 41),
    ]  # fmt: skip
    assert len({row["estimate"] for row in rows}) == 3
    assert results_in(tmp_path / "out/run-checkpoint-10/stories")["eval_loss"] == rows[1]["estimate"]
    # The run was trained with EOS after each story, so that is scored too, unless told otherwise.
    (without,) = [row for row in run("--append_eos", "False", model="run") if row["metric"] == "loss"]
    assert rows[2]["tokens"] == without["tokens"] + 30


def test_a_path_is_evaluated_whole_and_can_be_limited_or_split(run):
    def count(*flags):
        return run(*flags)[0]["n"]

    assert count() == 30
    assert count("--max_eval_samples", 7) == 7
    assert count("--dataset_split", "train") < 30  # two of thirty, by the hash of their text


def test_another_tokenizer_can_be_named(run, tmp_path):
    tiny_tokenizer(325).save_pretrained(tmp_path / "other")
    own, other = (run(*flags)[0]["tokens"] for flags in ([], ["--tokenizer_name", "other"]))
    assert other > own


def test_mixtures_of_the_parts_of_a_folder(run, tmp_path):
    (tmp_path / "parts").mkdir()
    for name in ("stories", "more"):
        (tmp_path / f"parts/{name}.jsonl").write_bytes((tmp_path / f"{name}.jsonl").read_bytes())
    mix = ["--dataset_config_name", "stories+more", "--data_mix", ".75,.25", "--max_eval_samples", 20]
    (loss, *_) = run(*mix, data="parts")
    assert (loss["n"], loss["dataset"]) == (20, "parts-stories-more")
    ids = {row["record_id"] for row in pq.read_table(tmp_path / "out/per_story.parquet").to_pylist()}
    run(data="more.jsonl", output="more")
    assert len(ids & {row["record_id"] for row in pq.read_table(tmp_path / "more/per_story.parquet").to_pylist()}) == 5


def test_a_config_file_repeats_an_evaluation(run, tmp_path):
    Path("flags.yaml").write_text("layout: packed\nblock_size: 32\nby: [features]\nmax_eval_samples: 9\n")
    loss = run("--config", "flags.yaml", "--max_eval_samples", 8)[0]
    assert loss["n"] == 8
    settings = json.loads((tmp_path / "out/data_args.json").read_text())
    assert (settings["layout"], settings["block_size"], settings["by"]) == ("packed", 32, ["features"])


def test_one_story_has_a_loss_and_no_interval_and_the_json_stays_json(run, tmp_path):
    run("--max_eval_samples", 1)
    text = (tmp_path / "out/eval_results.json").read_text()
    assert "NaN" not in text
    metrics = json.loads(text)
    assert metrics["eval_loss"] > 0
    assert metrics["eval_loss_lower"] is None


def test_continuations_are_scored_into_tables(run, tmp_path, capsys):
    rows = run("--generate", 4, "--tables_dir", "tables", "--temperature", 1)
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "llama-stories-continuation_scores.csv",
        "llama-stories-continuations.csv",
    ]
    scores = table_in(tmp_path / "tables/llama-stories-continuation_scores.csv")
    assert set(scores[0]) >= SHARED_COLUMNS
    assert [row["metric"] for row in scores] == ["bleu", "rouge_l", "length_ratio"]
    assert [row["metric"] for row in rows[-3:]] == ["bleu", "rouge_l", "length_ratio"]
    assert all(row["n"] == "4" for row in scores)
    stories = table_in(tmp_path / "tables/llama-stories-continuations.csv")
    assert len(stories) == 4
    texts = [row["story"] for row in stories_in(tmp_path / "stories.jsonl")]
    for story in stories:
        whole = (story["prompt"] + story["reference"]).replace(" ", "")
        assert whole in [text.replace(" ", "") for text in texts]
    mean = np.mean([float(story["bleu"]) for story in stories])
    assert float(scores[0]["estimate"]) == pytest.approx(mean)
    assert "passed over" in capsys.readouterr().out


def test_the_trained_260k_model_on_real_stories(shared_data, run, tmp_path):
    """A prefix of the 3,117 validation stories; the whole gives 1.346 packed and 1.314 per story (README)."""
    model, data = str(shared_data / "stories260K/hf"), str(shared_data / "tinystories/val.jsonl")
    packed = ["--layout", "packed", "--block_size", 512, "--max_eval_samples", 60]
    loss, _, accuracy, _ = run(*packed, model=model, data=data)
    assert loss["estimate"] == pytest.approx(1.35, abs=0.08)
    assert loss["lower"] < 1.35 < loss["upper"]
    assert 0.6 < accuracy["estimate"] < 0.67
    untrained = run("--max_eval_samples", 5, "--tokenizer_name", model, model=_untrained(tmp_path), data=data)[0]
    assert untrained["estimate"] > 6  # the neighbour


def _untrained(tmp_path):
    tiny_model("llama", vocab_size=512).save_pretrained(tmp_path / "untrained")
    return "untrained"
