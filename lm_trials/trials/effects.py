"""The size of an effect: a difference of losses as a number of training tokens.

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
from lm_trials.trials.runs import Run
from lm_trials.trials.thresholds import BoundedDifference, bounded_mean

UNIT = "% more training tokens"
NEAR, FURTHEST = 1.1, 2.0  # times a run's tokens: continued to the first as good as measured, beyond the second never
FITTED = 4.0  # the slope is fitted to the evaluations after the first fourth of the tokens


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
    losses = {step: loss for step, loss in run.logged(metric) if step}
    if len(losses) < 3:
        raise UsageError(
            f"{run.name}: {len(losses)} evaluations of {metric} during its training are no learning curve; train with "
            "--eval_strategy steps, or --dense_eval_steps"
        )
    per_update = run.num_tokens / run.outcome["max_steps"]
    return LearningCurve(np.array(list(losses)) * per_update, np.array(list(losses.values())))


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
