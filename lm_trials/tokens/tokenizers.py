"""Tokenizers: train one, load one, and cut texts into pieces that tokenise as the whole does.

Everything here is an ordinary Hugging Face tokenizer; `AutoTokenizer.from_pretrained(folder)` gives the same
one.  Token ids are lists of int.  Texts are `str` without lone surrogates, which no UTF-8 file can hold.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lm_trials.console import UsageError
from lm_trials.tokens.sentencepiece_models import SPACE_MARK, convert_sentencepiece, wrap_backend

if TYPE_CHECKING:  # transformers takes a second to import, and `--help` should not wait for it
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

Encoder = Callable[[list[str]], list[list[int]]]

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL_TOKENS = (UNK, BOS, EOS)  # ids 0, 1, 2, as in Llama
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))  # ids 3 to 258
# 259 tokens are given; 61 more are about an English text's letters and signs (the real validation stories
# have 76 characters), below which nearly every word would be bytes.
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + len(BYTE_TOKENS) + 61

# U+FDD0 is one of the code points that Unicode sets aside for a program's inner use.  A mark that stands in
# the text itself is written as two characters, or it would come back as a space.
ESCAPE = "\ufdd0"
ESCAPED = ((ESCAPE, ESCAPE + "0"), (SPACE_MARK, ESCAPE + "1"))

# What may become one token: letters, or signs, with the space before them; else a single character.  A digit
# stands alone (llama2.c's `split_digits`), and so does a newline.
UNITS = (
    rf"{SPACE_MARK}?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    rf"{SPACE_MARK}?[^\s{SPACE_MARK}\p{{L}}\p{{M}}\p{{N}}]+|{SPACE_MARK}|\s"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-fallback BPE in Llama's layout: three specials, 256 bytes, characters, merges.

    Any text survives encoding and decoding exactly.  A newline is always its own token, the byte `<0x0A>`,
    and a space only ever begins one, so texts can be cut there (`splits_cleanly`).  The same texts in the
    same order give the same file, whatever the number of threads.

    Args:
        texts: read once, in order; only word counts stay in memory.
        vocab_size: in tokens, specials and bytes included.  A text that supports fewer gives fewer, and a
            warning says how many.

    Raises:
        UsageError: `vocab_size` leaves no room for merges or for the texts' characters, or no text.

    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320)  # tokens
    >>> tokenizer.tokenize("a cat\\non a mat")
    ['▁a', '▁cat', '<0x0A>', 'on', '▁a', '▁mat']
    >>> tokenizer("a cat").input_ids == [1, *tokenizer("a cat", add_special_tokens=False).input_ids]
    True
    >>> train_tokenizer(["One day"], vocab_size=256)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: --vocab_size 256 leaves too little room ...; give at least 320
    """
    backend = _train_backend(texts, vocab_size)
    return wrap_backend(backend, bos_token=BOS, eos_token=EOS, unk_token=UNK)


def batch_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Encode many texts at once, without special tokens and without truncation: `texts -> ids of each`.

    A text is plain text here: a literal `</s>` in a story is spelled out, so no story can end itself.  Works
    on a copy, so nobody who sets a truncation on `tokenizer` later shortens the stories.  Threads follow
    `TOKENIZERS_PARALLELISM` and `RAYON_NUM_THREADS`; the ids do not depend on them.

    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320)
    >>> encode = batch_encoder(tokenizer)
    >>> [len(ids) for ids in encode(["a cat", "</s>", ""])]
    [2, 5, 0]
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # meaning: where a text spells one, encode it as text

    def encode(texts: list[str]) -> list[list[int]]:
        # The fast form leaves out character offsets, which nothing here needs.
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def continuation(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Encode texts that follow a newline: no dummy prefix at their start.

    `ids(line_1 + line_2) == ids(line_1) + continuation(line_2)` for lines that keep their newline, where
    `splits_cleanly(tokenizer).after_newline` says so.

    Raises:
        ValueError: (from the returned function) a text's start merged with the newline before it.

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
        # A newline goes before the text and its ids are taken off again: this is what "following a newline"
        # means, for any tokenizer, with no knowledge of how its normalizer makes the prefix.
        rows = encode(["\n" + text for text in texts])
        for text, ids in zip(texts, rows, strict=True):
            if ids[: len(newline_ids)] != newline_ids:
                raise ValueError(f"{text[:20]!r} merges with the newline before it; cut the text elsewhere")
        return [ids[len(newline_ids) :] for ids in rows]

    return encode_continuation


@dataclass(frozen=True)
class CleanSplits:
    """Where a text may be cut so that its pieces' ids, joined, are the whole text's ids.

    Attributes:
        after_newline: after any newline; the rest is encoded by `continuation`.  False for GPT-2's, where a
            run of newlines merges ("\\n\\n" is token 628 at a text's end, but 198 198 before a letter); a
            single newline between visible characters is a clean cut there too.
        before_space: before a single space between visible characters; the rest is encoded by `continuation`.
        space_starts: a text has the same ids at its start as after a space, so `ids(" x")` as a continuation
            is `ids("x")`.  True with a dummy prefix (SentencePiece's and ours), False for GPT-2's.
    """

    after_newline: bool
    before_space: bool
    space_starts: bool


def splits_cleanly(tokenizer: PreTrainedTokenizerFast) -> CleanSplits:
    """Say where texts may be cut, from what the vocabulary can merge.

    BPE only ever joins neighbours into tokens of its vocabulary.  If no token holds a newline and anything
    else, nothing crosses a newline, and the two sides cannot see each other.

    >>> splits_cleanly(train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=320))
    CleanSplits(after_newline=True, before_space=True, space_starts=True)
    """
    backend = tokenizer.backend_tokenizer
    byte_level = isinstance(backend.decoder, decoders.ByteLevel)  # GPT-2's kind writes other characters
    tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    spellings = [backend.decoder.decode([token]) if byte_level else token.replace(SPACE_MARK, " ") for token in tokens]
    encode = batch_encoder(tokenizer)
    # A normalizer may make spaces of newlines (SentencePiece's nmt_nfkc does); then there is none to cut at.
    keeps_newline = "\n" in tokenizer.decode(encode(["a\nb"])[0])
    return CleanSplits(
        after_newline=keeps_newline and not any("\n" in text and len(text) > 1 for text in spellings),
        before_space=not any(re.search(r"\S ", text) for text in spellings),
        space_starts=continuation(tokenizer)([" Once"]) == encode(["Once"]),
    )


def load_tokenizer(name_or_path: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder, a SentencePiece `.model` file or the Hub; no remote code is ever run.

    A folder holds `tokenizer.json`, or one `.model` file, or GPT-2's `vocab.json` and `merges.txt`.

    Args:
        name_or_path: a path that exists, else a name on the Hub (or in its cache, when offline).
        vocab_size: the size that the caller counts on, in tokens; None takes any.

    Raises:
        UsageError: nothing there, unreadable, or of another size.

    >>> load_tokenizer("no/such/folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: --tokenizer_name no/such/folder: no such file or folder; ...
    """
    path = Path(name_or_path)
    try:
        if path.is_file() and path.suffix == ".json":
            raise UsageError(f"--tokenizer_name {path}: a file of a tokenizer; give its folder, {path.parent}")
        if path.is_file():
            tokenizer = convert_sentencepiece(path)
        elif path.is_dir():
            tokenizer = _load_folder(path)
        else:
            tokenizer = _load_from_hub(str(name_or_path))
    except UsageError:
        raise
    except Exception as error:  # `tokenizers` raises bare `Exception` for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--tokenizer_name {name_or_path}: not readable as a tokenizer ({reason})") from error
    if vocab_size is not None and len(tokenizer) != vocab_size:
        raise UsageError(
            f"--tokenizer_name {name_or_path} has {len(tokenizer)} tokens, not {vocab_size}; "
            f"give --vocab_size {len(tokenizer)} or another tokenizer"
        )
    return tokenizer


def resolve_vocab(
    vocab_size: int | None, tokenizer_name: str | None, data_cache_dir: str | Path
) -> PreTrainedTokenizerFast:
    """Find the tokenizer that `--vocab_size` and `--tokenizer_name` mean together.

    As in llama2.c, size 0 is Llama 2's tokenizer, which the user must name since it is Meta's to give; size N
    is `tokN` in the data folder, trained earlier.  A name alone, or with its own size, is loaded.

    Raises:
        UsageError: neither is given, the size is not the named tokenizer's, or `tokN` is not there.

    >>> resolve_vocab(512, None, "data")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: --vocab_size 512: no tokenizer in data/tok512; train it with: ...
    """
    if vocab_size is not None and vocab_size < 0:
        raise UsageError(f"--vocab_size {vocab_size} is no size; give 0 for Llama 2's tokenizer or at least 1")
    if tokenizer_name:
        return load_tokenizer(tokenizer_name, vocab_size or None)
    if vocab_size is None:
        raise UsageError(
            "no tokenizer: give --tokenizer_name PATH, or --vocab_size N for one that "
            "prepare_tinystories.py train_vocab --vocab_size N has trained"
        )
    if vocab_size == 0:
        raise UsageError(
            "no tokenizer is named; give --vocab_size N for one that prepare_tinystories.py train_vocab made, or "
            "--tokenizer_name, for Llama 2's PATH/tokenizer.model (karpathy/llama2.c on GitHub has it)"
        )
    folder = Path(data_cache_dir) / f"tok{vocab_size}"
    if not folder.is_dir():
        raise UsageError(
            f"--vocab_size {vocab_size}: no tokenizer in {folder}; train it with: "
            f"lm-trials prepare train_vocab "
            f"--vocab_size {vocab_size} --data_cache_dir {data_cache_dir}"
        )
    # A text that supports fewer tokens leaves a smaller tokenizer under this name, so the size is not asked
    # for.
    return load_tokenizer(folder)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Fingerprint what determines a text's ids, in 12 hex digits: the same after saving, loading, or moving.

    Counts: vocabulary, merges and the model's options, normalizer, pre-tokenizer, added tokens, BOS and EOS
    ids. Does not count what a caller sets for one call (truncation, padding), what only matters for reading
    ids back (decoder), or which specials a template adds: the token store puts BOS and EOS itself.

    >>> small, large = (train_tokenizer(["a cat sat on a mat"] * 9, vocab_size=size) for size in (320, 330))
    >>> len(tokenizer_hash(small)), tokenizer_hash(small) == tokenizer_hash(copy.deepcopy(small))
    (12, True)
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    counted = {part: backend[part] for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    counted["specials"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


def _train_backend(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the BPE; needs `tokenizers` alone."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"--vocab_size {vocab_size} leaves too little room for letters and merges beside {len(SPECIAL_TOKENS)} "
            f"special and {len(BYTE_TOKENS)} byte tokens; give at least {MIN_VOCAB_SIZE}"
        )
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.normalizer = _normalizer()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Newlines stay bytes, as SentencePiece leaves them.  A special token's own spelling must not be
            # learned, or merges could make `</s>` out of a story's text.
            pre_tokenizers.Split(Regex("\n|" + "|".join(SPECIAL_TOKENS)), "removed"),
            _pre_tokenizer(),
        ]
    )
    given = [*SPECIAL_TOKENS, *BYTE_TOKENS]
    # No `limit_alphabet`: it breaks ties between equally rare characters by the order of a randomly seeded
    # map.
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=given, show_progress=False)
    learner.train_from_iterator(texts, trainer)

    trained = json.loads(learner.to_str())["model"]
    num_tokens = len(trained["vocab"])
    num_characters = num_tokens - len(given) - len(trained["merges"])
    if num_characters <= 1:  # the space mark stands before any text
        raise UsageError("no text to train a tokenizer on; give at least one story that is not empty")
    if num_tokens > vocab_size:
        raise UsageError(
            f"--vocab_size {vocab_size} cannot hold the texts' {num_characters} different characters beside "
            f"{len(given)} special and byte tokens; give more than {num_tokens}"
        )
    if num_tokens < vocab_size:
        logger.warning("the texts support only %d of the %d tokens asked for", num_tokens, vocab_size)
    return _assemble(trained["vocab"], [tuple(merge) for merge in trained["merges"]])


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Build the tokenizer afresh: the trainer has made the bytes special tokens, which decoding may skip."""
    backend = Tokenizer(models.BPE(vocab, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = _pre_tokenizer()
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
    """Mark the spaces, and put one before the text so that its first word is like any other word."""
    escape = [normalizers.Replace(character, written) for character, written in ESCAPED]
    # Not `Metaspace`, whose prefix is left out before a text that begins with a space: "a" and " a" become
    # one.
    return normalizers.Sequence([*escape, normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(UNITS), "isolated")


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    """Load from whichever files the folder holds, the most complete kind first."""
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

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
        return GPT2TokenizerFast.from_pretrained(folder)  # AutoTokenizer needs a config beside these
    found = f"{len(model_files)} .model files" if model_files else "none of its files"
    raise UsageError(
        f"--tokenizer_name {folder}: {found}; a tokenizer's folder holds tokenizer.json, one .model file, "
        "or vocab.json and merges.txt"
    )


def _load_from_hub(name: str) -> PreTrainedTokenizerFast:
    """Load by name, from the cache or the network."""
    # The Hub knows `name` and `owner/name`; anything else was meant as a path.
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith((".model", ".json")):
        raise UsageError(
            f"--tokenizer_name {name}: no such file or folder; give a folder with tokenizer.json, "
            "a SentencePiece .model file, or a name on the Hub"
        )
    try:
        return _auto_tokenizer(name)
    except OSError as error:  # transformers' one type for: offline, not found, gated, not in the cache
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        state = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "the Hub did not give it"
        raise UsageError(
            f"--tokenizer_name {name}: no such folder here, and {state}; check the name, go online once, "
            "or give the path of a tokenizer"
        ) from error


def _auto_tokenizer(name: str) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    # trust_remote_code=False is the default; said here because it must not change.
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
