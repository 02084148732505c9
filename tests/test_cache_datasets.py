"""`cache_datasets.py` end to end: fetched once, found by the same flags, interrupted and resumed, verified."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

import cache_datasets
import prepare_tinystories
from lm_trials.commands import cache
from lm_trials.console import UsageError
from lm_trials.data import recipes as cache_recipes
from lm_trials.data.datasets import open_dataset
from lm_trials.data.recipes import read_recipe
from lm_trials.stories import sources
from lm_trials.stories.corpora import ingest, is_corpus, open_records, read_manifest, write_corpus
from lm_trials.stories.records import make_record
from lm_trials.stories.sources import open_source
from lm_trials.tokens.stores import store_folder
from lm_trials.tokens.tokenizers import resolve_vocab

REPOSITORY = Path(__file__).resolve().parents[1]


def write(path, said="Story", number=300):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"{said} {place}."}) + "\n" for place in range(number)))
    return str(path)


def run(folder, *argv):
    return cache_datasets.main([*argv, "--data_cache_dir", str(folder / "data")])


def refused(folder, capsys, *argv):
    """Run a command that is refused; returns its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run(folder, *argv)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def never(*_, **__):
    raise AssertionError("the source is read again")


def test_what_is_fetched_is_found_by_the_same_flags_and_nothing_is_read_again(tmp_path, monkeypatch, capsys):
    name = write(tmp_path / "tales.jsonl")
    (corpus,) = run(tmp_path, "--dataset_name", name, "--validation_split_percentage", "5", "--num_proc", "2")
    assert f"lm-trials train --dataset_name {name}"[:60] in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(sources, "file_shards", never)
    found = open_dataset(name, tmp_path / "data", validation_split_percentage=5, text_column=None).corpus()
    assert found == corpus
    assert run(tmp_path, "fetch", "--dataset_name", name, "--validation_split_percentage", "5") == [corpus]
    with pytest.raises(AssertionError, match="read again"):  # the neighbour: other flags are another corpus
        open_dataset(name, tmp_path / "data", validation_split_percentage=6).corpus()


def test_each_part_is_a_corpus_of_its_own(tmp_path):
    for part in ("pubmed", "uspto"):
        write(tmp_path / "pile" / f"{part}.jsonl", part)
    first, second = run(tmp_path, "--dataset_name", str(tmp_path / "pile"), "--dataset_config_name", "pubmed+uspto")
    assert open_records(first, "train")[0]["story"].startswith("pubmed")
    assert open_records(second, "train")[0]["story"].startswith("uspto")
    assert open_dataset(str(tmp_path / "pile"), tmp_path / "data", dataset_config_name="uspto").corpus() == second


def test_tokens_are_made_too(tiny_data, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tok400").symlink_to(tiny_data / "tok400")
    (corpus,) = run(tmp_path, "--dataset_name", write(tmp_path / "tales.jsonl"), "--vocab_size", "400")
    store = store_folder(corpus, resolve_vocab(400, None, tmp_path / "data"), append_eos=False)
    assert read_manifest(store)["documents"] == read_manifest(corpus)["stories"]
    listed = {item["name"]: item for item in run(tmp_path, "list")}
    assert listed[corpus.name]["stores"] == [store.name]


def test_a_hub_data_set_is_downloaded_whole_and_found_without_a_network(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, split, streaming, revision, **options):
        asked.append((name, streaming, revision, options))
        rows = {part: Dataset.from_dict({"text": [f"{part} {n}." for n in range(99)]}) for part in ("train", "dev")}
        return DatasetDict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_revision", lambda name: "a" * 40)
    (corpus,) = run(tmp_path, "--dataset_name", "someone/tales")
    assert asked == [("someone/tales", False, "a" * 40, {"num_proc": None})]
    assert read_manifest(corpus)["stories"] == {"train": 99, "validation": 99, "test": 0}
    monkeypatch.setattr(sources, "hub_revision", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset", never)
    assert open_dataset("someone/tales", tmp_path / "data").corpus() == corpus
    (item,) = run(tmp_path, "list")
    assert (item["source"], item["revision"]) == ("someone/tales", "a" * 40)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path, monkeypatch, capsys):
    for number in range(3):
        write(tmp_path / "source" / f"data{number}.jsonl", f"Tale {number}")
    flags = ["--dataset_name", str(tmp_path / "source")]

    def stopped(ticks, *_):
        for place, tick in enumerate(ticks):
            if place == 450:
                raise KeyboardInterrupt
            yield tick

    monkeypatch.setattr("lm_trials.data.datasets.progress", stopped)
    with pytest.raises(SystemExit) as left:
        run(tmp_path, *flags)
    monkeypatch.undo()
    assert left.value.code == 130
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"Interrupted. Run the same command again to resume: lm-trials cache --dataset_name {tmp_path}/source "
        f"--data_cache_dir {tmp_path}/data"
    ]
    assert run(tmp_path, "list") == []
    assert "interrupted; run the same command again to resume" in capsys.readouterr().out
    (corpus,) = run(tmp_path, *flags)
    assert "resuming after 1 of 3 parts" in capsys.readouterr().err
    source = open_source(str(tmp_path / "source"))
    assert ingest(source, tmp_path / "other" / corpus.name) == read_manifest(corpus)


@pytest.mark.end_to_end
def test_a_killed_command_leaves_no_process_and_goes_on(tmp_path):
    """SIGKILL, which nothing can catch, of a command with two reading processes."""
    for number in range(8):
        write(tmp_path / "source" / f"data{number}.jsonl", f"Tale {number}", number=2500)
    data = tmp_path / "data"
    command = ["--dataset_name", str(tmp_path / "source"), "--num_proc", "2", "--data_cache_dir", str(data)]
    script = [sys.executable, str(REPOSITORY / "cache_datasets.py")]
    process = subprocess.Popen([*script, *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(data.glob(".*.reading/*/[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    written = sorted((path, path.stat().st_size) for path in data.rglob("*"))
    assert 1 <= len(list(data.glob(".*.reading/*/[0-9]"))) < 8
    assert not any(map(is_corpus, data.iterdir()))
    time.sleep(0.5)
    assert sorted((path, path.stat().st_size) for path in data.rglob("*")) == written  # the readers are gone too
    (corpus,) = cache_datasets.main(command)
    assert ingest(open_source(str(tmp_path / "source")), tmp_path / "other" / corpus.name) == read_manifest(corpus)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--dataset_name", "x", "--num_proc", "0"], "--num_proc 0 must be"),
        (["--num_proc", "2"], "no data set is named; give --dataset_name"),
        (["--dataset_name", "a++b"], "a++b has an empty part"),
        (["--dataset_nam", "x"], "unrecognized flag --dataset_nam; did you mean --dataset_name?"),
        (["fetsh"], "fetsh is not a command; did you mean fetch?"),
        (["verify"], "nothing is prepared there; prepare a data set with"),
        (["recipe", "nowhere.yaml"], "nowhere.yaml: it cannot be read (No such file or directory)"),
        (["recipe"], "no recipe is named; give recipe FILE.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    if argv[0] == "recipe":
        with pytest.raises(SystemExit):
            cache_datasets.main(argv)
        assert message in capsys.readouterr().err
    else:
        assert message in refused(tmp_path, capsys, *argv)
    assert list(tmp_path.iterdir()) == []


def prepared(folder):
    """A data folder with a corpus of this project's, one of an earlier one without checksums, and a set."""
    data = ["--data_cache_dir", str(folder / "data")]
    corpus = ["--corpus", "new", *data]
    prepare_tinystories.main(["generate", "--num_stories", "300", *corpus])
    prepare_tinystories.main(["train_vocab", "--vocab_size", "400", *corpus])
    prepare_tinystories.main(["pretokenize", "--vocab_size", "400", *corpus])
    prepare_tinystories.main(
        ["pretokenize", "--vocab_size", "400", "--filtering", "features!=Twist", "--dataset_name", "no-twist", *corpus]
    )
    write_corpus([(0, make_record(f"Tale {number}.")) for number in range(50)], folder / "data" / "old", {})
    manifest = read_manifest(folder / "data" / "old")
    del manifest["files"]
    (folder / "data" / "old" / "manifest.json").write_text(json.dumps(manifest))
    return folder / "data"


def test_the_list_names_corpora_and_sets_with_what_they_hold(tmp_path, capsys):
    data = prepared(tmp_path)
    out = tmp_path / "out" / "list.json"
    items = {item["name"]: item for item in run(tmp_path, "list", "--json", str(out))}
    assert list(items) == ["new", "no-twist", "old"]
    assert json.loads(out.read_text()) == {"prepared": list(items.values()), "stopped": []}
    assert items["new"]["stories"] == read_manifest(data / "new")["stories"]
    assert items["new"]["content"] == items["no-twist"]["content"] == read_manifest(data / "new")["content"]
    assert (items["no-twist"]["kind"], items["no-twist"]["source"]) == ("set", "new")
    assert sum(items["no-twist"]["stories"].values()) < 300
    on_disk = sum(path.stat().st_size for path in (data / "new").rglob("*") if path.is_file())
    assert items["new"]["num_bytes"] == on_disk
    assert items["new"]["stores"] == items["no-twist"]["stores"]
    assert "set of new" in capsys.readouterr().out
    (data / "new" / "manifest.json").write_text("{")
    assert {item["name"]: item["kind"] for item in run(tmp_path, "list")}["new"] == "damaged"


DAMAGE = {
    "a changed byte": (
        "new",
        lambda data: _flip(data / "new/records/train/data-00000-of-00001.arrow"),
        "records/train/data-00000-of-00001.arrow has other content",
    ),
    "a cut file": (
        "new",
        lambda data: _cut(data / "new/records/train/data-00000-of-00001.arrow"),
        "records/train/data-00000-of-00001.arrow has",
    ),
    "a missing file": ("new", lambda data: (data / "new/records/test/state.json").unlink(), "state.json is missing"),
    "a manifest of nothing": ("new", lambda data: (data / "new/manifest.json").write_text("{"), "cannot be read"),
    "no manifest": ("new", lambda data: (data / "new/manifest.json").unlink(), "manifest.json cannot be read"),
    "other counts": ("old", lambda data: _say(data / "old", stories={"train": 1}), "has stories {'train': 1}"),
    "other content": ("old", lambda data: _say(data / "old", content="0" * 16), "has content 0000"),
    "a cut store": ("new", lambda data: _cut(next(data.glob("new/tokens-*/train/*.arrow"))), "bytes instead of the"),
    "a set of another corpus": (
        "no-twist",
        lambda data: _say(data / "no-twist", corpus={"name": "old", "content": "1"}),
        "its corpus old has content",
    ),
}


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def _say(folder, **fields):
    (folder / "manifest.json").write_text(json.dumps({**read_manifest(folder), **fields}))


@pytest.fixture(scope="module")
def prepared_data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_named_in_one_line(prepared_data, tmp_path, capsys, damage):
    import shutil

    shutil.copytree(prepared_data, tmp_path / "data")
    assert run(tmp_path, "verify") == ["new", "no-twist", "old"]  # the neighbour: whole
    assert capsys.readouterr().out.count("whole") == 3
    name, break_it, said = DAMAGE[damage]
    break_it(tmp_path / "data")
    line = refused(tmp_path, capsys, "verify")
    assert f"{name}: " in line or name in line
    assert said in line
    assert "the command that made it again" in line
    if name != "new":  # of what is whole beside it nothing is said
        assert run(tmp_path, "verify", "new") == ["new"]
    assert "nowhere is not prepared in" in refused(tmp_path, capsys, "verify", "nowhere")


def test_a_story_under_another_ones_name_is_seen_without_checksums(tmp_path, capsys):
    records = [make_record(f"Tale {number}.") for number in range(50)]
    records[7] |= {"story": "Another tale."}
    write_corpus([(0, record) for record in records], tmp_path / "data" / "mine", {})
    assert run(tmp_path, "verify") == ["mine"]  # checksums are of what was written
    manifest = read_manifest(tmp_path / "data" / "mine")
    del manifest["files"]
    (tmp_path / "data" / "mine" / "manifest.json").write_text(json.dumps(manifest))
    assert f"the text of {records[7]['record_id']} has another hash" in refused(tmp_path, capsys, "verify", "mine")


def recipe(folder, text):
    (folder / "recipe.yaml").write_text(text.replace("DATA", str(folder / "data")).replace("HERE", str(folder)))
    return ["recipe", str(folder / "recipe.yaml")]


def test_a_recipe_goes_on_after_one_that_failed_and_says_which(tmp_path, capsys):
    write(tmp_path / "one.jsonl", "One")
    (tmp_path / "two.jsonl").write_text('{"text": "A."}\n{"text": ')
    write(tmp_path / "three.jsonl", "Three")
    entries = "".join(
        f"- dataset_name: HERE/{name}.jsonl\n  data_cache_dir: DATA\n  validation_split_percentage: 5\n"
        for name in ("one", "two", "three")
    )
    with pytest.raises(SystemExit) as left:
        cache_datasets.main(recipe(tmp_path, entries))
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "failed: " in said
    assert f"error: 1 of 3 data sets of {tmp_path}/recipe.yaml could not be fetched: {tmp_path}/two.jsonl;" in said
    assert [item["name"][:3] for item in run(tmp_path, "list")] == ["one", "thr"]
    write(tmp_path / "two.jsonl", "Two")
    assert len(cache_datasets.main(recipe(tmp_path, entries))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- dataset_name: HERE/one.jsonl\n- dataset_nam: x\n",
            "entry 2: unrecognized flag dataset_nam; did you mean dataset_name?",
        ),
        ("- dataset_name: HERE/one.jsonl\n- dataset_name: HERE/two.jsonl\n", "entry 2 (HERE/two.jsonl): HERE/two"),
        ("- dataset_name: HERE/one.jsonl\n  num_proc: many\n", "entry 1 (HERE/one.jsonl): argument --num_proc"),
        ("- dataset_name: HERE/one.jsonl\n  num_proc: 0\n", "--num_proc 0 must be"),
        ("- dataset_name: HERE/one.jsonl\n  validation_split_percentage: 90\n", "--validation_split_percentage 90"),
        ("- dataset_name: HERE/one.jsonl\n  vocab_size: 77\n", "no tokenizer in"),
        ("- wikitext\n", "entry 1: 'wikitext' is not an entry; write `dataset_name: wikitext`"),
        ("dataset_name: HERE/one.jsonl\n", "the file must be a list of entries"),
        ("- num_proc: 2\n", "entry 1: no data set is named"),
        ("- dataset_name: a\n  dataset_name: b\n", "dataset_name is given twice"),
        ("- [\n", "it is not YAML"),
        ("", "must be a list"),
    ],
)
def test_every_entry_of_a_recipe_is_checked_before_the_first_is_fetched(tmp_path, monkeypatch, capsys, text, message):
    write(tmp_path / "one.jsonl")
    argv = recipe(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cache_datasets.main(argv)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message.replace("HERE", str(tmp_path)) in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "recipe.yaml"]


def test_the_recipe_of_the_seed_holds_flags_that_fetch_takes(monkeypatch):
    """Its data sets cannot be fetched here; its flags, and what can be checked without a network, can."""
    entries = read_recipe(REPOSITORY / "configs" / "cache_pile.yaml")
    assert [(entry.dataset_name, entry.dataset_config_name) for entry in entries][:2] == [
        ("SudharsanSundar/PileSubsets", "pubmed"),
        ("SudharsanSundar/PileSubsets", "uspto"),
    ]
    monkeypatch.setattr(cache_recipes, "dataset_of", never)
    with pytest.raises(AssertionError):  # the neighbour: it does look at each
        read_recipe(REPOSITORY / "configs" / "cache_pile.yaml")


def test_help_names_the_commands(capsys):
    for argv in ([], ["--help"]):
        with pytest.raises(SystemExit) as left:
            cache_datasets.main(argv)
        assert left.value.code == 0
        assert "lm-trials cache verify" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cache_datasets.main(["fetch", "--help"])
    assert "--validation_split_percentage" in capsys.readouterr().out


def test_a_data_set_in_fetch_may_not_be_a_word_without_a_flag():
    with pytest.raises(UsageError, match="fetch takes --dataset_name wikitext"):
        cache.command_arguments(["wikitext"])
