"""Streamers: a story on the terminal as it is written, token by token, folded between words."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from typing import TextIO

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

WIDTH = 100
# What decoding puts where the bytes of a character are not all there yet.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class FoldedText:
    """Writes text in lines of at most `width` characters, each set in by `indent`; a word waits until it is whole."""

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
                elif self._column:  # none at the beginning of a line
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
        """Write what waits, and end the line."""
        self._word()
        if self._column:
            self._line()
        self.out.flush()


class StoryStreamer(BaseStreamer):
    """Shows the story that `generate` writes for one prompt, cut at its end.

    transformers' own streamer would begin in the middle of a decoding (`a cat` and ` sat` become `a catsat` with
    tokenizers that mark words by a blank before them) and show the tokens that end a story.

    Args:
        before: ids that the story begins with already, those of a beginning that is completed.
        ends: ids that end it.
        text: where it is written; the terminal.
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
        # A run of tokens that spell single bytes (`<0xE2>`) is decoded as one, so it is shown when it is over.
        self._bytes = frozenset(id for token, id in tokenizer.get_vocab().items() if BYTE.fullmatch(token))
        self._num_before = len(self.ids)
        self._shown = 0
        self._prompt_is_next, self._ended = True, False

    @property
    def written(self) -> list[int]:
        """The ids written until now, without the end; all there is of a story that was interrupted."""
        return self.ids[self._num_before :]

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which comes first, or the next tokens."""
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
        """Show what is left."""
        self._show(whole=True)
        self.text.end()

    def _show(self, whole: bool) -> None:
        count = len(self.ids)
        while not whole and count and self.ids[count - 1] in self._bytes:
            count -= 1
        text = self.tokenizer.decode(self.ids[:count])
        known = text if whole else text.rstrip(UNFINISHED)
        self.text.write(known[self._shown :])
        self._shown = max(self._shown, len(known))
