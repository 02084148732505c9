"""What `probes/similarity.py` tells: which models are compared, the sentences, the tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    unequal_embeddings,
)
from lm_trials.probing.similarity.figures import cka_figure, rank_figure, similarity_figure
from lm_trials.probing.similarity.flags import SimilarityArguments
from lm_trials.probing.similarity.prompts import TermPlan
from lm_trials.probing.subjects import Subject, check_alike, find_subjects, load_subject, untrained
from lm_trials.probing.tables import ProbeTable, Row, interval

Curves = Mapping[tuple[str, str], Curve]
Checks = dict[str, CaptureCheck]
MIXED = "stories mixed up"
FAR_FROM_ANY_RUNS_SEED = 1 << 20
"""With a run's own seed, the untrained control would be what that run began from, and like it."""


@dataclass(frozen=True)
class MeasureReport:
    """What one measure gives to be written: rows, sentences, figures, what was checked, further tables."""

    rows: ProbeTable
    finding: Finding
    figures: dict[str, Figure]
    checks: Checks
    tables: dict[str, Sequence[Row]]


@dataclass(frozen=True)
class Compared:
    """A model of the comparison: base, trained, or trained as a control."""

    subject: Subject
    role: str

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        return self.subject.label

    @property
    def seed(self) -> int | None:
        """Of its training, where known."""
        return self.subject.candidate.seed


def find_compared(
    subject_args: SubjectArguments, args: SimilarityArguments, block_size: int | None = None
) -> list[Compared]:
    """Find the models: of several the first is the base; a single one is held against what it was trained from.

    Raises:
        UsageError: for models that cannot be set side by side; for CKA of one model.
    """
    names = list(subject_args.model_name_or_path)
    if len(names) == 1 and (base := _base_name(names[0])):
        names = [base, *names]
    if len(names) == 1 and (args.of_layers or args.control_model):
        raise UsageError(
            f"{names[0]} names no model that it was trained from, and one alone cannot be compared; name its base "
            "before it in --model_name_or_path"
        )
    roles = ["base", *["trained"] * (len(names) - 1)] if len(names) > 1 else ["trained"]
    everything = replace(subject_args, model_name_or_path=[*names, *args.control_model])
    subjects = find_subjects(everything, block_size=block_size)
    check_alike(subjects)
    roles += ["control"] * len(args.control_model)
    return [Compared(subject, role) for subject, role in zip(subjects, roles, strict=True)]


def asked_of(compared: Sequence[Compared]) -> Subject:
    """Return the first trained model: all are asked as it was trained, and read with its tokenizer."""
    return next(each.subject for each in compared if each.role == "trained")


def read_terms(
    compared: Sequence[Compared], plan: TermPlan, align: str, batch_size: int, subject_args: SubjectArguments
) -> tuple[list[TermSimilarities], Checks]:
    """Load one model after another and read how similar the term is to each candidate in it."""
    readings, checks = [], {}
    for each in compared:
        model = load_subject(each.subject, subject_args)
        checks[each.label] = check_capture(model, plan.own[0].ids, SITES, each.label)
        similar = read_similarities(model, plan, align, batch_size, each.label)
        readings.append(TermSimilarities(each.label, each.role, each.seed, similar))
        del model  # before the next is loaded
    return readings, checks


def read_layers(
    compared: Sequence[Compared],
    documents: Sequence[np.ndarray],
    pooling: str,
    text_args: TextArguments,
    subject_args: SubjectArguments,
) -> tuple[dict[str, list[Features]], Checks]:
    """Load one model after another and read the stories in its layers; the last is one that was never trained."""
    layers, checks = {}, {}
    for each in (*compared, None):
        label = each.label if each else UNTRAINED
        model = load_subject(each.subject, subject_args) if each else _random(compared[0].subject, subject_args)
        checks[label] = check_capture(model, documents[0], ["hidden"], label)
        rows = pooled_stories(model, documents, pooling, text_args.per_device_eval_batch_size, label)
        layers[label] = [Features.of(rows_ND) for rows_ND in rows]
        del model, rows
    return layers, checks


def _random(subject: Subject, subject_args: SubjectArguments) -> torch.nn.Module:
    """Return a model of random weights that no run began from: its seed is none that a person gives."""
    return untrained(subject, subject_args, seed=FAR_FROM_ANY_RUNS_SEED + subject_args.seed)


def terms_report(
    plan: TermPlan,
    tokens: Sequence[Row],
    readings: Sequence[TermSimilarities],
    checks: Checks,
    args: SimilarityArguments,
    seed: int,
) -> MeasureReport:
    """Hold the true term against the candidates in each model, and each model against the others; tell it."""
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
    show_plan(plan, tokens, readings, args.align)
    for reading in readings:
        if reading is not base:
            show_curves(plan, base, reading, curves[reading.label, base.label if base else ""], seed)
    family = next(iter(plan.families))
    drawn = rows.where(measure="similarity", against=[plan.true, family])
    chance = (len(plan.families[family]) + 2) / 2
    figures = {
        "similarity": similarity_figure(drawn, f"Similarity of {plan.term} to {plan.true}, and to {family}"),
        "similarity_rank": rank_figure(
            rows.where(measure="rank", against=family), f"Rank of {plan.true} in similarity to {plan.term}", chance
        ),
    }
    candidates = ProbeTable(row for reading in readings for row in candidate_rows(reading, plan, seed))
    tables = {"similarity_candidates": candidates, "similarity_tokens": tokens}
    return MeasureReport(rows, term_finding(plan, readings, curves, seed), figures, checks, tables)


def layers_report(
    compared: Sequence[Compared], layers: Mapping[str, list[Features]], checks: Checks, seed: int
) -> MeasureReport:
    """Compare the layers of each model with those of the first, beside both controls; tell it."""
    base, *others = compared
    about = {each.label: {"model": each.label, "model_role": each.role, "seed": each.seed} for each in others}
    about[UNTRAINED] = {"model": UNTRAINED, "model_role": "control", "seed": seed}
    found = {label: cka_matrix(layers[base.label], layers[label], f"CKA {label}") for label in about}
    first = others[0].label
    mixed = cka_matrix(layers[base.label], shuffled(layers[first], seed), f"CKA {MIXED}", diagonal=True)
    heat = ProbeTable()
    for label, pairs in found.items():
        role = "control" if about[label]["model_role"] == "control" else "finding"
        heat += cka_rows(pairs, {**about[label], "minus": base.label}, role)
    of_mixed = cka_rows(mixed, {**about[first], "minus": f"{base.label}, {MIXED}"}, "control")
    rows = ProbeTable(heat + of_mixed)
    columns = {label: {"model": label, "minus": base.label} for label in found} | {
        MIXED: {"minus": of_mixed[0]["minus"]}
    }
    depth = {str(layer): {"layer": layer, "layer_of_other": layer} for layer, _ in mixed}
    rows.show(f"CKA with the same layer of {base.label}", "layer", depth, columns, cell=interval)
    figure = cka_figure(heat, f"CKA with {base.label}, {heat[0]['n']:,} stories")
    finding = cka_finding(base.label, found, {layer: cka for (layer, _), cka in mixed.items()})
    return MeasureReport(rows, finding, {"similarity_cka": figure}, checks, {})


def _base_name(name: str) -> str | None:
    """Return what a model was trained from, where that is at hand."""
    base = base_of(name)
    if base is None or not Path(name).is_dir() or Path(base).is_dir():
        return base
    run = read_run(Path(name)) or {"outcome": {}}
    there = Path(run.get("environment", {}).get("working_directory", ".")) / base
    if there.is_dir():
        return str(there)
    if (run["outcome"].get("initial_model") or {}).get("weights_sha256"):
        note(f"note: {name} was trained from {base}, which is not here; it is read alone")
        return None
    return base


def show_plan(
    plan: TermPlan, tokens: Sequence[Mapping[str, Any]], readings: Sequence[TermSimilarities], align: str
) -> None:
    """Tell what is compared: the layout, the terms' tokens, pairs and candidates, and that embeddings are alike."""
    facts = {
        "prompt": f"{plan.mode}: {tokens[1]['prompt']}",
        **{row["term"]: _tokens_told(row, align) for row in tokens[:2]},
        "pairs": f"{len(plan.pairs)} of {plan.sampled}: {plan.pairs[0][1]}",
        "candidates": ", ".join(f"{len(places)} {family}" for family, places in plan.families.items())
        + (f" ({plan.left_out} more have another number of tokens than {plan.true})" if plan.left_out else ""),
    }
    if len(readings) > 1:
        apart = unequal_embeddings(readings)
        facts["layer 0"] = (
            "equal in all models: the embeddings were not trained"
            if apart == 0
            else f"similarities differ by up to {apart:.1e} between the models: embeddings were trained"
        )
    show_facts("what is compared", facts)
    if beyond := [row["term"] for row in tokens if row["holds_more_than_the_term"] == "yes"]:
        note(f"note: a token of {', '.join(beyond[:5])} holds more of the prompt than the term")


def _tokens_told(row: Row, align: str) -> str:
    count = len(row["positions"].split())
    place = f"position {row['positions'].replace(' ', ', ')}" if count == 1 else f"positions {row['positions']}"
    told = f"{row['tokens']} ({place})"
    return told if count == 1 else f"{told}, compared: {'the mean of all' if align == 'mean' else row['compared']}"


def show_curves(
    plan: TermPlan, base: TermSimilarities | None, reading: TermSimilarities, curves: Curves, seed: int
) -> None:
    """Show the curves of one model beside its base's, layer by layer."""
    family = next(iter(plan.families))
    places = plan.families[family]
    both = {"before": base, "after": reading} if base else {"": reading}
    held = f"{base.label} (before) and {reading.label} (after)" if base else reading.label
    columns = [
        "layer",
        *(f"to {plan.true}\n{when}" for when in both),
        *(f"rank of {len(places) + 1}\n{when}" for when in both),
        "gain beyond\nothers" if base else "ahead of\nothers",
        "p",
    ]
    rows: dict[str, list[list[str]]] = {name: [] for name in CURVES}
    for site in ("hidden", "normed", "values"):
        tested = curves[site, family]
        by_model = [curve(found.similar, site, places, seed) for found in both.values() if found]
        for place, layer in enumerate(tested.layers):
            cells = [f"{found.similar[site, layer][:, 0].mean():.3f}" for found in both.values() if found]
            cells += [interval(found.ranks[place], 1) for found in by_model]
            cells += [interval(tested.ahead[place]), f"{tested.test.corrected_L[place]:.3f}"]
            # After the norm is another scale, and a test of its own: one layer, no curve.
            name = f"{layer}, normed" if site == "normed" else str(layer)
            rows["hidden" if site == "normed" else site].append([name, *cells])
    last = (
        f"[95 % over {reading.similar['hidden', 0].shape[0]} queries; those of the cosines are in the table's file]\n"
        "p: corrected for the layers of one curve; the sentence corrects for both curves"
    )
    for site, name in CURVES.items():
        title = f"{plan.term} and {plan.true}, {name}: {held}"
        show_table(title, columns, rows[site], last if site == list(CURVES)[-1] else None)


def term_finding(
    plan: TermPlan, readings: Sequence[TermSimilarities], curves: Mapping[tuple[str, str], Curves], seed: int
) -> Finding:
    """Say whether the true term stands out, in one sentence, and what the controls show, in another.

    Args:
        curves: by (model, the model it is held against); of a single model by (model, "").
    """
    family = next(iter(plan.families))
    by_role = {role: [r for r in readings if r.role == role] for role in ("base", "trained", "control")}
    base = by_role["base"][0].label if by_role["base"] else ""
    told, controls = [], []
    for trained in by_role["trained"]:
        own = curves[trained.label, base]
        against = {c.label: curves[trained.label, c.label] for c in by_role["control"]}
        told.append(_told(plan, family, trained, by_role["base"], own, against, seed))
        controls += [
            f"{trained.label} beyond {label}, {name}: {_at_peak(found[site, family])}"
            for label, found in against.items()
            for site, name in CURVES.items()
        ]
    for control in by_role["control"]:
        found = curves[control.label, base]
        shown = [name for site, name in CURVES.items() if found[site, family].shown]
        verdict = f"the control shows it too, in its {' and '.join(shown)}" if shown else ""
        numbers = "; ".join(f"{name}: {_at_peak(found[site, family])}" for site, name in CURVES.items())
        controls.append(f"{control.label}, {numbers}, {verdict or 'nothing shown, as it must be'}")
    controls += [
        f"{trained.label}, among {len(places)} {further}: {_at_peak(found)}"
        for trained in by_role["trained"]
        for further, places in plan.families.items()
        if further != family and (found := curves[trained.label, base]["hidden", further])
    ]
    count = len(plan.families[family]) + 1
    chance = (
        f"n counts {plan.sampled.split()[1]}; p is the share of the {count} candidates, the true term among them, that "
        f"are as far ahead in any layer of hidden states or values, at least {1 / count:.3f}; "
        f"chance is rank {(count + 1) / 2:g} of {count}"
    )
    return Finding.of(told, [*controls, chance])


def _told(
    plan: TermPlan,
    family: str,
    trained: TermSimilarities,
    bases: Sequence[TermSimilarities],
    own: Curves,
    against: Mapping[str, Curves],
    seed: int,
) -> str:
    """Return what is told of one trained model, in hidden states and in values; p is over the layers of both."""
    hidden, places = own["hidden", family], plan.families[family]
    term, true, others = f'"{plan.term}"', f'"{plan.true}"', f"{len(places)} {family}"
    nearer = f"{term} {'came' if bases else 'is'} nearer to {true}"
    ahead = [name for site, name in CURVES.items() if own[site, family].shown]
    beyond = [
        name
        for site, name in CURVES.items()
        if name in ahead and all(found[site, family].shown for found in against.values())
    ]
    failed = [
        c for c, found in against.items() if not all(found[s, family].shown for s in CURVES if CURVES[s] in ahead)
    ]
    if not ahead:
        verdict = f"nothing is shown of {trained.label}: {nearer} than to the average of {others}, by"
    elif not beyond:
        verdict = (
            f"nothing is shown of {trained.label} beyond the control: {nearer} more than to {others} in its "
            f"{' and '.join(ahead)}, but not more than in {', '.join(failed)}; by"
        )
    else:
        verdict = f"{trained.label}: {nearer} more than to {others} in its {' and '.join(beyond)}"
        lacking = [name for name in CURVES.values() if name not in beyond]
        verdict += f", and nothing is shown of its {lacking[0]}; by" if lacking else "; by"
    by_model = [(r.label, curve(r.similar, "hidden", places, seed)) for r in (*bases, trained)]
    ranked = [f"{interval(found.ranks[hidden.peak], 1)} in {label}" for label, found in by_model]
    rank = f"rank of {true} among {len(places) + 1} there: {' and '.join(ranked)}"
    return f"{verdict} {_at_peak(hidden)} in hidden states; {rank}; by {_at_peak(own['values', family])} in values"


def _at_peak(found: Curve) -> str:
    """Return how far the true term is ahead of the others' average where it stands out most, with its p."""
    ahead = found.ahead[found.peak]
    where = f"layer {found.layers[found.peak]}, n={ahead.n}, p = {found.p:.3f}"
    return f"{interval(ahead)}{'' if found.shown else ', nothing shown'} ({where})"
