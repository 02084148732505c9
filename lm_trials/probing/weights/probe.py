"""Measure what fine-tuning changed in the weights, and how to undo it.

Use it to see how large and how concentrated the change of each matrix is, and
whether a few directions or neurons account for a deleted feature.  The first
model is the base and the second was fine-tuned from it; each further model
was trained from the second (a recovery; as its control an unrelated training):

    lm-trials probe weights --dataset_name recovery-Twist \\
        --model_name_or_path runs/base runs/deleted runs/recovered \\
        --control_dataset_name filter-Twist

Generate stories with each variant and detect the feature in them; prune heads
instead of MLP neurons; compare the weights only, without data:

    lm-trials probe weights --model_name_or_path runs/base runs/deleted \\
        --dataset_name recovery-Twist --feature Twist --num_generations 85
    lm-trials probe weights --model_name_or_path runs/base runs/deleted \\
        --dataset_name recovery-Twist --prune heads \\
        --prune_shares 0.05 0.1 0.2
    lm-trials probe weights --weights_only \\
        --model_name_or_path runs/base runs/teller-lora

An adapter is merged in float64, so that its change keeps its rank.

Controls: the effective rank of a change is compared with random matrices, its
cosine with the previous change with random changes.  Removing the largest
directions of a change is compared with interpolating towards the base by the same
norm, with removing as many random directions, and with noise of the same norm.
Units are ranked for pruning on stories that are not scored, and compared with as
many random units.  As a check, the model without its whole change must have the
base's loss; otherwise the probe stops.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.tables import ProbeTable
from lm_trials.probing.weights.flags import ARGUMENTS, PROBE, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the weights, then undo parts of the change and prune; returns the rows of the table."""
    subject_args, text_args, args = parse_arguments(
        argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe weights", first=MODEL
    )
    check_arguments(subject_args)
    from lm_trials.probing.anatomy import anatomy_of
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import check_alike, choose_texts, find_subjects
    from lm_trials.probing.weights import experiments, report
    from lm_trials.probing.weights.edits import FIRST, REMOVALS, SECOND, Gates, Trial, Workbench
    from lm_trials.probing.weights.figures import matrices_figure, trials_figure

    seed = subject_args.seed
    subjects = find_subjects(subject_args, block_size=text_args.block_size)
    check_alike(subjects)
    lineage = experiments.lineage_notes(subjects)
    if not args.weights_only:
        choose_texts(text_args, subject_args)
        texts = experiments.read_texts(subjects[0], text_args, args)
        write = experiments.writer(subjects[0], text_args, args, seed)
    plain, matrices, models = experiments.read_models(subjects, subject_args)
    if not args.weights_only and args.prune != "no":
        Gates(anatomy_of(plain, subjects[0].label), args.prune)  # refuses before the work what it cannot prune

    steps = report.steps_between(matrices, models, args.draws, seed)
    matrix_rows = ProbeTable(row for step in steps for row in step.rows(args.top))
    weights_of = {label: weights for label, weights, _ in models}
    (base, _, _), (second, _, _), *_ = models
    turned = {}
    for step in steps:
        if step.origin == second:
            three = [weights_of[label] for label in (base, second, step.model)]
            turned[step.model], more = report.turning_rows(step, steps[0].changes, three, args.top)
            matrix_rows += more
    concentration = steps[0].concentration(seed)
    rows = report.overall_rows(steps, concentration, matrix_rows)
    report.show_weights(steps, matrix_rows, args.top)
    figures = {"matrices": matrices_figure(matrix_rows, args.top)}

    deletion, checks, apart = None, {}, None
    trials: list[Trial] = []
    sets: list[str] = []
    if not args.weights_only:
        bench = Workbench(plain, texts.scored, subjects[0].window, text_args.per_device_eval_batch_size)
        trials, apart, check = experiments.run_trials(bench, models, steps[0].changes, texts, args, write, seed)
        checks, sets = {second: check} if check else {}, list(texts.scored)
        named = {trial.method: trial.sums[sets[0]] for trial in trials}
        deletion = report.Deletion(named[FIRST], named[SECOND], seed)
        about = steps[0].about() | {"matrix": None, "kind": None}
        more = report.trial_rows(trials, deletion, sets, about, f"stories with {args.feature}")
        rows += more
        ways = {"directions": list(REMOVALS), args.prune: [f"{args.prune} ranked", f"{args.prune} at random"]}
        ways.pop("no", None)
        for unit, methods in ways.items():
            how = "removed" if unit == "directions" else "pruned"
            report.show_trials(more, f"by {unit} {how}", unit, methods)
        figures["weights"] = trials_figure(more, ways)
    finding = report.finding_of(steps, concentration, turned, deletion, trials, sets, args.prune, lineage)
    about = {
        "models": [subject.reference.name for subject in subjects],
        "lineage": lineage,
        "without_the_whole_change_nats_from_base": apart,
    }
    write_findings(
        PROBE, (subject_args, text_args, args), rows, finding, about, figures, checks, {"matrices": matrix_rows}
    )
    return rows


if __name__ == "__main__":
    main()
