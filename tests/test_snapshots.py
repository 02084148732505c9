"""Snapshots of a run, read without torch: one basis for all checkpoints, and damage by the name of the file."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from lm_trials.console import UsageError
from lm_trials.files import file_sums, write_json
from lm_trials.snapshots import open_snapshots, saved_updates


@pytest.fixture
def run(tmp_path):
    """Three checkpoints whose embeddings move along one axis, in a plane."""
    rng = np.random.default_rng(0)
    plane_2D, still_V2 = np.linalg.qr(rng.normal(size=(6, 2)))[0].T, rng.normal(size=(40, 2)) * [9, 1]
    for number, step in enumerate((0, 8, 16)):
        folder = tmp_path / f"checkpoint-{step}" / "snapshot"
        folder.mkdir(parents=True)
        moved = np.add(still_V2, [0, 3.0 * number])
        save_file({"weight": (moved @ plane_2D).astype(np.float32)}, folder / "embeddings.safetensors")
        save_file({"0": np.full((1, 2, 3, 3), step, np.float32)}, folder / "attention.safetensors")
        texts = [
            {"record_id": "a", "input_ids": [1, 2, 3], "tokens": list("abc"), "loss": 4.0, "num_scored": 2},
            {"record_id": "b", "input_ids": [1, 2], "tokens": list("ab"), "loss": 1.0, "num_scored": 1},
        ]
        write_json(folder / "texts.json", {"texts": texts})
        since = None if step == 0 else step - 8
        write_json(folder.parent / "sums.json", {"since": since, "files": file_sums(folder.parent)})
    return tmp_path


def test_the_table_lists_what_there_is(run):
    rows = open_snapshots(run).table()
    assert [(row["step"], row["since"], row["texts"], row["loss"]) for row in rows] == [
        (0, None, 2, 3.0), (8, 0, 2, 3.0), (16, 8, 2, 3.0),
    ]  # fmt: skip
    size = (run / "checkpoint-8" / "snapshot" / "embeddings.safetensors").stat().st_size
    assert rows[1]["embeddings_mb"] == size / 1e6
    assert "gradients_mb" not in rows[1]


def test_embeddings_of_all_checkpoints_have_one_basis(run):
    points, shares = open_snapshots(run).embeddings()
    assert points.shape == (3, 40, 2)
    assert shares.sum() == pytest.approx(1)  # the plane
    moves = np.diff(points, axis=0)
    assert np.allclose(moves, moves[0, 0], atol=1e-4)  # each token, each time, by the same
    assert np.linalg.norm(moves[0, 0]) == pytest.approx(3, abs=1e-4)
    alone = [each - each.mean(0) for each in points]
    assert np.allclose(alone[0], alone[2], atol=1e-4)  # with a basis for each, nothing would have moved


def test_attention_is_stacked_by_checkpoint(run):
    assert open_snapshots(run).attention(0)[:, 0, 1, 2, 2].tolist() == [0, 8, 16]


def test_what_is_missing_or_damaged_is_named(run, tmp_path_factory):
    with pytest.raises(UsageError, match="has no snapshots; give the folder of a run that was trained with --snapshot"):
        open_snapshots(tmp_path_factory.mktemp("empty"))
    found = open_snapshots(run)
    with pytest.raises(UsageError, match="no snapshot of activations; it has attention, embeddings"):
        found.activations()
    place = run / "checkpoint-8" / "snapshot"
    (place / "attention.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"checkpoint-8 is damaged: snapshot/attention\.safetensors has 1 bytes"):
        found.attention()
    (place / "texts.json").write_text(json.dumps({"texts": []}))
    with pytest.raises(UsageError, match=r"checkpoint-8 is damaged: snapshot/texts\.json"):
        open_snapshots(run)


def test_reading_needs_no_torch(run):
    program = f"import sys; from lm_trials.snapshots import open_snapshots as o; o({str(run)!r}).attention(); "
    said = subprocess.run([sys.executable, "-c", program + "print('torch' in sys.modules)"], capture_output=True)
    assert said.stdout == b"False\n", said.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 4, False), [4, 8, 10]),
        ((10, 0.25, False), [3, 6, 9, 10]),
        ((8, 100, True), [0, 1, 2, 4, 8]),
        ((1, 500, True), [0, 1]),
    ],
)
def test_saved_updates(arguments, expected):
    assert saved_updates(*arguments) == expected
