"""Layouts: how a prompt and what answers it become tokens; one place for training and for inference.

    instruct    [EOS] prompt [BOS] completion [EOS]     story-tellers; trained and asked in the same form
    chat        the tokenizer's own chat template       chat models, and `STORY_CHAT_TEMPLATE` of ours
    text        [BOS] text [EOS]                        a text without a prompt

The published instruct story-teller was trained on `prompt [BOS] story [EOS]` and asked with `[BOS] prompt`.  In all of
them the first EOS counts in no loss, since nothing predicts a first token; BOS counts as the first of the completion,
as it was published.  A tokenizer without BOS (GPT-2's) has its EOS there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lm_trials.console import UsageError
from lm_trials.tokens.stores import Separator, document_marks, opening_of
from lm_trials.tokens.tokenizers import batch_encoder

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

Layout = Literal["instruct", "chat", "text"]
Message = Mapping[str, str]

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
"""The instruct layout as a chat template: one turn is that layout, and the EOS of an answer opens the next turn."""

_GENERATION = re.compile(r"\{%-?\s*generation\b")


class Example(NamedTuple):
    """A tokenised example: (n,) ids, and 1 for each token that belongs to the completion, 0 for the prompt's."""

    input_ids: list[int]
    completion_mask: list[int]


def instruct_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return `[EOS] prompt [BOS]` for each prompt: what an instructed model is given.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["Write. One day, a cat sat on a mat.\\n"] * 9, vocab_size=330)
    >>> (prompt,) = instruct_prompts(tokenizer, ["Write."])
    >>> (example,) = instruct_examples(tokenizer, ["Write."], ["a cat"])
    >>> example.input_ids[: len(prompt)] == prompt, tokenizer.convert_ids_to_tokens(prompt)[0::len(prompt) - 1]
    (True, ['</s>', '<s>'])
    """
    bos, eos = document_marks(tokenizer, append_eos=True)
    return [_asked(bos, ids, eos) for ids in batch_encoder(tokenizer)(list(prompts))]


def instruct_examples(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    ended: Sequence[bool] | None = None,
) -> list[Example]:
    """Return `[EOS] prompt [BOS] completion [EOS]` for each pair; where `ended` is False, without the last EOS.

    >>> from lm_trials.tokens.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["Write. One day, a cat sat on a mat.\\n"] * 9, vocab_size=330)
    >>> (example,) = instruct_examples(tokenizer, ["Write."], ["a cat"])
    >>> tokenizer.convert_ids_to_tokens(example.input_ids)[-4:], sum(example.completion_mask)
    (['<s>', '▁a', '▁cat', '</s>'], 4)
    """
    bos, eos = document_marks(tokenizer, append_eos=True)
    # One call for both, since the encoder copies the tokenizer, which takes 0.3 s for GPT-2's.
    encoded = batch_encoder(tokenizer)([*prompts, *completions])
    examples = []
    for number, (ids, body) in enumerate(zip(encoded[: len(prompts)], encoded[len(prompts) :], strict=True)):
        asked = _asked(bos, ids, eos)
        answer = body + (eos if ended is None or ended[number] else [])
        examples.append(Example(asked + answer, [0] * (len(asked) - len(bos)) + [1] * (len(bos) + len(answer))))
    return examples


def _asked(bos: list[int], ids: list[int], eos: list[int]) -> list[int]:
    """Return what stands before a completion, when it is trained and when it is asked for."""
    return [*eos, *ids, *bos]


def completion_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], separator: Separator = "bos"
) -> list[list[int]]:
    """Return `[BOS] text` for each beginning of a text that is to be continued; `separator` as in pretraining."""
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


def check_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that a model can be talked to.

    Raises:
        UsageError: where its tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{name} has no chat template, so it knows no conversations; use --mode instruct or completion, or "
            "fine-tune it with sft_lora.py, which gives it one"
        )
    check_template(tokenizer, None, f"the chat template of {name}")


def check_template(tokenizer: PreTrainedTokenizerBase, template: str | None, name: str) -> None:
    """Check that a chat template, by default the tokenizer's own, is one; which roles it takes, the rows will show.

    Raises:
        UsageError: for one with an error in its syntax, naming it and the line.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        template = template or tokenizer.get_chat_template()
        render_jinja_template([[]], chat_template=template)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"{name} is not a template ({error.message}, line {error.lineno}); correct it, or give another with "
            "--chat_template_path"
        ) from None
    except Exception:  # it was read; that it does not take a conversation of no message is no mistake
        return


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation up to where the assistant is to answer."""
    return _applied(tokenizer, messages, add_generation_prompt=True)


def story_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's chat template, or ours where it has none."""
    return tokenizer.chat_template or STORY_CHAT_TEMPLATE


def chat_length(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> int:
    """Return how many tokens a whole conversation has, by `story_template`."""
    return len(_applied(tokenizer, messages, chat_template=story_template(tokenizer)))


def chat_example(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], num_prompt: int = 0) -> Example:
    """Return a conversation's ids; its completion is what the assistant says after the first `num_prompt` messages.

    Templates that mark it with `{% generation %}` say themselves what that is; of others it is what follows the opening
    of each of its turns, up to the next turn.

    Raises:
        UsageError: where the template renders the beginning of a conversation otherwise than the whole, so that
            training and inference would differ; where the assistant says nothing, or speaks first.
    """
    ids = _applied(tokenizer, messages)
    mask = [0] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number < num_prompt:
            continue
        if number == 0:
            raise UsageError(
                "a conversation begins with the assistant, and nothing asks for what it says; give it a first message "
                "of role user"
            )
        prompt = chat_prompt(tokenizer, messages[:number])
        through = ids if number + 1 == len(messages) else _applied(tokenizer, messages[: number + 1])
        if ids[: len(prompt)] != prompt or ids[: len(through)] != through:
            raise UsageError(
                f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} renders the beginning of a "
                "conversation otherwise than the whole, so that no loss can be told apart by turns; give another with "
                "--chat_template_path"
            )
        roles = tuple(said["role"] for said in messages[: number + 1])
        before, after = _margins(tokenizer, tokenizer.chat_template, len(tokenizer), roles)
        start, end = len(prompt) - before, len(through) - after
        mask[start:end] = [1] * (end - start)
    if not any(mask):
        raise UsageError(
            "a conversation has no answer of the assistant's; give one with a last message of role assistant"
        )
    return Example(ids, mask)


@lru_cache(maxsize=64)
def _margins(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, num_tokens: int, roles: tuple[str, ...]
) -> tuple[int, int]:
    """Return how many tokens `{% generation %}` adds to the last turn's completion before it, and takes off after it.

    They belong to the template and not to what is said, so a stand-in shows them: transformers does not mark the
    assistant's tokens and guard the texts in one call.
    """
    if not _GENERATION.search(chat_template):
        return 0, 0
    messages = [{"role": role, "content": "a"} for role in roles]
    marked = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    places = [place for place in range(len(_applied(tokenizer, messages[:-1])), len(marked)) if marked[place]]
    if not places:
        return 0, 0
    return len(chat_prompt(tokenizer, messages[:-1])) - places[0], len(marked) - 1 - places[-1]


def _applied(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    chat_template: str | None = None,
) -> list[int]:
    from jinja2 import TemplateError

    try:
        return list(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=chat_template,
                tokenize=True,
                add_generation_prompt=add_generation_prompt,
                return_dict=True,
                sanitize_control_tokens=True,  # "</s>" in a text is text, as in the instruct layout
            )["input_ids"]
        )
    except TemplateError as error:  # what templates raise for roles that they do not know
        raise UsageError(f"the chat template does not take this conversation ({error}); correct its roles") from None


def fitted(example: Example, max_length: int, overlong: Literal["drop", "cut"]) -> Example | None:
    """Return an example as it is, where it fits; cut at its end, or None where it is dropped.

    One that is cut has no EOS, so that no story learns to end where it was cut; one without a token of its completion
    left is dropped.

    >>> fitted(Example([2, 5, 1, 6, 7, 2], [0, 0, 1, 1, 1, 1]), 4, "cut")
    Example(input_ids=[2, 5, 1, 6], completion_mask=[0, 0, 1, 1])
    >>> fitted(Example([2, 5, 1, 6, 7, 2], [0, 0, 1, 1, 1, 1]), 4, "drop") is None
    True
    """
    if len(example.input_ids) <= max_length:
        return example
    cut = Example(example.input_ids[:max_length], example.completion_mask[:max_length])
    return cut if overlong == "cut" and any(cut.completion_mask) else None


def as_conversation(row: Mapping[str, Any]) -> tuple[list[Message], int]:
    """Return the messages of a row of pairs or of conversations, and how many of them are the prompt.

    >>> as_conversation({"prompt": "How far is Rome?", "completion": "1105.76 km"})
    ([{'role': 'user', 'content': 'How far is Rome?'}, {'role': 'assistant', 'content': '1105.76 km'}], 1)
    """
    if "messages" in row:
        return list(row["messages"]), row.get("num_prompt") or 0
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}], 1
