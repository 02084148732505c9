"""Token stores: every story's ids, once, between the marks asked for, and refused where damaged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.stories.corpora import open_records, read_manifest, write_corpus
from lm_trials.stories.records import SPLITS, make_record
from lm_trials.tokens.stores import ENCODE_BATCH, TokenStore, make_store, store_folder
from lm_trials.tokens.tokenizers import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return load_tokenizer(str(tiny_data / "tok400"))


def test_a_store_holds_the_ids_of_each_story_in_the_order_of_the_records(tiny_data, tokenizer):
    folder = store_folder(tiny_data / "tiny", tokenizer, append_eos=False)
    for split in SPLITS:
        records, store = open_records(tiny_data / "tiny", split), TokenStore.open(folder, split)
        assert len(store) == len(records) > 0
        for row, record in enumerate(records):
            ids = tokenizer(record["story"], add_special_tokens=False)["input_ids"]
            assert store.tokens(row).tolist() == [tokenizer.bos_token_id, *ids]
            assert store.record_id(row) == record["record_id"]
            assert store.lengths_N[row] == len(ids) + 1
            assert store.num_bytes_N[row] == len(record["story"].encode())
        assert store.num_tokens == store.lengths_N.sum() == read_manifest(folder)["tokens"][split]
    assert store.tokens(0).dtype == np.uint16


def test_eos_is_put_after_each_story_if_asked(tiny_data, tokenizer):
    bare = TokenStore.open(make_store(tiny_data / "tiny", tokenizer), "test")
    closed = TokenStore.open(make_store(tiny_data / "tiny", tokenizer, append_eos=True), "test")
    assert [closed.tokens(n).tolist() for n in range(len(closed))] == [
        [*bare.tokens(n).tolist(), tokenizer.eos_token_id] for n in range(len(bare))
    ]


def corpus_of(folder, stories):
    records = [(0, record) for record in map(make_record, stories)]
    write_corpus(records, folder, {})
    return folder


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=3, max_size=30
    )
)
def test_any_text_comes_back_as_it_was(tmp_path_factory, tokenizer, texts):
    folder = corpus_of(tmp_path_factory.mktemp("any") / "c", ["A story.", *(f"A story. {text}" for text in texts * 3)])
    train = open_records(folder, "train")
    store = TokenStore.open(make_store(folder, tokenizer), "train")
    for row, story in enumerate(train["story"]):
        assert tokenizer.decode(store.tokens(row)[1:], clean_up_tokenization_spaces=False) == story


def test_batches_leave_no_seam(tmp_path, tokenizer):
    """More stories than are encoded at once, of very different lengths, in their order."""
    stories = [f"{number} " + "cat " * (number % 50) for number in range(3 * ENCODE_BATCH + 17)]
    folder = corpus_of(tmp_path / "c", stories)
    store = TokenStore.open(make_store(folder, tokenizer), "train")
    train = open_records(folder, "train")
    assert len(store.dataset.data.table.column("input_ids").chunks) > 2
    decoded = tokenizer.batch_decode([store.tokens(n)[1:] for n in range(len(store))])
    assert decoded == train["story"][:]


def test_a_store_that_is_there_is_not_made_again_and_each_tokenizer_has_its_own(tmp_path, tokenizer):
    folder = corpus_of(tmp_path / "c", [f"Story {n}." for n in range(300)])
    first = make_store(folder, tokenizer)
    written = (first / "manifest.json").stat().st_mtime_ns
    assert make_store(folder, tokenizer) == first
    assert (first / "manifest.json").stat().st_mtime_ns == written
    other = train_tokenizer(["One day, a cat sat on a mat."] * 9, vocab_size=320)
    assert make_store(folder, other) != first


def test_progress_is_told_of_every_story(tmp_path, tokenizer):
    folder = corpus_of(tmp_path / "c", [f"Story {n}." for n in range(1500)])
    seen = {}

    def watch(batches, total, split):
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            yield batch
        seen[split] = (rows, total)

    make_store(folder, tokenizer, watch=watch)
    assert {split: rows == total for split, (rows, total) in seen.items()} == dict.fromkeys(SPLITS, True)
    assert sum(rows for rows, _ in seen.values()) == 1500


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "has no tokens; make them with"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
        (lambda folder: next((folder / "train").glob("*.arrow")).write_bytes(b""), "is damaged"),
    ],
    ids=["missing", "cut", "empty"],
)
def test_a_damaged_store_is_one_line(tmp_path, tokenizer, damage, message):
    store = make_store(corpus_of(tmp_path / "c", [f"Story {n}." for n in range(300)]), tokenizer)
    TokenStore.open(store, "train")
    damage(store)
    with pytest.raises(UsageError, match=message) as error:
        TokenStore.open(store, "train")
    assert "\n" not in str(error.value)


def test_an_empty_or_unknown_split_is_one_line(tmp_path, tokenizer):
    stories = [f"Story {n}." for n in range(3)]
    store = make_store(corpus_of(tmp_path / "c", stories), tokenizer)
    empty = [split for split, count in read_manifest(store)["documents"].items() if not count]
    assert empty
    with pytest.raises(UsageError, match=f"the {empty[0]} split of .* has no story"):
        TokenStore.open(store, empty[0])
    with pytest.raises(UsageError, match="did you mean train"):
        TokenStore.open(store, "tran")


def test_a_tokenizer_without_marks_is_refused_before_anything_is_written(tmp_path, tokenizer):
    bare = train_tokenizer(["One day, a cat sat on a mat."] * 9, vocab_size=320)
    bare.bos_token = bare.eos_token = None
    folder = corpus_of(tmp_path / "c", [f"Story {n}." for n in range(300)])
    with pytest.raises(UsageError, match="no BOS or EOS token to put between stories"):
        make_store(folder, bare)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "records"]
