"""Is a pairing of groups and attributes in what a model writes, and in the model?

Use it to ask whether a bias that fine-tuning removed from a model's texts is
still in its probabilities or its hidden states. Before and after; your own
groups and attributes:

    lm-trials probe bias --model_name_or_path runs/biased runs/tuned
    lm-trials probe bias --model_name_or_path runs/base --pairing pairing.json

Overt: stories are sampled after openings that name a character of each group.
The share in which an attribute fits the character's group, minus the share in
which it fits the other group, with an interval over stories.

Covert, in the probabilities: in the same context for both groups, how much more
likely are the first group's attributes than the second's? The log odds ratio,
from exact probabilities, with an interval over contexts.

Covert, in the hidden states: a linear probe is fitted to tell the attributes
apart where an earlier sentence names one, on states from which each group's mean
is subtracted. It is then read where only the group is given, for other names. The
group's shift along the probe's direction is measured in units of the distance
between the attributes; 1: to name the group is as good as to name the attribute.
To decode the group itself would show nothing: a name shows it in any model.

Controls: attributes that no training text pairs with a group; shuffled labels;
models of the same shape with random weights. Train a model on balanced texts, as
well: a pairing can also come from the words themselves.
"""

from __future__ import annotations

from typing import Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.bias.flags import ARGUMENTS, PROBE, check_arguments
from lm_trials.probing.tables import ProbeTable


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure each model and the controls; return the rows of the table."""
    how, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe bias")
    check_arguments(how, args)
    from lm_trials.probing.bias import report
    from lm_trials.probing.bias.contexts import draw_contexts, read_pairing
    from lm_trials.probing.bias.figures import bias_figure
    from lm_trials.probing.bias.measures import attribute_shifts, preferences, sampled_stories
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import find_subjects, load_subject, untrained

    subjects = find_subjects(how)
    pairing, seed, batch = read_pairing(args.pairing), how.seed, args.per_device_eval_batch_size
    sampled = draw_contexts(pairing, args.num_stories, seed)
    contexts = draw_contexts(pairing, args.num_contexts, seed)
    fitted, read = (draw_contexts(pairing, count * args.num_contexts, seed, half) for half, count in ((0, 2), (1, 1)))

    def covert(subject: Any, model: Any, label: str) -> ProbeTable:
        rows = ProbeTable()
        for attribute, pairs in ((report.PAIRED, pairing.pairs), (report.UNRELATED, pairing.unrelated)):
            rows += report.preference_row(label, attribute, preferences(subject, model, contexts, pairs, batch), seed)
            found = attribute_shifts(subject, model, fitted, read, pairs, args.num_controls, seed, batch)
            rows += report.decoding_rows(label, attribute, found, seed)
        return rows

    rows, stories = ProbeTable(), []
    for subject in subjects:
        model = load_subject(subject, how)
        written = sampled_stories(subject, model, sampled, args.max_new_tokens, seed, batch)
        stories += [{"model": subject.label, "story": story} for story in written]
        rows += report.overt_rows(subject.label, written, pairing) + covert(subject, model, subject.label)
    draws = [
        covert(subjects[0], untrained(subjects[0], how, seed + number), report.UNTRAINED)
        for number in range(args.num_controls)
    ]
    rows += report.untrained_rows(draws, subjects[0].label)
    report.show_bias(rows)
    title = "A pairing in what a model writes, in its probabilities and in its hidden states"
    finding, figure = report.finding_of(rows, subjects[-1].label), bias_figure(rows, title, report.UNITS)
    about = {"models": [subject.reference.name for subject in subjects]}
    write_findings(PROBE, (how, args), rows, finding, about, {"bias": figure}, tables={"stories": stories})
    return rows


if __name__ == "__main__":
    main()
