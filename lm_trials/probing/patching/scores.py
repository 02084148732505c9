"""Patching scores: does a model write a feature that it is asked for, with one part of another model in it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_trials.console import UsageError, show_table
from lm_trials.data.datasets import dataset_of
from lm_trials.estimates import Estimate, proportion
from lm_trials.evaluation.feature_scores import write_generations
from lm_trials.probing.findings import interval
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.interventions import Patched
from lm_trials.probing.patching.flags import PatchingArguments
from lm_trials.probing.patching.report import VALUE, Direction, chosen_targets
from lm_trials.probing.patching.sides import Side, Sides, Target
from lm_trials.probing.patching.swaps import SWAP
from lm_trials.probing.subjects import untrained
from lm_trials.protocols.set_texts import SetText
from lm_trials.stories.generated.detectors import detect_features

UNTRAINED = "untrained donor"


def asked_prompts(texts: TextArguments, args: PatchingArguments) -> list[SetText]:
    """Return the prompts of a set that ask for the feature, the first `--num_generations` of them.

    Raises:
        UsageError: for a data set that is no prepared set, or has no such prompt.
    """
    found = dataset_of(texts).select(texts.dataset_split).prompts()
    asked = [text for text in found if args.feature in text.features][: args.num_generations]
    if not asked:
        raise UsageError(f"no prompt of {texts.dataset_name} asks for {args.feature}; give a set whose prompts do")
    return asked


def score(side: Side, prompts: Sequence[SetText], args: PatchingArguments, seed: int, description: str) -> Estimate:
    """Return the share of the stories that a model writes for prompts which show the feature."""
    written = write_generations(
        side.model, side.subject.tokenizer, prompts, args.max_new_tokens, args.temperature, seed, description
    )
    shown = sum(args.feature in detect_features(generation.generation) for generation in written)
    return proportion(shown, len(written), f"share of stories with {args.feature}")


def feature_scores(
    sides: Sides,
    directions: Sequence[Direction],
    targets: Sequence[Target],
    subjects: SubjectArguments,
    prompts: Sequence[SetText],
    args: PatchingArguments,
) -> list[dict[str, Any]]:
    """Return rows of the feature score: of both models as they are, and of each with parts of the other swapped in.

    Of the heads only the one is swapped that closed most of the gap.  The control puts the part that closed most of it
    in from a model of the same shape with random weights.

    Returns:
        Rows as `direction_rows` has them.
    """
    of_side = {side.label: side for side in (sides.first, sides.second)}
    plain = {label: score(side, prompts, args, subjects.seed, f"{label} writes") for label, side in of_side.items()}
    rows = []
    for direction in directions:
        donor, recipient = of_side[direction.donor], of_side[direction.recipient]
        shared = {"model": recipient.label, "donor": donor.label, "direction": str(direction),
                  "measure": f"{args.feature} score", "seed": recipient.seed}  # fmt: skip
        best = chosen_targets(direction, subjects.seed)
        swapped = [target for target in targets if target.component != "heads" or target in best]
        runs = [("finding", target, SWAP, donor.model) for target in swapped]
        if best:
            runs.append(("control", best[0], UNTRAINED, untrained(recipient.subject, subjects)))
        found = [("finding", None, "recipient", plain[recipient.label]), ("finding", None, "donor", plain[donor.label])]
        for role, target, run, model in runs:
            with Patched(recipient.model, [target.part], donor=model):
                what = f"{recipient.label} with {target} of {'random weights' if run == UNTRAINED else donor.label}"
                found.append((role, target, run, score(recipient, prompts, args, subjects.seed, what)))
        for role, target, run, estimate in found:
            where = {"component": target and target.component, "block": target and target.block,
                     "head": target and target.head}  # fmt: skip
            rows.append({**shared, "role": role, **where, "position": "all" if target else "", "run": run,
                         "quantity": VALUE, "texts": "all", **estimate.row()})  # fmt: skip
    return rows


def show_scores(rows: Sequence[dict[str, Any]]) -> None:
    """Print the feature scores of each direction."""
    for direction in dict.fromkeys(row["direction"] for row in rows):
        inside = [row for row in rows if row["direction"] == direction]
        cells = []
        for row in inside:
            target = Target(row["component"], row["block"], row["head"]) if row["component"] else None
            name = f"{target}".removeprefix("the ") if target else row["run"] + " as it is"
            estimate = Estimate(row["estimate"], row["lower"], row["upper"], row["n"], row["unit"])
            cells.append([f"{name} (control: {row['run']})" if row["role"] == "control" else name, interval(estimate)])
        title = f"{direction}: {inside[0]['measure']}"
        show_table(title, ["swapped", inside[0]["unit"]], cells, caption=f"[95 % Wilson interval, n={inside[0]['n']}]")
