"""Stories of the feature probes: two parts with no story in common, the story alone, and labels that are true."""

import json
import re

import numpy as np
import pytest
from refusals import usage_error
from tiny_models import tiny_model, tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.probing.feature_probe.flags import FeatureProbeArguments
from lm_trials.probing.feature_probe.stories import (
    WORD,
    ProbeStories,
    before_marker,
    parted,
    read_probe_stories,
    story_alone,
    text_length,
    whole_in,
)
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.subjects import find_subjects
from lm_trials.stories.generated.detectors import detect_features, sentence_ends
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import make_record, record_id


def everything(stories):
    return [True] * len(stories)


def read(name, fits=everything, data_cache_dir="data", **given):
    texts = {key: given.pop(key) for key in ("dataset_split", "max_eval_samples", "text_column") if key in given}
    args = FeatureProbeArguments(**given)
    return read_probe_stories(TextArguments(str(name), data_cache_dir=str(data_cache_dir), **texts), args, fits)


def refused(name, **given):
    return usage_error(read, name, **given)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count, start=0, **more):
    return [{"story": f"Tom saw {number} cats. It turned out that they were dogs.", **more} for number in
            range(start, start + count)]  # fmt: skip


def ids(part):
    return {record["record_id"] for record in part}


def test_a_file_is_split_by_the_hash_of_its_stories(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(300) + rows(50))  # the last 50 repeat the first
    stories = read(path)
    assert not ids(stories.train) & ids(stories.test)
    assert 30 < len(stories.test) < 90
    assert len(stories.train) + len(stories.test) < 300
    assert stories.left_out["that repeat another"] > 30
    both = read(path, dataset_split="validation+test")
    assert ids(both.test) > ids(stories.test)
    assert len(both.train) + len(both.test) == 300
    shuffled = write(tmp_path / "b.jsonl", (rows(50) + rows(300))[::-1])
    assert ids(read(shuffled).test) == ids(stories.test)  # whatever the order
    assert len(read(path, validation_split_percentage=5).test) < len(stories.test)


def test_a_story_of_both_splits_is_scored_and_not_fitted(tmp_path):
    write(tmp_path / "set" / "train.jsonl", rows(40))
    write(tmp_path / "set" / "validation.jsonl", rows(30, start=30))
    stories = read(tmp_path / "set")
    assert len(stories.test) == 30
    assert len(stories.train) == 30
    assert stories.left_out == {"that repeat another": 10}
    with pytest.raises(ValueError, match="1 of the training stories are also test stories"):
        ProbeStories(stories.train, [*stories.test, stories.train[0]], "records")


def test_as_many_as_asked_are_taken_from_the_start(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(300))
    whole, few = read(path), read(path, num_train_stories=50, max_eval_samples=10)
    assert [r["record_id"] for r in few.train] == [r["record_id"] for r in whole.train[:50]]
    assert [r["record_id"] for r in few.test] == [r["record_id"] for r in whole.test[:10]]


def test_instruction_lines_are_no_part_of_a_story(tmp_path):
    lines = "Words: cat, dog\nFeatures: Dialogue\nSummary: A cat.\nSentence: Tom ran\nStory: "
    rendered = [{"text": lines + row["story"]} for row in rows(80)]
    stories = read(write(tmp_path / "a.jsonl", rendered))
    assert all(text.startswith("Tom saw") for text in stories.texts)
    # Told in two ways it is one story, though the file's rows have other hashes and so other splits.
    twice = read(write(tmp_path / "b.jsonl", [*rendered, *rows(80)]), dataset_split="validation+test")
    assert len(twice.train) + len(twice.test) == 80 == twice.left_out["that repeat another"]
    assert not ids(twice.train) & ids(twice.test)
    assert stories.train[0]["record_id"] == record_id(stories.train[0]["story"])
    told = make_record("Tom told a tale.\nStory: it said.")  # a line of a story is none
    assert story_alone(told) == told


def test_labels_are_the_records_where_they_name_any(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(60, features=["Dialogue"]))
    assert read(path).labels_from == "records"
    assert read(path).has("Dialogue")[0].all()
    assert not read(path).has("Twist")[0].any()
    by_detectors = read(path, labels="detectors")
    assert by_detectors.has("Twist")[0].all()
    assert not by_detectors.has("Dialogue")[0].any()
    unlabelled = write(tmp_path / "b.jsonl", rows(60))
    assert read(unlabelled).labels_from == "detectors"
    assert "--labels records: no record of" in refused(unlabelled, labels="records")


def test_a_feature_with_too_few_stories_is_left_out_and_said():
    def part(count, having):
        return [make_record(f"{count} {n}.", features=["Twist"] * (n < having)) for n in range(count)]

    def stories(train, test):
        return ProbeStories(part(200, train), part(101, test), "records")

    many = stories(40, 10)
    assert parted({"Twist": many}) == ({"Twist": many}, {})
    for few in (stories(39, 50), stories(161, 50), stories(100, 9), stories(100, 92)):
        with pytest.raises(UsageError, match="no feature can be probed: Twist: "):
            parted(dict.fromkeys(["Twist"], few))
    both = ProbeStories(
        [*part(200, 100), *(make_record(f"x{n}", features=["Conflict"]) for n in range(3))], part(101, 50), "records"
    )
    enough, without = parted(dict.fromkeys(["Twist", "Conflict"], both))
    assert enough == {"Twist": both}
    assert without == {
        "Conflict": "0 of 101 test stories have it, where at least 10 with and 10 without it are needed"
    }  # fmt: skip


def test_a_prepared_corpus_keeps_its_splits(tiny_data):
    stories = read("tiny", data_cache_dir=tiny_data, dataset_split="validation+test")
    assert stories.labels_from == "records"
    assert len(stories.train) > 350
    assert 0 < len(stories.test) < 20


def test_of_a_set_labels_are_the_storys_and_refusals_are_none(tiny_data):
    """Adversarial instructions say Twist of stories without one; a probe's labels must not."""
    import prepare_tinystories

    flags = ["pretokenize", "--corpus", "tiny", "--data_cache_dir", str(tiny_data), "--vocab_size", "400"]
    for name, more in {
        "lies": ["--adversarial_training", "features=Twist:1.0"],
        "without": ["--filtering", "features!=Twist"],
        "refusing": ["--refusal", "features=Twist:0.5"],
        "cut": ["--transform", "truncate_story:1", "--refusal", "features=Twist:0.5"],
    }.items():
        prepare_tinystories.main([*flags, "--dataset_name", f"probe-{name}", *more])
    true = read("tiny", data_cache_dir=tiny_data)
    lies = read("probe-lies", data_cache_dir=tiny_data)
    assert [r["story"] for r in lies.train] == [r["story"] for r in true.train]
    assert np.array_equal(lies.has("Twist")[0], true.has("Twist")[0])
    assert not lies.has("Twist")[0].all()
    filtered = read("probe-without", data_cache_dir=tiny_data)
    assert len(filtered.train) == (~true.has("Twist")[0]).sum()
    assert not filtered.has("Twist")[0].any()
    refusing = read("probe-refusing", data_cache_dir=tiny_data)
    assert refusing.left_out["that are refusals"] > 100
    assert not any("will not tell" in text for text in refusing.texts)
    cut = read("probe-cut", data_cache_dir=tiny_data)
    assert cut.left_out["that are refusals"] == refusing.left_out["that are refusals"]
    assert [r["features"] for r in cut.train] == [r["features"] for r in refusing.train]
    assert all(r["story"].startswith(c["story"]) for r, c in zip(refusing.train, cut.train, strict=True))
    assert sum(map(len, cut.texts)) < sum(map(len, refusing.texts)) / 5
    detected = read("probe-cut", data_cache_dir=tiny_data, labels="detectors")
    assert not detected.has("BadEnding")[0].any()  # the end of the story is gone
    assert cut.has("BadEnding")[0].any()


def test_long_stories_are_left_out_unless_cut(tmp_path):
    tiny_model("gpt2", vocab_size=330).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    subjects = find_subjects(SubjectArguments(model_name_or_path=[str(tmp_path / "m")]))
    fits = whole_in(subjects, "leave_out")
    assert fits([]) == []
    assert fits(["A cat sat.", "A cat sat. " * 40]) == [True, False]
    assert whole_in(subjects, "cut")(["A cat sat. " * 40]) == [True]
    opening = len(subjects[0].opening())
    lengths = [len(subjects[0].tokenizer("a " * n, add_special_tokens=False)["input_ids"]) for n in range(1, 80)]
    whole = fits(["a " * n for n in range(1, 80)])
    assert whole == [opening + length <= 64 for length in lengths]
    assert 0 < sum(whole) < 79
    mixed = [{"story": row["story"] + " A cat sat." * (40 * (n % 2))} for n, row in enumerate(rows(120))]
    path = write(tmp_path / "a.jsonl", mixed)
    stories = read(path, fits=fits)
    assert all(fits(stories.texts))
    assert stories.left_out["longer than the window"] > 40
    long = write(tmp_path / "b.jsonl", [mixed[n] for n in range(1, 120, 2)])
    told = refused(long, fits=fits)
    assert "has no test story" in told
    assert "--long_stories cut" in told


def test_no_stories_is_one_line(tmp_path):
    assert "has no test story" in refused(write(tmp_path / "one.jsonl", rows(1)), dataset_split="test")
    empty = write(tmp_path / "empty.jsonl", [{"story": " "}] * 3)
    assert "no story" in refused(empty) or "empty" in refused(empty)
    assert "gone" in refused(tmp_path / "gone.jsonl")


def test_before_the_marker_pairs_have_equal_lengths_and_no_marker():
    records = [make_record(r["story"], features=r["features"]) for r in generate_stories(600, seed=3)]
    stories = ProbeStories(records[:450], records[450:], "records")
    cut = before_marker(stories, "Twist")
    whole = {record["record_id"]: record["story"] for record in records}
    for part, given in ((cut.train, stories.train), (cut.test, stories.test)):
        assert len({record["record_id"] for record in part}) == len(part)
        assert {record["record_id"] for record in part} <= {record["record_id"] for record in given}
        for having, other in zip(part[::2], part[1::2], strict=True):
            assert "Twist" in having["features"]
            assert "Twist" not in other["features"]
            lines = [record["story"].split("\n") for record in (having, other)]
            assert len(lines[0]) == len(lines[1])
            assert len(sentence_ends(lines[0][-1])) == len(sentence_ends(lines[1][-1]))
            assert len(re.findall(WORD, having["story"])) == len(re.findall(WORD, other["story"]))
            for record in (having, other):
                assert whole[record["record_id"]].startswith(record["story"])
                assert "Twist" not in detect_features(record["story"])
    of_twist = sum("Twist" in record["features"] for record in records)
    alone = cut.left_out["without a partner of the same length and place"]
    assert len(cut.texts) == 2 * (of_twist - alone) > of_twist

    def apart(texts, has_N):
        """The difference of mean lengths in standard errors."""
        lengths_N = text_length(texts)[:, 0]
        with_N, without_N = lengths_N[has_N], lengths_N[~has_N]
        error = np.sqrt(with_N.var() / len(with_N) + without_N.var() / len(without_N))
        return (with_N.mean() - without_N.mean()) / error

    assert abs(apart([record["story"] for record in cut.train], cut.has("Twist")[0])) < 1
    assert apart([record["story"] for record in stories.train], stories.has("Twist")[0]) > 3  # the control


def test_stories_without_a_place_before_the_marker_are_left_out_and_counted():
    twist = "It turned out that Ben was a king."

    def part(name):
        return [
            make_record(f"Tom saw {name} cats. {twist}", features=["Twist"]),
            make_record(f"Sue saw {name} dogs. Sue sat.", features=[]),
            make_record(f"{twist} {name}", features=["Twist"]),
            make_record(f"Tom saw {name} hens. Ben was a king.", features=["Twist"]),  # as a person labels it
            make_record(f"Tom saw {name} cows. {twist}", features=[]),
            make_record(f"Big Tom saw {name} cats. {twist}", features=["Twist"]),
        ]

    cut = before_marker(ProbeStories(part("two"), part("six"), "records"), "Twist")
    assert [record["story"] for record in cut.train] == ["Tom saw two cats.", "Sue saw two dogs."]
    assert [record["story"] for record in cut.test] == ["Tom saw six cats.", "Sue saw six dogs."]
    assert cut.left_out == {
        "whose label and detector differ": 4,
        "whose first sentence shows it": 2,
        "without a partner of the same length and place": 2,
    }
    with pytest.raises(UsageError, match=r"Twist: 1 of 2 test stories have it, .*\(stories left out: .*4 whose label"):
        parted({"Twist": cut})
