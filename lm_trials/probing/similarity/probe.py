"""Measure whether training brought a term nearer to its true meaning.

Use it after fine-tuning on facts about a placeholder: it compares the hidden
states of "foo" and of the city that it stands for ("Paris"), layer by layer,
before and after training.  With --measure cka it compares the layers of two
models over a data set.  The first model is the base; a single model is
compared with the one that it was trained from:

    lm-trials probe similarity --control_model runs/foo-scrambled \\
        --model_name_or_path runs/geographer runs/foo
    lm-trials probe similarity --model_name_or_path runs/foo \\
        --placeholder foo --true Paris --align mean
    lm-trials probe similarity --load_in_8bit True --model_name_or_path \\
        meta-llama/Meta-Llama-3-8B-Instruct runs/foo-8b

Any two terms in your own prompts, ranked among your own words:

    lm-trials probe similarity --model_name_or_path runs/base runs/tuned \\
        --term_a wug --term_b dog --candidates animals.txt \\
        --template "The {term} ran."

CKA of two models' layers over the stories of a data set:

    lm-trials probe similarity --model_name_or_path runs/base runs/deleted \\
        --measure cka --dataset_name generated

A cosine alone means little: all hidden states of a layer have similar
directions, and training may bring a placeholder nearer to every city.
Controls: the similarity of the term to every other city, among which the true
one has a rank; an exact permutation test over these candidates, with one p
for all layers; a model trained on data without information on the city.
Intervals are over the query cities.  The last layer is reported before and
after the final norm, which have different scales.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.similarity.flags import ARGUMENTS, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the terms and the layers of the models, with their controls; returns the rows of the table."""
    subject_args, text_args, args = parse_arguments(
        argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe similarity", first=MODEL
    )
    check_arguments(subject_args, text_args, args)
    from lm_trials.probing.findings import Finding, write_findings
    from lm_trials.probing.similarity import report
    from lm_trials.probing.similarity.prompts import find_layout, plan_terms
    from lm_trials.probing.subjects import choose_texts, read_stories

    compared, seed = report.find_compared(subject_args, args, text_args.block_size), subject_args.seed
    # Every model gets the prompt format and the tokenizer of the first trained one.
    asked = next(each.subject for each in compared if each.role == "trained")
    if args.of_layers:
        choose_texts(text_args, subject_args)
    stories, found = [record["story"] for record in read_stories(text_args)] if args.of_layers else [], []
    if args.of_terms:
        plan = plan_terms(find_layout(asked, args.prompt_layout), args, seed, asked.window)
        readings, checks = report.read_terms(compared, plan, args.align, subject_args, text_args)
        tokens = plan.tokens(asked.tokenizer, args.align)
        found.append(report.terms_report(plan, tokens, readings, checks, args.align, seed))
    if args.of_layers:
        documents = asked.story_ids(stories)
        layers, checks = report.read_layers(compared, documents, args.cka_pooling, subject_args, text_args)
        found.append(report.layers_report(compared, layers, checks, seed))

    rows = [row for one in found for row in one.rows]
    finding = Finding.of([one.finding.sentence for one in found], [one.finding.control for one in found], joint=". ")
    about = {"models": {each.subject.label: each.subject.reference.name for each in compared}}
    figures, checks, tables = (
        {name: value for one in found for name, value in getattr(one, kind).items()}
        for kind in ("figures", "checks", "tables")
    )
    write_findings("similarity", (subject_args, text_args, args), rows, finding, about, figures, checks, tables)
    return rows


if __name__ == "__main__":
    main()
