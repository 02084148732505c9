"""Atomic checkpoints with checksums.

Trainer writes a checkpoint file by file under its final name.  After a kill, resuming from that folder fails, or
silently starts a fresh optimizer where `optimizer.pt` is missing; flipped bytes are loaded.  Here a folder is renamed
to `checkpoint-N` when every file is on the disk, with the SHA-256 of each in `sums.json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, note
from lm_trials.files import SEALS, damaged, file_sums, sealed_sums, to_disk, write_json
from lm_trials.models.reference import checkpoints

FINISHED, SUMS = SEALS
UNFINISHED, REMOVED = ".unfinished", ".removed"
STATE_FILE = "trainer_state.json"
OF_THE_END = ("config", "generation_config", "tokenizer", "special_tokens", STATE_FILE)


def run_identity(described: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits over the outcome and replicate fields, without the code's revision.

    >>> one = run_identity({"outcome": {"learning_rate": 1.0, "code_revision": "a"}, "replicate": {"seed": 1}})
    >>> one == run_identity({"outcome": {"learning_rate": 1.0, "code_revision": "b"}, "replicate": {"seed": 1}})
    True
    >>> one == run_identity({"outcome": {"learning_rate": 1.0, "code_revision": "a"}, "replicate": {"seed": 2}})
    False
    """
    outcome = {key: value for key, value in described["outcome"].items() if key != "code_revision"}
    # Without the code's revision: a run resumed with --accept_other_code keeps its checkpoints.
    text = json.dumps([outcome, described["replicate"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unfinished_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of an update is written before it is renamed."""
    return run / f".checkpoint-{step}{UNFINISHED}"


def seal(folder: Path, final: Path, facts: Mapping[str, Any]) -> None:
    """Write checksums and `facts`, sync every file of `folder` to the disk, and rename it to `final`."""
    write_json(folder / SUMS, {**facts, "files": file_sums(folder)}, synced=True)
    # Files first, then the folder, then its parent: after a power cut a rename may survive files that were not
    # synced.
    for path in sorted(folder.rglob("*")):
        to_disk(path)
    to_disk(folder)
    if final.exists():  # from an attempt that was killed later and resumed from an earlier checkpoint
        remove(final)
    folder.rename(final)
    to_disk(final.parent)


def remove(folder: Path) -> None:
    """Remove a checkpoint, renamed first so that a kill leaves no partial checkpoint."""
    away = folder.with_name(f".{folder.name}{REMOVED}")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away)


def remove_remains(run: Path) -> None:
    """Remove the partly written or partly removed files and folders of a killed run."""
    for path in [*run.glob(f".*{UNFINISHED}"), *run.glob(f".*{REMOVED}")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def rotate(run: Path, limit: int | None, kept: Iterable[str | None]) -> None:
    """Remove the checkpoints of the earliest updates until `limit` are left, except the newest and those in `kept`.

    Trainer sorts by modification time, which copying a folder changes.
    """
    found = checkpoints(run)
    protected = {Path(path).name for path in kept if path} | {path.name for path in found[-1:]}
    surplus = len(found) - max(limit, len(protected)) if limit else 0
    for folder in [path for path in found if path.name not in protected][: max(surplus, 0)]:
        remove(folder)


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, with a warning about each newer incomplete one."""
    for path in sorted(run.glob(f".checkpoint-*{UNFINISHED}")):
        note(f"warning: {path} is incomplete (interrupted while it was written) and is skipped")
    for folder in reversed(checkpoints(run)):
        if (folder / SUMS).is_file():
            return folder
        note(f"warning: {folder} is incomplete (it has no {SUMS}) and is skipped")
    return None


def check_checkpoint(folder: Path, identity: str) -> dict[str, Any]:
    """Check a checkpoint's files against their checksums and its run against `identity`; returns its facts.

    Raises:
        UsageError: naming the first file that is missing or changed; for a checkpoint of another run, or of the model
            alone.
    """
    facts = sealed_facts(folder)
    if not isinstance(facts.get("files"), dict) or STATE_FILE not in facts["files"]:
        raise UsageError(f"{folder} is not a complete checkpoint, its {SUMS} cannot be read; {_instead(folder)}")
    if found := damaged(folder, sealed_sums(folder / SUMS)):
        raise UsageError(f"{folder} is damaged: {found[0]}; {_instead(folder)}")
    if facts.get("run") != identity:
        raise UsageError(f"{folder} is a checkpoint of another run (other seed, data or settings); {_instead(folder)}")
    if not facts.get("resumable", True):
        raise UsageError(
            f"{folder} has no optimizer (--save_only_model); train again with --overwrite_output_dir, or start a new "
            "run from its weights with --model_name_or_path"
        )
    return facts


def sealed_facts(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `sums.json`; empty where it cannot be read."""
    return _facts(folder / SUMS)


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _instead(folder: Path) -> str:
    others = checkpoints(folder.parent)  # in the order of their steps
    earlier = [path for path in others[: others.index(folder) if folder in others else 0] if (path / SUMS).is_file()]
    if earlier:
        return f"remove it and run the same command again, which resumes from {earlier[-1].name}"
    return "train again with --overwrite_output_dir"


def mark_finished(run: Path, step: int, identity: str) -> None:
    """Write `finished.json` with the checksums of the final model and Trainer's state."""
    others = [  # files that a later evaluation may change
        path.name
        for path in run.iterdir()
        if not (path.is_file() and (path.suffix in (".safetensors", ".bin") or path.name.startswith(OF_THE_END)))
    ]
    facts = {"run": identity, "global_step": step, "files": file_sums(run, skip=others)}
    write_json(run / FINISHED, facts, synced=True)


def is_finished(run: Path, identity: str) -> bool:
    """Return whether a run of this identity is finished here, with its final model unchanged.

    Raises:
        UsageError: if a file of the final model is missing or changed.
    """
    facts = _facts(run / FINISHED)
    if facts.get("run") != identity:
        return False
    if found := damaged(run, sealed_sums(run / FINISHED)):
        raise UsageError(
            f"{run} is finished and its model is damaged: {found[0]}; remove {run / FINISHED} and run the same command "
            "again, which resumes from the last checkpoint"
        )
    return True
