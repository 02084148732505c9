"""Runs and arms, read from run folders: the fields that determined each run, its steps, its model's size."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from safetensors import SafetensorError, safe_open

from lm_trials.console import UsageError, did_you_mean
from lm_trials.files import SEALS, flat, read_object, sealed_sums, weights_digest
from lm_trials.run_fields import BOOKKEEPING, RUN_FILE, lineage_of, names_in, run_file

STATE_FILE = "trainer_state.json"
ADAPTER = "initial_model.adapter"


@dataclass(frozen=True)
class Run:
    """One training, read from its folder.

    Attributes:
        name: the folder, as the user named it.
        outcome: the fields that decide the result, by dotted name; package versions as `versions.<package>`.
        replicate: the seeds; `initial` are those of the run that it started from, if that folder is still there.
        logistics: the fields that change no result, and the device.
        steps: completed updates; None without a `trainer_state.json`.
        parameters: stored parameters; None without model files.
        root: the root seed: the `seed` of the first run of its lineage; of a model without a `run.json`, its identity.
            The unit of replication: runs with other data orders or fine-tuning seeds are no new sample of it.
    """

    folder: Path
    name: str
    outcome: Mapping[str, Any]
    replicate: Mapping[str, Any]
    logistics: Mapping[str, Any]
    steps: int | None
    parameters: int | None
    root: int | str | None = None

    @property
    def seeds(self) -> tuple[Any, ...]:
        """The seed of weights and dropout, that of the data order, and the seeds of the run it started from."""
        return tuple(self.replicate.get(name) for name in ("seed", "data_seed", "initial"))

    @property
    def num_tokens(self) -> Any:
        """Training tokens; for fine-tuning on whole examples they depend on the order and are in `logistics`."""
        return self.outcome.get("num_tokens", self.logistics.get("num_tokens"))

    @property
    def identity(self) -> dict[str, Any]:
        """The outcome without fields that only name something that another field identifies."""
        dropped = names_in(self.outcome) | BOOKKEEPING
        return {key: value for key, value in self.outcome.items() if key not in dropped and value is not None}

    @property
    def identity_text(self) -> str:
        """The identity as a text, equal for runs of one arm."""
        return json.dumps(self.identity, sort_keys=True)

    @property
    def finished(self) -> bool:
        """Whether all updates are completed."""
        return self.steps is not None and self.steps == self.outcome.get("max_steps")

    @property
    def tuned(self) -> bool:
        """Whether it started from another model."""
        return self.outcome.get("initial_model.name_or_path") is not None

    @property
    def training_seconds(self) -> float:
        """How long it trained, as far as its log knows: a resumed training logs its last part."""
        return max(
            (float(row["train_runtime"]) for row in log_history(self.folder) if "train_runtime" in row), default=0.0
        )

    def logged(self, metric: str) -> list[tuple[int, float]]:
        """Return the (update, value) pairs of a metric that the training logged, in the order of updates.

        Raises:
            UsageError: where it was not logged.
        """
        log = log_history(self.folder)
        found = {int(row["step"]): float(row[metric]) for row in log if metric in row}
        if not found:
            known = {name for row in log for name in row if name.startswith("eval_") and name.endswith("_loss")}
            raise UsageError(f"{self.name} logged no {metric}; {did_you_mean(metric, known)} (stage's eval_datasets)")
        return sorted(found.items())


@dataclass(frozen=True)
class Arm:
    """The runs that differ in seeds alone; `label` is a letter."""

    label: str
    runs: tuple[Run, ...]

    @property
    def outcome(self) -> Mapping[str, Any]:
        """The outcome fields, equal for all its runs except for names."""
        return self.runs[0].outcome

    @property
    def roots(self) -> tuple[int | str | None, ...]:
        """The root seeds of its runs, each once."""
        return tuple(dict.fromkeys(run.root for run in self.runs))

    @property
    def name(self) -> str:
        """The letter, the first run and the number of further runs.

        >>> run = Run(Path("runs/a-s1"), "runs/a-s1", {}, {}, {}, None, None)
        >>> Arm("A", (run, run)).name
        'A  runs/a-s1 + 1'
        """
        return f"{self.label}  {self.runs[0].name}" + (f" + {len(self.runs) - 1}" if len(self.runs) > 1 else "")


def log_history(folder: Path) -> list[dict[str, Any]]:
    """Return what a training logged, from its `trainer_state.json`; empty without one."""
    file = folder / STATE_FILE
    return list(read_object(file).get("log_history", [])) if file.is_file() else []


def read_runs(names: Sequence[str]) -> list[Run]:
    """Read run folders.

    Raises:
        UsageError: for fewer than two, the same folder twice, or a folder without a run.
    """
    if len(names) < 2:
        raise UsageError(f"{names[0] if names else 'no run'}: a comparison needs at least two run folders; name more")
    folders = [Path(name).resolve() for name in names]
    for place, name in enumerate(names):
        if folders[place] in folders[:place]:
            raise UsageError(f"{name} is named twice; name each run once")
    return [read_run(name) for name in names]


def read_run(name: str, quick: bool = False) -> Run:
    """Read one run folder.

    Args:
        quick: read no weights and no log, for a list of many runs: the weights of the run that it started from are
            known by the checksums that training wrote, and the steps by the beginning of `trainer_state.json`.

    Raises:
        UsageError: for a folder without a `run.json` of this project, or with one that cannot be read.
    """
    folder = Path(name)
    if not (folder / RUN_FILE).is_file():
        above = f"; {folder.parent} has one" if (folder.parent / RUN_FILE).is_file() else ""
        raise UsageError(f"{name} holds no {RUN_FILE}{above}; name a run's folder (lm-trials train --output_dir)")
    described = read_object(folder / RUN_FILE)
    if not all(isinstance(described.get(role), dict) for role in ("outcome", "replicate")):
        raise UsageError(f"{name}/{RUN_FILE} has no outcome and replicate fields; name a run of this project")
    outcome, replicate = flat(described["outcome"]), flat(described["replicate"])
    logistics = flat(described.get("logistics", {}))
    if (found := _initial_run(described["outcome"].get("initial_model"), folder, quick)) is not None:
        base, step = found
        # Their difference is then one of seeds, as in the deletion study: three pretrainings, each deleted and
        # recovered.
        # Replicates of a fine-tuning may start from replicates of one pretraining: then they share its recipe.
        # An adapter that the run started with is not part of that recipe and stays.
        of_base = {key for key in outcome if key.startswith("initial_model.") and key != ADAPTER}
        outcome = {key: value for key, value in outcome.items() if key not in of_base}
        outcome["initial_model.name_or_path"] = base.name
        outcome["initial_model.recipe"] = hashlib.sha256((base.identity_text + step).encode()).hexdigest()[:16]
        replicate["initial"] = base.seeds
    versions = {f"versions.{package}": version for package, version in described.get("versions", {}).items()}
    device = described.get("environment", {}).get("device")
    state = folder / STATE_FILE
    return Run(
        folder,
        name,
        outcome | versions,
        replicate,
        logistics | {"device": device},
        _steps(state, quick) if state.is_file() else None,
        count_parameters(folder),
        _root(described),
    )


def _root(described: Mapping[str, Any]) -> int | str | None:
    """Return the root seed of a `run.json`.

    >>> base = {"run_name": "base", "replicate": {"seed": 3}}
    >>> _root({"lineage": [base], "replicate": {"seed": 0}}), _root({"lineage": [], "replicate": {"seed": 0}})
    (3, 0)
    """
    first = [described, *lineage_of(described)][-1]
    if "replicate" in first:
        return first["replicate"].get("seed")
    return first.get("weights_sha256") or first.get("commit") or first.get("model")


def _steps(state: Path, quick: bool) -> int | None:
    # Its keys are sorted, so the number of steps stands before the log.
    with state.open("rb") as file:
        found = re.search(rb'"global_step": (\d+)', file.read(1024)) if quick else None
    return int(found[1]) if found else read_object(state).get("global_step")


def _initial_run(initial: Mapping[str, Any] | None, folder: Path, quick: bool) -> tuple[Run, str] | None:
    """Return the run that another started from, if its folder still has these weights.

    The folder is where `run.json` says, or beside that of the other run, where both were moved, or are named from
    another working directory.

    Returns:
        The run, and the name of its checkpoint, since another checkpoint is another recipe; "" for its last weights.
    """
    if not initial or "run" not in initial:
        return None
    start, digest = Path(initial["name_or_path"]), _sealed_digest if quick else weights_digest
    for place in (start, folder.parent / start.name, folder.parent / start.parent.name / start.name):
        file = run_file(place)
        if file and digest(place) == initial.get("weights_sha256"):
            return read_run(str(file.parent), quick), "" if file.parent == place else place.name
    return None


def _sealed_digest(folder: Path) -> str:
    """Return `weights_digest` from the checksums of a run or checkpoint, without reading the weights."""
    digest = hashlib.sha256()
    for seal in (folder / name for name in SEALS if (folder / name).is_file()):
        for name, entry in sorted(sealed_sums(seal).items()):
            if fnmatch(name, "*.safetensors") and "/" not in name:
                digest.update(bytes.fromhex(entry["sha256"]))
    return digest.hexdigest()


def count_parameters(folder: Path) -> int | None:
    """Count the parameters in a folder's safetensors headers, an adapter's without its base; None without weights.

    Tied weights are stored, and counted, once.

    Raises:
        UsageError: for a file that is not a safetensors file.
    """
    index = folder / "model.safetensors.index.json"
    alone = "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "model.safetensors"
    names = sorted(set(read_object(index)["weight_map"].values())) if index.is_file() else [alone]
    total = 0
    for file in (folder / name for name in names):
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="numpy") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file} cannot be read as safetensors ({error}); restore it") from None
    return total


def group_arms(runs: Sequence[Run], baseline: str | None = None) -> list[Arm]:
    """Group the runs into arms, in the order named; `baseline`'s arm, by default the first, is the reference.

    Raises:
        UsageError: for two runs that are equal including their seeds, or a baseline that is none of the runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(run.identity_text, [])
        for other in group:
            if other.seeds == run.seeds:
                raise UsageError(
                    f"{run.name} repeats {other.name} (seed {run.seeds[0]}, data_seed {run.seeds[1]}, all else equal), "
                    "so it is not a replicate; remove one of them or train with another seed"
                )
        group.append(run)
    ordered = list(groups.values())
    if baseline is not None:
        place = Path(baseline).resolve()
        ordered.sort(key=lambda group: all(run.folder.resolve() != place for run in group))
        if all(run.folder.resolve() != place for run in ordered[0]):
            raise UsageError(
                f"--baseline {baseline} is none of the runs; name one of {', '.join(r.name for r in runs)}"
            )
    return [Arm(arm_label(number), tuple(group)) for number, group in enumerate(ordered)]


def arm_label(number: int) -> str:
    """Return the name of an arm, counted from 0.

    >>> arm_label(0), arm_label(27)
    ('A', 'B1')
    """
    round_, place = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(round_) if round_ else "")
