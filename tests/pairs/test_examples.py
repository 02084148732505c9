"""Tokenized examples: one folder for what determines their ids, with the hash of them, and errors that name the row."""

import json

import pytest

from lm_trials.console import UsageError
from lm_trials.pairs.examples import make_examples
from lm_trials.pairs.pairs import FURTHER, open_pairs, write_pairs
from lm_trials.tokens.tokenizers import load_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_data):
    tokenizer = load_tokenizer(str(tiny_data / "tok400"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def made(tmp_path):
    """Return the folder of the examples of some answers to one question; the last may have further fields."""

    def make(tokenizer, *answers, name="far", further=None):
        rows = [
            {
                "record_id": str(number),
                "messages": [{"role": "user", "content": "How far?"}, {"role": "assistant", "content": answer}],
                "num_prompt": 0,
            }
            for number, answer in enumerate(answers)
        ]
        rows[-1] |= {"further": further}
        if not (tmp_path / name).exists():
            write_pairs([("train", row) for row in rows], tmp_path / name, "conversations", {}, FURTHER)
        return make_examples(open_pairs(name, tmp_path), tmp_path / name, tokenizer, "chat", 64, "drop")

    return make


def token_ids(folder):
    return json.loads((folder / "manifest.json").read_text())["token_ids"]


def test_a_special_token_that_the_template_renders_makes_other_examples(tokenizer, made):
    tokenizer.pad_token = "<unk>"
    plain, tokenizer.chat_template = made(tokenizer, "3 km"), "{{ pad_token }}" + TEMPLATE
    padded = made(tokenizer, "3 km")
    tokenizer.pad_token = "</s>"
    other = made(tokenizer, "3 km")
    tokenizer.chat_template = TEMPLATE
    assert made(tokenizer, "3 km") == plain  # which does not render it
    assert len({plain, padded, other}) == len({token_ids(folder) for folder in (plain, padded, other)}) == 3


def test_the_hash_is_of_the_ids_whatever_the_set_is_called(tokenizer, made):
    first, again = made(tokenizer, "3 km", "4 km"), made(tokenizer, "3 km", "4 km", name="copy")
    assert token_ids(first) == token_ids(again)
    assert token_ids(made(tokenizer, "3 km4 km", name="joined")) != token_ids(first)
    assert token_ids(made(tokenizer, "4 km", "3 km", name="turned")) != token_ids(first)


def test_the_row_whose_field_is_not_rendered_is_named(tokenizer, made, tmp_path):
    further = json.dumps({"messages": [{}, {"reasoning_content": "It is near."}]})
    with pytest.raises(
        UsageError,
        match=r"the conversation '.*[?]': the chat template does not render the reasoning_content of message 2",
    ):
        made(tokenizer, "3 km", "4 km", "5 km", further=further)
    assert not list(tmp_path.rglob("*examples*"))
    thinking = "{{ message['reasoning_content'] }}{{ message['content'] }}"
    tokenizer.chat_template = TEMPLATE.replace("{{ message['content'] }}", thinking)
    assert made(tokenizer, "3 km", "4 km", "5 km", further=further).is_dir()
