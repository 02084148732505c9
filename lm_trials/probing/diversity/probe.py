"""How diverse is a corpus?  The diversity coefficient of arXiv 2306.13840, with its interval and its controls.

A prepared corpus, by its train split; files, and their mixture:

    lm-trials probe diversity --model_name_or_path runs/demo --dataset_name generated
    lm-trials probe diversity --model_name_or_path runs/demo --dataset_name pubmed.jsonl --dataset_name patents.jsonl --data_mix .5,.5

Parts of a Hub data set, mixed; the paper's own sizes (hours on a GPU); random weights as a control of the probe:

    lm-trials probe diversity --dataset_name SudharsanSundar/PileSubsets --dataset_config_name pubmed+uspto --data_mix .3,.7
    lm-trials probe diversity --dataset_name wikitext --dataset_config_name wikitext-103-v1 --num_batches 200 --batch_size 512
    lm-trials probe diversity --model_name_or_path runs/demo --dataset_name generated --random_weights

Compression and distinct n-grams alone, without any model:

    lm-trials probe diversity --dataset_name generated --text_only

The coefficient is the expected distance (0 to 1) between two batches of texts as one probe model sees them.  It
depends on the probe, --batch_size, --max_length, --fisher_draws and the fitting, so compare only numbers of one
setting, and read them beside the controls.  "noise removed" is without what the drawing of tokens alone adds, and
depends on --fisher_draws no more; "one batch again" shows how much that is, and that it is gone.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.diversity.flags import DiversityArguments, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure each data set, their mixture and the controls; returns the rows of the table."""
    (args,) = parse_arguments(argv, (DiversityArguments,), __doc__ or "", prog="lm-trials probe diversity")
    check_arguments(args)
    from lm_trials.probing.diversity.batches import open_text_sets
    from lm_trials.probing.diversity.measures import common_length, text_rows
    from lm_trials.probing.diversity.report import show_diversity, show_text_measures, write_diversity

    if not args.text_only:
        from lm_trials.probing.diversity.coefficient import embed_groups, find_probe, load_probes, make_groups
        from lm_trials.reporting.figures import distance_figure

        reference, tokenizer = find_probe(args)
    sets = open_text_sets(args)
    num_words = common_length(sets, args.words_per_batch)
    rows = text_rows(sets, num_words, args.seed)

    results, heat_maps = [], {}
    if not args.text_only:
        groups = make_groups(sets, tokenizer, args)
        results = embed_groups(load_probes(reference, args), groups)
        rows = ProbeTable([row for result in results for row in result.rows()] + rows)
        heat_maps = {
            r.probe: distance_figure(
                *r.of_data(), f"Distances between batches, embedded by {reference.name} ({r.probe})"
            )
            for r in results
        }
        show_diversity(rows, reference.name)
    show_text_measures(rows, num_words)
    write_diversity(args, rows, results, heat_maps)
    return rows


if __name__ == "__main__":
    main()
