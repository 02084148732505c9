"""The folder of a run: two processes that train in one are kept apart."""

import fcntl
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from lm_trials.console import UsageError
from lm_trials.training.run_arguments import RunArguments
from lm_trials.training.run_folder import Start, prepare_output_dir, unlock_output_dir

LOCK = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def locked(folder):
    """Whether another process finds the folder locked."""
    tried = subprocess.run([sys.executable, "-c", LOCK, folder], capture_output=True, text=True)
    assert tried.returncode == 0 or "BlockingIOError" in tried.stderr
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
    held = os.open(folder, os.O_RDONLY)  # a lock belongs to an open file, so this is as another process's
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="run: another process is training in it; wait for it"):
        prepare_output_dir(arguments, start)
    assert (folder / "run.json").exists()
    os.close(held)
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
