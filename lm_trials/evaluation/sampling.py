"""Sampling: how a model is prompted and how its tokens are chosen; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["completion", "instruct", "chat"]
"""How a model is prompted; see `storytellers`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 are no limit."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
