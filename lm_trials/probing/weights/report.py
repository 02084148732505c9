"""Report of the weights probe: the rows of changes and trials, what a change undoes beside its controls, sentences.

Shape suffixes: N = stories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from lm_trials.console import show_table
from lm_trials.estimates import Estimate, StoryBootstrap, bootstrap_mean, proportion
from lm_trials.probing.findings import Finding
from lm_trials.probing.tables import ProbeTable, Row, exact, interval, one_more, sign, widened
from lm_trials.probing.weights.changes import (
    Matrix,
    MatrixChange,
    Spectrum,
    Turning,
    Weights,
    change_of,
    overlap,
    random_spectra,
    turning,
)
from lm_trials.probing.weights.edits import BACK, FIRST, LARGEST, NOISE, OWN, SECOND, Trial

NATS = "nats per token"
COSINE = "cosine_with_the_change_before"
LEAST_HALVED = 16
"""Stories from which on a level is chosen on one half of them and told on the other."""


@dataclass(frozen=True)
class Step:
    """The change from one model to another, of every matrix.

    Attributes:
        changes: of each matrix.
        by_chance: the spectra of random matrices of each shape.
    """

    origin: str
    model: str
    seed: int | None
    changes: list[MatrixChange]
    by_chance: Mapping[tuple[int, int], list[Spectrum]]

    def about(self, matrix: Matrix | None = None) -> Row:
        """Return the columns that say what a row is of."""
        name = {"matrix": "all", "block": None, "kind": "all"}
        if matrix is not None:
            name = {"matrix": matrix.name, "block": matrix.block, "kind": matrix.kind}
        return {"model": self.model, "origin": self.origin, **name, "role": "finding", "seed": self.seed}

    def rows(self, top: int) -> ProbeTable:
        """Return what each matrix has changed by, and the same of random matrices of its shape."""
        shares = {f"top_{count}_share": lambda spectrum, count=count: spectrum.share(count) for count in (1, top)}
        measures = {
            "effective_rank": (lambda spectrum: spectrum.effective_rank, "directions"),
            "stable_rank": (lambda spectrum: spectrum.stable_rank, "directions"),
            **{metric: (measure, "share of the squared change") for metric, measure in shares.items()},
        }
        rows = ProbeTable()
        for change in self.changes:
            about, size = self.about(change.matrix), change.shape[0] * change.shape[1]
            _add(rows, about, "relative_change", exact(change.relative, size, "change over weight, by norm"))
            _add(rows, about, "rank", exact(float(change.spectrum.rank), size, "directions"))
            for metric, (measure, unit) in measures.items():
                value = measure(change.spectrum)
                values = np.array([measure(spectrum) for spectrum in self.by_chance[change.shape]])
                _add(rows, about, metric, exact(value, size, unit), against_random=value / values.mean())
                spread = Estimate(values.mean(), values.min(), values.max(), len(values), unit)
                _add(rows, about, metric, spread, control="random matrices")
        return rows

    @property
    def relative(self) -> float:
        """Norm of the change of all matrices over that of all matrices."""
        before = sum(change.norm_before**2 for change in self.changes)
        return (sum(change.spectrum.norm**2 for change in self.changes) / before) ** 0.5

    def concentration(self, seed: int) -> Estimate | None:
        """Return the mean over matrices of effective rank over that of random ones; None where nothing changed."""
        ratios = [
            change.spectrum.effective_rank / fmean(drawn.effective_rank for drawn in self.by_chance[change.shape])
            for change in self.changes
            if change.spectrum.norm
        ]
        return bootstrap_mean(np.array(ratios), "effective rank over a random matrix's", seed) if ratios else None


def _add(rows: ProbeTable, about: Row, metric: str, found: Estimate, control: str = "", **more: Any) -> None:
    """Add the row of a metric, or of its control, which `control` names."""
    about = about | {"role": "control"} if control else about
    rows.add(found, about | {"metric": metric, "method": control}, **more)


def steps_between(
    matrices: Sequence[Matrix], models: Sequence[tuple[str, Weights, int | None]], draws: int, seed: int, bar: Any
) -> list[Step]:
    """Decompose the change from the first model to each other, then from the second to each after it.

    Args:
        draws: random matrices of each shape that a change stands beside.
        bar: wraps the pairs of a step and a matrix, to show how far it is.
    """
    by_label = {label: (weights, own_seed) for label, weights, own_seed in models}
    first, second, *later = by_label
    pairs = [(first, label) for label in (second, *later)] + [(second, label) for label in later]
    found: dict[tuple[str, str], list[MatrixChange]] = {pair: [] for pair in pairs}
    for pair, matrix in bar([(pair, matrix) for pair in pairs for matrix in matrices]):
        found[pair].append(change_of(matrix, by_label[pair[0]][0], by_label[pair[1]][0]))
    shapes = sorted({change.shape for changes in found.values() for change in changes})
    by_chance = {shape: random_spectra(shape, draws, seed) for shape in shapes}
    return [Step(origin, label, by_label[label][1], found[origin, label], by_chance) for origin, label in pairs]


def overall_rows(steps: Sequence[Step], concentration: Estimate | None, rows: ProbeTable) -> ProbeTable:
    """Return what is said of all matrices together: of each step its size, and what its cosine with another is."""
    found = ProbeTable()
    for step in steps:
        size = sum(change.shape[0] * change.shape[1] for change in step.changes)
        _add(found, step.about(), "relative_change", exact(step.relative, size, "change over weight, by norm"))
    if concentration is not None:
        found.add(concentration, {**steps[0].about(), "metric": "effective_rank_against_random"})
    return ProbeTable(found + rows.where(matrix="all"))


def turning_rows(
    step: Step, first: Sequence[MatrixChange], models: Sequence[Weights], top: int
) -> tuple[Turning, ProbeTable]:
    """Compare a step with the one before it, matrix by matrix and overall, vectors included.

    Args:
        first: the change before, base to second model.
        models: the parameters of base, second model and this one.
    """
    base, second, last = models
    rows = ProbeTable()

    def add(about: Row, turned: Turning) -> None:
        _add(rows, about, COSINE, exact(turned.cosine, turned.n, "cosine"))
        spread = Estimate(0.0, -turned.by_chance, turned.by_chance, turned.n, "cosine")
        _add(rows, about, COSINE, spread, control="random changes")
        _add(rows, about, "taken_back", exact(turned.taken_back, turned.n, "share of the change before"))

    for before, after in zip(first, step.changes, strict=True):
        about, of = step.about(after.matrix), after.matrix.of
        add(about, turning([of(second) - of(base)], [of(last) - of(second)]))
        for side, value, width in zip(("outputs", "inputs"), overlap(before, after, top), after.shape, strict=True):
            metric, unit = f"overlap_of_{side}", f"share of {top} directions"
            _add(rows, about, metric, exact(value, after.shape[0] * after.shape[1], unit))
            _add(rows, about, metric, exact(min(1.0, top / width), width, unit), control="random directions")
    overall = turning([second[name] - base[name] for name in base], [last[name] - second[name] for name in base])
    add(step.about(), overall)
    return overall, rows


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

    def of_stories(self, rows: slice) -> Deletion:
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


def loss_of(sums: np.ndarray, seed: int, before: np.ndarray | None = None) -> Estimate:
    """Return a mean loss with its interval over stories, or by how much it is above another on the same stories."""
    bootstrap = StoryBootstrap(seed)
    bootstrap.update(sums if before is None else np.stack([sums[:, 0] - before[:, 0], sums[:, 1]], axis=1))
    return bootstrap.estimate(lambda s: s[..., 0] / s[..., 1], NATS)


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
    first = {trial.level: trial.sums[name] for trial in trials if trial.method == methods[0]}
    shares = {level: deletion.of_stories(choosing).undone(first[level][choosing]) for level in sorted(first)}
    # The first level at which half of it is undone; else the best.
    level = next((level for level, share in shares.items() if share.lower > 0.5), None)
    level = max(shares, key=lambda level: shares[level].estimate) if level is None else level
    told, chosen = deletion.of_stories(telling), first[level][telling]
    share, words = told.undone(chosen), what.format(f"{level:,}")
    where = f"{share.n} stories that {'did not choose' if halved else 'chose, too few to halve,'} the number"
    sentence = f"{words} undoes {interval(share)} of it ({where})"
    if not share.lower > 0.5:
        half = "half of it is not undone" if share.upper < 0.5 else "half of it is not shown to be undone"
        sentence = f"{half if share.lower > 0 else 'nothing of it is shown to be undone'}: at best, {sentence}"
    controls = {trial.method: trial for trial in trials if trial.level == level and trial.method in methods[1:]}
    if not controls:
        return sentence, f"{words}: no control"
    # A control that is drawn several times has the spread of its draws beside that of the stories.
    reaches = {method: _reach(told, trial, name, telling) for method, trial in controls.items()}
    found = {m: widened(told.undone(trial.sums[name][telling]), reaches[m]) for m, trial in controls.items()}
    strongest = max(found, key=lambda method: found[method].estimate)
    beyond = widened(told.beyond(chosen, controls[strongest].sums[name][telling]), reaches[strongest])
    verdict = ("no more than", "more than", "less than")[sign(beyond)]
    control = f"in place of {words}, " + ", ".join(f"{method} {interval(share)}" for method, share in found.items())
    return f"{sentence}, {verdict} {strongest} (difference {interval(beyond)})", control


def _reach(deletion: Deletion, trial: Trial, name: str, rows: slice) -> float:
    """Return how far from the mean of a control's draws one more would lie with 95 %; 0 where it is not drawn."""
    if len(trial.draws) < 2:
        return 0.0
    more = one_more(np.array([deletion.undone(sums[name][rows]).estimate for sums in trial.draws]), "share")
    return more.upper - more.estimate


def trial_rows(
    trials: Sequence[Trial], deletion: Deletion, sets: Sequence[str], about: Row, written: str
) -> ProbeTable:
    """Return the rows of variants: share undone, losses, what the control set pays, stories that have the feature.

    Args:
        sets: the deleted feature's set, and the control set if there is one.
        about: columns that all share.
        written: the metric of the stories written.
    """
    rows, seed = ProbeTable(), deletion.seed
    start = next(trial for trial in trials if trial.method == SECOND)
    for trial in trials:
        found = {"share_undone": deletion.undone(trial.sums[sets[0]])} if deletion.shown else {}
        found |= {f"loss on {name}": loss_of(trial.sums[name], seed) for name in sets}
        if len(sets) > 1:
            found[f"cost on {sets[1]}"] = loss_of(trial.sums[sets[1]], seed, before=start.sums[sets[1]])
        if trial.written is not None:
            found[written] = proportion(*trial.written, "share of stories")
        for metric, estimate in found.items():
            own = {"role": trial.role, "method": trial.method, "level": trial.level, "metric": metric}
            rows.add(estimate, about | own)
    return rows


def weights_sentence(step: Step, concentration: Estimate | None) -> str:
    """Say how large a change is and how concentrated."""
    if concentration is None:
        return f"{step.origin} and {step.model} have the same matrices: nothing has changed"
    spread = "as spread as one" if concentration.upper >= 1 else "less spread than one"
    most = max(change.spectrum.rank for change in step.changes)
    if all(change.spectrum.rank < min(change.shape) for change in step.changes):  # as an adapter's
        spread += f", of rank {most} at most"
    return (
        f"{concentration.n} of {len(step.changes)} matrices change, by {step.relative:.3f} of the norm of all, with an "
        f"effective rank {interval(concentration)} times that of a random matrix: {spread}"
    )


def turned_sentence(label: str, turn: Turning) -> str:
    """Say how a model goes on from the second."""
    side = "back" if turn.cosine < 0 else "on"
    beyond = "beyond" if abs(turn.cosine) > turn.by_chance else "within"
    return (
        f"{label} goes {side} along that change by {abs(turn.taken_back):.3f} of the way, cosine {turn.cosine:+.3f}, "
        f"{beyond} the {turn.by_chance:.4f} of random changes"
    )


def written_sentence(trials: Sequence[Trial], wholly: Trial, step: Step) -> list[str]:
    """Say in how many of the stories that a model wrote the feature is: a loss may be undone long before it is."""
    last = max((t.level for t in trials if t.method == LARGEST and t is not wholly), default=0)
    names = {(FIRST, 0): step.origin, (SECOND, 0): step.model}
    names |= {(method, last): f"{last} {method}" if method != BACK else method for method in (LARGEST, BACK, OWN)}
    counts = {names[t.method, t.level]: t.written for t in trials if t.written and (t.method, t.level) in names}
    if not counts:
        return []
    shares = {name: interval(proportion(*count, "share of stories")) for name, count in counts.items()}
    told = ", ".join(f"{name} {share}" for name, share in shares.items())
    return [f"share of the stories written that have the feature: {told}"]


def finding_of(
    steps: Sequence[Step],
    concentration: Estimate | None,
    turned: Mapping[str, Turning],
    deletion: Deletion | None,
    trials: Sequence[Trial],
    sets: Sequence[str],
    kind: str,
    lineage: Sequence[str] = (),
) -> Finding:
    """Put the sentence and that of the controls together from the numbers."""
    sentences, controls = [], list(lineage)
    if deletion is not None and not deletion.shown:
        sentences.append(
            f"the loss on {sets[0]} does not rise ({interval(deletion.size)} {NATS}, {deletion.size.n} stories), so "
            "there is no deletion to undo: nothing shown"
        )
    elif deletion is not None:
        stories = f"{deletion.size.n} stories"
        sentences.append(f"the loss on {sets[0]} rises by {interval(deletion.size)} {NATS} ({stories})")
        wholly = max((t for t in trials if t.method == LARGEST), key=lambda t: t.level)
        ways = [((LARGEST, BACK, OWN, NOISE), "removing the {} largest directions of each matrix's change")]
        ways += [((f"{kind} ranked", f"{kind} at random"), f"pruning {{}} {kind}")] if kind != "no" else []
        for methods, what in ways:
            part = [trial for trial in trials if trial is not wholly and trial.method in methods]
            if part:
                sentence, control = undoing(deletion, part, sets[0], methods, what)
                sentences.append(sentence)
                controls.append(control)
        for trial in trials:
            if trial.method in turned:
                sentences.append(f"{trial.method} undoes {interval(deletion.undone(trial.sums[sets[0]]))} of it")
        sentences += written_sentence(trials, wholly, steps[0])
        controls.append(f"all directions of all matrices {interval(deletion.undone(wholly.sums[sets[0]]))}")
    sentences += [weights_sentence(steps[0], concentration)]
    sentences += [turned_sentence(label, turn) for label, turn in turned.items()]
    controls.append("effective ranks stand against random matrices of each shape, cosines against random changes")
    if len(turned) == 1:  # weight decay and the last updates' noise are taken back by whatever is trained next
        controls.append(
            "any further training goes back a little, beyond random changes: name an unrelated fine-tuning of "
            f"{steps[0].model} as one more model to see how much"
        )
    return Finding.of([f"from {steps[0].origin} to {steps[0].model} {sentences[0]}", *sentences[1:]], controls)


def show_weights(steps: Sequence[Step], rows: ProbeTable, top: int) -> None:
    """Print, for each step and kind of matrix, means over the blocks."""
    columns = {
        "relative change": ("relative_change", "finding"),
        "effective rank": ("effective_rank", "finding"),
        "of random ones": ("effective_rank", "control"),
        "top-1 share": ("top_1_share", "finding"),
        f"top-{top} share": (f"top_{top}_share", "finding"),
    }
    for step in steps:
        mine = rows.where(model=step.model, origin=step.origin)
        shown = columns | ({"cosine with the change before": (COSINE, "finding")} if mine.find(metric=COSINE) else {})
        lines = []
        for kind in dict.fromkeys(change.matrix.kind for change in step.changes):
            found = [mine.where(kind=kind, metric=metric, role=role) for metric, role in shown.values()]
            values = [[row["estimate"] for row in cell if np.isfinite(row["estimate"])] for cell in found]
            lines.append([kind, *(f"{fmean(cell):.3f}" if cell else "-" for cell in values)])
        show_table(f"from {step.origin} to {step.model}", ["matrix", *shown], lines, "means over blocks")


def show_trials(rows: ProbeTable, title: str, unit: str, methods: Sequence[str]) -> None:
    """Print the share undone by level and method, and what the control set pays for the first of them."""
    metrics = {metric.split(" ")[0]: metric for metric in reversed(rows.distinct("metric"))}
    shown = metrics.get("share_undone") or metrics["loss"]
    columns = {method: {"metric": shown, "method": method} for method in methods}
    if "cost" in metrics:
        columns["cost, control set"] = {"metric": metrics["cost"], "method": methods[0]}
    levels = {f"{level:,}": {"level": level} for level in sorted(rows.where(method=methods[0]).distinct("level"))}
    rows.show(title, unit, levels, columns, "[95 % bootstrap interval over stories]")
