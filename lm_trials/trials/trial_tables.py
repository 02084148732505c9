"""The tables of a trial's report, from its findings: contrasts, values of each root seed, learning curves, runs."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from lm_trials.console import UsageError
from lm_trials.estimates import mean_over_seeds
from lm_trials.files import read_object
from lm_trials.run_data import public_run, public_value
from lm_trials.trials.compare_tables import p_text
from lm_trials.trials.evidence import Cost, all_deviations, all_runs, cost, other_commands, stage_differences
from lm_trials.trials.graph import jobs_of
from lm_trials.trials.outcomes import ArmName, TrialRuns
from lm_trials.trials.page import Banner, Block, Code, Heading, Items, Picture, Table, Text, code
from lm_trials.trials.registration import read_registration
from lm_trials.trials.runs import RUN_FILE, Run
from lm_trials.trials.trial import Trial
from lm_trials.trials.verdict import (
    AGAINST,
    HOLDS,
    UNDECIDED,
    Finding,
    Verdict,
    claim_text,
    claimed_range,
    difference_text,
    difference_texts,
    excluded_text,
    find_all,
    verdict,
)

OF_CONTROL = {HOLDS: "shows the effect", AGAINST: "no effect", UNDECIDED: "not excluded"}
LOSS = "eval_loss"  # drawn where no contrast names a logged metric


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        runs: the folder of the trial's runs.
        missing: the names of jobs that are not finished.
        registration: what was registered with the first run; None without one.
        of_arms: the runs that are there, by (stage, arm).
    """

    trial: Trial
    runs: Path
    findings: Sequence[Finding]
    verdict: Verdict
    missing: Sequence[str]
    registration: Mapping[str, Any] | None
    deviations: Sequence[str]
    of_arms: Mapping[ArmName, Sequence[Run]]
    cost: Cost


def collect(trial: Trial, runs: Path, command: str) -> Report:
    """Read and judge the runs of a trial.

    Args:
        command: that runs the trial, for the error where nothing has been run.

    Raises:
        UsageError: for a folder without runs.
    """
    read = TrialRuns(runs)
    of_arms = all_runs(trial, read)
    everyone = [run for arm in of_arms.values() for run in arm]
    if not everyone:
        raise UsageError(f"{runs} has no runs of this trial; run it: {command}")
    jobs = jobs_of(trial, runs)
    missing = [job.name for job in jobs if job.folder is not None and not job.finished()]
    findings, registration = find_all(trial, read), read_registration(runs)
    return Report(
        trial,
        runs,
        findings,
        verdict(trial, findings, missing),
        missing,
        registration,
        [*all_deviations(trial, registration, of_arms), *other_commands(jobs)],
        of_arms,
        cost(runs),
    )


def contrast_rows(report: Report) -> list[dict[str, Any]]:
    """Return the rows of `contrasts.csv`: each contrast with its claim, intervals, tests and result."""
    rows = []
    for finding in report.findings:
        contrast, outcome = finding.contrast, finding.outcome
        above, below = claimed_range(contrast.expect, contrast.margin)
        row: dict[str, Any] = {"contrast": contrast.name, "role": contrast.role, "result": result_of(finding)}
        row |= {"first": ".".join(contrast.first), "second": ".".join(contrast.second or ())}
        row |= {"expect": contrast.expect, "margin": contrast.margin, "above": above, "below": below}
        row |= {"estimate": math.nan, "lower": math.nan, "upper": math.nan, "n": 0, "unit": ""}
        if outcome is not None and finding.test is not None:
            seeds, stories = outcome.over_seeds().difference, outcome.over_stories()
            row |= finding.test.difference.row()
            row |= {"root_seeds": len(outcome.seeds), "stories": outcome.n if outcome.of_stories else ""}
            row |= {"p": finding.p, "p_holm": finding.p_holm, "method": finding.test.method}
            row |= {"lower_over_seeds": seeds.lower, "upper_over_seeds": seeds.upper}
            row |= {"lower_over_stories": stories.lower if stories else math.nan}
            row |= {"upper_over_stories": stories.upper if stories else math.nan}
        rows.append({**row, "notes": "; ".join(outcome.notes) if outcome else finding.problem})
    return rows


def value_rows(report: Report) -> list[dict[str, Any]]:
    """Return the rows of `values.csv`: each contrast's value of each run, and the difference of its root seed."""
    rows = []
    for finding in report.findings:
        outcome = finding.outcome
        if outcome is None:
            continue
        for place, arm in enumerate(filter(None, (finding.contrast.first, finding.contrast.second))):
            for run, seed, value, difference in zip(
                outcome.runs[place], outcome.seeds, outcome.values_AS[place], outcome.differences_S, strict=True
            ):
                row = {"contrast": finding.contrast.name, "seed": seed, "arm": ".".join(arm), "run": run.folder.name}
                row |= {"value": float(value), "unit": outcome.value_unit, "difference": float(difference)}
                rows.append({**row, "difference_unit": outcome.unit})
    return rows


def curve_rows(report: Report) -> list[dict[str, Any]]:
    """Return the rows of `curves.csv`: a logged metric over the updates, mean of each arm over its root seeds.

    The metrics of thresholds, or the loss of each stage where no contrast has a threshold.
    """
    contrasts = [each for each in report.trial.contrasts if "metric" in each.outcome]
    places = list(dict.fromkeys((each.first[0], str(each.outcome["metric"])) for each in contrasts))
    rows = []
    for stage, metric in places or [(stage, LOSS) for stage in report.trial.stages]:
        for arm in report.trial.stages[stage].arms:
            runs = report.of_arms[stage, arm]
            try:
                logs = [dict(run.logged(metric)) for run in runs]
            except UsageError:
                continue
            steps = sorted(set.intersection(*map(set, logs))) if logs else []
            unit = "nats per token" if metric.endswith("_loss") else metric
            for step in steps if len(steps) > 1 else []:
                mean = mean_over_seeds([log[step] for log in logs], len(logs), unit)
                rows.append({"stage": stage, "arm": arm, "metric": metric, "step": step, **mean.row()})
    return rows


def public_runs(report: Report) -> dict[str, dict[str, Any]]:
    """Return the `run.json` of each run by the run's name, without paths of this machine."""
    everyone = (run for runs in report.of_arms.values() for run in runs)
    return {run.folder.name: public_run(read_object(run.folder / RUN_FILE)) for run in everyone}


def result_of(finding: Finding) -> str:
    """Return a finding's result in the words of its role."""
    return OF_CONTROL.get(finding.result, finding.result) if finding.contrast.role == "control" else finding.result


def contrast_cells(report: Report, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the columns and cells of the table of contrasts; `short` for a terminal of 80 columns."""
    family = sum(finding.contrast.role == "secondary" for finding in report.findings) > 1
    columns = ["contrast", "result", "difference\n95 % interval" if short else "difference, 95 % interval", "claimed"]
    controls = any(finding.contrast.role == "control" for finding in report.findings) and not short
    columns += ["excluded effects"] if controls else []
    columns += ["p"] if short else ["p", *(["p (Holm)"] if family else []), "root seeds", "stories"]
    rows = []
    for finding in report.findings:
        contrast, outcome = finding.contrast, finding.outcome
        name = f"{contrast.name} ({contrast.role})"
        row = ["\n".join(wrap(name, 22, break_on_hyphens=False)) if short else name, result_of(finding)]
        if outcome is None or finding.test is None:
            rows.append([*row, *[""] * (len(columns) - 2)])
            continue
        difference, claimed = difference_texts(finding.test.difference), claim_text(contrast)
        if short:
            p = finding.p if math.isnan(finding.p_holm) else finding.p_holm
            rows.append([*row, "\n".join(difference), claimed.replace(" and ", "\nand "), p_text(p)])
            continue
        row += [difference_text(finding.test.difference), claimed]
        row += [excluded_text(finding) if contrast.role == "control" else ""] if controls else []
        row += [p_text(finding.p)]
        row += [p_text(finding.p_holm) if not math.isnan(finding.p_holm) else ""] if family else []
        rows.append([*row, str(len(outcome.seeds)), f"{outcome.n:,}" if outcome.of_stories else ""])
    return columns, rows


def covers(report: Report) -> str:
    """Return the caption of the table: what its intervals and p values are."""
    text = "Difference: first minus second arm, mean over root seeds. "
    if any(finding.outcome and finding.outcome.of_stories for finding in report.findings):
        text += "Interval of losses: for new root seeds and new stories; of other outcomes: for new root seeds. "
    else:
        text += "Interval: for new root seeds. "
    if bases := report.trial.common_bases:
        text += f"All root seeds start from {' or '.join(bases)}: new seeds are new trainings of it, not new bases. "
    text += "p: two-sided, against the end of the claimed range (equivalence: two one-sided tests)."
    if sum(finding.contrast.role == "secondary" for finding in report.findings) > 1:
        text += " Secondary contrasts are one family, corrected by Holm."
    if any(finding.contrast.role == "control" for finding in report.findings):
        text += " Controls: a difference in the claimed range would invalidate the trial."
    return text


def blocks_of(
    report: Report, rows: Sequence[Mapping[str, Any]], figures: Sequence[str], folder: Path, command: str
) -> list[Block]:
    """Return the page of a trial.

    Args:
        rows: of `contrasts.csv`.
        figures: the names of those that were drawn.
        folder: of the results.
        command: that runs the trial.
    """
    trial = report.trial
    about = [f"Source of the claim: {trial.source}."] if trial.source else []
    about += [part for part in re.split(r"\n\s*\n", trial.description) if part.strip()]
    given = report.registration
    registered = given and f"registered {given['time']}, digest {code(str(given.get('digest')))}"
    noted = ", with deviations from the registration" if report.deviations else ""
    blocks: list[Block] = [Banner(report.verdict.word + noted, report.verdict.reason), *map(Text, about)]
    blocks += [
        Text(
            f"Trial {code(trial.name)}, {registered or 'not registered'}; {len(trial.seeds)} root seeds "
            f"({', '.join(map(str, trial.seeds))}), {sum(map(len, report.of_arms.values()))} runs; {report.cost}."
        )
    ]
    columns, cells = contrast_cells(report)
    if cells:
        blocks += [Heading("Registered contrasts"), Table(columns, cells, covers(report))]
    if not any(contrast.role == "control" for contrast in trial.contrasts):
        blocks.append(Text("No controls were registered."))
    if "forest" in figures:
        blocks.append(Picture("forest", "Each registered contrast with its 95 % interval and the claimed range"))
    notes = [f"{row['contrast']}: {row['notes']}" for row in rows if row["notes"]]
    blocks += [Items(notes)] if notes else []
    blocks += [Heading("Deviations from the registration")]
    blocks += [Items(report.deviations) if report.deviations else Text("None.")]
    if report.missing:
        blocks += [Heading("Jobs that are not finished"), Items([*map(code, report.missing)])]
    if "curves" in figures:
        caption = "Mean over root seeds with its 95 % interval (Student's t), from the logs of the trainings."
        blocks += [Heading("Learning curves"), Picture("curves", "Learning curves of the arms"), Text(caption)]
    blocks += [Heading("What the arms differ in"), *_differences(report)]
    blocks += [Heading("Where each number comes from"), *_sources(report)]
    return [*blocks, Heading("Reproduce"), *_reproduction(report, folder, command)]


def _differences(report: Report) -> list[Block]:
    trial = report.trial
    found = dict.fromkeys(
        each for contrast in trial.contrasts for each in stage_differences(trial, contrast, report.of_arms)
    )
    rows = [
        [
            each.stage,
            " and ".join(each.arms),
            ", ".join(each.variables) or "nothing",
            ", ".join(each.unstated) or "none",
        ]
        for each in found
    ]
    caption = "From the `run.json` of both runs of the first root seed. Within an arm, runs differ in seeds alone."
    return [Table(["stage", "arms", "variables that differ", "not stated in the file"], rows, caption)]


def _sources(report: Report) -> list[Block]:
    values = [
        [
            *(row["contrast"], str(row["seed"]), row["arm"], code(row["run"])),
            *(f"{row['value']:.6g} {row['unit']}", f"{row['difference']:+.6g}"),
        ]
        for row in value_rows(report)
    ]
    columns = ["contrast", "root seed", "arm", "run", "value", "difference of the root seed"]
    words = {job.name: job.words for job in jobs_of(report.trial, report.runs)}
    runs = []
    for arm in report.of_arms.values():
        for run in arm:
            command = public_value(shlex.join(("lm-trials", *words[run.folder.name])))
            numbers = f"{run.steps or 0:,}", f"{run.training_seconds / 60:.1f}"
            runs.append([code(run.folder.name), str(run.seeds[0]), *numbers, code(command)])
    return [
        Text("`contrasts.csv` has all intervals and `values.csv` every value; `runs/` has the `run.json` of each run."),
        Table(columns, values, f"The {len(values)} values behind the contrasts", folded=True),
        Table(["run", "seed", "updates", "minutes", "command"], runs, f"The {len(runs)} runs", folded=True),
        Table(
            ["command", "arms"],
            [[code(shlex.join(each.words)), ", ".join(map(".".join, each.arms))] for each in report.trial.measures]
            + [[code(shlex.join(words)), "before the first run"] for words in report.trial.prepare],
            "Measurements and preparations",
            folded=True,
        ),
    ]


def _reproduction(report: Report, folder: Path, command: str) -> list[Block]:
    everyone = [run for runs in report.of_arms.values() for run in runs]
    versions = {
        name.removeprefix("versions."): value
        for name, value in everyone[0].outcome.items()
        if name.startswith("versions.")
    }
    shown = ", ".join(f"{name} {value}" for name, value in versions.items())
    return [
        Text("Run the trial again from its file, or from this folder with a comparison of every number:"),
        Code(f"{command}\nlm-trials reproduce {shlex.quote(str(folder))}"),
        Text(f"Code revision `{everyone[0].outcome.get('code_revision')}`, a hash of the package's sources; {shown}."),
    ]
