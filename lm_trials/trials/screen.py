"""The display of a running trial: its running jobs and the time left; without a terminal, a line for each event."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_trials.console import note
from lm_trials.trials.engine import Forecast, log_end, log_of, progress_of
from lm_trials.trials.graph import Job


def clock(seconds: float | None) -> str:
    """Return a duration in words.

    >>> clock(42), clock(600), clock(7800), clock(None)
    ('42 s', '10 min', '2 h 10 min', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Screen:
    """Shows the jobs of a trial; on a terminal a live table, elsewhere a line for each event.

    The time left is that of `workers` jobs at a time; None: of as many as run.
    """

    def __init__(self, jobs: Sequence[Job], runs: Path, forecast: Forecast, workers: int | None) -> None:
        self.total = len(jobs)
        self.runs = runs
        self.forecast = forecast
        self.workers = workers
        self.failed = 0
        self.starts: dict[str, float] = {}
        self.live: Any = None
        self.left: float | None = None
        self.done = sum(job.finished() for job in jobs)

    def __enter__(self) -> Screen:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def event(self, job: Job, what: str) -> None:
        """Print a line for what happened; of a failed job with the end of its log."""
        more: list[str] = []
        if what == "started":
            self.starts[job.name] = time.monotonic()
            if self.live:
                return
        elif what == "failed":
            self.failed += 1
            log = log_of(self.runs, job)
            what, more = f"FAILED, {log}", [f"    {line}" for line in log_end(log)]
        else:
            if what == "finished":
                self.done += 1
                if job.name in self.starts:  # Slurm may start and finish one between two looks
                    seconds = time.monotonic() - self.starts[job.name]
                    self.forecast.done.setdefault(job.kind, []).append(seconds)
                    what = f"finished in {clock(seconds)}"
            what += "" if self.live else f"; {self.summary()}"
        for line in [f"{job.name}: {what}", *more]:
            self.live.console.print(line, markup=False, emoji=False, highlight=False) if self.live else note(line)

    def show(self, running: Mapping[str, float], open_jobs: Sequence[Job]) -> None:
        """Redraw the screen."""
        self.left = self.forecast.left(open_jobs, running, self.workers or len(running))
        if self.live:
            self.live.update(self._table(running, open_jobs))

    def summary(self) -> str:
        """Return how many jobs are finished, and the time left."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self.total} jobs finished{failed}; time left: {clock(self.left)}"

    def _table(self, running: Mapping[str, float], open_jobs: Sequence[Job]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        for job in open_jobs:
            if job.name in running:
                expected = self.forecast.seconds(job.kind)
                of = f"{clock(running[job.name])}" + (f" of {clock(expected)}" if expected else "")
                table.add_row(Text(job.name), Text(progress_of(log_of(self.runs, job)) or "", style="cyan"), Text(of))
        table.add_row(Text(self.summary(), style="bold"))
        return table
