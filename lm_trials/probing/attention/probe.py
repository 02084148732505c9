"""Attention maps of every head on a text, and head statistics over stories.

Use it to find heads that attend to the previous or the first token, copy
(induction heads), or changed in fine-tuning. It writes the maps as a figure and
as attention.html, one file to open in a browser.

A run on its validation stories; one head large on another text; two models; a
run during training:

    lm-trials probe attention --model_name_or_path runs/demo
    lm-trials probe attention --model_name_or_path runs/demo \\
        --text "One day, a cat sat on a mat." --layer 1 --head 2
    lm-trials probe attention --model_name_or_path runs/base runs/deleted \\
        --dataset_name recovery-Twist
    lm-trials probe attention --model_name_or_path runs/demo --all_checkpoints \\
        --statistic induction

The tables have for each head, with an interval over stories: the share of
attention to the previous token, to the first and to the token itself; the mean
distance in tokens; the entropy in nats, and relative to even attention; the
induction score: in repeated sequences of random tokens, the share of attention
to the token that followed the first time. The first token attends only to itself
and is left out as a query.

Some head always has the largest value. So the head is selected on one half of
the stories and reported on the other, and must exceed its controls: the head
selected likewise in models with random weights; a head with even attention; for
induction its own score on sequences that are not repeated.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.attention.flags import ARGUMENTS, check_arguments
from lm_trials.probing.flags import MODEL


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every head of every model on a text and on stories; returns the table's rows."""
    which, stories, args = parse_arguments(
        argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe attention", first=MODEL
    )
    check_arguments(which, stories, args)
    from lm_trials.probing.attention.report import Results
    from lm_trials.probing.attention.statistics import head_to_draw, measure, plan_texts, run_of
    from lm_trials.probing.capture import check_capture
    from lm_trials.probing.subjects import (
        check_alike,
        choose_texts,
        find_subjects,
        load_subject,
        read_stories,
        untrained,
    )

    subjects = find_subjects(which, args.all_checkpoints, stories.block_size)
    check_alike(subjects, same=("num_hidden_layers", "num_attention_heads"))
    choose_texts(stories, which)
    large = head_to_draw(subjects[0], args)
    texts = plan_texts(subjects, [record["story"] for record in read_stories(stories)], args, which.seed)

    models, checks, batch_size = [], {}, stories.per_device_eval_batch_size
    for subject in subjects:
        model = load_subject(subject, which)
        checks[subject.label] = check_capture(model, texts.map_ids_T.tolist(), ["attention"], subject.reference.name)
        models.append(measure(model, texts, batch_size, subject, run_of(subject, which.model_name_or_path)))
        del model  # before the next is loaded
    random = [
        measure(untrained(subjects[0], which, which.seed + draw), texts, batch_size)
        for draw in range(args.num_untrained)
    ]
    return Results(models, random, texts, which.seed).write(which, stories, args, checks, large)


if __name__ == "__main__":
    main()
