"""`probes/attention.py` from its command line: models of all kinds, a planted head, checkpoints, what it refuses."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from probe_runs import table
from small_models import with_lora
from tiny_models import KINDS, TEXT, tiny_model, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from lm_trials.probing.attention.flags import OF_STORIES
from lm_trials.probing.attention.statistics import even_statistics
from probes import attention

# PEFT 0.21 asks transformers 5.23 by a name that is to go, and says of GPT-2's layers that it does what is right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]
FAST = [
    "--use_cpu",
    "--num_untrained",
    "2",
    "--induction_sequences",
    "20",
    "--induction_tokens",
    "5",
    "--map_tokens",
    "9",
]
WORDS = TEXT.split()


def planted_gpt2():
    """A GPT-2 of one layer whose head 0 looks at the token before, whatever the text, and whose head 1 looks evenly."""
    width, positions = 128, 64
    shape = {"n_embd": width, "n_layer": 1, "n_head": 2, "n_positions": positions, "initializer_range": 0.02}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=330, **shape)).eval()
    head = width // 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block = model.transformer.h[0]
        block.ln_1.weight.fill_(1)
        model.transformer.wpe.weight[:, :positions] = torch.eye(positions)
        for position in range(1, positions):
            block.attn.c_attn.weight[position, position - 1] = 4  # a query asks for the position before its own
        block.attn.c_attn.weight[:head, width : width + head] = torch.eye(head)  # a key says its position
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: by kind, a planted head, the same shape untrained, adapters, and a run with checkpoints."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()

    def save(name, model):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    for kind in KINDS:
        save(kind, tiny_model(kind, vocab_size=330))
        adapted = tiny_model(kind, vocab_size=330)
        adapted.name_or_path = str(folder / kind)
        save(f"{kind}-lora", with_lora(adapted, *(["c_attn"] if kind == "gpt2" else ["q_proj", "k_proj"])))
    planted = planted_gpt2()
    save("planted", planted)
    torch.manual_seed(99)
    save("random", GPT2LMHeadModel(planted.config))
    save("deeper", GPT2LMHeadModel(GPT2Config(vocab_size=330, n_embd=16, n_layer=2, n_head=2, n_positions=64)))
    save("wider", GPT2LMHeadModel(GPT2Config(vocab_size=330, n_embd=16, n_layer=1, n_head=4, n_positions=64)))
    for step, seed in ((2, 1), (10, 2)):
        save(f"run/checkpoint-{step}", tiny_model("llama", vocab_size=330, seed=seed))
    save("run", tiny_model("llama", vocab_size=330, seed=3))
    return folder


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A file of twenty stories, the fewest that are enough, of different lengths, the longest beyond 64 tokens."""
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    generator = np.random.default_rng(0)
    counts = (9, 5, 12, 7, 40, 6, 8, 11, 5, 9, 10, 7, 6, 12, 8, 5, 11, 10, 9, 7)
    texts = [" ".join(generator.choice(WORDS, count)) for count in counts]
    path.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """The figures of a run by name; drawing them takes most of its time, so only `drawn` has them drawn."""
    found = {}

    def keep(figure, stem):
        found[stem.name] = figure
        for ending in ("png", "svg"):
            stem.with_name(f"{stem.name}.{ending}").touch()

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lm_trials.probing.findings.save_pictures", keep)
    return found


@pytest.fixture
def drawn():
    """Asked for by a test whose pictures are drawn."""


def run(stories, out, *names, flags=()):
    words = ["--model_name_or_path", *map(str, names), "--dataset_name", str(stories), "--output_dir", str(out)]
    return attention.main([*words, *FAST, *flags])


def page_data(out):
    html = (out / "attention.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', html)[1])


def of(rows, role="finding", **wanted):
    return [row for row in rows if row["role"] == role and all(row[key] == value for key, value in wanted.items())]


def test_a_planted_head_is_found_and_its_numbers_are_exact(models, stories, tmp_path, drawn):
    out = tmp_path / "a"
    rows = run(stories, out, models / "planted")
    back = {row["statistic"]: row["estimate"] for row in of(rows, layer=0, head=0, model="planted")}
    assert back["previous"] == pytest.approx(1, abs=1e-6)
    assert back["distance"] == pytest.approx(1, abs=1e-5)
    assert back["entropy"] == pytest.approx(0, abs=1e-5)
    even = {row["statistic"]: row["estimate"] for row in rows if row["model"] == "even attention"}
    other = {row["statistic"]: row["estimate"] for row in of(rows, layer=0, head=1, model="planted")}
    assert other == pytest.approx(even, rel=1e-5)
    tokenizer = tiny_tokenizer()
    texts = [json.loads(line)["story"] for line in stories.read_text().splitlines()]
    lengths = [min(64, 1 + len(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]
    assert max(lengths) == 64 > min(lengths)
    expected = np.mean([even_statistics(length) for length in lengths], axis=0)
    assert [even[name] for name in OF_STORIES] == pytest.approx(expected.tolist())
    assert {row["n"] for row in rows if row["statistic"] == "previous"} == {20}

    found = json.loads((out / "attention.json").read_text())
    wilson = 10 / (10 + 1.959964**2)  # all of the 10 stories that the head was not selected on have 1
    assert found["finding"] == (
        f"planted: of 2 heads layer 0 head 0 has the most previous-token mass, 1.000 [{wilson:.3f}, 1.000] "
        "(share of attention; 10 held-out stories)"
    )
    assert "(from 2 models); even attention " in found["control"]
    assert found["capture"]["planted"]["largest"] < 1e-3
    assert {path.name for path in out.iterdir()} == {
        "attention.csv", "attention.json", "attention.html", "attention-leaders.csv",
        "attention.png", "attention.svg", "attention-maps.png", "attention-maps.svg"}  # fmt: skip
    assert min(path.stat().st_size for path in out.iterdir()) > 100
    columns = {"model", "role", "layer", "head", "statistic", "estimate", "lower", "upper", "n", "unit", "seed"}
    assert columns <= set(table(out / "attention.csv")[0])
    leaders = of(table(out / "attention-leaders.csv"), statistic="previous")
    assert [(row["head"], row["beyond_controls"]) for row in leaders] == [("0", "yes")]
    data = page_data(out)
    assert data["start"] == {"model": 0, "layer": 0, "head": 0, "statistic": "previous"}
    assert (len(data["tokens"]), data["tokens"][0]) == (9, "<s>")
    assert {one["key"] for one in data["statistics"]} == {*OF_STORIES, "induction"}


def test_an_untrained_model_shows_nothing(models, stories, tmp_path):
    """The control shows the false finding: some head leads, and even attention alone would let it pass."""
    run(stories, tmp_path / "a", models / "random", flags=["--num_untrained", "4"])
    finding = json.loads((tmp_path / "a" / "attention.json").read_text())["finding"]
    assert finding.startswith("random: no significant head; layer 0 head")
    leaders = table(tmp_path / "a" / "attention-leaders.csv")
    apart = [row for row in leaders if row["statistic"] == "previous" and row.get("control") == "even attention"]
    assert float(apart[0]["difference_lower"]) > 0 or "even attention" in finding
    untrained = [row for row in leaders if row["statistic"] == "previous" and row.get("control") == "untrained"]
    assert float(untrained[0]["difference_lower"]) < 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [[], ["--load_in_8bit"]])
def test_an_adapter_beside_its_base(kind, flags, models, stories, tmp_path, figures):
    out = tmp_path / "a"
    rows = run(stories, out, models / kind, models / f"{kind}-lora", flags=[*flags, "--layer", "-1", "--head", "1"])
    base, adapted = (
        {(r["layer"], r["head"], r["statistic"]): r["estimate"] for r in of(rows, model=name)}
        for name in (kind, f"{kind}-lora")
    )
    assert base.keys() == adapted.keys()
    assert len(base) == 2 * (2 if kind == "gpt2" else 4) * 7
    assert max(abs(base[key] - adapted[key]) for key in base if key[2] == "previous") > 0.01
    assert all(math.isfinite(row["estimate"]) for row in rows)
    without = [row for row in rows if math.isnan(row["lower"])]  # the same on every sequence
    assert [(row["model"], row["statistic"]) for row in without] == [("even attention", "induction")]
    assert all(row["lower"] <= row["estimate"] <= row["upper"] for row in rows if row not in without)
    assert set(figures) == {
        "attention", f"attention-maps-{kind}", f"attention-maps-{kind}-lora", "attention-head"}  # fmt: skip
    assert [axes.get_title() for axes in figures["attention-head"].axes[:2]] == [kind, f"{kind}-lora"]
    of_a_head = [axes.images[0].get_array() for axes in figures["attention-head"].axes[:2]]
    heads = 2 if kind == "gpt2" else 4
    for weights, name in zip(of_a_head, (kind, f"{kind}-lora"), strict=True):
        small = figures[f"attention-maps-{name}"].axes[heads + 1].images[0].get_array()  # layer 1, head 1
        assert np.ma.allequal(weights, small)
    assert not np.ma.allclose(*of_a_head, atol=1e-3)
    changes = of(table(out / "attention-changes.csv"), statistic="previous")
    assert [(row["model"], row["since"]) for row in changes] == [(f"{kind}-lora", kind)]
    finding = json.loads((out / "attention.json").read_text())["finding"]
    number = r"[+-]\d\.\d{3}"
    assert re.search(
        rf"\. From {kind} to {kind}-lora .*, by {number} \[{number}, {number}\] \(mean of all heads", finding
    )
    data = page_data(out)
    assert [model["label"] for model in data["models"]] == [kind, f"{kind}-lora"]
    assert (data["start"]["layer"], data["start"]["head"]) == (1, 1)


def test_a_copy_has_not_changed(models, stories, tmp_path):
    shutil.copytree(models / "gpt2", tmp_path / "copy")
    run(stories, tmp_path / "a", models / "gpt2", tmp_path / "copy")
    finding = json.loads((tmp_path / "a" / "attention.json").read_text())["finding"]
    assert finding.endswith(
        ". From gpt2 to copy no head changes significantly: layer 0 head 0, +0.000 [no interval] "
        "(mean of all heads, each in its own direction: 0.000 [no interval])"
    )


def test_checkpoints_of_a_run(models, stories, tmp_path, capsys, figures):
    out = tmp_path / "a"
    text = "a cat </script><b>sat</b> 😀 on"
    rows = run(stories, out, models / "run", flags=["--all_checkpoints", "--text", text, "--induction_sequences", "0"])
    assert "tokens with its separator; the maps show the first 9 (--map_tokens)" in capsys.readouterr().err
    findings = of(rows)
    assert [*dict.fromkeys((row["model"], row["run"], row["step"]) for row in findings)] == [
        ("checkpoint-2", "run", 2), ("checkpoint-10", "run", 10), ("run", "run", None)]  # fmt: skip
    assert "induction" not in {row["statistic"] for row in rows}
    steps = of(table(out / "attention-steps.csv"), statistic="previous")
    assert [row["step"] for row in steps] == ["2", "10"]
    leader = of(table(out / "attention-leaders.csv"), statistic="previous", model="run")[0]
    assert {(row["layer"], row["head"]) for row in steps} == {(leader["layer"], leader["head"])}
    assert set(figures) == {"attention", "attention-maps", "attention-steps"}
    panel = figures["attention-steps"].axes[0]
    assert panel.get_title() == "previous-token mass"
    thick = next(line for line in panel.lines if str(line.get_label()).startswith("head selected"))
    assert thick.get_xdata().tolist() == [2, 10]
    assert thick.get_ydata().tolist() == [float(row["estimate"]) for row in steps]
    thin = [list(line.get_ydata()) for line in panel.lines if len(line.get_xdata()) == 2 and line is not thick]
    for layer, head in np.ndindex(2, 4):
        told = of(rows, statistic="previous", layer=layer, head=head)
        assert [row["estimate"] for row in told if row["step"] is not None] in thin
    data = page_data(out)
    assert [(model["run"], model["step"]) for model in data["models"]] == [("run", 2), ("run", 10), ("run", None)]
    assert len({model["maps"] for model in data["models"]}) == 3
    assert "cat" in "".join(data["tokens"])


def test_the_same_command_gives_the_same_files(models, stories, tmp_path):
    for name in ("a", "b"):
        run(stories, tmp_path / name, models / "gpt2", flags=["--per_device_eval_batch_size", "5"])
    run(stories, tmp_path / "c", models / "gpt2", flags=["--seed", "1"])
    for file in ("attention.csv", "attention-leaders.csv", "attention.html"):
        one, again, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert one == again
        assert one != other


REFUSED = [
    (["--text", " "], "--text must not be empty"),
    (["--layer", "2", "--head", "0"], "--layer 2: .*llama has blocks 0 to 1 .the first is 0.; give one of them"),
    (["--layer", "0", "--head", "-5"], "--head -5: .*llama has heads 0 to 3 .the first is 0.; give one of them"),
    (["--layer", "1"], "--layer 1 needs --head"),
    (["--head", "1"], "--head 1 needs --layer"),
    (["--map_tokens", "1"], "--map_tokens 1 must be"),
    (["--num_untrained", "1"], "--num_untrained 1 must be"),
    (["--induction_sequences", "19"], "--induction_sequences 19 must be"),
    (["--induction_tokens", "1"], "--induction_tokens 1 must be"),
    (["--statistic", "induction", "--induction_sequences", "0"], "--statistic induction needs --induction_sequences"),
    (["--statistic", "induction", "--block_size", "4"], "a window of 4 tokens .* too few for a repetition"),
    (["--statistic", "sinks"], "statistic.*sinks"),
    (["--max_eval_samples", "19"], "--max_eval_samples 19: a head is selected on one half of the stories"),
    (["--block_size", "65"], "--block_size 65"),
    (["--dataset_name", "EMPTY"], "has no text; give a data set with at least one|EMPTY"),
    (["--dataset_name", "FEW"], "19 stories of two tokens or more are too few.*; give at least 20"),
    (["--all_checkpoints"], "holds no checkpoint-N folder"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "error"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_cannot_be_done_is_refused_in_one_line(flags, error, models, stories, tmp_path, capsys):
    few = {"EMPTY": '{"story": " "}\n', "FEW": "".join(f'{{"story": "a cat {number}"}}\n' for number in range(19))}
    for name, text in few.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    flags = [str(tmp_path / f"{word}.jsonl") if word in few else word for word in flags]
    with pytest.raises(SystemExit) as left:
        run(stories, tmp_path / "a", models / "llama", flags=flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert left.value.code == 2
    assert len(lines) == 1
    assert re.search(error, lines[0])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("other", "error"),
    [
        ("deeper", "use models of the same depth"),
        ("wider", "planted has 2 heads and .*wider 4, .*of the same number of heads"),
    ],
)
def test_models_of_other_shapes_are_not_set_side_by_side(other, error, models, stories, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run(stories, tmp_path / "a", models / "planted", models / other)
    assert left.value.code == 2
    assert re.search(error, capsys.readouterr().err)


def test_a_place_that_cannot_be_written_to_is_refused_at_once(models, stories, tmp_path, capsys):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(SystemExit):
        run(stories, tmp_path / "a", models / "llama")
    assert "cannot be written to" in capsys.readouterr().err
