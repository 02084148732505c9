"""Trainings in processes of their own, to be killed: forked from one that has imported everything, so that each starts
in a blink.  Imported by the fork server too."""

import functools
import gc
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import lm_trials.training.session
import lm_trials.training.trainer  # noqa: F401
import train_gpt2

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["killed_runs"])
RESULT = ("loss", "grad_norm", "learning_rate", "eval_loss", "train_loss", "tokens_seen", "share_a", "share_b")


def _train(argv: list[str], log: str, environment: dict[str, str]) -> None:
    assert "torch" in sys.modules, "forked from a process that has not imported it: each start would take 10 s"
    multiprocessing.set_start_method("fork", force=True)  # as in a process of one's own, not as this one was started
    gc.freeze()  # Trainer collects garbage at its start, a second of a run of two: these imports are none
    os.environ.update(environment)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    train_gpt2.main(argv)


@functools.cache
def _wait_until_imported() -> None:
    # Not where this module is imported: the fork server imports it too.  Python 3.11's does not look where this process
    # does for what it is to import, and says nothing.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before
    process = CONTEXT.Process(target=time.time)
    process.start()
    process.join()


class Training:
    """A training in `world_size` processes, started at once."""

    def __init__(self, argv: list[str], folder: Path, world_size: int = 1) -> None:
        _wait_until_imported()
        self.log = folder.with_suffix(".log")
        environments = [{}]
        if world_size > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
            environments = [{**shared, **rank, "WORLD_SIZE": str(world_size)} for rank in ranks]
        self.started = time.monotonic()
        self.processes = [CONTEXT.Process(target=_train, args=(argv, str(self.log), e)) for e in environments]
        for process in self.processes:
            process.start()

    def signal(self, number: int = signal.SIGKILL) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self, seconds: float = 120) -> list[int]:
        """Return the exit codes; negative for a signal."""
        for process in self.processes:
            process.join(seconds)
            assert not process.is_alive(), self.log.read_text()[-2000:]
        return [process.exitcode for process in self.processes]

    def finish(self) -> float:
        """Wait for the end, which must be a good one; returns the seconds since the start."""
        assert set(self.wait()) == {0}, self.log.read_text()[-3000:]
        return time.monotonic() - self.started

    def wait_for(self, path: Path, seconds: float = 60) -> None:
        """Wait until a file is there."""
        until = time.monotonic() + seconds
        while not path.exists():
            there_is_hope = time.monotonic() < until and any(process.is_alive() for process in self.processes)
            assert there_is_hope, self.log.read_text()[-2000:]
            time.sleep(0.002)


def outcome(folder: Path) -> tuple[bytes, list[dict]]:
    """Return what must be the same to the bit: the final weights, and every number logged that no clock is in."""
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    numbers = [{key: row[key] for key in ("step", *RESULT) if key in row} for row in rows]
    return (folder / "model.safetensors").read_bytes(), numbers


def kill_and_go_on(argv: list[str], folder: Path, delay: float, world_size: int = 1) -> bool:
    """Start, kill after `delay` seconds, and run the same command to its end; says whether the kill came in time."""
    shutil.rmtree(folder, ignore_errors=True)
    first = Training(argv, folder, world_size)
    time.sleep(delay)
    first.signal()
    killed = -signal.SIGKILL in first.wait()
    Training(argv, folder, world_size).finish()
    return killed
