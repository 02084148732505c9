"""SentencePiece `.model` files as Hugging Face tokenizers with the same ids.

`LlamaTokenizer` of transformers 5 ignores the model file's settings for spaces, so a text that begins with a space gets
other ids.  Here the normalizer is built from the file's own `normalizer_spec`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

from lm_trials.console import UsageError

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

SPACE_MARK = "▁"  # U+2581, how SentencePiece writes a space inside its pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # `SentencePiece.Type` of the proto
MODEL_TYPE_BPE = 2  # `TrainerSpec.ModelType` of the proto

# A tokenizer has no limit; a model's limit is in its config.  transformers' own "no limit" is saved as
# 1000000000000000019884624838656.
MODEL_MAX_LENGTH = 1_000_000


def wrap_backend(
    backend: Tokenizer, *, bos_token: str | None, eos_token: str | None, unk_token: str | None
) -> PreTrainedTokenizerFast:
    """Wrap a `tokenizers.Tokenizer` in transformers' generic class, which loads it as it was saved.

    `add_special_tokens=True` puts BOS first, as Llama does.  There is no pad token: packed pretraining needs none, and
    one more token changes the parameter count.  (`LlamaTokenizer` would silently drop the normalizer and the
    pre-tokenizer.)
    """
    from transformers import PreTrainedTokenizerFast

    if bos_token is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A",
            pair=f"{bos_token} $A {bos_token}:1 $B:1",
            special_tokens=[(bos_token, backend.token_to_id(bos_token))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos_token,
        eos_token=eos_token,
        unk_token=unk_token,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,  # True would decode "dog ." as "dog."
    )


def convert_sentencepiece(model_file: Path) -> PreTrainedTokenizerFast:
    """Read a SentencePiece BPE model as a tokenizer with SentencePiece's ids.

    They are equal through `batch_encoder`.  A direct call of the tokenizer differs as with every Hugging Face
    tokenizer: a literal `<s>` in the text becomes the special token.

    Raises:
        UsageError: for a missing file, another file than a SentencePiece BPE model, or pieces that do not convert.

    >>> convert_sentencepiece(Path("no/such.model"))
    Traceback (most recent call last):
    lm_trials.console.UsageError: no/such.model: no such file; give the path of a SentencePiece .model file
    """
    proto = _read_proto(model_file)
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    special = [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL)]
    unk_token = proto.pieces[proto.trainer_spec.unk_id].piece

    backend = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=_merges(proto),
            unk_token=unk_token,
            fuse_unk=True,  # SentencePiece gives one id for a run of unknown characters
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    backend.normalizer = _normalizer(proto.normalizer_spec)
    backend.decoder = _decoder(proto.normalizer_spec)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])

    def token(index: int) -> str | None:
        return proto.pieces[index].piece if index >= 0 else None  # -1: the model has none

    spec = proto.trainer_spec
    return wrap_backend(backend, bos_token=token(spec.bos_id), eos_token=token(spec.eos_id), unk_token=unk_token)


def _read_proto(path: Path) -> Any:
    """Parse the file's `ModelProto`, and refuse a model whose ids would differ from SentencePiece's."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of a SentencePiece .model file")
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import, which mypy cannot see
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UsageError(f"{path} is not a SentencePiece model, or is truncated; fetch or train it again") from None
    # An empty file is a valid message without fields; a file cut after a piece lacks the specs that follow.
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise UsageError(f"{path} is an empty or truncated SentencePiece model; fetch or train it again")
    if proto.trainer_spec.model_type != MODEL_TYPE_BPE:
        kind = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type)
        raise UsageError(f"{path} is a {kind} model; only BPE converts, so train it with --model_type=bpe")
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise UsageError(
            f"{path} was trained with treat_whitespace_as_suffix, which does not convert; train without it"
        )
    # SentencePiece matches user-defined pieces before any merge, and splits unused ones again after all merges.
    odd = [piece.piece for piece in proto.pieces if piece.type in (USER_DEFINED, UNUSED)]
    if odd:
        raise UsageError(
            f"{path} has {len(odd)} user-defined or unused pieces ({', '.join(map(repr, odd[:3]))}), which do not "
            "convert; train the model without user_defined_symbols"
        )
    return proto


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Order the merges as SentencePiece applies them: by the score of their result.

    Scores count, not ids: Llama 2's runs of spaces have ids from 259 on but a score of -1e9, so they merge last.  Among
    equal scores transformers' helper puts the longest left side first, as SentencePiece does.
    """
    from transformers.convert_slow_tokenizer import generate_merges

    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    # Otherwise "<" + "s>" would be a merge, and a text could spell BOS.
    reserved = {piece.piece for piece in proto.pieces if piece.type != NORMAL}
    return generate_merges(pieces, scores, skip_tokens=reserved)


def _normalizer(spec: Any) -> normalizers.Normalizer | None:
    """Normalize texts as SentencePiece does."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    mark = SPACE_MARK if spec.escape_whitespaces else " "
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +"), ""))
        # SentencePiece strips the end after it has written the marks, so a literal mark in the text is stripped too.
        steps.append(normalizers.Replace(Regex(rf"[ {mark}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(mark))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", mark))
    return normalizers.Sequence(steps) if steps else None


def _decoder(spec: Any) -> decoders.Decoder:
    """Turn marks into spaces and bytes into characters, and remove the dummy prefix."""
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
