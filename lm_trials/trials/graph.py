"""The graph of a trial: its jobs, each one command, and the jobs that must be finished before.

A job's folder says whether it is finished, so that there is no other state: a training by its final model, a
measurement and a preparation by a receipt with the command, written after it has succeeded, and a measurement by the
folders of its results too.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError
from lm_trials.files import read_object
from lm_trials.trials.entries import flags_of
from lm_trials.trials.trial import Trial

FINISHED = "finished.json"  # written by training after its final model


@dataclass(frozen=True)
class Job:
    """One command of a trial.

    Attributes:
        name: unique, and a relative path: its log is `<runs>/logs/<name>.log`.
        words: after `lm-trials`.
        after: the names of the jobs that must be finished before.
        kind: jobs of one kind take about as long: "pretrain", or "pretrain/measure-1".
        folder: the run's folder; None for a preparation.
        receipt: the file that says a measurement or preparation is finished; None for a training.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...]
    kind: str
    folder: Path | None
    receipt: Path | None = None

    def finished(self) -> bool:
        """Whether the command has succeeded: the final model is there, or the receipt of the same command."""
        if self.receipt is None:
            return self.folder is not None and (self.folder / FINISHED).is_file()
        now = self.receipt_now()
        if not self.receipt.is_file():
            return False
        found = {**now, "results": [], **read_object(self.receipt)}  # those of earlier versions have the words alone
        if not all((self.receipt.parents[1] / place).is_dir() for place in found.pop("results")):
            return False
        return {**found, "words": without_place(found["words"])} == now

    def receipt_now(self) -> dict[str, Any]:
        """Return the content of a receipt: the command, and of a measurement the model, which may be trained again."""
        if self.folder is None:
            return {"words": without_place(self.words)}
        sums = self.folder / FINISHED
        model = hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else None
        return {"words": without_place(self.words), "model": model}


def without_place(words: Sequence[str]) -> list[str]:
    """Return a command that is the same wherever the runs are, as they may be moved.

    >>> without_place(["evaluate", "--model_name_or_path", "/disk/runs/t/a-s0", "--dataset_name", "x"])
    ['evaluate', '--model_name_or_path', 'a-s0', '--dataset_name', 'x']
    """
    pairs = zip(words, ["", *words], strict=False)
    return [Path(word).name if before == "--model_name_or_path" else word for word, before in pairs]


def run_folder(runs: Path, stage: str, arm: str, seed: int) -> Path:
    """Return the folder of one run.

    >>> run_folder(Path("runs/t"), "pretrain", "seen", 0).as_posix()
    'runs/t/pretrain-seen-s0'
    """
    return runs / f"{stage}-{arm}-s{seed}"


def _prepared(words: Sequence[str]) -> Path:
    """Return the receipt of a preparation: in the data folder, as all trials with that command share the data."""
    (folder, *_) = [*flags_of(words).get("data_cache_dir", []), "data"]
    return Path(folder) / ".trials" / f"{hashlib.sha256(shlex.join(words).encode()).hexdigest()[:16]}.json"


def flag_words(flags: dict[str, Any]) -> list[str]:
    """Return flags as words of a command line.

    >>> flag_words({"max_steps": 300, "eval_datasets": ["a", "b"], "bf16": True})
    ['--max_steps', '300', '--eval_datasets', 'a', 'b', '--bf16', 'True']
    """
    words = []
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def jobs_of(trial: Trial, runs: Path) -> list[Job]:
    """Return the jobs of a trial in an order in which they can be run: preparation, then seed by seed.

    Seed by seed, so that a trial that is stopped early has whole lineages.
    """
    jobs = []
    prepared: tuple[str, ...] = ()  # all, as one that fails may be followed by one that was finished before
    for number, (place, words) in enumerate(trial.preparations()):
        name = f"prepare/{number + 1}"
        jobs.append(Job(name, words, prepared, f"prepare/{place + 1}", None, _prepared(words)))
        prepared += (name,)
    for seed in trial.seeds:
        for stage in trial.stages.values():
            for arm, given in stage.flags.items():
                flags = {flag: trial.filled(value, seed) for flag, value in given.items()}
                folder = run_folder(runs, stage.name, arm, seed)
                own = {"output_dir": str(folder), "run_name": folder.name, "seed": seed, "data_seed": seed}
                after = prepared
                if stage.after is not None:
                    parent = run_folder(runs, stage.after, stage.parents[arm], seed)
                    own["model_name_or_path"], after = str(parent), (parent.name, *prepared)
                words = (stage.program, *flag_words({**flags, **own}))
                jobs.append(Job(folder.name, words, after, stage.name, folder))
        for number, measure in enumerate(trial.measures):
            for stage_name, arm in measure.arms:
                folder = run_folder(runs, stage_name, arm, seed)
                place = 2 if measure.words[0] == "probe" else 1
                rest = trial.filled(measure.words[place:], seed)
                words = (*measure.words[:place], "--model_name_or_path", str(folder), *rest)
                name = f"{folder.name}/{'-'.join(measure.words[:place])}-{number + 1}"
                kind, receipt = f"{stage_name}/measure-{number + 1}", folder / "measured" / f"{number + 1}.json"
                jobs.append(Job(name, words, (folder.name, *prepared), kind, folder, receipt))
    return jobs


def open_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that are not finished.

    Raises:
        UsageError: for a finished run whose parent is not: it was trained from a model that is no longer there.
    """
    unfinished = [job for job in jobs if not job.finished()]
    missing = {job.name for job in unfinished if job.receipt is None}
    for job in jobs:
        if job.receipt is None and job.name not in missing and (gone := missing & set(job.after)):
            raise UsageError(
                f"{job.folder} is finished and {', '.join(gone)}, which it started from, is not; restore that run, or "
                f"remove {job.folder}"
            )
    return unfinished
