"""Held-out judges: what stories are like apart from the score that they are optimized for.

A score can rise because the stories are better, or because the model found what cheats the score: one word repeated, a
copied prompt, words without sentences.  No judge here is part of a score, so a cheat that raises the score moves them.

Shape suffixes: P = prompts, S = texts of a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm_trials.evaluation.constraint_tasks import Task
from lm_trials.evaluation.inflections import words_of
from lm_trials.evaluation.judges import Judge
from lm_trials.evaluation.model_losses import ModelLosses
from lm_trials.models.reference import read_run, resolve_model

START = "start"
"""As the name of a base: the model that each run's lineage starts from."""
UNITS = {
    "distinct_2": "share of word pairs",
    "repeated_4grams": "share of 4-grams",
    "copied_prompt": "share of the prompt's 4-grams",
    "base_loss": "nats per token",
    "other_judge": "share of features",
}


@dataclass(frozen=True)
class HeldOut:
    """The judges; without a second judge of features or a base, those of the text alone.

    Attributes:
        features: another judge of features than the one that scores: a classifier of words where the detectors, which
            match phrases, score; or the reverse.
        base: the model before fine-tuning.
        always: features that are judged in each story, instead of those that its prompt asks for.
    """

    features: Judge | None = None
    base: ModelLosses | None = None
    always: tuple[str, ...] = ()

    def values(self, tasks: Sequence[Task], texts_PS: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Return for each judge the (P,) means over a prompt's texts; NaN for a prompt without a value.

        `base_loss` is the mean over stories of each story's nats per token, the story alone, without its prompt.  Both
        directions count: repetition has a low loss, words without sentences a high one; compare with the records'.
        """
        prompts = [task.prompt for task, of in zip(tasks, texts_PS, strict=True) for _ in of]
        texts = [text for of in texts_PS for text in of]
        found = [text_values(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        values_N = {name: [value[name] for value in found] for name in found[0]}
        if self.base is not None:
            records = [{"record_id": "", "story": text, "features": [], "source": ""} for text in texts]
            values_N["base_loss"] = [loss["loss"] for loss in self.base.measure(records)]  # type: ignore[arg-type]
        if self.features is not None:
            asked = [self._asked(self.features, task) for task, of in zip(tasks, texts_PS, strict=True) for _ in of]
            has = self.features.features(texts)
            values_N["other_judge"] = [
                float(np.mean([name in of for name in names])) if names else np.nan
                for names, of in zip(asked, has, strict=True)
            ]
        return {name: prompt_means(values, texts_PS) for name, values in values_N.items()}

    def _asked(self, judge: Judge, task: Task) -> list[str]:
        return [name for name in judge.known if name in (self.always or task.features)]


def text_values(prompt: str, text: str) -> dict[str, float]:
    """Return the judges of a text alone; NaN where it, or the prompt, has too few words.

    - distinct_2: the share of pairs of adjacent words that are different ones;
    - repeated_4grams: the share of sequences of four words that occur earlier in the text;
    - copied_prompt: the share of the prompt's sequences of four words that the text has.

    >>> text_values("Write about a cat.", "A cat sat. A cat sat. A cat sat.")
    {'distinct_2': 0.375, 'repeated_4grams': 0.5, 'copied_prompt': 0.0}
    >>> text_values("Write about a big cat.", "Write about a big dog.")["copied_prompt"]
    0.5
    """
    words = words_of(text)
    pairs, fours = ngrams(words, 2), ngrams(words, 4)
    asked = ngrams(words_of(prompt), 4)
    return {
        "distinct_2": len(pairs) / pairs.total() if pairs else np.nan,
        "repeated_4grams": 1 - len(fours) / fours.total() if fours else np.nan,
        "copied_prompt": len(asked.keys() & fours.keys()) / len(asked) if asked else np.nan,
    }


def ngrams(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    """Count the sequences of `length` words."""
    return Counter(zip(*(words[start:] for start in range(length)), strict=False))


def prompt_means(values_N: Sequence[float] | np.ndarray, texts_PS: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the (P,) means of the values of a prompt's texts without NaN; NaN for a prompt without a value.

    >>> prompt_means([0.0, 1.0, np.nan], [["a", "b"], ["c"]]).tolist()
    [0.5, nan]
    """
    ends = np.cumsum([len(of) for of in texts_PS])[:-1]
    given = [of[~np.isnan(of)] for of in np.split(np.asarray(values_N, dtype=np.float64), ends)]
    return np.array([of.mean() if len(of) else np.nan for of in given])


def open_bases(
    name: str | None, models: Sequence[str], use_cpu: bool = False, batch_size: int = 16
) -> list[ModelLosses | None]:
    """Return for each model the one whose loss judges its stories; `start` is the one that its lineage starts from.

    Raises:
        UsageError: for a model that cannot be loaded.
    """
    if name is None:
        return [None] * len(models)
    bases = [start_of(model) if name == START else name for model in models]
    opened = {base: ModelLosses(base, use_cpu, batch_size) for base in dict.fromkeys(bases)}
    return [opened[base] for base in bases]


def start_of(name: str) -> str:
    """Return the model that a run's lineage starts from: the run itself, if its weights began at random."""
    run = read_run(Path(resolve_model(name).path))
    initial = (run["outcome"].get("initial_model") if run else None) or {}
    return start_of(initial["name_or_path"]) if initial else name
