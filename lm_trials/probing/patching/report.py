"""Report of the patching probe: what share of the gap between two runs each swap closes, and what a model then writes.

A part is chosen on one half of the texts and told on the other.

Shape suffixes: N = stories or pairs, R = resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lm_trials.console import UsageError, show_table
from lm_trials.data.datasets import dataset_of
from lm_trials.estimates import Estimate, StoryBootstrap, proportion
from lm_trials.evaluation.feature_scores import write_generations
from lm_trials.probing.capture import CaptureCheck
from lm_trials.probing.findings import Finding, write_findings
from lm_trials.probing.flags import SubjectArguments, TextArguments
from lm_trials.probing.interventions import Patched
from lm_trials.probing.patching.figures import patching_figure
from lm_trials.probing.patching.flags import PatchingArguments
from lm_trials.probing.patching.sides import Side, Sides, Target
from lm_trials.probing.patching.swaps import DONOR, MOVED, OTHER, RANDOM, RECIPIENT, SWAP, Scores, SwapCheck
from lm_trials.probing.patching.tasks import Task
from lm_trials.probing.subjects import untrained
from lm_trials.probing.tables import ProbeTable, interval, sign
from lm_trials.protocols.set_texts import SetText
from lm_trials.stories.generated.detectors import detect_features

SHARE, CHANGE, VALUE = "share of the gap", "change", "value"
HELD_OUT = "held-out half"
LEAST_HALVED = 8
# What each control is called in a sentence.
CONTROLS = {
    RANDOM: "a random direction of the same size",
    OTHER: "the donor's on another text",
    MOVED: "the same differences at other tokens",
}
# A part that is compared with others of its kind; the whole residual stream is every part below it at once.
SINGLE = ("embeddings", "attention", "mlp", "heads")
ALL = (*SINGLE, "residual")
NAMED_SPOTS = ("all", "last", "prompt", "story")
UNTRAINED = "untrained donor"
Run = tuple[str, Target | None, str]


class Measured:
    """The scores of one direction and measure, with their estimates.

    The texts without weight are left out.  `groups` are all texts, and where there are enough of them the half that
    parts are chosen on and the other, which is told.
    """

    def __init__(self, scores: Scores, task: Task, measure: str, seed: int) -> None:
        self.unit = task.units[measure]
        weights_N = task.weights[measure]
        (kept,) = np.nonzero(weights_N)
        self.n = len(kept)
        self.runs: list[Run] = list(scores.runs)
        columns = [weights_N[kept], *(scores.runs[run][measure][kept] for run in self.runs)]
        self._column = {run: number for number, run in enumerate(self.runs, start=1)}
        self._bootstrap = StoryBootstrap(seed)
        groups = {"all": np.ones(self.n, dtype=bool)}
        self.halved = self.n >= LEAST_HALVED
        if self.halved:
            held_out = np.zeros(self.n, dtype=bool)
            held_out[np.random.default_rng(seed).permutation(self.n)[self.n // 2 :]] = True
            groups |= {"choosing half": ~held_out, HELD_OUT: held_out}
        self._bootstrap.update(np.stack(columns, axis=1), groups)

    @property
    def told_on(self) -> str:
        """The texts that a chosen part is told on."""
        return HELD_OUT if self.halved else "all"

    def _estimate(self, total: Callable[[np.ndarray], np.ndarray], group: str = "all", share: bool = False) -> Estimate:
        """Return a sum over the texts by their weights, or as a share of the gap."""

        def statistic(sums: np.ndarray) -> np.ndarray:
            return total(sums) / (self._gap(sums) if share else sums[..., 0])

        return self._bootstrap.estimate(statistic, SHARE if share else self.unit, group)

    def _gap(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., self._column["", None, DONOR]] - sums[..., self._column["", None, RECIPIENT]]

    def _change(self, sums: np.ndarray, run: Run) -> np.ndarray:
        return sums[..., self._column[run]] - sums[..., self._column["", None, RECIPIENT]]

    def value(self, run: Run) -> Estimate:
        """Return what a run scores."""
        return self._estimate(lambda sums: sums[..., self._column[run]])

    def gap(self, group: str = "all") -> Estimate:
        """Return how much better the donor scores than the recipient."""
        return self._estimate(self._gap, group)

    @property
    def there_is_a_gap(self) -> bool:
        """Whether the gap's interval is without 0; of one text, which has none, whether it is not 0."""
        return _without_zero(self.gap())

    @property
    def told_gap(self) -> Estimate:
        """The gap of the texts that a chosen part is told on, whose shares of it need it not to be 0."""
        return self.gap(self.told_on)

    def change(self, run: Run, group: str = "all") -> Estimate:
        """Return how much better the recipient scores with a swap."""
        return self._estimate(lambda sums: self._change(sums, run), group)

    def share(self, run: Run, group: str = "all") -> Estimate:
        """Return what share of the gap a swap closes: 0 as the recipient, 1 as the donor."""
        return self._estimate(lambda sums: self._change(sums, run), group, share=True)

    def mean_share(self, runs: Sequence[Run], group: str = "all") -> Estimate:
        """Return what share of the gap one of these swaps closes, drawn at random."""
        return self._estimate(
            lambda sums: np.mean([self._change(sums, run) for run in runs], axis=0), group, share=True
        )

    def beyond(self, run: Run, control: Run, group: str) -> Estimate:
        """Return by what share of the gap more a swap closes than its control does, text by text."""
        return self._estimate(lambda sums: self._change(sums, run) - self._change(sums, control), group, share=True)

    def swaps(self, components: Sequence[str], kind: str = SWAP) -> list[Run]:
        """Return the swaps of some components."""
        return [run for run in self.runs if run[1] is not None and run[1].component in components and run[2] == kind]

    def best(self, runs: Sequence[Run]) -> Run:
        """Return the swap that closes most of the gap, on the half that is there for it.

        By its change towards the donor: a share of that half's own gap turns round where that happens to be below 0.
        """
        group = "choosing half" if self.halved else "all"
        towards = np.sign(self.gap().estimate)
        return max(runs, key=lambda run: towards * self.change(run, group).estimate)


def _without_zero(gap: Estimate) -> bool:
    return gap.estimate != 0 if np.isnan(gap.lower) else bool(sign(gap))


@dataclass(frozen=True)
class Direction:
    """One direction of swapping: from which run into which, with its scores."""

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
    """Return the rows of the table of one direction: both runs as they are, their gap, each swap and its controls."""
    rows = ProbeTable()
    for measure in direction.task.weights:
        measured = Measured(direction.scores, direction.task, measure, seed)
        shared = {"model": direction.recipient, "donor": direction.donor, "direction": str(direction),
                  "measure": measure, "seed": direction.seed}  # fmt: skip

        def add(
            role: str, found: Estimate, quantity: str, run: Run, texts: str = "all", kind: str | None = None
        ) -> None:
            spot, target, own_kind = run
            about = {"role": role, **_columns(target), "position": spot, "run": kind or own_kind}
            rows.add(found, shared | about | {"quantity": quantity, "texts": texts})  # noqa: B023

        for name in (RECIPIENT, DONOR):
            add("finding", measured.value(("", None, name)), VALUE, ("", None, name))
        add("finding", measured.gap(), "gap", ("", None, "donor less recipient"))
        for run in measured.runs:
            if run[1] is None:
                continue
            role = "finding" if run[2] == SWAP else "control"
            add(role, measured.change(run), CHANGE, run)
            if measured.there_is_a_gap:
                add(role, measured.share(run), SHARE, run)
        if not measured.there_is_a_gap:
            continue
        for chosen in chosen_runs(measured) if measure == direction.measure else []:
            for kind in (SWAP, *CONTROLS):
                run = (chosen[0], chosen[1], kind)
                if run in measured.runs and measured.halved:
                    add("finding" if kind == SWAP else "control", measured.share(run, HELD_OUT), SHARE, run, HELD_OUT)
            others, of_all = (
                measured.mean_share(others_of(measured, chosen), measured.told_on),
                Target(chosen[1].component),
            )
            add("control", others, SHARE, (chosen[0], of_all, SWAP), measured.told_on, "mean of the others")
    return rows


def _columns(target: Target | None) -> dict[str, str | int | None]:
    return {name: target and getattr(target, name) for name in ("component", "block", "head")}


def chosen_runs(measured: Measured) -> list[Run]:
    """Return the best of the single parts, and the best of the heads, where there are several to choose from."""
    families = [measured.swaps([name for name in SINGLE if name != "heads"]), measured.swaps(["heads"])]
    if not any(families):
        families = [measured.swaps(["residual"])]
    return [measured.best(runs) for runs in families if len(runs) > 1]


def chosen_targets(direction: Direction, seed: int) -> list[Target]:
    """Return the chosen targets of the measure that the finding is about; none without a gap."""
    measured = direction.measured(seed)
    return [run[1] for run in chosen_runs(measured) if run[1]] if measured.there_is_a_gap else []


def others_of(measured: Measured, chosen: Run) -> list[Run]:
    """Return the swaps that a chosen one was chosen from, without it."""
    component = chosen[1].component if chosen[1] else ""
    family = {"heads": ["heads"], "residual": ["residual"]}.get(component, [name for name in SINGLE if name != "heads"])
    return [run for run in measured.swaps(family) if run != chosen]


def tell(direction: Direction, seed: int) -> tuple[str, str]:
    """Return the finding of one direction and what its controls say."""
    measured = direction.measured(seed)
    gap, what = measured.gap(), f"{direction} ({direction.measure})"
    if not measured.there_is_a_gap:
        nothing = f"there is no gap to close, the two differ by {interval(gap, 4)} {measured.unit} (n={gap.n})"
        return f"{what}: {nothing}", f"{what}: without a gap a control says nothing"
    told, controls = [], []
    for chosen in chosen_runs(measured):
        if not _without_zero(measured.told_gap):
            gap_there = f"{interval(measured.told_gap, 4)}, n={measured.told_gap.n}"
            told.append(f"no gap in the held-out half of the texts ({gap_there}), so no single part can be tested")
            break
        sentence, control = _tell_chosen(measured, chosen)
        told.append(sentence)
        controls.append(control)
    told += _tell_residual(measured, direction.depth)
    if not told:
        told = [f"swapping {_named(run)} closes {_cell(measured.share(run))} of it" for run in measured.swaps(ALL)]
    opening = f"{what}: the gap is {_cell(gap)} {measured.unit} (n={gap.n}); "
    if measured.n == 1:
        told.append("one text has no interval, so nothing is shown of others")
    return opening + "; ".join(told), f"{what}: " + ("; ".join(controls) or "no part was chosen among others")


def _tell_chosen(measured: Measured, chosen: Run) -> tuple[str, str]:
    """Tell what the best of several closes, on texts that it was not chosen on, and what its disturbances do there.

    It is shown where it closes more than a disturbance of its size does.  What another text's activations or moved
    differences close is told beside it: the first disturb far more, and the second are the same where the difference
    does not depend on the token.
    """
    group, others = measured.told_on, others_of(measured, chosen)
    share, name = measured.share(chosen, group), _named(chosen)
    where = f"n={share.n}, which it was not chosen on" if measured.halved else f"n={share.n}, which it was chosen on"
    controls = {kind: run for kind in CONTROLS if (run := (chosen[0], chosen[1], kind)) in measured.runs}
    disturbed = measured.beyond(chosen, controls[RANDOM], group)
    if np.isnan(share.lower):
        sentence = f"swapping {name} closes {share.estimate:.3f} of it, the most of {1 + len(others)}, in one text"
    elif share.lower > 0 and disturbed.lower > 0:
        sentence = f"swapping {name} closes {interval(share)} of it, the most of {1 + len(others)} ({where})"
    else:
        sentence = (
            f"nothing is shown of {1 + len(others)} parts: the best, swapping {name}, closes {interval(share)} of it "
            f"({where}), which is not more than 0 or than a disturbance of its size"
        )
    said = [f"{CONTROLS[kind]} {_cell(measured.share(run, group))}" for kind, run in controls.items()]
    said.append(f"one of the {len(others)} others at random {_cell(measured.mean_share(others, group))}")
    return sentence, f"in the place of {name}, " + ", ".join(said)


def _named(run: Run) -> str:
    spot, target, _ = run
    return f"{target}" if spot in NAMED_SPOTS else f"{target} at position {spot}"


def _tell_residual(measured: Measured, depth: int) -> list[str]:
    """Tell after which block the residual stream first closes half of the gap, and what is left above the last."""
    runs = [run for run in measured.swaps(["residual"]) if run[0] in NAMED_SPOTS]
    if len(runs) < 2:
        return []
    choosing, group = ("choosing half" if measured.halved else "all"), measured.told_on
    half = next((run for run in runs if measured.share(run, choosing).estimate >= 0.5), None)
    at = half or runs[-1]
    share = measured.share(at, group)
    beside = (at[0], at[1], RANDOM)
    control = f"; {CONTROLS[RANDOM]} {_cell(measured.share(beside, group))}" if beside in measured.runs else ""
    where = f"({_cell(share)}, n={share.n}{control})"
    if half is not None and (np.isnan(share.lower) or share.lower > 0.5):
        told = f"the residual stream first closes half {_after(half)} {where}"
    elif share.upper < 0.5:
        told = f"the residual stream {_after(at)} closes less than half {where}"
    else:
        told = f"the residual stream is not shown to close half, {_after(at)} {where}"
    last = measured.share(runs[-1])
    if runs[-1][1].block == depth - 1 and abs(1 - last.estimate) > 1e-3:
        told += f"; after the last block {_cell(last)} (n={last.n})" if at != runs[-1] else ", which is the last"
        told += ": the rest is in the final norm and the output head"
    return [told]


def _after(run: Run) -> str:
    return f"after block {run[1].block}" if run[1] else ""


def _cell(estimate: Estimate) -> str:
    return f"{estimate.estimate:.3f}" if np.isnan(estimate.lower) else interval(estimate)


def show_direction(direction: Direction, seed: int, most_heads: int = 5) -> None:
    """Print what each swap closes, beside a disturbance of its size; of many those that close most."""
    measured = direction.measured(seed)
    estimate: Callable[..., Estimate] = measured.share if measured.there_is_a_gap else measured.change

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
    quantity = SHARE if measured.there_is_a_gap else f"change, {measured.unit}"
    caption = f"[95 % bootstrap interval over {measured.n}]" if measured.n > 1 else "one text has no interval"
    caption += f"; of {len(every)} swaps those that close most" if len(runs) < len(every) else ""
    show_table(f"{direction}: {direction.measure}, {quantity}", ["swapped", "the donor's", RANDOM], rows, caption)


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
) -> ProbeTable:
    """Return rows of the feature score: of both models as they are, and of each with parts of the other swapped in.

    Of the heads only the one is swapped that closed most of the gap.  The control puts the part that closed most of it
    in from a model of the same shape with random weights.

    Returns:
        Rows as `direction_rows` has them.
    """
    of_side = {side.label: side for side in (sides.first, sides.second)}
    plain = {label: score(side, prompts, args, subjects.seed, f"{label} writes") for label, side in of_side.items()}
    rows = ProbeTable()
    for direction in directions:
        donor, recipient = of_side[direction.donor], of_side[direction.recipient]
        shared = {"model": recipient.label, "donor": donor.label, "direction": str(direction),
                  "measure": f"{args.feature} score", "seed": recipient.seed}  # fmt: skip

        def add(role: str, target: Target | None, run: str, found: Estimate) -> None:
            about = {"role": role, **_columns(target), "position": "all" if target else "", "run": run}
            rows.add(found, shared | about | {"quantity": VALUE, "texts": "all"})  # noqa: B023

        add("finding", None, RECIPIENT, plain[recipient.label])
        add("finding", None, DONOR, plain[donor.label])
        best = chosen_targets(direction, subjects.seed)
        swapped = [target for target in targets if target.component != "heads" or target in best]
        runs = [("finding", target, SWAP, donor.model) for target in swapped]
        if best:
            runs.append(("control", best[0], UNTRAINED, untrained(recipient.subject, subjects)))
        for role, target, run, model in runs:
            with Patched(recipient.model, [target.part], donor=model):
                what = f"{recipient.label} with {target} of {'random weights' if run == UNTRAINED else donor.label}"
                add(role, target, run, score(recipient, prompts, args, subjects.seed, what))
    return rows


def show_scores(rows: ProbeTable) -> None:
    """Print the feature scores of each direction."""
    for direction in rows.distinct("direction"):
        inside, cells = rows.where(direction=direction), []
        for row in inside:
            target = Target(row["component"], row["block"], row["head"]) if row["component"] else None
            name = f"{target}".removeprefix("the ") if target else row["run"] + " as it is"
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
    told = [tell(direction, subjects.seed) for direction in directions]
    swapped = str(directions[0].check)
    finding = Finding("; ".join(one for one, _ in told), "; ".join([swapped, *(control for _, control in told)]))
    figures = {}
    for number, measure in enumerate(directions[0].task.weights):
        of_measure = rows.where(measure=measure)
        quantity = SHARE if of_measure.find(quantity=SHARE) else CHANGE
        name = "patching" if number == 0 else f"patching-{measure.replace(' ', '-')}"
        figures[name] = patching_figure(of_measure, f"Effect of each swap on the {measure}", quantity)
    if scored := [row for row in rows if row["measure"].endswith(" score") and row["component"] != "heads"]:
        figures["patching-score"] = patching_figure(scored, f"Effect of each swap on the {scored[0]['measure']}", VALUE)
    about = {
        "models": subjects.model_name_or_path,
        "swaps": {str(direction): asdict(direction.check) for direction in directions},
    }
    write_findings("patching", (subjects, texts, args), rows, finding, about, figures, checks)
