"""Results of the durability probe: models measured one after another, tables, and the finding with its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lm_trials.console import UsageError, progress
from lm_trials.estimates import RESAMPLES, Estimate
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.durability.drift import ALL, CKA, WEIGHTS, Drift, State, read_state
from lm_trials.probing.durability.flags import DurabilityArguments
from lm_trials.probing.durability.slopes import NATS, StoryLosses, tenths
from lm_trials.probing.findings import Finding
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.subjects import Subject, find_subjects, run_folder, run_names, unrelated
from lm_trials.probing.tables import ProbeTable, Row, by_values, interval, sign
from lm_trials.probing.weights.changes import read_weights, weights_of
from lm_trials.stories.records import Record

UNTRAINED, OTHER_ORDER, SHUFFLED = "random weights", "other order", "metric shuffled"
"""Controls."""
LOSS, SLOPE, LOSS_APART, SLOPE_APART = "loss", "slope", "loss difference", "slope difference"
DRAWN = [LOSS, SLOPE, LOSS_APART, SLOPE_APART]
FIRST_RUN, START, BEFORE = "first run", "first checkpoint", "checkpoint before"
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """One measured model.

    Attributes:
        about: the columns that name it in a row.
        losses: on the common stories.
        first: the first run at the same update, if this is another run.
        drifts: how far it is from other models, by what these are, with their labels.
    """

    about: Row
    losses: StoryLosses
    first: Model | None = None
    drifts: dict[str, tuple[str, Drift]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in tables."""
        return str(self.about["model"])


def find_models(models: SubjectArguments, texts: TextArguments, args: DurabilityArguments) -> list[Subject]:
    """Find the runs, or all their checkpoints; a checkpoint of a run's last update is the final model, and left out.

    Raises:
        UsageError: as `find_subjects`.
    """
    every = replace(models, model_name_or_path=[*models.model_name_or_path, *args.control_model])
    subjects = find_subjects(every, args.all_checkpoints, texts.block_size)
    final = {(run_folder(subject), subject.step) for subject in subjects if subject.reference.step is None}
    return [s for s in subjects if s.reference.step is None or (run_folder(s), s.step) not in final]


def measure(
    subjects: Sequence[Subject],
    records: Sequence[Record],
    models: SubjectArguments,
    texts: TextArguments,
    args: DurabilityArguments,
) -> tuple[list[Model], dict[str, CaptureCheck]]:
    """Score the stories with each model and compare the models; the last one has random weights.

    Update by update, so that of each run only the first and the previous checkpoint are kept in memory.

    Raises:
        UsageError: for models that score other tokens of the stories than the first, or have other weights.
    """
    runs = dict(zip(map(run_folder, subjects), run_names(subjects), strict=True))
    first, *_ = runs
    controls = list(runs)[len(runs) - len(args.control_model) :]
    several, batch_size = len(subjects) > 1, texts.per_device_eval_batch_size
    documents = subjects[0].story_ids([record["story"] for record in records]) if several else []
    last = {run_folder(subject): subject for subject in subjects}
    # The final models of runs of different lengths are compared, whatever their updates.
    moments = by_values(subjects, lambda subject: -1 if last[run_folder(subject)] is subject else subject.step)
    found: list[Model] = []
    checks: dict[str, CaptureCheck] = {}
    starts: dict[str, State] = {}
    before: dict[str, State] = {}
    one: Model | None
    for moment in progress(sorted(moments, key=lambda step: (step == -1, step)), "measuring", "updates", len(moments)):
        one = state = None
        for subject in moments[moment]:
            folder = run_folder(subject)
            control = OTHER_ORDER if folder in controls else None
            about: Row = {"model": subject.label, "run": runs[folder], "step": subject.step}
            about |= {"seed": subject.candidate.seed, "role": "control" if control else "finding", "control": control}
            model, weights = read_weights(subject, models)
            own = Model(about, StoryLosses.of(model, subject, records, batch_size), one)
            found.append(own)
            if not np.array_equal(own.losses.tokens_N, found[0].losses.tokens_N):
                raise UsageError(
                    f"{subjects[0].reference.name} and {subject.reference.name} score other tokens of a story, as only "
                    "one was trained with an end token after each; name runs with the same --append_eos"
                )
            if several:
                its, checks[subject.label] = read_state(model, weights, documents, batch_size, subject.label)
                for what, other in ((FIRST_RUN, state), (START, starts.get(folder)), (BEFORE, before.get(folder))):
                    if other is not None:
                        own.drifts[what] = other.label, Drift.between(its, other)
                starts.setdefault(folder, its)
                before[folder] = its
                state = its if folder == first else state
            one = own if folder == first else one
    random = unrelated(subjects[0], models)
    about = {"model": UNTRAINED, "run": UNTRAINED, "step": 0, "seed": models.seed}
    about |= {"role": "control", "control": UNTRAINED}
    found.append(Model(about, StoryLosses.of(random, subjects[0], records, batch_size)))
    if several:
        its, _ = read_state(random, weights_of(random), documents, batch_size, UNTRAINED)
        found[-1].drifts[FIRST_RUN] = before[first].label, Drift.between(its, before[first])
    return found, checks


def loss_rows(found: Sequence[Model], values: Values, margin: float | None, seed: int) -> ProbeTable:
    """Return losses and slopes of each model, and their differences from the first run."""
    rows = ProbeTable()

    def add(estimate: Estimate, about: Row, quantity: str, **more: object) -> None:
        columns = {"quantity": quantity, "metric": None, "minus": None, "equivalent": None}
        rows.add(estimate, {**about, **columns, **more})

    for each in found:
        add(each.losses.loss(seed), each.about, LOSS)
        for metric, values_N in values.items():
            add(each.losses.slope(metric, values_N, seed), each.about, SLOPE, metric=metric)
            shuffled = each.about | {"role": "control", "control": SHUFFLED}
            add(each.losses.shuffled_slope(metric, values_N, seed), shuffled, SLOPE, metric=metric)
        if each.first is None:
            continue
        apart, minus = each.losses.minus(each.first.losses), {"minus": each.first.label}
        add(apart.loss(seed), each.about, LOSS_APART, **minus)
        if margin is not None:
            narrow = apart.loss(seed, confidence=0.9)
            within = "yes" if -margin < narrow.lower and narrow.upper < margin else "no"
            add(narrow, each.about, f"{LOSS_APART}, 90 % interval", **minus, equivalent=within)
        for metric, values_N in values.items():
            add(apart.slope(metric, values_N, seed), each.about, SLOPE_APART, metric=metric, **minus)
    return rows


def drift_rows(found: Sequence[Model]) -> ProbeTable:
    """Return how far each model is from others, by module and layer."""
    rows = ProbeTable()
    for each in found:
        for what, (label, drift) in each.drifts.items():
            about = each.about | {"against": what, "minus": label}
            for part, estimate in drift.distances.items():
                rows.add(estimate, {**about, "quantity": WEIGHTS, **part._asdict()})
            for part, cka in drift.ckas.items():
                rows.add(cka.estimate(), {**about, "quantity": CKA, **part._asdict()})
    return rows


def tenth_rows(found: Sequence[Model], values: Values, seed: int) -> ProbeTable:
    """Return the losses of the stories in tenths by each metric, and their differences from the first run's."""
    rows = ProbeTable()
    groups = {metric: tenths(values_N) for metric, values_N in values.items()}
    pairs: list[tuple[Model, StoryLosses, str | None]] = [(each, each.losses, None) for each in found]
    pairs += [(each, each.losses.minus(each.first.losses), each.first.label) for each in found if each.first]
    for each, losses, minus in pairs:
        for metric, members in groups.items():
            for median, members_N in members:
                about = {**each.about, "metric": metric, "median": median, "minus": minus}
                rows.add(losses.loss(seed, where_N=members_N), about)
    return rows


def show_tables(rows: ProbeTable, values: Values) -> None:
    """Print losses, slopes and drift of all models."""
    down = {model: {"model": model} for model in rows.distinct("model")}
    across: dict[str, Row] = {NATS: {"quantity": LOSS}}
    across |= {f"slope over\n{name}": {"quantity": SLOPE, "metric": name} for name in values}
    rows.show("Losses on common stories", "model", down, across, "[95 % interval over stories]", counted="n")
    for what in (FIRST_RUN, START):
        there = rows.where(against=what, layer=ALL)
        for quantity in (WEIGHTS, CKA):
            modules = {module: {"module": module} for module in there.where(quantity=quantity).distinct("module")}
            models = {model: {"model": model} for model in there.distinct("model")}
            if models:
                title = f"{quantity.capitalize() if quantity == WEIGHTS else quantity} from the {what}"
                caption = (
                    "relative to the norm of the other weights"
                    if quantity == WEIGHTS
                    else "mean over layers [95 % jackknife]"
                )
                cell = (lambda row: interval(row, lines=True)) if quantity == CKA else _alone
                there.where(quantity=quantity).show(title, "model", models, modules, caption, cell)


def _alone(row: Row | None) -> str:
    return "-" if row is None else f"{row['estimate']:.3f}"


def finding_of(found: Sequence[Model], values: Values, rows: ProbeTable, margin: float | None) -> Finding:
    """Return loss, slope and drift of the last model of each run, and the controls."""
    sentences, controls = [], []
    metric = next(iter(values))
    for each in {each.about["run"]: each for each in found}.values():
        own = rows.where(model=each.label)
        slope = own.find(quantity=SLOPE, metric=metric)
        sentence = (
            f"{each.label}: loss {interval(own.find(quantity=LOSS))} {NATS}, "
            f"slope {interval(slope)} per unit of {metric}{_significance(slope)}"
        )
        if apart := own.find(quantity=SLOPE_APART):
            sentence += (
                f"; minus {apart['minus']}: loss {interval(own.find(quantity=LOSS_APART))}, slope {interval(apart)}"
                f"{_significance(apart)}"
            )
        if narrow := own.find(quantity=f"{LOSS_APART}, 90 % interval"):
            verdict = "equivalent" if narrow["equivalent"] == "yes" else "not shown to be equivalent"
            sentence += f", {verdict} within {margin:g} (90 % interval {interval(narrow)})"
        if what := next((what for what in (FIRST_RUN, START) if what in each.drifts), None):
            label, drift = each.drifts[what]
            apart_by = {part.module: found.estimate for part, found in drift.distances.items() if part.layer == ALL}
            alike_by = {part.module: found.value for part, found in drift.ckas.items() if part.layer == ALL}
            weights, ckas = (", ".join(f"{m} {value:.3f}" for m, value in by.items()) for by in (apart_by, alike_by))
            sentence += f"; distance from {label}: {weights}; CKA with it: {ckas}"
        if each.about["role"] == "control":
            controls.append(f"{each.about['control']}: {sentence}" if each.label != UNTRAINED else sentence)
            continue
        sentences.append(sentence)
        chance = own.find(control=SHUFFLED, metric=metric)
        controls.append(f"{each.label}, {SHUFFLED} among stories: slope {interval(chance)} (95 % of {RESAMPLES:,})")
    if len(sentences) > 1:
        controls.append("intervals are over stories, for these runs; a trial compares arms over seeds")
    return Finding.of(sentences, controls)


def _significance(row: Row | None) -> str:
    return "" if row is not None and sign(row) else " (not significant)"
