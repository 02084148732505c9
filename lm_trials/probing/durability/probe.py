"""Measure what the order of the training data left in a model.

Use it on runs that were trained on the same records in different orders.  All
models are scored on the same stories, in no particular order: the loss, and its
slope over a metric of the stories.  A model that was trained on difficult stories
last should have a flatter slope.  One run, or several beside the first:

    lm-trials probe durability --model_name_or_path runs/sorted \\
        --dataset_name generated --metric flesch_kincaid_grade
    lm-trials probe durability --margin 0.01 \\
        --model_name_or_path runs/shuffled runs/sorted --dataset_name generated

The slope is that of a least squares fit to the loss per token of each story,
weighted by its tokens.  Intervals are over stories, for these models; whether an
order has an effect is a question for a trial, over seeds.

Controls: the slope with the metric shuffled among the stories, which is 0 but for
chance; a model with random weights, which has learned no order.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.durability.flags import ARGUMENTS, PROBE, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure the losses of each model; returns the rows of the table."""
    models, texts, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe durability")
    check_arguments(models, args)
    from lm_trials.probing.durability import report
    from lm_trials.probing.durability.figures import tenths_figure, trajectories_figure
    from lm_trials.probing.durability.slopes import metric_values
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import check_alike, choose_texts, read_stories

    subjects = report.find_models(models, args.all_checkpoints, texts.block_size)
    check_alike(subjects)
    choose_texts(texts, models)
    records = read_stories(texts)
    values = metric_values(records, args.metric, texts)
    measured, random = report.measure_losses(subjects, records, models, texts)
    rows = report.loss_rows(measured, random, values, args.margin, models.seed)
    last = list({each.run: each for each in measured}.values())
    tenths = report.tenth_rows(last, values, models.seed)
    over = f"{len(records):,} stories of {texts.dataset_name.rstrip('/').rpartition('/')[2]}"
    figures = {"durability_tenths": tenths_figure(tenths, f"Loss by metric, {over}")}
    if args.all_checkpoints:
        figures["durability"] = trajectories_figure(rows, f"Losses and their slopes during training, {over}")
    report.show_losses(rows, values)
    finding = report.loss_finding(measured, rows, values, args.margin)
    about = {"models": [subject.reference.name for subject in subjects]}
    write_findings(PROBE, (models, texts, args), rows, finding, about, figures, {}, {"durability_tenths": tenths})
    return rows


if __name__ == "__main__":
    main()
