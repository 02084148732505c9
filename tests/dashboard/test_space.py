"""The folder for a Space: it runs by itself and has no path of this machine."""

import configparser
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import REPOSITORY
from dashboard_runs import RESULTS

from lm_trials.console import UsageError
from lm_trials.dashboard.space import REQUIREMENTS, write_space
from lm_trials.dashboard.tables import RunsFolder


@pytest.fixture(scope="module")
def space(trained, tmp_path_factory):
    return write_space(RunsFolder(trained / "runs", RESULTS), tmp_path_factory.mktemp("spaces") / "mine")


def test_it_has_the_runs_without_what_only_training_needs(space, trained):
    files = {file.relative_to(space).as_posix() for file in space.rglob("*") if file.is_file()}
    assert {"app.py", "requirements.txt", "README.md", "lm_trials/cli.py", "results/diversity/contrasts.csv"} <= files
    assert {"runs/tiny-s0/model.safetensors", "runs/tiny-s1/checkpoint-2/snapshot/attention.safetensors"} <= files
    assert not [name for name in files if name.endswith((".pt", ".pth", ".bin", ".pyc")) or "tfevents" in name]
    for name in files:
        if name.startswith("runs/") and name.endswith("run.json"):
            assert str(trained) not in (space / name).read_text()
            assert "working_directory" not in (space / name).read_text()
    assert str(trained) in (trained / "runs" / "tiny-s0" / "run.json").read_text()
    shown = RunsFolder(space / "runs").list()
    assert [list(names) for names in shown.arms.values()] == [["tiny-s0", "tiny-s1"]]


def test_its_head_and_requirements(space):
    import gradio

    head = (space / "README.md").read_text().split("---")[1]
    assert f"sdk: gradio\nsdk_version: {gradio.__version__}\n" in head
    assert "app_file: app.py" in head
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pins["torch"].count("+") == 0
    assert set(pins) == set(REQUIREMENTS)
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needed = {line.split(">")[0].split("=")[0].strip() for line in setup["options"]["install_requires"].splitlines()}
    assert {*REQUIREMENTS, "bitsandbytes", "evaluate"} == {name for name in needed if name and name[0] != "#"} | {
        "plotly"
    }


def test_a_folder_that_exists_is_refused(space, trained):
    with pytest.raises(UsageError, match=r"--space .* exists; remove it, or give another folder"):
        write_space(RunsFolder(trained / "runs"), space)


@pytest.mark.slow
def test_its_app_serves_the_copied_package(space):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "PYTHONPATH": ""}
    with subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, start_new_session=True) as process:
        try:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:
                        config = json.load(answer)
                    break
                except OSError:
                    assert process.poll() is None
                    time.sleep(0.2)
            assert "2 runs in 1 arm" in json.dumps(config)
        finally:
            process.terminate()
