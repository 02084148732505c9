"""The lineage of a run: recorded, or followed through the folders of older runs."""

import json
from pathlib import Path

import pytest

from lm_trials.run_fields import lineage_of


def write(name, seed, base=None, **more):
    """Write a run that started from the run `base`; returns what its `run.json` has."""
    initial = None
    if base:
        known = {key: base[key] for key in ("run_name", "replicate")}
        initial = {"name_or_path": f"runs/{base['run_name']}", "weights_sha256": base["run_name"][0], "run": known}
    run = {"run_name": name, "outcome": {"initial_model": initial}, "replicate": {"seed": seed}, **more}
    Path("runs", name).mkdir(parents=True, exist_ok=True)
    Path("runs", name, "run.json").write_text(json.dumps(run))
    return run


@pytest.fixture
def chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrained = write("pretrained", 5)
    deleted = write("deleted", 0, pretrained)
    return pretrained, deleted, write("recovered", 1, deleted)


def test_folders_of_older_runs_are_followed(chain):
    names = [(run["run_name"], run["replicate"]["seed"], run["weights_sha256"]) for run in lineage_of(chain[2])]
    assert names == [("deleted", 0, "d"), ("pretrained", 5, "p")]
    assert lineage_of(chain[0]) == []


def test_what_is_recorded_needs_no_folder(chain):
    deleted = write("deleted", 0, chain[0], lineage=lineage_of(chain[1]))
    Path("runs/pretrained/run.json").unlink()
    assert [run["run_name"] for run in lineage_of(chain[2])] == ["deleted", "pretrained"]
    assert lineage_of(deleted) == deleted["lineage"]


def test_a_folder_with_another_run_now_is_not_followed(chain):
    write("deleted", 7, chain[0])
    assert [run["run_name"] for run in lineage_of(chain[2])] == ["deleted"]
    itself = write("again", 0, {"run_name": "again", "replicate": {"seed": 0}})
    assert len(lineage_of(itself)) == 1


def test_a_base_that_is_no_run_is_its_weights_or_commit():
    run = {"outcome": {"initial_model": {"name_or_path": "models/x", "weights_sha256": "w"}}, "replicate": {}}
    assert lineage_of(run) == [{"model": "models/x", "weights_sha256": "w"}]
