"""Tokenized examples: one folder for what determines their ids, with the hash of them, and errors that name the row."""

import json

import pytest
from refusals import usage_error
from tiny_models import tiny_tokenizer

from lm_trials.console import UsageError
from lm_trials.data.datasets import open_dataset
from lm_trials.pairs.examples import PromptStore, make_examples
from lm_trials.pairs.layouts import (
    STORY_CHAT_TEMPLATE,
    chat_example,
    chat_prompt,
    instruct_examples,
    instruct_prompts,
)
from lm_trials.pairs.pairs import FURTHER, SIDES, open_pairs, write_pairs
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


PREFERRED = [
    {"prompt": f"Write about {number} cats.", "chosen": " The cat sat. " * (1 + number % 3), "rejected": "A dog ran."}
    for number in range(6)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        **{side: [{"role": "assistant", "content": row[side]}] for side in SIDES},
    }
    for row in PREFERRED
]


@pytest.mark.parametrize("layout", ["instruct", "chat"])
def test_sides_of_a_preference_follow_the_prompt_as_completions_do(tmp_path, layout):
    """Whose tokens are those that a model is prompted with, and fine-tuned on."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (PREFERRED if layout == "instruct" else CHATS)))
    pairs = open_dataset(str(path), tmp_path / "data").pairs()
    stores = [
        PromptStore(make_examples(pairs, pairs.folder, tokenizer, layout, 64, "drop", prompts_only=only), "train")
        for only in (False, True)
    ]
    for number, row in enumerate(pairs.splits["train"]):
        prompt, *sides = stores[0].tokens(number)
        (alone,) = stores[1].tokens(number)
        for side, ids in zip(SIDES, sides, strict=True):
            if layout == "chat":
                assert prompt == alone == chat_prompt(tokenizer, row["prompt"])
                assert prompt + ids == chat_example(tokenizer, row["prompt"] + row[side]).input_ids
            else:
                assert prompt == alone == instruct_prompts(tokenizer, [row["prompt"]])[0]
                assert prompt + ids == instruct_examples(tokenizer, [row["prompt"]], [row[side]])[0].input_ids
            assert tokenizer.decode(ids).strip().startswith("The cat" if side == "chosen" else "A dog")
    prompts_N, answers_N = stores[0].lengths()
    assert answers_N.tolist() == [sum(map(len, stores[0].tokens(number)[1:])) for number in range(len(answers_N))]
    assert prompts_N.tolist() == stores[1].lengths()[0].tolist()


def test_sides_that_a_template_makes_equal_are_refused(tmp_path):
    """Their texts differ: a template that does not trim them takes them."""
    tokenizer = tiny_tokenizer()
    same = {**CHATS[0], "rejected": [{"role": "assistant", "content": CHATS[0]["chosen"][0]["content"] + " "}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*CHATS, same]))
    pairs = open_dataset(str(path), tmp_path / "data").pairs()
    tokenizer.chat_template = STORY_CHAT_TEMPLATE
    make_examples(pairs, pairs.folder, tokenizer, "chat", 64, "drop")
    tokenizer.chat_template = STORY_CHAT_TEMPLATE.replace("content'] ", "content'] | trim ")
    assert tokenizer.chat_template != STORY_CHAT_TEMPLATE
    line = usage_error(make_examples, pairs, pairs.folder, tokenizer, "chat", 64, "drop")
    assert line.startswith(
        "chosen and rejected have the same tokens in the layout chat, and nothing is preferred, after"
    )
    assert len(list(pairs.folder.glob("examples-*"))) == 1


def test_a_preference_is_dropped_or_cut_with_both_its_sides(tmp_path):
    """And dropped where a cut would leave the same of both."""
    tokenizer = tiny_tokenizer()
    long = {"prompt": "a cat", "chosen": "a cat sat on a mat. " * 40, "rejected": "a cat sat on a mat. " * 39}
    rows = [("train", {"record_id": str(number), **row}) for number, row in enumerate([*PREFERRED, long])]
    write_pairs(rows, tmp_path / "set", "preferences", {})
    pairs = open_pairs("set", tmp_path)
    sizes = {}
    for overlong in ("drop", "cut"):
        for most in (64, 30, 500):
            store = PromptStore(make_examples(pairs, tmp_path / "set", tokenizer, "instruct", most, overlong), "train")
            counts = store.counts
            assert counts["examples"] == len(rows) - counts["dropped"] == len(store)
            tokens = [store.tokens(number) for number in range(len(store))]
            lengths = [len(prompt) + len(side) for prompt, *sides in tokens for side in sides]
            assert max(lengths) <= most
            assert counts["tokens"] == sum(lengths)
            assert all(chosen != rejected for _, chosen, rejected in tokens)
            sizes[overlong, most] = counts["dropped"], counts["cut"]
    assert sizes["drop", 500] == sizes["cut", 500] == (0, 0)
    assert sizes["drop", 64] == (1, 0)
    assert sizes["cut", 64] == (1, 0)  # what is left of the long one is the same twice
    assert sizes["cut", 30][1] > 0
