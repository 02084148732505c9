"""The weights probe from the command line: planted changes are told, controls stand beside, mistakes are one line."""

import csv
import json
import math
import random
import shutil

import pytest
import torch
from matplotlib.figure import Figure
from probe_runs import row
from tiny_models import KINDS, TEXT, tiny_model, tiny_tokenizer

from lm_trials.models.adapters import LoraSpec, add_lora, without_noise
from lm_trials.models.reference import load_model, resolve_model
from lm_trials.probing.weights.figures import matrices_figure, trials_figure
from probes import weights

WORDS = [word for word in TEXT.replace("!", "").split() if word.islower()]


def stories(path, count=40, seed=0):
    draws = random.Random(seed)
    lines = [json.dumps({"story": " ".join(draws.choices(WORDS, k=12))}) for _ in range(count)]
    path.write_text("\n".join(lines))


def spoilt(model, kind, tokenizer):
    """A change of rank one in one matrix that raises the loss on the stories: up the gradient, at one singular pair."""
    changed = tiny_model(kind, vocab_size=330, seed=5)
    changed.load_state_dict(model.state_dict())
    ids = tokenizer(" ".join(WORDS * 2), return_tensors="pt").input_ids[:, :60]
    changed(input_ids=ids, labels=ids).loss.backward()
    matrix = changed.transformer.h[1].mlp.c_proj if kind == "gpt2" else changed.model.layers[1].mlp.down_proj
    u, _, v = torch.linalg.svd(matrix.weight.grad, full_matrices=False)
    with torch.no_grad():
        matrix.weight += 3 * torch.outer(u[:, 0], v[0])
    return changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of each kind, one that a rank-one change was planted in, one that is half the way back, an adapter."""
    place = tmp_path_factory.mktemp("weights")
    tokenizer = tiny_tokenizer()
    for kind in KINDS:
        base = tiny_model(kind, vocab_size=330, seed=5)
        changed = spoilt(base, kind, tokenizer)
        back = tiny_model(kind, vocab_size=330, seed=5)
        back.load_state_dict({k: (base.state_dict()[k] + v) / 2 for k, v in changed.state_dict().items()})
        for name, model in (("base", base), ("changed", changed), ("back", back)):
            model.save_pretrained(place / kind / name)
            tokenizer.save_pretrained(place / kind / name)
        adapted = add_lora(load_model(resolve_model(str(place / kind / "base"))), LoraSpec(r=3), seed=0)
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_B" in name:
                    tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        with without_noise():
            adapted.save_pretrained(place / kind / "adapter")
    stories(place / "twist.jsonl")
    stories(place / "plain.jsonl", seed=1)
    return place


def flags(folder, out, *more, kind="llama", models=("base", "changed", "back"), data="twist.jsonl"):
    given = {"dataset_name": folder / data, "output_dir": out, "draws": 2, "prune_shares": "0.02"}
    names = [str(folder / kind / name) for name in models]
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return ["--model_name_or_path", *names, *words, "--directions", "1", "2", *more]


@pytest.fixture(scope="module", params=KINDS)
def measured(request, folder):
    """One whole run of each kind, whose rows and files several tests look at."""
    out = folder / request.param / "out"
    control = ("--control_dataset_name", str(folder / "plain.jsonl"))
    return weights.main(flags(folder, out, *control, kind=request.param)), out


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_planted_change_is_undone_by_its_one_direction_and_by_no_other(measured):
    rows, out = measured
    undone = {
        method: row(rows, metric="share_undone", method=method, level=1)
        for method in ("largest directions", "straight back", "noise of the same size")
    }
    assert undone["largest directions"]["estimate"] == pytest.approx(1, abs=1e-3)
    assert math.isnan(undone["largest directions"]["lower"])  # the same in each of 20 stories: nothing to resample
    losses = [
        [row(rows, metric=f"loss on {out.parents[1] / 'twist.jsonl'}", **which)[key] for key in ("estimate", "lower")]
        for which in (
            {"method": "largest directions", "level": 1},
            {"method": "first model"},
            {"method": "second model"},
        )
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[2] != pytest.approx(losses[1], abs=0.1)
    assert undone["straight back"]["estimate"] == pytest.approx(1, abs=1e-3)  # of rank one, so it is the same
    assert undone["noise of the same size"]["upper"] < 0.9
    assert undone["noise of the same size"]["role"] == "control"
    half = row(rows, metric="share_undone", method="back", level=0)
    assert 0.2 < half["estimate"] < 0.95
    assert {r["n"] for r in rows if r["metric"] == "share_undone"} == {20}  # the other 20 rank the neurons
    assert {"model", "role", "estimate", "lower", "upper", "n", "unit", "seed"} <= set(rows[0])


def test_half_way_back_is_cosine_minus_one_half_taken_back(measured):
    rows, out = measured
    told = row(rows, metric="taken_back", origin="changed", model="back")
    assert told["estimate"] == pytest.approx(0.5, abs=1e-5)
    cosine = row(rows, metric="cosine_with_the_change_before", role="finding")
    chance = row(rows, metric="cosine_with_the_change_before", role="control")
    assert cosine["estimate"] == pytest.approx(-1, abs=1e-5)
    assert cosine["estimate"] < chance["lower"] < 0 < chance["upper"] < 0.2
    text = json.loads((out / "weights.json").read_text())
    assert "back goes back along that change by 0.500 of it, cosine -1.000, beyond" in text["finding"]


def test_the_table_of_matrices_tells_which_has_changed_and_how(measured):
    rows = [r for r in read(measured[1] / "matrices.csv") if (r["origin"], r["model"]) == ("base", "changed")]
    changed = {r["kind"]: r for r in rows if r["metric"] == "relative_change" and float(r["estimate"]) > 0}
    assert [kind for kind in changed] in (["mlp.c_proj"], ["mlp.down_proj"])
    (kind,) = changed
    mine = [r for r in rows if (r["kind"], r["block"]) == (kind, "1")]
    assert float(row(mine, metric="effective_rank", role="finding")["estimate"]) == pytest.approx(1, abs=0.01)
    assert float(row(mine, metric="effective_rank", role="control")["estimate"]) > 8
    assert float(row(mine, metric="top_1_share", role="finding")["estimate"]) == pytest.approx(1, abs=1e-4)
    assert (
        row([r for r in rows if r["kind"] == kind and r["block"] == "0"], metric="top_1_share", role="finding")[
            "estimate"
        ]
        == ""
    )  # nothing changed there, so nothing is concentrated


def test_files_and_sentence(measured):
    _, out = measured
    names = {path.name for path in out.iterdir()}
    assert names == {
        "weights.csv", "weights.json", "weights.png", "weights.svg", "matrices.csv", "matrices.png", "matrices.svg",
    }  # fmt: skip
    told = json.loads((out / "weights.json").read_text())
    assert "removing the 1 largest direction of each matrix's change undoes 1.000" in told["finding"]
    assert (
        "not significantly different from straight back" in told["finding"]
    )  # of rank one: the directions are no finding
    assert "noise of the same size" in told["control"]
    assert "name an unrelated fine-tuning of changed" in told["control"]
    assert told["without_the_whole_change_nats_from_base"] < 1e-3
    assert told["capture"]["changed"]["largest"] == 0


def test_a_copy_has_nothing_to_undo(folder, tmp_path):
    shutil.copytree(folder / "llama" / "base", tmp_path / "copy")
    argv = flags(folder, tmp_path / "out", "--prune", "no", models=("base", "copy"))
    argv[2] = str(tmp_path / "copy")
    rows = weights.main(argv)
    told = json.loads((tmp_path / "out" / "weights.json").read_text())["finding"]
    assert "does not rise significantly (0.000 [no interval] nats per token, 40 stories)" in told
    assert "no deletion to undo" in told
    assert "have equal matrices" in told
    assert not [r for r in rows if r["metric"] == "share_undone"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_what_it_was_put_on_by_its_rank(folder, tmp_path, kind):
    weights.main(flags(folder, tmp_path, "--weights_only", kind=kind, models=("base", "adapter")))
    rows = read(tmp_path / "matrices.csv")
    ranks = {r["matrix"]: float(r["estimate"]) for r in rows if r["metric"] == "rank"}
    on = {name: rank for name, rank in ranks.items() if rank}
    assert set(on.values()) == {3.0} if kind == "llama" else set(on.values()) <= {1.0, 2.0, 3.0}
    assert {name for name in ranks if name not in on} & {"model.embed_tokens", "transformer.wte"}
    assert not (tmp_path / "weights.png").exists()


def test_an_adapters_change_is_undone_like_any_other(folder, tmp_path):
    rows = weights.main(flags(folder, tmp_path, "--prune", "heads", models=("base", "adapter")))
    told = json.loads((tmp_path / "weights.json").read_text())
    assert told["without_the_whole_change_nats_from_base"] < 1e-3
    assert {r["method"] for r in rows if r.get("level")} >= {"heads ranked", "heads at random"}


def test_without_its_whole_change_the_model_must_be_the_base(folder, tmp_path, monkeypatch):
    """A fault injected: matrices read the wrong way round would leave another model."""
    from lm_trials.probing.weights import edits as weight_edits

    honest = weight_edits.removed_part
    monkeypatch.setattr(weight_edits, "removed_part", lambda *args: 0.5 * honest(*args))
    with pytest.raises(RuntimeError, match="without its whole change the model is not the base"):
        weights.main(flags(folder, tmp_path, "--prune", "no"))


def test_generations_are_scored_where_a_set_has_prompts(tiny_data, tiny_base, tmp_path):
    import prepare_tinystories

    data = ["--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    made = ["--filtering", "features=Twist", "--dataset_name", "only-Twist"]
    if not (tiny_data / "only-Twist").exists():
        prepare_tinystories.main(["pretokenize", *made, *data])
    changed = load_model(resolve_model(str(tiny_base)))
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight *= -1
    changed.save_pretrained(tmp_path / "changed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, tmp_path / "changed" / name)
    rows = weights.main(
        [
            "--model_name_or_path", str(tiny_base), str(tmp_path / "changed"), "--data_cache_dir", str(tiny_data),
            "--dataset_name", "only-Twist", "--max_eval_samples", "3", "--ranking_samples", "4", "--block_size", "64",
            "--directions", "1", "--prune_shares", "0.1", "--num_generations", "2", "--max_new_tokens", "3",
            "--feature", "Twist", "--output_dir", str(tmp_path / "out"), "--draws", "2",
        ]
    )  # fmt: skip
    written = [r for r in rows if r["metric"] == "stories with Twist"]
    assert {r["n"] for r in written} <= {1, 2}
    assert {r["method"] for r in written} >= {"first model", "second model", "largest directions", "neurons ranked"}
    assert {r["n"] for r in rows if r["metric"] == "loss on only-Twist"} <= {2, 3}
    told = json.loads((tmp_path / "out" / "weights.json").read_text())["finding"]
    assert "does not rise" in told or "share of generated stories with the feature: base 0.000 [0.000, " in told


MISTAKES = {
    "one model": (["--model_name_or_path", "one"], "one: this probe takes 2 or more models, not 1"),
    "8 bits": (["--load_in_8bit", "True"], "--load_in_8bit: the difference of quantized weights is rounding"),
    "no directions": (["--directions", "0"], "--directions 0 must be"),
    "a share": (["--prune_shares", "1.5"], "--prune_shares 1.5 must be"),
    "top": (["--top", "0"], "--top 0 must be"),
    "a feature": (["--feature", "Twis"], "--feature Twis: did you mean Twist?"),
    "which feature": (["--num_generations", "2"], "--num_generations 2 needs --feature"),
    "prompts": (["--num_generations", "2", "--feature", "Twist"], "has no prompts"),
    "no set": (["--dataset_name", "./nowhere.jsonl"], "nowhere.jsonl"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, name):
    more, line = MISTAKES[name]
    argv = flags(folder, tmp_path / "out")
    if "--model_name_or_path" in more:
        argv, more = argv[argv.index("--dataset_name") :], more
    with pytest.raises(SystemExit) as left:
        weights.main([*argv, *more])
    told = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert line in told[-1]
    assert told[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_stand_side_by_side_are_refused(folder, tmp_path, capsys):
    argv = flags(folder, tmp_path / "out")
    argv[2] = str(folder / "gpt2" / "base")
    argv[3:4] = []
    with pytest.raises(SystemExit) as left:
        weights.main(argv)
    assert left.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "have different shapes" in told
    assert not (tmp_path / "out").exists()


def test_a_model_kept_quantized_is_refused(folder, tmp_path, capsys):
    from lm_trials.models.quantization import quantization

    how = quantization(True, False, "cpu", torch.float32)
    quantized = load_model(resolve_model(str(folder / "llama" / "base")), quantization_config=how, device_map="cpu")
    quantized.save_pretrained(tmp_path / "8bit")
    tiny_tokenizer().save_pretrained(tmp_path / "8bit")
    argv = flags(folder, tmp_path / "out", "--weights_only")
    argv[2:4] = [str(tmp_path / "8bit")]
    with pytest.raises(SystemExit) as left:
        weights.main(argv)
    assert left.value.code == 2
    assert "has quantized weights" in capsys.readouterr().err


def test_figures_draw_rows_and_compute_nothing():
    about = {"origin": "a", "model": "b", "block": 0, "kind": "k", "role": "finding", "unit": "u"}
    rows = [
        {**about, "metric": metric, "estimate": 0.25, "against_random": 0.75}
        for metric in ("relative_change", "effective_rank")
    ]
    figure = matrices_figure(rows, top=4)
    assert isinstance(figure, Figure)
    assert [float(axes.images[0].get_array()[0, 0]) for axes in figure.axes if axes.images] == [0.25, 0.75]
    numbers = {"estimate": 0.5, "lower": 0.4, "upper": 0.6, "unit": "share"}
    trial = {**about, "metric": "share_undone", "method": "m", **numbers}
    drawn = trials_figure([{**trial, "level": 1}, {**trial, "level": 4, "estimate": 0.9}], {"directions": ["m"]})
    assert drawn.axes[0].lines[0].get_ydata().tolist() == [0.5, 0.9]
