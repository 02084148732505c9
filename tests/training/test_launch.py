import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin

from lm_trials.console import UsageError
from lm_trials.training.launch import check_launch, check_processes, check_saved

TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environ", "world_size", "distributed_type"),
    [
        ({}, 1, "NO"),
        (TORCHRUN, 2, "MULTI_CPU"),
        (TORCHRUN | {"WORLD_SIZE": "1"}, 1, "NO"),  # torchrun with one process also sets an address
        ({"MASTER_ADDR": "10.0.0.1", "OMPI_COMM_WORLD_SIZE": "2"}, 2, "MULTI_CPU"),  # mpirun, before accelerate
        ({"MASTER_ADDR": "10.0.0.1"}, 2, "MULTI_CPU"),  # a world that formed another way
        (TORCHRUN | {"ACCELERATE_USE_FSDP": "true"}, 2, "FSDP"),
        (TORCHRUN | {"ACCELERATE_USE_FSDP": "false"}, 2, "MULTI_CPU"),
        (TORCHRUN | {"ACCELERATE_USE_DEEPSPEED": "true"}, 2, "DEEPSPEED"),
    ],
)
def test_a_launch_as_asked_passes(environ, world_size, distributed_type):
    check_launch(environ, world_size, distributed_type)


@pytest.mark.parametrize(
    ("environ", "world_size", "distributed_type", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, 1, "NO", "several processes were requested and one runs"),
        (TORCHRUN, 1, "NO", "2 processes were started .WORLD_SIZE. and each trains in a world of 1"),
        ({"PMI_SIZE": "4"}, 2, "MULTI_CPU", "4 processes were started .PMI_SIZE. and each trains in a world of 2"),
        (TORCHRUN | {"ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_CPU", r"FSDP was requested .* runs MULTI_CPU instead"),
        (TORCHRUN | {"ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_GPU", r"FSDP was requested .* runs MULTI_GPU instead"),
        ({"ACCELERATE_USE_FSDP": "True"}, 1, "NO", r"FSDP was requested .* runs NO instead"),
        (TORCHRUN | {"ACCELERATE_USE_DEEPSPEED": "true"}, 2, "MULTI_CPU", "DeepSpeed was requested"),
    ],
)
def test_a_launch_that_is_not_what_was_asked_is_refused(environ, world_size, distributed_type, message):
    with pytest.raises(UsageError, match=message) as raised:
        check_launch(environ, world_size, distributed_type)
    assert "accelerate_configs/cpu_two_processes.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


class PartialState(SimpleNamespace):
    """Named as accelerate's, which tells an early state from a final one."""


class AcceleratorState(SimpleNamespace):
    """The final one."""


def test_fsdp_is_not_refused_before_accelerate_can_have_granted_it(monkeypatch):
    for variable, value in (TORCHRUN | {"ACCELERATE_USE_FSDP": "true"}).items():
        monkeypatch.setenv(variable, value)
    gpus = {"num_processes": 2, "distributed_type": SimpleNamespace(value="MULTI_GPU")}
    cpus = {"num_processes": 2, "distributed_type": SimpleNamespace(value="MULTI_CPU")}
    check_processes(PartialState(**gpus))
    with pytest.raises(UsageError, match="FSDP was requested"):
        check_processes(AcceleratorState(**gpus))
    with pytest.raises(UsageError, match="FSDP was requested"):
        check_processes(PartialState(**cpus))


@pytest.mark.end_to_end
def test_accelerate_really_runs_one_process_of_two_and_it_is_seen(tmp_path):
    """Through the real launcher.  If upstream mends it, the script prints 2 and this test says so."""
    script = tmp_path / "tiny.py"
    script.write_text(
        "from accelerate import PartialState\n"
        "from lm_trials.console import script\n"
        "from lm_trials.training.launch import check_processes\n"
        "state = PartialState(cpu=True)\n"
        "print('world', state.num_processes, flush=True)\n"
        "script(check_processes)(state)\n"
        "print('trained', flush=True)\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--quiet"]
    environ = {key: value for key, value in os.environ.items() if key not in TORCHRUN}
    environ |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, env=environ, timeout=300)
    assert "world 1" in done.stdout, done.stderr
    assert "trained" not in done.stdout
    assert "error: launch: several processes" in done.stderr
    assert "accelerate_configs/cpu_two_processes.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


GATHER = "stage3_gather_16bit_weights_on_model_save"


@pytest.mark.parametrize(
    ("zero", "kept"),
    [
        ({"stage": 3}, False),
        ({"stage": 3, GATHER: False}, False),
        ({"stage": 3, GATHER: True}, True),
        ({"stage": 2}, True),
    ],
)
def test_zero_3_that_would_save_no_model_is_refused(zero, kept):
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1})
    with nullcontext() if kept else pytest.raises(UsageError, match=f"ZeRO-3 would save no whole model; set {GATHER}"):
        check_saved(AcceleratorState(deepspeed_plugin=plugin))


@pytest.mark.parametrize(("kind", "kept"), [(None, False), ("SHARDED_STATE_DICT", False), ("FULL_STATE_DICT", True)])
def test_fsdp_that_would_save_no_model_is_refused(kind, kept):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    with nullcontext() if kept else pytest.raises(UsageError, match="FSDP would save no whole model"):
        check_saved(AcceleratorState(fsdp_plugin=plugin))
