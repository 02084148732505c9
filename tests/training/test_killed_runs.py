"""Killed at any instant and started again with the same command, a run ends with the bits of one that was not."""

import random
import shutil
import signal
import time

import pytest
from killed_runs import Training, kill_and_go_on, outcome

from lm_trials.training.data_order import RunOrder

pytestmark = pytest.mark.end_to_end

STEPS, EVERY = 12, 2
CACHED = ("--shuffle_buffer_size", "50")
STREAMED = ("--streaming", "True", "--shuffle_buffer_size", "50")
MIXED = ("--dataset_name", "a+b", "--data_mix", ".3,.7")
WORKERS = ("--dataloader_num_workers", "2")
ACCUMULATED = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
SECOND_PASS = ("--per_device_train_batch_size", "600")  # a pass of some 4,500 blocks ends in update 8
FILTERED = ("--keep", "tokens>300")
DROPOUT = ("--dropout", "0.1")
ARMS = {
    "cached, accumulated, logs rare": (*CACHED, *ACCUMULATED, *DROPOUT, "--logging_steps", "5"),
    "streamed, mixed, workers, second pass": (*STREAMED, *MIXED, *WORKERS, *SECOND_PASS),
    "streamed, second pass": (*STREAMED, *SECOND_PASS),
    "cached stream, mixed": ("--streaming", "CacheStream", *MIXED, "--stop_when", "all_exhausted"),
    "sorted in windows, filtered, workers": ("--order_by", "tokens", "--order_window", "50", *FILTERED, *WORKERS),
}
LONGER = [pytest.param(arm, marks=pytest.mark.slow) for arm in list(ARMS)[2:]]


@pytest.fixture(scope="module")
def two_parts(tiny_data):
    """Two corpora, `a` and `b`, beside `tiny`."""
    import prepare_tinystories

    for seed, name in enumerate("ab"):
        if not (tiny_data / name).exists():
            data = ["--corpus", name, "--data_cache_dir", str(tiny_data)]
            prepare_tinystories.main(["generate", "--num_stories", "300", "--seed", str(seed), *data])
    return tiny_data


@pytest.fixture
def command(two_parts, train_flags):
    def flags(*more):
        saved = ("--max_steps", str(STEPS), "--save_strategy", "steps", "--save_steps", str(EVERY))
        return train_flags("run", *saved, "--save_total_limit", "2", *more)

    return flags


@pytest.mark.parametrize("arm", [*list(ARMS)[:2], *LONGER])
def test_a_killed_run_ends_as_one_that_was_not(command, tmp_path, arm):
    argv, folder = command(*ARMS[arm]), tmp_path / "run"
    Training(argv, folder).finish()
    straight = outcome(folder)
    instants = random.Random(arm)
    step = STEPS - EVERY if "second pass" in arm else instants.randrange(EVERY, STEPS - EVERY, EVERY)
    saved = folder / f"checkpoint-{step}"
    assert kill_and_go_on(argv, folder, instants.uniform(0, 0.1), after=saved)
    last = RunOrder(folder).parts_of(step)
    assert (max(part.pass_index for part in last) > 0) == ("second pass" in arm)
    weights, numbers = outcome(folder)
    assert numbers == straight[1]
    assert weights == straight[0]
    other = [*argv, "--data_seed", "5", "--output_dir", str(tmp_path / "other")]
    Training(other, tmp_path / "other").finish()
    assert outcome(tmp_path / "other") != straight


def test_a_run_killed_after_its_last_update_ends_the_same(command, tmp_path):
    """Nothing is trained any more then, and the mean loss of the run is its own all the same."""
    argv, folder = command(*CACHED, "--logging_steps", "5"), tmp_path / "run"
    Training(argv, folder).finish()
    straight = outcome(folder)
    for name in ("finished.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    Training(argv, folder).finish()
    assert outcome(folder) == straight


def test_two_processes_killed_end_as_two_that_were_not(command, tmp_path):
    two = (*STREAMED, *MIXED, "--per_device_train_batch_size", "2", "--use_cpu", "True")
    argv, folder = command(*two), tmp_path / "run"
    Training(argv, folder, world_size=2).finish()
    straight = outcome(folder)
    assert kill_and_go_on(argv, folder, 0.05, world_size=2, after=folder / "checkpoint-4")
    assert outcome(folder) == straight


def test_a_run_killed_while_a_checkpoint_is_written_skips_it(command, tmp_path):
    argv, folder = command(), tmp_path / "run"
    Training(argv, folder).finish()
    straight = outcome(folder)
    shutil.rmtree(folder)
    run = Training(argv, folder)
    run.wait_for(folder / ".checkpoint-6.unfinished")
    run.signal()
    run.wait()
    again = Training(argv, folder)
    again.finish()
    assert outcome(folder) == straight
    if not (folder / "checkpoint-6").exists():  # it may have got its name before the signal came
        assert "checkpoint-6.unfinished is incomplete" in again.log.read_text()
    assert [path.name for path in folder.glob(".*")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(command, tmp_path, number):
    argv, folder = command("--max_steps", "400", "--save_strategy", "no", "--learning_rate", "1e-4"), tmp_path / "run"
    Training(argv, folder).finish()
    straight = outcome(folder)
    shutil.rmtree(folder)
    run = Training(argv, folder)
    run.wait_for(folder / "run.json")
    time.sleep(1)
    run.signal(number)
    assert run.wait() == [128 + number]
    said = run.log.read_text()
    assert "Run the same command again" in said
    assert "Traceback" not in said
    (checkpoint,) = folder.glob("checkpoint-*")
    assert 0 < int(checkpoint.name.split("-")[1]) < 400
    Training(argv, folder).finish()
    assert outcome(folder) == straight


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["cached, accumulated, logs rare", "streamed, mixed, workers, second pass"])
def test_twenty_of_twenty_end_the_same(command, tmp_path, arm):
    """Instants spread over a whole run, checkpoints after each update: many kills fall into the writing of one."""
    argv, folder = command(*ARMS[arm], "--save_steps", "1"), tmp_path / "run"
    Training(argv, folder).finish()
    straight = outcome(folder)
    shutil.rmtree(folder)
    seconds = Training(argv, folder).finish()  # the second time, when all is in memory
    instants = random.Random(20)
    same = killed = 0
    while killed < 20:  # a run that had ended when the signal came was not killed and does not count
        if kill_and_go_on(argv, folder, instants.uniform(0.05, 0.95) * seconds):
            killed += 1
            same += outcome(folder) == straight
    print(f"{arm}: {same} of {killed} ended the same")
    assert same == killed == 20
