"""Results of the attention probe: which head has most of what, beside the controls, and what changed between models.

The largest of many heads is large by the choosing alone.  So a head is chosen on one half of the stories and reported
on the other, and the control has its choice too: the largest head of each of several untrained models.

Shape suffixes: N = stories or sequences, L = layers, H = heads, S = statistics, D = untrained models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lm_trials.console import show_table
from lm_trials.estimates import Estimate, bootstrap_mean, bootstrap_means
from lm_trials.probing.attention.flags import OF_STORIES, STATISTICS
from lm_trials.probing.attention.statistics import Measured, Reading, even_statistics
from lm_trials.probing.findings import Finding, interval, one_more

UNTRAINED, EVEN, UNREPEATED, ALL_HEADS = "untrained", "even attention", "not repeated", "all heads"


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split stories by chance into those that a head is chosen on and those that it is reported on.

    >>> [half.tolist() for half in halves(5, seed=0)]
    [[0, 3], [1, 2, 4]]
    """
    order = np.random.default_rng([seed, count]).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def chosen_head(values_NLH: np.ndarray, most: bool) -> tuple[int, int]:
    """Return layer and head with the largest mean, or the smallest.

    >>> chosen_head(np.array([[[0.1, 0.2], [0.4, 0.3]]]), most=True)
    (1, 0)
    """
    means_LH = values_NLH.mean(axis=0)
    layer, head = np.unravel_index((means_LH if most else -means_LH).argmax(), means_LH.shape)
    return int(layer), int(head)


@dataclass(frozen=True)
class Control:
    """What a head is set beside on the same stories: its value, and by how much the head differs, paired by story."""

    value: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Leader:
    """The head of a model with the most (or least) of something, on stories that it was not chosen on."""

    model: Measured
    statistic: str
    layer: int
    head: int
    estimate: Estimate
    controls: dict[str, Control]

    @property
    def within(self) -> list[str]:
        """The controls that it is not beyond: the interval of the difference does not lie on the side looked for."""
        most = STATISTICS[self.statistic].most
        differences = {name: control.difference for name, control in self.controls.items()}
        return [name for name, apart in differences.items() if not (apart.lower > 0 if most else apart.upper < 0)]


@dataclass(frozen=True)
class Results:
    """All that was measured, and what follows from it.

    Attributes:
        models: in the order in which they were read.
        untrained: models of the same shape with random weights.
        reading: what all of them read.
        seed: of the halves and the intervals.
    """

    models: Sequence[Measured]
    untrained: Sequence[Measured]
    reading: Reading
    seed: int

    @cached_property
    def finals(self) -> list[Measured]:
        """The last of each run; where no checkpoints were read, all."""
        return list({model.run: model for model in self.models}.values())

    @property
    def statistics(self) -> list[str]:
        """What was measured of each head."""
        return self.models[0].statistics

    def even_values(self, statistic: str) -> np.ndarray:
        """Return what a head that looks evenly at all it sees has on each text, -> (N,)."""
        if statistic != "induction":
            place = OF_STORIES.index(statistic)
            return np.array([even_statistics(len(ids_T))[place] for ids_T in self.reading.documents])
        assert self.reading.repeats is not None
        return np.full(len(self.reading.repeats.repeated), self.reading.repeats.even)

    def even(self, statistic: str) -> Estimate:
        """Return what such a head has on all texts."""
        return bootstrap_mean(self.even_values(statistic), STATISTICS[statistic].unit, self.seed)

    def untrained_values(self, statistic: str) -> np.ndarray:
        """Return what the leading head of each untrained model has on the texts it was not chosen on, -> (D, N)."""
        rows = []
        for model in self.untrained:
            values_NLH = model.values(statistic)
            choose, report = halves(len(values_NLH), self.seed)
            layer, head = chosen_head(values_NLH[choose], STATISTICS[statistic].most)
            rows.append(values_NLH[report, layer, head])
        return np.stack(rows)

    def untrained_leader(self, statistic: str) -> Estimate:
        """Return what the leading head of one more untrained model has."""
        return one_more(self.untrained_values(statistic).mean(axis=1), STATISTICS[statistic].unit)

    def leader(self, model: Measured, statistic: str, head: tuple[int, int] | None = None) -> Leader:
        """Find a model's leading head, or take that one, and report it beside the controls."""
        about, values_NLH = STATISTICS[statistic], model.values(statistic)
        choose, report = halves(len(values_NLH), self.seed)
        layer, number = head or chosen_head(values_NLH[choose], about.most)
        values_N = values_NLH[report, layer, number]

        def beside(control_N: np.ndarray) -> Control:
            return Control(
                *(bootstrap_mean(some_N, about.unit, self.seed) for some_N in (control_N, values_N - control_N))
            )

        # Where another untrained model would lie is uncertain beside the stories: its reach is added to theirs.
        random_DN, one = self.untrained_values(statistic), self.untrained_leader(statistic)
        apart, reach = beside(random_DN.mean(axis=0)).difference, one.upper - one.estimate
        controls = {
            UNTRAINED: Control(one, replace(apart, lower=apart.lower - reach, upper=apart.upper + reach)),
            EVEN: beside(self.even_values(statistic)[report]),
        }
        if statistic == "induction":
            assert model.unrepeated_NLH is not None
            controls[UNREPEATED] = beside(model.unrepeated_NLH[report, layer, number])
        return Leader(model, statistic, layer, number, bootstrap_mean(values_N, about.unit, self.seed), controls)

    @cached_property
    def leaders(self) -> list[Leader]:
        """The leading head of every model for each statistic."""
        return [self.leader(model, statistic) for model in self.models for statistic in self.statistics]

    @cached_property
    def changes(self) -> list[Leader]:
        """Of every model but the first and each statistic, the head that changed most since the first, by how much.

        Beside it stands what all heads changed on average, each in the direction that it took on the choosing half:
        any training moves every head, and a head that moved no further tells nothing.
        """
        found = []
        for model in self.models[1:]:
            for statistic in self.statistics:
                about = STATISTICS[statistic]
                change_NLH = model.values(statistic) - self.models[0].values(statistic)
                choose, report = halves(len(change_NLH), self.seed)
                layer, head = chosen_head(np.abs(change_NLH[choose].mean(axis=0))[None], most=True)
                signs_LH = np.sign(change_NLH[choose].mean(axis=0))
                own_NLH = change_NLH[report] * signs_LH
                all_N = own_NLH.mean(axis=(1, 2))
                further_N = (own_NLH[:, layer, head] - all_N) * (1 if about.most else -1)
                control = Control(*(bootstrap_mean(some_N, about.unit, self.seed) for some_N in (all_N, further_N)))
                change = bootstrap_mean(change_NLH[report, layer, head], about.unit, self.seed)
                found.append(Leader(model, statistic, layer, head, change, {ALL_HEADS: control}))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: every statistic of every head on all stories, and the controls."""
        rows = [row for model in self.models for row in self._head_rows(model, "finding", model.label)]
        for statistic in self.statistics:
            about = {"model": EVEN, "role": "control", "statistic": statistic}
            rows.append({**about, **self.even(statistic).row()})
        for number, model in enumerate(self.untrained, start=1):
            rows += self._head_rows(model, "control", f"{UNTRAINED} {number}")
        return rows

    def _head_rows(self, model: Measured, role: str, label: str) -> list[dict[str, Any]]:
        measured = [(name, model.values(name), STATISTICS[name].unit, role, label) for name in model.statistics]
        if model.unrepeated_NLH is not None:
            unit = STATISTICS["induction"].unit
            measured.append(("induction", model.unrepeated_NLH, unit, "control", f"{label}, {UNREPEATED}"))
        rows = []
        for statistic, values_NLH, unit, part, name in measured:
            _, layers, heads = values_NLH.shape
            estimates = bootstrap_means(values_NLH.reshape(len(values_NLH), -1), unit, self.seed)
            for (layer, head), estimate in zip(np.ndindex(layers, heads), estimates, strict=True):
                about = {
                    "model": name,
                    "role": part,
                    "run": model.run,
                    "step": model.step,
                    "layer": layer,
                    "head": head,
                }
                rows.append({**about, "statistic": statistic, **estimate.row(), "seed": model.seed})
        return rows

    def leader_rows(self) -> list[dict[str, Any]]:
        """Return the leading heads on the stories that they were not chosen on, each followed by its controls."""
        return [row for leader in self.leaders for row in _rows_of(leader)]

    def step_rows(self) -> list[dict[str, Any]]:
        """Return, for each run, the head that leads in the end at every step, with its controls at each."""
        rows = []
        for final in self.finals:
            by_step = {m.step: m for m in reversed(self.models) if m.run == final.run and m.step is not None}
            for statistic in self.statistics:
                end = self.leader(final, statistic)
                for step in sorted(by_step):
                    rows += _rows_of(self.leader(by_step[step], statistic, (end.layer, end.head)))
        return rows

    def change_rows(self) -> list[dict[str, Any]]:
        """Return what changed most since the first model."""
        first = self.models[0].label
        return [{**row, "since": first} for change in self.changes for row in _rows_of(change)]

    def finding(self, statistic: str) -> Finding:
        """Put the leading heads for one statistic, and what changed most of it, into sentences."""
        about = STATISTICS[statistic]
        texts = "sequences" if statistic == "induction" else "stories"
        leaders = [leader for leader in self.leaders if leader.statistic == statistic and leader.model in self.finals]
        told, beside = [], []
        for leader in leaders:
            name = f"layer {leader.layer} head {leader.head}"
            heads = int(np.prod(leader.model.maps_LHTT.shape[:2]))
            value = f"the {'most' if about.most else 'least'} {about.words}, {interval(leader.estimate)}"
            told.append(
                f"{leader.model.label}: nothing shown, {name} with {value}, is not beyond {', '.join(leader.within)}"
                if leader.within
                else f"{leader.model.label}: of {heads} heads {name} has {value}"
            )
            if UNREPEATED in leader.controls:
                alone = interval(leader.controls[UNREPEATED].value)
                beside.append(f"where nothing is repeated, {leader.model.label}'s head {alone}")
        count, unit = leaders[0].estimate.n, about.unit
        sentence = "; ".join(told) + f" ({unit}; {count:,} {texts} that the head was not chosen on)"
        untrained, even = (leaders[0].controls[name].value for name in (UNTRAINED, EVEN))
        beside = [
            f"the leading head of one more untrained model {interval(untrained)} ({untrained.n} drawn)",
            f"a head that looks evenly at all {even.estimate:.3f}",
            *beside,
        ]
        return Finding(sentence + self._change_sentence(statistic), "; ".join(beside))

    def _change_sentence(self, statistic: str) -> str:
        first, told = self.models[0], ""
        for change in self.changes:
            if change.statistic != statistic or change.model not in self.finals:
                continue
            known = change.estimate.lower > 0 or change.estimate.upper < 0
            by = f"{change.estimate.estimate:+.3f} [{change.estimate.lower:+.3f}, {change.estimate.upper:+.3f}]"
            name = f"layer {change.layer} head {change.head}"
            told += f". From {first.label} to {change.model.label} " + (
                f"{name} changes most, by {by}" if known else f"no change is shown: {name}, {by}"
            )
            told += f" (all heads on average {interval(change.controls[ALL_HEADS].value)}, each in its own direction)"
        return told

    def show(self) -> None:
        """Print the leading heads of the models, of checkpoints the last."""
        rows = []
        for leader in self.leaders:
            if leader.model in self.finals:
                about = STATISTICS[leader.statistic]
                what = f"{'most' if about.most else 'least'} {about.words}"
                what = f"{leader.model.label}: {what}" if len(self.finals) > 1 else what
                untrained, even = (leader.controls[name].value for name in (UNTRAINED, EVEN))
                reached = untrained.upper if about.most else untrained.lower
                cells = [interval(leader.estimate), f"{reached:.3f}", f"{even.estimate:.3f}"]
                rows.append([what, f"{leader.layer}.{leader.head}", *cells, "no" if leader.within else "yes"])
        show_table(
            "Leading heads",
            ["", "head", "estimate", UNTRAINED, "even", "beyond"],
            rows,
            caption="head: layer.head, chosen on one half of the stories and reported on the other. untrained: what "
            "the leading head of one more model with random weights reaches (95 %). beyond: all controls, by story.",
        )


def _rows_of(leader: Leader) -> list[dict[str, Any]]:
    model = leader.model
    about = {"model": model.label, "run": model.run, "step": model.step, "statistic": leader.statistic}
    head = {"layer": leader.layer, "head": leader.head}
    beyond = {"beyond_controls": "no" if leader.within else "yes"} if leader.controls else {}
    rows = [{**about, "role": "finding", **head, **leader.estimate.row(), "seed": model.seed, **beyond}]
    for name, control in leader.controls.items():
        apart = control.difference
        numbers = {"difference": apart.estimate, "difference_lower": apart.lower, "difference_upper": apart.upper}
        rows.append({**about, "role": "control", "control": name, **control.value.row(), **numbers})
    return rows
