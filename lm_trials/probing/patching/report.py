"""Report of the patching probe: the share of the gap between two runs that each swap closes, and generated stories.

A component is selected on one half of the texts and reported on the other.

Shape suffixes: N = stories or pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np

from lm_trials.console import UsageError, show_table
from lm_trials.data.datasets import dataset_of
from lm_trials.estimates import LEAST_STORIES, Estimate, StoryBootstrap, proportion
from lm_trials.evaluation.feature_scores import write_generations
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.findings import Finding, write_findings
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.interventions import Patched
from lm_trials.probing.patching.figures import CHANGE, SHARE, VALUE, patching_figure
from lm_trials.probing.patching.flags import PatchingArguments
from lm_trials.probing.patching.sides import Side, Target
from lm_trials.probing.patching.swaps import DONOR, MOVED, OTHER, RANDOM, RECIPIENT, SWAP, Run, Scores, SwapCheck
from lm_trials.probing.patching.tasks import Task
from lm_trials.probing.subjects import untrained
from lm_trials.probing.tables import ProbeTable, interval, sign
from lm_trials.protocols.set_texts import SetText
from lm_trials.stories.generated.detectors import detect_features

HELD_OUT = "held-out half"
LEAST_HALVED = 2 * LEAST_STORIES
# What each control is called in a sentence.
CONTROLS = {
    RANDOM: "a random direction of the same size",
    OTHER: "the donor's on another text",
    MOVED: "the same differences at other tokens",
}
# Components that are compared with others of their kind; the residual stream is everything below it at once.
SINGLE = ("embeddings", "attention", "mlp")
ALL = (*SINGLE, "heads", "residual")
NAMED_SPOTS = ("all", "last", "different", "prompt", "story")
UNTRAINED = "untrained donor"


class Measured:
    """The estimates of one direction and measure, over the texts with a weight.

    The groups are all texts and, from 20 texts on, the half that components are selected on and the held-out half.
    """

    def __init__(self, scores: Scores, task: Task, measure: str, seed: int) -> None:
        self.unit = task.units[measure]
        weights_N = task.weights[measure]
        (kept,) = np.nonzero(weights_N)
        self.n, self.runs = len(kept), list(scores)
        self.halved = self.n >= LEAST_HALVED
        self.choosing, self.reported = ("choosing half", HELD_OUT) if self.halved else ("all", "all")
        groups = {"all": np.ones(self.n, dtype=bool)}
        if self.halved:
            held_out = np.zeros(self.n, dtype=bool)
            held_out[np.random.default_rng(seed).permutation(self.n)[self.n // 2 :]] = True
            groups |= {self.choosing: ~held_out, HELD_OUT: held_out}
        self._seed, self._groups = seed, groups
        self._weights_N = weights_N[kept]
        self._scores = {run: scores[run][measure][kept] for run in self.runs}
        self.has_gap = _without_zero(self.gap())

    def _estimate(self, statistic: Callable[[np.ndarray], np.ndarray], unit: str, group: str, *runs: Run) -> Estimate:
        """Return a statistic of the sums of the weights, the recipient's scores and those of runs."""
        bootstrap = StoryBootstrap(self._seed)  # one seed, so that runs are paired by text
        columns = [self._weights_N, *(self._scores[run] for run in (("", None, RECIPIENT), *runs))]
        bootstrap.update(np.stack(columns, axis=1), {group: self._groups[group]})
        return bootstrap.estimate(statistic, unit, group)

    def value(self, run: Run) -> Estimate:
        """Return the score of a run."""
        return self._estimate(lambda sums: sums[..., 2] / sums[..., 0], self.unit, "all", run)

    def change(self, run: Run, group: str = "all") -> Estimate:
        """Return how much better the recipient scores with a swap."""
        return self._estimate(lambda sums: (sums[..., 2] - sums[..., 1]) / sums[..., 0], self.unit, group, run)

    def gap(self, group: str = "all") -> Estimate:
        """Return how much better the donor scores than the recipient."""
        return self.change(("", None, DONOR), group)

    def share(self, run: Run | list[Run], group: str = "all", less: Run | None = None) -> Estimate:
        """Return the share of the gap that a swap closes, 0 as the recipient and 1 as the donor; paired by text.

        Args:
            run: the swap, or a list of swaps for their mean.
            less: a swap whose share is subtracted.
        """
        runs = run if isinstance(run, list) else [run]

        def statistic(sums: np.ndarray) -> np.ndarray:
            gap, *changes = (sums[..., place] - sums[..., 1] for place in range(2, sums.shape[-1]))
            change = np.mean(changes[: len(runs)], axis=0)
            return (change if less is None else change - changes[-1]) / gap

        return self._estimate(statistic, SHARE, group, ("", None, DONOR), *runs, *([] if less is None else [less]))

    def swaps(self, components: Sequence[str]) -> list[Run]:
        """Return the swaps of some components."""
        return [run for run in self.runs if run[1] is not None and run[1].component in components and run[2] == SWAP]

    def best(self, runs: Sequence[Run]) -> Run:
        """Return the swap that closes most of the gap, on the choosing half.

        By its change towards the donor: the share of that half's own gap has the wrong sign where that gap is below 0.
        """
        towards = np.sign(self.gap().estimate)
        return max(runs, key=lambda run: towards * self.change(run, self.choosing).estimate)


def _without_zero(gap: Estimate) -> bool:
    """Whether a gap's interval excludes 0; of few texts, which have no interval, whether the gap is not 0."""
    return gap.estimate != 0 if np.isnan(gap.lower) else bool(sign(gap))


@dataclass(frozen=True)
class Direction:
    """One direction of swapping with its scores; `seed` is the recipient's training seed."""

    donor: str
    recipient: str
    scores: Scores
    task: Task
    check: SwapCheck
    depth: int
    seed: int | None = None

    @property
    def measure(self) -> str:
        """The measure that the finding is about: the first."""
        return next(iter(self.task.weights))

    def measured(self, seed: int) -> Measured:
        """Return the estimates of that measure."""
        return Measured(self.scores, self.task, self.measure, seed)

    def __str__(self) -> str:
        return f"{self.donor} into {self.recipient}"


def direction_rows(direction: Direction, seed: int) -> ProbeTable:
    """Return the table's rows of one direction: both runs unchanged, their gap, each swap and its controls."""
    rows = ProbeTable()
    for measure in direction.task.weights:
        measured = Measured(direction.scores, direction.task, measure, seed)
        shared = {"model": direction.recipient, "donor": direction.donor, "direction": str(direction),
                  "measure": measure, "seed": direction.seed}  # fmt: skip

        def add(found: Estimate, quantity: str, run: Run, texts: str = "all", role: str = "finding") -> None:
            about = {"role": role, **_columns(run[1]), "position": run[0], "run": run[2]}
            rows.add(found, shared | about | {"quantity": quantity, "texts": texts})  # noqa: B023

        for name in (RECIPIENT, DONOR):
            add(measured.value(("", None, name)), VALUE, ("", None, name))
        add(measured.gap(), "gap", ("", None, "donor less recipient"))
        for run in measured.runs:
            if run[1] is not None:
                role = "finding" if run[2] == SWAP else "control"
                add(measured.change(run), CHANGE, run, role=role)
                if measured.has_gap:
                    add(measured.share(run), SHARE, run, role=role)
        for chosen in chosen_runs(measured) if measured.has_gap and measure == direction.measure else []:
            spot, target, _ = chosen
            for kind in (SWAP, *CONTROLS) if measured.halved else ():
                if (run := (spot, target, kind)) in measured.runs:
                    role = "finding" if kind == SWAP else "control"
                    add(measured.share(run, HELD_OUT), SHARE, run, HELD_OUT, role)
            others = measured.share(others_of(measured, chosen), measured.reported)
            of_all = (spot, Target(cast(Target, target).component), "mean of the others")
            add(others, SHARE, of_all, measured.reported, "control")
    return rows


def _columns(target: Target | None) -> dict[str, str | int | None]:
    return asdict(target) if target else dict.fromkeys(("component", "block", "head"))


def chosen_runs(measured: Measured) -> list[Run]:
    """Return the best of the single components, and the best of the heads, where there are several to choose from."""
    families = [measured.swaps(SINGLE), measured.swaps(["heads"])]
    if not any(families):
        families = [measured.swaps(["residual"])]
    return [measured.best(runs) for runs in families if len(runs) > 1]


def chosen_targets(direction: Direction, seed: int) -> list[Target]:
    """Return the selected targets of the measure that the finding is about; none without a gap."""
    measured = direction.measured(seed)
    return [run[1] for run in chosen_runs(measured) if run[1]] if measured.has_gap else []


def others_of(measured: Measured, chosen: Run) -> list[Run]:
    """Return the swaps that a selected one was selected from, without it."""
    component = cast(Target, chosen[1]).component
    # Heads are selected among heads: of many small components the best is further from their mean by chance alone.
    family = SINGLE if component in SINGLE else [component]
    return [run for run in measured.swaps(family) if run != chosen]


def direction_sentences(direction: Direction, seed: int) -> tuple[str, str]:
    """Return the finding of one direction, and its controls, each as a sentence."""
    measured = direction.measured(seed)
    gap, what = measured.gap(), f"{direction} ({direction.measure})"
    if not measured.has_gap:
        finding = f"no gap to close, as donor and recipient differ by {interval(gap, 4)} {measured.unit} (n={gap.n})"
        return f"{what}: {finding}", f"{what}: no controls, as there is no gap"
    sentences, controls = [], []
    there = measured.gap(measured.reported)
    for chosen in chosen_runs(measured):
        if not _without_zero(there):
            apart = f"{interval(there, 4)}, n={there.n}"
            sentences.append(f"the held-out half shows no gap ({apart}), so no selected component can be tested")
            break
        sentence, control = _chosen_sentences(measured, chosen)
        sentences.append(sentence)
        controls.append(control)
    sentences += _residual_sentences(measured, direction.depth)
    if not sentences:
        sentences = [f"swapping {_named(run)} closes {_cell(measured.share(run))} of it" for run in measured.swaps(ALL)]
    if measured.n < LEAST_STORIES:
        sentences.append(f"fewer than {LEAST_STORIES} texts give no interval")
    opening = f"{what}: the gap is {_cell(gap)} {measured.unit} (n={gap.n}); "
    return opening + "; ".join(sentences), f"{what}: " + (
        "; ".join(controls) or "no component was selected among others"
    )


def _chosen_sentences(measured: Measured, chosen: Run) -> tuple[str, str]:
    """Return what the best of several closes on the reported texts, and what its controls close there.

    It is significant where it closes more than 0 and more than a random direction of its size.  The other controls only
    stand beside it: another text disturbs far more, and moved differences are the same where they do not depend on the
    token.
    """
    group, others = measured.reported, others_of(measured, chosen)
    share, name = measured.share(chosen, group), _named(chosen)
    where = f"n={share.n}, {'held-out texts' if measured.halved else 'the texts it was selected on'}"
    controls = {kind: run for kind in CONTROLS if (run := (chosen[0], chosen[1], kind)) in measured.runs}
    # Random directions of the same norm and not another text's activations, which cost up to 22 times the gap.
    disturbed = measured.share(chosen, group, less=controls[RANDOM])
    if np.isnan(share.lower):
        sentence = (
            f"swapping {name} closes {share.estimate:.3f} of it, the most of {1 + len(others)} components ({where})"
        )
    elif share.lower > 0 and disturbed.lower > 0:
        sentence = f"swapping {name} closes {interval(share)} of it, the most of {1 + len(others)} components ({where})"
    else:
        sentence = (
            f"no significant effect among {1 + len(others)} components: the best, swapping {name}, closes "
            f"{interval(share)} of it ({where}), not significantly more than "
            f"{CONTROLS[RANDOM] if share.lower > 0 else 'zero'}"
        )
    clauses = [f"{CONTROLS[kind]} {_cell(measured.share(run, group))}" for kind, run in controls.items()]
    clauses.append(f"the mean of the {len(others)} others {_cell(measured.share(others, group))}")
    return sentence, f"instead of {name}, " + ", ".join(clauses)


def _named(run: Run) -> str:
    spot, target, _ = run
    return f"{target}" if spot in NAMED_SPOTS else f"{target} at position {spot}"


def _residual_sentences(measured: Measured, depth: int) -> list[str]:
    """Return after which block the residual stream first closes half of the gap, and what remains after the last."""
    runs = [run for run in measured.swaps(["residual"]) if run[0] in NAMED_SPOTS]
    if len(runs) < 2:
        return []
    blocks = [cast(Target, run[1]).block for run in runs]
    half = next((run for run in runs if measured.share(run, measured.choosing).estimate >= 0.5), None)
    at = half or runs[-1]
    share, after = measured.share(at, measured.reported), f"after block {blocks[runs.index(at)]}"
    beside = (at[0], at[1], RANDOM)
    control = f"; {CONTROLS[RANDOM]} {_cell(measured.share(beside, measured.reported))}"
    where = f"({_cell(share)}, n={share.n}{control if beside in measured.runs else ''})"
    if half is not None and (np.isnan(share.lower) or share.lower > 0.5):
        sentence = f"the residual stream first closes half of it {after} {where}"
    elif share.upper < 0.5:
        sentence = f"the residual stream {after} closes less than half of it {where}"
    else:
        sentence = f"whether the residual stream {after} closes half of it is uncertain {where}"
    last = measured.share(runs[-1])
    # At other tokens than those that predict what is measured, the last block's output is not read at all.
    if blocks[-1] == depth - 1 and runs[-1][0] not in ("different", "prompt") and abs(1 - last.estimate) > 1e-3:
        sentence += f"; after the last block {_cell(last)} (n={last.n})" if at != runs[-1] else ", which is the last"
        sentence += ": the rest is in the final norm and the output head"
    return [sentence]


def _cell(estimate: Estimate) -> str:
    return f"{estimate.estimate:.3f}" if np.isnan(estimate.lower) else interval(estimate)


def show_direction(direction: Direction, seed: int, most_heads: int = 5) -> None:
    """Print what each swap closes beside a random direction of its size; of many, those that close most."""
    measured = direction.measured(seed)
    estimate: Callable[[Run], Estimate] = measured.share if measured.has_gap else measured.change

    def largest(runs: list[Run], count: int) -> list[Run]:
        return runs if len(runs) <= count else sorted(runs, key=lambda run: -estimate(run).estimate)[:count]

    every, heads = measured.swaps(ALL), measured.swaps(["heads"])
    most = 40 if len(direction.task.spots) == 1 else 12
    runs = largest([run for run in every if run not in heads], most) + largest(heads, most_heads)
    rows = []
    for run in runs:
        control = (run[0], run[1], RANDOM)
        disturbed = _cell(estimate(control)) if control in measured.runs else ""
        rows.append([_named(run).removeprefix("the "), _cell(estimate(run)), disturbed])
    quantity = SHARE if measured.has_gap else f"change, {measured.unit}"
    caption = (
        f"[95 % bootstrap-t interval, n={measured.n}]"
        if measured.n >= LEAST_STORIES
        else f"fewer than {LEAST_STORIES} texts give no interval"
    )
    caption += f"; the largest of {len(every)} swaps" if len(runs) < len(every) else ""
    show_table(f"{direction}: {direction.measure}, {quantity}", ["swapped", "from the donor", RANDOM], rows, caption)


def asked_prompts(texts: TextArguments, args: PatchingArguments) -> list[SetText]:
    """Return the prompts of a set that ask for the feature, the first `--num_generations` of them.

    Raises:
        UsageError: for a data set that is not a prepared set, or has no such prompt.
    """
    found = dataset_of(texts).select(texts.dataset_split).prompts()
    asked = [text for text in found if args.feature in text.features][: args.num_generations]
    if not asked:
        raise UsageError(
            f"--dataset_name {texts.dataset_name}: no prompt asks for {args.feature}; give a set whose prompts do"
        )
    return asked


def feature_scores(
    sides: Sequence[Side],
    directions: Sequence[Direction],
    targets: Sequence[Target],
    subjects: SubjectArguments,
    prompts: Sequence[SetText],
    args: PatchingArguments,
) -> ProbeTable:
    """Return rows of the feature score: the share of a model's continuations that show the feature.

    Of both models unchanged, and of each with components of the other swapped in; of the heads only the one that closed
    most of the gap.  The control swaps in the best component of a model of the same shape with random weights.

    Returns:
        Rows as `direction_rows` has them.
    """

    def score(side: Side, description: str) -> Estimate:
        written = write_generations(
            side.model,
            side.subject.tokenizer,
            prompts,
            args.max_new_tokens,
            args.temperature,
            subjects.seed,
            description,
        )
        # Loss and behavior differ: the base's last MLP closed half of the gap in loss and brought the twist back in
        # 0.024 of the stories (base: 0.353).
        shown = sum(args.feature in detect_features(generation.generation) for generation in written)
        return proportion(shown, len(written), f"share of stories with {args.feature}")

    of_side = {side.label: side for side in sides}
    plain = {label: score(side, f"{label} writes") for label, side in of_side.items()}
    rows = ProbeTable()
    for direction in directions:
        donor, recipient = of_side[direction.donor], of_side[direction.recipient]
        shared = {"model": recipient.label, "donor": donor.label, "direction": str(direction),
                  "measure": f"{args.feature} score", "seed": direction.seed}  # fmt: skip

        def add(found: Estimate, run: str, target: Target | None = None, role: str = "finding") -> None:
            about = {"role": role, **_columns(target), "position": "all" if target else "", "run": run}
            rows.add(found, shared | about | {"quantity": VALUE, "texts": "all"})  # noqa: B023

        add(plain[recipient.label], RECIPIENT)
        add(plain[donor.label], DONOR)
        best = chosen_targets(direction, subjects.seed)
        swapped = [target for target in targets if target.component != "heads" or target in best]
        runs = [("finding", target, SWAP, donor.model) for target in swapped]
        if best:
            runs.append(("control", best[0], UNTRAINED, untrained(recipient.subject, subjects)))
        for role, target, run, model in runs:
            with Patched(recipient.model, [target.part], donor=model):
                what = f"{recipient.label} with {target} of {'random weights' if run == UNTRAINED else donor.label}"
                add(score(recipient, what), run, target, role)
    return rows


def show_scores(rows: ProbeTable) -> None:
    """Print the feature scores of each direction."""
    for direction in rows.distinct("direction"):
        inside, cells = rows.where(direction=direction), []
        for row in inside:
            target = Target(row["component"], row["block"], row["head"]) if row["component"] else None
            name = f"{target}".removeprefix("the ") if target else row["run"] + " unchanged"
            cells.append([f"{name} (control: {row['run']})" if row["role"] == "control" else name, interval(row)])
        title, n = f"{direction}: {inside[0]['measure']}", inside[0]["n"]
        show_table(title, ["swapped", inside[0]["unit"]], cells, caption=f"[95 % Wilson interval, n={n}]")


def write_patching(
    subjects: SubjectArguments,
    texts: TextArguments,
    args: PatchingArguments,
    directions: Sequence[Direction],
    rows: ProbeTable,
    checks: Mapping[str, CaptureCheck],
) -> None:
    """Write the table, a figure of each measure, and the finding of each direction with its controls."""
    sentences = [direction_sentences(direction, subjects.seed) for direction in directions]
    controls = [str(directions[0].check), *(control for _, control in sentences)]
    finding = Finding("; ".join(one for one, _ in sentences), "; ".join(controls))
    figures = {}
    for number, measure in enumerate(directions[0].task.weights):
        of_measure = rows.where(measure=measure)
        name = "patching" if number == 0 else f"patching-{measure.replace(' ', '-')}"
        figures[name] = patching_figure(of_measure, SHARE if of_measure.find(quantity=SHARE) else CHANGE)
    if scored := [row for row in rows if row["measure"].endswith(" score") and row["component"] != "heads"]:
        figures["patching-score"] = patching_figure(scored, VALUE)
    about = {
        "models": subjects.model_name_or_path,
        "swaps": {str(direction): asdict(direction.check) for direction in directions},
    }
    write_findings("patching", (subjects, texts, args), rows, finding, about, figures, checks)
