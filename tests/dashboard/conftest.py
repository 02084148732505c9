"""Folders of runs for the dashboard's tests: two of one arm, another that still trains, and one that is damaged."""

import json
import shutil

import pytest
from dashboard_runs import RESULTS

import train_gpt2
from lm_trials.dashboard.pages import View
from lm_trials.dashboard.tables import RunsFolder
from lm_trials.files import write_csv


@pytest.fixture(scope="session")
def trained(tiny_data, tmp_path_factory):
    """A data folder with metrics and `runs`, in which two seeds of one arm have snapshots at updates 0, 1, 2 and 4."""
    from conftest import TINY_SHAPE

    import prepare_tinystories

    world = tmp_path_factory.mktemp("dashboard")
    for name in ("tiny", "tok400"):
        shutil.copytree(tiny_data / name, world / "data" / name)
    data = ["--data_cache_dir", str(world / "data")]
    prepare_tinystories.main(
        ["metadata", "--dataset_name", "tiny", "--sentiment", "False", "--output_dir", str(world), *data]
    )
    flags = {
        "dataset_name": "tiny", "vocab_size": 400, "model_type": "llama", "config_overrides": TINY_SHAPE,
        "block_size": 32, "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 2, "max_eval_samples": 20, "save_strategy": "steps", "save_steps": 4,
        "checkpoint_ladder": True, "snapshot": "attention,embeddings,activations", "snapshot_samples": 2,
        "num_sampled_stories": 0, "report_to": "none",
    }  # fmt: skip
    for seed in (0, 1):
        own = {**flags, "seed": seed, "data_seed": seed, "output_dir": world / "runs" / f"tiny-s{seed}"}
        train_gpt2.main([word for key, value in own.items() for word in (f"--{key}", str(value))] + data)
    probe = world / "runs" / "tiny-s0" / "probes" / "saturation"
    rows = [
        {"side": side, "slice": "all", "metric": "words", "update": step, "estimate": place + step / 4, "lower": place,
         "upper": place + 2, "n": 4, "unit": "words"}
        for place, side in enumerate(("input", "output")) for step in (1, 2, 4)
    ]  # fmt: skip
    write_csv(probe / "checkpoints.csv", rows)
    steps = [{**rows[0], "side": side, "quantity": "saturation_step", "estimate": 2.0} for side in ("input", "output")]
    write_csv(probe / "saturation.csv", steps)
    return world


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the runs that a test may change, the data beside it."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def view():
    """Return the view of a folder's runs, with the reports of this repository."""

    def of(runs, *names):
        folder = RunsFolder(runs, RESULTS)
        listing = folder.list()
        return View(folder, listing, names or list(listing.runs))

    return of


@pytest.fixture
def training(runs):
    """A run of another arm that has logged three updates to TensorBoard and is not finished."""
    from torch.utils.tensorboard import SummaryWriter

    folder = runs / "going-s0"
    folder.mkdir()
    described = json.loads((runs / "tiny-s0" / "run.json").read_text())
    described["outcome"]["learning_rate"] = 0.5
    (folder / "run.json").write_text(json.dumps(described))
    with SummaryWriter(folder / "runs" / "today") as writer:
        for step in (1, 2, 3):
            writer.add_scalar("train/loss", 6.0 - step, step)
        writer.add_scalar("eval/loss", 2.5, 3)
    return folder
