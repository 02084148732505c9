"""Splits: a source's own are kept, others follow from the hash; reading a split and ingesting it are the same."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from datasets.data_files import SPLIT_KEYWORDS, DataFilesDict, get_data_patterns
from hypothesis import given
from hypothesis import strategies as st
from refusals import usage_error

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.stories import hub
from lm_trials.stories.corpora import ingest, open_records, read_manifest
from lm_trials.stories.records import SPLITS, make_record, record_id, split_of
from lm_trials.stories.sources import open_source
from lm_trials.stories.splits import file_splits, named_splits

TRAIN = [f"Story {number} of the train split." for number in range(400)]
HELD_OUT = [f"Story {number} that is held out." for number in range(30)]


def write_lines(path, stories):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return path


def one_file(folder):
    return {"reference": str(write_lines(folder / "tales.jsonl", [*TRAIN, "", *TRAIN[:5]]))}


def unnamed_shards(folder):
    for number, start in enumerate(range(0, 400, 100)):
        write_lines(folder / "shards" / f"data{number}.jsonl", TRAIN[start : start + 100])
    return {"reference": str(folder / "shards")}


def named_files(folder, held_out=("validation", "test")):
    write_lines(folder / "named" / "train-00001.jsonl", TRAIN[:150])
    write_lines(folder / "named" / "train-00002.jsonl", [*TRAIN[150:], " ", TRAIN[3]])
    for name in held_out:
        write_lines(folder / "named" / f"{name}.jsonl", [f"{name}: {story}" for story in HELD_OUT])
    return {"reference": str(folder / "named")}


def splits(*held_out):
    parts = {"train": TRAIN, **{name: [f"{name}: {story}" for story in HELD_OUT] for name in held_out}}
    return DatasetDict({name: Dataset.from_dict({"text": stories}) for name, stories in parts.items()})


def saved_splits(folder):
    splits("valid", "test", "unsupervised").save_to_disk(folder / "saved")
    return {"reference": str(folder / "saved")}


def saved_alone(folder):
    splits()["train"].save_to_disk(folder / "alone")
    return {"reference": str(folder / "alone")}


def without_validation(folder):
    return {**named_files(folder, held_out=("test",)), "validation_split_percentage": 10}


def more_validation(folder):
    return {**one_file(folder), "validation_split_percentage": 20}


def from_hub(folder, monkeypatch, *held_out):
    """A Hub of one data set, with splits of its own."""

    def load_dataset(name, config, split, streaming, revision, num_proc):
        assert (name, config) == ("someone/tales", None)
        assert revision in (None, "a" * 40, "b" * 40)
        found = splits(*held_out)
        if streaming:
            found = IterableDatasetDict({name: rows.to_iterable_dataset() for name, rows in found.items()})
        return found if split is None else found[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return {"reference": "someone/tales"}


FORMS = [one_file, unnamed_shards, named_files, saved_splits, saved_alone, without_validation, more_validation]


def same_as_ingested(source, folder):
    manifest = ingest(source, folder)
    for split in SPLITS:
        streamed = list(source.records_of(split))
        assert streamed == list(open_records(folder, split))
        assert len(streamed) == manifest["stories"][split]
    return manifest


@pytest.mark.parametrize("form", FORMS)
def test_a_split_read_is_the_split_ingested(tmp_path, form):
    options = form(tmp_path)
    manifest = same_as_ingested(open_source(**options), tmp_path / "corpus")
    assert manifest["stories"]["train"] > 200
    assert manifest["split_by"] == ("source" if form in (named_files, saved_splits, without_validation) else "hash")
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("streaming", [True, False])
def test_a_split_of_a_hub_data_set_read_is_the_split_ingested(tmp_path, monkeypatch, streaming):
    options = from_hub(tmp_path, monkeypatch, "validation", "test")
    manifest = same_as_ingested(open_source(**options, streaming=streaming), tmp_path / "own")
    assert manifest["stories"] == {"train": 400, "validation": 30, "test": 30}
    options = from_hub(tmp_path, monkeypatch)
    source = open_source(**options, streaming=streaming, validation_split_percentage=10)
    by_hash = same_as_ingested(source, tmp_path / "by_hash")["stories"]
    assert by_hash["validation"] == sum(split_of(record_id(story), 10) == "validation" for story in TRAIN) > 0
    assert by_hash["test"] == 0
    assert sum(by_hash.values()) == 400


def test_own_splits_hold_what_they_hold_in_the_source(tmp_path):
    corpus = open_dataset(**name_of(named_files(tmp_path)), data_cache_dir=tmp_path / "data").corpus()
    for split in ("validation", "test"):
        assert list(open_records(corpus, split)["story"]) == [f"{split}: {story}" for story in HELD_OUT]
    assert list(open_records(corpus, "train")["story"]) == [*TRAIN, TRAIN[3]]
    # The neighbour: the same stories in files that say nothing are split by hash.
    for number, path in enumerate(sorted((tmp_path / "named").iterdir())):
        path.rename(path.with_name(f"part{number}.jsonl"))
    other = open_dataset(**name_of({"reference": str(tmp_path / "named")}), data_cache_dir=tmp_path / "data").corpus()
    assert read_manifest(other)["stories"] != read_manifest(corpus)["stories"]


def name_of(options):
    return {("name" if key == "reference" else key): value for key, value in options.items()}


def test_splits_that_are_none_of_the_three_are_left_out_and_named(tmp_path, capsys):
    source = open_source(**saved_splits(tmp_path))
    source.check_splits()
    assert capsys.readouterr().err.endswith("splits that are not read: unsupervised\n")
    assert source.origin()["left_out"] == ["unsupervised"]
    assert not any("unsupervised" in record["story"] for split in SPLITS for record in source.records_of(split))
    assert any("unsupervised" in record["story"] for record in source.records())  # evaluated whole


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (lambda f: named_files(f, ["test"]), {}, "has no validation split, only train, test; .*_percentage 1"),
        (lambda f: named_files(f, []), {}, "has no validation split, only train; "),
        (
            named_files,
            {"validation_split_percentage": 1},
            "_percentage 1: .* has a validation split of its own; remove",
        ),
        (saved_splits, {"validation_split_percentage": 2.5}, "_percentage 2.5: .* has a validation split"),
        (one_file, {"validation_split_percentage": 0}, "_percentage 0: must be above 0 and at most 50"),
        (one_file, {"validation_split_percentage": 50.5}, "_percentage 50.5: must"),
        (one_file, {"validation_split_percentage": float("nan")}, "_percentage nan: must"),
        (
            lambda f: {"reference": str(write_lines(f / "a" / "test.jsonl", TRAIN).parent)},
            {},
            "has no train split, only test",
        ),
        (
            lambda f: {
                "reference": str(write_lines(f / "named" / "tales.jsonl", TRAIN) and named_files(f)["reference"])
            },
            {},
            r"files named after a split \(test.jsonl\) and others \(tales.jsonl\)",
        ),
        (
            named_files,
            {"dataset_split": "dev2"},
            "--dataset_split dev2: .*; valid: train, validation, test",
        ),
    ],
)
def test_splits_that_cannot_be_made_are_one_line_and_nothing_is_written(tmp_path, form, options, message):
    given = form(tmp_path)
    reads = [lambda: list(open_source(**given, **options).records_of("train"))]
    if "dataset_split" not in options:  # a corpus has all splits
        reads.append(lambda: open_dataset(**name_of(given), data_cache_dir=tmp_path / "data", **options).corpus())
    for read in reads:
        with pytest.raises(UsageError, match=message) as error:
            read()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_folder_of_which_some_files_are_named_after_a_split_can_be_read_whole(tmp_path):
    folder = named_files(tmp_path)["reference"]
    write_lines(tmp_path / "named" / "tales.jsonl", ["Once."])
    source = open_source(folder)
    assert sum(1 for _ in source.records()) == len(TRAIN) + 1 + 2 * len(HELD_OUT) + 1
    before = source.fingerprint()
    (tmp_path / "named" / "test.jsonl").rename(tmp_path / "named" / "dev.jsonl")
    (tmp_path / "named" / "validation.jsonl").rename(tmp_path / "named" / "test.jsonl")
    assert open_source(folder).fingerprint() != before


def test_a_prepared_corpus_has_its_splits(tmp_path):
    ingest(open_source(**one_file(tmp_path)), tmp_path / "data" / "mine")
    with pytest.raises(UsageError, match="_percentage 5: mine is prepared and has its splits; remove the flag"):
        open_dataset("mine", tmp_path / "data", validation_split_percentage=5).corpus()


def test_one_split_of_several_is_split_by_hash(tmp_path):
    source = open_source(**named_files(tmp_path), dataset_split="train")
    assert same_as_ingested(source, tmp_path / "corpus")["split_by"] == "hash"
    assert {record["story"] for record in source.records()} == set(TRAIN)
    assert source.fingerprint() != open_source(**named_files(tmp_path)).fingerprint()


def test_stories_in_two_splits_of_a_source_are_counted_and_said(tmp_path, capsys):
    folder = Path(named_files(tmp_path)["reference"])
    write_lines(folder / "validation.jsonl", [TRAIN[0], TRAIN[1], "Alone."])
    write_lines(folder / "test.jsonl", [TRAIN[2], "Alone."])
    corpus = open_dataset(str(folder), tmp_path / "data").corpus()
    manifest = read_manifest(corpus)
    assert (manifest["also_in_validation"], manifest["also_in_test"]) == (2, 2)
    assert f"note: {folder}: 2 stories of other splits" in capsys.readouterr().err
    open_dataset(**name_of(one_file(tmp_path)), data_cache_dir=tmp_path / "data").corpus()
    assert "note" not in capsys.readouterr().err


def test_the_name_of_a_corpus_holds_the_percentage(tmp_path):
    name = one_file(tmp_path)["reference"]
    folders = [
        open_dataset(name, tmp_path / "data", validation_split_percentage=percent).corpus()
        for percent in (None, 5, 10, 5.0)
    ]
    assert folders[1] == folders[3]
    assert len(set(folders)) == 3
    assert read_manifest(folders[1])["origin"]["validation_split_percentage"] == 5


MISTYPED = ["./typo", "~/typo", "../typo", "/no/such", "typo.csv", "typo.JSONL.zst", "tales/typo", "typo/", "a/b/c"]
MISTYPED += [r"C:\\data\\a.txt", r"runs\\typo", "two words", "-typo", "tales/typo.parquet", "typo*", "tales/ typo"]


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lm_trials.stories.sources.hub_revision", asked.append)
    (tmp_path / "tales").mkdir()
    message = usage_error(open_dataset, name, tmp_path / "data")
    assert message.startswith(f"{name} does not exist; give a file, ")
    for other in ("typo", "owner/typo", "owner/typo-v1.2", "tale.s/typo_2"):
        assert open_source(other).kind == "hub"
    assert len(asked) == 4


def test_what_is_no_file_and_no_folder_is_named():
    with pytest.raises(UsageError, match="/dev/null is neither a file nor a folder; write what it gives into a file"):
        open_source("/dev/null")


def test_without_a_network_the_hub_is_asked_once_and_the_cache_then(monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    known = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: known.append(huggingface_hub.is_offline_mode()))
    for revision in (None, "a" * 40):
        hub.load_hub("someone/tales", None, None, True, revision)
    assert known == [True, False]
    assert not huggingface_hub.is_offline_mode()


def test_a_hub_data_set_that_moves_on_is_another_one(tmp_path, monkeypatch):
    options = from_hub(tmp_path, monkeypatch, "validation")
    corpora = []
    for revision in ("a" * 40, "b" * 40, None):  # None: without a network
        monkeypatch.setattr("lm_trials.stories.sources.hub_revision", lambda _, found=revision: found)
        corpora.append(open_dataset(options["reference"], tmp_path / "data").corpus())
    assert corpora[0] != corpora[1]
    assert corpora[2] == corpora[1]  # the newest that is here
    assert read_manifest(corpora[0])["origin"]["revision"] == "a" * 40
    with_column = open_dataset(options["reference"], tmp_path / "data", text_column="text").corpus()
    assert with_column not in corpora  # read with other options


def test_the_revision_is_the_hubs_own_where_there_is_a_network(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    class Info:
        sha = "c" * 40

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: Info)
    assert hub.hub_revision("someone/tales") == open_source("someone/tales").revision == "c" * 40

    def offline(self, name, timeout):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    assert hub.hub_revision("someone/tales") is None


def test_a_wrong_column_names_the_columns_and_the_flag(tmp_path, monkeypatch):
    source = open_source(**from_hub(tmp_path, monkeypatch, "validation"), text_column="body")
    with pytest.raises(UsageError, match=r"train: record 1: no column 'body'; the columns are text; .*--text_column"):
        next(source.records_of("train"))


def cut_arrow(folder):
    splits("validation")["train"].select(range(100)).save_to_disk(folder / "a")
    file = next((folder / "a").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-2000])
    return folder / "a"


def cut_csv(folder):
    (folder / "a.csv").write_text('text\n"One."\n"Two."\n"Thr')
    return folder / "a.csv"


def cut_parquet(folder):
    import pandas as pd

    pd.DataFrame({"text": TRAIN}).to_parquet(folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    # The middle of the pages, with the directory at the end whole.
    (folder / "a.parquet").write_bytes(content[:200] + bytes(1000) + content[1200:])
    return folder / "a.parquet"


def cut_json(folder):
    (folder / "a.json").write_text(json.dumps([{"text": story} for story in TRAIN])[:-3])
    return folder / "a.json"


def cut_gzip(suffix):
    def write(folder):
        text = json.dumps([{"text": f"{story} {hash(story)}"} for story in TRAIN])
        if suffix == ".jsonl.gz":
            text = "\n".join(json.dumps({"text": f"{record_id(story)} {story}"}) for story in TRAIN)
        if suffix == ".txt.gz":
            text = "<|endoftext|>".join(f"{record_id(story)} {story}" for story in TRAIN * 100)
        (folder / f"a{suffix}").write_bytes(gzip.compress(text.encode())[:-500])
        return folder / f"a{suffix}"

    return write


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (cut_gzip(".jsonl.gz"), r"a\.jsonl\.gz is truncated or broken after line \d+"),
        (cut_gzip(".txt.gz"), r"a\.txt\.gz is truncated or broken after record \d+"),
        (cut_json, r"a\.json: record \d+ is truncated or broken \(Unterminated string"),
        (cut_csv, r"a\.csv is truncated or broken after line 3"),
        (cut_parquet, r"a\.parquet is truncated or broken"),
        (cut_arrow, r"arrow is truncated or broken after record \d+"),
    ],
)
def test_a_shard_that_ends_within_a_record_is_one_line_read_whole_or_by_split(tmp_path, cut, message):
    path = cut(tmp_path)
    for read in (
        lambda: list(open_source(str(path)).records()),
        lambda: list(open_source(str(path)).records_of("train")),
        lambda: open_dataset(str(path), tmp_path / "data").corpus(),
    ):
        with pytest.raises(UsageError, match=message) as error:
            read()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_ingest_takes_the_percentage(tmp_path, capsys):
    source = str(named_files(tmp_path, ["test"])["reference"])
    flags = ["ingest", "--source", source, "--corpus", "mine", "--data_cache_dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit):
        prepare_tinystories.main(flags)
    assert "--validation_split_percentage 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare_tinystories.main([*flags, "--validation_split_percentage", "10", "--split_by", "shard"])
    assert "has splits of its own; remove the flag" in capsys.readouterr().err
    assert prepare_tinystories.main([*flags, "--validation_split_percentage", "10"])["split_by"] == "source"


STORIES = st.lists(st.sampled_from([f"Tale {number}." for number in range(60)]), min_size=1, max_size=80)


@given(STORIES, st.floats(min_value=0.01, max_value=50))
def test_splits_by_hash_are_exhaustive_disjoint_and_one_for_a_story(stories, percent):
    records = [make_record(story) for story in stories]
    found = {record["record_id"]: split_of(record["record_id"], percent) for record in records}
    assert set(found.values()) <= set(SPLITS)
    for record in records:  # again, in another order, and its repetitions
        assert split_of(record["record_id"], percent) == found[record["record_id"]]
        by_one = split_of(record["record_id"])
        assert (found[record["record_id"]] == "test") == (by_one == "test")  # the test split never moves


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 50), st.floats(0.01, 50))
def test_a_larger_share_only_adds_to_the_validation_split(place, one, other):
    smaller, larger = sorted((one, other))
    name = f"{place:08x}"
    assert split_of(name, smaller) == split_of(name, larger) or (
        split_of(name, smaller) == "train" and split_of(name, larger) == "validation"
    )


KEYWORDS = [word for words in SPLIT_KEYWORDS.values() for word in words]
WORDS = st.text("bhjkqxyz", min_size=1, max_size=3)  # no keyword can be made of one and the other


@given(st.sampled_from(KEYWORDS), WORDS, st.sampled_from("-._ 0(+"), st.sampled_from([str.lower, str.title, str.upper]))
def test_a_keyword_of_datasets_is_a_split_anywhere_in_a_name_or_a_folder(keyword, rest, mark, spelling):
    split = named_splits([keyword])[keyword]
    names = [f"{keyword}.jsonl", f"{keyword}{mark}{rest}.txt", f"{rest}{mark}{keyword}.csv", f"{rest}/{keyword}-1.txt"]
    names = list(map(spelling, names))
    assert file_splits(names) == [[split]] * 4
    folders = [f"{keyword}/{rest}.txt", f"{rest}/{keyword}{mark}1/a.txt", f"{rest}{mark}{keyword}/{rest}/a.txt"]
    assert file_splits([*map(spelling, folders), *names])[:3] == [[split]] * 3
    others = [f"{keyword}{rest}.txt", f"{rest}{keyword}.txt", f"{rest}{keyword}{rest}-1.txt", f"{rest}.{keyword}"]
    assert file_splits(list(map(spelling, others))) == [[]] * 4
    assert named_splits([f"{keyword}_{rest}"]) == {}


@pytest.mark.parametrize(
    "names",
    [
        ["Tales-train.txt", "Tales-valid.txt"],
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
        ],
        ["train/test-1.txt", "valid.txt", "dev/a.txt"],
        ["contrail-1.txt", "attest.txt", "validity.txt", "developer.txt", "evaluations.txt", "trainers/a.txt"],
        ["training_wheels.txt", "tested.txt"],
        ["train-test.txt", "b.txt"],
    ],
)
def test_files_have_the_splits_that_datasets_gives_them(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    files = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), str(tmp_path))
    theirs = [{str(split) for split, found in files.items() if str(tmp_path / name) in found} for name in names]
    if not any(file_splits(names)):
        theirs = [found - {"train"} for found in theirs]  # what they call a folder without splits
    assert list(map(set, file_splits(names))) == theirs
