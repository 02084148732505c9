"""The values of a registered contrast: one number per run, and one difference per root seed, with its tests.

Losses are compared story by story, so that their interval is for new root seeds and new stories; the other outcomes are
one number per run, and their interval is for new root seeds.

Shape suffixes: A = arms, R = runs, S = root seeds, N = stories (1 where single stories are unknown).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lm_trials.console import UsageError, did_you_mean
from lm_trials.estimates import NO_INTERVAL, Estimate, bootstrap_mean, scale_of, t_test
from lm_trials.trials.effects import learning_curve, worth_tokens
from lm_trials.trials.evaluations import BITS, STORIES, SharedEvaluation, evaluated_sets, join_stories, settings_of
from lm_trials.trials.graph import run_folder
from lm_trials.trials.measurements import read_measurement
from lm_trials.trials.paired import SAME, TestedDifference
from lm_trials.trials.runs import Run, read_run
from lm_trials.trials.thresholds import UNIT, ThresholdTime, log_ratio_difference, time_of_injection, time_to_threshold
from lm_trials.trials.trial import ArmName, Contrast
from lm_trials.trials.two_way import two_way

SPLITS = ("train", "validation", "test")


@dataclass
class TrialRuns:
    """The runs under one folder, each read once."""

    folder: Path
    _read: dict[Path, Run] = field(default_factory=dict)

    def place(self, arm: ArmName, seed: int) -> Path:
        """Return the folder of the run of an arm, (stage, arm), with a root seed."""
        return run_folder(self.folder, *arm, seed)

    def run(self, arm: ArmName, seed: int) -> Run:
        """Return the run of an arm with a root seed; a UsageError where there is none, or another than it is named."""
        place = self.place(arm, seed)
        if place not in self._read:
            run = read_run(str(place))
            name = Path(str(run.logistics.get("run_name") or place)).name
            if name != place.name or any(run.replicate.get(of, seed) != seed for of in ("seed", "data_seed")):
                raise UsageError(
                    f"{place} holds another run: {name}, seed {run.replicate.get('seed')}; remove it and run the trial "
                    "again"
                )
            self._read[place] = run
        return self._read[place]


@dataclass(frozen=True)
class Outcome:
    """The values of one contrast.

    Attributes:
        values_AS: of each arm's runs, in `value_unit`; one row if the contrast is with 0.
        differences_SN: first minus second on the contrast's scale.  Their mean over stories is that of the root seed.
        unit: of the differences.
        n: stories, or root seeds.
        of_stories: whether single stories are known, and so an interval for new stories too.
        times: of each arm's runs, where the values are times to a threshold, which may be censored.
        notes: what a reader must know of the values.
    """

    contrast: Contrast
    seeds: tuple[int, ...]
    runs: tuple[tuple[Run, ...], ...]
    values_AS: np.ndarray
    value_unit: str
    differences_SN: np.ndarray
    unit: str
    of_stories: bool = False
    times: tuple[tuple[ThresholdTime, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many stories, or root seeds where single stories are unknown."""
        return self.differences_SN.shape[1 if self.of_stories else 0]

    @property
    def differences_S(self) -> np.ndarray:
        """The difference of each root seed."""
        return np.asarray(self.differences_SN.mean(axis=1))

    def test(self, null: float = 0.0) -> TestedDifference:
        """Test the mean difference against `null`: the headline, for new root seeds and, if known, new stories."""
        if not self.of_stories:
            return self.over_seeds(null)
        ones_N = np.ones(self.differences_SN.shape[1])
        return _moved(two_way(self.differences_SN - null, ones_N, self.unit), null)

    def over_seeds(self, null: float = 0.0) -> TestedDifference:
        """Test the mean difference for new root seeds, on these stories; shares on a scale from -1 to 1, as `compare`.

        There is no interval with one root seed, or where the root seeds do not differ.
        """
        if self.times:
            return log_ratio_difference(self.times[1], self.times[0], null)
        values_S, n = self.differences_S, len(self.seeds)
        mean, scale = float(values_S.mean()), scale_of(self.unit, difference=True)
        null = max(-1.0, min(null, 1.0)) if scale == "arctanh" else null  # beyond, no difference of shares lies
        lower, upper, p = *NO_INTERVAL, math.nan
        if n > 1 and np.ptp(values_S) > SAME * np.abs(self.values_AS).max():
            lower, upper, p = t_test(mean, float(values_S.std(ddof=1)) / math.sqrt(n), n - 1, scale, null)
        return TestedDifference(Estimate(mean, lower, upper, self.n, self.unit), p, "t over root seeds")

    def over_stories(self) -> Estimate | None:
        """Return the mean difference of these runs with its interval for new stories; None without single stories."""
        return bootstrap_mean(self.differences_SN.mean(axis=0), self.unit) if self.of_stories else None


def _moved(test: TestedDifference, by: float) -> TestedDifference:
    found = test.difference
    moved = replace(found, estimate=found.estimate + by, lower=found.lower + by, upper=found.upper + by)
    return replace(test, difference=moved)


def read_outcome(contrast: Contrast, runs: TrialRuns, seeds: Sequence[int]) -> Outcome:
    """Read the values of a contrast.

    Raises:
        UsageError: for a run, an evaluation, a table or a logged metric that is missing or is not alike in all runs.
    """
    arms = [arm for arm in (contrast.first, contrast.second) if arm is not None]
    of_arms = tuple(tuple(runs.run(arm, seed) for seed in seeds) for arm in arms)
    read = {"loss": _losses, "table": _table, "updates_to_threshold": _times}[contrast.outcome["measure"]]
    try:
        return read(contrast, runs, tuple(seeds), of_arms)
    except UsageError as error:
        # The readers of tables name the flags of `compare`, which are keys of a trial file.
        text = str(error).replace("--where", "where:").replace("--table", "table:")
        raise UsageError(f"{contrast.name}: {text}") from None


def _losses(
    contrast: Contrast, runs: TrialRuns, seeds: tuple[int, ...], of_arms: tuple[tuple[Run, ...], ...]
) -> Outcome:
    outcome, everyone = contrast.outcome, [run for arm in of_arms for run in arm]
    sets = outcome["dataset"] if isinstance(outcome["dataset"], list) else [outcome["dataset"]]
    feature = outcome.get("sentences_with")
    file = f"per_story-sentences-{feature}.parquet" if feature else STORIES
    places = [_evaluated(everyone, str(name), file) for name in sets]
    shared = [join_stories(everyone, place, file, outcome.get("unit") == BITS) for place in places]
    if len({each.unit for each in shared}) > 1:
        shared = [join_stories(everyone, place, file, in_bits=True) for place in places]
    values_R = np.mean([each.losses_RN.sum(axis=1) / each.sizes_N.sum() for each in shared], axis=0)
    values_AS = values_R.reshape(len(of_arms), len(seeds))
    notes = [f"{each.dataset}: {note}" for each in shared for note in each.notes]
    if "worth" in outcome and contrast.second is not None:
        curves = [learning_curve(run, str(outcome["worth"])) for run in of_arms[1]]
        worth = worth_tokens(values_AS[1], values_AS[0], curves)
        at_least = ", at least" if worth.bound else ""
        notes.append(f"{contrast.first[1]} is worth{at_least} {worth.difference} of {contrast.second[1]}")
    return Outcome(
        contrast,
        seeds,
        of_arms,
        values_AS,
        shared[0].unit,
        _story_differences(shared, len(seeds)),
        shared[0].unit,
        of_stories=True,
        notes=tuple(dict.fromkeys(notes)),
    )


def _evaluated(runs: Sequence[Run], name: str, file: str) -> str:
    """Return the folder under `eval` of a data set that all runs were evaluated on, given with or without its split."""
    for run in runs:
        found = evaluated_sets(run, file)
        places = [place for place in (name, *(f"{name}-{split}" for split in SPLITS)) if place in found]
        if not places:
            valid = did_you_mean(name, found) if found else "it has no evaluation"
            again = f"remove {run.folder / 'measured'} and run the trial again"
            raise UsageError(f"{run.name} has no eval/{name}/{file}; {valid}; {again}")
        if len(places) > 1:
            raise UsageError(
                f"{run.name} was evaluated on {' and '.join(places)}; remove the one that the trial does not measure"
            )
        place = run.folder / "eval" / places[0]
        model = Path(str(settings_of(run, places[0]).get("model_dir") or run.folder)).name
        if model != run.folder.name:
            raise UsageError(f"{place} is an evaluation of {model}; remove {run.folder / 'measured'} and run again")
    return places[0]


def _story_differences(shared: Sequence[SharedEvaluation], num_seeds: int) -> np.ndarray:
    """Return (root seeds, stories) whose mean over stories is each seed's difference: first arm minus second.

    A data set's difference is a ratio of sums; each story gets its linearised share of it, as in `two_way`, and the
    mean over data sets of equal weight.  A story in several sets is one story.
    """
    columns = {key: place for place, key in enumerate(dict.fromkeys(key for each in shared for key in each.keys))}
    differences_SN = np.zeros((num_seeds, len(columns)))
    mean = 0.0
    for each in shared:
        arms = each.losses_RN.reshape(-1, num_seeds, len(each.sizes_N))
        own_SN = arms[0] - (arms[1] if len(arms) > 1 else 0.0)
        ratio = own_SN.mean(axis=0).sum() / each.sizes_N.sum()
        places = [columns[key] for key in each.keys]
        differences_SN[:, places] += (own_SN - ratio * each.sizes_N) / each.sizes_N.sum() / len(shared)
        mean += ratio / len(shared)
    return differences_SN * len(columns) + mean


def _table(
    contrast: Contrast, runs: TrialRuns, seeds: tuple[int, ...], of_arms: tuple[tuple[Run, ...], ...]
) -> Outcome:
    where = contrast.outcome.get("where") or {}
    conditions = [f"{column}={value}" for column, value in where.items()] if isinstance(where, Mapping) else where
    everyone = [run for arm in of_arms for run in arm]
    found = read_measurement(everyone, str(contrast.outcome["table"]), [str(each) for each in conditions])
    return _numbers(contrast, seeds, of_arms, found.estimates, notes=found.notes)


def _times(
    contrast: Contrast, runs: TrialRuns, seeds: tuple[int, ...], of_arms: tuple[tuple[Run, ...], ...]
) -> Outcome:
    of_all = [(run, _time(contrast, runs, run, seed)) for arm in of_arms for run, seed in zip(arm, seeds, strict=True)]
    notes = []
    for what, name in (("not reached by the horizon", "censored"), ("reached at the first evaluation", "early")):
        if found := [run.name for run, time in of_all if getattr(time, name)]:
            notes.append(f"{what}: {', '.join(found)}")
    times = [time for _, time in of_all]
    estimates = [Estimate(time.update, math.nan, math.nan, 1, "updates") for time in times]
    first, second = tuple(times[: len(seeds)]), tuple(times[len(seeds) :])
    return replace(_numbers(contrast, seeds, of_arms, estimates, notes), unit=UNIT, times=(first, second))


def _time(contrast: Contrast, runs: TrialRuns, run: Run, seed: int) -> ThresholdTime:
    metric, threshold = str(contrast.outcome["metric"]), contrast.outcome["threshold"]
    if isinstance(threshold, Mapping) and "injection" in threshold:
        reference, horizon = runs.run(tuple(threshold["reference"]), seed), contrast.outcome.get("horizon")
        return time_of_injection(run, reference, metric, threshold["injection"], float(threshold["share"]), horizon)
    if isinstance(threshold, Mapping):
        (reference, start) = (runs.run(tuple(threshold[key]), seed) for key in ("reference", "from"))
        step, first = start.logged(metric)[0]
        if step != 0:
            where = f"stages.{threshold['from'][0]}"
            raise UsageError(f"{start.name} logged no {metric} at update 0; add `eval_on_start: True` to {where}")
        level = reference.logged(str(threshold.get("reference_metric", metric)))[-1][1]
        threshold = level + float(threshold["share"]) * (first - level)
    steps, values = zip(*run.logged(metric), strict=True)
    horizon = contrast.outcome.get("horizon") or run.outcome["max_steps"]
    return time_to_threshold(steps, values, float(threshold), float(horizon))


def _numbers(
    contrast: Contrast,
    seeds: tuple[int, ...],
    of_arms: tuple[tuple[Run, ...], ...],
    estimates: Sequence[Estimate],
    notes: Sequence[str],
) -> Outcome:
    """Return the outcome of one number per run, on the contrast's scale."""
    everyone, unit = [run for arm in of_arms for run in arm], estimates[0].unit
    scaled = [_scaled(contrast.scale, each, run) for each, run in zip(estimates, everyone, strict=True)]
    values_AS, scaled_AS = (
        np.array(numbers).reshape(len(of_arms), len(seeds))
        for numbers in ([each.estimate for each in estimates], scaled)
    )
    differences_S = scaled_AS[0] - (scaled_AS[1] if len(of_arms) > 1 else 0.0)
    shown = unit if contrast.scale == "identity" else f"{contrast.scale} of {unit}"
    return Outcome(contrast, seeds, of_arms, values_AS, unit, differences_S[:, None], shown, notes=tuple(notes))


def _scaled(scale: str, found: Estimate, run: Run) -> float:
    """Return a number on a scale; a share of none or all has a finite logit, as half a case is added to both sides.

    >>> run = Run(Path(), "runs/a", {}, {}, {}, None, None)
    >>> round(_scaled("logit", Estimate(1.0, 0, 1, 20, "share"), run), 3)
    3.714
    """
    value, n = found.estimate, found.n
    if scale == "identity":
        return value
    if scale == "logit" and 0 <= value <= 1:
        return math.log((value * n + 0.5) / ((1 - value) * n + 0.5))
    if scale != "logit" and value > 0:
        return math.log(value) if scale == "log" else math.log2(value)
    raise UsageError(f"{run.name} has {value:g} {found.unit}, which has no {scale}; choose another `scale`")
