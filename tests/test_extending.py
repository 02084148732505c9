"""docs/extending.md: each section's example is executed as it stands on the page, and does what the section says.

A section's test takes the Python blocks between its heading and the next one with `example_of`.
"""

import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

import eval_checkpoint
import prepare_tinystories
import train_gpt2
from lm_trials import probing
from lm_trials.cli import command_of
from lm_trials.console import UsageError
from lm_trials.evaluation.summary import STATISTICS
from lm_trials.probing import anatomy
from lm_trials.probing.anatomy import anatomy_of
from lm_trials.protocols.set_stores import open_set
from lm_trials.protocols.set_texts import set_texts
from lm_trials.protocols.transforms import TRANSFORMS
from lm_trials.stories.corpora import open_records
from lm_trials.stories.shards import FORMATS
from lm_trials.tokens.tokenizers import batch_encoder, load_tokenizer
from lm_trials.training.trainer import StoryTrainer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def section(title: str, page: str | None = None) -> str:
    """Return a section of the page by its heading, subsections too."""
    text = PAGE.read_text() if page is None else page
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def example_of(title: str) -> dict:
    """Execute the Python blocks of a section, in one namespace, and return it."""
    blocks = re.findall(r"^```python\n(.*?)^```", section(title), flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"section {title!r} has no Python block"
    namespace: dict = {"__name__": "example"}
    exec(compile("\n".join(blocks), f"{PAGE.name}: {title}", "exec"), namespace)
    return namespace


def test_a_section_ends_where_the_next_begins():
    page = "# Page\n\n## One\n\na\n\n### Part\n\nb\n\n## Two\n\nc\n"
    assert section("One", page).split() == ["a", "###", "Part", "b"]
    assert section("Two", page).split() == ["c"]
    with pytest.raises(AssertionError, match="no section 'Three'"):
        section("Three", page)


# --- A protocol transform


@pytest.fixture
def replace_word(monkeypatch):
    """The transform of the page, in the dictionary for one test."""
    for name, entry in TRANSFORMS.items():  # undone afterwards, with what the example adds
        monkeypatch.setitem(TRANSFORMS, name, entry)
    monkeypatch.setitem(TRANSFORMS, "replace_word", None)
    example_of("A protocol transform")
    return TRANSFORMS["replace_word"]


def test_the_transform_of_the_page_makes_a_set_of_the_text_it_describes(replace_word, tiny_data, capsys):
    flags = ["pretokenize", "--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    records = {row["record_id"]: row for row in open_records(tiny_data / "tiny", "train")}
    cats = sum(re.search(r"\bcat\b", record["story"]) is not None for record in records.values())
    assert cats > 20
    changed = {}
    for share in ("0.5", "1"):
        name, step = f"dogs-{share}", f"replace_word:cat=dog={share}"
        report = prepare_tinystories.main([*flags, "--transform", step, "--dataset_name", name])
        texts = list(set_texts(name, tiny_data, "train"))
        for text in texts:
            record = records[text.record_id]
            dogs = re.sub(r"\bcat\b", "dog", record["story"])
            assert text.story in (record["story"], dogs)
            assert text.words in (record["words"], [re.sub(r"\bcat\b", "dog", word) for word in record["words"]])
        changed[share] = {text.record_id for text in texts if text.story != records[text.record_id]["story"]}
        assert len(changed[share]) <= report["counts"]["train"]["transformed"][step] < len(records)
        tokenizer = load_tokenizer(str(tiny_data / "tok400"))
        store = open_set(name, tiny_data, tokenizer, "train")
        ids = batch_encoder(tokenizer)([text.text for text in texts])
        assert [store.tokens(n).tolist()[1:] for n in range(len(store))] == ids
    assert len(changed["1"]) == cats
    assert changed["0.5"] < changed["1"]
    assert abs(len(changed["0.5"]) - cats / 2) < 2 * cats**0.5
    assert "changed by replace_word:cat=dog=0.5" in " ".join(capsys.readouterr().out.split())


def test_the_transform_of_the_page_refuses_a_wrong_argument(replace_word, tiny_data, capsys):
    assert replace_word.changes == "story"
    with pytest.raises(SystemExit):
        prepare_tinystories.main(["pretokenize", "--corpus", "tiny", "--data_cache_dir", str(tiny_data),
                                  "--vocab_size", "400", "--transform", "replace_word:cat"])  # fmt: skip
    error = capsys.readouterr().err
    assert "'cat' is not two words and a share; give replace_word:OLD=NEW=P" in " ".join(error.split())


def test_the_page_lists_the_transforms_there_are():
    rows = re.findall(r"^\| `(\w+)(?::\w+)?` \| (\w+) \|", section("A protocol transform"), flags=re.MULTILINE)
    assert dict(rows) == {name: entry.changes for name, entry in TRANSFORMS.items()}


# --- A metric


def test_the_metric_of_the_page_is_a_row_with_its_interval(tiny_base, tiny_data, tmp_path, monkeypatch):
    for name, entry in STATISTICS.items():
        monkeypatch.setitem(STATISTICS, name, entry)
    monkeypatch.setitem(STATISTICS, "bits_per_token", None)
    example_of("A metric")
    flags = {"model_dir": tiny_base, "dataset_name": "tiny", "data_cache_dir": tiny_data, "output_dir": tmp_path}
    flags |= {"dataset_split": "train", "max_eval_samples": 20}  # below 10 stories there is no interval
    argv = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    rows = {row["metric"]: row for row in eval_checkpoint.main(argv)}
    bits, nats = rows["bits_per_token"], rows["loss"]
    assert [bits[key] for key in ("estimate", "lower", "upper")] == pytest.approx(
        [nats[key] / math.log(2) for key in ("estimate", "lower", "upper")]
    )
    assert bits["unit"] == "bits per token"
    assert "bits_per_token" in (tmp_path / "eval_results.csv").read_text()


# --- A source format


def test_files_of_the_pages_format_become_a_corpus(tmp_path, monkeypatch, capsys):
    lines = ["story\tfeatures", *(f"One day, {number} cats ran.\tTwist" for number in range(300))]
    (tmp_path / "tales.tsv").write_text("\n".join(lines) + "\n")
    flags = [
        "ingest",
        "--source",
        str(tmp_path / "tales.tsv"),
        "--data_cache_dir",
        str(tmp_path / "data"),
        "--corpus",
        "a",
    ]
    with pytest.raises(SystemExit):
        prepare_tinystories.main(flags)
    assert "has the suffix '.tsv'" in capsys.readouterr().err
    monkeypatch.setitem(FORMATS, "tsv", None)
    example_of("A source format")
    manifest = prepare_tinystories.main(flags)
    assert sum(manifest["stories"].values()) == 300
    assert manifest["features"] == {"Twist": 300}


# --- A field of a checkpoint


def test_the_field_of_the_page_is_as_if_the_run_had_not_been_interrupted(train_flags, tmp_path, monkeypatch):
    trainer = example_of("A field of a checkpoint")["TrainerWithLargestGradient"]
    monkeypatch.setattr("lm_trials.training.trainer.StoryTrainer", trainer)
    more = ("--max_steps", "4", "--save_steps", "2", "--save_strategy", "steps", "--logging_steps", "1")

    def field(run, step):
        return json.loads((tmp_path / run / f"checkpoint-{step}" / "progress_0.json").read_text())["largest_grad_norm"]

    train_gpt2.main(train_flags("whole", *more))
    at_two, whole = field("whole", 2), field("whole", 4)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-4")
    (tmp_path / "stopped" / "finished.json").unlink()
    monkeypatch.setattr(trainer, "log", StoryTrainer.log)  # no gradient is seen any more: the field is the checkpoint's
    train_gpt2.main(train_flags("stopped", *more))
    assert field("stopped", 4) == at_two > 0
    assert whole >= at_two


# --- A model family


def test_the_command_of_the_page_trains_the_family(train_flags, tmp_path):
    (command,) = re.findall(r"^```bash\nlm-trials train (.*?)\n```", section("A model family"), flags=re.M | re.S)
    given = shlex.split(command)
    family = given[given.index("--model_type") + 1]
    train_gpt2.main(train_flags("run", *given, "--dataset_name", "tiny", "--vocab_size", "400"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.model_type == family
    assert model.config.num_hidden_layers == 2


def test_the_word_of_the_page_lets_probes_read_another_name(monkeypatch):
    model = tiny_model("llama")
    for block in model.model.layers:
        block.feed_forward = block.mlp
        del block.mlp
    with pytest.raises(UsageError, match="no known MLP module"):
        anatomy_of(model).mlp(0)
    monkeypatch.setattr("lm_trials.probing.anatomy.MLPS", anatomy.MLPS)
    example_of("A model family")
    assert anatomy_of(model).mlp(0) is model.model.layers[0].feed_forward


# --- A probe


@pytest.fixture
def norms_probe(tmp_path, monkeypatch):
    """The program of the probe on the page, its files where the page puts them, found by its name for one test."""
    blocks = re.findall(r'^```python title="([^"]+)"\n(.*?)^```', section("A probe"), flags=re.MULTILINE | re.DOTALL)
    for name, code in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    assert {str(Path(name).parent) for name, _ in blocks} == {"lm_trials/probing/norms"}  # one folder
    monkeypatch.setattr("lm_trials.probing.__path__", [*probing.__path__, str(tmp_path / "lm_trials" / "probing")])
    yield command_of(["probe", "norms"])[0]
    for name in [name for name in sys.modules if name.startswith("lm_trials.probing.norms")]:
        del sys.modules[name]


def test_the_probe_of_the_page_measures_what_the_model_computes(norms_probe, tiny_base, tiny_data, tmp_path):
    flags = {
        "model_name_or_path": tiny_base,
        "dataset_name": "tiny",
        "data_cache_dir": tiny_data,
        "output_dir": tmp_path,
    }
    rows = norms_probe([word for flag, value in flags.items() for word in (f"--{flag}", str(value))])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_base), load_tokenizer(str(tiny_base))
    encode, means = batch_encoder(tokenizer), []
    for story in open_records(tiny_data / "tiny", "validation")["story"]:
        ids = torch.tensor([[tokenizer.bos_token_id, *encode([story])[0]]])[:, : model.config.max_position_embeddings]
        hooked: list = []
        hook = model.model.layers[0].register_forward_pre_hook(lambda _, given: hooked.append(given[0]))  # noqa: B023
        with torch.no_grad():
            model(ids)
        hook.remove()
        means.append(float(hooked[0][0, 1:].norm(dim=-1).mean()))
    (first,) = [row for row in rows if row["layer"] == 0 and row["role"] == "model"]
    assert first["estimate"] == pytest.approx(sum(means) / len(means), rel=1e-5)
    assert (first["n"], first["unit"]) == (len(means), "L2 norm")
    (control,) = [row for row in rows if row["layer"] == 0 and row["role"] == "untrained"]
    assert control["estimate"] != pytest.approx(first["estimate"], rel=1e-2)
    assert {"norms.csv", "norms.json", "norms.png", "norms.svg"} <= {path.name for path in tmp_path.iterdir()}
