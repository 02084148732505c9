"""Sampling: how a model is asked, and how the tokens of its answer are chosen; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["completion", "instruct", "chat"]
"""A beginning to complete, something asked for, or a conversation; see `storytellers`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `temperature` 0 takes the likeliest, `top_k` 0 and `top_p` 1 leave all to be drawn."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
