"""The flags that several probes share: which models are read, and which texts; no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lm_trials.console import UsageError
from lm_trials.flags import option
from lm_trials.shared_flags import DataReading, Device, Quantization


@dataclass
class SubjectArguments(Quantization, Device):
    """Which models are read, and where the results go."""

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model_dir"],
        required="RUN_OR_CHECKPOINT",
        help="Run, checkpoint, model folder, LoRA adapter or Hub name (NAME@revision); several are set side by side.",
    )
    tokenizer_name: str | None = option(None, help="Another tokenizer than the one beside the model.")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Type of the weights.")
    output_dir: str | None = option(None, help="Folder of the results. Default: <first local model>/probes/<probe>.")
    seed: int = option(0, least=0, help="Seed of the intervals, the draws and the controls.")


@dataclass
class TextArguments(DataReading):
    """Which texts the models read."""

    dataset_name: str = option(
        "generated", help="A prepared corpus or set, else a file or folder, else a Hub data set."
    )
    dataset_split: str | None = option(
        None, help="Split. Default: validation of a prepared corpus or Hub data set; a path is read whole."
    )
    max_eval_samples: int | None = option(None, least=1, help="Texts read, from the start; default all.")
    block_size: int | None = option(
        None, least=2, help="Longest text, in tokens; the rest is cut off. Default: the positions."
    )
    per_device_eval_batch_size: int = option(16, least=1, help="Texts of a batch; changes speed and memory, no result.")
    # No flag: set when the texts are read, so that each result tells which they were, whatever folder they lay in.
    texts_sha256: str | None = field(default=None, init=False)


def check_subjects(args: SubjectArguments, probe: str, least: int = 1, most: int | None = None) -> None:
    """Refuse what means nothing, before anything is loaded.

    Raises:
        UsageError: for too few or too many models, one model twice, or a place that cannot be written to.

    >>> check_subjects(SubjectArguments(["runs/a"]), "weights", least=2)
    Traceback (most recent call last):
    lm_trials.console.UsageError: --model_name_or_path names 1 models (runs/a); this probe takes 2 or more
    """
    names = args.model_name_or_path
    if len(names) < least or (most is not None and len(names) > most):
        wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        raise UsageError(
            f"--model_name_or_path names {len(names)} models ({' '.join(names)}); this probe takes {wanted}"
        )
    places = [str(path.resolve()) if (path := Path(name).expanduser()).is_dir() else name for name in names]
    if twice := [name for name, place in zip(names, places, strict=True) if places.count(place) > 1]:
        raise UsageError(f"--model_name_or_path {' '.join(twice[:2])}: one model twice; name each once")
    check_place(probe_folder(args, probe))


def probe_folder(args: SubjectArguments, probe: str) -> Path:
    """Return where a probe's results go: `--output_dir`, else beside the first model that is local, else under `out`.

    >>> probe_folder(SubjectArguments(["somebody/model"]), "lens").as_posix()
    'out/probes/lens'
    """
    if args.output_dir:
        return Path(args.output_dir)
    local = next((path for name in args.model_name_or_path if (path := Path(name).expanduser()).is_dir()), None)
    return (local or Path("out")) / "probes" / probe


def check_place(folder: Path) -> None:
    """Refuse a place that results cannot be written to, before hours are spent on them.

    Raises:
        UsageError: naming it.
    """
    standing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise UsageError(f"{folder} cannot be written to ({standing} is in the way); give another --output_dir")


def short_names(names: Sequence[str]) -> list[str]:
    """Return names for tables and figures: the last part of each path, with as many before it as tell them apart.

    >>> short_names(["runs/base", "runs/deleted/checkpoint-10", "runs/recovered/checkpoint-10", "owner/model@step1"])
    ['base', 'deleted/checkpoint-10', 'recovered/checkpoint-10', 'model@step1']
    """
    parts = [name.rstrip("/").split("/") for name in names]
    shown = [1] * len(parts)
    while True:
        found = ["/".join(part[-count:]) for part, count in zip(parts, shown, strict=True)]
        clashing = [i for i, name in enumerate(found) if found.count(name) > 1 and shown[i] < len(parts[i])]
        if not clashing:
            return found
        for place in clashing:
            shown[place] += 1
