"""Report of the similarity probe: the models compared, their measurement, the finding and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lm_trials.console import UsageError, note, show_facts, show_table
from lm_trials.latent_city.asking import base_of
from lm_trials.models.reference import read_run
from lm_trials.probing.capture import CaptureCheck, check_capture
from lm_trials.probing.findings import Finding
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.similarity.cka import (
    UNTRAINED,
    Features,
    cka_finding,
    cka_matrix,
    cka_rows,
    pooled_stories,
    shuffled,
)
from lm_trials.probing.similarity.curves import (
    CURVES,
    SITES,
    Curve,
    TermSimilarities,
    ahead_curves,
    candidate_rows,
    curve,
    gain_rows,
    read_similarities,
    similarity_rows,
)
from lm_trials.probing.similarity.figures import cka_figure, rank_figure, similarity_figure
from lm_trials.probing.similarity.flags import SimilarityArguments
from lm_trials.probing.similarity.prompts import TermPlan
from lm_trials.probing.subjects import Subject, check_alike, find_subjects, load_subject, unrelated
from lm_trials.probing.tables import ProbeTable, Row, interval

Curves = Mapping[tuple[str, str], Curve]
Checks = dict[str, CaptureCheck]
MIXED = "stories mixed up"


@dataclass(frozen=True)
class MeasureReport:
    """The results of one measure."""

    rows: ProbeTable
    finding: Finding
    figures: dict[str, Figure]
    checks: Checks
    tables: dict[str, Sequence[Row]]


@dataclass(frozen=True)
class Compared:
    """A model of the comparison; its role is "base", "trained" or "control"."""

    subject: Subject
    role: str


def find_compared(
    subject_args: SubjectArguments, args: SimilarityArguments, block_size: int | None = None
) -> list[Compared]:
    """Find the models: of several the first is the base; a single one is compared with the one it was trained from.

    Raises:
        UsageError: for models of different tokenizers or depths; for CKA of a model without a base.
    """
    names = list(subject_args.model_name_or_path)
    if len(names) == 1 and (base := _base_name(names[0])):
        names = [base, *names]
    if len(names) == 1 and (args.of_layers or args.control_model):
        raise UsageError(
            f"--model_name_or_path {names[0]} does not name the model that it was trained from; name its base before it"
        )
    roles = ["base", *["trained"] * (len(names) - 1)] if len(names) > 1 else ["trained"]
    everything = replace(subject_args, model_name_or_path=[*names, *args.control_model])
    subjects = find_subjects(everything, block_size=block_size)
    check_alike(subjects)
    roles += ["control"] * len(args.control_model)
    return [Compared(subject, role) for subject, role in zip(subjects, roles, strict=True)]


def read_terms(
    compared: Sequence[Compared], plan: TermPlan, align: str, subject_args: SubjectArguments, text_args: TextArguments
) -> tuple[list[TermSimilarities], Checks]:
    """Load one model after another and measure the similarity of the term to each candidate."""
    readings, checks = [], {}
    for each in compared:
        model, label = load_subject(each.subject, subject_args), each.subject.label
        checks[label] = check_capture(model, plan.own[0].ids.tolist(), SITES, label)
        similar = read_similarities(model, plan, align, text_args.per_device_eval_batch_size, label)
        readings.append(TermSimilarities(label, each.role, each.subject.candidate.seed, similar))
        del model  # before the next is loaded
    return readings, checks


def read_layers(
    compared: Sequence[Compared],
    documents: Sequence[np.ndarray],
    pooling: str,
    subject_args: SubjectArguments,
    text_args: TextArguments,
) -> tuple[dict[str, list[Features]], Checks]:
    """Load one model after another, the last with random weights, and pool the stories in its layers."""
    layers, checks = {}, {}
    for each in (*compared, None):
        if each is not None:
            label, model = each.subject.label, load_subject(each.subject, subject_args)
        else:
            label, model = UNTRAINED, unrelated(compared[0].subject, subject_args)
        checks[label] = check_capture(model, documents[0].tolist(), ["hidden"], label)
        rows = pooled_stories(model, documents, pooling, text_args.per_device_eval_batch_size, label)
        layers[label] = [Features.of(rows_ND) for rows_ND in rows]
        del model, rows
    return layers, checks


def terms_report(
    plan: TermPlan,
    tokens: Sequence[Row],
    readings: Sequence[TermSimilarities],
    checks: Checks,
    align: str,
    seed: int,
) -> MeasureReport:
    """Compare the true term with the candidates in each model, and each model with the others; print the tables."""
    base = next((reading for reading in readings if reading.role == "base"), None)
    controls = [reading for reading in readings if reading.role == "control"]
    rows = ProbeTable(row for reading in readings for row in similarity_rows(reading, plan, seed))
    curves: dict[tuple[str, str], Curves] = {}
    for reading in readings:
        if reading is base:
            continue
        for other in [*([base] if base else ()), *(controls if reading.role == "trained" else ())]:
            more, curves[reading.label, other.label] = gain_rows(reading, other, plan, seed)
            rows += more
        if base is None:
            curves[reading.label, ""] = ahead_curves(reading.similar, plan, seed)
    show_plan(plan, tokens, readings, align)
    for reading in readings:
        if reading is not base:
            show_curves(plan, base, reading, curves[reading.label, base.label if base else ""], seed)
    family = next(iter(plan.families))
    drawn = rows.where(measure="similarity", against=[plan.true, family])
    chance = (len(plan.families[family]) + 2) / 2
    ranked = rows.where(measure="rank", against=family)
    figures = {
        "similarity": similarity_figure(drawn, f"Similarity of {plan.term} to {plan.true} and to {family}, by layer"),
        "similarity_rank": rank_figure(
            ranked, f"Rank of {plan.true} among {family} by similarity to {plan.term}, by layer", chance
        ),
    }
    candidates = ProbeTable(row for reading in readings for row in candidate_rows(reading, plan, seed))
    tables = {"similarity_candidates": candidates, "similarity_tokens": tokens}
    return MeasureReport(rows, term_finding(plan, readings, curves, seed), figures, checks, tables)


def layers_report(
    compared: Sequence[Compared], layers: Mapping[str, list[Features]], checks: Checks, seed: int
) -> MeasureReport:
    """Compare the layers of each model and of both controls with those of the first; print the table."""
    base, first, *_ = (each.subject.label for each in compared)
    models = [(each.subject.label, each.role, each.subject.candidate.seed) for each in compared[1:]]
    models.append((UNTRAINED, "control", seed))
    about: dict[str, Row] = {
        label: {"model": label, "model_role": role, "seed": own_seed} for label, role, own_seed in models
    }
    found = {label: cka_matrix(layers[base], layers[label], f"CKA {label}") for label in about}
    mixed = cka_matrix(layers[base], shuffled(layers[first], seed), f"CKA {MIXED}", diagonal=True)
    heat = ProbeTable()
    for label, pairs in found.items():
        role = "control" if about[label]["model_role"] == "control" else "finding"
        heat += cka_rows(pairs, {**about[label], "minus": base}, role)
    of_mixed = cka_rows(mixed, {**about[first], "minus": f"{base}, {MIXED}"}, "control")
    rows = ProbeTable(heat + of_mixed)
    columns = {label: {"model": label, "minus": base} for label in found} | {MIXED: {"minus": of_mixed[0]["minus"]}}
    depth = {str(layer): {"layer": layer, "layer_of_other": layer} for layer, _ in mixed}
    caption = "[95 % jackknife interval over stories]"
    rows.show(f"CKA with the same layer of {base}", "layer", depth, columns, caption)
    figure = cka_figure(heat, f"Similarity (CKA) of each layer to each layer of {base}, {heat[0]['n']:,} stories")
    finding = cka_finding(base, found, {layer: cka for (layer, _), cka in mixed.items()})
    return MeasureReport(rows, finding, {"similarity_cka": figure}, checks, {})


def _base_name(name: str) -> str | None:
    """Return the model that a model was trained from, where it is known and exists."""
    base = base_of(name)
    if base is None or not Path(name).is_dir() or Path(base).is_dir():
        return base
    run = read_run(Path(name)) or {"outcome": {}}
    there = Path(run.get("environment", {}).get("working_directory", ".")) / base
    if there.is_dir():
        return str(there)
    if (run["outcome"].get("initial_model") or {}).get("weights_sha256"):
        note(f"note: {name} was trained from {base}, which does not exist here; {name} is measured without its base")
        return None
    return base


def show_plan(
    plan: TermPlan, tokens: Sequence[Mapping[str, Any]], readings: Sequence[TermSimilarities], align: str
) -> None:
    """Print what is compared: prompt format, the terms' tokens, pairs, candidates, and whether embeddings changed."""
    facts = {
        "prompt": f"{plan.mode}: {tokens[1]['prompt']}",
        **{row["term"]: _tokens_fact(row, align) for row in tokens[:2]},
        "pairs": f"{len(plan.pairs)} of {plan.sampled}: {plan.pairs[0][1]}",
        "candidates": ", ".join(f"{len(places)} {family}" for family, places in plan.families.items())
        + (f" ({plan.left_out} more have another number of tokens than {plan.true})" if plan.left_out else ""),
    }
    if len(readings) > 1:
        first, *others = (reading.similar["hidden", 0] for reading in readings)
        apart = max(float(np.abs(first - other).max()) for other in others)
        facts["layer 0"] = (
            "equal in all models: the embeddings were not trained"
            if apart == 0
            else f"similarities differ by up to {apart:.1e} between the models: the embeddings were trained"
        )
    show_facts("what is compared", facts)
    if beyond := [row["term"] for row in tokens if row["holds_more_than_the_term"] == "yes"]:
        note(f"note: a token of {', '.join(beyond[:5])} covers more of the prompt than the term")


def _tokens_fact(row: Mapping[str, Any], align: str) -> str:
    if " " not in row["positions"]:
        return f"{row['tokens']} (position {row['positions']})"
    compared = "the mean of all" if align == "mean" else row["compared"]
    return f"{row['tokens']} (positions {row['positions']}), compared: {compared}"


def show_curves(
    plan: TermPlan, base: TermSimilarities | None, reading: TermSimilarities, curves: Curves, seed: int
) -> None:
    """Print the curves of one model and of its base, layer by layer."""
    family = next(iter(plan.families))
    places = plan.families[family]
    models = [base, reading] if base else [reading]
    when = "\nbefore, after" if base else ""
    columns = [
        "layer",
        f"similarity\nto {plan.true}{when}",
        *(f"rank of {len(places) + 1}{time}" for time in (("\nbefore", "\nafter") if base else ("",))),
        "gain beyond\nothers" if base else "ahead of\nothers",
        "p",
    ]
    rows: dict[str, list[list[str]]] = {name: [] for name in CURVES}
    for site in ("hidden", "normed", "values"):
        tested = curves[site, family]
        by_model = [curve(found.similar, site, places, seed) for found in models]
        for place, layer in enumerate(tested.layers):
            similar = ", ".join(f"{found.similar[site, layer][:, 0].mean():.3f}" for found in models)
            ranked = [interval(found.ranks[place], 1, lines=True) for found in by_model]
            # The state after the norm has another scale and a test of its own: one layer, no curve.
            name = f"{layer}, normed" if site == "normed" else str(layer)
            cells = [name, similar, *ranked, interval(tested.ahead[place], lines=True)]
            rows["hidden" if site == "normed" else site].append([*cells, f"{tested.test.corrected_L[place]:.3f}"])
    caption = (
        f"[95 % interval over {reading.similar['hidden', 0].shape[0]} queries]; p is corrected for the layers of one "
        "curve, in the finding for both curves"
    )
    held = f"{base.label} (before) and {reading.label} (after)" if base else reading.label
    for site, name in CURVES.items():
        title = f"{plan.term} and {plan.true}, {name}: {held}"
        show_table(title, columns, rows[site], caption if site == list(CURVES)[-1] else None)


def term_finding(
    plan: TermPlan, readings: Sequence[TermSimilarities], curves: Mapping[tuple[str, str], Curves], seed: int
) -> Finding:
    """Return whether the true term is significantly ahead of the others, and what the controls show.

    Args:
        curves: by (model, the model it is compared with); of a single model by (model, "").
    """
    family = next(iter(plan.families))
    by_role = {role: [r for r in readings if r.role == role] for role in ("base", "trained", "control")}
    base = by_role["base"][0].label if by_role["base"] else ""
    sentences, controls = [], []
    for trained in by_role["trained"]:
        own = curves[trained.label, base]
        against = {c.label: curves[trained.label, c.label] for c in by_role["control"]}
        sentences.append(_sentence(plan, family, trained, by_role["base"], own, against, seed))
        controls += [
            f"{trained.label} minus {label}, {name}: {_at_peak(compared[site, family])}"
            for label, compared in against.items()
            for site, name in CURVES.items()
        ]
    for control in by_role["control"]:
        own = curves[control.label, base]
        ahead = [name for site, name in CURVES.items() if own[site, family].significant]
        verdict = f"the control shows it too, in its {' and '.join(ahead)}" if ahead else "as expected of a control"
        numbers = "; ".join(f"{name}: {_at_peak(own[site, family])}" for site, name in CURVES.items())
        controls.append(f"{control.label}, {numbers}, {verdict}")
    controls += [
        f"{trained.label}, among {len(places)} {further}: {_at_peak(curves[trained.label, base]['hidden', further])}"
        for trained in by_role["trained"]
        for further, places in plan.families.items()
        if further != family and ("hidden", further) in curves[trained.label, base]
    ]
    count = len(plan.families[family]) + 1
    chance = (
        f"n counts {plan.sampled.split()[1]}; p is the share of the {count} candidates, the true term among them, that "
        f"are as far ahead in any layer of hidden states or values, at least {1 / count:.3f}; "
        f"chance is rank {(count + 1) / 2:g} of {count}"
    )
    return Finding.of(sentences, [*controls, chance])


def _sentence(
    plan: TermPlan,
    family: str,
    trained: TermSimilarities,
    bases: Sequence[TermSimilarities],
    own: Curves,
    against: Mapping[str, Curves],
    seed: int,
) -> str:
    """Return the finding of one trained model, in hidden states and in values; p is over the layers of both."""
    hidden, places = own["hidden", family], plan.families[family]
    ahead = [site for site in CURVES if own[site, family].significant]
    beyond = [site for site in ahead if all(found[site, family].significant for found in against.values())]
    failed = [c for c, found in against.items() if not all(found[site, family].significant for site in ahead)]

    def names(sites: Sequence[str]) -> str:
        return " and ".join(CURVES[site] for site in sites)

    term, true = f'"{plan.term}"', f'"{plan.true}"'
    nearer = f"nearer to {true} than to the average of {len(places)} {family}"
    if not ahead:
        verdict = f"{term} {'did not come' if bases else 'is not'} significantly {nearer}"
    elif not beyond:
        verdict = (
            f"{term} {'came' if bases else 'is'} significantly {nearer} in its {names(ahead)}, but not significantly "
            f"more than in the control {', '.join(failed)}"
        )
    else:
        verdict = f"{term} {'came' if bases else 'is'} significantly {nearer} in its {names(beyond)}"
        lacking = [name for site, name in CURVES.items() if site not in beyond]
        verdict += f", not in its {lacking[0]}" if lacking else ""
    by_model = [(r.label, curve(r.similar, "hidden", places, seed)) for r in (*bases, trained)]
    ranked = " and ".join(f"{interval(found.ranks[hidden.peak], 1)} in {label}" for label, found in by_model)
    return (
        f"{trained.label}: {verdict}: by {_at_peak(hidden)} in hidden states, with rank {ranked} of {len(places) + 1}; "
        f"by {_at_peak(own['values', family])} in values"
    )


def _at_peak(found: Curve) -> str:
    """Return how far the true term is ahead of the others' average at the peak, with the p of the curve."""
    ahead = found.ahead[found.peak]
    verdict = "" if found.significant else ", not significant"
    return f"{interval(ahead)} (layer {found.layers[found.peak]}, n={ahead.n}, p = {found.p:.3f}{verdict})"
