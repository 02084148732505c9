"""Tables of the dashboard: what a folder of runs contains, read from its files without a model.

Shape suffixes: L = layers, T = tokens of a story, N = tokens of all stories, D = width, V = vocabulary.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_trials.console import UsageError
from lm_trials.estimates import mean_over_seeds
from lm_trials.files import read_object, readable
from lm_trials.reporting.figure_style import Row
from lm_trials.run_data import own_data
from lm_trials.run_fields import RUN_FILE
from lm_trials.snapshots import RunSnapshots, Snapshot, open_snapshots
from lm_trials.trials.registration import REGISTRATION, read_registration
from lm_trials.trials.runs import STATE_FILE, Run, arm_label, log_history, read_run

if TYPE_CHECKING:  # torch takes seconds to import
    from lm_trials.training.data_order import DataOrder

SATURATION = "probes/saturation"
DEPTH = 3  # of runs below the folder; those of a trial are in runs/<trial>/<run>
POINTS = 400  # of a curve; more cannot be told apart on a screen
# What Trainer logs once, and what is no result.
NO_CURVE = re.compile(
    r"epoch|step|total_flos|train_(loss|runtime|\w+_per_second)|eval_.*(runtime|samples|tokens|per_second|without)"
)
UNITS = {
    "loss": "nats per token",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "tokens_per_second": "tokens per second",
    "tokens_seen": "tokens",
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
}


@dataclass(frozen=True)
class Listing:
    """What a folder contains at one time.

    Attributes:
        runs: by name, the path below the folder.
        arms: names of runs by arm; an arm is called by a letter and what the names of its runs share.
        faults: a line for each folder that cannot be read.
        state: another number after a run has logged something, came or went.
    """

    runs: Mapping[str, Run]
    arms: Mapping[str, Sequence[str]]
    faults: Sequence[str]
    state: int

    def arm_of(self, name: str) -> str:
        """Return the arm of a run."""
        return next(arm for arm, names in self.arms.items() if name in names)

    def first_shown(self, most: int = 12) -> list[str]:
        """Return the runs of the newest arms: at least one arm, and together at most `most` runs if there are more."""
        times = {arm: max(_changed(self.runs[name].folder) for name in names) for arm, names in self.arms.items()}
        shown: list[str] = []
        for arm in sorted(self.arms, key=lambda arm: -times[arm]):
            if shown and len(shown) + len(self.arms[arm]) > most:
                break
            shown += self.arms[arm]
        return [name for name in self.runs if name in shown]


class RunsFolder:
    """A folder of runs, such as `runs/`, and the folder of reported trials.

    Raises:
        UsageError: for a folder without runs.
    """

    def __init__(self, folder: str | Path, results: str | Path = "results") -> None:
        self.folder, self.results = Path(folder), Path(results)
        self._read: dict[Path, tuple[list[int], Run | str]] = {}
        if not self.folder.is_dir():
            raise UsageError(f"{folder} is not a folder; give the folder of your runs, such as runs/")
        if next(_run_folders(self.folder), None) is None:
            raise UsageError(f"{folder} has no runs (no {RUN_FILE}); train one with lm-trials train, or name another")

    def list(self) -> Listing:
        """Return what the folder contains now; a run is read again when its files have changed."""
        runs, faults, state = {}, [], []
        for folder in _run_folders(self.folder):
            name = folder.resolve().name if folder == self.folder else folder.relative_to(self.folder).as_posix()
            times = [file.stat().st_mtime_ns for file in (folder / RUN_FILE, folder / STATE_FILE) if file.is_file()]
            if folder not in self._read or self._read[folder][0] != times:
                self._read[folder] = times, _run_or_fault(folder)
            read = self._read[folder][1]
            if isinstance(read, str):
                faults.append(f"{name} is not shown: {read}")
            else:
                runs[name] = read
            logged = 0 if len(times) > 1 else sum(file.stat().st_size for file in _events(folder))
            state.append((name, *times, logged))
        arms: dict[str, list[str]] = {}
        for name, run in runs.items():
            arms.setdefault(run.identity_text, []).append(name)
        named = {f"{arm_label(number)}  {shared_name(names)}": names for number, names in enumerate(arms.values())}
        return Listing(runs, named, faults, hash(tuple(state)))


def _run_folders(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    if (folder / RUN_FILE).is_file():
        yield folder
    elif depth:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _run_folders(below, depth - 1)


def _run_or_fault(folder: Path) -> Run | str:
    try:
        return read_run(str(folder), quick=True)
    except (UsageError, AttributeError, LookupError, TypeError) as error:  # JSON with other fields than a run's
        return str(error) if isinstance(error, UsageError) else f"{RUN_FILE} has unexpected fields ({error})"


def _changed(folder: Path) -> float:
    return (folder / RUN_FILE).stat().st_mtime


def _events(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*/events.out.tfevents.*"))


def shared_name(names: Sequence[str]) -> str:
    """Return one name for several.

    >>> shared_name(["never-s0", "never-s1"]), shared_name(["demo"])
    ('never-s*', 'demo')
    """
    return names[0] if len(names) == 1 else commonprefix(names) + "*"  # noqa: RUF071  # of letters


def log_of(run: Run) -> list[dict[str, Any]]:
    """Return what a training has logged: from `trainer_state.json`, or while it trains from TensorBoard's events.

    Raises:
        UsageError: for a damaged file.
    """
    if run.steps is not None:
        return _history(run.folder, (run.folder / STATE_FILE).stat().st_mtime_ns)
    return [row for file in _events(run.folder) for row in _logged(file, file.stat().st_size)]


@lru_cache(maxsize=32)
def _history(folder: Path, time: int) -> list[dict[str, Any]]:
    return log_history(folder)


@lru_cache(maxsize=32)
def _logged(file: Path, size: int) -> list[dict[str, Any]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    rows: dict[int, dict[str, Any]] = {}
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tensor.float_val:
                name = value.tag.removeprefix("train/").replace("eval/", "eval_", 1)
                rows.setdefault(event.step, {"step": event.step})[name] = value.tensor.float_val[0]
    return list(rows.values())


def steps_of(run: Run) -> int:
    """Return the updates that a run has completed, as far as its log knows."""
    return run.steps if run.steps is not None else max((row["step"] for row in log_of(run)), default=0)


def metrics_of(logs: Iterable[Sequence[Row]]) -> list[str]:
    """Return the metrics that have curves: the losses first.

    >>> metrics_of([[{"step": 1, "loss": 2.0, "epoch": 0.1}, {"step": 1, "eval_loss": 3.0, "eval_runtime": 1.0}]])
    ['eval_loss', 'loss']
    """
    names = {name for log in logs for row in log for name, value in row.items() if isinstance(value, (int, float))}
    names = {name for name in names if not NO_CURVE.fullmatch(name) and not name.endswith(("_lower", "_upper"))}
    first = ("eval_loss", "loss")
    return sorted(names, key=lambda name: (name not in first, not name.endswith("loss"), name))


def unit_of(metric: str) -> str:
    """Return the unit of a logged metric.

    >>> unit_of("eval_recovery-Twist_loss"), unit_of("my_score")
    ('nats per token', 'my_score')
    """
    return next((unit for name, unit in UNITS.items() if metric.endswith(name)), metric)


def curve(log: Sequence[Row], metric: str) -> list[Row]:
    """Return step, estimate, lower, upper of a metric at each update; NaN for an interval that was not logged."""
    found = {
        row["step"]: {"step": row["step"], "estimate": row[metric]}
        | {end: row.get(f"{metric}_{end}", np.nan) for end in ("lower", "upper")}
        for row in log
        if isinstance(row.get(metric), (int, float))
    }
    return [found[step] for step in sorted(found)]


def arm_curve(curves: Sequence[Sequence[Row]], roots: Sequence[Any], unit: str) -> list[Row]:
    """Return the mean curve over the root seeds of an arm, with Student's t interval over them; of one run its own.

    Only updates that all runs have count.  Runs of one root seed are averaged first, as in `lm-trials compare`.
    """
    if len(curves) == 1:
        return thinned(curves[0])
    values = [{row["step"]: row["estimate"] for row in rows} for rows in curves]
    shared = sorted(set.intersection(*({*each} for each in values)))
    rows: list[Row] = []
    for step in thinned(shared):
        of_root: dict[Any, list[float]] = {}
        for root, each in zip(roots, values, strict=True):
            of_root.setdefault(root, []).append(each[step])
        means = [float(np.mean(of)) for of in of_root.values()]
        scale = "logit" if unit == "accuracy" and all(0 < mean < 1 for mean in means) else "identity"
        found = mean_over_seeds(means, len(means), unit, scale)
        rows.append({"step": step, "estimate": found.estimate, "lower": found.lower, "upper": found.upper})
    return rows


def thinned(rows: Sequence[Any], most: int = POINTS) -> list[Any]:
    """Return at most `most` rows, evenly spaced, the first and the last among them.

    >>> thinned(range(10), 4)
    [0, 3, 6, 9]
    """
    return (
        list(rows) if len(rows) <= most else [rows[place] for place in np.linspace(0, len(rows) - 1, most, dtype=int)]
    )


def read_table(path: Path) -> list[Row]:
    """Read a CSV file; a UsageError where it cannot be read as one."""
    with readable(str(path), "write it again with the command that made it"):
        rows: list[Row] = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("rows of different lengths")
    return rows


def table_files(run: Run) -> dict[str, Path]:
    """Return the tables that evaluations and probes wrote into a run, by their path in it."""
    files = (file for below in ("eval", "probes") for file in sorted((run.folder / below).rglob("*.csv")))
    return {file.relative_to(run.folder).as_posix(): file for file in files}


def saturation(run: Run) -> tuple[list[Row], list[Row]]:
    """Return the tables of the saturation probe: a row for each side, metric and checkpoint, and for each step.

    A metric of a slice of the stories has the slice in its name.

    Raises:
        UsageError: for a damaged table.
    """
    tables: list[list[Row]] = []
    for name in ("checkpoints.csv", "saturation.csv"):
        rows = read_table(run.folder / SATURATION / name)
        named = (row["metric"] if row["slice"] == "all" else f"{row['metric']}, {row['slice']}" for row in rows)
        tables.append(
            [{**row, "metric": name, "step": row.get("update")} for row, name in zip(rows, named, strict=True)]
        )
    return tables[0], [row for row in tables[1] if row["quantity"] == "saturation_step"]


@lru_cache(maxsize=8)
def attention(checkpoint: Path, text: int) -> np.ndarray:
    """Return the (L, H, T, T) attention probabilities in one story at a checkpoint."""
    return snapshot_of(checkpoint).read("attention")[str(text)]


def snapshots_of(run: Path) -> RunSnapshots:
    """Return the snapshots of a run's checkpoints; those that were there before are not read again."""
    return _snapshots(run, tuple(sorted(run.glob("checkpoint-*/snapshot/texts.json"))))


@lru_cache(maxsize=64)
def _snapshots(run: Path, files: tuple[Path, ...]) -> RunSnapshots:
    return open_snapshots(run)


def snapshot_of(checkpoint: Path) -> Snapshot:
    """Return the snapshot of a checkpoint."""
    return next(one for one in snapshots_of(checkpoint.parent).all if one.checkpoint == checkpoint)


@lru_cache(maxsize=8)
def embeddings(run: Path, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the (C, V, 2) token embeddings on the principal axes of all checkpoints, and the axes' shares."""
    return snapshots_of(run).embeddings()


def vocabulary(run: Path) -> dict[int, str]:
    """Return the tokens of a run's tokenizer by their ids, spaces visible; without single bytes."""
    model = read_object(run / "tokenizer.json").get("model", {}).get("vocab", {})
    pairs = model.items() if isinstance(model, dict) else ((token, place) for place, (token, *_) in enumerate(model))
    words = {place: token.replace("Ġ", "␣").replace("▁", "␣").replace("Ċ", "↵") for token, place in pairs}
    return {place: words[place] for place in sorted(words) if not words[place].startswith("<0x")}


@lru_cache(maxsize=32)
def _features(checkpoint: Path) -> list[np.ndarray]:
    """Return the centred (N, D) hidden states of each layer, over the tokens of all stories, scaled to a CKA of 1."""
    stories = snapshot_of(checkpoint).read("activations").values()  # (L + 1, T, D) each
    states_LND = np.concatenate(list(stories), axis=1).astype(np.float64)
    states_LND -= states_LND.mean(axis=1, keepdims=True)
    return [states_ND / np.sqrt(np.linalg.norm(states_ND.T @ states_ND)) for states_ND in states_LND]


def layer_similarity(first: Path, second: Path, same: bool = False) -> np.ndarray:
    """Return the linear CKA of each layer of a checkpoint (rows) with each layer of another one (columns).

    Args:
        same: of the same layers only, as a vector.

    Raises:
        UsageError: for checkpoints whose snapshots are of other stories.
    """
    one, other = ([text["input_ids"] for text in snapshot_of(each).texts] for each in (first, second))
    if one != other:
        raise UsageError(f"the snapshots of {first} and {second} are of other stories or tokens; choose another run")
    rows, columns = _features(first), _features(second)
    if same:
        return np.array([np.square(left.T @ right).sum() for left, right in zip(rows, columns, strict=True)])
    return np.array([[np.square(left.T @ right).sum() for right in columns] for left in rows])


@lru_cache(maxsize=4)
def order_of(run: Path) -> DataOrder:
    """Return the data order of a run, of any number of steps; a UsageError for missing or changed data."""
    from lm_trials.training.data_order import open_order

    return open_order(run)


@lru_cache(maxsize=4)
def metric_values(run: Path) -> Mapping[str, Any]:
    """Return the metrics of a run's training records as an Arrow table by data set; none where none were made.

    Raises:
        UsageError: for a damaged table.
    """
    from lm_trials.data.datasets import open_prepared
    from lm_trials.metrics.tables import open_metrics

    described = read_object(run / RUN_FILE)
    data = described["outcome"]["data"]
    given = {"dataset_name": data.get("name"), "data_cache_dir": described["logistics"].get("data_cache_dir")}
    given = given if "examples" in data else own_data(described) or {}
    place = Path(given.get("data_cache_dir") or "data")
    there = Path(described["environment"].get("working_directory", ".")) / place
    place = place if place.exists() else there
    found = {}
    for name in (given.get("dataset_name") or "").split("+"):
        dataset = open_prepared(name, place, "dataset_name")
        if any(dataset.texts().folder.glob("metrics-*")):
            found[name] = open_metrics(dataset).table
    return found


def update_records(run: Run, update: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Return the records of an update with their metrics and texts, and each metric of all training records.

    Raises:
        UsageError: for an update that the run does not have, missing or changed data.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    order = order_of(run.folder)
    parts = order.parts_of(update)
    tables = metric_values(run.folder)
    known: dict[str, dict[str, float]] = {part.record_id: {} for part in parts}
    whole: dict[str, np.ndarray] = {}
    for table in tables.values():
        ids = table["record_id"].combine_chunks()
        places = pc.index_in(pa.array(list(known)), value_set=ids).to_pylist()
        for metric in table.column_names[1:]:
            values = table[metric].to_numpy().astype(float)
            whole[metric] = np.concatenate([whole.get(metric, []), values])
            for record, place in zip(known, places, strict=True):
                if place is not None:
                    known[record][metric] = float(values[place])
    rows: list[Row] = [
        {
            "block": part.block + 1,
            "record": part.record_id,
            "tokens": f"{part.first:,} to {part.first + len(part.ids) - 1:,}",
        }
        | ({"part": part.corpus} if len(order.names) > 1 else {})
        | known[part.record_id]
        | {"text": order.text_of(part)}
        for part in parts
    ]
    return rows, whole


@dataclass(frozen=True)
class ShownTrial:
    """A trial: reported with its verdict, or registered only.

    Attributes:
        verdict: one word and the sentence of the report; empty before the report.
        contrasts, values: rows of `contrasts.csv` and `values.csv`.
    """

    name: str
    claim: str
    registered: str
    verdict: str = ""
    sentence: str = ""
    contrasts: Sequence[Row] = ()
    values: Sequence[Row] = ()


def trials_of(folder: RunsFolder) -> dict[str, Path]:
    """Return the trials by name, the reported ones first: the folder of the report, or that of the runs."""
    reported = {file.parent.name: file.parent for file in sorted(folder.results.glob("*/contrasts.csv"))}
    files = [folder.folder / REGISTRATION, *sorted(folder.folder.glob(f"*/{REGISTRATION}"))]
    registered = {file.parent.resolve().name: file.parent for file in files if file.is_file()}
    return reported | {name: place for name, place in registered.items() if name not in reported}


def read_trial(name: str, place: Path) -> ShownTrial:
    """Read a trial from the folder that `trials_of` names.

    Raises:
        UsageError: for a damaged file.
    """
    registration = read_registration(place) or {"time": "unknown", "registered": {"test": {}}}
    claim, time = str(registration["registered"]["test"].get("claim", "")), str(registration["time"])
    if not (place / "contrasts.csv").is_file():
        return ShownTrial(name, claim, time)
    page = place / "README.md"
    found = re.search(r"^\*\*Verdict: (.*?)\.?\*\* (.*)$", page.read_text() if page.is_file() else "", re.MULTILINE)
    values = read_table(place / "values.csv") if (place / "values.csv").is_file() else []
    verdict, sentence = found.groups() if found else ("", "")
    return ShownTrial(name, claim, time, verdict, sentence, read_table(place / "contrasts.csv"), values)


def checkpoints_of(listing: Listing) -> dict[str, Path]:
    """Return the folders with weights by name: each run's final model, then its checkpoints."""
    found: dict[str, Path] = {}
    for name, run in listing.runs.items():
        numbered = {
            int(path.name.split("-")[1]): path for path in run.folder.glob("checkpoint-*") if path.name[11:].isdecimal()
        }
        places = {name: run.folder} | {f"{name}, update {step:,}": numbered[step] for step in sorted(numbered)}
        found |= {label: place for label, place in places.items() if any(place.glob("*model*.safetensors"))}
    return found
