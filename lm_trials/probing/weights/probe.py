"""What did fine-tuning change in the weights, and how much of a deletion is undone by taking part of it back?

A base, the model that a feature was deleted from, and that in which it was recovered; what taking back costs elsewhere:

    lm-trials probe weights --model_name_or_path runs/base runs/deleted runs/recovered --dataset_name recovery-Twist --control_dataset_name filter-Twist

Stories written by each variant, searched for the feature; heads pruned instead of MLP neurons; the weights alone, without any data:

    lm-trials probe weights --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist --feature Twist --num_generations 85
    lm-trials probe weights --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist --prune heads --prune_shares 0.05 0.1 0.2
    lm-trials probe weights --model_name_or_path runs/base runs/teller-lora --weights_only

The first model is the base; the second was fine-tuned from it; each further one from the second (a recovery, or as its
control an unrelated fine-tuning).  An adapter is merged in float64, so that its change has the rank it was given.

Controls.  A change's effective rank stands beside that of random matrices; its cosine with the change before beside
what random changes give.  The largest directions of a change are taken back beside: going as far straight back to the
base (is it the directions, or only the way?), as many directions drawn at random, and noise of the same size.  What is
pruned is ranked on stories that are not scored, beside as many units drawn at random.  Without all of its change the
model must be the base, or the probe stops.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import progress, script
from lm_trials.flags import parse_arguments
from lm_trials.probing.tables import ProbeTable
from lm_trials.probing.weights.flags import ARGUMENTS, PROBE, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the weights, then take parts of the change back and prune; returns the rows of the table."""
    subject_args, text_args, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe weights")
    check_arguments(subject_args, text_args, args)
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import check_alike, find_subjects
    from lm_trials.probing.weights import experiments, report
    from lm_trials.probing.weights.edits import FIRST, REMOVALS, SECOND, Workbench
    from lm_trials.probing.weights.figures import matrices_figure, trials_figure

    seed = subject_args.seed
    subjects = find_subjects(subject_args, block_size=text_args.block_size)
    check_alike(subjects)
    lineage = experiments.tell_lineage(subjects)
    if not args.weights_only:
        texts = experiments.read_texts(subjects[0], text_args, args)
        write = experiments.writer(subjects[0], text_args, args, seed)
    plain, matrices, models = experiments.read_models(subjects, subject_args)

    total = len(matrices) * (2 * len(models) - 3)
    bar = lambda todo: progress(todo, "decomposing", "matrices", total)  # noqa: E731
    steps = report.steps_between(matrices, models, args.draws, seed, bar)
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

    deletion, trials, sets, checks, apart = None, [], [], {}, None
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
        for unit, methods in ways.items():
            how = "taken back" if unit == "directions" else "pruned"
            if unit != "no":
                report.show_trials(more, f"share of the deletion undone, by what is {how}", unit, methods)
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
