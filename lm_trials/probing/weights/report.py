"""Findings of the weights probe: from changes and trials to rows, tables on the terminal and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from lm_trials.console import show_table
from lm_trials.estimates import Estimate, bootstrap_mean, proportion
from lm_trials.probing.findings import Finding, interval
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
from lm_trials.probing.weights.undoing import NATS, Deletion, loss_of, rise_of, undoing

Row = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """The change from one model to another, of every matrix."""

    origin: str
    model: str
    seed: int | None
    changes: list[MatrixChange]

    def rows(self, top: int, by_chance: Mapping[tuple[int, int], list[Spectrum]]) -> Iterator[Row]:
        """Yield what each matrix has changed by, and the same of random matrices of its shape."""
        measures = {
            "effective_rank": (lambda spectrum: spectrum.effective_rank, "directions"),
            "stable_rank": (lambda spectrum: spectrum.stable_rank, "directions"),
            "top_1_share": (lambda spectrum: spectrum.share(1), "share of the squared change"),
            f"top_{top}_share": (lambda spectrum: spectrum.share(top), "share of the squared change"),
        }
        for change in self.changes:
            about = self.about(change.matrix)
            size = change.shape[0] * change.shape[1]
            yield _exact(about, "relative_change", change.relative, size, "change over weight, by norm")
            yield _exact(about, "rank", float(change.spectrum.rank), size, "directions")
            for metric, (measure, unit) in measures.items():
                value, values = measure(change.spectrum), [measure(spectrum) for spectrum in by_chance[change.shape]]
                values = np.array(values)
                yield {**_exact(about, metric, value, size, unit), "against_random": value / values.mean()}
                spread = {"estimate": values.mean(), "lower": values.min(), "upper": values.max(), "n": len(values)}
                yield {
                    **about,
                    "role": "control",
                    "metric": metric,
                    "method": "random matrices",
                    **spread,
                    "unit": unit,
                }

    def about(self, matrix: Matrix | None = None) -> Row:
        """Return the columns that say what a row is of."""
        name = {"matrix": "all", "block": None, "kind": "all"}
        if matrix is not None:
            name = {"matrix": matrix.name, "block": matrix.block, "kind": matrix.kind}
        return {"model": self.model, "origin": self.origin, **name, "role": "finding", "seed": self.seed}

    def concentration(self, by_chance: Mapping[tuple[int, int], list[Spectrum]], seed: int) -> Estimate | None:
        """Return the mean over matrices of effective rank over that of random ones; None where nothing changed."""
        ratios = [
            change.spectrum.effective_rank / fmean(spectrum.effective_rank for spectrum in by_chance[change.shape])
            for change in self.changes
            if change.spectrum.norm
        ]
        return bootstrap_mean(np.array(ratios), "effective rank over a random matrix's", seed) if ratios else None

    @property
    def relative(self) -> float:
        """Norm of the change of all matrices over that of all matrices."""
        before = sum(change.norm_before**2 for change in self.changes)
        return (sum(change.spectrum.norm**2 for change in self.changes) / before) ** 0.5


def steps_between(
    matrices: Sequence[Matrix], models: Sequence[tuple[str, Weights, int | None]], bar: Any
) -> list[Step]:
    """Decompose the change from the first model to each other, then from the second to each after it.

    Args:
        bar: wraps the pairs of a step and a matrix, to show how far it is.
    """
    by_label = {label: (weights, seed) for label, weights, seed in models}
    first, second, *later = by_label
    pairs = [(first, label) for label in (second, *later)] + [(second, label) for label in later]
    found: dict[tuple[str, str], list[MatrixChange]] = {pair: [] for pair in pairs}
    for pair, matrix in bar([(pair, matrix) for pair in pairs for matrix in matrices]):
        found[pair].append(change_of(matrix, by_label[pair[0]][0], by_label[pair[1]][0]))
    return [Step(origin, label, by_label[label][1], found[origin, label]) for origin, label in pairs]


def chance_of(steps: Sequence[Step], draws: int, seed: int) -> dict[tuple[int, int], list[Spectrum]]:
    """Return random spectra for each shape that there is."""
    shapes = sorted({change.shape for step in steps for change in step.changes})
    return {shape: random_spectra(shape, draws, seed) for shape in shapes}


def overall_rows(steps: Sequence[Step], concentration: Estimate | None, rows: Sequence[Row]) -> list[Row]:
    """Return what is said of all matrices together: of each step its size, and what its cosine with another is."""
    found = []
    for step in steps:
        size = sum(change.shape[0] * change.shape[1] for change in step.changes)
        found.append(_exact(step.about(), "relative_change", step.relative, size, "change over weight, by norm"))
    if concentration is not None:
        found.append({**steps[0].about(), "metric": "effective_rank_against_random", **concentration.row()})
    return found + [row for row in rows if row["matrix"] == "all"]


def turning_rows(
    step: Step, first: Sequence[MatrixChange], models: Sequence[Weights], top: int
) -> tuple[Turning, list[Row]]:
    """Compare a step with the one before it, matrix by matrix and overall, vectors included.

    Args:
        first: the change before, base to second model.
        models: the parameters of base, second model and this one.
    """
    base, second, last = models
    rows: list[Row] = []
    for before, after in zip(first, step.changes, strict=True):
        about = step.about(after.matrix)
        turned = turning(
            [after.matrix.of(second) - after.matrix.of(base)], [after.matrix.of(last) - after.matrix.of(second)]
        )
        rows += _turned(about, turned)
        for side, value, width in zip(("outputs", "inputs"), overlap(before, after, top), after.shape, strict=True):
            metric, unit = f"overlap_of_{side}", f"share of {top} directions"
            rows.append(_exact(about, metric, value, after.shape[0] * after.shape[1], unit))
            chance = {"estimate": min(1.0, top / width), "lower": None, "upper": None, "n": width, "unit": unit}
            rows.append({**about, "role": "control", "metric": metric, "method": "random directions", **chance})
    overall = turning([second[name] - base[name] for name in base], [last[name] - second[name] for name in base])
    return overall, rows + _turned(step.about(), overall)


def _turned(about: Row, turned: Turning) -> list[Row]:
    spread = {"estimate": 0.0, "lower": -turned.by_chance, "upper": turned.by_chance, "n": turned.n, "unit": "cosine"}
    return [
        _exact(about, "cosine_with_the_change_before", turned.cosine, turned.n, "cosine"),
        {**about, "role": "control", "metric": "cosine_with_the_change_before", "method": "random changes", **spread},
        _exact(about, "taken_back", turned.taken_back, turned.n, "share of the change before"),
    ]


def _exact(about: Row, metric: str, value: float, n: int, unit: str) -> Row:
    """Return a row of what is computed of given weights, where nothing was sampled: no interval."""
    numbers = {"estimate": value, "lower": None, "upper": None, "n": n, "unit": unit}
    return {**about, "metric": metric, "method": "", **numbers}


def trial_rows(trials: Sequence[Trial], deletion: Deletion, sets: Sequence[str], about: Row, written: str) -> list[Row]:
    """Return the rows of variants: share undone, losses, what the control set pays, stories that have the feature.

    Args:
        sets: the deleted feature's set, and the control set if there is one.
        about: columns that all share.
        written: the metric of the stories written.
    """
    rows = []
    start = next(trial for trial in trials if trial.method == SECOND)
    for trial in trials:
        shared = {**about, "role": trial.role, "method": trial.method, "level": trial.level}
        found = [("share_undone", deletion.undone(trial.sums[sets[0]]))] if deletion.shown else []
        found += [(f"loss on {name}", loss_of(trial.sums[name], deletion.seed)) for name in sets]
        if len(sets) > 1:
            found.append((f"cost on {sets[1]}", rise_of(trial.sums[sets[1]], start.sums[sets[1]], deletion.seed)))
        if trial.written is not None:
            found.append((written, proportion(*trial.written, "share of stories")))
        rows += [{**shared, "metric": metric, **estimate.row()} for metric, estimate in found]
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
    return [f"of the stories written the feature is in: {told}"]


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
    between = f"from {steps[0].origin} to {steps[0].model}"
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
    return Finding(f"{between} " + "; ".join(sentences), "; ".join(controls))


def show_weights(steps: Sequence[Step], rows: Sequence[Row], top: int) -> None:
    """Print, for each step and kind of matrix, means over the blocks."""
    for step in steps:
        mine = [row for row in rows if (row["model"], row["origin"]) == (step.model, step.origin)]
        kinds = list(dict.fromkeys(change.matrix.kind for change in step.changes))
        columns = ["relative_change", "effective_rank", "top_1_share", f"top_{top}_share"]
        turned = any(row["metric"] == "cosine_with_the_change_before" for row in mine)
        lines = []
        for kind in kinds:
            cells = [_mean(mine, kind, metric, "finding") for metric in columns]
            cells.insert(2, _mean(mine, kind, "effective_rank", "control"))
            cells += [_mean(mine, kind, "cosine_with_the_change_before", "finding")] if turned else []
            lines.append([kind, *cells])
        names = ["matrix", "relative change", "effective rank", "of random ones", "top-1 share", f"top-{top} share"]
        names += ["cosine with the change before"] if turned else []
        show_table(f"from {step.origin} to {step.model}", names, lines, "means over blocks")


def _mean(rows: Sequence[Row], kind: str, metric: str, role: str) -> str:
    values = [row["estimate"] for row in rows if (row["kind"], row["metric"], row["role"]) == (kind, metric, role)]
    values = [value for value in values if value is not None and np.isfinite(value)]
    return f"{fmean(values):.3f}" if values else "-"


def show_trials(rows: Sequence[Row], title: str, unit: str, methods: Sequence[str]) -> None:
    """Print the share undone by level and method, and what the control set pays for the first of them."""
    cells = {(row["metric"].split(" ")[0], row["method"], row["level"]): row for row in rows}
    levels = sorted({level for metric, method, level in cells if method == methods[0]})
    shown = "share_undone" if any(metric == "share_undone" for metric, *_ in cells) else "loss"
    paid = any(metric == "cost" for metric, *_ in cells)
    lines = []
    for level in levels:
        line = [_cell(cells.get((shown, method, level))) for method in methods]
        lines.append([f"{level:,}", *line, *([_cell(cells.get(("cost", methods[0], level)))] if paid else [])])
    columns = [unit, *methods, *(["cost, control set"] if paid else [])]
    show_table(title, columns, lines, "[95 % bootstrap interval over stories]")


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['estimate']:.3f}\n[{row['lower']:.3f}, {row['upper']:.3f}]"
