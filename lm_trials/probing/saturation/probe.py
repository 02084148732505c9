"""Measure when what a model writes stops changing, beside what it read.

For each checkpoint of a run: the metrics of the records that the run read since
the checkpoint before (input), the same metrics of texts that the checkpoint
writes (output), and its losses on common stories (validation). Use it on runs
with checkpoints at updates 0, 1, 2, 4, 8, ...:

    lm-trials train --dataset_name generated --vocab_size 1000 \\
        --config_name demo --max_steps 512 --checkpoint_ladder True
    lm-trials prepare metadata --dataset_name generated
    lm-trials probe saturation runs/demo

Several seeds of one arm, or other models and data sets:

    lm-trials probe saturation runs/a-s0 runs/a-s1 \\
        runs/a-s2 --output_dir out/saturation
    lm-trials probe saturation runs/gpt2 runs/llama \\
        --dataset_name generated --by features

A metric is settled from the first checkpoint on after which it stays within
--delta of its value at the horizon, in shares of its change since the first
checkpoint. Where the noise of the samples is more than that, the noise decides
what is near: a metric that moves by less than chance explains has no step. The
horizon is fixed beforehand; a later one gives later steps.

Each step belongs to one run. With several root seeds of an arm, mean steps and
the order of metrics have intervals over root seeds.

Control: the last checkpoint writes again with other random numbers.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import note, script
from lm_trials.flags import parse_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.saturation.flags import ARGUMENTS, PROBE, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure the runs; return the rows of the table."""
    subject_args, text_args, args = parse_arguments(
        argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe saturation", first=MODEL
    )
    check_arguments(subject_args, text_args, args)
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.saturation import report
    from lm_trials.probing.saturation.figures import curves_figure, minmax_figure
    from lm_trials.probing.subjects import choose_texts, read_stories

    plans = report.find_plans(subject_args.model_name_or_path, args.horizon)
    given = None if text_args.data_cache_dir == type(text_args).data_cache_dir else text_args.data_cache_dir
    records = []
    if text_args.dataset_name or not all(map(report.is_tuned, plans)):
        choose_texts(text_args, subject_args)
        records = read_stories(text_args)
    else:
        note("note: --dataset_name is not given; the losses are those of the validation completions of each run")
    runs = [report.measure_run(plan, records, subject_args, text_args, args, given) for plan in plans]

    values = report.value_rows(runs)
    found = report.settled(runs, args.delta)
    steps = report.step_rows(runs, found, args.delta)
    rows = ProbeTable([*steps, *report.arm_rows(runs, found)])
    report.show_steps(rows)
    settled = steps.where(quantity=report.STEP, slice="all")
    figures = {"curves": curves_figure(values, settled), "minmax": minmax_figure(values)}
    about = {"models": {plan.label: plan.name for plan in plans}, "arms": {plan.label: plan.arm for plan in plans}}
    tables = {"checkpoints": values, "texts": [row for run in runs for row in run.texts]}
    finding = report.finding_of(runs, rows)
    write_findings(PROBE, (subject_args, text_args, args), rows, finding, about, figures, tables=tables)
    return rows


if __name__ == "__main__":
    main()
