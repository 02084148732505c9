"""`prepare_tinystories.py` end to end: the same command makes the same bytes, and a mistake makes nothing."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import prepare_tinystories
from lm_trials.commands.prepare import COMMANDS
from lm_trials.stories.corpora import open_records

REPOSITORY = Path(__file__).resolve().parents[1]


def contents(folder):
    """Digest of each data file; `datasets` writes a random fingerprint into its state.json."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "state.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepare(folder, seed="7", **flags):
    data = ["--corpus", "tiny", "--data_cache_dir", str(folder)]
    prepare_tinystories.main(["generate", "--num_stories", "400", "--seed", seed, *data])
    prepare_tinystories.main(["train_vocab", "--vocab_size", "400", *data])
    prepare_tinystories.main(["pretokenize", "--vocab_size", "400", *data])
    return contents(folder)


def test_the_same_commands_make_the_same_bytes_and_another_seed_others(tiny_data, tmp_path):
    again, other = prepare(tmp_path / "again"), prepare(tmp_path / "other", seed="8")
    wanted = {
        name: digest for name, digest in contents(tiny_data).items() if name in again
    }  # more was made there since
    assert again == wanted
    assert sum(name.endswith(".arrow") for name in again) == 6
    changed = {name for name in other.keys() & again if other[name] != again[name]}
    assert {"tiny/records/train/data-00000-of-00001.arrow", "tok400/tokenizer.json"} <= changed


def test_the_tokenizer_is_one_of_transformers(tiny_data):
    tokenizer = AutoTokenizer.from_pretrained(tiny_data / "tok400")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == 400
    assert tokenizer.decode(tokenizer("One day,\na cat.", add_special_tokens=False)["input_ids"]) == "One day,\na cat."


def test_a_generated_corpus_can_be_read_from_its_own_export(tiny_data, tmp_path):
    """The same stories have the same names from another source, and fall into the same splits."""
    records = open_records(tiny_data / "tiny")
    rows = [row for split in records.values() for row in split]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["--corpus", "again", "--data_cache_dir", str(tmp_path / "data")]
    prepare_tinystories.main(["ingest", "--source", str(tmp_path / "all.jsonl"), *data])
    again = open_records(tmp_path / "data" / "again")
    assert {split: again[split][:] for split in again} == {split: records[split][:] for split in records}


def test_describe_says_how_varied_a_corpus_is(tiny_data, capsys):
    report = prepare_tinystories.main(["describe", "--corpus", "tiny", "--data_cache_dir", str(tiny_data)])
    assert report["distinct_stories_share"] == 1.0
    assert report["held_out_seen_whole"] == 0
    out = capsys.readouterr().out
    assert "100.0% distinct" in out
    assert "words verbatim in a train story" in out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        prepare_tinystories.main([*([command] if command else []), "--help"])
    assert left.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.end_to_end
def test_help_loads_neither_torch_nor_datasets():
    code = (
        "import sys, prepare_tinystories\n"
        "try: prepare_tinystories.main(['pretokenize', '--help'])\n"
        "except SystemExit as left: print(left.code, [m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("genrate", "genrate is not a command; did you mean generate?"),
        ("generate --num_stories 99", "--num_stories 99 must be"),
        ("generate --num_stories 1e3", "--num_stories"),
        ("generate --seed -1", "--seed -1 must be"),
        ("generate --corpus ../mine", "--corpus '../mine' is not a plain name"),
        ("generate --corpus .hidden", "is not a plain name"),
        ("ingest --source nowhere.jsonl --corpus mine", "nowhere.jsonl does not exist"),
        ("ingest --source . --corpus mine --split_by size", "--split_by"),
        ("derive --corpus tiny", "--dataset_name is missing"),
        ("derive --corpus tiny --dataset_name tiny", "tiny already exists; remove it, or give another --dataset_name"),
        ("derive --corpus nowhere --dataset_name new", "holds no records"),
        ("derive --corpus tiny --dataset_name new --words_per_story 0", "--words_per_story 0 must be"),
        ("derive --corpus tiny --dataset_name new --words_per_story 9999", "leave the train split empty"),
        ("derive --corpus tiny --dataset_name new --filtering Twist", "--filtering"),
        ("train_vocab --corpus nowhere --vocab_size 330", "holds no records"),
        ("train_vocab --corpus tiny+nowhere --vocab_size 330", "holds no records"),
        (
            "train_vocab --corpus tiny --vocab_size 258",
            "leaves too little room for letters and merges beside 3 special and 256 byte tokens",
        ),
        ("train_vocab --corpus tiny --vocab_size 0", "--vocab_size"),
        ("train_vocab --corpus tiny --vocab_size 100000", "--vocab_size 100000: the stories give only "),
        ("train_vocab --corpus tiny --vocab_size 330 --max_stories 0", "--max_stories 0 must be"),
        ("train_vocab --corpus tiny --vocab_size 400", "holds a tokenizer already; remove it"),
        ("pretokenize --corpus nowhere --vocab_size 400", "holds no records"),
        ("pretokenize --corpus tiny --vocab_size 401", "train_vocab --corpus CORPUS --vocab_size 401"),
        ("pretokenize --corpus tiny", "--tokenizer_name"),
        ("pretokenize --corpus tiny --tokenizer_name nowhere.model", "nowhere.model"),
        ("describe --corpus nowhere", "holds no records"),
        ("describe --corpus tiny --max_held_out 0", "--max_held_out 0 must be"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tiny_data, tmp_path, monkeypatch, capsys, argv, message):
    (tmp_path / "data").mkdir()
    for name in ("tiny", "tok400"):
        (tmp_path / "data" / name).symlink_to(tiny_data / name)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as left:
        prepare_tinystories.main(argv.split())
    assert left.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corpus_that_is_there_is_left_as_it_is(tiny_data, capsys):
    before = contents(tiny_data / "tiny")
    with pytest.raises(SystemExit):
        prepare_tinystories.main(["generate", "--corpus", "tiny", "--data_cache_dir", str(tiny_data)])
    assert "tiny already exists" in capsys.readouterr().err
    assert contents(tiny_data / "tiny") == before
