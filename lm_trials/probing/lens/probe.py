"""What would a model say if it stopped at a layer?  The logit lens and a trained affine ("tuned") lens, layer by layer.

A run, and several of one depth and tokenizer side by side; a text shown layer by layer:

    lm-trials probe lens --model_name_or_path runs/base --dataset_name generated
    lm-trials probe lens --model_name_or_path runs/base runs/deleted runs/recovered --dataset_name recovery-Twist --output_dir out/lens
    lm-trials probe lens --model_name_or_path runs/base --dataset_name generated --text "One day, Lily found a"

A tuned lens of before again, on other stories; the logit lens over training; a file of stories (one in five held out):

    lm-trials probe lens --model_name_or_path runs/base --lens runs/base/probes/lens/lens.safetensors --dataset_split test
    lm-trials probe lens --model_name_or_path runs/demo --all_checkpoints
    lm-trials probe lens --model_name_or_path gpt2 --dataset_name stories.jsonl --max_eval_samples 200 --lens_steps 0

KL(final || lens) says how far a layer's prediction is from the model's own.  The tuned lens is trained on other stories
than it is read on.  Controls: the lens at the last layer must be the model; *token frequencies*, the best prediction
that looks at nothing, is what a trained lens could have learnt without reading the layer; layer 0 is what one token
alone tells; and *untrained* weights show how near layers come to the last one where nothing was learnt.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.flags import probe_folder
from lm_trials.probing.lens.flags import ARGUMENTS, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Read each model's layers with each lens; returns the rows of the table."""
    models, texts, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe lens")
    check_arguments(models, texts, args)
    from lm_trials.probing.anatomy import check_hidden
    from lm_trials.probing.findings import file_name, write_findings
    from lm_trials.probing.lens import report
    from lm_trials.probing.lens.figures import checkpoints_figure, lens_figure, text_figure
    from lm_trials.probing.lens.training import read_lens_stories
    from lm_trials.probing.subjects import check_alike, find_subjects

    subjects = find_subjects(models, args.all_checkpoints, texts.block_size)
    check_alike(subjects)
    check_hidden(args.layers, subjects[0].depth, subjects[0].label, "--layers")
    for subject in subjects if args.text else ():
        report.text_ids(subject, args.text)  # raises for one that cannot be shown
    stories = read_lens_stories(texts, args)

    files, folder = args.lens or [None] * len(subjects), probe_folder(models, "lens")
    results = [
        report.measure_subject(subject, stories, models, texts, args, folder, file, control)
        for subject, file, control in zip(subjects, files, report.first_of_each_shape(subjects), strict=True)
    ]
    rows = ProbeTable(row for result in results for row in result.rows)
    shown = results[:: len(results) - 1] if args.all_checkpoints and len(results) > 2 else results
    said = ProbeTable(row for result in shown for row in report.text_rows(result))

    over = f"{texts.dataset_name.rstrip('/').rpartition('/')[2]}, n={rows[0]['n']:,}"
    figures = {"lens": lens_figure([row for one in shown for row in one.rows], f"Predictions of each layer on {over}")}
    if args.all_checkpoints:
        steps = [
            row | {"run": run} for run, group in report.by_run(results).items() for one in group for row in one.rows
        ]
        figures["lens_checkpoints"] = checkpoints_figure(steps, f"Predictions of each layer over training, on {over}")
    for label in said.distinct("model"):
        name = "lens_text" if len(shown) == 1 else f"lens_text-{file_name(label)}"
        figures[name] = text_figure(said.where(model=label), f"Next token predicted at each layer of {label}")
    report.show_lens(shown)
    if said:
        report.show_text(said)
    about = {
        "last_layer": {one.subject.label: asdict(one.last_layer) for one in results},
        "tuned": {one.subject.label: dict(one.tuned.about) for one in results if one.tuned is not None},
    }
    checks = {one.subject.label: one.capture for one in results}
    finding = report.finding_of(results, args.all_checkpoints)
    write_findings("lens", (models, texts, args), rows, finding, about, figures, checks, {"lens_text": said})
    return rows


if __name__ == "__main__":
    main()
