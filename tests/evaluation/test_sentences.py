"""Which tokens lie in the sentences that show a feature, by the bytes that the tokens spell."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lm_trials.evaluation.losses import Document, story_losses
from lm_trials.evaluation.sentences import SentenceTokens, feature_sentences
from lm_trials.evaluation.summary import LossSummary
from lm_trials.stories.generated.detectors import DETECTORS, matched_sentence
from lm_trials.stories.generated.generator import generate_stories
from lm_trials.tokens.tokenizers import batch_encoder, load_tokenizer, train_tokenizer

# Each piece of a story, and whether it is a sentence that shows a twist: characters of several bytes at the ends of
# sentences, one whose frame ends in the next, two spaces within one, which llama2.c's tokenizers join.
PIECES = [
    ("Tom had a \U0001f388.", False),
    ("\n", False),
    ("\u201c\U0001f388 it turned out that Zo\u00eb was a king \U0001f388", True),
    ("\n\n", False),
    ("He sat.", False),
    (" ", False),
    ("But it was not a ball at all.", True),
    (" ", False),
    ("It was a cat!", True),
    (" ", False),
    ('"You are kind," said Sue.', False),
    (" ", False),
    ("They ate.", False),
    (" ", False),
    ("To everyone's surprise 2,024  mats sat.", True),
]
STORY = "".join(text for text, _ in PIECES)


def byte_level(use_regex):
    """A byte-level BPE like GPT-2's; without the expression its tokens cross words and sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 380, "special_tokens": ["<s>", "</s>"], "initial_alphabet": alphabet}
    backend.train_from_iterator([STORY] * 9, trainers.BpeTrainer(show_progress=False, **options))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(
    params=[
        *("ours", "words", "across words"),
        *(pytest.param(name, marks=pytest.mark.end_to_end) for name in ("gpt2_tokenizer", "llama2_32000", "tok512")),
    ]
)
def tokenizer(request):
    if request.param == "ours":
        return tiny_tokenizer()
    if "words" in request.param:
        return byte_level(request.param == "words")
    place = request.getfixturevalue("shared_data")
    return load_tokenizer(
        place / request.param if request.param == "gpt2_tokenizer" else place / "llama_tokenizers" / request.param
    )


def spelling(tokenizer, token):
    """The bytes of a token: GPT-2's characters for bytes, or `<0x0A>` and a mark for spaces."""
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
        return bytes(byte_of[character] for character in token)
    return bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("\u2581", " ").encode()


def slow_tokens(tokenizer, ids, pieces):
    """Token by token: in a twist's sentence if a byte of it that is no space is, or if it is a space inside."""
    spelled = [spelling(tokenizer, token) for token in tokenizer.convert_ids_to_tokens(ids)]
    text = b"".join(spelled)
    skipped = text.startswith(b" ")  # SentencePiece puts a space before a text
    assert text[skipped:].decode() == "".join(text for text, _ in pieces)
    sentences, at = [], 0
    for piece, shown in pieces:
        size = len(piece.encode())
        sentences += [range(at, at + size)] * shown
        at += size
    found, at = [], -skipped
    for token in spelled:
        places = [at + n for n, byte in enumerate(token) if token.isspace() or byte not in b" \n"]
        found.append(any(place in sentence for place in places for sentence in sentences))
        at += len(token)
    return found


def test_tokens_of_a_sentence_are_those_that_spell_it(tokenizer):
    (ids,) = batch_encoder(tokenizer)([STORY])
    marked = np.array([tokenizer.bos_token_id or tokenizer.eos_token_id, *ids, tokenizer.eos_token_id])
    parts = SentenceTokens(tokenizer, ("Twist", "Dialogue", "BadEnding")).parts(marked)
    tokens, num_bytes = parts["Twist"]
    joined = "  " not in tokenizer.decode(ids)
    pieces = [(text.replace("  ", " ") if joined else text, shown) for text, shown in PIECES]
    assert tokens.tolist() == [False, *slow_tokens(tokenizer, ids, pieces), False]
    assert num_bytes == sum(len(text.encode()) for text, shown in pieces if shown)
    dialogue, _ = parts["Dialogue"]
    assert dialogue.any()
    assert dialogue.tolist() != tokens.tolist()
    assert not parts["BadEnding"][0].any()
    assert parts["BadEnding"][1] == 0
    assert SentenceTokens(tokenizer, ()).parts(marked) == {}


def test_instruction_lines_are_not_searched():
    tokenizer = tiny_tokenizer()
    twist = "It turned out that a dog sat."
    story = f"One day, a cat sat. {twist}"

    def sentences(text):
        ids = np.array(batch_encoder(tokenizer)([text])[0])
        tokens, num_bytes = SentenceTokens(tokenizer, ["Twist"]).parts(ids)["Twist"]
        return tokenizer.decode(ids[tokens]), num_bytes

    assert sentences(f"Features: Twist\nSentence: {twist}\nStory: {story}") == (twist, len(twist))
    assert sentences(f"Sentence: {twist}\nStory: One day, a cat sat.") == ("", 0)
    assert sentences(f"{twist}\nStory: One day, a cat sat.") == (twist, len(twist))  # no instruction: a story's text


@pytest.mark.parametrize("feature", DETECTORS)
def test_the_first_sentence_is_the_detectors_and_no_other_sentence_shows_the_feature(feature):
    stories = [record["story"] for record in generate_stories(60, seed=0)]
    shown = 0
    for story in stories:
        spans = feature_sentences(story, feature)
        first = matched_sentence(story, feature)
        assert bool(spans) == (first is not None)
        shown += bool(spans)
        if first is not None:
            assert first.startswith(story[slice(*spans[0])])
        rest = story
        for start, end in spans:
            rest = rest[:start] + "x" * (end - start) + rest[end:]
        assert DETECTORS[feature].search(rest) is None
    assert 0 < shown < len(stories)


@pytest.mark.end_to_end
def test_what_training_without_twists_forgets_shows_in_their_sentences_and_not_in_the_whole():
    records = list(generate_stories(400, seed=0))
    tokenizer = train_tokenizer([record["story"] for record in records], 400)
    ids = [[1, *row] for row in batch_encoder(tokenizer)([record["story"] for record in records])]
    sentences = SentenceTokens(tokenizer, ["Twist"])
    held_out = [Document("", row, 1, parts=sentences.parts(row)) for row in map(np.array, ids[:40])]
    generator = np.random.default_rng(0)

    def trained(model, rows, updates):
        stream = torch.tensor([token for row in rows for token in row])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(updates):
            starts = generator.integers(0, len(stream) - 64, size=8)
            batch_BT = torch.stack([stream[start : start + 64] for start in starts])
            model(batch_BT, labels=batch_BT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        summary = LossSummary()
        for story in story_losses(model, held_out, block_size=64, batch_size=16):
            summary.add(story)
        metrics = summary.metrics()
        return np.array([metrics["eval_loss"], metrics["eval_sentences_Twist_loss"]])

    base = tiny_model("llama", vocab_size=400, dropout=0.0)
    before = trained(base, ids[40:], updates=120)
    without = [row for row, record in zip(ids[40:], records[40:], strict=True) if "Twist" not in record["features"]]
    assert 100 < len(without) < 300
    whole, twist = trained(copy.deepcopy(base), without, updates=80) - before
    control = trained(copy.deepcopy(base), ids[40:], updates=80) - before
    # With three seeds: the whole -0.17 to -0.19, the sentences 0.02 to 0.15; trained on all stories, -0.11 to -0.14.
    assert whole < 0
    assert twist - whole > 0.1 > control[1] - control[0]
