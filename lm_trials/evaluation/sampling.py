"""Sampling: how a model is asked, and how the tokens of its answer are chosen; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.console import UsageError

Mode = Literal["completion", "instruct", "chat"]
"""A beginning to complete, something asked for, or a conversation; see `storytellers`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `temperature` 0 takes the likeliest, `top_k` 0 and `top_p` 1 leave all to be drawn."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            UsageError: for the first such value.

        >>> Sampling(top_p=0).check()
        Traceback (most recent call last):
        lm_trials.console.UsageError: --top_p 0 leaves no token to draw; give more than 0 and at most 1
        """
        if not self.temperature >= 0:
            raise UsageError(f"--temperature {self.temperature:g} is no temperature; give 0 (greedy) or more")
        if self.top_k < 0:
            raise UsageError(f"--top_k {self.top_k} is no number of tokens; give 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top_p {self.top_p:g} leaves no token to draw; give more than 0 and at most 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is no seed; give 0 or more")
