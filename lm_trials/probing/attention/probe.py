"""Where do the heads of a model look?  Attention maps of a text, and statistics of every head over a data set.

A run on its validation stories; another text, one head large; models side by side; a run while it was trained:

    lm-trials probe attention --model_name_or_path runs/demo
    lm-trials probe attention --model_name_or_path runs/demo --text "One day, a cat sat on a mat." --layer 1 --head 2
    lm-trials probe attention --model_name_or_path runs/base runs/deleted --dataset_name recovery-Twist
    lm-trials probe attention --model_name_or_path runs/demo --all_checkpoints --statistic induction

It writes the maps as a figure and as a page (attention.html, one file, to be opened in a browser), and in tables, of
each head with an interval over stories: the share of attention that goes to the token before, the first token and the
token itself; the mean distance in tokens; the entropy, in nats and over that of even attention; and the induction
score, the share that goes to what followed a token the first time, in sequences of random tokens that are repeated.
The first token sees itself alone and is left out as a reader.

Among many heads one is always the largest.  So the head is chosen on one half of the stories and reported on the
other, and must lie beyond its controls: the leading head of models of the same shape with random weights, chosen
likewise; a head that looks evenly at all it sees; and for induction its own score where nothing is repeated.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.attention.flags import ARGUMENTS, check_arguments


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Read every head of every model, on a text and on the stories; returns the rows of the table."""
    which, stories, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe attention")
    check_arguments(which, stories, args)
    from lm_trials.probing.attention.report import Results
    from lm_trials.probing.attention.statistics import head_to_draw, measure, plan_texts, run_of
    from lm_trials.probing.capture import check_capture
    from lm_trials.probing.subjects import check_alike, find_subjects, load_subject, read_stories, untrained

    subjects = find_subjects(which, args.all_checkpoints, stories.block_size)
    check_alike(subjects, same=("num_hidden_layers", "num_attention_heads"))
    large = head_to_draw(subjects[0], args)
    texts = plan_texts(subjects, [record["story"] for record in read_stories(stories)], args, which.seed)

    models, checks, batch_size = [], {}, stories.per_device_eval_batch_size
    for subject in subjects:
        model = load_subject(subject, which)
        checks[subject.label] = check_capture(model, texts.map_ids_T, ["attention"], subject.reference.name)
        models.append(measure(model, texts, batch_size, subject, run_of(subject, which.model_name_or_path)))
        del model
    random = [
        measure(untrained(subjects[0], which, which.seed + draw), texts, batch_size)
        for draw in range(args.num_untrained)
    ]
    return Results(models, random, texts, which.seed).write(which, stories, args, checks, large)


if __name__ == "__main__":
    main()
