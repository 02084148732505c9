"""Constraint scores: whether a story has the requested words and features, its length, and whether the model ended it.

Each score has two controls: the data set's own stories, judged alike, and the model's stories judged against the
constraints of other prompts, which is the score of a model that ignores its prompt.  The judges of `held_out` stand
beside them, and the loss of the data set's own stories after their own prompts and after others: no story is sampled
for it, so it shows earlier that a model reads its prompts.

Shape suffixes: P = prompts, S = sampling seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, note
from lm_trials.estimates import Estimate, bootstrap_mean, mean_over_seeds, proportion, scale_of
from lm_trials.evaluation.constraint_tasks import Coverage, Task, task_prompts
from lm_trials.evaluation.held_out import UNITS as HELD_OUT_UNITS
from lm_trials.evaluation.held_out import HeldOut
from lm_trials.evaluation.inflections import StoryWords
from lm_trials.evaluation.judges import Judge
from lm_trials.evaluation.losses import Processes, Window, window_sums
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.storytellers import Storyteller
from lm_trials.tokens.tokenizers import batch_encoder

# Values of the column `judged`.
WRITTEN, OTHERS, LISTENING, RECORDS = "written", "others' constraints", "written less others'", "records' own"
CONSTRAINTS = {"words_used": "share of words", "features_present": "share of features", "satisfied": "share of stories"}
UNITS = {**CONSTRAINTS, "ended": "share of stories", "length": "words", "length_ratio": "ratio to the record's story"}
UNITS |= {**HELD_OUT_UNITS, "record_loss": "nats per story"}
# Other prompts that a story is judged against; with more, the control is no more exact than the prompts vary.
NUM_OTHERS = 10
# Records of the generated corpus have 124 words on average; 400 tokens is room for more than twice as long.
# Convention.
LONGEST_STORY = 400


@dataclass(frozen=True)
class Story:
    """A story with its words and features; `ended`: by the model, not by the token limit (None of a record's own)."""

    text: str
    words: StoryWords
    features: frozenset[str]
    ended: bool | None = None

    def constraints(self, task: Task, known: Sequence[str]) -> dict[str, float]:
        """Return how far the story meets a task's constraints; NaN for what the task does not ask for.

        `satisfied` is 1 for a story with all words and all features; features that the judge does not know are ignored.
        """
        words = self.words.share_used(task.words)
        asked = [feature for feature in task.features if feature in known]
        features = sum(feature in self.features for feature in asked) / len(asked) if asked else None
        given = [share for share in (words, features) if share is not None]
        return {
            "words_used": np.nan if words is None else words,
            "features_present": np.nan if features is None else features,
            "satisfied": float(min(given) == 1) if given else np.nan,
        }


@dataclass(frozen=True)
class Written:
    """The stories of one model.

    Attributes:
        seed: of its training.
        tasks: the P prompts that fit its positions.
        stories_PS: a story for each prompt and sampling seed.
        max_new_tokens: the limit of each story.
        losses_P2: of `record_losses`; None for prompts without a story of their own.
    """

    model: str
    seed: int | None
    mode: str
    tasks: list[Task]
    stories_PS: list[list[Story]]
    max_new_tokens: int
    losses_P2: np.ndarray | None = None


def judged(texts: Sequence[str], judge: Judge, ended: Iterable[bool | None]) -> list[Story]:
    """Return stories with their words and, by the judge, their features."""
    features = judge.features(texts)
    return [Story(t, StoryWords(t), has, end) for t, has, end in zip(texts, features, ended, strict=True)]


def write_for(
    teller: Storyteller,
    tasks: list[Task],
    judge: Judge,
    sampling: Sampling,
    seeds: list[int],
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Written:
    """Generate a story for each task and seed, all with the same token limit.

    Prompts that leave no room for `max_new_tokens`, or without it take more than half of the positions, are left out
    and counted.

    Raises:
        UsageError: if no prompt is left.
    """
    tasks, prompts, limit = fitting(teller, tasks, max_new_tokens)
    by_seed = [
        teller.write(
            prompts,
            [task.record_id for task in tasks],
            limit,
            replace(sampling, seed=seed),
            batch_size,
            by_length=True,
            description=f"{Path(teller.name).name} writes",
        )
        for seed in seeds
    ]
    stories_PS = []
    for ids_S in zip(*by_seed, strict=True):
        texts = [str(teller.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in ids_S]
        # A story that fills its limit did not end by itself. LoRA on a base that never saw EOS ended 0.345 of its
        # stories; all weights trained, 0.995.
        stories_PS.append(judged(texts, judge, [len(ids) < limit for ids in ids_S]))
    losses_P2 = record_losses(teller, tasks, prompts) if all(task.story for task in tasks) else None
    return Written(teller.name, teller.seed, teller.mode, tasks, stories_PS, limit, losses_P2)


def record_losses(teller: Storyteller, tasks: Sequence[Task], prompts: Sequence[list[int]]) -> np.ndarray:
    """Return (P, 2): the loss of each record's story after its own prompt and after the next one's, in nats per story.

    All tokens of the story count; NaN where it does not fit the model's positions.  The two are equal for a model that
    ignores its prompts.
    """
    stories = batch_encoder(teller.tokenizer)([task.story for task in tasks])
    windows: list[Window] = []
    sizes: list[int] = []
    for place, story in enumerate(stories):
        for prompt in (prompts[place], prompts[(place + 1) % len(prompts)]):
            ids = np.array([*prompt, *story])
            fits = len(ids) <= teller.positions
            windows += [Window(ids[:-1], ids[1:], np.full(len(ids) - 1, len(sizes)))] * fits
            sizes.append(len(story) if fits else 0)
    sums = window_sums(
        teller.model,
        windows,
        16,  # not --batch_size: the last digits depend on it, and no other number of the table does
        Processes(),
        lambda window, nats_T, _: [float(nats_T[-sizes[int(window.owners_T[0])] :].sum())],
    )
    losses = iter(sums)
    return np.array([next(losses)[0] if size else np.nan for size in sizes]).reshape(-1, 2)


def fitting(
    teller: Storyteller, tasks: list[Task], max_new_tokens: int | None
) -> tuple[list[Task], list[list[int]], int]:
    """Return the tasks whose prompts leave room for a story, their prompts' ids, and the limit of all stories.

    Raises:
        UsageError: if no prompt is left.
    """
    prompts = task_prompts(teller, tasks)
    # Half of the positions, so that at least as many remain for the story. Convention, not measured.
    longest = teller.positions - max_new_tokens if max_new_tokens else teller.positions // 2
    fits = [place for place, prompt in enumerate(prompts) if len(prompt) <= longest]
    if not fits:
        raise UsageError(
            f"--max_new_tokens: the shortest of {len(prompts)} prompts has {min(map(len, prompts)):,} tokens, and the "
            f"{teller.positions:,} positions of {teller.name} have room for {max(longest, 0):,}; give a smaller "
            "--max_new_tokens or shorter prompts"
        )
    if len(fits) < len(tasks):
        note(f"note: {len(tasks) - len(fits)} of {len(tasks)} prompts are left out (more than {longest:,} tokens)")
    prompts = [prompts[place] for place in fits]
    limit = max_new_tokens or min(LONGEST_STORY, teller.positions - max(map(len, prompts)))
    return [tasks[place] for place in fits], prompts, limit


def story_values(
    tasks: Sequence[Task], stories_PS: Sequence[Sequence[Story]], known: Sequence[str], held_out: HeldOut
) -> dict[str, np.ndarray]:
    """Return for each metric the (P,) means over a prompt's stories; NaN for a prompt without a value."""
    constraints = _means([[s.constraints(t, known) for s in of] for t, of in zip(tasks, stories_PS, strict=True)])
    ended_PS = [[np.nan if story.ended is None else float(story.ended) for story in of] for of in stories_PS]
    lengths_P = np.mean([[len(story.words.words) for story in of] for of in stories_PS], axis=1)
    own_P = np.array([len(StoryWords(task.story).words) or np.nan for task in tasks])
    return {
        **constraints,
        "ended": np.mean(ended_PS, axis=1),
        "length": lengths_P,
        "length_ratio": lengths_P / own_P,
        **held_out.values(tasks, [[story.text for story in of] for of in stories_PS]),
        **{
            f"has_{name}": np.mean([[name in story.features for story in of] for of in stories_PS], axis=1)
            for name in known
        },
    }


def values_for_others(
    tasks: Sequence[Task], stories_PS: Sequence[Sequence[Story]], known: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Return the (P,) means of a prompt's stories judged against the constraints of up to 10 other prompts."""
    # Other prompts as the control: a 260K-parameter model that was never asked used 0.046 of the words, and 0.029 of
    # the words of other prompts; difference 0.017 [-0.007, 0.038].
    places = np.random.default_rng(seed).permutation(len(tasks))
    rank = np.argsort(places)
    steps = range(1, min(NUM_OTHERS, len(tasks) - 1) + 1)
    values = []
    for place, of in enumerate(stories_PS):
        others = [tasks[places[(rank[place] + step) % len(tasks)]] for step in steps]
        values.append([story.constraints(task, known) for task in others for story in of])
    return _means(values)


def _means(values: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, np.ndarray]:
    """Return the (P,) means of each constraint without NaN; NaN for a prompt without a value."""
    found = {}
    for metric in CONSTRAINTS:
        rows = [[value[metric] for value in of if not np.isnan(value[metric])] for of in values]
        found[metric] = np.array([np.mean(row) if row else np.nan for row in rows])
    return found


def score_rows(
    tasks: Sequence[Task],
    stories_PS: Sequence[Sequence[Story]],
    known: Sequence[str],
    groups: Mapping[str, np.ndarray],
    seed: int = 0,
    held_out: HeldOut | None = None,
    losses_P2: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Score a model's stories beside the control, over all prompts and over each group.

    Args:
        known: features that the judge can detect.
        groups: the (P,) membership of each group of prompts.
        losses_P2: of `record_losses`.

    Returns:
        Rows of judged, slice, metric, estimate, lower, upper, n (prompts), unit.
    """
    written = story_values(tasks, stories_PS, known, held_out or HeldOut())
    if losses_P2 is not None:
        written["record_loss"] = losses_P2[:, 0]
    rows = _rows(WRITTEN, written, tasks, groups, seed)
    if len(tasks) > 1 and any(task.words or task.features for task in tasks):
        others = values_for_others(tasks, stories_PS, known, seed)
        if losses_P2 is not None:
            others["record_loss"] = losses_P2[:, 1]
        rows += _rows(OTHERS, others, tasks, groups, seed)
        difference = {metric: written[metric] - of for metric, of in others.items()}
        rows += _rows(LISTENING, difference, tasks, groups, seed, difference=True)
    return rows


def record_rows(
    tasks: Sequence[Task],
    judge: Judge,
    groups: Mapping[str, np.ndarray],
    seed: int = 0,
    held_out: HeldOut | None = None,
) -> list[dict[str, Any]]:
    """Score the data set's own stories in the same way; [] for prompts without a story."""
    if not all(task.story for task in tasks):
        return []
    stories = judged([task.story for task in tasks], judge, [None] * len(tasks))
    values = story_values(tasks, [[story] for story in stories], judge.known, held_out or HeldOut())
    values = {metric: of for metric, of in values.items() if metric not in ("ended", "length_ratio")}
    return _rows(RECORDS, values, tasks, groups, seed)


def _rows(
    what: str,
    values: Mapping[str, np.ndarray],
    tasks: Sequence[Task],
    groups: Mapping[str, np.ndarray],
    seed: int,
    difference: bool = False,
) -> list[dict[str, Any]]:
    slices = {"all": np.ones(len(tasks), dtype=bool), **{f"rarest_word={name}": has for name, has in groups.items()}}
    rows = []
    for metric, values_P in values.items():
        feature = metric.removeprefix("has_")
        parts, unit = slices, UNITS.get(metric, "share of stories")
        if feature != metric:  # the question is how often a feature is present if asked for, and if not
            asked_P = np.array([feature in task.features for task in tasks])
            parts = {f"asked={feature}": asked_P, f"asked!={feature}": ~asked_P}
        for name, members_P in parts.items():
            estimate = over_prompts(values_P[members_P], unit, seed, difference)
            if estimate is not None:
                rows.append({"judged": what, "slice": name, "metric": metric, **estimate.row()})
    return rows


def over_prompts(values_P: np.ndarray, unit: str, seed: int = 0, difference: bool = False) -> Estimate | None:
    """Estimate a mean over prompts, with all stories of a prompt resampled together; None without a value.

    If all values of a share are 0 or 1 the interval is Wilson's, else a bootstrap-t on the scale of shares, or of
    differences of shares; equal values have none.

    >>> print(over_prompts(np.array([1.0, np.nan, 1.0, 1.0]), "share of words"))
    1.000 [0.439, 1.000] share of words (n=3)
    """
    values_P = values_P[~np.isnan(values_P)]
    if not len(values_P):
        return None
    if unit.startswith("share") and not difference and np.isin(values_P, (0, 1)).all():
        return proportion(int(values_P.sum()), len(values_P), unit)
    return bootstrap_mean(values_P, unit, seed, scale=scale_of(unit, difference))


def arm_rows(rows_of_models: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the means over replicate models, with Student's t interval over them, of shares on the logit scale.

    >>> row = {"judged": WRITTEN, "slice": "all", "metric": "ended", "n": 50, "unit": "share of stories"}
    >>> (arm,) = arm_rows([[{**row, "estimate": estimate}] for estimate in (0.5, 0.6, 0.7)])
    >>> round(arm["estimate"], 3), round(arm["lower"], 3), round(arm["upper"], 3), arm["models"]
    (0.6, 0.348, 0.809, 3)
    """
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in (row for rows in rows_of_models for row in rows):
        found.setdefault((row["judged"], row["slice"], row["metric"]), []).append(row)
    arm = []
    for (what, name, metric), rows in found.items():
        n, unit = rows[0]["n"], rows[0]["unit"]
        scale = scale_of(unit, difference=what == LISTENING)
        estimate = mean_over_seeds([row["estimate"] for row in rows], n, unit, scale)
        arm.append({"judged": what, "slice": name, "metric": metric, **estimate.row(), "models": len(rows)})
    return arm


def score(
    written: list[Written],
    judge: Judge,
    coverage: Coverage | None,
    seed: int,
    held_out: Sequence[HeldOut] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of the table: each model's, of several models their arm's, and the data set's own stories'.

    Args:
        held_out: the judges of each model's stories.
    """
    held_out = held_out or [HeldOut()] * len(written)

    def groups(tasks: list[Task]) -> dict[str, np.ndarray]:
        return coverage.groups_of(tasks) if coverage else {}

    rows, of_models = [], []
    for one, judges in zip(written, held_out, strict=True):
        of_models.append(
            score_rows(one.tasks, one.stories_PS, judge.known, groups(one.tasks), seed, judges, one.losses_P2)
        )
        shared = {"row": "model", "model": one.model, "seed": one.seed, "models": 1}
        rows += [{**shared, **row} for row in of_models[-1]]
    if len(written) > 1:
        rows += [{"row": "arm", "model": f"mean of {len(written)} models", **row} for row in arm_rows(of_models)]
    tasks = max(written, key=lambda one: len(one.tasks)).tasks
    one_base = all(judges.base is held_out[0].base for judges in held_out)
    own = record_rows(tasks, judge, groups(tasks), seed, held_out[0] if one_base else replace(held_out[0], base=None))
    return rows + [{"row": "records", "model": "records' own stories", **row} for row in own]
