"""Tokenizers: train one, load one, and split texts into parts that tokenize as the whole text does.

All are ordinary Hugging Face tokenizers; `AutoTokenizer.from_pretrained(folder)` loads the same one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lm_trials.console import UsageError, note
from lm_trials.tokens.sentencepiece_models import SPACE_MARK, convert_sentencepiece, wrap_backend

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Encoder = Callable[[list[str]], list[list[int]]]

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL_TOKENS = (UNK, BOS, EOS)  # ids 0, 1, 2, as in Llama
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))  # ids 3 to 258
# With fewer than 61 characters nearly every word would be bytes; the real validation stories have 76 characters.
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(BYTE_TOKENS) + 61

LONGEST_WORD = 1000  # characters; a longer word is learnt in pieces

# U+FDD0 is a noncharacter: Unicode reserves it for internal use.  A space mark in the text itself is written as two
# characters; otherwise it would be decoded as a space.
ESCAPE = "\ufdd0"
ESCAPED = ((ESCAPE, ESCAPE + "0"), (SPACE_MARK, ESCAPE + "1"))

# What may become one token: letters, or signs, with the space before them; else one character.  Digits are split
# (llama2.c's `split_digits`), and so are newlines.
UNITS = (
    rf"{SPACE_MARK}?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    rf"{SPACE_MARK}?[^\s{SPACE_MARK}\p{{L}}\p{{M}}\p{{N}}]+|{SPACE_MARK}|\s"
)


# Texts on which tokenizers differ: case, accents, compatibility forms, digits, blanks, newlines, signs, scripts, emoji.
PROBES = (
    *("One day", " one Day", "  ONE  DAY  ", "Émile naïve e\u0301 ŸÇ ß İ", "\ufb01 ½ Ⅷ ＡＢ", "1234567890 3.14 1,000"),
    *("a\nb\n\nc\r\nd\te\u00a0f\u3000g\u200bh ", 'don\'t "you" (all) -- so... on/off_x@y #1!?', "\n", ""),
    *("今天 天気 はれ 한국어", "Привет, мир", "שלום مرحبا नमस्ते", "👩\u200d🚀 🙂🙂", "\x00\ufeff\ufffd"),
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-fallback BPE in Llama's layout: three special tokens, 256 bytes, characters, merges.

    Decoding restores any text exactly.  A newline is always its own token, and a space only begins one, so texts can
    be split there (`splits_cleanly`).  The same texts in the same order give the same file with any number of threads.

    Args:
        texts: read once, in order; only word counts stay in memory.
        vocab_size: in tokens, special tokens and bytes included.  Few texts give fewer tokens, and a note.

    Raises:
        UsageError: for a `vocab_size` without room for merges or the texts' characters, or without text.

    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320)
    >>> tokenizer.tokenize("a cat\\non a mat")
    ['▁a', '▁cat', '<0x0A>', 'on', '▁a', '▁mat']
    """
    backend = _train_backend(texts, vocab_size)
    return wrap_backend(backend, bos_token=BOS, eos_token=EOS, unk_token=UNK)


def batch_encoder(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> Encoder:
    """Return a function that encodes many texts at once, without special tokens or truncation: `texts -> ids of each`.

    A literal `</s>` in a text is encoded as text, so no story can end itself.  The function works on a copy: a later
    truncation of `tokenizer` has no effect.

    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320)
    >>> encode = batch_encoder(tokenizer)
    >>> [len(ids) for ids in encode(["a cat", "</s>", ""])]
    [2, 5, 0]
    """
    backend = copy.deepcopy(getattr(tokenizer, "backend_tokenizer", tokenizer))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # meaning: where a text spells one, encode it as text

    def encode(texts: list[str]) -> list[list[int]]:
        # The fast form leaves out character offsets, which nothing here needs.
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def continuation(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return a function that encodes texts that follow a newline: without the dummy prefix at their start.

    `ids(line_1 + line_2) == ids(line_1) + continuation(line_2)` where `splits_cleanly(tokenizer).after_newline`; the
    returned function raises a ValueError where the start of a text merges with the newline before it.

    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320)
    >>> encode, encode_continuation = batch_encoder(tokenizer), continuation(tokenizer)
    >>> whole, first, restarted = encode(["a cat\\na mat", "a cat\\n", "a mat"])
    >>> (second,) = encode_continuation(["a mat"])
    >>> whole == first + second, whole == first + restarted
    (True, False)
    """
    encode = batch_encoder(tokenizer)
    (newline_ids,) = encode(["\n"])

    def encode_continuation(texts: list[str]) -> list[list[int]]:
        # Encoding with a newline and removing its ids works for any tokenizer, however its normalizer makes the prefix.
        rows = encode(["\n" + text for text in texts])
        for text, ids in zip(texts, rows, strict=True):
            if ids[: len(newline_ids)] != newline_ids:
                raise ValueError(f"{text[:20]!r} merges with the newline before it; split the text elsewhere")
        return [ids[len(newline_ids) :] for ids in rows]

    return encode_continuation


@dataclass(frozen=True)
class CleanSplits:
    """Where a text may be split so that the ids of its parts, joined, are the ids of the whole text.

    Attributes:
        after_newline: after any newline; the rest is encoded by `continuation`.  False for GPT-2's tokenizer, which
            merges newlines ("\\n\\n" is token 628 at the end of a text, and 198 198 before a letter).
        before_space: before a single space between visible characters; the rest is encoded by `continuation`.
        space_starts: a text has the same ids at the start as after a space.  True with a dummy prefix (SentencePiece's
            and `train_tokenizer`'s), False for GPT-2's.
    """

    after_newline: bool
    before_space: bool
    space_starts: bool


def splits_cleanly(tokenizer: PreTrainedTokenizerBase) -> CleanSplits:
    """Return where texts may be split, from what the vocabulary can merge.

    BPE joins neighbours into tokens of its vocabulary.  If no token contains a newline and anything else, no merge
    crosses a newline.

    >>> splits_cleanly(train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320))
    CleanSplits(after_newline=True, before_space=True, space_starts=True)
    """
    backend = tokenizer.backend_tokenizer
    byte_level = isinstance(backend.decoder, decoders.ByteLevel)  # GPT-2's, whose tokens are spelled in byte characters
    tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    spellings = [backend.decoder.decode([token]) if byte_level else token.replace(SPACE_MARK, " ") for token in tokens]
    encode = batch_encoder(tokenizer)
    # A normalizer may turn newlines into spaces (SentencePiece's nmt_nfkc does).
    keeps_newline = "\n" in tokenizer.decode(encode(["a\nb"])[0])
    return CleanSplits(
        after_newline=keeps_newline and not any("\n" in text and len(text) > 1 for text in spellings),
        before_space=not any(re.search(r"\S ", text) for text in spellings),
        space_starts=continuation(tokenizer)([" Once"]) == encode(["Once"]),
    )


def load_tokenizer(
    name_or_path: str | Path, vocab_size: int | None = None, revision: str | None = None
) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder, a SentencePiece `.model` file or the Hub; remote code is never run.

    A folder has `tokenizer.json`, or one `.model` file, or GPT-2's `vocab.json` and `merges.txt`.

    Args:
        name_or_path: an existing path, else a name on the Hub (or in its cache, when offline).
        vocab_size: the expected number of tokens; None accepts any.
        revision: of a name on the Hub.

    Raises:
        UsageError: for a tokenizer that is missing, unreadable, or of another size.

    >>> load_tokenizer("no/such/folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: --tokenizer_name no/such/folder: no such file or folder; ...
    """
    path = Path(name_or_path)
    try:
        if path.is_file() and path.suffix == ".json":
            raise UsageError(f"--tokenizer_name {path} is one file of a tokenizer; give its folder, {path.parent}")
        if path.is_file():
            tokenizer = convert_sentencepiece(path)
        elif path.is_dir():
            tokenizer = _load_folder(path)
        else:
            tokenizer = _load_from_hub(str(name_or_path), revision)
    except UsageError:
        raise
    except Exception as error:  # `tokenizers` raises bare `Exception` for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--tokenizer_name {name_or_path} is not readable as a tokenizer ({reason}); fetch or train it again"
        ) from error
    if vocab_size is not None and len(tokenizer) != vocab_size:
        raise UsageError(
            f"--tokenizer_name {name_or_path} has {len(tokenizer)} tokens, not {vocab_size}; "
            f"give --vocab_size {len(tokenizer)} or another tokenizer"
        )
    if isinstance(named := tokenizer.chat_template, dict):
        tokenizer.chat_template = named.get("default")
        if "default" not in named:
            listed = ", ".join(sorted(named))
            note(f"note: {name_or_path}: of its chat templates ({listed}) none is the default; none is used")
    tokenizer.split_special_tokens = False  # else a chat template's `<|im_end|>` would be several tokens of text
    if dropout := getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None
        note(f"note: {name_or_path}: its BPE dropout {dropout:g} is set aside, which draws other ids at each call")
    return tokenizer


def resolve_vocab(
    vocab_size: int | None, tokenizer_name: str | None, data_cache_dir: str | Path
) -> PreTrainedTokenizerFast:
    """Load the tokenizer that `--vocab_size` and `--tokenizer_name` mean together.

    Size N is `tokN` in the data folder, trained earlier.  As in llama2.c, size 0 is Llama 2's tokenizer; its path must
    be named, because Meta's license does not let us ship it.

    Raises:
        UsageError: for neither flag, a size that is not the named tokenizer's, or a missing `tokN`.

    >>> resolve_vocab(512, None, "data")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: --vocab_size 512: no tokenizer in data/tok512; train it with: ...
    """
    if vocab_size is not None and vocab_size < 0:
        raise UsageError(f"--vocab_size {vocab_size} is negative; give 0 for Llama 2's tokenizer or at least 1")
    if tokenizer_name:
        return load_tokenizer(tokenizer_name, vocab_size or None)
    if not vocab_size:
        raise UsageError(
            "--tokenizer_name is missing; give --vocab_size N for one of lm-trials prepare train_vocab, or "
            "--tokenizer_name PATH, for Llama 2's PATH/tokenizer.model (karpathy/llama2.c on GitHub has it)"
        )
    folder = Path(data_cache_dir) / f"tok{vocab_size}"
    if not folder.is_dir():
        raise UsageError(
            f"--vocab_size {vocab_size}: no tokenizer in {folder}; train it with: lm-trials prepare train_vocab "
            f"--corpus CORPUS --vocab_size {vocab_size} --data_cache_dir {data_cache_dir}"
        )
    return load_tokenizer(folder)  # of any size: a text with too few words leaves a smaller tokenizer under this name


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 12 hex digits for what determines a text's ids: the same after saving, loading or moving.

    It includes the model's vocabulary, merges and options, the normalizer, the pre-tokenizer, added tokens, and BOS and
    EOS ids, but not truncation, padding, the decoder or the template: token stores add BOS and EOS themselves.

    >>> small, large = (train_tokenizer(["a cat sat on a mat"] * 9, vocab_size=size) for size in (320, 330))
    >>> len(tokenizer_hash(small)), tokenizer_hash(small) == tokenizer_hash(copy.deepcopy(small))
    (12, True)
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    counted = {part: backend[part] for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    counted["specials"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


def _train_backend(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the BPE, without transformers."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"--vocab_size {vocab_size} leaves too little room for letters and merges beside {len(SPECIAL_TOKENS)} "
            f"special and {len(BYTE_TOKENS)} byte tokens; give at least {MIN_VOCAB_SIZE}"
        )
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.normalizer = _normalizer()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Newlines stay bytes, as in SentencePiece.  The spelling of a special token must not be learned: merges
            # could then make `</s>` out of a story's text.
            pre_tokenizers.Split(Regex("\n|" + "|".join(SPECIAL_TOKENS)), "removed"),
            pre_tokenizers.Split(Regex(UNITS), "isolated"),
            # The trainer needs time quadratic in the longest word: 8 s for 100,000 letters, 0.1 s in such pieces.
            pre_tokenizers.FixedLength(LONGEST_WORD),
        ]
    )
    given = [*SPECIAL_TOKENS, *BYTE_TOKENS]
    # No `limit_alphabet`: it breaks ties between equally rare characters by the order of a randomly seeded map.
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=given, show_progress=False)
    learner.train_from_iterator(texts, trainer)

    trained = json.loads(learner.to_str())["model"]
    num_tokens = len(trained["vocab"])
    num_characters = num_tokens - len(given) - len(trained["merges"])
    if num_characters <= 1:  # the space mark is always one
        raise UsageError("--corpus has no text to train a tokenizer on; give at least one story that is not empty")
    if num_tokens > vocab_size:
        raise UsageError(
            f"--vocab_size {vocab_size} is too small for the texts' {num_characters} different characters beside "
            f"{len(given)} special and byte tokens; give more than {num_tokens}"
        )
    if num_tokens < vocab_size:
        note(
            f"note: --vocab_size {vocab_size}: the texts give only {num_tokens:,} tokens; give more texts or that size"
        )
    return _assemble(trained["vocab"], [tuple(merge) for merge in trained["merges"]])


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Build the tokenizer again: the trainer has made the bytes special tokens, which decoding may skip."""
    backend = Tokenizer(models.BPE(vocab, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(UNITS), "isolated")
    unescape = [decoders.Replace(written, character) for character, written in reversed(ESCAPED)]
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *unescape,  # only after `Fuse`, since an escape is two tokens
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return backend


def _normalizer() -> normalizers.Normalizer:
    """Mark the spaces, and put one before the text so that its first word is encoded like any other word."""
    escape = [normalizers.Replace(character, written) for character, written in ESCAPED]
    # Not `Metaspace`, which adds no prefix to a text that begins with a space: "a" and " a" would have the same ids.
    return normalizers.Sequence([*escape, normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    """Load from the files that the folder has, the most complete kind first."""
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        config = folder / "tokenizer_config.json"
        kind = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") if config.is_file() else None
        if kind in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
            # The class that AutoTokenizer would choose, without the torch that it imports (1.5 s).
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return _auto_tokenizer(str(folder))
    model_files = sorted(folder.glob("*.model"))
    if len(model_files) == 1:
        return convert_sentencepiece(model_files[0])
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return GPT2Tokenizer.from_pretrained(folder)  # AutoTokenizer needs a config beside these
    found = f"{len(model_files)} .model files" if model_files else "no file of a tokenizer"
    raise UsageError(
        f"--tokenizer_name {folder} has {found}; give a folder with tokenizer.json, one .model file, or vocab.json and "
        "merges.txt"
    )


def _load_from_hub(name: str, revision: str | None) -> PreTrainedTokenizerFast:
    """Load by name, from the cache or the network."""
    # Names on the Hub are `name` or `owner/name`; anything else was meant as a path.
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith((".model", ".json")):
        raise UsageError(
            f"--tokenizer_name {name}: no such file or folder; give a folder with tokenizer.json, "
            "a SentencePiece .model file, or a name on the Hub"
        )
    try:
        return _auto_tokenizer(name, revision)
    except OSError as error:  # transformers' one type for: offline, not found, gated, not in the cache
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        state = "HF_HUB_OFFLINE is set and the cache does not have it" if offline else "the Hub did not serve it"
        raise UsageError(
            f"--tokenizer_name {name}: no such folder here, and {state}; check the name, go online once, or give the "
            "path of a tokenizer"
        ) from error


def _auto_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

    # trust_remote_code=False is the default; written here because it must not change.
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(f"--tokenizer_name {name} has no fast tokenizer; give one with a tokenizer.json")
    file = cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return tokenizer if file is None else _as_in_file(tokenizer, name, Path(file))


def _as_in_file(tokenizer: PreTrainedTokenizerFast, name: str, file: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer if its ids are those of `tokenizer.json`, else the tokenizer of that file.

    transformers 5 builds many tokenizer classes from the vocabulary alone, with the class's own normalizer and
    pre-tokenizer.  `tokenizer.json` is what `tokenizers` and transformers 4 use, so the model was trained with it: with
    `tokenizer_class: GPT2TokenizerFast` over another normalizer a loss went from 1.36 to 4.13 nats per token.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(file))
    vocabulary = backend.get_vocab()
    texts = [*PROBES, *sorted(vocabulary)[:: max(len(vocabulary) // 2000, 1)]]
    if batch_encoder(tokenizer)(texts) == batch_encoder(backend)(texts):
        return tokenizer
    note(
        f"note: {name}: a {type(tokenizer).__name__}, which its tokenizer_config.json names, gives other ids than its "
        "tokenizer.json; tokenizer.json is used"
    )
    special: dict[str, Any] = {
        role: token for role, token in tokenizer.special_tokens_map.items() if token in vocabulary
    }
    return PreTrainedTokenizerFast.from_pretrained(file.parent, **special)
