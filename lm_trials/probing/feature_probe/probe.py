"""Can a story's features be read linearly from a model's hidden states?  On held-out stories, beside what words tell.

One model; a base, what a feature was deleted from and what it was recovered in, side by side:

    lm-trials probe feature_probe --model_name_or_path runs/base --dataset_name generated
    lm-trials probe feature_probe --model_name_or_path runs/base runs/deleted runs/recovered --features Twist

The curve over training; some layers of an adapter on a base in 8 bits; stories of a file, split by hash:

    lm-trials probe feature_probe --model_name_or_path runs/base --all_checkpoints
    lm-trials probe feature_probe --model_name_or_path runs/adapter --load_in_8bit --layers 0 -1 normed
    lm-trials probe feature_probe --model_name_or_path runs/base --dataset_name stories.jsonl --long_stories cut

A model reads the story alone, without instruction lines.  Its hidden states, averaged over the last 10 positions or
over the story, are given to a logistic regression, fitted on training stories and scored on others.  Layer, pooling and
penalty are chosen on a quarter of the training stories; test stories choose nothing.  Controls, each on the same test
stories: permuted labels of the training stories (chance and its spread), the majority, a model of the same shape with
random weights (what the shape alone carries), counts of marks and words, and the words and pairs of words themselves.
A feature is "shown" where a model's states tell it better than each of them: where words tell it as well, states that
average over words show nothing.  Models beside the first are compared with it story by story: a feature that was
deleted and stays readable differs from the base by no more than the interval says.  For the deletion and recovery
trial, name one that has seen the feature, one that it was deleted from, and one that never saw it.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.feature_probe.flags import ARGUMENTS, PROBE, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Fit the probes of each model and control, score and compare them; returns the rows of the table."""
    how, texts, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe feature_probe")
    check_arguments(how, texts, args)
    from lm_trials.probing.feature_probe.fits import Labels, distinct_steps, read_models, read_texts, sites_of
    from lm_trials.probing.feature_probe.report import (
        about_of,
        difference_rows,
        figures_of,
        finding_of,
        note_stories,
        score_rows,
        show_findings,
    )
    from lm_trials.probing.feature_probe.stories import read_probe_stories, whole_in
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import find_subjects

    subjects = distinct_steps(find_subjects(how, args.all_checkpoints, texts.block_size))
    for subject in subjects:
        sites_of(subject, args.layers)
    stories = read_probe_stories(texts, args, whole_in(subjects, args.long_stories))
    features, without = stories.parted(args.chosen)
    note_stories(stories, without)
    labels = {feature: Labels.of(*stories.has(feature), args.num_shuffles, how.seed) for feature in features}

    models, checks = read_models(subjects, stories, labels, how, args, texts.per_device_eval_batch_size)
    series = [*models, *read_texts(stories, labels, args.l2)]
    rows, differences = score_rows(series, labels), difference_rows(series, labels, how.seed)

    show_findings(series, rows, differences)
    finding, about = finding_of(series, rows, differences), about_of(subjects, stories, without)
    figures, tables = figures_of(series, rows, args), {f"{PROBE}-differences": differences}
    write_findings(PROBE, (how, texts, args), rows, finding, about, figures, checks, tables)
    return rows


if __name__ == "__main__":
    main()
