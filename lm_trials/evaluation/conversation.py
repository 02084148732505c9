"""Conversations with a model at the terminal; the oldest turns are dropped when the model's positions are full."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from lm_trials.console import UsageError, note
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.evaluation.streamers import FoldedText, StoryStreamer
from lm_trials.pairs.layouts import Message

NEW = "/new"
ANSWER_SHARE = 0.25  # of the positions, kept free for an answer without --max_new_tokens


class Conversation:
    """The messages of a conversation, and how the model answers.

    At each turn the chat template is applied to all messages, as in training.  The random draws of answer n depend on
    the seed and n alone.
    """

    def __init__(self, teller: Storyteller, sampling: Sampling, max_new_tokens: int | None, out: TextIO) -> None:
        self.teller, self.sampling, self.max_new_tokens, self.out = teller, sampling, max_new_tokens, out
        self.messages: list[Message] = []
        self.num_answers = 0
        self._noted_dropping = False

    def answer(self, text: str) -> str:
        """Send a message, show the answer while it is generated, and return it.

        Ctrl-C ends the answer, not the conversation; the answer is kept up to there.

        Raises:
            UsageError: for a text that does not fit the model's positions; the conversation is unchanged.
        """
        prompt, messages = self._fitting([*self.messages, {"role": "user", "content": text}])
        room = min(self.max_new_tokens or self.teller.positions, self.teller.positions - len(prompt))
        streamer = StoryStreamer(self.teller.tokenizer, ends=self.teller.ends, text=FoldedText(self.out))
        try:
            keys = [f"turn {self.num_answers}"]
            (ids,) = self.teller.write([prompt], keys, room, self.sampling, streamer=streamer)
        except KeyboardInterrupt:
            ids = streamer.written
            streamer.end()
            note("(stopped)")
        answer = str(self.teller.tokenizer.decode(ids)).strip()
        self.num_answers += 1
        self.messages = [*messages, self._answered(answer)]
        return answer

    def _answered(self, answer: str) -> Message:
        """Return an answer as a message; thoughts before it are a field where the template has thoughts.

        Left in the content, they would be text beside the template's own thoughts (Qwen3).
        """
        thoughts, mark, rest = answer.partition("</think>")
        if not mark or mark not in self.teller.tokenizer.get_chat_template():
            return {"role": "assistant", "content": answer}
        thoughts = thoughts.removeprefix("<think>").strip()
        return {"role": "assistant", "content": rest.strip(), "reasoning_content": thoughts}

    def _fitting(self, messages: list[Message]) -> tuple[list[int], list[Message]]:
        """Return the ids of the newest turns that leave room for an answer, and those turns."""
        positions = self.teller.positions
        wanted = self.max_new_tokens or max(int(positions * ANSWER_SHARE), 1)
        prompt = self.teller.conversation(messages)
        while len(messages) > 1 and len(prompt) + wanted > positions:
            # Whole turns: a template that begins with half a turn is not in the training data.
            messages = messages[2:]  # a message and its answer
            prompt = self.teller.conversation(messages)
            if not self._noted_dropping:
                note(f"note: the conversation exceeds the {positions:,} positions; the oldest turns are dropped")
                self._noted_dropping = True
        if len(prompt) >= positions:
            raise UsageError(
                f"the message takes {len(prompt):,} of the {positions:,} positions of {self.teller.name} and leaves no "
                "room for an answer; send a shorter message"
            )
        return prompt, messages


def converse(conversation: Conversation, lines: Iterable[str]) -> list[str]:
    """Answer each line until one is empty or there are no more; returns the answers."""
    answers = []
    for line in lines:
        if not line.strip():
            break
        if line.strip() == NEW:
            conversation.messages, conversation.num_answers = [], 0
            note("(new conversation)")
            continue
        try:
            answers.append(conversation.answer(line.strip()))
        except UsageError as error:
            note(str(error))
    return answers


def typed_lines() -> Iterator[str]:
    """Yield the lines of stdin, with a prompt on a terminal; Ctrl-D and Ctrl-C end it."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
