"""Undoing: what share of a deletion a change of the weights takes back, beside what its controls take back.

Shape suffixes: N = stories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_trials.estimates import Estimate, StoryBootstrap
from lm_trials.probing.findings import interval, one_more
from lm_trials.probing.weights.edits import Trial

NATS = "nats per token"
LEAST_HALVED = 16
"""Stories from which on a level is chosen on one half of them and told on the other."""


class Deletion:
    """What the second model's loss on the deleted feature's stories has risen by, and what undoes it.

    Args:
        base, changed: nats and tokens of each story, (N, 2).
    """

    def __init__(self, base: np.ndarray, changed: np.ndarray, seed: int) -> None:
        self.base, self.changed, self.seed = base, changed, seed

    def _estimate(self, statistic: Any, unit: str, *sums: np.ndarray) -> Estimate:
        bootstrap = StoryBootstrap(self.seed)  # the same stories are drawn for every variant, so they are paired
        nats = [values[:, 0] for values in (self.changed, self.base, *sums)]
        bootstrap.update(np.stack([*nats, self.changed[:, 1]], axis=1))
        return bootstrap.estimate(statistic, unit)

    @property
    def size(self) -> Estimate:
        """How far the loss rose."""
        return self._estimate(lambda s: (s[..., 0] - s[..., 1]) / s[..., -1], NATS)

    @property
    def shown(self) -> bool:
        """Whether it rose at all."""
        return self.size.lower > 0

    def part(self, rows: slice) -> Deletion:
        """Return the same of some of the stories."""
        return Deletion(self.base[rows], self.changed[rows], self.seed)

    def undone(self, trial: np.ndarray) -> Estimate:
        """Return the share of the rise that a variant takes back: 0 none of it, 1 all, below 0 it adds to it."""
        unit = "share of the deletion undone"
        return self._estimate(lambda s: (s[..., 0] - s[..., 2]) / (s[..., 0] - s[..., 1]), unit, trial)

    def beyond(self, trial: np.ndarray, control: np.ndarray) -> Estimate:
        """Return how much more of it one variant takes back than another, on the same stories."""
        unit = "share of the deletion undone, more than the control"
        return self._estimate(lambda s: (s[..., 3] - s[..., 2]) / (s[..., 0] - s[..., 1]), unit, trial, control)


def loss_of(sums: np.ndarray, seed: int) -> Estimate:
    """Return a mean loss with its interval over stories."""
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(sums)
    return bootstrap.estimate(lambda s: s[..., 0] / s[..., 1], NATS)


def rise_of(sums: np.ndarray, before: np.ndarray, seed: int) -> Estimate:
    """Return by how much a loss is above another on the same stories."""
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(np.stack([sums[:, 0] - before[:, 0], sums[:, 1]], axis=1))
    return bootstrap.estimate(lambda s: s[..., 0] / s[..., 1], NATS)


def chosen_level(deletion: Deletion, trials: Sequence[Trial], name: str) -> tuple[int, bool]:
    """Return the first level at which half of the deletion is undone, and that it is; else the best level."""
    shares = {trial.level: deletion.undone(trial.sums[name]) for trial in sorted(trials, key=lambda t: t.level)}
    half = next((level for level, share in shares.items() if share.lower > 0.5), None)
    return (half, True) if half is not None else (max(shares, key=lambda level: shares[level].estimate), False)


def undoing(
    deletion: Deletion, trials: Sequence[Trial], name: str, methods: Sequence[str], what: str
) -> tuple[str, str]:
    """Say at which level half of the deletion is undone by the first of `methods`, and what the others do there.

    The level is chosen on every other story and told on the rest: of many levels one is always the best.

    Args:
        name: of the deleted feature's set.
        what: a template of what the level counts, as "removing the {} largest directions".
    """
    halved = len(deletion.base) >= LEAST_HALVED
    choosing, telling = (slice(0, None, 2), slice(1, None, 2)) if halved else (slice(None), slice(None))
    first = [trial for trial in trials if trial.method == methods[0]]
    part = [Trial(t.method, t.role, t.level, {name: t.sums[name][choosing]}) for t in first]
    level, _ = chosen_level(deletion.part(choosing), part, name)
    told = deletion.part(telling)
    share = told.undone(next(trial for trial in first if trial.level == level).sums[name][telling])
    words = what.format(f"{level:,}")
    where = f"{share.n} stories that {'did not choose' if halved else 'chose, too few to halve,'} the number"
    sentence = f"{words} undoes {interval(share)} of it ({where})"
    if not share.lower > 0.5:
        half = "half of it is not undone" if share.upper < 0.5 else "half of it is not shown to be undone"
        nothing = half if share.lower > 0 else "nothing of it is shown to be undone"
        sentence = f"{nothing}: at best, {sentence}"
    chosen = next(trial for trial in first if trial.level == level).sums[name][telling]
    controls = {trial.method: trial for trial in trials if trial.level == level and trial.method in methods[1:]}
    if not controls:
        return sentence, f"{words}: no control"
    found = {method: _control(told, trial, name, telling) for method, trial in controls.items()}
    strongest = max(found, key=lambda method: found[method].estimate)
    beyond = told.beyond(chosen, controls[strongest].sums[name][telling])
    reach = _reach(told, controls[strongest], name, telling)
    beyond = Estimate(beyond.estimate, beyond.lower - reach, beyond.upper + reach, beyond.n, beyond.unit)
    verdict = "more than" if beyond.lower > 0 else "less than" if beyond.upper < 0 else "no more than"
    control = f"in place of {words}, " + ", ".join(f"{method} {interval(share)}" for method, share in found.items())
    return f"{sentence}, {verdict} {strongest} (difference {interval(beyond)})", control


def _reach(deletion: Deletion, trial: Trial, name: str, rows: slice) -> float:
    """Return how far from the mean of a control's draws one more would lie with 95 %; 0 where it is not drawn."""
    if len(trial.draws) < 2:
        return 0.0
    more = one_more(np.array([deletion.undone(sums[name][rows]).estimate for sums in trial.draws]), "share")
    return more.upper - more.estimate


def _control(deletion: Deletion, trial: Trial, name: str, rows: slice) -> Estimate:
    """Return what a control undoes, the spread of its draws beside that of the stories."""
    share, reach = deletion.undone(trial.sums[name][rows]), _reach(deletion, trial, name, rows)
    return Estimate(share.estimate, share.lower - reach, share.upper + reach, share.n, share.unit)
