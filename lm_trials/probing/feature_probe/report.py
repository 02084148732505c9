"""Results of the feature probes: the rows of the tables, the differences with every control, and the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from lm_trials.console import note, show_table
from lm_trials.estimates import Estimate
from lm_trials.probing.feature_probe.figures import heat_figure, layers_figure, steps_figure
from lm_trials.probing.feature_probe.flags import NORMED, PROBE, FeatureProbeArguments
from lm_trials.probing.feature_probe.readings import (
    BALANCED,
    MAJORITY,
    PLAIN,
    SHUFFLED,
    TEXT_CONTROLS,
    UNTRAINED,
    Labels,
    Place,
    Reading,
    Series,
    above_chance,
    chosen,
    difference,
    score,
    score_shuffled,
)
from lm_trials.probing.feature_probe.stories import ProbeStories
from lm_trials.probing.findings import Finding, interval
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.subjects import Subject

Rows = list[dict[str, Any]]
SHOWN, NOTHING = "shown", "nothing shown"


def score_rows(series: Sequence[Series], labels: Mapping[str, Labels]) -> Rows:
    """Return how well each feature is read at each place, by each model and control, with intervals over stories."""
    rows: Rows = []
    for one in series:
        for feature, readings in one.readings.items():
            best = chosen(readings)
            for place, reading in readings.items():
                about = _about(one, feature, place, labels[feature]) | {
                    "l2": reading.l2,
                    "choice": reading.chosen_by,
                    "chosen": "" if place != chosen(readings, place.pooling) else "all" if place == best else "pooling",
                }
                for metric in (BALANCED, PLAIN):
                    found = score(labels[feature].test_M, reading.right_M, metric)
                    rows.append(about | {"metric": metric, "interval": "stories"} | found.row())
                if one.shuffled:
                    shuffled = one.shuffled[feature][place]
                    control = {"role": "control", "series": SHUFFLED, "choice": None, "metric": BALANCED}
                    found = score_shuffled(labels[feature].test_M, shuffled.right_M)
                    rows.append(about | control | {"interval": "shuffles"} | found.row())
    return rows + [row for feature, label in labels.items() for row in _majority_rows(feature, label)]


def _about(one: Series, feature: str, place: Place, labels: Labels) -> dict[str, Any]:
    candidate = one.subject and one.subject.candidate
    trained = candidate if one.role == "finding" else None
    return {
        "model": one.subject.label if one.subject else None,
        "role": one.role,
        "series": one.name,
        "run": one.run or None,
        "step": one.subject.step if one.subject and trained else None,
        "seed": trained.seed if trained else None,
        "feature": feature,
        "pooling": None if place.layer is None else place.pooling,
        "site": place.site,
        "layer": place.layer,
        "positives": int(labels.test_M.sum()),
    }


def _majority_rows(feature: str, labels: Labels) -> Rows:
    """Return what is right of saying for each story what most training stories are."""
    says = labels.train_N.mean() > 0.5
    right_M = labels.test_M == says
    about = {"role": "control", "series": MAJORITY, "feature": feature, "positives": int(labels.test_M.sum())}
    half = Estimate(0.5, 0.5, 0.5, len(right_M), BALANCED)  # by definition
    return [
        about | {"metric": BALANCED, "interval": "by definition"} | half.row(),
        about | {"metric": PLAIN, "interval": "stories"} | score(labels.test_M, right_M, PLAIN).row(),
    ]


def difference_rows(series: Sequence[Series], labels: Mapping[str, Labels], seed: int) -> Rows:
    """Return by how much each model reads better than each control, and than the first model, on the same stories.

    Each is taken where it does best on the stories that choose (`place` "chosen"); models of one depth are set side
    by side at each place too.
    """
    models = [one for one in series if one.role == "finding"]
    by_name = {one.name: one for one in series}
    rows: Rows = []
    for model in models:
        for feature, label in labels.items():
            place = chosen(model.readings[feature])
            reading = model.readings[feature][place]

            def add(kind: str, against: str, found: Estimate, where: str, at: Place, other: Place | None) -> None:
                told = SHOWN if found.lower > 0 or found.upper < 0 else NOTHING
                about = _about(model, feature, at, label) | {"kind": kind, "against": against, "place": where}  # noqa: B023
                other_place = {"other_pooling": other and other.pooling, "other_layer": other and _layer(other)}
                rows.append(about | other_place | {"verdict": told} | found.row())

            add("control", MAJORITY, above_chance(label.test_M, reading.right_M), "chosen", place, None)
            shuffled_SM = model.shuffled[feature][place].right_M
            above = difference(label.test_M, reading.right_M, shuffled_SM, seed)
            add("control", SHUFFLED, above, "chosen", place, place)
            for name in (model.control, *TEXT_CONTROLS):
                other = chosen(by_name[name].readings[feature])
                found = _between(label, reading, by_name[name].readings[feature][other], seed)
                add("control", name, found, "chosen", place, other)
            if model is models[0]:
                continue
            first = models[0].readings[feature]
            other = chosen(first)
            add("model", models[0].name, _between(label, reading, first[other], seed), "chosen", place, other)
            if set(first) == set(model.readings[feature]):
                for at, here in model.readings[feature].items():
                    add("model", models[0].name, _between(label, here, first[at], seed), "same", at, at)
    return rows


def _between(labels: Labels, reading: Reading, other: Reading, seed: int) -> Estimate:
    return difference(labels.test_M, reading.right_M, other.right_M, seed)


def _layer(place: Place) -> str:
    return NORMED if place.site == NORMED else str(place.layer)


def strongest(differences: Sequence[Mapping[str, Any]], model: str, feature: str) -> Mapping[str, Any]:
    """Return the difference with the control that a model's reading is least surely above."""
    own = [r for r in differences if r["series"] == model and r["feature"] == feature and r["kind"] == "control"]
    return min(own, key=lambda row: row["lower"])


def told_models(series: Sequence[Series]) -> list[Series]:
    """Return the models that are told of: all, or of each run's checkpoints the first and the last."""
    models = [one for one in series if one.role == "finding"]
    kept: list[Series] = []
    for run in dict.fromkeys(one.run for one in models):
        own = [one for one in models if one.run == run]
        kept += own if len(own) < 3 else [own[0], own[-1]]
    return kept


def finding_of(series: Sequence[Series], rows: Rows, differences: Rows) -> Finding:
    """Put into words what came out: what each model's states tell, and how models differ."""
    models = told_models(series)
    parts = [_model_part(one.name, rows, differences) for one in models]
    parts += [_change_part(one.name, models[0].name, differences) for one in models[1:]]
    names = dict.fromkeys(row["against"] for row in differences if row["kind"] == "control")
    controls = "; ".join(_control_part(name, rows) for name in names if name not in (MAJORITY, SHUFFLED))
    return Finding(
        f"of {rows[0]['n']:,} held-out stories, {'; '.join(parts)}",
        f"of the same stories, where chance is 0.5: {_control_part(SHUFFLED, rows)} (each the mean of "
        f"{_shuffled(rows)[0]['n']} shuffles and where one more lies); {controls}",
    )


def _shuffled(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["series"] == SHUFFLED and row["chosen"] == "all"]


def _control_part(name: str, rows: Rows) -> str:
    """Say how well a control tells the feature that it tells worst, and that it tells best."""
    best = _shuffled(rows)
    if name != SHUFFLED:
        best = [r for r in rows if r["series"] == name and r["metric"] == BALANCED and r["chosen"] == "all"]
    ends = sorted(best, key=lambda row: row["estimate"])
    ends = [ends[0], *ends[1:][-1:]]
    several = len({row["feature"] for row in best}) > 1
    told = " to ".join(_numbers(row) + (f" ({row['feature']})" if several else "") for row in ends)
    return f"{name}{', one draw of its weights,' if name.startswith(UNTRAINED) else ''} {told}"


def _model_part(name: str, rows: Rows, differences: Rows) -> str:
    """Say what one model's states tell better than chance and than every control."""
    features = list(dict.fromkeys(row["feature"] for row in rows))
    against = {feature: strongest(differences, name, feature) for feature in features}
    above = {(row["feature"], row["against"]) for row in differences if row["series"] == name and row["lower"] > 0}
    best = [_best(rows, name, f) for f in features if {(f, SHUFFLED), (f, MAJORITY)} <= above]
    shape = next((row["against"] for row in differences if str(row["against"]).startswith(UNTRAINED)
                  and row["series"] == name), UNTRAINED)  # fmt: skip
    trained = [row["feature"] for row in best if (row["feature"], shape) in above]
    best.sort(key=lambda row: row["estimate"])
    if len(features) == 1:
        above_or_not = (
            f"{features[0]} is read above chance" if best else f"nothing shown above chance for {features[0]}"
        )
        told = f"from {name}, {above_or_not}: "
        told += f"{_numbers(_best(rows, name, features[0]))} ({_where(_best(rows, name, features[0]))})"
        told += ", better than from one draw of random weights" if trained else ""
    else:
        told = f"from {name}, {len(best)} of {len(features)} features are read above chance"
        ends = [f"{row['feature']} {_numbers(row)}" for row in (*best[:1], *best[1:][-1:])]
        told += f" ({' to '.join(ends)})" if best else ": nothing shown"
        told += f", {len(trained)} better than from one draw of random weights" if best else ""
    better = [f"{f} by {_numbers(row)} over {row['against']}" for f, row in against.items() if row["lower"] > 0]
    others = [feature for feature in features if not against[feature]["lower"] > 0]
    nearest = max((against[feature] for feature in others), key=lambda row: row["estimate"], default=None)
    if better:
        told += f", better than by every control {', '.join(better)}"
    if nearest:
        whose = "" if len(features) == 1 else f"at most {nearest['feature']}, "
        less = "less well than by the strongest control" if nearest["upper"] < 0 else ""
        told += f", {less or 'beyond the strongest control nothing shown'}{' for the others' if better else ''}"
        told += f" ({whose}{_numbers(nearest)} to {nearest['against']})"
    return told


def _change_part(name: str, first: str, differences: Rows) -> str:
    """Say how one model differs from the first."""
    changes = [
        row
        for row in differences
        if row["series"] == name and row["kind"] == "model" and row["place"] == "chosen" and row["against"] == first
    ]
    shown = [f"{row['feature']} {_numbers(row)}" for row in changes if row["verdict"] == SHOWN]
    rest = [row for row in changes if row["verdict"] == NOTHING]
    told = [", ".join(shown)] if shown else []
    if rest:
        bounds = f"all within [{min(r['lower'] for r in rest):.3f}, {max(r['upper'] for r in rest):.3f}]"
        names = ", ".join(row["feature"] for row in rest)
        told.append(f"nothing shown for {names} ({bounds if len(rest) > 1 else _numbers(rest[0])})")
    return f"{name} less {first}: {', '.join(told)}"


def _best(rows: Rows, name: str, feature: str, metric: str = BALANCED) -> Mapping[str, Any]:
    return next(
        row
        for row in rows
        if row["series"] == name and row["feature"] == feature and row["chosen"] == "all" and row["metric"] == metric
    )


def _where(row: Mapping[str, Any]) -> str:
    if row.get("layer") is None:
        return ""
    layer = NORMED if row["site"] == NORMED else f"layer {row['layer']}"
    return f"{layer}, {row['pooling']}"


def _numbers(row: Mapping[str, Any]) -> str:
    return interval(Estimate(row["estimate"], row["lower"], row["upper"], row["n"], row["unit"]))


def show_findings(series: Sequence[Series], rows: Rows, differences: Rows) -> None:
    """Print what is read where, against which control, and how models differ."""
    models = told_models(series)
    columns = ["", "chosen", BALANCED, "accuracy", "control", "above it"]
    for one in models:
        cells = []
        for feature in one.readings:
            best, plain = (_best(rows, one.name, feature, metric) for metric in (BALANCED, PLAIN))
            against = strongest(differences, one.name, feature)
            cells.append(
                [feature, _where(best), _numbers(best), _numbers(plain), against["against"], _numbers(against)]
            )
        last = (
            "chosen: on a part of the training stories; control: the strongest on the same test stories\n"
            f"[95 % over {rows[0]['n']:,} test stories, not over seeds of training; each feature by itself]"
        )
        show_table(f"read from {one.name}", columns, cells, last if one is models[-1] else None)
    changes = [row for row in differences if row["kind"] == "model" and row["place"] == "chosen"]
    if changes:
        features = list(dict.fromkeys(row["feature"] for row in changes))
        by_cell = {(row["series"], row["feature"]): row for row in changes}
        show_table(
            f"less {models[0].name}, paired",
            ["", *(one.name for one in models[1:])],
            [[feature, *(_numbers(by_cell[one.name, feature]) for one in models[1:])] for feature in features],
        )
    ended = [reading.converged for one in series for places in one.readings.values() for reading in places.values()]
    if not all(ended):
        note(f"note: {ended.count(False)} of {len(ended)} probes did not come to an end; give a stronger --l2")


def note_stories(stories: ProbeStories, without: Mapping[str, str]) -> None:
    """Say which stories are read, where the labels come from, and what is left out."""
    says = {
        "records": "the records' own features",
        "detectors": "detectors, which look for phrases; prose that was not generated may show a feature without them",
    }
    note(f"{len(stories.train):,} training and {len(stories.test):,} test stories")
    note(f"labels: {says[stories.labels_from]}")
    for reason, count in stories.left_out.items():
        note(f"left out: {count:,} stories {reason}")
    for feature, reason in without.items():
        note(f"left out: {feature}, {reason}")


def about_of(
    how: SubjectArguments,
    texts: TextArguments,
    args: FeatureProbeArguments,
    subjects: Sequence[Subject],
    stories: ProbeStories,
    without: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the JSON file says of the measurement."""
    return {
        "arguments": asdict(how) | asdict(texts) | asdict(args),
        "models": {subject.label: subject.reference.name for subject in subjects},
        "stories": {
            "train": len(stories.train),
            "test": len(stories.test),
            "labels_from": stories.labels_from,
            "left_out": stories.left_out,
        },
        "features_left_out": dict(without),
    }


def figures_of(series: Sequence[Series], rows: Rows, args: FeatureProbeArguments) -> dict[str, Figure]:
    """Return the figures by name: over layers for each pooling, and over training for each run."""
    told = [one.name for one in told_models(series)]
    figures = {
        f"{PROBE}-{pooling}": layers_figure(rows, pooling, told, f"read from hidden states, {_pooled(pooling)}")
        for pooling in args.pooling
    }
    runs = list(dict.fromkeys(one.run for one in series if one.role == "finding"))
    if not args.all_checkpoints:
        return figures
    figures[f"{PROBE}-steps"] = steps_figure(rows, "read from hidden states over training")
    for run in runs:
        for pooling in args.pooling:
            name = f"{PROBE}-checkpoints-{pooling}" + (f"-{run.replace('/', '-')}" if len(runs) > 1 else "")
            figures[name] = heat_figure(rows, run, pooling, f"{run}: read from hidden states, {_pooled(pooling)}")
    return figures


def _pooled(pooling: str) -> str:
    return "mean of the last 10 positions" if pooling == "last_10" else "mean over the story"
