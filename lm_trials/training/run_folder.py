"""The folder of a run: empty, another run's, or this run's, which is then resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lm_trials.console import UsageError, note
from lm_trials.files import check_writable, locked, unlock
from lm_trials.models.reference import checkpoints, read_run
from lm_trials.run_fields import RUN_FILE
from lm_trials.training.checkpoints import (
    check_checkpoint,
    is_finished,
    newest_checkpoint,
    remove_remains,
    run_identity,
)
from lm_trials.training.manifest import check_resumable
from lm_trials.training.run_arguments import RunArguments

LOCK = ".lock"


@dataclass(frozen=True)
class Start:
    """How a run starts: from the beginning, from `checkpoint`, or not, because it is finished."""

    checkpoint: str | None = None
    finished: bool = False


def claim_output_dir(
    arguments: RunArguments,
    described: Mapping[str, Any],
    overwrite: bool,
    accept_other_code: bool = False,
    models: Iterable[str | None] = (),
) -> Start:
    """Return how the run starts, after checking that `--output_dir` is empty or holds this run.

    Every process may call it, because it changes nothing; see `prepare_output_dir`.

    Args:
        described: the content of the run's `run.json`.
        overwrite: `--overwrite_output_dir`.
        accept_other_code: resume although this project's code or a library has changed.
        models: what the run starts from, which must not be overwritten.

    Raises:
        UsageError: for a folder with another run (naming each difference), other files or a damaged checkpoint; a file
            of that name; `--resume_from_checkpoint` without a checkpoint.
    """
    folder = Path(arguments.output_dir)
    check_writable("--output_dir", folder)
    empty = not folder.is_dir() or all(path.name == LOCK for path in folder.iterdir())
    asked = str(arguments.resume_from_checkpoint or "").lower()
    if asked not in ("", "true", "false"):
        checkpoint = Path(str(arguments.resume_from_checkpoint))
        if found := checkpoints(checkpoint):
            raise UsageError(
                f"--resume_from_checkpoint {checkpoint} is a run; give one of its checkpoints, as {found[-1]}"
            )
        if not empty and checkpoint.parent.resolve() != folder.resolve():
            raise UsageError(
                f"--output_dir {folder} is not empty and {checkpoint} is elsewhere; give the checkpoint's own run "
                "folder or a new one"
            )
        if not checkpoint.is_dir():
            raise UsageError(f"--resume_from_checkpoint {checkpoint} is not a folder; give a checkpoint-N folder")
        check_checkpoint(checkpoint, _checked_identity(checkpoint, described, accept_other_code))
        return Start(str(checkpoint))
    nothing = f"--resume_from_checkpoint True: {folder} has no checkpoint; remove the flag"
    if empty and asked == "true":
        raise UsageError(nothing)
    if empty:
        return Start()
    if overwrite:
        if not (folder / RUN_FILE).exists() and not checkpoints(folder):
            raise UsageError(f"--overwrite_output_dir: {folder} is not a run and is not removed; give another folder")
        for model in filter(None, models):
            if folder.resolve() in ((start := Path(model).resolve()), *start.parents):
                raise UsageError(
                    f"--overwrite_output_dir: {folder} has {model}, which the run starts from; give another folder"
                )
        return Start()
    if read_run(folder) is None or asked == "false":
        raise UsageError(
            f"--output_dir {folder} is not empty{' and has a run' if (folder / RUN_FILE).exists() else ''}; give "
            "another, or replace it with --overwrite_output_dir"
        )
    identity = _checked_identity(folder, described, accept_other_code)
    if is_finished(folder, identity):
        return Start(finished=True)
    newest = newest_checkpoint(folder)
    if newest is None:
        if asked == "true":
            raise UsageError(nothing)
        note(f"note: {folder} has this run without a checkpoint; it starts from the beginning")
        return Start()
    check_checkpoint(newest, identity)
    note(f"note: resuming {folder} from {newest.name}")
    return Start(str(newest))


def _checked_identity(folder: Path, described: Mapping[str, Any], accept_other_code: bool) -> str:
    """Check that a folder has this run and return the identity it was started with, as in its checkpoints."""
    check_resumable(folder, described, accept_other_code)
    return run_identity(read_run(folder) or described)


def prepare_output_dir(arguments: RunArguments, start: Start) -> None:
    """Create the folder; remove partly written files of a resumed run, or everything for a new one.

    The folder is locked until `unlock_output_dir`, or until the process ends.

    Raises:
        UsageError: for a folder that another process has locked.
    """
    folder = Path(arguments.output_dir)
    unlock_output_dir()  # of an earlier training of this process
    try:
        _held.append(locked(folder / LOCK))
        if start.checkpoint:
            remove_remains(folder)
            return
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    except BlockingIOError as error:
        raise UsageError(
            f"--output_dir {folder}: {error} is training in it; wait for it or give another folder"
        ) from None


def unlock_output_dir() -> None:
    """Unlock the folder that this process has locked, if any."""
    while _held:
        unlock(_held.pop())


def _close_locks() -> None:
    while _held:
        _held.pop().close()


_held: list[IO[str]] = []
os.register_at_fork(after_in_child=_close_locks)  # workers that outlive a killed run must not keep its lock
