"""Training, loading and cutting: what a text's ids may and may not depend on."""

import copy
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from itertools import chain
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lm_trials.console import UsageError
from lm_trials.tokens import tokenizers
from lm_trials.tokens.tokenizers import (
    MIN_VOCAB_SIZE,
    CleanSplits,
    batch_encoder,
    continuation,
    load_tokenizer,
    resolve_vocab,
    splits_cleanly,
    tokenizer_hash,
    train_tokenizer,
)

FRAGMENTS = [
    "a",
    "the",
    "Once",
    " upon",
    "12",
    "½",
    ".",
    '."',
    " ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u2028",
    "\x85",
]
FRAGMENTS += ["😀", "👩‍👧", "é", "e\u0301", "한국", "\x00", "\ufffd", "<s>", "</s>", "<unk>", "<0x0A>"]
FRAGMENTS += ["▁", "\ufdd0", "\ufdd00", "\ufdd01"]  # the marks that the tokenizer itself writes
TEXTS = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join), st.text(max_size=40))


def stories(num_stories: int = 400, seed: int = 0) -> list[str]:
    """Sentences of made-up words: many pairs are equally frequent, so ties must be broken the same way."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnoprstuwy", k=rng.randint(2, 7))) for _ in range(300)]
    lines = [" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(3 * num_stories)]
    return ["\n".join(lines[at : at + 3]) for at in range(0, len(lines), 3)]


def lines_of(text: str) -> list[str]:
    """Cut after each newline, and only there (`str.splitlines` knows eight other ends)."""
    return re.split(r"(?<=\n)", text)


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(stories(), vocab_size=600)


@pytest.fixture(scope="module")
def real_stories(shared_data):
    lines = (shared_data / "tinystories" / "val.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


PUBLISHED = ("tok512", "tok4096", "tok8192", "llama2_32000")


@pytest.fixture(
    scope="module", params=["trained", *(pytest.param(name, marks=pytest.mark.end_to_end) for name in PUBLISHED)]
)
def named(request, trained):
    """Every tokenizer with a dummy prefix: ours, and those converted from the real models."""
    if request.param == "trained":
        return trained
    return load_tokenizer(request.getfixturevalue("shared_data") / "llama_tokenizers" / request.param)


@pytest.fixture(scope="module")
def gpt2(shared_data):
    return load_tokenizer(shared_data / "gpt2_tokenizer")


# --- training
# ---------------------------------------------------------------------------------------------------


def test_layout_is_llamas(trained):
    vocab = trained.get_vocab()
    assert len(trained) == trained.vocab_size == len(vocab) == 600
    assert [vocab[token] for token in ("<unk>", "<s>", "</s>", "<0x00>", "<0x0A>", "<0xFF>")] == [
        0,
        1,
        2,
        3,
        13,
        258,
    ]
    assert sorted(vocab.values()) == list(range(600))
    assert set(trained.all_special_tokens) == {"<unk>", "<s>", "</s>"}  # no byte among them
    assert trained.pad_token is None
    assert trained("ab").input_ids == [1, *trained("ab", add_special_tokens=False).input_ids]
    assert trained("ab", "ab").input_ids == 2 * trained("ab").input_ids


def test_no_learned_token_holds_a_newline_a_special_or_two_digits():
    tokenizer = train_tokenizer(["one\n two 1234 </s> <s><s> 12.\n\n"] * 200, vocab_size=330)
    learned = [token for token, index in tokenizer.get_vocab().items() if index > 258]
    assert "▁two" in learned
    assert not [token for token in learned if re.search(r"\n|</?s>|\d.|.\d", token)]
    assert [token for token in learned if "1" in token] == ["1"]
    assert not {1, 2} & set(batch_encoder(tokenizer)(["a </s> <s>"])[0])


def test_the_same_texts_give_the_same_file_and_others_do_not(trained, tmp_path):
    def digest(tokenizer, name):
        tokenizer.save_pretrained(tmp_path / name)
        return hashlib.sha256((tmp_path / name / "tokenizer.json").read_bytes()).hexdigest()

    first = digest(trained, "first")
    assert digest(train_tokenizer(iter(stories()), 600), "again") == first
    assert digest(train_tokenizer(stories(seed=1), 600), "others") != first
    assert digest(train_tokenizer(stories(), 599), "smaller") != first


@pytest.mark.end_to_end
def test_the_number_of_threads_changes_nothing(trained):
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_tokenizers import stories\n"
        "from lm_trials.tokens.tokenizers import _train_backend, batch_encoder\n"
        "print(_train_backend(stories(), 600).to_str())"
    )
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    written = [
        subprocess.run(
            [sys.executable, "-c", program, root, here],
            env={**os.environ, "TOKENIZERS_PARALLELISM": parallel, "RAYON_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for parallel, threads in (("false", "1"), ("true", "4"))
    ]
    assert written[0] == written[1]
    assert json.loads(written[0])["model"] == json.loads(trained.backend_tokenizer.to_str())["model"]


def test_importing_loads_neither_torch_nor_transformers():
    program = "import sys, lm_trials.tokens.tokenizers; print({'torch', 'transformers'} & set(sys.modules))"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"


def test_a_poor_text_gives_fewer_tokens_and_says_so(capsys):
    tokenizer = train_tokenizer(["a cat\n"], vocab_size=5000)
    assert len(tokenizer) < 300
    assert f"--vocab_size 5000: the texts give only {len(tokenizer)} tokens" in capsys.readouterr().err
    train_tokenizer(stories(), vocab_size=500)
    assert capsys.readouterr().err == ""


@given(st.lists(st.text("ab\u00e9", min_size=1, max_size=40), min_size=1, max_size=5), st.integers(2, 12))
@settings(deadline=None, max_examples=20)
def test_a_word_is_learnt_in_pieces_only_where_it_is_longer_than_any_of_ordinary_text(words, longest):
    texts = [" ".join(words * 3)]
    with patch.object(tokenizers, "LONGEST_WORD", longest), patch.object(tokenizers, "note"):
        cut = train_tokenizer(texts, vocab_size=400).backend_tokenizer
        merged = [token for token in cut.get_vocab() if not token.startswith("<")]
        assert max(map(len, merged)) <= longest
    with patch.object(tokenizers, "note"):
        whole = train_tokenizer(texts, vocab_size=400).backend_tokenizer
    if max(map(len, words)) < longest:  # one is for the space before the word
        assert cut.to_str() == whole.to_str()
    assert whole.decode(whole.encode(texts[0]).ids) == cut.decode(cut.encode(texts[0]).ids) == texts[0]


def test_a_word_of_ten_thousand_letters_gives_no_token_of_more_than_a_thousand():
    for word in ("a" * 10_000, "ab" * 5000):
        vocabulary = train_tokenizer([word], vocab_size=400).get_vocab()
        assert 2 < max(len(token) for token in vocabulary if set(token) <= {"a", "b"}) <= 1000


@pytest.mark.parametrize("vocab_size", [-1, 0, 259, MIN_VOCAB_SIZE - 1])
def test_a_vocabulary_without_room_is_refused(vocab_size):
    with pytest.raises(UsageError, match=f"--vocab_size {vocab_size} .* at least {MIN_VOCAB_SIZE}"):
        train_tokenizer(stories(), vocab_size)
    assert len(train_tokenizer(stories(), MIN_VOCAB_SIZE)) == MIN_VOCAB_SIZE


def test_more_characters_than_tokens_are_refused():
    wide = ["".join(map(chr, range(0x4E00, 0x4E00 + 100)))]
    with pytest.raises(UsageError, match=r"--vocab_size 320 .* 101 different characters .* more than 360"):
        train_tokenizer(wide, 320)  # 100 and the space mark


@pytest.mark.parametrize("texts", [[], [""], ["\n"]])
def test_no_text_is_refused(texts):
    with pytest.raises(UsageError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, 320)


# --- the round trip
# ---------------------------------------------------------------------------------------------


@given(TEXTS)
@example("▁ \ufdd0")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(encode_trained, text):
    tokenizer, encode = encode_trained
    (ids,) = encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert 0 not in ids  # bytes leave nothing unknown


@pytest.fixture(scope="module")
def encode_trained(trained):
    return trained, batch_encoder(trained)


def test_leading_spaces_are_not_one_text(encode_trained):
    _, encode = encode_trained
    assert len({tuple(ids) for ids in encode(["ab", " ab", "  ab", "ab ", "▁ab"])}) == 5


def test_every_real_story_comes_back(real_stories):
    tokenizer = train_tokenizer(real_stories[:1000], 4096)
    assert len(tokenizer) == 4096
    ids = batch_encoder(tokenizer)(real_stories)
    assert tokenizer.backend_tokenizer.decode_batch(ids) == real_stories
    characters_per_token = sum(map(len, real_stories)) / sum(map(len, ids))
    assert 3.5 < characters_per_token < 4.5  # measured 3.9; Llama 2's own gives 3.7


# --- batches
# ----------------------------------------------------------------------------------------------------


def test_batches_give_the_ids_of_single_calls(encode_trained):
    tokenizer, encode = encode_trained
    texts = stories(50)
    assert encode(texts) == [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert encode(texts) != [tokenizer(text).input_ids for text in texts]  # these have the BOS
    assert encode([]) == []


def test_a_truncation_that_someone_left_does_not_shorten_stories(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = stories(1)[0]
    whole = batch_encoder(tokenizer)([text])
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    assert len(tokenizer.backend_tokenizer.encode(text).ids) == 500
    assert batch_encoder(tokenizer)([text]) == whole
    assert tokenizer.backend_tokenizer.truncation is not None  # the caller's setting is left alone


def test_a_spelled_special_token_is_text_for_the_batch_encoder_only(encode_trained):
    tokenizer, encode = encode_trained
    assert tokenizer("ab</s>", add_special_tokens=False).input_ids[-1] == 2
    assert 2 not in encode(["ab</s>"])[0]


# --- cutting
# ----------------------------------------------------------------------------------------------------


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_text_in_lines_is_text_whole(cutters, text):
    encode, encode_continuation = cutters
    first, *rest = lines_of(text)
    assert sum(encode_continuation(rest), encode([first])[0]) == encode([text])[0]


@pytest.fixture(scope="module")
def cutters(trained):
    return batch_encoder(trained), continuation(trained)


def test_real_stories_in_lines_are_real_stories_whole(named, real_stories):
    real_stories = [text for text in real_stories if "\n" in text][::4]  # all hold; a quarter takes a second
    encode, encode_continuation = batch_encoder(named), continuation(named)
    pieces = [lines_of(text) for text in real_stories]
    rests = iter(encode_continuation([line for lines in pieces for line in lines[1:]]))
    whole = encode(real_stories)
    firsts = encode([lines[0] for lines in pieces])
    assert whole == [sum((next(rests) for _ in lines[1:]), first) for lines, first in zip(pieces, firsts, strict=True)]
    assert max(map(len, pieces)) > 5
    # The control: lines encoded as texts of their own have a prefix that the whole has not.
    alone = encode(pieces[0])
    assert len(alone) > 1
    assert whole[0] != list(chain.from_iterable(alone))


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_llama2_lines_of_any_text(llama2_cutters, text):
    encode, encode_continuation = llama2_cutters
    first, *rest = lines_of(text)
    assert sum(encode_continuation(rest), encode([first])[0]) == encode([text])[0]


@pytest.fixture(scope="module")
def llama2_cutters(shared_data):
    tokenizer = load_tokenizer(shared_data / "llama_tokenizers" / "llama2_32000")
    return batch_encoder(tokenizer), continuation(tokenizer)


def test_a_story_after_its_label_has_the_ids_of_the_story_alone(named, real_stories):
    assert splits_cleanly(named) == CleanSplits(after_newline=True, before_space=True, space_starts=True)
    encode, encode_continuation = batch_encoder(named), continuation(named)
    some = [text for text in real_stories[:100] if text == text.strip()]
    (label,) = encode_continuation(["Story:"])
    (head,) = encode(["Words: cat\n"])
    alone = encode(some)
    assert encode_continuation([" " + text for text in some]) == alone
    assert encode(["Words: cat\nStory: " + text for text in some]) == [head + label + ids for ids in alone]
    assert encode_continuation(some) != alone


def test_a_made_up_story_after_its_label_too(trained, cutters):
    encode, encode_continuation = cutters
    assert splits_cleanly(trained) == CleanSplits(after_newline=True, before_space=True, space_starts=True)
    assert encode_continuation([" " + text for text in stories(50)]) == encode(stories(50))
    assert encode_continuation(stories(50)) != encode(stories(50))


def test_where_gpt2_can_be_cut(gpt2, real_stories):
    """A single newline or space between visible characters is a clean cut; a run of newlines is none."""
    real_stories = real_stories[::4]
    assert splits_cleanly(gpt2) == CleanSplits(after_newline=False, before_space=True, space_starts=False)
    encode, encode_continuation = batch_encoder(gpt2), continuation(gpt2)
    whole = encode(real_stories)
    for cut in (r"(?<=\S\n)(?=\S)", r"(?<=\S)(?= \S)"):
        pieces = [re.split(cut, text, maxsplit=3) for text in real_stories]
        assert sum(map(len, pieces)) > 1.5 * len(real_stories)
        rests = iter(encode_continuation([piece for parts in pieces for piece in parts[1:]]))
        firsts = encode([parts[0] for parts in pieces])
        assert whole == [
            sum((next(rests) for _ in parts[1:]), first) for parts, first in zip(pieces, firsts, strict=True)
        ]
    assert encode(["a\n\n", "b", "a\n\nb"]) == [[64, 628], [65], [64, 198, 198, 65]]
    with pytest.raises(ValueError, match="merges with the newline before it"):
        encode_continuation(["\n"])


def test_tokens_across_newlines_and_spaces_are_seen(tmp_path):
    """The control of `splits_cleanly`: a tokenizer whose tokens cross both."""
    backend = Tokenizer.from_str(train_tokenizer(stories(), 400).backend_tokenizer.to_str())
    changed = json.loads(backend.to_str())
    for token in ("a\n", "a▁"):
        changed["model"]["vocab"][token] = len(changed["model"]["vocab"])
    from lm_trials.tokens.sentencepiece_models import wrap_backend

    crossing = wrap_backend(
        Tokenizer.from_str(json.dumps(changed)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    assert splits_cleanly(crossing) == CleanSplits(after_newline=False, before_space=False, space_starts=True)


# --- saving, loading, hashing
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2"])
def test_auto_tokenizer_loads_the_identical_tokenizer(trained, tmp_path, model_type):
    """Beside a model's config too: classes picked by model type would rebuild the normalizer."""
    from transformers import AutoTokenizer, GPT2Config, LlamaConfig

    trained.save_pretrained(tmp_path)
    if model_type:
        {"llama": LlamaConfig, "gpt2": GPT2Config}[model_type]().save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert type(loaded) is type(trained)
        assert loaded.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
        assert loaded.model_max_length == trained.model_max_length
        assert tokenizer_hash(loaded) == tokenizer_hash(trained)


LOWERED = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CLASSES = ("GPT2TokenizerFast", "Qwen2Tokenizer", "LlamaTokenizerFast", "BertTokenizerFast", "CodeGenTokenizer")
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def saved_tokenizer(folder, tokenizer_class, normalizer=None, pre_tokenizer=BYTES, **config):
    """Save a byte-level BPE of 300 tokens and more under the name of another class; returns its backend."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["One day, 10 cats  sat.\n\nThe ÉMILE cat's 2,024 mats"] * 9, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template="hi"
    ).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": tokenizer_class} | config))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("normalizer", [None, LOWERED, normalizers.Prepend(" ")], ids=["as it is", "lowered", "prefix"])
@pytest.mark.parametrize("pre_tokenizer", [BYTES, WORDS], ids=["words", "across words"])
@pytest.mark.parametrize("tokenizer_class", CLASSES)
@pytest.mark.filterwarnings("ignore")
def test_a_class_does_not_change_the_ids_of_tokenizer_json(
    tokenizer_class, normalizer, pre_tokenizer, tmp_path, capsys
):
    backend = saved_tokenizer(tmp_path, tokenizer_class, normalizer, pre_tokenizer)
    loaded = load_tokenizer(tmp_path)
    texts = ["The Émile cat's 2,024 mats", "  ONE  DAY, ", "a\n\nb 10", "今天 🙂"]
    assert batch_encoder(loaded)(texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token) == ("<s>", "</s>", "<unk>")
    assert loaded.chat_template == "hi"
    told = "tokenizer.json is used" in capsys.readouterr().err
    assert told == (type(loaded).__name__ == "TokenizersBackend" and tokenizer_class != "LlamaTokenizerFast")
    if told:  # no token that the class would like to have is added beyond the embeddings
        assert len(loaded) == backend.get_vocab_size()
        loaded.save_pretrained(tmp_path / "again")
        assert tokenizer_hash(load_tokenizer(tmp_path / "again")) == tokenizer_hash(loaded)
        assert capsys.readouterr().err == ""


def test_a_class_that_gives_the_ids_of_tokenizer_json_is_kept(tmp_path, capsys):
    saved_tokenizer(tmp_path, "GPT2TokenizerFast")
    assert type(load_tokenizer(tmp_path)).__name__ == "GPT2Tokenizer"
    saved_tokenizer(tmp_path, "GPT2TokenizerFast", add_prefix_space=True)
    assert "a GPT2Tokenizer, which its tokenizer_config.json names, gives other ids" not in capsys.readouterr().err
    load_tokenizer(tmp_path)
    assert "a GPT2Tokenizer, which its tokenizer_config.json names, gives other ids" in capsys.readouterr().err


def test_ids_are_not_drawn_and_the_tokens_of_a_template_are_not_split(tmp_path, capsys):
    saved_tokenizer(tmp_path, "PreTrainedTokenizerFast")
    text, plain = ["One day, 10 cats sat."], load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    backend = json.loads(file.read_text())
    backend["model"]["dropout"] = 0.5
    file.write_text(json.dumps(backend))
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"split_special_tokens": True}))
    assert capsys.readouterr().err == ""
    loaded = load_tokenizer(tmp_path)
    assert "its BPE dropout 0.5 is set aside" in capsys.readouterr().err
    assert batch_encoder(loaded)(text) == batch_encoder(plain)(text)
    assert loaded("</s>")["input_ids"] == plain("</s>")["input_ids"] == [loaded.eos_token_id]
    drawn = {tuple(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text[0]).ids) for _ in range(20)}
    assert len(drawn) > 1


@pytest.mark.parametrize(("names", "used"), [(("default", "tool_use"), "default"), (("a", "b"), None)])
def test_of_several_chat_templates_the_default_is_used(trained, names, used, tmp_path, capsys):
    several = copy.deepcopy(trained)
    several.chat_template = {name: name for name in names}
    several.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == used
    assert ("of its chat templates (a, b) none is the default" in capsys.readouterr().err) == (used is None)


def test_hash_sees_what_determines_ids(trained):
    def changed(edit):
        import copy

        from lm_trials.tokens.sentencepiece_models import wrap_backend

        parts = copy.deepcopy(json.loads(trained.backend_tokenizer.to_str()))
        edit(parts)
        backend = Tokenizer.from_str(json.dumps(parts))
        return tokenizer_hash(wrap_backend(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))

    def swap_two_tokens(parts):
        vocab = parts["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    def swap_two_merges(parts):
        merges = parts["model"]["merges"]
        merges[3], merges[4] = merges[4], merges[3]

    edits = {
        "nothing": lambda parts: None,
        "truncation": lambda parts: parts.update(
            truncation={"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
        ),
        "vocab": swap_two_tokens,
        "merges": swap_two_merges,
        "last merge": lambda parts: parts["model"]["merges"].pop(),
        "normalizer": lambda parts: parts["normalizer"]["normalizers"].pop(),
        "pre-tokenizer": lambda parts: parts.update(pre_tokenizer=None),
    }
    hashes = {name: changed(edit) for name, edit in edits.items()}
    same = tokenizer_hash(trained)
    assert re.fullmatch("[0-9a-f]{12}", same)
    assert hashes.pop("nothing") == hashes.pop("truncation") == same
    assert len({same, *hashes.values()}) == 1 + len(hashes)


def test_gpt2s_two_files_load_without_a_config(gpt2, shared_data, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(shared_data / "gpt2_tokenizer" / name, tmp_path / name)
    loaded = load_tokenizer(tmp_path, vocab_size=50257)
    assert tokenizer_hash(loaded) == tokenizer_hash(gpt2)
    assert batch_encoder(loaded)(["Once upon"]) == [[7454, 2402]]
    assert loaded.eos_token_id == 50256
    loaded.save_pretrained(tmp_path / "saved")
    assert tokenizer_hash(load_tokenizer(tmp_path / "saved")) == tokenizer_hash(gpt2)


def test_model_file_and_its_folder_are_the_same(shared_data):
    folder = shared_data / "llama_tokenizers" / "tok512"
    assert tokenizer_hash(load_tokenizer(folder, 512)) == tokenizer_hash(load_tokenizer(folder / "tok512.model"))
    other = load_tokenizer(shared_data / "llama_tokenizers" / "tok4096")
    assert tokenizer_hash(other) != tokenizer_hash(load_tokenizer(folder))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/nothing", "HF_HUB_OFFLINE is set and the cache does not have it"),
        ("no/such/folder", "no such file or folder; give a folder with tokenizer.json"),
        ("/nowhere/tokenizer.model", "no such file or folder"),
        ("tok.model", "no such file or folder"),
        ("../up", "no such file or folder"),
    ],
)
def test_a_name_that_is_nowhere_gets_one_line(name, said):
    with pytest.raises(UsageError) as error:
        load_tokenizer(name)
    assert f"--tokenizer_name {name}: " in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_tokenizer_get_one_line(trained, tmp_path):
    with pytest.raises(UsageError, match=r"no file of a tokenizer; .* tokenizer\.json, one \.model file"):
        load_tokenizer(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 \.model files"):
        load_tokenizer(tmp_path)
    trained.save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path)) == 600
    with pytest.raises(UsageError, match="give its folder"):
        load_tokenizer(tmp_path / "tokenizer.json")
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    for damaged in ("", "{}", whole[: len(whole) // 2]):
        (tmp_path / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(UsageError, match="not readable as a tokenizer") as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)


def test_remote_code_is_never_run(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "Evil"
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(UsageError, match="not readable as a tokenizer"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_resolve_vocab(trained, tmp_path):
    trained.save_pretrained(tmp_path / "tok600")
    folder = str(tmp_path / "tok600")
    expected = tokenizer_hash(trained)
    for vocab_size, name in ((600, None), (600, folder), (0, folder), (None, folder)):
        assert tokenizer_hash(resolve_vocab(vocab_size, name, tmp_path)) == expected


@pytest.mark.parametrize(
    ("vocab_size", "name", "said"),
    [
        (0, None, r"--tokenizer_name is missing; give --vocab_size N.*PATH/tokenizer\.model"),
        (None, None, r"--tokenizer_name is missing"),
        (-3, None, r"--vocab_size -3 is negative"),
        (
            512,
            None,
            r"train it with: lm-trials prepare train_vocab --corpus CORPUS --vocab_size 512 --data_cache_dir",
        ),
        (512, "{folder}", r"has 600 tokens, not 512; give --vocab_size 600"),
    ],
)
def test_resolve_vocab_says_what_is_missing(trained, tmp_path, vocab_size, name, said):
    trained.save_pretrained(tmp_path / "tok600")
    with pytest.raises(UsageError, match=said):
        resolve_vocab(vocab_size, name and name.format(folder=tmp_path / "tok600"), tmp_path)
