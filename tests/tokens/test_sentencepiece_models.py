"""Converted SentencePiece models against SentencePiece itself."""

import json
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_trials.console import UsageError
from lm_trials.tokens.sentencepiece_models import convert_sentencepiece
from lm_trials.tokens.tokenizers import batch_encoder, splits_cleanly

MODELS = {
    "tok512": "tok512/tok512.model",
    "tok4096": "tok4096/tok4096.model",
    "tok8192": "tok8192/tok8192.model",
    "llama2": "llama2_32000/tokenizer.model",
}

# What tokenizers differ in: spaces at every place, newlines, unknown characters, spelled-out specials,
# repeats.
FRAGMENTS = [
    "a",
    "the",
    "Once",
    " upon",
    "ab",
    "aa",
    "12",
    ".",
    "...",
    '."',
    " ",
    "  ",
    "     ",
    "\n",
    "\r\n",
    "\t",
]
FRAGMENTS += ["😀", "é", "e\u0301", "한국", "\u200b", "\x00", "\xa0", "▁", "<s>", "</s>", "<unk>", "<0x0A>"]
TEXTS = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join), st.text(max_size=30))

# llama2.c's own flags (tinystories.py, train_vocab).
SEED_FLAGS = {
    "model_type": "bpe",
    "character_coverage": 1.0,
    "split_digits": True,
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "unk_surface": " \342\201\207 ",
    "self_test_sample_size": 0,
    "minloglevel": 2,
}


def made_up_stories(num_stories: int = 300) -> list[str]:
    rng = random.Random(0)
    words = ["Once", "upon", "a", "time", "there", "was", "cat", "dog", "ran", "said", "3", "!", "<s>"]
    return [" ".join(rng.choices(words, k=30)) + "." for _ in range(num_stories)]


def train(folder, name="tiny", **flags):
    arguments = {**SEED_FLAGS, "vocab_size": 320, **flags}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(made_up_stories()), model_prefix=str(folder / name), **arguments
    )
    return folder / f"{name}.model"


def both(model_file):
    return convert_sentencepiece(model_file), sentencepiece.SentencePieceProcessor(model_file=str(model_file))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(tiny_model):
    converted, original = both(tiny_model)
    return converted, batch_encoder(converted), original


@given(st.lists(TEXTS, min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_ids_are_sentencepieces(tiny, texts):
    _, encode, original = tiny
    assert encode(texts) == original.encode(texts)


def test_a_model_of_other_text_gives_other_ids(tiny, tmp_path):
    """The control of the test above."""
    _, encode, _ = tiny
    _, other = both(train(tmp_path, vocab_size=300))
    stories = made_up_stories(20)
    assert all(ids != others for ids, others in zip(encode(stories), other.encode(stories), strict=True))


def test_text_comes_back_and_specials_are_llamas(tiny):
    converted, encode, original = tiny
    stories = made_up_stories(50)
    assert [converted.decode(ids) for ids in encode(stories)] == stories
    assert original.decode(original.encode(stories)) == stories
    assert (converted.unk_token_id, converted.bos_token_id, converted.eos_token_id) == (0, 1, 2)
    assert converted.pad_token is None
    assert converted("a cat").input_ids == [1, *original.encode("a cat")]
    assert converted("a cat", add_special_tokens=False).input_ids == original.encode("a cat")


def test_a_spelled_special_token_is_text_for_the_batch_encoder_only(tiny):
    converted, encode, original = tiny
    assert encode(["a </s>"]) == [original.encode("a </s>")]
    assert 2 not in encode(["a </s>"])[0]
    assert 2 in converted("a </s>").input_ids


@pytest.mark.parametrize(
    "flags",
    [
        {"normalization_rule_name": "nmt_nfkc"},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"byte_fallback": False, "vocab_size": 60},
        {"bos_id": -1, "pad_id": 3},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_the_normalizer_spec_is_followed(tmp_path, tiny, flags):
    converted, original = both(train(tmp_path, **flags))
    rng = random.Random(1)
    fragments = [*FRAGMENTS, "ﬁ", "Ａ", "½", "\u3000"]
    texts = ["".join(rng.choices(fragments, k=rng.randrange(9))) for _ in range(2000)]
    ids = batch_encoder(converted)(texts)
    assert ids == original.encode(texts)
    assert ids != tiny[1](texts)  # the flag has an effect at all
    assert converted.bos_token == (None if "bos_id" in flags else "<s>")


def test_a_normalizer_that_eats_newlines_is_no_place_to_cut(tmp_path, tiny):
    assert splits_cleanly(tiny[0]).after_newline
    converted, _ = both(train(tmp_path, normalization_rule_name="nmt_nfkc"))
    assert not splits_cleanly(converted).after_newline


def test_auto_tokenizer_loads_the_saved_folder(tiny_model, tmp_path):
    from transformers import AutoTokenizer

    converted = convert_sentencepiece(tiny_model)
    converted.save_pretrained(tmp_path / "folder")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert loaded.backend_tokenizer.to_str() == converted.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model_type": "unigram", "vocab_size": 290}, "is a UNIGRAM model; only BPE converts"),
        ({"user_defined_symbols": ["<x>"]}, "1 user-defined or unused pieces ('<x>')"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
    ids=["unigram", "user_defined", "suffix"],
)
def test_what_cannot_be_equal_is_refused(tmp_path, flags, said):
    model_file = train(tmp_path, **flags)
    with pytest.raises(UsageError) as error:
        convert_sentencepiece(model_file)
    assert said in str(error.value)
    assert str(model_file) in str(error.value)


def test_damaged_files_get_one_line(tiny_model, tmp_path):
    whole = tiny_model.read_bytes()
    damaged = tmp_path / "damaged.model"
    for content in (b"", b"One day a cat\n" * 20, whole[:1], whole[: len(whole) // 2], whole[:-1]):
        damaged.write_bytes(content)
        with pytest.raises(UsageError, match="truncated") as error:
            convert_sentencepiece(damaged)
        assert "\n" not in str(error.value)
    damaged.write_bytes(whole)
    assert len(convert_sentencepiece(damaged)) == 320


@pytest.fixture(scope="module")
def real_stories(shared_data):
    lines = (shared_data / "tinystories" / "val.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", MODELS)
def test_real_models_give_sentencepieces_ids_on_every_real_story(shared_data, real_stories, name):
    converted, original = both(shared_data / "llama_tokenizers" / MODELS[name])
    encode = batch_encoder(converted)
    ids = encode(real_stories)
    assert len(ids) == 3117
    assert ids == original.encode(real_stories)
    assert (converted.bos_token_id, converted.eos_token_id) == (1, 2)
    assert [converted.decode(row) for row in ids[:200]] == original.decode(ids[:200])
    rng = random.Random(2)
    made = ["".join(rng.choices(FRAGMENTS, k=rng.randrange(10))) for _ in range(3000)]
    assert encode(made) == original.encode(made)


def test_another_real_model_gives_other_ids(shared_data, real_stories):
    small, _ = both(shared_data / "llama_tokenizers" / MODELS["tok512"])
    _, large = both(shared_data / "llama_tokenizers" / MODELS["tok4096"])
    assert batch_encoder(small)(real_stories[:50]) != large.encode(real_stories[:50])


def test_tok512_equals_the_shared_conversion(shared_data, real_stories):
    from transformers import AutoTokenizer

    converted, _ = both(shared_data / "llama_tokenizers" / MODELS["tok512"])
    known = AutoTokenizer.from_pretrained(shared_data / "stories260K" / "hf")
    assert batch_encoder(converted)(real_stories[:300]) == batch_encoder(known)(real_stories[:300])
