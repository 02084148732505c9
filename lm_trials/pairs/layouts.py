"""Layouts: how a prompt and its completion become tokens; one place for training and inference.

    instruct    [EOS] prompt [BOS] completion [EOS]     story-tellers
    chat        the tokenizer's own chat template       chat models, or `STORY_CHAT_TEMPLATE`
    text        [BOS] text [EOS]                        a text without a prompt

The published instruct story-teller was trained on `prompt [BOS] story [EOS]` but prompted with `[BOS] prompt`.  The
first token of an example counts in no loss; BOS counts as the first token of the completion, as published.  A
tokenizer without BOS (GPT-2's) uses its EOS instead.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from lm_trials.console import UsageError, note
from lm_trials.tokens.stores import Separator, document_marks, opening_of
from lm_trials.tokens.tokenizers import batch_encoder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Layout = Literal["instruct", "chat", "text"]
Message = Mapping[str, Any]
Options = Mapping[str, Any]
"""Columns that a chat template can render beside the messages: `tools`, `documents`."""
NO_OPTIONS: Options = {}
Conversation = tuple[Sequence[Message], int, Options]
"""Messages, how many of them are the prompt, and options."""

STORY_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ (bos_token or eos_token) + message['content'] + eos_token }}{%- endgeneration -%}"
    "{%- else -%}"
    "{%- if loop.first -%}{{ eos_token }}"
    "{%- elif messages[loop.index0 - 1]['role'] != 'assistant' -%}{{ '\\n' }}{%- endif -%}"
    "{{ message['content'] }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ bos_token or eos_token }}{%- endif -%}"
)
"""The instruct layout as a chat template: one turn is that layout, and the EOS of an answer begins the next turn."""

_GENERATION = re.compile(r"\{%-?\s*generation\b")


class Example(NamedTuple):
    """A tokenized example: (n,) ids, and an (n,) mask, 1 for tokens of the completion and 0 for those of the prompt."""

    input_ids: list[int]
    completion_mask: list[int]


def instruct_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return `[EOS] prompt [BOS]` for each prompt, to be continued by an instructed model.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["Write. One day, a cat sat on a mat.\\n"] * 9, vocab_size=330)
    >>> (prompt,) = instruct_prompts(tokenizer, ["Write."])
    >>> (example,) = instruct_examples(tokenizer, ["Write."], ["a cat"])
    >>> example.input_ids[: len(prompt)] == prompt, tokenizer.convert_ids_to_tokens(example.input_ids)[-4:]
    (True, ['<s>', '▁a', '▁cat', '</s>'])
    """
    bos, eos = document_marks(tokenizer, append_eos=True)
    return [_asked(bos, ids, eos) for ids in batch_encoder(tokenizer)(list(prompts))]


def instruct_examples(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    ended: Sequence[bool] | None = None,
) -> list[Example]:
    """Return `[EOS] prompt [BOS] completion [EOS]` for each pair; without the last EOS where `ended` is False."""
    bos, eos = document_marks(tokenizer, append_eos=True)
    # One call for both: the encoder copies the tokenizer, which takes 0.3 s for GPT-2's.
    encoded = batch_encoder(tokenizer)([*prompts, *completions])
    examples = []
    for number, (ids, body) in enumerate(zip(encoded[: len(prompts)], encoded[len(prompts) :], strict=True)):
        asked = _asked(bos, ids, eos)
        answer = body + (eos if ended is None or ended[number] else [])
        examples.append(Example(asked + answer, [0] * (len(asked) - len(bos)) + [1] * (len(bos) + len(answer))))
    return examples


def _asked(bos: list[int], ids: list[int], eos: list[int]) -> list[int]:
    """Return the tokens before a completion, in training and in inference."""
    return [*eos, *ids, *bos]


def completion_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], separator: Separator = "bos"
) -> list[list[int]]:
    """Return `[BOS] text` for each text that is to be continued; `separator` as in pretraining."""
    bos = opening_of(tokenizer, separator)
    return [[*bos, *ids] for ids in batch_encoder(tokenizer)(list(texts))]


def text_examples(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Example]:
    """Return `[BOS] text [EOS]` for each text; all but the first token are predicted and count.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=330)
    >>> text_examples(tokenizer, ["a cat"])[0].completion_mask
    [0, 1, 1, 1]
    """
    bos, eos = document_marks(tokenizer, append_eos=True)
    bodies = batch_encoder(tokenizer)(list(texts))
    return [Example([*bos, *body, *eos], [0] * len(bos) + [1] * (len(body) + 1)) for body in bodies]


def check_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: Options = NO_OPTIONS
) -> None:
    """Refuse a conversation if the chat template leaves out a part of it, or renders it differently the next time.

    Raises:
        UsageError: naming the message, field or option that changes no token, or the clock.
    """
    whole = _applied(tokenizer, messages, **options)

    def check(what: str, messages: Sequence[Message], options: Options) -> None:
        try:
            same = _applied(tokenizer, messages, **options) == whole
        except UsageError:  # the template cannot do without it
            return
        if same:
            raise UsageError(
                f"the chat template does not render {what}; remove it from the data, or use a template that renders it "
                "(lm-trials tune --chat_template_path)"
            )

    for number, message in enumerate(messages):
        # A tool's message repeats the name and the id of its call, which only some templates render again.
        for field in message.keys() - ({"role", "name", "tool_call_id"} if message["role"] == "tool" else {"role"}):
            other = {name: message[name] for name in message if name != field}
            if field == "content":
                other["content"] = f"{message['content']}x"
            what = f"the {field} of message {number + 1} (role {message['role']})"
            check(what, [*messages[:number], other, *messages[number + 1 :]], options)
    for name in options:
        check(f"the column {name}", messages, {other: options[other] for other in options if other != name})
    if varies(tokenizer, messages, options):
        raise UsageError(
            "the chat template renders the date or a random value, so each start would train on other tokens; write a "
            "fixed value into the template and give its file with lm-trials tune --chat_template_path"
        )


def varies(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: Options = NO_OPTIONS) -> bool:
    """Whether a chat template renders a conversation differently at other times: by the clock or a random value."""
    render = _renderer(tokenizer, tokenizer.get_chat_template(tools=options.get("tools")), options)
    # A random choice of two is missed once in 32,768 times.
    times = [datetime(2001 + n, 1 + n % 12, 1 + n, n, n, n) for n in range(16)]
    return len({render(messages=messages, strftime_now=time.strftime) for time in times}) > 1


def check_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise a UsageError if the model `name` has no chat template or one that takes no question; note a clock in it."""
    if not tokenizer.chat_template:
        raise UsageError(
            f"{name} has no chat template and so no chat mode; use instruct or completion, or fine-tune it with "
            "lm-trials tune, which adds a template"
        )
    check_template(tokenizer, None, f"the chat template of {name}")
    question: list[Message] = [{"role": "user", "content": "a"}]
    chat_prompt(tokenizer, question)  # a UsageError for a template that does not take it
    if varies(tokenizer, question):
        note(
            f"note: the chat template of {name} renders the date or a random value, so another start may give other "
            "answers; to avoid that, write a fixed value into the template"
        )


def check_template(tokenizer: PreTrainedTokenizerBase, template: str | None, name: str) -> None:
    """Check the syntax of a chat template, by default the tokenizer's own; a UsageError names it and the line."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        template = template or tokenizer.get_chat_template()
        render_jinja_template([[]], chat_template=template)
    except TemplateSyntaxError as error:
        raise UsageError(f"{name} is not a template ({error.message}, line {error.lineno}); correct it") from None
    except Exception:  # the syntax is valid; many templates refuse a conversation without messages
        return


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of a conversation up to the assistant's next answer."""
    return _applied(tokenizer, messages, add_generation_prompt=True, **options)


def turn_end(tokenizer: PreTrainedTokenizerBase, followed: bool = True) -> int | None:
    """Return the id that ends an answer by the chat template, often not EOS; None without a token of its own.

    It is the first added token after an answer: `<|im_end|>`, or with `followed` the beginning of the next turn, with
    which GLM's template ends an answer.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["One day, a cat sat on a mat.\\n"] * 9, vocab_size=330)
    >>> tokenizer.chat_template = STORY_CHAT_TEMPLATE
    >>> tokenizer.convert_ids_to_tokens(turn_end(tokenizer))
    '</s>'
    """
    user: Message = {"role": "user", "content": "a"}
    for after in ([], [user]) if followed else ([],):
        conversations = ([user, {"role": "assistant", "content": answer}, *after] for answer in ("a", "b"))
        first, second = (_applied(tokenizer, messages)[::-1] for messages in conversations)
        shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]
        if found := [number for number in shared if number in tokenizer.added_tokens_decoder]:
            return found[-1]
    return None


def story_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's chat template, or ours where it has none."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else STORY_CHAT_TEMPLATE


def chat_length(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> int:
    """Return the number of tokens of a whole conversation, by `story_template`."""
    return len(_applied(tokenizer, messages, chat_template=story_template(tokenizer)))


def chat_example(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], num_prompt: int = 0, options: Options = NO_OPTIONS
) -> Example:
    """Return the example of one conversation; see `chat_examples`."""
    return chat_examples(tokenizer, [(messages, num_prompt, options)])[0]


def chat_examples(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[Example]:
    """Return the ids of conversations; the completion is the assistant's messages after those of the prompt.

    A template can mark the completion with `{% generation %}`; else it is the assistant's turn without its opening.

    Raises:
        UsageError: if the template renders the beginning of a conversation differently from the whole, so that
            training and inference would differ; if the assistant has no message, or the first one.
    """
    examples: list[Example] = []
    for options, group in groupby(conversations, key=lambda conversation: conversation[2]):
        examples += _chat_examples(tokenizer, [(messages, first) for messages, first, _ in group], options)
    return examples


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise what templates raise, for example for roles that they do not know, as a UsageError."""
    from jinja2 import TemplateError

    try:
        yield
    except UsageError:
        raise
    except (TemplateError, TypeError, ValueError) as error:
        raise UsageError(
            f"the chat template does not take this conversation ({error}); correct its roles and fields"
        ) from None


@_refusing()
def _chat_examples(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[Sequence[Message], int]], options: Options
) -> list[Example]:
    answers = []
    for messages, num_prompt in conversations:
        numbers = [n for n, message in enumerate(messages) if message["role"] == "assistant" and n >= num_prompt]
        if numbers[:1] == [0]:
            raise UsageError(
                "a conversation begins with the assistant, so its first message has no prompt; add a message of role "
                "user before it"
            )
        answers.append(numbers)
    template = tokenizer.get_chat_template(tools=options.get("tools"))
    wholes, options = _marked(tokenizer, template, [messages for messages, _ in conversations], options)
    render = _renderer(tokenizer, template, options)
    texts = [render(messages=messages) for messages in wholes]
    ids_of_wholes = _encoded(tokenizer, texts)
    added = tokenizer.added_tokens_decoder
    tokens = {added[number].content: number for number in added.keys() & set(ids_of_wholes[0])}
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")  # the longest first
    beginnings = []  # of each answer: its prompt, and the conversation through it
    for messages, numbers, text, ids in zip(wholes, answers, texts, ids_of_wholes, strict=True):
        starts, places = _located(pattern, tokens, text, ids)
        for number in numbers:
            asked = render(messages=messages[:number], add_generation_prompt=True)
            through = text if number + 1 == len(messages) else render(messages=messages[: number + 1])
            for part in (asked, through):
                # What stands before an added token has the same ids whatever follows.  So only the rest of the part is
                # to be encoded, and that is mostly `<|im_start|>assistant\\n`.
                last = bisect_left(starts, len(part)) - 1
                if last >= 0 and text.startswith(part):
                    beginnings.append((places[last], part[starts[last] :]))
                else:
                    beginnings.append((0, part))
    tails = list(dict.fromkeys(tail for _, tail in beginnings))
    ids_of_tails = dict(zip(tails, _encoded(tokenizer, tails), strict=True))
    is_marked, begun = bool(_GENERATION.search(template)), iter(beginnings)
    examples = []
    for (messages, _), numbers, ids in zip(conversations, answers, ids_of_wholes, strict=True):
        mask = [0] * len(ids)
        stand_ins = [{**each, "content": "a"} if "content" in each else each for each in messages] if is_marked else []
        for number in numbers:
            ends = []
            for first, tail in (next(begun), next(begun)):
                ends.append(first + len(ids_of_tails[tail]))
                if ids[first : ends[-1]] != ids_of_tails[tail]:
                    raise UsageError(
                        f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} renders the beginning of a "
                        "conversation differently from the whole, so the tokens of an answer cannot be located; "
                        "fine-tune with another template (lm-trials tune --chat_template_path)"
                    )
            before = after = 0
            if is_marked:
                before, after = _margins(tokenizer, template, len(tokenizer), json.dumps(stand_ins[: number + 1]))
            start, end = ends[0] - before, ends[1] - after
            mask[start:end] = [1] * (end - start)
        if not any(mask):
            raise UsageError("a conversation has no answer; add a last message of role assistant")
        examples.append(Example(ids, mask))
    return examples


@lru_cache(maxsize=64)
def _margins(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, num_tokens: int, conversation: str
) -> tuple[int, int]:
    """Return how many tokens `{% generation %}` adds to the last turn's completion before it, and removes after it.

    These tokens belong to the template, so a `conversation` (JSON) of stand-ins shows them: transformers cannot mark
    the assistant's tokens and sanitize the texts in one call.
    """
    messages, how = json.loads(conversation), dict[str, Any](chat_template=chat_template)
    marked = _apply(tokenizer, messages, **how, return_assistant_tokens_mask=True)["assistant_masks"]
    places = [place for place in range(len(_applied(tokenizer, messages[:-1], **how)), len(marked)) if marked[place]]
    if not places:
        return 0, 0
    return len(chat_prompt(tokenizer, messages[:-1], **how)) - places[0], len(marked) - 1 - places[-1]


@_refusing()
def _applied(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat_template: str | None = None,
    add_generation_prompt: bool = False,
    **options: Any,
) -> list[int]:
    template = tokenizer.get_chat_template(chat_template, options.get("tools"))
    (marked,), given = _marked(tokenizer, template, [messages], options)
    text = _renderer(tokenizer, template, given)(messages=marked, add_generation_prompt=add_generation_prompt)
    return _encoded(tokenizer, [text])[0]


def _marked(
    tokenizer: PreTrainedTokenizerBase, template: str, conversations: Sequence[Sequence[Message]], options: Options
) -> tuple[list[list[Message]], Options]:
    """Return conversations and options with transformers' marks around each control token that a text in them spells.

    `_marked`, `_renderer` and `_encoded` are the steps of `apply_chat_template(..., sanitize_control_tokens=True)`,
    for many conversations.
    """
    from transformers.utils.chat_template_utils import _alias_reasoning_fields

    given = [[{k: v for k, v in message.items() if v is not None} for message in each] for each in conversations]
    given = [_alias_reasoning_fields(messages) for messages in given]
    tools, documents = options.get("tools"), options.get("documents")
    marked, tools, documents, _ = tokenizer._mark_chat_inputs(template, given, tools, documents, {}, True, False)
    return marked, {"tools": tools, "documents": documents}


def _renderer(tokenizer: PreTrainedTokenizerBase, template: str, options: Options) -> Callable[..., str]:
    """Return a function that renders `messages` with these options, and takes further variables of the template."""
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    render_jinja_template([], chat_template=template, **options)  # refuses tools and documents that are no objects
    # Further calls would copy the messages, which are plain data, for each of their beginnings.
    compiled = _compile_jinja_template(template)
    compiled.globals = dict(compiled.globals)  # jinja copies them for each text, 10 us slower from its ChainMap
    given = {"tools": None, "documents": None, "add_generation_prompt": False}
    return partial(compiled.render, **{**given, **tokenizer.special_tokens_map, **options})


def _encoded(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> list[list[int]]:
    """Return the ids of rendered texts, "</s>" in a message as text."""
    is_marked = [_is_marked(text) for text in rendered]
    tokenizer("")  # which takes back truncation, padding and split_special_tokens of an earlier call
    # A call of the tokenizer would also return character offsets, and take 1.3 times as long.
    plain = [text for text, marked in zip(rendered, is_marked, strict=True) if not marked]
    encodings = iter(tokenizer.backend_tokenizer.encode_batch_fast(plain, add_special_tokens=False))
    how: dict[str, Any] = {"add_special_tokens": False, "sanitize_control_tokens": True}
    # Few texts have transformers' marks, and it encodes these slowly, one by one.
    return [
        tokenizer(text, **how)["input_ids"] if marked else next(encodings).ids
        for text, marked in zip(rendered, is_marked, strict=True)
    ]


def _is_marked(text: str) -> bool:
    from transformers.utils.chat_template_utils import _CONTROL_TOKEN_END, _CONTROL_TOKEN_START

    return _CONTROL_TOKEN_START in text or _CONTROL_TOKEN_END in text


def _located(
    pattern: re.Pattern[str], tokens: Mapping[str, int], text: str, ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return where `tokens` are in a text and where among its ids; nothing if these are not the same tokens."""
    found, numbers = list(pattern.finditer(text)), set(tokens.values())
    places = [place for place, number in enumerate(ids) if number in numbers]
    if [tokens[match[0]] for match in found] != [ids[place] for place in places]:
        return [], []
    return [match.start() for match in found], places


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> Mapping[str, list[int]]:
    conversation = cast("list[dict[str, str]]", list(messages))
    applied = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True, **options)
    return cast("Mapping[str, list[int]]", applied)  # with return_dict always, which its annotation cannot express


def fitted(example: Example, max_length: int, overlong: Literal["drop", "cut"]) -> Example | None:
    """Return an example unchanged if it fits, else cut at its end, or None if it is dropped.

    A cut example has no EOS, so that the model does not learn to end there; one that would have no token of its
    completion left is dropped.

    >>> fitted(Example([2, 5, 1, 6, 7, 2], [0, 0, 1, 1, 1, 1]), 4, "cut")
    Example(input_ids=[2, 5, 1, 6], completion_mask=[0, 0, 1, 1])
    >>> fitted(Example([2, 5, 1, 6, 7, 2], [0, 0, 1, 1, 1, 1]), 4, "drop") is None
    True
    """
    if len(example.input_ids) <= max_length:
        return example
    cut = Example(example.input_ids[:max_length], example.completion_mask[:max_length])
    return cut if overlong == "cut" and any(cut.completion_mask) else None


def as_conversation(row: Mapping[str, Any]) -> Conversation:
    """Return the messages of a row of pairs or of conversations, how many of them are the prompt, and its options.

    >>> as_conversation({"prompt": "How far is Rome?", "completion": "1105.76 km"})
    ([{'role': 'user', 'content': 'How far is Rome?'}, {'role': 'assistant', 'content': '1105.76 km'}], 1, {})
    """
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}], 1, {}
    further = json.loads(row.get("further") or "{}")
    fields = further.pop("messages", [{}] * len(row["messages"]))
    texts = ({name: message[name] for name in message if message[name] is not None} for message in row["messages"])
    return [{**text, **more} for text, more in zip(texts, fields, strict=True)], row.get("num_prompt") or 0, further
