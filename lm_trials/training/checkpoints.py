"""Checkpoints on disk: written beside, sealed with sums, renamed; found again and checked before they are loaded.

Trainer writes a checkpoint file by file under its final name.  Killed meanwhile, it leaves a newest folder on which
resuming fails or, where `optimizer.pt` is what is missing, goes on with a fresh optimizer and says nothing; flipped
bytes are loaded.  Here a folder has its name only when every file is on the disk, and `sums.json` in it
has the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_trials.console import UsageError, note
from lm_trials.files import damaged, file_sums, to_disk, write_json
from lm_trials.models.reference import checkpoints

SUMS = "sums.json"
FINISHED = "finished.json"
UNFINISHED, REMOVED = ".unfinished", ".removed"
STATE_FILE = "trainer_state.json"
OF_THE_END = ("config", "generation_config", "tokenizer", "special_tokens", STATE_FILE)


def run_identity(described: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of what a run is: its outcome and replicate fields without the code's revision.

    >>> one = run_identity({"outcome": {"learning_rate": 1.0, "code_revision": "a"}, "replicate": {"seed": 1}})
    >>> one == run_identity({"outcome": {"learning_rate": 1.0, "code_revision": "b"}, "replicate": {"seed": 1}})
    True
    >>> one == run_identity({"outcome": {"learning_rate": 1.0, "code_revision": "a"}, "replicate": {"seed": 2}})
    False
    """
    outcome = {key: value for key, value in described["outcome"].items() if key != "code_revision"}
    text = json.dumps([outcome, described["replicate"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unfinished_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of an update is written before it has its name."""
    return run / f".checkpoint-{step}{UNFINISHED}"


def seal(folder: Path, final: Path, facts: Mapping[str, Any]) -> None:
    """Put every file of `folder` on the disk with its sum, and give it its name: whole from then on."""
    write_json(folder / SUMS, {**facts, "files": file_sums(folder)}, synced=True)
    for path in sorted(folder.rglob("*")):
        to_disk(path)
    to_disk(folder)
    if final.exists():  # of an attempt that was killed after it and went on from an earlier one
        remove(final)
    folder.rename(final)
    to_disk(final.parent)


def remove(folder: Path) -> None:
    """Remove a checkpoint; killed meanwhile, nothing that looks like one stays."""
    away = folder.with_name(f".{folder.name}{REMOVED}")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away)


def remove_remains(run: Path) -> None:
    """Remove what a killed run left half-written or half-removed."""
    for kind in (UNFINISHED, REMOVED):
        for path in run.glob(f".*{kind}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def rotate(run: Path, limit: int | None, kept: Iterable[str | None]) -> None:
    """Remove the oldest checkpoints, by their updates, until `limit` are left; never the newest nor one of `kept`.

    Trainer goes by modification times, which a copy of the folder changes.
    """
    found = checkpoints(run)
    protected = {Path(path).name for path in kept if path} | {path.name for path in found[-1:]}
    surplus = len(found) - max(limit, len(protected)) if limit else 0
    for folder in [path for path in found if path.name not in protected][: max(surplus, 0)]:
        remove(folder)


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run; says of each newer incomplete one that it is skipped."""
    for path in sorted(run.glob(f".checkpoint-*{UNFINISHED}")):
        note(f"warning: {path} is incomplete, its run was stopped while it was written; it is skipped")
    for folder in reversed(checkpoints(run)):
        if (folder / SUMS).is_file():
            return folder
        note(f"warning: {folder} is incomplete, it has no {SUMS}; it is skipped")
    return None


def check_checkpoint(folder: Path, identity: str) -> dict[str, Any]:
    """Check every file of a checkpoint against its sum, and that it is of this very run; returns its facts.

    Raises:
        UsageError: naming the first file that is missing or changed, or for a checkpoint of another run, or one that
            holds the model alone.
    """
    facts = sealed_facts(folder)
    expected = facts.get("files")
    if not isinstance(expected, dict) or STATE_FILE not in expected:
        raise UsageError(f"{folder} is no whole checkpoint: its {SUMS} cannot be read; {_instead(folder)}")
    if found := damaged(folder, expected):
        raise UsageError(f"{folder} is damaged: {found[0]}; {_instead(folder)}")
    if facts.get("run") != identity:
        raise UsageError(
            f"{folder} is a checkpoint of another run (other seed, data or settings), put there since; "
            f"{_instead(folder)}"
        )
    if not facts.get("resumable", True):
        raise UsageError(
            f"{folder} holds the model alone (--save_only_model), not its optimizer; train anew with "
            "--overwrite_output_dir, or go on from its weights in a new run with --model_name_or_path"
        )
    return facts


def sealed_facts(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint's `sums.json` says; nothing where it cannot be read."""
    try:
        facts = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _instead(folder: Path) -> str:
    earlier = [path for path in checkpoints(folder.parent) if _step(path) < _step(folder) and (path / SUMS).is_file()]
    if earlier:
        return f"remove it and give the same command again, which goes on from {earlier[-1].name}"
    return "train anew with --overwrite_output_dir"


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def mark_finished(run: Path, step: int, identity: str) -> None:
    """Write that a run came to its end, with the sums of what loads as its final model and of its state."""
    files = file_sums(run, skip=[path.name for path in run.iterdir() if not _is_of_the_end(path)])
    write_json(run / FINISHED, {"run": identity, "global_step": step, "files": files}, synced=True)


def _is_of_the_end(path: Path) -> bool:
    """Whether a file is one that an evaluation afterwards leaves as it is."""
    return path.is_file() and (path.suffix in (".safetensors", ".bin") or path.name.startswith(OF_THE_END))


def is_finished(run: Path, identity: str) -> bool:
    """Say whether a run of this identity came to its end here, its final model unchanged since.

    Raises:
        UsageError: if a file of the final model was lost or changed.
    """
    try:
        facts = json.loads((run / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if facts.get("run") != identity:
        return False
    if found := damaged(run, facts["files"]):
        raise UsageError(
            f"{run} is finished and its model is damaged: {found[0]}; remove {run / FINISHED} and give the same "
            "command again, which goes on from the last checkpoint"
        )
    return True
