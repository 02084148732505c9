"""Compare token embeddings across models or checkpoints on common axes.

Use it to see whether embeddings form categories (word groups, continents, your
own) and how far training moved them. All checkpoints of a run, with the
movement of tokens that occur in the training data:

    lm-trials probe embeddings --model_name_or_path runs/demo \\
        --all_checkpoints --categories words --words mom happy \\
        --dataset_name generated

The cities of a latent-city run by continent; a base model and a model tuned
from it, with your own categories:

    lm-trials probe embeddings --model_name_or_path runs/atlas \\
        --all_checkpoints --categories continents
    lm-trials probe embeddings --model_name_or_path runs/base runs/deleted \\
        --categories kinds.csv --basis last

All models share the axes of one projection: with a separate projection for each
model, axes rotate and flip, so unmoved points seem to move. The separation of
categories (nearest tokens, silhouette by cosine) is measured in all dimensions,
not in the figure. Intervals are over tokens. Words of several tokens have no
embedding of their own; they are counted and left out.

With --dataset_name, only tokens that occur in that data have categories, because
tokens that never occur in training cluster together regardless of category.
Without it, byte tokens and special tokens are left out.

Controls: shuffled categories; a model of the same shape with random weights;
tokens that never occur in the training data, which move by weight decay and,
with tied embeddings, by the output loss alone.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import note, script
from lm_trials.flags import parse_arguments
from lm_trials.probing.embeddings.flags import ARGUMENTS, PROBE, check_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure the separation of categories and the movement of tokens; return the rows of the table."""
    subject_args, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe embeddings", first=MODEL)
    check_arguments(subject_args, args)
    from lm_trials.probing.embeddings import report
    from lm_trials.probing.embeddings.categories import categories_of, check_nearest, separation
    from lm_trials.probing.embeddings.figures import points_figure
    from lm_trials.probing.embeddings.geometry import (
        Embeddings,
        Words,
        embeddings_of,
        project,
        read_embeddings,
        tokens_seen,
        vocab_of,
    )
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import check_alike, find_subjects, untrained

    subjects = find_subjects(subject_args, args.all_checkpoints)
    check_alike(subjects, same=())
    tokenizer, seed = subjects[0].tokenizer, subject_args.seed
    words = Words(tokenizer).check(args.words)
    counts_V = tokens_seen(subjects[0], args) if args.dataset_name else None
    categories = categories_of(args.categories, tokenizer, counts_V).drawn(args.max_tokens, seed)
    check_nearest(args.nearest, categories)
    models, checks = read_embeddings(subjects, subject_args, args.which)
    for message in filter(None, [*(model.note for model in models), categories.left_out]):
        note(f"note: {message}")

    movement = report.movement_rows(models, counts_V, seed)
    fresh = embeddings_of(untrained(subjects[0], subject_args), args.which, vocab_of(tokenizer), "random weights")
    apart, rows = {}, ProbeTable()
    for model in [*models, Embeddings("random weights", fresh)]:
        table_ND = model.table_VD[categories.tokens_N]
        apart[model.label] = separation(table_ND, categories.names_N, args.nearest, args.permutations, seed)
        role = "control" if model.table_VD is fresh else "finding"
        rows += report.separation_rows(model, apart[model.label], role)
    last, random = apart[models[-1].label], apart["random weights"]
    report.show_separation(rows)
    if movement:
        report.show_movement(movement)
    neighbours = report.neighbour_rows(models, words, args.neighbours, tokenizer)
    report.show_neighbours(neighbours, models)

    picture = project(models, categories.tokens_N, args.basis, args.projection, seed)
    points = report.point_rows(models, picture, categories, tokenizer)
    axes, axis = ("principal components", "component") if picture.explained else ("UMAP axes", "axis")
    shares = [f" ({share:.1%} of variance)" for share in picture.explained] or ["", ""]
    shown = [model.label for model in report.chosen(models, 6)]
    fitted = "" if len(models) == 1 else f" fitted on {'all models' if args.basis == 'joint' else models[-1].label}"
    title = f"{args.which.capitalize()} embeddings of {len(categories.tokens_N):,} tokens on two {axes}{fitted}"
    figure = points_figure(points, shown, title, (f"{axis} 1{shares[0]}", f"{axis} 2{shares[1]}"))
    rows += movement + report.picture_rows(picture)
    finding = report.finding_of(models, last, random, movement, picture, categories, counts_V is not None)
    about = {"models": [subject.reference.name for subject in subjects], "categories": categories.counts,
             "left_out": categories.left_out}  # fmt: skip
    tables = {"points": points, "neighbours": neighbours}
    write_findings(PROBE, (subject_args, args), rows, finding, about, {"embeddings": figure}, checks, tables)
    return rows


if __name__ == "__main__":
    main()
