"""Corpora: written whole or not at all, counted, opened by name, refused where damaged."""

import json
import os
import socket

import pytest
from datasets import load_from_disk

from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.data.documents import Tokenising
from lm_trials.files import finished_folder
from lm_trials.stories.arrow_files import WRITE_BATCH
from lm_trials.stories.corpora import (
    is_corpus,
    open_records,
    read_manifest,
    write_corpus,
)
from lm_trials.stories.records import SPLITS, make_record, split_of
from lm_trials.tokens.tokenizers import train_tokenizer


def numbered(*stories, shard=0, **fields):
    return [(shard, make_record(story, **fields)) for story in stories]


STORIES = [f"Story {number}." for number in range(WRITE_BATCH + 500)]


def test_a_corpus_holds_each_story_once_and_says_what_it_holds(tmp_path):
    records = numbered(*STORIES, features=["Twist"]) + numbered("Story 1.", " Story  2.", "Alone.", "", "  \n")
    manifest = write_corpus(records, tmp_path / "mine", {"reference": "a test"})
    assert manifest == read_manifest(tmp_path / "mine")
    assert sum(manifest["stories"].values()) == len(STORIES) + 3
    assert (manifest["duplicates"], manifest["blank"]) == (2, 2)
    assert manifest["features"] == {"Twist": len(STORIES)}
    assert manifest["also_in_test"] == 0
    assert is_corpus(tmp_path / "mine")
    plain = load_from_disk(str(tmp_path / "mine" / "records"))  # with nothing of ours
    found = [story for split in SPLITS for story in plain[split]["story"]]
    assert sorted(found) == sorted([*STORIES, "Alone.", "Story 1.", "Story  2."])


def test_a_shard_split_counts_what_the_test_shard_has_in_common_with_the_rest(tmp_path):
    records = numbered(*STORIES[:50], shard=0) + numbered(*STORIES[40:400], shard=1)
    manifest = write_corpus(records, tmp_path / "mine", {}, split_by="shard")
    assert manifest["stories"]["test"] == 50
    assert manifest["also_in_test"] == 10
    assert set(open_records(tmp_path / "mine", "test")["story"]) == set(STORIES[:50])
    assert manifest["stories"]["validation"] > 0


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (numbered(), {}, "0 stories leave the train split empty; give more stories"),
        (numbered(*STORIES[:9]), {"split_by": "shard"}, "shard 0 is the test split, so give more shards"),
        (numbered("One."), {"splits_needed": SPLITS}, "1 stories leave the"),
    ],
)
def test_an_empty_split_is_refused_and_nothing_is_left(tmp_path, records, options, message):
    with pytest.raises(UsageError, match=message):
        write_corpus(records, tmp_path / "deep" / "mine", {}, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("equal", [2, 50])
def test_stories_that_are_all_equal_are_refused_and_many_repetitions_told(tmp_path, equal, capsys):
    path = tmp_path / "s1.jsonl"

    def prepared(*stories):
        path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
        corpus = open_dataset(str(path), tmp_path / "data").corpus()
        return read_manifest(corpus)["stories"], capsys.readouterr().err

    with pytest.raises(UsageError, match=rf"^{path}: all {equal} stories are equal; check the file and which column"):
        prepared(*["n/a"] * (equal - 1), " n/a ", "")
    assert not (tmp_path / "data").exists()
    assert sum(prepared("n/a")[0].values()) == 1
    told = [prepared(*["n/a"] * (equal + more), *STORIES[:equal])[1] for more in (0, 1, 2)]
    assert [f"note: {path}: {equal + 1} of {2 * equal + 2} stories repeat an earlier one" in line for line in told] == [
        *(False, False, True)
    ]
    assert "note: " not in told[0]
    assert "note: " not in prepared("", *STORIES[:9])[1]
    assert f"note: {path}: 2 records without a story" in prepared("", " ", *STORIES[:9])[1]


def test_a_corpus_made_of_a_file_is_called_by_the_file_in_errors(tmp_path):
    path = tmp_path / "s1.jsonl"
    late = next(story for story in STORIES if split_of(make_record(story)["record_id"]) == "test")
    path.write_text(json.dumps({"text": late}))
    with pytest.raises(UsageError, match=rf"^{path}: 1 stories leave the train split empty"):
        open_dataset(str(path), tmp_path / "data").corpus()
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES[:3]))
    tokenizer = train_tokenizer(STORIES, 320)
    for streaming in ("False", "CacheStream"):
        with pytest.raises(UsageError, match=rf"^--dataset_name {path}: none of its 3 stories"):
            open_dataset(str(path), tmp_path / "data", streaming=streaming).documents(
                tokenizer, Tokenising(streaming=streaming)
            )
    for split, stories in {"train": STORIES[:3], "validation": [" "]}.items():
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / f"own/{split}.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    with pytest.raises(UsageError, match=r"3 stories is in the validation split; add stories to it, or remove it and"):
        open_dataset(str(tmp_path / "own"), tmp_path / "data").documents(tokenizer, Tokenising())


def test_a_split_that_stays_empty_can_be_opened(tmp_path):
    """`datasets` itself writes a folder that it cannot read again."""
    story = next(story for story in STORIES if split_of(make_record(story)["record_id"]) == "train")
    manifest = write_corpus(numbered(story), tmp_path / "mine", {})
    assert manifest["stories"] == {"train": 1, "validation": 0, "test": 0}
    assert {split: len(rows) for split, rows in open_records(tmp_path / "mine").items()} == manifest["stories"]


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    def broken():
        yield from numbered(*STORIES)
        raise UsageError("line 1501 is broken")

    with pytest.raises(UsageError, match="line 1501"):
        write_corpus(broken(), tmp_path / "data" / "mine", {})
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_never_written_over(tmp_path):
    write_corpus(numbered(*STORIES[:100]), tmp_path / "mine", {})
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="already exists; remove it, or give another --corpus"):
        write_corpus(numbered(*STORIES[100:200]), tmp_path / "mine", {})
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    mark = f".mine.unfinished-{socket.gethostname()}-"
    killed, alive, elsewhere = (tmp_path / name for name in (f"{mark}99999999", f"{mark}1", ".mine.unfinished-other-7"))
    for folder in (killed, alive, elsewhere):
        folder.mkdir()
    with finished_folder(tmp_path / "mine") as unfinished:
        (unfinished / "a").write_text("x")
    assert not killed.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert (tmp_path / "mine" / "a").read_text() == "x"
    assert not (tmp_path / f"{mark}{os.getpid()}").exists()


def test_two_that_write_one_folder_do_not_mix(tmp_path):
    def both():
        with finished_folder(tmp_path / "mine") as unfinished:
            (unfinished / "a").write_text("second")
            (tmp_path / "mine").mkdir()
            (tmp_path / "mine" / "a").write_text("first")

    with pytest.raises(UsageError, match="appeared meanwhile"):
        both()
    assert (tmp_path / "mine" / "a").read_text() == "first"


def test_a_place_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"), finished_folder(tmp_path / "file" / "mine"):
        pass


def test_names_come_before_paths_and_paths_are_read_once_per_content(tmp_path):
    write_corpus(numbered(*STORIES[:100]), tmp_path / "data" / "mine", {})
    assert open_dataset("mine", tmp_path / "data").corpus() == tmp_path / "data" / "mine"
    assert open_dataset(str(tmp_path / "data" / "mine"), tmp_path / "other").corpus() == tmp_path / "data" / "mine"
    file = tmp_path / "tales.txt"
    file.write_text("<|endoftext|>".join(STORIES[:100]))
    first = open_dataset(str(file), tmp_path / "data").corpus()
    written = (first / "manifest.json").stat().st_mtime_ns
    assert open_dataset(str(file), tmp_path / "data").corpus() == first
    assert (first / "manifest.json").stat().st_mtime_ns == written
    file.write_text("<|endoftext|>".join(STORIES[100:200]))
    assert open_dataset(str(file), tmp_path / "data").corpus() != first
    with pytest.raises(UsageError, match=r"prepared in .*data: mine, tales-"):
        open_dataset("nowhere.txt", tmp_path / "data").corpus()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "records/train/state.json").write_text("{"),
        lambda folder: next((folder / "records/train").glob("*.arrow")).write_bytes(b"rubbish"),
        lambda folder: next((folder / "records/train").glob("*.arrow")).unlink(),
        lambda folder: (folder / "records/dataset_dict.json").unlink(),
    ],
    ids=["state", "rubbish", "missing", "dict"],
)
def test_a_damaged_corpus_is_one_line_with_the_way_out(tmp_path, damage):
    folder = tmp_path / "mine"
    write_corpus(numbered(*STORIES[:100]), folder, {})
    assert len(open_records(folder, "train")) > 0
    damage(folder)
    with pytest.raises(
        UsageError, match=r"damaged .*; remove .*records and run the command that made it again"
    ) as error:
        open_records(folder, "train")
    assert "\n" not in str(error.value)


def test_missing_records_splits_and_manifests_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="holds no records; make them with"):
        open_records(tmp_path / "nothing")
    write_corpus(numbered(*STORIES[:100]), tmp_path / "mine", {})
    with pytest.raises(UsageError, match="--dataset_split valid"):
        open_records(tmp_path / "mine", "valid")
    (tmp_path / "mine" / "manifest.json").write_text('{"corpus": ')
    with pytest.raises(UsageError, match=r"manifest.json cannot be read .*; remove"):
        read_manifest(tmp_path / "mine")
