"""Measure how early in the network the final prediction is formed.

Use it to see from which layer on a model's hidden states predict the next
token, and whether fine-tuning moved that layer.  Two lenses decode each
layer: the logit lens (the model's own final norm and output head) and the
tuned lens (an affine map per layer before them, trained on other stories).

One run, several runs side by side, or a text shown layer by layer:

    lm-trials probe lens --model_name_or_path runs/base \\
        --dataset_name generated
    lm-trials probe lens --model_name_or_path runs/base runs/deleted \\
        runs/recovered --dataset_name recovery-Twist --output_dir out/lens
    lm-trials probe lens --model_name_or_path runs/base \\
        --dataset_name generated --text "One day, Lily found a"

An earlier tuned lens on other stories, the logit lens over training, and a
file of stories, one in five of which is held out:

    lm-trials probe lens --model_name_or_path runs/base \\
        --lens runs/base/probes/lens/lens.safetensors --dataset_split test
    lm-trials probe lens --model_name_or_path runs/demo --all_checkpoints
    lm-trials probe lens --model_name_or_path gpt2 --lens_steps 0 \\
        --dataset_name stories.jsonl --max_eval_samples 200

The main measure is KL(final || lens), the distance of a layer's prediction
from the model's own.  Controls: the lens at the last layer must be the model;
*token frequencies* is the best prediction that sees no context, which a
trained lens reaches without using the layer; layer 0 sees one token only;
*untrained* is a model with random weights, whose layers are close to its last
one although it has learned nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lm_trials.console import note, script
from lm_trials.flags import parse_arguments
from lm_trials.probing.flags import MODEL, probe_folder
from lm_trials.probing.lens.flags import ARGUMENTS, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure each model's layers with each lens; returns the rows of the table."""
    models, texts, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe lens", first=MODEL)
    check_arguments(models, args)
    from lm_trials.probing.anatomy import check_hidden
    from lm_trials.probing.findings import file_name, write_findings
    from lm_trials.probing.lens import report
    from lm_trials.probing.lens.figures import checkpoints_figure, lens_figure, text_figure
    from lm_trials.probing.lens.training import read_lens_stories
    from lm_trials.probing.subjects import check_alike, choose_texts, find_subjects

    subjects = find_subjects(models, args.all_checkpoints, texts.block_size)
    check_alike(subjects)
    check_hidden(args.layers, subjects[0].depth, subjects[0].label, "--layers")
    for subject in subjects if args.text else ():
        report.text_ids(subject, args.text)  # an error now, not after the lenses were trained
    choose_texts(texts, models)
    stories = read_lens_stories(texts, args)

    files, folder = args.lens or [None] * len(subjects), probe_folder(models, "lens")
    results = [
        report.measure_subject(subject, stories, models, texts, args, folder, file, control)
        for subject, file, control in zip(subjects, files, report.first_of_each_shape(subjects), strict=True)
    ]
    rows = ProbeTable(row for result in results for row in result.rows)
    # Over training the first and the last checkpoint: tables and curves of all would be pages.
    shown = results[:: len(results) - 1] if args.all_checkpoints and len(results) > 2 else results
    predicted = ProbeTable(row for result in shown for row in report.text_rows(result))

    over = f"{rows[0]['n']:,} stories of {texts.dataset_name.rstrip('/').rpartition('/')[2]}"
    title = "How near each layer's prediction is to the final one"
    figures = {"lens": lens_figure([row for one in shown for row in one.rows], f"{title}, over {over}")}
    if args.all_checkpoints:
        steps = [
            {**row, "run": run} for run, group in report.by_run(results).items() for one in group for row in one.rows
        ]
        if any(row["step"] is None for row in steps):
            note("note: a model without a run.json has no known step; the figure over training leaves it out")
        known = [row for row in steps if row["step"] is not None]
        figures["lens_checkpoints"] = checkpoints_figure(known, f"{title} during training, over {over}")
    for label in predicted.distinct("model"):
        name = "lens_text" if len(shown) == 1 else f"lens_text-{file_name(label)}"
        figures[name] = text_figure(predicted.where(model=label), f"Most likely next token at each layer of {label}")
    report.show_lens(shown)
    report.show_text(predicted)
    about = {
        "last_layer": {one.subject.label: asdict(one.last_layer) for one in results},
        "tuned": {one.subject.label: dict(one.tuned.about) for one in results if one.tuned is not None},
    }
    checks = {one.subject.label: one.capture for one in results}
    finding = report.finding_of(results, args.all_checkpoints)
    write_findings("lens", (models, texts, args), rows, finding, about, figures, checks, {"lens_text": predicted})
    return rows


if __name__ == "__main__":
    main()
