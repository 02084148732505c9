"""Pages of the dashboard: their pickers, and what they show for what is chosen; the app and the export use them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lm_trials.console import UsageError
from lm_trials.dashboard import figures, tables
from lm_trials.dashboard.tables import Listing, Row, RunsFolder
from lm_trials.reporting.figure_style import distinct, number
from lm_trials.trials.runs import Run

ROWS = 300  # of a table on a page


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    Attributes:
        title: a sentence.
        figure: below it, and below `lead`.
        lead: HTML above the figure: the verdict of a trial.
        html: below the figure: tables, frames.
        note: how to read it, in small letters.
    """

    title: str
    figure: go.Figure | None = None
    html: str = ""
    note: str = ""
    lead: str = ""

    @property
    def head(self) -> str:
        """What is above the figure, as HTML."""
        return f'<h2 class="sentence">{escape(self.title)}</h2>{self.lead}'

    @property
    def foot(self) -> str:
        """What is below the figure, as HTML."""
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return note + self.html


@dataclass(frozen=True)
class View:
    """What pages look at: a folder, its content and the runs that the person chose."""

    folder: RunsFolder
    listing: Listing
    names: Sequence[str]

    def run(self, name: str) -> Run:
        """Return a run by its name."""
        return self.listing.runs[name]


Choices = Sequence[str] | range
"""What a picker offers, and as its first the default; a range for a whole number."""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        name: of its tab.
        lede: what it is for.
        pickers: labels.
        choices: given the view and what is chosen in the pickers before, what the next one offers.
        draw: given the view and what is chosen; a UsageError is shown as the page's sentence.
        number: the label of a picker that offers whole numbers.
    """

    name: str
    lede: str
    pickers: Sequence[str]
    choices: Callable[..., Choices]
    draw: Callable[..., Shown]
    number: str = ""

    def show(self, view: View, chosen: Sequence[Any]) -> Shown:
        """Draw what is chosen; zoom and hidden curves stay when a run that is followed logs more."""
        shown = self.draw(view, *chosen)
        if shown.figure:
            shown.figure.update_layout(uirevision=" ".join(map(str, (self.name, *chosen))))
        return shown


def answer(view: View, page: Page, given: Sequence[Any] | None = None) -> tuple[list[Choices], list[Any], Shown]:
    """Return what each picker offers, its value, and what the page shows.

    A picker keeps the `given` value where it is offered, else it takes the first.  Where there is nothing to choose
    from or a file is damaged, the page shows the reason.
    """
    offered: list[Choices] = []
    chosen: list[Any] = []
    try:
        for value in given or [None] * len(page.pickers):
            choices = page.choices(view, *chosen)
            if not choices:
                raise UsageError("No run is chosen. Choose a run above.")
            offered.append(choices)
            keep = value is not None if isinstance(choices, range) else value in choices
            chosen.append(value if keep else choices[0])
        shown = page.show(view, chosen)
    except FAULTS as error:
        shown = Shown(reason(error))
    missing = len(page.pickers) - len(chosen)
    return [*offered, *[[]] * missing], [*chosen, *[None] * missing], shown


FAULTS = (OSError, LookupError, TypeError, ValueError)
"""What reading files raises: a UsageError, removed while it was read, columns or fields that are missing."""


def reason(error: Exception) -> str:
    """Return one of `FAULTS` as a sentence."""
    if isinstance(error, (UsageError, OSError)):
        return str(error)
    return f"A file of this page has unexpected content ({error!r}); restore it, or write it again"


def table_html(rows: Sequence[Row], most: int = ROWS) -> str:
    """Return rows as an HTML table that scrolls by itself, also with the keyboard.

    >>> table_html([{"run": "a<b", "loss": 0.12345678}])[-72:]
    '<td>a&lt;b</td><td class="number">0.1235</td></tr></tbody></table></div>'
    """
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(map(_cell, (row.get(name) for name in names))) + "</tr>" for row in rows[:most])
    left = f'<p class="note">The first {most:,} of {len(rows):,} rows.</p>' if len(rows) > most else ""
    return (
        '<div class="rows" tabindex="0" role="region" aria-label="table"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>{left}"
    )


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    with contextlib.suppress(ValueError):
        value = float(text) if isinstance(value, str) and not text.isdecimal() else value
    if isinstance(value, float):
        return f'<td class="number">{"" if np.isnan(value) else f"{value:.4g}"}</td>'
    if isinstance(value, int) or text.isdecimal():
        return f'<td class="number">{int(text):,}</td>'
    return f'<td class="words">{escape(text)}</td>' if len(text) > 60 else f"<td>{escape(text)}</td>"


# Runs ---------------------------------------------------------------------------------------------------------------


EACH = ("each arm", "each run")


def _runs_choices(view: View, *chosen: str) -> Choices:
    if chosen:  # arms first, if one has several of the runs
        return EACH if len({view.listing.arm_of(name) for name in view.names}) < len(view.names) else EACH[::-1]
    metrics = tables.metrics_of(tables.log_of(view.run(name)) for name in view.names)
    return metrics or [""] * bool(view.names)


def _runs(view: View, metric: str, each: str) -> Shown:
    overview = table_html([_overview(view, name) for name in view.names])
    unit = tables.unit_of(metric)
    curves = {name: tables.curve(tables.log_of(view.run(name)), metric) for name in view.names}
    curves = {name: rows for name, rows in curves.items() if rows}
    if not curves:
        return Shown("The chosen runs have logged nothing yet.", html=overview)
    if each == EACH[0]:
        groups: dict[str, list[str]] = {}
        for name in curves:
            groups.setdefault(view.listing.arm_of(name), []).append(name)
        curves = {
            arm: tables.arm_curve([curves[name] for name in names], [view.run(name).root for name in names], unit)
            for arm, names in groups.items()
        }
    else:
        curves = {name: tables.thinned(rows) for name, rows in curves.items()}
    rows = [{"name": name, **row} for name, own in curves.items() for row in own]
    ends = {name: own[-1] for name, own in curves.items() if own}
    if not ends:
        return Shown(
            "The runs of the chosen arms have no update in common yet. Choose curves of each run.", html=overview
        )
    word, pick = ("highest", max) if "accuracy" in metric else ("lowest", min)
    best = pick(ends, key=lambda name: ends[name]["estimate"])
    what, end = {"eval_loss": "validation loss", "loss": "training loss"}.get(metric, metric), ends[best]
    title = f"The last {what} is {word} in {best}: {end['estimate']:.4g}{_between(end)} {unit}, update {end['step']:,}"
    band = "Bands: 95 % intervals, of an arm over its root seeds (Student's t), of a single run over its stories."
    return Shown(title, figures.curves_figure(rows, unit), overview, band)


def _between(row: Row) -> str:
    known = np.isfinite([row["lower"], row["upper"]]).all()
    return f" [{row['lower']:.4g}, {row['upper']:.4g}]" if known else ""


def _overview(view: View, name: str) -> Row:
    run = view.run(name)
    planned = run.outcome.get("max_steps")
    return {
        "run": name,
        "arm": view.listing.arm_of(name),
        "updates": f"{tables.steps_of(run):,}" + (f" of {planned:,}" if isinstance(planned, int) else ""),
        "state": "finished" if run.finished else "not finished",
        "root seed": str(run.root),
        "parameters": run.parameters,
        "data": run.outcome.get("dataset_name"),
        "started from": run.outcome.get("initial_model.name_or_path") or "random weights",
        "minutes": max((row.get("train_runtime", 0) for row in tables.log_of(run)), default=0) / 60 or None,
    }


# Input and output ---------------------------------------------------------------------------------------------------

SCALES = ("each on its own scale", "from smallest to largest")


def _with(view: View, has: Callable[[Run], Any], advice: str) -> list[str]:
    """Return the names of the chosen runs that have something; a UsageError with what to do if none has."""
    if found := [name for name in view.names if has(view.run(name))]:
        return found
    raise UsageError(f"None of the chosen runs has this. {advice}")


def _sides_choices(view: View, *chosen: str) -> Choices:
    if not chosen:
        advice = "Make it with: lm-trials probe saturation --model_name_or_path RUN"
        return _with(view, lambda run: (run.folder / tables.SATURATION / "checkpoints.csv").is_file(), advice)
    return distinct(tables.saturation(view.run(chosen[0]))[0], "metric") if len(chosen) == 1 else SCALES


def _sides(view: View, name: str, metric: str, scale: str) -> Shown:
    rows, steps = ([row for row in of if row["metric"] == metric] for of in tables.saturation(view.run(name)))
    settled = {row["side"]: number(row["estimate"]) for row in steps}
    said = [
        f"{side} at update {step:,.0f}" if np.isfinite(step) else f"{side} does not" for side, step in settled.items()
    ]
    title = f"When {metric} settles in {name}: {', '.join(said) or 'not measured'}"
    note = (
        "Input: the records since the checkpoint before. Output: texts sampled at the checkpoint. Dotted: the "
        "saturation step. Bands: 95 % intervals."
    )
    figure = figures.sides_figure(rows, str(rows[0].get("unit") or metric), settled, scale == SCALES[1])
    return Shown(title, figure, table_html([{key: row[key] for key in STEP if key in row} for row in steps]), note)


STEP = ("side", "metric", "estimate", "lower", "upper", "unit", "start", "end", "tolerance", "censored")


# Snapshots ----------------------------------------------------------------------------------------------------------

TRAIN = "Train with: lm-trials train --save_steps 100 --checkpoint_ladder True --snapshot {}"
AT = "update {:,}"


def _snapshots(view: View, kind: str) -> list[str]:
    pattern = f"checkpoint-*/snapshot/{kind}.safetensors"
    return _with(view, lambda run: next(run.folder.glob(pattern), None), TRAIN.format(kind))


def _updates(view: View, name: str) -> list[str]:
    """Return the checkpoints with snapshots, the last first, so that it is the default."""
    return [AT.format(step) for step in reversed(tables.snapshots_of(view.run(name).folder).steps)]


def _checkpoint(view: View, name: str, update: str) -> Path:
    return view.run(name).folder / f"checkpoint-{update.removeprefix('update ').replace(',', '')}"


def _attention_choices(view: View, *chosen: str) -> Choices:
    def has(run: Run) -> bool:
        return any(run.folder.glob("checkpoint-*/snapshot/attention.safetensors")) or bool(_attention_pages(run))

    if not chosen:
        return _with(view, has, TRAIN.format("attention") + ", or run: lm-trials probe attention")
    run = view.run(chosen[0])
    if len(chosen) == 1:
        maps = any(run.folder.glob("checkpoint-*/snapshot/attention.safetensors"))
        return [*(_updates(view, chosen[0]) if maps else ()), *_attention_pages(run)]
    if chosen[1] in _attention_pages(run):
        return ["all"]  # the page has its own pickers
    checkpoint = _checkpoint(view, *chosen[:2])
    if len(chosen) == 2:
        return [f"story {place + 1}" for place in range(len(tables.snapshot_of(checkpoint).texts))]
    layers, heads, *_ = tables.attention(checkpoint, int(chosen[2].split()[1]) - 1).shape
    return [f"layer {layer + 1}, head {head + 1}" for layer in range(layers) for head in range(heads)]


def _attention_pages(run: Run) -> dict[str, Path]:
    found = sorted((run.folder / "probes").rglob("attention*.html"))
    return {file.relative_to(run.folder).as_posix(): file for file in found}


def _attention(view: View, name: str, update: str, story: str, head: str) -> Shown:
    if page := _attention_pages(view.run(name)).get(update):
        # A frame without an address keeps the page's styles apart, and needs no server.
        text = escape(page.read_text(encoding="utf-8"))
        frame = f'<iframe class="probe" title="attention probe" srcdoc="{text}"></iframe>'
        return Shown(f"The attention probe's page of {name}", html=frame)
    checkpoint, place = _checkpoint(view, name, update), int(story.split()[1]) - 1
    tokens = tables.snapshot_of(checkpoint).texts[place]["tokens"]
    layer, which = (int(word) - 1 for word in head.replace(",", "").split()[1::2])
    weights_TT = tables.attention(checkpoint, place)[layer, which]
    first = float(weights_TT[1:, 0].mean())
    title = f"{head.capitalize()} of {name}, {update}: {first:.0%} of the attention goes to the first token, on average"
    note = "The model's own attention probabilities; colours by their square root. At most 64 tokens are shown."
    return Shown(title, figures.attention_figure(weights_TT, tokens), note=note)


def _embeddings_choices(view: View, *chosen: str) -> Choices:
    return _updates(view, *chosen) if chosen else _snapshots(view, "embeddings")


SHOWN_TOKENS = 1000


def _embeddings(view: View, name: str, update: str) -> Shown:
    folder = view.run(name).folder
    steps = tables.snapshots_of(folder).steps
    points_CVK, shares_K = tables.embeddings(folder, tuple(steps))
    place = steps.index(int(update.split()[1].replace(",", "")))
    names = tables.vocabulary(folder)
    ids = [token for token in names if token < points_CVK.shape[1]][:SHOWN_TOKENS]
    points_CVK, tokens = points_CVK[:, ids], [names[token] for token in ids]
    moved = np.linalg.norm(points_CVK[place] - points_CVK[0], axis=1)
    farthest = ", ".join(repr(tokens[token]) for token in np.argsort(-moved)[:5])
    until = update.removeprefix("update ")
    title = f"From update {steps[0]} to {until}, the embeddings of {farthest} moved farthest in this plane"
    note = (
        "Principal axes of the embeddings of all checkpoints together: one basis, so positions can be compared. "
        f"The {len(tokens):,} tokens with the smallest ids, without single bytes; red: the five that moved farthest."
    )
    return Shown(title, figures.embeddings_figure(points_CVK, shares_K, place, tokens, steps), note=note)


OWN_LAST, ONE_LAYER, ALL_PAIRS = "its own last checkpoint", "same layers, over the updates", "all pairs of layers"


def _layers_choices(view: View, *chosen: str) -> Choices:
    names = _snapshots(view, "activations")
    if len(chosen) < 2:
        return [OWN_LAST, *(name for name in names if name != chosen[0])] if chosen else names
    if len(chosen) == 2:
        return [ONE_LAYER, ALL_PAIRS]
    return _updates(view, chosen[0]) if chosen[2] == ALL_PAIRS else ["all"]


def _layers(view: View, name: str, other: str, what: str, update: str) -> Shown:
    own = {one.step: one.checkpoint for one in tables.snapshots_of(view.run(name).folder).all}
    if other == OWN_LAST:
        against = dict.fromkeys(own, own[max(own)])
    else:
        against = {one.step: one.checkpoint for one in tables.snapshots_of(view.run(other).folder).all}
    shared = [step for step in own if step in against]
    if not shared:
        raise UsageError(f"{name} and {other} have no snapshots at the same updates; choose another run")
    note = (
        "Linear CKA over the tokens of the snapshots' stories, a description without an interval. For one with stories "
        "as samples: lm-trials probe similarity --measure cka"
    )
    if what == ALL_PAIRS:
        step = int(update.split()[1].replace(",", ""))
        step = step if step in shared else shared[-1]
        cka_LL = tables.layer_similarity(own[step], against[step])
        mean = np.diag(cka_LL).mean()
        title = f"At update {step:,}, the layers of {name} and of {other} have a mean CKA of {mean:.2f}"
        return Shown(title, figures.layers_figure(cka_LL, name, other), note=note)
    found = {step: tables.layer_similarity(own[step], against[step], same=True) for step in shared}
    labels = [f"layer {layer}" if layer else "embeddings" for layer in range(len(found[shared[0]]))]
    rows = [
        {"name": label, "step": step, "estimate": float(found[step][layer])}
        for layer, label in enumerate(labels) for step in shared
    ]  # fmt: skip
    early, late = (labels[int(pick(found[shared[0]]))] for pick in (np.argmax, np.argmin))
    title = f"{name} against {other}: at update {shared[0]}, {early} is most similar and {late} least"
    return Shown(title, figures.curves_figure(rows, "CKA with the same layer"), note=note)


# Probes and evaluations ---------------------------------------------------------------------------------------------


def _tables_choices(view: View, *chosen: str) -> Choices:
    if not chosen:
        return _with(view, tables.table_files, "Make some with lm-trials evaluate or lm-trials probe.")
    return list(tables.table_files(view.run(chosen[0])))


VARIES = ("model", "minus", "measure", "metric", "side", "dataset", "feature", "against", "site", "head")


def _tables(view: View, name: str, file: str) -> Shown:
    rows = tables.read_table(tables.table_files(view.run(name))[file])
    title = f"{file} of {name} has {len(rows):,} rows"
    along = next(
        (key for key in ("step", "update", "layer") if len({row.get(key) for row in rows} - {None, ""}) > 1), None
    )
    figure = None
    if along and "estimate" in rows[0]:
        parts = [key for key in VARIES if len({row.get(key) for row in rows}) > 1]
        lines = [
            {**row, "step": row[along], "name": ", ".join(row[key] for key in parts if row[key]) or "estimate"}
            for row in rows if row[along]
        ]  # fmt: skip
        if len({(line["name"], line["step"]) for line in lines}) == len(lines) and len(distinct(lines, "name")) <= 12:
            units = distinct(lines, "unit") if "unit" in rows[0] else []
            figure = figures.curves_figure(lines, ", ".join(units) or "estimate", {"step": "updates"}.get(along, along))
    return Shown(title, figure, table_html(rows))


# Data ---------------------------------------------------------------------------------------------------------------


def _data_choices(view: View, *chosen: Any) -> Choices:
    if not chosen:
        return list(view.names)
    run = view.run(chosen[0])
    if len(chosen) == 1:
        return range(1, int(run.outcome.get("max_steps") or 1) + 1)
    try:
        metrics = [name for table in tables.metric_values(run.folder).values() for name in table.column_names[1:]]
    except UsageError:
        metrics = []  # `_data` shows why
    first = [str(run.outcome.get("order_by"))] if run.outcome.get("order_by") in metrics else []
    return [*first, *(name for name in dict.fromkeys(metrics) if name not in first)] or ["no metrics"]


def _data(view: View, name: str, update: Any, metric: str) -> Shown:
    if update != int(update):
        raise UsageError(f"Update {update} is not a whole number.")
    rows, whole = tables.update_records(view.run(name), int(update))
    records = {row["record"]: row for row in rows}
    title = f"Update {int(update):,} of {name} read {len(records):,} records, complete or in part"
    figure, note = None, ""
    if metric in whole:
        chosen_N = np.array([row.get(metric, np.nan) for row in records.values()])
        mean, of_all = np.nanmean(chosen_N), np.nanmean(whole[metric])
        title += f"; their mean {metric} is {mean:.4g}, of all training records {of_all:.4g}"
        figure = figures.metric_figure(whole[metric], chosen_N, metric)
    else:
        note = "The data set has no metrics; make them with: lm-trials prepare metadata --dataset_name NAME"
    first = ("block", "record", "part", "tokens", metric, "text")
    rows = [{key: row[key] for key in (*first, *row) if key in row} for row in rows]
    return Shown(title, figure, table_html(rows), note)


# Trials -------------------------------------------------------------------------------------------------------------


def _trials_choices(view: View, *chosen: str) -> Choices:
    if found := list(tables.trials_of(view.folder)):
        return found
    raise UsageError(
        f"There are no trials in {view.folder.results} or {view.folder.folder}. "
        "Start one with: lm-trials new trials/my_claim.yaml"
    )


def _trials(view: View, name: str) -> Shown:
    trial = tables.read_trial(name, tables.trials_of(view.folder)[name])
    registered = f"Registered {trial.registered}."
    if not trial.contrasts:
        runs = [
            run
            for at, run in view.listing.runs.items()
            if name in (at.split("/")[0], view.folder.folder.resolve().name)
        ]
        done = sum(run.finished for run in runs)
        verdict = (
            f'<p class="verdict"><b>no verdict yet</b>{done} of {len(runs)} runs are finished. {registered} Then: '
        )
        return Shown(trial.claim, html=f"{verdict}<code>lm-trials report trials/{escape(name)}.yaml</code></p>")
    kind = {"holds": "yes", "does not hold": "no"}.get(trial.verdict, "open")
    verdict = f'<p class="verdict {kind}"><b>{escape(trial.verdict)}</b>{escape(trial.sentence)}</p>'
    kept = ("contrast", "role", "result", "estimate", "lower", "upper", "unit", "root_seeds", "p", "p_holm", "method")
    table = table_html([{key: row.get(key) for key in kept} for row in trial.contrasts])
    note = (
        f"{registered} Shaded: the claimed range; grey: what would invalidate the trial. Bars: 95 % intervals; dots: "
        "root seeds."
    )
    return Shown(trial.claim, figures.forest_figure(trial.contrasts, trial.values), table, note, verdict)


RUN, CHECKPOINT, UPDATE = "Run", "Checkpoint", "Update"
PAGES = (
    Page("Runs", "What was trained, and how far it came.", ("Metric", "Curves of"), _runs_choices, _runs),
    Page("Input and output", "When does what a model writes become like what it reads?",
         (RUN, "Metric", "Scale"), _sides_choices, _sides),
    Page("Attention", "What each head looks at, at each checkpoint.",
         (RUN, CHECKPOINT, "Story", "Head"), _attention_choices, _attention),
    Page("Embeddings", "Where the tokens move during training.", (RUN, CHECKPOINT), _embeddings_choices, _embeddings),
    Page("Layers", "How similar the layers of two checkpoints are.",
         (RUN, "Compared with", "Shows", CHECKPOINT), _layers_choices, _layers),
    Page("Data", "Which stories were in an update, and how they differ from the others.",
         (RUN, UPDATE, "Metric"), _data_choices, _data, number=UPDATE),
    Page("Tables", "Everything that evaluations and probes wrote.", (RUN, "Table"), _tables_choices, _tables),
    Page("Trials", "What was claimed beforehand, and what came out.", ("Trial",), _trials_choices, _trials),
)  # fmt: skip
