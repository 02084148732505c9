"""A Slurm of two nodes on this machine, with everything in one folder: munged, slurmctld and two slurmd."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=1 RealMemory=2000
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=1 RealMemory=2000
PartitionName=long Nodes=node1,node2 Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node1,node2 State=UP PriorityTier=2
"""


def missing() -> str:
    """Return why there can be no Slurm here, or nothing."""
    absent = [program for program in PROGRAMS if not _program(program)]
    return (
        f"no {', '.join(absent)} here; install the packages slurm-wlm and munge to have this tested" if absent else ""
    )


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm; give the variables by which its commands find it, and stop it at the end.

    `folder` must have a short path: a socket's has at most 107 characters.
    """
    folder.chmod(0o755)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    facts = {"folder": folder, "host": socket.gethostname(), "user": getpass.getuser(), "ports": _free_ports(3)}
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(**facts))
    found = {"SLURM_CONF": str(configuration)}
    names = {"socket": "munge.socket", "key-file": key.name, "log-file": "munged.log", "pid-file": "munged.pid"}
    files = [f"--{flag}={folder / name}" for flag, name in {**names, "seed-file": "munged.seed"}.items()]
    with ExitStack() as stack:

        def start(program: str, *flags: str) -> None:
            log = stack.enter_context((folder / f"{program}.out").open("a"))
            command = [str(_program(program)), *flags]
            # In a session of its own: Ctrl-C ends the tests, which then stop Slurm.
            process = subprocess.Popen(
                command, env={**os.environ, **found}, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(process.wait, 300)
            stack.callback(process.terminate)

        start("munged", "--foreground", "--force", *files)
        _until((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D")
        for node in ("node1", "node2"):
            start("slurmd", "-D", "-N", node)
        _until(lambda: _idle(found) == 2, folder)
        try:
            yield found
        finally:
            subprocess.run(["scancel", "--user", getpass.getuser()], env={**os.environ, **found}, check=True)
            _until(lambda: _idle(found, "idle,drained") == 2, folder)


def _idle(found: dict[str, str], states: str = "idle") -> int:
    command = ["sinfo", "--noheader", "--Node", "--partition=long", f"--states={states}", "--format=%N"]
    return len(subprocess.run(command, env={**os.environ, **found}, capture_output=True, text=True).stdout.split())


def _until(holds, folder: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
        time.sleep(0.2)
