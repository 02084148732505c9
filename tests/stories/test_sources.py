"""Sources: every published form, and each broken file refused with one line that names it."""

import bz2
import gzip
import io
import json
import lzma
import re
import shlex
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets.utils.file_utils import COMPRESSION_FILESYSTEMS
from refusals import usage_error

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.stories.corpora import open_records, read_manifest
from lm_trials.stories.records import make_record, record_id, split_of
from lm_trials.stories.shards import CHUNK, OPENERS
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


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 2227753162\n"


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
        ("a.csv", b"story,note,story\nOne.,x,n/a\n", "a.csv: line 1: column 'story' is given twice"),
        ("a.csv", b"note,story,note\nx,One.,y\n", "column 'note' is given twice"),
        ("a.csv", b'"story', "a.csv is truncated or broken ("),
        ("a.csv", b'story\n"One."\n"Two', "a.csv is truncated or broken after line 2 ("),
        ("a.csv", b"story,a\nOne.,1\nTwo.\n", "a.csv: line 3 has fewer fields"),
        (
            "a.json",
            b'[{"story": "One."}, {"story": "Two.", "story": "n/a"}]',
            "record 2: column 'story' is given twice",
        ),
        (
            "a.jsonl",
            b'{"story": "One."}\n{"story": "Two.", "story": "n/a"}',
            "line 2 is not valid JSON (column 'story'",
        ),
        ("a.jsonl", b'{"story": "One\\u0000."}', "a.jsonl: line 1: the text has the control character '\\x00'"),
        ("a.tar.zst", b"x", "a .tar file with .zst cannot be streamed; decompress it first"),
        ("a.parquet.bz2", b"x", "a .parquet file with .bz2 cannot be streamed"),
        ("a.json", b'[{"story": "One."}]\n[{"story": "Two."}]', "a.json: text follows the list, after record 1; "),
        ("a.jsonl", b'[{"story": "One."}, {"story": "Two."}]\n{"story": "n/a"}', "follows the list, after record 2"),
        ("a.jsonl", b"[]]", "text follows the list, after record 0"),
        ("a.json", b'[{"story": "One."}]' + b" " * CHUNK + b"x", "text follows the list, after record 1"),
        *(
            (f"a.{suffix}", LFS, f"a.{suffix} is a pointer of Git LFS")
            for suffix in ("txt", "jsonl", "parquet", "tar.gz")
        ),
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


def test_a_json_list_may_be_followed_by_blanks(tmp_path):
    (tmp_path / "a.json").write_text('[{"story": "One."},\n]\r\n' + "\n" * CHUNK)
    assert [record["story"] for record in read(tmp_path / "a.json")] == ["One."]


def compressed(content, suffix):
    if suffix in (".zst", ".zstd", ".lz4"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "lz4" if suffix == ".lz4" else "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(content)


@pytest.mark.parametrize("suffix", OPENERS)
def test_every_compression_of_datasets_is_read_and_a_truncated_one_named(tmp_path, suffix, capsys):
    stories = [f"{record_id(str(number))} {number}." for number in range(2000)]
    lines = "".join(json.dumps({"text": story}) + "\n" for story in stories).encode()
    for half, name in (
        (lines[: lines.index(b"\n") + 1], "a.jsonl"),
        (compressed(lines, suffix), f"B.JSONL{suffix.upper()}"),
    ):
        (tmp_path / name).write_bytes(half)
    assert sorted(record["story"] for record in read(tmp_path)) == sorted([stories[0], *stories])
    assert "not read" not in capsys.readouterr().err
    path = tmp_path / f"B.JSONL{suffix.upper()}"
    path.write_bytes(path.read_bytes()[:-100])
    assert re.search(rf"{path.name} is truncated or broken (after line \d+ )?\(", usage_error(read, path))


def test_the_compressions_are_those_of_datasets():
    known = {suffix for filesystem in COMPRESSION_FILESYSTEMS for suffix in filesystem.extensions}
    assert set(OPENERS) == known - {".gzip"}


LEFT_OUT = {
    "b.jsonl.zip": "x",
    "c.arrow": "x",
    "d.rar": "x",
    "stories": "x",
    "more/e.docx": "x",
    "empty.jsonl": "",
    "more/part-1.json": "",
    "prepared/manifest.json": "{}",
    "tok512/tokenizer.json": "{}",
}
NO_WORD = [
    *(".hidden.jsonl", ".cache/a.jsonl", "__pycache__/a.txt", "README.md", "Readme.txt", "LICENSE", "LICENSE.txt"),
    *("licence", "NOTICE", "SHA256SUMS", "md5sums.txt", "checksums.txt", "a.jsonl.sha256", "a.md5", "_SUCCESS"),
    *("dataset_infos.json", "dataset_info.json", "CITATION.cff"),
]


@pytest.mark.parametrize("name", [*LEFT_OUT, *NO_WORD])
def test_each_file_of_a_folder_that_is_not_read_is_named(tmp_path, name, capsys):
    (tmp_path / "license-plates.jsonl").write_text('{"story": "One."}')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(LEFT_OUT.get(name, '{"story": "Two."}'))
    assert [record["story"] for record in read(tmp_path)] == ["One."]
    read(tmp_path)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"note: {tmp_path}: not read: ")]
    assert len(told) == (name in LEFT_OUT)  # once
    assert name not in LEFT_OUT or Path(name).parts[0] in told[0]


def test_folders_in_a_folder_and_linked_files_are_read_and_linked_folders_named(tmp_path, capsys):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for path, story in ((inside / "part10/a.jsonl", 3), (inside / "part2/b.jsonl", 2), (outside / "c.jsonl", 4)):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"story": f"{story}."}))
    (inside / "part0.jsonl").symlink_to(outside / "c.jsonl")
    assert [record["story"] for record in read(inside)] == ["4.", "2.", "3."]
    assert "not read" not in capsys.readouterr().err
    (inside / "linked").symlink_to(outside)
    (inside / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    (inside / "cycle").symlink_to(inside)
    assert [record["story"] for record in read(inside)] == ["4.", "2.", "3."]
    assert "not read: broken.jsonl, cycle, linked\n" in capsys.readouterr().err


def tar(path, *names):
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate(names):
            content = json.dumps([{"story": f"{number}."}]).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_files_of_an_archive_are_named_if_they_are_not_read_and_may_not_have_splits(tmp_path, capsys):
    tar(tmp_path / "a.tar.gz", "README.txt", "._data0.json", "train/data0.json", "data1.txt", "more/data2.json.gz")
    assert len(read(tmp_path / "a.tar.gz")) == 1
    assert f"note: {tmp_path}/a.tar.gz: not read: data1.txt, more/data2.json.gz\n" in capsys.readouterr().err
    tar(tmp_path / "train-valid.tar.gz", "Tales-train0.json", "Tales-train1.json")
    assert len(read(tmp_path / "train-valid.tar.gz")) == 2
    tar(tmp_path / "b.tar.gz", "Tales-train.json", "Tales-valid.json")
    assert "b.tar.gz has files named after train and validation; unpack it" in usage_error(read, tmp_path / "b.tar.gz")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["configs:\n- config_name: {}\n", "dataset_info:\n  - config_name: {} \n    x: 1\n"])
def test_a_clone_of_a_hub_data_set_with_several_configurations_needs_one(tmp_path, form):
    for number, config in enumerate(("small-v1", "large")):
        (tmp_path / config).mkdir()
        (tmp_path / config / "train-0.jsonl").write_text(json.dumps({"text": f"{number}."}))
    cards = [form.format(config) for config in ("small-v1", "large")]
    (tmp_path / "README.md").write_text(f"---\n{cards[0]}---\nconfig_name: large\n")
    assert len(read(tmp_path)) == 2
    (tmp_path / "README.md").write_text(f"---\n{''.join(cards)}---\n")
    assert "evaluate --dataset_config_name: large, small-v1" in usage_error(read, tmp_path)
    assert [record["story"] for record in read(tmp_path, dataset_config_name="small-v1")] == ["0."]


def test_a_part_of_a_folder_must_be_one_file(tmp_path):
    for name in ("pubmed.jsonl", "pubmed.jsonl.sha256", "pubmed2.jsonl"):
        (tmp_path / name).write_text('{"text": "One."}')
    assert len(read(tmp_path, dataset_config_name="pubmed")) == 1
    (tmp_path / "pubmed.txt").write_text("Two.")
    assert "more than one such part; valid: pubmed.jsonl, pubmed.txt" in usage_error(
        read, tmp_path, dataset_config_name="pubmed"
    )
    assert [record["story"] for record in read(tmp_path, dataset_config_name="pubmed.txt")] == ["Two."]


def test_a_column_that_parquet_has_twice_is_named(tmp_path):
    columns = [pa.array(["One."]), pa.array(["n/a"])]
    for names in (["story", "story"], ["story", "note"]):
        pa.parquet.write_table(pa.table(columns, names=names), tmp_path / f"{names[1]}.parquet")
    assert "story.parquet: column 'story' is given twice" in usage_error(read, tmp_path / "story.parquet")
    assert len(read(tmp_path / "note.parquet")) == 1


def test_files_of_two_formats_are_refused_wherever_they_lie(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"story": "One."}')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.csv").write_text("story\nTwo.\n")
    assert "several formats (json: a.jsonl, csv: more/b.csv)" in usage_error(read, tmp_path)
    (tmp_path / "more" / "b.csv").unlink()
    (tmp_path / "more" / "B.NDJSON").write_text('{"story": "Two."}')
    assert len(read(tmp_path)) == 2


TALES = ["One day, a cat sat.", "Two dogs ran.", "Three birds flew."]


@pytest.mark.parametrize("separator", ["\n\n", r"\n\n", "\r\n\r\n", r"\r\n\r\n", "\n", r"\n", "%%"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_separator_is_found_as_a_shell_or_windows_writes_it(tmp_path, separator, end, capsys):
    written = "%%" if separator == "%%" else end * 2
    (tmp_path / "a.txt").write_bytes(written.join(TALES).encode())
    found = read(tmp_path / "a.txt", text_separator=separator)
    assert [record["story"] for record in found if record["story"]] == TALES
    assert "note" not in capsys.readouterr().err


def test_a_text_without_its_separator_is_told_with_a_command_that_works(tmp_path, capsys):
    path = tmp_path / "one long.txt"
    path.write_text("\n\n".join(f"{story} {number}" for number in range(100) for story in TALES))
    assert len(read(path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {path}: a text without '<|endoftext|>' is one story; ")
    program, *flags = shlex.split(line[line.index("lm-trials") :])
    flags[flags.index("--corpus") + 1] = "mine"
    manifest = prepare_tinystories.main([*flags[1:], "--data_cache_dir", str(tmp_path / "data")])
    assert (program, sum(manifest["stories"].values())) == ("lm-trials", 300)


def test_a_folder_of_texts_with_one_story_each_is_told_once(tmp_path, capsys):
    for number, story in enumerate(TALES):
        (tmp_path / f"{number}.txt").write_text(story)
    for separator in ("<|endoftext|>", "%%"):
        assert len(read(tmp_path, text_separator=separator)) == 3
        assert capsys.readouterr().err.count(f"{tmp_path}: a text without {separator!r} is one story") == 1
    for number, story in enumerate(TALES):
        (tmp_path / f"{number}.txt").write_text(f"{story}%%{story}")
    assert len(read(tmp_path, text_separator="%%")) == 6
    assert "note" not in capsys.readouterr().err


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
