"""Results of the durability probe: models measured one after another, tables, and the finding with its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_trials.console import UsageError, progress
from lm_trials.estimates import RESAMPLES, Estimate
from lm_trials.evaluation.checkpoints import Candidate
from lm_trials.probing.durability.slopes import NATS, StoryLosses, tenths
from lm_trials.probing.findings import Finding
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.subjects import Subject, find_subjects, load_subject, run_folder, run_names, untrained
from lm_trials.probing.tables import ProbeTable, Row, interval, sign
from lm_trials.stories.records import Record

UNTRAINED = "untrained"
LOSS, SLOPE, LOSS_APART, SLOPE_APART = "loss", "slope", "loss difference", "slope difference"
Values = Mapping[str, np.ndarray]


def find_models(args: SubjectArguments, all_checkpoints: bool, block_size: int | None) -> list[Subject]:
    """Find the runs, or all their checkpoints; a checkpoint of a run's last update is the final model, and left out.

    Raises:
        UsageError: as `find_subjects`.
    """
    subjects = find_subjects(args, all_checkpoints, block_size)
    final = {(run_folder(subject), subject.step) for subject in subjects if subject.reference.step is None}
    return [s for s in subjects if s.reference.step is None or (run_folder(s), s.step) not in final]


@dataclass(frozen=True)
class Measured:
    """One model and its losses on the common stories."""

    label: str
    run: str
    candidate: Candidate
    step: int | None
    losses: StoryLosses

    @property
    def about(self) -> Row:
        """The columns that name the model of a row."""
        return {"model": self.label, "run": self.run, "step": self.step, "seed": self.candidate.seed}


def measure_losses(
    subjects: Sequence[Subject], records: Sequence[Record], args: SubjectArguments, texts: TextArguments
) -> tuple[list[Measured], StoryLosses]:
    """Load one model after another and score the stories; also a model of random weights of the first one's shape.

    Raises:
        UsageError: for models that score other tokens of the stories than the first.
    """
    batch_size = texts.per_device_eval_batch_size
    measured: list[Measured] = []
    runs = run_names(subjects)
    for subject, run in progress(list(zip(subjects, runs, strict=True)), "scoring", "models", len(subjects)):
        losses = StoryLosses.of(load_subject(subject, args), subject, records, batch_size)
        measured.append(Measured(subject.label, run, subject.candidate, subject.step, losses))
        if not np.array_equal(losses.tokens_N, measured[0].losses.tokens_N):
            raise UsageError(
                f"{subjects[0].reference.name} and {subject.reference.name} score other tokens of a story, as only one "
                "was trained with an end token after each; name runs with the same --append_eos"
            )
    return measured, StoryLosses.of(untrained(subjects[0], args), subjects[0], records, batch_size)


def loss_rows(
    measured: Sequence[Measured], random: StoryLosses, values: Values, margin: float | None, seed: int
) -> ProbeTable:
    """Return losses and slopes of each model, their differences from the first run, and the controls."""
    rows = ProbeTable()

    def add(estimate: Estimate, about: Row, role: str, quantity: str, **more: object) -> None:
        columns = {"role": role, "quantity": quantity, "metric": None, "minus": None, "equivalent": None}
        rows.add(estimate, {**about, **columns, **more})

    for each in measured:
        add(each.losses.loss(seed), each.about, "finding", LOSS)
        for metric, values_N in values.items():
            add(each.losses.slope(metric, values_N, seed), each.about, "finding", SLOPE, metric=metric)
            shuffled = each.losses.shuffled_slope(metric, values_N, seed)
            add(shuffled, each.about, "control", SLOPE, metric=metric)
    for each, first in beside_first(measured):
        apart, minus = each.losses.minus(first.losses), {"minus": first.label}
        add(apart.loss(seed), each.about, "finding", LOSS_APART, **minus)
        if margin is not None:
            narrow = apart.loss(seed, confidence=0.9)
            within = "yes" if -margin < narrow.lower and narrow.upper < margin else "no"
            add(narrow, each.about, "equivalence", LOSS_APART, **minus, equivalent=within)
        for metric, values_N in values.items():
            add(apart.slope(metric, values_N, seed), each.about, "finding", SLOPE_APART, metric=metric, **minus)
    about: Row = {"model": UNTRAINED, "run": UNTRAINED, "step": 0, "seed": seed}
    add(random.loss(seed), about, "control", LOSS)
    for metric, values_N in values.items():
        add(random.slope(metric, values_N, seed), about, "control", SLOPE, metric=metric)
    return rows


def beside_first(measured: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Return each model of another run with that of the first run at the same update; final models with each other."""
    first = {each.step: each for each in measured if each.run == measured[0].run}
    last = [each for each in measured if each.run == measured[0].run][-1]
    finals = {each.run: each for each in measured}
    others = [each for each in measured if each.run != measured[0].run]
    found = [(each, last if finals[each.run] is each else first.get(each.step)) for each in others]
    return [(each, other) for each, other in found if other is not None]


def tenth_rows(measured: Sequence[Measured], values: Values, seed: int) -> ProbeTable:
    """Return the losses of the stories in tenths by each metric, and their differences from the first run's."""
    rows = ProbeTable()
    groups = {metric: tenths(values_N) for metric, values_N in values.items()}
    pairs: list[tuple[Measured, StoryLosses, str | None]] = [(each, each.losses, None) for each in measured]
    pairs += [(each, each.losses.minus(first.losses), first.label) for each, first in beside_first(measured)]
    for each, losses, minus in pairs:
        for metric, members in groups.items():
            for median, members_N in members:
                about = {**each.about, "metric": metric, "median": median, "minus": minus}
                rows.add(losses.loss(seed, where_N=members_N), about)
    return rows


def show_losses(rows: ProbeTable, values: Values) -> None:
    """Print the losses and slopes of all models."""
    down = {model: {"model": model} for model in rows.distinct("model")}
    across: dict[str, Row] = {NATS: {"quantity": LOSS}}
    across |= {f"slope over\n{name}": {"quantity": SLOPE, "metric": name} for name in values}
    rows.show("Losses on common stories", "model", down, across, "[95 % interval over stories]", counted="n")


def loss_finding(measured: Sequence[Measured], rows: ProbeTable, values: Values, margin: float | None) -> Finding:
    """Return the loss and slopes of each run's last model, their differences from the first run, and the controls."""
    sentences, controls = [], []
    last = {each.run: each for each in measured}
    metric = next(iter(values))
    for each in last.values():
        own = rows.where(model=each.label)
        slope = own.find(role="finding", quantity=SLOPE, metric=metric)
        sentence = (
            f"{each.label}: the loss is {interval(own.find(role='finding', quantity=LOSS))} {NATS} and changes by "
            f"{interval(slope)} per unit of {metric}{_significance(slope)}"
        )
        if apart := own.find(quantity=SLOPE_APART, metric=metric):
            sentence += f", {interval(apart)} more than in {apart['minus']}{_significance(apart)}"
            losses = own.find(role="finding", quantity=LOSS_APART)
            sentence += f"; the loss minus that of {apart['minus']} is {interval(losses)}"
        if narrow := own.find(role="equivalence"):
            verdict = "equivalent" if narrow["equivalent"] == "yes" else "not shown to be equivalent"
            sentence += f", {verdict} within {margin:g} over stories (90 % interval {interval(narrow)})"
        sentences.append(sentence)
        shuffled = own.find(role="control", metric=metric)
        controls.append(
            f"{each.label} with the metric shuffled among stories: {interval(shuffled)} (95 % of {RESAMPLES:,})"
        )
    random = rows.where(model=UNTRAINED)
    controls.append(
        f"random weights: loss {interval(random.find(quantity=LOSS))}, slope "
        f"{interval(random.find(quantity=SLOPE, metric=metric))}"
    )
    if len(last) > 1:
        controls.append("these are intervals over stories for these runs; a trial compares arms over seeds")
    return Finding.of(sentences, controls)


def _significance(row: Row | None) -> str:
    return "" if row is not None and sign(row) else " (not significant)"
