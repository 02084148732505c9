"""Sets: tokens put together from parts are those of the rendered text, id for id, and sets are whole or absent."""

import hashlib
import json

import numpy as np
import pytest

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.data.blocks import Blocks, TrainingBlocks
from lm_trials.data.corpora import open_records, read_manifest, write_corpus
from lm_trials.data.draws import draw_uniform, record_keys
from lm_trials.data.generator import generate_stories
from lm_trials.data.instruction_store import composes
from lm_trials.data.instructions import apply_protocol
from lm_trials.data.protocols import deletion_recovery_protocols, parse_protocol
from lm_trials.data.records import FEATURES, RECORD_SCHEMA, SPLITS, record_from_row
from lm_trials.data.set_store import open_set
from lm_trials.data.sets import make_sets
from lm_trials.data.sources import open_source
from lm_trials.data.tokenizers import batch_encoder, load_tokenizer, train_tokenizer
from lm_trials.data.tokens import document_marks

TEN = deletion_recovery_protocols("Twist", "Foreshadowing")


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return load_tokenizer(str(tiny_data / "tok400"))


@pytest.fixture(scope="module")
def tiny_sets(tiny_data, tokenizer):
    """The thirteen sets, of the 400 stories of `tiny`."""
    make_sets(tiny_data / "tiny", tokenizer, TEN, tiny_data)
    return tiny_data


def assert_same_as_from_scratch(place, corpus, tokenizer, protocols, splits=SPLITS):
    """Compare every document and every block of sets with rendering all texts and tokenising them whole."""
    encode = batch_encoder(tokenizer)
    compared = 0
    for name, protocol in protocols.items():
        for split in splits:
            records = open_records(corpus, split)
            texts = apply_protocol(records[:], protocol)
            if not texts["text"]:
                continue
            store = open_set(name, place, tokenizer, split)
            bos, _ = document_marks(tokenizer, append_eos=False)
            expected = [[*bos, *ids] for ids in encode(texts["text"])]
            assert len(store) == len(expected)
            for document, ids in enumerate(expected):
                assert store.tokens(document).tolist() == ids, (name, split, texts["text"][document])
            assert store.lengths_N.tolist() == [len(ids) for ids in expected]
            assert store.num_bytes_N.tolist() == [len(text.encode()) for text in texts["text"]]
            assert [store.record_id(n) for n in range(0, len(store), 50)] == texts["record_id"][::50]
            stream = np.concatenate(expected)
            blocks = Blocks(store, 128)
            for block in range(0, len(blocks), 7):
                assert blocks[block].input_ids_T.tolist() == stream[128 * block : 128 * (block + 1)].tolist()
            compared += len(expected)
    return compared


def test_the_ten_sets_are_those_rendered_and_tokenised_whole(tiny_sets, tokenizer):
    assert composes(tokenizer)
    assert assert_same_as_from_scratch(tiny_sets, tiny_sets / "tiny", tokenizer, TEN) > 2500


ODD = {
    "words": parse_protocol(
        filtering="words!=hat", mix_match="words:big=huge", adversarial_training="words=cat:0.4,features=Twist:0.3"
    ),
    "subset": parse_protocol(instruction_subset="Summary", refusal="features=Conflict:0.5"),
    "capitalized": parse_protocol(feature_style="capitalized", refusal="features=Twist:0.3,features=Dialogue:0.5"),
    "length": parse_protocol(filtering="length!=600", instruction_subset="Words,Features"),
}


def test_any_other_protocol_too(tmp_path, tokenizer):
    """Words changed, lines left out, stories without summaries, words or sentences, and letters outside ASCII."""
    rows = list(generate_stories(300, seed=5))
    for place, row in enumerate(rows):
        row["summary"] = "" if place % 3 == 0 else row["summary"] + (" Çà — “так”\n\nnaïve" if place % 5 == 0 else "")
        row["words"] = [] if place % 4 == 0 else ["big", *row["words"][1:]]
        if place % 7 == 0:
            row["story"] = f'"Hi {place}," said Tim. "Bye," said Zoë.\n\n\n"Oh  no…"'
    write_corpus(((0, record_from_row(row)) for row in rows), tmp_path / "odd", {"fingerprint": "1"})
    make_sets(tmp_path / "odd", tokenizer, ODD, tmp_path)
    assert assert_same_as_from_scratch(tmp_path, tmp_path / "odd", tokenizer, ODD) > 800


def test_a_tokenizer_that_cannot_be_cut_has_its_texts_tokenised_whole(tmp_path, shared_data):
    """GPT-2's: the same texts, counts and interface."""
    gpt2 = load_tokenizer(str(shared_data / "gpt2_tokenizer"))
    assert not composes(gpt2)
    rows = [record_from_row(row) for row in generate_stories(300, seed=5)]
    write_corpus(((0, row) for row in rows), tmp_path / "c", {})
    protocols = {name: TEN[name] for name in ("filter-adv-Twist", "filter-ref-Twist", "filter-mix-Twist-Foreshadowing")}
    manifests = make_sets(tmp_path / "c", gpt2, protocols, tmp_path)
    assert assert_same_as_from_scratch(tmp_path, tmp_path / "c", gpt2, protocols) > 300
    trained = train_tokenizer([row["story"] for row in rows], vocab_size=500)
    composed = make_sets(tmp_path / "c", trained, protocols, tmp_path)
    for name, manifest in manifests.items():
        for split, counts in manifest["counts"].items():
            assert {**counts, "tokens": 0} == {**composed[name]["counts"][split], "tokens": 0}
    store = open_set("filter-adv-Twist", tmp_path, gpt2, "train")
    assert gpt2.decode(store.prompt(0)[1:]).endswith("\nStory:")
    assert (
        gpt2.decode(store.continuation(0))[1:]
        == rows[[row["record_id"] for row in rows].index(store.record_id(0))]["story"]
    )
    assert "Twist" in store.features(0)


def test_a_comparison_with_another_protocol_fails(tiny_sets, tokenizer):
    """The neighbour: the check above sees a single label."""
    other = {"filter-Twist": parse_protocol(filtering="features!=Twist", feature_style="capitalized")}
    with pytest.raises(AssertionError):
        assert_same_as_from_scratch(tiny_sets, tiny_sets / "tiny", tokenizer, other)


def labelled_by_hash(records):
    """Give real stories, which have no labels, features and words drawn by a hash of their names."""
    keys = record_keys(record["record_id"] for record in records)
    draws = {feature: draw_uniform(keys, 0, feature) < 0.4 for feature in FEATURES}
    for place, record in enumerate(records):
        tokens = record["story"].split()
        digest = hashlib.sha256(record["record_id"].encode()).digest()
        record["features"] = [feature for feature in FEATURES if draws[feature][place]]
        record["words"] = [tokens[byte % len(tokens)].strip('.,!?"') for byte in digest[:3]]
        record["summary"] = " ".join(tokens[5:25])
    return records


@pytest.mark.parametrize("vocabulary", ["trained", "tok8192"])
@pytest.mark.parametrize("kind", ["real", pytest.param("generated", marks=pytest.mark.slow)])
def test_real_and_generated_stories_with_trained_and_published_tokenizers(shared_data, tmp_path, kind, vocabulary):
    if kind == "real":
        source = open_source(str(shared_data / "tinystories" / "val.jsonl"))
        records = labelled_by_hash(list(source.records()))
    else:
        records = [record_from_row(row) for row in generate_stories(10_000, seed=11)]
    write_corpus(((0, record) for record in records), tmp_path / "c", {"fingerprint": kind})
    if vocabulary == "trained":
        tokenizer = train_tokenizer([record["story"] for record in records], vocab_size=2000)
    else:
        model = next(shared_data.rglob(f"{vocabulary}.model"))
        tokenizer = load_tokenizer(str(model))
    protocols = dict(list(TEN.items())[:10])
    make_sets(tmp_path / "c", tokenizer, protocols, tmp_path)
    assert assert_same_as_from_scratch(tmp_path, tmp_path / "c", tokenizer, protocols) > 4 * len(records)


def test_real_records_of_the_archive_become_sets(shared_data, tmp_path):
    source = open_source(str(shared_data / "tinystories_alldata_fixture" / "archive_records.jsonl"))
    write_corpus(((0, record) for record in source.records()), tmp_path / "c", {"fingerprint": "1"})
    tokenizer = load_tokenizer(str(next(shared_data.rglob("tok8192.model"))))
    features = [set(row["features"]) for row in open_records(tmp_path / "c", "train")]
    # Of 32 records a combination of two conditions may keep none; such a set is refused, and that is tested.
    keeps = {
        name: sum(all((c.value in labels) != c.negated for c in protocol.filtering) for labels in features)
        for name, protocol in TEN.items()
    }
    protocols = {name: TEN[name] for name, count in keeps.items() if count}
    assert len(protocols) >= 8
    manifests = make_sets(tmp_path / "c", tokenizer, protocols, tmp_path)
    assert {name: manifest["counts"]["train"]["kept"] for name, manifest in manifests.items()} == {
        name: count for name, count in keeps.items() if count
    }
    assert assert_same_as_from_scratch(tmp_path, tmp_path / "c", tokenizer, protocols) > 0


def test_no_record_is_in_two_splits_of_any_sets(tiny_sets, tokenizer):
    found = {split: set() for split in SPLITS}
    for name in TEN:
        for split in SPLITS:
            if read_manifest(tiny_sets / name)["counts"][split]["documents"]:
                store = open_set(name, tiny_sets, tokenizer, split)
                found[split] |= {store.record_id(document) for document in range(len(store))}
    assert not found["train"] & found["validation"]
    assert not (found["train"] | found["validation"]) & found["test"]
    assert all(found.values())


def test_a_set_is_trained_on_like_any_store(tiny_sets, tokenizer):
    store = open_set("filter-adv-Twist", tiny_sets, tokenizer, "train")
    per_pass = store.num_tokens // 64
    blocks = TrainingBlocks(store, 64, 2 * per_pass, data_seed=0)
    everything = np.bincount(np.concatenate([store.tokens(n) for n in range(len(store))]), minlength=400)
    passes = [
        np.concatenate([blocks[n]["input_ids"] for n in range(start, start + per_pass)]) for start in (0, per_pass)
    ]
    for ids in passes:
        missing = everything - np.bincount(ids, minlength=400)
        assert (missing >= 0).all()
        assert missing.sum() == store.num_tokens % 64
    assert passes[0].tolist() != passes[1].tolist()


def test_a_prompt_ends_where_the_story_begins(tiny_sets, tokenizer):
    store = open_set("filter-ref-Twist", tiny_sets, tokenizer, "validation")
    for document in range(len(store)):
        prompt = tokenizer.decode(store.prompt(document)[1:])
        assert prompt.endswith("\nStory:")
        story = tokenizer.decode(store.continuation(document))
        assert story.strip().startswith("Sorry, this is a story that we will not tell")
        assert "Twist" in store.features(document)


def test_validation_goes_through_the_same_protocol_on_its_own_split(tiny_sets, tokenizer):
    records = {row["record_id"]: row for row in open_records(tiny_sets / "tiny", "validation")}
    kept = {name for name, row in records.items() if "Twist" not in row["features"]}
    store = open_set("filter-Twist", tiny_sets, tokenizer, "validation")
    assert {store.record_id(document) for document in range(len(store))} == kept
    assert 0 < len(kept) < len(records)


# --- whole or absent, and never another than asked for


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
    with pytest.raises(SystemExit) as left:
        prepare_tinystories.main(argv)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


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
        (["--refusal", "features=Twist:2"], "is no probability"),
        (["--dataset_name", "tiny"], "'tiny' is no name for a set"),
        (["--dataset_name", "../x"], "is no name for a set"),
        (["--dry_run"], "give one, as --filtering"),
        (["--filtering", "features=Twist", "--refusal_text", "No."], "without --refusal says nothing"),
        (["--refusal", "features=Twist:1", "--refusal_text", "No."], "is no line that names the feature"),
        (["--refusal", "features=Twist:1", "--refusal_text", "{feature}\nWords: x"], "is no line that names"),
        (["--filtering", "length=²"], "a length is a number of characters"),
        (["--filtering", "words=zzz/b"], "no record has words=zzz/b"),
        (["--dataset_name", "a,b"], "'a,b' is no name for a set"),
        (["--dataset_name", "train"], "'train' is no name for a set"),
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
    with pytest.raises(UsageError, match="mine was prepared without --append_eos; give --append_eos False"):
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
    with pytest.raises(UsageError, match="t is no prepared set; valid: s"):
        open_set("t", tmp_path, tokenizer, "train")
    manifest = read_manifest(tmp_path / "c")
    manifest["content"] = "2"
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="s was prepared from c as it was then, and that has changed"):
        open_set("s", tmp_path, tokenizer, "train")


def test_the_schema_is_the_records(tiny_data):
    assert list(open_records(tiny_data / "tiny", "train").features) == list(RECORD_SCHEMA)
