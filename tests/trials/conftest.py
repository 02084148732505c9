"""Run folders written by hand: as small as a comparison can read them."""

import copy
import json
import os
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_trials import write_trial
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from lm_trials.reporting import trial_figures

OUTCOME = {
    "learning_rate": 0.004,
    "max_steps": 100,
    "num_tokens": 12800,
    "total_train_batch_size": 4,
    "block_size": 32,
    "code_revision": "aaaa",
    "dataset_name": "tiny",
    "text_column": None,
    "vocab_size": 400,
    "tokenizer_name": None,
    "model_type": "llama",
    "config_name": None,
    "config_overrides": "hidden_size=32",
    "dropout": None,
    "initial_model": None,
    "data": {
        "corpus": "tiny",
        "content": "c0",
        "split_by": "hash",
        "stories": {"train": 300, "validation": 40},
        "tokens": {"train": 9000, "validation": 1000},
        "tokenizer_hash": "t0",
        "append_eos": False,
    },
    "model": {"model_type": "llama", "hidden_size": 32, "vocab_size": 400, "max_position_embeddings": 32},
}


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def nest(outcome, changes):
    """Change fields by dotted name in a copy."""
    outcome = copy.deepcopy(outcome)
    for name, value in changes.items():
        *path, last = name.split(".")
        place = outcome
        for part in path:
            place[part] = place[part] if isinstance(place.get(part), dict) else {}
            place = place[part]
        place[last] = value
    return outcome


def write_evaluation(folder, nats, tokens, sizes, ids, settings):
    folder.mkdir(parents=True)
    columns = {
        "record_id": ids or [f"story{number}" for number in range(len(nats))],
        "nats": np.asarray(nats, dtype=np.float64),
        "tokens": np.asarray(tokens, dtype=np.int32),
        "num_bytes": np.asarray(sizes, dtype=np.int32),
    }
    pq.write_table(pa.table(columns), folder / "per_story.parquet")
    (folder / "eval_results.json").write_text(json.dumps({"eval_loss": float(np.sum(nats) / np.sum(tokens))}))
    given = {"dataset_name": [folder.name.removesuffix("-validation")], "layout": "per_story", **settings}
    (folder / "data_args.json").write_text(json.dumps(given))


@pytest.fixture
def make_run():
    """Write `runs/<name>`: fields changed by dotted name, and its evaluations as lists of nats for each story."""

    def make(name, seed=1, change=None, nats=None, tokens=None, sizes=None, ids=None, logistics=None, **more):
        from pathlib import Path

        folder = Path("runs") / name
        folder.mkdir(parents=True)
        described = {
            "run_name": name,
            "outcome": nest(OUTCOME, change or {}),
            "replicate": {"seed": seed, "data_seed": more.get("data_seed", seed)},
            "logistics": {"output_dir": str(folder), "run_name": name, "max_eval_samples": 500, **(logistics or {})},
            "versions": {"torch": "2.13.0", **more.get("versions", {})},
            "environment": {"device": "cpu"},
            **({"lineage": more["lineage"]} if "lineage" in more else {}),
        }
        (folder / "run.json").write_text(json.dumps(described))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": more.get("steps", 100)}))
        save_file({"wte": np.zeros((400, 32), np.float32), "h": np.zeros(7, np.float32)}, folder / "model.safetensors")
        if nats is not None:
            tokens = tokens or [10] * len(nats)
            place = folder / "eval" / more.get("dataset", "tiny-validation")
            write_evaluation(place, nats, tokens, sizes or [40] * len(nats), ids, more.get("settings", {}))
        if own := more.get("own"):
            metrics = {"eval_loss": own, "eval_loss_lower": own - 0.1, "eval_loss_upper": own + 0.1}
            metrics |= {"eval_bits_per_byte": own / 2, "eval_samples": 40}
            (folder / "eval_results.json").write_text(json.dumps(metrics))
        return os.fspath(folder)

    return make


@pytest.fixture
def no_figures(monkeypatch):
    """Empty figures in reports, as drawing takes most of their time."""
    for name in ("forest_figure", "curves_figure"):
        monkeypatch.setattr(trial_figures, name, lambda *_: Figure((1, 1)))


@pytest.fixture
def make_trial(make_run):
    """Write `trials/t.yaml` and its finished runs; see `fake_trials.write_trial`."""
    return partial(write_trial, make_run, write_evaluation)
