"""Measure how diverse a data set is: the diversity coefficient, with controls.

The diversity coefficient (arXiv 2306.13840) is the expected distance, 0 to 1,
between two batches of texts, embedded by a probe network. Use it to compare
corpora or mixtures before training on them. A prepared corpus, then two files
and their mixture:

    lm-trials probe diversity --model_name_or_path runs/demo \\
        --dataset_name generated
    lm-trials probe diversity --model_name_or_path runs/demo \\
        --dataset_name pubmed.jsonl --dataset_name patents.jsonl \\
        --data_mix .5,.5

Parts of a Hub data set, mixed; the paper's sizes (hours on a GPU); random
weights as a control of the probe network:

    lm-trials probe diversity --dataset_name SudharsanSundar/PileSubsets \\
        --dataset_config_name pubmed+uspto --data_mix .3,.7
    lm-trials probe diversity --dataset_name wikitext \\
        --dataset_config_name wikitext-103-v1 \\
        --num_batches 200 --batch_size 512
    lm-trials probe diversity --model_name_or_path runs/demo \\
        --dataset_name generated --random_weights

Compression and distinct n-grams only, without a model:

    lm-trials probe diversity --dataset_name generated --text_only

The coefficient depends on the probe network, --batch_size, --max_length,
--fisher_draws and the fitting of the final layer: compare only numbers with
the same settings, and compare them with the controls. "Without noise" is the
coefficient without the bias of the random draws; it does not depend on
--fisher_draws. "One batch again" shows the size of that bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.diversity.flags import DiversityArguments, check_arguments
from lm_trials.probing.tables import ProbeTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lm_trials.probing.diversity.coefficient import GroupEmbeddings


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure each data set, their mixture and the controls; return the rows of the table."""
    (args,) = parse_arguments(argv, (DiversityArguments,), __doc__ or "", prog="lm-trials probe diversity")
    if not args.dataset_name:  # part of the folder's name, which is checked next
        from lm_trials.evaluation.own_data import choose_dataset

        args.dataset_name = [choose_dataset(args, args.model_name_or_path)]
    check_arguments(args)
    from lm_trials.probing.diversity.batches import open_text_sets
    from lm_trials.probing.diversity.measures import common_length, text_rows
    from lm_trials.probing.diversity.report import show_diversity, show_text_measures, write_diversity

    if not args.text_only:
        from lm_trials.probing.diversity.coefficient import (
            RANDOM,
            TRAINED,
            embed_groups,
            find_probe,
            load_probes,
            make_groups,
        )
        from lm_trials.reporting.figures import distance_figure

        reference, tokenizer = find_probe(args)
    sets = open_text_sets(args)
    num_words = common_length(sets, args.words_per_batch)
    rows = text_rows(sets, num_words, args.seed)

    results: list[GroupEmbeddings] = []
    heat_maps: dict[str, Figure] = {}
    if not args.text_only:
        groups, name = make_groups(sets, tokenizer, args), reference.name
        results = embed_groups(load_probes(reference, args), groups)
        rows = ProbeTable([row for result in results for row in result.rows()] + rows)
        titles = {TRAINED: name, RANDOM: f"random weights of the shape of {name}"}
        heat_maps = {
            r.probe: distance_figure(
                *r.of_data(), f"Distances between batches of texts, measured with {titles[r.probe]}"
            )
            for r in results
        }
        show_diversity(rows, titles)
    show_text_measures(rows, num_words)
    write_diversity(args, rows, results, heat_maps)
    return rows


if __name__ == "__main__":
    main()
