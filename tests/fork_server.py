"""A process that has imported what a training needs and forks one on request, so that each starts in a blink.

Not `multiprocessing`'s own fork server: a process has one of those, and the library uses it.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import time
import traceback
from pathlib import Path


class ForkServer:
    """Starts functions of `killed_runs` in processes of their own, and waits for them."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert json.loads(self.process.stdout.readline()) == "ready"

    def _ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, function: str, arguments: list, log: Path, environment: dict[str, str]) -> int:
        """Fork a process that calls `killed_runs.<function>(*arguments)`; returns its number."""
        return self._ask(function=function, arguments=arguments, log=str(log), environment=environment)

    def exit_code(self, number: int, seconds: float) -> int | None:
        """Return the exit code, negative for a signal; None if it still runs after so many seconds."""
        return self._ask(wait=number, seconds=seconds)


@functools.cache
def fork_server() -> ForkServer:
    """Return the one of this session, started at the first call (it takes some ten seconds)."""
    return ForkServer()


def _run(request: dict) -> None:
    """Be the process that was asked for; never returns."""
    code = 1
    try:
        with open(request["log"], "a") as log, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(request["environment"])
        import killed_runs

        getattr(killed_runs, request["function"])(*request["arguments"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(number: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.005)


def serve() -> None:
    """Import, and answer requests until there are no more."""
    import killed_runs  # noqa: F401
    from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

    import lm_trials.training

    # The scripts import these when they are called: 6 seconds for each process that did so after its fork.
    for module in pkgutil.iter_modules(lm_trials.training.__path__, "lm_trials.training."):
        importlib.import_module(module.name)
    with contextlib.redirect_stdout(sys.stderr):  # it logs to stdout, which is for answers here
        importlib.import_module("deepspeed")  # as accelerate does at its first `unwrap_model`: 1.7 s for each process
    gc.collect()
    gc.freeze()  # Trainer collects garbage at its start, a second of a run of two: these imports are none
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _exit_code(request["wait"], request["seconds"])
        else:
            answer = os.fork()
            if not answer:
                _run(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
