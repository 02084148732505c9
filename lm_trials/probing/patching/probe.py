"""Which part of a model carries a difference?  One part's activations are swapped between two models or two prompts.

What a model lost in fine-tuning, and where (a thin wrapper around what stays, arXiv 2311.12786): from the first model
into the second and back, on stories that ask for the feature; with the feature score of what is then written:

    lm-trials probe patching --model_name_or_path runs/base --model_name_or_path runs/deleted --dataset_name recovery-Twist --feature Twist
    lm-trials probe patching --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist --feature Twist --components mlp attention --num_generations 64
    lm-trials probe patching --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist --feature Twist --positions prompt

Two prompts of one model, each position by itself (causal tracing); many pairs from a file; one prompt of two models:

    lm-trials probe patching --model_name_or_path runs/base --prompt "Tom had a boat. Tom liked the" --other_prompt "Tom had a truck. Tom liked the" --answer " boat" --other_answer " truck" --positions each
    lm-trials probe patching --model_name_or_path runs/base --pairs pairs.csv
    lm-trials probe patching --model_name_or_path runs/base runs/deleted --prompt "It turned out" --answer " that"

A share of the gap of 0 is the recipient as it is, 1 is the donor.  The donor's activations come from its own run on
its own text; nothing else is touched, and what is above the part goes on from them.  Parts below one another carry the
same difference, so shares need not sum to 1; the residual stream is everything below it at once.

Controls: swapped with itself nothing changes (checked, to the bit on a CPU), swapped whole it is the donor (checked);
random directions of the same size and the donor's activations on another text, which show what a mere disturbance of
the place does; the same differences at other tokens, which close as much where the difference does not depend on the
token; the other parts.  The best part is chosen on half of the texts and told on the other half.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.patching.flags import ARGUMENTS, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Swap each part in each direction, with its controls, and tell which closes the gap; returns the table's rows."""
    parsed = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe patching")
    check_arguments(*parsed)
    subject_args, text_args, args = parsed
    from lm_trials.probing.capture import check_capture
    from lm_trials.probing.patching import report
    from lm_trials.probing.patching.sides import load_sides, sites_of, targets_of
    from lm_trials.probing.patching.swaps import check_swaps, control_kinds, first_kinds, sweep
    from lm_trials.probing.patching.tasks import prompt_task, story_task
    from lm_trials.probing.subjects import SHAPE, check_alike, find_subjects, read_stories

    subjects = find_subjects(subject_args, block_size=text_args.block_size)
    check_alike(subjects, same=SHAPE)
    targets = targets_of(subjects[0], args.components, args.layers, args.heads)
    if args.by_prompts:
        task = prompt_task(subjects[0], args, several=len(subjects) > 1)
    else:
        task = story_task(subjects[0], read_stories(text_args), args)
    prompts = report.asked_prompts(text_args, args) if args.num_generations else []
    sides = load_sides(subjects, subject_args)
    checks = {
        subject.label: check_capture(model, task.donor_ids[0], sites_of(targets), subject.reference.name)
        for subject, model in zip(subjects, sides.models, strict=True)
    }

    directions, rows = [], ProbeTable()
    for donor, recipient, ours in sides.directions(args.direction, task):
        check = check_swaps(donor.model, recipient.model, ours, targets)
        how = (text_args.per_device_eval_batch_size, subject_args.seed, f"{donor.label} into {recipient.label}")
        scores = sweep(donor.model, recipient.model, ours, {target: first_kinds(target) for target in targets}, *how)
        direction = report.Direction(
            donor.label, recipient.label, scores, ours, check, subjects[0].depth, recipient.seed
        )
        chosen = {target: control_kinds(target, ours) for target in report.chosen_targets(direction, subject_args.seed)}
        sweep(donor.model, recipient.model, ours, chosen, *how[:2], f"{how[2]}, controls", scores)
        report.show_direction(direction, subject_args.seed)
        directions.append(direction)
        rows += report.direction_rows(direction, subject_args.seed)
    if args.num_generations:
        scored = report.feature_scores(sides, directions, targets, subject_args, prompts, args)
        report.show_scores(scored)
        rows += scored
    report.write_patching(subject_args, text_args, args, directions, rows, checks)
    return rows


if __name__ == "__main__":
    main()
