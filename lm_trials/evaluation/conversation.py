"""Conversations with a model at the terminal: several turns, the oldest forgotten where its positions are full."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from lm_trials.console import UsageError, note
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.evaluation.streamers import FoldedText, StoryStreamer
from lm_trials.pairs.layouts import Message

ANEW = "/new"
# Share of the positions that is kept free for an answer, where nobody says how long it may be.
ANSWER_SHARE = 0.25


class Conversation:
    """What was said, and how the model answers.

    Each turn the whole history goes through the chat template again, so that what the model is given is what it would
    have been trained on.  Answer number n of a conversation draws from the seed and n alone.
    """

    def __init__(self, teller: Storyteller, sampling: Sampling, max_new_tokens: int | None, out: TextIO) -> None:
        self.teller, self.sampling, self.max_new_tokens, self.out = teller, sampling, max_new_tokens, out
        self.messages: list[Message] = []
        self.num_answers = 0
        self._told_that_it_forgets = False

    def begin_anew(self) -> None:
        """Forget all that was said."""
        self.messages = []
        self.num_answers = 0

    def answer(self, text: str) -> str:
        """Say something to the model, show its answer as it is written, and return it.

        Ctrl-C ends the answer and not the conversation; what was written until then has been said.

        Raises:
            UsageError: for a text that does not fit the model's positions; it is taken as not said.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt, messages = self._fitting(messages)
        room = min(self.max_new_tokens or self.teller.positions, self.teller.positions - len(prompt))
        streamer = StoryStreamer(self.teller.tokenizer, ends=self.teller.ends, text=FoldedText(self.out))
        try:
            keys = [f"turn {self.num_answers}"]
            (ids,) = self.teller.write([prompt], keys, room, self.sampling, streamer=streamer)
        except KeyboardInterrupt:
            ids = streamer.written
            streamer.end()
            note("(stopped)")
        said = self.teller.tokenizer.decode(ids).strip()
        self.num_answers += 1
        self.messages = [*messages, {"role": "assistant", "content": said}]
        return said

    def _fitting(self, messages: list[Message]) -> tuple[list[int], list[Message]]:
        """Return the ids of a conversation without the oldest turns where all of them leave no room for an answer."""
        positions = self.teller.positions
        wanted = self.max_new_tokens or max(int(positions * ANSWER_SHARE), 1)
        prompt = self.teller.conversation(messages)
        while len(messages) > 1 and len(prompt) + wanted > positions:
            messages = messages[2:]  # what was said, and its answer
            prompt = self.teller.conversation(messages)
            if not self._told_that_it_forgets:
                note(f"note: this no longer fits the model's {positions:,} positions; the oldest turns are forgotten")
                self._told_that_it_forgets = True
        if len(prompt) >= positions:
            raise UsageError(
                f"this takes {len(prompt):,} of the {positions:,} positions of {self.teller.name} and leaves no room "
                "for an answer; say less at once"
            )
        return prompt, messages


def converse(conversation: Conversation, lines: Iterable[str]) -> list[str]:
    """Answer each line until one is empty or there are no more; returns the answers."""
    answers = []
    for line in lines:
        if not line.strip():
            break
        if line.strip() == ANEW:
            conversation.begin_anew()
            note("(a new conversation)")
            continue
        try:
            answers.append(conversation.answer(line.strip()))
        except UsageError as error:
            note(str(error))
    return answers


def typed_lines() -> Iterator[str]:
    """Yield what is typed, or comes through a pipe, line by line; Ctrl-D and Ctrl-C end it."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  lines can be edited and called back
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
