"""What did fine-tuning change in the weights, and how much of a deletion is undone by taking part of it back?

A base, the model that a feature was deleted from, and that in which it was recovered; what taking back costs elsewhere:

    python probes/weights.py --model_name_or_path runs/base runs/deleted runs/recovered --dataset_name recovery-Twist --control_dataset_name filter-Twist

Stories written by each variant, searched for the feature; heads pruned instead of MLP neurons; the weights alone, without any data:

    python probes/weights.py --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist --feature Twist --num_generations 85
    python probes/weights.py --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist --prune heads --prune_shares 0.05 0.1 0.2
    python probes/weights.py --model_name_or_path runs/base runs/teller-lora --weights_only

The first model is the base; the second was fine-tuned from it; each further one from the second (a recovery, or as its
control an unrelated fine-tuning).  An adapter is merged in float64, so that its change has the rank it was given.

Controls.  A change's effective rank stands beside that of random matrices; its cosine with the change before beside
what random changes give.  The largest directions of a change are taken back beside: going as far straight back to the
base (is it the directions, or only the way?), as many directions drawn at random, and noise of the same size.  What is
pruned is ranked on stories that are not scored, beside as many units drawn at random.  Without all of its change the
model must be the base, or the probe stops.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lm_trials.console import progress, script
from lm_trials.flags import parse_arguments
from lm_trials.probing.weights.flags import ARGUMENTS, PROBE, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the weights, then take parts of the change back and prune; returns the rows of the table."""
    subject_args, text_args, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="probes/weights.py")
    check_arguments(subject_args, text_args, args)
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.flags import probe_folder
    from lm_trials.probing.subjects import check_alike, find_subjects
    from lm_trials.probing.weights import experiments as weight_trials
    from lm_trials.probing.weights import figures as weights_figures
    from lm_trials.probing.weights import report as findings
    from lm_trials.probing.weights.edits import FIRST, REMOVALS, SECOND, Workbench

    subjects = find_subjects(subject_args, block_size=text_args.block_size)
    check_alike(subjects)
    lineage = weight_trials.tell_lineage(subjects)
    if not args.weights_only:
        texts = weight_trials.read_texts(subjects[0], text_args, args)
        write = weight_trials.writer(subjects[0], text_args, args, subject_args.seed)
    plain, matrices, models = weight_trials.read_models(subjects, subject_args)

    total = len(matrices) * (2 * len(models) - 3)
    steps = findings.steps_between(matrices, models, lambda todo: progress(todo, "decomposing", "matrices", total))
    by_chance = findings.chance_of(steps, args.draws, subject_args.seed)
    matrix_rows = [row for step in steps for row in step.rows(args.top, by_chance)]
    turned = {}
    for step in steps:
        if step.origin == models[1][0]:
            three = [models[0][1], models[1][1], next(weights for label, weights, _ in models if label == step.model)]
            turned[step.model], more = findings.turning_rows(step, steps[0].changes, three, args.top)
            matrix_rows += more
    concentration = steps[0].concentration(by_chance, subject_args.seed)
    rows = findings.overall_rows(steps, concentration, matrix_rows)
    findings.show_weights(steps, matrix_rows, args.top)
    figures = {"matrices": weights_figures.matrices_figure(matrix_rows, args.top)}

    deletion, trials, sets, checks = None, [], [], {}
    if not args.weights_only:
        bench = Workbench(plain, texts.scored, subjects[0].window, text_args.per_device_eval_batch_size)
        trials, apart, check = weight_trials.run_trials(
            bench, models, steps[0].changes, texts, args, write, subject_args.seed
        )
        checks = {models[1][0]: check} if check else {}
        sets = list(texts.scored)
        named = {trial.method: trial.sums[sets[0]] for trial in trials}
        deletion = findings.Deletion(named[FIRST], named[SECOND], subject_args.seed)
        about = steps[0].about() | {"matrix": None, "kind": None}
        more = findings.trial_rows(trials, deletion, sets, about, f"stories with {args.feature}")
        rows += more
        findings.show_trials(more, "share of the deletion undone, by what is taken back", "directions", list(REMOVALS))
        ways = [f"{args.prune} ranked", f"{args.prune} at random"]
        if args.prune != "no":
            findings.show_trials(more, "share of the deletion undone, by what is pruned", args.prune, ways)
        figures["weights"] = weights_figures.trials_figure(more, {"directions": list(REMOVALS), args.prune: ways})
    finding = findings.finding_of(steps, concentration, turned, deletion, trials, sets, args.prune, lineage)
    about = {
        "models": [subject.reference.name for subject in subjects],
        "arguments": {**asdict(subject_args), **asdict(text_args), **asdict(args)},
        "lineage": lineage,
        "without_the_whole_change_nats_from_base": apart if trials else None,
    }
    folder = probe_folder(subject_args, PROBE)
    write_findings(folder, PROBE, rows, finding, about, figures, checks, {"matrices": matrix_rows})
    return rows


if __name__ == "__main__":
    main()
