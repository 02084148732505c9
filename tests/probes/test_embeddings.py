"""The embeddings probe from the command line: planted kinds and moves are told, controls beside, mistakes one line."""

import csv
import json
import shutil

import pytest
import torch
from probe_runs import row
from tiny_models import KINDS, tiny_model, tiny_tokenizer

from lm_trials.models.adapters import LoraSpec, add_lora, without_noise
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.probing.embeddings.geometry import Words
from lm_trials.tokens.tokenizers import train_tokenizer
from probes import embeddings

# 14 tokens: of fewer than 10 there is no interval.
ANIMALS = ("cat", "dog", "fox", "cow", "pig", "hen", "bee")
OTHERS = ("quick", "brown", "jumps", "lazy", "over", "under", "sat")
TEXT = f"The {' and the '.join(ANIMALS)} are {' and '.join(OTHERS)}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of each kind: a start, an end in which the animals lie together and every word of the text moved."""
    place = tmp_path_factory.mktemp("embeddings")
    tokenizer = train_tokenizer([TEXT] * 9, 400)
    words = Words(tokenizer)
    seen = sorted({token for ids in words.encode([TEXT]) for token in ids} | {tokenizer.bos_token_id})
    (place / "kinds.json").write_text(json.dumps({w: "animal" for w in ANIMALS} | {w: "other" for w in OTHERS}))
    (place / "text.jsonl").write_text(json.dumps({"story": TEXT}) + "\n")
    for kind in KINDS:
        for name in ("start", "end"):
            model = tiny_model(kind, vocab_size=400, seed=5)
            if name == "end":
                generator = torch.Generator().manual_seed(1)
                with torch.no_grad():
                    table = model.get_input_embeddings().weight
                    table[seen] += 0.2 * torch.randn(len(seen), 16, generator=generator)
                    for group in (ANIMALS, OTHERS):
                        centre = torch.randn(16, generator=generator)
                        for word in group:
                            table[words.token(word)] += centre
            model.save_pretrained(place / kind / name)
            tokenizer.save_pretrained(place / kind / name)
    adapted = add_lora(load_model(resolve_model(str(place / "llama" / "end"))), LoraSpec(r=2), seed=0)
    with without_noise():
        adapted.save_pretrained(place / "llama" / "adapter")
    run = place / "run"
    for step, name in ((1, "start"), (2, "end")):
        shutil.copytree(place / "llama" / name, run / f"checkpoint-{step}")
    return place


def flags(folder, out, *more, kind="llama", models=("start", "end")):
    names = [str(folder / kind / name) for name in models]
    given = {"categories": folder / "kinds.json", "nearest": 3, "permutations": 100, "output_dir": out}
    return ["--model_name_or_path", *names, *(word for k, v in given.items() for word in (f"--{k}", str(v))), *more]


@pytest.fixture(scope="module", params=KINDS)
def measured(request, folder):
    out = folder / request.param / "out"
    more = ("--dataset_name", str(folder / "text.jsonl"), "--words", "cat", "--neighbours", "6")
    return embeddings.main(flags(folder, out, *more, kind=request.param)), out


def test_planted_kinds_are_told_in_the_end_and_not_in_the_start(measured):
    rows, _ = measured
    found = {
        (model, group): row(rows, model=model, metric="3_nearest", group=group)
        for model in ("start", "end", "random weights")
        for group in ("categories", "categories shuffled")
    }
    assert found["end", "categories"]["lower"] > found["end", "categories shuffled"]["upper"]
    for model in ("start", "random weights"):
        assert found[model, "categories"]["lower"] < found[model, "categories shuffled"]["upper"]
    assert found["random weights", "categories"]["role"] == "control"
    assert found["end", "categories"]["n"] == 14
    assert found["end", "categories"]["p"] < 0.05


def test_tokens_of_the_text_moved_and_the_others_did_not(measured):
    rows, _ = measured
    about = {"model": "end", "metric": "cosine_distance", "since": "first"}
    never = row(rows, **about, group="tokens that never occur")
    assert (never["estimate"], never["role"]) == (pytest.approx(0, abs=1e-9), "control")
    assert row(rows, **about, group="tokens that occur")["lower"] > 0.02
    assert row(rows, **about, group="occur less never occur")["lower"] > 0.02
    assert row(rows, **about, group="all tokens")["n"] > 100


def test_files_neighbours_and_sentences(measured):
    _, out = measured
    names = {path.name for path in out.iterdir()}
    assert names == {
        "embeddings.csv", "embeddings.json", "embeddings.png", "embeddings.svg", "points.csv", "neighbours.csv",
    }  # fmt: skip
    with (out / "neighbours.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    near = {r["neighbour"].strip("▁") for r in rows if r["model"] == "end"}
    assert {(r["lower"], r["upper"], r["n"], r["unit"]) for r in rows} == {("", "", "1", "cosine similarity")}
    assert all(0 < float(r["estimate"]) <= 1 for r in rows if r["model"] == "end")
    assert near == set(ANIMALS) - {"cat"}
    told = json.loads((out / "embeddings.json").read_text())
    assert ": more than in the controls" in told["finding"]
    assert "tokens that occur in the training data moved farther" in told["finding"]
    assert told["capture"]["end"]["largest"] == 0
    with (out / "points.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 28


def test_nothing_is_shown_where_nothing_is(folder, tmp_path):
    rows = embeddings.main(flags(folder, tmp_path, models=("start",)))
    told = json.loads((tmp_path / "embeddings.json").read_text())["finding"]
    assert "not shown to be more than in the controls" in told
    assert "moved" not in told
    assert not [r for r in rows if r["metric"] == "cosine_distance"]
    control = json.loads((tmp_path / "embeddings.json").read_text())["control"]
    assert "without --dataset_name, tokens that never occur in training may be separated" in control


def test_an_adapter_has_its_bases_embeddings_in_8_bits_too(folder, tmp_path, capsys):
    rows = embeddings.main(flags(folder, tmp_path, "--load_in_8bit", "True", models=("end", "adapter")))
    assert row(rows, model="adapter", metric="cosine_distance", since="first")["estimate"] == pytest.approx(0, abs=1e-9)
    assert "the input embeddings of adapter are those of its base" in capsys.readouterr().err


@pytest.mark.slow
def test_a_final_model_that_is_the_last_checkpoint_is_read_once(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    for name, models in (("end", {"checkpoint-1", "checkpoint-2"}), ("start", {"checkpoint-1", "checkpoint-2", "run"})):
        shutil.copytree(folder / "llama" / name, tmp_path / "run", dirs_exist_ok=True)
        argv = flags(folder, tmp_path / "out", "--all_checkpoints")
        argv[1:3] = [str(tmp_path / "run")]
        rows = embeddings.main(argv)
        assert {r["model"] for r in rows} - {"random weights"} == models


def test_checkpoints_of_a_run_and_the_output_side(folder, tmp_path):
    argv = flags(folder, tmp_path, "--all_checkpoints", "--which", "output", "--basis", "last")
    argv[1:3] = [str(folder / "run")]
    rows = embeddings.main(argv)
    moved = [r for r in rows if r["metric"] == "cosine_distance"]
    assert {(r["model"], r["step"]) for r in moved} == {("checkpoint-2", 2)}
    assert max(r["estimate"] for r in moved) < 1e-9  # the head was not touched


MISTAKES = {
    "a word": (["--words", "zebra"], "--words zebra consists of"),
    "categories": (["--categories", "word"], "--categories word: no such file; give surface, words"),
    "a file": (["--categories", __file__], "give a .json of {word: category} or a .csv of both"),
    "few words": (["--categories", "words"], "fewer than two categories have 3 tokens"),
    "nearest": (["--nearest", "14"], "--nearest 14: only 14 tokens are compared; give at most 13"),
    "neighbours": (["--neighbours", "0"], "--neighbours 0 must be"),
    "umap": (["--projection", "umap"], "umap-learn, which is not installed; pip install 'lm_trials[umap]'"),
    "no run": (["--all_checkpoints"], "--all_checkpoints: 2 models are given"),
    "a data set": (["--dataset_name", "./nowhere.jsonl"], "nowhere.jsonl"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, monkeypatch, name):
    more, line = MISTAKES[name]
    monkeypatch.setattr("lm_trials.probing.embeddings.flags.find_spec", lambda module: None)
    with pytest.raises(SystemExit) as left:
        embeddings.main(flags(folder, tmp_path / "out", *more))
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == 2
    assert told.startswith("error: ")
    assert line in told
    assert not (tmp_path / "out").exists()


def test_one_model_has_not_moved_and_its_categories_are_of_tokens_seen(folder, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"story": "cat dog fox quick brown jumps"}) + "\n")
    more = ("--dataset_name", str(tmp_path / "text.jsonl"))
    rows = embeddings.main(flags(folder, tmp_path / "out", *more, models=("start",)))
    assert row(rows, model="start", metric="3_nearest", group="categories")["n"] == 6  # of 14
    assert not [r for r in rows if r["metric"] == "cosine_distance"]
    told = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert "8 of 14 tokens with a category" in json.dumps(told)
    assert "only tokens that occur" in told["control"]


def test_models_of_two_tokenizers_or_widths_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "llama" / "start", tmp_path / "other")
    tiny_tokenizer(330).save_pretrained(tmp_path / "other")
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, **shape)).save_pretrained(tmp_path / "narrow")
    train_tokenizer([TEXT] * 9, 400).save_pretrained(tmp_path / "narrow")
    for name, line in (("other", "different tokenizers"), ("narrow", "share no axes; use models of one width")):
        argv = flags(folder, tmp_path / "out")
        argv[2] = str(tmp_path / name)
        with pytest.raises(SystemExit) as left:
            embeddings.main(argv)
        assert left.value.code == 2
        assert line in capsys.readouterr().err
