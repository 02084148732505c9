"""Local workers: each job in a process of its own, forked from a server that has imported torch and transformers.

Imports (8 to 10 s) are paid once, and each job starts in a clean process with its command in the main thread.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lm_trials.cli import command_of
from lm_trials.console import UsageError
from lm_trials.trials.engine import Handle, log_of, perform, redirect_output
from lm_trials.trials.graph import Job

PATIENCE = 10.0  # seconds for a process to end before it is killed


def gpu_count() -> int:
    """Return the GPUs of this machine that may be used, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def variables(threads: int) -> dict[str, str]:
    """Return the environment variables of a job; fewer lines of progress make shorter logs."""
    return {"OMP_NUM_THREADS": str(threads), "TQDM_MININTERVAL": "1", "TOKENIZERS_PARALLELISM": "false"}


class LocalExecutor:
    """Runs jobs on this machine.

    Args:
        threads: of each job; the number of threads is part of what makes results equal to the last bit.
        gpus: each job gets one of them, by the number of its worker.
    """

    def __init__(self, threads: int, gpus: int = 0) -> None:
        os.environ |= variables(threads)  # read when torch is imported, so before the server starts
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["lm_trials.trials.preloaded"])
        self.gpus = gpus
        self.handles: dict[int, LocalHandle] = {}  # by GPU

    def start(self, job: Job, runs: Path) -> Handle:
        """Start a job in a process of its own."""
        more = {}
        if self.gpus:
            free = next(n for n in range(self.gpus) if n not in self.handles or self.handles[n].poll() is not None)
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            more["CUDA_VISIBLE_DEVICES"] = names[free] if len(names) > free and names[free] else str(free)
        process = self.context.Process(target=work, args=(job, runs, more), name=job.name)
        process.start()
        handle = LocalHandle(process)
        if self.gpus:
            self.handles[free] = handle
        return handle

    def check(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """Parse the flags of jobs with their programs, in one process, and return each one's parsed flags.

        Raises:
            UsageError: for the first command that its program refuses.
        """
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_parse, args=([job.words for job in jobs], there), name="flags")
        process.start()
        there.close()
        try:
            answers = json.loads(here.recv_bytes())
        except EOFError:
            raise UsageError("the flags could not be checked; see the lines above") from None
        finally:
            process.join()
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, str):
                raise UsageError(f"{job.name}: {answer}")
        return list(answers)


class LocalHandle:
    """A process of this machine."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""
        return self.process.exitcode

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.terminate()
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


def work(job: Job, runs: Path, more: Mapping[str, str]) -> None:
    """Be the process of one job, with more environment variables."""
    os.environ.update(more)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the engine ends this one, with SIGTERM
    redirect_output(log_of(runs, job))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        perform(job, runs)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however that ended; else it would continue to train."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _parse(commands: list[tuple[str, ...]], answers: Any) -> None:
    """Send the parsed flags of each command, or the line of its error."""
    from inspect import unwrap

    from lm_trials.flags import ParsedError, parsing_only

    found: list[Any] = []
    with parsing_only():
        for words in commands:
            try:
                program, rest = command_of(list(words))
                unwrap(program)(rest)
                found.append({})
            except ParsedError as parsed:
                plain = (int, float, str, bool, type(None))  # others need not be sent
                found.append({name: value for name, value in parsed.values.items() if isinstance(value, plain)})
            except UsageError as error:
                found.append(str(error))
            except SystemExit as stop:
                found.append(f"its flags cannot be parsed (status {stop.code})")
    # Not pickled: an enumeration of transformers would have the other process import transformers.
    answers.send_bytes(json.dumps(found).encode())
