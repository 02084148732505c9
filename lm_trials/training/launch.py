"""Check that the processes of a run are those that were requested.

Some launches of accelerate 1.15 silently do less: `accelerate launch --cpu --num_processes 2` starts one process, FSDP
on a CPU becomes DDP, and two processes on CPUs without `--use_cpu` each train alone into one folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lm_trials.console import UsageError

if TYPE_CHECKING:
    from accelerate.state import AcceleratorState, PartialState

TWO_PROCESSES = "accelerate_configs/cpu_two_processes.yaml"

# The number of processes, as set by torchrun, MPICH and Intel MPI, Open MPI, and MVAPICH.
WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# Sharded training: (variable that requests it, `distributed_type` in use, name).
SHARDING = (("ACCELERATE_USE_FSDP", "FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED", "DeepSpeed"))


def is_asked(environ: Mapping[str, str], variable: str) -> bool:
    """Whether the launcher requested this kind of sharding."""
    return environ.get(variable, "false").lower() == "true"


def check_launch(environ: Mapping[str, str], world_size: int, distributed_type: str) -> None:
    """Refuse a launch with fewer processes than requested, or with FSDP or DeepSpeed requested and not in use.

    Args:
        environ: the environment variables that the launcher set.
        world_size: processes that train together (accelerate's `state.num_processes`).
        distributed_type: accelerate's `"NO"`, `"MULTI_CPU"`, `"MULTI_GPU"`, `"FSDP"`, ...

    >>> check_launch({"WORLD_SIZE": "2"}, 1, "NO")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: launch: 2 processes were started (WORLD_SIZE) and each trains in a world of 1; ...
    """
    # accelerate's simple launcher sets an address but no world size when more than one process was requested.
    if world_size == 1 and "MASTER_ADDR" in environ and not any(v in environ for v in WORLD_SIZE_VARIABLES):
        raise UsageError(
            "launch: several processes were requested and one runs (MASTER_ADDR is set, WORLD_SIZE is not), because "
            f"accelerate starts one for --cpu --num_processes N; launch with --config_file {TWO_PROCESSES} and give "
            "--use_cpu True, or unset MASTER_ADDR for one process"
        )
    for variable in WORLD_SIZE_VARIABLES:
        if world_size < int(environ.get(variable, "1")):
            raise UsageError(
                f"launch: {environ[variable]} processes were started ({variable}) and each trains in a world of "
                f"{world_size}; on CPUs launch with --config_file {TWO_PROCESSES} and give --use_cpu True"
            )
    for variable, granted, name in SHARDING:
        if is_asked(environ, variable) and distributed_type != granted:
            raise UsageError(
                f"launch: {name} was requested ({variable}=true) and accelerate runs {distributed_type} instead, "
                f"as it does without a GPU; use GPUs, or for a test on CPUs launch with --config_file {TWO_PROCESSES}"
            )


def check_processes(state: PartialState | AcceleratorState) -> None:
    """Call `check_launch` for this process, with `trainer.accelerator.state` or `args.distributed_state`."""
    distributed_type = state.distributed_type.value
    fsdp = is_asked(os.environ, "ACCELERATE_USE_FSDP")
    # Until an Accelerator exists, accelerate's PartialState reports FSDP by its devices: MULTI_GPU, MULTI_XPU.
    if type(state).__name__ == "PartialState" and fsdp and distributed_type.startswith("MULTI_"):
        distributed_type = distributed_type if distributed_type == "MULTI_CPU" else "FSDP"
    check_launch(os.environ, state.num_processes, distributed_type)


def check_saved(state: AcceleratorState) -> None:
    """Refuse sharding whose weights Trainer saves in shards only: the folder of the finished run would have no model.

    That is the default of DeepSpeed's ZeRO-3 and of FSDP2.  `state` is `trainer.accelerator.state`.
    """
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    zero = deepspeed.deepspeed_config.get("zero_optimization", {}) if deepspeed else {}
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise UsageError(
            "launch: ZeRO-3 would save no whole model; set stage3_gather_16bit_weights_on_model_save to true in "
            "zero_optimization of DeepSpeed's configuration (zero3_save_16bit_model in accelerate's)"
        )
    if fsdp and "FULL_STATE_DICT" not in str(fsdp.state_dict_type):
        raise UsageError(
            "launch: FSDP would save no whole model; set fsdp_state_dict_type in accelerate's configuration to "
            "FULL_STATE_DICT"
        )
