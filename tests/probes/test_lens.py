"""`probes/lens.py` from its command line: models of all kinds, a lens kept and used again, and what it refuses."""

import csv
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from probe_runs import refused_by
from safetensors import safe_open
from small_models import with_lora
from tiny_models import KINDS, tiny_model

from lm_trials.evaluation.losses import Document, story_losses
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.probing.lens.flags import LensArguments
from lm_trials.probing.lens.training import TunedLens, story_numbers
from lm_trials.stories.corpora import open_records
from lm_trials.tokens.tokenizers import load_tokenizer
from probes import lens

refused = partial(refused_by, lens.main)

# PEFT 0.21 asks transformers 5.23 by a name that is to go, and says of GPT-2's layers that it does what is right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]


@pytest.fixture(scope="module")
def models(tiny_data, tmp_path_factory):
    """Folders of random models with the tokenizer of 400 tokens: by kind, another depth, an adapter of each."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(tiny_data / "tok400")
    targets = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
    for kind in KINDS:
        model = tiny_model(kind, vocab_size=len(tokenizer), positions=64)
        model.save_pretrained(folder / kind)
        model.name_or_path = str(folder / kind)
        with_lora(model, *targets[kind]).save_pretrained(folder / f"{kind}-lora")
        for name in (kind, f"{kind}-lora"):
            tokenizer.save_pretrained(folder / name)
    return folder


def flags(data, out, *names, **more):
    given_ = {"dataset_name": "tiny", "data_cache_dir": data, "output_dir": out, "lens_steps": 2, "block_size": 48,
              "max_train_samples": 12} | more  # fmt: skip
    words = [word for key, value in given_.items() for word in (f"--{key}", str(value)) if value is not None]
    return ["--model_name_or_path", *map(str, names), "--use_cpu", *words]


def numbers(rows):
    return {(row["model"], row["lens"], row["layer"], row["metric"]): row for row in rows}


@pytest.fixture(scope="module")
def measured(tiny_base, tiny_data, tmp_path_factory):
    """A tuned lens of a trained model, once, with a text; evaluated on enough other stories for intervals."""
    out, stories = tmp_path_factory.mktemp("lens"), tmp_path_factory.mktemp("stories") / "stories.jsonl"
    stories.write_text("".join(json.dumps({"story": r["story"]}) + "\n" for r in evaluation_records(tiny_data)))
    more = {"dataset_name": stories, "lens_dataset_name": "tiny", "lens_steps": 40, "max_train_samples": 200,
            "text": "One day, a cat"}  # fmt: skip
    return lens.main(flags(tiny_data, out, tiny_base, **more)), out, more


def evaluation_records(tiny_data):
    """The last twelve stories of the train split; a lens is trained on the first."""
    return list(open_records(tiny_data / "tiny", "train"))[-12:]


def evaluation_ids(tiny_base, tiny_data):
    """The ids of the stories to evaluate on, as a lens is to see them, and their record ids."""
    tokenizer = load_tokenizer(str(tiny_base))
    records = evaluation_records(tiny_data)
    return {
        r["record_id"]: np.array(
            [tokenizer.bos_token_id, *tokenizer(r["story"], add_special_tokens=False).input_ids][:48]
        )
        for r in records
    }


def test_the_last_layers_loss_is_that_of_the_evaluation_and_a_tuned_lens_is_nearer_on_held_out_stories(
    measured, tiny_base, tiny_data
):
    table, ids = numbers(measured[0]), evaluation_ids(tiny_base, tiny_data)
    model = load_model(resolve_model(str(tiny_base)))
    losses = list(story_losses(model, [Document(name, i, 0) for name, i in ids.items()], block_size=48))
    expected = sum(story.nats for story in losses) / sum(story.tokens for story in losses)
    for kind in ("logit", "tuned"):
        last = table["base", kind, 2, "loss"]
        assert last["estimate"] == pytest.approx(expected, rel=1e-5)
        assert last["n"] == len(ids) > 2
        assert abs(table["base", kind, 2, "kl"]["estimate"]) < 1e-5
    for layer in (0, 1):
        tuned, logit = (table["base", kind, layer, "kl"]["estimate"] for kind in ("tuned", "logit"))
        assert 0 < tuned < 0.8 * logit


def test_its_files_say_what_was_found_beside_its_controls(measured):
    rows, out, _ = measured
    names = {path.name for path in out.iterdir()}
    assert names == {"lens.csv", "lens.json", "lens.png", "lens.svg", "lens.safetensors", "lens_text.csv",
                     "lens_text.png", "lens_text.svg"}  # fmt: skip
    with (out / "lens.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert set(written[0]) == {"model", "step", "seed", "role", "lens", "layer", "metric", "estimate", "lower", "upper",
                               "n", "unit"}  # fmt: skip
    assert {(row["lens"], row["role"]) for row in written} == {
        ("frequencies", "control"), ("untrained", "control"), ("logit", "finding"), ("tuned", "finding"),
    }  # fmt: skip
    about = json.loads((out / "lens.json").read_text())
    below = numbers(rows)["base", "tuned", 1, "kl_below_frequencies"]["lower"]
    assert about["finding"].startswith("base: ")
    assert np.isfinite(below)
    assert ("no layer before the last is shown to be nearer" in about["finding"]) == (below <= 0)
    assert "the lens at the last layer equals the model" in about["control"]
    assert "random weights in base's shape predict no better" in about["control"]
    assert about["capture"]["base"]["largest"] < 1e-4
    untrained = [row for row in rows if row["lens"] == "untrained" and row["metric"] == "loss"]
    assert len(untrained) == 3
    assert all(abs(row["estimate"] - np.log(400)) < 0.2 for row in untrained)
    with (out / "lens_text.csv").open() as file:
        said = list(csv.DictReader(file))
    places = len({row["position"] for row in said})
    assert len(said) == 2 * 3 * places
    assert "".join(row["after"] for row in said[:places]) == "<s>␣One␣day,␣a␣cat"


def test_no_story_of_the_training_is_evaluated_on(measured, tiny_base, tiny_data):
    tuned = TunedLens.load(measured[1] / "lens.safetensors")
    assert len(tuned.stories) == 200
    assert not np.isin(story_numbers(list(evaluation_ids(tiny_base, tiny_data))), tuned.stories).any()
    train = [record["record_id"] for record in open_records(tiny_data / "tiny", "train")]
    assert np.isin(tuned.stories, story_numbers(train)).all()


def test_the_same_command_gives_the_same_bytes(tiny_base, tiny_data, tmp_path):
    for name, seed in (("a", 0), ("b", 0)):
        lens.main(flags(tiny_data, tmp_path / name, tiny_base, seed=seed))
    first, again = (
        {file: (tmp_path / name / file).read_bytes() for file in ("lens.safetensors", "lens.csv", "lens.svg")}
        for name in "ab"
    )
    assert first == again


def test_a_lens_is_used_again_and_says_the_same(measured, tiny_base, tiny_data, tmp_path):
    rows, out, more = measured
    again = lens.main(flags(tiny_data, tmp_path, tiny_base, **more, lens=out / "lens.safetensors"))
    assert again == rows
    assert not (tmp_path / "lens.safetensors").exists()


def test_a_lens_of_another_model_and_one_of_these_stories_are_refused(
    measured, models, tiny_base, tiny_data, tmp_path, capsys
):
    file = measured[1] / "lens.safetensors"
    line = refused(capsys, *flags(tiny_data, tmp_path, models / "llama", lens=file))
    assert "belongs to a model of 2 blocks of width 32 and llama has 2 of 16" in line
    line = refused(capsys, *flags(tiny_data, tmp_path, tiny_base, lens=file, dataset_split="train"))
    assert "was trained on 200 of the" in line
    lens.main(flags(tiny_data, tmp_path / "base", models / "llama", lens_steps=1, max_eval_samples=2))
    line = refused(capsys, *flags(tiny_data, tmp_path, models / "llama-lora", lens=tmp_path / "base/lens.safetensors"))
    assert "was trained for llama, whose weights" in line
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_their_bases_stand_side_by_side(kind, models, tiny_data, tmp_path):
    names = [models / kind, models / f"{kind}-lora"]
    rows = lens.main(flags(tiny_data, tmp_path, *names, max_eval_samples=3, text="A cat"))
    table = numbers(rows)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        f"lens-{kind}.safetensors", f"lens-{kind}-lora.safetensors",
    }  # fmt: skip
    assert (tmp_path / f"lens_text-{kind}-lora.png").is_file()
    for layer in (1, 2):  # the adapter is in what is read; nothing of it is at layer 0
        assert (
            table[kind, "logit", layer, "loss"]["estimate"] != table[f"{kind}-lora", "logit", layer, "loss"]["estimate"]
        )
    assert table[kind, "logit", 0, "loss"]["estimate"] == table[f"{kind}-lora", "logit", 0, "loss"]["estimate"]
    with safe_open(tmp_path / f"lens-{kind}-lora.safetensors", "pt") as file:
        assert set(file.keys()) == {"weight.0", "weight.1", "bias.0", "bias.1", "log_frequencies", "stories"}


@pytest.mark.parametrize("name", ["gpt2", "llama-lora"])
def test_an_8_bit_base_is_read_and_tuned(name, models, tiny_data, tmp_path):
    rows = numbers(lens.main([*flags(tiny_data, tmp_path, models / name, max_eval_samples=3), "--load_in_8bit"]))
    plain = numbers(lens.main(flags(tiny_data, tmp_path / "plain", models / name, max_eval_samples=3, lens_steps=0)))
    eight, exact = (table[name, "logit", 1, "loss"]["estimate"] for table in (rows, plain))
    assert eight != exact
    assert eight == pytest.approx(exact, rel=0.1)
    assert (name, "tuned", 1, "kl") in rows
    assert (name, "tuned", 1, "kl") not in plain


def test_over_training_each_checkpoint_is_read_with_the_logit_lens(models, tiny_data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(models / "llama", run)  # a folder without run.json, whose final model has no known step
    for step, seed in ((10, 3), (20, 4)):
        shutil.copytree(models / "llama", run / f"checkpoint-{step}")
        tiny_model("llama", vocab_size=400, positions=64, seed=seed).save_pretrained(run / f"checkpoint-{step}")
    rows = lens.main([*flags(tiny_data, tmp_path / "out", run, max_eval_samples=3), "--all_checkpoints"])
    steps = {(row["model"], row["step"]) for row in rows}
    assert steps == {("checkpoint-10", 10), ("checkpoint-20", 20), ("run", None)}
    assert {row["lens"] for row in rows} == {"logit", "frequencies", "untrained"}
    assert (tmp_path / "out/lens_checkpoints.png").is_file()
    finding = json.loads((tmp_path / "out/lens.json").read_text())["finding"]
    assert finding.startswith("run: the logit lens' KL")
    assert "at the final model (n=3 stories)" in finding
    assert LensArguments(all_checkpoints=True, tune_checkpoints=True).tuned
    assert not LensArguments(all_checkpoints=True).tuned
    assert not LensArguments(lens_steps=0).tuned


def test_a_trained_model_of_real_stories_is_read_before_its_end(shared_data, tmp_path):
    stories = shared_data / "tinystories/val.jsonl"
    more = {"dataset_name": stories, "max_eval_samples": 16, "max_train_samples": 40, "lens_steps": 20}
    rows = lens.main(flags("data", tmp_path, shared_data / "stories260K/hf", **more))
    table = numbers(rows)
    frequencies = table["hf", "frequencies", None, "kl"]
    for layer in range(2, 5):
        assert table["hf", "tuned", layer, "kl"]["upper"] < min(
            frequencies["lower"], table["hf", "logit", layer, "kl"]["lower"]
        )
        assert table["hf", "tuned", layer, "kl_below_layer_0"]["lower"] > 0
    finding = json.loads((tmp_path / "lens.json").read_text())["finding"]
    assert "the tuned lens is nearer" in finding


def test_of_a_file_one_story_in_five_is_held_out_and_layers_can_be_chosen(models, tiny_data, tmp_path):
    records = list(open_records(tiny_data / "tiny", "train"))[:60]
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"story": record["story"]}) + "\n" for record in records), encoding="utf-8")
    argv = flags(tiny_data, tmp_path / "out", models / "gpt2", dataset_name=path, max_train_samples=100)
    rows = lens.main([*argv, "--layers", "-2"])
    held_out = [r["record_id"] for r in records if int(r["record_id"][:8], 16) % 5 == 0]
    assert {row["n"] for row in rows} == {len(held_out)}
    stories = TunedLens.load(tmp_path / "out/lens.safetensors").stories
    assert len(stories) == 60 - len(held_out)
    assert not np.isin(story_numbers(held_out), stories).any()
    assert {row["layer"] for row in rows if row["lens"] == "tuned"} == {1, 2}
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"story": "A cat."}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        lens.main(flags(tiny_data, tmp_path / "no", models / "gpt2", dataset_name=short))


BAD = [
    ({"lens_steps": -1}, [], "--lens_steps -1 must be"),
    ({"lens_batch_size": 0}, [], "--lens_batch_size 0 must be"),
    ({"max_train_samples": 0}, [], "--max_train_samples 0 must be"),
    ({"learning_rate": 0}, [], "--learning_rate 0 must be"),
    ({"learning_rate": "nan"}, [], "--learning_rate nan must be"),
    ({"text": " "}, [], "--text must not be empty"),
    ({"text": "a"}, [], "--text 'a' is 1 token"),
    ({"text": "cat " * 60}, [], "and llama reads 48"),
    ({}, ["--layers", "3"], "--layers 3: llama has hidden states 0 to 2"),
    ({}, ["--layers", "1", "1"], "--layers 1 is given twice"),
    ({"lens": "nothing.safetensors"}, [], "--lens nothing.safetensors does not exist"),
    ({"lens": __file__}, [], "is not a tuned lens"),
    ({}, ["--tune_checkpoints"], "--tune_checkpoints needs --all_checkpoints"),
    ({}, ["--all_checkpoints"], "holds no checkpoint-N folder"),
    ({"dataset_name": "nowhere"}, [], "nowhere"),
    ({"dataset_split": "train"}, [], "are evaluated on too"),
]


@pytest.mark.parametrize(("more", "words", "line"), BAD, ids=[case[2][:30] for case in BAD])
def test_a_mistake_is_one_line(more, words, line, models, tiny_data, tmp_path, capsys):
    argv = [*flags(tiny_data, tmp_path / "out", models / "llama", **more), *words]
    assert line in refused(capsys, *argv)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_stand_side_by_side_and_two_lenses_for_one_are_refused(models, tiny_data, tmp_path, capsys):
    shutil.copytree(models / "llama", tmp_path / "deep")
    config = tiny_model("llama", vocab_size=400, positions=64).config
    config.num_hidden_layers = 3
    torch.manual_seed(0)
    type(tiny_model("llama"))(config).save_pretrained(tmp_path / "deep")
    line = refused(capsys, *flags(tiny_data, tmp_path / "out", models / "llama", tmp_path / "deep"))
    assert "2 layers and" in line
    argv = [*flags(tiny_data, tmp_path / "out", models / "llama"), "--lens", __file__, __file__]
    assert "--lens names 2 files for 1 models" in refused(capsys, *argv)


def test_an_empty_data_set_is_one_line(models, tiny_data, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    argv = flags(tiny_data, tmp_path / "out", models / "llama", dataset_name=tmp_path / "empty.jsonl")
    assert "empty.jsonl" in refused(capsys, *argv)


def test_help_needs_no_torch(capsys):
    with pytest.raises(SystemExit) as left:
        lens.main(["--help"])
    assert left.value.code == 0
    assert "--lens_steps" in capsys.readouterr().out
