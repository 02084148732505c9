"""The folder of a run: two processes that train in one are kept apart."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from lm_trials import files
from lm_trials.console import UsageError
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.run_folder import LOCK, Start, prepare_output_dir, unlock_output_dir

TRY = "import sys, pathlib, lm_trials.files as files; files.unlock(files.locked(pathlib.Path(sys.argv[1])))"


def locked(folder):
    """Whether another process finds the folder locked, by this process and host."""
    tried = subprocess.run([sys.executable, "-c", TRY, folder / LOCK], capture_output=True, text=True)
    owner = f"BlockingIOError: process {os.getpid()} on {socket.gethostname()}"
    assert tried.returncode == 0 or owner in tried.stderr
    return tried.returncode != 0


def test_a_run_locks_its_folder_until_it_has_trained(tmp_path):
    arguments = RunArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    prepare_output_dir(arguments, Start())
    assert locked(tmp_path / "run")
    prepare_output_dir(arguments, Start())  # the process that has the lock may start again
    assert locked(tmp_path / "run")
    unlock_output_dir()
    assert not locked(tmp_path / "run")


@pytest.mark.parametrize("start", [Start(), Start("checkpoint-2")])
def test_a_folder_in_which_another_process_trains_is_refused_and_kept(start, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    arguments = RunArguments(output_dir=str(folder), use_cpu=True)
    held = files.locked(folder / LOCK)  # a lock belongs to an open file, so this is as another process's
    with pytest.raises(UsageError, match=rf"run: process {os.getpid()} on .* is training in it; wait for it"):
        prepare_output_dir(arguments, start)
    assert (folder / "run.json").exists()
    held.close()  # as a kill does: the file stays and locks nothing
    assert (folder / LOCK).exists()
    prepare_output_dir(arguments, start)
    assert (folder / "run.json").exists() == bool(start.checkpoint)
    unlock_output_dir()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    prepare_output_dir(RunArguments(output_dir=str(tmp_path / "run"), use_cpu=True), Start())
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    assert locked(tmp_path / "run")
    unlock_output_dir()
    assert not locked(tmp_path / "run")
    assert worker.is_alive()
    worker.kill()
    worker.join()
