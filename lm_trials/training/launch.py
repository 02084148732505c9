"""Whether the processes that run are the processes that were asked for.

accelerate 1.15 has launches that do less than they say.  `accelerate launch --cpu --num_processes 2` starts
*one* process (its CPU path spawns none without mpirun) and FSDP on a CPU becomes plain DDP, both without a
word; and two processes that were not told to use the CPU each believe to be alone, train twice and write to
one folder.  A comparison of arms would rest on runs that are not what their command says, so a script stops
instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lm_trials.console import UsageError

if TYPE_CHECKING:
    from accelerate.state import AcceleratorState, PartialState

TWO_PROCESSES = "accelerate_configs/cpu_two_processes.yaml"

# Where torchrun, MPICH and Intel MPI, Open MPI and MVAPICH write the number of processes.
WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# Ways to cut a model into pieces: (variable that asks for it, `distributed_type` that grants it, its name).
SHARDING = (
    ("ACCELERATE_USE_FSDP", "FSDP", "FSDP"),
    ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED", "DeepSpeed"),
)


def check_launch(environ: Mapping[str, str], world_size: int, distributed_type: str) -> None:
    """Refuse a world that is not the one the launcher was asked for.

    Args:
        environ: the environment that the launcher left, usually `os.environ`.
        world_size: processes that really train together (accelerate's `state.num_processes`).
        distributed_type: accelerate's name of how they do (`"NO"`, `"MULTI_CPU"`, `"MULTI_GPU"`, `"FSDP"`).

    Raises:
        UsageError: one process where several were asked for, a world smaller than asked, or FSDP or DeepSpeed
            asked for and not in use.

    >>> check_launch({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}, 2, "MULTI_CPU")
    >>> check_launch({"WORLD_SIZE": "2"}, 1, "NO")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lm_trials.console.UsageError: 2 processes were started and each trains in a world of 1; ...
    """
    # What accelerate's simple launcher leaves behind when more than one process was asked for: an address to
    # meet at and nobody told of a world.  A world that did form needs no such guess.
    if world_size == 1 and "MASTER_ADDR" in environ and not any(v in environ for v in WORLD_SIZE_VARIABLES):
        raise UsageError(
            "several processes were asked for and one runs (MASTER_ADDR is set, WORLD_SIZE is not): "
            "accelerate starts only one for --cpu --num_processes N; launch with --config_file "
            f"{TWO_PROCESSES} and give the script --use_cpu True, or unset MASTER_ADDR if one is meant"
        )
    asked = max(int(environ.get(variable, "1")) for variable in WORLD_SIZE_VARIABLES)
    if world_size < asked:
        raise UsageError(
            f"{asked} processes were started and each trains in a world of {world_size}; on CPUs launch with "
            f"--config_file {TWO_PROCESSES} and give the script --use_cpu True"
        )
    for variable, granted, name in SHARDING:
        if environ.get(variable, "false").lower() == "true" and distributed_type != granted:
            raise UsageError(
                f"{name} was asked for ({variable}=true) and accelerate runs {distributed_type} instead, "
                "as it does without a GPU; use a machine with GPUs, or for a test on CPUs launch with "
                f"--config_file {TWO_PROCESSES}"
            )


def check_processes(state: PartialState | AcceleratorState) -> None:
    """Call `check_launch` with this process's environment and accelerate's view of the world.

    Takes `trainer.accelerator.state` or, as soon as the arguments are parsed, `args.distributed_state`: until
    an `Accelerator` exists, accelerate calls FSDP by its devices' name (`MULTI_GPU`, `MULTI_XPU`).

    Raises:
        UsageError: as `check_launch`.
    """
    distributed_type = state.distributed_type.value
    early = type(state).__name__ == "PartialState"
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if early and fsdp and distributed_type.startswith("MULTI_") and distributed_type != "MULTI_CPU":
        distributed_type = "FSDP"
    check_launch(os.environ, state.num_processes, distributed_type)
