"""What would a model say if it stopped at a layer?  The logit lens and a trained affine ("tuned") lens, layer by layer.

A run, and several of one depth and tokenizer side by side; a text shown layer by layer:

    python probes/lens.py --model_name_or_path runs/base --dataset_name generated
    python probes/lens.py --model_name_or_path runs/base runs/deleted runs/recovered --dataset_name recovery-Twist --output_dir out/lens
    python probes/lens.py --model_name_or_path runs/base --dataset_name generated --text "One day, Lily found a"

A tuned lens of before again, on other stories; the logit lens over training; a file of stories (one in five held out):

    python probes/lens.py --model_name_or_path runs/base --lens runs/base/probes/lens/lens.safetensors --dataset_split test
    python probes/lens.py --model_name_or_path runs/demo --all_checkpoints
    python probes/lens.py --model_name_or_path gpt2 --dataset_name stories.jsonl --max_eval_samples 200 --lens_steps 0

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


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Read each model's layers with each lens; returns the rows of the table."""
    models, texts, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="probes/lens.py")
    check_arguments(models, texts, args)
    from lm_trials.probing.anatomy import check_hidden
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.lens.figures import checkpoints_figure, lens_figure, text_figure
    from lm_trials.probing.lens.report import (
        by_run,
        finding_of,
        first_of_each_shape,
        measure_subject,
        show_lens,
        show_text,
        text_ids,
        text_rows,
    )
    from lm_trials.probing.lens.training import read_lens_stories
    from lm_trials.probing.subjects import check_alike, find_subjects

    subjects = find_subjects(models, args.all_checkpoints, texts.block_size)
    check_alike(subjects)
    check_hidden(args.layers, subjects[0].depth, subjects[0].label, "--layers")
    for subject in subjects if args.text else ():
        text_ids(subject, args.text)  # raises for one that cannot be shown
    stories = read_lens_stories(texts, args)
    folder = probe_folder(models, "lens")

    files = args.lens or [None] * len(subjects)
    results = [
        measure_subject(subject, stories, models, texts, args, folder, file, control)
        for subject, file, control in zip(subjects, files, first_of_each_shape(subjects), strict=True)
    ]
    rows = [row for result in results for row in result.rows]
    finding = finding_of(results, args.all_checkpoints)
    shown = results[:: len(results) - 1] if args.all_checkpoints and len(results) > 2 else results
    said = [row for result in shown for row in text_rows(result)]

    data = texts.dataset_name.rstrip("/").rpartition("/")[2]
    figures = {
        "lens": lens_figure(
            [row for result in shown for row in result.rows], f"what layers say of {data}, n={rows[0]['n']:,}"
        )
    }
    if args.all_checkpoints:
        steps = [{**row, "run": run} for run, group in by_run(results).items() for r in group for row in r.rows]
        figures["lens_checkpoints"] = checkpoints_figure(steps, f"over training, {data}, n={rows[0]['n']:,}")
    for label in dict.fromkeys(row["model"] for row in said):
        name = "lens_text" if len(shown) == 1 else f"lens_text-{label.replace('/', '-')}"
        figures[name] = text_figure([row for row in said if row["model"] == label], label)
    show_lens(shown)
    if said:
        show_text(said)
    about = {
        "arguments": {**asdict(models), **asdict(texts), **asdict(args)},
        "last_layer": {r.subject.label: asdict(r.last_layer) for r in results},
        "tuned": {r.subject.label: dict(r.tuned.about) for r in results if r.tuned is not None},
    }
    checks = {result.subject.label: result.capture for result in results}
    write_findings(folder, "lens", rows, finding, about, figures, checks, {"lens_text": said} if said else None)
    return rows


if __name__ == "__main__":
    main()
