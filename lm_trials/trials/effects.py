"""Sizes of effects: equivalence within a margin, and a difference of losses as a number of training tokens.

Shape suffixes: E = evaluations of a run, S = root seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_trials.console import UsageError
from lm_trials.estimates import Estimate
from lm_trials.files import read_object
from lm_trials.trials.runs import STATE_FILE, Run
from lm_trials.trials.thresholds import BoundedDifference, bounded_mean

UNIT = "% more training tokens"
NEAR, FURTHEST = 1.1, 2.0  # times a run's tokens: continued to the first as good as measured, beyond the second never
FITTED = 4.0  # the slope is fitted to the evaluations after the first fourth of the tokens


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (TOST, Schuirmann 1987) of a difference against a margin.

    Attributes:
        interval: the difference with its 90 % interval, which lies within the margin if `p` is below 0.05.
        p_lower: of the difference not being above -margin: the test of "not lower by the margin or more".
        p_upper: of the difference not being below +margin: non-inferiority, where less is better.
    """

    interval: Estimate
    margin: float
    p_lower: float
    p_upper: float

    @property
    def p(self) -> float:
        """The larger p value: of the difference not being within the margin."""
        return max(self.p_lower, self.p_upper)


def equivalence(difference: Estimate, freedom: float, margin: float) -> Equivalence:
    """Test whether a difference is within a margin on both sides.

    Args:
        difference: with its 95 % t interval, from which the standard error is taken; NaN limits give NaN.
        freedom: degrees of freedom of that interval; over S root seeds, S - 1.
        margin: above 0, in the difference's unit, chosen before the runs.

    Raises:
        ValueError: for a margin that is not above 0.

    >>> from lm_trials.estimates import mean_over_seeds
    >>> over_seeds = mean_over_seeds([0.01, -0.01, 0.02, 0.0], n=500, unit="nats per token")
    >>> found = equivalence(over_seeds, freedom=3, margin=0.03)
    >>> str(found.interval), round(found.p, 3)
    ('0.005 [-0.010, 0.020] nats per token (n=500)', 0.015)
    """
    from scipy import special  # takes a while to import

    if not margin > 0:
        raise ValueError(f"margin {margin} must be above 0")
    error = (difference.upper - difference.lower) / (2 * float(special.stdtrit(freedom, 0.975)))
    half = float(special.stdtrit(freedom, 0.95)) * error
    mean = difference.estimate
    interval = Estimate(mean, mean - half, mean + half, difference.n, difference.unit)
    p_lower, p_upper = (float(special.stdtr(freedom, -(margin + side * mean) / error)) for side in (1, -1))
    return Equivalence(interval, margin, p_lower, p_upper)


@dataclass(frozen=True)
class LearningCurve:
    """The losses of a run's evaluations during training, over its training tokens up to each."""

    tokens_E: np.ndarray
    losses_E: np.ndarray


def learning_curve(run: Run, metric: str = "eval_loss") -> LearningCurve:
    """Read a run's learning curve from its `trainer_state.json`.

    Args:
        metric: `eval_loss`, or `eval_<name>_loss` of a data set of `--eval_datasets`.

    Raises:
        UsageError: for a run with fewer than three evaluations after update 0.
    """
    rows = read_object(run.folder / STATE_FILE).get("log_history", [])
    losses = {row["step"]: row[metric] for row in rows if row.get(metric) is not None and row.get("step")}
    if len(losses) < 3:
        raise UsageError(
            f"{run.name}: {len(losses)} evaluations of {metric} during its training are no learning curve; train with "
            "--eval_strategy steps, or --dense_eval_steps"
        )
    steps_E = np.array(sorted(losses), dtype=np.float64)
    per_update = run.num_tokens / run.outcome["max_steps"]
    return LearningCurve(steps_E * per_update, np.array([losses[step] for step in sorted(losses)]))


def worth_tokens(
    loss_first_S: Sequence[float], loss_second_S: Sequence[float], curves_S: Sequence[LearningCurve]
) -> BoundedDifference:
    """Return how many more tokens the second arm is worth: those the first needs to reach the second's loss.

    For each root seed, the first arm's own curve (an antitonic regression of log loss on log tokens, scaled to end at
    its loss) gives the tokens at which it has the second's loss, relative to all its tokens.  The mean and the t
    interval are over root seeds, of the logarithm.  -20 %: the first arm equals the second with 80 % of its tokens.

    - A second arm better than the first's end: the curve is continued as a power law, fitted to the evaluations after
      the first fourth of the tokens, up to twice the tokens.  Curves flatten, so a result from more than 1.1 times the
      tokens is "at least".
    - A second arm worse than the first's first evaluation has "at most" the tokens of that evaluation.
    - A learning rate that decays (cosine, linear) makes the loss within a run higher than that of a finished run of as
      many tokens, and the curve steeper.  Both make the effect look smaller.  A constant rate has no such bias.

    Args:
        loss_first_S, loss_second_S: final losses, above 0, paired by root seed.
        curves_S: the first arm's curves, of the same loss or one that is proportional to it.

    Returns:
        the difference in %, NaN if a seed's curve does not fall; `censored` counts the seeds worse than the first
        evaluation and those beyond twice the tokens.

    >>> tokens = np.array([1e6, 2e6, 4e6, 8e6])
    >>> curves = [LearningCurve(tokens, 3 * tokens**-0.1) for _ in range(3)]
    >>> first = [curve.losses_E[-1] for curve in curves]
    >>> str(worth_tokens(first, [loss * ratio for loss, ratio in zip(first, (1.05, 1.06, 1.07))], curves).difference)
    '-44.144 [-55.814, -29.392] % more training tokens (n=3)'
    >>> better = worth_tokens(first, [loss * ratio for loss, ratio in zip(first, (0.97, 0.96, 0.98))], curves)
    >>> better.bound, str(better.difference)
    (True, '35.655 [5.005, inf] % more training tokens (n=3)')
    """
    pairs = zip(loss_first_S, loss_second_S, curves_S, strict=True)
    ratios_S = np.array([_log_ratio(math.log(second / first), curve) for first, second, curve in pairs])
    before_S, beyond_S = np.isneginf(ratios_S), np.isposinf(ratios_S)
    starts_S = [math.log(curve.tokens_E[0] / curve.tokens_E[-1]) for curve in curves_S]
    ratios_S = np.clip(ratios_S, starts_S, math.log(FURTHEST))
    exact = int((~(before_S | beyond_S)).sum())
    found = bounded_mean(ratios_S, ratios_S > math.log(NEAR), before_S, UNIT, exact)
    logs = found.difference
    mean, lower, upper = (100 * math.expm1(log) for log in (logs.estimate, logs.lower, logs.upper))
    method = f"{found.method}, of log tokens on the reference's learning curve"
    censored = (int(before_S.sum()), int(beyond_S.sum()))
    return BoundedDifference(Estimate(mean, lower, upper, logs.n, UNIT), found.p, method, censored, found.bound)


def _log_ratio(rise: float, curve: LearningCurve) -> float:
    """Return the log of the tokens, relative to all, at which the log loss is `rise` above that of the curve's end.

    -inf before the first evaluation, inf beyond `FURTHEST`, NaN on a curve that does not fall.
    """
    from scipy import optimize  # takes most of a second to import

    tokens_E, losses_E = np.log(curve.tokens_E / curve.tokens_E[-1]), np.log(curve.losses_E)
    if rise < 0:
        late_E = tokens_E >= -math.log(FITTED)
        slope = np.polyfit(tokens_E[late_E], losses_E[late_E], 1)[0] if late_E.sum() > 1 else 0.0
        if slope >= 0:
            return math.nan
        return rise / slope if rise / slope < math.log(FURTHEST) else math.inf
    fit = optimize.isotonic_regression(losses_E, increasing=False)
    levels = fit.x[fit.blocks[:-1]]
    if len(levels) < 2:
        return math.nan
    # A level of several evaluations has its place in their middle, the last one at the end of the run.
    places = [tokens_E[start:end].mean() for start, end in itertools.pairwise(fit.blocks)]
    return float(np.interp(-rise, levels[-1] - levels, [*places[:-1], 0.0], left=-math.inf))
