"""Workers: numbered tasks in several processes, which end when the process that started them ends in any way.

`multiprocessing.Pool` waits for ever for a worker that the system has killed, so there is a pipe to each process.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from lm_trials.console import UsageError

Task = Callable[[int], Iterable[int]]
"""Does the work of one number and yields the number of rows read since its last yield."""


class StoppedError(UsageError):
    """The work was ended from outside, by a full disk or the system: the same command resumes it."""


def run_tasks(task: Task, numbers: Sequence[int], num_proc: int) -> Iterator[int]:
    """Run `task` for each number, in `num_proc` processes, and yield the numbers of rows read by any of them.

    Args:
        task: for more than one process a function that can be pickled.

    Raises:
        UsageError: as raised by a task.
        StoppedError: for a process that the system ended.
    """
    # One process or one piece: there is nothing to share, and no second interpreter to start.
    if num_proc == 1 or len(numbers) < 2:
        for number in numbers:
            yield from task(number)
        return
    # A fork of this process would copy locks that threads of tqdm, pyarrow or tokenizers hold.
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
                assert isinstance(connection, Connection)  # `wait` takes sockets and handles too
                yield from _answer(connection, processes, waiting)
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _answer(connection: Connection, processes: dict[Connection, Any], waiting: Iterator[int]) -> Iterator[int]:
    """Take one message of a process, and give it the next number when it has finished one."""
    try:
        kind, value = connection.recv()
    except EOFError:
        processes[connection].join()
        raise StoppedError(
            f"a worker process was ended from outside (status {processes[connection].exitcode}), perhaps for lack of "
            "memory; run the same command again with fewer processes"
        ) from None
    if kind == "read":
        yield value
    elif kind == "refused":
        raise UsageError(value)
    elif kind == "failed":
        raise RuntimeError(f"a worker process failed:\n{value}")
    elif (number := next(waiting, None)) is not None:
        connection.send(number)
    else:
        connection.send(None)
        processes.pop(connection).join()


def _work(connection: Connection, task: Task) -> None:
    """Do tasks as they are given; return when there are none, or when the starting process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the starting one ends this one
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
