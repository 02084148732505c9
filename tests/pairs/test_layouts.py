"""Layouts: what a model is trained on and what it is asked with are the same ids, whatever the texts say."""

import json
from importlib.resources import files
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from lm_trials.console import UsageError
from lm_trials.pairs.examples import choose_layout
from lm_trials.pairs.layouts import (
    STORY_CHAT_TEMPLATE,
    Example,
    as_conversation,
    chat_example,
    chat_examples,
    chat_length,
    chat_prompt,
    check_chat,
    check_conversation,
    completion_prompts,
    fitted,
    instruct_examples,
    instruct_prompts,
    text_examples,
    turn_end,
    varies,
)
from lm_trials.pairs.pairs import read_row
from lm_trials.tokens.tokenizers import load_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [
    ("Write.", "A cat sat."),
    ("Write a story.\n\nTwo lines. ", " One day,  a cat\n\nsat on it.\n"),
    ("é😀", "\nLine."),
    ("", "no prompt"),
    ("no story", ""),
]
FRAGMENTS = [
    "a",
    " cat",
    "\n",
    "\n\n",
    "  ",
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<|im_end|>",
    "</",
    "s>",
    "é",
    "😀",
]
TEXTS = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join), st.text(max_size=30))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(
    scope="module", params=["ours", *(pytest.param(name, marks=pytest.mark.end_to_end) for name in ("gpt2", "llama2"))]
)
def tokenizer(request, tiny_data):
    """Ours and two published ones: GPT-2's has one token for BOS and EOS, Llama 2's puts a space before a text."""
    if request.param == "ours":
        return load_tokenizer(str(tiny_data / "tok400"))
    published = {"gpt2": "gpt2_tokenizer", "llama2": "llama_tokenizers/llama2_32000"}
    return load_tokenizer(str(request.getfixturevalue("shared_data") / published[request.param]))


@pytest.fixture(scope="module")
def story_chat(tokenizer):
    """The same tokenizer with our chat template."""
    again = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    again.chat_template = STORY_CHAT_TEMPLATE
    return again


@pytest.fixture
def chatml(tiny_data):
    """Our tokenizer as a chat model of the Hub has one: with tokens of its own around each message."""
    tokenizer = load_tokenizer(str(tiny_data / "tok400"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def counted(tokenizer, example):
    """Return what counts in the loss, as text."""
    return tokenizer.decode([i for i, mask in zip(*example, strict=True) if mask])


def test_a_model_is_asked_as_it_was_trained(tokenizer):
    prompts, completions = zip(*PAIRS, strict=True)
    asked = instruct_prompts(tokenizer, prompts)
    trained = instruct_examples(tokenizer, prompts, completions)
    for prompt, example in zip(asked, trained, strict=True):
        assert example.input_ids[: len(prompt)] == prompt
        assert prompt[0] == example.input_ids[-1] == tokenizer.eos_token_id
        assert prompt[-1] == tokenizer.bos_token_id
        # BOS, the story and EOS are the completion.
        assert example.completion_mask == [0] * (len(prompt) - 1) + [1] * (len(example.input_ids) - len(prompt) + 1)
    assert asked[0] != asked[1]


def test_only_an_ended_story_ends_with_eos(tokenizer):
    whole, cut = instruct_examples(tokenizer, ["Write."] * 2, ["A cat sat."] * 2, ended=[True, False])
    assert cut == Example(whole.input_ids[:-1], whole.completion_mask[:-1])
    assert whole.input_ids[-1] == tokenizer.eos_token_id != cut.input_ids[-1]


def test_a_text_is_continued_as_it_was_trained(tokenizer):
    texts = [story for _, story in PAIRS]
    for asked, example in zip(completion_prompts(tokenizer, texts), text_examples(tokenizer, texts), strict=True):
        assert example.input_ids == [*asked, tokenizer.eos_token_id]
        assert example.completion_mask == [0] + [1] * (len(asked))


def test_the_story_chat_template_is_the_instruct_layout(story_chat):
    prompts, completions = zip(*PAIRS, strict=True)
    examples = instruct_examples(story_chat, prompts, completions)
    asked = instruct_prompts(story_chat, prompts)
    for number, (prompt, completion) in enumerate(PAIRS):
        assert chat_example(story_chat, [user(prompt), assistant(completion)]) == examples[number]
        assert chat_prompt(story_chat, [user(prompt)]) == asked[number]


def test_another_chat_template_is_another_layout(chatml):
    """The control of the test above."""
    (example,) = instruct_examples(chatml, ["Write."], ["A cat sat."])
    assert chat_example(chatml, [user("Write."), assistant("A cat sat.")]) != example


def test_the_eos_of_an_answer_opens_the_next_turn(story_chat):
    turns = [("Write.", "A cat sat."), ("What happens?", "It sits.")]
    first, second = instruct_examples(story_chat, *zip(*turns, strict=True))
    messages = [message for prompt, answer in turns for message in (user(prompt), assistant(answer))]
    both = chat_example(story_chat, messages)
    assert both.input_ids == first.input_ids + second.input_ids[1:]
    assert both.completion_mask == first.completion_mask + second.completion_mask[1:]
    only_second = chat_example(story_chat, messages, num_prompt=2)
    assert only_second.completion_mask == [0] * len(first.input_ids) + second.completion_mask[1:]
    asked = chat_prompt(story_chat, messages[:3])
    assert both.input_ids[: len(asked)] == asked


def test_a_system_message_stands_on_a_line_before_the_prompt(story_chat):
    with_system = [{"role": "system", "content": "Be kind."}, user("Write."), assistant("A cat.")]
    assert chat_example(story_chat, with_system) == chat_example(
        story_chat, [user("Be kind.\nWrite."), assistant("A cat.")]
    )


def test_an_unmarked_template_counts_what_follows_the_opening_of_each_answer(chatml):
    messages = [
        {"role": "system", "content": "Be kind."},
        user("Write."),
        assistant("A cat sat."),
        user("And then?"),
        assistant("It ran."),
    ]
    example = chat_example(chatml, messages)
    assert counted(chatml, example) == "A cat sat.<|im_end|> \nIt ran.<|im_end|> \n"
    assert example.input_ids == chatml.apply_chat_template(messages)["input_ids"]
    assert counted(chatml, chat_example(chatml, messages, num_prompt=3)) == "It ran.<|im_end|> \n"
    asked = chat_prompt(chatml, messages[:2])
    assert example.completion_mask[: len(asked)] == [0] * len(asked)
    assert example.completion_mask[len(asked)] == 1


def test_a_marked_template_says_itself_what_counts(chatml):
    messages = [user("Write."), assistant("A cat sat."), user("And then?"), assistant("It ran.")]
    plain = chat_example(chatml, messages)
    chatml.chat_template = MARKED_CHATML
    marked = chat_example(chatml, messages)
    assert marked.input_ids == plain.input_ids
    assert counted(chatml, marked) == "A cat sat.<|im_end|>It ran.<|im_end|>"  # not the newlines after them
    given_by_transformers = chatml.apply_chat_template(messages, return_assistant_tokens_mask=True)
    assert marked.completion_mask == given_by_transformers["assistant_masks"] != plain.completion_mask


@pytest.mark.parametrize("template", [CHATML, MARKED_CHATML, STORY_CHAT_TEMPLATE])
def test_a_text_that_spells_a_special_token_is_text(chatml, template):
    chatml.chat_template = template
    clean = [user("Write it."), assistant("A cat sat.")]
    spelled = [user("Write <|im_end|> it </s>."), assistant("A cat</s> <|im_end|>sat<s>.")]
    for token in ("</s>", "<s>", "<|im_end|>", "<|im_start|>"):
        number = chatml.convert_tokens_to_ids(token)
        count = chat_example(chatml, clean).input_ids.count(number)
        assert chat_example(chatml, spelled).input_ids.count(number) == count
        assert chat_prompt(chatml, spelled[:1]).count(number) == chat_prompt(chatml, clean[:1]).count(number)
    # What transformers does unasked: the story ends in its middle.
    unguarded = chatml.apply_chat_template(spelled)["input_ids"]
    assert unguarded.count(chatml.eos_token_id) > chat_example(chatml, spelled).input_ids.count(chatml.eos_token_id)


def test_a_template_that_renders_a_beginning_otherwise_is_refused(chatml):
    """Some templates take the thoughts out of all answers but the last."""
    last = "{{ '!' if loop.last and message['role'] == 'assistant' }}"
    chatml.chat_template = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}" + last)
    with pytest.raises(
        UsageError, match=r"renders the beginning of a conversation differently from the whole, .*another"
    ):
        chat_example(chatml, [user("Write."), assistant("A cat."), user("And?"), assistant("It ran.")])
    chatml.chat_template = CHATML.replace("assistant\n{% endif %}", "assistant: {% endif %}")
    with pytest.raises(UsageError, match="differently from the whole"):
        chat_example(chatml, [user("Write."), assistant("A cat.")])
    # As long as the whole's beginning, and the same from the last added token on.
    chatml.chat_template = "{{ 'a' if messages | length > 1 else 'b' }}" + CHATML
    with pytest.raises(UsageError, match="differently from the whole"):
        chat_example(chatml, [user("Write."), assistant("A cat.")])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("Write.")], "has no answer"),
        ([assistant("A cat."), user("Thanks.")], "begins with the assistant"),
        ([user("Write."), {"role": "tool", "content": "3"}], "does not take this conversation .no tools here."),
    ],
)
def test_a_conversation_without_a_turn_to_learn_is_refused(chatml, messages, reason):
    chatml.chat_template = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}"
    chatml.chat_template += "{% endif %}{% endfor %}" + CHATML
    with pytest.raises(UsageError, match=reason):
        chat_example(chatml, messages)
    chat_example(chatml, [user("Write."), assistant("A cat.")])


def test_only_answers_after_the_prompt_are_looked_for(chatml):
    """A prompt may begin with the assistant's greeting, in which nothing counts."""
    messages = [assistant("Hello!"), user("Write."), assistant("A cat.")]
    assert counted(chatml, chat_example(chatml, messages, num_prompt=2)) == "A cat.<|im_end|> \n"


def test_a_tokenizer_without_a_template_knows_no_conversation(tiny_data, chatml):
    with pytest.raises(UsageError, match="runs/x has no chat template and so no chat mode; use instruct"):
        check_chat(load_tokenizer(str(tiny_data / "tok400")), "runs/x")
    check_chat(chatml, "runs/x")


def test_a_model_whose_template_reads_the_clock_is_noted(chatml, capsys):
    check_chat(chatml, "runs/x")
    assert capsys.readouterr().err == ""
    chatml.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    check_chat(chatml, "runs/x")
    assert "note: the chat template of runs/x renders the date" in capsys.readouterr().err
    chatml.chat_template = "{% if tools is not none %}{{ tools | tojson }}{% endif %}" + CHATML
    check_chat(chatml, "runs/x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'].text + 'a' }}", "{{ 1 + messages[0]['content'] }}", {}]
)
def test_a_template_that_takes_no_question_is_refused_at_the_start(chatml, template):
    chatml.chat_template = template or {"rag": CHATML}
    with pytest.raises(UsageError, match="the chat template does not take this conversation"):
        check_chat(chatml, "runs/x")


def test_the_length_of_a_conversation_is_that_of_its_example(tiny_data, chatml):
    messages = [user("Write </s>."), assistant("A cat sat."), user("And then?"), assistant("It ran.")]
    assert chat_length(chatml, messages) == len(chat_example(chatml, messages).input_ids)
    bare = load_tokenizer(str(tiny_data / "tok400"))
    counted_by_ours = chat_length(bare, messages)
    assert bare.chat_template is None  # it was not given one on the way
    bare.chat_template = STORY_CHAT_TEMPLATE
    assert counted_by_ours == len(chat_example(bare, messages).input_ids) != chat_length(chatml, messages)


def test_an_example_is_kept_cut_or_dropped():
    example = Example([2, 5, 1, 6, 7, 2], [0, 0, 1, 1, 1, 1])
    assert fitted(example, 6, "drop") is example
    assert fitted(example, 6, "cut") is example
    assert fitted(example, 5, "drop") is None
    assert fitted(example, 5, "cut") == Example([2, 5, 1, 6, 7], [0, 0, 1, 1, 1])
    assert fitted(example, 2, "cut") is None  # nothing of its completion is left


def test_rows_of_pairs_and_of_conversations_become_messages():
    pair = {"prompt": "How far?", "completion": "12 km"}
    assert as_conversation(pair) == ([user("How far?"), assistant("12 km")], 1, {})
    assert as_conversation({"messages": [user("a"), assistant("b")], "num_prompt": None}) == (
        [user("a"), assistant("b")],
        0,
        {},
    )


@settings(max_examples=8, deadline=None)  # each copies the tokenizer, 0.3 s for GPT-2's
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=8, max_size=40))
def test_no_text_can_end_an_example_early(tokenizer, pairs):
    prompts, stories = zip(*pairs, strict=True)
    examples = instruct_examples(tokenizer, prompts, stories)
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for asked, example in zip(instruct_prompts(tokenizer, prompts), examples, strict=True):
        assert example.input_ids[: len(asked)] == asked
        places = [place for place, token in enumerate(example.input_ids) if token in marks]
        assert places == [0, len(asked) - 1, len(example.input_ids) - 1]
        assert example.completion_mask.index(1) == len(asked) - 1


def test_a_direct_call_of_the_tokenizer_would_end_it(tokenizer):
    """The control of the test above."""
    spelled = f"a cat{tokenizer.eos_token} sat"
    assert tokenizer.eos_token_id in tokenizer(spelled, add_special_tokens=False)["input_ids"]


@settings(max_examples=30, deadline=None)
@given(prompt=TEXTS, story=TEXTS, question=TEXTS)
def test_no_text_can_end_a_turn_early(story_chat, prompt, story, question):
    messages = [user(prompt), assistant(story), user(question)]
    asked = chat_prompt(story_chat, messages)
    bos, eos = story_chat.bos_token_id, story_chat.eos_token_id
    assert [token for token in asked if token in (bos, eos)] == [eos, bos, eos, bos]
    example = chat_example(story_chat, [*messages, assistant("Yes.")])
    assert example.input_ids[: len(asked)] == asked


ENDED = {
    CHATML: "<|im_end|>",
    MARKED_CHATML: "<|im_end|>",
    CHATML.replace("{{ message['content'] }}", "{{ message['content'] | trim }}"): "<|im_end|>",
    CHATML.replace("<|im_end|>\n", "{{ eos_token }}"): "</s>",
    CHATML.replace("<|im_end|>\n", " <|im_end|>\n{{ eos_token }}\n"): "<|im_end|>",
    STORY_CHAT_TEMPLATE: "</s>",
}
UNENDED = {
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}": "<|im_start|>",  # GLM's kind
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}": None,
}


@pytest.mark.parametrize(("template", "end"), [*ENDED.items(), *UNENDED.items()])
def test_the_end_of_an_answer_is_read_from_the_template(chatml, template, end):
    chatml.chat_template = template
    expected = None if end is None else chatml.convert_tokens_to_ids(end)
    assert turn_end(chatml) == expected
    assert turn_end(chatml, followed=False) == (expected if template in ENDED else None)
    if template in ENDED:  # what a fine-tuned model learns to end with is where generation stops
        ids, mask = chat_example(chatml, [user("a"), assistant("a cat")])
        assert [number for number, counts in zip(ids, mask, strict=True) if counts].count(expected) == 1


@pytest.mark.parametrize(("template", "notes"), [(CHATML, 0), *((template, 1) for template in UNENDED)])
def test_a_template_that_ends_no_answer_is_told_before_training(chatml, template, notes, capsys):
    chatml.chat_template = template
    assert choose_layout(SimpleNamespace(kind="pairs", name="rows"), chatml, "auto") == "chat"
    assert capsys.readouterr().err.count("ends no answer with a token") == notes


TOOLS = [{"type": "function", "function": {"name": "far", "parameters": {"type": "object", "properties": {}}}}]
CALLS = [{"type": "function", "function": {"name": "far", "arguments": {"to": "Rome"}}}]
CALLING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% if documents %}{% for document in documents %}{{ document['text'] }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}{{ ' ' ~ message['name'] if message['name'] }}\n"
    "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>{% endif %}"
    "{{ message['content'] }}{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A message that is changed, and the fields that it gets.
FIELDS = {
    "tool_calls": (1, {"tool_calls": CALLS}),
    "name": (0, {"name": "Lily"}),
    "reasoning_content": (1, {"reasoning_content": "It is far."}),
}


def written(**options):
    """Return a conversation that every template here renders whole."""
    return [user("Write."), assistant("A cat."), user("And?"), assistant("It ran.")], options


def with_field(name):
    messages, options = written()
    number, fields = FIELDS[name]
    messages[number] |= fields
    return messages, options


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_the_template_renders_is_trained_and_another_is_refused(chatml, name):
    messages, options = with_field(name)
    number, _ = FIELDS[name]
    chatml.chat_template = CALLING
    check_conversation(chatml, messages, options)
    example = chat_example(chatml, messages, options=options)
    assert example != chat_example(chatml, written()[0])
    assert json.dumps(CALLS[0]["function"]) in chatml.decode(example.input_ids) or name != "tool_calls"
    chatml.chat_template = CHATML
    with pytest.raises(UsageError, match=rf"does not render the {name} of message {number + 1} \(role"):
        check_conversation(chatml, messages, options)
    check_conversation(chatml, *written())
    chatml.chat_template = CALLING
    messages[number] |= {"weight": 0}  # a field that no template renders
    with pytest.raises(UsageError, match=f"does not render the weight of message {number + 1}"):
        check_conversation(chatml, messages, options)


@pytest.mark.parametrize("options", [{"tools": TOOLS}, {"documents": [{"text": "Rome is far."}]}])
def test_a_column_that_the_template_renders_is_trained_and_another_is_refused(chatml, options):
    chatml.chat_template = CALLING
    messages, options = written(**options)
    check_conversation(chatml, messages, options)
    assert len(chat_example(chatml, messages, options=options).input_ids) > len(
        chat_example(chatml, messages).input_ids
    )
    chatml.chat_template = CHATML
    with pytest.raises(UsageError, match=f"does not render the column {next(iter(options))}; remove it from the data"):
        check_conversation(chatml, messages, options)


@pytest.mark.parametrize("options", [{"tools": ["far"]}, {"documents": ["Rome is far."]}])
def test_tools_and_documents_that_are_no_objects_are_refused(chatml, options):
    chatml.chat_template = CALLING.replace("document['text']", "document")
    with pytest.raises(UsageError, match=r"does not take this conversation .*(JSON schema|list of dicts)"):
        chat_example(chatml, written()[0], options=options)
    chat_example(chatml, written()[0], options={name: [{"text": "Rome is far."}] for name in options})


def test_reasoning_has_the_names_of_other_libraries(chatml):
    """As in `apply_chat_template`."""
    chatml.chat_template = CALLING
    messages, options = with_field("reasoning_content")
    thinking, examples = messages[1].pop("reasoning_content"), []
    for name in ("reasoning_content", "thinking", "reasoning", "thoughts"):
        named = [messages[0], {**messages[1], name: thinking}, *messages[2:]]
        examples.append(chat_example(chatml, named, options=options))
        assert examples[-1].input_ids == chatml.apply_chat_template(named)["input_ids"]
    assert examples[0] == examples[1] == examples[2] != examples[3]


@pytest.mark.parametrize(
    ("template", "messages", "what"),
    [
        ("{% if m['role'] != 'system' %}", [{"role": "system", "content": "Be kind."}], "message 1 .role system"),
        ("{% if m['role'] != 'tool' %}", [user("a"), {"role": "tool", "content": "3"}], "message 2 .role tool"),
        ("{% if loop.last or loop.nextitem['role'] != m['role'] %}", [user("a")], "message 1 .role user"),
        ("{% if loop.revindex < 3 %}", [user("a"), assistant("b")], "message 1 .role user"),
    ],
)
def test_a_message_that_the_template_leaves_out_is_refused(chatml, template, messages, what):
    messages = [*messages, user("Write."), assistant("A cat.")]
    check_conversation(chatml, messages)
    body = CHATML.replace("message in messages", "m in messages").replace("message[", "m[")
    chatml.chat_template = body.replace("<|im_start|>{{ m", f"{template}<|im_start|>{{{{ m").replace(
        "{% endfor %}", "{% endif %}{% endfor %}"
    )
    with pytest.raises(UsageError, match=f"does not render the content of {what}"):
        check_conversation(chatml, messages)
    check_conversation(chatml, messages[-2:])  # the rest is rendered


CLOCKS = {
    "date": "{{ strftime_now('%d %b %Y') }}",
    "hour": "{{ strftime_now('%p') }}",
    "weekday": "{% set today = strftime_now('%A') %}{{ today }}",
    "guarded": "{% if not day is defined %}{% set day = strftime_now('%Y') %}{% endif %}{{ day }}",
    "random": "{{ ['a', 'b'] | random }}",
    "lipsum": "{{ lipsum(1, False, 5, 9) }}",
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_a_template_that_renders_the_clock_or_chance_is_refused(chatml, clock):
    messages, _ = written()
    chatml.chat_template = clock + CHATML
    with pytest.raises(UsageError, match=r"the date or a random value, .* --chat_template_path"):
        check_conversation(chatml, messages)
    assert varies(chatml, messages)
    # Only where it is rendered: this one is rendered for tools.
    chatml.chat_template = f"{{% if tools %}}{clock}{{{{ tools | tojson }}}}{{% endif %}}{CHATML}"
    check_conversation(chatml, messages)
    with pytest.raises(UsageError, match="the date or a random value"):
        check_conversation(chatml, *written(tools=TOOLS))


@pytest.mark.parametrize("fixed", ["26 Jul 2024", "{{ strftime_now('today') }}", "{{ range(3) | last }}", ""])
def test_a_template_with_a_fixed_date_is_taken(chatml, fixed):
    chatml.chat_template = fixed + CHATML
    check_conversation(chatml, *written())
    assert not varies(chatml, written()[0])


PUBLISHED = sorted(files("trl").joinpath("chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates_are_taken_or_refused_in_one_line(tiny_data, path):
    tokenizer = load_tokenizer(str(tiny_data / "tok400"))
    tokenizer.chat_template = path.read_text()
    messages, _ = written()
    result = {"role": "tool", "name": "far", "tool_call_id": "1", "content": "3 km"}
    calling = [user("How far?"), {"role": "assistant", "tool_calls": CALLS}, result, assistant("3 km.")]
    thinking = [user("How far?"), {**assistant("3 km."), "reasoning_content": "It is near."}]
    outcomes = []
    for conversation, options in ((messages[:2], {}), (messages, {}), (calling, {"tools": TOOLS}), (thinking, {})):
        try:
            check_conversation(tokenizer, conversation, options)
            chat_example(tokenizer, conversation, options=options)
            outcomes.append("")
        except UsageError as error:
            outcomes.append(str(error))
    reads_the_clock = "strftime_now" in tokenizer.chat_template
    assert ("the date or a random value" in outcomes[0]) == reads_the_clock
    if path.stem == "qwen2_5":  # it has tools, no reasoning and no date
        assert outcomes[:3] == [""] * 3
        assert "does not render the reasoning_content of message 2" in outcomes[3]


def test_several_templates_of_one_tokenizer_are_each_used_in_its_place(tiny_data, chatml):
    chatml.chat_template = {"default": CHATML, "tool_use": CALLING}
    messages, options = written(tools=TOOLS)
    check_conversation(chatml, messages, options)
    called, plain = chat_example(chatml, messages, options=options), chat_example(chatml, messages)
    assert chat_length(chatml, messages) == len(plain.input_ids) < len(called.input_ids)
    chatml.chat_template = CHATML
    assert plain == chat_example(chatml, messages)


def test_further_fields_of_a_row_come_back_with_its_messages():
    messages, _ = with_field("tool_calls")
    del messages[1]["content"]
    kind, row = read_row({"messages": messages, "tools": TOOLS})
    assert kind == "conversations"
    assert as_conversation(row) == (messages, 0, {"tools": TOOLS})
    assert "further" not in read_row({"messages": written()[0]})[1]


SPLITTING = CHATML.replace("message['content']", "message['content'].split('t') | join('t')")  # parts the marks
CALLED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ '\n' if m['role'] == 'user' }}{% endfor %}"
PREFIX_DEPENDENT = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}{{ '!' if loop.last }}")
TEMPLATES = [STORY_CHAT_TEMPLATE, CHATML, MARKED_CHATML, *ENDED, *UNENDED, SPLITTING, CALLED, PREFIX_DEPENDENT]
TOKENS = {
    "plain": {},
    "strips to the right": {"rstrip": True},
    "strips to the left": {"lstrip": True},
    "single words": {"single_word": True},
    "normalized": {"normalized": True, "special": False},
}


def one_at_a_time(tokenizer, messages, num_prompt=0):
    """Return the example of a conversation from texts that transformers renders and encodes one by one; None: refused.

    Without margins of `{% generation %}`.
    """

    def ids(some, **how):
        return tokenizer.apply_chat_template(some, **how, sanitize_control_tokens=True)["input_ids"]

    whole = ids(messages)
    mask = [0] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and number >= num_prompt:
            asked = ids(messages[:number], add_generation_prompt=True)
            through = ids(messages[: number + 1])
            if whole[: len(asked)] != asked or whole[: len(through)] != through:
                return None
            mask[len(asked) : len(through)] = [1] * (len(through) - len(asked))
    return Example(whole, mask) if any(mask) else None


@pytest.fixture(scope="module", params=TOKENS)
def several(request, tokenizer):
    """The tokenizer with added tokens around each message, some of which read their neighbours."""
    again = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    how = {"special": True, **TOKENS[request.param]}
    again.add_tokens([AddedToken(f"<|im_{side}|>", **how) for side in ("start", "end")])
    return again


@settings(max_examples=12, deadline=None)
@given(
    template=st.sampled_from(TEMPLATES),
    turns=st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 2)), min_size=1, max_size=4),
)
def test_many_conversations_at_once_have_the_ids_of_each_by_itself(several, template, turns):
    """Also where an added token reads its neighbours, or a message spells one."""
    several.chat_template = template
    said = [message for asked, answer, _ in turns for message in (user(asked), assistant(answer))]
    conversations = [(said[: 2 * number + 2], first, {}) for number, (_, _, first) in enumerate(turns)]
    expected = [one_at_a_time(several, messages, first) for messages, first, _ in conversations]
    if None in expected:
        with pytest.raises(UsageError, match=r"differently from the whole|no answer"):
            chat_examples(several, conversations)
        return
    examples = chat_examples(several, conversations)
    assert [example.input_ids for example in examples] == [example.input_ids for example in expected]
    assert examples == [chat_examples(several, [each])[0] for each in conversations]
    if "generation" not in template.split("add_")[0]:
        assert examples == expected


def test_the_tail_of_a_prompt_is_all_that_is_encoded_again(chatml, monkeypatch):
    """The control of the test above: most beginnings end as many others, in few tokens."""
    conversations = [([user(f"Write {n}."), assistant(f"A cat sat {n} times.")], 0, {}) for n in range(50)]
    backend = Mock(wraps=chatml.backend_tokenizer)
    monkeypatch.setattr(type(chatml), "backend_tokenizer", backend)
    chat_examples(chatml, conversations)
    encoded = [text for call in backend.encode_batch_fast.call_args_list for text in call.args[0]]
    assert len(encoded) == 50 + len({"<|im_start|>assistant\n", "<|im_end|>\n"})


def test_what_a_tokenizer_was_used_for_before_changes_no_conversation(chatml):
    messages, _ = written()
    example = chat_example(chatml, messages)
    backend = chatml.backend_tokenizer
    backend.enable_truncation(4)
    backend.enable_padding(length=999)
    backend.encode_special_tokens = True
    (text,) = backend.encode_batch_fast([chatml.apply_chat_template(messages, tokenize=False)])
    assert text.ids[:4] != example.input_ids[:4]
    assert len(text.ids) == 999
    assert chat_example(chatml, messages) == example
