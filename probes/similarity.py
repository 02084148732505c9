"""Did training bring a term nearer to what it truly is, and in which layers?  Also: how alike are two models' layers?

A placeholder and the city that it stands for, before and after training on distances, beside a model that was trained
on scrambled distances.  The first model named is the base; a single one is held against what it was trained from:

    python probes/similarity.py --model_name_or_path runs/geographer runs/foo --control_model runs/foo-scrambled
    python probes/similarity.py --model_name_or_path runs/foo --placeholder foo --true Paris --align mean
    python probes/similarity.py --model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct runs/foo-8b --load_in_8bit True

Any two terms in prompts of one's own, ranked among words of one's own or of the vocabulary:

    python probes/similarity.py --model_name_or_path runs/base runs/tuned --term_a wug --term_b dog --candidates animals.txt --template "The {term} ran."

CKA of two models' layers over the stories of a data set:

    python probes/similarity.py --model_name_or_path runs/base runs/deleted --measure cka --dataset_name generated

A cosine alone says little: hidden states of a layer point much the same way, and training may bring a placeholder
nearer to every city alike.  The controls: the same term against each other city, among which the true one has a rank;
the chance that a city taken at random stands out as much in any layer (an exact permutation test over the candidates,
one p for all layers); a model trained on what says nothing of the city.  Intervals are over the cities asked about.
The last layer is told before and after the final norm, which are on different scales.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.similarity.flags import ARGUMENTS, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare the terms and the layers of the models, with their controls; returns the rows of the table."""
    subject_args, text_args, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="probes/similarity.py")
    check_arguments(subject_args, text_args, args)
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.flags import probe_folder
    from lm_trials.probing.similarity.prompts import find_layout, plan_terms
    from lm_trials.probing.similarity.report import (
        asked_of,
        find_compared,
        joined,
        layers_part,
        read_layers,
        read_terms,
        terms_part,
    )
    from lm_trials.probing.subjects import read_stories

    compared, parts = find_compared(subject_args, args, text_args.block_size), []
    asked = asked_of(compared)  # the first trained model, whose layout and tokenizer are those of all
    stories = [record["story"] for record in read_stories(text_args)] if args.of_layers else []
    if args.of_terms:
        plan = plan_terms(find_layout(asked, args.layout), args, subject_args.seed, asked.window)
        readings, checks = read_terms(compared, plan, args.align, text_args.per_device_eval_batch_size, subject_args)
        parts.append(
            terms_part(plan, plan.tokens(asked.tokenizer, args.align), readings, checks, args, subject_args.seed)
        )
    if args.of_layers:
        layers, checks = read_layers(compared, asked.story_ids(stories), args.cka_pooling, text_args, subject_args)
        parts.append(layers_part(compared, layers, checks, subject_args.seed))

    rows = [row for part in parts for row in part.rows]
    write_findings(
        probe_folder(subject_args, "similarity"),
        "similarity",
        rows,
        joined([part.finding for part in parts]),
        {
            "models": {each.label: each.subject.reference.name for each in compared},
            "arguments": {**asdict(subject_args), **asdict(text_args), **asdict(args)},
        },
        {name: figure for part in parts for name, figure in part.figures.items()},
        {label: check for part in parts for label, check in part.checks.items()},
        {name: table for part in parts for name, table in part.tables.items()},
    )
    return rows


if __name__ == "__main__":
    main()
