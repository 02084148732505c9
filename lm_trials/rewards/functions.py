"""Reward functions: this project's scores under trl's signature, `f(prompts, completions, **columns) -> list[float]`.

    words           the share of the prompt's required words that the story uses, in any inflected form
    features        the share of the prompt's features that the story shows
    feature:NAME    1 if the story shows a feature, asked for or not
    length:N        how near the story's length is to N words
    ends            1 if the model ended the story itself
    FILE.py:NAME    a user's function

All are from 0 to 1.  Each docstring says what cheats it; `rewards.cheats` scores these cheats.
"""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, did_you_mean
from lm_trials.evaluation.inflections import StoryWords, words_of
from lm_trials.evaluation.judges import DetectorJudge, Judge
from lm_trials.files import readable
from lm_trials.stories.features import canonical_feature

LARGEST = float(np.finfo(np.float32).max)  # trl adds rewards in float32
NAMES = ("words", "features", "feature:NAME", "length:N", "ends", "FILE.py:NAME")


def text_of(completion: Any) -> str:
    """Return the text of a completion, which for conversations is a list of messages.

    >>> text_of("A cat."), text_of([{"role": "assistant", "content": "A cat."}])
    ('A cat.', 'A cat.')
    """
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


def words_used(completions: Sequence[Any], words: Sequence[Sequence[str]], **_: Any) -> list[float | None]:
    """Return the share of each prompt's required words that its story uses; None for a prompt without any.

    Cheated by the words alone, without a sentence; by a copy of the prompt, which names them; by long stories, which
    have more words of any kind.

    >>> words_used(["The mice ran.", "A dog."], [["mouse", "sit"], []])
    [0.5, None]
    """
    return [StoryWords(text_of(text)).share_used(asked or ()) for text, asked in zip(completions, words, strict=True)]


def features_present(
    completions: Sequence[Any], features: Sequence[Sequence[str]], judge: Judge, **_: Any
) -> list[float | None]:
    """Return the share of each prompt's features that its story shows; None for a prompt without any.

    Cheated by one phrase that the detector matches ("It turned out that"), and by all such phrases for any prompt.

    >>> features_present(["It turned out that Ben was a king!"], [["Twist", "Conflict"]], judge=DetectorJudge())
    [0.5]
    """
    found = judge.features([text_of(text) for text in completions])
    asked = [[name for name in names or () if name in judge.known] for names in features]
    return [
        sum(name in of for name in names) / len(names) if names else None
        for names, of in zip(asked, found, strict=True)
    ]


def feature_present(completions: Sequence[Any], feature: str, judge: Judge, **_: Any) -> list[float]:
    """Return 1 for each story that shows `feature`, else 0.

    Cheated as `features_present`; a model that always shows the feature does not read its prompts.

    >>> feature_present(["It turned out that Ben was a king!", "A cat."], feature="Twist", judge=DetectorJudge())
    [1.0, 0.0]
    """
    return [float(feature in of) for of in judge.features([text_of(text) for text in completions])]


def length_near(completions: Sequence[Any], length: int, **_: Any) -> list[float]:
    """Return how near each story's length is to `length` words: the smaller divided by the larger.

    Cheated by any words of that number.

    >>> length_near(["A cat sat on a mat.", "A cat."], length=4)
    [0.6666666666666666, 0.5]
    """
    lengths = [len(words_of(text_of(text))) for text in completions]
    return [min(words, length) / max(words, length) for words in lengths]


def ended(completion_ids: Sequence[Sequence[int]], ends: Collection[int], **_: Any) -> list[float]:
    """Return 1 for each completion whose last id is one of `ends`, else 0: it was cut at its limit.

    Cheated by stopping at once.

    >>> ended([[5, 6, 2], [5, 6, 7], []], ends={2})
    [1.0, 0.0, 0.0]
    """
    return [float(bool(len(ids)) and ids[-1] in ends) for ids in completion_ids]


class Reward:
    """A reward function that trl can call and log, by its `__name__`.

    Its values are checked here, for all rewards alike: one finite number for each completion, or None where the reward
    does not apply.

    Attributes:
        weight: of the reward in the sum.
        features: that it rewards, asked for or not.
        described: what determines its values, for a manifest.

    >>> (reward,) = open_rewards(["length:2"])
    >>> reward.__name__, reward(prompts=["Write."], completions=["A cat."])
    ('length:2', [1.0])
    """

    def __init__(self, given: str, score: Callable[..., Any], column: str = "", **described: Any) -> None:
        self.__name__ = given.rpartition(":")[2] if ".py:" in given else given
        self.given, self.score, self.column, self.weight = given, score, column, 1.0
        self.features: tuple[str, ...] = (self.__name__.removeprefix("feature:"),) if "feature:" in given else ()
        self.described = {"reward": self.__name__, **described}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the reward of each completion.

        Raises:
            UsageError: naming the function and the first prompt, for an error, a value that is no finite number, or
                another number of values; for a data set without the column that the reward reads.
        """
        if self.column and self.column not in columns:
            raise UsageError(
                f"--reward_funcs {self.given} reads the column {self.column}, which the data set does not have; make "
                "it with lm-trials prepare instruct, or give another reward"
            )
        for prompt, given in zip(prompts, columns.get(self.column, ()), strict=False):
            if not isinstance(given, list | tuple | None):
                raise UsageError(
                    f"--reward_funcs {self.given} reads the column {self.column}, which is {given!r:.40} for the "
                    f"prompt {text_of(prompt)[:60]!r}; it must be a list of texts"
                )
        place, fault = 0, ""
        values: list[float | None] = []
        try:
            found = self.score(prompts=prompts, completions=completions, **columns)
            values = [None if value is None else float(value) for value in found]
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            fault = f"raises {type(error).__name__}: {error}"
        wrong = [place for place, value in enumerate(values) if value is not None and not abs(value) <= LARGEST]
        if not fault and len(values) != len(completions):
            fault = f"returns {len(values)} values for {len(completions)} completions"
        elif wrong:
            place, fault = wrong[0], f"returns {values[wrong[0]]}"
        if fault:
            raise UsageError(
                f"--reward_funcs {self.given} {fault}, for the prompt {text_of(prompts[place])[:60]!r}; let it return "
                "a list with a finite number, or None, for each completion"
            )
        return values


def open_rewards(
    names: Sequence[str],
    weights: Sequence[float] | None = None,
    judge: Judge | None = None,
    ends: Collection[int] = (),
) -> list[Reward]:
    """Return the reward functions of `--reward_funcs`, with the weights of `--reward_weights` (1 each without).

    Args:
        judge: of features; default: the detectors.
        ends: the token ids that end a completion.

    Raises:
        UsageError: for an unknown reward or feature, a file without the function, two rewards of one name, or another
            number of weights than rewards.

    >>> [reward.__name__ for reward in open_rewards(["words", "feature:twist", "ends"], [1, 0.5, 0.5])]
    ['words', 'feature:Twist', 'ends']
    """
    rewards = [_reward(name, judge or DetectorJudge(), ends) for name in names]
    called = [reward.__name__ for reward in rewards]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise UsageError(f"--reward_funcs: two rewards are called {twice}; remove or rename one")
    if weights is not None and len(weights) != len(rewards):
        raise UsageError(
            f"--reward_weights has {len(weights)} weights and --reward_funcs {len(rewards)} rewards; give one weight "
            "for each reward"
        )
    for reward, weight in zip(rewards, weights or (), strict=False):
        reward.weight = float(weight)
    return rewards


def _reward(given: str, judge: Judge, ends: Collection[int]) -> Reward:
    name, _, value = given.partition(":")
    if ".py:" in given:
        return _of_user(given)
    if given == "words":
        return Reward(given, words_used, "words")
    by = type(judge).__name__.removesuffix("Judge").lower()
    if given == "features":
        return Reward(given, partial(features_present, judge=judge), "features", judge=by)
    if name == "feature":
        try:
            feature = canonical_feature(value)
        except UsageError as error:
            raise UsageError(f"--reward_funcs {given}: {error}") from None
        if feature not in judge.known:
            raise UsageError(
                f"--reward_funcs {given}: the judge does not know it; {did_you_mean(feature, judge.known)}"
            )
        return Reward(f"feature:{feature}", partial(feature_present, feature=feature, judge=judge), judge=by)
    if name == "length":
        if not value.isdecimal() or not 0 < int(value) < 10**6:
            raise UsageError(f"--reward_funcs {given}: give a number of words, such as length:120")
        return Reward(f"length:{int(value)}", partial(length_near, length=int(value)))
    if given == "ends":
        return Reward(given, partial(ended, ends=frozenset(ends)))
    raise UsageError(f"--reward_funcs {given}: unknown reward; {did_you_mean(given, NAMES)}")


def _of_user(given: str) -> Reward:
    """Open `FILE.py:NAME`, a function with trl's signature."""
    file, _, name = given.rpartition(":")
    with readable(f"--reward_funcs {file}", "give a Python file"):
        source = Path(file).read_bytes()
    try:
        function = runpy.run_path(file).get(name)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UsageError(f"--reward_funcs {file} raises {type(error).__name__}: {error}; correct it") from None
    if not callable(function):
        raise UsageError(f"--reward_funcs {given}: {file} has no function {name}; define it in this file")
    return Reward(given, function, file=Path(file).name, sha256=hashlib.sha256(source).hexdigest())


def reward_values(
    rewards: Sequence[Reward],
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
) -> np.ndarray:
    """Return the (N, F) rewards of N completions, called as trl calls them; NaN where a reward does not apply.

    Args:
        rows: the row of the data set, with `prompt` and its other columns, for each completion.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
    prompts = [row["prompt"] for row in rows]
    values = [
        reward(prompts=prompts, completions=list(completions), completion_ids=list(completion_ids), **columns)
        for reward in rewards
    ]
    return np.array(values, dtype=np.float64).reshape(len(rewards), -1).T  # None becomes NaN


def totals(rewards: Sequence[Reward], values_NF: np.ndarray) -> np.ndarray:
    """Return the (N,) weighted sums, in which a reward that does not apply counts as 0, as in trl; NaN where none does.

    >>> rewards = open_rewards(["ends", "length:9"], [1, 2])
    >>> totals(rewards, np.array([[1.0, 0.5], [1.0, np.nan], [np.nan, np.nan]])).tolist()
    [2.0, 1.0, nan]
    """
    sums_N = np.nansum(values_NF * np.array([reward.weight for reward in rewards]), axis=1)
    return np.where(np.isnan(values_NF).all(axis=1), np.nan, sums_N)
