"""Workers: numbered tasks in several processes, which end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from lm_trials.console import UsageError

Task = Callable[[int], Iterable[int]]
"""Does the work of one number and yields, every now and then, how many rows it has read since."""


class StoppedError(UsageError):
    """Something outside has ended the work, a full disk or the system: what is done is kept for the same command."""


def run_tasks(task: Task, numbers: Sequence[int], num_proc: int) -> Iterator[int]:
    """Run `task` for each number, in `num_proc` processes, and yield the rows read by any of them as they go.

    Args:
        task: for more than one process a function that can be pickled.

    Raises:
        UsageError: what a task raised.
        StoppedError: for a process that the system ended.
    """
    if num_proc == 1 or len(numbers) < 2:
        for number in numbers:
            yield from task(number)
        return
    # Not forked from here: tqdm, pyarrow and tokenizers may have threads by now.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lm_trials.stories.pieces"])
    waiting = iter(numbers)
    processes: dict[Connection, Any] = {}
    try:
        for number in (next(waiting) for _ in range(min(num_proc, len(numbers)))):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, task), daemon=True)
            process.start()
            there.close()
            processes[here] = process
            here.send(number)
        while processes:
            for connection in wait(list(processes)):
                yield from _answer(connection, processes, waiting)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _answer(connection: Connection, processes: dict[Connection, Any], waiting: Iterator[int]) -> Iterator[int]:
    """Take one message of a process, and give it the next number when it is done with one."""
    try:
        kind, value = connection.recv()
    except EOFError:
        processes[connection].join()
        raise StoppedError(
            f"a reading process was ended from outside (status {processes[connection].exitcode}), perhaps for want of "
            "memory; run the same command again, with a smaller --num_proc"
        ) from None
    if kind == "read":
        yield value
    elif kind == "refused":
        raise UsageError(value)
    elif kind == "failed":
        raise RuntimeError(f"a reading process failed:\n{value}")
    elif (number := next(waiting, None)) is not None:
        connection.send(number)
    else:
        connection.send(None)
        processes.pop(connection).join()


def _work(connection: Connection, task: Task) -> None:
    """Do tasks as they are given; leave when there are none, or nobody is there to ask for more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one that started this ends it
    try:
        while (number := connection.recv()) is not None:
            for num_rows in task(number):
                connection.send(("read", num_rows))
            connection.send(("done", number))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except UsageError as error:
        connection.send(("refused", str(error)))
    except Exception:
        connection.send(("failed", traceback.format_exc()))
