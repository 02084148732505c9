"""Report of the saturation probe: the measurement of each run, rows over root seeds, the finding and the tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_trials.console import UsageError, show_table
from lm_trials.estimates import Estimate, bootstrap_mean
from lm_trials.evaluation.sampling import Sampling
from lm_trials.evaluation.summary import STATISTICS
from lm_trials.metrics.texts import text_metrics
from lm_trials.models.reference import checkpoints, read_run
from lm_trials.pairs.examples import ExampleStore
from lm_trials.probing.findings import Finding
from lm_trials.probing.flags import SubjectArguments, TextArguments, short_names
from lm_trials.probing.saturation.flags import UNITS, SaturationArguments
from lm_trials.probing.saturation.inputs import measures_of, read_inputs
from lm_trials.probing.saturation.outputs import Losses, completion_sums, find_prompts, story_sums, write_texts
from lm_trials.probing.saturation.series import Saturation, Series, loss_series, saturation, text_series
from lm_trials.probing.subjects import find_subjects, load_subject
from lm_trials.probing.tables import ProbeTable, Row, by_values, interval
from lm_trials.stories.records import Record
from lm_trials.training.data_order import open_order
from lm_trials.trials.paired import holm
from lm_trials.trials.runs import read_run as read_trial_run
from lm_trials.trials.thresholds import ThresholdTime, bounded_mean, log_ratio_difference

LOSSES = ("loss", "perplexity", "accuracy")
STEP, MEAN, RATIO, AGAIN = "saturation_step", "mean_log2_step", "log2_ratio", "sampled_again"
UPDATES, LOG_UPDATES = "updates", "log2 updates"


@dataclass(frozen=True)
class RunPlan:
    """A run and its checkpoints up to the horizon.

    Attributes:
        label: a short unique name.
        arm: of the runs that differ in seeds alone: the label of the first of them.
        root: the root seed.
    """

    name: str
    label: str
    arm: str
    root: Any
    run: dict[str, Any]
    checkpoints: tuple[Path, ...]
    updates: tuple[int, ...]

    @property
    def about(self) -> Row:
        """The columns that name the run."""
        return {"model": self.label, "seed": self.run["replicate"].get("seed")}


@dataclass(frozen=True)
class Measured:
    """What was measured of a run.

    Attributes:
        again: by metric, how much the last checkpoint's texts change with other random numbers.
        texts: a row for each text.
    """

    plan: RunPlan
    series: list[Series]
    again: dict[str, Estimate]
    texts: list[Row]


def find_plans(names: Sequence[str], horizon: int | None) -> list[RunPlan]:
    """Find the runs, their arms and their checkpoints, before anything is loaded.

    Raises:
        UsageError: for what is no run, a run without checkpoints, or without one at the horizon.
    """
    plans: list[RunPlan] = []
    arms: dict[str, str] = {}
    for name, label in zip(names, short_names(names), strict=True):
        folder = Path(name)
        run, found = read_run(folder), checkpoints(folder)
        if run is None or len(found) < 2:
            what = f"has {len(found) or 'no'} checkpoint{'s' * (len(found) != 1)}" if run else "is no run"
            raise UsageError(
                f"--model_name_or_path {name} {what}; give the folder of a run with several checkpoints "
                "(lm-trials train --checkpoint_ladder True)"
            )
        end = horizon or int(run["outcome"]["max_steps"])
        steps = {int(path.name.removeprefix("checkpoint-")): path for path in found}
        if end not in steps or min(steps) >= end:
            flag = (
                f"--horizon {horizon}" if horizon else f"--model_name_or_path {name}, planned to end at update {end:,}"
            )
            raise UsageError(
                f"{flag}: {name} has checkpoints at {', '.join(map(str, steps))}; give --horizon with one of them, "
                "after the first"
            )
        updates = tuple(step for step in steps if step <= end)
        known = read_trial_run(name)
        arm = arms.setdefault(known.identity_text, label)
        plans.append(RunPlan(name, label, arm, known.root, run, tuple(steps[step] for step in updates), updates))
    return plans


def is_tuned(plan: RunPlan) -> bool:
    """Return whether a run is a fine-tuning, whose data has examples instead of stories."""
    return "num_examples" in plan.run["outcome"]


def measure_run(
    plan: RunPlan,
    records: Sequence[Record],
    subject_args: SubjectArguments,
    text_args: TextArguments,
    args: SaturationArguments,
    data_cache_dir: str | None,
) -> Measured:
    """Measure what a run read and what each of its checkpoints writes, and their losses on the `records`.

    Without records, which only fine-tunings may lack, the losses are those of their validation examples.
    """
    seed, metrics = subject_args.seed, args.metrics
    order = open_order(Path(plan.name), data_cache_dir)
    later = [update for update in plan.updates if update]
    read = read_inputs(order, later, metrics, args.window_records, seed)
    found = [text_series("input", name, UNITS[name], later, read[name], paired=False, seed=seed) for name in metrics]

    prompts = find_prompts(order, plan.run, args.num_samples)
    names = [str(path) for path in plan.checkpoints]
    subjects = find_subjects(replace(subject_args, model_name_or_path=names), block_size=text_args.block_size)
    examples = None
    if not records:
        folder = order.members[0].texts().folder / plan.run["outcome"]["data"]["examples"]
        examples = ExampleStore(folder, "validation")
    written: list[dict[str, np.ndarray]] = []
    rows: list[Row] = []
    scored: list[Losses] = []
    for update, subject in zip(plan.updates, subjects, strict=True):
        model = load_subject(subject, subject_args)
        draws = [seed] if update < plan.updates[-1] else [seed, seed + 1]
        for draw in draws:
            sampling = Sampling(args.temperature, seed=draw)
            texts = write_texts(model, subject, prompts, args.max_new_tokens, sampling)
            values = text_metrics(texts, prompts.texts, measures_of(metrics))
            written.append({name: values[name].astype(np.float64) for name in metrics})
            rows += [
                {**plan.about, "update": update, "sampling_seed": draw, "prompt": prompt, "text": text}
                | {name: float(values[name][place]) for name in metrics}
                for place, (prompt, text) in enumerate(zip(prompts.texts, texts, strict=True))
            ]
        batch, limit = text_args.per_device_eval_batch_size, text_args.max_eval_samples
        if records:
            scored.append(story_sums(model, subject, records, args.by, batch, seed))
        elif examples:
            scored.append(completion_sums(model, examples, limit, batch, seed))
    *written, other = written
    for name in metrics:
        columns = [each[name] for each in written]
        found.append(text_series("output", name, UNITS[name], plan.updates, columns, paired=True, seed=seed))
    again = {
        name: bootstrap_mean(known, UNITS[name], seed)
        for name in metrics
        if len(known := _known(other[name] - written[-1][name]))
    }
    found += _validation(plan, scored) if scored else []
    # A metric that no written text has a value for, such as BLEU without prompts, is left out.
    empty = {one.metric for one in found if one.side == "output" and not any(each.n for each in one.estimates)}
    return Measured(plan, [one for one in found if one.metric not in empty], again, rows)


def _known(values_N: np.ndarray) -> np.ndarray:
    return values_N[~np.isnan(values_N)]


def _validation(plan: RunPlan, scored: Sequence[Losses]) -> Iterator[Series]:
    for name in dict.fromkeys(name for name, _ in scored[0].estimates):
        members_N = np.array([name in of for of in scored[0].slices])
        sums = [each.sums_NK[members_N] for each in scored]
        for metric in LOSSES:
            estimates = [each.estimates[name, metric] for each in scored]
            yield loss_series(metric, STATISTICS[metric].of_sums, plan.updates, estimates, sums, name)


def value_rows(runs: Sequence[Measured]) -> ProbeTable:
    """Return the value of each metric at each checkpoint."""
    rows = ProbeTable()
    for run in runs:
        for one in run.series:
            before = [0, *run.plan.updates]
            for update, estimate in zip(one.updates, one.estimates, strict=True):
                since = max((each for each in before if each < update), default=None) if one.side == "input" else None
                about = {"side": one.side, "slice": one.slice, "metric": one.metric, "update": update, "since": since}
                rows.add(estimate, {**run.plan.about, "role": "finding", **about})
    return rows


def settled(runs: Sequence[Measured], delta: float) -> dict[tuple[str, str, str, str], Saturation | None]:
    """Return when each series settles, by run, side, slice and metric."""
    return {
        (run.plan.label, one.side, one.slice, one.metric): saturation(one, delta) for run in runs for one in run.series
    }


def step_rows(runs: Sequence[Measured], found: Mapping[Any, Saturation | None], delta: float) -> ProbeTable:
    """Return the saturation step of each series of each run, and the control: the last texts sampled again."""
    rows = ProbeTable()
    for run in runs:
        for one in run.series:
            when = found[run.plan.label, one.side, one.slice, one.metric]
            step = (when.time.update, when.lower, when.upper) if when else (float("nan"),) * 3
            about = {"side": one.side, "slice": one.slice, "metric": one.metric, "quantity": STEP}
            rows.add(
                Estimate(*step, one.estimates[-1].n, UPDATES),
                {**run.plan.about, "role": "finding", **about},
                changed=when is not None,
                censored=when and when.time.censored,
                after=float(when.after) if when else None,
                horizon=run.plan.updates[-1],
                delta=delta,
                start=one.estimates[0].estimate,
                end=one.estimates[-1].estimate,
                tolerance=when.tolerance if when else float(one.noise_C[0]),
            )
        for name, difference in run.again.items():
            about = {"side": "output", "slice": "all", "metric": name, "quantity": AGAIN}
            when = found[run.plan.label, "output", "all", name]
            more = {"tolerance": when.tolerance if when else None, "changed": when is not None}
            rows.add(difference, {**run.plan.about, "role": "control", **about}, **more)
    return rows


def arm_rows(runs: Sequence[Measured], found: Mapping[Any, Saturation | None]) -> ProbeTable:
    """Return, over the root seeds of each arm, the mean log2 step of each metric, and which of two settles first.

    A metric without a step in one run of a root seed has none for this root seed.  Pairs are tested by root seed, and
    their p values are corrected for the number of pairs (Holm); those of perplexity would repeat those of the loss.
    """
    rows, pairs = ProbeTable(), ProbeTable()
    for arm, members in by_values(runs, lambda run: run.plan.arm).items():
        roots = by_values(members, lambda run: run.plan.root)
        if len(roots) < 2:
            continue
        keys = dict.fromkeys((one.side, one.slice, one.metric) for run in members for one in run.series)
        times: dict[tuple[str, str, str], dict[Any, ThresholdTime]] = {}
        for key in keys:
            each = {root: [found.get((run.plan.label, *key)) for run in of] for root, of in roots.items()}
            times[key] = {root: _mean_time(of) for root, of in each.items() if all(of)}
        for (side, slice_, metric), of in times.items():
            if len(of) > 1:
                censored = np.array([time.censored for time in of.values()])
                logs = np.log2([time.update for time in of.values()])
                mean = bounded_mean(logs, censored, np.zeros(len(of), dtype=bool), LOG_UPDATES).difference
                about = {"side": side, "slice": slice_, "metric": metric, "quantity": MEAN}
                rows.add(
                    mean, {"model": None, "arm": arm, "role": "finding", **about},
                    censored=int(censored.sum()), root_seeds=len(roots),
                )  # fmt: skip
        ordered = [key for key in times if key[0] != "input" and key[1] == "all" and key[2] != "perplexity"]
        for one, other in itertools.combinations(ordered, 2):
            shared = [root for root in times[one] if root in times[other]]
            if len(shared) < 2:
                continue
            first, second = ([times[key][root] for root in shared] for key in (one, other))
            test = log_ratio_difference(first, second)
            about = {"side": one[0], "slice": "all", "metric": one[2], "quantity": RATIO}
            pairs.add(
                test.difference, {"model": None, "arm": arm, "role": "finding", **about},
                other_side=other[0], other=other[2], p=test.p, method=test.method, root_seeds=len(roots),
            )  # fmt: skip
    for row, corrected in zip(pairs, holm([row["p"] for row in pairs]), strict=True):
        row["p_holm"] = corrected
    return ProbeTable([*rows, *pairs])


def _mean_time(found: Sequence[Saturation | None]) -> ThresholdTime:
    """Return the geometric mean of the times of one root seed's runs; censored if one is."""
    times = [each.time for each in found if each]
    mean = float(2 ** np.mean(np.log2([time.update for time in times])))
    return ThresholdTime(mean, any(time.censored for time in times))


def step_text(row: Mapping[str, Any] | None) -> str:
    """Return a saturation step as text.

    >>> row = {"changed": True, "estimate": 64.0, "lower": 32.0, "upper": float("inf")}
    >>> print(step_text(row), step_text(row | {"changed": False}))
    64
    [32, inf] no change
    """
    if row is None:
        return "-"
    if not row["changed"]:
        return "no change"
    return f"{row['estimate']:,.0f}\n[{row['lower']:,.0f}, {row['upper']:,.0f}]"


def show_steps(rows: ProbeTable) -> None:
    """Print the saturation steps: a line for each side and metric, a column for each run."""
    steps = rows.where(quantity=STEP, slice="all")
    lines = {f"{side}: {metric}": {"side": side, "metric": metric} for side, metric in steps.distinct("side", "metric")}
    columns = {label: {"model": label} for label in steps.distinct("model")}
    caption = "[first, last checkpoint that it may be]; inf: open, give more --num_samples or a later horizon\n"
    caption += "no change: the start and the end differ by no more than sampling noise"
    steps.show("Saturation step, in updates", "side: metric", lines, columns, caption, step_text)
    pairs = [row for row in rows.where(quantity=RATIO) if row["p_holm"] < 0.05]
    if pairs:
        show_table(
            "Which settles first, over root seeds (p by Holm below 0.05)",
            ["arm", "first", "then", "log2 ratio of updates", "p"],
            [[row["arm"], *_in_order(row), interval(row), f"{row['p_holm']:.3f}"] for row in pairs],
        )


def _in_order(row: Row) -> list[str]:
    names = [row["metric"], row["other"]]
    return names if row["estimate"] > 0 else names[::-1]


def finding_of(runs: Sequence[Measured], rows: ProbeTable) -> Finding:
    """Write the finding and that of the control."""
    sentences = []
    for arm, members in by_values(runs, lambda run: run.plan.arm).items():
        roots = len({run.plan.root for run in members})
        if roots > 1:
            sentences.append(_arm_sentence(arm, roots, rows))
            continue
        steps = rows.where(quantity=STEP, side="output", model=[run.plan.label for run in members])
        known = sorted((row for row in steps if row["changed"] and not row["censored"]), key=_estimate)
        text = f"{arm}: {len(known)} of {len(steps)} metrics of the texts settle before the horizon"
        if known:
            ends = [f"{row['metric']} at update {row['estimate']:,.0f}" for row in (known[0], known[-1])]
            text += f", from {' to '.join(ends)}"
        sentences.append(f"{text}; it has one root seed, so nothing can be said about new seeds")
    again = [row for row in rows.where(quantity=AGAIN) if row["changed"]]
    within = sum(abs(row["estimate"]) <= row["tolerance"] for row in again)
    control = (
        f"sampled again with other random numbers, the last texts are within the tolerance for {within} of the "
        f"{len(again)} metrics that change"
    )
    return Finding.of(sentences, [control])


def _arm_sentence(arm: str, roots: int, rows: ProbeTable) -> str:
    means = rows.where(quantity=MEAN, arm=arm, slice="all")
    texts = sorted(means.where(side="output"), key=_estimate)
    ends = [*texts[:1], *texts[1:][-1:], *means.where(side="validation", metric="loss")]
    pairs = rows.where(quantity=RATIO, arm=arm)
    sure = sum(row["p_holm"] < 0.05 for row in pairs)
    return (
        f"{arm} and the others of its arm, over {roots} root seeds: {', '.join(map(_mean_text, ends))}; {sure} of "
        f"{len(pairs)} pairs of metrics settle in a significant order (Holm)"
    )


def _mean_text(row: Row) -> str:
    """Return a mean log2 step as the geometric mean of the updates."""
    mean, lower, upper = (2 ** row[name] for name in ("estimate", "lower", "upper"))
    limits = "[no interval]" if np.isnan(lower) else f"[{lower:,.0f}, {upper:,.0f}]"
    return f"{row['metric']} settles at update {mean:,.0f} {limits}"


def _estimate(row: Row) -> float:
    return float(row["estimate"])
