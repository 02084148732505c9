"""The report of a comparison on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_trials.console import show_facts, show_table
from lm_trials.trials.differences import Variable, verdict
from lm_trials.trials.results import OVER_BOTH, OVER_SEEDS, OVER_STORIES, DatasetResult
from lm_trials.trials.runs import Arm, Run

LONGEST_VALUE = 20
COVERS = "Negative: the arm's loss is lower than the reference's."
COVERS_TABLE = "Positive: the arm's number is higher than the reference's."
INTERVALS = {
    OVER_BOTH: "new seeds and stories",
    OVER_STORIES: "these models, new stories",
    OVER_SEEDS: "new seeds, these stories",
}
INTERVALS_OF_ARMS = {OVER_BOTH: "seeds, stories", OVER_SEEDS: "seeds"}


def show_arms(
    arms: Sequence[Arm], variables: Sequence[Variable], names: Sequence[str], logistics: Sequence[str]
) -> None:
    """Print the arms, how many variables differ, and each field that differs."""
    facts = {f"arm {arm.label}": ", ".join(f"{run.name} (seed {seed_text(run)})" for run in arm.runs) for arm in arms}
    facts["root seeds"] = "; ".join(f"{arm.label} {roots_text(arm)}" for arm in arms)
    facts["verdict"] = verdict(variables)
    facts["updates"] = per_arm(arms, lambda run: run.outcome.get("max_steps"))
    facts["tokens"] = per_arm(arms, lambda run: run.num_tokens)
    facts["parameters"] = per_arm(arms, lambda run: run.parameters)
    facts["finished"] = unfinished_text([run for arm in arms for run in arm.runs])
    if names:
        facts["names"] = f"different names of the same thing: {', '.join(names)}"
    facts["logistics"] = f"differ and change no result: {', '.join(logistics)}" if logistics else "no difference"
    show_facts("comparison", facts)
    rows = [
        [f"· {field}" if place else field, *map(short, values)]
        for variable in variables
        for place, (field, values) in enumerate(variable.fields.items())
    ]
    if rows:
        show_table("differences", ["variable, what follows", *(arm.label for arm in arms)], rows)


def seed_text(run: Run) -> str:
    """Return a run's seed, that of its data order if different, and that of the run it started from.

    >>> seed_text(Run("", "", {}, {"seed": 1, "data_seed": 7}, {}, None, None))
    '1, data seed 7'
    """
    seed, data_seed, initial = run.seeds
    text = str(seed) if data_seed in (None, seed) else f"{seed}, data seed {data_seed}"
    return text if initial is None else f"{text}, from seed {initial[0]}"


def roots_text(arm: Arm) -> str:
    """Return how many root seeds an arm has, and how many runs descend from them.

    >>> runs = [Run("", "", {"initial_model.name_or_path": "x"}, {"seed": s}, {}, None, None, root=1) for s in (0, 1)]
    >>> roots_text(Arm("A", tuple(runs))), roots_text(Arm("A", tuple(runs[:1])))
    ('1 (2 fine-tunings)', '1')
    """
    if len(arm.roots) == len(arm.runs):
        return str(len(arm.roots))
    return f"{len(arm.roots)} ({len(arm.runs)} {'fine-tunings' if arm.runs[0].tuned else 'runs'})"


def per_arm(arms: Sequence[Arm], value: Callable[[Run], int | None]) -> str:
    """Return a number that all runs share, or that of each arm.

    >>> arms = [Arm(label, (Run("", "", {}, {}, {}, steps, None),)) for label, steps in (("A", 1500), ("B", 200))]
    >>> per_arm(arms, lambda run: run.steps), per_arm(arms[:1], lambda run: run.steps)
    ('not the same: A 1,500; B 200', 'the same in all: 1,500')
    """
    found = {arm.label: sorted({_number(value(run)) for run in arm.runs}) for arm in arms}
    first, *others = {number for numbers in found.values() for number in numbers}
    if others:
        return "not the same: " + "; ".join(f"{label} {', '.join(numbers)}" for label, numbers in found.items())
    return first if first == _number(None) else f"the same in all: {first}"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def unfinished_text(runs: Iterable[Run]) -> str:
    """Name the runs that did not complete all updates, with those completed."""
    left = [run for run in runs if not run.finished]
    if not left:
        return "all runs"
    shown = (f"{run.name} (update {_number(run.steps)} of {_number(run.outcome.get('max_steps'))})" for run in left)
    return f"NOT {', '.join(shown)}"


def short(value: Any) -> str:
    """Return a value as the text of a table's cell.

    >>> short(None), short(["features=Twist:1.0"]), short(0.004)
    ('not set', 'features=Twist:1.0', '0.004')
    """
    if value is None:
        return "not set"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if isinstance(value, list):
        text = ", ".join(map(str, value)) or "[]"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."


def show_result(arms: Sequence[Arm], result: DatasetResult, family: int) -> None:
    """Print one data set's table of arms and its table of differences; `family` is the number of all differences."""
    names = {arm.label: arm.name for arm in arms}
    rows = []
    for row in result.of("arm"):
        several = f"{row['seeds']} {INTERVALS_OF_ARMS.get(row['interval'])}"
        over = several if row["seeds"] > 1 else f"{row['interval']} (1 seed)"
        rows.append([names[row["arm"]], *_interval(row), f"{row['n']:,}", over])
    unit = result.unit.replace(" per ", "\nper ")
    columns = ["arm", unit, "lower", "upper", "stories" if result.of_losses else "n", "95 % interval\nover"]
    title = f"loss on {result.dataset}" if result.of_losses else result.dataset
    differences, alone = result.of("difference"), one_root_text(arms)
    lines = ["; ".join(result.notes), alone if not differences and len(arms) > 1 else ""]
    show_table(title, columns, rows, caption="  ".join(lines).strip() or None)
    if not differences:
        return
    p, heading = ("p_holm", "p (Holm)") if family > 1 else ("p", "p")
    rows, before = [], None
    for row in differences:
        what = INTERVALS[row["interval"]] if result.of_losses else "new root seeds"
        what = f"· {what}" if row["arm"] == before else f"{row['arm']} minus {row['reference']}, {what}"
        rows.append([what, *_interval(row, sign="+"), p_text(row[p])])
        before = row["arm"]
    lines = [COVERS if result.of_losses else COVERS_TABLE, alone]
    lines += ["; ".join(dict.fromkeys(row["pairing"] for row in differences)).capitalize() + "."]
    lines += [f"Exploratory: no test was registered{f', {family} differences in all' if family > 1 else ''}."]
    show_table("", ["difference", unit, "lower", "upper", heading], rows, caption="  ".join(filter(None, lines)))


def one_root_text(arms: Sequence[Arm]) -> str:
    """Return which arms have one root seed, and what follows; nothing where none has.

    >>> run = Run("", "", {}, {"seed": 1}, {}, None, None, root=1)
    >>> one_root_text([Arm("A", (run,)), Arm("B", (run, run))])
    'Nothing can be said about the recipe: A has 1 root seed; B has 1 root seed (2 runs).'
    """
    alone = [arm for arm in arms if len(arm.roots) == 1]
    counts = (f"{arm.label} has {roots_text(arm).replace('1', '1 root seed', 1)}" for arm in alone)
    return f"Nothing can be said about the recipe: {'; '.join(counts)}." if alone else ""


def _interval(row: Mapping[str, Any], sign: str = "") -> list[str]:
    numbers = (row["estimate"], row["lower"], row["upper"])
    return ["none" if math.isnan(number) else f"{number:{sign}.4f}" for number in numbers]


def p_text(p: float) -> str:
    """Return a p value with its significant digits.

    >>> p_text(0.0002), p_text(0.0314), p_text(math.nan), p_text(1e-9)
    ('0.0002', '0.031', 'none', '<0.0001')
    """
    if p < 0.0001:
        return "<0.0001"
    return "none" if math.isnan(p) else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def show_next(folder: Path, has_results: bool, next_command: str | None) -> None:
    """Print the files, and the command to run if the runs have no shared evaluation."""
    files = ("compare.json", "compare.csv", "compare.png") if has_results else ("compare.json",)
    facts = {"files": ", ".join(str(folder / name) for name in files)}
    if next_command:
        facts["next"] = "these runs share no evaluation of single stories; make one, then compare again:"
        facts["command"] = next_command
    show_facts("results", facts)
