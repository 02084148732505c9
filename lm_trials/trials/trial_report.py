"""Write the results of a trial: the verdict, a page, tables and figures.

    lm-trials report trials/deletion_recovery.yaml

Reads the runs under --runs_dir; trains and measures nothing.  Writes to results/<trial>:
README.md and index.html (the same page; index.html needs no network), contrasts.csv,
values.csv, curves.csv, figures, the trial file with its local recipes, its registration,
and the run.json of every run.  `lm-trials reproduce` runs the trial again from this folder.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, script, show_facts, show_table
from lm_trials.files import check_writable, plain_name, write_csv, write_file, write_json
from lm_trials.flags import option
from lm_trials.trials.page import as_html, as_markdown
from lm_trials.trials.publish import publish
from lm_trials.trials.registration import REGISTRATION
from lm_trials.trials.run import TrialArguments, again, opened, trial_arguments
from lm_trials.trials.trial_file import read_trial
from lm_trials.trials.trial_tables import (
    Report,
    blocks_of,
    collect,
    contrast_cells,
    contrast_rows,
    covers,
    curve_rows,
    public_runs,
    value_rows,
)

TRIAL_FILE = "trial.yaml"
RECIPES = "recipes"  # folder of the files that `config` names, without those that are installed


@dataclass
class ReportArguments(TrialArguments):
    """Where the results go, and whether they are published."""

    output_dir: str | None = option(None, output=True, help="Folder of the results. Default: results/<trial>.")
    push_to_hub: bool = option(False, help="Publish the results as a data set on the Hub.")
    hub_repo_id: str | None = option(
        None, needs="push_to_hub", help="Repository as OWNER/NAME. Default: the trial's name, of the token's owner."
    )
    hub_private_repo: bool = option(False, needs="push_to_hub", help="Make a new repository private.")


def write_results(report: Report, folder: Path, command: str) -> None:
    """Write everything into a folder.

    Args:
        command: that runs the trial.
    """
    from lm_trials.reporting.trial_figures import curves_figure, forest_figure  # matplotlib takes a second

    contrasts, values, curves = contrast_rows(report), value_rows(report), curve_rows(report)
    figures = {}
    if values:
        figures["forest"] = forest_figure(contrasts, values)
    if curves:
        figures["curves"] = curves_figure(curves)
    pictures = {name: _svg(figure, name) for name, figure in figures.items()}
    for name, figure in figures.items():
        write_file(folder / f"{name}.png", partial(figure.savefig, format="png", dpi=150))
    for name, rows in (("contrasts", contrasts), ("values", values), ("curves", curves)):
        if rows:
            write_csv(folder / f"{name}.csv", rows)
    write_file(folder / TRIAL_FILE, report.trial.text)
    for flags in (flags for stage in report.trial.stages.values() for flags in stage.flags.values()):
        if "config" in flags and (recipe := Path(str(flags["config"]))).is_file():
            write_file(folder / RECIPES / plain_name(str(recipe)), recipe.read_bytes())
    if report.registration:
        write_json(folder / REGISTRATION, report.registration)
    for name, described in public_runs(report).items():
        write_json(folder / "runs" / f"{name}.json", described)
    blocks = blocks_of(report, contrasts, list(figures), folder, command)
    write_file(folder / "README.md", as_markdown(report.trial.claim, blocks))
    write_file(folder / "index.html", as_html(report.trial.claim, blocks, pictures))


def _svg(figure: Any, name: str) -> str:
    """Return a figure as SVG for a page, with the page's text colour for black and no background."""
    import io

    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor").replace("<text ", '<text fill="currentColor" ')
    return text.strip()


def check_folder(folder: Path, report: Report) -> None:
    """Refuse a folder that contains anything other than the results of the same runs.

    Raises:
        UsageError: for such a folder.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    advice = "give another --output_dir, or remove it"
    if not (folder / TRIAL_FILE).is_file():
        raise UsageError(f"--output_dir {folder} has other files than a trial's results; {advice}")
    if read_trial(folder / TRIAL_FILE).registered["runs"] != report.trial.registered["runs"]:
        raise UsageError(f"--output_dir {folder} has the results of another trial; {advice}")


def show(report: Report, folder: Path, next_command: str) -> None:
    """Print the verdict, the contrasts, and where the results are."""
    facts = {"claim": report.trial.claim, "verdict": report.verdict.word, "reason": report.verdict.reason}
    show_facts(report.trial.name, facts)
    columns, cells = contrast_cells(report, short=True)
    if cells:
        show_table("contrasts", columns, cells, caption=covers(report))
    facts = {f"deviation {place}": line for place, line in enumerate(report.deviations, 1)}
    facts |= {"cost": str(report.cost), "results": f"{folder} (README.md, index.html)", "next": next_command}
    show_facts("details", facts)


@script
def main(argv: list[str] | None = None) -> Report:
    """Report a trial; returns the report."""
    args = trial_arguments(argv, ReportArguments, __doc__ or "", "report")
    trial, runs = opened(args)
    folder = Path(args.output_dir or Path("results") / runs.name)
    check_writable("--output_dir", folder)
    command = f"lm-trials run {again(args)}"
    report = collect(trial, runs, command)
    check_folder(folder, report)
    write_results(report, folder, command)
    show(report, folder, command if report.missing else f"lm-trials reproduce {shlex.quote(str(folder))}")
    if args.push_to_hub:
        publish(folder, trial, args.hub_repo_id or trial.name, args.hub_private_repo)
    return report
