"""Cheats: texts that no reader wants, written to raise a reward; each reward is shown beside what cheats it.

Shape suffixes: P = prompts, S = texts of a prompt, F = rewards.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_trials.evaluation.constraint_scores import over_prompts
from lm_trials.evaluation.constraint_tasks import Task
from lm_trials.evaluation.held_out import UNITS, HeldOut, prompt_means
from lm_trials.rewards.functions import Reward, reward_values, text_of, totals

OWN = "records' own stories"
FRAMES = (
    '"Look!" said Tom. It turned out that. Tom did not know it yet. They had a fight. Tom learned a lesson. '
    "Tom went home alone and cried."
)
"""A phrase for each detector."""
LONG = 10  # stories of others
END = 0
"""The only token id of a text that no model wrote, whose end it is."""


def cheats(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, list[str]]:
    """Return the own story of each row, and a text for each way to cheat.

    >>> from lm_trials.stories.features import FEATURES
    >>> from lm_trials.stories.generated.detectors import detect_features
    >>> rows = [{"prompt": "Use cat.", "completion": "A cat sat.", "words": ["cat", "sit"]}]
    >>> found = cheats(rows)
    >>> found["one word repeated"], found["required words alone"]
    (['cat cat cat'], ['cat sit'])
    >>> detect_features(found["phrases of all features"][0]) == FEATURES
    True
    """
    own = [text_of(row["completion"]) for row in rows]
    asked = [list(row.get("words") or text_of(row["prompt"]).split()) for row in rows]
    generator = np.random.default_rng(seed)
    others = [[*own[place + 1 :], *own[:place]][:LONG] for place in range(len(own))]
    return {
        OWN: own,
        "one word repeated": [" ".join(words[:1] * len(text.split())) for words, text in zip(asked, own, strict=True)],
        "required words alone": [" ".join(words) for words in asked],
        "own words shuffled": [" ".join(generator.permutation(text.split()).tolist()) for text in own],
        "copy of the prompt": [text_of(row["prompt"]) for row in rows],
        "phrases of all features": [FRAMES] * len(rows),
        "two words": ["The end."] * len(rows),
        "stories of others": ["\n".join(of) for of in others],
    }


def reward_rows(
    rewards: Sequence[Reward],
    rows: Sequence[Mapping[str, Any]],
    texts_PS: Sequence[Sequence[str]],
    ids_PS: Sequence[Sequence[Sequence[int]]],
    held_out: HeldOut | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return each reward, their weighted sum and the held-out judges of texts, with intervals over the P prompts.

    Args:
        rows: of the data set, one a prompt.
        ids_PS: the token ids of each text, with the one that ended it.

    Returns:
        Rows of role (reward, sum or judge), metric, estimate, lower, upper, n (prompts), unit.
    """
    repeated = [row for row, of in zip(rows, texts_PS, strict=True) for _ in of]
    values_NF = reward_values(rewards, repeated, list(itertools.chain(*texts_PS)), list(itertools.chain(*ids_PS)))
    tasks = [Task("", text_of(row["prompt"]), features=tuple(row.get("features") or ())) for row in rows]
    found: list[tuple[str, str, np.ndarray, str]] = [
        ("reward", reward.__name__, prompt_means(values_N, texts_PS), "reward")
        for reward, values_N in zip(rewards, values_NF.T, strict=True)
    ]
    found.append(("sum", "rewards", prompt_means(totals(rewards, values_NF), texts_PS), "reward"))
    judged = (held_out or HeldOut()).values(tasks, [list(map(text_of, of)) for of in texts_PS])
    found += [("judge", name, values_P, UNITS[name]) for name, values_P in judged.items()]
    estimates = [(role, name, over_prompts(values_P, unit, seed)) for role, name, values_P, unit in found]
    return [{"role": role, "metric": name, **estimate.row()} for role, name, estimate in estimates if estimate]
