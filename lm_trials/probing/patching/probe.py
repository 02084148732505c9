"""Activation patching: find the component of a model that carries a difference.

Use it to ask where a model lost something in fine-tuning, or where a model
stores a fact. One component at a time (embeddings, residual stream, attention,
MLP, head) gets the activations of the donor, and the output is measured again.
Source: Jain et al. 2023, arXiv 2311.12786.

Two models on stories: from the first into the second and back. The last command
also measures how often the continuations show the feature:

    lm-trials probe patching --model_name_or_path runs/base runs/deleted \\
        --dataset_name recovery-Twist --feature Twist
    lm-trials probe patching --model_name_or_path runs/base runs/deleted \\
        --dataset_name recovery-Twist --feature Twist --positions prompt
    lm-trials probe patching --model_name_or_path runs/base runs/deleted \\
        --dataset_name recovery-Twist --feature Twist \\
        --components mlp attention --num_generations 64

Two prompts of one model, one position at a time (causal tracing); prompt pairs
from a file, at the tokens in which the two prompts differ; one prompt of two
models:

    lm-trials probe patching --model_name_or_path runs/base --positions each \\
        --prompt "Tom had a boat. Tom liked the" --answer " boat" \\
        --other_prompt "Tom had a truck. Tom liked the" --other_answer " truck"
    lm-trials probe patching --model_name_or_path runs/base --pairs pairs.csv \\
        --positions different
    lm-trials probe patching --model_name_or_path runs/base runs/deleted \\
        --prompt "It turned out" --answer " that"

The result is the share of the gap that each swap closes: 0 is the recipient,
1 is the donor. The donor runs on its own text. Everything above the swapped
component is recomputed. Components below one another carry the same difference,
so shares need not sum to 1.

Controls: swapping a component with itself changes nothing, and swapping
everything gives the donor (both are checked); random directions of the same
size; the donor's activations on another text; the same differences at other
tokens; the other components. The best component is selected on half of the
texts and reported on the other half.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import UsageError, script
from lm_trials.flags import parse_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.patching.flags import ARGUMENTS, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Swap each component in each direction, with its controls; returns the table's rows."""
    parsed = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe patching", first=MODEL)
    check_arguments(*parsed)
    subject_args, text_args, args = parsed
    from lm_trials.probing.capture import cached_blocks, check_capture
    from lm_trials.probing.patching import report
    from lm_trials.probing.patching.sides import load_sides, targets_of
    from lm_trials.probing.patching.swaps import check_swaps, control_kinds, first_kinds, sweep
    from lm_trials.probing.patching.tasks import prompt_task, story_task
    from lm_trials.probing.subjects import SHAPE, check_alike, choose_texts, find_subjects, read_stories

    subjects = find_subjects(subject_args, block_size=text_args.block_size)
    check_alike(subjects, same=list(SHAPE))
    targets = targets_of(subjects[0], args.components, args.layers, args.heads)
    if not args.by_prompts or args.num_generations:
        choose_texts(text_args, subject_args)
    if args.by_prompts:
        task = prompt_task(subjects[0], args, several=len(subjects) > 1)
    else:
        task = story_task(subjects[0], read_stories(text_args), args)
    prompts = report.asked_prompts(text_args, args) if args.num_generations else []
    first, second = load_sides(subjects, subject_args)
    sites = list(dict.fromkeys(target.part.site for target in targets))
    checks = {
        subject.label: check_capture(side.model, task.donor_ids[0].tolist(), sites, subject.reference.name)
        for subject, side in zip(subjects, (first, second), strict=False)
    }

    if args.num_generations and cached_blocks(first.model.config) == []:
        raise UsageError(
            f"--num_generations: {first.label} has no cache of keys and values, which generation with swapped "
            "components needs; remove --num_generations"
        )

    both = {"forward": (first, second, task), "backward": (second, first, task.reversed())}
    directions, rows = [], ProbeTable()
    for donor, recipient, ours in both.values() if args.direction == "both" else [both[args.direction]]:
        check = check_swaps(donor.model, recipient.model, ours, targets)
        how = (text_args.per_device_eval_batch_size, subject_args.seed, f"{donor.label} into {recipient.label}")
        scores = sweep(donor.model, recipient.model, ours, {target: first_kinds(target) for target in targets}, *how)
        seed = recipient.subject.candidate.seed
        direction = report.Direction(donor.label, recipient.label, scores, ours, check, subjects[0].depth, seed)
        chosen = {target: control_kinds(target, ours) for target in report.chosen_targets(direction, subject_args.seed)}
        sweep(donor.model, recipient.model, ours, chosen, *how[:2], f"{how[2]}, controls", scores)
        report.show_direction(direction, subject_args.seed)
        directions.append(direction)
        rows += report.direction_rows(direction, subject_args.seed)
    if args.num_generations:
        scored = report.feature_scores([first, second], directions, targets, subject_args, prompts, args)
        report.show_scores(scored)
        rows += scored
    report.write_patching(subject_args, text_args, args, directions, rows, checks)
    return rows


if __name__ == "__main__":
    main()
