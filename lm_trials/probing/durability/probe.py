"""Measure what the order of the training data left in a model.

Use it on runs that were trained on the same records in different orders.  All
models are scored on the same stories, in no particular order: the loss, and its
slope over a metric of the stories.  A model that was trained on difficult stories
last should have a flatter slope.  One run, or several beside the first, with a run
in another random order as the control:

    lm-trials probe durability runs/sorted \\
        --dataset_name generated --metric flesch_kincaid_grade
    lm-trials probe durability --dataset_name generated --margin 0.01 \\
        --model_name_or_path runs/shuffled runs/sorted \\
        --control_model runs/shuffled_otherwise

The slope is that of a least squares fit to the loss per token of each story,
weighted by its tokens.  Further runs are compared with the first one: weights by the
norm of their difference, representations by CKA over the stories, by module.
Over training; each checkpoint is then also compared with the first and the
previous one of its run:

    lm-trials probe durability runs/shuffled runs/sorted \\
        --dataset_name generated --all_checkpoints

Intervals are over stories, for these models; whether an order has an effect is a
question for a trial, over seeds.  Controls: the slope with the metric shuffled
among the stories, which is 0 but for chance; a run in another order; random weights.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.durability.flags import ARGUMENTS, PROBE, check_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure the losses of each model; returns the rows of the table."""
    models, texts, args = parse_arguments(
        argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe durability", first=MODEL
    )
    check_arguments(models, args)
    from lm_trials.probing.durability import report
    from lm_trials.probing.durability.figures import drift_figure, tenths_figure, trajectories_figure
    from lm_trials.probing.durability.slopes import metric_values
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import check_alike, choose_texts, read_stories

    subjects = report.find_models(models, texts, args)
    check_alike(subjects)
    choose_texts(texts, models)
    records = read_stories(texts)
    values = metric_values(records, args.metric, texts)
    found, checks = report.measure(subjects, records, models, texts, args)
    losses, drift = report.loss_rows(found, values, args.margin, models.seed), report.drift_rows(found)
    rows = ProbeTable(losses + drift)
    *trained, _ = found
    tenths = report.tenth_rows([*{one.about["run"]: one for one in trained}.values()], values, models.seed)
    over = f"{len(records):,} stories of {texts.dataset_name.rstrip('/').rpartition('/')[2]}"
    figures = {"durability_tenths": tenths_figure(tenths, f"Loss by metric, {over}")}
    shown = {"control": [None, report.OTHER_ORDER]}
    if args.all_checkpoints:
        title = f"Losses and their slopes during training, {over}"
        figures["durability"] = trajectories_figure(losses.where(**shown, quantity=report.DRAWN), title)
        title = f"Distance of weights and CKA from the first checkpoint of each run, {over}"
        figures["durability_drift"] = drift_figure(drift.where(**shown, against=report.START), title, "step")
    if apart := drift.where(**shown, against=report.FIRST_RUN):
        title = f"Distance of weights and CKA from {found[0].about['run']}, {over}"
        figures["durability_apart"] = drift_figure(apart, title, "step" if args.all_checkpoints else "layer")
    report.show_tables(rows, values)
    finding = report.finding_of(found, values, rows, args.margin)
    about = {"models": [subject.reference.name for subject in subjects]}
    more = {"durability_tenths": tenths}
    write_findings(PROBE, (models, texts, args), rows, finding, about, figures, checks, more)
    return rows


if __name__ == "__main__":
    main()
