"""The commands that make sets: whole or absent, and never another than asked for."""

import json
import re

import pytest
from refusals import error_line

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.protocols.protocols import deletion_recovery_protocols, parse_protocol
from lm_trials.protocols.set_stores import open_set
from lm_trials.protocols.sets import make_sets
from lm_trials.stories.corpora import open_records, read_manifest, write_corpus
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import RECORD_SCHEMA, record_from_row
from lm_trials.tokens.tokenizers import load_tokenizer, train_tokenizer

TEN = deletion_recovery_protocols("Twist", "Foreshadowing")


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return load_tokenizer(str(tiny_data / "tok400"))


def flags(folder, *more):
    return ["pretokenize", "--corpus", "tiny", "--vocab_size", "400", "--data_cache_dir", str(folder), *more]


@pytest.fixture
def data(tiny_data, tmp_path):
    """A data folder of its own with links to the corpus and tokenizer."""
    folder = tmp_path / "data"
    (folder / "tiny").mkdir(parents=True)
    (folder / "tok400").symlink_to(tiny_data / "tok400")
    for name in ("records", "manifest.json"):
        (folder / "tiny" / name).symlink_to(tiny_data / "tiny" / name)
    return folder


def refused(argv, capsys):
    return error_line(capsys, prepare_tinystories.main, *argv)


def test_the_command_makes_a_set_and_says_what_it_did(data, capsys):
    report = prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "no-twist"))
    kept = sum("Twist" not in row["features"] for row in open_records(data / "tiny", "train"))
    assert report["counts"]["train"]["kept"] == kept
    out = capsys.readouterr().out
    assert f"{kept:,} of" in out
    assert "(left out by the filter)" in out
    described = prepare_tinystories.main(
        ["describe", "no-twist", "--data_cache_dir", str(data), "--json", str(data / "report.json")]
    )
    assert described == report
    assert json.loads((data / "report.json").read_text()) == json.loads(json.dumps(report))


def test_a_set_without_a_name_gets_one_that_spells_the_protocol_out(data):
    report = prepare_tinystories.main(flags(data, "--filtering", "features!=Twist,length=300"))
    assert report["name"] == "F_features_x_Twist_length_300_MM_none_AT_none_RF_none_IS_none"
    assert (data / report["name"] / "manifest.json").is_file()


@pytest.mark.end_to_end
def test_the_ten_sets_are_made_by_one_command_and_made_once(data, capsys):
    argv = ["protocol_set", *flags(data)[1:]]
    reports = prepare_tinystories.main(argv)
    assert [report["name"] for report in reports] == list(TEN)
    written = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    assert prepare_tinystories.main(argv) == reports
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()} == written
    assert "filter-ref-Twist-specialise-Foreshadowing" in capsys.readouterr().out


def test_a_dry_run_says_the_same_and_writes_nothing(data):
    before = sorted(data.rglob("*"))
    argv = flags(data, "--filtering", "features!=Twist", "--refusal", "features=Twist:0.5", "--dataset_name", "x")
    dry = prepare_tinystories.main([*argv, "--dry_run"])
    assert sorted(data.rglob("*")) == before
    assert prepare_tinystories.main(argv) == dry


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--filtering", "features=Twst"], "did you mean Twist?"),
        (["--filtering", "words=zzzz"], "no record has words=zzzz"),
        (["--filtering", "length=100000"], "leaves none of"),
        (["--filtering", "features=Twist,features!=Twist"], "leaves none of"),
        (["--refusal", "features=Twist:2"], "is not a probability"),
        (["--dataset_name", "tiny"], "'tiny' is not a valid set name"),
        (["--dataset_name", "../x"], "is not a plain name"),
        (["--transform", "truncate_story"], "truncate_story takes an argument"),
        (["--dry_run"], "give one, as --filtering"),
        (["--filtering", "features=Twist", "--refusal_text", "No."], "needs --refusal; add it"),
        (["--refusal", "features=Twist:1", "--refusal_text", "No."], "is not one line with {feature}"),
        (["--refusal", "features=Twist:1", "--refusal_text", "{feature}\nWords: x"], "is not one line"),
        (["--filtering", "length=²"], "is a number of characters"),
        (["--filtering", "words=zzz/b"], "no record has words=zzz/b"),
        (["--dataset_name", "a,b"], "'a,b' is not a valid set name"),
        (["--dataset_name", "train"], "'train' is not a valid set name"),
        (["--corpus", "nope", "--filtering", "features=Twist"], "nope holds no records"),
        (["--corpus", "nope", "--filtering", "features=Twist", "--dry_run"], "nope holds no records"),
    ],
)
def test_a_mistake_is_one_line_and_no_set_is_left(data, capsys, more, message):
    assert message in refused(flags(data, *more), capsys)
    assert {path.name for path in data.iterdir()} == {"tiny", "tok400"}
    assert {path.name for path in (data / "tiny").iterdir()} == {"records", "manifest.json"}  # nothing was tokenised


def test_a_name_that_another_protocol_has_is_refused(data, capsys):
    prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine"))
    message = refused(flags(data, "--filtering", "features=Twist", "--dataset_name", "mine"), capsys)
    assert "mine was prepared with filtering=features!=Twist, not features=Twist" in message
    message = refused(
        flags(data, "--filtering", "features!=Twist", "--protocol_seed", "1", "--dataset_name", "mine"), capsys
    )
    assert "seed=0, not 1" in message


def test_a_dry_run_knows_a_taken_name_too(data, capsys):
    prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine"))
    message = refused(flags(data, "--filtering", "features=Twist", "--dataset_name", "mine", "--dry_run"), capsys)
    assert "mine was prepared with filtering" in message


def test_what_a_killed_process_left_of_a_set_does_not_stand_in_the_way(data):
    """Killed while the tokens were written, and between the tokens and the set's manifest."""
    argv = flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine")
    (data / "mine" / ".tokens-0123456789ab.unfinished-elsewhere-7").mkdir(parents=True)
    report = prepare_tinystories.main(argv)
    (data / "mine" / "manifest.json").unlink()
    assert prepare_tinystories.main(argv) == report
    assert (data / "mine" / "manifest.json").is_file()


def test_tokens_of_another_protocol_that_were_left_behind_are_not_taken_over(data, capsys):
    prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine"))
    (data / "mine" / "manifest.json").unlink()
    assert "was prepared with filtering" in refused(
        flags(data, "--filtering", "features=Twist", "--dataset_name", "mine"), capsys
    )


def test_a_style_alone_makes_a_set(data):
    report = prepare_tinystories.main(flags(data, "--feature_style", "capitalized", "--dataset_name", "styled"))
    assert report["protocol"]["feature_style"] == "capitalized"
    assert prepare_tinystories.main(flags(data, "--feature_style", "capitalized"))["protocol"] == report["protocol"]


def test_a_transform_alone_makes_a_set_and_the_reports_show_the_changed_story(data, capsys):
    report = prepare_tinystories.main(flags(data, "--transform", "truncate_story:1", "--transform", "drop_labels:0.5"))
    assert report["name"].endswith("_IS_none_TR_truncate_story_1_drop_labels_0.5")
    assert report["protocol"]["transforms"] == ["truncate_story:1", "drop_labels:0.5"]
    out = capsys.readouterr().out
    assert "truncate_story:1, drop_labels:0.5" in out
    assert f"{report['counts']['train']['transformed']['truncate_story:1']:,} changed by truncate_story:1" in " ".join(
        out.split()
    )
    for example in report["examples"]:
        before, after = (example[key].partition("\nStory: ")[2] for key in ("before", "after"))
        assert before.startswith(after)
        assert len(after) < len(before)
    described = prepare_tinystories.main(["describe", report["name"], "--data_cache_dir", str(data)])
    assert described == report


@pytest.mark.end_to_end
def test_all_sets_of_the_study_take_a_transform(data, capsys):
    argv = ["protocol_set", *flags(data)[1:], "--transform", "drop_labels:0.5"]
    reports = prepare_tinystories.main(argv)
    assert [report["name"] for report in reports] == [f"{name}-drop_labels_0.5" for name in TEN]
    assert {tuple(report["protocol"]["transforms"]) for report in reports} == {("drop_labels:0.5",)}
    assert re.search(r"transformed +[1-9]\d*", capsys.readouterr().out)
    same = flags(data, "--dataset_name", "pretrain-all-drop_labels_0.5")
    assert "prepared with transforms=drop_labels:0.5, not none" in refused(same, capsys)
    assert prepare_tinystories.main([*same, "--transform", "drop_labels:0.5"]) == reports[10]


def test_counts_of_lines_are_of_the_lines_shown(tmp_path, tokenizer, shared_data):
    gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
    rows = [record_from_row(row | {"summary": "A Sentence: x"}) for row in generate_stories(300, seed=5)]
    for place, row in enumerate(rows):
        if place % 3 == 0:
            rows[place] = record_from_row(row | {"story": f'"Hi {place}," said Tim.', "record_id": ""})
    write_corpus(((0, row) for row in rows), tmp_path / "c", {})
    protocols = {"all": parse_protocol(), "words": parse_protocol(instruction_subset="Words,Summary")}
    for some in (tokenizer, gpt2):
        manifests = make_sets(tmp_path / "c", some, protocols, tmp_path)
        counts = {name: sum(c["without_sentence"] for c in m["counts"].values()) for name, m in manifests.items()}
        assert counts == {"all": 100, "words": 0}


def test_describing_a_set_of_a_corpus_that_changed_is_refused(data, capsys):
    prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine"))
    manifest = read_manifest(data / "tiny")
    (data / "tiny" / "manifest.json").unlink()
    (data / "tiny" / "manifest.json").write_text(json.dumps(manifest | {"content": "other"}))
    assert "has changed or gone" in refused(["describe", "mine", "--data_cache_dir", str(data)], capsys)


def test_append_eos_is_named_where_it_is_the_difference(data, tokenizer):
    prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine"))
    with pytest.raises(UsageError, match=r"mine was prepared without EOS .* pretokenize --append_eos True"):
        open_set("mine", data, tokenizer, "train", append_eos=True)
    prepare_tinystories.main(flags(data, "--filtering", "features!=Twist", "--dataset_name", "mine", "--append_eos"))
    closed = open_set("mine", data, tokenizer, "train", append_eos=True)
    bare = open_set("mine", data, tokenizer, "train")
    assert closed.tokens(3).tolist() == [*bare.tokens(3).tolist(), tokenizer.eos_token_id]
    assert closed.lengths_N[3] == len(closed.tokens(3))


def test_a_set_of_another_tokenizer_or_an_older_corpus_is_refused(tmp_path, tokenizer):
    rows = [record_from_row(row) for row in generate_stories(300, seed=1)]
    write_corpus(((0, row) for row in rows), tmp_path / "c", {"fingerprint": "1"})
    make_sets(tmp_path / "c", tokenizer, {"s": TEN["filter-Twist"]}, tmp_path)
    other = train_tokenizer([row["story"] for row in rows], vocab_size=500)
    with pytest.raises(UsageError, match=r"s has no tokens-.*the tokens of this tokenizer"):
        open_set("s", tmp_path, other, "train")
    with pytest.raises(UsageError, match="t is not a prepared set; valid: s"):
        open_set("t", tmp_path, tokenizer, "train")
    manifest = read_manifest(tmp_path / "c")
    manifest["content"] = "2"
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="s was prepared from an earlier c, which has changed"):
        open_set("s", tmp_path, tokenizer, "train")


def test_the_schema_is_the_records(tiny_data):
    assert list(open_records(tiny_data / "tiny", "train").features) == list(RECORD_SCHEMA)
