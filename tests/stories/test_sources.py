"""Sources: every published form, and each broken file refused with one line that names it."""

import gzip
import json
import tarfile

import pandas as pd
import pytest

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.stories.corpora import open_records, read_manifest
from lm_trials.stories.records import make_record, split_of
from lm_trials.stories.sources import open_source

ARCHIVE = {
    "story": " \nOnce upon a time, a cat sat.",
    "instruction": {"prompt:": "Write a story.", "words": ["sit", "cat", "old"], "features": ["Dialogue"]},
    "summary": "A cat sits.",
    "source": "GPT-4",
}


def read(path, **options):
    return list(open_source(str(path), **options).records())


def write_forms(folder):
    rows = [ARCHIVE, {**ARCHIVE, "story": "Another day."}]
    flat = [{"story": row["story"], "summary": row["summary"]} for row in rows]
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pd.DataFrame(flat).to_csv(folder / "d.csv", index=False)
    pd.DataFrame(flat).to_parquet(folder / "e.parquet")
    (folder / "f.txt").write_text("<|endoftext|>\n".join(row["story"] for row in rows))
    with tarfile.open(folder / "g.tar.gz", "w:gz") as tar:
        tar.add(folder / "a.json", arcname="data00.json")
    return sorted(folder.iterdir())


def test_one_story_has_one_name_in_every_form(tmp_path):
    names = {path.name: [record["record_id"] for record in read(path)] for path in write_forms(tmp_path)}
    assert len(names) == 7
    assert all(found == names["a.json"] for found in names.values()), names
    assert len(set(names["a.json"])) == 2


def test_the_archive_key_may_have_its_colon_or_not(tmp_path):
    without = {**ARCHIVE, "instruction": {"prompt": "Write a story.", "words": [], "features": []}}
    (tmp_path / "a.json").write_text(json.dumps([ARCHIVE, without]))
    first, second = read(tmp_path / "a.json")
    assert first["prompt"] == second["prompt"] == "Write a story."
    assert first["words"] == ["sit", "cat", "old"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", json.dumps([ARCHIVE, ARCHIVE]).encode()[:-40], "truncated"),
        ("a.jsonl", b'{"story": "One."}\n{"story": ', "line 2"),
        ("a.jsonl", b'{"body": "One."}\n', "body"),
        ("a.txt", b"One day\xff\xfe.", "UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"story": "One day."}\n' * 200, mtime=0)[:-20], "truncated"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet"),
        ("a.jsonl", b"", "empty"),
        ("a.docx", b"x", "docx"),
        ("a.jsonl", b'{"story": "One.", "features": ["Romance"]}', "Romance"),
    ],
)
def test_a_broken_file_is_one_line_and_nothing_is_left(tmp_path, name, content, expected, capsys):
    (tmp_path / name).write_bytes(content)
    data = tmp_path / "data"
    flags = ["--source", str(tmp_path / name), "--corpus", "mine", "--data_cache_dir", str(data)]
    with pytest.raises(SystemExit) as left:
        prepare_tinystories.main(["ingest", *flags])
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert expected in line
    assert not data.exists() or list(data.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        open_source(str(tmp_path / "no.jsonl"))


def test_splits_follow_the_story_and_are_disjoint_whatever_the_order(tmp_path):
    stories = [f"Story number {n}." for n in range(2000)]
    splits = []
    for name, order in (("one", stories), ("two", stories[::-1] + stories[:10])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in order))
        flags = [
            "--source",
            str(tmp_path / f"{name}.jsonl"),
            "--corpus",
            name,
            "--data_cache_dir",
            str(tmp_path / "data"),
        ]
        prepare_tinystories.main(["ingest", *flags])
        records = open_records(tmp_path / "data" / name)
        splits.append({split: set(records[split]["record_id"]) for split in records})
    assert splits[0] == splits[1]
    one = splits[0]
    assert sum(map(len, one.values())) == len(set().union(*one.values())) == 2000
    assert 1920 < len(one["train"]) < 1990
    assert read_manifest(tmp_path / "data" / "two")["duplicates"] == 10
    assert all(split_of(make_record(story)["record_id"]) in one for story in stories[:5])


def test_real_records_are_read(shared_data):
    fixture = shared_data / "tinystories_alldata_fixture"
    assert len(read(fixture / "data00.json")) == 6
    assert len(read(fixture / "archive_records.jsonl")) == 32
    instruct = read(fixture / "TinyStories-Instruct-sample.txt")
    assert instruct[0]["words"] == ["quit", "oak", "gloomy"]
    assert len(read(shared_data / "tinystories" / "val.jsonl")) == 3117
