"""Time to a threshold: the update from which a metric stays below it, and the ratio of two arms' times.

A run that has not reached the threshold at the horizon has a censored time: the true one is later.  A ratio with one
censored time is a bound.  The horizon is chosen before the runs: a later one gives other times.

Shape suffixes: E = evaluations of a run, S = root seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_trials.console import UsageError
from lm_trials.estimates import NO_INTERVAL, Estimate, t_test
from lm_trials.trials.paired import TestedDifference
from lm_trials.trials.runs import Run

UNIT = "log2 ratio of updates"


@dataclass(frozen=True)
class ThresholdTime:
    """The update from which a metric stays below a threshold.

    Attributes:
        update: the time; a lower bound if `censored`, an upper bound if `early`.
        censored: the metric is not below the threshold at the last evaluation up to the horizon, which is `update`.
        early: the metric is below it at every evaluation, of which `update` is the first after update 0.
    """

    update: float
    censored: bool
    early: bool = False


@dataclass(frozen=True)
class BoundedDifference(TestedDifference):
    """A difference that may be a bound, because some of its numbers are.

    Attributes:
        difference: with the limit inf (or -inf) where `bound` leaves the side open.
        censored: the number of censored times of the first and of the second arm.
        bound: whether the difference is "at least" the estimate (or "at most", if its lower limit is -inf).
    """

    censored: tuple[int, int] = (0, 0)
    bound: bool = False


def time_to_threshold(
    steps_E: Sequence[float], values_E: Sequence[float], threshold: float, horizon: float
) -> ThresholdTime:
    """Return the update from which a metric stays below a threshold until the horizon.

    Between the last evaluation that is not below the threshold and the next one, the metric is taken as linear in the
    logarithm of the updates.  A dip below the threshold that does not last does not count, so noise delays the time.

    Args:
        steps_E: updates, ascending; the evaluation at update 0 has no logarithm and is not used.
        values_E: the metric; NaN is not below the threshold.

    Raises:
        UsageError: for evaluations that do not reach the horizon, or none up to it.

    >>> time_to_threshold([1, 10, 100], [3.0, 2.0, 1.0], threshold=1.5, horizon=100)
    ThresholdTime(update=31.62..., censored=False, early=False)
    >>> time_to_threshold([1, 10, 100], [3.0, 1.0, 2.0], threshold=1.5, horizon=100)
    ThresholdTime(update=100.0, censored=True, early=False)
    """
    steps, values = np.asarray(steps_E, dtype=np.float64), np.asarray(values_E, dtype=np.float64)
    within = (steps > 0) & (steps <= horizon)
    if not within.any() or steps[-1] < horizon:
        raise UsageError(
            f"horizon {horizon:g}: the run was evaluated at {len(steps)} updates, the last {max(steps, default=0):g}; "
            "choose a horizon within them, or train longer"
        )
    steps, gaps = steps[within], values[within] - threshold
    waiting = np.flatnonzero(~(gaps < 0))
    if not waiting.size:
        return ThresholdTime(float(steps[0]), censored=False, early=True)
    last = waiting[-1]
    if last == len(steps) - 1:
        return ThresholdTime(float(steps[last]), censored=True)
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return ThresholdTime(float(steps[last] * (steps[last + 1] / steps[last]) ** share), censored=False)


def time_of_injection(
    run: Run, reference: Run, metric: str, which: str, share: float, horizon: float | None = None
) -> ThresholdTime:
    """Return how fast a run learned or forgot what was injected into its data (`train --inject`).

    What it learned is how far its metric is below that of a run without the injection, at the same update: the metric
    falls in both, as both learn from the other data.

    Args:
        which: "learned": updates of the injection until this share of what it has taught at its end stays learned;
            "forgotten": updates after it until this share stays forgotten.
        horizon: updates after the injection; default: to the end of the run.

    Raises:
        UsageError: for a run without one injection, a metric that was not logged at its end, or an injection without
            effect.
    """
    first, last = _injection(run)
    values, others = dict(run.logged(metric)), dict(reference.logged(metric))
    gaps = {step: others[step] - value for step, value in values.items() if step in others}
    if last not in gaps:
        raise UsageError(
            f"{run.name} or {reference.name} logged no {metric} at update {last}, the end of the injection; choose "
            "eval_steps that divide it"
        )
    if not (taught := gaps[last]) > 0:
        raise UsageError(f"{run.name}: the injection did not lower {metric} below that of {reference.name}")
    if which == "learned":
        steps, learned = zip(*((step - first + 1, -gap) for step, gap in gaps.items() if step <= last), strict=True)
        return time_to_threshold(steps, learned, -share * taught, last - first + 1)
    steps = tuple(step - last for step in gaps)
    return time_to_threshold(steps, tuple(gaps.values()), (1 - share) * taught, horizon or steps[-1])


def _injection(run: Run) -> tuple[int, int]:
    """Return the first and the last update of the phase of a run's schedule that reads the second part of its data."""
    phases = json.loads(str(run.outcome.get("order_schedule") or "[]"))
    shares = [float(str(phase.get("data_mix") or "1,0").split(",")[1]) for phase in phases]
    spans = [phase["updates"] for phase, share in zip(phases, shares, strict=True) if share and "updates" in phase]
    if len(spans) != 1:
        raise UsageError(f"{run.name} has {len(spans) or 'no'} injections; a time needs one, as of `inject: NAME@9-20`")
    first, _, last = str(spans[0]).partition("-")
    return int(first), int(last or first)


def log_ratio_difference(
    first_S: Sequence[ThresholdTime], second_S: Sequence[ThresholdTime], null: float = 0.0
) -> BoundedDifference:
    """Compare two arms' times in pairs of equal root seeds: the mean of log2(second / first), and p against `null`.

    Without censored times: Student's t.  If all bounds point one way (the second arm's times censored, or the first's
    early), the mean is "at least": one limit of a t interval if three pairs or more are exact (see `bounded_mean`),
    else of the Mann-Whitney test, which does not use the pairs and needs four root seeds.  Bounds that point both ways
    have no interval, and p of the Mann-Whitney test, in which censored times are ties.  The log-rank test is not used:
    at 3 to 5 seeds it rejects 6 to 10 % of true null hypotheses at 5 %.

    Raises:
        ValueError: for arms with different numbers of times.

    >>> first, second = [ThresholdTime(u, False) for u in (10, 11, 9)], [ThresholdTime(u, False) for u in (40, 50, 33)]
    >>> str(log_ratio_difference(first, second).difference)
    '2.020 [1.632, 2.407] log2 ratio of updates (n=3)'
    >>> first, never = [ThresholdTime(u, False) for u in (10, 11, 9, 20)], [ThresholdTime(300, True)] * 4
    >>> str(log_ratio_difference(first, never).difference)
    '4.661 [3.907, inf] log2 ratio of updates (n=4)'
    """
    pairs = list(zip(first_S, second_S, strict=True))
    at_least_S = np.array([second.censored or first.early for first, second in pairs])
    at_most_S = np.array([first.censored or second.early for first, second in pairs])
    logs_2S = np.log2([[time.update for time in times] for times in (first_S, second_S)])
    found = bounded_mean(logs_2S[1] - logs_2S[0] - null, at_least_S, at_most_S, UNIT)
    whole, p, method = found.difference, found.p, found.method
    lower, upper = whole.lower + null, whole.upper + null
    if math.isnan(whole.lower) and (at_least_S | at_most_S).any():
        p, method = _rank_p(first_S, second_S, null), "Mann-Whitney over root seeds, not paired"
        if found.bound:
            lower, upper = _rank_limits(logs_2S, bool(at_least_S.any()))
    difference = Estimate(whole.estimate + null, lower, upper, whole.n, UNIT)
    censored = (sum(time.censored for time in first_S), sum(time.censored for time in second_S))
    return BoundedDifference(difference, p, method, censored, found.bound)


def _rank_p(first_S: Sequence[ThresholdTime], second_S: Sequence[ThresholdTime], null: float) -> float:
    """Return p of the Mann-Whitney test of log2(second / first) against `null`; what is only bounded is tied."""
    from scipy import stats  # takes most of a second to import

    if len(first_S) < 2:
        return math.nan
    shifted = [(time, time.update * 2**null) for time in first_S] + [(time, time.update) for time in second_S]
    # Both arms are cut off at the same times, so that under the null hypothesis they have one distribution.
    most = min((update for time, update in shifted if time.censored), default=math.inf)
    least = max((update for time, update in shifted if time.early), default=0.0)
    updates = np.clip([update for _, update in shifted], least, most)
    return float(stats.mannwhitneyu(updates[: len(first_S)], updates[len(first_S) :]).pvalue)


def _rank_limits(logs_2S: np.ndarray, at_least: bool) -> tuple[float, float]:
    """Return the limit of a shift of the second arm that the Mann-Whitney test gives, and the open side.

    It is the k-th of the sorted differences between all times of the arms (Hodges and Lehmann 1963), here with k by the
    normal approximation, which for 4 to 12 seeds is that of the exact test or one less.  Moving bounds further out
    moves no limit in, so bounds make it no narrower.
    """
    n = logs_2S.shape[1]
    place = math.floor(n * n / 2 - 1.96 * n * math.sqrt((2 * n + 1) / 12))
    if place < 1:
        return NO_INTERVAL
    differences = np.sort((logs_2S[1][:, None] - logs_2S[0]).ravel())
    return (float(differences[place - 1]), math.inf) if at_least else (-math.inf, float(differences[-place]))


def bounded_mean(
    values_S: np.ndarray, at_least_S: np.ndarray, at_most_S: np.ndarray, unit: str, exact: int | None = None
) -> BoundedDifference:
    """Return the mean over root seeds of values of which some are bounds, with a t interval and p against 0.

    Bounds all of one direction bound the mean, so one limit remains and the other is infinite.  Values cut off at
    their bounds vary too little, and Student's t would then be too sure: of 5 normal values cut off at their 80 %
    quantile its lower limit lay above the mean of the uncut ones in 3.3 % of cases instead of 2.5 %.  With degrees of
    freedom of the exact values alone it was 1.4 %, and at most 2.5 % for 3 to 12 seeds and any quantile.  With fewer
    than three exact values there is no interval.

    Args:
        at_least_S, at_most_S: whether each value is a lower or an upper bound; both if nothing is known.
        exact: number of values whose spread counts; by default those that are no bounds.

    >>> values, none = np.array([1.0, 2.0, 1.5, 2.5]), np.zeros(4, dtype=bool)
    >>> str(bounded_mean(values, np.array([False, True, False, False]), none, "log2").difference)
    '1.750 [0.361, inf] log2 (n=4)'
    """
    bounds_S = at_least_S | at_most_S
    bound, known = bool(bounds_S.any()), not (at_least_S.any() and at_most_S.any())
    freedom = (int((~bounds_S).sum()) if exact is None else exact) - 1
    mean = float(values_S.mean())
    lower, upper, p = math.nan, math.nan, math.nan
    if known and freedom > (1 if bound else 0) and np.ptp(values_S) > 0:
        error = float(values_S.std(ddof=1)) / math.sqrt(len(values_S))
        lower, upper, p = t_test(mean, error, freedom)
        if at_least_S.any():  # the true mean may be further up, so that nothing speaks for one further down
            upper, p = math.inf, p if mean > 0 else 1.0
        if at_most_S.any():
            lower, p = -math.inf, p if mean < 0 else 1.0
    method = "t over root seeds" + (", freedom of the exact values" if bound else "")
    return BoundedDifference(Estimate(mean, lower, upper, len(values_S), unit), p, method, bound=bound and known)
