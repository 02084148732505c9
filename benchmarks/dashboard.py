"""Time from the command to the first figure of the dashboard, with many runs and long logs, in a headless Chromium.

    python benchmarks/dashboard.py
    python benchmarks/dashboard.py --runs 300 --rows 30000

Each run has a small `run.json` and a log in a file of its own.  Processor time is that of the server; compare it
with the elapsed time to see other load on the machine.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lm_trials.console import UsageError, script, show_facts
from lm_trials.files import write_file, write_json
from lm_trials.flags import option, parse_arguments

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from browser import CHROMIUM, Browser

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@dataclass
class DashboardBenchmark:
    """How much there is to read."""

    runs: int = option(100, least=1, help="Runs, five of each arm.")
    rows: int = option(10_000, least=1, help="Rows of each log.")
    port: int = option(7899, least=1, most=65535, help="Port of the dashboard.")


def make_runs(folder: Path, runs: int, rows: int) -> None:
    """Write run folders with `run.json` and `trainer_state.json`."""
    log = [
        {"step": step, "loss": 2 + 4 / math.sqrt(step), "learning_rate": 1e-3, "grad_norm": 0.5, "epoch": step / rows}
        | ({"eval_loss": 2 + 4 / math.sqrt(step)} if step % 100 == 0 else {})
        for step in range(1, rows + 1)
    ]
    state = json.dumps({"epoch": 1.0, "global_step": rows, "log_history": log})
    for number in range(runs):
        outcome = {"learning_rate": number // 5, "max_steps": rows, "dataset_name": "generated"}
        replicate = {"seed": number % 5, "data_seed": number % 5}
        place = folder / f"arm{number // 5}-s{number % 5}"
        write_json(
            place / "run.json", {"run_name": place.name, "outcome": outcome, "replicate": replicate, "lineage": []}
        )
        write_file(place / "trainer_state.json", state)


def first_paint(folder: Path, port: int, browser: Browser) -> dict[str, float]:
    """Start the dashboard and open it; return seconds from the command."""
    words = [sys.executable, "-m", "lm_trials.cli", "dashboard", str(folder), "--port", str(port)]
    start = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
                    break
                except OSError:
                    if server.poll() is not None:
                        raise UsageError("the dashboard did not start; see its error above") from None
                    time.sleep(0.02)
            served = time.monotonic() - start
            browser.open(f"http://127.0.0.1:{port}/")
            browser.wait("document.querySelector('.js-plotly-plot .main-svg') !== null")
            figure = time.monotonic() - start
            painted = served + browser.js(PAINTED) / 1000
        finally:
            server.terminate()
            _, _, usage = os.wait4(server.pid, 0)
            server.returncode = 0
    processor = usage.ru_utime + usage.ru_stime
    return {
        "server answers": served,
        "first paint": painted,
        "figure": figure,
        "processor time of the server": processor,
    }


@script
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the times; returns them."""
    (args,) = parse_arguments(argv, (DashboardBenchmark,), __doc__ or "")
    if CHROMIUM is None:
        raise UsageError("no Chromium on this machine; install Debian's package chromium")
    browser = Browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_runs(Path(folder), args.runs, args.rows)
            times = first_paint(Path(folder), args.port, browser)
    finally:
        browser.close()
    size = f"{args.runs:,} runs with {args.rows:,} log rows each"
    load = f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores"
    show_facts(size, {name: f"{seconds:.1f} s" for name, seconds in times.items()} | {"load": load})
    print(json.dumps({"runs": args.runs, "rows": args.rows, **times}))
    return times


if __name__ == "__main__":
    main()
