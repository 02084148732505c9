"""Flags of several probes: which models and which texts they read; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from lm_trials.console import UsageError
from lm_trials.files import check_writable
from lm_trials.flags import SEED, option
from lm_trials.shared_flags import DataReading, Device, Quantization

MODEL = "model_name_or_path"  # the flag of the words that stand before any flag of a probe


@dataclass
class SubjectArguments(Quantization, Device):
    """Which models the probe reads, and where the results go."""

    flag_group: ClassVar[str] = "model"

    model_name_or_path: list[str] = option(
        [],
        aliases=["--model_dir"],
        required="RUN_OR_CHECKPOINT",
        help="Run, checkpoint, model folder, LoRA adapter or Hub name (NAME@revision); several are compared.",
    )
    tokenizer_name: str | None = option(None, help="Tokenizer to use instead of the model's own.")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="Data type of the weights.")
    output_dir: str | None = option(
        None, output=True, help="Folder of the results. Default: <first local model>/probes/<probe>."
    )
    seed: int = option(0, **SEED, help="Seed of intervals, random draws and controls.")


@dataclass
class TextArguments(DataReading):
    """Which texts the models read."""

    flag_group: ClassVar[str] = "data"

    dataset_name: str = option(
        "",
        help="Prepared corpus or protocol set, file, folder or Hub data set. Default: the data of the first model's "
        "run.",
    )
    dataset_split: str | None = option(
        None, help="Split. Default: validation of a prepared corpus or Hub data set, all of a path."
    )
    max_eval_samples: int | None = option(None, least=1, help="Number of texts, from the start. Default: all.")
    block_size: int | None = option(
        None, least=2, help="Longest text in tokens; longer ones are truncated. Default: the model's positions."
    )
    per_device_eval_batch_size: int = option(16, least=1, help="Batch size in texts; does not change results.")
    # No flag: `read_stories` sets it, so that each result identifies its texts by content, not by their path.
    texts_sha256: str | None = field(default=None, init=False)


def check_subjects(args: SubjectArguments, probe: str, least: int = 1, most: int | None = None) -> None:
    """Check the number of models and the output folder before anything is loaded.

    Raises:
        UsageError: for too few or too many models, one model twice, or a folder that cannot be written to.

    >>> check_subjects(SubjectArguments(["runs/a"]), "weights", least=2)
    Traceback (most recent call last):
    lm_trials.console.UsageError: --model_name_or_path runs/a: this probe takes 2 or more models, not 1
    """
    names = args.model_name_or_path
    if len(names) < least or (most is not None and len(names) > most):
        wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        raise UsageError(f"--model_name_or_path {' '.join(names)}: this probe takes {wanted} models, not {len(names)}")
    places = [str(path.resolve()) if (path := Path(name)).is_dir() else name for name in names]
    if twice := [name for name, place in zip(names, places, strict=True) if places.count(place) > 1]:
        raise UsageError(f"--model_name_or_path {' '.join(twice[:2])}: the same model twice; name each once")
    check_writable("--output_dir", probe_folder(args, probe))


def probe_folder(args: SubjectArguments, probe: str) -> Path:
    """Return the folder of a probe's results: `--output_dir`, else inside the first local model, else under `out`.

    >>> probe_folder(SubjectArguments(["somebody/model"]), "lens").as_posix()
    'out/probes/lens'
    """
    if args.output_dir:
        return Path(args.output_dir)
    local = next((path for name in args.model_name_or_path if (path := Path(name)).is_dir()), None)
    return (local or Path("out")) / "probes" / probe


def short_names(names: Sequence[str]) -> list[str]:
    """Return names for tables and figures: the last part of each path, and as many before it as make it unique.

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
