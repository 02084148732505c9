"""Conversations of several turns: what the model is given each time, what is forgotten, and how they end."""

import io
import sys

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.evaluation import generate
from lm_trials.evaluation.conversation import Conversation, converse
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.evaluation.streamers import StoryStreamer
from lm_trials.pairs.layouts import STORY_CHAT_TEMPLATE, chat_example

TOKENIZER = tiny_tokenizer()
TOKENIZER.chat_template = STORY_CHAT_TEMPLATE


class Listening(Storyteller):
    """A storyteller that notes what it was given."""

    def write(self, prompts, *more, **options):
        given.append(prompts[0])
        return super().write(prompts, *more, **options)


given = []
LINE = "the quick brown fox jumps over the lazy dog!"


@pytest.fixture
def conversation():
    given.clear()
    return talk()


def talk(positions=400, max_new_tokens=6, seed=0):
    teller = Listening("tiny", tiny_model("llama", vocab_size=330, positions=positions), TOKENIZER, "chat")
    return Conversation(teller, Sampling(temperature=1.0, seed=seed), max_new_tokens, io.StringIO())


def test_each_turn_sees_all_before_it_as_in_training(conversation):
    answers = converse(conversation, ["a cat", "the dog", "a fox"])
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["user", "assistant"] * 3
    assert [m["content"] for m in conversation.messages[1::2]] == answers
    whole = chat_example(TOKENIZER, conversation.messages).input_ids
    assert [whole[: len(prompt)] for prompt in given] == given
    assert len(given[0]) < len(given[1]) < len(given[2])
    assert " ".join(" ".join(answers).split()) == " ".join(conversation.out.getvalue().split())


def test_a_conversation_follows_its_seed_and_what_was_said(conversation):
    first = converse(conversation, ["a cat", "the dog"])
    assert converse(talk(), ["a cat", "the dog"]) == first
    assert converse(talk(seed=1), ["a cat", "the dog"]) != first
    long, other = (converse(talk(max_new_tokens=40), [said, "the dog"])[1] for said in ("a cat", "quick brown fox"))
    assert long != other


TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}END{% endfor %}"


@pytest.mark.parametrize(
    ("written", "end"), [("<|end|>\n", "<|end|>"), ("", "<|start|>"), ("{{ eos_token }}", "</s>"), (" </a>", "</a>")]
)
def test_an_answer_ends_where_the_template_ends_it(written, end):
    """Also where that is not EOS: such an end was written again and again, up to the limit."""
    tokenizer = tiny_tokenizer(320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>", "</a>"]})
    tokenizer.chat_template = TURNS.replace("END", written)
    teller = Storyteller("tiny", tiny_model("llama", vocab_size=330, positions=400), tokenizer, "chat")
    greedy = Sampling(temperature=0.0)
    (ids,) = teller.write([teller.conversation([{"role": "user", "content": "a cat"}])], ["x"], 20, greedy)
    with torch.no_grad():  # after the third token, the end is likelier than anything
        teller.model.lm_head.weight[tokenizer.convert_tokens_to_ids(end)] = 10 * teller.model.lm_head.weight[ids[2]]
    shown = io.StringIO()
    (answer,) = converse(Conversation(teller, greedy, 20, shown), ["a cat"])
    assert len(ids) == 20
    assert tokenizer.decode(ids).strip().startswith(answer)
    assert end not in answer + shown.getvalue()
    assert len(answer) < len(tokenizer.decode(ids).strip())


@pytest.mark.parametrize(("thoughts", "asked"), [("<think>{{ m.reasoning_content }}</think>", "A cat."), ("", None)])
def test_thoughts_before_an_answer_are_those_of_the_template(thoughts, asked, monkeypatch):
    """As text they would be sent back beside the template's own, and its line breaks would be others."""
    tokenizer, said = tiny_tokenizer(), "<think>It sat.</think>A cat."
    tokenizer.chat_template = TURNS.replace("{{ m['content'] }}", f"{thoughts}{{{{ m.content }}}}")
    teller = Storyteller("tiny", tiny_model("llama", vocab_size=330, positions=400), tokenizer, "chat")
    ids = tokenizer.encode(said, add_special_tokens=False)
    monkeypatch.setattr(Storyteller, "write", lambda *_, **__: [ids])
    conversation = Conversation(teller, Sampling(), 20, io.StringIO())
    assert conversation.answer("a cat") == said
    assert conversation.messages[-1]["content"] == (asked or said)
    assert tokenizer.decode(teller.conversation(conversation.messages)).count("It sat.") == 1


def test_an_empty_line_ends_it_and_new_begins_anew(conversation, capsys):
    answers = converse(conversation, ["a cat", "/new", "a cat", "", "not said"])
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert given[0] == given[1]
    assert len(conversation.messages) == 2
    assert capsys.readouterr().err == "(new conversation)\n"


def test_the_oldest_turns_are_forgotten_where_it_no_longer_fits_and_that_is_said_once(capsys):
    given.clear()
    short = talk(positions=64, max_new_tokens=6)
    converse(short, ["a quick cat", *[LINE] * 7])
    assert max(map(len, given)) + 6 <= 64
    assert len(short.messages) < 16
    said = ("a quick cat", LINE)  # a turn is forgotten with its answer: none begins with an answer
    assert all(TOKENIZER.decode(prompt[1:]).strip().startswith(said) for prompt in given)
    assert "a quick cat" not in [message["content"] for message in short.messages]
    assert capsys.readouterr().err.count("the oldest turns are dropped") == 1
    given.clear()
    long = talk(positions=400, max_new_tokens=6)
    converse(long, ["a quick cat", *["the lazy dog"] * 7])
    assert len(long.messages) == 16
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("max_new_tokens", "kept"), [(None, False), (1, True), (30, False)])
def test_room_is_kept_for_an_answer(max_new_tokens, kept):
    """Of a turn that would fit with some tokens to spare: a quarter of the positions, or what is asked for."""
    given.clear()
    short = talk(positions=64, max_new_tokens=max_new_tokens)
    said, now = {"role": "user", "content": LINE}, {"role": "user", "content": LINE}
    short.messages = [said, {"role": "assistant", "content": "a quick brown cat sat on"}]
    whole, alone = (short.teller.conversation([*before, now]) for before in (short.messages, []))
    assert 48 < len(whole) < 60
    short.answer(LINE)
    assert given == [whole if kept else alone]


def test_what_is_too_long_to_say_is_not_said_and_the_conversation_goes_on(capsys):
    given.clear()
    short = talk(positions=64)
    answers = converse(short, ["a cat", "fox " * 80, "the dog"])
    assert len(answers) == 2
    assert [m["content"] for m in short.messages if m["role"] == "user"][-1] == "the dog"
    assert (
        "of the 64 positions of tiny and leaves no room for an answer; send a shorter message"
        in capsys.readouterr().err
    )
    with pytest.raises(UsageError, match="leaves no room"):
        talk(positions=64).answer("fox " * 80)


def test_ctrl_c_ends_an_answer_and_not_the_conversation(conversation, monkeypatch, capsys):
    (whole,) = converse(talk(), ["a cat"])
    shown = StoryStreamer.put

    def put(self, value):
        shown(self, value)
        if len(self.written) == 2 and not conversation.messages:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoryStreamer, "put", put)
    first, second = converse(conversation, ["a cat", "the dog"])
    assert whole.startswith(first)
    assert len(first) < len(whole)
    assert second
    assert conversation.messages[1] == {"role": "assistant", "content": first}
    assert capsys.readouterr().err == "(stopped)\n"


@pytest.mark.parametrize("typed", ["a cat\nthe dog\n", "a cat\nthe dog\n\nmore\n"])
def test_lines_come_through_a_pipe(typed, tmp_path, monkeypatch, capsys):
    TOKENIZER.save_pretrained(tmp_path)
    tiny_model("llama", vocab_size=330, positions=128).save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    answers = generate.main(["--model", str(tmp_path), "--mode", "chat", "--max_new_tokens", "5"])
    captured = capsys.readouterr()
    assert len(answers) == 2
    assert " ".join(" ".join(answers).split()) in " ".join(captured.out.split())
    assert f"conversation with {tmp_path}: an empty line or Ctrl-D ends it, /new starts a new one" in captured.err


def test_a_prompt_is_answered_once(tmp_path, monkeypatch):
    TOKENIZER.save_pretrained(tmp_path)
    tiny_model("llama", vocab_size=330, positions=128).save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    flags = ["--model", str(tmp_path), "--mode", "chat", "--max_new_tokens", "5", "--prompt", "a cat"]
    assert len(generate.main(flags)) == 1
    assert len(generate.main([*flags, "--num_samples", "2"])) == 2
