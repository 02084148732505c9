"""The folder of a run: free, another's, or this very run's, which then goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from lm_trials.console import UsageError, note
from lm_trials.models.reference import RUN_FILE, checkpoints, read_run
from lm_trials.training.checkpoints import (
    check_checkpoint,
    is_finished,
    newest_checkpoint,
    remove_remains,
    run_identity,
)
from lm_trials.training.manifest import check_resumable


@dataclass(frozen=True)
class Start:
    """How a run starts: from the beginning, from `checkpoint`, or not at all, because it is finished."""

    checkpoint: str | None = None
    finished: bool = False


def claim_output_dir(
    arguments: TrainingArguments, described: Mapping[str, Any], overwrite: bool, accept_other_code: bool = False
) -> Start:
    """Find out how the run starts, after checking that `--output_dir` is free or holds this very run.

    Nothing is changed, so that every process may call it; `prepare_output_dir` does the rest.

    Args:
        described: the run's `run.json`.
        overwrite: `--overwrite_output_dir`.
        accept_other_code: go on although this project's code or a library is another than at the start.

    Raises:
        UsageError: for a folder that holds another run (each difference is named), or something else, or a damaged
            checkpoint; a file in its place; nothing to resume from where that was asked for.
    """
    folder = Path(arguments.output_dir)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "is a file" if there.is_file() else "cannot be written to"
        raise UsageError(f"--output_dir {folder}: {there} {kind}; name another folder")
    asked = str(arguments.resume_from_checkpoint or "").lower()
    if asked not in ("", "true", "false"):
        checkpoint = Path(arguments.resume_from_checkpoint)
        if folder.is_dir() and any(folder.iterdir()) and not _same(checkpoint.parent, folder):
            raise UsageError(
                f"--output_dir {folder} is not empty and {checkpoint} lies elsewhere; name the checkpoint's own run "
                "folder or a new one"
            )
        return _named_checkpoint(checkpoint, described, accept_other_code)
    empty = not folder.is_dir() or not any(folder.iterdir())
    if empty and asked == "true":
        raise UsageError(f"--resume_from_checkpoint True: {folder} holds no checkpoint; leave the flag away")
    if empty:
        return Start()
    if overwrite:
        if not (folder / RUN_FILE).exists() and not checkpoints(folder):
            raise UsageError(f"--overwrite_output_dir: {folder} holds no run of ours, so it stays; name another folder")
        return Start()
    if read_run(folder) is None or asked == "false":
        raise UsageError(
            f"--output_dir {folder} is not empty{' and holds a run' if (folder / RUN_FILE).exists() else ''}; name "
            "another, or remove it with --overwrite_output_dir"
        )
    identity = _checked_identity(folder, described, accept_other_code)
    if is_finished(folder, identity):
        return Start(finished=True)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        if asked == "true":
            raise UsageError(f"--resume_from_checkpoint True: {folder} holds no checkpoint; leave the flag away")
        note(f"note: {folder} holds this run without a checkpoint; it starts from the beginning")
        return Start()
    check_checkpoint(checkpoint, identity)
    note(f"note: {folder} holds this run; it goes on from {checkpoint.name}")
    return Start(str(checkpoint))


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _named_checkpoint(checkpoint: Path, described: Mapping[str, Any], accept_other_code: bool) -> Start:
    if not checkpoint.is_dir():
        raise UsageError(f"--resume_from_checkpoint {checkpoint} is no checkpoint folder; name a checkpoint-N folder")
    check_checkpoint(checkpoint, _checked_identity(checkpoint, described, accept_other_code))
    return Start(str(checkpoint))


def _checked_identity(folder: Path, described: Mapping[str, Any], accept_other_code: bool) -> str:
    """Check that a folder holds this run and return the identity it was started with, which its checkpoints have."""
    check_resumable(folder, described, accept_other_code)
    return run_identity(read_run(folder) or described)


def prepare_output_dir(arguments: TrainingArguments, start: Start) -> None:
    """Make the folder ready: of a resumed run what was half-written goes, for a new one everything.

    Raises:
        UsageError: where it cannot be made.
    """
    folder = Path(arguments.output_dir)
    try:
        if start.checkpoint and folder.is_dir():
            remove_remains(folder)
            return
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be made ({error.strerror}); name another folder") from None
