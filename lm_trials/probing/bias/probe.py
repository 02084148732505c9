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

Covert, in the hidden states: a linear probe of the group is fitted and read, for
other names, just before the attribute is chosen. A name shows its group in any
model; but a model without the bias has no use for the group at this place. So the
distance between the groups is compared with that before something that is not
paired ("She had a"), and with a model that was trained on balanced texts.

Controls: attributes that no training text pairs with a group; shuffled labels;
models of the same shape with random weights. Measure a model that was trained on
balanced texts, as well: a pairing can also come from the words themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_trials.console import script
from lm_trials.flags import parse_arguments
from lm_trials.probing.bias.flags import ARGUMENTS, PROBE, check_arguments
from lm_trials.probing.flags import MODEL
from lm_trials.probing.tables import ProbeTable

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedModel


@script
def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure each model and the controls; return the rows of the table."""
    how, args = parse_arguments(argv, ARGUMENTS, __doc__ or "", prog="lm-trials probe bias", first=MODEL)
    check_arguments(how, args)
    from lm_trials.probing.bias import report
    from lm_trials.probing.bias.contexts import draw_contexts, read_pairing
    from lm_trials.probing.bias.figures import bias_figure
    from lm_trials.probing.bias.measures import group_projections, preferences, sampled_stories
    from lm_trials.probing.findings import write_findings
    from lm_trials.probing.subjects import Subject, find_subjects, load_subject, untrained

    subjects = find_subjects(how)
    pairing, seed, batch = read_pairing(args.pairing), how.seed, args.per_device_eval_batch_size
    sampled, contexts = (draw_contexts(pairing, count, seed) for count in (args.num_stories, args.num_contexts))
    fitted, read = (draw_contexts(pairing, count * args.num_contexts, seed, half) for half, count in ((0, 2), (1, 1)))

    def covert(subject: Subject, model: PreTrainedModel, label: str) -> ProbeTable:
        rows = ProbeTable()
        for attribute, pairs, place in (
            (report.PAIRED, pairing.pairs, "leads"),
            (report.UNRELATED, pairing.unrelated, "elsewhere"),
        ):
            odds_C = preferences(subject, model, contexts, pairs, batch)
            rows += report.preference_row(label, attribute, odds_C, seed)
            texts = ([text for context in part for text in getattr(context, place)] for part in (fitted, read))
            ids_fitted, ids_read = map(subject.story_ids, texts)
            found = group_projections(model, ids_fitted, ids_read, args.num_controls, seed, batch)
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
