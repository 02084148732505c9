"""Streamers: a story on the terminal while it is generated, folded between words."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from typing import TextIO

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

WIDTH = 100
# Decoding gives this for a character whose bytes are not complete yet.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class FoldedText:
    """Writes text in indented lines of at most `width` characters; a word is written once it is complete."""

    def __init__(self, out: TextIO, width: int = WIDTH, indent: int = 2) -> None:
        self.out, self.width, self.indent = out, width, " " * indent
        self._column = 0
        self._waiting = ""

    def write(self, text: str) -> None:
        """Write more of the text."""
        for character in text:
            if character.isspace():
                self._word()
                if character == "\n":
                    self._line()
                elif self._column:  # a line begins with no space
                    self._waiting = character
            else:
                self._waiting += character
        self.out.flush()

    def _word(self) -> None:
        word = self._waiting
        if self._column and self._column + len(word) > self.width - len(self.indent):
            self._line()
            word = word.lstrip()
        self.out.write((self.indent if word and not self._column else "") + word)
        self._column += len(word)
        self._waiting = ""

    def _line(self) -> None:
        self.out.write("\n")
        self._column = 0

    def end(self) -> None:
        """Write the last word and end the line."""
        self._word()
        if self._column:
            self._line()
        self.out.flush()


class StoryStreamer(BaseStreamer):
    """Shows the story that `generate` writes for one prompt, up to its end.

    transformers' own streamer starts within a text (`a cat` and ` sat` become `a catsat` with tokenizers that mark
    words by a leading space) and shows the tokens that end a story.

    Args:
        before: ids that the story already begins with, those of a beginning to complete.
        ends: ids that end it.
        text: where it is written; default: the terminal.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        before: Sequence[int] = (),
        ends: Collection[int] = (),
        text: FoldedText | None = None,
    ) -> None:
        self.tokenizer, self.ends = tokenizer, frozenset(ends)
        self.text = text or FoldedText(sys.stdout)
        self.ids = list(before)
        # Consecutive byte tokens (`<0xE2>`) are decoded together, so they are shown after the last of them.
        self._bytes = frozenset(id for token, id in tokenizer.get_vocab().items() if BYTE.fullmatch(token))
        self._num_before = len(self.ids)
        self._shown = 0
        self._prompt_is_next, self._ended = True, False

    @property
    def written(self) -> list[int]:
        """The ids generated until now, without the end."""
        return self.ids[self._num_before :]

    def put(self, value: torch.Tensor) -> None:
        """Receive the prompt, which `generate` sends first, or the next tokens."""
        if value.ndim > 1 and len(value) > 1:
            raise ValueError(f"{len(value)} stories cannot be shown at once; stream one")
        if self._prompt_is_next:
            self._prompt_is_next = False
        else:
            for token in value.flatten().tolist():
                self._ended = self._ended or token in self.ends
                self.ids += [] if self._ended else [token]
        self._show(whole=False)

    def end(self) -> None:
        """Show the rest."""
        self._show(whole=True)
        self.text.end()

    def _show(self, whole: bool) -> None:
        count = len(self.ids)
        while not whole and count and self.ids[count - 1] in self._bytes:
            count -= 1
        text = str(self.tokenizer.decode(self.ids[:count]))
        known = text if whole else text.rstrip(UNFINISHED)
        self.text.write(known[self._shown :])
        self._shown = max(self._shown, len(known))
