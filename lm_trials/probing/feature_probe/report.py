"""Report of the feature probes: the tables, the differences from every control, and the finding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from lm_trials.console import note, show_table
from lm_trials.estimates import Estimate
from lm_trials.probing.feature_probe.figures import heat_figure, layers_figure, steps_figure
from lm_trials.probing.feature_probe.fits import (
    BALANCED,
    MAJORITY,
    MOST_UPDATES,
    PLAIN,
    SHUFFLED,
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
from lm_trials.probing.feature_probe.flags import NORMED, PROBE, WHOLE, FeatureProbeArguments
from lm_trials.probing.feature_probe.stories import ProbeStories
from lm_trials.probing.findings import Finding, file_name
from lm_trials.probing.subjects import Subject
from lm_trials.probing.tables import ProbeTable, Row, by_values, interval, sign

SHOWN, NOTHING = "shown", "nothing shown"


def score_rows(series: Sequence[Series], reading: Reading) -> ProbeTable:
    """Return the scores of each feature at each place, for each model and control, with intervals over stories."""
    rows = ProbeTable()
    for one in series:
        for feature, fits in one.fits.items():
            label = reading.labels[feature]
            best, test_M = chosen(fits), label.test_M
            for place, fit in fits.items():
                about = _about(one, feature, place, label) | {
                    "l2": fit.l2,
                    "choice": fit.chosen_by,
                    "chosen": "" if place != chosen(fits, place.pooling) else "all" if place == best else "pooling",
                }
                for metric in (BALANCED, PLAIN):
                    rows.add(score(test_M, fit.right_M, metric), about | {"metric": metric, "interval": "stories"})
                if one.shuffled:
                    control = {"role": "control", "series": SHUFFLED, "choice": None, "metric": BALANCED}
                    found = score_shuffled(test_M, one.shuffled[feature][place].right_M)
                    rows.add(found, about | control | {"interval": "shuffles"})
    for feature, label in reading.labels.items():
        # Predicts the majority class of the training stories.
        right_M = label.test_M == (label.train_N.mean() > 0.5)
        about = {"role": "control", "series": MAJORITY, "feature": feature, "read": reading.name}
        about |= {"positives": int(label.test_M.sum())}
        half = Estimate(0.5, 0.5, 0.5, len(right_M), BALANCED)
        rows.add(half, about | {"metric": BALANCED, "interval": "by definition"})
        rows.add(score(label.test_M, right_M, PLAIN), about | {"metric": PLAIN, "interval": "stories"})
    return rows


def _about(one: Series, feature: str, place: Place, labels: Labels) -> Row:
    trained = one.subject if one.role == "finding" else None
    return {
        "model": one.subject.label if one.subject else None,
        "role": one.role,
        "series": one.name,
        "run": one.run or None,
        "step": trained.step if trained else None,
        "seed": trained.candidate.seed if trained else None,
        "feature": feature,
        "read": one.read,
        "pooling": None if place.layer is None else place.pooling,
        "site": place.site,
        "layer": place.layer,
        "positives": int(labels.test_M.sum()),
    }


def difference_rows(series: Sequence[Series], reading: Reading, seed: int) -> ProbeTable:
    """Return the difference of each model from each control and from the first model, on the same stories.

    Each at its selected place (`place` "chosen"); models with the same places are also compared at each ("same").
    """
    models = [one for one in series if one.role == "finding"]
    by_name = {one.name: one for one in series}
    texts = [one.name for one in series if one.role == "control" and one.subject is None]
    rows = ProbeTable()
    for model in models:
        for feature, label in reading.labels.items():
            fits, test_M = model.fits[feature], label.test_M
            best = chosen(fits)

            def add(kind: str, against: str, found: Estimate, where: str, at: Place, other: Place | None) -> None:
                about = _about(model, feature, at, label) | {"kind": kind, "against": against, "place": where}  # noqa: B023
                layer = other and (NORMED if other.site == NORMED else str(other.layer))
                about |= {"other_pooling": other and other.pooling, "other_layer": layer}
                rows.add(found, about | {"verdict": SHOWN if sign(found) else NOTHING})

            def beside(kind: str, other: Series, where: str, at: Place, other_at: Place) -> None:
                found = difference(test_M, fits[at].right_M, other.fits[feature][other_at].right_M, seed)  # noqa: B023
                add(kind, other.name, found, where, at, other_at)

            add("control", MAJORITY, above_chance(test_M, fits[best].right_M), "chosen", best, None)
            above = difference(test_M, fits[best].right_M, model.shuffled[feature][best].right_M, seed)
            add("control", SHUFFLED, above, "chosen", best, best)
            for name in (model.control, *texts):
                beside("control", by_name[name], "chosen", best, chosen(by_name[name].fits[feature]))
            if model is models[0]:
                continue
            first = models[0].fits[feature]
            beside("model", models[0], "chosen", best, chosen(first))
            if set(first) == set(fits):
                for at in fits:
                    beside("model", models[0], "same", at, at)
    return rows


def strongest(differences: ProbeTable, model: str, feature: str) -> Row:
    """Return the difference from the control that a model is least significantly above."""
    return min(differences.where(series=model, feature=feature, kind="control"), key=lambda row: row["lower"])


def shown_models(series: Sequence[Series]) -> list[Series]:
    """Return the models of the finding: all, or of each run's checkpoints the first and the last."""
    runs = by_values((one for one in series if one.role == "finding"), key=lambda one: one.run)
    return [one for own in runs.values() for one in (own if len(own) < 3 else [own[0], own[-1]])]


def finding_of(series: Sequence[Series], rows: ProbeTable, differences: ProbeTable, reading: Reading) -> Finding:
    """Return as sentences what is decoded from each model, how models differ, and the controls."""
    first, *others = shown_models(series)
    sentences = [_model_sentence(one.name, rows, differences) for one in (first, *others)]
    sentences += [_change_sentence(one.name, first.name, differences) for one in others]
    shuffles = rows.find(series=SHUFFLED, chosen="all")
    names = differences.where(kind="control").distinct("against")
    controls = [_control_clause(name, rows) for name in names if name not in (MAJORITY, SHUFFLED)]
    stories = f"{_count(rows)} held-out stories"
    return Finding(
        f"{_over(reading, stories)}, {'; '.join(sentences)}",
        f"{_over(reading, 'the same stories')}, where chance is 0.5: {_control_clause(SHUFFLED, rows)} (mean of "
        f"{shuffles and shuffles['n']} shuffles, with the interval of one more); {'; '.join(controls)}",
    )


def _over(reading: Reading, stories: str) -> str:
    if reading.name == WHOLE:
        return f"on {stories}"
    return f"Before the sentence that shows the feature, on {stories} cut at equal lengths"


def _count(rows: ProbeTable) -> str:
    """Return the number of test stories; of several features that have different stories its range."""
    counts = sorted(rows.where(series=MAJORITY).distinct("n"))
    return " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))


def _control_clause(name: str, rows: ProbeTable) -> str:
    """Return a control's balanced accuracy for the features it decodes worst and best."""
    best = rows.where(series=name, metric=BALANCED, chosen="all")
    several = len(best.distinct("feature")) > 1
    ends = [interval(row) + (f" ({row['feature']})" if several else "") for row in _ends(best)]
    return f"{name}{', one draw of its weights,' if name.startswith(UNTRAINED) else ''} {' to '.join(ends)}"


def _ends(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the smallest and the largest estimate; of one row that alone."""
    ordered = sorted(rows, key=lambda row: row["estimate"])
    return [*ordered[:1], *ordered[1:][-1:]]


# A bag of words reaches 0.996 for Twist on generated stories, and hidden states 0.91: a probe above chance alone
# shows nothing that the words do not, so the strongest control is always named.
def _model_sentence(name: str, rows: ProbeTable, differences: ProbeTable) -> str:
    """Return what is decoded from one model above chance and above every control."""
    features = rows.distinct("feature")
    own = differences.where(series=name, kind="control")
    against = {feature: strongest(differences, name, feature) for feature in features}
    above = {(row["feature"], row["against"]) for row in own if sign(row) > 0}
    read = [_best(rows, name, f) for f in features if {(f, SHUFFLED), (f, MAJORITY)} <= above]
    shape = next((row["against"] for row in own if row["against"].startswith(UNTRAINED)), UNTRAINED)
    trained = [row["feature"] for row in read if (row["feature"], shape) in above]
    if len(features) == 1:
        best = _best(rows, name, features[0])
        text = f"from {name}, {features[0]} is {'' if read else 'not '}decoded significantly above chance: "
        text += f"{interval(best)} ({_where(best)})" + (", better than from one draw of random weights" * bool(trained))
    else:
        text = f"from {name}, {len(read)} of {len(features)} features are decoded significantly above chance"
        ends = [f"{row['feature']} {interval(row)}" for row in _ends(read)]
        text += f" ({' to '.join(ends)}), {len(trained)} better than from one draw of random weights" if read else ""
    better = [f"{f} by {interval(row)} over {row['against']}" for f, row in against.items() if sign(row) > 0]
    others = [row for row in against.values() if not row["lower"] > 0]
    if better:
        text += f", better than every control {', '.join(better)}"
    if others:
        nearest = max(others, key=lambda row: row["estimate"])
        verdict = f"{'the others ' if better else ''}{'worse' if sign(nearest) < 0 else 'not significantly better'}"
        whose = "" if len(features) == 1 else f"at most {nearest['feature']}, "
        apart = f"{whose}difference from {nearest['against']} {interval(nearest)}"
        text += f", {verdict} than the strongest control ({apart})"
    return text


# Paired by story; layers that each model selects by itself are not compared, because they are different places.
def _change_sentence(name: str, first: str, differences: ProbeTable) -> str:
    """Return how one model differs from the first."""
    changes = differences.where(series=name, kind="model", place="chosen", against=first)
    shown = [f"{row['feature']} {interval(row)}" for row in changes.where(verdict=SHOWN)]
    clauses = [", ".join(shown)] if shown else []
    if rest := changes.where(verdict=NOTHING):
        bounds = f"all within [{min(r['lower'] for r in rest):.3f}, {max(r['upper'] for r in rest):.3f}]"
        names = ", ".join(row["feature"] for row in rest)
        clauses.append(f"not significant for {names} ({bounds if len(rest) > 1 else interval(rest[0])})")
    return f"{name} minus {first}: {', '.join(clauses)}"


def _best(rows: ProbeTable, name: str, feature: str, metric: str = BALANCED) -> Row:
    return rows.where(series=name, feature=feature, chosen="all", metric=metric)[0]


def _where(row: Row) -> str:
    if row.get("layer") is None:
        return ""
    layer = NORMED if row["site"] == NORMED else f"layer {row['layer']}"
    return f"{layer}, {row['pooling']}"


def show_findings(series: Sequence[Series], rows: ProbeTable, differences: ProbeTable, reading: Reading) -> None:
    """Print what is decoded where, against which control, and how models differ."""
    models = shown_models(series)
    place = "" if reading.name == WHOLE else " before the sentence that shows them"
    columns = ["", "selected", "balanced\naccuracy", "accuracy", "difference from\nstrongest control"]
    last = (
        "selected: layer and pooling, on a part of the training stories\n"
        f"[95 % interval over {_count(rows)} test stories, not over training seeds; each feature by itself]"
    )
    for one in models:
        cells = []
        for feature in one.fits:
            best, plain = (_best(rows, one.name, feature, metric) for metric in (BALANCED, PLAIN))
            against = strongest(differences, one.name, feature)
            numbers = [interval(row, lines=True) for row in (best, plain, against)]
            numbers[-1] += f"\n{against['against']}"
            cells.append([feature, _where(best).replace(", ", "\n"), *numbers])
        show_table(f"Features decoded from {one.name}{place}", columns, cells, last if one is models[-1] else None)
    if changes := differences.where(kind="model", place="chosen"):
        down = {feature: {"feature": feature} for feature in changes.distinct("feature")}
        across = {one.name: {"series": one.name} for one in models[1:]}
        changes.show(f"Minus {models[0].name}, paired by story", "", down, across, cell=interval)
    ended = [fit.converged for one in series for fits in one.fits.values() for fit in fits.values()]
    if not all(ended):
        failed = f"{ended.count(False)} of {len(ended)} probes"
        note(f"note: {failed} did not converge after {MOST_UPDATES:,} iterations; increase --l2")


def note_stories(stories: ProbeStories, readings: Sequence[Reading]) -> None:
    """Print which stories are used, where the labels come from, and what is left out."""
    labels = {
        "records": "the records' features",
        "detectors": "detectors, which look for phrases and may miss features of stories that were not generated",
    }
    note(f"{len(stories.train):,} training and {len(stories.test):,} test stories")
    note(f"labels: {labels[stories.labels_from]}")
    for reason, count in stories.left_out.items():
        note(f"left out: {count:,} stories {reason}")
    for reading in readings:
        name = "" if reading.name == WHOLE else f"{reading.name}, "
        for feature, own in reading.stories.items() if name else ():
            note(f"{name}{feature}: {len(own.train):,} training and {len(own.test):,} test stories")
            for reason, count in own.left_out.items():
                note(f"{name}{feature}: left out: {count:,} stories {reason}")
        for feature, reason in reading.without.items():
            note(f"{name}left out: {feature}, {reason}")


def about_of(subjects: Sequence[Subject], stories: ProbeStories, readings: Sequence[Reading]) -> dict[str, Any]:
    """Return what else the JSON file has: the models, the stories, the features left out."""

    def counted(of: ProbeStories) -> dict[str, Any]:
        counts = {"train": len(of.train), "test": len(of.test)}
        return {**counts, "labels_from": of.labels_from, "left_out": of.left_out}

    about = {
        "models": {subject.label: subject.reference.name for subject in subjects},
        "stories": counted(stories),
    }
    for reading in readings:
        if reading.name == WHOLE:
            about["features_left_out"] = reading.without
        else:
            cut = {feature: counted(own) for feature, own in reading.stories.items()}
            about[reading.name] = {"stories": cut, "features_left_out": reading.without}
    return about


def figures_of(
    series: Sequence[Series], rows: ProbeTable, args: FeatureProbeArguments, reading: Reading
) -> dict[str, Figure]:
    """Return the figures by name: over layers for each pooling, and over training for each run."""
    names = [one.name for one in shown_models(series)]
    features = list(series[0].fits)
    whole = reading.name == WHOLE
    stem = PROBE if whole else f"{PROBE}-{reading.name}"
    story = "story" if whole else "story before the feature's sentence"
    what = f"{features[0] if len(features) == 1 else 'Story features'} decoded from hidden states"
    last = f"averaged over the last 10 positions{'' if whole else f' of the {story}'}"
    pooled = {"last_10": last, "mean": f"averaged over the {story}"}
    figures = {
        f"{stem}-{pooling}": layers_figure(rows, pooling, names, f"{what} {pooled[pooling]}")
        for pooling in args.pooling
    }
    if not args.all_checkpoints:
        return figures
    runs = list(dict.fromkeys(one.run for one in series if one.role == "finding"))
    before = "" if whole else ", before the feature's sentence"
    figures[f"{stem}-steps"] = steps_figure(rows, f"{what} over training{before}")
    for run in runs:
        for pooling in args.pooling:
            name = f"{stem}-checkpoints-{pooling}" + (f"-{file_name(run)}" if len(runs) > 1 else "")
            figures[name] = heat_figure(rows, run, pooling, f"{what} {pooled[pooling]}, {run} over training")
    return figures
