"""Linear probes: can a story's features be decoded from the hidden states?

Use it to ask whether a model represents a feature (a twist, a dialogue), in
which layer, and whether a feature that fine-tuning deleted is still there.

One model; a base, the model a feature was deleted from, and the recovered one:

    lm-trials probe feature_probe --model_name_or_path runs/base \\
        --dataset_name generated
    lm-trials probe feature_probe --features Twist \\
        --model_name_or_path runs/base runs/deleted runs/recovered

The curve over training; some layers of an adapter on a base in 8 bits; stories
of a file, split by hash:

    lm-trials probe feature_probe --model_name_or_path runs/base \\
        --all_checkpoints
    lm-trials probe feature_probe --model_name_or_path runs/adapter \\
        --load_in_8bit --layers 0 -1 normed
    lm-trials probe feature_probe --model_name_or_path runs/base \\
        --dataset_name stories.jsonl --long_stories cut

Before the sentence that shows the feature, at a layer that is fixed in advance:

    lm-trials probe feature_probe --model_name_or_path runs/base \\
        --features Twist --read before_marker --layers normed --pooling last_10

A model reads the story without instruction lines. A logistic regression is fit
on the hidden states of training stories, averaged over the last 10 positions or
over the story, and scored on held-out stories. Layer, pooling and penalty are
selected on a quarter of the training stories.

A whole story contains the words that show the feature. With --read
before_marker models and controls read the story up to the first sentence in
which the feature's detector matches. Each such story is paired with one without
the feature, which is read up to a sentence end after as many words, at the same
place of the same paragraph. Stories whose label and detector differ are left
out.

Controls on the same held-out stories: shuffled training labels (chance and its
spread), the majority class, a model of the same shape with random weights, text
statistics (counts of characters, marks and words), and a bag of words; with
--read before_marker also the words of the last sentence that is read, and the
length alone, which must be at chance. States
that average over words show nothing about a model where words predict the
feature as well. Further models are compared with the first, story by story.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.feature_probe.flags import ARGUMENTS, PROBE, check_arguments
from lm_trials.probing.flags import MODEL


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Fit the probes of each model and control, score and compare them; returns the table's rows."""
    how, texts, args = parse_arguments(
        argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe feature_probe", first=MODEL
    )
    check_arguments(how, texts, args)
    from lm_trials.probing.feature_probe import report
    from lm_trials.probing.feature_probe.fits import Reading, distinct_steps, read_models, read_texts, sites_of
    from lm_trials.probing.feature_probe.stories import read_probe_stories, whole_in
    from lm_trials.probing.findings import Finding, write_findings
    from lm_trials.probing.subjects import choose_texts, find_subjects
    from lm_trials.probing.tables import ProbeTable

    subjects = distinct_steps(find_subjects(how, args.all_checkpoints, texts.block_size))
    for subject in subjects:
        sites_of(subject, args.layers)
    choose_texts(texts, how)
    stories = read_probe_stories(texts, args, whole_in(subjects, args.long_stories))
    readings = [Reading.of(read, stories, args.chosen, args.num_shuffles, how.seed) for read in args.read]
    report.note_stories(stories, readings)

    models, checks = read_models(subjects, readings, how, args, texts.per_device_eval_batch_size)
    rows, differences, findings, figures = ProbeTable(), ProbeTable(), list[Finding](), dict[str, Any]()
    for reading in readings:
        series = [*models[reading.name], *read_texts(reading, args.l2)]
        own, apart = report.score_rows(series, reading), report.difference_rows(series, reading, how.seed)
        report.show_findings(series, own, apart, reading)
        findings.append(report.finding_of(series, own, apart, reading))
        figures |= report.figures_of(series, own, args, reading)
        rows += own
        differences += apart
    finding = Finding.of([one.sentence for one in findings], [one.control for one in findings], ". ")
    about, tables = report.about_of(subjects, stories, readings), {f"{PROBE}-differences": differences}
    write_findings(PROBE, (how, texts, args), rows, finding, about, figures, checks, tables)
    return rows


if __name__ == "__main__":
    main()
