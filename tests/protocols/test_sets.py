"""Sets: tokens put together from parts are those of the rendered text, id for id, and sets are whole or absent."""

import hashlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.protocols import sets
from lm_trials.protocols.instruction_stores import composes
from lm_trials.protocols.instructions import apply_protocol
from lm_trials.protocols.protocols import deletion_recovery_protocols, parse_protocol
from lm_trials.protocols.set_stores import open_set
from lm_trials.protocols.set_texts import set_texts
from lm_trials.protocols.sets import make_sets
from lm_trials.protocols.transforms import TRANSFORMS, Transform
from lm_trials.stories.corpora import open_records, read_manifest, write_corpus
from lm_trials.stories.draws import draw_uniform, record_keys
from lm_trials.stories.features import FEATURES
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.stories.records import SPLITS, record_from_row
from lm_trials.stories.sources import open_source
from lm_trials.tokens.blocks import Blocks, TrainingBlocks
from lm_trials.tokens.stores import document_marks
from lm_trials.tokens.tokenizers import batch_encoder, load_tokenizer, train_tokenizer

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
                ids = np.concatenate([piece.ids_T for piece in blocks[block]])
                assert ids.tolist() == stream[128 * block : 128 * (block + 1)].tolist()
            compared += len(expected)
    return compared


@pytest.mark.end_to_end
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


@pytest.mark.end_to_end
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
    protocols["labels"] = TRANSFORMED["labels"]
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


# --- named transforms

TRANSFORMED = {
    "labels": parse_protocol(transform=["drop_labels:0.5"], adversarial_training="features=Twist:0.5"),
    "story": parse_protocol(transform=["shuffle_sentences"], refusal="features=Twist:0.3"),
    "both": parse_protocol(
        transform=["truncate_story:3", "drop_labels:0.3", "shuffle_words"], filtering="features!=Conflict", seed=0
    ),
}


@pytest.mark.end_to_end
def test_sets_with_transforms_are_the_rendered_texts_tokenised(tiny_data, tokenizer):
    """Labels alone leave a set composed; a changed story is tokenised whole; both are made in one call."""
    manifests = make_sets(tiny_data / "tiny", tokenizer, TRANSFORMED | {"plain": parse_protocol()}, tiny_data)
    assert {name: manifest.get("whole", False) for name, manifest in manifests.items()} == {
        "labels": False, "story": True, "both": True, "plain": False,
    }  # fmt: skip
    assert assert_same_as_from_scratch(tiny_data, tiny_data / "tiny", tokenizer, TRANSFORMED) > 800
    counts = {name: manifest["counts"]["train"] for name, manifest in manifests.items()}
    assert "transformed" not in counts["plain"]
    assert list(counts["both"]["transformed"]) == ["truncate_story:3", "drop_labels:0.3", "shuffle_words"]
    texts = {name: list(set_texts(name, tiny_data, "train")) for name in manifests}
    records = {row["record_id"]: row for row in open_records(tiny_data / "tiny", "train")}
    changed = sum(text.story != records[text.record_id]["story"] for text in texts["story"] if not text.refused)
    assert 200 < changed < counts["story"]["transformed"]["shuffle_sentences"] < counts["story"]["kept"] + 1
    assert sum(text.refused for text in texts["story"]) == sum(counts["story"]["refused"].values()) > 50
    assert [text.text for text in texts["plain"]] != [text.text for text in texts["labels"]]
    assert [text.story for text in texts["plain"]] == [text.story for text in texts["labels"]]


@pytest.mark.end_to_end
@settings(deadline=None, max_examples=6)
@example(["lose_words", "drop_labels:0.5"], None, None, 0, 5, 50)  # a quarter of the records lose their Words line
@given(
    st.lists(st.sampled_from(["drop_labels:0.5", "lose_words", "add_word", "shuffle_sentences", "truncate_story:2"]),
             min_size=1, max_size=3, unique=True),
    st.sampled_from([None, "features=Twist:0.5"]), st.sampled_from([None, "Words,Features"]), st.integers(0, 2),
    st.integers(0, 10**6), st.integers(1, 150),
)  # fmt: skip
def test_any_transforms_give_the_ids_of_the_rendered_text(tokenizer, steps, refusal, subset, seed, stories, chunk):
    """On any generated stories, for any size of the chunks that a split is read in, and with lists of words emptied."""
    few = {
        "lose_words": Transform(lambda record, draw: record | {"words": record["words"][: draw % 4]}, "labels"),
        "add_word": Transform(lambda record, draw: record | {"words": [*record["words"], "étang"]}, "labels"),
    }
    rows = [record_from_row(row) for row in generate_stories(120, seed=stories)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        place = Path(folder)
        for name, entry in few.items():
            patch.setitem(TRANSFORMS, name, entry)
        patch.setattr(sets, "TEXT_CHUNK", chunk)
        write_corpus(((0, row) for row in rows), place / "c", {})
        protocols = {"s": parse_protocol(transform=steps, refusal=refusal, instruction_subset=subset, seed=seed)}
        make_sets(place / "c", tokenizer, protocols, place)
        assert assert_same_as_from_scratch(place, place / "c", tokenizer, protocols) > 100
        store = open_set("s", place, tokenizer, "train")
        for document, text in enumerate(set_texts("s", place, "train")):
            assert tokenizer.decode(store.prompt(document)[1:]) == text.prompt
            assert store.features(document) == tuple(text.features)


def test_a_set_of_another_version_of_a_transform_or_an_unknown_one_is_refused(tiny_data, tokenizer, monkeypatch):
    protocol = {"older": parse_protocol(transform=["drop_labels:0.25"])}
    make_sets(tiny_data / "tiny", tokenizer, protocol, tiny_data)
    entry = TRANSFORMS["drop_labels"]
    assert len(open_set("older", tiny_data, tokenizer, "train")) > 300
    monkeypatch.setitem(TRANSFORMS, "drop_labels", replace(entry, version=2))
    with pytest.raises(
        UsageError, match=r"older was prepared with another version of a transform \(drop_labels:0.25\)"
    ):
        open_set("older", tiny_data, tokenizer, "train")
    with pytest.raises(UsageError, match="older was prepared with transform_versions=1, not 2; give another"):
        make_sets(tiny_data / "tiny", tokenizer, protocol, tiny_data)
    monkeypatch.delitem(TRANSFORMS, "drop_labels")
    with pytest.raises(
        UsageError, match=r"--transform drop_labels:0.25: drop_labels is not a transform; did you mean swap_labels"
    ):
        open_set("older", tiny_data, tokenizer, "train")


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


@pytest.mark.parametrize("vocabulary", ["trained", pytest.param("tok8192", marks=pytest.mark.slow)])
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
