"""Did training bring a term nearer to what it truly is, and in which layers?  Also: how alike are two models' layers?

A placeholder and the city that it stands for, before and after training on distances, beside a model that was trained
on scrambled distances.  The first model named is the base; a single one is held against what it was trained from:

    lm-trials probe similarity --model_name_or_path runs/geographer runs/foo --control_model runs/foo-scrambled
    lm-trials probe similarity --model_name_or_path runs/foo --placeholder foo --true Paris --align mean
    lm-trials probe similarity --model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct runs/foo-8b --load_in_8bit True

Any two terms in prompts of one's own, ranked among words of one's own or of the vocabulary:

    lm-trials probe similarity --model_name_or_path runs/base runs/tuned --term_a wug --term_b dog --candidates animals.txt --template "The {term} ran."

CKA of two models' layers over the stories of a data set:

    lm-trials probe similarity --model_name_or_path runs/base runs/deleted --measure cka --dataset_name generated

A cosine alone says little: hidden states of a layer point much the same way, and training may bring a placeholder
nearer to every city alike.  The controls: the same term against each other city, among which the true one has a rank;
the chance that a city taken at random stands out as much in any layer (an exact permutation test over the candidates,
one p for all layers); a model trained on what says nothing of the city.  Intervals are over the cities asked about.
The last layer is told before and after the final norm, which are on different scales.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.similarity.flags import ARGUMENTS, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the terms and the layers of the models, with their controls; returns the rows of the table."""
    subject_args, text_args, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe similarity")
    check_arguments(subject_args, text_args, args)
    from lm_trials.probing.findings import Finding, write_findings
    from lm_trials.probing.similarity import report
    from lm_trials.probing.similarity.prompts import find_layout, plan_terms
    from lm_trials.probing.subjects import read_stories

    compared, seed = report.find_compared(subject_args, args, text_args.block_size), subject_args.seed
    asked = report.asked_of(compared)  # the first trained model, whose layout and tokenizer are those of all
    stories, found = [record["story"] for record in read_stories(text_args)] if args.of_layers else [], []
    if args.of_terms:
        plan, batch_size = (
            plan_terms(find_layout(asked, args.prompt_layout), args, seed, asked.window),
            text_args.per_device_eval_batch_size,
        )
        readings, checks = report.read_terms(compared, plan, args.align, batch_size, subject_args)
        tokens = plan.tokens(asked.tokenizer, args.align)
        found.append(report.terms_report(plan, tokens, readings, checks, args, seed))
    if args.of_layers:
        documents = asked.story_ids(stories)
        layers, checks = report.read_layers(compared, documents, args.cka_pooling, text_args, subject_args)
        found.append(report.layers_report(compared, layers, checks, seed))

    rows = [row for one in found for row in one.rows]
    finding = Finding.of([one.finding.sentence for one in found], [one.finding.control for one in found], joint=". ")
    about = {"models": {each.label: each.subject.reference.name for each in compared}}
    figures, checks, tables = (
        {name: value for one in found for name, value in getattr(one, kind).items()}
        for kind in ("figures", "checks", "tables")
    )
    write_findings("similarity", (subject_args, text_args, args), rows, finding, about, figures, checks, tables)
    return rows


if __name__ == "__main__":
    main()
